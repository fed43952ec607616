"""Tables in a page: those to read, and those to download as CSV."""

import base64
import gzip
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from analyses import cli
from analyses._page.text import clipped, html_text

if TYPE_CHECKING:
    import pandas as pd

# What a page carries of each table at most: so many rows, then so many bytes, compressed.
MOST_ROWS = 100_000
MOST_BYTES = 4 * 2**20
_LONGEST_NAME = 80


class Shaded(NamedTuple):
    """A table cell, or a token, with a background.

    Attributes:
        text: what it says.
        shade: how strong the background is, 0 to 1; nan for none.
        note: shown when the pointer rests on it.
        sign: 1 or -1 for a number that is above or below what figures leave uncoloured: the
            background is then of their red or blue; 0 for any other.
        opens: a head such as "3.1", which a click opens in the page's maps of heads.
    """

    text: str
    shade: float
    note: str = ""
    sign: int = 0
    opens: str = ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str | Shaded]]) -> str:
    """A table as HTML.

    Raises:
        ValueError: a row with more or fewer cells than there are headers. TypeError: a cell that is
            no string.
    """
    rows = [_checked_row(headers, row) for row in rows]
    head = "".join(f'<th scope="col">{clipped(header)[0]}</th>' for header in headers)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _checked_row(headers: Sequence[str], row: Sequence[str | Shaded]) -> Sequence[str | Shaded]:
    if isinstance(row, str) or len(row) != len(headers):
        raise ValueError(
            f"a row of a table has a cell for each of {list(headers)!r}; this one is {row!r}"
        )
    for header, cell in zip(headers, row, strict=True):
        if not isinstance(cell, str | Shaded):
            raise TypeError(
                f"a cell is a string or Shaded; under {header!r} stands {cell!r}, "
                f"{type(cell).__name__}"
            )
    return row


def _cell(cell: str | Shaded) -> str:
    if isinstance(cell, str):
        text, whole = clipped(cell)
        note = f' title="{html_text(whole)}"' if whole else ""
        return f"<td{note}>{text}</td>"
    name, percent = shading(cell)
    named = f' class="{name}"' if name else ""
    text, whole = clipped(cell.text)
    if cell.opens:
        text = f'<button type="button" data-open="{html_text(cell.opens)}">{text}</button>'
    note = "\n".join(filter(None, (cell.note, whole)))
    return f'<td{named} style="--shade:{percent}%" title="{html_text(note)}">{text}</td>'


def shading(cell: Shaded) -> tuple[str, int]:
    """The class of a background, and how strong it is, in percent."""
    shade = 0.0 if math.isnan(cell.shade) else min(max(cell.shade, 0.0), 1.0)
    # Red and blue stay pale enough for the ink of the page.
    percent = round((65 if cell.sign else 100) * shade)
    # Where neither ink can be read well, pure black and white still can (at least 4.6 to 1).
    ink = "strong" if percent >= 69 else "mid" if percent >= 35 else ""
    return {1: "above", -1: "below"}.get(cell.sign, ink), percent


def download(name: str, frame: "pd.DataFrame", number: int) -> tuple[str, bool]:
    """A button that hands a table over as CSV, as HTML, and whether it needs the script `data`.

    Args:
        name: of the table, and of the file without `.csv`.
        frame: the table.
        number: of this table in the page.
    """
    rows = f"{len(frame):,} row{'s'[: len(frame) != 1]}"
    if len(frame) > MOST_ROWS:
        return _left_out(name, f"{rows}, of which a page carries at most {MOST_ROWS:,}"), False
    # What no file in UTF-8 can hold is escaped, as everywhere in the page.
    text = cli.csv_text(frame).encode("utf-8", "backslashreplace")
    packed = gzip.compress(text, 6, mtime=0)
    if len(packed) > MOST_BYTES:
        size = f"{size_text(len(packed))} compressed, of {size_text(MOST_BYTES)} at most"
        return _left_out(name, f"{rows}, {size}"), False
    block = f"table-{number}"
    return (
        f'<p class="data"><button type="button" data-table="{block}" '
        f'data-file="{html_text(file_name(name))}.csv">CSV: {html_text(name)} '
        f'({rows}, {size_text(len(text))})</button> <span role="status"></span></p>'
        f'<script type="text/plain" id="{block}">{base64.b64encode(packed).decode()}</script>'
    ), True


def _left_out(name: str, why: str) -> str:
    return (
        f'<p class="data">{html_text(name)}: too large for this page ({why}). '
        "The command writes it with --csv, to_frame() has it in Python.</p>"
    )


def file_name(name: str) -> str:
    """`name` with nothing in it that a file system could object to."""
    safe = "".join(c if c.isalnum() or c in " -_.+," else "_" for c in name)
    # What tells the tables of a page apart comes last, after the name of a file.
    return safe.strip(" .")[-_LONGEST_NAME:].strip(" .") or "table"


def size_text(n_bytes: int) -> str:
    """A number of bytes for reading."""
    for unit in ("bytes", "kB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000  # type: ignore[assignment]
    return f"{n_bytes:.3g} MB"
