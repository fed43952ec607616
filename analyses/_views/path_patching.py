"""How path patching looks: a page, and tables for the terminal."""

import math
from typing import TYPE_CHECKING, NamedTuple

from analyses import cli, report
from analyses._views import effects as effects_views
from analyses._views.pairs import add_prompts
from analyses._views.words import bos_sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from analyses.effects import Effects
    from analyses.path_patching import PathPatching

# Receivers as they are written.
FORMS = "9.9.q (head 9.9's queries; k, v), resid_post.11 (resid_pre, resid_mid, mlp_in), or logits"

_NAMES = {"head": "Heads", "mlp": "MLPs", "embed": "Token embedding"}


def shown(result: "PathPatching") -> "Mapping[str, Effects]":
    """In percent of the base run, where that is not 0."""
    return result.in_percent() if float(result.base.mean()) != 0 else result.views


def _explained(result: "PathPatching") -> str:
    """What was done, in a few sentences."""
    noising = result.direction == "noising"
    base, source = ("clean", "corrupted") if noising else ("corrupted", "clean")
    together = " together" if len(result.receivers) > 1 else ""
    mlps = "also kept" if result.freeze_mlps else "computed anew from what reaches them"
    n = len(result.pair)
    return (
        f"Receivers: {', '.join(map(str, result.receivers))}{together}; positions: "
        f"{result.positions}. Each sender writes what it writes in the {source} run; all other "
        f"heads keep what they wrote in the {base} run; MLPs in between are {mlps}. Only the "
        f"receivers see the difference. {result.metric} of the {base} run: "
        f"{result.base.mean():.3f}" + (f", mean of {n} examples." if n > 1 else ".")
    )


class _Sent(NamedTuple):
    """The effect of one sender."""

    name: str
    percent: float
    change: float
    stderr: float


def _strongest(result: "PathPatching", k: int) -> list[_Sent]:
    """The k senders of all kinds with the largest effects, largest first."""
    unit = abs(float(result.base.mean())) / 100
    found = []
    for kind, effects in result.views.items():
        changes, errors = effects.change, effects.change_stderr
        for place in effects.strongest(k, "change"):
            change, stderr = float(changes[place]), float(errors[place])
            if change == 0:
                continue
            percent = change / unit if unit else math.nan
            found.append(_Sent(_name(kind, effects, place), percent, change, stderr))
    return sorted(found, key=lambda one: -abs(one.change))[:k]


def _name(kind: str, effects: "Effects", place: tuple[int, ...]) -> str:
    parts = [effects.labels[axis][i] for axis, i in zip(effects.axes, place, strict=True)]
    at = f" at {parts.pop()}" if effects.axes[-1] == "pos" else ""
    return f"{'' if kind == 'embed' else f'{kind} '}{'.'.join(parts)}{at}"


def _cells(result: "PathPatching", rows: list[_Sent]) -> tuple[list[str], list[list[str]]]:
    several = len(result.pair) > 1
    headers = ["sender", "% of base", f"change of {result.metric}", *["± s.e."][:several]]
    texts = [
        [
            one.name,
            "" if math.isnan(one.percent) else f"{one.percent:+.2f}",
            f"{one.change:+.4f}",
            *["" if math.isnan(one.stderr) else f"{one.stderr:.4f}"][:several],
        ]
        for one in rows
    ]
    return headers, texts


# ------------------------------------------------------------------ the page


def page(result: "PathPatching", top_k: int = 10) -> report.Page:
    """Prompts, a table of the strongest senders, pictures of all, provenance."""
    page = report.Page(
        f"Path patching to {', '.join(map(str, result.receivers))}: {result.provenance.model}",
        _explained(result),
    )
    add_prompts(page, result.pair)
    page.heading("Strongest senders")
    rows = _strongest(result, top_k)
    headers, texts = _cells(result, rows)
    most = max((abs(one.change) for one in rows), default=1.0)
    page.table(
        headers,
        [
            [text[0], effects_views.diverging(text[1], one.change / most), *text[2:]]
            for text, one in zip(texts, rows, strict=True)
        ],
    )
    for kind, effects in shown(result).items():
        if effects.mean.numel() == 1:
            continue  # one number is in the table
        page.heading(_NAMES[kind])
        page.figure(
            effects.plot("change"),
            "What becomes of the metric when one of them sends what it sends in the other run. "
            "Those that come after all receivers cannot reach them: exactly 0.",
        )
    page.data("path_patching", result.to_frame())
    page.provenance(result.provenance)
    return page


# ------------------------------------------------------------------ the terminal


def show(result: "PathPatching", console: "Console", top_k: int) -> None:
    """Print the strongest senders, and of heads a grid."""
    console.print(
        "; ".join(filter(None, (result.pair.source, bos_sentence(result.pair.prepend_bos)))),
        soft_wrap=True,
    )
    console.print(_explained(result))
    console.print()
    rows = _strongest(result, top_k)
    if not rows:
        console.print("no sender has any effect")
        return
    headers, texts = _cells(result, rows)
    most = max(abs(one.change) for one in rows)
    columns = []
    for i, header in enumerate(headers):
        shades = [abs(one.change) / most if i == 1 else None for one in rows]
        cells = [cli.Cell(text[i], shade) for text, shade in zip(texts, shades, strict=True)]
        columns.append(cli.Column(header, cells) if i == 0 else effects_views.right(header, cells))
    console.print(f"strongest {len(rows)} senders")
    cli.print_table(console, columns[:1], columns[1:], "columns")
    heads = shown(result).get("head")
    if heads is not None and heads.axes == ("layer", "head"):
        console.print()
        effects_views.show(heads, console, top_k)
