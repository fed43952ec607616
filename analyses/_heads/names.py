"""Heads by name: `3.1` is head 1 of layer 3, here and in every table, figure and command."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from analyses import cli
from analyses._arguments import listed, whole

_NAME = re.compile(r"(-?\d+)\.(-?\d+)")
_FORM = "a head is written layer.head, such as 3.1"


class Head(NamedTuple):
    """One attention head, written `3.1`.

    Attributes:
        layer: block, from 0.
        head: of this block, from 0.
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"

    @classmethod
    def parse(cls, name: str) -> "Head":
        """The head that a name such as `3.1` stands for; signs are kept (`-1.0`).

        Raises:
            ValueError: it is written in another way.
        """
        found = _NAME.fullmatch(name.strip())
        if not found:
            hint = "; for all heads of a layer there is layers" if name.strip().isdigit() else ""
            raise ValueError(f"{name!r} is no head: {_FORM}{hint}")
        return cls(int(found[1]), int(found[2]))


def checked_heads(asked: Any, n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """The heads asked for, in that order, each with numbers from 0.

    Args:
        asked: `"3.1"`, a `Head`, a pair `(3, 1)`, or several of these; None for all, layer by
            layer. Negative layers and heads count from the end: `"-1.0"` is in the last layer.
        n_layers, n_heads: of the model.

    Raises:
        ValueError: none, one twice, or one that is written in another way.
        IndexError: no such layer or head.
        TypeError: something that names no head. Numbers such as 3.1 do not: 3.1 and 3.10 are equal.
    """
    if asked is None:
        return tuple(Head(layer, head) for layer in range(n_layers) for head in range(n_heads))
    found: dict[Head, str] = {}
    for one in _several(asked):
        name = _named(one)
        shown = str(name)
        if not -n_layers <= name.layer < n_layers:
            raise IndexError(
                f"head {shown} is out of range: there are {n_layers} layers, 0 to {n_layers - 1} "
                f"(or -{n_layers} to -1)"
            )
        if not -n_heads <= name.head < n_heads:
            raise IndexError(
                f"head {shown} is out of range: a layer has {n_heads} heads, 0 to {n_heads - 1} "
                f"(or -{n_heads} to -1)"
            )
        head = Head(name.layer % n_layers, name.head % n_heads)
        if head in found:
            also = "" if found[head] == shown else f" (as {found[head]} and {shown})"
            raise ValueError(f"head {head} is asked for twice{also}")
        found[head] = shown
    if not found:
        raise ValueError("heads is empty; leave it out for all")
    return tuple(found)


def one_head(asked: Any, n_layers: int, n_heads: int) -> Head:
    """The one head that is meant; see `checked_heads`."""
    (head,) = checked_heads([asked], n_layers, n_heads)
    return head


def checked_layers(asked: Any, n_layers: int) -> tuple[int, ...]:
    """The layers asked for, in that order, from 0.

    Args:
        asked: a number or several; None for all. Negative ones count from the end.
        n_layers: of the model.

    Raises:
        ValueError: none, or one twice.
        IndexError: no such layer.
        TypeError: no whole number.
    """
    if asked is None:
        return tuple(range(n_layers))
    found: list[int] = []
    for value in listed(asked):
        layer = whole(value, "a layer is a whole number")
        if not -n_layers <= layer < n_layers:
            raise IndexError(
                f"layer {layer} is out of range: there are {n_layers} layers, 0 to {n_layers - 1} "
                f"(or -{n_layers} to -1)"
            )
        if layer % n_layers in found:
            raise ValueError(f"layer {layer % n_layers} is asked for twice")
        found.append(layer % n_layers)
    if not found:
        raise ValueError("layers is empty; leave it out for all")
    return tuple(found)


def chosen_heads(layers: Any, heads: Any, n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """All heads of some layers, or some heads, or (given neither) all heads.

    Args:
        layers, heads: as in `checked_layers` and `checked_heads`; one of them or none.
        n_layers, n_heads: of the model.

    Raises:
        ValueError: both were given, or as those two.
        IndexError, TypeError: as those two.
    """
    if layers is None:
        return checked_heads(heads, n_layers, n_heads)
    if heads is not None:
        raise ValueError("give layers (all heads of each) or heads, not both")
    return tuple(
        Head(layer, head) for layer in checked_layers(layers, n_layers) for head in range(n_heads)
    )


def parse_heads(text: str, option: str = "--heads") -> list[Head]:
    """Heads as the command line takes them, `3.1,0.0`; the model checks the range.

    Raises:
        CommandError: not a list of heads.
    """
    try:
        return [Head.parse(part) for part in text.split(",")]
    except ValueError as error:
        raise cli.CommandError(f"{option} {text!r}: {error}; several as 3.1,0.0") from None


def parse_layers(text: str, option: str = "--layers") -> list[int]:
    """Layers as the command line takes them, `0,3`; the model checks the range.

    Raises:
        CommandError: not a list of whole numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise cli.CommandError(
            f"{option} {text!r}: expected layers such as 3 or 0,3,-1; heads go with --heads"
        ) from None


def _several(asked: Any) -> list[Any]:
    if isinstance(asked, str | Head) or not isinstance(asked, Iterable):
        return [asked]
    given = list(asked)
    # A pair of numbers is one head; lists of names, of Heads and of pairs are several.
    is_pair = isinstance(asked, tuple) and len(given) == 2 and all(map(_is_number, given))
    return [asked] if is_pair else given


def _is_number(value: object) -> bool:
    return not isinstance(value, str) and not isinstance(value, Iterable)


def _named(one: Any) -> Head:
    if isinstance(one, str):
        return Head.parse(one)
    if isinstance(one, Iterable):
        parts = list(one)
        if len(parts) == 2:
            rule = f"{_FORM}, or a pair of whole numbers"
            return Head(whole(parts[0], rule), whole(parts[1], rule))
    raise TypeError(f"{one!r} is no head: {_FORM}, or a pair (3, 1)")
