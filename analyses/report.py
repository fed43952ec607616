"""Pages: one HTML file per result, that opens from disk and shows where its numbers come from.

A page carries all it needs and asks no network for anything: plotly's script is inlined once, and
a content security policy that names the page's own scripts by their hash lets nothing else load or
run. Whatever comes from outside (tokens, file names, prompts) is escaped, `</script>` and figure
markup included. It follows the reader's light or dark theme.
"""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from analyses._page.assets import SCRIPTS, script, source_hash, style
from analyses._page.head_maps import HeadMaps, MapKind
from analyses._page.provenance import Provenance, weights_sha256
from analyses._page.text import plotly_text, rounded, script_json
from analyses._page.theme import template

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "HeadMaps",
    "MapKind",
    "Page",
    "Provenance",
    "Shaded",
    "plotly_text",
    "script_json",
    "template",
    "weights_sha256",
]


class Shaded(NamedTuple):
    """A table cell with a background.

    Attributes:
        text: what it says.
        shade: how strong the background is, 0 to 1; nan for none.
        note: shown when the pointer rests on it.
        sign: 1 or -1 for a number that is above or below what figures leave uncoloured: the
            background is then of their red or blue; 0 for any other.
        opens: a head such as "3.1", which a click opens in the page's maps of heads.
    """

    text: str
    shade: float
    note: str = ""
    sign: int = 0
    opens: str = ""


@dataclass
class Page:
    """A page, filled from top to bottom and then written.

    Args:
        title: heading, and name of the browser's tab.
        lead: what the page shows, in a sentence or two.
    """

    title: str
    lead: str = ""
    _parts: list[str] = field(default_factory=list, repr=False)
    _figures: int = field(default=0, repr=False)
    _maps: int = field(default=0, repr=False)
    _scripts: set[str] = field(default_factory=set, repr=False)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def tokens(self, tokens: Sequence[str], prepended: bool) -> None:
        """Show the tokens of a prompt as they were used, with their positions on hovering.

        Each has a box of its own: they stand in the order of the prompt also where it is written
        from right to left, and a line ends between two of them.

        Args:
            tokens: one string per token.
            prepended: whether the first one was put before the prompt, which is marked then.
        """
        spans = []
        for position, token in enumerate(tokens):
            added = prepended and position == 0
            note = f"position {position}: {token!r}" + (" (prepended)" if added else "")
            spans.append(
                f'<span class="token{" added" if added else ""}" title="{html.escape(note)}">'
                f"{html.escape(token)}</span>"
            )
        self._parts.append(f'<p class="tokens">{"".join(spans)}</p>')

    def figure(
        self, figure: "go.Figure", caption: str = "", opens: Sequence[Sequence[str]] | None = None
    ) -> None:
        """Add a plotly figure. It takes the page's colours except where it sets its own.

        Buttons in it (`updatemenus`) become buttons of the page: plotly's cannot be read in dark.
        Strings in it that come from outside must have gone through `plotly_text`.

        Args:
            figure: what to show.
            caption: stands below it.
            opens: for each cell of its heat maps a head such as "3.1", which a click on the cell
                opens in the next maps of heads.
        """
        spec = json.loads(str(figure.to_json()))
        spec["layout"].pop("template", None)
        layout = spec["layout"]
        buttons = [b for menu in layout.pop("updatemenus", ()) for b in menu["buttons"]]
        spec["opens"] = opens
        spec["buttons"] = [[button["method"], *button["args"]] for button in buttons]
        shown = "".join(
            f'<button type="button" aria-pressed="{"false" if index else "true"}">'
            f"{html.escape(button['label'])}</button>"
            for index, button in enumerate(buttons)
        )
        width = f"width:{float(layout['width']):g}px;" if "width" in layout else ""
        height = f"height:{float(layout.get('height', 450)):g}px"
        self._parts.append(
            f'<figure><div class="buttons">{shown}</div><div class="scroll">'
            f'<div class="plot" style="{width}{height}" data-spec="figure-{self._figures}" '
            f'role="img" aria-label="{html.escape(caption)}"></div></div>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            f'<script type="application/json" id="figure-{self._figures}">'
            f"{script_json(rounded(spec))}</script>"
        )
        self._figures += 1
        self._scripts |= {"plotly", "themes", "figures"}

    def head_maps(self, maps: HeadMaps, caption: str = "") -> None:
        """Add maps of heads: all as small ones, one large, and what a chosen token attends to.

        Raises:
            ValueError: see `HeadMaps.spec`.
        """
        spec = maps.spec()
        name = f"maps-{self._maps}"
        for note in (caption, spec["leftOut"]):
            if note:
                self.text(note)
        self._parts.append(
            f'<section class="head-maps" data-spec="{name}"></section>'
            f'<script type="application/json" id="{name}">{script_json(spec)}</script>'
        )
        self._maps += 1
        self._scripts |= {"plotly", "themes", "figures", "heads"}

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str | Shaded]]) -> None:
        """Add a table."""
        head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def provenance(self, provenance: Provenance, **more: str) -> None:
        """Say where the numbers come from; `more` are further lines, by name."""
        versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
        weights = provenance.weights_sha256 or "not hashed (pass the model to have it here)"
        lines = {
            "model": provenance.model,
            "weights (sha256)": weights,
            "computed in": f"{provenance.dtype} on {provenance.device}",
            **{name.replace("_", " "): text for name, text in more.items()},
            "call": provenance.call,
            "versions": versions,
        }
        items = "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
            for name, text in lines.items()
        )
        self._parts.append(
            f'<section class="provenance"><h2>Provenance</h2><dl>{items}</dl></section>'
        )

    def html(self) -> str:
        """The whole page."""
        scripts = [script(name) for name in SCRIPTS if name in self._scripts]
        scripts.append(script("theme"))
        allowed = " ".join(source_hash(one) for one in scripts)
        policy = (
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'"
        )
        title = html.escape(self.title)
        lead = f'<p class="lead">{html.escape(self.lead)}</p>' if self.lead else ""
        warning = (
            "<noscript><p>The figures on this page need JavaScript; its text and tables do not."
            "</p></noscript>"
            if self._scripts
            else ""
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}</title>\n<style>{style()}</style>\n</head>\n<body>\n"
            '<button id="theme" type="button" title="light or dark">◐</button>\n'
            f"<h1>{title}</h1>\n{lead}\n{warning}\n"
            + "\n".join(self._parts)
            + "".join(f"\n<script>{one}</script>" for one in scripts)
            + "\n</body>\n</html>\n"
        )

    def write(self, path: str | PathLike[str]) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html(), encoding="utf-8", newline="\n")


def _cell(cell: str | Shaded) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    shade = 0.0 if math.isnan(cell.shade) else min(max(cell.shade, 0.0), 1.0)
    # Red and blue stay pale enough for the ink of the page.
    percent = round((65 if cell.sign else 100) * shade)
    name = {1: "above", -1: "below"}.get(cell.sign, "strong" if percent >= 50 else "")
    named = f' class="{name}"' if name else ""
    text = html.escape(cell.text)
    if cell.opens:
        text = f'<button type="button" data-open="{html.escape(cell.opens)}">{text}</button>'
    return f'<td{named} style="--shade:{percent}%" title="{html.escape(cell.note)}">{text}</td>'
