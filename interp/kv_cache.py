"""Keys and values of the tokens so far, so that a next forward pass computes only new tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.config import HookedGPT2Config


class KeyValueCache:
    """Keys and values of every layer for the positions seen so far.

    Memory for `capacity` positions is taken at once. `forward(tokens, past_kv_cache=cache)`
    appends the new tokens, and only when the pass has ended well.

    Attributes:
        keys, values: `layer batch head pos d_head`, all `capacity` positions.
        mask: `batch pos`, False on padding, all `capacity` positions.
        length: how many positions are filled.
    """

    def __init__(
        self,
        keys: Float[Tensor, "layer batch head pos d_head"],
        values: Float[Tensor, "layer batch head pos d_head"],
        mask: Bool[Tensor, "batch pos"],
    ) -> None:
        self.keys = keys
        self.values = values
        self.mask = mask
        self.length = 0

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
        """An empty cache for `batch_size` prompts of up to `capacity` (default `n_ctx`) tokens."""
        capacity = cfg.n_ctx if capacity is None else capacity
        shape = (cfg.n_layers, batch_size, cfg.n_heads, capacity, cfg.d_head)
        return cls(
            torch.empty(shape, device=device, dtype=dtype),
            torch.empty(shape, device=device, dtype=dtype),
            torch.ones(batch_size, capacity, device=device, dtype=torch.bool),
        )

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
        self.keys[layer, :, :, start:end] = k.detach()
        self.values[layer, :, :, start:end] = v.detach()
        if k.requires_grad or v.requires_grad:
            # The next pass writes into this memory, so the graph gets a copy of what was there.
            k = torch.cat([self.keys[layer, :, :, :start], k], dim=2)
            v = torch.cat([self.values[layer, :, :, :start], v], dim=2)
            return k, v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def commit(self, mask: Bool[Tensor, "batch pos"]) -> None:
        """Count the positions of `mask` (old and new together) as filled."""
        self.mask[:, : mask.shape[1]] = mask
        self.length = mask.shape[1]

    def check(self, cfg: HookedGPT2Config, batch_size: int, new: int, weights: Tensor) -> None:
        """Raise ValueError unless `new` tokens of `batch_size` prompts can be appended.

        Args:
            weights: any of the model's, for its dtype and device.
        """
        dtype, device = weights.dtype, weights.device
        layers, batch, heads, capacity, d_head = self.keys.shape
        if (layers, heads, d_head) != (cfg.n_layers, cfg.n_heads, cfg.d_head):
            raise ValueError(
                f"past_kv_cache is of a model with {layers} layers of {heads} heads of {d_head}, "
                f"this one has {cfg.n_layers} layers of {cfg.n_heads} heads of {cfg.d_head}."
            )
        if batch != batch_size:
            raise ValueError(f"past_kv_cache holds {batch} prompts, the tokens are {batch_size}.")
        if self.length + new > capacity:
            raise ValueError(
                f"past_kv_cache has room for {capacity} positions: {self.length} are filled and "
                f"{new} more came."
            )
        if self.keys.dtype != dtype or self.keys.device != device:
            raise ValueError(
                f"past_kv_cache is {self.keys.dtype} on {self.keys.device}, the model is {dtype} "
                f"on {device}."
            )

    def __repr__(self) -> str:
        layers, batch, _, capacity, _ = self.keys.shape
        return f"KeyValueCache(layers={layers}, batch={batch}, pos={self.length} of {capacity})"
