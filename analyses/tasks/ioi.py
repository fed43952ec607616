"""Indirect object identification: who receives the thing?

"When Mary and John went to the store, John gave a drink to" -> " Mary", not " John". Each sentence
exists in both orders of the first two names: ABBA (the indirect object first) and BABA.

Positions: `IO`, `S1`, `S1+1` (the token after S1), `S2`, `PLACE`, `OBJECT`, `END`.

Corruptions:
- `abc`: the three names become three other names, all different. Nothing in the prompt then says
  which name follows, while its form stays the same.
- `flip`: S2 becomes the indirect object's name, so that the right answer becomes the subject.

Held-out: other names and other templates; places and objects are shared.

Source: Wang et al. 2022, "Interpretability in the Wild", sections 2 and 3 (arXiv 2211.00593).
"""

import random
from typing import ClassVar

from analyses.tasks import words
from analyses.tasks._base import Pools, Prompt, Task, Template, choose, distinct, spaced

_TRAIN = {
    "then_went": "Then, {A} and {B} went to the {PLACE}. {S2} gave a {OBJECT} to",
    "then_fun": "Then, {A} and {B} had a lot of fun at the {PLACE}. {S2} gave a {OBJECT} to",
    "then_working": (
        "Then, {A} and {B} were working at the {PLACE}. {S2} decided to give a {OBJECT} to"
    ),
    "then_thinking": (
        "Then, {A} and {B} were thinking about going to the {PLACE}. {S2} wanted to give a"
        " {OBJECT} to"
    ),
    "when_got": "When {A} and {B} got a {OBJECT} at the {PLACE}, {S2} decided to give it to",
    "when_went": "When {A} and {B} went to the {PLACE}, {S2} gave a {OBJECT} to",
    "after": "After {A} and {B} went to the {PLACE}, {S2} handed a {OBJECT} to",
    "while": "While {A} and {B} were at the {PLACE}, {S2} showed a {OBJECT} to",
    "one_day": "One day {A} and {B} walked to the {PLACE}, and {S2} brought a {OBJECT} to",
    "last_night": "Last night {A} and {B} met at the {PLACE}. {S2} offered a {OBJECT} to",
    "morning": "In the morning {A} and {B} left the {PLACE}. {S2} bought a {OBJECT} for",
    "came_home": ("As soon as {A} and {B} came home from the {PLACE}, {S2} passed a {OBJECT} to"),
    "there_were": "There were {A} and {B} in the {PLACE}, and {S2} threw a {OBJECT} to",
    "long_ago": "Long ago {A} and {B} lived near the {PLACE}. One day {S2} sent a {OBJECT} to",
    "friends_found": "The friends {A} and {B} found a {OBJECT} at the {PLACE}. {S2} gave it to",
    "once_saw": ("Once {A} and {B} saw a {OBJECT} near the {PLACE}. {S2} told a story about it to"),
    "yesterday_met": "Yesterday {A} met {B} at the {PLACE}. {S2} lent a {OBJECT} to",
    "talked": "At the {PLACE} {A} talked with {B} for an hour. Then {S2} gave a {OBJECT} to",
    "since": "Since {A} and {B} were friends, {S2} took a {OBJECT} to the {PLACE} and gave it to",
    "evening": "In the evening {A} sat with {B} in the {PLACE}, until {S2} gave the {OBJECT} to",
}
_HELD_OUT = {
    "this_morning": (
        "This morning {A} and {B} arrived at the {PLACE}. {S2} handed the {OBJECT} to"
    ),
    "afterwards": "Afterwards {A} and {B} went into the {PLACE}, where {S2} gave a {OBJECT} to",
    "sunday": (
        "On Sunday {A} and {B} were waiting at the {PLACE}. {S2} wanted to show a {OBJECT} to"
    ),
    "before": "Before {A} and {B} left the {PLACE}, {S2} gave a {OBJECT} to",
    "suddenly": "Suddenly {A} and {B} stopped at the {PLACE}, and {S2} held out a {OBJECT} to",
    "because": "Because {A} and {B} liked the {PLACE}, {S2} bought a {OBJECT} there for",
}
_ENDS = (".", ".", " and smiled.", " with a smile.", " and went home.", " before it was dark.")


def _both_orders(texts: dict[str, str]) -> tuple[Template, ...]:
    templates = []
    for name, text in texts.items():
        abba = text.replace("{A}", "{IO}").replace("{B}", "{S1}")
        baba = text.replace("{A}", "{S1}").replace("{B}", "{IO}")
        templates += [Template(f"{name}/ABBA", abba, _ENDS), Template(f"{name}/BABA", baba, _ENDS)]
    return tuple(templates)


class IOI(Task):
    """Indirect object identification (see the module's docstring)."""

    name = "ioi"
    summary = "complete with the name that was mentioned once, not the one mentioned twice"
    source = "Wang et al. 2022, arXiv 2211.00593, section 2"
    templates: ClassVar = {"train": _both_orders(_TRAIN), "held_out": _both_orders(_HELD_OUT)}
    corruptions = ("abc", "flip")
    minimum: ClassVar = {"names": 5, "places": 1, "objects": 1}
    followed = ("S1",)

    def pools(self, split: str) -> Pools:
        """Names of the split; places and objects."""
        names = {"train": words.NAMES_TRAIN, "held_out": words.NAMES_HELD_OUT}[split]
        return {
            "names": spaced(names),
            "places": spaced(words.PLACES),
            "objects": spaced(words.OBJECTS),
        }

    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """One prompt; its two names, and with `abc` the three replacing them, all differ."""
        io, subject, *others = distinct(rng, pools["names"], 5)
        setting = {
            "PLACE": choose(rng, pools["places"]),
            "OBJECT": choose(rng, pools["objects"]),
        }
        corrupted = others if corruption == "abc" else [io, subject, io]
        return Prompt(
            template=template.name,
            clean=template.fill({"IO": io, "S1": subject, "S2": subject, **setting}),
            corrupted=template.fill(
                dict(zip(("IO", "S1", "S2"), corrupted, strict=True)) | setting
            ),
            answers=(io,),
            wrong=(subject,),
        )
