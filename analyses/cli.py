"""What the command lines of all analyses share beyond `interp.command`: prompts, tables, text.

An analysis' `main` takes its options from here and ends in `run(main, __spec__)`; errors and exit
status are those of `interp.command`. Nothing here imports torch before it must, so `--help` and
wrong options answer at once.
"""

import csv
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from interp.command import (
    DTYPES,
    HUB_TIMEOUT_S,
    PIPE_WIDTH,
    STDIN,
    Choice,
    CommandError,
    Device,
    Dtype,
    Json,
    Model,
    bar,
    call,
    check_outputs,
    choose_model,
    console,
    escape,
    finite,
    in_one_line,
    json_text,
    load_model,
    printable_path,
    progress,
    run,
    status,
    write_text,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.text import Text

    from analyses.report import Page

__all__ = [
    "DTYPES",
    "HUB_TIMEOUT_S",
    "PIPE_WIDTH",
    "STDIN",
    "Cell",
    "Choice",
    "Column",
    "CommandError",
    "Csv",
    "Device",
    "Dtype",
    "Files",
    "Html",
    "Json",
    "Model",
    "PrependBos",
    "Prompt",
    "TopK",
    "about",
    "bar",
    "by_source",
    "call",
    "check_outputs",
    "choose_model",
    "console",
    "csv_text",
    "finite",
    "json_text",
    "load_model",
    "print_scale",
    "print_table",
    "printable_path",
    "probability",
    "progress",
    "read_prompts",
    "run",
    "shaded",
    "shorten",
    "status",
    "visible",
    "write_outputs",
    "write_text",
]

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

# ------------------------------------------------------------------ prompts


@contextmanager
def about(source: str) -> Iterator[None]:
    """Put the name of a prompt file before what goes wrong with it."""
    try:
        yield
    except (CommandError, ValueError, LookupError) as error:
        raise CommandError(f"{source}: {in_one_line(error)}") from error


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


# ------------------------------------------------------------------ output


def csv_text(frame: "pd.DataFrame") -> str:
    """A table as CSV that reads back the same, whatever its strings hold: all are quoted.

    Left to choose, Python 3.11 leaves a carriage return bare, and readers end the line there.
    """
    return frame.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)


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


def by_source(frames: Iterable[tuple[str, "pd.DataFrame"]]) -> "pd.DataFrame":
    """Tables under one another, with a first column `source`."""
    import pandas as pd

    parts = []
    for source, frame in frames:
        frame.insert(0, "source", source)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


# ------------------------------------------------------------------ tokens and tables


def visible(token: str) -> str:
    """A token for reading: blanks as `·`, line ends as `⏎`, tabs as `⇥`, other invisibles escaped.

    Control characters never reach a terminal: a token may hold the start of an escape sequence.
    """
    shown = "".join(_VISIBLE.get(c) or (c if c.isprintable() else escape(c)) for c in token)
    # A combining mark would sit on whatever is printed before it.
    return f"◌{shown}" if shown and unicodedata.category(shown[0]).startswith("M") else shown


_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥"}


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
