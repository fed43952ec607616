"""Parameters from every layout and file, and every way these can be wrong."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from interp import storage, weights
from interp.config import HookedGPT2Config
from interp.weights import SourceError, WeightsError

SIZES: dict[str, Any] = {
    "n_layer": 3,
    "n_embd": 12,
    "n_head": 3,
    "n_inner": 20,
    "n_positions": 16,
    "vocab_size": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, reference_model):
    return reference_model({**SIZES, "tie_word_embeddings": request.param})


@pytest.fixture(scope="module")
def tied(reference_model):
    return reference_model(SIZES)


def config_of(model) -> HookedGPT2Config:
    return HookedGPT2Config.from_hf(model.config)


def plain(model) -> dict[str, torch.Tensor]:
    """The state dict, without a copy of a tied unembedding."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def linear(model, *, bias=True) -> dict[str, torch.Tensor]:
    """The same weights as minGPT and nanoGPT name and store them."""
    return {
        key: value.T.contiguous() if key.endswith(MATRICES) else value
        for key, value in plain(model).items()
        if bias or not key.endswith("bias")
    }


def assert_is(parameters, model, dtype=torch.float32, *, biases=True):
    state = model.state_dict()
    cfg = config_of(model)
    names = list(weights.parameter_shapes(cfg))
    assert list(parameters) == names
    for name in names:
        if name in ("wte", "wpe"):
            expected = state[f"transformer.{name}.weight"]
        elif name.startswith("ln_f"):
            expected = state[f"transformer.{name}"]
        elif name.startswith("lm_head"):
            expected = state[name]
        else:
            layers = range(cfg.n_layers)
            expected = torch.stack([state[f"transformer.h.{layer}.{name}"] for layer in layers])
        if name.endswith("bias") and not biases:
            expected = torch.zeros_like(expected)
        assert torch.equal(parameters[name], expected.to(dtype)), name
        assert parameters[name].dtype == dtype
        assert parameters[name].is_contiguous()


# ---------------------------------------------------------------- shapes and fresh weights


def test_shapes():
    cfg = HookedGPT2Config(n_layers=2, d_model=6, n_heads=3, d_mlp=5, n_ctx=7, d_vocab=11)
    assert weights.parameter_shapes(cfg) == {
        "wte": (11, 6),
        "wpe": (7, 6),
        "ln_1.weight": (2, 6),
        "ln_1.bias": (2, 6),
        "attn.c_attn.weight": (2, 6, 18),
        "attn.c_attn.bias": (2, 18),
        "attn.c_proj.weight": (2, 6, 6),
        "attn.c_proj.bias": (2, 6),
        "ln_2.weight": (2, 6),
        "ln_2.bias": (2, 6),
        "mlp.c_fc.weight": (2, 6, 5),
        "mlp.c_fc.bias": (2, 5),
        "mlp.c_proj.weight": (2, 5, 6),
        "mlp.c_proj.bias": (2, 6),
        "ln_f.weight": (6,),
        "ln_f.bias": (6,),
    }
    added = weights.parameter_shapes(cfg, tied=False, unembed_bias=True)
    assert {name: added[name] for name in list(added)[-2:]} == {
        "lm_head.weight": (11, 6),
        "lm_head.bias": (11,),
    }
    untied = replace(cfg, tie_word_embeddings=False)
    assert "lm_head.weight" in weights.parameter_shapes(untied)
    assert "lm_head.weight" not in weights.parameter_shapes(untied, tied=True)


@pytest.mark.parametrize("sizes", [{}, {"d_vocab": 50257, "d_model": 96}], ids=["few", "many"])
@pytest.mark.parametrize("dtype", weights.DTYPES)
def test_allocate(sizes, dtype):
    # The second is large enough for huge pages.
    cfg = HookedGPT2Config(**({"n_layers": 2, "d_model": 6, "n_heads": 3, "d_vocab": 11} | sizes))
    parameters = weights.allocate(cfg, dtype=dtype, unembed_bias=True)
    shapes = weights.parameter_shapes(cfg, unembed_bias=True)
    assert {name: tuple(value.shape) for name, value in parameters.items()} == shapes
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in parameters.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for value in parameters.values():
        assert (value.dtype, value.is_contiguous()) == (weights.DTYPES[dtype], True)
        assert value.untyped_storage().nbytes() == value.nbytes
        assert value.data_ptr() % 16 == 0
        value.fill_(1.0)


def test_memory_lives_as_long_as_any_parameter():
    cfg = HookedGPT2Config(n_layers=1, d_model=96, n_heads=3, d_vocab=50257)
    parameters = weights.allocate(cfg)
    last = parameters["ln_f.bias"].fill_(3.0)
    del parameters
    # Were the memory given back, these would land in it.
    others = [torch.zeros(1_000_000) for _ in range(20)]
    assert (last == 3.0).all()
    assert len(others) == 20


def test_initialise_is_gpt2s():
    cfg = HookedGPT2Config(n_layers=8, d_model=64, n_heads=4, n_ctx=64, d_vocab=500)
    parameters = weights.allocate(cfg, tied=False, unembed_bias=True)
    weights.initialise(parameters, cfg, seed=1)
    for name, value in parameters.items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif name.startswith("ln_"):
            assert (value == 1).all(), name
        else:
            std = 0.02 / (16**0.5 if name.endswith("c_proj.weight") else 1)
            assert value.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(value.mean().item()) < std / 20, name
    assert not torch.equal(parameters["wte"], parameters["lm_head.weight"])
    layers = parameters["mlp.c_fc.weight"]
    assert not torch.equal(layers[0], layers[1])


def test_initialise_depends_on_the_seed_alone():
    cfg = HookedGPT2Config(n_layers=1, d_model=8, n_heads=2, n_ctx=4, d_vocab=10)

    def fresh(seed, dtype="float32"):
        parameters = weights.allocate(cfg, dtype=dtype)
        weights.initialise(parameters, cfg, seed)
        return parameters

    before = torch.random.get_rng_state()
    first = fresh(3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    for name, value in fresh(3).items():
        assert torch.equal(value, first[name])
    for name, value in fresh(3, "bfloat16").items():
        assert torch.equal(value, first[name].bfloat16())
    assert not torch.equal(fresh(4)["wte"], first["wte"])


# ---------------------------------------------------------------- dtype and device


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (None, torch.float32),
        ("bfloat16", torch.bfloat16),
        ("torch.float64", torch.float64),
        (torch.float16, torch.float16),
    ],
)
def test_dtype(given_dtype, dtype):
    assert weights.parse_dtype(given_dtype) is dtype


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("flaot32", r"got 'flaot32'\. Did you mean 'float32'\?"),
        ("bf16", "float32, bfloat16, float16, float64, got 'bf16'"),
        (torch.int64, r"got torch\.int64"),
        (torch.float8_e5m2, "got torch.float8_e5m2"),
        ("", "got ''"),
    ],
)
def test_refuses_dtype(dtype, message):
    with pytest.raises(ValueError, match=message):
        weights.parse_dtype(dtype)


def test_device():
    assert weights.parse_device("cpu") == torch.device("cpu")
    assert weights.parse_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "Unknown device 'gpu'"),
        ("cdua", "Unknown device 'cdua'.*Did you mean 'cuda'"),
        ("cpu:x", "Unknown device 'cpu:x'"),
        ("meta", "holds no numbers"),
        ("cuda:99", r"device 'cuda:99' is not there: torch finds \d+ CUDA"),
    ],
)
def test_refuses_device(device, message):
    with pytest.raises(ValueError, match=message):
        weights.parse_device(device)


# ---------------------------------------------------------------- state dicts


@pytest.mark.parametrize("layout", [plain, linear])
@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key,
        lambda key: key.removeprefix("transformer."),
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.module.{key}",
    ],
    ids=["transformer", "bare", "compiled", "distributed", "both"],
)
def test_layouts_and_prefixes(model, layout, rename):
    state = {rename(key): value for key, value in layout(model).items()}
    assert_is(weights.from_state_dict(config_of(model), state), model)


def test_square_matrices_follow_the_layout(reference_model):
    # d_mlp = d_model: the shape of c_fc does not tell whether it is transposed, c_attn's does.
    model = reference_model({**SIZES, "n_inner": 12})
    for layout in plain, linear:
        assert_is(weights.from_state_dict(config_of(model), layout(model)), model)


def test_no_bias_as_in_nanogpt(model):
    parameters = weights.from_state_dict(config_of(model), linear(model, bias=False))
    assert_is(parameters, model, biases=False)


def test_own_layout(model):
    cfg = config_of(model)
    first = weights.from_state_dict(cfg, plain(model))
    again = weights.from_state_dict(cfg, first)
    assert_is(again, model)
    assert all(again[name].data_ptr() != first[name].data_ptr() for name in first)


def test_tied_unembedding_may_be_given_too(tied):
    state = tied.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    assert_is(weights.from_state_dict(config_of(tied), state), tied)
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    assert_is(weights.from_state_dict(config_of(tied), state), tied)


def test_tied_unembedding_may_stand_for_the_embedding(tied):
    state = tied.state_dict()
    del state["transformer.wte.weight"]
    assert_is(weights.from_state_dict(config_of(tied), state), tied)


def test_tied_unembedding_must_equal_the_embedding(tied):
    state = {**plain(tied), "lm_head.weight": torch.zeros(40, 12)}
    with pytest.raises(WeightsError, match=r"ties .* lm_head\.weight differs .*wte"):
        weights.from_state_dict(config_of(tied), state)
    untied = replace(config_of(tied), tie_word_embeddings=False)
    assert not weights.from_state_dict(untied, state)["lm_head.weight"].any()


def test_unembedding_bias_is_kept(model):
    bias = torch.randn(40)
    state = {**plain(model), "lm_head.bias": bias}
    parameters = weights.from_state_dict(config_of(model), state)
    assert torch.equal(parameters.pop("lm_head.bias"), bias)
    assert_is(parameters, model)
    without_others = {**linear(model, bias=False), "lm_head.bias": bias}
    parameters = weights.from_state_dict(config_of(model), without_others)
    assert torch.equal(parameters["lm_head.bias"], bias)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_causal_masks_are_no_weights(model, prefix):
    masks = {
        f"{prefix}h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool),
        f"{prefix}h.2.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8),
        f"{prefix}h.1.attn.masked_bias": torch.tensor(-1e4),
    }
    parameters = weights.from_state_dict(config_of(model), {**plain(model), **masks})
    assert_is(parameters, model)
    # Of a layer that is not there, it is a sign of the wrong config.
    masks[f"{prefix}h.3.attn.bias"] = masks[f"{prefix}h.0.attn.bias"]
    with pytest.raises(WeightsError, match=rf"unexpected \(1\): {prefix}h\.3\.attn\.bias"):
        weights.from_state_dict(config_of(model), {**plain(model), **masks})


@pytest.mark.parametrize("dtype", weights.DTYPES)
def test_result_has_the_dtype_asked_for(model, dtype):
    state = {key: value.half() for key, value in plain(model).items()}
    parameters = weights.from_state_dict(config_of(model), state, dtype=dtype)
    for name, value in parameters.items():
        assert value.dtype == weights.DTYPES[dtype], name
    expected = state["transformer.wpe.weight"].to(weights.DTYPES[dtype])
    assert torch.equal(parameters["wpe"], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tied, bad):
    state = {key: value.clone() for key, value in plain(tied).items()}
    state["transformer.h.1.mlp.c_fc.weight"][0, :2] = bad
    with pytest.raises(weights.WeightsError, match=r"2 of the .* 'mlp.c_fc.weight' are NaN or inf"):
        weights.from_state_dict(config_of(tied), state)


def test_weights_too_large_for_the_dtype(tied):
    state = {key: value.clone() for key, value in plain(tied).items()}
    state["transformer.h.0.ln_1.weight"][3] = 1e5
    with pytest.raises(weights.WeightsError, match=r"'ln_1.weight' .* in torch.float16.*too large"):
        weights.from_state_dict(config_of(tied), state, dtype="float16")
    assert weights.from_state_dict(config_of(tied), state)["ln_1.weight"][0, 3] == 1e5


def test_state_dict_is_left_alone(model):
    state = model.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    parameters = weights.from_state_dict(config_of(model), state)
    for value in parameters.values():
        assert not value.requires_grad
        value.fill_(7.0)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in state)


def fails(cfg, state) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.from_state_dict(cfg, state)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_problem_is_in_one_message(tied):
    state = plain(tied)
    state["transformer.h.1.atn.c_attn.bias"] = state.pop("transformer.h.1.attn.c_attn.bias")
    state["transformer.wpe.weight"] = torch.zeros(15, 12)
    state["score.weight"] = torch.zeros(2, 12)
    message = fails(config_of(tied), state)
    assert message.startswith("the state dict does not fit the config: ")
    assert (
        "missing (1): h.1.attn.c_attn.bias. Did you mean 'h.1.atn.c_attn.bias'?; unexpected (2): "
        "transformer.h.1.atn.c_attn.bias. Did you mean 'h.1.attn.c_attn.bias'?, score.weight; "
        "wrong shape (1): transformer.wpe.weight is [15, 12], expected [16, 12]"
    ) in message


def test_long_lists_are_cut_and_counted(tied):
    message = fails(config_of(tied), {"wte.weight": torch.zeros(40, 12)})
    assert "missing (39): wpe.weight, h.0.ln_1.weight" in message
    assert message.endswith("and 33 more")


def test_untied_needs_an_unembedding(tied):
    cfg = replace(config_of(tied), tie_word_embeddings=False)
    assert "missing (1): lm_head.weight" in fails(cfg, plain(tied))


def test_some_biases_are_not_all_or_none(tied):
    state = linear(tied)
    del state["transformer.h.0.attn.c_attn.bias"]
    assert "missing (1): h.0.attn.c_attn.bias" in fails(config_of(tied), state)
    hugging_face = {key: value for key, value in plain(tied).items() if not key.endswith("bias")}
    assert "missing (19)" in fails(config_of(tied), hugging_face)


def test_layers_in_different_layouts(tied):
    state = plain(tied)
    state["transformer.h.1.attn.c_attn.weight"] = state["transformer.h.1.attn.c_attn.weight"].T
    message = fails(config_of(tied), state)
    assert "transformer.h.1.attn.c_attn.weight is [36, 12], expected [12, 36]" in message


def test_the_config_of_another_model(tied):
    message = fails(replace(config_of(tied), n_layers=4), plain(tied))
    assert "missing (12): h.3.ln_1.weight" in message
    message = fails(replace(config_of(tied), n_layers=2), plain(tied))
    assert "unexpected (12): transformer.h.2.ln_1.weight" in message
    message = fails(replace(config_of(tied), d_vocab=41), plain(tied))
    assert "transformer.wte.weight is [40, 12], expected [41, 12]" in message


def test_one_parameter_under_two_names(tied):
    state = plain(tied)
    state["wpe.weight"] = state["transformer.wpe.weight"]
    message = fails(config_of(tied), state)
    assert "'transformer.wpe.weight' and 'wpe.weight' are the same parameter" in message


def test_values_that_are_no_weights(tied):
    cfg, key = config_of(tied), "transformer.wpe.weight"
    state = plain(tied)
    checkpoint = fails(cfg, {"model": state, "step": 3})
    assert "'model' must be a tensor, got dict; pass what lies under 'model' instead" in checkpoint
    assert "'step' must be a tensor, got int" in fails(cfg, {"step": 3})
    assert "keys must be strings, got 3" in fails(cfg, {3: state[key]})
    quantised = fails(cfg, {**state, key: state[key].to(torch.int8)})
    assert f"{key!r} is torch.int8; expected one of float32" in quantised
    eight_bits = fails(cfg, {**state, key: state[key].to(torch.float8_e4m3fn)})
    assert "quantised weights cannot be used" in eight_bits
    assert "on device 'meta'" in fails(cfg, {**state, key: state[key].to("meta")})


def test_an_empty_state_dict(tied):
    assert "missing (40): wte.weight" in fails(config_of(tied), {})


@given(data=st.data())
def test_any_missing_or_renamed_key_is_named(data):
    cfg = HookedGPT2Config(n_layers=2, d_model=4, n_heads=2, n_ctx=3, d_vocab=5)
    state = weights.allocate(cfg)
    weights.initialise(state, cfg)
    wrong = data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=5, unique=True))
    for name in wrong:
        if data.draw(st.booleans()):
            state[f"x{name}"] = state.pop(name)
        else:
            del state[name]
    # Without c_attn.weight it no longer looks like our own layout, and everything is missing.
    if "attn.c_attn.weight" not in wrong:
        message = fails(cfg, state)
        assert f"missing ({len(wrong)})" in message
        assert all(name in message for name in wrong)


# ---------------------------------------------------------------- model objects


def test_model_object(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training, grad = model.training, [p.requires_grad for p in model.parameters()]
    assert weights.is_hf_model(model)
    cfg, parameters = weights.from_hf_model(model)
    assert cfg == config_of(model)
    assert_is(parameters, model)
    for value in parameters.values():
        value.zero_()
    state = model.state_dict()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert (model.training, [p.requires_grad for p in model.parameters()]) == (training, grad)


def test_model_object_in_other_dtypes(reference_model):
    model = reference_model(SIZES, dtype=torch.bfloat16)
    _, parameters = weights.from_hf_model(model)
    assert_is(parameters, model, torch.float32)
    _, parameters = weights.from_hf_model(model, dtype="bfloat16")
    assert_is(parameters, model, torch.bfloat16)


def test_model_object_without_head():
    model = GPT2Model(GPT2Config(**SIZES))
    _, parameters = weights.from_hf_model(model)
    assert torch.equal(parameters["wte"], model.wte.weight)
    untied = GPT2Model(GPT2Config(**SIZES, tie_word_embeddings=False))
    with pytest.raises(WeightsError, match=r"missing \(1\): lm_head.weight"):
        weights.from_hf_model(untied)


def test_model_object_whose_head_was_replaced():
    model = GPT2LMHeadModel(GPT2Config(**SIZES))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 12))
    cfg, parameters = weights.from_hf_model(model)
    assert not cfg.tie_word_embeddings
    assert torch.equal(parameters["lm_head.weight"], model.lm_head.weight)


def test_model_object_with_resized_vocabulary():
    model = GPT2LMHeadModel(GPT2Config(**SIZES))
    model.resize_token_embeddings(48)
    cfg, parameters = weights.from_hf_model(model)
    assert cfg.d_vocab == 48
    assert parameters["wte"].shape == (48, 12)


def test_model_objects_that_are_refused():
    classifier = GPT2ForSequenceClassification(GPT2Config(**SIZES, pad_token_id=0))
    with pytest.raises(WeightsError, match=r"unexpected \(1\): score.weight"):
        weights.from_hf_model(classifier)
    crossed = GPT2LMHeadModel(GPT2Config(**SIZES, add_cross_attention=True))
    with pytest.raises(ValueError, match="add_cross_attention=True cannot be honoured"):
        weights.from_hf_model(crossed)
    with pytest.raises(TypeError, match="expected a transformers GPT-2 model, got Linear"):
        weights.from_hf_model(torch.nn.Linear(2, 2))
    assert not weights.is_hf_model("gpt2")
    assert not weights.is_hf_model(GPT2Config())


def test_model_object_of_another_architecture():
    from transformers import OPTConfig, OPTForCausalLM

    other = OPTForCausalLM(
        OPTConfig(
            vocab_size=20,
            hidden_size=8,
            ffn_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            word_embed_proj_dim=8,
        )
    )
    with pytest.raises(ValueError, match="model_type must be 'gpt2', got 'opt'"):
        weights.from_hf_model(other)


# ---------------------------------------------------------------- folders


def test_safetensors(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert_is(weights.from_folder(tmp_path, config_of(model)), model)
    assert_is(weights.from_folder(str(tmp_path), config_of(model)), model)


def test_sharded_safetensors(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_is(weights.from_folder(tmp_path, config_of(model)), model)


@pytest.mark.parametrize("layout", [plain, linear])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_dtype_to_every_other(tied, layout, stored, dtype, tmp_path):
    state = {key: value.to(stored) for key, value in layout(tied).items()}
    save_file(state, tmp_path / "model.safetensors")
    parameters = weights.from_folder(tmp_path, config_of(tied), dtype=dtype)
    memory = weights.from_state_dict(config_of(tied), state, dtype=dtype)
    for name, value in parameters.items():
        assert torch.equal(value, memory[name]), name
        assert value.dtype == weights.DTYPES[dtype]


def test_mixed_dtypes_in_one_file(tied, tmp_path):
    state = {
        key: value.half() if "mlp" in key else value.double() if "wte" in key else value
        for key, value in plain(tied).items()
    }
    save_file(state, tmp_path / "model.safetensors")
    parameters = weights.from_folder(tmp_path, config_of(tied))
    expected = state["transformer.h.2.mlp.c_fc.weight"].float()
    assert torch.equal(parameters["mlp.c_fc.weight"][2], expected)


def test_causal_masks_in_files(tied, tmp_path):
    # As in gpt2's own file on the Hub, without prefix.
    state = {key.removeprefix("transformer."): value for key, value in plain(tied).items()}
    for layer in range(3):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_is(weights.from_folder(tmp_path, config_of(tied)), tied)


def test_tied_head_in_a_file(tied, tmp_path):
    state = plain(tied)
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    assert_is(weights.from_folder(tmp_path, config_of(tied)), tied)
    state["lm_head.weight"] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: the config ties"):
        weights.from_folder(tmp_path, config_of(tied))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pickled_weights(model, legacy, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert_is(weights.from_folder(tmp_path, config_of(model)), model)


def test_sharded_pickles(tied, tmp_path):
    state = plain(tied)
    halves = list(state)[:9], list(state)[9:]
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, keys in zip(names, halves, strict=True):
        torch.save({key: state[key] for key in keys}, tmp_path / name)
    index = {key: name for name, keys in zip(names, halves, strict=True) for key in keys}
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert_is(weights.from_folder(tmp_path, config_of(tied)), tied)
    torch.save(state, tmp_path / names[1])
    with pytest.raises(WeightsError, match=rf"{names[1]}: '.*' is in an earlier shard too"):
        weights.from_folder(tmp_path, config_of(tied))


def test_safetensors_before_pickles(tied, tmp_path):
    tied.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"nonsense")
    assert_is(weights.from_folder(tmp_path, config_of(tied)), tied)


class _Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran code from a pickle')",))


@pytest.mark.parametrize(
    "write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))]
)
def test_pickles_run_no_code(tied, write, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    write({"wte.weight": _Code()}, path)
    with pytest.raises(WeightsError, match=rf"{path} is damaged, or holds more than weights"):
        weights.from_folder(tmp_path, config_of(tied))


def test_damaged_pickles(tied, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(tied.state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a pickle", whole[:10]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=str(path)):
            weights.from_folder(tmp_path, config_of(tied))
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="must hold a state dict, holds a list"):
        weights.from_folder(tmp_path, config_of(tied))
    torch.save({"model": {}}, path)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: 'model' must be a tensor"):
        weights.from_folder(tmp_path, config_of(tied))


def test_damaged_safetensors(tied, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(plain(tied), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for content in (
        whole[:-1],
        whole[: header + 10],
        whole[: header - 5],
        whole[:8],
        whole[:3],
        b"",
        whole + b"more",
        b"\xff" * 100,
        b"<!DOCTYPE html><html>404</html>",
        whole[:20] + b"\x00" + whole[21:],
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=f"{path} cannot be read as safetensors"):
            weights.from_folder(tmp_path, config_of(tied))


def test_safetensors_cut_short_while_read(tied, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(plain(tied), path)
    with storage.SafetensorsReader([path], "here") as reader:
        path.write_bytes(path.read_bytes()[:-4])
        last = max(reader.shapes, key=lambda key: reader._stored[key].start)
        with pytest.raises(WeightsError, match=f"{path} ends within '{last}': it was cut short"):
            reader.tensor(last)


def test_a_pointer_instead_of_weights(tied, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n")
    with pytest.raises(WeightsError, match=f"{path} cannot be read as safetensors"):
        weights.from_folder(tmp_path, config_of(tied))


def test_quantised_safetensors(tied, tmp_path):
    state = plain(tied)
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"].to(torch.int8)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"'transformer\.wpe\.weight' is stored as I8"):
        weights.from_folder(tmp_path, config_of(tied))


def test_mismatched_safetensors(tied, tmp_path):
    path = tmp_path / "model.safetensors"
    state = plain(tied)
    del state["transformer.ln_f.bias"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=f"{path} does not fit the config: missing .*ln_f.bias"):
        weights.from_folder(tmp_path, config_of(tied))
    wider = replace(config_of(tied), d_mlp=21)
    with pytest.raises(WeightsError, match=r"h\.0\.mlp\.c_fc\.weight is \[12, 20\], expected"):
        weights.from_folder(tmp_path, wider)


def test_shards(tied, tmp_path):
    tied.save_pretrained(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    written = index.read_text()

    shards[1].rename(tmp_path / "aside")
    with pytest.raises(SourceError, match=rf"lacks {shards[1].name}, named in {index.name}"):
        weights.from_folder(tmp_path, config_of(tied))
    (tmp_path / "aside").rename(shards[1])

    shards[1].rename(tmp_path / "aside")
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(WeightsError, match=rf"{shards[1]}: '.*' is also in {shards[0].name}"):
        weights.from_folder(tmp_path, config_of(tied))
    (tmp_path / "aside").rename(shards[1])

    for content, message in [
        ("{", f"{index} is not JSON"),
        ("[]", f"{index} must hold a JSON object, holds a list"),
        ("{}", "must name files beside it, names none"),
        ('{"weight_map": []}', "must name files beside it, names none"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', r"names \['../secret.safetensors'\]"),
        ('{"weight_map": {"a": 3}}', r"names \[3\]"),
    ]:
        index.write_text(content)
        with pytest.raises(SourceError, match=message):
            weights.from_folder(tmp_path, config_of(tied))
    index.write_text(written)
    assert_is(weights.from_folder(tmp_path, config_of(tied)), tied)


def test_folders_without_weights(tied, tmp_path):
    with pytest.raises(SourceError, match=r"has no weights: expected model.* found nothing"):
        weights.from_folder(tmp_path, config_of(tied))
    (tmp_path / "flax_model.msgpack").touch()
    with pytest.raises(SourceError, match=r"found flax_model\.msgpack"):
        weights.from_folder(tmp_path, config_of(tied))
    with pytest.raises(SourceError, match="no such folder"):
        weights.from_folder(tmp_path / "nowhere", config_of(tied))


def test_files_are_closed(tied, tmp_path):
    tied.save_pretrained(tmp_path)
    with storage.SafetensorsReader([tmp_path / "model.safetensors"], "here") as reader:
        file = next(iter(reader._stored.values())).file
        assert not file.closed
    assert file.closed


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_weights_are_held_once(tmp_path):
    """Loading grows the process by the weights, and at its peak by little more."""
    cfg = HookedGPT2Config(n_layers=6, d_model=512, n_heads=8, n_ctx=64, d_vocab=5000)
    parameters = weights.allocate(cfg)
    weights.initialise(parameters, cfg)
    state = {
        f"h.{layer}.{name}": value[layer].clone()
        for name, value in parameters.items()
        if name.startswith(("ln_1", "ln_2", "attn", "mlp"))
        for layer in range(cfg.n_layers)
    }
    state |= {f"{name}.weight": parameters[name] for name in ("wte", "wpe")}
    state |= {name: parameters[name] for name in ("ln_f.weight", "ln_f.bias")}
    save_file(state, tmp_path / "model.safetensors")
    size = sum(value.nbytes for value in parameters.values())
    code = f"""
from interp import weights
from interp.config import HookedGPT2Config
def peak():  # in KiB, of this process alone; getrusage starts from the parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
cfg = HookedGPT2Config(n_layers=6, d_model=512, n_heads=8, n_ctx=64, d_vocab=5000)
small = HookedGPT2Config(n_layers=1, d_model=8, n_heads=1, n_ctx=1, d_vocab=1)
weights.initialise(weights.allocate(small), small)
import safetensors.torch
before = peak()
parameters = weights.from_folder({str(tmp_path)!r}, cfg)
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert size > 80 * 2**20
    assert 0.9 * size < int(run.stdout) * 1024 < 1.2 * size


def test_loading_imports_no_transformers(tied, tmp_path):
    tied.save_pretrained(tmp_path)
    code = f"""
import sys
from interp import weights
weights.load({str(tmp_path)!r})
print([m for m in ("transformers", "huggingface_hub", "pandas") if m in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.cuda
def test_on_cuda(model, tmp_path):
    model.save_pretrained(tmp_path)
    for parameters in (
        weights.from_folder(tmp_path, config_of(model), device="cuda"),
        weights.from_state_dict(config_of(model), plain(model), device="cuda"),
        weights.from_state_dict(config_of(model), linear(model), device="cuda:0"),
    ):
        assert {value.device.type for value in parameters.values()} == {"cuda"}
        assert_is({name: value.cpu() for name, value in parameters.items()}, model)
