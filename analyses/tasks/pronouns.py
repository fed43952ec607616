"""Gendered pronouns: he or she, his or her, after a first name.

"Yesterday Mary went home because" -> " she", not " he".

Positions: `SUBJECT` (the name), `END`.

Corruption `gender`: a name of the other gender.

Held-out: other names and other templates. A model can know the gender of a held-out name from
ordinary text only. The lists follow common use in English books; they say nothing about persons.

Source: after the gendered-pronoun task of Mathwin et al. 2023, "Identifying a preliminary circuit
for predicting gendered pronouns in GPT-2 small".
"""

import random
from typing import ClassVar

from analyses.tasks import words
from analyses.tasks._base import Pools, Prompt, Task, Template, choose, spaced, spaced_pairs

_SUBJECT_ENDS = (
    " was tired.",
    " felt cold.",
    " wanted to go home.",
    " could not come.",
    " heard a noise.",
    " was hungry.",
)
_POSSESSIVE_ENDS = (" hat.", " friends.", " mother.", " book.", " dog.", " shoes.")


def _subject(name: str, text: str) -> Template:
    return Template(name, text, _SUBJECT_ENDS, kind="subject")


def _possessive(name: str, text: str) -> Template:
    return Template(name, text, _POSSESSIVE_ENDS, kind="possessive")


class Pronouns(Task):
    """Gendered pronouns (see the module's docstring)."""

    name = "pronouns"
    summary = "refer to a first name with the pronoun of its gender"
    source = "Mathwin et al. 2023"
    templates: ClassVar = {
        "train": (
            _subject("said", "Then {SUBJECT} said that"),
            _subject("went_home", "Yesterday {SUBJECT} went home because"),
            _subject("tired", "I heard that {SUBJECT} was tired, so"),
            _subject("woke_up", "When {SUBJECT} woke up,"),
            _subject("slept", "After the long walk {SUBJECT} slept, because"),
            _subject("smiled", "My friend {SUBJECT} smiled when"),
            _subject("doctor", "The doctor told {SUBJECT} that"),
            _possessive("door", "At the door {SUBJECT} was thinking of"),
            _possessive("lost", "On the way {SUBJECT} lost"),
            _possessive("school", "Every day {SUBJECT} went to school with"),
            _possessive("kitchen", "In the kitchen {SUBJECT} was looking for"),
        ),
        "held_out": (
            _subject("happy", "That evening {SUBJECT} was happy because"),
            _subject("stopped", "We saw that {SUBJECT} stopped when"),
            _subject("told_me", "Once {SUBJECT} told me that"),
            _possessive("forgot", "In the garden {SUBJECT} forgot"),
            _possessive("waiting", "There {SUBJECT} was waiting for"),
        ),
    }
    corruptions = ("gender",)
    minimum: ClassVar = {"he": 2, "she": 2, "pronouns": len(words.PRONOUNS)}

    def pools(self, split: str) -> Pools:
        """Names of the split by pronoun; the pronouns themselves."""
        he = {"train": words.MALE_NAMES_TRAIN, "held_out": words.MALE_NAMES_HELD_OUT}[split]
        she = {"train": words.FEMALE_NAMES_TRAIN, "held_out": words.FEMALE_NAMES_HELD_OUT}[split]
        pronouns = spaced_pairs(tuple(words.PRONOUNS.values()))
        return {"he": spaced(he), "she": spaced(she), "pronouns": pronouns}

    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """One prompt about a man's or a woman's name, corrupted with one of the other."""
        names = [choose(rng, pools["he"]), choose(rng, pools["she"])]
        forms = [f" {pronoun}" for pronoun in words.PRONOUNS[template.kind]]
        gender = rng.randrange(2)
        return Prompt(
            template=template.name,
            clean=template.fill({"SUBJECT": names[gender]}),
            corrupted=template.fill({"SUBJECT": names[1 - gender]}),
            answers=(forms[gender],),
            wrong=(forms[1 - gender],),
        )
