"""Heat maps of composition scores."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyses import report

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import Tensor

    from analyses._circuits.composition import Composition

# A map of more heads than this has a cell for each pair of layers instead.
_MOST_HEADS = 400
POOLED = " Of so many heads each cell is a pair of layers, with its highest score."


def is_pooled(found: "Composition") -> bool:
    """Whether cells of the map are pairs of layers."""
    return math.prod(found.scores.shape[1:3]) > _MOST_HEADS


def heat_maps(found: "Composition", modes: Sequence[str]) -> "go.Figure":
    """See `Composition.plot`."""
    import plotly.graph_objects as go

    n_layers, n_heads = found.scores.shape[1:3]
    pooled = is_pooled(found)
    if pooled:
        names = [str(layer) for layer in range(n_layers)]
    else:
        names = [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads)]
    grids = {mode: _grids(found, mode, pooled) for mode in modes}
    every = [grid[0] for grid in grids.values()]
    limit = max(float(one.abs().nan_to_num(0.0).max()) for one in every) or 1.0
    n = len(names)
    cell = 26 if n <= 24 else 12 if n <= 60 else 6
    step = 1 if cell == 26 else 2 if cell == 12 else n_heads if not pooled else 4
    what = "layer" if pooled else "head"
    figure = go.Figure()
    for index, (mode, (above, scores, sigmas)) in enumerate(grids.items()):
        details = [
            [[one, other] for one, other in zip(*rows, strict=True)]
            for rows in zip(scores.tolist(), sigmas.tolist(), strict=True)
        ]
        figure.add_trace(
            go.Heatmap(
                z=above.tolist(),
                x=names,
                y=names,
                customdata=details,
                zmin=-limit,
                zmax=limit,
                hoverongaps=False,
                visible=index == 0,
                hovertemplate=f"<b>%{{y}} → %{{x}}</b>, {mode}-composition<br>score "
                "%{customdata[0]:.4f} (%{z:+.4f})<br>sigmas %{customdata[1]:.1f}<extra></extra>",
                colorbar={
                    "title": {"text": "score above random", "side": "right"},
                    "thickness": 12,
                },
            )
        )
    axis = {"type": "category", "tickvals": names[::step], "showgrid": False}
    figure.update_xaxes(axis, title=f"{what} that reads")
    figure.update_yaxes(axis, title=f"{what} that writes", autorange="reversed")
    if len(modes) > 1:
        figure.update_layout(updatemenus=[_buttons(modes)])
    side = max(cell * n, 240)
    figure.update_layout(
        template=report.template(),
        height=side + 110,
        width=side + 200,
        margin={"l": 70, "r": 20, "t": 30, "b": 60},
    )
    return figure


def _grids(found: "Composition", mode: str, pooled: bool) -> "tuple[Tensor, Tensor, Tensor]":
    """Score above the baseline, score and sigmas, `head head` or `layer layer`."""
    scores = found[mode]
    sigmas = found.sigmas[found.modes.index(mode)]
    if pooled:
        n = len(scores)
        best = scores.permute(0, 2, 1, 3).reshape(n, n, -1).nan_to_num(-1.0).max(-1)
        sigmas = sigmas.permute(0, 2, 1, 3).reshape(n, n, -1)
        sigmas = sigmas.gather(-1, best.indices[..., None])[..., 0]
        scores = best.values.masked_fill(best.values < 0, math.nan)
    else:
        n = math.prod(scores.shape[:2])
        scores, sigmas = scores.reshape(n, n), sigmas.reshape(n, n)
    return scores - found.baseline, scores, sigmas


def _buttons(modes: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0.0,
        "y": 1.1,
        "xanchor": "left",
        "buttons": [
            {
                "label": f"{mode}-composition",
                "method": "restyle",
                "args": [{"visible": [one == mode for one in modes]}],
            }
            for mode in modes
        ],
    }
