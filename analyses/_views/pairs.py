"""How a pair of prompts looks, on a page and in the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.sources import add_rest
from analyses._views.words import bos_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from analyses.effects import Effects
    from analyses.pairs import PromptPair

_MOST_PROMPTS = 2


def add_prompts(page: report.Page, pair: "PromptPair") -> None:
    """Put the first few prompts on a page, clean and corrupted, as tokens."""
    page.heading(f"Prompts: {pair.source}" if pair.source else "Prompts")

    def add(example: int) -> None:
        which = f"Example {example}: " if len(pair) > 1 else ""
        rows = (pair.str_tokens[example], pair.corrupted_str_tokens[example])
        for what, row in zip(("clean", "corrupted"), rows, strict=True):
            page.text(f"{which}{what}, {len(row)} tokens")
            page.tokens([cli.visible(token) for token in row], pair.prepend_bos is True)

    for example in range(min(len(pair), _MOST_PROMPTS)):
        add(example)
    add_rest(page, _MOST_PROMPTS, len(pair), "examples", add)
    page.text(f"{bos_sentence(pair.prepend_bos)}. Blanks are shown as ·, line ends as ⏎.")


def show_prompts(pair: "PromptPair", console: "Console") -> None:
    """Print the first pair of prompts."""
    which = f"first of {len(pair)} examples, " if len(pair) > 1 else ""
    source = f"{pair.source}, " if pair.source else ""
    console.print(f"{source}{which}{bos_sentence(pair.prepend_bos)}", style="dim", soft_wrap=True)
    for what, rows in (("clean", pair.str_tokens), ("corrupted", pair.corrupted_str_tokens)):
        console.print(f"{what + ':':11}{' '.join(map(cli.visible, rows[0]))}", soft_wrap=True)


def show_views(
    pair: "PromptPair", views: "Mapping[str, Effects]", console: "Console", top_k: int
) -> None:
    """Print the first pair of prompts, and every view as a grid or a table of the strongest."""
    console.print()
    show_prompts(pair, console)
    console.print(effects_views.summary(next(iter(views.values()))), soft_wrap=True)
    for effects in views.values():
        console.print()
        effects_views.show(effects, console, top_k)
    cli.print_scale(console, "distance from no effect, of the largest in each table")
