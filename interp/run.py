"""What one forward pass is asked to do, checked before it begins, and how its end is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooks import HookPoint
from hooks.names import nearest
from interp.config import HookedGPT2Config
from interp.kv_cache import KeyValueCache
from interp.model import Visibility

ReturnType = Literal["logits", "loss", "both"] | None

# What every kind of run takes besides its input and `return_type`.
ARGUMENTS = (
    "loss_per_token",
    "prepend_bos",
    "padding_side",
    "attention_mask",
    "start_at_layer",
    "stop_at_layer",
    "past_kv_cache",
)


class LogitsAndLoss(NamedTuple):
    """What a run with `return_type="both"` gives."""

    logits: Float[Tensor, "batch pos d_vocab"]
    loss: Tensor


Output = Tensor | LogitsAndLoss | None


@dataclass(frozen=True)
class Run:
    """The checked arguments of one forward pass.

    Attributes:
        input: `batch pos` tokens, or the residual `batch pos d_model` that enters block `start`.
        visible: what may attend to what.
        start, end: the blocks that run, `end` not included.
        stop: `end` where the run stops before it, else None.
        past: keys and values of the tokens before.
        mask: `batch pos` of the new tokens, None without padding.
        return_type, loss_per_token: as in `HookedGPT2.forward`.
        about: what a cache tells of its tokens.
    """

    input: Tensor
    visible: Visibility
    start: int
    end: int
    stop: int | None
    past: KeyValueCache | None
    mask: Tensor | None
    return_type: ReturnType
    loss_per_token: bool
    about: Mapping[str, Any]

    def passes(self, point: HookPoint) -> bool:
        """Whether this run computes what is at `point`."""
        if point.name.startswith("blocks."):
            return self.start <= point.layer() < self.end
        if point.name.startswith("ln_final."):
            return self.stop is None
        return not self.input.is_floating_point()

    def answer(self, out: Tensor) -> Output:
        """What the user asked for, from what the computation gave."""
        if self.stop is not None or self.return_type == "logits":
            return out
        if self.return_type is None:
            return None
        exact = torch.float64 if out.dtype == torch.float64 else torch.float32
        log_probs = out[:, :-1].log_softmax(-1, dtype=exact)
        loss = -log_probs.gather(-1, self.input[:, 1:, None])[..., 0]
        if self.mask is not None:
            counted = self.mask[:, 1:] & self.mask[:, :-1]
            loss = loss.masked_fill(~counted, torch.nan) if self.loss_per_token else loss[counted]
        loss = loss if self.loss_per_token else loss.mean()
        return loss if self.return_type == "loss" else LogitsAndLoss(out, loss)


# What runs of TransformerLens take.
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "return_cache_object": "dict(cache) is a plain one",
        "reset_hooks_end": "Hooks of a run end with it; model.hooks(...) keeps them for several",
        "clear_contexts": "Hook points have no contexts here",
        "shortformer_pos_embed": "GPT-2 has none",
        "tokens": "They are the input",
    }
)


def known_arguments(
    given: dict[str, Any],
    known: Sequence[str] = ARGUMENTS,
    taker: str = "A run",
    elsewhere: Mapping[str, str] = ELSEWHERE,
) -> dict[str, Any]:
    """`given` as it is.

    Args:
        known: the keywords there are.
        taker: what takes them, for the error.
        elsewhere: what to say of some that there are not.

    Raises:
        TypeError: another keyword; names the nearest.
    """
    for name in given:
        if name not in known:
            hint = f" {elsewhere[name]}." if name in elsewhere else nearest(name, known)
            raise TypeError(f"unknown keyword {name!r}.{hint} {taker} takes: {', '.join(known)}.")
    return given


def checked_run(
    cfg: HookedGPT2Config,
    weights: Tensor,
    input: Tensor,
    *,
    return_type: ReturnType = "logits",
    loss_per_token: bool = False,
    attention_mask: Tensor | None = None,
    start_at_layer: int | None = None,
    stop_at_layer: int | None = None,
    past_kv_cache: KeyValueCache | None = None,
    about: Mapping[str, Any],
) -> Run:
    """Check the arguments of a run.

    Args:
        weights: any of the model's, for its dtype and device.
        others: as in `HookedGPT2.forward`.

    Raises:
        ValueError, TypeError, IndexError: an argument that does not fit; says which and why.
    """
    start = _layer("start_at_layer", start_at_layer, cfg.n_layers) or 0
    stop = _layer("stop_at_layer", stop_at_layer, cfg.n_layers)
    if stop is not None and stop < start:
        raise IndexError(f"stop_at_layer={stop_at_layer} is before start_at_layer={start}.")
    if start_at_layer is None:
        input = _checked_tokens(cfg, input).to(weights.device, torch.long)
        about = {**about, "tokens": input.clone()}  # what the caller does with its own later
    else:
        _check_residual(cfg, weights, input, start_at_layer)
    batch, n_new = input.shape[:2]
    past_length = 0
    if past_kv_cache is not None:
        past_kv_cache.check(cfg, batch, n_new, weights)
        if start != 0 or start_at_layer is not None or stop is not None:
            raise ValueError(
                "past_kv_cache holds keys and values of all layers: it cannot go with "
                "start_at_layer or stop_at_layer."
            )
        past_length = past_kv_cache.length
    if past_length + n_new > cfg.n_ctx:
        raise ValueError(
            f"the prompt has {past_length + n_new} tokens, this model reads at most "
            f"n_ctx = {cfg.n_ctx}."
        )
    mask = _checked_mask(attention_mask, (batch, n_new), weights.device)
    _check_return(return_type, loss_per_token, input, stop)
    whole = mask
    if whole is None:
        whole = torch.ones(batch, n_new, dtype=torch.bool, device=weights.device)
    padded = mask is not None
    if past_kv_cache is not None and past_length:
        earlier = past_kv_cache.mask[:, :past_length]
        padded = padded or not bool(earlier.all())
        whole = torch.cat([earlier, whole], dim=1)
    if padded and not bool(whole.any(1).all()):
        raise ValueError("attention_mask leaves a prompt without any token.")
    return Run(
        input=input,
        visible=Visibility.of(whole, n_new, padded),
        start=start,
        end=cfg.n_layers if stop is None else stop,
        stop=stop,
        past=past_kv_cache,
        mask=mask,
        return_type=return_type,
        loss_per_token=loss_per_token,
        about={**about, "attention_mask": mask, "n_layers": cfg.n_layers},
    )


def _layer(what: str, layer: int | None, n_layers: int) -> int | None:
    if layer is None:
        return None
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"{what} is a whole number, not {layer!r}.")
    if not -n_layers <= layer <= n_layers:
        raise IndexError(
            f"{what}={layer} is out of range: this model has {n_layers} layers, so it goes from "
            f"0 to {n_layers} (or -{n_layers} to -1)."
        )
    return layer + n_layers if layer < 0 else layer


def _checked_tokens(cfg: HookedGPT2Config, tokens: Tensor) -> Tensor:
    """The ids as `batch pos`."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(
            f"token ids are whole numbers, not {tokens.dtype} (a residual needs start_at_layer)."
        )
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2:
        raise ValueError(f"tokens are batch pos, or pos, not of shape {tuple(tokens.shape)}.")
    if tokens.numel() == 0:
        raise ValueError(f"there are no tokens: the input has shape {tuple(tokens.shape)}.")
    low, high = (int(x) for x in tokens.aminmax())
    if low < 0 or high >= cfg.d_vocab:
        raise IndexError(
            f"token id {low if low < 0 else high} is out of range: this model has "
            f"d_vocab = {cfg.d_vocab}, ids 0 to {cfg.d_vocab - 1}."
        )
    return tokens


def _check_residual(cfg: HookedGPT2Config, weights: Tensor, input: Tensor, start: int) -> None:
    expected = f"start_at_layer={start} takes a residual batch pos d_model"
    if not input.is_floating_point() or input.ndim != 3:
        raise ValueError(f"{expected}, not {input.dtype} of shape {tuple(input.shape)}.")
    if input.shape[-1] != cfg.d_model:
        raise ValueError(f"{expected} with d_model = {cfg.d_model}, not {input.shape[-1]}.")
    if input.numel() == 0:
        raise ValueError(f"{expected}, not an empty one of shape {tuple(input.shape)}.")
    if input.dtype != weights.dtype or input.device != weights.device:
        raise ValueError(
            f"the residual is {input.dtype} on {input.device}, the model {weights.dtype} on "
            f"{weights.device}."
        )


def _checked_mask(
    mask: Tensor | None, shape: tuple[int, int], device: torch.device
) -> Tensor | None:
    """The mask as bool, or None where nothing is masked."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask is a tensor batch pos, not {type(mask).__name__}.")
    mask = mask[None] if mask.ndim == 1 and shape[0] == 1 else mask
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, the tokens are batch pos = {shape}."
        )
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("attention_mask holds other values than 0 and 1.")
        mask = mask.bool()
    return None if bool(mask.all()) else mask.to(device)


def _check_return(
    return_type: object, loss_per_token: bool, input: Tensor, stop: int | None
) -> None:
    if return_type not in ("logits", "loss", "both", None):
        raise ValueError(f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}.")
    if loss_per_token and return_type not in ("loss", "both"):
        raise ValueError("loss_per_token needs return_type 'loss' or 'both'.")
    if return_type in ("logits", None):
        return
    if stop is not None:
        raise ValueError(f"a run with stop_at_layer has no {return_type}: it ends earlier.")
    if input.is_floating_point():
        raise ValueError("the loss needs tokens, but the run begins from a residual.")
    if input.shape[1] < 2:
        raise ValueError("the loss needs at least two tokens: it is of the next token.")
