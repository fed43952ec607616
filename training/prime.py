"""A starting point for attention by position: sinusoids, and one head that looks one token back.

Induction needs a head that looks at the token before. A model that sees a few million tokens has no
time to find one among 256 learned positions, so mini is given it: sinusoids are added to the
position embeddings (Vaswani et al. 2017, "Attention is all you need", section 3.5), where looking
back by one is a rotation of each frequency, and the first layer's first head starts with queries
so rotated. Everything is trained from there on; what reads the head is learned.
"""

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

# Norm of the sinusoids; mini's token embeddings have about twice that when they are added.
POSITION_NORM = 0.8
# Attention score of the token before, relative to 0 at a position that is out of phase.
SCORE = 14.0
# Weight of what is copied.
OUTPUT_GAIN = 0.25


def sinusoids(n_ctx: int, n_frequencies: int) -> tuple[Tensor, Tensor]:
    """[n_ctx, 2 * n_frequencies], unit rows of cosines then sines, and the frequencies."""
    frequencies = torch.linspace(0.1, 3.0, n_frequencies)
    angles = torch.arange(n_ctx)[:, None] * frequencies
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    return waves / n_frequencies**0.5, frequencies


@torch.no_grad()
def prime(model: GPT2LMHeadModel, seed: int = 0) -> None:
    """Add sinusoids to the position embeddings and set head 0.0 to look one position back.

    Args:
        model: a GPT-2, changed in place.
        seed: of the directions that the head copies from and to.
    """
    d_model, d_head = model.config.n_embd, model.config.n_embd // model.config.n_head
    parameters = dict(model.named_parameters())
    wte, wpe = (parameters[f"transformer.{name}.weight"] for name in ("wte", "wpe"))
    read_norm = parameters["transformer.h.0.ln_1.weight"][:, None].clamp(min=0.1)
    qkv = parameters["transformer.h.0.attn.c_attn.weight"]
    qkv_bias = parameters["transformer.h.0.attn.c_attn.bias"]
    output = parameters["transformer.h.0.attn.c_proj.weight"]

    # The directions along which token embeddings differ least, so that the two disturb each other
    # least.
    directions = torch.linalg.svd(wte, full_matrices=False).Vh[-d_head:].T
    waves, frequencies = sinusoids(model.config.n_positions, d_head // 2)
    wpe += POSITION_NORM * waves @ directions.T

    # (cos a, sin a) @ rotation = (cos(a - f), sin(a - f))
    cos, sin = frequencies.cos().diag(), frequencies.sin().diag()
    rotation = torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])

    embedded = wte.norm(dim=1).median() ** 2 + wpe.norm(dim=1).median() ** 2
    # Norm of the waves behind the layer norm, which gives every vector the norm sqrt(d_model).
    norm = POSITION_NORM * (d_model / embedded) ** 0.5
    gain = (SCORE * d_head**0.5) ** 0.5 / norm
    read = gain * directions / read_norm
    queries, keys = slice(d_head), slice(d_model, d_model + d_head)
    qkv[:, queries], qkv[:, keys] = read @ rotation, read
    qkv_bias[queries], qkv_bias[keys] = 0.0, 0.0

    # What it copies: 32 random directions of the token before, to 32 other directions.
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q
    qkv[:, 2 * d_model : 2 * d_model + d_head] = OUTPUT_GAIN * basis[:, :d_head] / read_norm
    output[:d_head] = basis[:, d_head : 2 * d_head].T
