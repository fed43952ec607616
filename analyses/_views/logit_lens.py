"""How a logit lens looks: figures, a page, and tables for the terminal.

All of it works on a finished `LogitLens` and computes nothing about the model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analyses import cli, report
from analyses._views.sources import table_of
from analyses._views.words import bos_note

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console

    from analyses.logit_lens import LogitLens

KL = "KL(final || lens)"
# A heat map of more cells than this has no words in them: thousands are slow to draw and unread.
_MOST_LABELS = 6000
_PAGE_WIDTH = 1340
_MARGIN = {"l": 10, "r": 10, "t": 40, "b": 10}  # above, plotly's tool bar (and buttons)
_WIDEST = 16000  # browsers draw no wider picture


def best(lens: "LogitLens", index: int) -> str:
    """The predictions of one point in a line, for a lens of one position."""
    tokens, probs = lens.top_tokens[index, 0, 0].tolist(), lens.top_probs[index, 0, 0].tolist()
    return "  ".join(
        f"{lens.strings[t]!r} {cli.probability(p)}" for t, p in zip(tokens, probs, strict=True)
    )


def _positions(lens: "LogitLens", batch: int) -> list[int]:
    return [position for position in lens.position[batch].tolist() if position >= 0]


def _token(lens: "LogitLens", id: int, width: int | None = None) -> str:
    text = cli.visible(lens.strings[id])
    return text if width is None else cli.shorten(text, width)


# ------------------------------------------------------------------ figures


def heat_map(lens: "LogitLens", batch: int) -> "go.Figure":
    """See `LogitLens.plot`."""
    import plotly.graph_objects as go

    positions = _positions(lens, batch)
    points, several = range(len(lens.points)), len(positions) > 1
    if several:
        ids = [lens.tokens[batch][position] for position in positions]
        across = [f"{p}  {_token(lens, id, 14)}" for p, id in zip(positions, ids, strict=True)]
        cells = [[(i, j, 0) for j in range(len(positions))] for i in points]
    else:
        across = [f"rank {k}" for k in range(lens.top_tokens.shape[-1])]
        cells = [[(i, 0, k) for k in range(len(across))] for i in points]
    probs, tokens = lens.top_probs[:, batch].tolist(), lens.top_tokens[:, batch].tolist()
    colours = {"probability": [[probs[i][j][k] for i, j, k in row] for row in cells]}
    if several:
        for name, values in (("entropy", lens.entropy), (KL, lens.kl_final_lens)):
            colours[f"{name}, nats"] = values[:, batch, : len(positions)].tolist()
    words = None
    if len(cells) * len(across) <= _MOST_LABELS:
        words = [
            [report.plotly_text(_token(lens, tokens[i][j][k], 10)) for i, j, k in row]
            for row in cells
        ]
    rows = iter(row for row in lens.rows() if row["batch"] == batch)  # point by point
    hovers = [[_hover(next(rows)) for _ in positions] for _ in points]
    heat = go.Heatmap(
        z=colours["probability"],
        zmin=0,
        zmax=1,
        text=words,
        texttemplate="%{text}" if words else None,
        textfont={"size": 12},
        customdata=[[hovers[i][j] for i, j, _ in row] for row in cells],
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={"title": {"text": "probability", "side": "right"}, "thickness": 12},
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(heat)
    figure.update_layout(
        template=report.template(),
        height=(150 if several else 80) + 24 * len(lens.points),
        margin=_MARGIN,
        xaxis={
            "tickvals": list(range(len(across))),
            "ticktext": [report.plotly_text(text) for text in across],
            "tickangle": -50 if several else 0,
            "showgrid": False,
        },
        yaxis={
            "tickvals": list(points),
            "ticktext": [f"{point} " for point in lens.points],
            "showgrid": False,
        },
    )
    width = 200 + len(across) * (74 if words else 20)
    if width > _PAGE_WIDTH:
        figure.update_layout(width=min(width, _WIDEST))
    if several:
        figure.update_layout(updatemenus=[_buttons(colours)])
    return figure


def _hover(row: Mapping[str, Any]) -> str:
    """Everything about one point at one position, as plotly's markup."""

    def bold(token: str) -> str:
        # Isolated, or a number after a word written from right to left would stand before it.
        return f"<b>{report.isolated(report.plotly_text(cli.visible(token)))}</b>"

    where = f"{row['layer']}.{row['point']} after position {row['position']}"
    lines = [
        f"{where} {bold(row['token'])}",
        *(f"rank {k}: {bold(t['token'])} {t['prob']:.4f}" for k, t in enumerate(row["top"])),
        f"entropy {row['entropy']:.3f} nats",
        f"{KL} {row['kl_final_lens']:.3f} nats",
    ]
    for t in row["targets"]:
        numbers = f"log-probability {t['log_prob']:.3f} nats, rank {t['rank']}"
        lines.append(f"target {bold(t['token'])}: {numbers}")
    return "<br>".join(lines)


def _buttons(colours: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """Plotly buttons that choose what the colours of a heat map mean."""
    buttons = []
    for name, z in colours.items():
        finite = [v for row in z for v in row if math.isfinite(v)]
        most = 1.0 if name == "probability" else max(finite, default=1.0)
        change = {"z": [z], "zmax": [most], "colorbar.title.text": [name]}
        buttons.append({"label": name, "method": "restyle", "args": [change]})
    place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 4}}
    return {"type": "buttons", "direction": "right", "buttons": buttons, **place}


def target_curves(lens: "LogitLens", batch: int, slot: int) -> "go.Figure":
    """See `LogitLens.plot_targets`."""
    import plotly.graph_objects as go

    column = [j for j, p in enumerate(lens.position[batch].tolist()) if p >= 0][slot]
    figure = go.Figure()
    for index, id in enumerate(lens.targets):
        name = report.plotly_text(_token(lens, id))
        figure.add_scatter(
            x=[str(point) for point in lens.points],
            y=lens.target_log_probs[:, batch, column, index].tolist(),
            customdata=lens.target_ranks[:, batch, column, index].tolist(),
            text=[name] * len(lens.points),
            name=name,
            mode="lines+markers",
            hovertemplate="<b>%{text}</b> at %{x}<br>log-probability %{y:.3f} nats<br>"
            "rank %{customdata}<extra></extra>",
        )
    figure.update_layout(
        template=report.template(),
        height=340,
        showlegend=True,
        margin=_MARGIN,
        xaxis={"tickangle": -50},
        yaxis={"title": "log-probability, nats"},
    )
    return figure


# ------------------------------------------------------------------ the page


def page(lenses: Sequence[tuple[str, "LogitLens"]]) -> report.Page:
    """A page of one or several lenses, each with a name (of a file, say), or "" for none."""
    first = lenses[0][1]
    page = report.Page(
        f"Logit lens: {first.provenance.model}",
        "What the model would predict if it stopped at a point: what is there, through the final "
        f"layer norm and the unembedding. {KL} says how far that is from the model's own "
        "prediction. Blanks are shown as ·, line ends as ⏎.",
    )
    for name, lens in lenses:
        for batch, ids in enumerate(lens.tokens):
            which = f"{', ' if name else ' '}{batch}" if len(lens.tokens) > 1 else ""
            page.heading((name or "Prompt") + which)
            page.tokens([_token(lens, id) for id in ids], lens.prepend_bos is True)
            page.text(f"{len(ids)} tokens, {bos_note(lens.prepend_bos)}.")
            _show_on(page, lens, batch)
    page.data("logit_lens", table_of(lenses))
    page.provenance(first.provenance)
    return page


def _show_on(page: report.Page, lens: "LogitLens", batch: int) -> None:
    positions = _positions(lens, batch)
    last = positions[-1]
    at = f"after position {last} {_token(lens, lens.tokens[batch][last])}"
    figure = lens.plot(batch)
    if len(positions) > 1:
        caption = (
            "The likeliest next token at every point (bottom: first, top: last) after every "
            "position. Hover for more."
        )
        if len(lens.points) * len(positions) > _MOST_LABELS:
            caption += " Too many cells for words in them."
    else:
        caption = f"Predictions {at} at every point (bottom: first, top: last). Hover for more."
    page.figure(figure, caption)
    if lens.targets:
        page.figure(lens.plot_targets(batch), f"Targets {at}.")
    labels, columns = _table(lens, batch, len(positions) - 1)
    whole = [*labels, *columns]
    page.text(f"Predictions {at}; {_units(lens)}.")
    page.table(
        [column.header for column in whole],
        [
            [c.text if c.shade is None else report.Shaded(c.text, c.shade) for c in row]
            for row in zip(*(column.cells for column in whole), strict=True)
        ],
    )


# ------------------------------------------------------------------ the terminal


def _units(lens: "LogitLens") -> str:
    return f"entropy, {KL} and log p in nats" if lens.targets else f"entropy and {KL} in nats"


def show(lens: "LogitLens", console: "Console") -> None:
    """Print a lens: a table of one position, or a grid of points by positions."""
    option = "--no-prepend-bos leaves it out" if lens.prepend_bos else "--prepend-bos adds it"
    note = bos_note(lens.prepend_bos) + ("" if lens.prepend_bos is None else f"; {option}")
    for batch, ids in enumerate(lens.tokens):
        shown = " ".join(_token(lens, id) for id in ids)
        console.print(f"{len(ids)} tokens ({note}):", style="dim")
        console.print(shown)
        console.print()
        positions = _positions(lens, batch)
        if len(positions) == 1:
            at = f"position {positions[0]} {_token(lens, ids[positions[0]])}"
            console.print(f"predictions after {at}; {_units(lens)}")
            cli.print_table(console, *_table(lens, batch, 0), "columns")
        else:
            console.print("likeliest next token after each position, probability in hundredths")
            cli.print_table(console, *_grid(lens, batch, positions), "positions")
    cli.print_scale(console, "probability")


def _points_column(lens: "LogitLens") -> cli.Column:
    return cli.Column("point", [cli.Cell(str(point)) for point in lens.points])


def _table(lens: "LogitLens", batch: int, slot: int) -> tuple[list[cli.Column], list[cli.Column]]:
    """One position: per point its entropy, divergence, targets and predictions."""
    labels, columns = [_points_column(lens)], []
    for name, values in (("entropy", lens.entropy), ("KL", lens.kl_final_lens)):
        texts = [f"{number:.2f}" for number in values[:, batch, slot].tolist()]
        labels.append(_right(name, [cli.Cell(text) for text in texts]))
    for index, id in enumerate(lens.targets):
        log_probs = lens.target_log_probs[:, batch, slot, index].tolist()
        ranks = lens.target_ranks[:, batch, slot, index].tolist()
        wide = len(str(max(ranks)))
        cells = [
            cli.Cell(f"{p:.2f} rank {r:>{wide}}", math.exp(p))
            for p, r in zip(log_probs, ranks, strict=True)
        ]
        columns.append(_right(f"log p {_token(lens, id, 14)}", cells))
    for k in range(lens.top_tokens.shape[-1]):
        ids = lens.top_tokens[:, batch, slot, k].tolist()
        probs = lens.top_probs[:, batch, slot, k].tolist()
        cells = [
            cli.Cell(f"{cli.probability(p)} {_token(lens, id, 14)}", p)
            for id, p in zip(ids, probs, strict=True)
        ]
        columns.append(cli.Column(f"rank {k}", cells))
    return labels, columns


def _right(header: str, cells: Sequence[cli.Cell]) -> cli.Column:
    wide = max(len(cell.text) for cell in cells)
    return cli.Column(
        header.rjust(wide), [cell._replace(text=cell.text.rjust(wide)) for cell in cells]
    )


def _grid(
    lens: "LogitLens", batch: int, positions: Sequence[int]
) -> tuple[list[cli.Column], list[cli.Column]]:
    """Several positions: per point and position the likeliest token."""
    columns = []
    for slot, position in enumerate(positions):
        ids = lens.top_tokens[:, batch, slot, 0].tolist()
        probs = lens.top_probs[:, batch, slot, 0].tolist()
        cells = [
            cli.Cell(f"{_token(lens, id, 10)} {100 * p:02.0f}", p)
            for id, p in zip(ids, probs, strict=True)
        ]
        columns.append(
            cli.Column(f"{position} {_token(lens, lens.tokens[batch][position], 10)}", cells)
        )
    return [_points_column(lens)], columns
