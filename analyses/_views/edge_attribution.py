"""How edge attribution looks: a heat map, a page, and tables for the terminal."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.attribution_patching import how
from analyses._views.pairs import add_prompts, show_prompts

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console

    from analyses._agreement import Agreement
    from analyses._edges import Part
    from analyses.edge_attribution import EdgeAttribution

_WHAT = {
    "denoising": "how much the metric would change, to first order, if the receiver read what the "
    "sender wrote in the clean run, and all else were as in the corrupted run",
    "noising": "how much the metric would change, to first order, if the receiver read what the "
    "sender wrote in the corrupted run, and all else were as in the clean run",
}
_MOST_NAMED = 32
_LARGEST = 2600  # the heat map's longer side, where cells can be made small enough


def heat_map(result: "EdgeAttribution") -> "go.Figure":
    """See `EdgeAttribution.plot`."""
    import plotly.graph_objects as go

    scores = result.total.masked_fill(~result.exists, math.nan)
    limit = float(result.total.abs().max()) or 1.0
    rows, columns = ([str(part) for part in parts] for parts in (result.senders, result.receivers))
    cell = max(4, min(14, _LARGEST // len(columns)))
    figure = go.Figure(
        go.Heatmap(
            z=scores.tolist(),
            x=columns,
            y=rows,
            zmin=-limit,
            zmax=limit,
            hoverongaps=False,
            hovertemplate="<b>%{y} → %{x}</b><br>%{z:+.4g}<extra></extra>",
            colorbar={
                "title": {
                    "text": f"change of {report.plotly_text(result.metric)}",
                    "side": "right",
                },
                "thickness": 12,
            },
            xgap=int(cell > 8),
            ygap=int(cell > 8),
        )
    )
    figure.update_layout(
        template=report.template(),
        width=220 + cell * len(columns),
        height=140 + cell * len(rows),
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis={
            "title": "receiver",
            "showgrid": False,
            "tickangle": -60,
            **_named(result.receivers),
        },
        yaxis={"title": "sender", "showgrid": False, **_named(result.senders)},
    )
    return figure


def _named(parts: Sequence["Part"]) -> dict[str, object]:
    """Which coordinates are named: all, or of many the first head of each kind in each layer."""
    few = len(parts) <= _MOST_NAMED
    return {
        "type": "category",
        "tickvals": [str(part) for part in parts if few or part.head == 0],
    }


def page(result: "EdgeAttribution", top_k: int = 30) -> report.Page:
    """A page with prompts, the strongest edges, the heat map and provenance."""
    page = report.Page(
        f"Edge attribution: {result.provenance.model}",
        f"{result.direction.capitalize()}: {_WHAT[result.direction]}; {how(result.steps)}. Red "
        "edges would raise the metric, blue ones lower it. These are estimates, to be confirmed by "
        "patching.",
    )
    add_prompts(page, result.pair)
    page.text(ends(result))
    headers, rows, shades = strongest(result, top_k)
    page.heading(f"The {len(rows)} strongest edges")
    page.table(
        headers,
        [
            [
                effects_views.diverging(text, shade) if i == _SCORE else text
                for i, text in enumerate(row)
            ]
            for row, shade in zip(rows, shades, strict=True)
        ],
    )
    page.text(
        "share: the score as a part of the metric's whole difference between the two runs."
        + (" exact: the change when the edge is actually patched." if result.agreement else "")
    )
    if result.agreement is not None:
        page.heading("Agreement with exact patching")
        page.text(agreed(result.agreement))
        page.figure(
            result.agreement.plot(),
            "On the dotted line estimate and exact change are equal. Edges that the estimate "
            "misses are not among these.",
        )
    page.heading("All edges")
    page.figure(
        result.plot(),
        "Senders (bottom: first) and receivers (left: first), named by layer and head; of a head "
        "its queries, keys and values read apart. Blank where there is no edge. Hover for numbers.",
    )
    page.data("edge_attribution", result.to_frame())
    page.provenance(result.provenance)
    return page


def ends(result: "EdgeAttribution") -> str:
    """The metric of the two runs, in words."""
    n = len(result.base)
    clean, corrupted = (result.base, result.source)
    if result.direction == "denoising":
        clean, corrupted = corrupted, clean
    return (
        f"{result.metric}: clean {float(clean.mean()):.3f}, corrupted "
        f"{float(corrupted.mean()):.3f}" + (f"; means over {n} examples." if n > 1 else ".")
    )


def agreed(agreement: "Agreement") -> str:
    """An agreement in words."""
    return (
        f"{agreement.name.capitalize()}, patched one by one: Pearson correlation "
        f"{agreement.pearson:.3f}, Spearman {agreement.spearman:.3f}; exact = "
        f"{agreement.slope:.2f} x estimate."
    )


_SCORE = 2  # the column of a row that is shaded


def strongest(result: "EdgeAttribution", k: int) -> tuple[list[str], list[list[str]], list[float]]:
    """A table of the k strongest edges: headers, rows of text, and how strong each is (-1 to 1)."""
    frame: Any = result.top(k)
    several = result.scores.shape[-1] > 1
    headers = ["sender", "receiver", "score", "share"]
    exact = "exact" in frame
    headers += ["± s.e."] * several + ["exact"] * exact + ["pos"] * (result.positions is not None)
    rows = []
    for _, row in frame.iterrows():
        cells = [row["sender"], row["receiver"], f"{row['score']:+.4f}"]
        cells.append("" if math.isnan(row["share"]) else f"{row['share']:+.1%}")
        if several:
            cells.append(f"{row['stderr']:.4f}")
        if exact:
            cells.append("" if math.isnan(row["exact"]) else f"{row['exact']:+.4f}")
        if result.positions is not None:
            cells.append(row["pos_label"])
        rows.append(cells)
    most = float(frame["score"].abs().max()) or 1.0
    return headers, rows, [float(score) / most for score in frame["score"]]


def show(result: "EdgeAttribution", console: "Console", top_k: int) -> None:
    """Print the prompts and the strongest edges."""
    console.print(
        f"{result.direction}: {_WHAT[result.direction]}; {how(result.steps)}", soft_wrap=True
    )
    console.print()
    show_prompts(result.pair, console)
    console.print(ends(result))
    headers, rows, shades = strongest(result, top_k)
    edges = int(result.exists.sum()) * len(result.positions or [0])
    console.print()
    console.print(f"the strongest {len(rows)} of {edges:,} edges")
    columns = []
    for i, header in enumerate(headers):
        cells = [
            cli.Cell(row[i], abs(shade) if i == _SCORE else None)
            for row, shade in zip(rows, shades, strict=True)
        ]
        is_name = i < _SCORE or header == "pos"
        columns.append(cli.Column(header, cells) if is_name else effects_views.right(header, cells))
    cli.print_table(console, columns[:_SCORE], columns[_SCORE:], "columns")
    if result.agreement is not None:
        console.print()
        console.print(agreed(result.agreement), soft_wrap=True)
