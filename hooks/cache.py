"""Activations kept from one run: a mapping by name, with named axes, and no model in it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooks.names import resolve
from hooks.point import HookPoint

# One position, a range, several, or a mask over all of them.
Index = int | slice | Sequence[int] | Tensor | np.ndarray | np.integer

_OF_THE_MODEL = "a cache holds no model: analyses.attribution.{name}(model, cache, ...)"
# What TransformerLens' cache has, and this one does otherwise.
_ELSEWHERE = {
    **dict.fromkeys(
        ("decompose_resid", "accumulated_resid", "stack_head_results", "apply_ln_to_stack"),
        _OF_THE_MODEL,
    ),
    "logit_attrs": _OF_THE_MODEL,
    **dict.fromkeys(
        ("get_full_resid_decomposition", "stack_neuron_results"),
        "analyses.attribution.attribution(model, tokens, ...)['neuron']",
    ),
    "get_neuron_results": "cache['post', layer][..., None] * model.W_out[layer]",
    "compute_head_results": "run_with_cache(names_filter=[..., '*attn.hook_result'])",
    "stack_activation": "torch.stack([cache[name, layer] for layer in range(cache.n_layers)])",
    "apply_slice_to_batch_dim": "cache.slice(batch=...)",
    "toggle_autodiff": "torch.set_grad_enabled(...)",
    "cache_dict": "dict(cache)",
    "has_batch_dim": "cache.axes[name], the names of a tensor's axes",
    "model": "keep the model yourself: a cache holds none",
}

# Where positions lie in a tensor: attention is sliced by the position that attends.
_POSITION_AXES = ("pos", "query")


@dataclass(frozen=True, eq=False, repr=False)
class ActivationCache(Mapping[str | tuple, Tensor]):
    """What passed the hook points of one run.

    A mapping from full names to tensors that also answers short forms:
    `cache["blocks.3.attn.hook_pattern"]`, `cache["pattern", 3]`, `cache["resid_post", -1]`.
    With `incl_bwd`, gradients are under `name + "_grad"`.

    A tensor is stored once, also where it passes two points (`hook_resid_post` of one layer is
    `hook_resid_pre` of the next), so do not write into one.

    Attributes:
        tensors: the tensors by full name.
        axes: the names of each tensor's axes, by full name.
        tokens: the token ids of the run, `batch pos`, where it began from tokens.
        attention_mask: `batch pos`, False on padding, or None without padding.
        str_tokens: one list of token strings per prompt, where the run began from text.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where the run began
            from token ids.
        n_layers: how many layers the model has; negative layers count from there.
        partial: whether only some positions were kept.
    """

    tensors: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    tokens: Tensor | None = None
    attention_mask: Tensor | None = None
    str_tokens: Sequence[Sequence[str]] | None = None
    prepend_bos: bool | None = None
    n_layers: int | None = None
    partial: bool = False

    def __getitem__(self, name: str | tuple) -> Tensor:
        return self.tensors[self.full_name(name)]

    def __getattr__(self, name: str) -> Any:
        hint = _ELSEWHERE.get(name)
        told = "" if hint is None else f"; instead: {hint.format(name=name)}"
        raise AttributeError(f"ActivationCache has no {name!r}{told}")

    def full_name(self, name: str | tuple) -> str:
        """The full name that a name or short form stands for.

        Raises:
            UnknownHookName: nothing of that name is in this cache; the message names the nearest.
        """
        return resolve(name, list(self.tensors), self.n_layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str | tuple):
            return False
        try:
            self.full_name(name)
        except KeyError:
            return False
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, each storage counted once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self._held()}
        return sum(s.nbytes() for s in storages.values())

    def _held(self) -> list[Tensor]:
        extra = [t for t in (self.tokens, self.attention_mask) if t is not None]
        return [*self.tensors.values(), *extra]

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ActivationCache":
        """A cache on another device, or of another dtype (token ids keep theirs)."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        moved = _once_per_tensor(self.tensors, lambda t: t.to(device=device, dtype=dtype))
        return replace(
            self,
            tensors=moved,
            tokens=None if self.tokens is None else self.tokens.to(device),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device),
        )

    def slice(self, *, batch: Index | None = None, pos: Index | None = None) -> "ActivationCache":
        """The activations of some prompts and positions only, in memory of their own.

        Args:
            batch: index, slice, indices or mask along `batch`. An index removes the axis.
            pos: likewise along `pos` (along `query` for attention scores and patterns).

        Raises:
            IndexError: out of range, or the cache has no such axis any more.
        """
        tensors, axes = dict(self.tensors), dict(self.axes)
        for wanted, index in ((("batch",), batch), (_POSITION_AXES, pos)):
            if index is None:
                continue
            if not any(set(wanted) & set(a) for a in axes.values()):
                raise IndexError(f"this cache has no axis {wanted[0]!r} (any more) to slice.")
            for name in tensors:
                tensors[name], axes[name] = take(tensors[name], axes[name], wanted, index, name)
        compact = _once_per_tensor(tensors, lambda t: t.clone())
        cut = self._sliced_tokens(batch, pos)
        partial = self.partial or pos is not None
        return replace(self, tensors=compact, axes=axes, partial=partial, **cut)

    def _sliced_tokens(self, batch: Index | None, pos: Index | None) -> dict[str, Any]:
        cut: dict[str, Any] = {}
        for name in ("tokens", "attention_mask"):
            value, axes = getattr(self, name), ("batch", "pos")
            if value is None:
                continue
            if value.ndim == 1:
                axes = ("pos",) if self._lost("batch") else ("batch",)
            for axis, index in (("batch", batch), ("pos", pos)):
                if index is not None and axis in axes:
                    value, axes = take(value, axes, (axis,), index, name)
            cut[name] = value.clone()
        if self.str_tokens is not None:
            rows = self.str_tokens
            if batch is not None and not self._lost("batch"):
                rows = _pick(rows, batch, "batch")
            if pos is not None:
                rows = [_pick(row, pos, "pos") for row in rows]
            cut["str_tokens"] = rows
        return cut

    def _lost(self, axis: str) -> bool:
        return not any(axis in a for a in self.axes.values())

    def remove_batch_dim(self) -> "ActivationCache":
        """The same activations without the axis `batch`, which must be of length 1.

        Raises:
            IndexError: there are several prompts, or the axis is gone already.
        """
        sizes = {
            t.shape[a.index("batch")]
            for t, a in zip(self.tensors.values(), self.axes.values(), strict=True)
            if "batch" in a
        }
        if sizes != {1}:
            raise IndexError(
                f"only a batch of one prompt can lose its axis 'batch': this cache has "
                f"{sorted(sizes) or 'no such axis'}."
            )
        return replace(
            self,
            tensors={
                n: t.squeeze(self.axes[n].index("batch")) if "batch" in self.axes[n] else t
                for n, t in self.tensors.items()
            },
            axes={n: tuple(x for x in a if x != "batch") for n, a in self.axes.items()},
            tokens=None if self.tokens is None else self.tokens[0],
            attention_mask=None if self.attention_mask is None else self.attention_mask[0],
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file that `ActivationCache.load` reads back the same.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        from safetensors.torch import save_file

        first: dict[tuple, str] = {}
        alias = {n: first.setdefault(_identity(t), n) for n, t in self.tensors.items()}
        held = {n: self.tensors[n].contiguous().clone() for n in set(alias.values())}
        extra = {
            f"__{n}__": getattr(self, n).contiguous()
            for n in ("tokens", "attention_mask")
            if getattr(self, n) is not None
        }
        about = {
            "axes": {n: " ".join(a) for n, a in self.axes.items()},
            "alias": alias,
            "str_tokens": self.str_tokens and [list(row) for row in self.str_tokens],
            "prepend_bos": self.prepend_bos,
            "n_layers": self.n_layers,
            "partial": self.partial,
        }
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {str(Path(path).parent)!r} to save in.")
        save_file(held | extra, path, metadata={"hooked_gpt2_cache": json.dumps(about)})

    @classmethod
    def load(
        cls, path: str | PathLike[str], device: str | torch.device = "cpu"
    ) -> "ActivationCache":
        """Read a cache that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no file that `save` wrote.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r} to load a cache from.")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {})["hooked_gpt2_cache"])
                held = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (no mapping)
            return cls(
                tensors={n: held[first] for n, first in about["alias"].items()},
                axes={n: tuple(a.split()) for n, a in about["axes"].items()},
                tokens=held.get("__tokens__"),
                attention_mask=held.get("__attention_mask__"),
                str_tokens=about["str_tokens"],
                prepend_bos=about["prepend_bos"],
                n_layers=about["n_layers"],
                partial=about.get("partial", False),
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is no saved activation cache: {error}") from error

    def __repr__(self) -> str:
        mib = self.nbytes / 2**20
        lines = [f"ActivationCache: {len(self)} activations, {mib:.1f} MiB"]
        shown = list(self.tensors)
        for name in shown[:12]:
            shape = " ".join(
                f"{axis}={n}"
                for axis, n in zip(self.axes[name], self.tensors[name].shape, strict=True)
            )
            lines.append(f"  {name}: {shape}")
        if len(shown) > 12:
            lines.append(f"  ... and {len(shown) - 12} more")
        return "\n".join(lines)


class CacheBuilder:
    """Collects tensors during a run; what it holds when the run ends becomes the cache.

    Args:
        pos_slice: keep only these positions.
        device: move each tensor there as it passes.
    """

    def __init__(
        self, pos_slice: Index | None = None, device: str | torch.device | None = None
    ) -> None:
        self._pos_slice = pos_slice
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self._axes: dict[str, tuple[str, ...]] = {}
        # The tensor that passed last, and what was kept of it: it may pass the next point too.
        # Held, so that its memory cannot be another tensor's when the two are compared.
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, point: HookPoint, value: Tensor, suffix: str = "") -> None:
        """Keep what passed a point (its gradient, with `suffix="_grad"`)."""
        name, axes, kept = point.name + suffix, point.axes, value
        if self._pos_slice is not None:
            kept, axes = take(value, axes, _POSITION_AXES, self._pos_slice, name)
        if self._last is not None and _identity(self._last[0]) == _identity(value):
            kept = self._last[1]
        else:
            if self._pos_slice is not None:
                kept = kept.clone()
            if self._device is not None:
                kept = kept.to(self._device)
            self._last = (value, kept)
        self._tensors[name], self._axes[name] = kept, axes

    def cache(self, **about: Any) -> ActivationCache:
        """The cache of what was collected."""
        tensors = self._without_unasked_memory()
        self._last = None
        cache = ActivationCache(tensors, self._axes, **about)
        if self._pos_slice is None:
            return cache
        return replace(cache, partial=True, **cache._sliced_tokens(None, self._pos_slice))

    def _without_unasked_memory(self) -> dict[str, Tensor]:
        # Queries, keys and values are views of one tensor. With only one of them asked for,
        # keeping the view would keep all three in memory.
        asked: dict[int, int] = {}
        for value in {_identity(t): t for t in self._tensors.values()}.values():
            key = value.untyped_storage().data_ptr()
            asked[key] = asked.get(key, 0) + value.nbytes
        return _once_per_tensor(
            self._tensors,
            lambda t: (
                t.clone()
                if asked[t.untyped_storage().data_ptr()] < t.untyped_storage().nbytes()
                else t
            ),
        )


def take(
    value: Tensor, axes: tuple[str, ...], wanted: Sequence[str], index: Index, name: str
) -> tuple[Tensor, tuple[str, ...]]:
    """`value` indexed along the first of its axes that is in `wanted`, and the axes left.

    Raises:
        IndexError: the index is out of range, naming the point, the axis and its length.
    """
    found = [i for i, axis in enumerate(axes) if axis in wanted]
    if not found:
        return value, axes
    dim = found[0]
    size = value.shape[dim]
    if isinstance(index, slice):
        taken = value[(slice(None),) * dim + (index,)]
        if taken.shape[dim] == 0:
            raise IndexError(f"{index} of {name!r} leaves nothing of {size} along {axes[dim]!r}.")
        return taken, axes
    where = _where(index, size, axes[dim], name)
    if isinstance(where, int):
        return value.select(dim, where), axes[:dim] + axes[dim + 1 :]
    return value.index_select(dim, torch.tensor(where, device=value.device)), axes


def _identity(value: Tensor) -> tuple:
    return (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)


def _once_per_tensor(
    tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Each tensor changed, those that are one and the same tensor only once."""
    done: dict[tuple, Tensor] = {}
    for value in tensors.values():
        key = _identity(value)
        if key not in done:
            done[key] = change(value)
    return {name: done[_identity(value)] for name, value in tensors.items()}


def _pick(row: Sequence, index: Index, axis: str) -> list:
    where = _where(index, len(row), axis, "str_tokens")
    if isinstance(where, slice):
        return list(row[where])
    return [row[i] for i in ([where] if isinstance(where, int) else where)]


def _where(index: Index, size: int, axis: str, name: str) -> int | slice | list[int]:
    """An index as a slice, a whole number, or a list of them, none negative or out of range."""
    if isinstance(index, slice):
        return index
    numbers = torch.as_tensor(index)
    if numbers.dtype == torch.bool and numbers.ndim == 1:
        if len(numbers) != size:
            raise IndexError(
                f"a mask of {len(numbers)} does not fit {axis!r} of {name!r}, which has {size}."
            )
        numbers = numbers.nonzero()[:, 0]
    if not numbers.numel():
        raise IndexError(f"{index} picks nothing of {size} along {axis!r} of {name!r}.")
    if numbers.is_floating_point() or numbers.dtype == torch.bool or numbers.ndim > 1:
        raise TypeError(
            f"an index along {axis!r} is a whole number, a slice, several whole numbers, or a mask "
            f"of {size}, not {index!r}."
        )
    for i in numbers.reshape(-1).tolist():
        if not -size <= i < size:
            raise IndexError(
                f"{axis} {i} is out of range for {name!r}: it has {size}, "
                f"0 to {size - 1} (or -{size} to -1)."
            )
    return (numbers % size).tolist()
