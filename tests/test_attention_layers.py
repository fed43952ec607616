"""Attention weights alone: from tensors, state dicts, files; and how these can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from interp import AttentionLayers, HookedGPT2
from interp.storage import WeightsError

SIZES = {"n_layer": 2, "n_embd": 12, "n_head": 3, "vocab_size": 20, "n_positions": 16}
NAMES = ("W_Q", "W_K", "W_V", "W_O")


@pytest.fixture(scope="module")
def model(reference_model) -> HookedGPT2:
    return HookedGPT2.from_pretrained(reference_model(SIZES))


@pytest.fixture
def state(reference_model) -> dict[str, Tensor]:
    """Nothing but the attention weights, as `transformers` names them."""
    found = reference_model(SIZES).state_dict()
    return {k: v.clone() for k, v in found.items() if ".attn.c_" in k and "bias" not in k}


def same(found: AttentionLayers, model: HookedGPT2) -> bool:
    return all(torch.equal(getattr(found, name), getattr(model, name)) for name in NAMES)


def linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.T.contiguous() for k, v in state.items()}


def stacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"attn.{what}.weight": torch.stack(
            [state[f"transformer.h.{i}.attn.{what}.weight"] for i in range(2)]
        )
        for what in ("c_attn", "c_proj")
    }


def short(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("transformer."): v for k, v in state.items()}


@pytest.mark.parametrize("layout", [dict, linear, stacked, short], ids=lambda f: f.__name__)
def test_every_layout(model, state, layout) -> None:
    given = layout(state)
    before = {k: v.clone() for k, v in given.items()}
    found = AttentionLayers.from_state_dict(given, 3)
    assert same(found, model)
    assert all(torch.equal(given[k], v) for k, v in before.items())
    found.W_Q.zero_()
    assert all(torch.equal(given[k], v) for k, v in before.items())


def test_a_whole_state_dict_and_a_model(model, reference_model) -> None:
    whole = reference_model(SIZES).state_dict()
    assert same(AttentionLayers.from_state_dict(whole, 3), model)
    assert same(AttentionLayers.from_state_dict(model.state_dict(), 3), model)
    views = AttentionLayers.from_model(model)
    assert same(views, model) and not views.W_Q.requires_grad
    torch.testing.assert_close(views.OV.AB, model.OV.AB.detach())
    assert "n_layers=2, n_heads=3, d_model=12, d_head=4" in repr(views)


def test_folders_and_files(model, state, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert same(AttentionLayers.from_folder(tmp_path, 3), model)
    assert same(AttentionLayers.from_folder(tmp_path / "model.safetensors", 3), model)
    with pytest.raises(ValueError, match=r"no config.json beside .* give n_heads"):
        AttentionLayers.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_head": 3}))
    assert same(AttentionLayers.from_folder(tmp_path), model)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say n_head"):
        AttentionLayers.from_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"n_head": 3.0}')
    with pytest.raises(ValueError, match=r"n_head in .* is a whole number, not 3.0: give n_heads"):
        AttentionLayers.from_folder(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="has no weights"):
        AttentionLayers.from_folder(other, 3)
    torch.save(state, other / "pytorch_model.bin")
    half = AttentionLayers.from_folder(other, 3, dtype="bfloat16")
    assert half.W_O.dtype == torch.bfloat16
    torch.testing.assert_close(half.W_O.float(), model.W_O.detach(), rtol=1e-2, atol=1e-2)
    (other / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="is damaged"):
        AttentionLayers.from_folder(other, 3)
    with pytest.raises(ValueError, match="no such folder"):
        AttentionLayers.from_folder(tmp_path / "nowhere", 3)


@pytest.mark.usefixtures("unchecked")
def test_state_dicts_that_do_not_fit(state) -> None:
    key = "transformer.h.1.attn.c_proj.weight"
    for change, n_heads, why in (
        ({key: None}, 3, r"missing \(1\): h.1.attn.c_proj.weight"),
        ({key: torch.ones(12, 11)}, 3, r"c_proj.weight is \[12, 11\], expected \[12, 12\]"),
        ({"h.0.attn.c_attm.weight": torch.ones(2, 2)}, 3, "unexpected.*c_attm"),
        ({"h.1.attn.c_proj.weight": torch.ones(12, 12)}, 3, "are the same"),
        ({"h.5.attn.c_proj.weight": torch.ones(12, 12)}, 3, "layers 2, 3, 4 are missing; those"),
        ({"h.1000000.attn.c_proj.weight": torch.ones(12, 12)}, 3, "2, 3, 4, 5, 6 and 999993 more"),
        ({"h.99999999999.attn.c_proj.weight": torch.ones(12, 12)}, 3, "no layer there can be"),
        (
            {"h.0.attn.c_attn.weight": None, "transformer.h.0.attn.c_attn.weight": None},
            3,
            r"missing \(1\): h.0.attn.c_attn.weight",
        ),
        (
            {f"transformer.h.0.attn.{what}.weight": None for what in ("c_attn", "c_proj")},
            3,
            "layer 0 are missing; those of layer 1 are there",
        ),
        ({"h.1.attn.c_attn.weight": torch.ones(12, 36)}, 3, "are the same"),
        ({key: None}, 3, "^the attention weights in the state dict do not fit together: missing"),
        ({key: torch.ones(12, 12, dtype=torch.int8)}, 3, "torch.int8"),
        ({key: "text"}, 3, "must be a tensor"),
        ({}, 5, "n_heads=5 does not divide the width 12"),
        ({}, 0, "n_heads=0"),
    ):
        given = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(ValueError, match=why):
            AttentionLayers.from_state_dict(given, n_heads)
    flat = {"attn.c_attn.weight": torch.ones(12, 36), "attn.c_proj.weight": torch.ones(12, 12)}
    for given in (flat, {"attn.c_attn.weight": torch.tensor(1.0)}):
        with pytest.raises(WeightsError, match="must hold all layers, stacked"):
            AttentionLayers.from_state_dict(given, 3)
    with pytest.raises(WeightsError, match="no attention weights"):
        AttentionLayers.from_state_dict({"h.0.attn.c_attm.weight": torch.ones(2, 2)}, 3)
    wrong: Any
    for wrong in (2.0, "2", True, None):
        with pytest.raises(TypeError, match=f"n_heads is a whole number, not {wrong!r}"):
            AttentionLayers.from_state_dict(state, wrong)
    with pytest.raises(WeightsError, match=r"no attention weights.*found wte.weight"):
        AttentionLayers.from_state_dict({"wte.weight": torch.ones(3, 3)}, 3)
    with pytest.raises(WeightsError, match="found nothing"):
        AttentionLayers.from_state_dict({}, 3)


@pytest.mark.usefixtures("unchecked")
def test_tensors_that_do_not_fit() -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype)

    right = {"W_Q": ones(2, 3, 12, 4), "W_K": ones(2, 3, 12, 4), "W_V": ones(2, 3, 12, 4)}
    right["W_O"] = ones(2, 3, 4, 12)
    for change, error, why in (
        ({"W_O": ones(2, 3, 12, 4)}, ValueError, r"W_O has shape \[2, 3, 12, 4\]; with W_Q"),
        ({"W_K": ones(3, 12, 4)}, ValueError, r"a single layer is W_K\[None\]"),
        ({"W_V": ones(2, 3, 12, 4, dtype=torch.float64)}, ValueError, "W_V is torch.float64"),
        ({"W_Q": ones(2, 3, 12, 4, dtype=torch.int64)}, TypeError, "W_Q is a tensor of floating"),
        ({"W_Q": None}, TypeError, "not NoneType"),
    ):
        with pytest.raises(error, match=why):
            AttentionLayers(**(right | change))  # type: ignore[arg-type]
