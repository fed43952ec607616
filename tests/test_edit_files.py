"""Edits and results of sweeps come back from a file as they went in."""

import json
import math
from dataclasses import replace
from random import Random

import pytest
import torch
from _random_edits import World, random_edit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from analyses.metrics import kl, logit_diff
from analyses.sweep import sweep
from analyses.sweep_result import SweepResult
from hooks import (
    Ablate,
    ActivationCache,
    Add,
    Edit,
    Patch,
    Scale,
    UnknownHookName,
    load_edits,
    save_edits,
)
from interp import HookedGPT2

SIZES = dict(n_layer=2, n_embd=16, n_head=4, n_inner=24, n_positions=9, vocab_size=31)


@pytest.fixture(scope="module")
def world(reference_model) -> World:
    hf = reference_model(SIZES, dtype=torch.float64)
    return World.of(HookedGPT2.from_pretrained(hf, dtype=torch.float64), "left")


def contents(cache: ActivationCache) -> list[tuple]:
    return [(n, cache.axes[n], t.dtype, t.shape, t.tolist()) for n, t in cache.tensors.items()]


def same(a: Edit, b: Edit) -> bool:
    """Equal, with runs compared by what they hold at the point."""
    if repr(a) != repr(b) or type(a) is not type(b):
        return False
    for name in ("source", "reference"):
        run, other = getattr(a, name, None), getattr(b, name, None)
        if isinstance(run, ActivationCache):
            assert isinstance(other, ActivationCache)
            if not torch.equal(run[a.point], other[a.point]):
                return False
            if (run.attention_mask is None) != (other.attention_mask is None):
                return False
            if run.attention_mask is not None:
                assert torch.equal(run.attention_mask, other.attention_mask)
            b = replace(b, **{name: run})
    return a == b


def size(path) -> int:
    return path.stat().st_size


@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_round_trip(world, tmp_path_factory, rng):
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    edits = [random_edit(rng, world) for _ in range(3)]
    edits.append((random_edit(rng, world), random_edit(rng, world)))
    save_edits(path, edits)
    loaded = load_edits(path)
    assert len(loaded) == 4
    assert all(same(a, b) for a, b in zip(edits[:3], loaded[:3], strict=True))
    assert isinstance(loaded[3], tuple)
    assert all(same(a, b) for a, b in zip(edits[3], loaded[3], strict=True))


@pytest.mark.parametrize(
    "edit",
    [
        Scale(("z", -1), factor=0.1 + 0.2),
        Scale("hook_embed", factor=-math.inf),
        Scale(("scale", 0, "ln1"), pos=[0, -1], factor=1e-300),
        Ablate("blocks.0.attn.hook_z", pos=-1, head=[3, 0], neuron=2),
        Ablate(("pattern", 1), pos=torch.tensor([3, 1]), key=torch.tensor([[0, 1], [1, 0]])),
        Add(("resid_pre", 1), value=torch.tensor([1e-45, math.inf, -0.0])),
        Add(("resid_pre", 1), pos=0, value=torch.randn(3, 1, 4).to(torch.bfloat16)),
        Patch(("resid_pre", 1), source=torch.randn(4, 3).T),
        Patch(("resid_pre", 1), source=torch.tensor(2.0, dtype=torch.float64).expand(3, 4)),
        Patch(("pattern", 0), source=torch.tensor(0.5, dtype=torch.float16)),
    ],
    ids=repr,
)
def test_exact(tmp_path, edit):
    save_edits(tmp_path / "e", [edit])
    (loaded,) = load_edits(tmp_path / "e")
    assert loaded == edit and repr(loaded) == repr(edit) and hash(loaded) == hash(edit)
    for name in ("source", "value"):
        if (before := getattr(edit, name, None)) is not None:
            after = getattr(loaded, name)
            assert after.dtype == before.dtype and after.shape == before.shape
            assert torch.equal(after.signbit(), before.signbit())


def test_what_is_shared_is_stored_once_and_shared_again(world, tmp_path):
    one = Patch(("z", 0), head=0, source=world.source)
    many = [
        Patch((name, layer), pos=pos, source=world.source)
        for name in ("z", "q")
        for layer in range(2)
        for pos in range(-4, 0)
    ]
    save_edits(tmp_path / "one", [one])
    save_edits(tmp_path / "many", [*many, many[:2]])
    loaded = load_edits(tmp_path / "many")
    sources = {id(edit.source) for edit in [*loaded[:-1], *loaded[-1]]}
    assert len(sources) == 1
    held = loaded[0].source
    assert sorted(held) == [f"blocks.{n}.attn.hook_{x}" for n in range(2) for x in "qz"]
    used = sum(world.source[name].nbytes for name in held)
    assert used < size(tmp_path / "many") < used + 10_000
    assert size(tmp_path / "one") < used / 4 + 2_000
    # So is a tensor, equal ones too, and one that passes two points of a run.
    direction = torch.randn(5_000)
    save_edits(
        tmp_path / "add",
        [Add("hook_embed", pos=p, value=direction.clone()) for p in range(9)],
    )
    assert size(tmp_path / "add") < direction.nbytes + 5_000
    passing = [Patch(p, source=world.source) for p in (("resid_post", 0), ("resid_pre", 1))]
    save_edits(tmp_path / "residual", passing)
    first, second = load_edits(tmp_path / "residual")
    assert first.source is second.source
    assert first.source["resid_post", 0] is second.source["resid_pre", 1]


def test_two_runs_stay_two(world, tmp_path):
    edits = [
        Patch(("z", 0), source=world.source),
        Ablate(("z", 0), kind="mean", reference=world.reference),
        Ablate(("z", 1), kind="resample", reference=world.twins, seed=3),
    ]
    save_edits(tmp_path / "e", edits)
    loaded = load_edits(tmp_path / "e")
    assert all(same(a, b) for a, b in zip(edits, loaded, strict=True))
    assert len({id(getattr(e, "source", None) or e.reference) for e in loaded}) == 3
    assert list(loaded[2].reference) == ["blocks.1.attn.hook_z"]
    assert torch.equal(loaded[1].reference.tokens, world.reference.tokens)
    assert loaded[1].reference.n_layers == 2


def test_a_run_of_text_keeps_its_tokens(mini, tmp_path):
    _, cache = mini.run_with_cache(["Mary went", "John"], names_filter=["hook_embed", ("z", 0)])
    save_edits(tmp_path / "e", [Patch("embed", source=cache)])
    (edit,) = load_edits(tmp_path / "e")
    assert list(edit.source) == ["hook_embed"]
    assert edit.source.str_tokens == [list(row) for row in cache.str_tokens]
    assert edit.source.prepend_bos is True


def test_loaded_edits_do_the_same(world, tmp_path):
    edits = [random_edit(Random(1), world) for _ in range(20)]
    save_edits(tmp_path / "e", edits)
    results = [
        sweep(
            world.model,
            world.tokens,
            some,
            logit_diff(1, 2),
            attention_mask=world.mask,
            progress=False,
        )
        for some in (edits, load_edits(tmp_path / "e"))
    ]
    assert torch.equal(results[0].values["logit_diff"], results[1].values["logit_diff"])


def test_nothing_is_changed_by_saving(world, tmp_path):
    value = torch.randn(3, requires_grad=True)
    save_edits(tmp_path / "e", [Add("hook_embed", value=value)])
    (edit,) = load_edits(tmp_path / "e")
    assert value.requires_grad and not edit.value.requires_grad
    save_edits(tmp_path / "none", [])
    assert load_edits(tmp_path / "none") == []


# ------------------------------------------------------------------ a whole result


def test_result(world, tmp_path):
    noise = torch.randn(16, dtype=torch.float64)
    edits = [
        Patch(("resid_pre", 1), pos=-1, source=world.source),
        [Ablate(("z", 0)), Scale(("z", 1), factor=0.5)],
    ]
    metrics = {
        "diff": logit_diff(1, 2),
        "kl": kl(),
        "one number/☃": lambda logits: logits[:, -1].max(),
    }
    given = [
        Add("hook_embed", pos=0, value=noise),
        Patch(("resid_pre", 0), pos=1, source=world.source),
    ]
    result = sweep(
        world.model,
        world.tokens,
        edits,
        metrics,
        given=given,
        attention_mask=world.mask,
        progress=False,
    )
    result.save(tmp_path / "sweep.safetensors")
    loaded = SweepResult.load(tmp_path / "sweep.safetensors")
    assert list(loaded.values) == list(result.values) == list(loaded.base)
    for name in result.values:
        for a, b in ((loaded.values, result.values), (loaded.base, result.base)):
            assert torch.equal(a[name], b[name]) and a[name].dtype == torch.float64
    assert repr(loaded) == repr(result)
    assert loaded.str_tokens == result.str_tokens and loaded.prepend_bos is None
    assert loaded.provenance == result.provenance
    assert loaded.edits[1] == result.edits[1] and loaded.given[0] == result.given[0]
    assert loaded.edits[0][0].source is loaded.given[1].source  # one run, here and there
    assert set(loaded.given[1].source) == {f"blocks.{n}.hook_resid_pre" for n in range(2)}
    assert loaded.to_frame().equals(result.to_frame())


def test_an_interrupted_result(world, tmp_path):
    """NaN where it was not evaluated comes back too."""
    result = sweep(world.model, world.tokens, [Ablate(("z", 0))], logit_diff(1, 2), progress=False)
    result.values["logit_diff"][0, 1] = math.nan
    result.save(tmp_path / "s")
    loaded = SweepResult.load(tmp_path / "s")
    torch.testing.assert_close(
        loaded.values["logit_diff"], result.values["logit_diff"], equal_nan=True, rtol=0, atol=0
    )


# ------------------------------------------------------------------ errors


def test_errors_of_saving(world, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        save_edits(tmp_path / "nowhere" / "e", [Ablate("hook_embed")])
    other = ActivationCache(
        {"hook_embed": world.source["hook_embed"]}, {"hook_embed": ("batch", "pos", "d_model")}
    )
    with pytest.raises(UnknownHookName, match=r"hook_embedd.*not kept.*Did you mean 'hook_embed'"):
        save_edits(tmp_path / "e", [Patch("hook_embedd", source=other)])
    assert not (tmp_path / "e").exists()

    class Own(Scale):
        pass

    with pytest.raises(TypeError, match="Patch, Ablate, Scale and Add"):
        save_edits(tmp_path / "e", [Own("hook_embed", factor=2.0)])


def test_errors_of_loading(world, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
        load_edits(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
        SweepResult.load(tmp_path / "missing")
    (tmp_path / "text").write_text("no edits")
    world.source.save(tmp_path / "cache")
    save_edits(tmp_path / "edits", [Scale("hook_embed", factor=2.0)])
    save_file({"a": torch.zeros(1)}, tmp_path / "bare")
    for name in ("text", "cache", "bare"):
        with pytest.raises(ValueError, match=f"{name}' holds no saved edits"):
            load_edits(tmp_path / name)
    with pytest.raises(ValueError, match="edits' holds no saved sweep: it holds hooked_gpt2_edits"):
        SweepResult.load(tmp_path / "edits")
    with safe_open(tmp_path / "edits", framework="pt") as file:
        about = json.loads(file.metadata()["hooked_gpt2_edits"])
    for change in ({"edit": "Multiply"}, {"factor": "two"}, {"head": {"tensor": "edits.7"}}):
        about["edits"][0] |= change
        save_file({}, tmp_path / "changed", metadata={"hooked_gpt2_edits": json.dumps(about)})
        with pytest.raises(ValueError, match="changed' holds no saved edits"):
            load_edits(tmp_path / "changed")
    whole = (tmp_path / "cache").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut' holds no saved edits"):
        load_edits(tmp_path / "cut")
