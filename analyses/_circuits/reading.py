"""Directions of the residual stream, read as tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses._circuits.source import AT_ONCE, check_finite
from interp import HookedGPT2

# What reads a direction: the embeddings' inner product with it, or the logits it writes.
SIDES = ("reads", "writes")


@dataclass(frozen=True, eq=False)
class Readings:
    """The tokens that several directions stand for most, on both of their sides.

    Attributes:
        top_ids, top_values: the largest inner products with the direction, largest first.
        bottom_ids, bottom_values: the smallest, smallest first: the top of the negated direction.
    """

    top_ids: Int64[Tensor, "direction k"]
    top_values: Float[Tensor, "direction k"]
    bottom_ids: Int64[Tensor, "direction k"]
    bottom_values: Float[Tensor, "direction k"]

    def of(self, direction: int, sign: int) -> Iterator[tuple[int, float]]:
        """Ids and inner products with the direction times `sign`, largest first."""
        ids, values = (
            (self.top_ids, self.top_values) if sign > 0 else (self.bottom_ids, self.bottom_values)
        )
        return zip(ids[direction].tolist(), (sign * values[direction]).tolist(), strict=True)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            name: getattr(self, name).tolist()
            for name in ("top_ids", "top_values", "bottom_ids", "bottom_values")
        }


@torch.no_grad()
def read(model: HookedGPT2, directions: Float[Tensor, "n d_model"], side: str, k: int) -> Readings:
    """Read directions of the residual stream as tokens.

    Args:
        model: whose tokens.
        directions: one per row.
        side: "reads": by the embeddings `W_E` of the tokens, which say what a direction that is
            read answers to; "writes": by the unembedding `W_U`, which says which logits a direction
            that is written raises. Without layer norm and biases, both.
        k: how many tokens of each sign.

    Returns:
        the tokens, on the CPU.

    Raises:
        ValueError: NaN or infinity in what stands for the tokens.
    """
    tokens = model.W_E if side == "reads" else model.W_U.T
    # NaN counts as the largest: its token would come first.
    check_finite("the embeddings W_E" if side == "reads" else "the columns of W_U", tokens)
    return extremes(directions, tokens, k)


def extremes(
    left: Float[Tensor, "n inner"], right: Float[Tensor, "many inner"], k: int
) -> Readings:
    """For each row of `left` the rows of `right` with the largest and smallest products with it;
    `n x many` numbers are never held together."""
    parts = []
    for rows in left.split(max(1, AT_ONCE // len(right))):
        product = rows @ right.T
        high, low = product.topk(k), product.topk(k, largest=False)
        parts.append([high.indices, high.values, low.indices, low.values])
    return Readings(*(torch.cat(one).cpu() for one in zip(*parts, strict=True)))


def ids_in(*readings: Readings | None) -> Sequence[int]:
    """All tokens that occur."""
    there = [r for r in readings if r is not None]
    ids = [t.reshape(-1) for r in there for t in (r.top_ids, r.bottom_ids)]
    return torch.cat(ids).unique().tolist() if ids else []
