"""Effects: what a metric becomes under many edits, laid out on named axes.

Every sweep over a model's parts answers in this form: one number per layer and position, per layer
and head, per neuron, per entry of a pattern, for every example. An `Effects` keeps the numbers per
example, so means, errors and intervals can be had at any time, on any of three scales:

- `value`: the metric itself, in its own units;
- `change`: the metric minus what it is without the edit;
- `normalised`: where two runs give the ends, 0 is the metric of the corrupted run and 1 that of the
  clean one, (mean - corrupted) / (clean - corrupted), taken of means over examples.

The three differ by a shift and a factor, so one picture serves them all: colours show the distance
from what the metric is without any edit.

Sources: normalising by the two runs: Wang et al. 2022 (arXiv 2211.00593), Zhang and Nanda 2023
(arXiv 2309.16042, section 2); bootstrap intervals: Efron 1979, Annals of Statistics 7:1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli
from hooks.names import nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Scale = Literal["value", "change", "normalised"]
SCALES: tuple[Scale, ...] = ("value", "change", "normalised")

_RESAMPLES = 2000
# So many numbers of resampled means are made at a time.
_CHUNK = 4 * 2**20


class Interval(NamedTuple):
    """The two ends of an interval, both with the axes of the effects."""

    low: Float[Tensor, "*axes"]
    high: Float[Tensor, "*axes"]


@dataclass(frozen=True, eq=False, repr=False)
class Effects:
    """The metric under each of many edits, per example.

    Attributes:
        name: what was edited, such as "resid_pre".
        axes: names of the axes that the edits lie on, such as `("layer", "pos")`; the words of
            `hooks.names`' vocabulary where they fit. The axis `example` comes last and is not here.
        labels: axis -> what to call each coordinate (`"3"`, `"5 ·Mary"`). Anything invisible in a
            token must have gone through `cli.visible`.
        values: `[*axes example]`, the metric under each edit. NaN where an example has no such
            place (a position past its end): means are over the others.
        base: `[example]`, the metric without the edit.
        metric: the metric's name.
        corrupted, clean: `[example]`, what counts as 0 and 1 on the normalised scale; both or none.
        numbers: axis -> the number of each coordinate, for `to_frame`. An axis that is left out
            counts from 0.

    Raises:
        ValueError: shapes, labels and axes do not fit together; says which.
    """

    name: str
    axes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    values: Float[Tensor, "*axes example"]
    base: Float[Tensor, " example"]
    metric: str
    corrupted: Float[Tensor, " example"] | None = None
    clean: Float[Tensor, " example"] | None = None
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = tuple(self.values.shape[:-1])
        if len(sizes) != len(self.axes) or not self.axes:
            raise ValueError(
                f"{self.name}: values of shape {tuple(self.values.shape)} do not fit the axes "
                f"{' '.join(self.axes) or '(none)'} and example"
            )
        for axis, size in zip(self.axes, sizes, strict=True):
            if axis not in self.labels:
                raise ValueError(f"{self.name}: axis {axis!r} has no labels")
            for what, given in (("labels", self.labels), ("numbers", self.numbers)):
                if axis in given and len(given[axis]) != size:
                    raise ValueError(
                        f"{self.name}: axis {axis!r} has {len(given[axis])} {what} for {size} "
                        "coordinates"
                    )
        if (self.corrupted is None) != (self.clean is None):
            raise ValueError(f"{self.name}: give both ends of the scale, corrupted and clean")
        for what in ("base", "corrupted", "clean"):
            given = getattr(self, what)
            if given is not None and given.shape != self.values.shape[-1:]:
                raise ValueError(
                    f"{self.name}: {what} has shape {tuple(given.shape)}, the values have "
                    f"{self.values.shape[-1]} examples"
                )

    @classmethod
    def on_axes(
        cls,
        name: str,
        labels: Mapping[str, Sequence[str]],
        values: Float[Tensor, "edit example"],
        base: Float[Tensor, " example"],
        metric: str,
        *,
        corrupted: Float[Tensor, " example"] | None = None,
        clean: Float[Tensor, " example"] | None = None,
        numbers: Mapping[str, Sequence[int]] | None = None,
    ) -> "Effects":
        """Lay out a list of edits, as a sweep gives them, on axes.

        Args:
            labels: axis -> labels, in the order of the axes; the edits run through them with the
                last axis fastest.
            values: `[edit example]`.
            name, base, metric, corrupted, clean, numbers: as the attributes.

        Raises:
            ValueError: there are not as many edits as places on the axes.
        """
        sizes = [len(names) for names in labels.values()]
        if math.prod(sizes) != len(values):
            shape = " x ".join(f"{n} {axis}" for axis, n in zip(labels, sizes, strict=True))
            raise ValueError(f"{name}: {len(values)} edits do not fill {shape}")
        return cls(
            name=name,
            axes=tuple(labels),
            labels={axis: tuple(names) for axis, names in labels.items()},
            values=values.reshape(*sizes, values.shape[-1]),
            base=base,
            metric=metric,
            corrupted=corrupted,
            clean=clean,
            numbers={axis: tuple(given) for axis, given in (numbers or {}).items()},
        )

    # -------------------------------------------------------------- numbers

    @property
    def n_examples(self) -> int:
        """How many examples there are."""
        return self.values.shape[-1]

    @property
    def examples(self) -> Float[Tensor, "*axes"]:
        """How many examples have each place."""
        return (~self.values.isnan()).sum(-1).to(self.values.dtype)

    @property
    def mean(self) -> Float[Tensor, "*axes"]:
        """The metric under each edit, averaged over the examples that have the place."""
        return self.values.nanmean(-1)

    @property
    def stderr(self) -> Float[Tensor, "*axes"]:
        """The standard error of `mean`; NaN with a single example."""
        return self._stderr(self.values)

    def _stderr(self, per_example: Tensor) -> Tensor:
        n = self.examples
        squares = (per_example - per_example.nanmean(-1, keepdim=True)).pow(2).nansum(-1)
        return (squares / (n - 1) / n).sqrt().where(n > 1, math.nan)

    @property
    def change(self) -> Float[Tensor, "*axes"]:
        """What each edit adds to the metric, averaged over examples."""
        return (self.values - self.base).nanmean(-1)

    @property
    def change_stderr(self) -> Float[Tensor, "*axes"]:
        """The standard error of `change`; smaller than that of `mean` where examples differ more
        from each other than in how they change."""
        return self._stderr(self.values - self.base)

    @property
    def normalised(self) -> Float[Tensor, "*axes"]:
        """The metric on the scale where 0 is the corrupted run and 1 the clean one.

        Raises:
            ValueError: no two runs are known, or they have the same mean.
        """
        corrupted, clean = self._ends()
        low, high = self._present_mean(corrupted), self._present_mean(clean)
        return (self.mean - low) / (high - low)

    @property
    def scale(self) -> Scale:
        """The scale of pictures and tables unless one is named: normalised where there are two runs
        that differ, else change."""
        if self.corrupted is None or self.clean is None:
            return "change"
        return "normalised" if self.corrupted.mean() != self.clean.mean() else "change"

    def on(self, scale: Scale) -> Float[Tensor, "*axes"]:
        """The numbers on one of `SCALES`.

        Raises:
            ValueError: an unknown scale, or as `normalised`.
        """
        if scale not in SCALES:
            raise ValueError(
                f"unknown scale {scale!r}.{nearest(str(scale), SCALES)} Expected one of "
                f"{', '.join(SCALES)}"
            )
        if scale == "value":
            return self.mean
        return self.change if scale == "change" else self.normalised

    def neutral(self, scale: Scale) -> float:
        """What a place that every example has is on this scale if its edit changes nothing."""
        if scale == "change":
            return 0.0
        base = float(self.base.mean())
        if scale == "value":
            return base
        corrupted, clean = (float(end.mean()) for end in self._ends())
        return (base - corrupted) / (clean - corrupted)

    def distance(self, scale: Scale) -> Float[Tensor, "*axes"]:
        """How far the numbers on a scale are from what no edit gives, of the examples that have
        the place.

        Raises:
            ValueError: as `on`.
        """
        self.on(scale)  # its errors
        if scale != "normalised":
            return self.change
        corrupted, clean = self._ends()
        return self.change / (self._present_mean(clean) - self._present_mean(corrupted))

    def interval(self, level: float = 0.95, *, scale: Scale = "value", seed: int = 0) -> Interval:
        """A percentile bootstrap interval over examples, of the numbers on one scale.

        On `change` and `normalised`, an example is drawn together with its own ends.

        Args:
            level: how much of the bootstrap distribution lies inside.
            scale: one of `SCALES`.
            seed: of the resampling (2000 times).

        Returns:
            low and high; NaN where fewer than two examples have the place.

        Raises:
            ValueError: a level outside (0, 1), or as `on`.
        """
        if not 0 < level < 1:
            raise ValueError(f"level={level} is out of range: expected a share between 0 and 1")
        self.on(scale)  # its errors
        draws = torch.randint(
            self.n_examples,
            (_RESAMPLES, self.n_examples),
            generator=torch.Generator().manual_seed(seed),
        )
        # How often each draw holds each example: means of all draws are one matrix product.
        counts = torch.zeros(_RESAMPLES, self.n_examples, dtype=torch.float64)
        counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
        values = self.values.to(torch.float64).reshape(-1, self.n_examples)
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        found = []
        for rows in values.split(max(1, _CHUNK // _RESAMPLES)):
            found.append(self._resampled(rows, counts, scale).nanquantile(ends, dim=1))
        low, high = torch.cat(found, dim=1).to(self.values.dtype)
        few = self.examples.reshape(-1) < 2
        low, high = (end.masked_fill(few, math.nan).view_as(self.examples) for end in (low, high))
        return Interval(low, high)

    def _resampled(self, rows: Tensor, counts: Tensor, scale: Scale) -> Tensor:
        """`[row draw]`: the numbers of some places under every draw of examples."""
        present = (~rows.isnan()).to(rows.dtype)
        n = present @ counts.T

        def means(per_example: Tensor) -> Tensor:
            return (per_example.nan_to_num(0.0) * present) @ counts.T / n

        if scale == "value":
            return means(rows)
        if scale == "change":
            return means(rows - self.base)
        corrupted, clean = (end.to(rows.dtype).expand_as(rows) for end in self._ends())
        low = means(corrupted)
        return (means(rows) - low) / (means(clean) - low)

    def _ends(self) -> tuple[Tensor, Tensor]:
        if self.corrupted is None or self.clean is None:
            raise ValueError(
                f"{self.name} has no normalised scale: that takes the metric of two runs, "
                f"corrupted (0) and clean (1); there is 'value' and 'change'"
            )
        if self.corrupted.mean() == self.clean.mean():
            raise ValueError(
                f"{self.name} has no normalised scale: {self.metric} is "
                f"{float(self.clean.mean()):g} in the corrupted run and in the clean one alike"
            )
        return self.corrupted, self.clean

    def _present_mean(self, per_example: Tensor) -> Tensor:
        """The mean of numbers per example over those that have each place."""
        return per_example.expand_as(self.values).where(~self.values.isnan(), math.nan).nanmean(-1)

    # -------------------------------------------------------------- tables

    def where(self, index: Sequence[int], join: str = ", ") -> str:
        """One place in words: `layer 9, head 6`."""
        return join.join(
            f"{axis} {self.labels[axis][i]}" for axis, i in zip(self.axes, index, strict=True)
        )

    def strongest(self, k: int, scale: Scale | None = None) -> list[tuple[int, ...]]:
        """The indices of the k places furthest from what no edit gives, furthest first.

        Args:
            k: how many at most, at least 1.
            scale: by default `scale`; the order is the same on all scales where every example has
                every place.
        """
        if k < 1:
            raise ValueError(f"k={k} is out of range: expected at least 1")
        scale = scale or self.scale
        distance = self.distance(scale).abs().reshape(-1)
        there = (~distance.isnan()).nonzero()[:, 0]
        order = there[distance[there].argsort(descending=True, stable=True)][:k]
        places = torch.unravel_index(order, self.values.shape[:-1])
        return [tuple(place) for place in torch.stack(places, -1).tolist()]

    def top(self, k: int = 10, scale: Scale | None = None) -> "pd.DataFrame":
        """The k rows of `to_frame` furthest from what no edit gives, furthest first."""
        shape = self.values.shape[:-1]
        frame, keep = self._frame(), []
        for index in self.strongest(k, scale):
            flat = 0
            for i, size in zip(index, shape, strict=True):
                flat = flat * size + i
            keep.append(flat)
        return frame.iloc[keep].reset_index(drop=True)

    def to_frame(self, *, per_example: bool = False) -> "pd.DataFrame":
        """One row per place on the axes (and, if asked, per example), as a table.

        Columns: `view` (the name), `metric`; per axis its number, and its label as `layer_label`
        and so on; then, of the mean over examples, `value` and `stderr`, `change` and
        `change_stderr`, `normalised` (where there are two runs) and `examples`, how many there are
        of this place. With `per_example`: `example`, `value` and `change`.

        A place that no example has is left out.
        """
        if not per_example:
            return self._frame().dropna(subset=["value"]).reset_index(drop=True)
        import pandas as pd

        n, n_places = self.n_examples, math.prod(self.values.shape[:-1])
        columns = {name: [x for x in column for _ in range(n)] for name, column in self._places()}
        columns["example"] = list(range(n)) * n_places
        columns["value"] = self.values.reshape(-1).tolist()
        columns["change"] = (self.values - self.base).reshape(-1).tolist()
        return pd.DataFrame(columns).dropna(subset=["value"]).reset_index(drop=True)

    def _frame(self) -> "pd.DataFrame":
        """As `to_frame`, with places that no example has: row i is place i."""
        import pandas as pd

        columns = dict(self._places())
        numbers = {
            "value": self.mean,
            "stderr": self.stderr,
            "change": self.change,
            "change_stderr": self.change_stderr,
        }
        if self.scale == "normalised":
            numbers["normalised"] = self.normalised
        columns |= {name: values.reshape(-1).tolist() for name, values in numbers.items()}
        columns["examples"] = self.examples.long().reshape(-1).tolist()
        return pd.DataFrame(columns)

    def _places(self) -> list[tuple[str, list[Any]]]:
        """The columns that say where each number is, one entry per place."""
        shape = self.values.shape[:-1]
        n_places = math.prod(shape)
        found: list[tuple[str, list[Any]]] = [
            ("view", [self.name] * n_places),
            ("metric", [self.metric] * n_places),
        ]
        grids = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
        for axis, grid in zip(self.axes, grids, strict=True):
            index = grid.reshape(-1).tolist()
            numbers = self.numbers.get(axis, range(len(self.labels[axis])))
            found.append((axis, [numbers[i] for i in index]))
            found.append((f"{axis}_label", [self.labels[axis][i] for i in index]))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        ends = {"corrupted": self.corrupted, "clean": self.clean}
        return {
            "name": self.name,
            "metric": self.metric,
            "axes": list(self.axes),
            "labels": {axis: list(self.labels[axis]) for axis in self.axes},
            "numbers": {axis: list(given) for axis, given in self.numbers.items()},
            "values": cli.finite(self.values.tolist()),
            "base": cli.finite(self.base.tolist()),
            **{
                name: None if end is None else cli.finite(end.tolist())
                for name, end in ends.items()
            },
        }

    # -------------------------------------------------------------- pictures

    def plot(
        self,
        scale: Scale | None = None,
        *,
        rows: Sequence[str] | None = None,
        limit: float | None = None,
    ) -> "go.Figure":
        """A heat map (of a single axis: bars with standard errors).

        Colours diverge from what no edit gives: blue below, red above. More than two axes are
        folded into two: by default parts of the model (layer, head, ...) are rows and parts of the
        prompt (pos, query, key) columns.

        Args:
            scale: one of `SCALES`; by default `scale`.
            rows: which axes become rows, the rest being columns.
            limit: the distance from what no edit gives at which colours are strongest, in units of
                the scale; by default the largest there is. Give several figures the same to
                compare them.

        Raises:
            ValueError: an unknown scale or axis, or as `normalised`.
        """
        from analyses._views import effects as views

        return views.figure(self, scale, rows=rows, limit=limit)

    def __repr__(self) -> str:
        sizes = zip(self.axes, self.values.shape, strict=False)
        shape = " x ".join(f"{axis} {size}" for axis, size in sizes)
        n = self.n_examples
        ends = ""
        if self.corrupted is not None and self.clean is not None:
            ends = f", corrupted {self.corrupted.mean():.4g}, clean {self.clean.mean():.4g}"
        lines = [
            f"Effects({self.name}: {shape}, {n} example{'s'[: n != 1]}; {self.metric} "
            f"{self.base.mean():.4g} without edit{ends})"
        ]
        shown = self.on(self.scale)
        for index in self.strongest(3):
            lines.append(f"  {self.where(index)}: {self.scale} {float(shown[index]):.4g}")
        return "\n".join(lines)
