"""Numbers that callers give, of any library, or a clear error."""

import math
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        ValueError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}={value!r} is no whole number")
    if int(value) < least or (most is not None and int(value) > most):
        span = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}={value} is out of range: expected {span}")
    return int(value)


def real(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} is no number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} is out of range: expected a finite number")
    return found
