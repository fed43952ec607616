"""How attention looks: figures, and tables for the terminal. The page is in `attention_page`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses import cli, report
from analyses._attention_matrices import MATRICES
from analyses._head_names import Head

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console
    from torch import Tensor

    from analyses._attention_maps import AttentionMaps
    from analyses._attention_result import AttentionDifference, AttentionPatterns

# A montage of more cells is slow to draw and to hover over: beyond, cells stand for blocks.
_MOST_CELLS = 40_000
_MOST_TICKS = 60
# A head's map in the terminal is for prompts that can be taken in at a glance.
_MOST_GRID = 40
_WIDEST = 1340


def bos_note(prepend_bos: bool | None) -> str:
    """What happened to `<|endoftext|>`, in words."""
    if prepend_bos is None:
        return "given as token ids"
    return f"<|endoftext|> {'' if prepend_bos else 'not '}prepended"


def count(n: int, what: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{n} {what}{'s'[: n != 1]}"


def prompts(result: "AttentionMaps") -> "list[tuple[str, AttentionPatterns]]":
    """The prompts of a result, each with a line about it."""
    from analyses._attention_result import AttentionDifference, AttentionPatterns

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


def token_labels(result: "AttentionMaps", width: int | None = None) -> list[str]:
    """The tokens at `result.positions`, for reading; of a difference both where they differ."""
    labels = []
    for position in result.positions:
        there = [cli.visible(tokens[position]) for tokens in result.token_columns().values()]
        if width is not None:
            there = [cli.shorten(token, width) for token in there]
        labels.append("|".join(dict.fromkeys(there)))
    return labels


def label(result: "AttentionMaps", slot: int) -> str:
    """See `AttentionMaps.label`."""
    return f"{result.positions[slot]} {token_labels(result)[slot]}"


def title(result: "AttentionMaps", matrix: str) -> str:
    """What the numbers of a matrix are called."""
    kind = MATRICES[matrix].title
    return f"difference of {kind}" if result.signed else kind


# ------------------------------------------------------------------ figures


def head_map(result: "AttentionMaps", index: int, matrix: str) -> "go.Figure":
    """See `AttentionMaps.plot`."""
    import plotly.graph_objects as go

    values = _finite(result.of_heads(matrix, [index])[0], result, matrix)
    n = len(result.positions)
    labels = [report.plotly_text(label(result, slot)) for slot in range(n)]
    step = math.ceil(n / _MOST_TICKS)
    ticks = {
        "tickvals": list(range(0, n, step)),
        "ticktext": [
            report.plotly_text(f"{position}  {token}")
            for position, token in zip(result.positions, token_labels(result, 14), strict=True)
        ][::step],
        "showgrid": False,
    }
    where = f"<b>{result.heads[index]}</b>: %{{customdata[0]}} → %{{customdata[1]}}"
    heat = go.Heatmap(
        z=values.tolist(),
        **_colours(result, matrix, values),
        # A query has a row, a key a column; both have a name that is isolated from the arrow, or
        # words written from right to left would turn it round.
        customdata=[[[_isolated(q), _isolated(k)] for k in labels] for q in labels],
        hovertemplate=f"{where}<br>{report.plotly_text(title(result, matrix))} "
        "<b>%{z:.6g}</b><extra></extra>",
        hoverongaps=False,
    )
    figure = go.Figure(heat)
    cell = 26 if n <= 30 else 16 if n <= 60 else max(1.5, 900 / n)
    figure.update_layout(
        template=report.template(),
        title={"text": f"head {result.heads[index]}", "font": {"size": 15}},
        height=round(180 + max(n * cell, 60)),
        width=min(_WIDEST, round(290 + max(n * cell, 60))),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis=ticks | {"tickangle": -50, "title": "key"},
        yaxis=ticks | {"autorange": "reversed", "title": "query"},
    )
    return figure


def montage(result: "AttentionMaps", matrix: str) -> "go.Figure":
    """See `AttentionMaps.plot`."""
    import plotly.graph_objects as go

    layers = sorted({head.layer for head in result.heads})
    heads = sorted({head.head for head in result.heads})
    n, n_tiles = len(result.positions), len(layers) * len(heads)
    block = 1
    while n_tiles * math.ceil(n / block) ** 2 > _MOST_CELLS and block < n:
        block += 1
    side = math.ceil(n / block)
    pitch = side + max(1, round(side / 12))  # a gap between two maps
    height, width = (pitch * len(axis) - (pitch - side) for axis in (layers, heads))
    z: list[list[float | None]] = [[None] * width for _ in range(height)]
    hover: list[list[str]] = [[""] * width for _ in range(height)]
    ends = [_block_label(result, slot * block, block) for slot in range(side)]
    everything = result.matrix(matrix)
    for index, head in enumerate(result.heads):
        top, left = pitch * layers.index(head.layer), pitch * heads.index(head.head)
        tile = _pooled(_finite(everything[index], result, matrix), block).tolist()
        for i, row in enumerate(tile):
            z[top + i][left : left + side] = row
            hover[top + i][left : left + side] = [
                f"<b>{head}</b>: {ends[i]} → {ends[j]}" for j in range(side)
            ]
    import torch

    shown = torch.tensor([[math.nan if x is None else x for x in row] for row in z])
    pooled = f" (largest in blocks of {block} x {block} tokens)" if block > 1 else ""
    heat = go.Heatmap(
        z=z,
        **_colours(result, matrix, shown),
        text=hover,
        hovertemplate=f"%{{text}}<br>{report.plotly_text(title(result, matrix))}{pooled} "
        "<b>%{z:.4g}</b><extra></extra>",
        hoverongaps=False,
    )
    figure = go.Figure(heat)
    tile = max(44, min(150, 960 // len(heads)))
    across, down = ([pitch * i + (side - 1) / 2 for i in range(len(a))] for a in (heads, layers))
    figure.update_layout(
        template=report.template(),
        height=round(120 + tile * len(layers)),
        width=min(_WIDEST, round(200 + tile * len(heads))),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis={"tickvals": across, "ticktext": [str(h) for h in heads], "showgrid": False,
               "title": f"head{pooled}", "constrain": "domain"},
        yaxis={"tickvals": down, "ticktext": [f"{layer} " for layer in layers], "showgrid": False,
               "title": "layer", "autorange": "reversed"},
    )  # fmt: skip
    return figure


def side_by_side(result: "AttentionMaps", matrix: str) -> report.View:
    """See `AttentionMaps.side_by_side`; of all heads of `result`."""
    return report.attention_heads(
        result.matrix(matrix),
        token_labels(result),
        [str(head) for head in result.heads],
        causal=MATRICES[matrix].causal,
        limit=1.0 if _is_share(result, matrix) else None,
    )


def attended(result: "AttentionMaps", index: int, slot: int, matrix: str) -> report.View:
    """See `AttentionMaps.attended`."""
    values = result.of_heads(matrix, [index])[0, slot]
    if MATRICES[matrix].causal:
        values = values.masked_fill(~result.shown[slot], 0.0)
    return report.colored_tokens(
        token_labels(result), values, limit=1.0 if _is_share(result, matrix) else None
    )


def _is_share(result: "AttentionMaps", matrix: str) -> bool:
    """Whether numbers go from 0 to 1 and colours show them as they are."""
    return matrix == "pattern" and not result.signed


def _isolated(text: str) -> str:
    return f"\u2068{text}\u2069"


def _block_label(result: "AttentionMaps", first: int, block: int) -> str:
    """What a row or column of a small map is, as plotly's markup."""
    slots = range(first, min(first + block, len(result.positions)))
    if len(slots) == 1:
        return _isolated(report.plotly_text(label(result, slots[0])))
    return f"{result.positions[slots[0]]}–{result.positions[slots[-1]]}"


def _finite(values: "Tensor", result: "AttentionMaps", matrix: str) -> "Tensor":
    """A matrix with NaN where nothing is to be drawn."""
    values = values.masked_fill(~values.isfinite(), math.nan)
    return values.masked_fill(~result.shown, math.nan) if MATRICES[matrix].causal else values


def _pooled(values: "Tensor", block: int) -> "Tensor":
    """The value furthest from zero of each block, NaN where it has none."""
    if block == 1:
        return values
    import torch

    n = len(values)
    side = math.ceil(n / block)
    padded = values.new_full((side * block, side * block), math.nan)
    padded[:n, :n] = values
    blocks = padded.view(side, block, side, block).transpose(1, 2).flatten(2)
    # NaN counts as nearest to zero, and is what a block of nothing else shows.
    at = blocks.abs().nan_to_num(-1.0).argmax(-1, keepdim=True)
    return torch.gather(blocks, -1, at)[..., 0]


def _colours(result: "AttentionMaps", matrix: str, values: "Tensor") -> dict[str, Any]:
    """From nothing to the largest; diverging where numbers may be below zero."""
    signed = result.signed or MATRICES[matrix].signed
    most = float(values.abs().nan_to_num(0.0).max()) if values.numel() else 0.0
    most = 1.0 if _is_share(result, matrix) else most or 1.0
    bar = {"title": {"text": title(result, matrix), "side": "right"}, "thickness": 12}
    return {"zmin": -most if signed else 0.0, "zmax": most, "colorbar": bar}


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
        lines.append(f"  {what:6} {text}")
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
    cli.print_table(console, *_links_columns(result, top_k, matrix, skip_first), "ranks")
    if len(result.heads) == 1:
        _show_map(result, console, matrix)
    cli.print_scale(
        console, "attention" if _is_share(result, matrix) else "share of the largest of each table"
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
    if not _is_share(result, matrix):
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
    values = _finite(result.of_heads(matrix, [0])[0], result, matrix).tolist()
    hundredths = matrix == "pattern"
    unit = " in hundredths" if hundredths else ""
    later = "" if MATRICES[matrix].causal else " (keys after the query included)"
    console.print(
        f"head {result.heads[0]}: {title(result, matrix)}{unit}, queries down, keys across{later}"
    )
    most = max((abs(x) for row in values for x in row if math.isfinite(x)), default=1.0) or 1.0
    limit = 1.0 if _is_share(result, matrix) else most
    names, tokens = [label(result, slot) for slot in range(n)], token_labels(result, 5)
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
