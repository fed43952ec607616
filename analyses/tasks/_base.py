"""What every task is made of: templates, prompts as labelled pieces, and the task itself.

Free of torch, so that a script that only needs training texts or words starts at once.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

# A pool is a list of entries; an entry is a tuple of strings as they stand in a text, such as
# (" key", " keys"): used together, and dropped together if one of them is not a single token.
Entry = tuple[str, ...]
Pools = Mapping[str, Sequence[Entry]]
Piece = tuple[str, str]

_SLOT = re.compile(r"( ?\{[A-Z0-9]+\})")


@dataclass(frozen=True)
class Template:
    """A prompt with slots, such as "The capital of {SUBJECT} is".

    A slot takes the space before it along: it is filled with " France". Every word slot therefore
    has a space before it, because a word at the very start of a text is another token.

    Attributes:
        name: a short name, unique in the task.
        text: the prompt; slots are capital letters and digits in braces.
        ends: what may follow the answer in a training text.
        kind: which form the answer takes, where a task has several.
    """

    name: str
    text: str
    ends: tuple[str, ...] = (".",)
    kind: str = ""

    def fill(self, words: Mapping[str, str]) -> tuple[Piece, ...]:
        """Fill the slots.

        Args:
            words: slot name -> string with its leading space, for each slot of the template.

        Returns:
            (label, text) pieces in order; the label is the slot's name, "" for literal text.

        Raises:
            KeyError: a slot of the template has no word.
        """
        pieces = []
        for part in _SLOT.split(self.text):
            if _SLOT.fullmatch(part):
                slot = part.strip(" {}")
                pieces.append((slot, words[slot]))
            elif part:
                pieces.append(("", part))
        return tuple(pieces)


@dataclass(frozen=True)
class Prompt:
    """One example before tokenization: a clean and a corrupted prompt, and what should follow."""

    template: str
    clean: tuple[Piece, ...]
    corrupted: tuple[Piece, ...]
    answers: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def clean_text(self) -> str:
        """The clean prompt as a string."""
        return "".join(text for _, text in self.clean)

    @property
    def corrupted_text(self) -> str:
        """The corrupted prompt as a string."""
        return "".join(text for _, text in self.corrupted)


class Task(ABC):
    """A question with a known answer, asked through many templates.

    Attributes:
        name: the task's name in `TASKS`.
        summary: one line that says what a model must do.
        source: where the task was described first.
        templates: split -> the templates of that split.
        corruptions: the ways to make the corrupted prompt; the first is the default.
        minimum: pool -> how many of its entries must be single tokens for the task to make sense.
        followed: slots whose next position is named too ("S1" gives a position "S1+1").
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    templates: ClassVar[Mapping[str, tuple[Template, ...]]]
    corruptions: ClassVar[tuple[str, ...]]
    minimum: ClassVar[Mapping[str, int]]
    followed: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def pools(self, split: str) -> Pools:
        """The words of a split, by the role they play."""

    @abstractmethod
    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """One example of a template, with words from the pools."""

    def text(self, rng: random.Random, template: Template, pools: Pools) -> str:
        """One training text: a prompt, one of its answers, and a natural end."""
        prompt = self.sample(rng, template, pools, self.corruptions[0])
        return prompt.clean_text + rng.choice(prompt.answers) + rng.choice(template.ends)


def spaced(*lists: Sequence[str]) -> tuple[Entry, ...]:
    """A pool of single words, each with its leading space."""
    return tuple((f" {word}",) for words in lists for word in words)


def spaced_pairs(pairs: Sequence[tuple[str, str]]) -> tuple[Entry, ...]:
    """A pool of word pairs, each word with its leading space."""
    return tuple((f" {first}", f" {second}") for first, second in pairs)


def distinct(rng: random.Random, pool: Sequence[Entry], count: int) -> list[str]:
    """`count` different words out of a pool of single words."""
    return [entry[0] for entry in rng.sample(pool, count)]


def choose(rng: random.Random, pool: Sequence[Entry]) -> str:
    """One word out of a pool of single words."""
    return rng.choice(pool)[0]


def rounds(rng: random.Random, templates: Sequence[Template], n: int) -> list[Template]:
    """n templates, each used once before any is used again, in random order."""
    chosen: list[Template] = []
    while len(chosen) < n:
        chosen += rng.sample(templates, len(templates))
    return chosen[:n]


def seeded(task: str, split: str, seed: int) -> random.Random:
    """The random stream of a task, a split and a seed: the same on every machine and version."""
    return random.Random(f"{task} {split} {seed}")
