"""Scores of eigenvalues as heat maps, eigenvalues in the complex plane."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from analyses import report

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses._circuits.eigenvalues import HeadEigenvalues
    from analyses._heads.names import Head

_PANEL = 250  # pixels of a complex plane
_ACROSS = 3


def scores(found: "HeadEigenvalues") -> "go.Figure":
    """See `HeadEigenvalues.plot`."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n_layers, n_heads = found.eigenvalues.shape[1:3]
    cell = 38 if n_heads <= 12 else 22 if n_heads <= 16 else 14
    words = cell == 38
    tall = 26 if n_layers <= 24 else 14
    n = len(found.spaces)
    width, height = n_heads * cell, max(n_layers * tall, 110)
    figure = make_subplots(
        cols=n,
        shared_yaxes=True,
        horizontal_spacing=40 / (n * width + 40 * (n - 1)) if n > 1 else 0.0,
        subplot_titles=list(found.spaces),
    )
    for index, space in enumerate(found.spaces):
        values = found[space].tolist()
        figure.add_trace(
            go.Heatmap(
                z=values,
                zmin=-1,
                zmax=1,
                text=[[_short(v) for v in row] for row in values] if words else None,
                texttemplate="%{text}" if words else None,
                textfont={"size": 10},
                xgap=1,
                ygap=1,
                hoverongaps=False,
                showscale=index == 0,
                colorbar={"title": {"text": "score", "side": "right"}, "thickness": 12},
                hovertemplate=f"head <b>%{{y}}.%{{x}}</b>, {space}<br>score %{{z:.4f}}"
                "<extra></extra>",
            ),
            row=1,
            col=index + 1,
        )
        figure.update_xaxes(
            tickvals=list(range(0, n_heads, 1 if cell >= 22 else 5)),
            title={"text": "head", "standoff": 4},
            showgrid=False,
            row=1,
            col=index + 1,
        )
        figure.update_yaxes(
            tickvals=list(range(0, n_layers, 1 if tall >= 26 else 4)),
            title="layer" if index == 0 else None,
            autorange="reversed",
            showgrid=False,
            row=1,
            col=index + 1,
        )
    figure.update_layout(
        template=report.template(),
        height=height + 110,
        width=n * width + 40 * (n - 1) + 170,
        margin={"l": 60, "r": 10, "t": 40, "b": 60},
    )
    return figure.update_annotations(font={"size": 14})


def planes(found: "HeadEigenvalues", place: int, heads: "Sequence[Head]") -> "go.Figure":
    """See `HeadEigenvalues.plot_eigenvalues`."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    across = min(_ACROSS, len(heads))
    rows = -(-len(heads) // across)
    all_scores = found.scores[place]
    figure = make_subplots(
        rows=rows,
        cols=across,
        horizontal_spacing=50 / (across * _PANEL),
        vertical_spacing=70 / (rows * (_PANEL + 40)),
        subplot_titles=[f"head {head}: {float(all_scores[head]):+.3f}" for head in heads],
    )
    for index, head in enumerate(heads):
        values = found.eigenvalues[place][head]
        # One eigenvalue is often far larger than all others: their roots still show all angles.
        drawn = torch.polar((values.abs() / (values.abs().max() or 1)).sqrt(), values.angle())
        row, col = index // across + 1, index % across + 1
        figure.add_trace(
            go.Scatter(
                x=drawn.real.tolist(),
                y=drawn.imag.tolist(),
                customdata=[[v.real, v.imag] for v in values.tolist()],
                mode="markers",
                marker={"size": 7, "opacity": 0.75, "color": "#3a8fd0"},
                showlegend=False,
                hovertemplate="%{customdata[0]:.4g} %{customdata[1]:+.4g}i<extra></extra>",
            ),
            row=row,
            col=col,
        )
        reach = {"range": [-1.1, 1.1], "tickvals": [-1, 0, 1], "zeroline": True}
        last = index + across >= len(heads)
        figure.update_xaxes(reach, title="real" if last else None, row=row, col=col)
        left = "imaginary" if col == 1 else None
        figure.update_yaxes(reach, title=left, row=row, col=col)
    figure.update_layout(
        template=report.template(),
        height=rows * (_PANEL + 40) + 90,
        width=across * _PANEL + 130,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )
    return figure.update_annotations(font={"size": 13})


def _short(score: float) -> str:
    """A score in few characters: `-.97`; nothing for NaN, no sign before a zero."""
    text = f"{score:.2f}".replace("0.", ".", 1)
    return "" if score != score else text.removeprefix("-") if text == "-.00" else text
