"""Pairs of prompts: a clean run that gives the answer, and a corrupted one that does not.

Activation patching compares two prompts that differ in a key detail and are otherwise alike, token
by token: "When Mary and John went to the store, John gave a drink to" with another name in some
place. A `PromptPair` holds one such pair or many (an axis `example`), with what counts as a right
and as a wrong answer after the last token. Both prompts of an example have the same number of
tokens, or a position would not mean the same in both; different examples may differ in length, and
are then padded on the right.

The command-line side (options, reading files) is in `analyses.pair_options`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from analyses import cli
from analyses.metrics import AnyMetric, Metric, evaluate, logit_diff
from analyses.prompts import AnyPrompts, Prompts, token_string
from analyses.tasks import generate
from analyses.tasks.data import NO_TOKEN, TaskData
from interp import HookedGPT2

Answers = str | int | Sequence[str] | Sequence[int] | Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False, repr=False)
class PromptPair:
    """Clean and corrupted prompts as tokens, and the answers that tell them apart.

    Attributes:
        clean, corrupted: ids, `[example pos]`, right-padded to the longest example.
        attention_mask: `[example pos]`, False on padding; the same for both.
        answers, wrong: `[example k]`, ids of the right and the wrong next tokens; rows with fewer
            end in -1. None where the pair is judged by another metric.
        str_tokens, corrupted_str_tokens: the tokens' strings per example, without padding.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where ids were given.
        positions: name -> `[example]`, such as "S2" or "END", counted from 0.
        source: where the pair came from, in a few printable words; "" for prompts given in Python.
    """

    clean: Int[Tensor, "example pos"]
    corrupted: Int[Tensor, "example pos"]
    attention_mask: Bool[Tensor, "example pos"]
    answers: Int[Tensor, "example answer"] | None
    wrong: Int[Tensor, "example wrong"] | None
    str_tokens: tuple[tuple[str, ...], ...]
    corrupted_str_tokens: tuple[tuple[str, ...], ...]
    prepend_bos: bool | None
    positions: Mapping[str, Int[Tensor, " example"]] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def from_text(
        cls,
        model: HookedGPT2,
        clean: str | Sequence[str],
        corrupted: str | Sequence[str],
        answers: Answers,
        wrong: Answers,
        *,
        prepend_bos: bool = True,
        source: str = "",
    ) -> "PromptPair":
        """A pair of texts, or several.

        Args:
            clean, corrupted: a text each, or equally many.
            answers, wrong: what should and should not follow the clean text, as text that is one
                token (`" Mary"`) or an id. One for all examples, a list with one per example, or a
                list of lists with several per example. With a single pair, a list is several
                answers of that pair.
            prepend_bos: put `<|endoftext|>` before every text.
            source: what to call the pair in titles.

        Raises:
            ValueError: the two texts of an example differ in tokens (shows both tokenisations),
                there are not equally many texts or answers, a token is both answer and wrong, or
                an answer is no single token.
        """
        return cls.of(
            model, clean, corrupted, answers, wrong, prepend_bos=prepend_bos, source=source
        )

    @classmethod
    def of(
        cls,
        model: HookedGPT2,
        clean: AnyPrompts,
        corrupted: AnyPrompts,
        answers: Answers | None = None,
        wrong: Answers | None = None,
        *,
        attention_mask: Tensor | None = None,
        prepend_bos: bool = True,
        source: str = "",
    ) -> "PromptPair":
        """A pair of whatever `model.forward` takes: text, texts, what `tokenize` gave, or ids.

        Args:
            clean, corrupted: the prompts; ids are taken as they are.
            answers, wrong: as `from_text`, or None where another metric judges.
            attention_mask: of ids with padding, the same for both.
            prepend_bos, source: as `from_text`.

        Raises:
            ValueError, TypeError: as `from_text`, or what a run refuses.
        """
        if (answers is None) != (wrong is None):
            missing = "answers" if answers is None else "wrong"
            raise ValueError(f"{missing} is missing: a logit difference takes answers and wrong")
        single = isinstance(clean, str) and isinstance(corrupted, str)
        rows: list[list[Tensor]] = []
        strings: list[tuple[tuple[str, ...], ...]] = []
        with_bos: bool | None = None
        for given in (clean, corrupted):
            mask = attention_mask if isinstance(given, Tensor) else None
            prompts = Prompts.of(model, given, mask, prepend_bos)
            with_bos = prompts.prepend_bos
            real = zip(prompts.tokens.cpu(), prompts.attention_mask.cpu(), strict=True)
            rows.append([ids[own] for ids, own in real])
            strings.append(
                tuple(tuple(token_string(model, id) for id in row.tolist()) for row in rows[-1])
            )
        if len(rows[0]) != len(rows[1]):
            raise ValueError(
                f"there are {len(rows[0])} clean prompts and {len(rows[1])} corrupted ones; each "
                "clean prompt needs one corrupted prompt"
            )
        for example, (one, other) in enumerate(zip(*strings, strict=True)):
            _check_lengths(one, other, None if single else example)
        ids = [pad_sequence(part, batch_first=True) for part in rows]
        lengths = torch.tensor([len(row) for row in rows[0]])
        n = len(lengths)
        right = None if answers is None else answer_ids(model, answers, n, "answers")
        not_right = None if wrong is None else answer_ids(model, wrong, n, "wrong")
        if right is not None and not_right is not None:
            _check_apart(model, right, not_right)
        return cls(
            clean=ids[0],
            corrupted=ids[1],
            attention_mask=torch.arange(ids[0].shape[1])[None] < lengths[:, None],
            answers=right,
            wrong=not_right,
            str_tokens=strings[0],
            corrupted_str_tokens=strings[1],
            prepend_bos=with_bos,
            source=source,
        )

    @classmethod
    def from_task(
        cls,
        model: HookedGPT2,
        task: str,
        n: int = 16,
        seed: int = 0,
        *,
        split: str = "held_out",
        corruption: str | None = None,
        template: str | None = None,
        prepend_bos: bool = True,
        length: int | None = None,
    ) -> "PromptPair":
        """Examples of a task (`analyses.tasks`), with the positions that have names there.

        Examples of different templates differ in length; `groups` parts them, `template` makes one
        kind only. Of induction's examples, which have an answer at many positions, the last one is
        taken: the prompt ends where it is asked for.

        Args:
            task, n, seed, split, corruption, template, prepend_bos, length: as
                `analyses.tasks.generate`.

        Raises:
            ValueError: as `analyses.tasks.generate`.
        """
        data = generate(
            task,
            model.tokenizer,
            n,
            seed=seed,
            split=split,
            prepend_bos=prepend_bos,
            corruption=corruption,
            template=template,
            length=length,
        )
        return cls.from_data(data, model)

    @classmethod
    def from_data(cls, data: TaskData, model: HookedGPT2) -> "PromptPair":
        """The pairs of a task's examples; see `from_task`."""
        # A prompt ends at the position that is read; only induction's goes on after it.
        ends = data.read_positions[:, -1] + 1
        width = int(ends.max())
        mask = torch.arange(width)[None] < ends[:, None]
        last = slice(-1, None) if data.per_position else slice(None)
        corrupted = data.corrupted_tokens[:, :width]
        n = len(data)
        made = [f"{n} {data.split} example{'s'[: n != 1]}", f"corruption {data.corruption}"]
        return cls(
            clean=data.clean_tokens[:, :width],
            corrupted=corrupted,
            attention_mask=mask,
            answers=data.answers[:, last],
            wrong=data.wrong[:, last],
            str_tokens=tuple(
                row[:end] for row, end in zip(data.str_tokens, ends.tolist(), strict=True)
            ),
            corrupted_str_tokens=tuple(
                tuple(model.to_str_tokens(row[:end]))
                for row, end in zip(corrupted, ends.tolist(), strict=True)
            ),
            prepend_bos=data.prepend_bos,
            positions=dict(data.positions),
            source=f"{data.task}: {', '.join(made)}, seed {data.seed}",
        )

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def lengths(self) -> Int[Tensor, " example"]:
        """Tokens per example, padding not counted."""
        return self.attention_mask.sum(-1)

    @property
    def is_padded(self) -> bool:
        """Whether examples differ in length."""
        return not bool(self.attention_mask.all())

    @property
    def metric(self) -> Metric:
        """`logit_diff` of answers and wrong tokens after the last token of each prompt, in nats.

        Raises:
            ValueError: the pair has no answers.
        """
        if self.answers is None or self.wrong is None:
            raise ValueError("this pair has no answers: give them, or a metric of your own")
        return logit_diff(self.answers, self.wrong)

    def ends(
        self, model: HookedGPT2, metric: AnyMetric | None = None
    ) -> dict[str, Float[Tensor, " example"]]:
        """The metric of the two plain runs, under "corrupted" and "clean".

        Args:
            metric: by default `metric`.
        """
        found = {}
        for name, tokens in (("corrupted", self.corrupted), ("clean", self.clean)):
            values = evaluate(
                model,
                tokens.to(model.device),
                self.metric if metric is None else metric,
                attention_mask=self.attention_mask.to(model.device),
            )
            (found[name],) = values.values()
        return found

    def select(self, examples: Sequence[int]) -> "PromptPair":
        """The examples with these indices, padded no further than they need.

        Raises:
            ValueError: no index is given.
            IndexError: an index is out of range.
        """
        if not examples:
            raise ValueError("select needs at least one example")
        bad = [index for index in examples if not 0 <= index < len(self)]
        if bad:
            raise IndexError(f"example {bad[0]} is out of range: there are {len(self)}")
        index = torch.tensor(list(examples))
        longest = int(self.lengths[index].max())
        changed: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                changed[one.name] = value[index]
            elif isinstance(value, tuple):
                changed[one.name] = tuple(value[i] for i in examples)
        for name in ("clean", "corrupted", "attention_mask"):
            changed[name] = changed[name][:, :longest]
        changed["positions"] = {name: where[index] for name, where in self.positions.items()}
        return replace(self, **changed)

    def groups(self) -> list["PromptPair"]:
        """The examples by length, shortest first: each part free of padding."""
        lengths = self.lengths.tolist()
        return [
            self.select([i for i, length in enumerate(lengths) if length == wanted])
            for wanted in sorted(set(lengths))
        ]

    def position_labels(self) -> tuple[str, ...]:
        """What to call each position: its number, and its tokens where all examples agree.

        A token that differs between clean and corrupted shows both, `4 ·John/·Anna`. Where examples
        differ, the position's names in `positions` stand instead, if every example has one there.
        """
        labels = []
        for position in range(self.clean.shape[1]):
            # Only prompts that reach so far; no prompt is shorter than the padding lets it be.
            pairs = {
                (cli.visible(one[position]), cli.visible(other[position]))
                for one, other in zip(self.str_tokens, self.corrupted_str_tokens, strict=True)
                if position < len(one)
            }
            if len(pairs) == 1:
                ((one, other),) = pairs
                text = one if one == other else f"{one}/{other}"
            else:
                text = "/".join(self._names_at(position))
            labels.append(f"{position} {text}".strip())
        return tuple(labels)

    def _names_at(self, position: int) -> list[str]:
        found = {name: where == position for name, where in self.positions.items()}
        if not found or not torch.stack(list(found.values())).any(0).all():
            return []
        return [name for name, here in found.items() if bool(here.any())]

    def __repr__(self) -> str:
        lengths = sorted(set(self.lengths.tolist()))
        size = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        n = len(self)
        source = f"{self.source}: " if self.source else ""
        lines = [
            f"PromptPair({source}{n} example{'s'[: n != 1]} of {size} tokens, "
            f"prepend_bos={self.prepend_bos})",
            f"  clean:     {''.join(self.str_tokens[0])!r}",
            f"  corrupted: {''.join(self.corrupted_str_tokens[0])!r}",
        ]
        if self.positions:
            lines.append(f"  positions: {', '.join(self.positions)}")
        return "\n".join(lines)


def pair_of(
    model: HookedGPT2,
    clean: PromptPair | AnyPrompts,
    corrupted: AnyPrompts | None,
    attention_mask: Tensor | None,
    prepend_bos: bool,
) -> PromptPair:
    """The pair given, or that of clean and corrupted prompts.

    Args:
        clean: a `PromptPair`, or what `PromptPair.of` takes.
        corrupted, attention_mask: with clean prompts only.

    Raises:
        ValueError: corrupted prompts or a mask next to a pair, or none without one; and what
            `PromptPair.of` refuses.
    """
    if isinstance(clean, PromptPair):
        if corrupted is not None or attention_mask is not None:
            raise ValueError("a PromptPair brings its corrupted prompts and its mask itself")
        return clean
    if corrupted is None:
        raise ValueError("corrupted prompts are missing: give them, or a PromptPair")
    return PromptPair.of(
        model, clean, corrupted, attention_mask=attention_mask, prepend_bos=prepend_bos
    )


def _check_lengths(clean: Sequence[str], corrupted: Sequence[str], example: int | None) -> None:
    if len(clean) == len(corrupted):
        return
    which = "the two prompts" if example is None else f"the two prompts of example {example}"
    shown = [
        " ".join(f"{i}:{cli.visible(t)}" for i, t in enumerate(row)) for row in (clean, corrupted)
    ]
    raise ValueError(
        f"{which} differ in length, so their positions cannot be compared: clean has "
        f"{len(clean)} tokens, corrupted {len(corrupted)}\n"
        f"clean: {shown[0]}\ncorrupted: {shown[1]}"
    )


def answer_ids(
    model: HookedGPT2, given: Answers, n: int, what: str
) -> Int[Tensor, "example answer"]:
    """Ids `[example k]`, rows with fewer ending in -1."""
    rows: list[list[Any]]
    if isinstance(given, str | int):
        rows = [[given]] * n
    elif n == 1 and all(isinstance(one, str | int) for one in given):
        rows = [list(given)]
    else:
        rows = [[one] if isinstance(one, str | int) else list(one) for one in given]
    if len(rows) != n:
        raise ValueError(f"{what}: there are {len(rows)} for {n} examples; expected one for each")
    if any(not row for row in rows):
        raise ValueError(f"{what} is empty; expected at least one token for every example")
    ids = [
        [model.to_single_token(one) if isinstance(one, str) else one for one in row] for row in rows
    ]
    for row in ids:
        for id in row:
            if id != NO_TOKEN and not 0 <= id < model.cfg.d_vocab_out:
                raise IndexError(
                    f"{what}: token {id} is out of range: this model predicts tokens 0 to "
                    f"{model.cfg.d_vocab_out - 1}"
                )
    width = max(map(len, ids))
    return torch.tensor([row + [NO_TOKEN] * (width - len(row)) for row in ids])


def _check_apart(model: HookedGPT2, answers: Tensor, wrong: Tensor) -> None:
    for example, (right, not_right) in enumerate(
        zip(answers.tolist(), wrong.tolist(), strict=True)
    ):
        both = (set(right) & set(not_right)) - {NO_TOKEN}
        if both:
            token = token_string(model, both.pop())
            raise ValueError(f"{token!r} is an answer of example {example} and also wrong there")
