"""What causal tracing finds: the trace of a fact, and the average of several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import report
from analyses._views import causal_tracing as looks
from analyses._views.effects import concatenated
from analyses.effects import Effects
from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


class Fact(NamedTuple):
    """A prompt that asks for a fact.

    Attributes:
        prompt: text up to the answer.
        subject: as in `causal_tracing`.
        answer: the token that should follow, as text or id; a tuple of several that are right;
            None: whatever the model predicts.
    """

    prompt: str
    subject: str | range
    answer: str | int | tuple[str | int, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class CausalTrace:
    """The trace of one fact. Probabilities are those of the answer after the last token.

    Attributes:
        str_tokens: the prompt.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where ids were given.
        subject: the positions that were corrupted.
        answer, answer_string: the token traced.
        views: name -> effects on the axes `layer pos`; the axis `example` is the draws of the
            noise. `change` is the indirect effect; `normalised` its share of the total effect.
        window: layers restored together in `mlp_out` and `attn_out`.
        noise: standard deviation of the noise.
        seed: of the noise.
        provenance: model, dtype, versions, the call.
    """

    str_tokens: tuple[str, ...]
    prepend_bos: bool | None
    subject: range
    answer: int
    answer_string: str
    views: Mapping[str, Effects]
    window: int
    noise: float
    seed: int
    provenance: report.Provenance

    @property
    def _first(self) -> Effects:
        return next(iter(self.views.values()))

    @property
    def samples(self) -> int:
        """Draws of the noise."""
        return self._first.n_examples

    @property
    def clean(self) -> float:
        """Probability of the answer in the clean run."""
        ends = self._first.clean
        return math.nan if ends is None else float(ends[0])

    @property
    def corrupted(self) -> Float[Tensor, ""]:
        """Probability of the answer in the corrupted run, mean over draws of the noise."""
        return self._first.base.mean()

    @property
    def total_effect(self) -> float:
        """What the noise takes off the probability of the answer."""
        return self.clean - float(self.corrupted)

    @property
    def roles(self) -> dict[str, range]:
        """The positions of every role in `ROLES`; a role may have none."""
        first, after, end = self.subject.start, self.subject.stop, len(self.str_tokens)
        places = (
            range(first, first + 1),
            range(first + 1, after - 1),
            range(after - 1, after),
            range(after, min(after + 1, end)),
            range(after + 1, end - 1),
            range(end - 1, end),
        )
        return dict(zip(ROLES, places, strict=True))

    def to_frame(self) -> "pd.DataFrame":
        """One row per view, layer and position, as `Effects.to_frame`; with columns `answer`,
        `subject` (whether the token is part of it) and `window`."""
        frame = concatenated(self.views)
        frame.insert(1, "answer", self.answer_string)
        frame["subject"] = [pos in self.subject for pos in frame["pos"]]
        frame["window"] = [self.window if n.endswith("_out") else 1 for n in frame["view"]]
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "prompt": list(self.str_tokens),
            "prepend_bos": self.prepend_bos,
            "subject": list(self.subject),
            "answer": self.answer_string,
            "answer_id": self.answer,
            "clean": self.clean,
            "corrupted": float(self.corrupted),
            "window": self.window,
            "noise": self.noise,
            "samples": self.samples,
            "seed": self.seed,
            "views": {name: effects.to_dict() for name, effects in self.views.items()},
            "provenance": self.provenance.to_dict(),
        }

    def plot(self, views: str | Sequence[str] | None = None) -> "go.Figure":
        """Heat maps of the indirect effects side by side, tokens from top to bottom, as in the
        paper's figure 1. Tokens of the subject have a `*`.

        Args:
            views: some of those there are; by default the three of figure 1, if there.

        Raises:
            ValueError: one that there is not.
        """
        return looks.heat_maps(self.views, views, "pos")

    def plot_severed(self) -> "go.Figure":
        """Bars: the indirect effect of the residual at the last token of the subject, as it is and
        with later MLPs or attention layers severed, layer by layer, as in the paper's figure 3.

        Raises:
            ValueError: no severed view was asked for, or not `resid_post`.
        """
        return looks.severed_bars(self.views, self.subject.stop - 1)

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with tokens, heat maps, table and provenance. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        found = self
        if model is not None:
            found = replace(self, provenance=self.provenance.with_weights(model))
        looks.page("", found).write(path)

    def __repr__(self) -> str:
        subject = "".join(self.str_tokens[self.subject.start : self.subject.stop])
        lines = [
            f"CausalTrace({self.provenance.model}, subject {subject!r} at "
            f"{self.subject.start} to {self.subject.stop - 1} of {len(self.str_tokens)} tokens; "
            f"p({self.answer_string!r}) {self.clean:.3f} clean, {float(self.corrupted):.3f} "
            f"corrupted; noise {self.noise:.3g}, {self.samples} samples, seed {self.seed}, window "
            f"{self.window})"
        ]
        return "\n".join(lines + looks.best_lines(self.views))


@dataclass(frozen=True, eq=False, repr=False)
class AverageTrace:
    """Traces of several facts, and their averages by the roles of tokens.

    Attributes:
        traces: of every fact.
        unknown: facts left out, because the model does not predict their answer.
        views: name -> effects on the axes `layer role`; the axis `example` is the facts. `change`
            is the average indirect effect (AIE).
        provenance: model, dtype, versions, the call.
    """

    traces: tuple[CausalTrace, ...]
    unknown: tuple[Fact, ...]
    views: Mapping[str, Effects]
    provenance: report.Provenance

    @property
    def total_effect(self) -> float:
        """The average total effect (ATE)."""
        return sum(trace.total_effect for trace in self.traces) / len(self.traces)

    def to_frame(self) -> "pd.DataFrame":
        """One row per view, layer and role, as `Effects.to_frame`."""
        return concatenated(self.views)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "total_effect": self.total_effect,
            "unknown": [fact.prompt for fact in self.unknown],
            "views": {name: effects.to_dict() for name, effects in self.views.items()},
            "traces": [trace.to_dict() for trace in self.traces],
            "provenance": self.provenance.to_dict(),
        }

    def plot(self, views: str | Sequence[str] | None = None) -> "go.Figure":
        """As `CausalTrace.plot`, with roles in place of tokens: the paper's figure 2."""
        return looks.heat_maps(self.views, views, "role")

    def plot_severed(self) -> "go.Figure":
        """As `CausalTrace.plot_severed`, averaged: the paper's figure 3."""
        return looks.severed_bars(self.views, ROLES.index("last subject token"))

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with the averages and, below, the facts. It needs no network."""
        found = self
        if model is not None:
            found = replace(self, provenance=self.provenance.with_weights(model))
        looks.average_page(found).write(path)

    def __repr__(self) -> str:
        left_out = f", {len(self.unknown)} left out as unknown" if self.unknown else ""
        lines = [
            f"AverageTrace({self.provenance.model}, {len(self.traces)} facts{left_out}; average "
            f"total effect {self.total_effect:.3f})"
        ]
        return "\n".join(lines + looks.best_lines(self.views))


def average(traces: Sequence[CausalTrace], unknown: Sequence[Fact] = ()) -> "AverageTrace":
    """Average indirect effects by the roles of tokens.

    Each fact counts once: several tokens of one role in one prompt are averaged first (the authors'
    code averages over the tokens of all prompts). A token can have two roles: the only token of a
    subject is its first and its last one. A role that a prompt does not have is left out there.

    Args:
        traces: with the same views, window, noise and samples.
        unknown: facts that were left out.

    Raises:
        ValueError: no traces, or such as cannot be compared.
    """
    if not traces:
        raise ValueError("there are no traces to average")
    first = traces[0]
    for index, trace in enumerate(traces):
        for what in ("window", "noise", "seed", "samples"):
            if getattr(trace, what) != getattr(first, what):
                raise ValueError(
                    f"traces 0 and {index} differ in {what}: {getattr(first, what)!r} and "
                    f"{getattr(trace, what)!r}"
                )
        if list(trace.views) != list(first.views):
            raise ValueError(f"traces 0 and {index} have different views")
        if trace.provenance.model != first.provenance.model:
            raise ValueError(f"traces 0 and {index} are of different models")
    corrupted = torch.stack([trace.corrupted for trace in traces])
    clean = torch.tensor([trace.clean for trace in traces], dtype=torch.float64)
    views = {}
    for name, effects in first.views.items():
        by_role = []
        for trace in traces:
            mean = trace.views[name].mean  # layer pos
            roles = trace.roles.values()
            columns = [mean[:, list(pos)].mean(1) for pos in roles]  # of no positions: NaN
            by_role.append(torch.stack(columns, dim=1))
        views[name] = Effects(
            name=name,
            axes=("layer", "role"),
            labels={"layer": effects.labels["layer"], "role": ROLES},
            values=torch.stack(by_role, dim=-1),
            base=corrupted,
            metric="p(answer)",
            corrupted=corrupted,
            clean=clean,
        )
    call = f"average({len(traces)} traces); each {first.provenance.call}"
    return AverageTrace(
        traces=tuple(traces),
        unknown=tuple(unknown),
        views=views,
        provenance=replace(first.provenance, call=call),
    )
