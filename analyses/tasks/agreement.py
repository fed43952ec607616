"""Subject-verb agreement with an attractor: the verb follows the subject, not the nearest noun.

"The keys to the cabinet" -> " are", " were" or " have", not " is", " was" or " has". The noun
between subject and verb (the attractor) always has the other number, so copying the nearest number
fails.

Positions: `SUBJECT`, `ATTRACTOR`, `END`.

Corruption `number`: the subject's number changes, so that the verb's should; the attractor stays.

Held-out: other nouns and other templates. Training texts also hold sentences whose two nouns agree:
if the attractor always differed, "the opposite of the last noun" would do as a rule.

Source: Linzen et al. 2016, "Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies",
section 2 (arXiv 1611.01368).
"""

import random
from typing import ClassVar

from analyses.tasks import words
from analyses.tasks._base import Pools, Prompt, Task, Template, spaced_pairs

_TRAIN = {
    "near": "The {SUBJECT} near the {ATTRACTOR}",
    "behind": "The {SUBJECT} behind the {ATTRACTOR}",
    "next_to": "The {SUBJECT} next to the {ATTRACTOR}",
    "with": "The {SUBJECT} with the {ATTRACTOR}",
    "beside": "I think that the {SUBJECT} beside the {ATTRACTOR}",
    "by": "Everyone knows that the {SUBJECT} by the {ATTRACTOR}",
    "front": "The {SUBJECT} in front of the {ATTRACTOR}",
    "old_under": "The old {SUBJECT} under the {ATTRACTOR}",
    "to": "The {SUBJECT} to the left of the {ATTRACTOR}",
    "said_over": "They said that the {SUBJECT} over the {ATTRACTOR}",
}
_HELD_OUT = {
    "across": "The {SUBJECT} across from the {ATTRACTOR}",
    "little_beyond": "The little {SUBJECT} beyond the {ATTRACTOR}",
    "above": "He wrote that the {SUBJECT} above the {ATTRACTOR}",
    "close_to": "We believe that the {SUBJECT} close to the {ATTRACTOR}",
}
_AFTER_BE = (" very old.", " not far away.", " beautiful.", " quite new.", " well known.")
_AFTER_HAVE = (" been there for years.", " become famous.", " always been there.")


class Agreement(Task):
    """Subject-verb agreement with an attractor (see the module's docstring)."""

    name = "agreement"
    summary = "give the verb the number of the subject, not of the nearer noun"
    source = "Linzen et al. 2016, arXiv 1611.01368, section 2"
    templates: ClassVar = {
        "train": tuple(Template(name, text) for name, text in _TRAIN.items()),
        "held_out": tuple(Template(name, text) for name, text in _HELD_OUT.items()),
    }
    corruptions = ("number",)
    minimum: ClassVar = {"nouns": 2, "verbs": 1}

    def pools(self, split: str) -> Pools:
        """Nouns of the split and verbs, as (singular, plural)."""
        nouns = {"train": words.NOUNS_TRAIN, "held_out": words.NOUNS_HELD_OUT}[split]
        return {"nouns": spaced_pairs(nouns), "verbs": spaced_pairs(words.VERBS)}

    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """One prompt; answers are all verbs of the subject's number, wrong all of the other's."""
        subject, attractor = rng.sample(pools["nouns"], 2)
        number = rng.randrange(2)
        far = attractor[1 - number]
        return Prompt(
            template=template.name,
            clean=template.fill({"SUBJECT": subject[number], "ATTRACTOR": far}),
            corrupted=template.fill({"SUBJECT": subject[1 - number], "ATTRACTOR": far}),
            answers=tuple(verb[number] for verb in pools["verbs"]),
            wrong=tuple(verb[1 - number] for verb in pools["verbs"]),
        )

    def text(self, rng: random.Random, template: Template, pools: Pools) -> str:
        """One training text, half of the time with an attractor of the subject's number."""
        prompt = self.sample(rng, template, pools, self.corruptions[0])
        if rng.random() < 0.5:
            start, verb = prompt.clean_text, rng.choice(prompt.answers)
        else:
            start, verb = prompt.corrupted_text, rng.choice(prompt.wrong)
        ends = _AFTER_HAVE if verb in (" has", " have") else _AFTER_BE
        return start + verb + rng.choice(ends)
