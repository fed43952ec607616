"""What the command lines of all analyses share: options, prompts, the model, output, errors.

An analysis' `main` takes its options from here and ends in `run(main, __spec__)`. Whatever goes
wrong is one line on standard error and a non-zero status: 2 for an unknown option or a value of the
wrong type, 130 for Ctrl-C, 1 for the rest. Nothing here imports torch before it must, so `--help`
and wrong options answer at once.
"""

import csv
import math
import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.text import Text

    from analyses.report import Page
    from interp import HookedGPT2

DTYPES = ("float32", "bfloat16", "float16", "float64")
HUB_TIMEOUT_S = 3.0
STDIN = "-"
# How wide output is where no terminal says so; COLUMNS overrides it, as in every program.
PIPE_WIDTH = 120

# ------------------------------------------------------------------ options

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="Prompt files in UTF-8, one prompt each; - is standard input. One newline at the very "
        "end of a file is left out (editors put it there), everything else is the prompt.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Hub id, local folder, or mini (comes with this package). Left out: gpt2 if it is in "
        "the local Hub cache or the Hub answers at once, else mini; the first line says which.",
        metavar="NAME",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.", metavar="NAME")]
Dtype = Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.", metavar="NAME")]
TopK = Annotated[int, typer.Option(help="How many predictions to show.", metavar="N")]
PrependBos = Annotated[
    bool, typer.Option(help="Put <|endoftext|> before the prompt, as TransformerLens does.")
]
Html = Annotated[
    str | None,
    typer.Option("--html", help="Write a page to look at and hover over.", metavar="PATH"),
]
Csv = Annotated[
    str | None,
    typer.Option("--csv", help="Write a tidy table; - is standard output.", metavar="PATH"),
]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write everything as JSON; - is standard output.", metavar="PATH"),
]


class CommandError(Exception):
    """What the user has to know and can put right, in one line."""


# ------------------------------------------------------------------ running a command


def run(command: Callable[..., None], spec: ModuleSpec | None) -> NoReturn:
    """Run `command` with the arguments of this process, and exit.

    Args:
        command: a function annotated with the options of this module.
        spec: the caller's `__spec__`, for the name shown in usage lines.
    """
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    sys.exit(status(command, f"python -m {name}", sys.argv[1:]))


def status(command: Callable[..., None], name: str, arguments: Sequence[str]) -> int:
    """Run `command` and return its exit status; errors go to standard error, one line each.

    Mistakes of the user and failures of the machine come as the exceptions caught here. Anything
    else is a mistake of ours, for which the traceback is the right message.
    """
    for stream in (sys.stdout, sys.stderr):
        # A token that the terminal's encoding lacks is shown escaped rather than ending the run.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(no_args_is_help=False)(command)
    try:
        code = typer.main.get_command(app)(list(arguments), name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except (CommandError, ValueError, LookupError, OSError, RuntimeError, MemoryError) as error:
        return _report(_message(error), 1)
    except Exception as error:
        # A wrong call. Which class that is depends on typer's version: click's, or its own copy.
        if not hasattr(error, "format_message"):
            raise
        return _report(f"{error.format_message()} (see {name} --help)", 2)  # type: ignore[attr-defined]
    if code == 130:
        return _report("interrupted", 130)
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif type(error) is KeyError and error.args:
        text = str(error.args[0])  # a KeyError's own text is the repr of its message
    elif isinstance(error, MemoryError):
        text = f"not enough memory. {error}"
    else:
        text = str(error) or type(error).__name__
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


@contextmanager
def about(source: str) -> Iterator[None]:
    """Put the name of a prompt file before what goes wrong with it."""
    try:
        yield
    except (CommandError, ValueError, LookupError) as error:
        raise CommandError(f"{source}: {_message(error)}") from error


def call(spec_name: str, arguments: Sequence[str]) -> str:
    """The command as one could type it again."""
    return printable_path(shlex.join(["python", "-m", spec_name, *arguments]))


# ------------------------------------------------------------------ prompts


class Prompt(NamedTuple):
    """One prompt and where it came from."""

    source: str
    text: str


def read_prompts(files: Sequence[str]) -> list[Prompt]:
    """Read every file, `-` being standard input; exactly one newline at the end is left out.

    Raises:
        CommandError: a file that is missing, unreadable, empty or not UTF-8, or `-` twice.
    """
    if files.count(STDIN) > 1:
        raise CommandError("standard input (-) can be read only once, it was given twice")
    return [_read(file) for file in files]


def _read(file: str) -> Prompt:
    source = "standard input" if file == STDIN else printable_path(file)
    if file == STDIN:
        # Bytes, as from a file: Python's text mode would change line ends without a word.
        data = sys.stdin.buffer.read()
    else:
        path = Path(file)
        if path.is_dir():
            raise CommandError(f"{source} is a folder; a prompt file was expected")
        if not path.exists():
            raise CommandError(f"there is no file {source}{_similar(path)}")
        data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None
    if text.startswith("\ufeff"):
        raise CommandError(
            f"{source} begins with a byte order mark, which would be a token; save it as UTF-8 "
            "without one"
        )
    ending = "\r\n" if text.endswith("\r\n") else "\n"
    text = text.removesuffix(ending)
    if not text:
        raise CommandError(f"{source} is empty; a prompt was expected")
    return Prompt(source, text)


def _similar(path: Path) -> str:
    from hooks.names import nearest

    if not path.parent.is_dir():
        return f" (there is no folder {printable_path(str(path.parent))})"
    hint = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    return f".{hint}" if hint else ""


def printable_path(path: str) -> str:
    """A path as text that can be printed and written: odd bytes and control characters escaped."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else _escape(c) for c in text)


# ------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Choice:
    """Which model a command uses, and why.

    Attributes:
        name: what `HookedGPT2.from_pretrained` takes.
        why: the reason, to be shown.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"model: {self.name} ({self.why})"


def choose_model(name: str | None) -> Choice:
    """The model the user named, or else `gpt2` where it can be had, or else the bundled one.

    A model that the user named is never replaced. Without one: `gpt2` when it is in the local Hub
    cache or the Hub answers within `HUB_TIMEOUT_S` seconds, otherwise `mini`.
    """
    if name is not None:
        return Choice(name, "as asked")
    from interp import sources

    if sources.is_cached("gpt2"):
        return Choice("gpt2", "no --model given; it is in the local Hub cache")
    if sources.hub_answers("gpt2", HUB_TIMEOUT_S):
        return Choice("gpt2", "no --model given; not in the local Hub cache, but the Hub has it")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    hub = "HF_HUB_OFFLINE is set" if offline else "the Hub does not answer"
    return Choice(
        sources.MINI,
        f"the bundled model: no --model given, gpt2 is not in the local Hub cache and {hub}",
    )


def load_model(choice: Choice, *, device: str, dtype: str) -> "HookedGPT2":
    """Load the chosen model, after a check that the device and the dtype exist.

    Raises:
        CommandError: an unknown device or dtype; the message lists those there are.
        ValueError: the model cannot be loaded; says why.
    """
    from hooks.names import nearest

    if dtype not in DTYPES:
        raise CommandError(
            f"unknown dtype {dtype!r}.{nearest(dtype, DTYPES)} Expected {', '.join(DTYPES)}"
        )
    import torch

    try:
        if torch.device(device).type == "meta":
            raise ValueError("a meta device holds no numbers")
        torch.empty(0, device=device)
    except Exception:  # torch says it by AssertionError, RuntimeError, ImportError and others
        raise CommandError(
            f"no such device here: {device!r}; there is {', '.join(_devices())}"
        ) from None
    from interp import HookedGPT2

    return HookedGPT2.from_pretrained(choice.name, device=device, dtype=getattr(torch, dtype))


def _devices() -> list[str]:
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


# ------------------------------------------------------------------ output


def check_outputs(
    *, html: str | None, csv: str | None, json: str | None, inputs: Sequence[str] = ()
) -> None:
    """Refuse output paths that cannot be written, before anything is computed.

    Args:
        inputs: the files that are read, which no output may replace.

    Raises:
        CommandError: a missing folder, a folder where a file should be, no permission, the same
            file twice or one of the inputs (under whatever name), or a page on standard output.
    """
    given = {"--html": html, "--csv": csv, "--json": json}
    read = {_place(file): file for file in inputs if file != STDIN}
    seen: dict[object, str] = {}
    for option, value in given.items():
        if value is None:
            continue
        if option == "--html" and value == STDIN:
            raise CommandError("--html needs a path; only --csv and --json write to - (stdout)")
        place = STDIN if value == STDIN else _place(value)
        shown = printable_path(value)
        if place in seen:
            raise CommandError(f"{seen[place]} and {option} would both write to {shown}")
        if place in read:
            file = printable_path(read[place])
            raise CommandError(f"{option} {shown} would overwrite the prompt file {file}")
        seen[place] = option
        if value != STDIN:
            _check_writable(option, Path(value))


def _place(path: str) -> object:
    """The same for all names of one file: `z`, `a/../z`, and links to it."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _check_writable(option: str, path: Path) -> None:
    shown = printable_path(str(path))
    if not path.parent.is_dir():
        raise CommandError(f"{option} {shown}: there is no folder {path.parent}")
    if path.is_dir():
        raise CommandError(f"{option} {shown}: this is a folder; a file name was expected")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(f"{option} {shown}: no permission to write there")


def csv_text(frame: "pd.DataFrame") -> str:
    """A table as CSV that reads back the same, whatever its strings hold: all are quoted.

    Left to choose, Python 3.11 leaves a carriage return bare, and readers end the line there.
    """
    return frame.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


def write_text(path: str, text: str) -> None:
    """Write UTF-8 to a file, or to standard output for `-`."""
    if path == STDIN:
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8", newline="\n")


def write_outputs(
    console: "Console",
    *,
    html: str | None,
    page: Callable[[], "Page"],
    csv: str | None,
    frame: Callable[[], "pd.DataFrame"],
    json: str | None,
    data: Callable[[], Any],
) -> None:
    """Write the files that were asked for, and say so. What goes into them is made when needed."""
    if html:
        page().write(html)
    if csv:
        write_text(csv, csv_text(frame()))
    if json:
        write_text(json, json_text(data()))
    for path in (html, csv, json):
        if path and path != STDIN:
            console.print(f"wrote {printable_path(path)}", style="dim", soft_wrap=True)


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return {k: finite(v) for k, v in value.items()} if isinstance(value, dict) else value


def json_text(data: Any) -> str:
    """Plain data as JSON, with letters as they are."""
    return dumps(data, ensure_ascii=False, indent=1) + "\n"


def by_source(frames: Iterable[tuple[str, "pd.DataFrame"]]) -> "pd.DataFrame":
    """Tables under one another, with a first column `source`."""
    import pandas as pd

    parts = []
    for source, frame in frames:
        frame.insert(0, "source", source)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def console(*, data_on_stdout: bool = False) -> "Console":
    """Where a command prints: standard output, or standard error while that carries data.

    Colour only on a terminal. Elsewhere lines are `PIPE_WIDTH` wide unless COLUMNS is set.
    """
    from rich.console import Console

    stream = sys.stderr if data_on_stdout else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


@contextmanager
def bar(what: str, *, shown: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, where that is a terminal. Yields a function that moves it on by a
    share of the whole."""
    if not (shown and sys.stderr.isatty()):
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as display:
        task = display.add_task(what, total=1.0)
        yield lambda share: display.advance(task, share)


def progress(items: Sequence[int], what: str) -> Iterable[int]:
    """The items, with a bar on standard error where that is a terminal and there are several."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, console=Console(stderr=True), transient=True)


# ------------------------------------------------------------------ tokens and tables


def visible(token: str) -> str:
    """A token for reading: blanks as `·`, line ends as `⏎`, tabs as `⇥`, other invisibles escaped.

    Control characters never reach a terminal: a token may hold the start of an escape sequence.
    """
    shown = "".join(_VISIBLE.get(c) or (c if c.isprintable() else _escape(c)) for c in token)
    # A combining mark would sit on whatever is printed before it.
    return f"◌{shown}" if shown and unicodedata.category(shown[0]).startswith("M") else shown


_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥"}


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` terminal cells, the end replaced by `…` where it is longer."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def probability(p: float) -> str:
    """A probability in five characters."""
    return f"{p:.3f}" if p >= 0.0005 else f"{p:.0e}"


class Cell(NamedTuple):
    """One cell of a table: its text, and how strongly it is coloured (0 to 1, None for not)."""

    text: str
    shade: float | None = None


class Column(NamedTuple):
    """One column of a table."""

    header: str
    cells: Sequence[Cell]


def print_table(
    console: "Console", labels: Sequence[Column], columns: Sequence[Column], fold: str
) -> None:
    """Print a table; where it is too wide, fold it into blocks, each with the labels, and say so.

    Args:
        labels: columns repeated in every block.
        columns: the others.
        fold: what the columns are, for the line that says that they were folded.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table

    def width(column: Column) -> int:
        texts = (column.header, *(cell.text for cell in column.cells))
        return 2 + max(cell_len(line) for text in texts for line in text.split("\n"))

    room = console.width + 1 - sum(map(width, labels))  # nothing stands after the last column
    blocks: list[list[Column]] = []
    left = 0
    for column in columns:
        if not blocks or width(column) > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= width(column)
    if len(blocks) > 1:
        console.print(
            f"{len(columns)} {fold}, folded into {len(blocks)} blocks to fit a width of "
            f"{console.width}",
            style="dim",
        )
    for block in blocks:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for column in (*labels, *block):
            # Where not even one column fits, its cells grow longer rather than lose letters.
            table.add_column(shaded(column.header), overflow="fold")
        for cells in zip(*(column.cells for column in (*labels, *block)), strict=True):
            table.add_row(*(shaded(cell.text, cell.shade) for cell in cells))
        console.print()
        console.print(table)


def print_scale(console: "Console", label: str) -> None:
    """One line that shows what the colours mean, where there are colours."""
    from rich.text import Text

    if console.is_terminal and console.color_system is not None:
        steps = (shaded(f" {p:.1f} ", p) for p in (0.1, 0.3, 0.5, 0.7, 0.9))
        console.print(Text.assemble(f"{label}: ", *steps))


# A few stops of viridis (Smith & van der Walt 2015): even in lightness, readable to the
# colour-blind, and good on dark and light terminals alike as each cell brings its own background.
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_FAINT = 0.05  # cells below it stay uncoloured, so that what stands out does


def shaded(text: str, shade: float | None = None) -> "Text":
    """Text on a background from dark blue (0) over green to yellow (1), for the terminal.

    Args:
        text: what it says.
        shade: how strong, 0 to 1; None, or nearly 0: no background.
    """
    from rich.text import Text

    if shade is None or not shade >= _FAINT:
        return Text(text)
    place = min(shade, 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - low))
        for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True)
    )
    ink = "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#ffffff"
    return Text(text, style=f"{ink} on #{red:02x}{green:02x}{blue:02x}")
