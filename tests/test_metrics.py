"""Metrics against the plainest way to compute them."""

import math
from random import Random

import pytest
import torch
from _micro import AB, micro_model
from _naive import naive_metric
from _random_edits import LENGTHS, padded, random_positions
from hypothesis import given
from hypothesis import strategies as st

from analyses.metrics import (
    Function,
    evaluate,
    kl,
    log_prob,
    logit_diff,
    loss,
    named_metrics,
    prob,
)
from interp import HookedGPT2

SIZES = dict(n_layer=1, n_embd=16, n_head=2, n_positions=9, vocab_size=13)
VOCAB = 13


@pytest.fixture(scope="module")
def model(reference_model) -> HookedGPT2:
    return HookedGPT2.from_pretrained(
        reference_model(SIZES, dtype=torch.float64), dtype=torch.float64
    )


def random_ids(rng: Random, n_prompts: int):
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    form = rng.choice(["one", "each", "several each", "several"])
    if form == "one":
        return rng.randrange(VOCAB)
    if form == "each":
        return torch.randint(VOCAB, (n_prompts,), generator=draw).tolist()
    k = rng.randint(1, 3)
    rows = 1 if form == "several" else n_prompts
    ids = torch.stack([torch.randperm(VOCAB, generator=draw)[:k] for _ in range(rows)])
    if k > 1:
        ids[:, 1][torch.rand(rows, generator=draw) < 0.5] = -1
    return ids


@given(rng=st.randoms(use_true_random=False))
def test_any_metric(rng):
    kind = rng.choice(["one", "even", "right", "left", "holes"])
    lengths = LENGTHS[kind]
    tokens, mask = padded(lengths, kind, VOCAB, rng.randrange(2**31))
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = rng.choice([torch.float32, torch.float64])
    logits, other = (
        torch.randn(*tokens.shape, VOCAB, generator=draw, dtype=torch.float64).to(dtype) * 3
        for _ in range(2)
    )
    other[0, :, 3] = -torch.inf  # a reference may rule a token out
    n, pos = len(lengths), random_positions(rng, lengths)
    metric = rng.choice(
        [
            lambda: logit_diff(random_ids(rng, n), random_ids(rng, n), pos=pos),
            lambda: prob(random_ids(rng, n), pos=pos),
            lambda: log_prob(random_ids(rng, n), pos=pos),
            lambda: kl(other, pos=pos),
            lambda: kl(other[:, -1], pos=torch.tensor([0] * n)),
            lambda: loss(pos=rng.choice([None, -2, 0, [0, -2]])),
        ]
    )()
    got = metric(logits, tokens, mask)
    wanted = naive_metric(metric, logits, tokens, mask, logits)
    assert got.shape == (n,)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    if dtype == torch.float64:
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    reads = metric.reads(mask)
    # What is not read does not matter.
    blank = torch.where(reads[:, :, None], logits, torch.nan)
    assert torch.equal(metric(blank, tokens, mask), got)
    # Nor do tokens whose logits it says it does not need.
    if (needed := metric.vocabulary()) is not None:
        some = torch.full_like(logits, torch.nan)
        some[..., needed] = logits[..., needed]
        assert torch.equal(metric(some, tokens, mask), got)


def test_by_hand():
    """Logits 5 0 0 and 0 3 4 of the micro model."""
    model = micro_model()
    e = math.exp
    second = e(0) + e(3) + e(4)
    found = evaluate(
        model,
        AB,
        {
            "difference": logit_diff(1, torch.tensor([[0, 2]])),
            "first": logit_diff(0, 1, pos=0),
            "mean": logit_diff(0, 1, pos=None),
            "p": prob(torch.tensor([[1, 2]])),
            "log p": log_prob(0),
            "loss": loss(),
            "kl": kl(torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)),
            "sum": lambda logits: logits.sum(),
        },
    )
    wanted = {
        "difference": 3 - (0 + 4) / 2,
        "first": 5,
        "mean": (5 - 3) / 2,
        "p": (e(3) + e(4)) / second,
        "log p": -math.log(second),
        # b follows a, which gives it 1 against e^5 and 1.
        "loss": math.log(e(5) + 2),
        # Half on each of a and b: -log 2 less the mean of their log-probabilities, 0 and 3.
        "kl": math.log(second) - 1.5 - math.log(2),
        "sum": 12,
    }
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == torch.float64
        assert found[name].tolist() == pytest.approx([value], abs=1e-9), name


def test_the_loss_is_that_of_the_model(model):
    tokens, mask = padded([6, 4, 5], "left", VOCAB, 0)
    logits = model(tokens, attention_mask=mask)
    per_token = model(tokens, "loss", attention_mask=mask, loss_per_token=True)
    torch.testing.assert_close(loss()(logits, tokens, mask), per_token.nanmean(1))
    last = torch.stack([row[~row.isnan()][-1] for row in per_token])
    torch.testing.assert_close(loss(pos=-2)(logits, tokens, mask), last)
    first = loss(pos=0)(logits, tokens, mask)
    torch.testing.assert_close(first, per_token[range(3), mask.int().argmax(1)])


def test_kl_of_a_run_with_itself(model):
    tokens, mask = padded([6, 4, 5], "right", VOCAB, 0)
    logits = model(tokens, attention_mask=mask).detach()
    with pytest.raises(ValueError, match="reference_logits"):
        kl()(logits, tokens, mask)
    assert float(kl().against(logits)(logits, tokens, mask).abs().max()) < 1e-12
    assert float(kl(logits, pos=None)(logits, tokens, mask).abs().max()) < 1e-12
    other = torch.randn_like(logits)
    assert bool((kl(other, pos=None)(logits, tokens, mask) > 0).all())


def test_gradients_flow():
    logits = torch.randn(2, 3, VOCAB, dtype=torch.float64, requires_grad=True)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    metrics = [
        logit_diff(1, 2),
        prob(1),
        log_prob(torch.tensor([[1, 2]])),
        loss(),
        kl(torch.randn(2, VOCAB)),
    ]
    for metric in metrics:
        assert torch.autograd.gradcheck(lambda x, m=metric: m(x, tokens), logits)
    (slope,) = torch.autograd.grad(logit_diff(1, [2, 3])(logits).sum(), logits)
    assert slope[0, -1].nonzero().flatten().tolist() == [1, 2]
    assert int(slope[:, :-1].count_nonzero()) == 0


def test_half_precision_is_summed_in_full(model):
    """Probabilities of bfloat16 logits are computed in float32."""
    logits = torch.randn(2, 3, VOCAB).to(torch.bfloat16)
    wanted = logits[:, -1].float().softmax(-1)[:, 4]
    torch.testing.assert_close(prob(4)(logits), wanted, rtol=1e-6, atol=0)


def test_evaluate_text(mini):
    texts = ["Mary and John went to the", "Tom"]
    found = evaluate(mini, texts, [logit_diff(5, 6), loss()])
    for i, text in enumerate(texts):
        alone = evaluate(mini, text, [logit_diff(5, 6), loss()])
        for name in found:
            torch.testing.assert_close(found[name][i], alone[name][0], rtol=0, atol=1e-4)
    bare = evaluate(mini, texts[0], loss(), prepend_bos=False)["loss"]
    logits, tokens = mini(texts[0], prepend_bos=False), mini.to_tokens(texts[0], prepend_bos=False)
    torch.testing.assert_close(bare, loss()(logits, tokens).double())


def test_a_function_that_edits_its_logits(model):
    tokens, _ = padded([6, 6], "right", VOCAB, 0)
    metrics = {"f": lambda logits: logits.zero_()[:, 0, 0], "p": prob(1)}
    found = evaluate(model, tokens, metrics)
    torch.testing.assert_close(found["p"], evaluate(model, tokens, prob(1))["prob"])


def test_a_metric_keeps_its_own_copy():
    ids = torch.tensor([1, 2])
    metric, pos = logit_diff(ids, 3), torch.tensor([0, 1])
    at = prob(1, pos=pos)
    ids += 5
    pos += 1
    logits = torch.randn(2, 3, VOCAB)
    assert torch.equal(metric(logits), logit_diff([1, 2], 3)(logits))
    assert torch.equal(at(logits), prob(1, pos=torch.tensor([0, 1]))(logits))


# ------------------------------------------------------------------ names


def test_names():
    def mine(logits):
        return logits[:, -1, 0]

    metrics = named_metrics([logit_diff(1, 2), prob(1), log_prob(1), kl(), loss(), mine])
    assert list(metrics) == ["logit_diff", "prob", "log_prob", "kl", "loss", "mine"]
    assert isinstance(metrics["mine"], Function)
    assert list(named_metrics({"a": mine, "b": mine})) == ["a", "b"]
    assert list(named_metrics(Function("own", mine))) == ["own"]


def test_a_callable_of_ones_own():
    class Own:
        function = "what it does"

        def __call__(self, logits):
            return logits[:, -1, 0]

    (metric,) = named_metrics(Own()).values()
    logits = torch.randn(2, 3, VOCAB)
    assert torch.equal(metric(logits), logits[:, -1, 0])


# ------------------------------------------------------------------ errors


LOGITS = torch.zeros(2, 3, VOCAB)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: logit_diff(torch.tensor([[1, -2]]), 0), ValueError, "answer_tokens.*below -1"),
        (
            lambda: logit_diff(0, torch.tensor([[1], [-1]])),
            ValueError,
            "wrong_tokens.*every prompt",
        ),
        (lambda: prob(-1), ValueError, "tokens"),
        (lambda: kl(torch.zeros(3)), ValueError, r"batch d_vocab .*\(3,\)"),
        (lambda: prob(VOCAB)(LOGITS), IndexError, f"token {VOCAB} .* 0 to {VOCAB - 1}"),
        (lambda: prob([1, 2, 3])(LOGITS), ValueError, "3 rows, there are 2 prompts"),
        (lambda: kl(torch.zeros(2, 5, VOCAB))(LOGITS), ValueError, "5 positions, the prompts 3"),
        (lambda: kl(torch.zeros(3, VOCAB))(LOGITS), ValueError, "2 prompts"),
        (lambda: kl(torch.zeros(2, VOCAB + 1))(LOGITS), ValueError, f"{VOCAB} tokens"),
        (lambda: kl(torch.zeros(2, VOCAB), pos=None)(LOGITS), ValueError, "one position"),
        (lambda: kl(torch.zeros(2, VOCAB), pos=[0, 1])(LOGITS), ValueError, "one position"),
        (lambda: prob(1, pos=3)(LOGITS), IndexError, "metric prob: pos 3 .* 0 to 2"),
        (lambda: prob(1, pos=[0, -3])(LOGITS), ValueError, "twice"),
        (lambda: prob(1, pos=torch.tensor([0, 1, 2]))(LOGITS), ValueError, "3 rows"),
        (lambda: prob(1, pos=[])(LOGITS), ValueError, "pos is empty"),
        (lambda: loss()(LOGITS), ValueError, "needs the token ids"),
        (
            lambda: loss()(LOGITS[:, :1], torch.zeros(2, 1, dtype=torch.long)),
            ValueError,
            "one token long",
        ),
        (lambda: loss(pos=2)(LOGITS, torch.zeros(2, 3).long()), IndexError, "pos 2"),
        (lambda: named_metrics([]), ValueError, "no metric"),
        (lambda: named_metrics([kl(), kl()]), ValueError, "two metrics are called 'kl'"),
        (lambda: Function("f", lambda x: x[0])(LOGITS), ValueError, r"f answered .*\(3, 13\)"),
        (lambda: Function("f", lambda x: x[:, 0, 0] * 1j)(LOGITS), ValueError, "f answered"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_text_is_no_token():
    with pytest.raises(TypeError):
        logit_diff([" Mary"], [" John"])
