"""The config: what it derives, what it refuses, and that activations are the reference's."""

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config
from transformers.activations import ACT2FN

from interp.activations import ACTIVATIONS
from interp.config import HookedGPT2Config, UnsupportedModelError

SMALL: dict[str, Any] = {"n_layers": 2, "d_model": 12, "n_heads": 3}


def make(**changes) -> HookedGPT2Config:
    return HookedGPT2Config(**(SMALL | changes))


def test_derives_what_is_left_out():
    cfg = make()
    assert (cfg.d_head, cfg.d_mlp, cfg.n_ctx, cfg.d_vocab) == (4, 48, 1024, 50257)
    assert (cfg.act_fn, cfg.eps, cfg.tie_word_embeddings) == ("gelu_new", 1e-5, True)


def test_transformer_lens_names():
    cfg = make()
    assert (cfg.use_attn_scale, cfg.attn_scale) == (True, 2.0)
    assert make(scale_attn_weights=False).attn_scale == 1.0
    assert cfg.d_vocab_out == cfg.d_vocab
    assert (cfg.normalization_type, cfg.positional_embedding_type) == ("LN", "standard")


def test_is_frozen_and_hashable():
    cfg = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.n_layers = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(cfg) == hash(make())


def test_to_dict_builds_the_same_config():
    cfg = make(eos_token_id=(1, 2), d_mlp=7)
    assert HookedGPT2Config(**cfg.to_dict()) == cfg


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_layers": 0}, ValueError, "n_layers must be at least 1, got 0"),
        ({"d_model": -4}, ValueError, "d_model must be at least 1, got -4"),
        ({"d_vocab": 0}, ValueError, "d_vocab must be at least 1"),
        ({"n_ctx": -1}, ValueError, "n_ctx must be at least 1"),
        ({"d_mlp": 0}, ValueError, "d_mlp must be at least 1"),
        ({"n_heads": 5}, ValueError, "divisible by n_heads, got d_model=12, n_heads=5"),
        ({"d_head": 5}, ValueError, r"d_model / n_heads = 12 / 3 = 4 in GPT-2, got 5"),
        ({"act_fn": "geluu_new"}, ValueError, "'geluu_new'.*Did you mean 'gelu_new'"),
        ({"act_fn": "GELU"}, ValueError, "'GELU'.*Did you mean 'gelu'"),
        ({"act_fn": "solu_ln"}, ValueError, "Unknown act_fn 'solu_ln'.*Known: gelu, "),
        ({"eps": -1e-5}, ValueError, "eps must be finite and not negative, got -1e-05"),
        ({"eps": math.nan}, ValueError, "eps must be finite"),
        ({"initializer_range": math.inf}, ValueError, "initializer_range must be finite"),
        ({"bos_token_id": -1}, ValueError, "bos_token_id must be a token id"),
        ({"eos_token_id": (1, -2)}, ValueError, "eos_token_id must be a token id"),
        ({"d_hidden": 3}, TypeError, "d_hidden"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 2.0},
        {"n_layers": True},
        {"n_heads": "3"},
        {"act_fn": None},
        {"eps": "small"},
        {"tie_word_embeddings": "yes"},
        {"scale_attn_weights": 1},
        {"bos_token_id": "<|endoftext|>"},
    ],
)
def test_refuses_values_of_the_wrong_type(changes):
    with pytest.raises((TypeError, ValueError)):
        make(**changes)


def test_wrong_types_are_explained():
    # In a process of its own, as here the annotations' checks would answer first.
    code = """
from interp.config import HookedGPT2Config
for changes in ({"n_layers": 2.0}, {"n_heads": True}, {"act_fn": None}, {"eps": "x"},
                {"reorder_and_upcast_attn": 1}, {"bos_token_id": "a"}):
    try:
        HookedGPT2Config(**({"n_layers": 2, "d_model": 12, "n_heads": 3} | changes))
    except (TypeError, ValueError) as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "n_layers must be an int, got 2.0 (float)",
        "n_heads must be an int, got True (bool)",
        "act_fn must be a name, got None (NoneType)",
        "eps must be a number, got 'x' (str)",
        "reorder_and_upcast_attn must be True or False, got 1 (int)",
        "bos_token_id must be a token id (an int >= 0) or None, got 'a' (str)",
    ]


# ---------------------------------------------------------------- Hugging Face configs

VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_inner": 100},
    {"activation_function": "relu", "layer_norm_epsilon": 1e-3},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"scale_attn_weights": False, "tie_word_embeddings": False},
    {"bos_token_id": 5, "eos_token_id": [6, 7], "initializer_range": 0.1},
    {"bos_token_id": None, "eos_token_id": None},
]
SIZES: dict[str, Any] = {
    "n_layer": 3,
    "n_embd": 24,
    "n_head": 4,
    "n_positions": 32,
    "vocab_size": 50300,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_config_objects_and_files_alike(variant, tmp_path):
    hf = GPT2Config(**SIZES, **variant)
    hf.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    cfg = HookedGPT2Config.from_hf(hf)
    assert cfg == HookedGPT2Config.from_hf(stored)
    assert cfg == HookedGPT2Config.from_hf(hf.to_dict())
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head) == (3, 24, 4, 6)
    assert (cfg.n_ctx, cfg.d_vocab, cfg.d_mlp) == (32, 50300, hf.n_inner or 96)
    assert (cfg.act_fn, cfg.eps) == (hf.activation_function, hf.layer_norm_epsilon)
    for name in (
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "scale_attn_weights",
        "tie_word_embeddings",
        "initializer_range",
        "bos_token_id",
    ):
        assert getattr(cfg, name) == getattr(hf, name), name
    assert cfg.eos_token_id == ((6, 7) if isinstance(hf.eos_token_id, list) else hf.eos_token_id)


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_hf_is_read_back_by_both(variant):
    cfg = HookedGPT2Config.from_hf(GPT2Config(**SIZES, **variant))
    written = json.loads(json.dumps(cfg.to_hf()))
    assert HookedGPT2Config.from_hf(written) == cfg
    assert HookedGPT2Config.from_hf(GPT2Config.from_dict(written)) == cfg


def test_an_empty_gpt2_config_is_gpt2_small():
    cfg = HookedGPT2Config.from_hf({"model_type": "gpt2"})
    default = HookedGPT2Config.from_hf(GPT2Config())
    assert cfg == default
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head) == (12, 768, 12, 64)


def test_aliases_of_hugging_face_keys():
    cfg = HookedGPT2Config.from_hf(
        {
            "model_type": "gpt2",
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        }
    )
    assert (cfg.d_model, cfg.n_layers, cfg.n_heads, cfg.n_ctx) == (24, 3, 4, 32)
    with pytest.raises(ValueError, match=r"n_embd=24 and hidden_size=36"):
        HookedGPT2Config.from_hf({"model_type": "gpt2", "n_embd": 24, "hidden_size": 36})


def test_old_configs_have_no_model_type():
    # As published with GPT-2 in 2019.
    cfg = HookedGPT2Config.from_hf({"n_embd": 24, "n_layer": 3, "n_head": 4, "n_ctx": 1024})
    assert cfg.d_model == 24


def test_model_name():
    assert HookedGPT2Config.from_hf({"model_type": "gpt2"}, model_name="mine").model_name == "mine"
    named = HookedGPT2Config.from_hf({"model_type": "gpt2", "_name_or_path": "distilgpt2"})
    assert named.model_name == "distilgpt2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("quantization_config", {"bits": 4}),
        ("pruned_heads", {"0": [1]}),
        ("activation_function", "prelu"),
        ("activation_function", "xielu"),
        ("model_type", "llama"),
        ("model_type", "gpt_neo"),
    ],
)
def test_refuses_by_name_what_cannot_be_honoured(key, value):
    with pytest.raises(UnsupportedModelError, match=f"config.{key}"):
        HookedGPT2Config.from_hf({"model_type": "gpt2", **SIZES, key: value})


@pytest.mark.parametrize("act_fn", sorted(set(ACT2FN) - set(ACTIVATIONS)))
def test_refuses_activations_with_parameters(act_fn):
    with pytest.raises(UnsupportedModelError, match=act_fn):
        HookedGPT2Config.from_hf({"model_type": "gpt2", "activation_function": act_fn})


def test_refuses_what_is_no_config():
    with pytest.raises(UnsupportedModelError, match=r"neither model_type nor .* keys: bits"):
        HookedGPT2Config.from_hf({"bits": 4})
    with pytest.raises(UnsupportedModelError, match="keys: none"):
        HookedGPT2Config.from_hf({})
    with pytest.raises(TypeError, match=r"config\.json, got 'gpt2' \(str\)"):
        HookedGPT2Config.from_hf("gpt2")


def test_says_which_config_is_wrong():
    with pytest.raises(ValueError, match=r"divisible .* \(from Hugging Face config 'odd'\)"):
        HookedGPT2Config.from_hf({"model_type": "gpt2", "n_head": 7}, model_name="odd")
    with pytest.raises(ValueError, match=r"Unknown act_fn 'swiglu'"):
        HookedGPT2Config.from_hf({"model_type": "gpt2", "activation_function": "swiglu"})


def test_leaves_the_config_alone():
    given_config = {"model_type": "gpt2", "hidden_size": 24, "n_head": 4}
    HookedGPT2Config.from_hf(given_config)
    assert given_config == {"model_type": "gpt2", "hidden_size": 24, "n_head": 4}


@given(
    n_heads=st.integers(1, 16),
    d_head=st.integers(1, 64),
    n_layers=st.integers(1, 48),
    n_inner=st.none() | st.integers(1, 999),
)
def test_any_shape_survives_the_way_there_and_back(n_heads, d_head, n_layers, n_inner):
    given_mlp: dict[str, Any] = {} if n_inner is None else {"d_mlp": n_inner}
    cfg = HookedGPT2Config(
        n_layers=n_layers, d_model=n_heads * d_head, n_heads=n_heads, d_head=d_head, **given_mlp
    )
    again = HookedGPT2Config.from_hf(cfg.to_hf(), model_name=cfg.model_name)
    assert again == cfg
    assert again.d_head == d_head


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_the_reference(name):
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -0.0, 1e-8, -1e-8, 300.0])])
    x = x.double().requires_grad_()
    ours, reference = ACTIVATIONS[name](x), ACT2FN[name](x)
    torch.testing.assert_close(ours, reference, rtol=1e-13, atol=1e-14)
    # A square root has no slope at 0, which softplus reaches for very negative numbers.
    if name != "sqrtsoftplus":
        (ours_grad,) = torch.autograd.grad(ours.sum(), x)
        (reference_grad,) = torch.autograd.grad(reference.sum(), x)
        torch.testing.assert_close(ours_grad, reference_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_keeps_shape_and_dtype(name, dtype):
    x = torch.randn(2, 3, 5).to(dtype)
    y = ACTIVATIONS[name](x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.isfinite(y).all()


def test_every_activation_of_the_reference_is_known_or_refused_by_name():
    assert set(ACT2FN) - set(ACTIVATIONS) == {"prelu", "xielu"}
    assert set(ACTIVATIONS) <= set(ACT2FN)
