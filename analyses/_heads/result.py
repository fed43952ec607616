"""What scoring heads found: numbers per head, their table, and how they look."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli, report
from analyses._heads.copying import CopyingScores
from analyses._heads.names import Head, checked_heads
from analyses._heads.run import KeptPatterns
from analyses._views import heads as views
from analyses._views import heads_page
from analyses._views.heads import ROLE_AT_LEAST
from analyses.ablation import Ablation
from analyses.effects import Effects
from hooks.names import nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp import HookedGPT2


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """How much of each head's attention goes where a head of some kind would look.

    `found["induction"]` is the mean over examples, `layer head`.

    Attributes:
        per_example: score -> attention to the score's target, averaged over the queries that have
            one, between 0 and 1 for targets of zeros and ones. NaN where an example has no such
            query: means are over the others.
        queries: score -> how many queries of each example were averaged over.
        even: score -> what a head would score on each example that spreads its attention evenly
            over all tokens it sees; NaN as in `per_example`.
        tokens: ids of each example, without padding.
        str_tokens: the same as strings.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where ids were given.
        source: what the examples are, in words.
        provenance: model, dtype, versions, the call.
        patterns: attention of some heads on one example, for pictures; None where none was kept.
        ablation: the loss without each head, if asked for.
        copying: what each head's output weights write, if asked for.
        hooked: the points at which functions listened: all numbers are of runs with them.
    """

    per_example: Mapping[str, Float[Tensor, "layer head example"]]
    queries: Mapping[str, tuple[int, ...]]
    even: Mapping[str, tuple[float, ...]]
    tokens: tuple[tuple[int, ...], ...]
    str_tokens: tuple[tuple[str, ...], ...]
    prepend_bos: bool | None
    source: str
    provenance: report.Provenance
    patterns: KeptPatterns | None = None
    ablation: Ablation | None = None
    copying: CopyingScores | None = None
    hooked: tuple[str, ...] = ()

    # -------------------------------------------------------------- numbers

    @property
    def names(self) -> tuple[str, ...]:
        """The scores of attention."""
        return tuple(self.per_example)

    @property
    def without_target(self) -> tuple[str, ...]:
        """The scores that no query of any example has a target for: all NaN."""
        return tuple(name for name in self.names if not sum(self.queries[name]))

    @property
    def measures(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Every number per head: the scores, then `ablation`, `copying` and `negative_copying`
        where they were asked for."""
        found = {name: self[name] for name in self.names}
        if self.ablation is not None:
            found["ablation"] = self.ablation.effects.change
        if self.copying is not None:
            found["copying"] = self.copying.copying
            found["negative_copying"] = self.copying.negative_copying
        return found

    def __getitem__(self, name: str) -> Float[Tensor, "layer head"]:
        """A score's mean over the examples that have a query with a target.

        Raises:
            KeyError: there is no such score; says which there are.
        """
        return self.effects(name).mean

    def effects(self, name: str) -> Effects:
        """A score as `Effects`: with standard errors, and `interval()` over examples.

        Raises:
            KeyError: there is no such score; says which there are.
        """
        if name not in self.per_example:
            hint = nearest(str(name), self.names)
            elsewhere = " That is in .measures." if name in self.measures else ""
            raise KeyError(
                f"there is no score {name!r} of attention.{elsewhere or hint} There is "
                f"{', '.join(self.names)}."
            )
        values = self.per_example[name]
        return Effects(
            name=name,
            axes=("layer", "head"),
            labels={
                axis: tuple(map(str, range(size)))
                for axis, size in zip(("layer", "head"), values.shape, strict=False)
            },
            values=values,
            base=values.new_zeros(values.shape[-1]),
            metric=f"{name} score",
        )

    def even_score(self, name: str) -> float:
        """What evenly spread attention scores, averaged over the same examples.

        Raises:
            KeyError: there is no such score; says which there are.
        """
        self.effects(name)
        there = [value for value in self.even[name] if not math.isnan(value)]
        return sum(there) / len(there) if there else math.nan

    def ranked(self, name: str) -> list[Head]:
        """Heads from the highest to the lowest of one of `measures`; none of a score without
        target.

        Raises:
            KeyError: there is no such measure; says which there are.
        """
        measures = self.measures
        if name not in measures:
            hint = nearest(str(name), measures)
            raise KeyError(f"there is no score {name!r}.{hint} There is {', '.join(measures)}.")
        values = measures[name]
        flat = values.reshape(-1).nan_to_num(-math.inf)
        order = flat.argsort(descending=True, stable=True).tolist()
        n_heads = values.shape[1]
        return [Head(*divmod(i, n_heads)) for i in order if flat[i] > -math.inf]

    def role(self, head: str | Head | tuple[int, int], at_least: float = ROLE_AT_LEAST) -> str:
        """The name of a head's highest score, or "" where that is less than `at_least`.

        It is about these tokens only. A head may do several things, and one that rests on the first
        token here may work elsewhere: see its other scores.

        Raises:
            IndexError, ValueError, TypeError: there is no such head, or it is written in another
                way than `"3.1"`, a `Head` or a pair.
        """
        n_layers, n_heads = self._shape
        (one,) = checked_heads([head], n_layers, n_heads)
        return self.roles(at_least)[one.layer * n_heads + one.head]

    def roles(self, at_least: float = ROLE_AT_LEAST) -> list[str]:
        """The `role` of every head, layer by layer."""
        scores = torch.stack([self[name] for name in self.names]).nan_to_num(-math.inf)
        best, which = scores.flatten(1).max(0)
        return [
            self.names[i] if value >= at_least else ""
            for value, i in zip(best.tolist(), which.tolist(), strict=True)
        ]

    @property
    def _shape(self) -> tuple[int, int]:
        n_layers, n_heads, _ = next(iter(self.per_example.values())).shape
        return n_layers, n_heads

    # -------------------------------------------------------------- tables

    def to_frame(self, *, per_example: bool = False) -> "pd.DataFrame":
        """One row per number.

        Columns: `score`, `layer`, `head`, `value` (mean over examples), `stderr` (its standard
        error; NaN for one example), `unit` (`share of attention`, `nats` of an ablation, `share of
        tokens` of copying), `examples` (that have a target) and `queries` (that were averaged over,
        in all); of an ablation both are sequences, of copying tokens. Rows of a score without
        target have NaN.

        Args:
            per_example: a row for each example, with columns `score`, `layer`, `head`, `example`,
                `value` and `queries`. Without ablation and copying.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        if per_example:
            for name, values in self.per_example.items():
                for (layer, head, example), value in _items(values):
                    queries = self.queries[name][example]
                    place = {"score": name, "layer": layer, "head": head, "example": example}
                    rows.append(place | {"value": value, "queries": queries})
            return pd.DataFrame(rows)
        for name in self.names:
            effects, queries = self.effects(name), sum(self.queries[name])
            examples = sum(map(bool, self.queries[name]))
            rows += _rows(
                name, effects.mean, effects.stderr, "share of attention", examples, queries
            )
        if self.ablation is not None:
            effects = self.ablation.effects
            n = effects.n_examples
            rows += _rows("ablation", effects.change, effects.change_stderr, "nats", n, n)
        if self.copying is not None:
            n = len(self.copying.tokens)
            for name in ("copying", "negative_copying"):
                values = getattr(self.copying, name)
                nothing = torch.full_like(values, math.nan)
                rows += _rows(name, values, nothing, "share of tokens", n, n)
        return pd.DataFrame(rows)

    def table(self, at_least: float = ROLE_AT_LEAST) -> "pd.DataFrame":
        """One row per head: `layer`, `head`, each of `measures`, and `role`.

        Args:
            at_least: how high a score must be to give a head its role; see `role`.
        """
        import pandas as pd

        measures = {name: values.reshape(-1).tolist() for name, values in self.measures.items()}
        n_layers, n_heads = self._shape
        heads = [Head(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        return pd.DataFrame(
            {
                "layer": [head.layer for head in heads],
                "head": [head.head for head in heads],
                **measures,
                "role": self.roles(at_least),
            }
        )

    def top(self, name: str, k: int = 10) -> "pd.DataFrame":
        """The k rows of `to_frame` with the highest values of one score, highest first.

        Raises:
            KeyError: there is no such score. ValueError: k < 1.
        """
        if k < 1:
            raise ValueError(f"k={k} is out of range: expected at least 1")
        ranked = self.ranked(name)[:k]
        frame = self.to_frame()
        frame = frame[frame["score"] == name].set_index(["layer", "head"], drop=False)
        chosen = frame.loc[[tuple(head) for head in ranked]]
        return chosen.reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not there is None."""
        ablation = self.ablation
        copying = self.copying
        return {
            "source": self.source,
            "prepend_bos": self.prepend_bos,
            "tokens": [list(row) for row in self.tokens],
            "str_tokens": [list(row) for row in self.str_tokens],
            "scores": {
                name: {
                    "mean": cli.finite(self[name].tolist()),
                    "per_example": cli.finite(values.tolist()),
                    "queries": list(self.queries[name]),
                    "even": cli.finite(list(self.even[name])),
                }
                for name, values in self.per_example.items()
            },
            "roles": self.roles(),
            "hooked": list(self.hooked),
            "ablation": None if ablation is None else ablation.to_dict(),
            "copying": None if copying is None else copying.to_dict(),
            "provenance": self.provenance.to_dict(),
        }

    # -------------------------------------------------------------- pictures

    def plot(self, *names: str) -> "go.Figure":
        """Heat maps of scores side by side, layers down and heads across, from 0 to 1.

        Args:
            names: which; by default all that have a target.

        Raises:
            KeyError: there is no such score.
        """
        return views.figure(self, names)

    def page(self, top_k: int = 5) -> report.Page:
        """The page that `to_html` writes, with the `top_k` highest heads of each score.

        Raises:
            ValueError: top_k < 1. TypeError: it is no whole number.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise TypeError(f"top_k is a whole number, not {top_k!r}")
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is out of range: expected at least 1")
        return heads_page.page(self, top_k)

    def to_html(
        self, path: str | PathLike[str], *, model: "HookedGPT2 | None" = None, top_k: int = 5
    ) -> None:
        """Write a page with heat maps, the head table, patterns and provenance. It needs no
        network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
            top_k: how many heads of each score are listed.
        """
        result = self if model is None else self.hashed(model)
        result.page(top_k).write(path)

    def hashed(self, model: "HookedGPT2", call: str | None = None) -> "HeadScores":
        """The same with the hash of the model's weights, and another call where one is given."""
        return replace(self, provenance=self.provenance.with_weights(model, call))

    def _repr_html_(self) -> str:
        return self.page().frame(900)

    def __repr__(self) -> str:
        n_layers, n_heads = self._shape
        lines = [
            f"HeadScores({self.provenance.model}, {n_layers} layers x {n_heads} heads; "
            f"{self.source})"
        ]
        if self.hooked:
            lines.append(f"  functions listened at {', '.join(self.hooked)}")
        for name, values in self.measures.items():
            best = ", ".join(f"{head} {float(values[head]):.3f}" for head in self.ranked(name)[:3])
            lines.append(f"  {name}: {best or NO_TARGET}")
        return "\n".join(lines)


NO_TARGET = "NaN, as no query has a target"


def _items(values: Tensor) -> list[tuple[tuple[int, ...], float]]:
    grids = torch.meshgrid(*(torch.arange(size) for size in values.shape), indexing="ij")
    places = torch.stack([grid.reshape(-1) for grid in grids], -1).tolist()
    return [(tuple(place), v) for place, v in zip(places, values.reshape(-1).tolist(), strict=True)]


def _rows(
    name: str, values: Tensor, stderr: Tensor, unit: str, examples: int, queries: int
) -> list[dict[str, Any]]:
    errors = stderr.reshape(-1).tolist()
    return [
        {
            "score": name,
            "layer": layer,
            "head": head,
            "value": value,
            "stderr": error,
            "unit": unit,
            "examples": examples,
            "queries": queries,
        }
        for ((layer, head), value), error in zip(_items(values), errors, strict=True)
    ]
