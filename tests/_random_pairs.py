"""Random models whose answers depend on everything, and pairs of random prompts for them."""

from collections.abc import Callable
from typing import Any

import torch

from analyses.pairs import PromptPair
from interp import HookedGPT2

N_POS, D_VOCAB = 5, 31


def lively_model(reference_model: Callable[..., Any], n_layers: int, n_heads: int) -> HookedGPT2:
    """A random float64 model whose logits are not all next to zero."""
    cfg = dict(n_layer=n_layers, n_head=n_heads, n_embd=12, n_positions=12, vocab_size=D_VOCAB,
               bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = HookedGPT2.from_pretrained(reference_model(cfg, dtype=torch.float64), dtype="float64")
    with torch.no_grad():
        for embedding in (model.W_E, model.W_pos):
            embedding.mul_(10)
    return model


def random_pair(model: HookedGPT2, lengths: tuple[int, ...] = (N_POS, N_POS)) -> PromptPair:
    """Prompts that differ at every position; shorter ones are padded."""
    n, width = len(lengths), max(lengths)
    clean = torch.randint(1, D_VOCAB, (n, width))
    corrupted = (clean + torch.randint(1, D_VOCAB - 1, (n, width)) - 1) % (D_VOCAB - 1) + 1
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    clean, corrupted = clean * mask, corrupted * mask
    answers = torch.arange(n) + 3
    return PromptPair.of(
        model, clean, corrupted, answers.tolist(), (answers + 7).tolist(), attention_mask=mask
    )
