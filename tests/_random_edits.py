"""Batches of prompts in every form of padding, and random edits of them.

Random numbers come from a `random.Random`, so that hypothesis can be the one who draws and shrinks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from hooks import Ablate, ActivationCache, Add, Edit, Patch, Scale
from interp import HookedGPT2
from interp.points import axis_sizes

LENGTHS = {
    "one": [5],
    "short": [1, 1],
    "even": [6, 6, 6],
    "right": [6, 4, 5],
    "left": [6, 4, 5],
    "holes": [6, 4, 5],
}
KINDS = tuple(LENGTHS)


def every_point(name: str) -> bool:
    return True


def padded(lengths: Sequence[int], side: str, d_vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random token ids and their mask; "holes" puts padding between the tokens."""
    draw = torch.Generator().manual_seed(seed)
    n_columns = max(lengths) + (1 if side == "holes" else 0)
    tokens = torch.randint(d_vocab, (len(lengths), n_columns), generator=draw)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        if side == "holes":
            row[torch.randperm(n_columns, generator=draw)[:length]] = True
        else:
            row[slice(length) if side == "right" else slice(n_columns - length, None)] = True
    return tokens, mask


@dataclass(frozen=True)
class World:
    """A model, prompts to edit, and the runs that edits take values from.

    Attributes:
        mask: None without padding.
        source: of as many other prompts, each as long, padded on the other side.
        reference: of other prompts of other lengths.
        twins: of several prompts of the length of each of ours, and one of another length.
    """

    model: HookedGPT2
    tokens: Tensor
    mask: Tensor | None
    source: ActivationCache
    reference: ActivationCache
    twins: ActivationCache

    @staticmethod
    def of(model: HookedGPT2, kind: str) -> "World":
        def run(lengths: Sequence[int], side: str, seed: int) -> ActivationCache:
            tokens, mask = padded(lengths, side, model.cfg.d_vocab, seed)
            with torch.no_grad():
                return model.run_with_cache(
                    tokens, attention_mask=mask, names_filter=every_point, return_type=None
                )[1]

        lengths = LENGTHS[kind]
        tokens, mask = padded(lengths, kind, model.cfg.d_vocab, 1)
        equal = len(set(lengths)) == 1
        return World(
            model=model,
            tokens=tokens[:, : lengths[0]] if equal else tokens,
            mask=None if equal else mask,
            source=run(lengths, "right" if kind == "left" else "left", 2),
            reference=run([3, 7, 2], "left", 3),
            twins=run([*lengths, 3, *reversed(lengths)], "right", 4),
        )

    @property
    def lengths(self) -> list[int]:
        n = self.tokens.shape[1]
        return [n] * len(self.tokens) if self.mask is None else self.mask.sum(1).tolist()


def random_positions(rng: Random, lengths: Sequence[int]) -> Any:
    """As `Edit.pos`: None, one, several, or per prompt; some counted from the end."""
    form = rng.choice(["all", "one", "several", "each", "several each"])
    shortest = min(lengths)
    if form == "all":
        return None
    if form == "one":
        return rng.randrange(-shortest, shortest)
    n = rng.randint(1, min(3, shortest))
    if form == "several":
        # Of prompts of unequal length 1 and -3 may be the same token: count from one end only.
        start = rng.choice([0, -shortest])
        return [start + p for p in rng.sample(range(shortest), n)]
    if form == "each":
        n = 1
    rows = [
        [p - rng.choice([0, length]) for p in rng.sample(range(length), n)] for length in lengths
    ]
    return torch.tensor(rows)[:, 0] if form == "each" else torch.tensor(rows)


def random_indices(rng: Random, size: int) -> Any:
    """As `Edit.head` and `Edit.neuron`."""
    form = rng.choice(["all", "one", "several"])
    if form == "all":
        return None
    if form == "one":
        return rng.randrange(-size, size)
    return [
        i - rng.choice([0, size]) for i in rng.sample(range(size), rng.randint(1, min(3, size)))
    ]


def selection(world: World, axes: Sequence[str], asked: dict[str, Any]) -> tuple[list, list]:
    """The shape that indexing as an edit does would give: with and without the axes of which one
    number picks one."""
    sizes = {**axis_sizes(world.model.cfg), "one": 1}
    sizes |= dict.fromkeys(("pos", "query", "key"), world.tokens.shape[1])
    full, short = [len(world.tokens)], [len(world.tokens)]
    names = {"pos": "pos", "query": "pos", "key": "key", "head": "head"}
    for axis in axes[1:]:
        which = asked[names.get(axis, "neuron")]
        single = isinstance(which, int) or (isinstance(which, Tensor) and which.ndim == 1)
        if which is None:
            n = sizes[axis]
        elif isinstance(which, Tensor):
            n = 1 if single else which.shape[1]
        else:
            n = 1 if single else len(which)
        full.append(n)
        short += [] if single else [n]
    return full, short


def random_value(rng: Random, shapes: tuple[list, list], like: Tensor, positive: bool) -> Tensor:
    """A tensor that broadcasts to a selection."""
    shape = list(rng.choice(shapes))
    if len(shape) == len(shapes[1]) and rng.random() < 0.5:
        shape = shape[rng.randint(0, len(shape)) :]
    shape = [1 if rng.random() < 0.2 else n for n in shape]
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    value = torch.randn(shape, generator=draw, dtype=torch.float64)
    return (value.abs() + 0.5 if positive else value).to(like.dtype)


def random_edit(rng: Random, world: World, name: str | None = None) -> Edit:
    """An edit at a point (of this name), any kind, anywhere."""
    point = world.model.hook_dict[name or rng.choice(list(world.model.hook_dict))]
    attention, positive = "query" in point.axes, point.name.endswith("hook_scale")
    sizes = {**axis_sizes(world.model.cfg), "one": 1}
    where: dict[str, Any] = dict(
        pos=random_positions(rng, world.lengths), head=None, neuron=None, key=None
    )
    if "head" in point.axes:
        where["head"] = random_indices(rng, sizes["head"])
    if attention:
        where["key"] = random_positions(rng, world.lengths)
    elif rng.random() < 0.4:
        where["neuron"] = random_indices(rng, sizes[point.axes[-1]])

    def value() -> Tensor:
        shapes = selection(world, point.axes, where)
        return random_value(rng, shapes, world.model.W_E, positive)

    makers: list[Callable[[], Edit]] = [
        lambda: Patch(point.name, source=world.source, **where),
        lambda: Patch(point.name, source=value(), **where),
        lambda: Add(point.name, value=value(), **where),
        # Layer norm divides by its scale; a score of -inf times 0 is nothing.
        lambda: Scale(point.name, factor=rng.choice([0.5, 2.0]), **where),
    ]
    if not positive:
        makers.append(lambda: Ablate(point.name, **where))
    if not positive and not point.name.endswith("attn_scores"):
        makers.append(lambda: Scale(point.name, factor=rng.choice([0.0, -1.0, 3.0]), **where))
    if not attention:
        makers.append(lambda: Ablate(point.name, kind="mean", reference=world.reference, **where))
    makers.append(
        lambda: Ablate(point.name, kind="mean", reference=world.twins, per_position=True, **where)
    )
    makers.append(
        lambda: Ablate(
            point.name, kind="resample", reference=world.twins, seed=rng.randrange(9), **where
        )
    )
    if len(set(world.lengths)) == 1:
        makers.append(lambda: Patch(point.name, source=world.source.slice(batch=[0]), **where))
    return rng.choice(makers)()
