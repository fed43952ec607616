"""What callers of the logit lens give, checked and in one form."""

from collections.abc import Sequence
from typing import SupportsIndex

import torch
from jaxtyping import Int64
from torch import Tensor

from analyses._arguments import listed, whole
from analyses._lens.points import POINTS
from hooks.names import nearest
from interp import HookedGPT2


def checked_points(points: str | Sequence[str]) -> tuple[str, ...]:
    """Names of points, in order of the forward pass."""
    names = [points] if isinstance(points, str) else list(points)
    if not names:
        raise ValueError(f"points is empty; expected some of {', '.join(POINTS)}")
    for name in names:
        if name not in POINTS:
            raise ValueError(
                f"unknown point {name!r}.{nearest(str(name), POINTS)} Expected some of "
                f"{', '.join(POINTS)}"
            )
    return tuple(name for name in POINTS if name in names)


def checked_ids(tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ids as `batch pos`, and which of them are real; the run checks the rest."""
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens are batch pos, or pos, not of shape {tuple(tokens.shape)}")
    if attention_mask is None:
        return tokens, torch.ones(tokens.shape, dtype=torch.bool)
    if attention_mask.ndim == 1 and len(tokens) == 1:
        attention_mask = attention_mask[None]
    if attention_mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the tokens "
            f"{tuple(tokens.shape)}"
        )
    mask = attention_mask.cpu().bool()
    if not bool(mask.any(dim=1).all()):
        raise ValueError("attention_mask leaves a prompt without any token")
    return tokens, mask


def asked_positions(
    positions: SupportsIndex | Sequence[SupportsIndex] | str,
) -> list[int] | str:
    """Positions as given: "all", or numbers."""
    if isinstance(positions, str):
        if positions != "all":
            raise ValueError(f"positions is 'all', a number or several, not {positions!r}")
        return positions
    asked = [whole(position, "a position is a whole number") for position in listed(positions)]
    if not asked:
        raise ValueError("positions is empty; expected 'all', a number or several")
    return asked


def positions_in(asked: list[int] | str, lengths: Sequence[int]) -> Int64[Tensor, "batch pos"]:
    """The positions asked for in each prompt, from 0; -1 fills rows of shorter prompts."""
    if isinstance(asked, str):
        each = torch.arange(max(lengths)).expand(len(lengths), -1)
        return torch.where(each < torch.tensor(lengths)[:, None], each, -1)
    for row, length in enumerate(lengths):
        which = f"prompt {row}" if len(lengths) > 1 else "the prompt"
        seen: dict[int, int] = {}
        for position in asked:
            if not -length <= position < length:
                raise IndexError(
                    f"position {position} is out of range: {which} has {length} tokens, 0 to "
                    f"{length - 1} (or -{length} to -1)"
                )
            if position % length in seen:
                raise ValueError(
                    f"positions {seen[position % length]} and {position} are the same token of "
                    f"{which}, which has {length}: ask for it once"
                )
            seen[position % length] = position
    return torch.tensor([[p % length for p in asked] for length in lengths])


def checked_targets(
    model: HookedGPT2, targets: str | SupportsIndex | Sequence[str | SupportsIndex]
) -> list[int]:
    """Ids of the tokens to follow."""
    ids: list[int] = []
    for target in listed(targets):
        if isinstance(target, str):
            id = model.to_single_token(target)
        else:
            id = whole(target, "a target is the text or the id of a token")
        if not 0 <= id < model.cfg.d_vocab_out:
            raise IndexError(
                f"target {target!r} is out of range: this model predicts tokens 0 to "
                f"{model.cfg.d_vocab_out - 1}"
            )
        if id in ids:
            raise ValueError(f"target {target!r} is given twice (token {id})")
        ids.append(id)
    return ids
