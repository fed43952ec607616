"""How attention looks in figures: one head large, all heads small, views of circuitsvis."""

import math
from typing import TYPE_CHECKING, Any

import torch

from analyses import report
from analyses._attention.matrices import MATRICES
from analyses._page.head_maps import pooled
from analyses._views import attention as views

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor

    from analyses._attention.maps import AttentionMaps

# A montage of more cells is slow to draw and to hover over: beyond, cells stand for blocks.
_MOST_CELLS = 40_000
_MOST_TICKS = 60
_WIDEST = 1340


def head_map(result: "AttentionMaps", index: int, matrix: str) -> "go.Figure":
    """See `AttentionMaps.plot`."""
    import plotly.graph_objects as go

    values = views.drawn(result.of_heads(matrix, [index])[0], result, matrix)
    n = len(result.positions)
    # Names of rows and columns, which are all different as they begin with the position. They are
    # isolated, or words written from right to left would turn the hover text round.
    names = [report.isolated(report.plotly_text(one)) for one in views.labels(result)]
    shown = [
        report.plotly_text(f"{position}  {token}")
        for position, token in zip(result.positions, views.token_labels(result, 14), strict=True)
    ]
    step = math.ceil(n / _MOST_TICKS)
    ticks = {
        "type": "category",
        "tickvals": names[::step],
        "ticktext": shown[::step],
        "showgrid": False,
    }
    where = f"<b>{result.heads[index]}</b>: %{{y}} → %{{x}}"
    heat = go.Heatmap(
        z=values.tolist(),
        **_colours(result, matrix, values),
        x=names,
        y=names,
        hovertemplate=f"{where}<br>{report.plotly_text(views.title(result, matrix))} "
        "<b>%{z:.6g}</b><extra></extra>",
        hoverongaps=False,
    )
    figure = go.Figure(heat)
    cell = 26 if n <= 30 else 16 if n <= 60 else max(1.5, 900 / n)
    figure.update_layout(
        template=report.template(),
        title={"text": f"head {result.heads[index]}", "font": {"size": 15}},
        height=round(180 + max(n * cell, 60)),
        width=min(_WIDEST, round(290 + max(n * cell, 60))),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis=ticks | {"tickangle": -50, "title": "key"},
        yaxis=ticks | {"autorange": "reversed", "title": "query"},
    )
    return figure


def montage(result: "AttentionMaps", matrix: str) -> "go.Figure":
    """See `AttentionMaps.plot`."""
    import plotly.graph_objects as go

    layers = sorted({head.layer for head in result.heads})
    heads = sorted({head.head for head in result.heads})
    n, n_tiles = len(result.positions), len(layers) * len(heads)
    block = 1
    while n_tiles * math.ceil(n / block) ** 2 > _MOST_CELLS and block < n:
        block += 1
    side = math.ceil(n / block)
    pitch = side + max(1, round(side / 12))  # a gap between two maps
    height, width = (pitch * len(axis) - (pitch - side) for axis in (layers, heads))
    z: list[list[float | None]] = [[None] * width for _ in range(height)]
    hover: list[list[str]] = [[""] * width for _ in range(height)]
    ends = _block_labels(result, block)
    everything = result.matrix(matrix)
    for index, head in enumerate(result.heads):
        top, left = pitch * layers.index(head.layer), pitch * heads.index(head.head)
        tile = _pooled(views.drawn(everything[index], result, matrix), block).tolist()
        for i, row in enumerate(tile):
            z[top + i][left : left + side] = row
            hover[top + i][left : left + side] = [
                f"<b>{head}</b>: {ends[i]} → {ends[j]}" for j in range(side)
            ]
    shown = torch.tensor([[math.nan if x is None else x for x in row] for row in z])
    pooled = f" (largest in blocks of {block} x {block} tokens)" if block > 1 else ""
    heat = go.Heatmap(
        z=z,
        **_colours(result, matrix, shown),
        text=hover,
        hovertemplate=f"%{{text}}<br>{report.plotly_text(views.title(result, matrix))}{pooled} "
        "<b>%{z:.4g}</b><extra></extra>",
        hoverongaps=False,
    )
    figure = go.Figure(heat)
    tile = max(44, min(150, 960 // len(heads)))
    across, down = ([pitch * i + (side - 1) / 2 for i in range(len(a))] for a in (heads, layers))
    figure.update_layout(
        template=report.template(),
        height=round(120 + tile * len(layers)),
        width=min(_WIDEST, round(200 + tile * len(heads))),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis={"tickvals": across, "ticktext": [str(h) for h in heads], "showgrid": False,
               "title": f"head{pooled}", "constrain": "domain"},
        yaxis={"tickvals": down, "ticktext": [f"{layer} " for layer in layers], "showgrid": False,
               "title": "layer", "autorange": "reversed"},
    )  # fmt: skip
    return figure


def side_by_side(result: "AttentionMaps", matrix: str) -> report.View:
    """See `AttentionMaps.side_by_side`; of all heads of `result`."""
    return report.attention_heads(
        result.matrix(matrix),
        views.token_labels(result),
        [str(head) for head in result.heads],
        causal=MATRICES[matrix].causal,
        limit=1.0 if views.is_share(result, matrix) else None,
    )


def attended(result: "AttentionMaps", index: int, slot: int, matrix: str) -> report.View:
    """See `AttentionMaps.attended`."""
    values = result.of_heads(matrix, [index])[0, slot]
    if MATRICES[matrix].causal:
        values = values.masked_fill(~result.shown[slot], 0.0)
    return report.colored_tokens(
        views.token_labels(result), values, limit=1.0 if views.is_share(result, matrix) else None
    )


def _block_labels(result: "AttentionMaps", block: int) -> list[str]:
    """What the rows and columns of a small map are, as plotly's markup."""
    if block == 1:
        return [report.isolated(report.plotly_text(label)) for label in views.labels(result)]
    blocks = [result.positions[i : i + block] for i in range(0, len(result.positions), block)]
    return [f"{several[0]}–{several[-1]}" for several in blocks]


def _pooled(values: "Tensor", block: int) -> "Tensor":
    """The value furthest from zero of each block, NaN where it has none."""
    there = pooled((~values.isnan()).to(values)[None], block)[0] > 0
    numbers = values.nan_to_num(0.0, torch.inf, -torch.inf)
    return pooled(numbers[None], block)[0].masked_fill(~there, math.nan)


def _colours(result: "AttentionMaps", matrix: str, values: "Tensor") -> dict[str, Any]:
    """From nothing to the largest; diverging where numbers may be below zero."""
    signed = result.signed or MATRICES[matrix].signed
    most = float(values.abs().nan_to_num(0.0).max()) if values.numel() else 0.0
    most = 1.0 if views.is_share(result, matrix) else most or 1.0
    bar = {"title": {"text": views.title(result, matrix), "side": "right"}, "thickness": 12}
    return {"zmin": -most if signed else 0.0, "zmax": most, "colorbar": bar}
