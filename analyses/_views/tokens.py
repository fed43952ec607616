"""A circuit between tokens or positions as a heat map."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from analyses import cli, report

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses._circuits.tokens import TokenCircuit

_MOST_CELLS = 65_536
_MOST_WORDS = 225  # larger maps have no numbers in them


def heat_map(found: "TokenCircuit", down: str, across: str, unit: str) -> "go.Figure":
    """See `TokenCircuit.plot`."""
    import plotly.graph_objects as go

    n, m = len(found.rows), len(found.columns)
    if n * m > _MOST_CELLS:
        raise ValueError(
            f"{n} x {m} cells are too many to draw (at most {_MOST_CELLS}): choose fewer tokens, "
            "or use to_frame()"
        )
    values = found.values
    if found.strongest is None:
        future = torch.ones(n, m, dtype=torch.bool).triu(1)
        values = values.masked_fill(future, math.nan)
    limit = float(values.abs().nan_to_num(0.0).max()) or 1.0
    words = n * m <= _MOST_WORDS
    cell = 48.0 if words else 13.0 if m <= 64 else max(2.5, 1000 / m)
    tall = 26.0 if words else min(cell, 18.0)
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            x=list(range(m)),
            y=list(range(n)),
            zmin=-limit,
            zmax=limit,
            hoverongaps=False,
            customdata=[
                [[_shown(a), _shown(b)] for b in found.column_strings] for a in found.row_strings
            ]
            if n * m <= 10_000
            else None,
            text=[[_short(v) for v in row] for row in values.tolist()] if words else None,
            texttemplate="%{text}" if words else None,
            textfont={"size": 11},
            hovertemplate=f"{down} <b>%{{customdata[0]}}</b>, {across} <b>%{{customdata[1]}}</b>"
            f"<br>{unit} %{{z:.5g}}<extra></extra>"
            if n * m <= 10_000
            else f"{down} %{{y}}, {across} %{{x}}<br>{unit} %{{z:.5g}}<extra></extra>",
            colorbar={"title": {"text": unit, "side": "right"}, "thickness": 12},
        )
    )
    figure.update_xaxes(_ticks(found.column_strings, cell), title=across, showgrid=False)
    figure.update_yaxes(
        _ticks(found.row_strings, tall), title=down, autorange="reversed", showgrid=False
    )
    longest = max(len(_shown(text)) for text in found.column_strings)
    figure.update_layout(
        template=report.template(),
        height=round(max(n * tall, 120) + 110 + 6 * min(longest, 20)),
        width=round(max(m * cell, 160) + 270),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
    )
    return figure


def _ticks(names: Sequence[str], size: float) -> dict[str, object]:
    step = max(1, math.ceil(13 / size))
    return {
        "tickvals": list(range(0, len(names), step)),
        "ticktext": [_shown(name) for name in names[::step]],
    }


def _shown(token: str) -> str:
    return report.plotly_text(report.isolated(cli.shorten(cli.visible(token), 16)))


def _short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
