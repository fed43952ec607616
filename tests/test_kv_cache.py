"""The key/value cache: branches from one prefix, rewinding, rows, growth, unequal prompts."""

import pytest
import torch

from interp import HookedGPT2, HookedGPT2Config, KeyValueCache

CFG = HookedGPT2Config(n_layers=2, d_model=24, n_heads=3, n_ctx=200, d_vocab=53)
EXACT = dict(rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def model():
    return HookedGPT2.from_config(CFG, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def empty(batch=1, **settings):
    return KeyValueCache.init_cache(CFG, "cpu", batch, dtype=torch.float64, **settings)


def tokens(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CFG.d_vocab, (batch, length), generator=generator)


def filled(model, ids, mask=None):
    cache = empty(len(ids))
    model(ids, None, attention_mask=mask, past_kv_cache=cache)
    return cache


MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]]).bool()


def test_memory_grows_by_doubling(model):
    cache = empty(2, capacity=150)
    ids = tokens(2, 150)
    taken = []
    whole = model(ids)
    for a, b in [(0, 3), (3, 60), (60, 61), (61, 100), (100, 149), (149, 150)]:
        out = model(ids[:, a:b], past_kv_cache=cache)
        torch.testing.assert_close(out, whole[:, a:b], **EXACT)
        taken.append(cache.keys.shape[3])
    assert taken == [64, 64, 64, 128, 150, 150]
    assert cache.keys.shape == (2, 2, 3, 150, 8) == cache.values.shape
    with pytest.raises(ValueError, match="room for 150 positions: 150 are filled and 1 more"):
        model(ids[:, :1], past_kv_cache=cache)
    assert empty(capacity=5).keys.shape[3] == 5
    cache = empty()
    cache.reserve(10**6)
    assert cache.keys.shape[3] == 200 and cache.length == 0


def test_memory_that_grew_in_inference_mode_can_be_written_outside(model):
    ids = tokens(1, 150)
    cache = empty()
    with torch.inference_mode():
        model(ids[:, :100], past_kv_cache=cache)
    with torch.enable_grad():
        out = model(ids[:, 100:], past_kv_cache=cache)
    torch.testing.assert_close(out, model(ids)[:, 100:], **EXACT)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_branches_from_one_prefix(model, mask):
    prefix, more = tokens(3, 6), tokens(6, 4, seed=1)
    cache = filled(model, prefix, mask)
    branches = cache.fork(2)
    assert branches.batch_size == 6 and branches.lengths == [n for n in cache.lengths for _ in "ab"]
    out = model(more, past_kv_cache=branches)
    twice = prefix.repeat_interleave(2, 0)
    whole_mask = None
    if mask is not None:
        whole_mask = torch.cat([mask.repeat_interleave(2, 0), torch.ones(6, 4).bool()], 1)
    want = model(torch.cat([twice, more], 1), attention_mask=whole_mask)[:, 6:]
    torch.testing.assert_close(out, want, **EXACT)
    # The branches have memory of their own: the prefix goes on as if there were none.
    assert cache.length == 6 and branches.length == 10
    alone = model(more[::2], past_kv_cache=cache)
    torch.testing.assert_close(alone, want[::2], **EXACT)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_rewind(model, mask):
    prefix = tokens(3, 6)
    cache = filled(model, prefix, mask)
    before = cache.lengths
    assert before == ([6, 6, 6] if mask is None else [4, 3, 4])
    first = model(tokens(3, 3, 1), past_kv_cache=cache)
    cache.rewind(before)
    assert cache.lengths == before
    torch.testing.assert_close(model(tokens(3, 3, 1), past_kv_cache=cache), first, **EXACT)
    # To unequal lengths: every prompt goes on where it now ends.
    keep = [2, 3, 1]
    cache.rewind(torch.tensor(keep))
    assert cache.lengths == keep
    out = model(tokens(3, 2, 2), past_kv_cache=cache)
    for row, n in enumerate(keep):
        own = prefix[row] if mask is None else prefix[row][mask[row]]
        want = model(torch.cat([own[:n], tokens(3, 2, 2)[row]]))[0, n:]
        torch.testing.assert_close(out[row], want, **EXACT)
    cache.rewind(0)
    assert cache.length == 0 and cache.lengths == [0, 0, 0]
    torch.testing.assert_close(model(prefix, past_kv_cache=cache), model(prefix), **EXACT)


@pytest.mark.parametrize(
    ("which", "rows"),
    [
        ([2, 0], [2, 0]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        ([1, 1, 1, 0], [1, 1, 1, 0]),
    ],
    ids=str,
)
def test_rows(model, which, rows):
    prefix = tokens(3, 6)
    cache = filled(model, prefix, MASK)
    some = cache.rows(which)
    assert some.lengths == [cache.lengths[row] for row in rows]
    more = tokens(len(rows), 2, 1)
    want = model(
        torch.cat([prefix[rows], more], 1),
        attention_mask=torch.cat([MASK[rows], torch.ones(len(rows), 2).bool()], 1),
    )
    torch.testing.assert_close(model(more, past_kv_cache=some), want[:, 6:], **EXACT)
    assert cache.length == 6


def test_reorder(model):
    prefix = tokens(3, 6)
    cache, order = filled(model, prefix, MASK), [2, 0, 2]
    cache.reorder(torch.tensor(order))
    more = tokens(3, 2, 1)
    want = model(
        torch.cat([prefix[order], more], 1),
        attention_mask=torch.cat([MASK[order], torch.ones(3, 2).bool()], 1),
    )
    torch.testing.assert_close(model(more, past_kv_cache=cache), want[:, 6:], **EXACT)


def test_an_empty_cache_can_be_branched(model):
    cache = empty(2).fork(2)
    ids = tokens(4, 70)
    torch.testing.assert_close(model(ids, past_kv_cache=cache), model(ids), **EXACT)


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"])
def test_a_single_query_is_looked_at_whole(model, name):
    """One new token sees all keys, and what is cached says so."""
    ids = tokens(2, 9)
    _, whole = model.run_with_cache(ids, names_filter=name)
    cache = filled(model, ids[:, :8])
    _, last = model.run_with_cache(ids[:, 8:], names_filter=name, past_kv_cache=cache)
    torch.testing.assert_close(last[name], whole[name][:, :, 8:], **EXACT)


WRONG = {
    "no prompts": (lambda c: empty(0), ValueError, "batch_size is at least 1"),
    "no capacity": (lambda c: empty(capacity=0), ValueError, "capacity is 1 to n_ctx = 200, not 0"),
    "too large": (lambda c: empty(capacity=201), ValueError, "not 201"),
    "no copies": (lambda c: c.fork(0), ValueError, "copies is at least 1"),
    "no row": (lambda c: c.rows([]), IndexError, "none of the 3"),
    "row 3": (lambda c: c.rows([0, 3]), IndexError, "prompt 3 is out of range"),
    "empty slice": (lambda c: c.rows(slice(3, 9)), IndexError, "none of the 3"),
    "mask": (lambda c: c.rows(torch.tensor([True])), IndexError, "a mask of 1"),
    "reorder": (lambda c: c.reorder([0, 1]), ValueError, "each of the 3 prompts, not 2"),
    "rewind": (lambda c: c.rewind(4), ValueError, "prompt 1 has 3 tokens.*0 to 3, not to 4"),
    "rewind below": (lambda c: c.rewind(-1), ValueError, "not to -1"),
    "rewind some": (lambda c: c.rewind([1, 2]), ValueError, "2 lengths for 3 prompts"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_change_nothing(model, wrong):
    call, error, told = WRONG[wrong]
    cache = filled(model, tokens(3, 6), MASK)
    keys, mask = cache.keys.clone(), cache.mask.clone()
    with pytest.raises(error, match=told):
        call(cache)
    assert cache.length == 6 and cache.lengths == [4, 3, 4]
    assert cache.mask[:, :6].equal(mask[:, :6])
    assert cache.keys[:, :, :, :6].equal(keys[:, :, :, :6])


def test_repr_and_size():
    cache = empty(3)
    assert repr(cache) == "KeyValueCache(layers=2, batch=3, pos=0 of 200)"
    assert cache.nbytes == 2 * (2 * 3 * 3 * 64 * 8 * 8) + 3 * 64


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_a_cache_are_checked(model):
    cache = KeyValueCache.init_cache(model.cfg, model.device, 3, dtype=model.dtype)
    model(torch.tensor([[1, 2], [3, 4], [5, 6]]), past_kv_cache=cache)
    before = cache.keys[:, :, :, :2].clone()
    calls = [
        lambda: cache.rewind([1.5, 1, 1]), lambda: cache.rewind(True), lambda: cache.rewind("a"),
        lambda: cache.rows([0.5]), lambda: cache.rows("a"), lambda: cache.fork(1.5),
        lambda: KeyValueCache.init_cache(model.cfg, model.device, "a"),
        lambda: KeyValueCache.init_cache(model.cfg, model.device, capacity="a"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=r"whole number.*, not "):
            call()
    assert cache.length == 2 and torch.equal(cache.keys[:, :, :, :2], before)
    backwards = cache.rows(slice(None, None, -1))
    assert torch.equal(backwards.keys[:, 0, :, :2], cache.keys[:, 2, :, :2])


def test_a_cache_of_inference_mode_says_what_to_do(model):
    tokens = torch.tensor([[1, 2]])
    with torch.inference_mode():
        cache = KeyValueCache.init_cache(model.cfg, model.device, dtype=model.dtype)
        model(tokens, past_kv_cache=cache)
    with pytest.raises(ValueError, match="take its fork"):
        model(tokens, past_kv_cache=cache)
    own = cache.fork()
    torch.testing.assert_close(
        model(tokens, past_kv_cache=own), model(torch.tensor([[1, 2, 1, 2]]))[:, 2:]
    )
