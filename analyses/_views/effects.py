"""How effects look: heat maps, sections of a page, and tables for the terminal.

All of it works on finished `Effects` and computes nothing about a model.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses import cli, report
from analyses.tasks import unknown

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console
    from torch import Tensor

    from analyses.effects import Effects, Scale

# Axes that are parts of the prompt; heat maps have them across.
PROMPT_AXES = ("pos", "query", "key", "example")

_PAGE_WIDTH = 1340
# Panels of more columns than this in all stand under each other rather than side by side.
_MOST_COLUMNS = 60
_MOST_WORDS = 450  # a heat map of more cells than this has no numbers in them
_MOST_TICKS = 40
_LEAST_HEIGHT = 150  # of the cells: the colour bar's title needs it
_LONGEST_TITLE = 24  # characters of that title in a line
_MOST_ROWS = 60  # a terminal shows no larger grid than this, only the strongest
_WIDEST = 16000  # browsers draw no wider picture


class Grid(NamedTuple):
    """How the axes of effects fold into a table.

    Attributes:
        rows, columns: the axes that run down and across.
        row_names, column_names: what to call each row and column.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_names: list[str]
    column_names: list[str]


def fold(effects: "Effects", rows: Sequence[str] | None = None) -> Grid:
    """How effects of two or more axes fold into a table; see `Effects.plot`."""
    axes = effects.axes
    if rows is None:
        down = tuple(axis for axis in axes if axis not in PROMPT_AXES)
        if len(down) in (0, len(axes)):
            down = axes[:1]
    else:
        down = tuple(rows)
        for axis in down:
            if axis not in axes:
                raise ValueError(unknown(f"axis of {effects.name}", str(axis), axes))
        if len(set(down)) != len(down) or not 0 < len(down) < len(axes):
            raise ValueError(
                f"rows={down!r} leaves no table of the axes {', '.join(axes)}: name some of them, "
                "each once, and leave some for the columns"
            )
    across = tuple(axis for axis in axes if axis not in down)
    return Grid(down, across, _names(effects, down), _names(effects, across))


def _names(effects: "Effects", axes: Sequence[str]) -> list[str]:
    joint = " ← " if axes[-2:] == ("query", "key") else "."
    names = [""]
    for axis in axes:
        names = [f"{n}{joint if n else ''}{one}" for n in names for one in effects.labels[axis]]
    return names


def folded(values: "Tensor", effects: "Effects", grid: Grid) -> list[list[float]]:
    """Numbers on the axes of effects as rows of a table."""
    order = [effects.axes.index(axis) for axis in (*grid.rows, *grid.columns)]
    return values.permute(order).reshape(len(grid.row_names), -1).tolist()


# ------------------------------------------------------------------ figures


def figure(
    effects: "Effects",
    scale: "Scale | None" = None,
    *,
    rows: Sequence[str] | None = None,
    limit: float | None = None,
) -> "go.Figure":
    """See `Effects.plot`."""
    scale = scale or effects.scale
    if len(effects.axes) == 1:
        if rows is not None:
            raise ValueError(f"{effects.name} has one axis, {effects.axes[0]!r}: no rows to choose")
        return _bars(effects, scale)
    return panels([(effects.name, effects)], scale, rows=rows, limit=limit)


def panels(
    views: Sequence[tuple[str, "Effects"]],
    scale: "Scale | None" = None,
    *,
    rows: Sequence[str] | None = None,
    limit: float | None = None,
) -> "go.Figure":
    """Heat maps side by side, of effects on the same axes, with one scale of colours.

    Args:
        views: a title and the effects, for each.
        scale, rows, limit: as `Effects.plot`.
    """
    from plotly.subplots import make_subplots

    first = views[0][1]
    scale = scale or first.scale
    grids = [fold(effects, rows) for _, effects in views]
    n_rows, n_columns = len(grids[0].row_names), len(grids[0].column_names)
    distances = [effects.distance(scale) for _, effects in views]
    if limit is None:
        found = [float(d.abs().nan_to_num(0.0).max()) for d in distances if d.numel()]
        limit = max(found) or 1.0
    room = (_PAGE_WIDTH - 340) // (n_columns * len(views))
    cell = next((width for width in (54, 24) if width <= room), 18)
    words = n_rows * n_columns * len(views) <= _MOST_WORDS and cell == 54
    chosen = make_subplots(
        cols=len(views),
        shared_yaxes=True,
        horizontal_spacing=0.02 if len(views) > 1 else 0.0,
        subplot_titles=[report.plotly_text(t) for t, _ in views] if len(views) > 1 else None,
    )
    for column, ((_, effects), grid, distance) in enumerate(
        zip(views, grids, distances, strict=True), start=1
    ):
        chosen.add_trace(
            _heat(effects, grid, distance, scale, limit, words, last=column == len(views)),
            row=1,
            col=column,
        )
        chosen.update_xaxes(_ticks(grid.column_names, grid.columns, effects), row=1, col=column)
        chosen.update_yaxes(_ticks(grid.row_names, grid.rows, effects), row=1, col=column)
        chosen.update_xaxes(title=" ← ".join(grid.columns), row=1, col=column)
        if "pos" in grid.columns or "query" in grid.columns:
            chosen.update_xaxes(tickangle=-50, row=1, col=column)
    chosen.update_yaxes(title=".".join(grids[0].rows), row=1, col=1)
    height = 24 if n_rows <= 30 else 15 if n_rows <= 80 else 9
    tall = max(height * n_rows, _LEAST_HEIGHT)
    longest = max(len(name) for grid in grids for name in grid.column_names)
    below = 40 + min(longest, 20) * 6 if longest > 3 else 60
    wide = (230 if longest <= 8 else 310) + len(views) * n_columns * cell
    chosen.update_layout(
        template=report.template(),
        height=60 + below + tall,
        width=max(420, min(wide, _WIDEST)),
        # A long label of the first column reaches out to the left.
        margin={"l": 10 if longest <= 8 else 90, "r": 10, "t": 40, "b": 10},
    )
    if len(views) > 1:
        chosen.update_annotations(font={"size": 14})
    return chosen


def _heat(
    effects: "Effects",
    grid: Grid,
    distance: "Tensor",
    scale: "Scale",
    limit: float,
    words: bool,
    last: bool,
) -> "go.Heatmap":
    import plotly.graph_objects as go

    neutral = effects.neutral(scale)
    data = [folded(effects.on(one), effects, grid) for one in _scales(effects)]
    data.append(folded(effects.change_stderr, effects, grid))
    shown = folded(effects.on(scale), effects, grid)
    step = _step(limit)
    ticks = [i * step for i in range(-2, 3) if abs(i * step) <= limit]
    hover = [
        f"{'.'.join(grid.rows)} <b>%{{y}}</b>, {' ← '.join(grid.columns)} <b>%{{x}}</b>",
        *(f"{one} %{{customdata[{i}]:.4g}}" for i, one in enumerate(_scales(effects))),
    ]
    if effects.n_examples > 1:
        hover.append(f"standard error of change %{{customdata[{len(data) - 1}]:.2g}}")
    return go.Heatmap(
        # The distance, not the number: plotly's diverging colours part at 0.
        z=folded(distance, effects, grid),
        zmin=-limit,
        zmax=limit,
        x=list(range(len(grid.column_names))),
        y=list(range(len(grid.row_names))),
        customdata=[
            [list(cell) for cell in zip(*row, strict=True)] for row in zip(*data, strict=True)
        ],
        # A number that rounds to no effect would hide the others.
        text=[["" if _short(v) == _short(neutral) else _short(v) for v in row] for row in shown]
        if words
        else None,
        texttemplate="%{text}" if words else None,
        textfont={"size": 11},
        hovertemplate="<br>".join(hover) + "<extra></extra>",
        showscale=last,
        colorbar={
            "title": {"text": _lines(title(effects, scale)), "side": "right"},
            "thickness": 12,
            "tickvals": ticks,
            "ticktext": [f"{neutral + tick:.3g}" for tick in ticks],
        },
        xgap=1 if len(grid.column_names) < 100 else 0,
        ygap=1 if len(grid.row_names) <= 80 else 0,
    )  # fmt: skip


def _lines(text: str) -> str:
    """A title that is no longer than a colour bar of `_LEAST_HEIGHT`, which plotly would cut."""
    return "<br>".join(report.plotly_text(line) for line in textwrap.wrap(text, _LONGEST_TITLE))


def _step(limit: float) -> float:
    """A round number of which one or two fit into the limit."""
    unit = 10.0 ** math.floor(math.log10(limit))
    return next(unit * f for f in (0.5, 1, 2, 5) if limit / (unit * f) < 2.5)


def _ticks(names: Sequence[str], axes: Sequence[str], effects: "Effects") -> dict[str, Any]:
    """Plotly's settings of an axis; of many coordinates, only the first of each group is named."""
    step = 1
    if len(names) > _MOST_TICKS:
        inner = math.prod(len(effects.labels[axis]) for axis in axes[1:])
        step = inner if inner > 1 else math.ceil(len(names) / _MOST_TICKS)
    at = list(range(0, len(names), step))
    return {
        "tickvals": at,
        "ticktext": [report.plotly_text(names[i]) for i in at],
        "showgrid": False,
    }


def _bars(effects: "Effects", scale: "Scale") -> "go.Figure":
    import plotly.graph_objects as go

    (axis,) = effects.axes
    neutral = effects.neutral(scale)
    distance = effects.distance(scale).tolist()
    names = [report.plotly_text(name) for name in effects.labels[axis]]
    data = [effects.on(one).tolist() for one in _scales(effects)]
    low, high = effects.interval(scale=scale)
    shown = effects.on(scale)
    several = effects.n_examples > 1
    chosen = go.Figure(
        go.Bar(
            x=list(range(len(names))),
            y=distance,
            base=neutral,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (high - shown).tolist(),
                "arrayminus": (shown - low).tolist(),
                "thickness": 1,
                "width": 3,
            }
            if several
            else None,
            text=names,
            textposition="none",
            customdata=[list(row) for row in zip(*data, strict=True)],
            hovertemplate="<br>".join(
                [
                    f"{axis} <b>%{{text}}</b>",
                    *(f"{one} %{{customdata[{i}]:.4g}}" for i, one in enumerate(_scales(effects))),
                ]
            )
            + "<extra></extra>",
        )
    )
    chosen.update_layout(
        template=report.template(),
        height=380,
        width=max(420, min(200 + 34 * len(names), _WIDEST)),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis={**_ticks(effects.labels[axis], (axis,), effects), "title": axis},
        yaxis={"title": report.plotly_text(title(effects, scale))},
    )
    return chosen


def _scales(effects: "Effects") -> tuple["Scale", ...]:
    if effects.scale == "normalised":
        return ("normalised", "value", "change")
    return ("value", "change")


def title(effects: "Effects", scale: "Scale") -> str:
    """What the numbers on a scale are, in a few words."""
    return {
        "value": effects.metric,
        "change": f"change of {effects.metric}",
        "normalised": f"{effects.metric}, normalised",
    }[scale]


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    text = f"{value:.2f}" if abs(value) < 99.995 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


# ------------------------------------------------------------------ tables


class Strongest(NamedTuple):
    """A table of the places that move a metric most.

    Attributes:
        headers: the first `n_labels` say where a place is.
        rows: text, one row per place.
        shades: how far each is from no effect, -1 to 1.
    """

    headers: list[str]
    n_labels: int
    rows: list[list[str]]
    shades: list[float]


def strongest(views: Sequence[tuple[str, "Effects"]], k: int) -> Strongest:
    """The k strongest of effects on the same axes."""
    first = views[0][1]
    scale = first.scale
    found: list[tuple[float, list[str]]] = []
    for name, effects in views:
        distance = effects.distance(scale)
        # The scale that orders the table stands first.
        numbers = [effects.on(one) for one in _scales(effects)]
        for place in effects.strongest(min(k, effects.mean.numel())):
            row = [name] if len(views) > 1 else []
            row += [effects.labels[axis][i] for axis, i in zip(first.axes, place, strict=True)]
            row += [f"{float(values[place]):.3f}" for values in numbers]
            if effects.n_examples > 1:
                stderr = float(effects.change_stderr[place])
                row.append("" if math.isnan(stderr) else f"{stderr:.3f}")
                row.append(str(int(effects.examples[place])))
            found.append((float(distance[place]), row))
    found = sorted(found, key=lambda one: -abs(one[0]))[:k]
    most = max((abs(distance) for distance, _ in found), default=0.0) or 1.0
    labels = [*(["view"] if len(views) > 1 else []), *first.axes]
    headers = [*labels, *_scales(first)]
    if first.n_examples > 1:
        headers += ["± s.e. of change", "examples"]
    rows = [row for _, row in found]
    return Strongest(headers, len(labels), rows, [distance / most for distance, _ in found])


def add_strongest_of(page: report.Page, views: Sequence[tuple[str, "Effects"]], k: int) -> None:
    """Put a table of the k strongest of several effects on the same axes on a page."""
    table = strongest(views, k)
    n = table.n_labels
    page.table(
        table.headers,
        [
            [*row[:n], diverging(row[n], shade), *row[n + 1 :]]
            for row, shade in zip(table.rows, table.shades, strict=True)
        ],
    )


def diverging(text: str, shade: float) -> report.Shaded:
    """A cell in the colours of the heat maps.

    Args:
        shade: from -1, as far below no effect as it goes, to 1.
    """
    return report.Shaded(text, abs(shade), sign=-1 if shade < 0 else 1)


def grouped(views: "Mapping[str, Effects]") -> list[list[str]]:
    """The views that are shown side by side: those on the same axes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, effects in views.items():
        groups.setdefault(effects.axes, []).append(name)
    return list(groups.values())


def add_group(
    page: report.Page, views: "Mapping[str, Effects]", names: Sequence[str], top_k: int
) -> None:
    """Put views on the same axes on a page: heat maps with one scale of colours, and a table."""
    chosen = [(name, views[name]) for name in names]
    first = chosen[0][1]
    page.heading(f"{', '.join(names)}: by {', '.join(first.axes)}")
    n_columns = len(fold(first).column_names)
    hover = "Hover for the numbers; those that round to no effect are left out."
    if len(names) * n_columns <= _MOST_COLUMNS:
        caption = hover + (" One scale of colours." if len(names) > 1 else "")
        page.figure(panels(chosen), caption)
    else:
        limit = max(float(e.distance(e.scale).abs().nan_to_num(0.0).max()) for _, e in chosen)
        for name, effects in chosen:
            page.figure(
                effects.plot(limit=limit or None),
                f"{name}. {hover} One scale of colours for all of these.",
            )
    k = min(top_k, sum(effects.mean.numel() for _, effects in chosen))
    page.text(f"The {k} places that move the metric most.")
    add_strongest_of(page, chosen, k)


def summary(effects: "Effects") -> str:
    """What the scale is, in a line."""
    base = float(effects.base.mean())
    parts = []
    ends: list[float] = []
    if effects.corrupted is not None and effects.clean is not None:
        ends = [float(effects.corrupted.mean()), float(effects.clean.mean())]
        if effects.scale == "normalised":
            parts.append(f"corrupted {ends[0]:.3f} (0 on the normalised scale)")
            parts.append(f"clean {ends[1]:.3f} (1)")
        else:
            parts.append(f"{ends[0]:.3f} in both runs, so there is no normalised scale")
    if base not in ends:
        parts.append(f"{base:.3f} without edit")
    n = effects.n_examples
    return f"{effects.metric}: {', '.join(parts)}" + (f"; means over {n} examples" if n > 1 else "")


# ------------------------------------------------------------------ the terminal


def show(effects: "Effects", console: "Console", top_k: int = 5) -> None:
    """Print effects: two axes as a grid where it is not too large, else the strongest."""
    scale = effects.scale
    if len(effects.axes) == 2 and max(effects.values.shape[:-1]) <= _MOST_ROWS:
        console.print(f"{effects.name}: {title(effects, scale)}, by {' and '.join(effects.axes)}")
        _print_grid(effects, fold(effects), console)
        return
    table = strongest([(effects.name, effects)], top_k)
    n, many = table.n_labels, math.prod(effects.values.shape[:-1])
    console.print(
        f"{effects.name}: {title(effects, scale)}, the strongest {len(table.rows)} of {many}"
    )
    columns = []
    for i, header in enumerate(table.headers):
        cells = [
            cli.Cell(row[i], abs(shade) if i == n else None)
            for row, shade in zip(table.rows, table.shades, strict=True)
        ]
        columns.append(cli.Column(header, cells) if i < n else right(header, cells))
    cli.print_table(console, columns[:n], columns[n:], "columns")


def _print_grid(effects: "Effects", grid: Grid, console: "Console") -> None:
    scale = effects.scale
    shown = effects.on(scale)
    distance = effects.distance(scale).abs()
    most = float(distance.nan_to_num(0.0).max()) or 1.0
    texts, shades = folded(shown, effects, grid), folded(distance / most, effects, grid)
    labels = cli.Column(".".join(grid.rows), [cli.Cell(name) for name in grid.row_names])
    columns = []
    for j, name in enumerate(grid.column_names):
        cells = [cli.Cell(_short(t[j]), s[j]) for t, s in zip(texts, shades, strict=True)]
        # A position's number over its token: many positions fit into a terminal then.
        lines = name.split(" ", 1) if grid.columns[0] in PROMPT_AXES else [name]
        columns.append(right("\n".join(cli.shorten(line, 9) for line in lines), cells))
    cli.print_table(console, [labels], columns, " and ".join(grid.columns))


def right(header: str, cells: Sequence[cli.Cell]) -> cli.Column:
    """A column whose cells stand on the right."""
    from rich.cells import cell_len

    lines = header.split("\n")
    wide = max([*map(cell_len, lines), *(len(cell.text) for cell in cells)])
    return cli.Column(
        "\n".join(" " * (wide - cell_len(line)) + line for line in lines),
        [cell._replace(text=cell.text.rjust(wide)) for cell in cells],
    )


def concatenated(views: Mapping[str, "Effects"]) -> Any:
    """The tables of several effects under each other; an axis that one lacks is empty there."""
    import pandas as pd

    frames = []
    for name, effects in views.items():
        frame = effects.to_frame()
        frame["view"] = name
        frames.append(frame)
    axes = list(dict.fromkeys(axis for effects in views.values() for axis in effects.axes))
    frame = pd.concat(frames, ignore_index=True)
    first = ["view", "metric", *(c for axis in axes for c in (axis, f"{axis}_label"))]
    frame = frame[[*first, *(c for c in frame.columns if c not in first)]]
    return frame.astype(dict.fromkeys(axes, "Int64"))
