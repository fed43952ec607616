"""The command line: what it prints, what it writes, and how it says that something is wrong."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from analyses import cli
from analyses.logit_lens import main
from interp import sources
from interp.weights import DTYPES

ROOT = Path(__file__).parents[1]
PROMPT = "When Mary and John went to the store, John gave a drink to"


class Outcome:
    """Status and streams of one command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    """`command(*arguments, stdin=b"")`: run the logit lens in this process."""

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        given = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", ["logit_lens", *given])
        status = cli.status(main, "python -m analyses.logit_lens", given)
        out, err = capsys.readouterr()
        return Outcome(status, out, err)

    return run


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT + "\n", encoding="utf-8")
    return path


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, on a machine whose Hub does not answer."""
    return subprocess.run(
        [sys.executable, "-m", "analyses.logit_lens", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "COLUMNS": "100"},
        text=True,
        encoding="utf-8",
        capture_output=True,
        timeout=120,
        **options,
    )


# ------------------------------------------------------------------ what it prints and writes


def test_the_main_job(mini: object, prompt: Path) -> None:
    run = shell(prompt)
    assert run.returncode == 0, run.stderr
    first, *rest = run.stdout.splitlines()
    assert first.startswith("model: mini (the bundled model: no --model given")
    assert "HF_HUB_OFFLINE is set" in first
    assert run.stderr == ""
    assert "\x1b" not in run.stdout  # no colours outside a terminal
    assert max(map(len, rest)) <= 100
    assert "<|endoftext|> When ·Mary ·and ·John" in run.stdout
    assert "<|endoftext|> prepended; --no-prepend-bos leaves it out" in run.stdout
    assert "3.resid_post" in run.stdout


def test_every_output(mini: Any, command: Any, prompt: Path, tmp_path: Path) -> None:
    html, csv, data = (tmp_path / f"out.{end}" for end in ("html", "csv", "json"))
    other = tmp_path / "other.txt"
    other.write_text("Mary", encoding="utf-8")
    run = command(prompt, other, "--model", "mini", "--targets", " Mary", "--targets", " John",
                  "--positions", "0,3,-1", "--top-k", 3, "--points", "resid_mid, mlp_out",
                  "--html", html, "--csv", csv, "--json", data)  # fmt: skip
    assert run.status == 1
    assert run.err == (
        f"error: {other}: position 3 is out of range: the prompt has 2 tokens, 0 to 1 (or -2 to "
        "-1)\n"
    )
    run = command(prompt, other, "--model", "mini", "--targets", " Mary", "--targets", " John",
                  "--positions", "0,-1", "--top-k", 3, "--points", "resid_mid, mlp_out",
                  "--html", html, "--csv", csv, "--json", data)  # fmt: skip
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith("model: mini (as asked)\n")
    assert run.out.index(str(prompt)) < run.out.index(str(other))

    frame = pd.read_csv(csv, keep_default_na=False)
    assert set(frame["source"]) == {str(prompt), str(other)}
    assert set(frame["point"]) == {"resid_mid", "mlp_out"}
    # prompts x positions x points x layers x numbers
    assert len(frame) == 2 * 2 * 2 * mini.cfg.n_layers * (2 + 3 * 2 + 2 * 2)

    results = json.loads(data.read_text(encoding="utf-8"))
    assert [result["source"] for result in results] == [str(prompt), str(other)]
    assert results[1]["prompts"][0][0]["token"] == "<|endoftext|>"
    assert results[0]["lens"][0]["targets"][0]["token"] == " Mary"
    assert re.fullmatch("[0-9a-f]{64}", results[0]["provenance"]["weights_sha256"])
    assert "--positions 0,-1" in results[0]["provenance"]["call"]

    page = html.read_text(encoding="utf-8")
    assert page.count("<figure>") == 4  # of each prompt the heat map and the targets
    assert results[0]["provenance"]["weights_sha256"] in page


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_data_on_standard_output_is_nothing_but_data(
    mini: object, command: Any, prompt: Path, option: str
) -> None:
    run = command(prompt, "--model", "mini", option, "-")
    assert run.status == 0
    assert run.err.startswith("model: mini (as asked)")
    if option == "--json":
        assert json.loads(run.out)[0]["source"] == str(prompt)
    else:
        assert len(pd.read_csv(io.StringIO(run.out))) > 0


def test_standard_input(mini: object, command: Any) -> None:
    run = command("-", "--model", "mini", "--no-prepend-bos", stdin=b"When Mary\n")
    assert run.status == 0
    assert "standard input" in run.out
    assert "2 tokens (<|endoftext|> not prepended; --prepend-bos adds it)" in run.out


def test_grid_folds_and_says_so(mini: object, command: Any, prompt: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    run = command(prompt, "--model", "mini", "--positions", "all")
    assert run.status == 0
    assert re.search(r"15 positions, folded into \d blocks to fit a width of 70", run.out)
    # The model and the path of the prompt are never cut.
    table = [line for line in run.out.splitlines()[1:] if line != str(prompt)]
    assert max(map(len, table)) <= 70
    heads = [line.split()[1:] for line in run.out.splitlines() if line.startswith("point")]
    seen = [number for head in heads for number in head[::2]]
    assert seen == [str(position) for position in range(15)]


HOSTILE = [
    "\r",
    "\n",
    "\r\n",
    '"',
    ",",
    'a\r,"b',
    "",
    "NA",
    "nan",
    " ",
    "\\",
    "\x00",
    "\x0b",
    "\u2028",
    "#",
]


def test_csv_reads_back_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame({"token": HOSTILE, "value": [0.1] * len(HOSTILE)})
    path = tmp_path / "x.csv"
    cli.write_text(str(path), cli.csv_text(frame))
    pd.testing.assert_frame_equal(pd.read_csv(path, keep_default_na=False), frame)
    with path.open(newline="", encoding="utf-8") as file:
        assert [row["token"] for row in csv.DictReader(file)] == HOSTILE


def test_a_prompt_of_line_ends_as_csv(mini: Any, command: Any, tmp_path: Path) -> None:
    odd = tmp_path / "odd\r.txt"
    odd.write_bytes(b'a\rb\r\n,"\r')
    path = tmp_path / "x.csv"
    run = command(odd, "--model", "mini", "--positions", "all", "--csv", path)
    assert run.status == 0, run.err
    tokens = mini.to_str_tokens('a\rb\r\n,"\r')
    assert "\r" in tokens
    frame = pd.read_csv(path, keep_default_na=False)
    assert list(frame.groupby("position")["token"].first()) == tokens


# ------------------------------------------------------------------ what goes wrong


def bad(name: str, content: bytes) -> Any:
    def make(tmp_path: Path) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


def roundabout(name: str) -> Any:
    return lambda tmp_path: tmp_path / ".." / tmp_path.name / name


ERRORS: list[tuple[str, list[Any] | None, int, str]] = [
    ("missing file", ["promt.txt"], 1, r"no file .*promt\.txt.*Did you mean 'prompt\.txt'"),
    ("missing folder", ["no/prompt.txt"], 1, r"there is no file .*\(there is no folder .*no\)"),
    ("a folder", ["."], 1, "is a folder; a prompt file was expected"),
    ("empty file", [bad("e.txt", b"")], 1, r"e\.txt is empty; a prompt was expected"),
    ("one newline", [bad("e.txt", b"\n")], 1, r"e\.txt is empty"),
    ("not UTF-8", [bad("b.txt", b"caf\xe9 au lait")], 1, r"b\.txt is not UTF-8: byte 0xe9 at .* 3"),
    ("byte order mark", [bad("b.txt", b"\xef\xbb\xbfMary")], 1, "begins with a byte order mark"),
    ("one good, one bad", ["prompt.txt", "gone.txt"], 1, r"there is no file .*gone\.txt"),
    ("stdin twice", ["-", "-"], 1, r"standard input \(-\) can be read only once"),
    ("no file", None, 2, "Missing argument 'FILE'"),
    ("unknown option", ["prompt.txt", "--topk", "3"], 2, "No such option: --topk.*--top-k.*--help"),
    ("no number", ["prompt.txt", "--top-k", "x"], 2, "Invalid value for '--top-k': .*integer"),
    ("unknown model", ["prompt.txt", "--model", "gpt22"], 1, "gpt22"),
    ("no such folder", ["prompt.txt", "--model", "./nowhere"], 1, "no such folder: ./nowhere"),
    ("no network", ["prompt.txt", "--model", "gpt2-xl"], 1, "gpt2-xl"),
    ("dtype", ["prompt.txt", "--dtype", "float8"], 1, "unknown dtype 'float8'.* Expected float32"),
    ("device", ["prompt.txt", "--device", "gpu"], 1, "no such device here: 'gpu'; there is cpu"),
    ("meta", ["prompt.txt", "--device", "meta"], 1, "no such device here: 'meta'"),
    ("positions", ["prompt.txt", "--positions", "x"], 1, "expected last, all, or a list such as"),
    ("html folder", ["prompt.txt", "--html", "no/x.html"], 1, "there is no folder no"),
    ("csv is a folder", ["prompt.txt", "--csv", "."], 1, "this is a folder"),
    ("html to stdout", ["prompt.txt", "--html", "-"], 1, "--html needs a path"),
    ("same path", ["prompt.txt", "--csv", "x", "--json", "./x"], 1, "--csv and --json would both"),
    ("another spelling", ["prompt.txt", "--csv", "x", "--json", roundabout("x")], 1,
     "--csv and --json would both write to"),
    ("own prompt", ["prompt.txt", "--csv", "prompt.txt"], 1,
     r"^error: --csv prompt\.txt would overwrite the prompt file prompt\.txt$"),
    ("own prompt too", ["-", "prompt.txt", "--html", roundabout("prompt.txt")], 1,
     "--html .* would overwrite the prompt file prompt.txt"),
    ("both stdout", ["prompt.txt", "--csv", "-", "--json", "-"], 1, "would both write to -"),
]  # fmt: skip

MINI_ERRORS = [
    ("too long", [bad("l.txt", b"Mary " * 400)], r"l\.txt: text has 40\d tokens.* at most 256"),
    ("target", ["prompt.txt", "--targets", " Maryland, and John"],
     r"' Maryland, and John' is \d tokens, not one: \[' Mary"),
    ("top_k 0", ["prompt.txt", "--top-k", "0"], "top_k=0 is out of range: .* 1 to 8192"),
    ("top_k", ["prompt.txt", "--top-k", "9000"], "top_k=9000 is out of range"),
    ("position", ["prompt.txt", "--positions", "0,15"], "position 15 .* 15 tokens, 0 to 14"),
    ("negative", ["prompt.txt", "--positions", "-16"], "position -16 is out of range"),
    ("twice", ["prompt.txt", "--positions", "14,-1"], "positions 14 and -1 are the same token"),
    ("point", ["prompt.txt", "--points", "resid_pst"], "'resid_pst'. Did you mean 'resid_post'"),
    ("bos twice", [bad("b.txt", b"<|endoftext|>Mary")], "already begins with .*prepend_bos=False"),
]  # fmt: skip


def check_error(run: Outcome, status: int, message: str) -> None:
    assert run.status == status
    assert re.search(message, run.err), run.err
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1  # one line
    assert "Traceback" not in run.err


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "hub_answers", lambda *_: False)
    monkeypatch.setattr(sources, "is_cached", lambda *_: False)


@pytest.mark.parametrize(
    ("arguments", "status", "message"), [case[1:] for case in ERRORS], ids=[c[0] for c in ERRORS]
)
def test_error(
    command: Any, prompt: Path, tmp_path: Path, monkeypatch: Any, offline: None,
    arguments: list[Any] | None, status: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    given = [a(tmp_path) if callable(a) else a for a in arguments or []]
    check_error(command(*given), status, message)
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"e.txt", "b.txt"}


@pytest.mark.parametrize(
    ("arguments", "message"), [case[1:] for case in MINI_ERRORS], ids=[c[0] for c in MINI_ERRORS]
)
def test_error_of_the_analysis(
    mini: object, command: Any, prompt: Path, tmp_path: Path, monkeypatch: Any,
    arguments: list[Any], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [a(tmp_path) if callable(a) else a for a in arguments]
    check_error(command(*given, "--model", "mini", "--json", "out.json"), 1, message)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_the_prompt_are_not_overwritten(
    command: Any, prompt: Path, tmp_path: Path, link: Any
) -> None:
    link(prompt, tmp_path / "link")
    run = command(prompt, "--json", tmp_path / "link")
    check_error(run, 1, r"--json .*link would overwrite the prompt file .*prompt\.txt")
    assert prompt.read_text() == PROMPT + "\n"


def test_a_folder_one_may_not_write_to(
    command: Any, prompt: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    run = command(prompt, "--csv", tmp_path / "x.csv")
    check_error(run, 1, r"--csv .*x\.csv: no permission to write there")


def test_errors_leave_the_shell_with_one_line(prompt: Path) -> None:
    run = shell(prompt, "--model", "gpt2-large")
    check_error(Outcome(run.returncode, run.stdout, run.stderr), 1, "gpt2-large")
    assert run.stdout == "model: gpt2-large (as asked)\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_ctrl_c(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "analyses.logit_lens", str(pipe)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background jobs ignore Ctrl-C, and so would all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with pipe.open("wb"):  # waits until the command reads, in the middle of its work
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def broken() -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        cli.status(broken, "x", [])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("no such thing"), "no such thing"),
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory"),
        (RuntimeError("first\n\n  second"), "first; second"),
        (ValueError(), "ValueError"),
        (MemoryError("tried 8 GiB"), "not enough memory. tried 8 GiB"),
    ],
)
def test_messages_are_one_line(capsys: Any, error: Exception, line: str) -> None:
    def command() -> None:
        raise error

    assert cli.status(command, "x", []) == 1
    assert capsys.readouterr().err == f"error: {line}\n"


def test_files_are_written_before_tables_are_shown(
    command: Any, prompt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analyses._views.logit_lens.show", interrupted)
    assert command(prompt, "--model", "mini", "--csv", tmp_path / "table.csv").status == 130
    assert (tmp_path / "table.csv").exists()


# ------------------------------------------------------------------ help


def test_help_comes_without_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['logit_lens', '--help']\n"
        "try: runpy.run_module('analyses.logit_lens', run_name='__main__')\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.splitlines()[-2:] == ["status 0", "False False"], run.stderr
    plain = re.sub(r"[│\s]+", " ", run.stdout)
    assert "One newline at the very end of a file is left out" in plain
    for option in ("--model", "--device", "--dtype", "--top-k", "--html", "--csv", "--json",
                   "--targets", "--points", "--positions", "--no-prepend-bos"):  # fmt: skip
        assert option in plain


# ------------------------------------------------------------------ choosing the model


@pytest.mark.parametrize(
    ("name", "cached", "answers", "expected"),
    [
        (None, True, False, "model: gpt2 (no --model given; it is in the local Hub cache)"),
        (None, False, True, "model: gpt2 (no --model given; not in the local Hub cache, but the"),
        (None, False, False, "model: mini (the bundled model: no --model given, gpt2 is not in"),
        ("gpt2", False, False, "model: gpt2 (as asked)"),
        ("gpt2-xl", True, True, "model: gpt2-xl (as asked)"),
    ],
)
def test_choice(
    monkeypatch: Any, name: str | None, cached: bool, answers: bool, expected: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(sources, "is_cached", lambda *given: asked.append(given) or cached)
    monkeypatch.setattr(sources, "hub_answers", lambda *given: asked.append(given) or answers)
    assert str(cli.choose_model(name)).startswith(expected)
    if name is not None:
        assert asked == []  # a model that the user named needs no look-up
    elif cached:
        assert asked == [("gpt2",)]
    else:
        assert asked[1] == ("gpt2", cli.HUB_TIMEOUT_S)
        assert cli.HUB_TIMEOUT_S <= 5


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a", "a"),
        (b"a\n", "a"),
        (b"a\n\n", "a\n"),
        (b"a\r\n", "a"),
        (b"a\r\nb \n", "a\r\nb "),
        (b" a ", " a "),
        ("é😀\n".encode(), "é😀"),
        (b"\n\n", "\n"),
    ],
)
def test_prompt_is_the_file_less_one_newline(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "p").write_bytes(content)
    assert cli.read_prompts([str(tmp_path / "p")]) == [(str(tmp_path / "p"), text)]


def test_odd_file_names_can_be_printed() -> None:
    assert cli.printable_path("a\udcff\x1b[31m\n") == "a\\udcff\\x1b[31m\\n"
    assert cli.printable_path("é 日本") == "é 日本"


def test_dtypes_are_those_of_models() -> None:
    # Written twice: what `--help` shows must not import torch.
    assert tuple(DTYPES) == cli.DTYPES


# ------------------------------------------------------------------ tokens and tables


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "·Mary"),
        ("\n\n", "⏎⏎"),
        ("\t", "⇥"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202e", "\\u202e"),
        ("\u200b", "\\u200b"),
        ("\u0301", "◌\u0301"),
        ("\xa0", "\\xa0"),
        ("日本", "日本"),
        ("", ""),
    ],
)
def test_visible(token: str, shown: str) -> None:
    assert cli.visible(token) == shown


def test_shorten_counts_terminal_cells() -> None:
    assert cli.shorten("abcdef", 6) == "abcdef"
    assert cli.shorten("abcdefg", 6) == "abcde…"
    assert cli.shorten("日本語日本語", 6) == "日本…"


@pytest.mark.parametrize(
    ("p", "shown"), [(1.0, "1.000"), (0.0005, "0.001"), (0.0004, "4e-04"), (0.0, "0e+00")]
)
def test_probability(p: float, shown: str) -> None:
    assert cli.probability(p) == shown
    assert len(shown) == 5


def table(width: int, **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, **options)
    labels = [cli.Column("point", [cli.Cell("0.resid_pre"), cli.Cell("0.resid_mid")])]
    columns = [
        cli.Column(f"{i} [bold]", [cli.Cell(f"token{i} 07", 0.02), cli.Cell(f"[red]{i}", 0.9)])
        for i in range(5)
    ]
    cli.print_table(console, labels, columns, "positions")
    return out.getvalue()


@pytest.mark.parametrize("width", [30, 41, 42, 43, 60, 66, 67, 68, 200])
def test_tables_lose_nothing_at_any_width(width: int) -> None:
    shown = table(width)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    for i in range(5):
        for text in (f"{i} [bold]", f"token{i} 07", f"[red]{i}"):
            assert shown.count(text) == 1
    assert "…" not in shown
    blocks = shown.count("point")
    assert shown.count("0.resid_mid") == blocks
    said = f"5 positions, folded into {blocks} blocks to fit a width of {width}"
    assert (said in " ".join(shown.split())) == (blocks > 1)


def test_tables_narrower_than_a_column_wrap() -> None:
    shown = table(14)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 14
    assert shown.count("t") >= 2 * 5


def test_colour_only_where_it_stands_out() -> None:
    shown = table(200, force_terminal=True, color_system="truecolor")
    assert re.search(r"\x1b\[38;2;0;0;0;48;2;\d+;\d+;\d+m\[red\]0", shown)
    assert not re.search(r"m *token0", shown.replace("\x1b[0m", ""))
