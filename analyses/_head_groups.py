"""Groups of heads that are taken out together, for `analyses.ablation`."""

from collections.abc import Mapping
from typing import Any

from analyses._heads.names import Head, checked_heads


def taken_out(groups: Any, keep: bool, n_layers: int, n_heads: int) -> dict[str, tuple[Head, ...]]:
    """The heads that each group takes out, by the group's name, layer by layer.

    Args:
        groups: name -> heads, in any form that `checked_heads` takes.
        keep: whether the group is what stays, and all other heads are taken out. It may then be
            empty.
        n_layers, n_heads: of the model.

    Raises:
        TypeError: no mapping, a name that is no text, or as `checked_heads`.
        ValueError: no groups, one that takes out nothing, or as `checked_heads`.
        IndexError: as `checked_heads`.
    """
    if not isinstance(groups, Mapping):
        raise TypeError(
            "groups are heads by name, such as {'movers': ['9.9', '10.0']}, not "
            f"{type(groups).__name__}"
        )
    if not groups:
        raise ValueError("groups is empty: name a group of heads, {'movers': ['9.9', '10.0']}")
    every = checked_heads(None, n_layers, n_heads)
    found: dict[str, tuple[Head, ...]] = {}
    for name, heads in groups.items():
        if not isinstance(name, str):
            raise TypeError(f"a group of heads is called by a text, not {name!r}")
        try:
            # An empty group is refused below, where it takes out nothing.
            named = () if _is_empty(heads) else checked_heads(heads, n_layers, n_heads)
        except (ValueError, IndexError, TypeError) as error:
            raise type(error)(f"group {name!r}: {error}") from None
        found[name] = tuple(head for head in every if (head in named) != keep)
        if not found[name]:
            why = "keeps every head" if keep else "has no heads"
            raise ValueError(f"group {name!r} {why}: there is nothing to take out")
    return found


def _is_empty(heads: Any) -> bool:
    return hasattr(heads, "__len__") and not isinstance(heads, str) and len(heads) == 0


def by_layer(heads: tuple[Head, ...]) -> dict[int, list[int]]:
    """Layer -> its heads among these."""
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found
