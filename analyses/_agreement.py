"""How well estimates of effects agree with exact ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import report
from analyses.effects import Effects

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """Estimates of effects against exact ones, place by place.

    Attributes:
        name: of the effects.
        metric: the metric's name.
        estimate, exact: the change of the metric, averaged over examples; places that no example
            has are left out.
        places: what to call each, such as `layer 9, head 6`.
        pearson: the correlation of the two. NaN where one of them is the same everywhere.
        spearman: the correlation of their ranks (ties share the mean of theirs).
        slope: of the line through the origin that fits best, exact = slope * estimate: 1 where
            estimates are right on the whole, above 1 where they are too small.
    """

    name: str
    metric: str
    estimate: Float[Tensor, " place"]
    exact: Float[Tensor, " place"]
    places: tuple[str, ...]
    pearson: float
    spearman: float
    slope: float

    @classmethod
    def of(
        cls,
        name: str,
        metric: str,
        estimate: Float[Tensor, " place"],
        exact: Float[Tensor, " place"],
        places: Sequence[str],
    ) -> "Agreement":
        """The agreement of two lists of changes."""
        squares = float(estimate @ estimate)
        return cls(
            name=name,
            metric=metric,
            estimate=estimate,
            exact=exact,
            places=tuple(places),
            pearson=_pearson(estimate, exact),
            spearman=_pearson(_ranks(estimate), _ranks(exact)),
            slope=float(estimate @ exact) / squares if squares else math.nan,
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers about all places as plain data, ready for JSON; not finite ones are None."""
        numbers = {"pearson": self.pearson, "spearman": self.spearman, "slope": self.slope}
        return {
            "view": self.name,
            "metric": self.metric,
            "places": len(self.places),
            **{name: n if math.isfinite(n) else None for name, n in numbers.items()},
        }

    def plot(self) -> "go.Figure":
        """A point per place, the estimate across, the exact change up; the line is equality."""
        return figure([self])

    def __repr__(self) -> str:
        return (
            f"Agreement({self.name}: {len(self.places)} places, Pearson {self.pearson:.3f}, "
            f"Spearman {self.spearman:.3f}, exact = {self.slope:.2f} x estimate)"
        )


def agreement(approximate: Effects, exact: Effects) -> Agreement:
    """Compare estimated effects with exact ones of the same places.

    Both are averaged over examples first, as changes from the base run.

    Raises:
        ValueError: they lie on different axes, are of different places, or of another base run.
    """
    for what, one, other in (
        ("axes", approximate.axes, exact.axes),
        ("places", approximate.values.shape[:-1], exact.values.shape[:-1]),
        (
            "labels",
            [tuple(approximate.labels[axis]) for axis in approximate.axes],
            [tuple(exact.labels[axis]) for axis in exact.axes],
        ),
    ):
        if one != other:
            raise ValueError(
                f"{approximate.name}: the estimates have {what} {_short(one)}, the exact effects "
                f"{_short(other)}; they must be of the same places"
            )
    ends = [float(effects.base.mean()) for effects in (approximate, exact)]
    if not math.isclose(*ends, rel_tol=1e-3, abs_tol=1e-3):
        raise ValueError(
            f"{approximate.name}: without an edit {approximate.metric} is {ends[0]:.4g} in the one "
            f"and {ends[1]:.4g} in the other: they are of different runs (the other direction?)"
        )
    estimate, truth = (effects.change.reshape(-1).double() for effects in (approximate, exact))
    there = ~(estimate.isnan() | truth.isnan())
    estimate, truth = estimate[there], truth[there]
    places = torch.stack(torch.unravel_index(there.nonzero()[:, 0], exact.values.shape[:-1]), -1)
    return Agreement.of(
        approximate.name,
        approximate.metric,
        estimate,
        truth,
        [approximate.where(place) for place in places.tolist()],
    )


def _short(value: Any) -> str:
    text = str(value if not isinstance(value, torch.Size) else tuple(value))
    return text if len(text) < 200 else text[:200] + "..."


def _pearson(x: Tensor, y: Tensor) -> float:
    """NaN where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    lengths = float(x.norm() * y.norm())
    return float(x @ y) / lengths if lengths else math.nan


def _ranks(values: Tensor) -> Tensor:
    """The place of each in ascending order; equal ones share the mean of theirs."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[which]


def figure(agreements: Sequence[Agreement]) -> "go.Figure":
    """Every agreement as a panel of points, a few side by side."""
    from plotly.subplots import make_subplots

    across = min(len(agreements), 4)
    down = math.ceil(len(agreements) / across)
    chosen = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[report.plotly_text(one.name) for one in agreements],
        x_title="estimated change",
        y_title="exact change",
    )
    for index, one in enumerate(agreements):
        row, col = index // across + 1, index % across + 1
        low, high = (float(end) for end in torch.cat([one.estimate, one.exact]).aminmax())
        room = 0.07 * (high - low) or 1.0
        ends = [low - room, high + room]
        line = {"width": 1, "dash": "dot", "color": "#808790"}
        chosen.add_scatter(
            x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", row=row, col=col
        )
        chosen.add_scatter(
            x=one.estimate.tolist(),
            y=one.exact.tolist(),
            text=[report.plotly_text(text) for text in one.places],
            mode="markers",
            marker={"size": 7, "opacity": 0.7, "color": "#2f78bb"},
            hovertemplate="<b>%{text}</b><br>estimate %{x:.4g}<br>exact %{y:.4g}<extra></extra>",
            row=row,
            col=col,
        )
        chosen.update_xaxes(range=ends, row=row, col=col)
        chosen.update_yaxes(range=ends, row=row, col=col)
    chosen.update_layout(
        template=report.template(),
        width=120 + 300 * across,
        height=110 + 290 * down,
        showlegend=False,
        margin={"l": 70, "r": 10, "t": 50, "b": 60},
    )
    chosen.update_annotations(font={"size": 14})
    return chosen
