"""How effects look: heat maps, sections of a page, and tables for the terminal.

All of it works on finished `Effects` and computes nothing about a model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses import cli, report
from hooks.names import nearest

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console
    from torch import Tensor

    from analyses.effects import Effects, Scale

# Axes that are parts of the prompt; heat maps have them across.
PROMPT_AXES = ("pos", "query", "key", "example")

_PAGE_WIDTH = 1340
_MOST_WORDS = 450  # a heat map of more cells than this has no numbers in them
_MOST_TICKS = 40
_MOST_ROWS = 60  # a terminal shows no larger grid than this, only the strongest
_WIDEST = 16000  # browsers draw no wider picture


class Grid(NamedTuple):
    """Effects folded into a table.

    Attributes:
        rows, columns: their axes.
        row_names, column_names: labels, one per row and column.
        places: `[row][column]`, the place on the axes.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_names: list[str]
    column_names: list[str]
    places: list[list[tuple[int, ...]]]


def fold(effects: "Effects", rows: Sequence[str] | None = None) -> Grid:
    """Effects of two or more axes as a table; see `Effects.plot`."""
    axes = effects.axes
    if rows is None:
        down = tuple(axis for axis in axes if axis not in PROMPT_AXES)
        if len(down) in (0, len(axes)):
            down = axes[:1]
    else:
        for axis in rows:
            if axis not in axes:
                raise ValueError(
                    f"{effects.name} has no axis {axis!r}.{nearest(str(axis), axes)} It has "
                    f"{', '.join(axes)}"
                )
        down = tuple(rows)
        if len(set(down)) != len(down) or not 0 < len(down) < len(axes):
            raise ValueError(
                f"rows={down!r} leaves no table of the axes {', '.join(axes)}: name some of them, "
                "each once, and leave some for the columns"
            )
    across = tuple(axis for axis in axes if axis not in down)
    row_places, column_places = (_places(effects, part) for part in (down, across))
    return Grid(
        rows=down,
        columns=across,
        row_names=[_name(effects, down, place) for place in row_places],
        column_names=[_name(effects, across, place) for place in column_places],
        places=[
            [
                tuple((dict(zip(down, r, strict=True)) | dict(zip(across, c, strict=True)))[axis]
                      for axis in axes)
                for c in column_places
            ]
            for r in row_places
        ],
    )  # fmt: skip


def _places(effects: "Effects", axes: Sequence[str]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for axis in axes:
        places = [(*p, i) for p in places for i in range(len(effects.labels[axis]))]
    return places


def _name(effects: "Effects", axes: Sequence[str], place: Sequence[int]) -> str:
    names = [effects.labels[axis][i] for axis, i in zip(axes, place, strict=True)]
    joint = " ← " if axes[-2:] == ("query", "key") else "."
    return joint.join(names)


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
    neutral = first.neutral(scale)
    distances = [effects.on(scale) - neutral for _, effects in views]
    if limit is None:
        found = [float(d.abs().nan_to_num(0.0).max()) for d in distances if d.numel()]
        limit = max(found) or 1.0
    cell = 54 if n_columns * len(views) * 54 + 260 <= _PAGE_WIDTH else 24
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
    longest = max(len(name) for grid in grids for name in grid.column_names)
    below = 40 + min(longest, 20) * 6 if longest > 3 else 60
    wide = 230 + len(views) * n_columns * cell
    chosen.update_layout(
        template=report.template(),
        height=60 + below + height * n_rows,
        width=max(420, min(wide, _WIDEST)),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
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
    scales = [effects.on(one) for one in _scales(effects)]
    stderr = effects.stderr

    def table(values: "Tensor") -> list[list[float]]:
        return [[float(values[place]) for place in row] for row in grid.places]

    data = [*(table(values) for values in scales), table(stderr)]
    shown = table(effects.on(scale))
    ticks = [-limit, -limit / 2, 0.0, limit / 2, limit]
    hover = [
        f"{'.'.join(grid.rows)} <b>%{{y}}</b>, {' ← '.join(grid.columns)} <b>%{{x}}</b>",
        *(f"{one} %{{customdata[{i}]:.4g}}" for i, one in enumerate(_scales(effects))),
    ]
    if effects.n_examples > 1:
        hover.append(f"standard error of value %{{customdata[{len(scales)}]:.2g}}")
    return go.Heatmap(
        # The distance, not the number: plotly's diverging colours part at 0.
        z=table(distance),
        zmin=-limit,
        zmax=limit,
        x=list(range(len(grid.column_names))),
        y=list(range(len(grid.row_names))),
        customdata=[
            [list(cell) for cell in zip(*row, strict=True)] for row in zip(*data, strict=True)
        ],
        text=[[_short(v) for v in row] for row in shown] if words else None,
        texttemplate="%{text}" if words else None,
        textfont={"size": 11},
        hovertemplate="<br>".join(hover) + "<extra></extra>",
        showscale=last,
        colorbar={
            "title": {"text": report.plotly_text(title(effects, scale)), "side": "right"},
            "thickness": 12,
            "tickvals": ticks,
            "ticktext": [f"{neutral + tick:.3g}" for tick in ticks],
        },
        xgap=1 if len(grid.column_names) < 100 else 0,
        ygap=1 if len(grid.row_names) <= 80 else 0,
    )  # fmt: skip


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
    distance = (effects.on(scale) - neutral).tolist()
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


def strongest_rows(
    effects: "Effects", k: int, scale: "Scale | None" = None
) -> tuple[list[str], list[list[str]], list[float]]:
    """A table of the k strongest: headers, rows of text, and how strong each is (0 to 1)."""
    chosen = scale or effects.scale
    shown = effects.on(chosen)
    neutral = effects.neutral(chosen)
    numbers = {one: effects.on(one) for one in _scales(effects)}
    # The scale that orders the table stands first.
    order = [chosen, *(one for one in numbers if one != chosen)]
    headers = [*effects.axes, *order]
    several = effects.n_examples > 1
    if several:
        headers += ["± s.e.", "examples"]
    rows, shades = [], []
    places = effects.strongest(k, chosen)
    most = max((abs(float(shown[p]) - neutral) for p in places), default=0.0) or 1.0
    for place in places:
        row = [effects.labels[axis][i] for axis, i in zip(effects.axes, place, strict=True)]
        row += [f"{float(numbers[one][place]):.3f}" for one in order]
        if several:
            stderr = float(effects.stderr[place])
            row += [
                "" if math.isnan(stderr) else f"{stderr:.3f}",
                f"{int(effects.examples[place])}",
            ]
        rows.append(row)
        shades.append(abs(float(shown[place]) - neutral) / most)
    return headers, rows, shades


def add_strongest(page: report.Page, effects: "Effects", k: int) -> None:
    """Put a table of the k strongest on a page."""
    headers, rows, shades = strongest_rows(effects, k)
    n = len(effects.axes)
    page.table(
        headers,
        [
            [*row[:n], report.Shaded(row[n], shade), *row[n + 1 :]]
            for row, shade in zip(rows, shades, strict=True)
        ],
    )


def summary(effects: "Effects") -> str:
    """What the ends of the scale are, in a line."""
    base = float(effects.base.mean())
    text = f"{effects.metric}: {base:.3f} without edit"
    if effects.corrupted is not None and effects.clean is not None:
        ends = (float(effects.corrupted.mean()), float(effects.clean.mean()))
        text += f"; corrupted {ends[0]:.3f} (0 on the normalised scale), clean {ends[1]:.3f} (1)"
    n = effects.n_examples
    return text + (f"; means over {n} examples." if n > 1 else ".")


# ------------------------------------------------------------------ the terminal


def show(effects: "Effects", console: "Console", top_k: int = 5) -> None:
    """Print effects: a grid where they are few enough, else a table of the strongest."""
    scale = effects.scale
    folded = fold(effects) if len(effects.axes) > 1 else None
    grid = folded if folded is not None and len(folded.places) <= _MOST_ROWS else None
    wide = grid is not None and len(grid.column_names) <= _MOST_ROWS
    if grid is not None and wide and len(effects.axes) == 2:
        console.print(f"{effects.name}: {title(effects, scale)}, by {' and '.join(effects.axes)}")
        _print_grid(effects, grid, console)
    else:
        k = min(top_k, effects.mean.numel())
        headers, rows, shades = strongest_rows(effects, k)
        n = len(effects.axes)
        many = math.prod(effects.values.shape[:-1])
        console.print(
            f"{effects.name}: {title(effects, scale)}, the strongest {len(rows)} of {many}"
        )
        columns = []
        for i, header in enumerate(headers):
            cells = [
                cli.Cell(row[i], shade if i == n else None)
                for row, shade in zip(rows, shades, strict=True)
            ]
            columns.append(cli.Column(header, cells) if i < n else right(header, cells))
        cli.print_table(console, columns[:n], columns[n:], "columns")


def _print_grid(effects: "Effects", grid: Grid, console: "Console") -> None:
    scale = effects.scale
    shown, neutral = effects.on(scale), effects.neutral(scale)
    distance = (shown - neutral).abs()
    most = float(distance.nan_to_num(0.0).max()) or 1.0
    labels = cli.Column(".".join(grid.rows), [cli.Cell(name) for name in grid.row_names])
    columns = []
    for j, name in enumerate(grid.column_names):
        places = [row[j] for row in grid.places]
        cells = [cli.Cell(_short(float(shown[p])), float(distance[p]) / most) for p in places]
        columns.append(right(cli.shorten(name, 14), cells))
    cli.print_table(console, [labels], columns, " and ".join(grid.columns))


def right(header: str, cells: Sequence[cli.Cell]) -> cli.Column:
    """A column whose cells stand on the right."""
    from rich.cells import cell_len

    wide = max([cell_len(header), *(len(cell.text) for cell in cells)])
    return cli.Column(
        " " * (wide - cell_len(header)) + header,
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
