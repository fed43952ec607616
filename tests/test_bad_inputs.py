"""Bad input: an error that names the thing and what was expected, and a model left as it was."""

import re
from dataclasses import replace

import pytest
import torch

from interp import HookedGPT2, HookedGPT2Config, KeyValueCache

CFG = HookedGPT2Config(n_layers=2, d_model=12, n_heads=3, n_ctx=8, d_vocab=19)
TOKENS = torch.arange(10).view(2, 5)
RESIDUAL = torch.zeros(2, 5, 12)


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return HookedGPT2.from_config(CFG)


def nothing(act, hook):
    pass


def kv(batch=2, capacity=None, dtype=torch.float32):
    return KeyValueCache.init_cache(CFG, "cpu", batch, dtype=dtype, capacity=capacity)


BAD = {
    "too long": (
        lambda m: m(torch.zeros(1, 9, dtype=torch.long)),
        ValueError,
        "9 tokens.*n_ctx = 8",
    ),
    "id too high": (lambda m: m(TOKENS + 15), IndexError, "token id 24.*d_vocab = 19, ids 0 to 18"),
    "id negative": (lambda m: m(TOKENS - 1), IndexError, "token id -1 is out of range"),
    "no tokens": (lambda m: m(TOKENS[:, :0]), ValueError, r"no tokens.*\(2, 0\)"),
    "no prompts": (lambda m: m(TOKENS[:0]), ValueError, r"no tokens.*\(0, 5\)"),
    "float tokens": (lambda m: m(TOKENS.float()), TypeError, "whole numbers, not torch.float32"),
    "bool tokens": (lambda m: m(TOKENS > 3), TypeError, "whole numbers, not torch.bool"),
    "3-D tokens": (
        lambda m: m(TOKENS[None]),
        ValueError,
        r"batch pos, or pos, not of shape \(1, 2, 5\)",
    ),
    "text without tokenizer": (lambda m: m("hello"), ValueError, "no tokenizer: pass token ids"),
    "return type": (
        lambda m: m(TOKENS, "logit"),
        ValueError,
        "'logits', 'loss', 'both' or None, not 'logit'",
    ),
    "loss of one token": (lambda m: m(TOKENS[:, :1], "loss"), ValueError, "at least two tokens"),
    "loss per token of logits": (
        lambda m: m(TOKENS, loss_per_token=True),
        ValueError,
        "needs return_type",
    ),
    "loss when stopping": (
        lambda m: m(TOKENS, "loss", stop_at_layer=1),
        ValueError,
        "ends earlier",
    ),
    "loss of a residual": (
        lambda m: m(RESIDUAL, "loss", start_at_layer=1),
        ValueError,
        "needs tokens",
    ),
    "stop too high": (
        lambda m: m(TOKENS, stop_at_layer=3),
        IndexError,
        "stop_at_layer=3.*2 layers.*0 to 2",
    ),
    "start too low": (lambda m: m(RESIDUAL, start_at_layer=-3), IndexError, "start_at_layer=-3"),
    "start no number": (
        lambda m: m(RESIDUAL, start_at_layer="1"),
        TypeError,
        "whole number, not '1'",
    ),
    "start with tokens": (
        lambda m: m(TOKENS, start_at_layer=1),
        ValueError,
        "takes a residual batch pos d_model",
    ),
    "residual width": (
        lambda m: m(RESIDUAL[..., :5], start_at_layer=1),
        ValueError,
        "d_model = 12, not 5",
    ),
    "residual dtype": (
        lambda m: m(RESIDUAL.double(), start_at_layer=1),
        ValueError,
        "float64.*float32",
    ),
    "mask shape": (
        lambda m: m(TOKENS, attention_mask=torch.ones(2, 4)),
        ValueError,
        r"shape \(2, 4\).*\(2, 5\)",
    ),
    "mask values": (
        lambda m: m(TOKENS, attention_mask=TOKENS),
        ValueError,
        "other values than 0 and 1",
    ),
    "mask of nothing": (
        lambda m: m(TOKENS, attention_mask=TOKENS.clamp(max=0)),
        ValueError,
        "without any token",
    ),
    "unknown keyword": (
        lambda m: m.run_with_cache(TOKENS, atention_mask=TOKENS),
        TypeError,
        "unknown keyword 'atention_mask'. Did you mean 'attention_mask'",
    ),
    "unknown keyword with hooks": (
        lambda m: m.run_with_hooks(TOKENS, stop_layer=1),
        TypeError,
        "Did you mean 'stop_at_layer'",
    ),
    "misspelt hook": (
        lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_resid_prev", nothing)]),
        KeyError,
        "Did you mean 'blocks.0.hook_resid_pre'",
    ),
    "misspelt in a list": (
        lambda m: m.run_with_cache(TOKENS, names_filter=["hook_embed", "hook_emb"]),
        KeyError,
        "Did you mean 'hook_embed'",
    ),
    "layer of a hook": (
        lambda m: m.run_with_cache(TOKENS, names_filter=("pattern", 2)),
        KeyError,
        "layer 2.*there are 2 layers, 0 to 1",
    ),
    "a point the run does not pass": (
        lambda m: m.run_with_cache(TOKENS, names_filter=("pattern", 1), stop_at_layer=1),
        KeyError,
        "does not pass.*layers 0 to 0",
    ),
    "one of several not passed": (
        lambda m: m.run_with_cache(
            TOKENS, names_filter=["hook_embed", "ln_final.hook_scale"], stop_at_layer=1
        ),
        KeyError,
        "does not pass 'ln_final.hook_scale'",
    ),
    "hook not callable": (
        lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", 3)]),
        ValueError,
        "no function but int",
    ),
    "hook of one argument": (
        lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda act: act)]),
        ValueError,
        "cannot be called as fn",
    ),
    "hooks not in pairs": (
        lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[nothing]),
        TypeError,
        "fwd_hooks takes pairs",
    ),
    "add_hook misspelt": (lambda m: m.add_hook("hook_embde", nothing), KeyError, "'hook_embed'"),
    "add_hook direction": (
        lambda m: m.add_hook("hook_embed", nothing, "forward"),
        ValueError,
        "'fwd' or 'bwd', not 'forward'",
    ),
    "gradient of many numbers": (
        lambda m: m.run_with_cache(TOKENS, incl_bwd=True),
        ValueError,
        r"one number, this is \(2, 5, 19\): use return_type='loss'",
    ),
    "gradient of no tensor": (
        lambda m: m.run_with_cache(TOKENS, incl_bwd=lambda logits: 3.0),
        ValueError,
        "one number, this is float",
    ),
    "head layer norm twice": (
        lambda m: m.run_with_hooks(
            TOKENS,
            fwd_hooks=[(("q_input", 0), nothing), (("normalized", 0, "ln1"), nothing)],
        ),
        ValueError,
        "the one or the other",
    ),
    "cache of other batch": (lambda m: m(TOKENS, past_kv_cache=kv(3)), ValueError, "3 prompts.*2"),
    "cache full": (lambda m: m(TOKENS, past_kv_cache=kv(2, 4)), ValueError, "room for 4.*5 more"),
    "cache dtype": (
        lambda m: m(TOKENS, past_kv_cache=kv(dtype=torch.float64)),
        ValueError,
        "float64.*float32",
    ),
    "cache of another model": (
        lambda m: m(
            TOKENS, past_kv_cache=KeyValueCache.init_cache(replace(CFG, n_layers=1), "cpu", 2)
        ),
        ValueError,
        "1 layers of 3 heads of 4, this one has 2 layers",
    ),
    "cache and part of the layers": (
        lambda m: m(TOKENS, past_kv_cache=kv(), stop_at_layer=1),
        ValueError,
        "cannot go with start_at_layer or stop_at_layer",
    ),
    "mask as a list": (
        lambda m: m(TOKENS, attention_mask=[[1] * 5] * 2),
        TypeError,
        "attention_mask is a tensor",
    ),
    "padding side of tokens": (
        lambda m: m(TOKENS, padding_side="left"),
        ValueError,
        "padding_side goes with text",
    ),
    "padding side misspelt": (
        lambda m: m(TOKENS, padding_side="lefft"),
        ValueError,
        "'left' or 'right', not 'lefft'",
    ),
    "ids in a list": (lambda m: m([1, 2, 3]), TypeError, "token ids in a tensor"),
    "pairs the other way round": (
        lambda m: m.run_with_hooks(TOKENS, fwd_hooks=[(nothing, "hook_embed")]),
        TypeError,
        "the other way round",
    ),
    "a transformers config": (
        lambda m: HookedGPT2.from_config({"n_layer": 2}),
        TypeError,
        "HookedGPT2Config.from_hf",
    ),
    "positions of no kind": (
        lambda m: m.run_with_cache(TOKENS, pos_slice=[0.5]),
        TypeError,
        "whole number, a slice",
    ),
    "no positions": (
        lambda m: m.run_with_cache(TOKENS, pos_slice=[]),
        IndexError,
        "picks nothing of 5",
    ),
    "mask of positions too short": (
        lambda m: m.run_with_cache(TOKENS, pos_slice=torch.tensor([True, False])),
        IndexError,
        "a mask of 2 does not fit 'pos'",
    ),
    "gradients in inference mode": (
        lambda m: torch.inference_mode()(m.run_with_cache)(TOKENS, "loss", incl_bwd=True),
        ValueError,
        "torch.inference_mode",
    ),
    "backward hook without gradients": (
        lambda m: torch.no_grad()(m.run_with_hooks)(TOKENS, bwd_hooks=[("hook_embed", nothing)]),
        ValueError,
        "needs gradients, but they are switched off",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(model, case):
    call, kind, told = BAD[case]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(TOKENS)
    with pytest.raises(kind) as error:
        call(model)
    assert re.search(told, str(error.value), re.S), str(error.value)
    assert not any(p.fwd_hooks or p.bwd_hooks for p in model.hook_dict.values())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert model(TOKENS).equal(plain)
