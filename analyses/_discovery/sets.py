"""What circuits of edges and of nodes have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from analyses._discovery.names import Edge, Node, Shape, parse_node
from analyses._edges import Part
from hooks.names import nearest
from interp import HookedGPT2, HookedGPT2Config

AnyShape = HookedGPT2 | HookedGPT2Config | Shape
INPUT = Part("input")
KEPT = ("input", "mlps")


def name_of(model: AnyShape) -> str:
    """What a model is called; "" of a bare shape."""
    cfg = model.cfg if isinstance(model, HookedGPT2) else model
    return "" if isinstance(cfg, Shape) else str(cfg.model_name or "")


def whole_part(given: Any, shape: Shape) -> Part:
    """The part that a node without position names."""
    node = parse_node(given, shape)
    if node.pos is not None:
        raise ValueError(f"node {node} is at one position; the nodes of edges are at all")
    return node.part


def whose(circuit: Any) -> str:
    """The model's name, or its shape."""
    return circuit.model or str(circuit.shape)


def joined(one: Any, word: str, other: Any) -> str:
    """The method of what two circuits give together."""
    # What was said once need not be said for every circuit that is taken away.
    said = one.method == other.method or one.method.endswith(f" {word} {other.method}")
    return one.method if said else f"{one.method} {word} {other.method}"


def no_twins(found: Sequence[Edge] | Sequence[Node]) -> None:
    """Raise ValueError if something is named twice."""
    seen: set[object] = set()
    for one in found:
        if one in seen:
            raise ValueError(f"{one} is named twice")
        seen.add(one)


def only_in(scores: Mapping[Any, float], found: Sequence[Any]) -> None:
    """Raise ValueError if there is a score of something else."""
    there = set(found)
    for one in scores:
        if one not in there:
            hint = nearest(str(one), [str(name) for name in found])
            raise ValueError(f"there is a score of {one}, which is not in the circuit.{hint}")


def same_kind(one: Any, other: Any) -> None:
    """Raise TypeError or ValueError unless two circuits can be combined."""
    if type(one) is not type(other):
        raise TypeError(
            f"{type(one).__name__} and {type(other).__name__} are of different kinds "
            "(NodeCircuit.to_edges gives edges)"
        )
    if one.shape != other.shape:
        raise ValueError(
            f"these circuits are of different models: one with {one.shape}, one with {other.shape}"
        )
    if getattr(one, "kept", None) != getattr(other, "kept", None):
        raise ValueError(
            f"these circuits keep different parts: {one.kept!r} and {other.kept!r} are not counted"
        )
