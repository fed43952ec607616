"""A hook point: a named place in a computation where a tensor passes."""

import inspect
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from hooks.names import layer_of

HookFunction = Callable[..., Tensor | None]
Direction = Literal["fwd", "bwd"]


class HookError(ValueError):
    """A hook function was added, or answered, in a way that cannot be honoured."""


class HookPoint:
    """A named place where a tensor is born; functions added here run whenever it passes.

    Attributes:
        name: full name, as in `blocks.3.attn.hook_pattern`.
        axes: names of the tensor's axes, as in `("batch", "head", "query", "key")`.
        on_request: computed only when something listens here.
        fwd_hooks: functions `fn(activation, hook) -> Tensor | None` on the activation, in order.
        bwd_hooks: functions `fn(gradient, hook) -> Tensor | None` on its gradient, in order.
    """

    def __init__(self, name: str, axes: tuple[str, ...], on_request: bool = False) -> None:
        self.name = name
        self.axes = axes
        self.on_request = on_request
        self.fwd_hooks: list[HookFunction] = []
        self.bwd_hooks: list[HookFunction] = []

    def layer(self) -> int:
        """The layer this point is in.

        Raises:
            HookError: it is in none (`hook_embed`, for one).
        """
        layer = layer_of(self.name)
        if layer is None:
            raise HookError(f"{self.name!r} is in no layer.")
        return layer

    def add_hook(self, fn: HookFunction, dir: Direction = "fwd") -> None:
        """Add a function that stays until it is removed.

        Raises:
            HookError: `dir` is neither "fwd" nor "bwd", or `fn` cannot be called with
                `(activation, hook)`.
        """
        check_function(fn, self.name)
        self._list(dir).append(fn)

    def remove_hooks(self, dir: Literal["fwd", "bwd", "both"] = "both") -> None:
        """Remove every function added here."""
        for one in ("fwd", "bwd") if dir == "both" else (dir,):
            self._list(one).clear()

    def _list(self, dir: str) -> list[HookFunction]:
        if dir == "fwd":
            return self.fwd_hooks
        if dir == "bwd":
            return self.bwd_hooks
        raise HookError(f"a hook's direction is 'fwd' or 'bwd', not {dir!r}.")

    def __repr__(self) -> str:
        hooks = len(self.fwd_hooks) + len(self.bwd_hooks)
        return f"HookPoint({self.name!r}, axes={' '.join(self.axes)!r}, hooks={hooks})"


def check_function(fn: object, name: str) -> bool:
    """Raise HookError unless `fn` can be called with an activation and a hook.

    Returns:
        whether it takes the hook as `hook`, by name; asking costs more than most hooks do.
    """
    if not callable(fn):
        raise HookError(
            f"the hook for {name!r} is no function but {type(fn).__name__}: "
            f"expected fn(activation, hook) -> Tensor | None."
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return False  # a builtin without a signature: the call itself will tell
    by_name = "hook" in signature.parameters
    try:
        if by_name:
            signature.bind(None, hook=None)
        else:
            signature.bind(None, None)
    except TypeError as error:
        raise HookError(
            f"the hook for {name!r}, {describe(fn)}{signature}, cannot be called as "
            f"fn(activation, hook): {error}."
        ) from None
    return by_name


def describe(fn: object) -> str:
    """The name of a hook function for an error message."""
    inner = getattr(fn, "func", fn)  # functools.partial
    return getattr(inner, "__qualname__", repr(inner))
