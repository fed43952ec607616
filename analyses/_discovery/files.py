"""Circuits in files: JSON with a version, written whole or not at all."""

import json
import os
import sys
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
_COLUMNS = {
    "edges": ("sender", "receiver", "score"), "nodes": ("node", "pos", "role", "score"),
}  # fmt: skip
# Ten times any model there is; a damaged number should not take all memory.
_MOST_LAYERS, _MOST_PARTS = 1024, 2**16


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
    if not target.name or target.is_dir():
        raise ValueError(f"{path} is a folder; a circuit is saved to a file")
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
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file of a circuit: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is no file of a circuit: expected format {FORMAT!r} in it")
    if data.get("version") != VERSION or isinstance(data.get("version"), bool):
        raise ValueError(
            f"{path} is of version {data.get('version')!r}; this package reads version {VERSION}"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool):
            raise ValueError(f"{path}: {name!r} is {data.get(name)!r}, expected {kind.__name__}")
    for name in ("n_layers", "n_heads"):
        if not 1 <= data[name] <= _MOST_LAYERS:
            raise ValueError(f"{path}: {name!r} is {data[name]}, expected 1 to {_MOST_LAYERS}")
    if data["n_layers"] * data["n_heads"] > _MOST_PARTS:
        raise ValueError(
            f"{path}: {data['n_layers']} layers of {data['n_heads']} heads are more than the "
            f"{_MOST_PARTS} heads that a circuit may be of"
        )
    if data["kind"] not in _COLUMNS:
        raise ValueError(f"{path}: kind is {data['kind']!r}, expected 'edges' or 'nodes'")
    kind = data["kind"]
    columns, rows = _COLUMNS[kind], data.get(kind)
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == len(columns) for row in rows
    ):
        raise ValueError(f"{path}: {kind!r} is no list of rows of {len(columns)}")
    for number, row in enumerate(rows):
        for column, value in zip(columns, row, strict=True):
            wanted = _wanted(column, value)
            if wanted:
                raise ValueError(
                    f"{path}: {column!r} in row {number} of {kind!r} is {value!r}, expected "
                    f"{wanted}"
                )
    if kind == "nodes" and not (
        isinstance(data.get("kept"), list) and all(isinstance(one, str) for one in data["kept"])
    ):
        raise ValueError(f"{path}: 'kept' is {data.get('kept')!r}, expected a list of names")
    return data


def _wanted(column: str, value: Any) -> str:
    """What a cell should have been; "" if it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if column == "score":
        fits = value is None or (number and abs(value) <= sys.float_info.max)
        return "" if fits else "a finite number or null"
    if column == "pos":
        fits = value is None or (number and isinstance(value, int))
        fits = fits or (isinstance(value, str) and bool(value.strip()))
        return "" if fits else "a position's number, its name, or null"
    if column == "role":
        return "" if value is None or isinstance(value, str) else "a word or null"
    return "" if isinstance(value, str) else "a name"
