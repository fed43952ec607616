"""What listens during one run, and what happens to a tensor at a point where something does.

A run gets its own `Listeners`: nothing is stored in the model for its sake, so however it ends
nothing is left behind. Three kinds listen, always in this order at a point:

1. function hooks, which may change the tensor,
2. gradients (hooks on them, or their collection),
3. collectors, which only look.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hooks.edits import Edit
from hooks.point import HookError, HookFunction, HookPoint, check_function, describe

Collector = Callable[[HookPoint, Tensor], None]


class Listener(NamedTuple):
    """A function that listens, and whether it takes the point as `hook`, by name."""

    fn: HookFunction
    by_name: bool

    @classmethod
    def of(cls, fn: HookFunction, name: str) -> "Listener":
        """A function that is to listen at the point of this full name.

        Raises:
            HookError: it cannot be called as `fn(activation, hook)`.
        """
        return cls(fn, check_function(fn, name))

    def __call__(self, value: Tensor, point: HookPoint) -> Any:
        """What the function answers."""
        return self.fn(value, hook=point) if self.by_name else self.fn(value, point)


class _Station:
    """What listens at one point during one run."""

    __slots__ = ("bwd", "collect", "fwd", "grads", "mask", "point")

    def __init__(self, point: HookPoint, mask: Tensor | None) -> None:
        self.point = point
        self.mask = mask
        self.fwd: list[Listener] = []
        self.bwd: list[Listener] = []
        self.grads: dict[str, Tensor] | None = None
        self.collect: Collector | None = None

    @property
    def in_graph(self) -> bool:
        """Whether what listens needs the tensor itself to be what flows on."""
        return bool(self.fwd or self.bwd or self.grads is not None)

    def pass_through(self, value: Tensor) -> Tensor:
        if self.fwd:
            value = self._edit(value)
        if self.bwd:
            value = self._watch_gradient(value)
        if self.grads is not None:
            value = _own_node(value)
            self.grads[self.point.name] = value
        if self.collect is not None:
            self.collect(self.point, value.detach())
        return value

    def _edit(self, value: Tensor) -> Tensor:
        # Each hook gets a tensor of its own, and so does what comes after: an in-place edit, now or
        # by a later hook, reaches neither what is already cached (one tensor can pass two points),
        # nor a tensor that a hook returned, nor what autograd has saved.
        for hook in self.fwd:
            own = value.clone()
            try:
                if isinstance(hook.fn, Edit):
                    answer = hook.fn.apply(own, self.point, self.mask)
                else:
                    answer = hook(own, self.point)
            except Exception as error:
                error.add_note(f"in hook {describe(hook.fn)} at {self.point.name!r}")
                raise
            value = own if answer is None else check_answer(answer, own, hook.fn, self.point)
        return value.clone()

    def _watch_gradient(self, value: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise HookError(
                f"a backward hook at {self.point.name!r} needs gradients, but they are switched "
                f"off (torch.no_grad or torch.set_grad_enabled(False))."
            )
        value = _own_node(value)
        for hook in self.bwd:
            value.register_hook(self._on_gradient(hook))
        return value

    def _on_gradient(self, hook: Listener) -> Callable[[Tensor], Tensor]:
        def called(gradient: Tensor) -> Tensor:
            mine = gradient.clone()
            answer = hook(mine, self.point)
            return mine if answer is None else check_answer(answer, gradient, hook.fn, self.point)

        return called


def check_answer(answer: Any, expected: Tensor, fn: HookFunction, point: HookPoint) -> Tensor:
    """What a hook returned.

    Raises:
        HookError: it is no tensor of the shape, dtype and device expected.
    """
    where = f"hook {describe(fn)} at {point.name!r}"
    if not isinstance(answer, Tensor):
        raise HookError(
            f"{where} returned {type(answer).__name__}: expected a tensor of shape "
            f"{tuple(expected.shape)} [{' '.join(point.axes)}], or None to keep it."
        )
    for what in ("shape", "dtype", "device"):
        came, wanted = getattr(answer, what), getattr(expected, what)
        if came != wanted:
            came, wanted = (tuple(came), tuple(wanted)) if what == "shape" else (came, wanted)
            raise HookError(
                f"{where} returned a tensor of {what} {came}: expected {wanted}"
                + (f" [{' '.join(point.axes)}]." if what == "shape" else ".")
            )
    return answer


def _own_node(value: Tensor) -> Tensor:
    """The same values as a node of the graph of its own: the tensor may pass other points too, and
    gradients at this one are those of what comes after it. Where nothing before asks for a
    gradient, they start here."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


class Listeners:
    """The table of what listens at which point during one run.

    Args:
        points: the points there are, by full name; functions added to them take part.
        mask: `batch pos`, False on padding, which edits leave alone; None without padding.
    """

    def __init__(self, points: Mapping[str, HookPoint], mask: Tensor | None = None) -> None:
        self._points = points
        self._mask = mask
        self._stations: dict[str, _Station] = {}
        for name, point in points.items():
            if point.fwd_hooks or point.bwd_hooks:
                self.add(name, point.fwd_hooks, point.bwd_hooks)

    def add(
        self, name: str, fwd: Iterable[HookFunction] = (), bwd: Iterable[HookFunction] = ()
    ) -> None:
        """Let functions listen at the point of this full name.

        Raises:
            HookError: one of them cannot be called as `fn(activation, hook)`.
        """
        checked = [[Listener.of(fn, name) for fn in fns] for fns in (fwd, bwd)]
        station = self._station(name)
        station.fwd += checked[0]
        station.bwd += checked[1]

    def collect(self, names: Iterable[str], collector: Collector) -> None:
        """Show `collector(point, tensor)` what flows on at these points, detached."""
        for name in names:
            self._station(name).collect = collector

    def keep_for_gradients(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The dict that will hold, after the run, the tensors at these points, in the graph."""
        kept: dict[str, Tensor] = {}
        for name in names:
            self._station(name).grads = kept
        return kept

    def within(self, prefix: str) -> "Tap":
        """The listeners of the points whose names begin so."""
        return Tap(self._stations, prefix)

    def _station(self, name: str) -> _Station:
        if name not in self._stations:
            self._stations[name] = _Station(self._points[name], self._mask)
        return self._stations[name]


class Tap:
    """Where a computation shows its tensors: `x = at("hook_z", x)`."""

    __slots__ = ("_prefix", "_stations")

    def __init__(self, stations: Mapping[str, _Station], prefix: str) -> None:
        self._stations = stations
        self._prefix = prefix

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The tensor that flows on from here: `value`, or what hooks made of it."""
        station = self._stations.get(self._prefix + name)
        return value if station is None else station.pass_through(value)

    def listens(self, *names: str) -> bool:
        """Whether anything listens at any of these points."""
        return any(self._prefix + name in self._stations for name in names)

    def alters(self, *names: str) -> bool:
        """Whether at any of these points the tensor itself must be what flows on: it may be
        replaced there, or its gradient is asked for."""
        stations = (self._stations.get(self._prefix + name) for name in names)
        return any(station is not None and station.in_graph for station in stations)
