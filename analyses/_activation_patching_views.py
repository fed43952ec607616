"""How activation patching looks: a page, and tables for the terminal."""

from typing import TYPE_CHECKING

from analyses import _effects_views, cli, report

if TYPE_CHECKING:
    from rich.console import Console

    from analyses.activation_patching import ActivationPatching
    from analyses.pairs import PromptPair

# Panels of more columns than this in all stand under each other rather than side by side.
_MOST_COLUMNS = 60
_MOST_PROMPTS = 2

_WHAT = {
    "denoising": "clean activations put into the corrupted run: 1 means that this place alone "
    "brings the clean answer back, 0 that it does nothing",
    "noising": "corrupted activations put into the clean run: 0 means that this place alone takes "
    "the clean answer away, 1 that it does nothing",
}


def panels(result: "ActivationPatching") -> list[list[str]]:
    """The views that are shown side by side: those on the same axes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, effects in result.views.items():
        groups.setdefault(effects.axes, []).append(name)
    return list(groups.values())


# ------------------------------------------------------------------ the page


def page(result: "ActivationPatching", top_k: int = 10) -> report.Page:
    """A page with the prompts, the heat maps, the strongest places and provenance."""
    pair = result.pair
    page = report.Page(
        f"Activation patching: {result.provenance.model}",
        f"{result.direction.capitalize()}: {_WHAT[result.direction]}. Colours show how far the "
        "numbers shown are from those without a patch: red above, blue below. "
        "Blanks are shown as ·, line ends as ⏎.",
    )
    page.heading(f"Prompts: {pair.source}" if pair.source else "Prompts")
    for example in range(min(len(pair), _MOST_PROMPTS)):
        rows = (pair.str_tokens[example], pair.corrupted_str_tokens[example])
        which = f"Example {example}: " if len(pair) > 1 else ""
        for what, row in zip(("clean", "corrupted"), rows, strict=True):
            page.text(f"{which}{what}, {len(row)} tokens")
            page.tokens([cli.visible(token) for token in row], pair.prepend_bos is True)
    if len(pair) > _MOST_PROMPTS:
        page.text(f"And {len(pair) - _MOST_PROMPTS} more examples.")
    first = next(iter(result.views.values()))
    page.text(f"{bos_note(pair)}. {_effects_views.summary(first)}.")
    for names in panels(result):
        _add_group(page, result, names, top_k)
    page.provenance(result.provenance)
    return page


def _add_group(
    page: report.Page, result: "ActivationPatching", names: list[str], top_k: int
) -> None:
    chosen = [(name, result.views[name]) for name in names]
    first = chosen[0][1]
    page.heading(f"{', '.join(names)}: by {', '.join(first.axes)}")
    n_columns = len(_effects_views.fold(first).column_names)
    hover = "Hover for the numbers; those that round to no effect are left out."
    if len(names) * n_columns <= _MOST_COLUMNS:
        caption = hover + (" One scale of colours." if len(names) > 1 else "")
        page.figure(_effects_views.panels(chosen), caption)
    else:
        limit = max(float(e.distance(e.scale).abs().nan_to_num(0.0).max()) for _, e in chosen)
        for name, effects in chosen:
            page.figure(
                effects.plot(limit=limit or None),
                f"{name}. {hover} One scale of colours for all of these.",
            )
    k = min(top_k, sum(effects.mean.numel() for _, effects in chosen))
    page.text(f"The {k} places that move the metric most.")
    _effects_views.add_strongest_of(page, chosen, k)


def bos_note(pair: "PromptPair") -> str:
    """What happened to `<|endoftext|>`, in words."""
    if pair.prepend_bos is None:
        return "Given as token ids"
    return f"<|endoftext|> {'' if pair.prepend_bos else 'not '}prepended"


# ------------------------------------------------------------------ the terminal


def show(result: "ActivationPatching", console: "Console", top_k: int) -> None:
    """Print the prompts, and every view as a grid or a table of the strongest."""
    pair = result.pair
    console.print(f"{result.direction}: {_WHAT[result.direction]}", soft_wrap=True)
    console.print()
    note = bos_note(pair)
    which = f"first of {len(pair)} examples, " if len(pair) > 1 else ""
    source = f"{pair.source}, " if pair.source else ""
    console.print(f"{source}{which}{note}", style="dim", soft_wrap=True)
    for what, rows in (("clean", pair.str_tokens), ("corrupted", pair.corrupted_str_tokens)):
        console.print(f"{what + ':':11}{' '.join(map(cli.visible, rows[0]))}", soft_wrap=True)
    first = next(iter(result.views.values()))
    console.print(_effects_views.summary(first), soft_wrap=True)
    for effects in result.views.values():
        console.print()
        _effects_views.show(effects, console, top_k)
    cli.print_scale(console, "distance from no effect, of the largest in each table")
