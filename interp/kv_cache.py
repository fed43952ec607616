"""Keys and values of the tokens so far, so that a next forward pass computes only new tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.config import HookedGPT2Config

# The first piece of memory, in positions; it doubles whenever it is full.
_FIRST = 64

Rows = int | slice | Sequence[int] | Int[Tensor, " row"] | Bool[Tensor, " batch"]


class KeyValueCache:
    """Keys and values of every layer for the positions seen so far.

    `forward(tokens, past_kv_cache=cache)` appends the new tokens, and only when the pass has ended
    well. Memory grows by doubling, up to `capacity` positions.

    Branches from one prefix:

        cache = KeyValueCache.init_cache(model.cfg, model.device)
        model(prefix, past_kv_cache=cache)
        branches = cache.fork(3)            # three rows, each with the prefix
        start = branches.lengths
        model(three_tokens, past_kv_cache=branches)
        branches.rewind(start)              # the prefix alone again

    Prompts may differ in length: `mask` says which positions hold a token, and what holds none is
    never attended to.

    Attributes:
        keys, values: `layer batch head pos d_head`, the memory taken so far.
        mask: `batch pos`, False where a prompt has no token; of the memory taken so far.
        length: how many positions are filled, padding included.
        capacity: how many there can be.
    """

    def __init__(
        self,
        keys: Float[Tensor, "layer batch head pos d_head"],
        values: Float[Tensor, "layer batch head pos d_head"],
        mask: Bool[Tensor, "batch pos"],
        capacity: int | None = None,
    ) -> None:
        self.keys = keys
        self.values = values
        self.mask = mask
        self.length = 0
        self.capacity = keys.shape[3] if capacity is None else capacity

    @classmethod
    def init_cache(
        cls,
        cfg: HookedGPT2Config,
        device: str | torch.device,
        batch_size: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        capacity: int | None = None,
    ) -> "KeyValueCache":
        """An empty cache for `batch_size` prompts of up to `capacity` (default `n_ctx`) tokens.

        Raises:
            ValueError: a batch of no prompts, or a capacity that is not 1 to `n_ctx`.
            TypeError: one of them is no whole number.
        """
        capacity = cfg.n_ctx if capacity is None else _whole("capacity", capacity)
        if _whole("batch_size", batch_size) < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}.")
        if not 1 <= capacity <= cfg.n_ctx:
            raise ValueError(f"capacity is 1 to n_ctx = {cfg.n_ctx}, not {capacity}.")
        shape = (cfg.n_layers, batch_size, cfg.n_heads, min(capacity, _FIRST), cfg.d_head)
        return cls(
            torch.empty(shape, device=device, dtype=dtype),
            torch.empty(shape, device=device, dtype=dtype),
            torch.ones(batch_size, shape[3], device=device, dtype=torch.bool),
            capacity,
        )

    # ---------------------------------------------------------------- what it holds

    @property
    def batch_size(self) -> int:
        """How many prompts it is of."""
        return self.keys.shape[1]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, padding not counted."""
        return self.mask[:, : self.length].sum(1).tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken so far."""
        return self.keys.nbytes + self.values.nbytes + self.mask.nbytes

    # ---------------------------------------------------------------- branching

    def fork(self, copies: int = 1) -> "KeyValueCache":
        """A cache in memory of its own, with every prompt `copies` times, copies of one prompt
        next to each other.

        Raises:
            ValueError: `copies` is less than 1. TypeError: it is no whole number.
        """
        if _whole("copies", copies) < 1:
            raise ValueError(f"copies is at least 1, not {copies}.")
        rows = torch.arange(self.batch_size, device=self.mask.device)
        return self._picked(rows.repeat_interleave(copies))

    def rows(self, which: Rows) -> "KeyValueCache":
        """A cache in memory of its own of some prompts, in the order asked for.

        Args:
            which: whole numbers (negative ones count from the end, one may come several times),
                a slice, or a mask over the prompts.

        Raises:
            IndexError: a prompt that is not there, or none at all.
            TypeError: something that is neither whole numbers, a slice nor a mask.
        """
        return self._picked(self._row_numbers(which))

    def reorder(self, which: Rows) -> None:
        """Put other prompts in the places of these: row `i` becomes what row `which[i]` was.

        Raises:
            IndexError: a prompt that is not there.
            ValueError: not as many as there are prompts.
        """
        rows = self._row_numbers(which)
        if len(rows) != self.batch_size:
            raise ValueError(
                f"reorder takes a row for each of the {self.batch_size} prompts, not {len(rows)} "
                f"(rows() makes a cache of fewer or more)."
            )
        n = self.length
        self.keys[:, :, :, :n] = self.keys[:, rows, :, :n]
        self.values[:, :, :, :n] = self.values[:, rows, :, :n]
        self.mask[:, :n] = self.mask[rows, :n]

    def rewind(self, length: int | Sequence[int] | Int[Tensor, " batch"]) -> None:
        """Forget all but the first `length` tokens of each prompt.

        Args:
            length: the same for all, or one per prompt (as `lengths` gave earlier); padding is
                not counted.

        Raises:
            ValueError: more tokens than a prompt has, or not one number per prompt.
            TypeError: something that is no whole number.
        """
        now = self.lengths
        given: Any = length.tolist() if isinstance(length, Tensor) else length
        several = isinstance(given, Sequence) and not isinstance(given, str)
        wanted = [_whole("a length", one) for one in (given if several else [given] * len(now))]
        if len(wanted) != len(now):
            raise ValueError(f"rewind got {len(wanted)} lengths for {len(now)} prompts.")
        for row, (new, old) in enumerate(zip(wanted, now, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(
                    f"prompt {row} has {old} tokens in the cache: it can be rewound to 0 to {old}, "
                    f"not to {new}."
                )
        mask = self.mask[:, : self.length]
        first = torch.tensor(wanted, device=mask.device)[:, None]
        mask &= mask.cumsum(1) <= first
        filled = mask.any(0).nonzero()
        self.length = int(filled[-1]) + 1 if len(filled) else 0

    def reserve(self, positions: int) -> None:
        """Take the memory for so many positions (at most `capacity`) at once."""
        allocated = self.keys.shape[3]
        positions = min(positions, self.capacity)
        if positions > allocated:
            self.keys, self.values = (
                self._larger(old, 3, positions) for old in (self.keys, self.values)
            )
            self.mask = self._larger(self.mask, 1, positions)

    def _larger(self, old: Tensor, dim: int, size: int) -> Tensor:
        shape = list(old.shape)
        shape[dim] = size
        # A tensor made under `inference_mode` could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            new = old.new_empty(shape)
            new.narrow(dim, 0, self.length).copy_(old.narrow(dim, 0, self.length))
        return new

    def _row_numbers(self, which: Rows) -> Int[Tensor, " row"]:
        every = torch.arange(self.batch_size)
        if isinstance(which, slice):
            rows = torch.tensor(range(len(every))[which], dtype=torch.int64)
        else:
            try:
                rows = torch.as_tensor(which, device="cpu").reshape(-1)
            except (TypeError, ValueError, RuntimeError):
                rows = torch.full((1,), torch.nan)
            if rows.numel() and (rows.is_floating_point() or rows.is_complex()):
                raise TypeError(f"prompts are whole numbers, a slice or a mask, not {which!r}.")
            if rows.dtype == torch.bool:
                if len(rows) != len(every):
                    raise IndexError(f"a mask of {len(rows)} does not fit {len(every)} prompts.")
                rows = rows.nonzero()[:, 0]
            for row in rows.tolist():
                if not -len(every) <= row < len(every):
                    raise IndexError(
                        f"prompt {row} is out of range: the cache holds {len(every)}, "
                        f"0 to {len(every) - 1} (or -{len(every)} to -1)."
                    )
        if not len(rows):
            raise IndexError(f"{which} picks none of the {len(every)} prompts.")
        return (rows % len(every)).to(self.mask.device)

    def _picked(self, rows: Int[Tensor, " row"]) -> "KeyValueCache":
        # At least one position of memory, for an empty cache: doubling nothing gives nothing.
        n = max(1, self.length)
        picked = KeyValueCache(
            self.keys[:, :, :, :n].index_select(1, rows),
            self.values[:, :, :, :n].index_select(1, rows),
            self.mask[:, :n].index_select(0, rows),
            self.capacity,
        )
        picked.length = self.length
        return picked

    # ---------------------------------------------------------------- in a forward pass

    def extend(
        self,
        layer: int,
        k: Float[Tensor, "batch head new d_head"],
        v: Float[Tensor, "batch head new d_head"],
    ) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch head pos d_head"]]:
        """Write a layer's new keys and values; return those of all positions, old and new.

        Nothing counts as filled until `commit`. Gradients reach the new ones only.
        """
        start, end = self.length, self.length + k.shape[2]
        if end > self.keys.shape[3]:
            self.reserve(max(end, 2 * self.keys.shape[3]))
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, start, end - start).copy_(k.detach())
        values.narrow(2, start, end - start).copy_(v.detach())
        if k.requires_grad or v.requires_grad:
            # The next pass writes into this memory, so the graph gets a copy of what was there.
            k = torch.cat([keys.narrow(2, 0, start), k], dim=2)
            v = torch.cat([values.narrow(2, 0, start), v], dim=2)
            return k, v
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def commit(self, mask: Bool[Tensor, "batch pos"]) -> None:
        """Count the positions of `mask` (old and new together) as filled."""
        self.mask[:, self.length : mask.shape[1]] = mask[:, self.length :]
        self.length = mask.shape[1]

    def check(self, cfg: HookedGPT2Config, batch_size: int, new: int, weights: Tensor) -> None:
        """Raise ValueError unless `new` tokens of `batch_size` prompts can be appended.

        Args:
            weights: any of the model's, for its dtype and device.
        """
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                "past_kv_cache was made under torch.inference_mode() and cannot be written to "
                "outside of it: make it outside, or take its fork()."
            )
        dtype, device = weights.dtype, weights.device
        layers, batch, heads, _, d_head = self.keys.shape
        if (layers, heads, d_head) != (cfg.n_layers, cfg.n_heads, cfg.d_head):
            raise ValueError(
                f"past_kv_cache is of a model with {layers} layers of {heads} heads of {d_head}, "
                f"this one has {cfg.n_layers} layers of {cfg.n_heads} heads of {cfg.d_head}."
            )
        if batch != batch_size:
            raise ValueError(f"past_kv_cache holds {batch} prompts, the tokens are {batch_size}.")
        if self.length + new > self.capacity:
            raise ValueError(
                f"past_kv_cache has room for {self.capacity} positions: {self.length} are filled "
                f"and {new} more came."
            )
        if self.keys.dtype != dtype or self.keys.device != device:
            raise ValueError(
                f"past_kv_cache is {self.keys.dtype} on {self.keys.device}, the model is {dtype} "
                f"on {device}."
            )

    def __repr__(self) -> str:
        layers, batch = self.keys.shape[:2]
        return (
            f"KeyValueCache(layers={layers}, batch={batch}, pos={self.length} of {self.capacity})"
        )


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}.")
    return value
