"""How causal traces look: figures, pages, and tables for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.words import bos_sentence

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from rich.console import Console

    from analyses._traces import AverageTrace, CausalTrace
    from analyses.effects import Effects

VIEWS = ("resid_post", "mlp_out", "attn_out", "mlp_severed", "attn_severed")
FIGURE_1 = VIEWS[:3]

_SEVERED = ("mlp_severed", "attn_severed")
# Roles where there is little room.
_SHORT = ("S first", "S middle", "S last", "next", "further", "end")
_SHORT_MEANS = "S: subject; next: the first token after it; end: the last token"
_WHAT = {
    "resid_post": "one state of the residual stream restored",
    "mlp_out": "the MLPs of a window of layers restored",
    "attn_out": "the attention of a window of layers restored",
    "mlp_severed": "as resid_post, later MLPs at that token severed",
    "attn_severed": "as resid_post, later attention at that token severed",
}


# ------------------------------------------------------------------ figures


def heat_maps(
    views: "Mapping[str, Effects]", chosen: str | Sequence[str] | None, rows: str
) -> "go.Figure":
    """See `CausalTrace.plot`; `rows` is the axis from top to bottom."""
    from hooks.names import nearest

    if chosen is None:
        names = [name for name in views if name not in _SEVERED] or list(views)
    else:
        names = [chosen] if isinstance(chosen, str) else list(chosen)
    for name in names:
        if name not in views:
            raise ValueError(
                f"this trace has no view {name!r}.{nearest(name, views)} It has {', '.join(views)}"
            )
    if not names:
        raise ValueError(f"no view to plot; there is {', '.join(views)}")
    panels = [(name, views[name]) for name in names]
    figure = effects_views.panels(panels, "change", rows=[rows])
    figure.update_yaxes(autorange="reversed", title=None)
    return figure


def severed_bars(views: "Mapping[str, Effects]", place: int) -> "go.Figure":
    """See `CausalTrace.plot_severed`; `place` is on the axis of tokens or roles."""
    import plotly.graph_objects as go

    severed = [name for name in _SEVERED if name in views]
    if not severed or "resid_post" not in views:
        raise ValueError(
            f"this needs the views resid_post and {' or '.join(_SEVERED)}; there is "
            f"{', '.join(views)}"
        )
    figure = go.Figure()
    titles = {"resid_post": "as it is", "mlp_severed": "MLPs severed"}
    for name in ("resid_post", *severed):
        effects = views[name]
        figure.add_bar(
            x=list(effects.labels["layer"]),
            y=effects.change[:, place].tolist(),
            error_y={
                "type": "data",
                "array": effects.change_stderr[:, place].nan_to_num(0.0).tolist(),
                "thickness": 1,
                "width": 2,
            },
            name=titles.get(name, "attention severed"),
            hovertemplate="layer %{x}: %{y:.4f}",
        )
    n_bars = (1 + len(severed)) * len(views["resid_post"].labels["layer"])
    figure.update_layout(
        template=report.template(),
        height=340,
        width=min(1340, 320 + 24 * n_bars),
        barmode="group",
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        xaxis={"title": "layer of the restored state", "type": "category"},
        yaxis={"title": f"change of {report.plotly_text(views['resid_post'].metric)}"},
    )
    return figure


# ------------------------------------------------------------------ tables


def _strongest(
    views: "Mapping[str, Effects]", k: int
) -> tuple[list[str], list[list[str]], list[float]]:
    """The k largest effects of all views: headers, rows, and how strong each is (-1 to 1)."""
    found = []
    for name, effects in views.items():
        changes, errors = effects.change, effects.change_stderr
        for place in effects.strongest(k, "change"):
            change, stderr = float(changes[place]), float(errors[place])
            if change == 0:
                continue
            where = [effects.labels[axis][i] for axis, i in zip(effects.axes, place, strict=True)]
            share = ""
            if effects.scale == "normalised":
                share = f"{100 * float(effects.normalised[place]):.1f} %"
            error = "" if math.isnan(stderr) else f"{stderr:.4f}"
            row = [name, *where, f"{change:+.4f}", *[error][: effects.n_examples > 1], share]
            found.append((change, row))
    found = sorted(found, key=lambda one: -abs(one[0]))[:k]
    most = abs(found[0][0]) if found else 1.0
    first = next(iter(views.values()))
    error = ["± s.e."][: first.n_examples > 1]
    headers = ["view", *first.axes, "indirect effect", *error, "of total effect"]
    return headers, [row for _, row in found], [size / most for size, _ in found]


def best_lines(views: "Mapping[str, Effects]") -> list[str]:
    """For each view its largest effect, in a line."""
    lines = []
    for name, effects in views.items():
        place = effects.strongest(1, "change")[0]
        lines.append(f"  {name}: {float(effects.change[place]):+.4f} at {effects.where(place)}")
    return lines


# ------------------------------------------------------------------ pages


def _explained(window: int, noise: float, samples: int, seed: int) -> str:
    return (
        f"Noise of standard deviation {noise:.4g} on the subject's token embeddings, {samples} "
        f"draw{'s'[: samples != 1]}, seed {seed}. mlp_out and attn_out restore windows of {window} "
        f"layer{'s'[: window != 1]}. Shown: what restoring gives back of the probability of the "
        "answer (indirect effect), mean over draws."
    )


def page(name: str, trace: "CausalTrace", top_k: int = 10) -> report.Page:
    """One trace, with a name (of a file, say), or "" for none."""
    page = report.Page(
        f"Causal tracing: {trace.provenance.model}",
        _explained(trace.window, trace.noise, trace.samples, trace.seed),
    )
    _add_trace(page, name or "Prompt", trace, top_k)
    page.data("causal_tracing", trace.to_frame())
    page.provenance(trace.provenance)
    return page


def _add_trace(page: report.Page, name: str, trace: "CausalTrace", top_k: int) -> None:
    page.heading(name)
    page.tokens(_tokens(trace), trace.prepend_bos is True)
    page.text(
        f"{_summary(trace)} Tokens of the subject have a *. {bos_sentence(trace.prepend_bos)}."
    )
    _add_views(page, trace, top_k)


def _add_views(page: report.Page, result: "CausalTrace | AverageTrace", top_k: int) -> None:
    shown = [name for name in result.views if name not in _SEVERED]
    if shown:
        page.figure(result.plot(shown), "; ".join(f"{n}: {_WHAT[n]}" for n in shown) + ".")
    severed = [name for name in _SEVERED if name in result.views]
    if severed:
        page.figure(result.plot(severed), "; ".join(f"{n}: {_WHAT[n]}" for n in severed) + ".")
        if "resid_post" in result.views:
            page.figure(
                result.plot_severed(),
                "Effect of one restored state at the last token of the subject, as it is and with "
                "what follows it at that token severed.",
            )
    headers, rows, shades = _strongest(result.views, top_k)
    at = headers.index("indirect effect")
    page.table(
        headers,
        [
            [*row[:at], effects_views.diverging(row[at], shade), *row[at + 1 :]]
            for row, shade in zip(rows, shades, strict=True)
        ],
    )


def average_page(
    result: "AverageTrace", top_k: int = 10, named: "Sequence[tuple[str, CausalTrace]]" = ()
) -> report.Page:
    """The averages, a line for every fact, and the traces in `named` in full."""
    first = result.traces[0]
    page = report.Page(
        f"Causal tracing of {len(result.traces)} facts: {result.provenance.model}",
        _explained(first.window, first.noise, first.samples, first.seed),
    )
    page.heading("Averages by role of the token")
    page.text(_average_summary(result))
    _add_views(page, result, top_k)
    page.heading("Facts")
    page.text(f"{bos_sentence(first.prepend_bos)}. Tokens of the subject have a *.")
    page.table(
        ["prompt", "answer", "p clean", "p corrupted", "total effect"],
        [
            [
                "".join(_tokens(trace)[trace.prepend_bos is True :]).replace("·", " "),
                cli.visible(trace.answer_string),
                f"{trace.clean:.3f}",
                f"{float(trace.corrupted):.3f}",
                f"{trace.total_effect:+.3f}",
            ]
            for trace in result.traces
        ],
    )
    for name, trace in named:
        _add_trace(page, name, trace, top_k)
    page.data("causal_tracing", result.to_frame())
    page.provenance(result.provenance)
    return page


def _tokens(trace: "CausalTrace") -> list[str]:
    return [
        cli.visible(token) + ("*" if pos in trace.subject else "")
        for pos, token in enumerate(trace.str_tokens)
    ]


def _summary(trace: "CausalTrace") -> str:
    return (
        f"p({cli.visible(trace.answer_string)}): {trace.clean:.3f} clean, "
        f"{float(trace.corrupted):.3f} corrupted; total effect {trace.total_effect:.3f}."
    )


def _average_summary(result: "AverageTrace") -> str:
    n = len(result.traces)
    text = f"{n} fact{'s'[: n != 1]}; average total effect {result.total_effect:.3f}."
    if result.unknown:
        text += (
            f" Left out, as the model does not predict their answer: {len(result.unknown)} "
            f"({'; '.join(fact.prompt for fact in result.unknown[:3])}"
            + ("; ...)." if len(result.unknown) > 3 else ").")
        )
    return text


# ------------------------------------------------------------------ the terminal


def show(trace: "CausalTrace", console: "Console", top_k: int) -> None:
    """Print a trace: a grid per view, and the strongest."""
    console.print(" ".join(_tokens(trace)), soft_wrap=True)
    console.print(f"{bos_sentence(trace.prepend_bos)}; tokens of the subject have a *", style="dim")
    console.print(_explained(trace.window, trace.noise, trace.samples, trace.seed), style="dim")
    console.print(_summary(trace))
    _show_views(trace.views, console, top_k)


def show_average(result: "AverageTrace", console: "Console", top_k: int) -> None:
    """Print averages: a grid per view, and the strongest."""
    first = result.traces[0]
    console.print(_explained(first.window, first.noise, first.samples, first.seed), style="dim")
    console.print(_average_summary(result))
    _show_views(result.views, console, top_k)


def _show_views(views: "Mapping[str, Effects]", console: "Console", top_k: int) -> None:
    for name, effects in views.items():
        console.print()
        console.print(_WHAT[name], style="dim")
        if "role" in effects.axes:
            console.print(_SHORT_MEANS, style="dim")
            effects = replace(effects, labels={**effects.labels, "role": _SHORT})
        # Without the ends of a scale the changes are shown, which are the indirect effects.
        effects_views.show(replace(effects, corrupted=None, clean=None), console, top_k)
    headers, rows, shades = _strongest(views, top_k)
    at = headers.index("indirect effect")
    columns = []
    for i, header in enumerate(headers):
        cells = [
            cli.Cell(row[i], abs(shade) if i == at else None)
            for row, shade in zip(rows, shades, strict=True)
        ]
        columns.append(cli.Column(header, cells) if i < at else effects_views.right(header, cells))
    console.print()
    console.print(f"strongest {len(rows)}")
    cli.print_table(console, columns[:at], columns[at:], "columns")
