"""Country -> capital: recall of a fact.

"The capital of France is" -> " Paris", not the capital of another country.

Positions: `SUBJECT` (the country), `END`.

Corruption `country`: another country; `wrong` is that country's capital.

Splits: `train` and `held_out` ask for the *same* facts through different templates: a fact that was
never seen cannot be known, so what `held_out` measures is whether a fact learnt in one wording is
found through another. `held_out_facts` asks for countries that occur in no training text of this
task, through the training templates. A model knows those only if its ordinary text told it (a
country's page in the World Factbook says "The capital of Latvia is Riga." once or twice): it is a
measure of what the model picked up by itself, and low figures there are to be expected.

Source: the country-capital relation of Meng et al. 2022, "Locating and Editing Factual Associations
in GPT", section 2 (arXiv 2202.05262), and of many before.
"""

import random
from typing import ClassVar

from analyses.tasks import words
from analyses.tasks._base import Pools, Prompt, Task, Template, spaced_pairs

_ENDS = (".", ".", ".", ", a city with many streets.", ", and many people live there.")
_TRAIN = {
    "is": "The capital of {SUBJECT} is",
    "city_is": "The capital city of {SUBJECT} is",
    "everyone": "Everyone knows that the capital of {SUBJECT} is",
    "in_country": "In {SUBJECT}, the capital is",
    "called": "The capital of {SUBJECT} is called",
    "travel": "If you travel to the capital of {SUBJECT}, you arrive in",
    "moved": "She moved to {SUBJECT} and lived in its capital,",
    "government": "The government of {SUBJECT} has its seat in",
    "parliament": "The parliament of {SUBJECT} meets in the capital,",
}
_HELD_OUT = {
    "name_of": "The name of the capital of {SUBJECT} is",
    "teacher": "The teacher said that the capital of {SUBJECT} is",
    "visited": "Last year we visited {SUBJECT} and saw its capital,",
}


class Capitals(Task):
    """Country -> capital (see the module's docstring)."""

    name = "capitals"
    summary = "name the capital of a country"
    source = "Meng et al. 2022, arXiv 2202.05262, section 2"
    templates: ClassVar = {
        "train": tuple(Template(name, text, _ENDS) for name, text in _TRAIN.items()),
        "held_out": tuple(Template(name, text, _ENDS) for name, text in _HELD_OUT.items()),
        "held_out_facts": tuple(Template(name, text, _ENDS) for name, text in _TRAIN.items()),
    }
    corruptions = ("country",)
    minimum: ClassVar = {"facts": 2}

    def pools(self, split: str) -> Pools:
        """(country, capital) pairs of the split."""
        held_out = split == "held_out_facts"
        return {
            "facts": spaced_pairs(words.CAPITALS_HELD_OUT if held_out else words.CAPITALS_TRAIN)
        }

    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """One prompt about a country, corrupted with another country of the same split."""
        (country, capital), (other, its_capital) = rng.sample(pools["facts"], 2)
        return Prompt(
            template=template.name,
            clean=template.fill({"SUBJECT": country}),
            corrupted=template.fill({"SUBJECT": other}),
            answers=(capital,),
            wrong=(its_capital,),
        )
