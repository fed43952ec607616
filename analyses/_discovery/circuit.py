"""Circuits as values: sets of edges, or of nodes, of one model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from analyses._discovery import files
from analyses._discovery.names import (
    AnyEdge,
    AnyNode,
    Edge,
    Node,
    Shape,
    listed,
    parse_edge,
    parse_node,
    reader_of,
)
from analyses._edges import Part
from analyses._views import circuit_graph
from analyses.tasks import unknown
from hooks.names import nearest
from interp import HookedGPT2, HookedGPT2Config

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.table import Table

AnyShape = HookedGPT2 | HookedGPT2Config | Shape
INPUT = Part("input")
KEPT = ("input", "mlps")


def name_of(model: AnyShape) -> str:
    """What a model is called; "" of a bare shape."""
    cfg = model.cfg if isinstance(model, HookedGPT2) else model
    return "" if isinstance(cfg, Shape) else str(cfg.model_name or "")


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
        _no_twins(found)
        rated = {parse_edge(e, shape): float(s) for e, s in (scores or {}).items()}
        _only_in(rated, found)
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
        _same_kind(self, other)
        scores = {**other.scores, **self.scores}
        return replace(
            self, edges=self.edges | other.edges, scores=scores, method=_joined(self, "or", other)
        )

    def __and__(self, other: "Circuit") -> "Circuit":
        _same_kind(self, other)
        return self._with(self.edges & other.edges, _joined(self, "and", other))

    def __sub__(self, other: "Circuit") -> "Circuit":
        _same_kind(self, other)
        return self._with(self.edges - other.edges, _joined(self, "without", other))

    def __le__(self, other: "Circuit") -> bool:
        _same_kind(self, other)
        return self.edges <= other.edges

    def __lt__(self, other: "Circuit") -> bool:
        _same_kind(self, other)
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

        table = Table(title=f"{len(self)} edges", title_justify="left")
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
        edges = [
            [str(e.sender), str(e.receiver), files.finite(self.scores.get(e))] for e in self.ordered
        ]
        files.write(path, self, {"edges": edges})

    def __repr__(self) -> str:
        n = len(Circuit.full(self.shape))
        lines = [
            f"Circuit({_whose(self)}: {len(self)} of {n} edges, {len(self.nodes)} nodes; "
            f"{self.method})"
        ]
        strongest = sorted(self.scores, key=lambda e: -abs(self.scores[e]))[:3]
        lines += [f"  {edge}: {self.scores[edge]:+.4g}" for edge in strongest]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class NodeCircuit:
    """A set of nodes: heads and MLPs, everywhere or at some positions.

    All edges between its nodes are in it. Equal where nodes, what is always kept, and the shape of
    the model are; `|`, `&`, `-` and `<=` are those of sets.

    Attributes:
        shape: of the model: layers and heads.
        nodes: the nodes.
        kept: what belongs to every circuit of this kind and is not counted: "input" (the
            embeddings), "mlps" (all of them).
        roles: what some of the nodes do, in a word.
        scores: of (some of) the nodes.
        model, method, provenance: as in `Circuit`.
    """

    shape: Shape
    nodes: frozenset[Node]
    kept: tuple[str, ...] = ("input",)
    roles: Mapping[Node, str] = field(default_factory=dict)
    scores: Mapping[Node, float] = field(default_factory=dict)
    model: str = ""
    method: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: AnyShape,
        nodes: Iterable[AnyNode] | Mapping[str, Iterable[AnyNode]],
        *,
        kept: Sequence[Literal["input", "mlps"]] = ("input",),
        scores: Mapping[Any, float] | None = None,
        method: str = "given by name",
        provenance: Mapping[str, Any] | None = None,
    ) -> "NodeCircuit":
        """A circuit from names.

        Args:
            model: whose circuit it is (or the config).
            nodes: such as `"9.6"`, `"3.mlp"`, or `"9.6@END"` at one position only (a name of the
                prompts' positions, or a number); or such lists by the role that they have.
            kept: what is always there and not counted: "input", "mlps".
            scores: of nodes of the circuit, named in the same ways.
            method, provenance: what to say about it.

        Raises:
            ValueError: an unknown name (says which is nearest), a node named twice, or one that is
                kept anyway.
            TypeError: something that is no node.
        """
        shape = Shape.of(model)
        for one in kept:
            if one not in KEPT:
                raise ValueError(unknown("part to be kept", str(one), KEPT))
        roles: dict[Node, str] = {}
        found: list[Node] = []
        groups: Any = nodes if isinstance(nodes, Mapping) else {None: nodes}
        for role, several in groups.items():
            for given in listed(several, "nodes"):
                node = parse_node(given, shape)  # type: ignore[arg-type]
                found.append(node)
                if role is not None:
                    roles[node] = role
        _no_twins(found)
        for node in found:
            if node.part == INPUT or (node.part.kind == "mlp" and "mlps" in kept):
                raise ValueError(
                    f"node {node} is not counted among nodes: it is kept={tuple(kept)!r} or not"
                )
            if node.pos is not None and Node(node.part) in found:
                raise ValueError(f"node {node} is in the circuit twice: {node.part} is there too")
        rated = {parse_node(n, shape): float(s) for n, s in (scores or {}).items()}
        _only_in(rated, found)
        return cls(
            shape, frozenset(found), tuple(k for k in KEPT if k in kept), roles, rated,
            name_of(model), method, dict(provenance or {}),
        )  # fmt: skip

    @classmethod
    def full(
        cls, model: AnyShape, *, kept: Sequence[Literal["input", "mlps"]] = ("input",)
    ) -> "NodeCircuit":
        """All nodes there are, everywhere."""
        shape = Shape.of(model)
        nodes = [p for p in shape.senders[1:] if p.kind == "head" or "mlps" not in kept]
        return cls.of(model, nodes, kept=kept, method="all nodes")

    @classmethod
    def empty(
        cls, model: AnyShape, *, kept: Sequence[Literal["input", "mlps"]] = ()
    ) -> "NodeCircuit":
        """No node."""
        return cls.of(model, [], kept=kept, method="no node")

    @cached_property
    def ordered(self) -> tuple[Node, ...]:
        """The nodes, in order."""
        return tuple(
            sorted(self.nodes, key=lambda n: (self.shape.sender_index(n.part), str(n.pos)))
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The heads and MLPs of the nodes, in order, without what is kept."""
        return tuple(dict.fromkeys(node.part for node in self.ordered))

    def by_role(self) -> dict[str, tuple[Node, ...]]:
        """The nodes of each role; those without one are left out."""
        found: dict[str, list[Node]] = {}
        for node, role in self.roles.items():
            found.setdefault(role, []).append(node)
        return {role: tuple(nodes) for role, nodes in found.items()}

    def anywhere(self) -> "NodeCircuit":
        """The same heads and MLPs at all positions."""
        roles = {Node(node.part): role for node, role in self.roles.items()}
        nodes = frozenset(Node(part) for part in self.parts)
        return replace(self, nodes=nodes, roles=roles, scores={}, method=f"{self.method}, anywhere")

    def to_edges(self) -> Circuit:
        """All edges between the nodes, from what is kept, and to the logits.

        Raises:
            ValueError: a node is at some positions only, which edges are not.
        """
        if any(node.pos is not None for node in self.nodes):
            raise ValueError("edges are at all positions: take circuit.anywhere().to_edges()")
        there = {*self.parts, *([INPUT] if "input" in self.kept else [])}
        if "mlps" in self.kept:
            there |= {part for part in self.shape.senders if part.kind == "mlp"}
        full = Circuit.full(self.shape)
        edges = [e for e in full if e.sender in there and (e.reader is None or e.reader in there)]
        return replace(full, edges=frozenset(edges), model=self.model, method=self.method)

    def without_nodes(self, nodes: Iterable[AnyNode]) -> "NodeCircuit":
        """Without these nodes; a node without position takes out all positions of it.

        Raises:
            ValueError: an unknown node.
        """
        out = {parse_node(node, self.shape) for node in listed(nodes, "nodes")}  # type: ignore[arg-type]
        return self._with(
            [n for n in self.nodes if n not in out and Node(n.part) not in out],
            f"{self.method}, without {', '.join(sorted(map(str, out)))}",
        )

    def _with(self, nodes: Iterable[Node], method: str) -> "NodeCircuit":
        chosen = frozenset(nodes)
        return replace(
            self,
            nodes=chosen,
            roles={n: role for n, role in self.roles.items() if n in chosen},
            scores={n: score for n, score in self.scores.items() if n in chosen},
            method=method,
        )

    # -------------------------------------------------------------- as a set

    def __or__(self, other: "NodeCircuit") -> "NodeCircuit":
        _same_kind(self, other)
        return replace(
            self,
            nodes=self.nodes | other.nodes,
            roles={**other.roles, **self.roles},
            scores={**other.scores, **self.scores},
            method=_joined(self, "or", other),
        )

    def __and__(self, other: "NodeCircuit") -> "NodeCircuit":
        _same_kind(self, other)
        return self._with(self.nodes & other.nodes, _joined(self, "and", other))

    def __sub__(self, other: "NodeCircuit") -> "NodeCircuit":
        _same_kind(self, other)
        return self._with(self.nodes - other.nodes, _joined(self, "without", other))

    def __le__(self, other: "NodeCircuit") -> bool:
        _same_kind(self, other)
        return self.nodes <= other.nodes

    def __lt__(self, other: "NodeCircuit") -> bool:
        _same_kind(self, other)
        return self.nodes < other.nodes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeCircuit):
            return NotImplemented
        return (self.shape, self.nodes, self.kept) == (other.shape, other.nodes, other.kept)

    def __hash__(self) -> int:
        return hash((self.shape, self.nodes, self.kept))

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.ordered)

    def __contains__(self, node: object) -> bool:
        return parse_node(node, self.shape) in self.nodes  # type: ignore[arg-type]

    # -------------------------------------------------------------- showing and keeping it

    def to_frame(self) -> "pd.DataFrame":
        """One row per node: `node`, `kind`, `layer`, `head`, `pos` ("": all), `role`, `score`."""
        import pandas as pd

        parts = [node.part for node in self.ordered]
        scores = [self.scores.get(node) for node in self.ordered]
        return pd.DataFrame(
            {
                "node": [str(part) for part in parts],
                "kind": [part.kind for part in parts],
                "layer": pd.array([part.layer for part in parts], dtype="Int64"),
                "head": pd.array([part.head for part in parts], dtype="Int64"),
                "pos": ["" if n.pos is None else str(n.pos) for n in self.ordered],
                "role": [self.roles.get(node, "") for node in self.ordered],
                "score": pd.array(scores, dtype="Float64"),
            }
        )

    def table(self) -> "Table":
        """A row per role (or per layer) with its nodes, for `rich.print`."""
        from rich.table import Table

        table = Table(title=f"{len(self)} nodes", title_justify="left")
        table.add_column("role" if self.roles else "layer")
        table.add_column("nodes", overflow="fold")
        groups: dict[str, list[str]] = {}
        for node in self.ordered:
            group = self.roles.get(node, "") if self.roles else str(node.part.layer)
            groups.setdefault(group, []).append(str(node))
        for group, names in groups.items():
            table.add_row(group, " ".join(names))
        return table

    def plot(self) -> "go.Figure":
        """The nodes, layer above layer; see `analyses._views.circuit_graph`."""
        return circuit_graph.figure(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a JSON file, with roles, scores, method and provenance."""
        nodes = [
            [str(n.part), n.pos, self.roles.get(n), files.finite(self.scores.get(n))]
            for n in self.ordered
        ]
        files.write(path, self, {"kept": list(self.kept), "nodes": nodes})

    def __repr__(self) -> str:
        kept = f" besides {' and '.join(self.kept)}" if self.kept else ""
        lines = [f"NodeCircuit({_whose(self)}: {len(self)} nodes{kept}; {self.method})"]
        lines += [
            f"  {role}: {' '.join(map(str, nodes))}" for role, nodes in self.by_role().items()
        ]
        return "\n".join(lines)


AnyCircuit = Circuit | NodeCircuit


def whole_part(given: Any, shape: Shape) -> Part:
    """The part that a node without position names."""
    node = parse_node(given, shape)
    if node.pos is not None:
        raise ValueError(f"node {node} is at one position; the nodes of edges are at all")
    return node.part


def load_circuit(path: str | PathLike[str], model: AnyShape | None = None) -> AnyCircuit:
    """Read what `Circuit.save` or `NodeCircuit.save` wrote.

    Args:
        path: the file.
        model: to check that the circuit is of a model of this shape.

    Raises:
        ValueError: no such file format, a newer version, names that do not fit, or another shape.
    """
    data = files.read(path)
    shape = Shape(data["n_layers"], data["n_heads"])
    if model is not None and Shape.of(model) != shape:
        raise ValueError(
            f"{path}: this circuit is of a model with {shape}, yours has {Shape.of(model)}"
        )
    common = {"method": data["method"], "provenance": data["provenance"]}
    try:
        if data["kind"] == "edges":
            rows = [(sender, receiver) for sender, receiver, _ in data["edges"]]
            scores = {(s, r): score for s, r, score in data["edges"] if score is not None}
            return replace(Circuit.of(shape, rows, scores=scores, **common), model=data["model"])
        nodes = {
            parse_node(name, shape)._replace(pos=pos): (role, score)
            for name, pos, role, score in data["nodes"]
        }
        found = NodeCircuit.of(
            shape,
            list(nodes),
            kept=data["kept"],
            scores={n: score for n, (_, score) in nodes.items() if score is not None},
            **common,
        )
        roles = {node: role for node, (role, _) in nodes.items() if role is not None}
        return replace(found, roles=roles, model=data["model"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error


def _whose(circuit: AnyCircuit) -> str:
    return circuit.model or str(circuit.shape)


def _joined(one: AnyCircuit, word: str, other: AnyCircuit) -> str:
    # What was said once need not be said for every circuit that is taken away.
    said = one.method == other.method or one.method.endswith(f" {word} {other.method}")
    return one.method if said else f"{one.method} {word} {other.method}"


def _no_twins(found: Sequence[Edge] | Sequence[Node]) -> None:
    seen: set[object] = set()
    for one in found:
        if one in seen:
            raise ValueError(f"{one} is named twice")
        seen.add(one)


def _only_in(scores: Mapping[Any, float], found: Sequence[Any]) -> None:
    for one in scores:
        if one not in set(found):
            hint = nearest(str(one), [str(name) for name in found])
            raise ValueError(f"there is a score of {one}, which is not in the circuit.{hint}")


def _same_kind(one: AnyCircuit, other: object) -> None:
    if type(one) is not type(other):
        raise TypeError(
            f"{type(one).__name__} and {type(other).__name__} are of different kinds "
            "(NodeCircuit.to_edges gives edges)"
        )
    assert isinstance(other, Circuit | NodeCircuit)
    if one.shape != other.shape:
        raise ValueError(
            f"these circuits are of different models: one with {one.shape}, one with {other.shape}"
        )
    if isinstance(one, NodeCircuit) and isinstance(other, NodeCircuit) and one.kept != other.kept:
        raise ValueError(
            f"these circuits keep different parts: {one.kept!r} and {other.kept!r} are not counted"
        )


__all__ = ["AnyCircuit", "Circuit", "NodeCircuit", "load_circuit", "reader_of"]
