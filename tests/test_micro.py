"""A model small enough to compute by hand: every number below was, on paper.

Tokens a, b, c are three orthogonal vectors of plus and minus ones (mean 0, variance 1, so layer
norm leaves them alone). Queries and keys are 0: a position attends evenly to itself and all before.
Head 0 measures how much b it sees, averaged, and writes that much of b; head 1 does nothing.
Neuron 0 fires on b and writes c; neuron 1 fires on minus b and writes a.
"""

import pytest
import torch

from interp import HookedGPT2, HookedGPT2Config

A, B, C = (
    torch.tensor(v, dtype=torch.float64) for v in ([1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1])
)
ZERO = torch.zeros(4, dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
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
    model = HookedGPT2.from_config(cfg, dtype="float64").requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for norm in ("ln_1.weight", "ln_2.weight", "ln_f.weight"):
        model.get_parameter(norm).fill_(1)
    model.W_E[:] = torch.stack([A, B, C])
    model.W_V[0, 0, :, 0] = B
    model.W_O[0, 0, 0] = B
    model.W_in[0, :, 0] = B
    model.W_in[0, :, 1] = -B
    model.W_out[0, 0] = C
    model.W_out[0, 1] = A
    model.W_U[:] = torch.stack([A, B, C], dim=1) * 5 / 4
    return model


AB = torch.tensor([[0, 1]])


def check(value, expected):
    if not isinstance(expected, torch.Tensor):
        expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(value, expected.double(), rtol=0, atol=1e-9)


def test_every_activation(model):
    logits, cache = model.run_with_cache(AB, names_filter=lambda name: True, remove_batch_dim=True)
    check(cache["resid_pre", 0], torch.stack([A, B]))
    check(cache["scale", 0, "ln1"], [[1], [1]])
    check(cache["normalized", 0, "ln1"], torch.stack([A, B]))
    check(cache["v", 0], [[[0, 0], [0, 0]], [[4, 0], [0, 0]]])
    check(cache["attn_scores", 0], [[[0, -torch.inf], [0, 0]]] * 2)
    check(cache["pattern", 0], [[[1, 0], [0.5, 0.5]]] * 2)
    check(cache["z", 0], [[[0, 0], [0, 0]], [[2, 0], [0, 0]]])
    check(cache["result", 0], torch.stack([ZERO, ZERO, 2 * B, ZERO]).view(2, 2, 4))
    check(cache["attn_out", 0], torch.stack([ZERO, 2 * B]))
    check(cache["resid_mid", 0], torch.stack([A, 3 * B]))
    check(cache["scale", 0, "ln2"], [[1], [3]])
    check(cache["normalized", 0, "ln2"], torch.stack([A, B]))
    check(cache["pre", 0], [[0, 0], [4, -4]])
    check(cache["post", 0], [[0, 0], [4, 0]])
    check(cache["mlp_out", 0], torch.stack([ZERO, 4 * C]))
    check(cache["resid_post", 0], torch.stack([A, 3 * B + 4 * C]))
    check(cache["ln_final.hook_scale"], [[1], [5]])
    check(cache["ln_final.hook_normalized"], torch.stack([A, (3 * B + 4 * C) / 5]))
    check(logits, [[[5, 0, 0], [0, 3, 4]]])


def set_to(value, *where):
    def hook(act, hook):
        act[where] = value

    return hook


@pytest.mark.parametrize(
    ("name", "edit", "logits"),
    [
        (("mlp_out", 0), set_to(0), [[5, 0, 0], [0, 5, 0]]),
        (("post", 0), set_to(0, 0, 1, 0), [[5, 0, 0], [0, 5, 0]]),
        (("post", 0), set_to(3, 0, 0, 0), [[1.25 * 4 / 10**0.5, 0, 15 / 10**0.5], [0, 3, 4]]),
        (("resid_mid", 0), set_to(A, 0, 1), [[5, 0, 0], [5, 0, 0]]),
        (("resid_pre", 0), set_to(A, 0, 1), [[5, 0, 0], [5, 0, 0]]),
        (("resid_post", 0), set_to(3 * A - 4 * C, 0, 0), [[3, 0, -4], [0, 3, 4]]),
        (("z", 0), set_to(-4, 0, 1, 0, 0), [[5, 0, 0], [4, -3, 0]]),
        (("pattern", 0), set_to(0, 0, 0, 1, 0), [[5, 0, 0], [0, 3, 4]]),
        (("result", 0), set_to(-6 * B, 0, 1, 1), [[5, 0, 0], [4, -3, 0]]),
        (("scale", None, "ln_final"), lambda act, hook: 2 * act, [[2.5, 0, 0], [0, 1.5, 2]]),
        ("hook_embed", set_to(C, 0, 1), [[5, 0, 0], [0, 0, 5]]),
        ("hook_pos_embed", set_to(A - B, 0, 1), [[5, 0, 0], [5, 0, 0]]),
    ],
)
def test_edits(model, name, edit, logits):
    got = model.run_with_hooks(AB, fwd_hooks=[(name, edit)])
    check(got, [logits])


def test_gradient(model):
    """d(logit c - logit b) at position 1 of the neurons, through the layer norm, by hand.

    With x = 3B + p C the logits are 15/sqrt(9 + p^2) and 5p/sqrt(9 + p^2); at p = 4 the slope of
    their difference is (5 * 9 + 15 * 4) / 125 = 21/25.
    """
    _, cache = model.run_with_cache(
        AB, incl_bwd=lambda logits: logits[0, 1, 2] - logits[0, 1, 1], remove_batch_dim=True
    )
    gradient = cache["blocks.0.mlp.hook_post_grad"]
    check(gradient[1, 0], 21 / 25)
    check(gradient[0], [0, 0])
