"""The prompts of an analysis as token ids with their mask, however they were given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp import HookedGPT2, TokenBatch

AnyPrompts = str | Sequence[str] | TokenBatch | Tensor


@dataclass(frozen=True, eq=False)
class Prompts:
    """Token ids of a batch.

    Attributes:
        tokens: ids, on the model's device.
        attention_mask: True on real tokens, on the model's device.
        str_tokens: the real tokens of each prompt as strings (`<id>` without a tokenizer).
        prepend_bos: whether `<|endoftext|>` was put before the text; None for ids, taken as given.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"]
    str_tokens: tuple[tuple[str, ...], ...]
    prepend_bos: bool | None

    @classmethod
    def of(
        cls,
        model: HookedGPT2,
        given: AnyPrompts,
        attention_mask: Tensor | None = None,
        prepend_bos: bool = True,
    ) -> "Prompts":
        """Prompts from what `model.forward` takes.

        Raises:
            ValueError, TypeError: a mask with text, of another shape or with an empty row; tokens
                that are no ids; what `model.tokenize` refuses.
        """
        if not isinstance(given, Tensor):
            if attention_mask is not None:
                raise ValueError("text brings its own mask: attention_mask goes with token ids.")
            if isinstance(given, TokenBatch):
                batch = given
                if batch.prepend_bos and not prepend_bos:
                    raise ValueError(
                        "prepend_bos=False, but these tokens were made with prepend_bos=True."
                    )
            elif isinstance(given, str) or (
                isinstance(given, Sequence) and all(isinstance(one, str) for one in given)
            ):
                batch = model.tokenize(given, prepend_bos=prepend_bos)
            else:
                raise TypeError(
                    "prompts are text, several texts, or token ids in a tensor, not "
                    f"{type(given).__name__}."
                )
            mask = batch.attention_mask.bool()
            strings = (
                tuple(one for one, real in zip(row, own, strict=True) if real)
                for row, own in zip(batch.str_tokens, mask.tolist(), strict=True)
            )
            return cls(
                batch.tokens.to(model.device),
                mask.to(model.device),
                tuple(strings),
                batch.prepend_bos,
            )
        tokens = given[None] if given.ndim == 1 else given
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"tokens are batch pos, or pos, not of shape {tuple(given.shape)}.")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise TypeError(f"token ids are whole numbers, not {tokens.dtype}.")
        mask = torch.ones(tokens.shape, dtype=torch.bool)
        if attention_mask is not None:
            mask = attention_mask.reshape(-1, attention_mask.shape[-1])
        if mask.shape != tokens.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape)}."
            )
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("attention_mask holds other values than 0 and 1.")
        mask = mask.bool()
        if not bool(mask.any(1).all()):
            raise ValueError("attention_mask leaves a prompt without any token.")
        strings = tuple(
            tuple(token_string(model, id) for id in row[own].tolist())
            for row, own in zip(tokens.cpu(), mask.cpu(), strict=True)
        )
        return cls(tokens.to(model.device, torch.int64), mask.to(model.device), strings, None)

    @property
    def lengths(self) -> list[int]:
        """Real tokens per prompt."""
        return self.attention_mask.sum(1).tolist()


def token_string(model: HookedGPT2, id: int) -> str:
    """The text of a token, or `<id>` for a model without a tokenizer."""
    return f"<{id}>" if model.tokenizer is None else model.tokenizer.to_single_str_token(id)
