"""Greater-than: the end of a span of years comes after its start.

"The war lasted from the year 1732 to the year 17" -> any two digits above 32. Answers are all
two-digit tokens above the start year, wrong ones all two-digit tokens at or below it, so the
probability difference is the one of the paper.

Positions: `EVENT`, `XX1` and `YY` (the start year's halves), `XX2` (the end year's century; this is
the last position, `END`).

Corruption `01`: the start year becomes ..01, which allows nearly every end year.

Held-out: other events and other templates; the years are shared.

Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?", section 2 (arXiv 2305.00586).
"""

import random
from typing import ClassVar

from analyses.tasks import words
from analyses.tasks._base import Pools, Prompt, Task, Template, choose, spaced

_ENDS = (".", ".", ", and many people still talk about it.", ", as the old books say.")
_TRAIN = {
    "lasted_year": "The {EVENT} lasted from the year {XX1}{YY} to the year {XX2}",
    "began": "The {EVENT} began in {XX1}{YY} and ended in {XX2}",
    "went_on": "The {EVENT} went on from {XX1}{YY} until {XX2}",
    "started": "The {EVENT} started in the year {XX1}{YY} and was over in the year {XX2}",
    "they_say": "They say that the {EVENT} lasted from {XX1}{YY} to {XX2}",
    "long": "The long {EVENT} of {XX1}{YY} did not come to its end before {XX2}",
    "remembers": "Everyone remembers the {EVENT} that ran from the year {XX1}{YY} to {XX2}",
    "old_books": "In the old books the {EVENT} is said to have lasted from {XX1}{YY} till {XX2}",
}
_HELD_OUT = {
    "continued": "The {EVENT} continued from the year {XX1}{YY} to the year {XX2}",
    "between": "The great {EVENT} took place between {XX1}{YY} and {XX2}",
    "it_is_known": "It is known that the {EVENT} began in {XX1}{YY} and lasted until {XX2}",
}


class GreaterThan(Task):
    """Greater-than on years (see the module's docstring)."""

    name = "greater_than"
    summary = "complete the end year with two digits greater than the start year's"
    source = "Hanna et al. 2023, arXiv 2305.00586, section 2"
    templates: ClassVar = {
        "train": tuple(Template(name, text, _ENDS) for name, text in _TRAIN.items()),
        "held_out": tuple(Template(name, text, _ENDS) for name, text in _HELD_OUT.items()),
    }
    corruptions = ("01",)
    minimum: ClassVar = {"events": 1, "halves": len(words.YEAR_HALVES), "years": 1}

    def pools(self, split: str) -> Pools:
        """Events of the split; two-digit endings; years as (century, ending)."""
        events = {"train": words.EVENTS_TRAIN, "held_out": words.EVENTS_HELD_OUT}[split]
        return {
            "events": spaced(events),
            "halves": tuple((half,) for half in words.YEAR_HALVES),
            # (century, ending, century, "01"): a year and the corrupted prompt's year. Never 00, 01
            # or 99: the corrupted year is lower, the answer higher.
            "years": tuple(
                (f" {century}", half, f" {century}", "01")
                for century in words.CENTURIES
                for half in words.YEAR_HALVES[2:99]
            ),
        }

    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """One prompt; answers and wrong are all two-digit tokens above, and at or below."""
        century, start, _, first = rng.choice(pools["years"])
        halves = [entry[0] for entry in pools["halves"]]
        slots = {"EVENT": choose(rng, pools["events"]), "XX1": century, "XX2": century}
        return Prompt(
            template=template.name,
            clean=template.fill({**slots, "YY": start}),
            corrupted=template.fill({**slots, "YY": first}),
            answers=tuple(half for half in halves if half > start),
            wrong=tuple(half for half in halves if half <= start),
        )
