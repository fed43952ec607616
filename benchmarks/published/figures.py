"""A measured figure, and the verdict on it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.published.facts import Published, Tolerance, brief, number, shape_of, strongest

# Of the bundled model's own record: the same code on other hardware, or another release of torch.
RECORDED = Tolerance(rule="same", abs=1e-3, why="float32 on other hardware")
# With rule "prompts" a large standard error allows at most so many times `abs`.
MOST = 3


@dataclass(frozen=True, eq=False)
class Measured:
    """What a run gave.

    Attributes:
        value: numbers as published, or heads, the first being the strongest.
        spread: with rule "sampled" the standard deviation over `n` samples, with "prompts" the
            standard error; like `value`, or None.
        n: how many samples, prompts or facts there were.
    """

    value: np.ndarray | tuple[str, ...]
    spread: np.ndarray | None = None
    n: int = 1

    @classmethod
    def of(cls, value: Any, spread: Any = None, n: int = 1) -> "Measured":
        """From tensors or numbers."""
        return cls(_array(value), None if spread is None else _array(spread), n)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


@dataclass(frozen=True)
class Outcome:
    """A line of the table.

    Attributes:
        id: of the figure.
        theirs, ours, difference: in a few words; "" where there is none.
        verdict: "pass", "FAIL", "not run", or "" where nothing is there to compare with.
        detail: the reason of a figure not run, or how the verdict was reached.
        value: what was measured, as plain data; None where it was not run.
    """

    id: str
    theirs: str
    ours: str
    difference: str
    verdict: str
    detail: str
    value: Any = None


def not_run(figure: Published, why: str, *, published: bool = True) -> Outcome:
    """A figure that was not run, with the reason; and with what was published, if that is of the
    model that was to be run."""
    theirs = brief(figure, figure.value, strongest(figure.value)) if published else ""
    return Outcome(figure.id, theirs, "", "", "not run", why)


def compared(figure: Published, measured: Measured, with_: Any = None) -> Outcome:
    """Ours against what was published, or against a recorded value of the same model.

    Args:
        figure: what was published.
        measured: ours.
        with_: a recorded value, as `plain` gives it; then compared by `RECORDED`.
    """
    if with_ is None:
        return judged(figure, figure.value, measured, figure.tolerance)
    theirs = tuple(with_) if _is_heads(measured.value) else _array(with_)
    if _is_heads(measured.value):
        tolerance = Tolerance(rule="heads", among=len(theirs), why=RECORDED.why)
        measured = Measured(measured.value[: len(theirs)])
    elif figure.tolerance.rule == "points":
        tolerance = Tolerance(rule="points", abs=RECORDED.abs, why=RECORDED.why)
    else:
        tolerance = RECORDED
    return judged(figure, theirs, measured, tolerance)


def alone(figure: Published, measured: Measured) -> Outcome:
    """Ours where there is nothing to compare with."""
    ours = brief(figure, measured.value, strongest(measured.value))
    return Outcome(figure.id, "", ours, "", "", "", plain(measured.value))


def judged(
    figure: Published, theirs: np.ndarray | tuple[str, ...], measured: Measured, by: Tolerance
) -> Outcome:
    """The verdict under one tolerance."""
    ours, value = measured.value, plain(measured.value)
    if _is_heads(theirs) or _is_heads(ours):
        return _heads(figure, tuple(theirs), tuple(ours), by, value)
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    if theirs.shape != ours.shape and by.rule != "points":
        shapes = (shape_of(one.shape) if one.ndim else "one number" for one in (ours, theirs))
        what = ", not ".join(shapes)
        return Outcome(
            figure.id,
            brief(figure, theirs),
            what,
            "",
            "FAIL",
            "another shape: another model?",
            value,
        )
    if not np.isfinite(ours).all():
        return Outcome(
            figure.id,
            brief(figure, theirs, strongest(theirs)),
            "nan",
            "",
            "FAIL",
            "ours is not finite",
            value,
        )
    if by.rule == "points":
        worst, allowed, at = _apart(theirs, ours), np.asarray(by.abs), ()
        ok = worst <= float(allowed)
    else:
        difference = ours - theirs
        allowed = np.broadcast_to(_allowed(by, measured), ours.shape)
        beyond = -difference if by.rule == "least" else np.abs(difference)
        # Where it is worst, measured by what is allowed there (which may be nothing).
        at = np.unravel_index(int((beyond / np.maximum(allowed, 1e-9)).argmax()), ours.shape)
        worst, ok, allowed = float(difference[at]), bool((beyond <= allowed).all()), allowed[at]
    at = tuple(int(i) for i in at)
    place = f"worst at {figure.where(at)}; " if at else ""
    shown = strongest(theirs)
    return Outcome(
        figure.id,
        brief(figure, theirs, shown),
        brief(figure, ours, shown),
        f"{worst:+.1e}" if by.rule != "points" else f"{worst:.1e}",
        "pass" if ok else "FAIL",
        f"{place}allowed {number(float(allowed))}: {by.why}",
        value,
    )


def _allowed(by: Tolerance, measured: Measured) -> np.ndarray:
    floor = np.asarray(by.abs, dtype=np.float64)
    if by.rule not in ("sampled", "prompts"):
        return floor
    spread = measured.spread
    if spread is None:
        raise ValueError(f"rule {by.rule!r} needs a spread")
    spread = np.nan_to_num(spread)
    if by.rule == "prompts":
        # However uncertain ours is, it is not right because of that.
        return np.clip(by.z * spread, floor, MOST * floor)
    return by.z * spread * math.sqrt(1 / by.n + 1 / measured.n) + floor


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of a point to the nearest of the other set."""
    if len(a) != len(b):
        return math.inf
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return float(max(distance.min(0).max(), distance.min(1).max()))


def _heads(
    figure: Published, theirs: tuple[str, ...], ours: tuple[str, ...], by: Tolerance, value: Any
) -> Outcome:
    first = ours[: by.among]
    missing = [head for head in theirs if head not in first]
    least = len(theirs) if by.least is None else by.least
    there = len(theirs) - len(missing)
    wanted = "all" if least == len(theirs) else f"{least} of {len(theirs)}"
    return Outcome(
        figure.id,
        " ".join(theirs),
        " ".join(first),
        f"missing {' '.join(missing)}" if missing else "all there",
        "pass" if there >= least else "FAIL",
        f"{wanted} among our first {by.among}: {by.why}",
        value,
    )


def _is_heads(value: Any) -> bool:
    return isinstance(value, tuple)


def plain(value: np.ndarray | tuple[str, ...]) -> Any:
    """As plain data, numbers with six decimals."""
    if _is_heads(value):
        return list(value)
    return np.round(np.asarray(value), 6).tolist()
