"""Scores of heads: known answers by hand, any attention, padding, and the heads of mini."""

import io
import json
from typing import Any

import pandas as pd
import pytest
import torch
from _micro import blank_model
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from analyses import cli
from analyses._heads.targets import checked_scores
from analyses._views import heads as views
from analyses.heads import (
    SCORES,
    TARGETS,
    HeadScores,
    copying_scores,
    current_token_target,
    detect_head,
    detect_heads,
    duplicate_token_target,
    first_token_target,
    head_scores,
    induction_ablation,
    induction_target,
    main,
    pattern_score,
    previous_token_target,
)
from analyses.tasks import generate
from interp import HookedGPT2, HookedGPT2Config

CFG = dict(
    vocab_size=29,
    n_positions=24,
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_inner=6,
    bos_token_id=0,
    eos_token_id=0,
)
#                    0  1  2  3  4  5  6  7
IDS = torch.tensor([9, 4, 5, 6, 4, 5, 5, 4])


@pytest.fixture(scope="module")
def model(reference_model) -> HookedGPT2:
    return HookedGPT2.from_pretrained(reference_model(CFG, dtype=torch.float64), dtype="float64")


def looking_at(keys, n=None):
    """`1 1 query key`: all attention of query i on keys[i]."""
    pattern = one_hot(torch.tensor(keys), n or len(keys)).to(torch.float64)
    return pattern[None, None]


def random_pattern(n_layers, n_heads, n, seed=0):
    scores = torch.randn(
        n_layers, n_heads, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)


# ------------------------------------------------------------------ targets and known answers


def links(target):
    return [tuple(link) for link in target.nonzero().tolist()]


def test_targets_by_hand():
    assert links(previous_token_target(IDS)) == [(i, i - 1) for i in range(1, 8)]
    assert links(current_token_target(IDS)) == [(i, i) for i in range(8)]
    assert links(first_token_target(IDS)) == [(i, 0) for i in range(1, 8)]
    assert links(duplicate_token_target(IDS)) == [(4, 1), (5, 2), (6, 2), (6, 5), (7, 1), (7, 4)]
    # Query 6 repeats its neighbour 5, after which comes 6 itself: only 2's successor counts.
    assert links(induction_target(IDS)) == [(4, 2), (5, 3), (6, 3), (7, 2), (7, 5)]
    assert tuple(TARGETS) == SCORES == tuple(views.EXPLANATIONS)
    for make in TARGETS.values():
        assert make(IDS[:1]).shape == (1, 1)


@pytest.mark.parametrize(
    ("name", "keys", "score"),
    [
        ("previous_token", [0, 0, 1, 2, 3, 4, 5, 6], 1),
        ("previous_token", [0, 0, 1, 2, 3, 4, 5, 7], 6 / 7),
        ("current_token", [0, 1, 2, 3, 4, 5, 6, 7], 1),
        ("first_token", [0, 0, 0, 0, 0, 0, 0, 0], 1),
        ("first_token", [0, 1, 2, 3, 0, 0, 0, 0], 4 / 7),
        ("duplicate_token", [0, 0, 0, 0, 1, 2, 5, 4], 1),
        ("induction", [0, 0, 0, 0, 2, 3, 3, 5], 1),
        ("induction", [0, 0, 0, 0, 2, 3, 6, 0], 2 / 4),
    ],
)
def test_perfect_heads(name, keys, score):
    pattern = looking_at(keys)
    found = head_scores(pattern, IDS, scores=name)
    assert float(found[name]) == score
    assert float(pattern_score(pattern, TARGETS[name], IDS)) == score
    assert float(pattern_score(pattern, TARGETS[name](IDS))) == score


def test_mixtures_are_exact():
    """A head that pays 0.3 to the previous token and 0.7 to the first scores just that."""
    ids = torch.tensor([0, 3, 7, 3, 7, 3, 7])
    previous, first = looking_at([0, 0, 1, 2, 3, 4, 5]), looking_at([0] * 7)
    found = head_scores(0.3 * previous + 0.7 * first, ids)
    # At query 1 both are the same key.
    assert float(found["previous_token"]) == pytest.approx((5 * 0.3 + 1) / 6, abs=1e-15)
    assert float(found["first_token"]) == pytest.approx((5 * 0.7 + 1) / 6, abs=1e-15)
    # Queries 3 to 6 have seen their token; what came after it is the previous token, too.
    assert float(found["induction"]) == pytest.approx(0.3, abs=1e-15)
    assert found["duplicate_token"].tolist() == [[0]]
    assert found.queries["induction"] == (4,)


def test_even_attention_in_closed_form():
    n = 6
    ids = torch.cat([torch.arange(n), torch.arange(n)])
    even = torch.ones(2 * n, 2 * n, dtype=torch.float64).tril()
    even = (even / even.sum(-1, keepdim=True))[None, None]
    found = head_scores(even, ids)
    expected = {
        "previous_token": sum(1 / q for q in range(2, 2 * n + 1)) / (2 * n - 1),
        "current_token": sum(1 / q for q in range(1, 2 * n + 1)) / (2 * n),
        "first_token": sum(1 / q for q in range(2, 2 * n + 1)) / (2 * n - 1),
        "duplicate_token": sum(1 / q for q in range(n + 1, 2 * n + 1)) / n,
        "induction": sum(1 / q for q in range(n + 1, 2 * n + 1)) / n,
    }
    for name, score in expected.items():
        assert float(found[name]) == pytest.approx(score, abs=1e-14)
        assert found.even_score(name) == pytest.approx(score, abs=1e-14)


def test_how_it_compares_with_a_stripe_and_with_all_queries():
    """What the module's docstring says of the two measures of TransformerLens."""
    n = 7
    pattern = random_pattern(2, 3, 2 * n)
    found = head_scores(pattern, torch.arange(n).repeat(2))
    stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - n).mean(-1)
    last_of_first = pattern[:, :, n - 1, 0]
    torch.testing.assert_close(stripe, (n * found["induction"] + last_of_first) / (n + 1))
    stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=-n).mean(-1)
    torch.testing.assert_close(stripe, found["duplicate_token"])
    target = induction_target(torch.arange(n).repeat(2)).double()
    over_all = (pattern * target).sum((-1, -2)) / pattern.sum((-1, -2))
    torch.testing.assert_close(over_all, found["induction"] * n / (2 * n))


@given(
    ids=st.lists(st.integers(0, 4), min_size=2, max_size=9),
    seed=st.integers(0, 1000),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_equals_a_double_loop_however_padded(ids, seed, pads):
    n = len(ids)
    pattern = random_pattern(2, 2, n, seed)

    def is_target(name, q, k):
        return {
            "previous_token": k == q - 1,
            "current_token": k == q,
            "first_token": k == 0 < q,
            "duplicate_token": k < q and ids[k] == ids[q],
            "induction": 0 < k < q and ids[k - 1] == ids[q],
        }[name]

    left, right = pads
    size = left + n + right
    padded = torch.zeros(2, 2, size, size, dtype=torch.float64)
    padded[:, :, left : left + n, left : left + n] = pattern
    # What a padding query does is nobody's business.
    padded[:, :, :left, 0] = 1
    mask = torch.zeros(size, dtype=torch.bool)
    mask[left : left + n] = True
    tokens = torch.full((size,), ids[0])
    tokens[mask] = torch.tensor(ids)
    found = head_scores(pattern, torch.tensor(ids))
    with_padding = head_scores(padded, tokens, attention_mask=mask)
    assert with_padding.tokens == (tuple(ids),)
    for name in SCORES:
        per_query = []
        for q in range(n):
            keys = [k for k in range(n) if is_target(name, q, k)]
            if keys:
                per_query.append(sum(pattern[:, :, q, k] for k in keys))
        if per_query:
            expected = torch.stack(per_query).mean(0)
        else:
            expected = torch.full((2, 2), torch.nan, dtype=torch.float64)
        assert found.queries[name] == with_padding.queries[name] == (len(per_query),)
        for scores in (found[name], with_padding[name]):
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12, equal_nan=True)
        assert found.even_score(name) == pytest.approx(
            with_padding.even_score(name), abs=1e-12, nan_ok=True
        )


# ------------------------------------------------------------------ targets of one's own


def test_targets_of_ones_own():
    pattern = random_pattern(2, 3, 8)
    both = duplicate_token_target(IDS) | induction_target(IDS)
    expected = (pattern * both)[:, :, 4:].sum(-1).mean(-1)
    torch.testing.assert_close(pattern_score(pattern, both), expected)
    # Numbers weigh; queries without any do not count.
    weights = torch.zeros(8, 8)
    weights[3, 1], weights[3, 2], weights[7, 0] = 2.0, -1.0, 0.5
    by_hand = (2 * pattern[..., 3, 1] - pattern[..., 3, 2] + pattern[..., 7, 0] / 2) / 2
    torch.testing.assert_close(pattern_score(pattern, weights), by_hand)
    named = {
        "half": weights,
        "to 5": lambda ids: (ids == 5).expand(8, 8).tril(),
        "again": "induction",
    }
    found = head_scores(pattern, IDS, scores=named)
    assert found.names == ("half", "to 5", "again")
    torch.testing.assert_close(found["half"], by_hand)
    to_five = pattern[..., [2, 5, 6]].sum(-1)[..., 2:].mean(-1)
    torch.testing.assert_close(found["to 5"], to_five)
    # A tensor has the padding's rows, a function never sees it.
    mask = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    padded = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    padded[:, :, 2:, 2:] = random_pattern(2, 3, 6)
    target = previous_token_target(IDS)
    by_tensor = pattern_score(padded, target, attention_mask=mask)
    torch.testing.assert_close(
        by_tensor, pattern_score(padded, previous_token_target, IDS, attention_mask=mask)
    )
    torch.testing.assert_close(by_tensor, padded[..., range(3, 8), range(2, 7)].mean(-1))


def test_weighted_patterns_count_as_shares():
    pattern = random_pattern(1, 2, 8)
    sizes = torch.rand(8, dtype=torch.float64) + 0.5
    weighted = 40 * pattern * sizes
    shares = weighted / weighted.sum(-1, keepdim=True)
    found = head_scores(weighted, IDS, weighted=True)
    for name in SCORES:
        torch.testing.assert_close(found[name], head_scores(shares, IDS)[name])
    weighted[0, 0, 5] = 0  # a query that takes nothing from anywhere scores 0
    assert pattern_score(weighted, induction_target, IDS, weighted=True).isfinite().all()


def test_attention_that_is_not_causal():
    pattern = torch.full((1, 1, 4, 4), 0.25)
    following = torch.ones(4, 4).triu(1).tril(1)
    assert float(pattern_score(pattern, following, causal=False)) == 0.25
    found = head_scores(pattern, torch.tensor([1, 1, 1, 1]), causal=False)
    assert float(found["induction"]) == pytest.approx(0.25 * (1 + 2) / 2)
    assert found.even_score("previous_token") == 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_summed_in_float32(dtype):
    pattern = random_pattern(1, 2, 8).to(dtype)
    found = head_scores(pattern, IDS)
    assert found["induction"].dtype == torch.float32
    expected = head_scores(pattern.double(), IDS, weighted=dtype != torch.float32)
    torch.testing.assert_close(
        found["induction"].double(), expected["induction"], rtol=0, atol=5e-3
    )


def test_a_score_without_target_is_said():
    pattern = random_pattern(1, 2, 4)
    found = head_scores(pattern, torch.tensor([1, 2, 3, 4]))
    assert found.without_target == ("duplicate_token", "induction")
    assert found["induction"].isnan().all()
    assert "induction: NaN, as no query has a target" in repr(found)
    assert found.ranked("induction") == []
    assert found.top("induction", 3).empty
    assert found.to_dict()["scores"]["induction"]["mean"] == [[None, None]]
    with pytest.raises(ValueError, match="no query has a target for induction: no token occurs tw"):
        head_scores(pattern, torch.tensor([1, 2, 3, 4]), scores="induction")
    with pytest.raises(ValueError, match="no query has a target: there is nothing to score"):
        pattern_score(pattern, torch.zeros(4, 4))


# ------------------------------------------------------------------ bad patterns


def broken(change):
    pattern = random_pattern(2, 2, 8).float()
    return change(pattern)


def with_value(value, *place):
    def change(pattern):
        pattern[place] = value
        return pattern

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p[None].transpose(0, 1), ValueError, r"5, .*is a batch left on\? .*pattern\[:"),
        (lambda p: p[0], ValueError, r"has 3, .*of a single layer give pattern\[None\]"),
        (lambda p: p[0, 0], ValueError, r"has 2, .*of a single head give pattern\[None, None\]"),
        (
            lambda p: p[0, 0, 0],
            ValueError,
            r"layer head query key, 4 axes; this one has 1, \(8,\)$",
        ),
        (lambda p: p[..., :7, :], ValueError, "has 7 queries and 8 keys"),
        (lambda p: p[..., :7, :7], ValueError, "7 positions, there are 8 tokens; was <|endoftext"),
        (lambda p: p[..., :5, :5], ValueError, "the pattern has 5 positions, there are 8 tokens$"),
        (lambda p: p[:, :0], ValueError, "the pattern is empty"),
        (lambda p: (p * 9).long(), TypeError, "floating-point numbers, not torch.int64"),
        (lambda p: p.numpy(), TypeError, "not ndarray"),
        (tuple, TypeError, r"not tuple: stack its layers, torch.stack\(attentions\)\[:, i\]"),
        (
            with_value(torch.nan, 1, 0, 3, 2),
            ValueError,
            "layer 1 head 0: .*query 3 to key 2 is nan",
        ),
        (
            with_value(-torch.inf, 0, 1, 2, 5),
            ValueError,
            "to key 5 is -inf .scores before the soft",
        ),
        (with_value(-0.2, 1, 0, 3, 2), ValueError, "negative number, -0.2.*attn_scores instead of"),
        (lambda p: 2 * p, ValueError, "sums to 2, more than 1.*say weighted=True"),
        (with_value(0.01, 1, 1, 2, 4), ValueError, r"query 2 attends to key 4.*\[key query\]"),
        (lambda p: p.transpose(-1, -2) / 8, ValueError, r"comes after it. Is the pattern \[key qu"),
        (with_value(0, slice(None), slice(None), 3), ValueError, "at query 3: if that is padding"),
    ],
)
def test_what_is_no_pattern(change, error, message):
    with pytest.raises(error, match=message):
        head_scores(broken(change), IDS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(tokens=IDS.float()), TypeError, "whole numbers, not torch.float32"),
        (dict(tokens="some text"), TypeError, "not str; of text, what model.to_tokens gives"),
        (dict(tokens=IDS.expand(2, 8)), ValueError, r"of one prompt, \[pos\], not of shape \(2, 8"),
        (dict(attention_mask=torch.ones(7)), ValueError, "one entry for each of the 8 positions"),
        (dict(attention_mask=torch.full((8,), 2)), ValueError, "other values than 0 and 1"),
        (dict(attention_mask=torch.zeros(8)), ValueError, "leaves no token"),
        (
            dict(attention_mask=torch.arange(8) > 1),
            ValueError,
            "attends to key 0, which is padding",
        ),
        (dict(str_tokens=["a"]), ValueError, "1 str_tokens for 8 tokens"),
        (
            dict(scores="inductoin"),
            ValueError,
            "unknown score 'inductoin'; did you mean 'induction",
        ),
        (dict(scores=[]), ValueError, "scores is empty"),
        (dict(scores=["induction", "induction"]), ValueError, "asked for twice"),
        (dict(scores={"mine": torch.ones(3, 3)}), ValueError, r"mine has shape \(3, 3\); expected"),
        (dict(scores={"mine": lambda ids: [1]}), TypeError, "of mine gave list, not a tensor"),
        (
            dict(scores={"mine": torch.ones(8, 8)}),
            ValueError,
            r"take target.tril\(\), or say causal",
        ),
        (dict(scores={"mine": torch.full((8, 8), torch.inf)}), ValueError, "not finite"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        head_scores(random_pattern(2, 2, 8), **{"tokens": IDS, **arguments})


def test_what_is_no_score():
    with pytest.raises(TypeError, match="asked for by its name, not <function"):
        checked_scores([induction_target])
    with pytest.raises(TypeError, match=r"target of 'mine' is a tensor .* not int"):
        checked_scores({"mine": 3})


def test_a_function_needs_tokens():
    with pytest.raises(ValueError, match="is a function of token ids: give tokens"):
        pattern_score(random_pattern(1, 1, 8), induction_target)


# ------------------------------------------------------------------ results


@pytest.fixture(scope="module")
def found(model) -> HeadScores:
    tokens = torch.randint(29, (3, 9), generator=torch.Generator().manual_seed(3)) % 5
    mask = torch.arange(9)[None] < torch.tensor([9, 6, 2])[:, None]
    return detect_heads(model, tokens, attention_mask=mask)


def test_a_run_scores_every_prompt_as_its_patterns_alone(model, found):
    for example, ids in enumerate(found.tokens):
        _, cache = model.run_with_cache(torch.tensor(ids), names_filter="*pattern")
        pattern = torch.stack([cache["pattern", layer][0] for layer in range(2)])
        alone = head_scores(pattern, torch.tensor(ids))
        for name in SCORES:
            expected = alone.per_example[name][..., 0]
            torch.testing.assert_close(
                found.per_example[name][..., example], expected, rtol=0, atol=1e-12, equal_nan=True
            )
            assert found.queries[name][example] == alone.queries[name][0]
    # The last prompt's two tokens differ, or not: then it counts or does not.
    assert found.queries["previous_token"] == (8, 5, 1)
    assert found.patterns is not None and found.patterns.values.shape == (4, 9, 9)


def test_attention_from_another_library(reference_model):
    theirs = reference_model(CFG | {"attn_implementation": "eager"})
    ids = torch.randint(29, (1, 12), generator=torch.Generator().manual_seed(0)) % 6
    attention = theirs(ids, output_attentions=True).attentions
    found = head_scores(torch.stack(attention)[:, 0], ids, model_name="theirs")
    ours = detect_heads(HookedGPT2.from_pretrained(theirs), ids)
    for name in SCORES:
        torch.testing.assert_close(found[name], ours[name], rtol=0, atol=1e-5)
    assert "Heads: theirs" in found.page().html() and "theirs" in repr(found)


def test_padding_on_the_left_changes_nothing(model, found):
    tokens, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9)
    for row, ids in enumerate(found.tokens):
        tokens[row, 9 - len(ids) :] = torch.tensor(ids)
        mask[row, 9 - len(ids) :] = 1
    other = detect_heads(model, tokens, attention_mask=mask)
    assert other.queries == found.queries and other.tokens == found.tokens
    for name in SCORES:
        torch.testing.assert_close(
            other.per_example[name], found.per_example[name], rtol=0, atol=1e-12, equal_nan=True
        )


def test_many_prompts_go_through_in_pieces(model, found, monkeypatch):
    monkeypatch.setattr("analyses._heads.run._CHUNK_BYTES", 4 * 2 * 9**2)
    tokens = torch.randint(29, (3, 9), generator=torch.Generator().manual_seed(3)) % 5
    whole = detect_heads(model, tokens)
    monkeypatch.undo()
    torch.testing.assert_close(
        whole.per_example["previous_token"],
        detect_heads(model, tokens).per_example["previous_token"],
    )


def test_means_and_errors_are_over_examples_with_a_target(found):
    for name in SCORES:
        values = found.per_example[name]
        there = values[..., [i for i, n in enumerate(found.queries[name]) if n]]
        torch.testing.assert_close(found[name], there.mean(-1))
        if there.shape[-1] > 1:
            stderr = there.std(-1) / there.shape[-1] ** 0.5
            torch.testing.assert_close(found.effects(name).stderr, stderr)


def test_tables(found):
    frame = found.to_frame()
    assert list(frame.columns) == [
        "score", "layer", "head", "value", "stderr", "unit", "examples", "queries",
    ]  # fmt: skip
    assert len(frame) == 5 * 4
    row = frame[(frame["score"] == "first_token") & (frame["layer"] == 1) & (frame["head"] == 0)]
    assert row["value"].item() == pytest.approx(float(found["first_token"][1, 0]))
    assert row["queries"].item() == 14 and row["examples"].item() == 3
    long = found.to_frame(per_example=True)
    assert len(long) == 5 * 4 * 3
    table = found.table(at_least=0.0)
    assert list(table.columns) == ["layer", "head", *SCORES, "role"]
    for _, row in table.iterrows():
        assert row["role"] == max(SCORES, key=lambda name, row=row: row[name])
        assert found.role((row["layer"], row["head"]), 0.0) == row["role"]
    assert set(found.roles(1.1)) == {""}
    top = found.top("first_token", 2)
    best = found["first_token"].reshape(-1).topk(2).values
    assert top["value"].tolist() == pytest.approx(best.tolist())
    assert [tuple(h) for h in found.ranked("first_token")[:2]] == list(
        zip(top["layer"], top["head"], strict=True)
    )
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["scores"]["first_token"]["queries"] == [8, 5, 1]
    assert plain["ablation"] is None and plain["copying"] is None
    with pytest.raises(
        KeyError, match=r"no score 'inductions' of attention\. Did you mean 'induction'"
    ):
        found["inductions"]
    with pytest.raises(KeyError, match="no score 'copying'"):
        found.top("copying")
    with pytest.raises(ValueError, match="k=0 is out of range"):
        found.top("induction", 0)


def test_pictures(found, tmp_path, model):
    figure = found.plot()
    names = [name for name in SCORES if name not in found.without_target]
    assert len(figure.data) == len(names)
    assert [list(row) for row in figure.data[0].z] == found[names[0]].tolist()
    assert len(found.plot("first_token", "induction").data) == 2
    found.to_html(tmp_path / "page.html", model=model, top_k=2)
    page = (tmp_path / "page.html").read_text()
    assert "What kind of head is it?" in page and "data-open=" in page
    assert "3 prompts" in page and found.provenance.weights_sha256 is None


def test_kept_patterns_stay_small(model, found, monkeypatch):
    """Where not all fit, the highest heads of each score are kept, and the page says so."""
    monkeypatch.setattr("analyses._heads.run._KEPT_BYTES", 2 * 4 * 9**2)
    tokens = torch.tensor(found.tokens[0])
    few = detect_heads(model, tokens, scores=["first_token", "previous_token"])
    assert few.patterns is not None
    best = {few.ranked(name)[0] for name in few.names} | {few.ranked("first_token")[1]}
    assert len(few.patterns.heads) == 2 and set(few.patterns.heads) <= best
    _, cache = model.run_with_cache(tokens, names_filter="*pattern")
    for head, pattern in zip(few.patterns.heads, few.patterns.values, strict=True):
        expected = cache["pattern", head.layer][0, head.head].float()
        torch.testing.assert_close(pattern, expected)
    assert "heads, those with the highest scores" in few.page().html()


# ------------------------------------------------------------------ the heads of mini


@pytest.fixture(scope="module")
def of_mini(mini) -> HeadScores:
    return detect_heads(mini, n=6, ablation="mean", copying=True)


def test_known_heads_are_found(of_mini):
    """Those that mini's card names: 3.3 for induction, 0.0 for the previous token."""
    assert of_mini.ranked("induction")[0] == (3, 3)
    assert of_mini["induction"][3, 3] > 0.9
    assert of_mini.ranked("previous_token")[0] == (0, 0)
    assert of_mini["previous_token"][0, 0] > 0.9
    assert of_mini.role((3, 3)) == "induction"
    assert of_mini.role((0, 0)) == "previous_token"
    assert of_mini["induction"].median() < 0.05
    assert of_mini.effects("induction").stderr[3, 3] < 0.05
    assert of_mini.queries["induction"] == (25,) * 6
    assert of_mini.prepend_bos is True
    assert of_mini.str_tokens[0][0] == "<|endoftext|>"


def test_the_best_induction_head_is_missed(of_mini):
    """Without it the loss on the second copy rises more than without any head that does no
    induction (and makes no keys for it), and far more than without the median head."""
    lost = of_mini.measures["ablation"]
    induction, previous = of_mini["induction"], of_mini["previous_token"]
    others = lost[(induction < 0.4) & (previous < 0.4)]
    assert len(others) >= 15
    assert lost[3, 3] > others.max()
    assert lost[3, 3] > 5 * others.median().abs() and lost[3, 3] > 0.2


def test_induction_heads_copy(of_mini):
    copying = of_mini.measures["copying"]
    assert copying[3, 3] > 0.5 and copying[3, 4] > 0.5
    assert copying[:2].max() < 0.1
    assert of_mini.copying is not None and len(of_mini.copying.tokens) > 100
    assert " Mary" in of_mini.copying.str_tokens
    frame = of_mini.copying.to_frame()
    best = frame.sort_values("copying").iloc[-1]
    assert (best["layer"], best["head"]) == (3, 4) and best["copying"] == float(copying[3, 4])
    assert len(of_mini.copying.plot().data) == 2


def test_other_measures_are_in_tables_and_pages(of_mini, tmp_path):
    frame = of_mini.to_frame()
    units = frame.groupby("score")["unit"].first().to_dict()
    assert units["ablation"] == "nats" and units["copying"] == "share of tokens"
    assert len(frame) == 8 * 24
    assert "ablation" in of_mini.table() and "negative_copying" in of_mini.table()
    text = " ".join(repr(of_mini).split())
    assert "ablation: 0.0 " in text and "copying: 3.4" in text
    of_mini.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What is lost without each head" in page
    assert "What each head writes about the token it attends to" in page
    plain = json.loads(json.dumps(of_mini.to_dict()))
    assert len(plain["copying"]["tokens"]) > 100


def test_page_in_a_browser(of_mini, tmp_path, browser):
    """What is clicked opens that head: cells of the tables, and of the heat maps, whose layer 0 is
    on top."""
    of_mini.to_html(tmp_path / "page.html", top_k=3)
    with browser.open(tmp_path / "page.html") as page:

        def opens(head, of):
            page.wait_for(f"document.querySelector('.head-maps h3').textContent.includes('{head}')")
            assert of in page.text()

        page.wait_for("document.querySelectorAll('.plot .heatmaplayer').length === 5 + 1 + 2")
        # Pages scroll smoothly to the head: a click would meet what is still on its way.
        page.evaluate("""(scroll => {
            Element.prototype.scrollIntoView = function () { scroll.call(this, {block: "center"}) };
        })(Element.prototype.scrollIntoView)""")
        opens("3.3", "induction head. previous_token")
        page.click("[data-open='0.0']")
        opens("0.0", "previous_token head. previous_token 0.9")
        induction, ablation, copying = 4, 5, 6
        for panel, layer, head in ((induction, 3, 4), (ablation, 0, 3), (copying, 2, 5)):
            page.click(".plot .nsewdrag", panel, at=((head + 0.5) / 6, (layer + 0.5) / 4))
            opens(f"{layer}.{head}", f"induction {float(of_mini['induction'][layer, head]):.3f}")
        page.click("button[data-file='head_table.csv']")
        table = pd.read_csv(io.BytesIO(page.download().data), keep_default_na=False)
        pd.testing.assert_frame_equal(table, of_mini.table())
        assert page.console == []
        assert page.requests == []


def test_prompts_of_unequal_length(mini):
    texts = ["The cat sat on the mat and the cat sat", "One two three"]
    found = detect_heads(mini, texts)
    assert [len(row) for row in found.str_tokens] == [len(mini.to_str_tokens(t)) for t in texts]
    assert found.queries["induction"][1] == 0 and found.queries["induction"][0] > 0
    one = detect_heads(mini, texts[0])
    torch.testing.assert_close(one["induction"], found["induction"], rtol=0, atol=1e-5)
    assert found.source == "2 prompts"


# ------------------------------------------------------------------ ablation


def test_ablation_equals_full_runs(mini):
    model = HookedGPT2.from_pretrained("mini", dtype="float64")
    data = generate("induction", model.tokenizer, 2, seed=5, length=6)
    _, cache = model.run_with_cache(data.corrupted_tokens, names_filter="*hook_z")
    for kind in ("zero", "mean"):
        found = induction_ablation(model, kind=kind, n=2, length=6, seed=5, layers=[0, 3])
        for row, layer in enumerate((0, 3)):
            mean = cache["z", layer].mean((0, 1))
            for head in (0, 3, 5):

                def without(z, hook, head=head, mean=mean, kind=kind):
                    z[:, :, head] = mean[head] if kind == "mean" else 0

                losses = model.run_with_hooks(
                    data.clean_tokens,
                    "loss",
                    fwd_hooks=[(("z", layer), without)],
                    loss_per_token=True,
                )[:, 7:12].mean(1)
                torch.testing.assert_close(
                    found.effects.values[row, head], losses, rtol=0, atol=1e-9
                )


def test_ablation_of_groups_of_heads(mini):
    alone = induction_ablation(mini, n=2, length=6, seed=5)
    found = induction_ablation(
        mini, n=2, length=6, seed=5, groups={"3.3": "3.3", "two": ["3.3", "3.0"]}
    )
    torch.testing.assert_close(found.effects.values[0], alone.effects.values[3, 3])
    assert float(found.effects.mean[1]) > float(found.effects.mean[0])
    assert "groups={'3.3': ['3.3'], 'two': ['3.0', '3.3']}" in found.provenance.call


# ------------------------------------------------------------------ copying


def copier(n_vocab=6):
    """One layer, two heads: head 0's output is what it reads, head 1's is its opposite."""
    d = n_vocab
    cfg = HookedGPT2Config(
        n_layers=1,
        d_model=2 * d,
        n_heads=2,
        d_mlp=1,
        n_ctx=4,
        d_vocab=d,
        tie_word_embeddings=False,
    )
    model = blank_model(cfg)
    # Token i is +1 at i and -1 at d + i: its mean is 0.
    model.W_E[:] = torch.cat([torch.eye(d), -torch.eye(d)], 1)
    model.W_U[:] = model.W_E.T
    model.W_V[0, 0, :d] = torch.eye(d)
    model.W_O[0, 0, :, :d] = torch.eye(d)
    model.W_V[0, 1, :d] = torch.eye(d)
    model.W_O[0, 1, :, :d] = -torch.eye(d)
    return model


@pytest.mark.parametrize("residual", ["embedding", "first_mlp"])
def test_an_identity_copies_everything(residual):
    model = copier()
    found = copying_scores(model, torch.arange(6), residual=residual, top_k=1)
    assert found.copying.tolist() == [[1, 0]]
    assert found.negative_copying.tolist() == [[0, 1]]


def test_a_head_that_writes_nothing_copies_nothing():
    model = copier()
    model.W_O[0, 0] = 0
    silent = copying_scores(model, [0, 3], residual="embedding", top_k=5)
    assert silent.copying.tolist() == [[0, 0]]
    assert silent.negative_copying.tolist() == [[0, 1]]


def test_copying_equals_a_plain_computation(monkeypatch):
    cfg = HookedGPT2Config(n_layers=2, d_model=16, n_heads=2, n_ctx=4, d_vocab=29)
    model = HookedGPT2.from_config(cfg, dtype="float64").requires_grad_(False)
    # The final layer norm has a part of its own in the logits, whose sign never turns.
    model.get_parameter("ln_f.bias").normal_()
    ids = torch.arange(29)
    monkeypatch.setattr("analyses._heads.copying._CHUNK_BYTES", 2 * 29 * 8)
    found = copying_scores(model, ids, top_k=4)
    for layer in range(2):
        for head in range(2):
            on_top = at_bottom = 0
            for id in ids.tolist():
                x = model(torch.tensor([[id]]), stop_at_layer=1)[0, 0]
                x = (x - x.mean()) / (x.var(unbiased=False) + model.cfg.eps).sqrt()
                x = x * model.blocks[layer].ln1.w
                written = x @ model.W_V[layer, head] @ model.W_O[layer, head]
                for sign in (1, -1):
                    top = model.unembed(model.ln_final(sign * written)).topk(4).indices
                    on_top += sign == 1 and id in top
                    at_bottom += sign == -1 and id in top
            assert float(found.copying[layer, head]) == pytest.approx(on_top / 29)
            assert float(found.negative_copying[layer, head]) == pytest.approx(at_bottom / 29)


def test_copying_is_the_same_of_processed_weights(mini):
    """Folding layer norms and centring leave it: so it is what Wang et al. measured."""
    model = HookedGPT2.from_pretrained("mini", dtype="float64")
    ids = model.to_tokens(" Mary John Tom cat house", prepend_bos=False)[0]
    found, processed = copying_scores(model, ids), copying_scores(model.processed(), ids)
    assert found.copying.max() > 0.5
    assert torch.equal(found.copying, processed.copying)
    assert torch.equal(found.negative_copying, processed.negative_copying)


def test_residuals_of_ones_own(model):
    ids = torch.tensor([3, 5, 8])
    given = copying_scores(model, ids, residual=model.W_E[ids])
    assert given.residual == "given"
    assert torch.equal(given.copying, copying_scores(model, ids, residual="embedding").copying)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(), ValueError, "no tokenizer to find names in"),
        (dict(tokens=[29]), IndexError, "token ids are 0 to 28, these 29 to 29"),
        (dict(tokens=[1], top_k=29), ValueError, "top_k=29 is out of range: 1 to 28"),
        (dict(tokens=[1], residual="mlp"), ValueError, "unknown residual 'mlp'"),
        (dict(tokens=[1], residual=torch.ones(2, 16)), ValueError, r"token d_model, \(1, 16\)"),
    ],
)
def test_bad_copying(model, arguments, error, message):
    with pytest.raises(error, match=message):
        copying_scores(model, **arguments)


# ------------------------------------------------------------------ TransformerLens' call form

TEXT = "the cat cat sat on the cat cat cat"


def test_detect_head_divides_by_all_attention(mini):
    """By its definition; TransformerLens 3.9 gives the same on random weights."""
    ids = mini.to_tokens(TEXT)[0]
    n = len(ids)
    _, cache = mini.run_with_cache(ids[None], names_filter="*pattern")
    pattern = torch.stack([cache["pattern", layer][0] for layer in range(4)])
    own = torch.eye(n).bool()
    repeats = duplicate_token_target(ids)
    after = torch.zeros(n, n, dtype=torch.bool)
    after[:, 1:] = repeats[:, :-1]
    for name, wanted in {
        "previous_token_head": previous_token_target(ids),
        "duplicate_token_head": repeats,
        "induction_head": after.tril(),
    }.items():
        assert bool((wanted & own).any()) == (name == "induction_head")
        for exclude_bos, exclude_own in ((False, False), (True, False), (False, True)):
            kept = pattern.clone()
            kept[..., 0] *= not exclude_bos
            kept[..., own] *= not exclude_own
            how = dict(exclude_bos=exclude_bos, exclude_current_token=exclude_own)
            expected = (kept * wanted).sum((-1, -2)) / kept.sum((-1, -2))
            torch.testing.assert_close(detect_head(mini, TEXT, name, **how), expected)
        off = (pattern - wanted.float()).abs().sum((-1, -2)) / n
        found = detect_head(mini, TEXT, name, error_measure="abs")
        torch.testing.assert_close(found, 1 - off, rtol=0, atol=6e-4)
        torch.testing.assert_close(
            found, detect_head(mini, TEXT, wanted.float(), error_measure="abs")
        )


def test_detect_head_on_some_heads_texts_and_a_cache(mini):
    whole = detect_head(mini, TEXT, "induction_head")
    for heads in ([(3, 3), (0, 1)], {3: [3], 0: [1]}):
        found = detect_head(mini, TEXT, "induction_head", heads)
        assert float(found[3, 3]) == pytest.approx(float(whole[3, 3]))
        assert (found == -1).sum() == 22
    _, cache = mini.run_with_cache(TEXT, remove_batch_dim=True)
    torch.testing.assert_close(detect_head(mini, TEXT, "induction_head", cache=cache), whole)
    other = detect_head(mini, "a a a", "induction_head")
    both = detect_head(mini, [TEXT, "a a a"], "induction_head")
    torch.testing.assert_close(both, (whole + other) / 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(detection_pattern="induction"), ValueError, "did you mean 'induction_head'"),
        (
            dict(detection_pattern=torch.ones(3, 3)),
            ValueError,
            r"has shape \(3, 3\); this text has",
        ),
        (dict(detection_pattern=torch.ones(10, 10)), ValueError, "numbers above its diagonal"),
        (dict(heads=[(4, 0)]), IndexError, "head 4.0 is out of range"),
        (dict(seq=[]), ValueError, "seq is empty"),
        (
            dict(error_measure="mull"),
            ValueError,
            "unknown error_measure 'mull'; did you mean 'mul'",
        ),
        (dict(cache="other"), ValueError, "the cache is of other tokens, .* this text has"),
        (dict(cache="other", seq=["a", "b"]), ValueError, "a cache is of one text"),
    ],
)
def test_bad_detection(mini, arguments, error, message):
    if "cache" in arguments:
        _, arguments["cache"] = mini.run_with_cache("two words")
    given = {"seq": TEXT, "detection_pattern": "induction_head", **arguments}
    with pytest.raises(error, match=message):
        detect_head(mini, **given)


# ------------------------------------------------------------------ bad calls of a model


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(length=200), ValueError, "makes 401 tokens, the model's context has 256: .*most 127"),
        (dict(length=1), ValueError, "length must be at least 2"),
        (dict(n=0), ValueError, "n must be at least 1"),
        (dict(tokens="a b", n=3), ValueError, "n and length are of random tokens"),
        (dict(tokens="a b", length=3), ValueError, "n and length are of random tokens"),
        (dict(ablation="men"), ValueError, "unknown kind of ablation 'men'; did you mean 'mean'"),
        (dict(attention_mask=torch.ones(1, 3)), ValueError, "goes with token ids"),
        (dict(tokens="One two", scores="induction"), ValueError, "no query has a target for induc"),
        (dict(scores="inductive"), ValueError, "unknown score 'inductive'"),
    ],
)
def test_bad_runs(mini, arguments, error, message):
    with pytest.raises(error, match=message):
        detect_heads(mini, **arguments)


def test_prompts_and_the_random_tokens_of_an_ablation(mini):
    found = detect_heads(mini, "One two", ablation="zero", n=2, length=4, seed=3)
    assert found.source == "1 prompt" and found.ablation is not None
    alone = induction_ablation(mini, kind="zero", n=2, length=4, seed=3)
    torch.testing.assert_close(found.ablation.effects.values, alone.effects.values)
    with pytest.raises(ValueError, match="unknown kind of ablation 'resample'"):
        induction_ablation(mini, kind="resample")


def test_a_model_without_tokenizer_needs_ids(model):
    with pytest.raises(
        ValueError, match="no tokenizer to draw random tokens from: from Python, give token ids"
    ):
        detect_heads(model)


def test_overflow_is_said(model):
    def overflow(scores, hook):
        scores[..., 0] = torch.nan

    with (
        model.hooks(fwd_hooks=[(("attn_scores", 1), overflow)]),
        pytest.raises(ValueError, match="attention of layer 1 on prompt 0 is not finite"),
    ):
        detect_heads(model, torch.tensor([[1, 2, 1, 2]]))


# ------------------------------------------------------------------ the command


def run(*arguments):
    return cli.status(main, "heads", [*map(str, arguments)])


def test_command_on_random_tokens(tmp_path, capsys):
    out = {name: tmp_path / f"out.{name}" for name in ("html", "csv", "json")}
    outputs = [part for name, path in out.items() for part in (f"--{name}", path)]
    options = ["--n", 2, "--length", 8, "--seed", 3, "--ablation", "zero", "--top-k", 2]
    assert run("--model", "mini", *options, *outputs) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 sequences of <|endoftext|> and 8 random tokens twice, seed 3" in shown
    assert "The 2 highest heads of each score" in shown
    assert "induction, layers down and heads across" in shown
    frame = pd.read_csv(out["csv"])
    assert set(frame["score"]) == {*SCORES, "ablation"}
    result = json.loads(out["json"].read_text())
    assert result["provenance"]["call"].startswith("python -m analyses.heads")
    assert result["provenance"]["weights_sha256"]
    assert result["ablation"]["kind"] == "zero"
    assert "Heads: mini" in out["html"].read_text()


def test_command_on_prompts(tmp_path, capsys):
    files = []
    for name, text in (("a", "The cat sat on the cat"), ("b", "One two three four")):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text(text)
    assert run(*files, "--model", "mini", "--scores", "first_token,duplicate_token") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of 1 of 2 prompts" in shown and "first_token, layers down" in shown
    assert run(files[1], "--model", "mini", "--copying", "--grid", "copying", "--csv", "-") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith('"score","layer","head"')
    assert "no query has a target" in captured.err and "copying, layers down" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scores", "inductoin"], "--scores: unknown score 'inductoin'; did you mean 'induction"),
        (["--ablation", "resample"], "--ablation: unknown kind 'resample'"),
        (["--grid", "copying"], "--grid copying needs --copying too"),
        (["--top-k", 0], "--top-k is 0: expected at least 1"),
        (["--length", 200, "--model", "mini"], "random tokens: length=200 makes 401 tokens"),
        (["no-such-file"], "there is no file no-such-file"),
    ],
)
def test_wrong_calls(capsys, arguments, message):
    assert run(*arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_prompts_and_random_tokens_do_not_mix(tmp_path, capsys):
    file = tmp_path / "a.txt"
    file.write_text("One two")
    assert run(file, "--n", 3) == 1
    assert "--n and --length are of random tokens; prompt files were given" in (
        capsys.readouterr().err
    )


# ------------------------------------------------------------------ what else can go wrong


def test_a_role_is_asked_for_by_a_checked_name(mini: HookedGPT2) -> None:
    found = detect_heads(mini, n=1, length=8)
    assert found.role("3.3") == found.role((3, 3)) == found.role((-1, 3))
    with pytest.raises(IndexError, match=r"head 0\.7 is out of range: a layer has 6 heads"):
        found.role((0, 7))
    with pytest.raises(KeyError, match="Did you mean 'induction'"):
        found.even_score("inductoin")
    with pytest.raises(ValueError, match="top_k=0 is out of range"):
        found.page(0)


def test_patterns_and_ids_from_elsewhere_say_what_to_do() -> None:
    pattern = torch.eye(3)[None, None]
    learnt = pattern.clone().requires_grad_()
    assert pattern_score(learnt, current_token_target, [1, 2, 3]).tolist() == [[1.0]]
    with pytest.raises(TypeError, match="token ids are whole numbers, not str"):
        head_scores(pattern, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"not of shape \(0,\)"):
        head_scores(pattern, [])
    upside_down = torch.rand(1, 1, 6, 6).triu() * 3
    with pytest.raises(ValueError, match=r"Is the pattern \[key query\]"):
        head_scores(upside_down, list(range(6)))


def test_copying_of_nan_is_an_error(mini: HookedGPT2) -> None:
    nothing = torch.full((2, mini.cfg.d_model), torch.nan)
    with pytest.raises(ValueError, match=r"head 0\.0 writes logits that are not finite"):
        copying_scores(mini, [1, 2], residual=nothing)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("settings", [{"n": True}, {"n": 1.5}, {"seed": 0.5}], ids=str)
def test_numbers_of_random_tokens_are_whole(mini: HookedGPT2, settings: Any) -> None:
    with pytest.raises(TypeError, match="is a whole number, not"):
        detect_heads(mini, **settings)


def test_hooks_that_are_active_are_named(mini: HookedGPT2) -> None:
    def nothing(pattern: torch.Tensor, hook: Any) -> None:
        pass

    with mini.hooks([("blocks.0.attn.hook_pattern", nothing)]):
        found = detect_heads(mini, n=1, length=8)
    note = "blocks.0.attn.hook_pattern"
    assert found.hooked == (note,) and note in repr(found)
    assert f"Functions listened at {note}" in found.page().html()
    assert note not in repr(detect_heads(mini, n=1, length=8))


def test_a_notebook_shows_the_page(mini: HookedGPT2) -> None:
    shown = detect_heads(mini, n=1, length=8)._repr_html_()
    assert shown.isascii() and "<iframe" in shown and "The highest heads of each score" in shown


def test_a_cache_of_other_tokens_is_refused(mini: HookedGPT2) -> None:
    _, cache = mini.run_with_cache("c d")
    with pytest.raises(ValueError, match="the cache is of other tokens"):
        detect_head(mini, "a b", "previous_token_head", cache=cache)
    with pytest.raises(ValueError, match="2 tokens leave nothing"):
        detect_head(mini, "a", "previous_token_head", exclude_bos=True, exclude_current_token=True)
