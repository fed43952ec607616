"""Circuits of either kind, and reading them from files."""

from dataclasses import replace
from os import PathLike

from analyses._discovery import files
from analyses._discovery.edges import Circuit
from analyses._discovery.names import Shape, parse_node
from analyses._discovery.nodes import NodeCircuit
from analyses._discovery.sets import AnyShape

AnyCircuit = Circuit | NodeCircuit


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
        rows = [
            (parse_node(name, shape)._replace(pos=pos), role, score)
            for name, pos, role, score in data["nodes"]
        ]
        nodes = {node: (role, score) for node, role, score in rows}
        found = NodeCircuit.of(
            shape,
            [node for node, _, _ in rows],
            kept=data["kept"],
            scores={n: score for n, (_, score) in nodes.items() if score is not None},
            **common,
        )
        roles = {node: role for node, (role, _) in nodes.items() if role is not None}
        return replace(found, roles=roles, model=data["model"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
