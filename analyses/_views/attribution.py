"""How an attribution looks: figures, a page, and tables for the terminal.

All of it works on a finished `Attribution` and computes nothing about the model.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.sources import add_rest, table_of

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console
    from torch import Tensor

    from analyses.attribution import Attribution
    from analyses.effects import Effects, Scale

# More prompts than this are counted on a page and in a terminal, not written out.
_MOST_PROMPTS = 4
# So many of the neurons are drawn.
_MOST_BARS = 30
_CAPTIONS = {
    "component": "What each component adds, in the order of the forward pass; the bars sum to the "
    "logit difference.",
    "head": "What each head adds (z times W_O): blue takes away, red adds.",
    "lens": "The logit difference that the residual stream has on the way, read with the final "
    "layer norm of this run. The last point is the model's own.",
}
_INTERVALS = " Thin lines: 95 % bootstrap intervals over prompts."
_TABLES = {"component": "Components", "head": "Heads", "neuron": "Neurons"}


# ------------------------------------------------------------------ in words


def tokens_of(found: "Attribution", ids: "Tensor") -> list[list[str]]:
    """The strings of token ids, `example k`, those that are none left out."""
    return [[found.strings[id] for id in row if id >= 0] for row in ids.tolist()]


def asked(found: "Attribution") -> str:
    """What was attributed: `logit of ' Mary' minus ' John'`."""
    sides = []
    for name, ids in (("answer", found.answers), ("wrong token", found.wrong)):
        if ids is not None:
            rows = {tuple(row) for row in tokens_of(found, ids)}
            same = next(iter(rows)) if len(rows) == 1 else None
            sides.append(name if same is None else "/".join(map(repr, same)))
    return f"logit of {' minus '.join(sides)}"


def best(effects: "Effects", k: int) -> str:
    """The k largest contributions, of either sign, in a line."""
    mean = effects.mean
    return "  ".join(
        f"{place_name(effects, place)} {float(mean[place]):+.3f}"
        for place in effects.strongest(k, "value")
    )


def place_name(effects: "Effects", place: Sequence[int]) -> str:
    """`9.6` for a head, `0.mlp_out` for a component."""
    return ".".join(effects.labels[axis][i] for axis, i in zip(effects.axes, place, strict=True))


def _sum_line(found: "Attribution") -> str:
    """The logit difference and how well the parts sum to it."""
    n = len(found.logit_diff)
    mean, off = float(found.logit_diff.mean()), float(found.remainder.abs().max())
    over = [f"{n} prompts"] if n > 1 else []
    if any(len(row) > 1 for row in found.positions):
        over.append("the positions read")
    mean_text = f"{mean:.4f}" + (f" on average over {' and '.join(over)}" if over else "")
    exactly = f"the components sum to it within {off:.1g}" if off else "the components sum to it"
    return f"{asked(found)}: {mean_text} ({exactly}), in nats."


def _read_at(found: "Attribution", batch: int) -> str:
    words = [
        f"{position} {cli.visible(found.str_tokens[batch][position])}"
        for position in found.positions[batch][:6]
    ]
    more = len(found.positions[batch]) - len(words)
    return f"read after {', '.join(words)}" + (f" and {more} more" if more else "")


# ------------------------------------------------------------------ prompts


def add_prompts(
    page: report.Page,
    prompts: Sequence[Sequence[str]],
    prepend_bos: bool | None,
    notes: Sequence[str] = (),
) -> None:
    """Put prompts on a page, the first few written out.

    Args:
        prompts: the tokens of each as strings.
        prepend_bos: whether `<|endoftext|>` was put before them; None for token ids.
        notes: what to say behind each.
    """

    def add(index: int) -> None:
        page.tokens([cli.visible(token) for token in prompts[index]], prepend_bos is True)
        page.text(f"{_how_long(prompts[index], prepend_bos)}{notes[index] if notes else ''}.")

    for index in range(min(len(prompts), _MOST_PROMPTS)):
        add(index)
    add_rest(page, _MOST_PROMPTS, len(prompts), "prompts", add)


def show_prompts(
    console: "Console",
    prompts: Sequence[Sequence[str]],
    prepend_bos: bool | None,
    notes: Sequence[str] = (),
) -> None:
    """Print prompts, the first few written out; arguments as `add_prompts`."""
    for index, strings in enumerate(prompts[:_MOST_PROMPTS]):
        note = f"{_how_long(strings, prepend_bos)}{notes[index] if notes else ''}:"
        console.print(note, style="dim", soft_wrap=True)
        console.print(" ".join(map(cli.visible, strings)))
    if len(prompts) > _MOST_PROMPTS:
        console.print(f"... and {len(prompts) - _MOST_PROMPTS} more prompts", style="dim")


def _how_long(strings: Sequence[str], prepend_bos: bool | None) -> str:
    note = f"<|endoftext|> {'' if prepend_bos else 'not '}prepended"
    return f"{len(strings)} tokens, {'given as ids' if prepend_bos is None else note}"


# ------------------------------------------------------------------ figures


def figure(found: "Attribution", view: str) -> "go.Figure":
    """See `Attribution.plot`."""
    effects = found[view]
    if view == "neuron":
        effects = only_strongest(effects, _MOST_BARS, "value")
    if view != "lens":
        return effects.plot("value")
    return _curve(effects, "logit, nats" if found.wrong is None else "logit difference, nats")


def only_strongest(effects: "Effects", k: int, scale: "Scale") -> "Effects":
    """The k strongest of effects, strongest first, on one axis (the last), for a picture."""
    from dataclasses import replace

    import torch

    places = effects.strongest(k, scale)
    axis = effects.axes[-1]
    return replace(
        effects,
        axes=(axis,),
        labels={axis: tuple(place_name(effects, place) for place in places)},
        values=torch.stack([effects.values[place] for place in places]),
        numbers={},
    )


def _curve(effects: "Effects", title: str) -> "go.Figure":
    import plotly.graph_objects as go

    (axis,) = effects.axes
    names = list(effects.labels[axis])
    mean, (low, high) = effects.mean, effects.interval()
    several = effects.n_examples > 1
    spread = {"array": (high - mean).tolist(), "arrayminus": (mean - low).tolist()}
    chosen = go.Figure(
        go.Scatter(
            x=names,
            y=mean.tolist(),
            error_y={"symmetric": False, "thickness": 1, "width": 3, **spread} if several else None,
            mode="lines+markers",
            hovertemplate="<b>%{x}</b> %{y:.4g}<extra></extra>",
        )
    )
    chosen.update_layout(
        template=report.template(),
        height=340,
        width=max(420, 160 + 34 * len(names)),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis={"tickangle": -50, "title": "point of the residual stream"},
        yaxis={"title": title},
    )
    return chosen


# ------------------------------------------------------------------ the page


def page(results: Sequence[tuple[str, "Attribution"]], top_k: int) -> report.Page:
    """A page of one or several attributions, each with a name (of a file, say), or "" for none."""
    first = results[0][1]
    page = report.Page(
        f"Direct logit attribution: {first.provenance.model}",
        "The logit difference as a sum of what each part of the model wrote into the residual "
        "stream, through the final layer norm of this run. Direct: what a part does by way of "
        "later layers is not counted as its own. Blanks are shown as ·, line ends as ⏎.",
    )
    for name, found in results:
        n = len(found.str_tokens)
        page.heading(name or ("Prompt" if n == 1 else f"{n} prompts"))
        notes = [f"; {_read_at(found, batch)}" for batch in range(n)]
        add_prompts(page, found.str_tokens, found.prepend_bos, notes)
        page.text(_sum_line(found))
        for view in ("component", "head", "lens"):
            bars = view != "head" and n > 1
            page.figure(found.plot(view), _CAPTIONS[view] + (_INTERVALS if bars else ""))
        for view, title in _TABLES.items():
            if view in found.views and view != "component":
                _add_table(page, found, view, title, top_k)
        for view, title in (("attn_bias", "attention output biases"), ("mlp_bias", "MLP biases")):
            if view in found.views:
                page.text(f"By layer, {title}: {_in_order(found[view])}.")
    page.data("attribution", table_of(results))
    page.provenance(first.provenance)
    return page


def _in_order(effects: "Effects") -> str:
    (axis,) = effects.axes
    pairs = zip(effects.labels[axis], effects.mean.tolist(), strict=True)
    return ", ".join(f"{label}: {value:+.3f}" for label, value in pairs)


def _add_table(page: report.Page, found: "Attribution", view: str, title: str, top_k: int) -> None:
    headers, rows, shades = _strongest(found[view], top_k)
    page.text(f"{title}: the {len(rows)} furthest from 0, of {_count(found[view])}.")
    page.table(
        [view, *headers],
        [
            [row[0], effects_views.diverging(row[1], shade), *row[2:]]
            for row, shade in zip(rows, shades, strict=True)
        ],
    )


def _count(effects: "Effects") -> int:
    return math.prod(effects.values.shape[:-1])


def _strongest(effects: "Effects", top_k: int) -> tuple[list[str], list[list[str]], list[float]]:
    """Headers behind the name, rows of text, and how strong each row is, 0 to 1."""
    mean, stderr, several = effects.mean, effects.stderr, effects.n_examples > 1
    places = effects.strongest(min(top_k, _count(effects)), "value")
    most = max(abs(float(mean[place])) for place in places) or 1.0
    rows = []
    for place in places:
        row = [place_name(effects, place), f"{float(mean[place]):+.3f}"]
        rows.append([*row, f"{float(stderr[place]):.3f}"] if several else row)
    shades = [float(mean[place]) / most for place in places]
    return ["adds, nats", *(["± s.e."] if several else [])], rows, shades


# ------------------------------------------------------------------ the terminal


def show(found: "Attribution", console: "Console", top_k: int) -> None:
    """Print an attribution: what was asked, then the strongest parts, then the lens."""
    from analyses._views.effects import right

    notes = [f"; {_read_at(found, batch)}" for batch in range(len(found.str_tokens))]
    show_prompts(console, found.str_tokens, found.prepend_bos, notes)
    console.print()
    console.print(_sum_line(found))
    for view, title in _TABLES.items():
        if view in found.views:
            effects = found[view]
            headers, rows, shades = _strongest(effects, top_k)
            console.print()
            console.print(f"{title}: the {len(rows)} furthest from 0, of {_count(effects)}")
            columns = [cli.Column(view, [cli.Cell(row[0]) for row in rows])]
            for i, header in enumerate(headers, start=1):
                shade: Sequence[float | None] = shades if i == 1 else [None] * len(rows)
                cells = [
                    cli.Cell(row[i], None if s is None else abs(s))
                    for row, s in zip(rows, shade, strict=True)
                ]
                columns.append(right(header, cells))
            cli.print_table(console, columns[:1], columns[1:], "columns")
    console.print()
    console.print("logit difference on the way (final layer norm of this run)")
    lens = found["lens"]
    mean = lens.mean.tolist()
    most = max(map(abs, mean)) or 1.0
    cells = [cli.Cell(f"{value:+.3f}", abs(value) / most) for value in mean]
    points = [cli.Cell(point) for point in lens.labels["point"]]
    cli.print_table(console, [cli.Column("point", points)], [right("value", cells)], "columns")
