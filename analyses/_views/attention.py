"""How attention looks in words and in the terminal.

Figures are in `attention_figures`, the page in `attention_page`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses import cli
from analyses._attention.matrices import MATRICES
from analyses._heads.names import Head
from analyses._views.words import bos_note, count

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from analyses._attention.maps import AttentionMaps
    from analyses._attention.result import AttentionDifference, AttentionPatterns

# A head's map in the terminal is for prompts that can be taken in at a glance.
_MOST_GRID = 40


def prompts(result: "AttentionMaps") -> "list[tuple[str, AttentionPatterns]]":
    """The prompts of a result, each with a line about it."""
    from analyses._attention.result import AttentionDifference, AttentionPatterns

    found: dict[str, AttentionPatterns] = {}
    if isinstance(result, AttentionDifference):
        found = {"First: ": result.first, "Second: ": result.second}
    elif isinstance(result, AttentionPatterns):
        found = {"": result}
    read_by = {what: _read_by(prompt) for what, prompt in found.items()}
    several = len(set(read_by.values())) > 1
    return [
        (
            f"{what}{count(prompt.n_tokens, 'token')}, {bos_note(prompt.prepend_bos)}"
            f"{f', read by {read_by[what]}' if several else ''}",
            prompt,
        )
        for what, prompt in found.items()
    ]


def _read_by(prompt: "AttentionPatterns") -> str:
    return f"{prompt.provenance.model} in {prompt.provenance.dtype}"


def second_reader(result: "AttentionMaps") -> str | None:
    """The model that read the second prompt of a difference, where it may be another one."""
    from analyses._attention.result import AttentionDifference

    if not isinstance(result, AttentionDifference):
        return None
    first, second = result.first.provenance, result.second.provenance
    if replace(first, call="") == replace(second, call=""):
        return None
    weights = second.weights_sha256 or "not hashed"
    return f"{_read_by(result.second)} on {second.device}, weights {weights}; {second.call}"


def token_labels(result: "AttentionMaps", width: int | None = None) -> list[str]:
    """The tokens at `result.positions`, for reading; of a difference both where they differ."""
    labels = []
    for position in result.positions:
        there = [cli.visible(tokens[position]) for tokens in result.token_columns().values()]
        if width is not None:
            there = [cli.shorten(token, width) for token in there]
        labels.append("|".join(dict.fromkeys(there)))
    return labels


def labels(result: "AttentionMaps") -> list[str]:
    """See `AttentionMaps.label`, of all positions."""
    tokens = token_labels(result)
    return [f"{position} {one}" for position, one in zip(result.positions, tokens, strict=True)]


def title(result: "AttentionMaps", matrix: str) -> str:
    """What the numbers of a matrix are called."""
    kind = MATRICES[matrix].title
    return f"difference of {kind}" if result.signed else kind


def is_share(result: "AttentionMaps", matrix: str) -> bool:
    """Whether numbers go from 0 to 1 and colours show them as they are."""
    return matrix == "pattern" and not result.signed


def drawn(values: "Tensor", result: "AttentionMaps", matrix: str) -> "Tensor":
    """A matrix with NaN where nothing is to be drawn."""
    values = values.masked_fill(~values.isfinite(), math.nan)
    return values.masked_fill(~result.shown, math.nan) if MATRICES[matrix].causal else values


# ------------------------------------------------------------------ in a line or two


def patterns_repr(result: "AttentionPatterns") -> str:
    """See `AttentionPatterns.__repr__`."""
    lines = [
        f"AttentionPatterns({result.provenance.model}, {_heads_line(result)}, "
        f"{_tokens_line(result)}, {bos_note(result.prepend_bos)})"
    ]
    if result.hooked:
        lines.append(f"  functions listened at {', '.join(result.hooked)}")
    return "\n".join([*lines, *_best_lines(result)])


def difference_repr(result: "AttentionDifference") -> str:
    """See `AttentionDifference.__repr__`."""
    first = f"AttentionDifference({result.provenance.model}, {_heads_line(result)}, "
    lines = [f"{first}{_tokens_line(result)}; first minus second)"]
    for what, one in (("first", result.first), ("second", result.second)):
        text = cli.shorten("".join(map(cli.visible, one.str_tokens)), 100)
        by = "" if second_reader(result) is None else f" (read by {_read_by(one)})"
        lines.append(f"  {what:6} {text}{by}")
    return "\n".join([*lines, *_best_lines(result)])


def _heads_line(result: "AttentionMaps") -> str:
    n = len(result.heads)
    every = n == result.n_layers * result.n_heads
    return f"{'all ' if every else ''}{count(n, 'head')}"


def _tokens_line(result: "AttentionMaps") -> str:
    tokens, kept = count(result.n_tokens, "token"), len(result.positions)
    return tokens if kept == result.n_tokens else f"{kept} of {tokens}"


def _best_lines(result: "AttentionMaps", most: int = 5) -> list[str]:
    """The strongest links of a few heads."""
    lines = []
    some = result.heads if len(result.heads) <= most else result.busiest()[:most]
    for head in some:
        one = result.select(heads=head)
        links = [link_text(row, "pattern", result) for row in one.links(2).to_dict("records")]
        lines.append(f"  {head}: {'; '.join(links) or 'no link but to the first token'}")
    if len(result.heads) > most:
        lines.append(f"  ... and {len(result.heads) - most} more heads")
    return lines


def number(value: float, result: "AttentionMaps", matrix: str) -> str:
    """A number of a matrix, in few characters."""
    sign = "+" if result.signed else ""
    if matrix == "pattern":
        return f"{value:{sign}z.3f}"
    return f"{value:{sign}z.2f}"


def link_text(row: dict[str, Any], matrix: str, result: "AttentionMaps", width: int = 14) -> str:
    """One row of `links` in a line: `14 ·to → 2 ·Mary 0.469`."""
    ends = []
    for axis in ("query", "key"):
        tokens = [row[f"{prefix}{axis}_token"] for prefix in result.token_columns()]
        shown = "|".join(dict.fromkeys(cli.shorten(cli.visible(token), width) for token in tokens))
        ends.append(f"{row[axis]} {shown}")
    return f"{' → '.join(ends)} {number(row[matrix], result, matrix)}"


# ------------------------------------------------------------------ the terminal


def show(
    result: "AttentionMaps",
    console: "Console",
    top_k: int = 3,
    matrix: str = "pattern",
    *,
    skip_first: bool = True,
) -> None:
    """Print a result: tokens, the strongest links of each head, and of a single head its map."""
    for note, prompt in prompts(result):
        console.print(f"{note}:", style="dim", soft_wrap=True)
        console.print(" ".join(map(cli.visible, prompt.str_tokens)), soft_wrap=True)
        if prompt.hooked:
            console.print(f"functions listened at {', '.join(prompt.hooked)}")
    if len(result.positions) < result.n_tokens:
        console.print(f"of these, positions {', '.join(map(str, result.positions))}", style="dim")
    console.print()
    console.print(links_note(result, matrix, skip_first=skip_first))
    labels, columns = _links_columns(result, top_k, matrix, skip_first)
    if columns:
        cli.print_table(console, labels, columns, "ranks")
    else:
        console.print("no link but to the first token")
    if len(result.heads) == 1:
        _show_map(result, console, matrix)
    cli.print_scale(
        console, "attention" if is_share(result, matrix) else "share of the largest of each table"
    )


def links_note(result: "AttentionMaps", matrix: str, *, skip_first: bool) -> str:
    """What a table of links shows and what it leaves out, in a sentence."""
    what = f"strongest links of each head, query → key: {title(result, matrix)}"
    if result.signed:
        what += ", first minus second prompt"
    if skip_first and result.positions[0] == 0:
        what += "; links to position 0 left out"
        if not result.signed:
            what += ", where heads rest (rest: mean share of the queries after it)"
    return what


def rest(result: "AttentionMaps") -> list[float | None]:
    """Of each head the mean attention to position 0 of the queries after it; None where there is
    none, and in a difference."""
    if result.signed or result.positions[0] != 0 or len(result.positions) == 1:
        return [None] * len(result.heads)
    return result.matrix("pattern")[:, 1:, 0].mean(-1).tolist()


class Links(NamedTuple):
    """The strongest links of each head, ready to be shown.

    Attributes:
        rows: per head, its rows of `AttentionMaps.links`.
        rest: per head, its share of attention to position 0, where that was left out; else empty.
        limit: the number that gets the full colour.
    """

    rows: list[list[dict[str, Any]]]
    rest: list[float]
    limit: float


def links(result: "AttentionMaps", top_k: int, matrix: str, skip_first: bool) -> Links:
    """The strongest links of each head."""
    rows: dict[Head, list[dict[str, Any]]] = {head: [] for head in result.heads}
    for row in result.links(top_k, matrix, skip_first=skip_first).to_dict("records"):
        rows[Head(row["layer"], row["head"])].append(
            {str(name): value for name, value in row.items()}
        )
    shares = [share for share in rest(result) if share is not None]
    limit = 1.0
    if not is_share(result, matrix):
        sizes = [abs(row[matrix]) for of_head in rows.values() for row in of_head]
        limit = max(filter(math.isfinite, sizes), default=1.0) or 1.0
    return Links(list(rows.values()), shares if skip_first else [], limit)


def _links_columns(
    result: "AttentionMaps", top_k: int, matrix: str, skip_first: bool
) -> tuple[list[cli.Column], list[cli.Column]]:
    """The table of links, a row per head."""
    found = links(result, top_k, matrix, skip_first)
    labels = [cli.Column("head", [cli.Cell(str(head)) for head in result.heads])]
    if found.rest:
        labels.append(cli.Column("rest", [cli.Cell(f"{x:.2f}", x) for x in found.rest]))
    columns = []
    for rank in range(max(map(len, found.rows))):
        cells = [
            cli.Cell(link_text(rows[rank], matrix, result), abs(rows[rank][matrix]) / found.limit)
            if rank < len(rows)
            else cli.Cell("")
            for rows in found.rows
        ]
        columns.append(cli.Column(f"rank {rank}", cells))
    return labels, columns


def _show_map(result: "AttentionMaps", console: "Console", matrix: str) -> None:
    """One head as a grid, where the prompt is short enough."""
    n = len(result.positions)
    console.print()
    if n > _MOST_GRID:
        console.print(
            f"{n} x {n} cells are too many for a grid here: --html shows them, --positions "
            f"chooses at most {_MOST_GRID}",
            style="dim",
        )
        return
    values = drawn(result.of_heads(matrix, [0])[0], result, matrix).tolist()
    hundredths = matrix == "pattern"
    unit = " in hundredths" if hundredths else ""
    later = "" if MATRICES[matrix].causal else " (keys after the query included)"
    console.print(
        f"head {result.heads[0]}: {title(result, matrix)}{unit}, queries down, keys across{later}"
    )
    most = max((abs(x) for row in values for x in row if math.isfinite(x)), default=1.0) or 1.0
    limit = 1.0 if is_share(result, matrix) else most
    names, tokens = labels(result), token_labels(result, 5)
    columns = []
    for key, token in enumerate(tokens):
        cells = []
        for row in values:
            value = row[key]
            if math.isnan(value):
                cells.append(cli.Cell(""))
                continue
            text = f"{100 * value:z.0f}" if hundredths else f"{value:z.1f}"
            cells.append(cli.Cell(text, abs(value) / limit))
        columns.append(_right(f"{result.positions[key]}\n{token}", cells))
    rows = cli.Column("query", [cli.Cell(cli.shorten(name, 18)) for name in names])
    cli.print_table(console, [rows], columns, "keys")


def _right(header: str, cells: Sequence[cli.Cell]) -> cli.Column:
    from rich.cells import cell_len

    lines = header.split("\n")
    wide = max(max(map(cell_len, lines)), *(len(cell.text) for cell in cells))
    return cli.Column(
        "\n".join(" " * (wide - cell_len(line)) + line for line in lines),
        [cell._replace(text=cell.text.rjust(wide)) for cell in cells],
    )
