"""Figures of predictions, branches and surprisal."""

import math
from typing import TYPE_CHECKING, Any

from analyses import cli, report
from analyses._views.next_token import at_temperature, notes, token

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analyses._next_token.result import NextToken
    from analyses._next_token.surprisal import Surprisal
    from analyses._next_token.tree import Branches

_MARGIN = {"l": 10, "r": 10, "t": 40, "b": 10}
_PAGE_WIDTH = 1340
# Trees: of each column, the part that a token takes; its width, and how high a branch is, in
# pixels; letters of a token; how much wider a line is for a branch of probability 1.
_LABEL, _COLUMN, _SLOT, _LABEL_LETTERS = 0.8, 190, 30, 16
_LINE_WIDTHS, _BEND_STEPS = 10, 12
_BRANCH = "rgba(64,132,196,0.6)"  # good on light and dark pages
_WIDEST = 16000  # browsers draw no wider picture


def bars(result: "NextToken", batch: int) -> "go.Figure":
    """See `NextToken.plot`."""
    import plotly.graph_objects as go

    ids, probs = result.top_tokens[batch].tolist(), result.top_probs[batch].tolist()
    logits, log_probs = result.top_logits[batch].tolist(), result.top_log_probs[batch].tolist()
    hovers = [
        f"rank {rank}: <b>{_isolated(token(result, id))}</b><br>probability {p:.6g}<br>"
        f"log-probability {q:.4f} nats ({q / math.log(2):.4f} bits)<br>logit {logit:.4f}"
        for rank, (id, p, q, logit) in enumerate(zip(ids, probs, log_probs, logits, strict=True))
    ]
    places = list(range(len(ids)))
    figure = go.Figure(
        go.Bar(
            x=probs,
            y=places,
            orientation="h",
            text=[cli.probability(p) for p in probs],
            textposition="outside",
            cliponaxis=False,
            customdata=hovers,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    most = max(probs)
    figure.update_layout(
        template=report.template(),
        width=720,
        height=90 + 26 * len(ids),
        margin=_MARGIN,
        bargap=0.25,
        # Room for the number behind the longest bar.
        xaxis={"title": f"probability{at_temperature(result.temperature)}",
               "range": [0, most * 1.12]},
        yaxis={
            "tickvals": places,
            "ticktext": [f"{_isolated(token(result, id, 24))} " for id in ids],
            "autorange": "reversed",
            "showgrid": False,
        },
    )  # fmt: skip
    return figure


def tree_figure(tree: "Branches") -> "go.Figure":
    """See `Branches.plot`."""
    import plotly.graph_objects as go

    rows = list(tree.rows())
    heights = _heights(tree)
    bottom = max(heights.values())
    # Lines of about equal width are one trace: its width cannot change along it.
    root = [0.0, _LABEL, None], [0.0, 0.0, None]  # under the end of the prompt
    lines: dict[int, tuple[list[float | None], list[float | None]]] = {_line(1.0): root}
    for row in rows:
        x, y = lines.setdefault(_line(row["total_prob"]), ([], []))
        level, end, start = row["level"], heights[row["node"]], heights[row["parent"]]
        # A bend from the parent's line to this one, which then runs under its token.
        for step in range(_BEND_STEPS + 1):
            share = step / _BEND_STEPS
            x.append(level - 1 + _LABEL + (1 - _LABEL) * share)
            y.append(start + (end - start) * share * share * (3 - 2 * share))
        x += [level + _LABEL, None]
        y += [end, None]
    figure = go.Figure()
    for width, (x, y) in sorted(lines.items()):
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"width": width, "color": _BRANCH},
            hoverinfo="skip",
        )
    end_of_prompt = token(tree, tree.tokens[0][-1], _LABEL_LETTERS - 1)
    labels, hovers = [_isolated(f"…{end_of_prompt}")], ["the end of the prompt"]
    places = [heights[-1] - _line(1.0) / 2 / _SLOT]
    for row in rows:
        # On its line, however wide that is.
        places.append(heights[row["node"]] - _line(row["total_prob"]) / 2 / _SLOT)
        text = token(tree, row["token_id"], _LABEL_LETTERS)
        labels.append(f"{_isolated(text)} <b>{cli.probability(row['prob'])}</b>")
        hovers.append(
            f"<b>{_isolated(cli.shorten(cli.visible(row['text']), 80))}</b><br>"
            f"{_isolated(token(tree, row['token_id']))}: probability {row['prob']:.6g}, rank "
            f"{row['rank']}<br>the branch up to it: {row['total_prob']:.6g} "
            f"({row['total_log_prob']:.4f} nats)" + ("<br>the text ends" * row["ended"])
        )
    figure.add_scatter(
        x=[0.0, *(row["level"] for row in rows)],
        y=places,
        mode="text",
        text=labels,
        textposition="top right",
        textfont={"size": 13},
        customdata=hovers,
        hovertemplate="%{customdata}<extra></extra>",
        cliponaxis=False,
    )
    axis = {"visible": False, "fixedrange": True}
    figure.update_layout(
        template=report.template(),
        width=40 + _COLUMN * (1 + int(tree.level.max())),
        height=round(90 + _SLOT * (1 + bottom)),
        margin=_MARGIN,
        showlegend=False,
        xaxis=axis | {"range": [-0.02, int(tree.level.max()) + 1]},
        yaxis=axis | {"range": [bottom + 0.4, -0.9]},
    )
    return figure


def _line(total: float) -> int:
    """How wide a line is, in pixels, for a branch of this probability."""
    return 1 + math.ceil(_LINE_WIDTHS * total)


def _heights(tree: "Branches") -> dict[int, float]:
    """Where each node is from top to bottom: the likeliest child beside its parent, the others
    below; so the likeliest way on is a straight line. The prompt is -1."""
    heights, below = {-1: 0.0}, -1.0
    for node, parent in enumerate(tree.parent.tolist()):
        if tree.children(parent)[0] == node:
            heights[node] = heights[parent]
            below = max(below, heights[node])
        else:
            below += 1.0
            heights[node] = below
    return heights


def curve(result: "Surprisal", batch: int) -> "go.Figure":
    """See `Surprisal.plot`."""
    import plotly.graph_objects as go

    ids = result.tokens[batch]
    n = len(ids)
    ticks = [f"{p}  {_isolated(token(result, id, 14))}" for p, id in enumerate(ids)]
    hovers = [_plain_lines(line) for line in notes(result, batch)]
    figure = go.Figure(
        go.Bar(
            x=list(range(n)),
            y=_numbers(result.surprisal[batch, :n]),
            name="surprisal",
            customdata=hovers,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=list(range(n)),
        y=_numbers(result.entropy[batch, :n]),
        name="entropy: the surprisal to be expected",
        mode="lines+markers",
        marker={"size": 5},
        hoverinfo="skip",
        connectgaps=False,
    )
    step = max(1, math.ceil(n / 800))
    figure.update_layout(
        template=report.template(),
        height=380,
        margin=_MARGIN,
        bargap=0.2,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"tickvals": list(range(0, n, step)), "ticktext": ticks[::step], "tickangle": -50,
               "showgrid": False},
        yaxis={"title": "nats", "rangemode": "tozero"},
    )  # fmt: skip
    if (width := 140 + 24 * n) > _PAGE_WIDTH:
        figure.update_layout(width=min(width, _WIDEST))
    return figure


def _numbers(values: Any) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _isolated(text: str) -> str:
    """As plotly's markup, and so that words written from right to left leave the rest in place."""
    return report.isolated(report.plotly_text(text))


def _plain_lines(text: str) -> str:
    return "<br>".join(_isolated(line) for line in text.split("\n"))
