"""Circuits of edges, as values."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses._discovery import files
from analyses._discovery.names import AnyEdge, AnyNode, Edge, Shape, listed, parse_edge
from analyses._discovery.sets import (
    INPUT,
    AnyShape,
    joined,
    name_of,
    no_twins,
    only_in,
    same_kind,
    whole_part,
    whose,
)
from analyses._edges import Part
from analyses._views import circuit_graph
from analyses._views.words import count

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.table import Table


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """A set of edges.

    Two circuits are equal if they have the same edges and are of models of one shape; scores and
    words do not count. `|`, `&`, `-` and `<=` are those of sets.

    Attributes:
        shape: of the model: layers and heads.
        edges: the edges.
        scores: of (some of) the edges, as the method that found them gives them.
        model: the model's name.
        method: how the circuit was found, in words.
        provenance: what else there is to say about where it comes from, as plain data.
    """

    shape: Shape
    edges: frozenset[Edge]
    scores: Mapping[Edge, float] = field(default_factory=dict)
    model: str = ""
    method: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: AnyShape,
        edges: Iterable[AnyEdge],
        *,
        scores: Mapping[Any, float] | None = None,
        method: str = "given by name",
        provenance: Mapping[str, Any] | None = None,
    ) -> "Circuit":
        """A circuit from names.

        Args:
            model: whose circuit it is (or the config).
            edges: such as `("9.6", "logits")` or `"9.6 → 10.7.q"`. Senders: `input`, `9.6`,
                `3.mlp`; receivers: `9.6.q`, `9.6.k`, `9.6.v`, `3.mlp`, `logits`.
            scores: of edges of the circuit, named in the same ways.
            method, provenance: what to say about it.

        Raises:
            ValueError: an unknown name (says which is nearest), an edge that runs backwards, one
                named twice, or a score of an edge that is not in the circuit.
            TypeError: something that is no edge.
        """
        shape = Shape.of(model)
        found = [parse_edge(edge, shape) for edge in listed(edges, "edges")]  # type: ignore[arg-type]
        no_twins(found)
        rated = {parse_edge(e, shape): float(s) for e, s in (scores or {}).items()}
        only_in(rated, found)
        return cls(shape, frozenset(found), rated, name_of(model), method, dict(provenance or {}))

    @classmethod
    def full(cls, model: AnyShape) -> "Circuit":
        """All edges there are."""
        shape = Shape.of(model)
        sending = shape.senders
        edges = [Edge(s, r) for r in shape.receivers for s in sending[: shape.before(r)]]
        return cls(shape, frozenset(edges), model=name_of(model), method="all edges")

    @classmethod
    def empty(cls, model: AnyShape) -> "Circuit":
        """No edge."""
        return cls(Shape.of(model), frozenset(), model=name_of(model), method="no edge")

    @classmethod
    def from_mask(
        cls, model: AnyShape, mask: Bool[Tensor, "sender receiver"], **more: Any
    ) -> "Circuit":
        """The edges where a mask is True, on the axes of `analyses.edge_attribution`.

        Args:
            more: other attributes.

        Raises:
            ValueError: a mask of another shape, or True where there is no edge.
        """
        shape = Shape.of(model)
        sending, receiving = shape.senders, shape.receivers
        if tuple(mask.shape) != (len(sending), len(receiving)):
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}; a model with {shape} has {len(sending)} "
                f"senders and {len(receiving)} receivers"
            )
        edges = []
        for s, r in mask.nonzero().tolist():
            if s >= shape.before(receiving[r]):
                raise ValueError(
                    f"mask is True from {sending[s]} to {receiving[r]}, where there is no edge"
                )
            edges.append(Edge(sending[s], receiving[r]))
        return cls(shape, frozenset(edges), model=name_of(model), **more)

    @property
    def mask(self) -> Bool[Tensor, "sender receiver"]:
        """True at the edges, on the axes of `analyses.edge_attribution`."""
        shape = self.shape
        found = torch.zeros(len(shape.senders), len(shape.receivers), dtype=torch.bool)
        for edge in self.edges:
            found[shape.sender_index(edge.sender), shape.receiver_index(edge.receiver)] = True
        return found

    @cached_property
    def ordered(self) -> tuple[Edge, ...]:
        """The edges by receiver, then by sender."""
        shape = self.shape
        return tuple(
            sorted(
                self.edges,
                key=lambda e: (shape.receiver_index(e.receiver), shape.sender_index(e.sender)),
            )
        )

    @property
    def nodes(self) -> tuple[Part, ...]:
        """The senders that an edge leaves or enters, in order; the logits are none."""
        ends = {end for e in self.edges for end in (e.sender, e.reader) if end is not None}
        return tuple(sorted(ends, key=self.shape.sender_index))

    def pruned(self, *, from_input: bool = True) -> "Circuit":
        """Without the edges that lie on no path from the input to the logits.

        Edges that do not lead to the logits never matter. Those that do not come from the input
        carry nothing where the values in place of the other edges are those of another run
        ("patch", "resample"); with means or zeros in place of them they do.

        Args:
            from_input: also drop what does not come from the input.
        """
        reached: set[Part] = {INPUT}
        kept = []
        for edge in self.ordered:  # receivers in order: what an edge leaves is settled before
            if not from_input or edge.sender in reached:
                kept.append(edge)
                if edge.reader is not None:
                    reached.add(edge.reader)
        live: set[Part | None] = {None}
        edges = []
        for edge in reversed(kept):
            if edge.reader in live:
                live.add(edge.sender)
                edges.append(edge)
        return self._with(edges, f"{self.method.removesuffix(', pruned')}, pruned")

    def without_nodes(self, nodes: Iterable[AnyNode]) -> "Circuit":
        """Without the edges that leave these nodes.

        Raises:
            ValueError: an unknown node, or one at a position only.
        """
        out = {whole_part(node, self.shape) for node in listed(nodes, "nodes")}
        return self._with(
            [e for e in self.edges if e.sender not in out],
            f"{self.method}, without {', '.join(map(str, sorted(out, key=str)))}",
        )

    def _with(self, edges: Iterable[Edge], method: str) -> "Circuit":
        chosen = frozenset(edges)
        scores = {edge: score for edge, score in self.scores.items() if edge in chosen}
        return replace(self, edges=chosen, scores=scores, method=method)

    # -------------------------------------------------------------- as a set

    def __or__(self, other: "Circuit") -> "Circuit":
        same_kind(self, other)
        scores = {**other.scores, **self.scores}
        return replace(
            self, edges=self.edges | other.edges, scores=scores, method=joined(self, "or", other)
        )

    def __and__(self, other: "Circuit") -> "Circuit":
        same_kind(self, other)
        return self._with(self.edges & other.edges, joined(self, "and", other))

    def __sub__(self, other: "Circuit") -> "Circuit":
        same_kind(self, other)
        return self._with(self.edges - other.edges, joined(self, "without", other))

    def __le__(self, other: "Circuit") -> bool:
        same_kind(self, other)
        return self.edges <= other.edges

    def __lt__(self, other: "Circuit") -> bool:
        same_kind(self, other)
        return self.edges < other.edges

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.shape == other.shape and self.edges == other.edges

    def __hash__(self) -> int:
        return hash((self.shape, self.edges))

    def __len__(self) -> int:
        return len(self.edges)

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.ordered)

    def __contains__(self, edge: object) -> bool:
        return parse_edge(edge, self.shape) in self.edges  # type: ignore[arg-type]

    # -------------------------------------------------------------- showing and keeping it

    def to_frame(self) -> "pd.DataFrame":
        """One row per edge: `sender`, `sender_kind`, `sender_layer`, `sender_head`, the same of
        `receiver`, and `score` (empty where there is none)."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for what in ("sender", "receiver"):
            parts = [getattr(edge, what) for edge in self.ordered]
            columns[what] = [str(part) for part in parts]
            columns[f"{what}_kind"] = [part.kind for part in parts]
            columns[f"{what}_layer"] = pd.array([part.layer for part in parts], dtype="Int64")
            columns[f"{what}_head"] = pd.array([part.head for part in parts], dtype="Int64")
        scores = [self.scores.get(edge) for edge in self.ordered]
        columns["score"] = pd.array(scores, dtype="Float64")
        return pd.DataFrame(columns)

    def table(self) -> "Table":
        """A row per receiver with all that it reads, for `rich.print`."""
        from rich.table import Table

        table = Table(title=count(len(self), "edge"), title_justify="left")
        table.add_column("receiver")
        table.add_column("reads", overflow="fold")
        reads: dict[Part, list[str]] = {}
        for edge in self.ordered:
            reads.setdefault(edge.receiver, []).append(str(edge.sender))
        for receiver, names in reads.items():
            table.add_row(str(receiver), " ".join(names))
        return table

    def plot(self) -> "go.Figure":
        """The circuit as a graph, layer above layer; see `analyses._views.circuit_graph`."""
        return circuit_graph.figure(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a JSON file, with scores, method and provenance."""
        edges = [[str(e.sender), str(e.receiver), self.scores.get(e)] for e in self.ordered]
        files.write(path, self, {"edges": edges})

    def __repr__(self) -> str:
        n = len(Circuit.full(self.shape))
        lines = [
            f"Circuit({whose(self)}: {len(self)} of {n} edges, {count(len(self.nodes), 'node')}; "
            f"{self.method})"
        ]
        strongest = sorted(self.scores, key=lambda e: -abs(self.scores[e]))[:3]
        lines += [f"  {edge}: {self.scores[edge]:+.4g}" for edge in strongest]
        return "\n".join(lines)
