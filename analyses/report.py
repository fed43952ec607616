"""Pages: one HTML file per result, that opens from disk and shows where its numbers come from.

A page holds any mix of text, tokens, tables, plotly figures, views of circuitsvis, maps of heads
and tables to download. It carries all it needs and asks no network for anything: each script is
inlined once, and a content security policy that names the page's own scripts by their hash lets
nothing else load or run. Whatever comes from outside (tokens, file names, prompts) is escaped,
`</script>` and figure markup included. It follows the reader's light or dark theme, and shows
itself in notebooks. More in docs/pages.md.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses import cli
from analyses._page.document import document
from analyses._page.frame import frame
from analyses._page.head_maps import BUDGET, HeadMaps, MapKind
from analyses._page.provenance import Provenance, package_version, weights_sha256
from analyses._page.tables import Shaded, download, shading, table
from analyses._page.text import clipped, html_text, isolated, plotly_text, rounded, script_json
from analyses._page.theme import template
from analyses._page.views import (
    View,
    attention_heads,
    attention_pattern,
    circuitsvis_view,
    colored_tokens,
    colored_tokens_multi,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float
    from torch import Tensor

__all__ = [
    "BUDGET",
    "HeadMaps",
    "MapKind",
    "Page",
    "Provenance",
    "Shaded",
    "View",
    "attention_heads",
    "attention_pattern",
    "circuitsvis_view",
    "colored_tokens",
    "colored_tokens_multi",
    "isolated",
    "plotly_text",
    "script_json",
    "template",
    "weights_sha256",
]


_THEME_BUTTON = (
    '<button id="theme" type="button" title="light or dark" aria-label="light or dark">◐</button>'
)
_NO_SCRIPT = (
    "<noscript><p>The figures on this page need JavaScript; its text and tables do not.</p>"
    "</noscript>"
)


# More are shown in a box that scrolls.
_MANY_TOKENS = 400


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
    _views: int = field(default=0, repr=False)
    _tables: int = field(default=0, repr=False)
    _scripts: set[str] = field(default_factory=set, repr=False)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html_text(text)}</h2>")

    def subheading(self, text: str) -> None:
        """Begin a part of a section."""
        self._parts.append(f"<h3>{html_text(text)}</h3>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html_text(text)}</p>")

    @contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """What is added meanwhile is hidden until the reader unfolds it. No figures: they need to
        be seen to know how wide they are."""
        self._parts.append(f"<details><summary>{html_text(summary)}</summary>")
        try:
            yield
        finally:
            self._parts.append("</details>")

    def tokens(self, tokens: Sequence[str | Shaded], prepended: bool) -> None:
        """Show the tokens of a prompt as they were used, with their positions on hovering.

        Each has a box of its own: they stand in the order of the prompt also where it is written
        from right to left, and a line ends between two of them.

        Args:
            tokens: one per token, made visible by `cli.visible`; with a background where it is
                `Shaded`, whose note is added to what is shown on hovering.
            prepended: whether the first one was put before the prompt, which is marked then.

        Raises:
            TypeError: one string instead of several.
        """
        if isinstance(tokens, str):
            raise TypeError(f"tokens are several strings, one per token, not the string {tokens!r}")
        spans = []
        for position, token in enumerate(tokens):
            cell = token if isinstance(token, Shaded) else Shaded(token, math.nan)
            added = prepended and position == 0
            note = f"position {position}: {cell.text!r}" + (" (prepended)" if added else "")
            note = "\n".join(filter(None, (note, cell.note)))
            background, percent = shading(cell)
            names = " ".join(filter(None, ("token", "added" * added, background)))
            style = f' style="--shade:{percent}%"' if percent else ""
            spans.append(
                f'<span class="{names}"{style} title="{html_text(note)}">'
                f"{clipped(cli.visible(cell.text) or '∅')[0]}</span>"
            )
        many = " many" if len(tokens) > _MANY_TOKENS else ""
        self._parts.append(f'<p class="tokens{many}">{"".join(spans)}</p>')

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
        _expect(figure, "to_plotly_json", "a figure is plotly's")
        spec = json.loads(str(figure.to_json(engine="json")))
        spec["layout"].pop("template", None)
        layout = spec["layout"]
        buttons = [b for menu in layout.pop("updatemenus", ()) for b in menu["buttons"]]
        spec["opens"] = opens
        spec["buttons"] = [[button["method"], *button["args"]] for button in buttons]
        shown = "".join(
            f'<button type="button" aria-pressed="{"false" if index else "true"}">'
            f"{html_text(button['label'])}</button>"
            for index, button in enumerate(buttons)
        )
        width = f"width:{float(layout['width']):g}px;" if "width" in layout else ""
        height = f"height:{float(layout.get('height', 450)):g}px"
        self._parts.append(
            f'<figure><div class="buttons">{shown}</div><div class="scroll">'
            f'<div class="plot" style="{width}{height}" data-spec="figure-{self._figures}" '
            f'role="img" aria-label="{html_text(caption)}"></div></div>'
            f"<figcaption>{html_text(caption)}</figcaption></figure>"
            f'<script type="application/json" id="figure-{self._figures}">'
            f"{script_json(rounded(spec))}</script>"
        )
        self._figures += 1
        self._scripts |= {"plotly", "themes", "figures"}

    def head_maps(
        self,
        maps: HeadMaps,
        caption: str = "",
        *,
        side_by_side: bool = False,
        budget: int = BUDGET,
    ) -> None:
        """Add maps of heads: all as small ones, one large, and what a chosen token attends to.

        Args:
            maps: what to show.
            caption: stands before it.
            side_by_side: also all heads of the chosen one's layer, by circuitsvis.
            budget: how many numbers the page may hold for it.

        Raises:
            ValueError: see `HeadMaps.spec`.
        """
        spec = maps.spec(budget)
        name = f"maps-{self._maps}"
        for note in (caption, spec["leftOut"]):
            if note:
                self.text(note)
        self._parts.append(
            f'<section class="head-maps" data-spec="{name}"'
            f"{' data-side-by-side' if side_by_side else ''}></section>"
            f'<script type="application/json" id="{name}">{script_json(spec)}</script>'
        )
        self._maps += 1
        self._scripts |= {"plotly", "themes", "figures", "save", "heads"}
        if side_by_side:
            self._scripts |= {"circuitsvis", "views"}

    def view(self, view: View, caption: str = "") -> None:
        """Add a view of circuitsvis. The functions that make one are in this module."""
        _expect(view, "component", "a view is what attention_heads and its like give")
        self._parts.append(view.part(f"view-{self._views}", caption))
        self._views += 1
        self._scripts |= {"circuitsvis", "views"}

    def attention_heads(
        self,
        patterns: "Float[Tensor, 'head query key']",
        tokens: Sequence[str],
        names: Sequence[str],
        caption: str = "",
        **options: Any,
    ) -> None:
        """Add attention patterns side by side, one of them large (see `attention_heads`)."""
        self.view(attention_heads(patterns, tokens, names, **options), caption)

    def attention_pattern(
        self,
        pattern: "Float[Tensor, 'query key']",
        tokens: Sequence[str],
        caption: str = "",
        **options: Any,
    ) -> None:
        """Add one attention pattern (see `attention_pattern`)."""
        self.view(attention_pattern(pattern, tokens, **options), caption)

    def colored_tokens(
        self,
        tokens: Sequence[str],
        values: "Float[Tensor, 'pos']",
        caption: str = "",
        **options: Any,
    ) -> None:
        """Add tokens with a background for their values (see `colored_tokens`)."""
        self.view(colored_tokens(tokens, values, **options), caption)

    def colored_tokens_multi(
        self,
        tokens: Sequence[str],
        values: "Float[Tensor, 'pos kind']",
        labels: Sequence[str],
        caption: str = "",
    ) -> None:
        """Add tokens with several values each (see `colored_tokens_multi`)."""
        self.view(colored_tokens_multi(tokens, values, labels), caption)

    def data(self, name: str, frame: "pd.DataFrame") -> None:
        """Add a button that hands over a table as `name`.csv, with the bytes that `--csv` writes.

        The page carries it compressed. Of a table that is too large for that (more than
        `MOST_ROWS` rows, or `MOST_BYTES` compressed) it says so.

        Raises:
            TypeError: no DataFrame.
        """
        _expect(frame, "to_csv", "a table is a pandas DataFrame")
        part, carried = download(name, frame, self._tables)
        self._parts.append(part)
        self._tables += 1
        self._scripts |= {"save", "data"} if carried else set()

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str | Shaded]]) -> None:
        """Add a table of strings, some of them `Shaded`.

        Raises:
            ValueError: a row with more or fewer cells than there are headers. TypeError: a cell
                that is no string.
        """
        self._parts.append(table(headers, rows))

    def provenance(self, provenance: Provenance, **more: str) -> None:
        """Say where the numbers come from; `more` are further lines, by name. It comes last."""
        used = dict(provenance.versions)
        if "circuitsvis" in self._scripts:
            used["circuitsvis"] = package_version("circuitsvis")
        versions = ", ".join(f"{name} {version}" for name, version in used.items())
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
            f"<dt>{html_text(name)}</dt><dd>{html_text(text)}</dd>" for name, text in lines.items()
        )
        self._parts.append(
            f'<section class="provenance"><h2>Provenance</h2><dl>{items}</dl></section>'
        )

    def html(self) -> str:
        """The whole page."""
        return document(self.title, [*self._top(), *self._parts], self._scripts, framed=False)

    def _top(self) -> list[str]:
        top = [_THEME_BUTTON, f"<h1>{html_text(self.title)}</h1>"]
        if self.lead:
            top.append(f'<p class="lead">{html_text(self.lead)}</p>')
        return [*top, _NO_SCRIPT] if self._scripts else top

    def write(self, path: str | PathLike[str]) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html(), encoding="utf-8", newline="\n")

    def frame(self, height: int = 600, *, bare: bool = False) -> str:
        """The page as part of a notebook, in a frame of its own: see `analyses._page.frame`.

        Args:
            height: in CSS pixels, until the page has told its own.
            bare: only what was added, without title and lead.
        """
        body = self._parts if bare else [*self._top(), *self._parts]
        return frame(document(self.title, body, self._scripts, framed=True), self.title, height)

    def _repr_html_(self) -> str:
        return self.frame()


def _expect(value: object, attribute: str, expected: str) -> None:
    if not hasattr(value, attribute):
        raise TypeError(f"{expected}, not {type(value).__name__}")
