"""What a search for a circuit found."""

import math
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from analyses import cli, report
from analyses._discovery.circuit import AnyCircuit, Circuit
from analyses._discovery.faithfulness import Faithfulness
from analyses._discovery.search import Step
from analyses._views import circuit_discovery as views
from interp import HookedGPT2

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class DiscoveryInterrupted(KeyboardInterrupt):
    """The search was interrupted.

    Attributes:
        partial: the circuit as it was by then, with all that was not decided on in it.
    """

    def __init__(self, partial: "Discovery") -> None:
        super().__init__(
            f"interrupted after {len(partial.steps)} decisions; the circuit by then is in .partial"
        )
        self.partial = partial


@dataclass(frozen=True, eq=False, repr=False)
class Discovery:
    """A circuit, and how it was found.

    Attributes:
        circuit: what was found.
        method: in a word.
        criterion: the metric that decided.
        steps: the decisions, in order; none of a threshold on scores.
        n_run: how many circuits were run for it.
        faithfulness: the circuit's metric, with that of the whole model; None of an interrupted
            search.
        provenance: model, dtype, versions, the call.
    """

    circuit: AnyCircuit
    method: str
    criterion: str
    steps: tuple[Step, ...]
    n_run: int
    faithfulness: Faithfulness | None
    provenance: report.Provenance

    @property
    def n_all(self) -> int:
        """How many edges (or nodes that are not kept anyway) the model has."""
        circuit = self.circuit
        if isinstance(circuit, Circuit):
            return len(Circuit.full(circuit.shape))
        return len(type(circuit).full(circuit.shape, kept=circuit.kept))  # type: ignore[arg-type]

    @property
    def unit(self) -> str:
        """`edge` or `node`."""
        return "edge" if isinstance(self.circuit, Circuit) else "node"

    def to_frame(self) -> "pd.DataFrame":
        """One row per edge or node of the circuit, as `circuit.to_frame()`."""
        return self.circuit.to_frame()

    def steps_frame(self) -> "pd.DataFrame":
        """One row per decision: `step`, `item`, `before` and `after` (the criterion without and
        with the change), `change`, `kept`, `run` (False where there was nothing to run)."""
        import pandas as pd

        return pd.DataFrame(
            {
                "step": range(len(self.steps)),
                "item": [str(step.item) for step in self.steps],
                "before": [step.before for step in self.steps],
                "after": [step.after for step in self.steps],
                "change": [step.after - step.before for step in self.steps],
                "kept": [step.kept for step in self.steps],
                "run": [step.run for step in self.steps],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        unit = self.unit
        return {
            "method": self.method,
            "criterion": self.criterion,
            f"{unit}s": [
                {"name": str(one), "score": cli.finite(self.circuit.scores.get(one, math.nan))}  # type: ignore[call-overload]
                for one in self.circuit
            ],
            "of": self.n_all,
            "circuits_run": self.n_run,
            "steps": [
                {**step._asdict(), "item": str(step.item), "after": cli.finite(step.after)}
                for step in self.steps
            ],
            "faithfulness": self.faithfulness and self.faithfulness.to_dict(),
            "provenance": self.provenance.to_dict(),
        }

    def plot(self) -> "go.Figure":
        """The circuit as a graph."""
        return self.circuit.plot()

    def to_html(self, path: str | PathLike[str], *, model: HookedGPT2 | None = None) -> None:
        """Write a page with the graph, the edges, the decisions and provenance; needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        result = self
        if model is not None:
            result = replace(self, provenance=self.provenance.with_weights(model))
        views.page(result).write(path)

    def __repr__(self) -> str:
        lines = [
            f"Discovery({self.method}: {len(self.circuit)} of {self.n_all} {self.unit}s, "
            f"{self.n_run} circuits run)"
        ]
        if self.faithfulness is not None:
            lines += repr(self.faithfulness).splitlines()[1:]
        return "\n".join(lines)
