"""Hooks and edits on a computation that grows: a prompt, then one position after the other.

Each pass computes some *columns* of the token tensor. Prompts are padded on the left, so the
prompts end, and step j stands, in the same column of every row. Function hooks get what a pass
computes (the part of it at which they apply), and know where it is: `hook.positions`,
`hook.step`. Edits are located once, on all columns that there will be, and every pass applies its
part of them: what is computed equals one pass over everything with the edits on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooks.edits import Edit
from hooks.located import LocatedEdit, Locator, position_first
from hooks.names import NameFilter, resolve, select
from hooks.point import HookFunction, HookPoint, describe
from hooks.scope import Listener, Listeners, check_answer
from hooks.when import PromptTokens, When

Hook = tuple[NameFilter, HookFunction] | tuple[NameFilter, HookFunction, When]


@dataclass
class _Now:
    """The pass that is running.

    Attributes:
        start, end: the columns it computes, `end` not included.
        real: `row pos`, where real tokens are, in all columns before `end`.
        examples: per row, the number of its prompt.
        step: the new token that is predicted from the last column.
        shown: the columns that the hook being called gets.
        running: False between passes.
    """

    start: int
    end: int
    real: np.ndarray
    examples: Sequence[int]
    step: int
    shown: tuple[int, int]
    running: bool = False


class PassPoint(HookPoint):
    """A hook point during generation: it also knows where its activation stands.

    Attributes:
        step: which new token is predicted from the last position of this pass, 0 for the first.
        positions: `row pos`, the absolute position of each column of the activation (of its
            queries, for attention), counted from the prompt's first token; -1 on padding.
    """

    def __init__(self, point: HookPoint) -> None:
        super().__init__(point.name, point.axes, point.on_request)
        self._now: _Now | None = None

    @property
    def step(self) -> int:
        """Which new token is predicted from the last position of this pass."""
        return self._during().step

    @property
    def positions(self) -> Int[Tensor, "row pos"]:
        """The absolute position of each column; -1 on padding."""
        now = self._during()
        first, end = now.shown
        every = np.where(now.real, now.real.cumsum(1) - 1, -1)
        return torch.from_numpy(every[:, first:end])

    def _during(self) -> _Now:
        if self._now is None or not self._now.running:
            raise RuntimeError(f"{self.name!r} has positions only while a pass is running.")
        return self._now


class Timeline:
    """What listens while a generation runs.

    Args:
        points: the hook points there are, by full name; functions added to them take part.
        sizes: how long the axes are that do not grow.
        mask: `prompt pos`, real tokens of the prompts, padded on the left; with a key/value cache
            also those that are in it.
        first: the first column that is computed; those before it are in the cache.
        n_columns: how many columns there can be in the end.
        like: any tensor of the run, for its dtype and device.
        hooks: `(names, function)` or `(names, function, when)`.
        edits: edits.

    Raises:
        UnknownHookName, HookError, ValueError, IndexError, TypeError: a hook or edit that cannot
            be honoured; says which and why.
    """

    def __init__(
        self,
        points: Mapping[str, HookPoint],
        sizes: Mapping[str, int],
        mask: Bool[Tensor, "prompt pos"],
        first: int,
        n_columns: int,
        like: Tensor,
        hooks: Iterable[Any] = (),
        edits: Iterable[Edit] = (),
    ) -> None:
        self._points = {name: PassPoint(point) for name, point in points.items()}
        self._first, self._prompt_end, self._n_columns = first, mask.shape[1], n_columns
        end, real = mask.shape[1], mask.cpu().numpy()
        self._now = _Now(first, end, real, range(len(mask)), 0, (first, end))
        for point in self._points.values():
            point._now = self._now
        new = mask.new_ones(len(mask), n_columns - mask.shape[1])
        self._whole = Locator(points, sizes, torch.cat([mask, new], dim=1), like)
        self._prompt = Locator(points, sizes, mask, like)
        self._listening: list[_Function | _Located] = []
        self._tables: dict[tuple[int, ...], Listeners] = {}
        self._collected: tuple[list[str], Any] | None = None
        self._add(points, hooks, edits)

    def _add(
        self, points: Mapping[str, HookPoint], hooks: Iterable[Any], edits: Iterable[Edit]
    ) -> None:
        for name, point in points.items():
            if point.bwd_hooks:
                raise ValueError(
                    f"a backward hook listens at {name!r}, but generation has no gradients."
                )
            for fn in point.fwd_hooks:
                self._listen([name], fn, None)
        for names, fn, when in map(_checked_hook, hooks):
            self._listen(select(names, list(points)), fn, when)
        for edit in edits:
            if not isinstance(edit, Edit):
                raise TypeError(f"an edit is a Patch, Ablate, Scale or Add, not {edit!r}.")
            self._listen([resolve(edit.point, list(points))], edit, None)

    def _listen(self, names: Sequence[str], fn: HookFunction, when: When | None) -> None:
        if isinstance(fn, Edit):
            if when is not None and fn.when is not None and when != fn.when:
                raise ValueError(f"{fn!r} says when it applies, and its hook says {when!r}.")
            when = fn.when if when is None else when
            columns = self._columns(when, repr(fn))
            for name in names:
                self._listening.append(self._located(fn, name, when, columns))
            return
        listener = Listener.of(fn, names[0])
        columns = self._columns(when, f"the hook {describe(fn)}")
        self._listening += [_Function(name, listener, columns, self._now) for name in names]

    def _columns(self, when: When | None, what: str) -> tuple[int, int]:
        """The columns at which something applies."""
        first, end = (None, None) if when is None else when.offsets()
        start = self._first if first is None else max(self._first, self._prompt_end + first)
        stop = self._n_columns
        if end is not None:
            stop = min(stop, self._prompt_end + end)
        if start >= stop:
            raise IndexError(
                f"{what}: {when!r} is nowhere in this generation of at most "
                f"{self._n_columns - self._prompt_end} new tokens that are read."
            )
        return start, stop

    def _located(
        self, edit: Edit, name: str, when: When | None, columns: tuple[int, int]
    ) -> "_Located":
        in_prompt = isinstance(when, PromptTokens)
        for which in ("pos", "key"):
            if not in_prompt and _any_negative(getattr(edit, which)):
                raise ValueError(
                    f"{edit!r}: a negative {which} counts from the end, which moves while the "
                    f"model generates. With when=PromptTokens() it counts from the end of the "
                    f"prompt; Steps() is the last position at every step."
                )
        plain = replace(edit, point=name, when=None)
        try:
            located = (self._prompt if in_prompt else self._whole).locate(plain)
        except (IndexError, ValueError) as error:
            error.add_note(
                f"While generating, positions are those of the prompt"
                f"{'' if in_prompt else ' and of the new tokens that are read'}, "
                f"{self._prompt_end if in_prompt else self._n_columns} columns with padding."
                + ("" if in_prompt else " An edit of the prompt alone says when=PromptTokens().")
            )
            raise
        start, stop = columns
        for example, found in enumerate(located.columns):
            outside = found[(found < start) | (found >= stop)]
            if edit.pos is not None and len(outside):
                places = np.searchsorted(self._whole.real[example], (outside[0], start, stop))
                raise IndexError(
                    f"{edit!r}: position {places[0]} of prompt {example} is not among those at "
                    f"which it applies, {places[1]} to {places[2] - 1}"
                    + (" (those before are in past_kv_cache)." if self._first else ".")
                )
        return _Located(located, edit, columns, self._now)

    def collect(self, names: list[str], collector: Any) -> None:
        """Show `collector(point, tensor)` what flows on at these points, in every pass."""
        self._collected = (names, collector)

    def listeners(
        self, start: int, real: Bool[np.ndarray, "row pos"], examples: Sequence[int], step: int
    ) -> Listeners:
        """The table for the pass that computes the columns of `real` from `start` on.

        Args:
            real: `row pos`, where real tokens are.
            examples: per row, the number of its prompt.
            step: the new token that is predicted from the last column.
        """
        now = self._now
        now.start, now.end, now.real = start, real.shape[1], real
        now.examples, now.step, now.shown = examples, step, (start, real.shape[1])
        now.running = True
        active = tuple(
            i for i, one in enumerate(self._listening) if one.applies(now.start, now.end)
        )
        if active not in self._tables:
            table = Listeners(self._points)
            for i in active:
                table.add(self._listening[i].name, fwd=[self._listening[i].function])
            if self._collected is not None:
                table.collect(*self._collected)
            self._tables[active] = table
        return self._tables[active]

    def ended(self) -> None:
        """The pass is over."""
        self._now.running = False

    @property
    def listens(self) -> bool:
        """Whether there is any function hook, whose tensors a user may keep, or a collector."""
        functions = any(isinstance(one, _Function) for one in self._listening)
        return functions or self._collected is not None


class _Function:
    """A function hook at one point, on the columns at which it applies."""

    def __init__(self, name: str, listener: Listener, columns: tuple[int, int], now: _Now) -> None:
        self.name, self._listener, self._columns, self._now = name, listener, columns, now
        self.function: HookFunction = self

    def applies(self, start: int, end: int) -> bool:
        return self._columns[0] < end and self._columns[1] > start

    def __call__(self, activation: Tensor, hook: HookPoint) -> Tensor | None:
        now = self._now
        first, end = max(now.start, self._columns[0]), min(now.end, self._columns[1])
        whole = now.shown
        if (first, end) == whole:
            return self._listener(activation, hook)
        part = activation.narrow(
            hook.axes.index("query" if "query" in hook.axes else "pos"),
            first - now.start,
            end - first,
        )
        own = part.clone()
        now.shown = (first, end)
        try:
            answer = self._listener(own, hook)
        finally:
            now.shown = whole
        if answer is not None:
            own = check_answer(answer, own, self._listener.fn, hook)
        part.copy_(own)
        return None

    def __repr__(self) -> str:
        return describe(self._listener.fn)


class _Located:
    """An edit at one point, its part in the running pass."""

    def __init__(
        self, located: LocatedEdit, edit: Edit, columns: tuple[int, int], now: _Now
    ) -> None:
        self.name, self._edit, self._now = located.point.name, edit, now
        self._located = located
        self._start, self._stop = columns
        self._everywhere = np.unique(np.concatenate(located.columns))
        self.function: HookFunction = self

    def applies(self, start: int, end: int) -> bool:
        start, end = max(start, self._start), min(end, self._stop)
        first, after = np.searchsorted(self._everywhere, (start, end))
        return bool(first < after)

    def __call__(self, activation: Tensor, hook: HookPoint) -> None:
        now = self._now
        located = self._located.until(now.end)
        start, stop = max(now.start, self._start), min(now.end, self._stop)
        whole = position_first(activation, hook.axes)
        for row, example in enumerate(now.examples):
            columns = located.columns[example]
            which = ((columns >= start) & (columns < stop)).nonzero()[0]
            # A row that has ended is padding from there on.
            which = which[now.real[row, columns[which]]]
            if len(which):
                located.write(whole[row], columns[which] - now.start, which, example)

    def __repr__(self) -> str:
        return repr(self._edit)


def _checked_hook(hook: Any) -> tuple[NameFilter, HookFunction, When | None]:
    if not isinstance(hook, tuple | list) or len(hook) not in (2, 3):
        raise TypeError(
            f"fwd_hooks takes pairs (name, function), or (name, function, when), not {hook!r}."
        )
    names, fn = hook[:2]
    when = hook[2] if len(hook) == 3 else None
    if isinstance(fn, str | tuple):
        raise TypeError(f"fwd_hooks takes pairs (name, function): {hook!r} is the other way round.")
    if when is not None and not isinstance(when, When):
        raise TypeError(f"when is PromptTokens(), NewTokens() or Steps(a, b), not {when!r}.")
    return names, fn, when


def _any_negative(where: Any) -> bool:
    if where is None:
        return False
    if isinstance(where, Tensor):
        return bool((where < 0).any())
    return any(i < 0 for i in ([where] if isinstance(where, int) else where))
