"""Figures of one model, run and judged."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.published import demos, ioi, tracing, years
from benchmarks.published.bench import MEASURES, Bench, Missing
from benchmarks.published.facts import Published, published, recorded
from benchmarks.published.figures import Measured, Outcome, alone, compared, not_run
from interp.sources import MINI

# The modules fill `MEASURES` when they are imported.
MODULES = (demos, ioi, years, tracing)


def figures_of(checkpoint: str, ids: Sequence[str]) -> list[Published]:
    """Of the figures with these ids, those that a model can be measured on.

    Args:
        checkpoint: a published one; "" for any other model, which is measured on everything once
            (DistilGPT-2's figure is measured as GPT-2's is).
    """
    figures = [published()[id] for id in ids]
    if checkpoint:
        return [one for one in figures if one.model == checkpoint]
    return [one for one in figures if one.model != "distilgpt2"]


def run(bench: Bench, figures: Sequence[Published], *, name: str = "") -> Iterator[Outcome]:
    """Measure figures one after the other, and compare each with what there is.

    A published checkpoint is compared with what was published, the bundled model with its own
    record, any other model with nothing.

    Args:
        bench: the model.
        figures: as `figures_of` gives them.
        name: "mini" for the bundled model.
    """
    for figure in figures:
        if sys.stderr.isatty():
            print(f"\r\033[K{figure.id} ...", end="", file=sys.stderr, flush=True)
        yield _outcome(bench, figure, name)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _outcome(bench: Bench, figure: Published, name: str) -> Outcome:
    try:
        measured = MEASURES[figure.id](bench)
    except Missing as missing:
        return not_run(figure, str(missing), published=bool(bench.checkpoint))
    except (ValueError, IndexError) as error:
        # The other figures are not lost. A model that papers are about can be measured.
        why = f"cannot be measured: {' '.join(str(error).split())}"
        outcome = not_run(figure, why, published=bool(bench.checkpoint))
        return replace(outcome, verdict="FAIL") if bench.checkpoint or name == MINI else outcome
    if bench.checkpoint:
        return compared(figure, measured)
    if name != MINI:
        return alone(figure, measured)
    known = recorded()["figures"]
    if figure.id not in known:
        return not_run(figure, "nothing is recorded: --record", published=False)
    return compared(figure, measured, with_=known[figure.id])


def measure(bench: Bench, id: str) -> Measured:
    """One figure, not compared with anything."""
    return MEASURES[id](bench)
