"""How path patching looks: a page, and tables for the terminal."""

from typing import TYPE_CHECKING

from analyses import _effects_views, cli, report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from analyses.effects import Effects
    from analyses.path_patching import PathPatching

# Receivers as they are written.
FORMS = "9.9.q (head 9.9's queries; k, v), resid_post.11 (resid_pre, resid_mid, mlp_in), or logits"

_NAMES = {"head": "Heads", "mlp": "MLPs", "embed": "Token embedding"}
_MOST_EXAMPLES = 3  # pages show no more prompts than this


def _shown(result: "PathPatching") -> "Mapping[str, Effects]":
    """In percent of the base run, where that is not 0."""
    return result.in_percent() if float(result.base.mean()) != 0 else result.views


def _explained(result: "PathPatching") -> str:
    """What was done, in a few sentences."""
    noising = result.direction == "noising"
    base, source = ("clean", "corrupted") if noising else ("corrupted", "clean")
    together = " together" if len(result.receivers) > 1 else ""
    positions = "all" if result.positions == "None" else result.positions
    mlps = "also kept" if result.freeze_mlps else "computed anew from what reaches them"
    return (
        f"Receivers: {', '.join(map(str, result.receivers))}{together}; positions: {positions}. "
        f"Each sender writes what it writes in the {source} run; all other heads keep what they "
        f"wrote in the {base} run; MLPs in between are {mlps}. Only the receivers see the "
        f"difference. {result.metric} of the {base} run: {result.base.mean():.3f}, mean of "
        f"{len(result.pair)} example{'s'[: len(result.pair) != 1]}."
    )


def page(result: "PathPatching", top_k: int = 10) -> report.Page:
    """Prompts, a heat map and a table per kind of sender, provenance."""
    page = report.Page(
        f"Path patching to {', '.join(map(str, result.receivers))}: {result.provenance.model}",
        _explained(result),
    )
    pair = result.pair
    page.heading("Prompts")
    page.text(pair.source)
    for example in range(min(len(pair), _MOST_EXAMPLES)):
        for tokens in (pair.str_tokens[example], pair.corrupted_str_tokens[example]):
            page.tokens([cli.visible(token) for token in tokens], pair.prepend_bos is True)
    if len(pair) > _MOST_EXAMPLES:
        page.text(f"The first {_MOST_EXAMPLES} of {len(pair)} examples, clean then corrupted.")
    else:
        page.text("Clean, then corrupted.")
    for kind, effects in _shown(result).items():
        page.heading(_NAMES[kind])
        page.figure(
            effects.plot("change"),
            f"{_effects_views.title(effects, 'change').capitalize()} when one of them sends what "
            "it sends in the other run. Those that come after all receivers cannot reach them: 0.",
        )
        if effects.mean.numel() > 1:
            _effects_views.add_strongest(page, effects, top_k)
    page.provenance(result.provenance, tokens=_bos_note(result))
    return page


def _bos_note(result: "PathPatching") -> str:
    if result.pair.prepend_bos is None:
        return "given as token ids"
    return f"<|endoftext|> {'' if result.pair.prepend_bos else 'not '}prepended"


def show(result: "PathPatching", console: "Console", top_k: int) -> None:
    """Print a grid or a table per kind of sender."""
    console.print(f"{result.pair.source} ({_bos_note(result)})", soft_wrap=True)
    console.print(_explained(result))
    for effects in _shown(result).values():
        console.print()
        _effects_views.show(effects, console, top_k)
