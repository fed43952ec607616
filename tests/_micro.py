"""A model small enough to compute by hand.

Tokens a, b, c are three orthogonal vectors of plus and minus ones (mean 0, variance 1, so layer
norm leaves them alone). Queries and keys are 0: a position attends evenly to itself and all before.
Head 0 measures how much b it sees, averaged, and writes that much of b; head 1 does nothing.
Neuron 0 fires on b and writes c; neuron 1 fires on minus b and writes a.
"""

import torch

from interp import HookedGPT2, HookedGPT2Config

A, B, C = (
    torch.tensor(v, dtype=torch.float64) for v in ([1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1])
)
ZERO = torch.zeros(4, dtype=torch.float64)
AB = torch.tensor([[0, 1]])


def blank_model(cfg: HookedGPT2Config) -> HookedGPT2:
    """All weights 0, and layer norms that only normalise."""
    model = HookedGPT2.from_config(cfg, dtype="float64").requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for norm in ("ln_1.weight", "ln_2.weight", "ln_f.weight"):
        model.get_parameter(norm).fill_(1)
    return model


def micro_model() -> HookedGPT2:
    cfg = HookedGPT2Config(
        n_layers=1,
        d_model=4,
        n_heads=2,
        d_mlp=2,
        n_ctx=3,
        d_vocab=3,
        act_fn="relu",
        eps=1e-14,
        tie_word_embeddings=False,
    )
    model = blank_model(cfg)
    model.W_E[:] = torch.stack([A, B, C])
    model.W_V[0, 0, :, 0] = B
    model.W_O[0, 0, 0] = B
    model.W_in[0, :, 0] = B
    model.W_in[0, :, 1] = -B
    model.W_out[0, 0] = C
    model.W_out[0, 1] = A
    model.W_U[:] = torch.stack([A, B, C], dim=1) * 5 / 4
    return model
