"""How results of weights look: one description of a result, shown as a page or in the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from analyses import cli, report

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from rich.console import Console


class Shade(NamedTuple):
    """A cell of a table with a background.

    Attributes:
        text: what it says.
        shade: how strong, 0 to 1.
        sign: 1 or -1 for red or blue on a page; 0 for neither.
    """

    text: str
    shade: float
    sign: int = 0


Text = str | Shade


class Table(NamedTuple):
    """A table.

    Attributes:
        title: stands above it.
        headers: of the columns, of which the first `labels` name a row.
        rows: a cell for each header.
        labels: how many columns name a row: they are repeated where a terminal folds the table.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Text]]
    labels: int = 1


@dataclass(frozen=True)
class View:
    """What there is to see of a result.

    Attributes:
        title: of the result.
        lead: the question in a sentence or two.
        notes: what one has to know to read it.
        figures: plotly figures, each with its caption.
        tables: to read.
        frames: to download, by name; the last is the result's own.
    """

    title: str
    lead: str
    notes: Sequence[str] = ()
    figures: "Sequence[tuple[go.Figure, str]]" = ()
    tables: Sequence[Table] = ()
    frames: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)


def page(views: Sequence[View], provenance: report.Provenance) -> report.Page:
    """A page with one or more results of one model."""
    first = views[0]
    found = report.Page(f"{first.title}: {provenance.model}", first.lead)
    for index, view in enumerate(views):
        if index:
            found.heading(view.title)
            found.text(view.lead)
        for note in view.notes:
            found.text(note)
        for figure, caption in view.figures:
            found.figure(figure, caption)
        for table in view.tables:
            found.subheading(table.title)
            if table.rows:
                found.table(table.headers, [[_cell(cell) for cell in row] for row in table.rows])
            else:
                found.text("Nothing.")
        for name, frame in view.frames.items():
            found.data(name, frame)
    found.provenance(provenance)
    return found


def _cell(cell: Text) -> str | report.Shaded:
    if isinstance(cell, Shade):
        return report.Shaded(cell.text, cell.shade, sign=cell.sign)
    return cell


def show(view: View, console: "Console") -> None:
    """Print a result's tables."""
    console.print()
    console.print(view.lead)
    for note in view.notes:
        console.print(note, style="dim")
    for table in view.tables:
        console.print()
        console.print(table.title, style="bold")
        if not table.rows:
            console.print("nothing")
            continue
        columns = [
            cli.Column(header, [_printed(row[i]) for row in table.rows])
            for i, header in enumerate(table.headers)
        ]
        cli.print_table(console, columns[: table.labels], columns[table.labels :], "columns")


def _printed(cell: Text) -> cli.Cell:
    return cli.Cell(cell.text, cell.shade) if isinstance(cell, Shade) else cli.Cell(cell)


def token_list(tokens: Sequence[str]) -> str:
    """Several tokens in one cell."""
    return "  ".join(cli.visible(token) for token in tokens)


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash for one that is not there."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
