"""The colours of pages and figures, light and dark."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def variables() -> str:
    """The colours as variables of a style sheet, in the reader's theme or the one chosen."""

    def of(c: Mapping[str, Any], accent: str, fill: str, mid: str, strong: str) -> str:
        return (
            f"--ink:{c['ink']};--paper:{c['paper']};--line:{c['grid']};"
            f"--fill:{fill};--mid:{mid};--font:{_FONT};--accent:{accent};--strong:{strong};"
            f"--above:{c['diverging'][3]};--below:{c['diverging'][1]};"
        )

    light = of(_LIGHT, "#2f78bb", "#0b3a78", "#000000", "#ffffff")
    dark = of(_DARK, "#58a9e0", "#58a9e0", "#ffffff", "#000000")
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=light]{{color-scheme:light;{light}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
    )


THEMES = {name: template(name) for name in ("light", "dark")}
