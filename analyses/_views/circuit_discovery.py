"""How circuits and what is measured of them look: figures, pages, tables for the terminal."""

import math
from typing import TYPE_CHECKING, Any

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.pairs import add_prompts, show_prompts
from analyses._views.words import count

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console

    from analyses._discovery.comparison import ROC, Comparison
    from analyses._discovery.criteria import Completeness, Minimality
    from analyses._discovery.faithfulness import Faithfulness
    from analyses._discovery.result import Discovery

_LINE = "#2f78bb"
_QUIET = "#808790"
_MOST_ROWS = 60
_GRAPH = (
    "From the input (below) to the logits (above). Solid lines go into queries, dashed ones into "
    "keys, dotted ones into values; into MLPs and logits they are solid. Thicker is stronger. Rest "
    "the pointer on a line or a node for names and scores."
)
_NODES = "From the input (below) to the logits (above). Rest the pointer on a node for its role."
_SCORES = {
    "EAP": "score: the estimated change of {metric} if the edge is patched",
    "ACDC": "score: the change of {metric} when it is left out",
    "greedy": "score: the change of {metric} when it is left out (added: as it was put in)",
}


# ------------------------------------------------------------------ a search


def page(
    result: "Discovery", top_k: int = 30, comparison: "Comparison | None" = None
) -> report.Page:
    """A page with the graph, what it keeps of the metric, its edges, the decisions, provenance."""
    circuit, unit = result.circuit, result.unit
    page = report.Page(f"Circuit: {result.provenance.model}", lead(result))
    if result.faithfulness is not None:
        add_prompts(page, result.faithfulness.pair)
        page.text(ends(result.faithfulness))
    page.heading("The circuit")
    if len(circuit):
        page.figure(circuit.plot(), _GRAPH if unit == "edge" else _NODES)
    else:
        page.text("It is empty.")
    headers, rows, shades = strongest(result, top_k)
    if rows:
        page.heading(f"{'The strongest of its' if len(rows) < len(circuit) else 'Its'} {unit}s")
        page.table(
            headers,
            [
                [effects_views.diverging(t, shade) if h == "score" else t
                 for h, t in zip(headers, row, strict=True)]
                for row, shade in zip(rows, shades, strict=True)
            ],
        )  # fmt: skip
        page.text(_score_words(result))
    if comparison is not None:
        page.heading("Compared with the reference")
        page.text(compared(comparison))
        for words, members in (
            ("In both", comparison.both),
            ("Only found", comparison.only_found),
            ("Only in the reference", comparison.only_reference),
        ):
            page.text(f"{words}: {', '.join(map(str, members[:_MOST_ROWS])) or 'none'}"
                      + (", ..." if len(members) > _MOST_ROWS else ""))  # fmt: skip
    if result.steps:
        page.heading("The search")
        page.text(
            f"{result.criterion} of the circuit after each decision; every point can be pointed at."
        )
        page.figure(steps_figure(result))
        page.data("decisions", result.steps_frame())
    page.data("circuit", result.to_frame())
    page.provenance(result.provenance)
    return page


def lead(result: "Discovery") -> str:
    """What was found, in a sentence."""
    n = len(result.circuit)
    return f"{n:,} of {count(result.n_all, result.unit)}, found by {result.method}."


def _score_words(result: "Discovery") -> str:
    for name, words in _SCORES.items():
        if result.method.startswith(name):
            return words.format(metric=result.criterion) + "."
    return "score: as its method gives it."


def percent(share: Any) -> str:
    """A share in percent; a dash where there is none, and no minus before zero."""
    if not math.isfinite(float(share)):
        return "–"
    text = f"{float(share):.1%}"
    return "0.0%" if text == "-0.0%" else text


def ends(faithfulness: "Faithfulness", at: int = 0) -> str:
    """What one circuit keeps, in words."""
    f = faithfulness
    share = f"{percent(f.share[at])} of the whole model's, and "
    if math.isnan(float(f.share[at])):
        share = ""  # of a divergence, which is 0 of the whole model
    return (
        f"{f.metric} with {f.instead} in place of the rest: circuit {float(f.mean[at]):.3f}, whole "
        f"model {float(f.clean.mean()):.3f}, empty circuit {float(f.empty.mean()):.3f}. That is "
        f"{share}{percent(f.recovered[at])} of the "
        "way from the empty circuit to it."
    )


def compared(comparison: "Comparison") -> str:
    """A comparison in words."""
    c = comparison
    return (
        f"Against the reference, {c.level}: precision {c.precision:.1%}, recall {c.recall:.1%}, "
        f"F1 {c.f1:.3f} ({len(c.both)} in both, {len(c.only_found)} only found, "
        f"{len(c.only_reference)} only in the reference, of {c.n_all})."
    )


def strongest(result: "Discovery", k: int) -> tuple[list[str], list[list[str]], list[float]]:
    """A table of the k largest scores: headers, rows of text, and how strong each is (-1 to 1)."""
    circuit = result.circuit
    scores: dict[Any, float] = dict(circuit.scores)
    order = sorted(circuit, key=lambda one: -abs(scores.get(one, 0.0)))[:k]
    most = max((abs(score) for score in scores.values()), default=0.0) or 1.0
    rows = []
    for one in order:
        # An edge is two names, a node one.
        names = str(one).split(" → ")
        score = scores.get(one)
        rows.append([*names, "" if score is None else f"{score:+.4f}"])
    names = ["sender", "receiver"] if result.unit == "edge" else ["node"]
    return [*names, "score"], rows, [scores.get(one, 0.0) / most for one in order]


def steps_figure(result: "Discovery") -> "go.Figure":
    """The criterion after each decision, those that stayed marked."""
    import plotly.graph_objects as go

    steps = [step for step in result.steps if step.run]
    # What stays was run without; the circuit's own value is that before.
    value = [step.before if step.kept and not _added(result) else step.after for step in steps]
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(len(steps))),
        y=value,
        mode="lines",
        line={"color": _LINE, "width": 2},
        text=[report.plotly_text(str(step.item)) for step in steps],
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        name="circuit",
    )
    stayed = [i for i, step in enumerate(steps) if step.kept]
    figure.add_scatter(
        x=stayed,
        y=[steps[i].after for i in stayed],
        mode="markers",
        marker={"size": 6, "color": "#d0633c"},
        text=[report.plotly_text(str(steps[i].item)) for i in stayed],
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        name="with it" if _added(result) else "without what stayed",
    )
    figure.update_layout(
        template=report.template(),
        height=320,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": "circuits run, in order of the decisions"},
        yaxis={"title": report.plotly_text(result.criterion)},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    return figure


def _added(result: "Discovery") -> bool:
    return result.method.startswith("greedy, add")


def show(
    result: "Discovery", console: "Console", top_k: int, comparison: "Comparison | None" = None
) -> None:
    """Print the prompts, what was found, and the strongest edges or nodes."""
    console.print(lead(result), soft_wrap=True)
    console.print()
    if result.faithfulness is not None:
        show_prompts(result.faithfulness.pair, console)
        console.print(ends(result.faithfulness), soft_wrap=True)
    if comparison is not None:
        console.print(compared(comparison), soft_wrap=True)
    headers, rows, shades = strongest(result, top_k)
    console.print()
    console.print(f"{len(rows)} of {count(len(result.circuit), result.unit)}")
    columns = []
    for i, header in enumerate(headers):
        cells = [
            cli.Cell(row[i], abs(shade) if header == "score" else None)
            for row, shade in zip(rows, shades, strict=True)
        ]
        columns.append(
            effects_views.right(header, cells) if header == "score" else cli.Column(header, cells)
        )
    cli.print_table(console, columns[:-1], columns[-1:], "columns")
    console.print(_score_words(result), style="dim", soft_wrap=True)


# ------------------------------------------------------------------ faithfulness


def curve(result: "Faithfulness") -> "go.Figure":
    """See `Faithfulness.plot`."""
    import plotly.graph_objects as go

    names = list(result.circuits)
    sizes = [len(circuit) for circuit in result.circuits.values()]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    recovered, share = result.recovered.tolist(), result.share.tolist()
    figure = go.Figure()
    for label, values, colour in (
        ("recovered: (F(C) - F(empty)) / (F(M) - F(empty))", recovered, _LINE),
        ("share: F(C) / F(M)", share, "#d0633c"),
    ):
        figure.add_scatter(
            x=[sizes[i] for i in order],
            y=[values[i] for i in order],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            text=[report.plotly_text(names[i]) for i in order],
            hovertemplate="%{text}: %{x}<br>%{y:.1%}<extra></extra>",
            name=label,
        )
    figure.add_hline(y=1, line={"color": _QUIET, "width": 1, "dash": "dot"})
    unit = "nodes" if hasattr(next(iter(result.circuits.values())), "kept") else "edges"
    figure.update_layout(
        template=report.template(),
        height=420,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": f"{unit} in the circuit",
               "type": "log" if min(sizes) > 0 and max(sizes) > 30 * min(sizes) else "linear"},
        yaxis={"title": report.plotly_text(result.metric), "tickformat": ".0%"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )  # fmt: skip
    return figure


def faithfulness_page(result: "Faithfulness") -> report.Page:
    """A page with the curve and a table of the circuits."""
    page = report.Page(
        f"Circuits: {result.provenance.model}",
        f"How much of {result.metric} the model keeps when it runs as a circuit, with "
        f"{result.instead} in place of the rest.",
    )
    add_prompts(page, result.pair)
    page.text(
        f"{result.metric}: whole model {float(result.clean.mean()):.3f}, empty circuit "
        f"{float(result.empty.mean()):.3f}; means over {count(len(result.pair), 'example')}."
    )
    if len(result.circuits) > 1:
        page.figure(result.plot(), "Against the size of the circuit. Hover for names.")
    frame: Any = result.to_frame()
    page.table(
        ["circuit", "size", "F(C)", "± s.e.", "share", "recovered"],
        [
            [
                row["circuit"],
                str(row["size"]),
                f"{row['value']:.4f}",
                "" if math.isnan(row["stderr"]) else f"{row['stderr']:.4f}",
                f"{percent(row['share'])}",
                f"{percent(row['recovered'])}",
            ]
            for _, row in frame.iterrows()
        ],
    )
    page.text(
        "share: F(C) / F(M). recovered: (F(C) - F(empty)) / (F(M) - F(empty)). Means over examples."
    )
    page.data("faithfulness", frame)
    page.provenance(result.provenance)
    return page


# ------------------------------------------------------------------ completeness, minimality


def completeness_figure(result: "Completeness") -> "go.Figure":
    """See `Completeness.plot`."""
    import plotly.graph_objects as go

    frame: Any = result.to_frame()
    figure = go.Figure()
    both = [*frame["circuit"], *frame["model"]]
    low, high = min(both), max(both)
    room = 0.07 * (high - low) or 1.0
    span = [low - room, high + room]
    figure.add_scatter(
        x=span, y=span, mode="lines", hoverinfo="skip", showlegend=False,
        line={"color": _QUIET, "width": 1, "dash": "dot"},
    )  # fmt: skip
    for kind, rows in frame.groupby("kind", sort=False):
        figure.add_scatter(
            x=rows["model"].tolist(),
            y=rows["circuit"].tolist(),
            mode="markers",
            marker={"size": 9, "opacity": 0.8},
            text=[
                f"{report.plotly_text(row['set'])} ({row['size']})<br>"
                f"{report.plotly_text(cli.shorten(row['nodes'], 90))}"
                for _, row in rows.iterrows()
            ],
            hovertemplate="%{text}<br>model %{x:.4g}<br>circuit %{y:.4g}<extra></extra>",
            name=report.plotly_text(str(kind)),
        )
    figure.update_layout(
        template=report.template(),
        width=660,
        height=520,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis={"title": report.plotly_text(f"F(M \\ K): {result.metric} of the model"),
               "range": span},
        yaxis={"title": "F(C \\ K): of the circuit", "range": span},
    )  # fmt: skip
    return figure


def completeness_page(result: "Completeness") -> report.Page:
    """A page with the figure and the sets, the largest gap first."""
    page = report.Page(
        f"Completeness of a circuit: {result.provenance.model}",
        "The circuit C and the whole model M, both without a set K of the circuit's nodes. A "
        "complete circuit falls as the model does: on the dotted line.",
    )
    page.text(f"In place of what is left out: {result.instead}.")
    page.figure(result.plot(), "A point per set K. Hover for its nodes.")
    frame: Any = result.to_frame().sort_values("gap", ascending=False)
    page.table(
        ["set", "size", "F(C \\ K)", "F(M \\ K)", "gap", "nodes"],
        [
            [
                row["set"],
                str(row["size"]),
                f"{row['circuit']:.4f}",
                f"{row['model']:.4f}",
                f"{row['gap']:.4f}",
                row["nodes"],
            ]
            for _, row in frame.head(_MOST_ROWS).iterrows()
        ],
    )
    page.data("completeness", result.to_frame())
    page.provenance(result.provenance)
    return page


def minimality_figure(result: "Minimality") -> "go.Figure":
    """See `Minimality.plot`."""
    import plotly.graph_objects as go

    frame: Any = result.to_frame().sort_values("score", ascending=False)
    figure = go.Figure(
        go.Bar(
            x=[report.plotly_text(node) for node in frame["node"]],
            y=frame["share"].tolist(),
            marker={"color": _LINE},
            customdata=[
                f"{report.plotly_text(row['role'])}<br>K: {report.plotly_text(row['set'])}<br>"
                f"{row['without_set']:.4g} with, {row['without_both']:.4g} without"
                for _, row in frame.iterrows()
            ],
            hovertemplate="<b>%{x}</b> %{customdata}<br>%{y:.1%}<extra></extra>",
        )
    )
    figure.update_layout(
        template=report.template(),
        height=380,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"type": "category", "title": "node", "tickangle": -60},
        yaxis={"title": f"of F(M), {report.plotly_text(result.metric)}", "tickformat": ".0%"},
    )
    return figure


def minimality_page(result: "Minimality") -> report.Page:
    """A page with the figure and a table of the nodes."""
    page = report.Page(
        f"Minimality of a circuit: {result.provenance.model}",
        "How much each node v matters to the circuit C without some set K of the others: "
        "|F(C \\ (K with v)) - F(C \\ K)|, for the K of those tried that makes it largest.",
    )
    page.text(f"In place of what is left out: {result.instead}.")
    page.figure(result.plot(), "As a share of F(M) of the whole model. Hover for the sets.")
    frame: Any = result.to_frame().sort_values("score", ascending=False)
    page.table(
        ["node", "role", "K", "F(C \\ K)", "F(C \\ (K with v))", "score", "share"],
        [
            [
                row["node"],
                row["role"],
                row["set"],
                f"{row['without_set']:.4f}",
                f"{row['without_both']:.4f}",
                f"{row['score']:.4f}",
                f"{percent(row['share'])}",
            ]
            for _, row in frame.iterrows()
        ],
    )
    page.data("minimality", result.to_frame(every=True))
    page.provenance(result.provenance)
    return page


# ------------------------------------------------------------------ ROC


def roc_figure(result: "ROC") -> "go.Figure":
    """See `ROC.plot`."""
    import plotly.graph_objects as go

    xs, ys = list(result.false_positive), list(result.true_positive)
    figure = go.Figure()
    bounds = {"hv": "pessimistic", "vh": "optimistic"}
    for shape, name in bounds.items():
        figure.add_scatter(
            x=xs, y=ys, mode="lines", hoverinfo="skip", showlegend=False,
            line={"shape": shape, "width": 0, "color": _LINE},
            fill="tonexty" if name == "optimistic" else None,
            fillcolor="rgba(79,143,201,0.25)",
        )  # fmt: skip
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines+markers",
        line={"color": _LINE, "width": 2},
        marker={"size": 6},
        text=[report.plotly_text(label) for label in result.labels],
        hovertemplate="%{text}<br>%{x:.1%} of the rest, %{y:.1%} of the circuit<extra></extra>",
        showlegend=False,
    )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", hoverinfo="skip", showlegend=False,
        line={"color": _QUIET, "width": 1, "dash": "dot"},
    )  # fmt: skip
    figure.update_layout(
        template=report.template(),
        width=520,
        height=480,
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        title={"text": f"area {result.auc():.3f}", "font": {"size": 14}},
        xaxis={"title": "false-positive rate", "range": [-0.02, 1.02]},
        yaxis={"title": "true-positive rate", "range": [-0.02, 1.02]},
    )
    return figure
