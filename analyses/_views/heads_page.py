"""The page of scores of heads: heat maps, tables, and the attention of each head at a click."""

import math
from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._views import attribution as attribution_views
from analyses._views import heads as views

if TYPE_CHECKING:
    from analyses._heads.names import Head
    from analyses._heads.result import HeadScores

_MOST_ROWS = 40  # of the table of heads
_HOVER = "Hover for the numbers; those that round to 0 are left out."


def page(found: "HeadScores", top_k: int) -> report.Page:
    """A page with heat maps of all scores, the head table, patterns and provenance."""
    page = report.Page(
        f"Heads: {found.provenance.model}",
        "What kind of head is it? A score is the attention that a head's queries pay to where a "
        "head of that kind would look, averaged over the queries that have such a place: 1 is all "
        "of it.",
    )
    add(page, found, top_k)
    page.provenance(found.provenance)
    return page


def add(page: report.Page, found: "HeadScores", top_k: int) -> None:
    """Put scores on a page."""
    page.heading(found.source)
    attribution_views.add_prompts(page, found.str_tokens, found.prepend_bos)
    if found.hooked:
        page.text(
            f"Functions listened at {', '.join(found.hooked)}: all numbers are of runs with them."
        )
    opens = _opens(found)
    kept = views.kept_note(found)
    hint = f" Click a cell to see the head's attention below.{kept}" if opens else ""
    page.figure(
        found.plot(),
        f"Scores of every head, the mean over examples. {_HOVER}{hint}",
        opens=opens,
    )
    for name in found.without_target:
        page.text(f"{name} has no score here: no query has a target.{_why(name)}")
    page.heading("The highest heads of each score")
    _add_ranks(page, found, top_k)
    _add_table(page, found, top_k)
    _add_ablation(page, found)
    _add_copying(page, found)
    _add_patterns(page, found)


def _why(name: str) -> str:
    return " No token occurs twice." if name in views.REPEATS else ""


def _opens(found: "HeadScores") -> list[list[str]] | None:
    """For each cell `layer head` the head to open, "" where its pattern was not kept."""
    if found.patterns is None:
        return None
    kept = {str(head) for head in found.patterns.heads}
    n_layers, n_heads = found[found.names[0]].shape
    names = [[f"{layer}.{head}" for head in range(n_heads)] for layer in range(n_layers)]
    return [[name if name in kept else "" for name in row] for row in names]


def _cell(found: "HeadScores", head: "Head", text: str, shade: float) -> report.Shaded:
    """A cell that opens a head's attention, where that was kept."""
    kept = found.patterns is not None and head in found.patterns.heads
    note = f"see the attention of head {head}" if kept else f"head {head}"
    return report.Shaded(text, shade, note, opens=str(head) if kept else "")


def _add_ranks(page: report.Page, found: "HeadScores", top_k: int) -> None:
    rows = []
    for rank in views.ranks(found, top_k):
        over = views.queries(found, rank.name) if rank.name in found.names else ""
        cells: list[str | report.Shaded] = [rank.name, over, rank.even]
        for head, value in zip(rank.heads, rank.values, strict=True):
            shade = max(value, 0.0) / rank.full
            cells.append(_cell(found, head, f"{head}: {views.number(value)}", shade))
        rows.append(cells + [""] * (3 + top_k - len(cells)) + [rank.meaning])
    ordinals = [f"{i}." for i in range(1, top_k + 1)]
    page.table(["score", "mean over", "even attention", *ordinals, "what it measures"], rows)


def _add_table(page: report.Page, found: "HeadScores", top_k: int) -> None:
    heads, k = views.listed(found, top_k), top_k
    while len(heads) > _MOST_ROWS and k > 1:
        k -= 1
        heads = views.listed(found, k)
    roles, n_all = found.roles(), len(found.roles())
    many = "All heads" if len(heads) == n_all else f"{len(heads)} of {n_all} heads"
    page.text(
        f"{many}, each among the {k} highest of a score; the role is a head's highest score of "
        f"attention if that is {views.ROLE_AT_LEAST} or more."
    )
    measures = found.measures
    full = {rank.name: rank.full for rank in views.ranks(found, 1)}
    n_heads = next(iter(measures.values())).shape[1]
    rows: list[list[str | report.Shaded]] = []
    for head in heads:
        row: list[str | report.Shaded] = [_cell(found, head, str(head), 0.0)]
        for name, values in measures.items():
            value = float(values[head])
            row.append(report.Shaded(views.number(value), max(value, 0.0) / full[name]))
        rows.append([*row, roles[head.layer * n_heads + head.head]])
    page.table(["head", *measures, "role"], rows)
    page.data("head_table", found.table())
    page.data("heads", found.to_frame())


def _add_patterns(page: report.Page, found: "HeadScores") -> None:
    kept = found.patterns
    if kept is None:
        return
    n_heads = found[found.names[0]].shape[1]
    roles, notes = found.roles(), {}
    for head in kept.heads:
        role = roles[head.layer * n_heads + head.head]
        scores = [(name, float(found[name][head])) for name in found.names]
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores if not math.isnan(value))
        notes[head] = f"{role} head. {text}" if role else text
    ranked = [found.ranked(name) for name in ("induction", *found.names) if name in found.names]
    best = next(heads[0] for heads in ranked if heads)
    page.heading("Attention")
    few = views.kept_note(found)
    many = f" of prompt {kept.example}" if len(found.str_tokens) > 1 else ""
    page.head_maps(
        report.HeadMaps(
            heads=kept.heads,
            tokens=[cli.visible(token) for token in found.str_tokens[kept.example]],
            kinds=[report.MapKind("pattern", kept.values, "Attention after the softmax.", 1.0)],
            notes=notes,
            chosen=best if best in kept.heads else None,
        ),
        f"The attention{many}, head by head.{few}",
    )


def _add_ablation(page: report.Page, found: "HeadScores") -> None:
    ablation = found.ablation
    if ablation is None:
        return
    page.heading("What is lost without each head")
    page.text(views.lost(found))
    figure = ablation.effects.plot("change").update_yaxes(autorange="reversed")
    page.figure(
        figure.update_traces(colorbar_title_text="change, nats"),
        f"Change of the loss. Red: it rises without the head. {_HOVER}",
        opens=_opens(found),
    )


def _add_copying(page: report.Page, found: "HeadScores") -> None:
    copying = found.copying
    if copying is None:
        return
    page.heading("What each head writes about the token it attends to")
    page.text(views.copied(found))
    page.figure(
        copying.plot(),
        f"From the weights alone, wherever the head attends. {_HOVER}",
        opens=_opens(found),
    )
