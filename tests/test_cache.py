"""ActivationCache: mapping, memory, slicing, saving."""

import gc
import weakref

import pytest
import torch

from hooks import ActivationCache, UnknownHookName
from interp import HookedGPT2, HookedGPT2Config

CFG = HookedGPT2Config(n_layers=2, d_model=12, n_heads=3, n_ctx=8, d_vocab=19)


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return HookedGPT2.from_config(CFG).requires_grad_(False)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 19, (3, 5))


@pytest.fixture
def cache(model, tokens) -> ActivationCache:
    return model.run_with_cache(tokens)[1]


def test_is_a_mapping(cache):
    assert cache["pattern", 1] is cache["blocks.1.attn.hook_pattern"]
    assert cache["resid_post", -1] is cache["blocks.1.hook_resid_post"]
    assert ("pattern", 1) in cache and "hook_embed" in cache
    assert ("pattern", 2) not in cache and 3 not in cache
    assert len(dict(cache.items())) == len(cache) == len(list(cache))
    assert cache.get("nothing") is None
    with pytest.raises(UnknownHookName, match="Did you mean 'hook_embed'"):
        cache["hook_embd"]
    assert "hook_embed: batch=3 pos=5 d_model=12" in repr(cache)


def test_holds_no_reference_to_the_model(tokens):
    model = HookedGPT2.from_config(CFG)
    gone = weakref.ref(model)
    _, cache = model.run_with_cache(tokens, incl_bwd=lambda logits: logits.sum())
    del model
    gc.collect()
    assert gone() is None
    assert not any(value.requires_grad for value in cache.values())


def test_nbytes_counts_each_storage_once(model, tokens):
    _, cache = model.run_with_cache(
        tokens, names_filter=["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    )
    assert cache.nbytes == 3 * 5 * 12 * 4 + tokens.nbytes
    _, cache = model.run_with_cache(tokens, names_filter="blocks.0.hook_*_input")
    assert cache.nbytes == 3 * 5 * 12 * 4 + tokens.nbytes
    assert cache["q_input", 0].shape == (3, 5, 3, 12)


MASK = torch.tensor([False, True, False, True, True])


@pytest.mark.parametrize(
    "pos",
    [0, -1, slice(1, 3), slice(None, None, 2), [4, 0], MASK, MASK.tolist(), MASK.numpy()],
    ids=str,
)
@pytest.mark.parametrize("batch", [None, 1, slice(0, 2), [2, 0]])
def test_slice(model, tokens, cache, pos, batch):
    part = cache.slice(batch=batch, pos=pos)
    for name, value in cache.items():
        want = value if batch is None else value[batch]
        dim = 1 if (value.ndim == 4 and "pattern" in name) or "scores" in name else 0
        dim += 0 if isinstance(batch, int) else 1
        want = want[(slice(None),) * dim + (pos,)]
        assert part[name].equal(want), name
    assert part.nbytes < cache.nbytes
    rows = tokens if batch is None else tokens[batch]
    assert part.tokens is not None and part.tokens.equal(rows[..., pos])
    while_running = model.run_with_cache(tokens, pos_slice=pos)[1].slice(batch=batch)
    assert while_running.tokens is not None and while_running.tokens.equal(part.tokens)
    assert set(while_running) == set(part)
    for name, value in part.items():
        torch.testing.assert_close(while_running[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"pos": 5}, "pos 5 is out of range for 'hook_embed': it has 5, 0 to 4"),
        ({"pos": [0, -6]}, "pos -6 is out of range"),
        ({"batch": 3}, "batch 3 is out of range"),
        ({"pos": slice(7, 9)}, "leaves nothing of 5 along 'pos'"),
    ],
)
def test_slice_out_of_range(model, tokens, cache, where, told):
    with pytest.raises(IndexError, match=told):
        cache.slice(**where)
    if "pos" in where:
        with pytest.raises(IndexError, match=told):
            model.run_with_cache(tokens, pos_slice=where["pos"])


def test_negative_layers_count_from_the_end_of_the_model(model, tokens, tmp_path):
    _, cache = model.run_with_cache(tokens, stop_at_layer=1)
    cache.save(tmp_path / "part")
    for part in (cache, ActivationCache.load(tmp_path / "part"), cache.slice(pos=0)):
        assert part["resid_post", -2] is part["resid_post", 0]
        with pytest.raises(UnknownHookName, match="resid_post"):
            part["resid_post", -1]


def test_what_the_caller_does_with_its_tensors_is_its_own_business(model, tokens):
    residual, cache = model.run_with_cache(tokens, stop_at_layer=1)
    _, onward = model.run_with_cache(residual, start_at_layer=1)
    before = cache["resid_post", 0].clone(), onward["resid_pre", 1].clone(), tokens.clone()
    residual.zero_()
    tokens += 1
    assert cache["resid_post", 0].equal(before[0]) and onward["resid_pre", 1].equal(before[1])
    assert cache.tokens is not None and cache.tokens.equal(before[2])


def test_a_mask_of_prompts(cache):
    correct = torch.tensor([False, False, True])
    part = cache.slice(batch=correct)
    assert part["hook_embed"].equal(cache["hook_embed"][2:])
    with pytest.raises(TypeError, match="whole number"):
        cache.slice(pos=True)


def test_slicing_an_axis_that_is_gone(cache):
    with pytest.raises(IndexError, match="no axis 'batch'"):
        cache.slice(batch=0).slice(batch=0)


def test_remove_batch_dim(model, tokens):
    _, cache = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    assert cache["pattern", 0].shape == (3, 5, 5)
    assert cache["hook_pos_embed"].shape == (5, 12)
    assert cache.tokens is not None and cache.tokens.equal(tokens[0])
    with pytest.raises(ValueError, match="batch of one prompt, this one has 3"):
        model.run_with_cache(tokens, remove_batch_dim=True)
    with pytest.raises(IndexError, match="only a batch of one"):
        model.run_with_cache(tokens)[1].remove_batch_dim()


def test_saved_and_loaded_is_the_same(model, tokens, cache, tmp_path):
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = False
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    cache.save(tmp_path / "cache.safetensors")
    back = ActivationCache.load(tmp_path / "cache.safetensors")
    assert list(back) == list(cache) and back.axes == cache.axes
    assert all(value.equal(back[name]) for name, value in cache.items())
    assert back["resid_post", 0].data_ptr() == back["resid_pre", 1].data_ptr()
    assert back.tokens is not None and back.tokens.equal(tokens)
    assert back.attention_mask is not None and back.attention_mask.equal(mask)
    assert back.prepend_bos is None
    stored = (tmp_path / "cache.safetensors").stat().st_size
    assert stored < 1.1 * cache.nbytes + 20_000


def test_loading_what_is_no_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        ActivationCache.load(tmp_path / "none.safetensors")
    (tmp_path / "bad").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="no saved activation cache"):
        ActivationCache.load(tmp_path / "bad")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no saved activation cache"):
        ActivationCache.load(tmp_path / "other")


def test_saving_where_there_is_no_folder(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        cache.save(tmp_path / "none" / "cache")


def test_to(cache):
    half = cache.to(torch.float16)
    assert all(value.dtype == torch.float16 for value in half.values())
    assert half["resid_post", 0].data_ptr() == half["resid_pre", 1].data_ptr()
    assert half.tokens is not None and half.tokens.dtype == torch.int64
    assert cache["hook_embed"].dtype == torch.float32


@pytest.mark.cuda
def test_kept_on_another_device():
    model = HookedGPT2.from_config(CFG, device="cuda")
    tokens = torch.randint(0, 19, (3, 5))
    _, here = model.run_with_cache(tokens, device="cpu")
    _, there = model.run_with_cache(tokens)
    assert all(value.device.type == "cpu" for value in here.values())
    for name, value in there.to("cpu").items():
        assert here[name].equal(value)


def test_positions_cut_while_running_do_not_hold_the_rest(model, tokens):
    """Memory that one layer frees must not be mistaken for a tensor that passed before."""
    _, whole = model.run_with_cache(tokens)
    _, part = model.run_with_cache(tokens, pos_slice=slice(2, 3))
    for name, value in whole.items():
        dim = 2 if value.ndim == 4 and value.shape[-1] == 5 else 1
        torch.testing.assert_close(part[name], value.narrow(dim, 2, 1), rtol=0, atol=0)
    assert part.nbytes < 0.4 * whole.nbytes
