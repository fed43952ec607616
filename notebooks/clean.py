"""Outputs that are the same when nothing has changed, and what must not be in a notebook."""

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from notebooks.pictures import PLOTLY, is_live

LARGEST = 1_000_000  # bytes, of a notebook file
MODEL = re.compile(r'^MODEL = "mini"  # or .*"gpt2"', re.MULTILINE)
MODEL_NAMES = {"mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"}
TERMINAL_COLOURS = re.compile("\x1b\\[[0-9;]*m")
WIDGETS = "application/vnd.jupyter.widget-view+json"
# Of outputs, kind by kind, those that name this machine or this run of it.
VOLATILE = {
    "an address in memory": re.compile(r"\bat 0x[0-9a-f]{6,}"),
    "a path of this machine": re.compile(
        r"(?<![\w.:/])/(?:home|root|tmp|work|Users|var|private|mnt|opt)/|\b[A-Z]:\\\\?Users"
    ),
    "a time that was taken": re.compile(r"\b(?:CPU times|Wall time|per loop)\b"),
}


def clean(notebook: NotebookNode) -> None:
    """Make what was run the same at every run: ids, metadata, counts, streams, numbers.

    Cells are numbered; output comes in one piece; the last digits of numbers in figures, which
    depend on the machine, are rounded away; colours of text that shows them as HTML too, and what
    progress bars leave, are removed.
    """
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(
            display_name="Python 3 (ipykernel)", language="python", name="python3"
        ),
        language_info=NotebookNode(name="python"),
    )
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02}"
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = list(_in_one_piece(cell.outputs))


def _in_one_piece(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    last: NotebookNode | None = None
    for output in outputs:
        data = output.get("data", {})
        if WIDGETS in data:
            continue
        if last is not None and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
            continue
        if PLOTLY in data:
            data[PLOTLY] = _rounded(data[PLOTLY])
        if "text/plain" in data:
            data["text/plain"] = TERMINAL_COLOURS.sub("", data["text/plain"])
        last = output
        yield output


def _rounded(value: Any) -> Any:
    """Plain data with numbers of six digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.6g}")
    return value


def problems(path: Path, notebook: NotebookNode) -> list[str]:
    """What is wrong with a notebook as it is stored; nothing if all is well.

    Args:
        path: for its size.
        notebook: what is in it.
    """
    return [*_of_form(notebook), *_of_outputs(notebook), *_of_size(path)]


def _of_form(notebook: NotebookNode) -> Iterator[str]:
    cells = notebook.cells
    if cells[0].cell_type != "markdown" or "?" not in cells[0].source:
        yield "the first cell asks no question"
    if cells[-1].cell_type != "markdown":
        yield "the last cell does not say what was learned"
    code = [cell for cell in cells if cell.cell_type == "code"]
    if not code or not MODEL.search(code[0].source):
        yield 'the first cell of code has no line MODEL = "mini"  # or "gpt2", ...'
    for number, cell in enumerate(code, 1):
        named = [
            node.value
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Constant) and node.value in MODEL_NAMES
        ]
        if len(named) > (number == 1):
            yield f"cell [{number}] names the model {named[-1]!r}: only the line MODEL = ... does"
        if cell.execution_count != number:
            yield f"cell [{number}] was run as [{cell.execution_count}]: run all, from the top"


def _of_outputs(notebook: NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            where = f"the output of cell [{cell.execution_count}]"
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"{where} is an error: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"{where} is a warning or an error: {output.text.strip()}"
            if is_live(data.get("text/html", "")):
                yield f"{where} needs scripts to be seen"
            if PLOTLY in data and "image/png" not in data:
                yield f"{where} has no picture beside the figure"
            shown = {key: one for key, one in data.items() if key != "image/png"}
            text = output.get("text", "") + json.dumps(shown, ensure_ascii=False)
            for what, pattern in VOLATILE.items():
                if found := pattern.search(text):
                    near = text[max(found.start() - 30, 0) : found.end() + 30]
                    yield f"{where} holds {what}: ...{near}..."


def _of_size(path: Path) -> Iterator[str]:
    if (size := path.stat().st_size) >= LARGEST:
        yield f"it has {size:,} bytes; {LARGEST:,} is too many to look at on a code-hosting site"
