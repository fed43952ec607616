"""A task's examples as tensors.

Clean and corrupted prompt of an example always have the same number of tokens, with the same words
at the same positions. Examples of different templates may differ in length: tokens are then padded
on the right with `<|endoftext|>`, which a causal model's earlier positions cannot see. `positions`
(above all `positions["END"]`) point at real tokens. Where equal length matters, ask for one
`template`, or take `TaskData.groups()`: one pad-free TaskData for each length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.tasks import check_request, get_task, unknown
from analyses.tasks._base import Piece, Prompt, Task, rounds, seeded
from analyses.tasks._tokens import Tokens
from analyses.tasks.induction import DEFAULT_LENGTH, Induction

NO_TOKEN = -1


@dataclass(frozen=True, eq=False, repr=False)
class TaskData:
    """Examples of a task under one tokenizer.

    Attributes:
        task, split, seed, corruption, prepend_bos: how the data was made.
        clean_prompts, corrupted_prompts: the prompts as text, without `<|endoftext|>`.
        clean_tokens, corrupted_tokens: ids, `[example, pos]`, right-padded to the longest example.
        lengths: real tokens per example, `[example]`.
        str_tokens: the clean tokens' strings, without padding.
        answers, wrong: `[example, answer]` ids; rows shorter than the longest end in -1. For
            induction column i is the one answer at read position i (`per_position`).
        read_positions: `[example, read]`: the positions whose logits are read; `END` alone, but for
            induction every predictable position of the second copy.
        positions: name -> `[example]`, such as "IO", "S1", "S2", "SUBJECT", "END".
        labels: for each example a label per real position; "" where there is none, "a/b" for two.
        templates: the template's name, per example.
        dropped: pool -> words left out, because they are not single tokens.
    """

    task: str
    split: str
    seed: int
    corruption: str
    prepend_bos: bool
    clean_prompts: tuple[str, ...]
    corrupted_prompts: tuple[str, ...]
    clean_tokens: Int[Tensor, "example pos"]
    corrupted_tokens: Int[Tensor, "example pos"]
    lengths: Int[Tensor, " example"]
    str_tokens: tuple[tuple[str, ...], ...]
    answers: Int[Tensor, "example answer"]
    wrong: Int[Tensor, "example wrong"]
    read_positions: Int[Tensor, "example read"]
    positions: dict[str, Int[Tensor, " example"]]
    labels: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    dropped: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.templates)

    @property
    def per_position(self) -> bool:
        """Whether answers belong to one read position each, rather than all to the last one."""
        return self.task == Induction.name

    @property
    def attention_mask(self) -> Bool[Tensor, "example pos"]:
        """True at real tokens, False at padding."""
        steps = torch.arange(self.clean_tokens.shape[1], device=self.lengths.device)
        return steps[None] < self.lengths[:, None]

    def select(self, examples: Sequence[int]) -> "TaskData":
        """The examples with these indices, padded no further than they need.

        Raises:
            ValueError: no index is given.
            IndexError: an index is out of range.
        """
        if not examples:
            raise ValueError("select needs at least one example")
        bad = [index for index in examples if not 0 <= index < len(self)]
        if bad:
            raise IndexError(f"example {bad[0]} is out of range for {len(self)} examples")
        index = torch.tensor(examples, device=self.lengths.device)
        longest = int(self.lengths[index].max())
        changed: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value[index]
            elif isinstance(value, tuple):
                changed[field.name] = tuple(value[i] for i in examples)
        changed["positions"] = {name: where[index] for name, where in self.positions.items()}
        changed["clean_tokens"] = self.clean_tokens[index, :longest]
        changed["corrupted_tokens"] = self.corrupted_tokens[index, :longest]
        return replace(self, **changed)

    def groups(self) -> list["TaskData"]:
        """The examples by length, shortest first: each part free of padding."""
        lengths = self.lengths.tolist()
        return [
            self.select([i for i, length in enumerate(lengths) if length == wanted])
            for wanted in sorted(set(lengths))
        ]

    def to(self, device: str | torch.device) -> "TaskData":
        """The same data with its tensors on another device."""
        moved: dict[str, object] = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        moved["positions"] = {name: where.to(device) for name, where in self.positions.items()}
        return replace(self, **moved)

    def dropped_line(self) -> str:
        """One line that says which words were dropped; "" if none was."""
        parts = []
        for pool, words in self.dropped.items():
            shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
            parts.append(f"{len(words)} {pool} ({shown})")
        return "not single tokens, left out: " + "; ".join(parts) if parts else ""

    def __repr__(self) -> str:
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        size = str(longest) if shortest == longest else f"{shortest} to {longest}, right-padded"
        lines = [
            f"TaskData({self.task}, {len(self)} {self.split} examples, seed {self.seed}, "
            f"corruption {self.corruption!r}, {len(set(self.templates))} templates, "
            f"prepend_bos={self.prepend_bos})",
            f"  tokens: {size}; positions: {', '.join(self.positions)}",
            f"  first: {self.clean_prompts[0]!r}",
        ]
        return "\n".join(lines + [f"  {line}" for line in [self.dropped_line()] if line])


def generate(
    name: str,
    tokenizer: object,
    n: int,
    *,
    seed: int,
    split: str = "train",
    prepend_bos: bool = True,
    corruption: str | None = None,
    template: str | None = None,
    length: int | None = None,
) -> TaskData:
    """Examples of a task, tokenized.

    Words that are not single tokens under the tokenizer are left out and listed in `dropped`.

    Args:
        name: a task of `TASKS`.
        tokenizer: a model's `.tokenizer`, or one of the `tokenizers` or `transformers` library.
        n: how many examples, at least 1.
        seed: the same seed gives the same examples under the same tokenizer.
        split: "train", "held_out"; for capitals also "held_out_facts".
        prepend_bos: whether `<|endoftext|>` comes first.
        corruption: one of the task's `corruptions`; its first by default.
        template: only this template (then all examples have one length).
        length: induction only: tokens per copy, 25 by default.

    Raises:
        ValueError: an unknown name, n < 1, too few words that are single tokens, or an option
            that the task does not have.
        TypeError: something that is no such tokenizer.
    """
    task = get_task(name)
    check_request(task, n, split)
    chosen = task.corruptions[0] if corruption is None else corruption
    if chosen not in task.corruptions:
        raise ValueError(unknown(f"corruption of {name}", chosen, task.corruptions))
    tokens = Tokens(tokenizer)
    made = _Made(name, split, seed, chosen, prepend_bos, tokens)
    if isinstance(task, Induction):
        if template is not None:
            raise ValueError("induction has no templates")
        return _repeated_tokens(task, made, n, DEFAULT_LENGTH if length is None else length)
    if length is not None:
        raise ValueError(f"length is an option of induction, not of {name}")
    return _from_templates(task, made, n, template)


@dataclass(frozen=True)
class _Made:
    """How a TaskData is made: what its builders share."""

    task: str
    split: str
    seed: int
    corruption: str
    prepend_bos: bool
    tokens: Tokens

    def record(self) -> dict[str, object]:
        names = ("task", "split", "seed", "corruption", "prepend_bos")
        return {name: getattr(self, name) for name in names}


def _from_templates(task: Task, made: _Made, n: int, only: str | None) -> TaskData:
    pools, dropped = made.tokens.filter(task.pools(made.split))
    for pool, least in task.minimum.items():
        if len(pools[pool]) < least:
            raise ValueError(
                f"{task.name}: only {len(pools[pool])} of the {pool} are single tokens under this "
                f"tokenizer (in the split {made.split!r}), and the task needs {least}; not single: "
                f"{', '.join(dropped[pool][:8])}, ..."
            )
    templates = task.templates[made.split]
    if only is not None:
        names = tuple(template.name for template in templates)
        if only not in names:
            raise ValueError(unknown(f"template of {task.name} in {made.split!r}", only, names))
        templates = tuple(template for template in templates if template.name == only)
    rng = seeded(task.name, made.split, made.seed)
    prompts = [
        task.sample(rng, template, pools, made.corruption) for template in rounds(rng, templates, n)
    ]
    bos = [made.tokens.bos()] if made.prepend_bos else []
    clean = [bos + _ids(made.tokens, prompt.clean) for prompt in prompts]
    corrupted = [bos + _ids(made.tokens, prompt.corrupted) for prompt in prompts]
    places = [_places(made.tokens, prompt, len(bos), task.followed) for prompt in prompts]
    positions = {
        slot: torch.tensor([place[slot] for place in places])
        for slot in places[0]
        if all(slot in place for place in places)
    }
    return TaskData(
        **made.record(),  # pyright: ignore[reportArgumentType]
        clean_prompts=tuple(prompt.clean_text for prompt in prompts),
        corrupted_prompts=tuple(prompt.corrupted_text for prompt in prompts),
        clean_tokens=_padded(clean, _pad(made)),
        corrupted_tokens=_padded(corrupted, _pad(made)),
        lengths=torch.tensor([len(ids) for ids in clean]),
        str_tokens=_strings(made.tokens, clean),
        answers=_padded([_ids_of(made.tokens, prompt.answers) for prompt in prompts], NO_TOKEN),
        wrong=_padded([_ids_of(made.tokens, prompt.wrong) for prompt in prompts], NO_TOKEN),
        read_positions=positions["END"][:, None],
        positions=positions,
        labels=tuple(
            _labels(place, len(ids), made.prepend_bos)
            for place, ids in zip(places, clean, strict=True)
        ),
        templates=tuple(prompt.template for prompt in prompts),
        dropped=dropped,
    )


def _repeated_tokens(task: Induction, made: _Made, n: int, length: int) -> TaskData:
    if length < 2:
        raise ValueError(f"length must be at least 2 (one token to predict), got {length}")
    rng = seeded(task.name, made.split, made.seed)
    ordinary = made.tokens.ordinary()
    bos = [made.tokens.bos()] if made.prepend_bos else []
    drawn = [task.sequence(rng, ordinary, length) for _ in range(n)]
    clean = [bos + copy + copy for copy, _, _ in drawn]
    corrupted = [bos + other + copy for copy, other, _ in drawn]
    first, second, size = len(bos), len(bos) + length, len(bos) + 2 * length
    strings = _strings(made.tokens, clean)
    marks = ("bos",) * len(bos) + ("first copy",) * length + ("second copy",) * length
    starts = {"FIRST": first, "SECOND": second, "END": size - 2}
    return TaskData(
        **made.record(),  # pyright: ignore[reportArgumentType]
        clean_prompts=tuple("".join(row[len(bos) :]) for row in strings),
        corrupted_prompts=tuple(
            "".join(row[len(bos) :]) for row in _strings(made.tokens, corrupted)
        ),
        clean_tokens=torch.tensor(clean),
        corrupted_tokens=torch.tensor(corrupted),
        lengths=torch.full((n,), size),
        str_tokens=strings,
        answers=torch.tensor([copy[1:] for copy, _, _ in drawn]),
        wrong=torch.tensor([wrong for _, _, wrong in drawn]),
        read_positions=torch.arange(second, size - 1).repeat(n, 1),
        positions={label: torch.full((n,), where) for label, where in starts.items()},
        labels=(marks,) * n,
        templates=(f"length {length}",) * n,
        dropped={},
    )


def _ids(tokens: Tokens, pieces: Sequence[Piece]) -> list[int]:
    """The whole prompt's ids, after checking that its pieces tokenize alone as they do together."""
    whole = tokens.ids("".join(text for _, text in pieces))
    if whole != [token for _, text in pieces for token in tokens.ids(text)]:
        prompt = "".join(text for _, text in pieces)
        raise ValueError(
            f"this tokenizer merges across words, so positions in {prompt!r} cannot be named; "
            "a byte-level BPE tokenizer of GPT-2's kind is expected"
        )
    return whole


def _ids_of(tokens: Tokens, words: Sequence[str]) -> list[int]:
    return [tokens.ids(word)[0] for word in words]


def _places(tokens: Tokens, prompt: Prompt, start: int, followed: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    position = start
    for label, text in prompt.clean:
        if label:
            places[label] = position
        if label in followed:
            places[f"{label}+1"] = position + 1
        position += len(tokens.ids(text))
    places["END"] = position - 1
    return places


def _labels(places: dict[str, int], size: int, prepend_bos: bool) -> tuple[str, ...]:
    labels: list[list[str]] = [[] for _ in range(size)]
    if prepend_bos:
        labels[0].append("bos")
    for label, position in places.items():
        labels[position].append(label)
    return tuple("/".join(names) for names in labels)


def _pad(made: _Made) -> int:
    # Without <|endoftext|> any id will do: nothing real attends to padding on the right.
    return made.tokens.bos() if made.prepend_bos else 0


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "row column"]:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _strings(tokens: Tokens, rows: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tokens.strings(list(row)) for row in rows)
