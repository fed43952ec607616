"""Tables in pages: the bytes that --csv writes, in pages of all analyses, whatever they hold."""

import base64
import gzip
import importlib
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from analyses import cli
from analyses._page import tables
from analyses.report import Page, Shaded
from notebooks.browser import Browser

HOSTILE = pd.DataFrame(
    {
        "token": ["</script><b>x</b>", 'quo"te', "a,b\r\nc", "\x00\u202e\u2028", "=1+1", "é😀", ""],
        "value": [0.1, 1 / 3, float("nan"), float("inf"), -0.0, 1e-300, 12345678.9],
        "count": pd.array([1, 2, None, 4, 5, 6, 7], dtype="Int64"),
    }
)


def carried(source: str) -> dict[str, bytes]:
    """The tables that a page carries, by the name of their file."""
    found = {}
    for block, name in re.findall(r'data-table="([^"]+)" data-file="([^"]+)"', source):
        packed = re.search(rf'<script type="text/plain" id="{block}">(.*?)</script>', source)
        assert packed is not None
        found[name] = gzip.decompress(base64.b64decode(packed[1]))
    return found


def test_a_page_carries_the_bytes_of_the_csv() -> None:
    page = Page("x")
    page.data("hostile", HOSTILE)
    page.data("two", HOSTILE[:1])
    found = carried(page.html())
    assert found["hostile.csv"] == cli.csv_text(HOSTILE).encode()
    assert found["two.csv"] == cli.csv_text(HOSTILE[:1]).encode()
    assert "CSV: two (1 row, " in page.html()
    assert page.html() == page.html()
    assert page.html().count("DecompressionStream(") == 1
    assert len(page.html()) < 14_000


def test_what_utf8_cannot_hold_is_escaped() -> None:
    page = Page("a\ud83db")
    page.heading("\ud83d")
    page.data("\ud83d", pd.DataFrame({"token": ["\ud83d"]}))
    assert carried(page.html()) == {"_.csv": b'"token"\n"\\ud83d"\n'}
    assert "a\\ud83db</title>" in page.html()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("logit_lens", "logit_lens"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ('a\x00b\nc:d*?"<>|\\', "a_b_c_d_______"),
        ("  .hidden.  ", "hidden"),
        ("שלום 1", "שלום 1"),
        ("x" * 500, "x" * 80),
        ("..", "table"),
    ],
)
def test_names_of_files(name: str, file: str) -> None:
    assert tables.file_name(name) == file


def test_a_table_that_is_too_large_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_ROWS", 5)
    page = Page("x")
    page.data("long<b>", HOSTILE)
    monkeypatch.setattr(tables, "MOST_ROWS", 7)
    monkeypatch.setattr(tables, "MOST_BYTES", 100)
    page.data("heavy", HOSTILE)
    source = page.html()
    assert carried(source) == {}
    assert (
        "long&lt;b&gt;: too large for this page (7 rows, of which a page carries at most 5)"
        in source
    )
    assert re.search(
        r"heavy: too large for this page \(7 rows, \d+ bytes compressed, of 100", source
    )
    assert source.count("with --csv, to_frame() has it") == 2
    assert "DecompressionStream" not in source


def test_sizes_in_words() -> None:
    assert [tables.size_text(n) for n in (0, 999, 1000, 56_789, 4_194_304)] == [
        "0 bytes", "999 bytes", "1 kB", "56.8 kB", "4.19 MB"
    ]  # fmt: skip


def test_long_cells_are_shortened_with_the_whole_behind_them() -> None:
    page = Page("x")
    long = "<&" * 5000
    page.table([long], [[long], [Shaded(long, 0.5, "note")], ["short"]])
    source = page.html()
    assert source.count("… (10,000 characters)") == 3
    assert source.count("&lt;&amp;" * 5000) == 2  # in the titles of the cells
    assert "<td>short</td>" in source


PROMPT, FACT = "examples/prompt.txt", "examples/fact.txt"
COMMANDS = {
    "activation_patching": ["--task", "ioi", "--n", "1", "--views", "z"],
    "ablation": ["--task", "ioi", "--n", "3"],
    "attribution": ["--task", "ioi", "--n", "3"],
    "attribution_patching": ["--task", "ioi", "--n", "3"],
    "edge_attribution": ["--task", "ioi", "--n", "3"],
    "path_patching": ["--task", "ioi", "--n", "3", "--receiver", "logits"],
    "causal_tracing": [FACT, "--subject", "France"],
    "logit_lens": [PROMPT, FACT],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_pages_of_commands_carry_what_csv_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    html, csv = tmp_path / "page.html", tmp_path / "table.csv"
    arguments = [*COMMANDS[name], "--model", "mini", "--html", str(html), "--csv", str(csv)]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    main = importlib.import_module(f"analyses.{name}").main
    assert cli.status(main, name, arguments) == 0, capsys.readouterr().err
    source = html.read_text("utf-8")
    assert carried(source) == {f"{name}.csv": csv.read_bytes()}
    # Every page has its tokens, what was done about the first, and where its numbers come from.
    assert source.count('<span class="token added" ') > 0
    assert "&lt;|endoftext|&gt; prepended" in source
    for part in ("<dt>weights (sha256)</dt><dd>", "float32 on cpu", f"analyses.{name} ", "torch 2"):
        assert part in source, part


# ------------------------------------------------------------------ in a browser


def test_the_browser_hands_over_the_same_bytes(browser: Browser, tmp_path: Path) -> None:
    page = Page("x")
    page.data("first", HOSTILE[:2])
    page.data('</script>"quoted"', HOSTILE)
    page.write(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html") as opened:
        opened.click("button[data-table]", 1)
        name, data = opened.download()
        assert name == "__script__quoted_.csv"
        assert data == cli.csv_text(HOSTILE).encode()
        opened.click("button[data-table]", 0)
        assert opened.download() == ("first.csv", cli.csv_text(HOSTILE[:2]).encode())
        assert "first.csv was handed to the browser" in opened.text()
        assert opened.console == []
        assert opened.requests == []


def test_a_browser_that_cannot_unpack_says_so(browser: Browser) -> None:
    page = Page("x")
    page.data("table", HOSTILE)
    with browser.open(page.html(), before="delete window.DecompressionStream") as opened:
        opened.click("button[data-table]")
        assert "it lacks DecompressionStream" in opened.text()
        assert opened.console == []
