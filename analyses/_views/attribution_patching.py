"""How attribution patching looks: a page, and tables for the terminal."""

from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.pairs import add_prompts, show_views

if TYPE_CHECKING:
    from rich.console import Console

    from analyses.attribution_patching import AttributionPatching

# A browser draws no more cells than this in reasonable time; GPT-2's neurons are half a million.
_MOST_CELLS = 50_000
_WHAT = {
    "denoising": "what putting clean activations into the corrupted run would do, to first order: "
    "1 means that this place alone would bring the clean answer back, 0 that it would do nothing",
    "noising": "what putting corrupted activations into the clean run would do, to first order: 0 "
    "means that this place alone would take the clean answer away, 1 that it would do nothing",
}


def how(steps: int | None) -> str:
    """Where gradients were taken, in words."""
    if steps is None:
        return "gradients at the run that is patched into"
    return f"gradients averaged over {steps} point{'s'[: steps != 1]} between the two runs"


def page(result: "AttributionPatching", top_k: int = 10) -> report.Page:
    """A page with prompts, agreement with exact patching, heat maps and provenance."""
    page = report.Page(
        f"Attribution patching: {result.provenance.model}",
        f"{result.direction.capitalize()}: {_WHAT[result.direction]}; {how(result.steps)}. Colours "
        "show how far the numbers shown would be from those without a patch: red above, blue "
        "below. These are estimates: where attention is saturated, and early in the residual "
        "stream, they can be far off.",
    )
    add_prompts(page, result.pair)
    page.text(f"{effects_views.summary(next(iter(result.views.values())))}.")
    if result.agreements:
        _add_agreements(page, result)
    for names in effects_views.grouped(result.views):
        first = result.views[names[0]]
        if first.mean.numel() <= _MOST_CELLS:
            effects_views.add_group(page, result.views, names, top_k)
            continue
        page.heading(f"{', '.join(names)}: by {', '.join(first.axes)}")
        k = min(top_k, first.mean.numel())
        page.text(f"{first.mean.numel():,} places, too many to draw; the {k} strongest.")
        effects_views.add_strongest_of(page, [(name, result.views[name]) for name in names], k)
    page.data("attribution_patching", result.to_frame())
    page.provenance(result.provenance)
    return page


def _add_agreements(page: report.Page, result: "AttributionPatching") -> None:
    from analyses._agreement import figure  # needs torch, which --help must not wait for

    page.heading("Agreement with exact patching")
    page.text(
        "The change of the metric at every place, estimated and by actually patching it. "
        "exact / estimate is the slope of the line through the origin that fits best."
    )
    headers, rows = agreement_rows(result)
    page.table(headers, rows)
    page.figure(
        figure(list(result.agreements.values())),
        "Every place of every view; on the dotted line estimate and exact change are equal.",
    )


def agreement_rows(result: "AttributionPatching") -> tuple[list[str], list[list[str]]]:
    """A table of all agreements: headers, and rows of text."""
    headers = ["view", "places", "Pearson", "Spearman", "exact / estimate"]
    rows = [
        [name, str(len(found.places))]
        + [f"{number:.3f}" for number in (found.pearson, found.spearman, found.slope)]
        for name, found in result.agreements.items()
    ]
    return headers, rows


def show(result: "AttributionPatching", console: "Console", top_k: int) -> None:
    """Print the prompts, every view, and the agreements."""
    console.print(
        f"{result.direction}: {_WHAT[result.direction]}; {how(result.steps)}", soft_wrap=True
    )
    show_views(result.pair, result.views, console, top_k)
    if result.agreements:
        headers, rows = agreement_rows(result)
        console.print()
        console.print("agreement with exact patching")
        columns = [
            effects_views.right(header, [cli.Cell(row[i]) for row in rows])
            for i, header in enumerate(headers)
            if i
        ]
        names = cli.Column(headers[0], [cli.Cell(row[0]) for row in rows])
        cli.print_table(console, [names], columns, "columns")
