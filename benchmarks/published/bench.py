"""A model under test, with the runs that several figures share.

Runs are made when a figure first asks for one, and kept.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.activation_patching import ActivationPatching, activation_patching
from analyses.attribution import Attribution, attribution
from analyses.causal_tracing import (
    AverageTrace,
    Fact,
    noise_level,
    task_facts,
    trace_facts,
)
from analyses.pairs import PromptPair
from benchmarks.published.facts import published
from benchmarks.published.figures import Measured
from hooks import Ablate
from interp import HookedGPT2

Measure = Callable[["Bench"], Measured]

# How each figure is measured, by id: filled by the modules that import `figure`.
MEASURES: dict[str, Measure] = {}


def figure(id: str) -> Callable[[Measure], Measure]:
    """Say that a function measures a published figure.

    Raises:
        ValueError: nothing of that id is published, or another function measures it.
    """
    if id not in published() or id in MEASURES:
        raise ValueError(f"{id} is not published, or is measured twice")

    def add(measure: Measure) -> Measure:
        MEASURES[id] = measure
        return measure

    return add


class Missing(ValueError):
    """A figure needs something that a user has not supplied."""


@dataclass(eq=False)
class Bench:
    """A model, and what a user supplied.

    Attributes:
        model: stays as it is.
        checkpoint: which published checkpoint it is; "" for any other model.
        n_prompts: of indirect object identification and greater-than.
        text: the Main demo's description text, or None.
        facts: of causal tracing, or None: the package's own.
    """

    model: HookedGPT2
    checkpoint: str = ""
    n_prompts: int = 320
    text: str | None = None
    facts: Sequence[Fact] | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def processed(self) -> HookedGPT2:
        """The model with the weights that TransformerLens' runs had."""
        return self.model.processed()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]

    def heads(self, id: str, found: Callable[[], Sequence[str]]) -> list[tuple[int, int]]:
        """The heads that a figure names: the published ones, of another model those it has.

        Args:
            id: a figure whose value is heads.
            found: the model's own, strongest first.
        """
        theirs = published()[id].value
        names = theirs if self.checkpoint == published()[id].model else found()[: len(theirs)]
        return [parsed(str(name)) for name in names]

    # ------------------------------------------------------------ the demo's 8 prompts

    @cached_property
    def demo(self) -> PromptPair:
        """The Exploratory Analysis demo's prompts; corrupted: the other prompt of the two."""
        clean, answers, wrong = [], [], []
        for text, names in _DEMO:
            if not self._has_tokens(" Sid", " shops"):
                # The bundled model's tokenizer has neither in one token, and all prompts are to be
                # equally long.
                text, *names = (
                    one.replace("shops", "shop").replace("Sid", "Sam") for one in (text, *names)
                )
            for answer, other in (names, names[::-1]):
                clean.append(text.format(other))
                answers.append(answer)
                wrong.append(other)
        corrupted = [clean[i ^ 1] for i in range(len(clean))]
        return PromptPair.from_text(self.processed, clean, corrupted, answers, wrong)

    def _has_tokens(self, *texts: str) -> bool:
        return all(self.model.to_tokens(text, prepend_bos=False).shape[1] == 1 for text in texts)

    @cached_property
    def demo_attribution(self) -> Attribution:
        """What wrote the answers to these prompts."""
        return attribution(self.processed, self.demo, neurons=False)

    @cached_property
    def demo_patching(self) -> ActivationPatching:
        """Everything that the demo patches."""
        views = ("resid_pre", "attn_out", "mlp_out", "z", "v", "pattern")
        return activation_patching(self.processed, self.demo, views=views, positions="all")

    @cached_property
    def demo_ablation(self) -> Ablate:
        """The head with the highest attribution, zeroed at the last token."""
        by_head = self.demo_attribution.views["head"].mean
        layer, head = divmod(int(by_head.argmax()), by_head.shape[1])
        return Ablate(("z", layer), head=head, pos=-1)

    # ------------------------------------------------------------ facts

    @cached_property
    def trace(self) -> AverageTrace:
        """Causal tracing of the facts, as in figure 2 of the paper."""
        facts = self.facts
        if facts is None:
            facts = task_facts(self.model, "capitals", 8)
        level = noise_level(self.model, [str(fact.subject) for fact in facts])
        return trace_facts(self.model, facts, noise=level, prepend_bos=False)


_DEMO = (
    ("When John and Mary went to the shops,{} gave the bag to", (" Mary", " John")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
)


def parsed(name: str) -> tuple[int, int]:
    """Layer and head of "9.6"."""
    layer, head = name.split(".")
    return int(layer), int(head)


def ranked(values: Tensor) -> tuple[str, ...]:
    """Heads `layer head` by a number, the highest first."""
    order = values.flatten().argsort(descending=True, stable=True).tolist()
    return tuple(f"{i // values.shape[1]}.{i % values.shape[1]}" for i in order)


def by_group(values: Tensor, groups: Sequence[Any]) -> Measured:
    """The mean over prompts, with the standard error over groups of prompts that are alike.

    Prompts of one template are not independent of each other: the groups' means are what varies
    from one set of templates to another.
    """
    values = values.double().cpu()
    means = [
        values[torch.tensor([g == group for g in groups])].mean().item()
        for group in dict.fromkeys(groups)
    ]
    error = np.std(means, ddof=1) / np.sqrt(len(means)) if len(means) > 1 else 0.0
    return Measured.of(values.mean(), error, len(values))


def read_facts(path: Path) -> list[Fact]:
    """Facts from a JSON file: a list of objects with "prompt" and "subject".

    The form of ROME's `known_1000.json`; other keys of it are not needed. "answer", text that is
    one token (" Seattle"), is optional: without it the fact is what the model predicts, as there.

    Raises:
        ValueError: not such a list; names the entry.
        OSError: the file cannot be read.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON in UTF-8: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: expected a list of objects with "prompt" and "subject"')
    facts = []
    for i, entry in enumerate(entries):
        for key in ("prompt", "subject"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise ValueError(f'{path}: entry {i} has no text "{key}"')
        facts.append(Fact(entry["prompt"].rstrip(), entry["subject"], entry.get("answer")))
    return facts
