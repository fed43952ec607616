"""Circuits in files: JSON with a version, written whole or not at all."""

import json
import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses import cli

if TYPE_CHECKING:
    from analyses._discovery.circuit import AnyCircuit

FORMAT, VERSION = "hooked-gpt2 circuit", 1
_FIELDS: dict[str, Any] = {
    "kind": str, "model": str, "n_layers": int, "n_heads": int, "method": str, "provenance": dict,
}  # fmt: skip
_OF_KIND = {"edges": {"edges": 3}, "nodes": {"nodes": 4}}


def write(path: str | PathLike[str], circuit: "AnyCircuit", of_kind: dict[str, Any]) -> None:
    """Write a circuit; a file that was there stays as it was if that fails."""
    kind = "edges" if "edges" in of_kind else "nodes"
    data = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "model": circuit.model,
        "n_layers": circuit.shape.n_layers,
        "n_heads": circuit.shape.n_heads,
        "method": circuit.method,
        "provenance": dict(circuit.provenance),
        **of_kind,
    }
    text = cli.json_text(cli.finite(data))
    target = Path(path)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The checked contents of a file.

    Raises:
        ValueError: it is no circuit, or of a version that is not known.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON file of a circuit: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is no file of a circuit: expected format {FORMAT!r} in it")
    if data.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {data.get('version')!r}; this package reads version {VERSION}"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool):
            raise ValueError(f"{path}: {name!r} is {data.get(name)!r}, expected {kind.__name__}")
    if data["kind"] not in _OF_KIND:
        raise ValueError(f"{path}: kind is {data['kind']!r}, expected 'edges' or 'nodes'")
    for name, width in _OF_KIND[data["kind"]].items():
        rows = data.get(name)
        if not isinstance(rows, list) or not all(
            isinstance(row, list) and len(row) == width for row in rows
        ):
            raise ValueError(f"{path}: {name!r} is no list of rows of {width}")
    if data["kind"] == "nodes" and not isinstance(data.get("kept"), list):
        raise ValueError(f"{path}: 'kept' is missing")
    return data
