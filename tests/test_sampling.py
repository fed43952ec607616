"""Choosing a token: transformers' processors, in its order, and draws that follow them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp import HookedGPT2, HookedGPT2Config
from interp.sampling import Sampling, draw

V = 31


def logits(seed, rows=3):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def theirs(scores, tokens, settings):
    """What transformers' processors make of the scores, in the order of its `generate`."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    made = LogitsProcessorList()
    for name, kind, key in (
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor, "penalty"),
        ("temperature", TemperatureLogitsWarper, "temperature"),
        ("top_k", TopKLogitsWarper, "top_k"),
        ("top_p", TopPLogitsWarper, "top_p"),
        ("min_p", MinPLogitsWarper, "min_p"),
    ):
        if settings.get(name) is not None:
            made.append(kind(**{key: settings[name]}))
    return made(tokens, scores.clone())


@given(
    seed=st.integers(0, 10**6),
    settings=st.fixed_dictionaries(
        {},
        optional=dict(
            repetition_penalty=st.floats(0.3, 3),
            temperature=st.floats(0.2, 3),
            top_k=st.integers(1, 40),
            top_p=st.floats(0.05, 0.999),
            min_p=st.floats(0.001, 1),
        ),
    ),
)
def test_filtered_logits_are_those_of_transformers(seed, settings):
    scores = logits(seed)
    tokens = torch.randint(0, V, (3, 7), generator=torch.Generator().manual_seed(seed))
    counts = torch.stack([torch.bincount(row, minlength=V) for row in tokens])
    ours = Sampling(**settings).processed(scores, counts)
    want = theirs(scores, tokens, settings)
    assert ours.isinf().equal(want.isinf())
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-5)


def test_freq_penalty_counts_every_time():
    counts = torch.zeros(1, V, dtype=torch.long)
    counts[0, 3], counts[0, 5] = 2, 1
    scores = logits(0, 1)
    out = Sampling(temperature=2.0, freq_penalty=0.7).processed(scores, counts)
    torch.testing.assert_close(out, scores / 2 - 0.7 * counts)
    # It also moves what greedy decoding takes.
    greedy = Sampling(do_sample=False, freq_penalty=100.0)
    first = int(scores.argmax())
    counts[0, first] = 1
    assert greedy.choose(greedy.processed(scores, counts), None) != first


def test_the_likeliest_token_always_stays():
    """However small `top_p` is, and however the sum of all probabilities is rounded."""
    scores = torch.randn(400, 1000, generator=torch.Generator().manual_seed(0))
    kept = Sampling(top_p=1e-9).processed(scores, None).isfinite()
    assert (kept.sum(1) == 1).all() and kept.float().argmax(1).equal(scores.argmax(1))


def test_without_settings_nothing_is_copied():
    scores = logits(0)
    assert Sampling().processed(scores, None) is scores
    assert Sampling(do_sample=False).processed(scores, None) is scores
    assert Sampling().processed(scores.bfloat16(), None).dtype == torch.float32
    assert Sampling().processed(scores.double(), None).dtype == torch.float64


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(temperature=0.6),
        dict(top_k=6),
        dict(top_p=0.8),
        dict(min_p=0.1),
        dict(temperature=1.5, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.4),
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(settings):
    """Chi-square of 20,000 draws with a fixed seed, at the one-in-a-thousand level."""
    n = 20_000
    counts = torch.zeros(1, V, dtype=torch.long)
    counts[0, :5] = 1
    filtered = Sampling(**settings).processed(logits(4, 1), counts)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.bincount(draw(filtered.expand(n, V), generator), minlength=V).double()
    expected = filtered[0].double().softmax(-1) * n
    possible = expected > 0
    assert drawn[~possible].sum() == 0
    common = expected >= 5
    got = torch.cat([drawn[common], drawn[possible & ~common].sum()[None]])
    want = torch.cat([expected[common], expected[possible & ~common].sum()[None]])
    keep = want > 0
    statistic = float(((got - want)[keep] ** 2 / want[keep]).sum())
    freedom = int(keep.sum()) - 1
    if freedom == 0:
        return
    # Wilson and Hilferty 1931: the cube root of a chi-square is nearly normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 3.09, (statistic, freedom)


def test_the_edges_of_a_draw():
    """Neither end of the interval gives a token of probability zero."""

    class Fixed(torch.Generator):
        pass

    scores = torch.full((1, 4), -torch.inf)
    scores[0, 1] = scores[0, 2] = 0.0
    for seed in range(200):
        assert int(draw(scores, torch.Generator().manual_seed(seed))) in (1, 2)
    extremes = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)[:, None]
    original = torch.rand
    try:
        torch.rand = lambda *_, **__: extremes
        assert draw(scores.expand(3, 4), Fixed()).tolist() == [1, 2, 2]
    finally:
        torch.rand = original


WRONG = {
    "temperature": (dict(temperature=-1.0), ValueError),
    "temperature nan": (dict(temperature=math.nan), ValueError),
    "temperature bool": (dict(temperature=True), TypeError),
    "top_k": (dict(top_k=0), ValueError),
    "top_k float": (dict(top_k=2.5), TypeError),
    "top_p": (dict(top_p=0.0), ValueError),
    "top_p above": (dict(top_p=1.2), ValueError),
    "min_p": (dict(min_p=-0.1), ValueError),
    "penalty": (dict(repetition_penalty=0), ValueError),
    "penalty text": (dict(repetition_penalty="1"), TypeError),
    "freq": (dict(freq_penalty=math.inf), ValueError),
    "do_sample": (dict(do_sample=1), TypeError),
    "greedy and top_k": (dict(do_sample=False, top_k=3), ValueError),
    "greedy and temperature": (dict(do_sample=False, temperature=0.7), ValueError),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_settings_are_refused(wrong):
    settings, error = WRONG[wrong]
    name = next(n for n in reversed(settings))
    model = HookedGPT2.from_config(
        HookedGPT2Config(n_layers=1, d_model=4, n_heads=1, n_ctx=9, d_vocab=5, eos_token_id=0)
    )
    with pytest.raises(error, match=name):
        model.generate(torch.tensor([[1]]), 2, **settings)
