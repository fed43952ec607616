"""A found circuit against another: precision and recall, and scores against a circuit (ROC)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from analyses._discovery.circuit import AnyCircuit, Circuit, NodeCircuit
from analyses._discovery.names import Edge, Node, parse_edge, parse_node
from analyses._discovery.search import LEVELS
from analyses._edges import Part
from analyses._views import circuit_discovery as views
from analyses.tasks import unknown

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TIES = ("mean", "pessimistic", "optimistic")


def _universe(reference: AnyCircuit, level: str, heads_only: bool) -> list[Edge] | list[Part]:
    """All that could have been in a circuit."""
    if level == "edges":
        return list(Circuit.full(reference.shape))
    return [p for p in reference.shape.senders[1:] if p.kind == "head" or not heads_only]


def _members(circuit: AnyCircuit, level: str) -> set[Any]:
    if level == "edges":
        if isinstance(circuit, NodeCircuit):
            raise ValueError(
                "a circuit of nodes has no edges to compare; level='nodes', or take "
                "circuit.anywhere().to_edges()"
            )
        return set(circuit.edges)
    if isinstance(circuit, NodeCircuit):
        return set(circuit.parts)
    return {part for part in circuit.nodes if part.layer is not None}


def _heads_only(reference: AnyCircuit) -> bool:
    """A circuit that keeps all MLPs says nothing about them."""
    return isinstance(reference, NodeCircuit) and "mlps" in reference.kept


def _checked(reference: AnyCircuit, level: str) -> None:
    if level not in LEVELS:
        raise ValueError(unknown("level", str(level), LEVELS))
    if not isinstance(reference, Circuit | NodeCircuit):
        raise TypeError(f"reference is a circuit, not {type(reference).__name__}")


# ------------------------------------------------------------------ sets


@dataclass(frozen=True)
class Comparison:
    """A circuit against a reference.

    Attributes:
        level: "edges" or "nodes". Nodes are compared as heads and MLPs, wherever they act; against
            a reference that keeps all MLPs, heads only.
        both, only_found, only_reference: the members.
        n_all: how many there could be.
    """

    level: str
    both: tuple[Edge | Part, ...]
    only_found: tuple[Edge | Part, ...]
    only_reference: tuple[Edge | Part, ...]
    n_all: int

    @property
    def precision(self) -> float:
        """Which share of what was found is in the reference; NaN of nothing."""
        n = len(self.both) + len(self.only_found)
        return len(self.both) / n if n else math.nan

    @property
    def recall(self) -> float:
        """Which share of the reference was found; NaN of an empty reference."""
        n = len(self.both) + len(self.only_reference)
        return len(self.both) / n if n else math.nan

    @property
    def f1(self) -> float:
        """2 * precision * recall / (precision + recall); NaN where both circuits are empty."""
        n = 2 * len(self.both) + len(self.only_found) + len(self.only_reference)
        return 2 * len(self.both) / n if n else math.nan

    @property
    def false_positive_rate(self) -> float:
        """Which share of what is not in the reference was found."""
        n = self.n_all - len(self.both) - len(self.only_reference)
        return len(self.only_found) / n if n else math.nan

    def to_frame(self) -> "pd.DataFrame":
        """One row per member of either: `name`, `found`, `reference`."""
        import pandas as pd

        rows = [
            {"name": str(one), "found": found, "reference": there}
            for members, found, there in (
                (self.both, True, True),
                (self.only_found, True, False),
                (self.only_reference, False, True),
            )
            for one in members
        ]
        return pd.DataFrame(rows, columns=["name", "found", "reference"])

    def to_dict(self) -> dict[str, Any]:
        """The numbers and members as plain data."""
        numbers = {
            name: getattr(self, name)
            for name in ("precision", "recall", "f1", "false_positive_rate")
        }
        return {
            "level": self.level,
            **{name: None if math.isnan(n) else n for name, n in numbers.items()},
            "both": [str(one) for one in self.both],
            "only_found": [str(one) for one in self.only_found],
            "only_reference": [str(one) for one in self.only_reference],
            "of": self.n_all,
        }

    def __repr__(self) -> str:
        return (
            f"Comparison({self.level}: precision {self.precision:.3f}, recall {self.recall:.3f}, "
            f"F1 {self.f1:.3f}; {len(self.both)} in both, {len(self.only_found)} only found, "
            f"{len(self.only_reference)} only in the reference, of {self.n_all})"
        )


def compare(
    found: AnyCircuit, reference: AnyCircuit, level: Literal["edges", "nodes"] = "nodes"
) -> Comparison:
    """What two circuits share.

    Args:
        found: the circuit in question.
        reference: what it is held against.
        level: "nodes" (heads and MLPs, at whatever positions; of edges what they join) or "edges".

    Raises:
        ValueError: an unknown level, circuits of models of other shapes, edges of node circuits.
    """
    _checked(reference, level)
    _checked(found, level)
    if found.shape != reference.shape:
        raise ValueError(
            f"these circuits are of different models: one with {found.shape}, one with "
            f"{reference.shape}"
        )
    every = _universe(reference, level, _heads_only(reference))
    one, other = _members(found, level), _members(reference, level)
    return Comparison(
        level,
        tuple(m for m in every if m in one and m in other),
        tuple(m for m in every if m in one and m not in other),
        tuple(m for m in every if m not in one and m in other),
        len(every),
    )


# ------------------------------------------------------------------ scores


@dataclass(frozen=True)
class ROC:
    """True-positive against false-positive rates, against a reference circuit.

    Attributes:
        level: "edges" or "nodes".
        false_positive, true_positive: the rates of the points, from (0, 0) to (1, 1).
        labels: what each point is: a threshold of scores, or the name of a circuit.
        members: of the reference, and how many others there are.
    """

    level: str
    false_positive: tuple[float, ...]
    true_positive: tuple[float, ...]
    labels: tuple[str, ...]
    members: tuple[int, int]

    def auc(self, ties: Literal["mean", "pessimistic", "optimistic"] = "mean") -> float:
        """The area under the curve.

        Between two points (several members with one score, or circuits with others between them)
        the curve is not known. "mean" draws a straight line: then the area is the probability that
        a member of the reference scores above another part, equal scores counting half.
        "pessimistic" takes the others first (the curve goes right, then up), as Conmy et al. do,
        "optimistic" the members first.

        Raises:
            ValueError: an unknown way.
        """
        if ties not in TIES:
            raise ValueError(unknown("way with ties", str(ties), TIES))
        total = 0.0
        for i in range(1, len(self.labels)):
            width = self.false_positive[i] - self.false_positive[i - 1]
            low, high = self.true_positive[i - 1], self.true_positive[i]
            height = {"mean": (low + high) / 2, "pessimistic": low, "optimistic": high}[ties]
            total += width * height
        return total

    def to_frame(self) -> "pd.DataFrame":
        """One row per point: `label`, `false_positive_rate`, `true_positive_rate`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "label": list(self.labels),
                "false_positive_rate": list(self.false_positive),
                "true_positive_rate": list(self.true_positive),
            }
        )

    def plot(self) -> "go.Figure":
        """The curve; shaded between the pessimistic and the optimistic one."""
        return views.roc_figure(self)

    def __repr__(self) -> str:
        ends = [f"{self.auc(ties):.4f} {ties}" for ties in TIES]
        return (
            f"ROC({self.level}: {self.members[0]} in the reference, {self.members[1]} not; area "
            f"{', '.join(ends)})"
        )


def roc(
    scores: Mapping[Any, float],
    reference: AnyCircuit,
    level: Literal["edges", "nodes"] = "edges",
) -> ROC:
    """How well scores tell the members of a reference circuit from the rest.

    What is not scored counts as lowest of all. Give sizes (absolute values) where either sign
    counts. Of a node scored at several positions the largest score counts.

    Args:
        scores: of edges or nodes, by name; larger is more likely in the circuit.
        reference: the circuit.
        level: "edges" or "nodes"; against a reference that keeps all MLPs, heads only.

    Raises:
        ValueError: an unknown name or level, a score that is NaN, a reference that has nothing or
            everything in it.
    """
    _checked(reference, level)
    if not isinstance(scores, Mapping):
        raise TypeError(f"scores are numbers by name, {{'9.6': 0.3}}, not {type(scores).__name__}")
    shape = reference.shape
    rated: dict[Any, float] = {}
    for name, score in scores.items():
        one = parse_edge(name, shape) if level == "edges" else parse_node(name, shape).part
        if math.isnan(score):
            raise ValueError(f"the score of {one} is NaN")
        rated[one] = max(float(score), rated.get(one, -math.inf))
    every = _universe(reference, level, _heads_only(reference))
    inside = _members(reference, level)
    n_in, n_out = _sizes(every, inside)
    by_score: dict[float, list[int]] = {}
    for one in every:
        counts = by_score.setdefault(rated.get(one, -math.inf), [0, 0])
        counts[one in inside] += 1
    points, hits, misses = [("above all", 0, 0)], 0, 0
    for score in sorted(by_score, reverse=True):
        misses += by_score[score][0]
        hits += by_score[score][1]
        label = "not scored" if score == -math.inf else f"score >= {score:.4g}"
        points.append((label, misses, hits))
    return ROC(
        level,
        tuple(misses / n_out for _, misses, _ in points),
        tuple(hits / n_in for _, _, hits in points),
        tuple(label for label, _, _ in points),
        (n_in, n_out),
    )


def roc_of_circuits(
    circuits: Mapping[str, AnyCircuit] | Sequence[AnyCircuit],
    reference: AnyCircuit,
    level: Literal["edges", "nodes"] = "edges",
) -> ROC:
    """The curve of several circuits, such as those of ACDC at several thresholds.

    A point per circuit; of circuits of which another has both more of the reference and less of the
    rest the point is left out (the Pareto frontier, as in Conmy et al.'s figures).

    Args:
        circuits: by name, or in a list.
        reference: the circuit they are held against.
        level: as in `compare`.

    Raises:
        ValueError: no circuit, or what `compare` refuses.
    """
    _checked(reference, level)
    if not isinstance(circuits, Mapping):
        circuits = {f"circuit {i}": one for i, one in enumerate(circuits)}
    if not circuits:
        raise ValueError("there are no circuits: the list is empty")
    every = _universe(reference, level, _heads_only(reference))
    n_in, n_out = _sizes(every, _members(reference, level))
    points = {(0, 0): "nothing", (n_out, n_in): "everything"}
    for name, circuit in circuits.items():
        held = compare(circuit, reference, level)
        points.setdefault((len(held.only_found), len(held.both)), str(name))
    best, frontier = -1, []
    for (misses, hits), name in sorted(points.items(), key=lambda p: (p[0][0], -p[0][1])):
        # Only those are left that find more than all with as few mistakes; the ends always.
        if hits > best or (misses, hits) == (n_out, n_in):
            frontier.append((misses, hits, name))
            best = hits
    if frontier[0][:2] != (0, 0):
        frontier.insert(0, (0, 0, "nothing"))
    return ROC(
        level,
        tuple(misses / n_out for misses, _, _ in frontier),
        tuple(hits / n_in for _, hits, _ in frontier),
        tuple(name for _, _, name in frontier),
        (n_in, n_out),
    )


def _sizes(every: Sequence[Any], inside: set[Any]) -> tuple[int, int]:
    n_in = sum(one in inside for one in every)
    n_out = len(every) - n_in
    if not n_in or not n_out:
        has = "nothing" if not n_in else "everything"
        raise ValueError(f"the reference has {has} in it: there is nothing to tell apart")
    return n_in, n_out


def scores_of(circuit: AnyCircuit) -> dict[Edge | Node, float]:
    """The sizes of a circuit's scores, for `roc`."""
    return {one: abs(score) for one, score in circuit.scores.items()}
