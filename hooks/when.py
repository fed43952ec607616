"""At which tokens of a generation a hook or an edit applies: a range of positions, as data.

A generation begins with a prompt of `n` tokens (positions 0 to n - 1) and adds new ones (n, n + 1,
...). Position n - 1 + j is the one from which new token j is predicted: that is step j.

| value | positions |
|---|---|
| `PromptTokens()` | 0 to n - 1 |
| `NewTokens()` | n and later |
| `Steps(a, b)` | n - 1 + a to n - 2 + b: those from which new tokens a to b - 1 are predicted |

Prompts of one batch may differ in length; each counts its own tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class When(ABC):
    """What every selector answers."""

    @abstractmethod
    def offsets(self) -> tuple[int | None, int | None]:
        """First position and the one after the last, counted from the first new token; None: no
        limit."""


@dataclass(frozen=True)
class PromptTokens(When):
    """The tokens of the prompt. Negative positions count from its end."""

    def offsets(self) -> tuple[int | None, int | None]:
        """Everything before the first new token."""
        return None, 0


@dataclass(frozen=True)
class NewTokens(When):
    """The tokens that were generated, as the model reads them."""

    def offsets(self) -> tuple[int | None, int | None]:
        """The first new token, and all after it."""
        return 0, None


@dataclass(frozen=True)
class Steps(When):
    """The positions from which new tokens `start` to `stop` (not included) are predicted.

    Step 0 is the prompt's last token, step j the new token j - 1.

    Attributes:
        start: the first step.
        stop: the one after the last; None: no limit.

    Raises:
        ValueError, TypeError: not whole numbers, or no step between them.
    """

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("stop", self.stop)):
            if name == "stop" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} of Steps is a whole number, not {value!r}.")
        if self.start < 0:
            raise ValueError(f"Steps begin at 0, not at {self.start}.")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"Steps({self.start}, {self.stop}) is no step at all.")

    def offsets(self) -> tuple[int | None, int | None]:
        """As many positions before the first new token as there are steps before it: one."""
        return self.start - 1, None if self.stop is None else self.stop - 1
