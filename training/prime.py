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

POSITION_NORM = 0.8
SCORE = 14.0
OUTPUT_GAIN = 0.5


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
    body, config = model.transformer, model.config
    d_model, d_head = config.n_embd, config.n_embd // config.n_head
    generator = torch.Generator().manual_seed(seed)
    # The directions along which token embeddings differ least, so that the two disturb each other
    # least.
    directions = torch.linalg.svd(body.wte.weight, full_matrices=False).Vh[-d_head:].T
    waves, frequencies = sinusoids(config.n_positions, d_head // 2)
    body.wpe.weight += POSITION_NORM * waves @ directions.T

    rotation = torch.zeros(d_head, d_head)
    cos, sin = frequencies.cos().diag(), frequencies.sin().diag()
    half = d_head // 2
    # (cos a, sin a) @ rotation = (cos(a - f), sin(a - f))
    rotation[:half, :half], rotation[half:, :half] = cos, sin
    rotation[:half, half:], rotation[half:, half:] = -sin, cos

    block = body.h[0]
    embedded = body.wte.weight.norm(dim=1).median() ** 2 + body.wpe.weight.norm(dim=1).median() ** 2
    # Norm of the waves behind the layer norm, which gives every vector the norm sqrt(d_model).
    norm = POSITION_NORM * (d_model / embedded) ** 0.5
    gain = (SCORE * d_head**0.5) ** 0.5 / norm
    read = directions / block.ln_1.weight[:, None].clamp(min=0.1)
    attention = block.attn
    attention.c_attn.weight[:, :d_head] = gain * read @ rotation
    attention.c_attn.weight[:, d_model : d_model + d_head] = gain * read
    attention.c_attn.bias[:d_head] = 0.0
    attention.c_attn.bias[d_model : d_model + d_head] = 0.0
    basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q
    copied = basis[:, :d_head] / block.ln_1.weight[:, None].clamp(min=0.1)
    attention.c_attn.weight[:, 2 * d_model : 2 * d_model + d_head] = OUTPUT_GAIN * copied / 2
    attention.c_proj.weight[:d_head] = basis[:, d_head : 2 * d_head].T
