"""Numbers and lists of numbers as callers give them: Python's own, or of numpy or torch."""

import operator
from collections.abc import Iterable
from typing import Any


def listed(given: Any) -> list[Any]:
    """One thing or several as a list, numbers of numpy and torch as Python's own."""
    one = isinstance(given, str) or not isinstance(given, Iterable)
    several: list[Any] = [given] if one or getattr(given, "ndim", 1) == 0 else list(given)
    return [item.item() if getattr(item, "ndim", None) == 0 else item for item in several]


def whole(value: Any, rule: str) -> int:
    """A whole number of any library; `rule` is what the error says is one."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{rule}, not {value!r}")
