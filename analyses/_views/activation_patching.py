"""How activation patching looks: a page, and tables for the terminal."""

from typing import TYPE_CHECKING

from analyses import report
from analyses._views import effects as effects_views
from analyses._views.pairs import add_prompts, show_views

if TYPE_CHECKING:
    from rich.console import Console

    from analyses.activation_patching import ActivationPatching

_WHAT = {
    "denoising": "clean activations put into the corrupted run: 1 means that this place alone "
    "brings the clean answer back, 0 that it does nothing",
    "noising": "corrupted activations put into the clean run: 0 means that this place alone takes "
    "the clean answer away, 1 that it does nothing",
}
_BEYOND = "Far beyond 0 and 1 is what carries an answer, or its rival, that the other prompts lack."


# ------------------------------------------------------------------ the page


def page(result: "ActivationPatching", top_k: int = 10) -> report.Page:
    """A page with the prompts, the heat maps, the strongest places and provenance."""
    page = report.Page(
        f"Activation patching: {result.provenance.model}",
        f"{result.direction.capitalize()}: {_WHAT[result.direction]}. Colours show how far the "
        "numbers shown are from those without a patch: red above, blue below. " + _BEYOND,
    )
    add_prompts(page, result.pair)
    page.text(f"{effects_views.summary(next(iter(result.views.values())))}.")
    for names in effects_views.grouped(result.views):
        effects_views.add_group(page, result.views, names, top_k)
    page.data("activation_patching", result.to_frame())
    page.provenance(result.provenance)
    return page


# ------------------------------------------------------------------ the terminal


def show(result: "ActivationPatching", console: "Console", top_k: int) -> None:
    """Print the prompts, and every view as a grid or a table of the strongest."""
    console.print(f"{result.direction}: {_WHAT[result.direction]}", soft_wrap=True)
    console.print(_BEYOND, soft_wrap=True)
    show_views(result.pair, result.views, console, top_k)
