"""Notebooks run as they are, and what is stored in them is what they give."""

import base64
import copy
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks import build as tool
from notebooks.browser import Browser
from notebooks.clean import LARGEST, clean, problems
from notebooks.pictures import LIVE, PLOTLY, SCALE, is_live, is_picture, size, small
from notebooks.run import run

NOTEBOOKS = sorted(tool.FOLDER.glob("[!.]*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def outputs_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures_of(notebook: NotebookNode) -> list[bytes]:
    return [
        base64.b64decode(output.data["image/png"])
        for output in outputs_of(notebook)
        if "image/png" in output.get("data", {})
    ]


# ------------------------------------------------------------------ what differs

NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def near(a: float, b: float, unit: float = 0.0) -> bool:
    """Whether two numbers agree but for what another machine may round otherwise."""
    if a == b or (math.isnan(a) and math.isnan(b)):  # two infinities too
        return True
    return (
        math.isfinite(a)
        and math.isfinite(b)
        and abs(a - b) <= max(1e-3 * max(abs(a), abs(b)), unit)
    )


def text_differs(a: str, b: str) -> bool:
    """Whether texts have other words, or numbers apart by more than two units of the last digit."""
    if NUMBER.sub("#", a).split() != NUMBER.sub("#", b).split():
        return True
    for one, two in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True):
        digits = re.search(r"\.(\d\d+)", one)  # 3.1 and 3.2 are heads
        unit = 2 * 10.0 ** -len(digits[1]) if digits else 0.0
        if not near(*(float(number.replace("−", "-")) for number in (one, two)), unit):
            return True
    return False


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where plain data of two runs is not the same."""
    if isinstance(a, dict) and isinstance(b, dict):
        if "bdata" in a and "bdata" in b:
            yield from differences(_array(a), _array(b), where)
            return
        for key in sorted({*a, *b}):
            if (key in a) != (key in b):
                yield f"{where}/{key}: {'stored' if key in a else 'given'} only"
            else:
                yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{where}: {len(a)} stored, {len(b)} given"
        for index, (one, two) in enumerate(zip(a, b, strict=False)):
            yield from differences(one, two, f"{where}/{index}")
    elif isinstance(a, str) and isinstance(b, str):
        if text_differs(a, b):
            yield f"{where}: {a!r} stored, {b!r} given"
    elif _is_number(a) and _is_number(b):
        if not near(a, b, 1e-4):
            yield f"{where}: {a} stored, {b} given"
    elif a != b or type(a) is not type(b):
        yield f"{where}: {a!r} stored, {b!r} given"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _array(packed: dict[str, Any]) -> list[float]:
    return np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"]).tolist()


def shown(cell: NotebookNode) -> list[Any]:
    """What a cell gave that can be compared: not pictures, nor what only they stand for."""
    found = []
    for output in cell.get("outputs", []):
        if output.get("metadata", {}).get("picture") == "note":
            continue
        if output.output_type == "stream":
            found.append(output.text)
        elif output.output_type == "error":
            found.append(f"{output.ename}: {output.evalue}")
        else:
            kept = {key: one for key, one in output.data.items() if key != "image/png"}
            if is_live(kept.get("text/html", "")):
                del kept["text/html"]
            found.append(kept)
    return found


# ------------------------------------------------------------------ the notebooks


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
    assert [path.name[0] for path in NOTEBOOKS] == [str(n + 1) for n in range(len(NOTEBOOKS))]


@every_notebook
def test_what_is_stored(path: Path) -> None:
    notebook = tool.read(path)
    nbformat.validate(notebook)
    assert problems(path, notebook) == []
    again = copy.deepcopy(notebook)
    clean(again)
    assert again == notebook, "not as python -m notebooks.build writes it"
    pictures = pictures_of(notebook)
    assert all(map(is_picture, pictures))
    notes = [o for o in outputs_of(notebook) if o.get("data", {}).get("text/markdown") == LIVE]
    figures = [o for o in outputs_of(notebook) if PLOTLY in o.get("data", {})]
    assert len(pictures) == len(notes) + len(figures)


@every_notebook
def test_it_runs_and_gives_what_is_stored(path: Path, tmp_path: Path) -> None:
    stored = tool.read(path)
    fresh = copy.deepcopy(stored)
    run(fresh, tmp_path)
    clean(fresh)
    found = [
        line
        for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True))
        for line in differences(shown(old), shown(new), f"cell {number}")
    ]
    assert not found, f"python -m notebooks.build {path.stem} brings it up to date: {found[:5]}"


@every_notebook
def test_it_can_be_seen_where_no_scripts_run(path: Path) -> None:
    nbconvert = pytest.importorskip("nbconvert")
    body, _ = nbconvert.HTMLExporter().from_notebook_node(tool.read(path))
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    assert body.count("<img") >= len(pictures_of(tool.read(path)))
    assert "<iframe" not in body


# ------------------------------------------------------------------ the tool

FIGURE = """import plotly.graph_objects as go
figure = go.Figure(go.Heatmap(z=[[0.123456789, 1], [2, 3]]))
figure"""
PAGE = """from analyses.report import Page
page = Page("A page")
page.text("What stands in it.")
page.table(["one", "two"], [["1", "2"]])
page"""
OFFLINE = """import os, socket, urllib.request
open("written.txt", "w").close()
for address in ("http://127.0.0.1:9/", "http://example.org/"):
    try:
        urllib.request.urlopen(address, timeout=5)
    except OSError as error:
        print(error)
    connection = socket.socket()
    try:
        connection.connect(("192.0.2.1", 80))
    except OSError as error:
        print(error)
    connection.close()
print(os.environ["HF_HUB_OFFLINE"])"""


def tiny(*sources: str) -> NotebookNode:
    first = 'MODEL = "mini"  # or "gpt2", a Hub id, a folder'
    return new_notebook(
        cells=[
            new_markdown_cell("# What is it?"),
            *map(new_code_cell, (first, *sources)),
            new_markdown_cell("That."),
        ]
    )


def written(notebook: NotebookNode, path: Path) -> Path:
    nbformat.write(notebook, path)
    return path


def test_building_a_notebook(browser: Browser, tmp_path: Path) -> None:
    path = written(tiny(FIGURE, PAGE, "print('so')\nprint('it is')", OFFLINE), tmp_path / "a.ipynb")
    tool.build(path)
    first = path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path]
    built = tool.read(path)
    figure, page, note, printed, offline = outputs_of(built)

    assert {*figure.data} == {PLOTLY, "image/png"}
    assert figure.data[PLOTLY]["data"][0]["z"] == [[0.123457, 1], [2, 3]]
    picture = base64.b64decode(figure.data["image/png"])
    assert is_picture(picture)
    width, height = size(picture)
    assert 350 < height / SCALE <= 450 and width / SCALE > 900
    assert figure.metadata["image/png"] == {
        "width": round(width / SCALE), "height": round(height / SCALE),
    }  # fmt: skip
    assert {*page.data} == {"text/plain", "image/png"}
    assert is_picture(base64.b64decode(page.data["image/png"]))
    assert note.data["text/markdown"] == LIVE
    assert printed.text == "so\nit is\n"
    assert offline.text.count("notebooks run without a network") == 4
    assert offline.text.endswith("\n1\n")
    assert [cell.id for cell in built.cells] == [f"cell-{n:02}" for n in range(7)]
    assert problems(path, built) == []

    tool.build(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        (
            "import warnings\nwarnings.warn('beware')",
            r"cell \[2\] is a warning or an error: .*bewa",
        ),
        ("print(object())", "holds an address in memory"),
        ("print('/home/me/x')", "holds a path of this machine"),
        ("print('Wall time: 3 s')", "holds a time that was taken"),
        ("'gpt2'", "names the model 'gpt2'"),
    ],
)
def test_what_is_not_written(tmp_path: Path, source: str, said: str) -> None:
    path = written(tiny(source), tmp_path / "a.ipynb")
    before = path.read_bytes()
    with pytest.raises(tool.BuildError, match=rf"(?s)a\.ipynb: .*{said}"):
        tool.build(path)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_unknown_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["0_nothing"]) == 1
    assert "no notebook '0_nothing' in notebooks/: it has " in capsys.readouterr().err


def test_names_of_notebooks(tmp_path: Path) -> None:
    for name in ("2_b.ipynb", "1_a.ipynb", ".1_a.ipynb.new", "x.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in tool.paths([], tmp_path)] == ["1_a.ipynb", "2_b.ipynb"]
    assert tool.paths(["2_b", "notebooks/1_a.ipynb"], tmp_path) == [
        tmp_path / "2_b.ipynb", tmp_path / "1_a.ipynb",
    ]  # fmt: skip


def test_no_notebook_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("text")
    with pytest.raises(tool.BuildError, match=r"a\.ipynb: "):
        tool.build(tmp_path / "a.ipynb")


def good() -> NotebookNode:
    """A notebook as it should be stored."""
    notebook = tiny("figure", "2")
    one, two, three = (cell for cell in notebook.cells if cell.cell_type == "code")
    one.execution_count, two.execution_count, three.execution_count = 1, 2, 3
    two.outputs = [new_output("display_data", {PLOTLY: {}, "image/png": "AA=="})]
    return notebook


def without_question(notebook: NotebookNode) -> None:
    notebook.cells[0].source = "# Notes."


def without_end(notebook: NotebookNode) -> None:
    del notebook.cells[-1]


def without_model(notebook: NotebookNode) -> None:
    notebook.cells[1].source = "MODEL = 'other'"


def another_model(notebook: NotebookNode) -> None:
    notebook.cells[2].source = "load('gpt2-medium')"


def out_of_order(notebook: NotebookNode) -> None:
    notebook.cells[2].execution_count = 7


def an_error(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs = [new_output("error", ename="ValueError", evalue="wrong")]


def a_warning(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs = [new_output("stream", name="stderr", text="beware")]


def without_picture(notebook: NotebookNode) -> None:
    del notebook.cells[2].outputs[0].data["image/png"]


def a_frame(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs = [new_output("display_data", {"text/html": "<iframe></iframe>"})]


def too_large(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs = [new_output("stream", text="x" * LARGEST)]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_question, "the first cell asks no question"),
        (without_end, "the last cell does not say what was learned"),
        (without_model, "the first cell of code has no line MODEL = "),
        (another_model, "cell [2] names the model 'gpt2-medium': only the line"),
        (out_of_order, "cell [2] was run as [7]"),
        (an_error, "cell [3] is an error: ValueError: wrong"),
        (a_warning, "cell [3] is a warning or an error: beware"),
        (without_picture, "cell [2] has no picture beside the figure"),
        (a_frame, "cell [3] needs scripts to be seen"),
        (too_large, "is too many to look at"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_problems(spoil: Callable[[NotebookNode], None], said: str, tmp_path: Path) -> None:
    notebook = good()
    assert problems(written(notebook, tmp_path / "a.ipynb"), notebook) == []
    spoil(notebook)
    (found,) = problems(written(notebook, tmp_path / "a.ipynb"), notebook)
    assert said in found


def test_what_changes_from_run_to_run_is_cleaned() -> None:
    notebook = good()
    cell = notebook.cells[2]
    cell.metadata["execution"] = {"iopub.execute_input": "2030-01-01"}
    bar = "application/vnd.jupyter.widget-view+json"
    cell.outputs = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("display_data", {bar: {}, "text/plain": "0%"}),
        new_output("stream", name="stdout", text="c\n"),
        new_output("display_data", {PLOTLY: {"data": [{"z": [0.1 + 0.2, "0.30000000000000004"]}]}}),
        new_output("display_data", {"text/plain": "\x1b[1mbold\x1b[0m"}),
    ]
    clean(notebook)
    assert cell.metadata == {}
    stream, figure, bold = cell.outputs
    assert stream.text == "a\nb\nc\n"
    assert figure.data[PLOTLY]["data"][0]["z"] == [0.3, "0.30000000000000004"]
    assert bold.data["text/plain"] == "bold"


def test_pictures_are_small_and_cut() -> None:
    import io

    from PIL import Image

    image = Image.new("RGB", (400, 300), "white")
    image.paste("navy", (10, 20, 110, 90))
    packed = io.BytesIO()
    image.save(packed, "PNG")
    assert size(small(packed.getvalue())) == (128, 108)
    assert is_picture(small(packed.getvalue()))
    blank = io.BytesIO()
    Image.new("RGB", (400, 300), "white").save(blank, "PNG")
    assert not is_picture(small(blank.getvalue()))


# ------------------------------------------------------------------ the comparison can fail


@pytest.mark.parametrize(
    ("stored", "given", "same"),
    [
        ("score 0.123", "score 0.124", True),
        ("score 0.123", "score 0.127", False),
        ("score 0.123", "score -0.123", False),
        ("score 0.123", "scores 0.123", False),
        ("3 heads", "4 heads", False),
        ("rank 4000", "rank 4003", True),
        ("a  b\nc", "a b c", True),
        ("colour #3e4989", "colour #3e4989", True),
        ([math.nan], [math.nan], True),
        ([math.nan], [1.0], False),
        ([math.inf], [1.0], False),
        ("head 3.1", "head 3.2", False),
        ({"z": [1.0, 2.0]}, {"z": [1.0, 2.00001]}, True),
        ({"z": [1.0, 2.0]}, {"z": [1.0, 2.1]}, False),
        ({"z": [1.0, 2.0]}, {"z": [1.0]}, False),
        ({"z": [1.0]}, {"z": [1.0], "x": [1]}, False),
        ({"z": None}, {"z": 0}, False),
        ([True], [1], False),
        (["a"], [], False),
    ],
)
def test_differences(stored: Any, given: Any, same: bool) -> None:
    assert (not list(differences(stored, given))) is same


def test_packed_arrays_are_compared() -> None:
    def packed(*values: float) -> dict[str, str]:
        data = np.array(values, "f8").tobytes()
        return {"dtype": "f8", "bdata": base64.b64encode(data).decode()}

    assert not list(differences(packed(1, 2), packed(1, 2 + 1e-7)))
    assert list(differences(packed(1, 2), packed(1, 3)))
    assert list(differences(packed(1, 2), packed(1)))
