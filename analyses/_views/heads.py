"""How scores of heads look: heat maps, and tables for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from analyses import cli, report
from analyses._views import attribution as attribution_views
from analyses._views.effects import right

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console
    from torch import Tensor

    from analyses._heads.names import Head
    from analyses._heads.result import HeadScores

# What each score measures; the order is that of pictures and tables.
EXPLANATIONS = {
    "previous_token": "attention to the token before",
    "current_token": "attention to the token itself",
    "first_token": "attention to the first token, where heads rest",
    "duplicate_token": "attention to the same token earlier",
    "induction": "attention to what followed the same token earlier",
}
# Those that have targets only where a token comes again.
REPEATS = ("duplicate_token", "induction")
# A head is called after its highest score where that is at least so much of its attention.
ROLE_AT_LEAST = 0.4

_PAGE_WIDTH = 1190  # what a laptop shows of a page
_BETWEEN, _BETWEEN_ROWS = 30, 104  # heat maps, with what stands beside and under them
_MARGINS = 170  # to the left and right of them, with the colour bar
_LEAST_BAR = 110  # a colour bar needs so many pixels for its title
_MOST_GRID = 60  # a terminal shows no larger grid than this
_MOST_TOKENS = 100  # prompts are written out until there are more
_LEAST_LOSS = 0.1  # nats: smaller changes of the loss get no full colour


def explanation(name: str) -> str:
    """What a score measures; of a score of the user's own, that it is one."""
    return EXPLANATIONS.get(name, "attention to a target of your own")


# ------------------------------------------------------------------ figures


def figure(found: "HeadScores", names: Sequence[str] = ()) -> "go.Figure":
    """See `HeadScores.plot`."""
    chosen = names or [name for name in found.names if name not in found.without_target]
    panels = {}
    for name in chosen:
        effects = found.effects(name)
        panels[name] = (effects.mean, effects.stderr)
    return heat_maps(panels, "score")


def heat_maps(panels: "Mapping[str, tuple[Tensor, Tensor | None]]", unit: str) -> "go.Figure":
    """Heat maps side by side, each of numbers `layer head` and their standard errors, all on one
    scale that begins at 0 and ends at 1 or beyond it."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    n_layers, n_heads = next(iter(panels.values()))[0].shape
    # Wide enough for a number where there are few heads.
    cell = next((wide for most, wide in ((8, 34), (12, 30), (25, 18)) if n_heads <= most), 14)
    words = cell >= 30 and n_layers <= 48
    tall = 24 if words else 16 if n_layers <= 32 else 12
    columns = max(
        1, min(len(panels), (_PAGE_WIDTH - _MARGINS + _BETWEEN) // (n_heads * cell + _BETWEEN))
    )
    rows = -(-len(panels) // columns)
    # Plotly counts gaps as shares of the whole.
    inner = tall * n_layers
    height = rows * inner + (rows - 1) * _BETWEEN_ROWS
    width = columns * n_heads * cell + (columns - 1) * _BETWEEN
    chosen = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=_BETWEEN / width if columns > 1 else 0.0,
        vertical_spacing=_BETWEEN_ROWS / height if rows > 1 else 0.0,
        subplot_titles=[report.plotly_text(name) for name in panels],
    )
    most = max([1.0, *(float(values.nan_to_num(0.0).max()) for values, _ in panels.values())])
    least = min([0.0, *(float(values.nan_to_num(0.0).min()) for values, _ in panels.values())])
    every = 1 if words else 5
    for index, (name, (values, stderr)) in enumerate(panels.items()):
        row, col = index // columns + 1, index % columns + 1
        hover = f"head <b>%{{y}}.%{{x}}</b><br>{report.plotly_text(name)} %{{z:.4f}}"
        several = stderr is not None and not bool(stderr.isnan().all())
        chosen.add_trace(
            go.Heatmap(
                z=values.tolist(),
                zmin=least,
                zmax=most,
                customdata=stderr.tolist() if stderr is not None and several else None,
                text=[[_short(value) for value in row] for row in values.tolist()]
                if words
                else None,
                texttemplate="%{text}" if words else None,
                textfont={"size": 10},
                hovertemplate=hover
                + ("<br>standard error %{customdata:.2g}" if several else "")
                + "<extra></extra>",
                showscale=index == 0,
                colorbar={
                    "title": {"text": unit, "side": "right"},
                    "thickness": 12,
                    "lenmode": "pixels",
                    "len": max(inner, _LEAST_BAR),
                    "y": 1,
                    "yanchor": "top",
                },
                xgap=1 if words else 0,
                ygap=1 if words else 0,
            ),
            row=row,
            col=col,
        )
        chosen.update_xaxes(
            tickvals=list(range(0, n_heads, every)),
            title={"text": "head", "standoff": 4},
            showgrid=False,
            row=row,
            col=col,
        )
        chosen.update_yaxes(
            tickvals=list(range(0, n_layers, 1 if tall >= 16 else 4)),
            title="layer" if index % columns == 0 else None,
            autorange="reversed",  # layer 0 on top, as in the maps of attention
            showgrid=False,
            row=row,
            col=col,
        )
    chosen.update_layout(
        template=report.template(),
        height=height + 120,
        width=width + _MARGINS,
        margin={"l": 60, "r": 10, "t": 50, "b": 60},
    )
    chosen.update_annotations(font={"size": 14})
    return chosen


def _short(value: float) -> str:
    """A share in three characters: `.97`; nothing where it would be `.00`."""
    if math.isnan(value) or abs(value) < 0.005:
        return ""
    return f"{value:.2f}".replace("0.", ".", 1)


def number(value: float, digits: int = 3) -> str:
    """A number for a table; nothing for NaN, and no minus before a zero."""
    text = "" if math.isnan(value) else f"{value:.{digits}f}"
    return text.removeprefix("-") if text and not float(text) else text


# ------------------------------------------------------------------ tables


class Rank(NamedTuple):
    """The highest heads of one measure.

    Attributes:
        name: of the measure.
        meaning: what it measures.
        even: what evenly spread attention would score, as text.
        heads: the highest, highest first.
        values: their numbers.
        full: the number that gets the full colour.
    """

    name: str
    meaning: str
    even: str
    heads: "list[Head]"
    values: list[float]
    full: float


def ranks(found: "HeadScores", k: int) -> list[Rank]:
    """The k highest heads of every measure."""
    measures = found.measures
    meanings = {name: explanation(name) for name in found.names}
    if found.ablation is not None:
        meanings["ablation"] = f"nats lost without the head ({found.ablation.kind} ablation)"
    if found.copying is not None:
        top, n = found.copying.top_k, len(found.copying.tokens)
        meanings["copying"] = f"share of {n} tokens in the top {top} of its output"
        meanings["negative_copying"] = f"share in the bottom {top} of its output"
    rows = []
    for name, meaning in meanings.items():
        heads = [head for head in found.ranked(name)[:k] if float(measures[name][head])]
        values = [float(measures[name][head]) for head in heads]
        full = max([_LEAST_LOSS if name == "ablation" else 1.0, *values])
        even = "no target" if name in found.without_target else ""
        if name in found.names and not even:
            even = f"{found.even_score(name):.3f}"
        rows.append(Rank(name, meaning, even, heads, values, full))
    return rows


def queries(found: "HeadScores", name: str) -> str:
    """How many queries a score was averaged over, in words."""
    counts = found.queries[name]
    n, total = sum(map(bool, counts)), sum(counts)
    if not total:
        return "no query has a target"
    text = f"{total} quer{'y' if total == 1 else 'ies'}"
    return text if n == len(counts) else f"{text} of {n} of {len(counts)} prompts"


def listed(found: "HeadScores", k: int) -> "list[Head]":
    """The heads of the page's table: the k highest of each measure, in order."""
    chosen = {head for rank in ranks(found, k) for head in rank.heads}
    return sorted(chosen)


# ------------------------------------------------------------------ words


def shown_prompts(found: "HeadScores") -> tuple[Sequence[Sequence[str]], str]:
    """The first prompts, few enough to be read, and a line about the others."""
    lengths = [len(row) for row in found.str_tokens]
    k = max(1, sum(sum(lengths[: i + 1]) <= _MOST_TOKENS for i in range(min(4, len(lengths)))))
    more = len(lengths) - k
    return found.str_tokens[:k], f"... and {more} more prompt{'s'[: more != 1]}." if more else ""


def lost(found: "HeadScores") -> str:
    ablation = found.ablation
    if ablation is None:
        return ""
    base, n = float(ablation.effects.base.mean()), ablation.effects.n_examples
    how = "zero" if ablation.kind == "zero" else f"its mean over tokens of {ablation.reference}"
    return (
        f"The loss on the second copy is {base:.3f} nats per token, on average over {n} "
        f"sequence{'s'[: n != 1]}. Without a head: its output is replaced by {how}."
    )


def copied(found: "HeadScores") -> str:
    copying = found.copying
    if copying is None:
        return ""
    shown = ", ".join(cli.visible(token) for token in copying.str_tokens[:4])
    many = f"{shown}, ..." if len(copying.tokens) > 4 else shown
    read = {
        "first_mlp": "after the first block",
        "embedding": "at its embedding",
        "given": "at the residuals given",
    }[copying.residual]
    return (
        f"Of {len(copying.tokens)} tokens ({many}), read {read}: the share that is among the "
        f"{copying.top_k} which the head's output raises most (copying) or lowers most (negative "
        "copying)."
    )


def kept_note(found: "HeadScores") -> str:
    """That the attention of some heads only was kept, where that is so."""
    n_heads = found[found.names[0]].numel()
    kept = 0 if found.patterns is None else len(found.patterns.heads)
    if not 0 < kept < n_heads:
        return ""
    return f" It was kept of {kept} of {n_heads} heads, those with the highest scores."


# ------------------------------------------------------------------ the terminal


def show(found: "HeadScores", console: "Console", top_k: int, grid: str | None = None) -> None:
    """Print scores: the highest heads of each, and the grid of one (by default induction, or the
    first that has a target)."""
    console.print()
    console.print(found.source, style="bold", soft_wrap=True)
    shown, more = shown_prompts(found)
    attribution_views.show_prompts(console, shown, found.prepend_bos)
    if more:
        console.print(more, style="dim")
    if found.hooked:
        console.print(f"functions listened at {', '.join(found.hooked)}")
    console.print()
    console.print(f"The {top_k} highest heads of each score")
    table = ranks(found, top_k)
    labels = [
        cli.Column("score", [cli.Cell(rank.name) for rank in table]),
        right("even", [cli.Cell(rank.even) for rank in table]),
    ]
    columns = []
    for place in range(max(len(rank.heads) for rank in table)):
        cells = [
            cli.Cell(
                f"{rank.heads[place]} {number(rank.values[place])}",
                max(rank.values[place], 0.0) / rank.full,
            )
            if place < len(rank.heads)
            else cli.Cell("")
            for rank in table
        ]
        columns.append(right(f"{place + 1}.", cells))
    cli.print_table(console, labels, columns, "places")
    console.print()
    for rank in table:
        over = f" ({queries(found, rank.name)})" if rank.name in found.names else ""
        console.print(f"{rank.name}: {rank.meaning}{over}", style="dim")
    console.print("even: what attention spread evenly over all tokens scores", style="dim")
    for text in (lost(found), copied(found)):
        if text:
            console.print(text, style="dim")
    _show_grid(found, console, grid or _default_grid(found))


def _default_grid(found: "HeadScores") -> str:
    there = [name for name in found.names if name not in found.without_target]
    return "induction" if "induction" in there else there[0]


def _show_grid(found: "HeadScores", console: "Console", name: str) -> None:
    values = found.measures[name]
    n_layers, n_heads = values.shape
    if max(n_layers, n_heads) > _MOST_GRID:
        console.print(f"{name}: {n_layers} layers x {n_heads} heads are too many for a grid here")
        return
    console.print()
    console.print(f"{name}, layers down and heads across")
    (full,) = (rank.full for rank in ranks(found, 1) if rank.name == name)
    rows = values.tolist()
    labels = [right("layer", [cli.Cell(str(layer)) for layer in range(n_layers)])]
    columns = [
        right(
            str(head), [cli.Cell(number(row[head], 2), max(row[head], 0.0) / full) for row in rows]
        )
        for head in range(n_heads)
    ]
    cli.print_table(console, labels, columns, "heads")
