"""Repeated random tokens: continue a sequence that was seen once before.

`<|endoftext|>` + R + R, where R is random tokens. In the second copy each token can be known
only from what followed it in the first, which is what induction heads do.

R is drawn uniformly without repeats from the tokenizer's ordinary tokens (no special ones), so
that exactly one continuation is right. Answers: at the second copy's i-th position, R's token i+1;
`wrong` there is a random token that occurs in neither R nor the corrupted first copy.

Positions: `FIRST` and `SECOND` (the start of each copy), `END` (the last position that predicts,
one before the sequence's end). Labels say first or second copy for each position.

Corruption `first_copy`: the first copy becomes other random tokens, so the second is unpredictable.

The two splits differ in their random stream only: there is nothing to hold out. There are no texts:
random tokens are not the tokens of their own text.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads", section "Argument 2"
(arXiv 2209.11895).
"""

import random
from collections.abc import Sequence
from typing import ClassVar

from analyses.tasks._base import Pools, Prompt, Task, Template

DEFAULT_LENGTH = 25


class Induction(Task):
    """Repeated random tokens (see the module's docstring)."""

    name = "induction"
    summary = "continue the second copy of a random sequence"
    source = "Olsson et al. 2022, arXiv 2209.11895"
    templates: ClassVar = {"train": (), "held_out": ()}
    corruptions = ("first_copy",)
    minimum: ClassVar = {}

    def pools(self, split: str) -> Pools:
        """No words: the tokens are drawn from the tokenizer."""
        return {}

    def sample(
        self, rng: random.Random, template: Template, pools: Pools, corruption: str
    ) -> Prompt:
        """Never called: there are no templates, since random tokens have no text."""
        raise NotImplementedError("induction has no templates")

    def sequence(
        self, rng: random.Random, ordinary: Sequence[int], length: int
    ) -> tuple[list[int], list[int], list[int]]:
        """R, the corrupted first copy, and one wrong token per predicted token; all different ids.

        Args:
            rng: the random stream.
            ordinary: the ids to draw from.
            length: how many tokens R has.

        Returns:
            R and the corrupted copy, `length` ids each, and `length - 1` wrong ids.

        Raises:
            ValueError: fewer ids than the three lists need.
        """
        if len(ordinary) < 3 * length:
            raise ValueError(
                f"length={length} needs {3 * length} different ordinary tokens; "
                f"this tokenizer has {len(ordinary)}"
            )
        ids = rng.sample(ordinary, 3 * length - 1)
        return ids[:length], ids[length : 2 * length], ids[2 * length :]
