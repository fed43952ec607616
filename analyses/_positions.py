"""Which positions an analysis of pairs takes apart: all, numbers, or names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analyses.tasks import unknown

if TYPE_CHECKING:
    from analyses.pairs import PromptPair


class Positions(NamedTuple):
    """What to give an edit as `pos`, and what to call it."""

    where: list[Any]
    labels: tuple[str, ...]
    numbers: tuple[int, ...]


def positions_of(pair: "PromptPair", asked: Sequence[Any] | int | str | None) -> Positions:
    """The positions asked for, as numbers or as tensors with one per example."""
    n_pos = pair.clean.shape[1]
    if asked is None:
        asked = list(pair.positions) if pair.is_padded else "all"
    if isinstance(asked, int) or (isinstance(asked, str) and asked != "all"):
        asked = [asked]
    if pair.is_padded and (isinstance(asked, str) or not asked):
        lengths = sorted(set(pair.lengths.tolist()))
        names = f"positions with names ({', '.join(pair.positions)})" if pair.positions else ""
        raise ValueError(
            f"examples have {lengths[0]} to {lengths[-1]} tokens, so their positions mean "
            f"different things: ask for {names or 'some positions'}, or take examples of one "
            "length (PromptPair.groups(), or one template of a task)"
        )
    if isinstance(asked, str):
        return Positions(list(range(n_pos)), pair.position_labels(), tuple(range(n_pos)))
    names = pair.position_labels() if not pair.is_padded else ()
    found: list[Any] = []
    labels: list[str] = []
    for position in asked:
        if isinstance(position, str):
            if position not in pair.positions:
                raise ValueError(unknown("position", position, tuple(pair.positions)))
            found.append(pair.positions[position])
            labels.append(position)
            continue
        shortest = int(pair.lengths.min())
        if not -shortest <= position < shortest:
            raise ValueError(
                f"position {position} is out of range: the shortest prompt has {shortest} tokens, "
                f"0 to {shortest - 1} (or -{shortest} to -1)"
            )
        position = position % n_pos if names else int(position)
        found.append(position)
        labels.append(names[position] if names else str(position))
    if not found:
        raise ValueError("positions is empty; expected 'all', numbers, or names")
    if len(set(labels)) != len(labels):
        raise ValueError(f"a position is asked for twice: {', '.join(labels)}")
    every = all(isinstance(one, int) for one in found)
    return Positions(found, tuple(labels), tuple(found if every else range(len(found))))


def parse_positions(text: str) -> list[int] | list[str] | str:
    """`all`, or comma-separated numbers or names."""
    parts = [part.strip() for part in text.split(",")]
    if parts == ["all"]:
        return "all"
    try:
        return [int(part) for part in parts]
    except ValueError:
        return parts
