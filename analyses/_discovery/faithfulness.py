"""Running circuits: how much of the metric they keep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli, report
from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit
from analyses._discovery.names import Shape
from analyses._discovery.runs import Runs, runs_of
from analyses._discovery.setting import Setting
from analyses._views import circuit_discovery as views
from analyses.metrics import AnyMetric
from analyses.pairs import PromptPair
from analyses.prompts import AnyPrompts
from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_NOTHING = 1e-6  # a share of rounding errors says nothing
Ablation = Literal["patch", "zero", "mean", "resample"]


def run_circuit(
    model: HookedGPT2,
    circuits: AnyCircuit | Sequence[AnyCircuit] | Mapping[str, AnyCircuit],
    pair: PromptPair,
    metric: AnyMetric | None = None,
    *,
    ablation: Ablation = "patch",
    reference: AnyPrompts | PromptPair | None = None,
    per_position: bool = True,
    groups: Sequence[str] | None = None,
    reference_groups: Sequence[str] | None = None,
    seed: int = 0,
    memory_limit: int = 2**30,
    progress: bool = True,
) -> "Faithfulness":
    """The metric of the model run as a circuit, all that is not in it replaced.

    Every receiver (the queries, keys and values of each head apart, each MLP, the logits) reads the
    sum of what its senders write: along edges of the circuit what they write in this very run,
    along the others what stands in their place. So the full circuit is the clean run, and the empty
    one is the corrupted run where that stands in place. Of a node circuit a node outside it sends
    to all what stands in its place (at the positions that are outside).

    Args:
        model: what is looked into; stays as it is.
        circuits: one, several, or several by name; all of edges or all of nodes.
        pair: the prompts, of which the clean ones are run.
        metric: one of `analyses.metrics`, or a function of the logits; by default the pair's.
        ablation: what stands in place of what is not in the circuit: "patch" (what was written in
            the corrupted run), "zero", "mean" (over reference prompts) or "resample" (what was
            written on one reference prompt, drawn at random for each example).
        reference: for "mean" and "resample": prompts, or a pair, whose corrupted prompts are taken.
            None: the pair's corrupted prompts.
        per_position: for "mean": a mean for each position, over reference prompts of the example's
            length, of which there must be at least two. False: over all their tokens.
        groups: for "mean" and "resample": what each example is, such as the template of its
            sentence; only reference prompts of the same length and group stand in (without
            per_position: of the same group).
        reference_groups: the same of the reference prompts; not needed where these are the pair's.
        seed: of the draws of "resample".
        memory_limit: bytes that activations may take, as estimated.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        the metric of each circuit, per example, that of the clean run and of the empty circuit.

    Raises:
        ValueError, TypeError, IndexError: a circuit of another model or of no such position,
            circuits of two kinds, hooks that are active on the model, an unknown ablation, a
            reference that is not wanted or does not fit, a mean over a single prompt, a metric that
            does not fit.
    """
    named = _named(circuits)
    setting = Setting.of(
        model, pair, metric, ablation=ablation, reference=reference, per_position=per_position,
        groups=groups, reference_groups=reference_groups, seed=seed, memory_limit=memory_limit,
    )  # fmt: skip
    kind = checked_kind(list(named.values()), Shape.of(model))
    call = (
        f"run_circuit(model, ..., metric={setting.judge.name}, ablation={ablation!r}, "
        f"per_position={per_position}, seed={seed})"
    )
    return faithfulness(runs_of(setting, kind), named, call, progress=progress)


def faithfulness(
    runs: Runs, named: Mapping[str, AnyCircuit], call: str, *, progress: bool
) -> "Faithfulness":
    """Run circuits that were checked."""
    setting = runs.setting
    masks = [runs.mask(circuit) for circuit in named.values()]
    first = next(iter(named.values()))
    kept = first.kept if isinstance(first, NodeCircuit) else None
    if kept is None:
        masks.append(torch.zeros_like(runs.full))
    else:
        masks.append(runs.mask(NodeCircuit.empty(setting.model, kept=kept)))  # type: ignore[arg-type]
    with cli.bar("circuits", shown=progress) as advance:
        values = runs.values(torch.stack(masks), advance)
    return Faithfulness(
        circuits=dict(named),
        metric=setting.judge.name,
        values=values[:-1],
        clean=setting.clean_values,
        empty=values[-1],
        instead=setting.told,
        pair=setting.pair,
        provenance=report.Provenance.of(setting.model, call),
    )


def _named(circuits: Any) -> dict[str, AnyCircuit]:
    if isinstance(circuits, Circuit | NodeCircuit):
        circuits = {"circuit": circuits}
    elif not isinstance(circuits, Mapping):
        circuits = {f"circuit {i}": one for i, one in enumerate(circuits)}
    if not circuits:
        raise ValueError("there are no circuits: the list is empty")
    for name, one in circuits.items():
        if not isinstance(one, Circuit | NodeCircuit):
            raise TypeError(f"{name} is no circuit but {type(one).__name__}")
    return {str(name): one for name, one in circuits.items()}


def checked_kind(circuits: Sequence[AnyCircuit], shape: Shape) -> type[AnyCircuit]:
    """The kind that all these circuits have.

    Raises:
        ValueError: they are of two kinds, keep different parts, or are of a model of another shape.
    """
    first = circuits[0]
    for one in circuits:
        if type(one) is not type(first):
            raise ValueError("some of these circuits are of edges, some of nodes: run them apart")
        if one.shape != shape:
            raise ValueError(f"this circuit is of a model with {one.shape}, yours has {shape}")
        kept = [c.kept for c in (first, one) if isinstance(c, NodeCircuit)]
        if kept and kept[0] != kept[1]:
            raise ValueError(
                f"these circuits keep different parts, {kept[0]!r} and {kept[1]!r}: run them apart"
            )
    return type(first)


def share_of(part: float, whole: float) -> float:
    """A part of a whole; NaN of nothing."""
    return part / whole if whole else math.nan


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """The metric of circuits.

    Attributes:
        circuits: by name.
        metric: its name.
        values: `circuit example`, F(C); one number instead of examples of a metric that judges all
            prompts together.
        clean: `example`, F(M) of the whole model.
        empty: `example`, of the circuit without any edge (without any node but what is kept).
        instead: what stands in place of what is not in a circuit, in words.
        pair: the prompts.
        provenance: model, dtype, versions, the call.
    """

    circuits: Mapping[str, AnyCircuit]
    metric: str
    values: Float[Tensor, "circuit value"]
    clean: Float[Tensor, " value"]
    empty: Float[Tensor, " value"]
    instead: str
    pair: PromptPair
    provenance: report.Provenance

    @property
    def mean(self) -> Float[Tensor, " circuit"]:
        """F(C), averaged over examples."""
        return self.values.mean(1)

    @property
    def share(self) -> Float[Tensor, " circuit"]:
        """F(C) / F(M), of the means: how the IOI paper says that its circuit keeps 87 %.

        NaN where F(M) is nothing next to F(empty), as of a divergence from the clean run.
        """
        clean, empty = self.clean.mean(), self.empty.mean()
        if float(clean.abs()) <= _NOTHING * float(empty.abs()):
            return torch.full_like(self.mean, math.nan)
        return self.mean / clean

    @property
    def recovered(self) -> Float[Tensor, " circuit"]:
        """(F(C) - F(empty)) / (F(M) - F(empty)), of the means: 0 of the empty circuit, 1 of the
        whole model."""
        empty = self.empty.mean()
        return (self.mean - empty) / (self.clean.mean() - empty)

    @property
    def stderr(self) -> Float[Tensor, " circuit"]:
        """The standard error of `mean`; NaN with a single example."""
        n = self.values.shape[1]
        if n < 2:
            return torch.full_like(self.mean, math.nan)
        return self.values.std(1) / n**0.5

    def to_frame(self) -> "pd.DataFrame":
        """One row per circuit: `circuit`, `size` (edges or nodes), `metric`, `value` (mean over
        examples), `stderr`, `clean`, `empty`, `gap` (clean - value), `share`, `recovered`."""
        import pandas as pd

        clean = float(self.clean.mean())
        return pd.DataFrame(
            {
                "circuit": list(self.circuits),
                "size": [len(circuit) for circuit in self.circuits.values()],
                "metric": self.metric,
                "value": self.mean.tolist(),
                "stderr": self.stderr.tolist(),
                "clean": clean,
                "empty": float(self.empty.mean()),
                "gap": (clean - self.mean).tolist(),
                "share": self.share.tolist(),
                "recovered": self.recovered.tolist(),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "metric": self.metric,
            "instead": self.instead,
            "circuits": [
                {"name": name, "size": len(c), "method": c.method, "values": row}
                for (name, c), row in zip(
                    self.circuits.items(), cli.finite(self.values.tolist()), strict=True
                )
            ],
            "clean": self.clean.tolist(),
            "empty": self.empty.tolist(),
            "source_prompts": self.pair.source,
            "provenance": self.provenance.to_dict(),
        }

    def plot(self) -> "go.Figure":
        """The share of the metric that circuits recover against their size."""
        return views.curve(self)

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with the curve, the numbers and provenance; it needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views.faithfulness_page(result).write(path)

    def __repr__(self) -> str:
        n = self.values.shape[1]
        lines = [
            f"Faithfulness({self.provenance.model}, {self.instead} in place of the rest, "
            f"{n} example{'s'[: n != 1]}; {self.metric} {float(self.clean.mean()):.4g} clean, "
            f"{float(self.empty.mean()):.4g} empty)"
        ]
        rows = zip(self.circuits.items(), self.mean, self.share, self.recovered, strict=True)
        for (name, circuit), mean, share, recovered in list(rows)[:8]:
            lines.append(
                f"  {name} ({len(circuit)}): {float(mean):+.4g}, {views.percent(share)} of clean, "
                f"{views.percent(recovered)} recovered"
            )
        if len(self.circuits) > 8:
            lines.append(f"  and {len(self.circuits) - 8} more")
        return "\n".join(lines)
