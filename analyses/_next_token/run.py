"""What the model predicts after prompts and after what may follow them.

Prompts are read once, into a key/value cache; what may follow is read after copies of it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses._arguments import whole
from analyses._distributions import entropy, ranks
from analyses.prompts import Prompts
from interp import HookedGPT2, KeyValueCache
from interp.plan import left_padded

# After the functions that are active on the model, also those at the final layer norm.
_NORMALIZED = "ln_final.hook_normalized"
# So many bytes of distributions over the vocabulary are made at a time.
_CHUNK_BYTES = 8 * 2**20
# So many bytes of keys and values are held at a time, of prompts and of copies of them each.
_CACHE_BYTES = 256 * 2**20


class Numbers(NamedTuple):
    """What is read off distributions, on the CPU."""

    top_tokens: Int[Tensor, "row k"]
    top_logits: Float[Tensor, "row k"]
    top_log_probs: Float[Tensor, "row k"]
    entropy: Float[Tensor, " row"]
    logits: Float[Tensor, "row target"]
    log_probs: Float[Tensor, "row target"]
    ranks: Int[Tensor, "row target"]


def read(
    model: HookedGPT2,
    hidden: Float[Tensor, "row d_model"],
    top_k: int,
    temperature: float | int = 1.0,
    targets: Int[Tensor, "row target"] | None = None,
) -> Numbers:
    """The numbers of the distribution that each row predicts, a few rows at a time.

    Args:
        hidden: what the final layer norm gave.
        targets: tokens to look up in the distribution of each row.

    Raises:
        ValueError: a logit is not a number.
    """
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    if targets is None:
        targets = torch.empty(len(hidden), 0, dtype=torch.long)
    targets = targets.to(hidden.device)
    at_once = max(1, _CHUNK_BYTES // (model.cfg.d_vocab_out * dtype.itemsize))
    chunks = []
    for start in range(0, len(hidden), at_once):
        here = slice(start, start + at_once)
        with torch.no_grad():
            logits = model.unembed(hidden[here])
        best, top_tokens = logits.topk(top_k)
        if bool(best.isnan().any()):
            raise ValueError("the model's logits are not numbers (NaN): there is no prediction")
        # From the largest, which a tiny temperature would otherwise take beyond all numbers.
        below = logits.to(dtype) - best[:, :1].to(dtype)
        log_probs = (below / temperature).log_softmax(-1)
        wanted = logits.gather(1, targets[here])
        chunks.append(
            Numbers(
                top_tokens,
                best.to(dtype),
                log_probs.gather(1, top_tokens),
                entropy(log_probs),
                wanted.to(dtype),
                log_probs.gather(1, targets[here]),
                ranks(logits, wanted),
            )
        )
    return Numbers(*(torch.cat(parts).cpu() for parts in zip(*chunks, strict=True)))


def hidden_states(
    model: HookedGPT2,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    past: KeyValueCache | None = None,
    last_only: bool = False,
) -> Float[Tensor, "batch kept d_model"]:
    """What the final layer norm gives at all positions, or at the last one.

    Args:
        past: keys and values of what comes before; the new ones are appended.
    """
    with torch.no_grad():
        _, kept = model.run_with_cache(
            tokens,
            return_type=None,
            names_filter=_NORMALIZED,
            pos_slice=[tokens.shape[1] - 1] if last_only else None,
            attention_mask=mask,
            past_kv_cache=past,
        )
        weight, bias = (model.get_parameter(f"ln_f.{name}") for name in ("weight", "bias"))
        return torch.addcmul(bias, kept[_NORMALIZED], weight)


class Prefixes:
    """Prompts that have been read, each once.

    Attributes:
        hidden: what the final layer norm gave at the end of each.
        cache: keys and values of all of them.
    """

    def __init__(
        self, model: HookedGPT2, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
    ) -> None:
        self._model = model
        tokens, mask = left_padded(tokens, mask)
        self.cache = KeyValueCache.init_cache(
            model.cfg, model.device, len(tokens), dtype=model.dtype
        )
        self.hidden = hidden_states(model, tokens, mask, self.cache, last_only=True)[:, 0]

    def after(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]]
    ) -> Iterator[Float[Tensor, "new d_model"]]:
        """Read `ids[i]` after prompt `rows[i]`; what the final layer norm gives at each of them.

        As many at a time as `_CACHE_BYTES` holds keys and values of.
        """
        longest = max(map(len, ids))
        size = bytes_per_row(self._model, self.cache.length + longest)
        at_once = max(1, _CACHE_BYTES // size)
        for start in range(0, len(rows), at_once):
            part = ids[start : start + at_once]
            lengths = torch.tensor(list(map(len, part)))
            tokens = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
            for row, own in enumerate(part):
                tokens[row, : len(own)] = torch.tensor(own)
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]
            past = self.cache.rows(list(rows[start : start + at_once]))
            device = self._model.device
            hidden = hidden_states(self._model, tokens.to(device), mask.to(device), past)
            for row, length in zip(hidden, lengths.tolist(), strict=True):
                yield row[:length]


def in_groups(model: HookedGPT2, prompts: Prompts) -> Iterator[tuple[slice, Prefixes]]:
    """The prompts, read, as many at a time as `_CACHE_BYTES` holds keys and values of."""
    n, width = prompts.tokens.shape
    at_once = max(1, _CACHE_BYTES // bytes_per_row(model, width))
    for start in range(0, n, at_once):
        here = slice(start, min(start + at_once, n))
        yield here, Prefixes(model, prompts.tokens[here], prompts.attention_mask[here])


def bytes_per_row(model: HookedGPT2, positions: int) -> int:
    """Of keys and values."""
    cfg = model.cfg
    return 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * positions * model.dtype.itemsize


# ------------------------------------------------------------------ arguments


def checked_top_k(model: HookedGPT2, top_k: object, name: str = "top_k") -> int:
    """How many predictions to keep.

    Raises:
        TypeError, ValueError: no whole number, or not 1 to d_vocab.
    """
    number, most = whole(top_k, f"{name} is a whole number"), model.cfg.d_vocab_out
    if not 1 <= number <= most:
        raise ValueError(f"{name}={number} is out of range: this model has 1 to {most} predictions")
    return number


def checked_temperature(temperature: object) -> float:
    """What logits are divided by.

    Raises:
        TypeError, ValueError: no number, or not from 1e-6 to 1e30.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"temperature is a number, not {temperature!r}")
    if temperature == 0:
        raise ValueError(
            "temperature is above 0: at 0 the likeliest token is all there is (see top_k=1)"
        )
    # Below, float32 could not hold the quotients; above, whole numbers are beyond all floats.
    if not 1e-6 <= temperature <= 1e30:
        raise ValueError(f"temperature is a number from 1e-6 to 1e30, not {temperature!r}")
    return float(temperature)


def ids_of(prompts: Prompts) -> tuple[tuple[int, ...], ...]:
    """The ids of each prompt, without padding."""
    return tuple(
        tuple(row[mask].tolist())
        for row, mask in zip(prompts.tokens.cpu(), prompts.attention_mask.cpu(), strict=True)
    )
