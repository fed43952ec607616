"""The published figures as facts, free of torch: what, where, value, tolerance and its reason."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
RULES = ("same", "sampled", "prompts", "points", "heads", "least")
CHECKPOINTS = ("gpt2", "distilgpt2", "gpt2-xl")


@dataclass(frozen=True)
class Source:
    """Where figures were published.

    Attributes:
        title: of the paper or notebook.
        where: its identifier; of a notebook the repository, file and commit.
        inputs: on what it was measured: prompts, weights, whether `<|endoftext|>` was prepended.
    """

    title: str
    where: str
    inputs: str


@dataclass(frozen=True)
class Tolerance:
    """How far ours may be from what was published.

    Attributes:
        rule: one of `RULES`:
            "same": the published inputs, |difference| <= `abs`;
            "sampled": random inputs of the published kind, `n` of them there; the difference of two
            means, <= `z * sd * sqrt(1/n + 1/ours) + abs`;
            "prompts": other prompts of the same kind, <= `z * standard error` of ours, but at least
            `abs` and at most 3 times that;
            "points": points of the plane in no order, the largest distance to the nearest of the
            other set <= `abs`;
            "heads": of the published heads, `least` (all) are among the first `among` of ours;
            "least": ours >= published - `abs`.
        why: the reason for the numbers.
    """

    rule: str
    why: str
    abs: float | tuple[float, ...] = 0.0
    z: float = 0.0
    n: int = 0
    among: int = 0
    least: int | None = None


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        id: its name here, `source/figure`.
        what: what was measured, in words.
        source, place: where it is printed: a name in `sources()`, and the section or cell.
        model: the checkpoint it is of, one of `CHECKPOINTS`.
        value: numbers, an array, or heads such as "9.9".
        labels: of a few numbers, what each is.
        axes: of an array, what its axes are.
        needs: what a user has to supply for it: "text", "facts" or "".
        also: heads that have the role too, weakly, and are not asked for.
        tolerance: see `Tolerance`.
    """

    id: str
    what: str
    source: str
    place: str
    model: str
    value: np.ndarray | tuple[str, ...]
    labels: tuple[str, ...]
    axes: tuple[str, ...]
    needs: str
    also: tuple[str, ...]
    tolerance: Tolerance

    def where(self, at: Sequence[int]) -> str:
        """A place of the array in words: `9.6`, `layer 2, pos 11`."""
        if self.axes == ("layer", "head"):
            return f"{at[0]}.{at[1]}"
        if self.labels:
            return self.labels[at[0]]
        axes = self.axes or ("prompt",)
        return ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))


@cache
def sources() -> Mapping[str, Source]:
    """Name -> source."""
    return {name: Source(**entry) for name, entry in _toml()["sources"].items()}


@cache
def published() -> Mapping[str, Published]:
    """Id -> figure, in the order of the file.

    Raises:
        ValueError: the data file contradicts itself; names the figure.
    """
    arrays = json.loads((DATA / "arrays.json").read_text("utf-8"))
    found: dict[str, Published] = {}
    for entry in _toml()["figures"]:
        one = _figure(dict(entry), arrays)
        if one.id in found:
            raise ValueError(f"{one.id} is there twice")
        found[one.id] = one
    if unused := sorted(set(arrays) - set(found)):
        raise ValueError(f"arrays of no figure: {', '.join(unused)}")
    return found


def _figure(entry: dict[str, Any], arrays: Mapping[str, Any]) -> Published:
    id = entry["id"]
    given = [kind for kind in ("value", "heads") if kind in entry]
    if id in arrays:
        given.append("an array")
    if len(given) != 1:
        raise ValueError(f"{id} has {' and '.join(given) or 'nothing'}: expected one value")
    value: Any
    if "heads" in entry:
        value = tuple(entry.pop("heads").split())
    else:
        value = np.asarray(entry.pop("value", arrays.get(id)), dtype=np.float64)
    tolerance = dict(entry.pop("tolerance"))
    if tolerance["rule"] not in RULES:
        raise ValueError(f"{id}: unknown rule {tolerance['rule']!r}; known are {', '.join(RULES)}")
    if isinstance(tolerance.get("abs"), list):
        tolerance["abs"] = tuple(tolerance["abs"])
    if entry["source"] not in sources():
        raise ValueError(f"{id}: unknown source {entry['source']!r}")
    one = Published(
        value=value,
        tolerance=Tolerance(**tolerance),
        labels=tuple(entry.pop("labels", ())),
        axes=tuple(entry.pop("axes", ())),
        model=entry.pop("model", "gpt2"),
        needs=entry.pop("needs", ""),
        also=tuple(entry.pop("also", "").split()),
        **entry,
    )
    if one.model not in CHECKPOINTS:
        raise ValueError(f"{id}: unknown checkpoint {one.model!r}")
    return one


@cache
def _toml() -> dict[str, Any]:
    return tomllib.loads((DATA / "figures.toml").read_text("utf-8"))


@cache
def recorded() -> Mapping[str, Any]:
    """What the bundled model gave when it was last recorded: `versions`, and by id `figures`."""
    path = DATA / "mini.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {"figures": {}}


def number(value: float) -> str:
    """A number in at most five digits."""
    return f"{value:.5g}" if math.isfinite(value) else "nan"


def shape_of(values: Sequence[int]) -> str:
    """`12 x 15`, `8 numbers`."""
    return " x ".join(map(str, values)) if len(values) > 1 else f"{values[0]} numbers"


def strongest(value: np.ndarray | tuple[str, ...]) -> tuple[int, ...]:
    """Where the number of largest size is; () where there is one number, or heads."""
    if isinstance(value, tuple) or not np.ndim(value):
        return ()
    value = np.asarray(value)
    return tuple(int(i) for i in np.unravel_index(int(np.abs(value).argmax()), value.shape))


def brief(figure: Published, value: np.ndarray | tuple[str, ...], at: Sequence[int] = ()) -> str:
    """A value in a few words: few numbers are all shown, of an array the one at a place."""
    if isinstance(value, tuple):
        return " ".join(value)
    value = np.asarray(value)
    if value.ndim == 0:
        return number(float(value))
    if figure.labels:
        return ", ".join(
            f"{label} {number(float(v))}" for label, v in zip(figure.labels, value, strict=True)
        )
    if figure.tolerance.rule == "points" or not at:
        return shape_of(value.shape)
    return f"{number(float(value[tuple(at)]))} at {figure.where(at)}"
