"""Pages: one HTML file per result, that opens from disk and shows where its numbers come from.

A page carries all it needs and asks no network for anything: plotly's script is inlined once, and
a content security policy that names the page's own scripts by their hash lets nothing else load or
run. Whatever comes from outside (tokens, file names, prompts) is escaped, `</script>` and figure
markup included. It follows the reader's light or dark theme.
"""

import base64
import hashlib
import html
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp import HookedGPT2

# ------------------------------------------------------------------ where numbers come from


@dataclass(frozen=True)
class Provenance:
    """What one needs to know to get the same numbers again.

    Attributes:
        model: the model's name.
        dtype, device: what it was computed in, and where.
        call: the command or the function call.
        versions: of Python and the packages that matter.
        weights_sha256: see `weights_sha256`; None where nobody asked for it.
    """

    model: str
    dtype: str
    device: str
    call: str
    versions: Mapping[str, str]
    weights_sha256: str | None = None

    @classmethod
    def of(cls, model: "HookedGPT2", call: str) -> "Provenance":
        """The provenance of a result of `model`, without the hash of its weights."""
        return cls(
            model=str(model.cfg.model_name),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            call=call,
            versions={"python": platform.python_version()}
            | {name: _version(name) for name in ("hooked-gpt2", "torch", "plotly")},
        )

    def with_weights(self, model: "HookedGPT2", call: str | None = None) -> "Provenance":
        """The same with the hash of the weights of `model` (it reads all of them once), and with
        another call where one is given."""
        return replace(self, weights_sha256=weights_sha256(model), call=call or self.call)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "dtype": self.dtype,
            "device": self.device,
            "call": self.call,
            "versions": dict(self.versions),
        }


def weights_sha256(model: "HookedGPT2") -> str:
    """A hash of the weights as they are used: names, shapes, dtypes and bytes of all parameters.

    Equal for equal weights wherever they came from; different after an edit, or in another dtype.
    It is not the hash of the checkpoint's file.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed (run from its source tree)"


# ------------------------------------------------------------------ figures

# Sequential: from the colour of the page to full ink, so that what is near zero recedes in either
# theme. Diverging: blue below zero, red above. No red against green.
_LIGHT = {
    "ink": "#1f2430",
    "paper": "#ffffff",
    "grid": "#e3e6eb",
    "sequential": ["#f4f7fb", "#c5daee", "#7fb3d9", "#3a7fbf", "#15498a", "#0a2550"],
    "diverging": ["#123f7d", "#5b95cc", "#f6f6f6", "#dd7a5e", "#8c1d18"],
    "series": ["#1f6fb2", "#c4561a", "#2b8a5c", "#8a4fb0", "#a08400", "#b8336a"],
}
_DARK = {
    "ink": "#dde2ea",
    "paper": "#14171d",
    "grid": "#2b313c",
    "sequential": ["#191e27", "#17304d", "#1d4f80", "#2a74b5", "#7fbdea", "#e6f4fd"],
    "diverging": ["#8fc3f0", "#2f6ba8", "#1d2129", "#b0543a", "#f5ab90"],
    "series": ["#6fb3e8", "#f0945c", "#63c795", "#c294e3", "#d9bd3d", "#f07ba8"],
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def template(theme: str = "light") -> dict[str, Any]:
    """The plotly template of a theme; figures that set no colours of their own change with it.

    Args:
        theme: "light" or "dark".
    """
    c = {"light": _LIGHT, "dark": _DARK}[theme]

    def scale(colours: Sequence[str]) -> list[list[Any]]:
        return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]

    axis = {"gridcolor": c["grid"], "linecolor": c["grid"], "zeroline": False, "automargin": True}
    return {
        "data": {"heatmap": [{"autocolorscale": True}]},  # colours from `colorscale` below
        "layout": {
            "font": {"family": _FONT, "size": 13, "color": c["ink"]},
            "paper_bgcolor": c["paper"],
            "plot_bgcolor": c["paper"],
            "colorway": c["series"],
            "colorscale": {
                "sequential": scale(c["sequential"]),
                "sequentialminus": scale(c["sequential"][::-1]),
                "diverging": scale(c["diverging"]),
            },
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "align": "left",
                "bgcolor": c["paper"],
                "bordercolor": c["ink"],
                "font": {"color": c["ink"], "family": _FONT, "size": 13},
            },
        },
    }


def plotly_text(text: str) -> str:
    """`text` so that plotly shows it as it is: it reads `<b>`, `<a>` and `&lt;` as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ------------------------------------------------------------------ pages


class Shaded(NamedTuple):
    """A table cell with a background.

    Attributes:
        text: what it says.
        shade: how strong the background is, 0 to 1; nan for none.
        note: shown when the pointer rests on it.
        sign: 1 or -1 for a number that is above or below what figures leave uncoloured: the
            background is then of their red or blue; 0 for any other.
    """

    text: str
    shade: float
    note: str = ""
    sign: int = 0


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

    def figure(self, figure: "go.Figure", caption: str = "") -> None:
        """Add a plotly figure. It takes the page's colours except where it sets its own.

        Buttons in it (`updatemenus`) become buttons of the page: plotly's cannot be read in dark.
        Strings in it that come from outside must have gone through `plotly_text`.
        """
        spec = json.loads(str(figure.to_json()))
        spec["layout"].pop("template", None)
        layout = spec["layout"]
        buttons = [b for menu in layout.pop("updatemenus", ()) for b in menu["buttons"]]
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
            f"{script_json(_rounded(spec))}</script>"
        )
        self._figures += 1

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
        scripts: list[str] = []
        if self._figures:
            from plotly.offline import get_plotlyjs

            # HTML parsers read \r\n as \n; the hash must be of what they see.
            plotly = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
            themes = script_json({name: template(name) for name in ("light", "dark")})
            scripts = [plotly, f"const THEMES = {themes};\n{_DRAW}"]
        scripts.append(_THEME)
        allowed = " ".join(f"'sha256-{_hash(script)}'" for script in scripts) or "'none'"
        policy = (
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'"
        )
        title = html.escape(self.title)
        lead = f'<p class="lead">{html.escape(self.lead)}</p>' if self.lead else ""
        warning = (
            "<noscript><p>The figures on this page need JavaScript; its text and tables do not."
            "</p></noscript>"
            if self._figures
            else ""
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}</title>\n<style>{_css()}</style>\n</head>\n<body>\n"
            '<button id="theme" type="button" title="light or dark">◐</button>\n'
            f"<h1>{title}</h1>\n{lead}\n{warning}\n"
            + "\n".join(self._parts)
            + "".join(f"\n<script>{script}</script>" for script in scripts)
            + "\n</body>\n</html>\n"
        )

    def write(self, path: str | PathLike[str]) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html(), encoding="utf-8", newline="\n")


def script_json(value: Any) -> str:
    """JSON that is safe inside `<script>`: no `<`, so neither `</script>` nor `<!--` can occur."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: Any) -> Any:
    """Numbers with six digits: what a picture can show, at half the size."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _cell(cell: str | Shaded) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    shade = 0.0 if math.isnan(cell.shade) else min(max(cell.shade, 0.0), 1.0)
    # Red and blue stay pale enough for the ink of the page.
    percent = round((65 if cell.sign else 100) * shade)
    name = {1: "above", -1: "below"}.get(cell.sign, "strong" if percent >= 50 else "")
    named = f' class="{name}"' if name else ""
    return (
        f'<td{named} style="--shade:{percent}%" title="{html.escape(cell.note)}">'
        f"{html.escape(cell.text)}</td>"
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _css() -> str:
    def variables(c: Mapping[str, Any], accent: str, strong: str) -> str:
        return (
            f"--ink:{c['ink']};--paper:{c['paper']};--line:{c['grid']};"
            f"--accent:{accent};--strong:{strong};"
            f"--above:{c['diverging'][3]};--below:{c['diverging'][1]};"
        )

    light = variables(_LIGHT, "#2f78bb", "#ffffff")
    dark = variables(_DARK, "#58a9e0", "#0b0e13")
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=light]{{color-scheme:light;{light}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}" + _STYLE.replace("FONT", _FONT)
    )


_STYLE = """
body{margin:0 auto;padding:1.5rem 2rem 4rem;max-width:88rem;background:var(--paper);
 color:var(--ink);font:15px/1.5 FONT}
h1{font-size:1.5rem;margin:0 3rem .25rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.25rem 0 .5rem;overflow-wrap:anywhere}
p{max-width:60rem;margin:.5rem 0}
.lead{opacity:.8}
#theme{float:right;font-size:1.1rem;line-height:1;padding:.35rem .5rem}
.tokens{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:13px;
 max-width:none}
.token{display:inline-block;max-width:100%;box-sizing:border-box;line-height:1.4;
 border:1px solid var(--line);border-radius:.25rem;padding:.1rem .3rem;margin:0 .2rem .3rem 0;
 overflow-wrap:anywhere}
.added{border-style:dashed;opacity:.65}
figure{margin:.75rem 0}
figcaption{font-size:13px;opacity:.8;max-width:60rem}
.buttons{display:flex;gap:.35rem;flex-wrap:wrap}
button{font:inherit;font-size:13px;padding:.2rem .65rem;border-radius:.4rem;cursor:pointer;
 border:1px solid var(--line);background:none;color:inherit}
button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:var(--strong)}
.scroll{overflow-x:auto}
table{border-collapse:separate;border-spacing:2px;font-size:13px;
 font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;padding:.15rem .6rem;border-bottom:1px solid var(--line);
 white-space:nowrap}
td{padding:.12rem .6rem;white-space:pre;border-radius:.2rem;
 background:color-mix(in srgb,var(--accent) var(--shade,0%),transparent)}
td.above{background:color-mix(in srgb,var(--above) var(--shade,0%),transparent)}
td.below{background:color-mix(in srgb,var(--below) var(--shade,0%),transparent)}
td.strong{color:var(--strong)}
.provenance dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;
 font-size:13px;margin:0}
.provenance dt{opacity:.7}
.provenance dd{margin:0;overflow-wrap:anywhere;
 font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace}
@media (max-width:40rem){body{padding:1rem}.provenance dl{grid-template-columns:1fr}}
@media print{#theme{display:none}}
"""

_DRAW = """
// plotly's default tool bar has a button that uploads the figure.
const CONFIG = {displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
const draw = (plot, template) => {
  const spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
  Plotly.newPlot(plot, spec.data, {...spec.layout, template}, CONFIG);
  const buttons = [...plot.closest("figure").querySelectorAll(".buttons button")];
  buttons.forEach((button, index) => button.addEventListener("click", () => {
    const [method, ...values] = spec.buttons[index];
    Plotly[method](plot, ...values);
    for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  }));
};
addEventListener("theme", ({detail}) => {
  for (const plot of document.querySelectorAll(".plot")) {
    if (plot.data) Plotly.relayout(plot, {template: THEMES[detail]});
    else draw(plot, THEMES[detail]);
  }
});
"""

_THEME = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const show = theme => {
  document.documentElement.dataset.theme = theme;
  dispatchEvent(new CustomEvent("theme", {detail: theme}));
};
const system = () => show(dark.matches ? "dark" : "light");
dark.addEventListener("change", system);
document.getElementById("theme").addEventListener("click", () =>
  show(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
system();
"""
