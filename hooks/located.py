"""Edits brought down to the numbers of one batch of prompts: columns, heads, and values.

A `Locator` knows the points, the sizes of their axes and where the real tokens of each prompt are.
What it makes of an edit, a `LocatedEdit`, can be applied to a whole activation, or to any part of
one prompt's. Everything that can be wrong with an edit is found here, before anything is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from hooks.cache import ActivationCache
from hooks.edits import Ablate, Add, Edit, Patch, Scale
from hooks.names import UnknownHookName, nearest, resolve
from hooks.point import HookPoint

Columns = tuple[np.ndarray, ...]


def position_first(value: Tensor, axes: tuple[str, ...]) -> Tensor:
    """A view with the axis of positions (of attention: queries) right after the batch."""
    return value.transpose(1, 2) if "query" in axes else value


@dataclass(frozen=True, eq=False)
class _Values:
    """Values an edit puts or adds, positions first.

    Attributes:
        tensor: `batch pos ...`; an axis of length 1 stands for all of that axis.
        selected: whether its axes are those of the selection, or those of the whole activation.
        examples: per prompt, the row of `tensor`.
        columns, keys: per prompt, where in `tensor` the edited columns are.
    """

    tensor: Tensor
    selected: bool
    examples: np.ndarray
    columns: Columns
    keys: Columns | None


@dataclass(frozen=True, eq=False)
class LocatedEdit:
    """An edit at definite places of a batch of prompts.

    Attributes:
        edit: what it was made from.
        point: the hook point.
        columns: per prompt, the columns of the token tensor that are edited.
        keys: per prompt, the columns attended to (attention only).
        heads, units: indices along the axes `head` and last, or None for all.
        sizes: how long the axes are.
        values: what is put or added, or None for an edit that needs no tensor.
    """

    edit: Edit
    point: HookPoint
    columns: Columns
    keys: Columns | None
    heads: Tensor | None
    units: Tensor | None
    sizes: Mapping[str, int]
    values: _Values | None

    @property
    def is_attention(self) -> bool:
        """Whether it edits attention scores or a pattern."""
        return "query" in self.point.axes

    def __call__(self, activation: Tensor, hook: object = None, *, first: int = 0) -> None:
        """Apply it, in place, to the whole activation of the batch (of prompts `first` on)."""
        whole = position_first(activation, self.point.axes)
        for example in range(first, first + len(activation)):
            view = whole[example - first]
            columns = self.columns[example]
            self.write(view, columns, np.arange(len(columns)), example)

    def write(self, view: Tensor, rows: np.ndarray, which: np.ndarray, example: int) -> None:
        """Apply part of it, in place.

        Args:
            view: one prompt's activation, or some positions of it: `pos ...`.
            rows: where in `view` the edited positions are.
            which: which of `columns[example]` they are.
            example: the prompt.
        """
        last = self.units if self.keys is None else _indices(self.keys[example], view.device)
        index = self._index(rows, last, view)
        if isinstance(self.edit, Scale):
            view[index] *= cast(float, self.edit.factor)
        elif self.values is None:
            view[index] = 0.0
        elif isinstance(self.edit, Add):
            view[index] += self._taken(self.values, which, example)
        else:
            view[index] = self._taken(self.values, which, example)

    def until(self, end: int) -> "LocatedEdit":
        """The same where there are no columns from `end` on: attention has no keys there."""
        if self.keys is None:
            return self
        there = [keys < end for keys in self.keys]

        def cut(columns: Columns) -> Columns:
            return tuple(c[kept] for c, kept in zip(columns, there, strict=True))

        values = self.values
        if values is not None and values.keys is not None:
            values = replace(values, keys=cut(values.keys))
        return replace(self, keys=cut(self.keys), values=values)

    @cached_property
    def whole_source(self) -> Tensor | None:
        """All that the other run of a `Patch` has at the point, `batch pos ...` (`batch` may be
        1), where its columns are those of this batch; else None."""
        if not isinstance(self.edit, Patch) or self.values is None or self.values.selected:
            return None
        pairs = zip(self.columns, self.values.columns, strict=True)
        same = all(np.array_equal(here, there) for here, there in pairs)
        return self.values.tensor if same else None

    def _taken(self, values: _Values, which: np.ndarray, example: int) -> Tensor:
        tensor = values.tensor[values.examples[example]]
        rows = values.columns[example][which]
        if tensor.shape[0] == 1:
            rows = np.zeros(1, dtype=np.int64)
        if not values.selected:
            last = self.units
            if values.keys is not None:
                last = _indices(values.keys[example], tensor.device)
            return tensor[self._index(rows, last, tensor)]
        taken = tensor[_indices(rows, tensor.device)]
        if values.keys is not None and taken.shape[-1] > 1:
            taken = taken[..., _indices(values.keys[example], tensor.device)]
        return taken

    def _index(self, rows: np.ndarray, last: Tensor | None, of: Tensor) -> tuple:
        at = _indices(rows, of.device)
        if self.heads is None and last is None:
            return (at,)
        if of.ndim == 2:
            return (at[:, None], last)
        if last is None:
            return (at[:, None], self.heads)
        heads = self.heads
        if heads is None:
            heads = torch.arange(self.sizes["head"], device=of.device)
        return (at[:, None, None], heads[:, None], last)


def _indices(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(rows).to(device)


def real_columns(mask: Bool[Tensor, "batch pos"]) -> Columns:
    """Per prompt, the columns of the token tensor in which its tokens are."""
    return tuple(row.nonzero()[0] for row in mask.cpu().numpy())


def columns_of(where: Any, real: Columns, what: str) -> Columns:
    """Per prompt, the columns of the positions asked for, in the order asked for.

    Args:
        where: whole numbers, the same in every prompt, or a tensor with a row per prompt.
        real: the columns of each prompt's tokens.
        what: what asks, for error messages.

    Raises:
        IndexError: a position out of range of a prompt.
        ValueError: not one row per prompt, or a token named twice.
    """
    if isinstance(where, Tensor):
        if len(where) != len(real):
            raise ValueError(f"{what} has {len(where)} rows, there are {len(real)} prompts.")
        rows = where.reshape(len(where), -1).numpy()
    else:
        rows = np.array([[where] if isinstance(where, int) else where] * len(real))
    found = []
    for example, (row, own) in enumerate(zip(rows, real, strict=True)):
        n = len(own)
        outside = row[(row < -n) | (row >= n)]
        if len(outside):
            raise IndexError(
                f"{what} {outside[0]} is out of range: prompt {example} has {n} tokens, "
                f"0 to {n - 1} (or -{n} to -1)."
            )
        if len(np.unique(row % n)) != len(row):
            raise ValueError(f"{what} names a token of prompt {example} twice.")
        found.append(own[row % n])
    return tuple(found)


class Locator:
    """Finds the places of edits in a batch of prompts.

    Args:
        points: the hook points there are, by full name.
        sizes: how long the axes are, by name.
        mask: `batch pos`, True on real tokens.
        like: any tensor of the run, for its dtype and device.

    Attributes:
        real: per prompt, the columns in which its tokens are.
    """

    def __init__(
        self,
        points: Mapping[str, HookPoint],
        sizes: Mapping[str, int],
        mask: Bool[Tensor, "batch pos"],
        like: Tensor,
    ) -> None:
        self._points = points
        self._sizes = {**sizes, "one": 1}
        self.real = real_columns(mask)
        self._n_columns = mask.shape[1]
        self._dtype, self._device = like.dtype, like.device
        # What several edits share: sources moved to the device, means, draws.
        self._shared: dict[tuple, Any] = {}
        self._found: dict[str | tuple | None, HookPoint] = {}

    def locate(self, edit: Edit, *, here: bool = False) -> LocatedEdit:
        """The places and values of an edit.

        Args:
            here: there is one point and the edit is at it, whatever it calls it.

        Raises:
            UnknownHookName: there is no such point, or the source has not kept it.
            IndexError: a position, head or neuron out of range.
            ValueError: an axis the point does not have, a place given twice, a source whose
                prompts are not as many or not as long, or whose values do not fit.
        """
        if not isinstance(edit, Edit):
            raise TypeError(f"an edit is a Patch, Ablate, Scale or Add, not {edit!r}.")
        if edit.when is not None:
            raise ValueError(f"{edit!r}: when goes with generate(); nothing is generated here.")
        point = self._point(None if here else edit.point)
        attention = "query" in point.axes
        if edit.key is not None and not attention:
            raise ValueError(
                f"{edit!r}: key is for attention scores and patterns; {point.name!r} has axes "
                f"{' '.join(point.axes)}."
            )
        if edit.neuron is not None and attention:
            raise ValueError(f"{edit!r}: attention has no neurons; its last axis is given by key.")
        if edit.head is not None and "head" not in point.axes:
            raise ValueError(
                f"{edit!r}: {point.name!r} has no heads; its axes are {' '.join(point.axes)}."
            )
        places = LocatedEdit(
            edit=edit,
            point=point,
            columns=self._columns(edit, "pos"),
            keys=self._columns(edit, "key") if attention else None,
            heads=self._along(edit, "head", "head"),
            units=self._along(edit, "neuron", point.axes[-1]),
            sizes=self._sizes,
            values=None,
        )
        return replace(places, values=self._values(edit, places))

    def _point(self, name: str | tuple | None) -> HookPoint:
        if name not in self._found:
            names = list(self._points)
            self._found[name] = self._points[names[0] if name is None else resolve(name, names)]
        return self._found[name]

    def _columns(self, edit: Edit, name: str) -> Columns:
        where = getattr(edit, name)
        return self.real if where is None else columns_of(where, self.real, f"{edit!r}: {name}")

    def _along(self, edit: Edit, name: str, axis: str) -> Tensor | None:
        which = getattr(edit, name)
        if which is None:
            return None
        size = self._sizes[axis]
        several = [which] if isinstance(which, int) else list(which)
        for index in several:
            if not -size <= index < size:
                raise IndexError(
                    f"{edit!r}: {name} {index} is out of range: there are {size} along {axis!r}, "
                    f"0 to {size - 1} (or -{size} to -1)."
                )
        several = [index % size for index in several]
        if len(set(several)) != len(several):
            raise ValueError(f"{edit!r}: {name} names one of them twice.")
        return torch.tensor(several, device=self._device)

    # ---------------------------------------------------------------- values

    def _values(self, edit: Edit, places: LocatedEdit) -> _Values | None:
        if isinstance(edit, Patch):
            if isinstance(edit.source, Tensor):
                return self._selection(edit, places, edit.source, "source")
            return self._from_run(edit, places, edit.source)
        if isinstance(edit, Add):
            return self._selection(edit, places, edit.value, "value")
        if isinstance(edit, Ablate) and edit.kind == "mean":
            return self._mean(edit, places, edit.reference)
        if isinstance(edit, Ablate) and edit.kind == "resample":
            return self._resampled(edit, places, edit.reference)
        return None

    def _selection(self, edit: Edit, places: LocatedEdit, given: Any, name: str) -> _Values:
        """Values that the user gave as a tensor, brought to the shape of the selection."""
        point = places.point
        self._check_dtype(edit, given, name)
        along: dict[str, tuple[int, bool]] = {"batch": (len(self.real), False)}
        for axis in point.axes[1:]:
            which: Any = edit.neuron
            if axis in ("pos", "query", "key"):
                which = edit.key if axis == "key" else edit.pos
                size = self._n_columns
            elif axis == "head":
                which, size = edit.head, self._sizes["head"]
            else:
                size = self._sizes[axis]
            if isinstance(which, Tensor):
                along[axis] = (1 if which.ndim == 1 else which.shape[1], which.ndim == 1)
            elif which is not None:
                along[axis] = (1, True) if isinstance(which, int) else (len(which), False)
            else:
                along[axis] = (size, False)
        kept = [n for n, single in along.values() if not single]
        value = given.detach().to(self._device)
        if value.ndim <= len(kept):
            # Axes that a single number picks are gone, as in indexing.
            value = value.reshape((1,) * (len(kept) - value.ndim) + tuple(value.shape))
            for dim, (_, single) in enumerate(along.values()):
                value = value.unsqueeze(dim) if single else value
        sizes = [n for n, _ in along.values()]
        if value.ndim != len(sizes) or any(
            a not in (1, n) for a, n in zip(value.shape, sizes, strict=True)
        ):
            wanted = " ".join(f"{axis}={n}" for axis, (n, single) in along.items() if not single)
            raise ValueError(
                f"{edit!r}: {name} has shape {tuple(given.shape)}, which does not broadcast to the "
                f"selection, {wanted}."
            )
        n_rows = value.shape[0]
        everywhere = edit.pos is None
        columns = tuple(c if everywhere else np.arange(len(c)) for c in places.columns)
        keys = places.keys
        if keys is not None and edit.key is not None:
            keys = tuple(np.arange(len(k)) for k in keys)
        return _Values(
            tensor=position_first(value, point.axes),
            selected=True,
            examples=np.arange(len(self.real)) % n_rows,
            columns=columns,
            keys=keys,
        )

    def _from_run(self, edit: Edit, places: LocatedEdit, source: Any) -> _Values:
        """Values at the same places of another run."""
        tensor, real = self._kept(edit, places.point, source)
        n_prompts = len(self.real)
        if len(tensor) not in (1, n_prompts):
            raise ValueError(
                f"{edit!r}: the source holds {len(tensor)} prompts, there are {n_prompts}."
            )
        examples = np.arange(n_prompts) % len(tensor)
        self._check_lengths(edit, real, examples)
        return self._aligned(tensor, real, examples, places)

    def _mean(self, edit: Ablate, places: LocatedEdit, reference: Any) -> _Values:
        tensor, real = self._kept(edit, places.point, reference)
        attention = places.keys is not None
        if attention and not edit.per_position:
            raise ValueError(
                f"{edit!r}: the mean over positions means nothing for attention, whose queries "
                f"see ever more keys: pass per_position=True."
            )
        key = ("mean", id(reference), places.point.name, edit.per_position)
        if not edit.per_position:
            if key not in self._shared:
                tokens = torch.cat([tensor[i, own] for i, own in enumerate(real)])
                self._shared[key] = tokens.mean(0)[None, None]
            examples = np.zeros(len(self.real), dtype=np.int64)
            # One position stands for all, so it does not matter which column is asked for.
            return _Values(self._shared[key], False, examples, places.columns, None)
        same = self._of_same_length(edit, real)
        if key not in self._shared:
            means: dict[int, Tensor] = {}
            for own, rows in zip(self.real, same, strict=True):
                if len(own) not in means:
                    runs = [tensor[i, real[i]] for i in rows]
                    if attention:
                        runs = [run[..., real[i]] for run, i in zip(runs, rows, strict=True)]
                    means[len(own)] = torch.stack(runs).mean(0)
            longest = max(means)
            shape = [len(means), longest, *tensor.shape[2:]]
            if attention:
                shape[-1] = longest
            filled = tensor.new_zeros(shape)
            for row, (length, mean) in zip(filled, means.items(), strict=True):
                row[:length, ..., : mean.shape[-1]] = mean
            self._shared[key] = (list(means), filled)
        lengths, filled = self._shared[key]
        examples = np.array([lengths.index(len(own)) for own in self.real])
        return self._aligned(filled, tuple(map(np.arange, lengths)), examples, places)

    def _resampled(self, edit: Ablate, places: LocatedEdit, reference: Any) -> _Values:
        tensor, real = self._kept(edit, places.point, reference)
        draw = torch.Generator().manual_seed(edit.seed)
        examples = np.array(
            [
                rows[int(torch.randint(len(rows), (), generator=draw))]
                for rows in self._of_same_length(edit, real)
            ]
        )
        return self._aligned(tensor, real, examples, places)

    def _of_same_length(self, edit: Edit, real: Columns) -> list[np.ndarray]:
        """Per prompt, the reference prompts with as many tokens."""
        lengths = np.array([len(own) for own in real])
        found = [np.flatnonzero(lengths == len(own)) for own in self.real]
        for example, (own, rows) in enumerate(zip(self.real, found, strict=True)):
            if not len(rows):
                raise ValueError(
                    f"{edit!r}: prompt {example} has {len(own)} tokens, the reference prompts have "
                    f"{', '.join(map(str, sorted(set(lengths.tolist()))))}: positions of prompts "
                    f"of different lengths do not correspond."
                )
        return found

    def _aligned(
        self, tensor: Tensor, real: Columns, examples: np.ndarray, places: LocatedEdit
    ) -> _Values:
        """`tensor`, `batch pos ...`, with the columns in which its prompts have our positions."""

        def there(columns: Columns) -> Columns:
            # Which token of its prompt a column is, and in which column the other run has it.
            return tuple(
                real[examples[i]][np.searchsorted(self.real[i], columns[i])]
                for i in range(len(columns))
            )

        return _Values(
            tensor=tensor,
            selected=False,
            examples=examples,
            columns=there(places.columns),
            keys=None if places.keys is None else there(places.keys),
        )

    def _kept(
        self, edit: Edit, point: HookPoint, source: ActivationCache
    ) -> tuple[Tensor, Columns]:
        """What a cache has at a point, positions first, and where its real tokens are."""
        key = (id(source), point.name)
        if key not in self._shared:
            if point.name not in source.tensors:
                raise UnknownHookName(
                    f"{edit!r}: its source has not kept {point.name!r}."
                    f"{nearest(point.name, source.tensors)} Keep it by run_with_cache("
                    f"names_filter=...)."
                )
            if source.axes[point.name] != point.axes:
                raise ValueError(
                    f"{edit!r}: the source has {point.name!r} as "
                    f"{' '.join(source.axes[point.name])}, not {' '.join(point.axes)}: it must be "
                    f"of whole prompts, with the axis batch."
                )
            if source.partial:
                raise ValueError(
                    f"{edit!r}: its source holds some positions only (pos_slice), so which is "
                    f"which is not known: keep all, or give the values as a tensor."
                )
            tensor = source.tensors[point.name]
            self._check_dtype(edit, tensor, "source")
            sizes = dict(zip(point.axes, tensor.shape, strict=True))
            for axis, size in sizes.items():
                if axis in self._sizes and size != self._sizes[axis]:
                    raise ValueError(
                        f"{edit!r}: the source has {size} along {axis!r}, there are "
                        f"{self._sizes[axis]}."
                    )
            tensor = position_first(tensor.detach().to(self._device), point.axes)
            real = tuple(np.arange(tensor.shape[1]) for _ in range(len(tensor)))
            if source.attention_mask is not None:
                real = real_columns(source.attention_mask)
            # The cache is kept with what was made of it: another may not come to live at its id.
            self._shared[key] = (tensor, real, source)
        tensor, real, _ = self._shared[key]
        return tensor, real

    def _check_dtype(self, edit: Edit, tensor: Tensor, name: str) -> None:
        if tensor.dtype != self._dtype:
            raise ValueError(
                f"{edit!r}: its {name} is {tensor.dtype}, the activation {self._dtype}."
            )

    def _check_lengths(self, edit: Edit, real: Columns, examples: np.ndarray) -> None:
        for example, own in enumerate(self.real):
            theirs = real[examples[example]]
            if len(theirs) != len(own):
                raise ValueError(
                    f"{edit!r}: prompt {example} has {len(own)} tokens, its source {len(theirs)}: "
                    f"positions of prompts of different lengths do not correspond."
                )
