"""Circuits of nodes, as values."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from analyses._discovery import files
from analyses._discovery.edges import Circuit
from analyses._discovery.names import AnyNode, Node, Shape, listed, parse_node
from analyses._discovery.sets import (
    INPUT,
    KEPT,
    AnyShape,
    joined,
    name_of,
    no_twins,
    only_in,
    same_kind,
    whose,
)
from analyses._edges import Part
from analyses._views import circuit_graph
from analyses.tasks import unknown

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.table import Table


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
        no_twins(found)
        for node in found:
            if node.part == INPUT or (node.part.kind == "mlp" and "mlps" in kept):
                raise ValueError(
                    f"node {node} is not counted among nodes: whether it is there is said by kept, "
                    f"here {tuple(kept)!r}"
                )
            if node.pos is not None and Node(node.part) in found:
                raise ValueError(f"node {node} is in the circuit twice: {node.part} is there too")
        rated = {parse_node(n, shape): float(s) for n, s in (scores or {}).items()}
        only_in(rated, found)
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
        cls, model: AnyShape, *, kept: Sequence[Literal["input", "mlps"]] = ("input",)
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
        same_kind(self, other)
        return replace(
            self,
            nodes=self.nodes | other.nodes,
            roles={**other.roles, **self.roles},
            scores={**other.scores, **self.scores},
            method=joined(self, "or", other),
        )

    def __and__(self, other: "NodeCircuit") -> "NodeCircuit":
        same_kind(self, other)
        return self._with(self.nodes & other.nodes, joined(self, "and", other))

    def __sub__(self, other: "NodeCircuit") -> "NodeCircuit":
        same_kind(self, other)
        return self._with(self.nodes - other.nodes, joined(self, "without", other))

    def __le__(self, other: "NodeCircuit") -> bool:
        same_kind(self, other)
        return self.nodes <= other.nodes

    def __lt__(self, other: "NodeCircuit") -> bool:
        same_kind(self, other)
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
        nodes = [[str(n.part), n.pos, self.roles.get(n), self.scores.get(n)] for n in self.ordered]
        files.write(path, self, {"kept": list(self.kept), "nodes": nodes})

    def __repr__(self) -> str:
        kept = f" besides {' and '.join(self.kept)}" if self.kept else ""
        lines = [f"NodeCircuit({whose(self)}: {len(self)} nodes{kept}; {self.method})"]
        lines += [
            f"  {role}: {' '.join(map(str, nodes))}" for role, nodes in self.by_role().items()
        ]
        return "\n".join(lines)
