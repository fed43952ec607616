"""The micro model of `_micro.py`: every number below was computed on paper."""

import pytest
import torch
from _micro import AB, ZERO, A, B, C, micro_model

from interp import HookedGPT2


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return micro_model()


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
