"""Interventions as values: what is changed, where, to what. No closure, no model, no state.

An edit names a hook point and, there, positions, heads and neurons (or attention entries), and says
what becomes of the activation: `Patch` puts another run's in its place, `Ablate` removes it,
`Scale` and `Add` change it. Because it is data it can be printed, compared, saved, and *planned*:
`analyses.sweep` evaluates thousands of them at a fraction of as many forward passes.

An edit goes into a run as it is (it is a hook function too):

    edit = Ablate(("z", 9), head=[6, 9], pos=-1)
    model.run_with_hooks(tokens, edits=edit)

Positions count a prompt's real tokens, so they mean the same however it is padded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks.cache import ActivationCache
from hooks.names import nearest
from hooks.point import HookPoint
from hooks.when import When

# The same for every prompt (a whole number or several), or one row per prompt (a tensor).
Where = (
    int
    | Int[Tensor, ""]
    | np.ndarray
    | Sequence[int]
    | Int[Tensor, " batch"]
    | Int[Tensor, "batch _"]
    | None
)
Which = int | Sequence[int] | Int[Tensor, " _"] | np.ndarray | None
KINDS = ("zero", "mean", "resample")


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """What every edit has: where it applies.

    Attributes:
        point: a hook name or short form, such as `"blocks.3.attn.hook_z"` or `("z", 3)`.
        pos: which positions; of attention scores and patterns, which queries. None: all. A whole
            number or several: the same in every prompt, negative ones from its end. A tensor
            `batch` or `batch n`: those of each prompt. Padding is never counted and never edited.
        head: which heads; None: all.
        neuron: which coordinates of the last axis: neurons at `mlp.hook_pre` and `mlp.hook_post`,
            coordinates of `d_head` or `d_model` elsewhere; None: all.
        key: of attention scores and patterns, which positions attended to, given as `pos` is. None
            is all, also those that the mask hides from a query: an `Ablate` of attention scores
            lets it look ahead.
        when: while generating, at which tokens: `PromptTokens()`, `NewTokens()` or `Steps(a, b)`;
            None: at all of them. Elsewhere there is nothing to choose from, and it is refused.
    """

    point: str | tuple
    pos: Where = None
    head: Which = None
    neuron: Which = field(default=None, kw_only=True)
    key: Where = field(default=None, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if type(self) is Edit:
            raise TypeError("Edit itself changes nothing: use Patch, Ablate, Scale or Add.")
        if not isinstance(self.point, str | tuple):
            raise TypeError(
                f"point is a hook name such as 'blocks.0.attn.hook_z' or ('z', 0), not "
                f"{self.point!r}."
            )
        if self.when is not None and not isinstance(self.when, When):
            raise TypeError(
                f"when is PromptTokens(), NewTokens() or Steps(a, b), not {self.when!r}."
            )
        for name in ("pos", "key"):
            object.__setattr__(
                self, name, frozen_indices(name, getattr(self, name), per_prompt=True)
            )
        for name in ("head", "neuron"):
            object.__setattr__(
                self, name, frozen_indices(name, getattr(self, name), per_prompt=False)
            )

    def __call__(self, activation: Tensor, hook: HookPoint) -> None:
        """Apply the edit, in place, to a whole activation of prompts without padding.

        Raises:
            others: as `hooks.located.Locator.locate`.
        """
        self.apply(activation, hook, None)

    def apply(
        self, activation: Tensor, hook: HookPoint, mask: Bool[Tensor, "batch pos"] | None
    ) -> None:
        """Apply the edit, in place, to a whole activation.

        Args:
            mask: where real tokens are; None: everywhere.

        Raises:
            others: as `hooks.located.Locator.locate`.
        """
        from hooks.located import Locator

        sizes = dict(zip(hook.axes, activation.shape, strict=True))
        if mask is None:
            length = sizes["pos"] if "pos" in sizes else sizes["key"]
            mask = torch.ones(sizes["batch"], length, dtype=torch.bool)
        fixed = {a: n for a, n in sizes.items() if a not in ("batch", "pos", "query", "key")}
        locator = Locator({hook.name: hook}, fixed, mask, activation)
        locator.locate(self, here=True)(activation, hook)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(_same(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in fields(self))
        return hash((type(self), *(v for v in values if isinstance(v, int | str | tuple | float))))

    def __repr__(self) -> str:
        parts = [repr(self.point)]
        for f in fields(self)[1:]:
            value = getattr(self, f.name)
            if _same(value, f.default):
                continue
            parts.append(f"{f.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class Patch(Edit):
    """Put other values in place of an activation.

    Attributes:
        source: an `ActivationCache` with the point, of as many prompts (or of one, for all), each
            of the same length: the values at the same places are taken. Or a tensor of the values
            themselves, which broadcasts to the selection: to what indexing the activation as the
            edit does would give (`batch d_model` for one position of a residual stream).
    """

    source: ActivationCache | Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, ActivationCache | Tensor):
            raise TypeError(
                f"Patch at {self.point!r} needs a source, an ActivationCache or a tensor, not "
                f"{type(self.source).__name__}."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(Edit):
    """Take out what an activation says about this prompt.

    Attributes:
        kind: "zero", "mean" (of the reference prompts) or "resample" (each prompt gets the
            activation of a reference prompt drawn at random).
        reference: the cache of the reference prompts; for "mean" and "resample".
        per_position: for "mean": one mean per position (the reference prompts then have the length
            of the edited ones) rather than one over all their tokens. Attention has no other.
        seed: of the draw of "resample"; prompts draw one after the other, so the same seed gives
            every edit the same draw.
    """

    kind: Literal["zero", "mean", "resample"] = "zero"
    reference: ActivationCache | None = None
    per_position: bool = field(default=False, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(
                f"unknown kind of ablation {self.kind!r}.{nearest(str(self.kind), KINDS)} "
                f"Expected {', '.join(KINDS)}."
            )
        if self.kind == "zero":
            if self.reference is not None:
                raise ValueError("a zero ablation takes no reference: did you mean kind='mean'?")
        elif not isinstance(self.reference, ActivationCache):
            raise TypeError(
                f"kind={self.kind!r} needs reference=, the ActivationCache of the prompts to take "
                f"it from, not {type(self.reference).__name__}."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed is a whole number, not {self.seed!r}.")
        if self.per_position and self.kind != "mean":
            raise ValueError(f"per_position goes with kind='mean', not {self.kind!r}.")


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Edit):
    """Multiply an activation by `factor`."""

    factor: int | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.factor, bool) or not isinstance(self.factor, int | float):
            raise TypeError(
                f"Scale at {self.point!r} needs factor=, a number, not {self.factor!r}."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Add(Edit):
    """Add `value` to an activation, as in steering.

    Attributes:
        value: broadcasts to the selection, as `Patch.source` does (`d_model` for a direction of
            the residual stream).
    """

    value: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.value, Tensor):
            raise TypeError(
                f"Add at {self.point!r} needs a value, a tensor, not {type(self.value).__name__}."
            )


Intervention = Edit | Sequence[Edit]


def frozen_indices(
    name: str, given: Any, *, per_prompt: bool
) -> int | tuple[int, ...] | Tensor | None:
    """Whole numbers as int or tuple; a tensor of one row per prompt as a copy of its own."""
    what = "a whole number, several" + (", or a tensor `batch` or `batch n`" if per_prompt else "")
    if given is None:
        return None
    if isinstance(given, Tensor | np.ndarray):
        given = torch.as_tensor(given)
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{name} is {what}, not a tensor of {given.dtype}.")
        if given.ndim == 0:
            return int(given)
        if per_prompt:
            if given.ndim > 2 or given.numel() == 0:
                raise ValueError(f"{name} is {what}, not of shape {tuple(given.shape)}.")
            return given.detach().to("cpu", torch.int64, copy=True)
        if given.ndim > 1:
            raise ValueError(f"{name} is {what}, not of shape {tuple(given.shape)}.")
    one = not isinstance(given, Sequence | Tensor) or isinstance(given, str)
    numbers: list[Any] = [given] if one else list(given)
    if not numbers:
        raise ValueError(f"{name} is empty; None means all.")
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise TypeError(f"{name} is {what}, not {given!r}.")
    whole = tuple(number.__index__() for number in numbers)
    return whole[0] if one else whole


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, Tensor | Mapping) or isinstance(b, Tensor | Mapping):
        return a is b
    return type(a) is type(b) and a == b


def _shown(value: Any) -> str:
    if isinstance(value, ActivationCache):
        sizes = {t.shape[0] for n, t in value.tensors.items() if value.axes[n][:1] == ("batch",)}
        prompts = f"{sizes.pop()} prompts" if len(sizes) == 1 else f"{len(value)} activations"
        return f"<cache of {prompts}>"
    if isinstance(value, Tensor):
        if value.numel() <= 8 and not value.is_floating_point():
            return f"tensor({value.tolist()})"
        return f"<tensor {'x'.join(map(str, value.shape)) or 'of one number'}>"
    return repr(list(value)) if isinstance(value, tuple) else repr(value)
