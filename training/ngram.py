"""The baseline for mini's validation loss: an interpolated Kneser-Ney n-gram model.

Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
section 2.7, with one discount per order, n1 / (n1 + 2 n2). The lowest order is interpolated with
the uniform distribution, so every token has a probability and the probabilities sum to one.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """Counts of one order: n-grams and their contexts, both as sorted packed integers."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    types: np.ndarray
    discount: float


class KneserNey:
    """An n-gram model of tokens.

    Args:
        tokens: the training text, one flat array of ids.
        d_vocab: number of ids.
        order: tokens per n-gram, at least 1.

    Raises:
        ValueError: n-grams of that order do not fit 64 bits, or order < 1.
    """

    def __init__(self, tokens: np.ndarray, d_vocab: int, order: int = 4):
        self.d_vocab = d_vocab
        self.bits = int(d_vocab - 1).bit_length()
        if order < 1 or order * self.bits > 64:
            raise ValueError(
                f"order must be 1 to {64 // self.bits} for {d_vocab} entries, got {order}"
            )
        grams, counts = np.unique(self._pack(tokens, order), return_counts=True)
        orders = [self._order(grams, counts)]
        for size in range(order - 1, 0, -1):
            # Lower orders count in how many different contexts an n-gram was seen.
            grams, counts = np.unique(self._suffix(grams, size), return_counts=True)
            orders.append(self._order(grams, counts))
        self.orders = orders[::-1]

    def _pack(self, tokens: np.ndarray, size: int) -> np.ndarray:
        """Each run of `size` tokens as one integer, the last token in the lowest bits."""
        packed = np.zeros(len(tokens) - size + 1, dtype=np.uint64)
        for offset in range(size):
            packed <<= np.uint64(self.bits)
            packed |= tokens[offset : offset + len(packed)].astype(np.uint64)
        return packed

    def _suffix(self, packed: np.ndarray, size: int) -> np.ndarray:
        return packed & np.uint64((1 << (self.bits * size)) - 1)

    def _order(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        contexts, starts = np.unique(grams >> np.uint64(self.bits), return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return _Order(
            grams,
            counts,
            contexts,
            np.add.reduceat(counts, starts),
            np.diff(np.append(starts, len(grams))),
            once / (once + 2 * twice) if once else 0.5,
        )

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """Natural log probability of each token but the first `order - 1`, given those before."""
        size = len(self.orders)
        packed = self._pack(tokens, size)
        probability = np.full(len(packed), 1.0 / self.d_vocab)
        for length, order in enumerate(self.orders, start=1):
            gram = self._suffix(packed, length)
            count = _look_up(order.grams, order.counts, gram)
            context = gram >> np.uint64(self.bits)
            total = _look_up(order.contexts, order.totals, context)
            types = _look_up(order.contexts, order.types, context)
            seen = np.maximum(total, 1)
            higher = np.maximum(count - order.discount, 0.0) / seen
            backoff = order.discount * types / seen
            probability = np.where(total > 0, higher + backoff * probability, probability)
        return np.log(probability)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of keys, 0 where a key is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
