"""Attention: its matrices against a naive computation, selections, differences, tables, pages."""

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _tokenizers import byte_tokenizer
from rich.console import Console
from torch import Tensor

from analyses import attention as module
from analyses import cli, report
from analyses._heads import names as names
from analyses._heads.names import Head, checked_heads, checked_layers
from analyses._views import attention as views
from analyses._views import attention_figures as figures
from analyses._views import attention_page
from analyses.attention import MATRICES, AttentionDifference, AttentionPatterns, attention
from interp import HookedGPT2, HookedGPT2Config
from notebooks.browser import Browser

CFG = dict(
    n_layers=3, d_model=12, n_heads=2, d_head=6, d_mlp=24, n_ctx=64, d_vocab=264, act_fn="gelu_new"
)
VARIANTS = {
    "plain": {},
    "inverse layer": dict(scale_attn_by_inverse_layer_idx=True),
    "unscaled": dict(scale_attn_weights=False),
    "upcast": dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
}
HOSTILE = ["</script>", "<!--", "<b>&amp;", '"onload="', "\u202eabc", "\n", "\x1b[31m"]
ALL = [Head(layer, head) for layer in range(3) for head in range(2)]
TOKENS = torch.tensor([5, 80, 5, 200, 17, 80, 3])


def build(variant: str = "plain", dtype: torch.dtype = torch.float64) -> HookedGPT2:
    cfg = HookedGPT2Config(**CFG, **VARIANTS[variant])  # type: ignore[arg-type]
    model = HookedGPT2.from_config(cfg, seed=1, tokenizer=byte_tokenizer(HOSTILE, 264), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # As initialised, attention is nearly uniform, and biases are zero.
            parameter.mul_(6).add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return build()


@pytest.fixture(scope="module")
def result(model: HookedGPT2) -> AttentionPatterns:
    return attention(model, TOKENS)


def naive(model: HookedGPT2, tokens: Tensor, head: Head) -> dict[str, Tensor]:
    """Every matrix of a head, number by number, from a full cache."""
    _, cache = model.run_with_cache(tokens[None])
    W_O = model.W_O[head.layer, head.head].detach()
    q, k, v = (cache[name, head.layer][0, :, head.head] for name in "qkv")
    scale = 1.0
    if model.cfg.scale_attn_weights:
        scale /= math.sqrt(model.cfg.d_head)
    if model.cfg.scale_attn_by_inverse_layer_idx:
        scale /= head.layer + 1
    n = len(tokens)
    found = {name: torch.zeros(n, n, dtype=q.dtype) for name in MATRICES}
    for i in range(n):
        for j in range(n):
            found["raw_scores"][i, j] = (q[i] * k[j]).sum()
            found["scaled_scores"][i, j] = found["raw_scores"][i, j] * scale
            found["scores"][i, j] = found["scaled_scores"][i, j] if j <= i else -math.inf
        total = sum(math.exp(x) for x in found["scores"][i].tolist())
        for j in range(n):
            share = math.exp(float(found["scores"][i, j])) / total
            written = v[j] @ W_O
            found["pattern"][i, j] = share
            found["value_weighted"][i, j] = share * math.sqrt(float((v[j] ** 2).sum()))
            found["output_weighted"][i, j] = share * math.sqrt(float((written**2).sum()))
    return found


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance)


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_are_those_of_a_naive_computation(variant: str) -> None:
    model = build(variant)
    result = attention(model, TOKENS)
    assert result.heads == tuple(ALL)
    assert float(result.pattern[:, -1].max()) > 0.3, "attention is nearly uniform: a weak test"
    for i, head in enumerate(ALL):
        expected = naive(model, TOKENS, head)
        for name in MATRICES:
            assert close(result.matrix(name)[i], expected[name]), (head, name)
            assert torch.equal(result.head(str(head), name), result.matrix(name)[i])
    for name in ("value_weighted", "output_weighted", "raw_scores", "scaled_scores", "scores"):
        assert torch.equal(getattr(result, name), result.matrix(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["plain", "upcast"])
def test_scores_and_pattern_are_those_of_the_run(variant: str, dtype: torch.dtype) -> None:
    model = build(variant, dtype)
    result = attention(model, TOKENS)
    # The same points, as a layer norm that is looked at rounds otherwise.
    looked = [f"blocks.*.attn.hook_{name}" for name in ("q", "k", "v", "attn_scores", "pattern")]
    _, cache = model.run_with_cache(TOKENS, names_filter=looked)
    for i, head in enumerate(ALL):
        scores = cache["attn_scores", head.layer][0, head.head].float()
        assert torch.equal(result.pattern[i], cache["pattern", head.layer][0, head.head].float())
        if dtype == torch.float32:
            assert close(result.scores[i].nan_to_num(), scores.nan_to_num(), 1e-4)
        else:
            assert torch.equal(result.scores[i], scores)
        steps = result.steps(head, 4)
        rounding = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        assert abs(steps["softmax"] - steps["pattern"]).max() < rounding
        assert steps["softmax"].sum() == pytest.approx(1, abs=1e-5)
    assert result.pattern.dtype == torch.float32


@pytest.mark.parametrize(
    ("asked", "heads"),
    [
        (dict(heads="2.1"), ["2.1"]),
        (dict(heads=["2.1", (0, 0), Head(-2, 1), "1.0"]), ["2.1", "0.0", "1.1", "1.0"]),
        (dict(heads=(1, 0)), ["1.0"]),
        (dict(layers=1), ["1.0", "1.1"]),
        (dict(layers=[-1, 0]), ["2.0", "2.1", "0.0", "0.1"]),
    ],
)
def test_some_heads_are_as_among_all(
    model: HookedGPT2, result: AttentionPatterns, asked: dict[str, Any], heads: list[str]
) -> None:
    some = attention(model, TOKENS, **asked)
    assert [str(head) for head in some.heads] == heads
    selected = result.select(**asked)
    assert selected.heads == some.heads
    for i, head in enumerate(some.heads):
        for name in MATRICES:
            # Where nobody listens attention takes another way, so the last digits may differ.
            expected = result.head(head, name)
            assert close(some.matrix(name)[i].nan_to_num(), expected.nan_to_num()), (head, name)
            assert torch.equal(selected.matrix(name)[i], expected), (head, name)
        assert selected.steps(head, 3).equals(result.steps(head, 3))


def test_nothing_runs_past_the_last_layer_needed(model: HookedGPT2) -> None:
    def refuse(value: Tensor, hook: Any) -> None:
        raise AssertionError(f"the run passes {hook.name}")

    with model.hooks([("blocks.2.*", refuse)]):
        found = attention(model, TOKENS, heads=["1.1", "0.0"])
    assert found.hooked == ()
    with (
        model.hooks([("blocks.2.*", refuse)]),
        pytest.raises(AssertionError, match="the run passes"),
    ):
        attention(model, TOKENS, heads="2.0")


@pytest.mark.parametrize("form", ["ids", "batch", "text", "texts", "tokens", "padded"])
def test_a_prompt_in_every_form(model: HookedGPT2, form: str) -> None:
    text = "abcab"
    ids = model.to_tokens(text)
    given: dict[str, Any] = {
        "ids": ids[0],
        "batch": ids,
        "text": text,
        "texts": [text],
        "tokens": model.tokenize(text),
        "padded": _first(model.tokenize([text, text * 2], padding_side="left")),
    }
    found = attention(model, given[form])
    expected = attention(model, ids)
    assert found.tokens == tuple(ids[0].tolist())
    assert found.str_tokens == ("<|endoftext|>", *text)
    assert found.prepend_bos is (None if form in ("ids", "batch") else True)
    assert torch.equal(found.pattern, expected.pattern)


def _first(batch: Any) -> Any:
    from interp import TokenBatch

    return TokenBatch(
        batch.tokens[:1], batch.attention_mask[:1], batch.str_tokens[:1], batch.prepend_bos
    )


def test_one_token(model: HookedGPT2) -> None:
    one = attention(model, TOKENS[:1])
    assert one.pattern.shape == (6, 1, 1)
    assert bool((one.pattern == 1).all())
    assert one.steps("1.0")["softmax"].tolist() == [1.0]
    assert len(one.links()) == 0
    assert len(one.links(skip_first=False)) == 6
    assert list(one.links().columns) == list(one.links(skip_first=False).columns)
    assert one.plot().data and one.plot("0.0").data
    assert "no link but to the first token" in repr(one)
    page = one.page().html()
    assert "1 token, given as token ids" in page
    console = Console(file=io.StringIO(), width=100)
    views.show(one, console)


def test_the_model_stays_as_it_is(model: HookedGPT2) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    with model.hooks([("blocks.0.hook_resid_pre", lambda value, hook: None)]):
        attention(model, TOKENS)
        hooks = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
        assert hooks == ["blocks.0.hook_resid_pre"]
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


# ------------------------------------------------------------------ hooks on the model


def test_a_changed_pattern_is_what_the_run_used(
    model: HookedGPT2, result: AttentionPatterns
) -> None:
    def uniform(pattern: Tensor, hook: Any) -> Tensor:
        return torch.full_like(pattern, 0.25)

    with model.hooks([("blocks.1.attn.hook_pattern", uniform)]):
        changed = attention(model, TOKENS)
    assert changed.hooked == ("blocks.1.attn.hook_pattern",)
    assert bool((changed.head("1.0") == 0.25).all())
    assert torch.equal(changed.head("1.0", "scores"), result.head("1.0", "scores"))
    steps = changed.steps("1.0", 3)
    assert set(steps["pattern"]) == {0.25}
    assert steps["softmax"].tolist() == pytest.approx(result.head("1.0")[3].tolist())
    assert not torch.equal(changed.head("2.0"), result.head("2.0"))
    assert "hook_pattern" in repr(changed)
    page = changed.page().html()
    assert "Functions listened at blocks.1.attn.hook_pattern" in page


def test_changed_scores_are_what_the_run_used(model: HookedGPT2, result: AttentionPatterns) -> None:
    def flat(scores: Tensor, hook: Any) -> Tensor:
        return scores.masked_fill(scores.isfinite(), 2.0)

    with model.hooks([("blocks.1.attn.hook_attn_scores", flat)]):
        changed = attention(model, TOKENS)
        elsewhere = attention(model, TOKENS, heads="0.1")
    assert changed.run_scores is not None and elsewhere.run_scores is None
    assert set(changed.head("1.1", "scores")[4].tolist()) == {2.0, -math.inf}
    assert torch.equal(changed.head("1.1", "raw_scores"), result.head("1.1", "raw_scores"))
    assert close(
        changed.head("0.1", "scores").nan_to_num(), result.head("0.1", "scores").nan_to_num()
    )
    few = changed.select(heads="1.1", positions=[1, 2, 4])
    for one in (changed, few):
        steps = one.steps("1.1", 4).set_index("key")
        assert steps.loc[2, "masked"] == 2.0
        assert steps.loc[2, "softmax"] == pytest.approx(1 / 5)
        assert steps.loc[2, "pattern"] == pytest.approx(1 / 5)
    assert set(few.scores[0, 2].tolist()) == {2.0}


def test_changed_values_have_other_lengths(model: HookedGPT2, result: AttentionPatterns) -> None:
    def double(v: Tensor, hook: Any) -> Tensor:
        v[:, 3] *= 2
        return v

    with model.hooks([("blocks.0.attn.hook_v", double)]):
        changed = attention(model, TOKENS, layers=0)
    ratio = changed.value_norms / result.value_norms[:2]
    assert ratio[:, 3].tolist() == pytest.approx([2, 2])
    assert ratio[:, [0, 1, 2, 4, 5, 6]].flatten().tolist() == pytest.approx([1] * 12)
    ratio = changed.output_norms / result.output_norms[:2]
    assert ratio[:, 3].tolist() == pytest.approx([2, 2])


# ------------------------------------------------------------------ steps


def test_steps_follow_from_one_another(result: AttentionPatterns) -> None:
    steps = result.steps((1, 0), -3)
    i = result.index("1.0")
    assert steps["key"].tolist() == list(range(7))
    assert steps["token"].tolist() == list(result.str_tokens)
    assert (steps["scaled"] - steps["q_dot_k"] * float(result.scale[i])).abs().max() < 1e-12
    assert steps["masked"].tolist()[:5] == steps["scaled"].tolist()[:5]
    assert steps["masked"].tolist()[5:] == [-math.inf] * 2
    assert steps["exp"].max() == 1.0
    assert steps["exp"].tolist()[5:] == [0.0] * 2
    assert (steps["softmax"] - steps["exp"] / steps["exp"].sum()).abs().max() < 1e-12
    assert (steps["pattern"] - steps["softmax"]).abs().max() < 1e-12
    for weighted, norm in (("value_weighted", "value_norm"), ("output_weighted", "output_norm")):
        assert (steps[weighted] - steps["pattern"] * steps[norm]).abs().max() < 1e-12
        assert steps[weighted].tolist() == result.head("1.0", weighted)[4].tolist()


def test_steps_of_a_selection_are_over_all_keys(result: AttentionPatterns) -> None:
    some = result.select(positions=[5, 0, -1])
    assert some.positions == (0, 5, 6)
    whole = result.steps("0.1", 5).set_index("key").loc[[0, 5, 6]].reset_index()
    pd.testing.assert_frame_equal(some.steps("0.1", 5), whole)
    assert some.steps("0.1", 5)["softmax"].sum() < 1


# ------------------------------------------------------------------ selections and differences


def test_a_selection_keeps_numbers_and_places(result: AttentionPatterns) -> None:
    some = result.select(heads=["2.0", "0.1"], positions=[-1, 2, 4])
    assert some.heads == (Head(2, 0), Head(0, 1))
    assert some.positions == (2, 4, 6)
    assert some.tokens == result.tokens and some.n_tokens == 7
    at = [2, 4, 6]
    for name in MATRICES:
        assert torch.equal(some.matrix(name), result.matrix(name)[[4, 1]][:, at][:, :, at]), name
    assert some.slot(-1) == 2 and some.label(1).startswith("4 ")
    again = some.select(positions=4).select(heads="0.1")
    assert again.pattern.tolist() == [[[float(result.pattern[1, 4, 4])]]]
    frame = some.to_frame("pattern")
    assert sorted(set(frame["query"])) == at
    assert len(frame) == 2 * 6
    assert "3 of 7 tokens" in repr(some)
    assert "positions 2, 4, 6" in some.page().html()


def test_a_difference(model: HookedGPT2, result: AttentionPatterns) -> None:
    other_tokens = TOKENS.clone()
    other_tokens[3] = 7
    other = attention(model, other_tokens, heads=[str(head) for head in reversed(ALL)])
    difference = result.difference(other)
    assert isinstance(difference, AttentionDifference)
    assert difference.heads == result.heads
    for i, head in enumerate(ALL):
        for name in MATRICES:
            expected = result.head(head, name) - other.head(head, name)
            if name == "scores":
                expected = expected.tril()  # -inf on both sides
                expected[torch.ones(7, 7).triu(1).bool()] = 0
            assert torch.equal(difference.matrix(name)[i], expected), (head, name)
    back = other.difference(result)
    assert torch.equal(back.head("1.1"), -difference.head("1.1"))
    strongest = difference.links(1, skip_first=False)
    assert len(strongest) == 6
    for row in strongest.to_dict("records"):
        values = difference.head((row["layer"], row["head"]))
        assert abs(row["pattern"]) == float(values.abs().max())
        assert row["pattern"] == float(values[row["query"], row["key"]])
    assert {"query_token", "other_query_token"} <= set(strongest.columns)
    some = difference.select(heads="0.1", positions=[3, 4])
    assert some.positions == (3, 4) == some.first.positions == some.second.positions
    expected = result.head("0.1") - other.head("0.1")
    assert torch.equal(some.matrix("pattern")[0], expected[3:5, 3:5])
    assert difference.label(2) == result.label(2)
    assert "|" in difference.label(3)
    data = difference.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["pattern"][5][6][2] == float(difference.head("2.1")[6, 2])
    assert "first minus second" in repr(difference)


def test_a_difference_of_two_models(model: HookedGPT2, result: AttentionPatterns) -> None:
    lower = attention(build(dtype=torch.bfloat16), TOKENS)
    page = result.difference(lower).page().html()
    assert "First: 7 tokens, given as token ids, read by gpt2-from-config in float64." in page
    assert "Second: 7 tokens, given as token ids, read by gpt2-from-config in bfloat16." in page
    assert "read by" not in result.difference(attention(model, TOKENS.flip(0))).page().html()


@pytest.mark.usefixtures("unchecked")
def test_positions_may_be_of_numpy_and_torch(model: HookedGPT2) -> None:
    found = attention(model, TOKENS, heads="2.1")
    assert found.select(positions=np.int64(-1)).positions == (found.n_tokens - 1,)
    assert found.select(positions=torch.tensor([1, 2])).positions == (1, 2)
    for wrong in (slice(2), "12", [1.5]):
        with pytest.raises(TypeError, match="positions are whole numbers"):
            found.select(positions=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"top_k is a whole number, not 2\.5"):
        found.links(2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="other is AttentionPatterns, not int"):
        found.difference(3)  # type: ignore[arg-type]


def test_a_difference_of_two_models_says_so(model: HookedGPT2) -> None:
    found = attention(model, TOKENS, heads="2.1")
    other = HookedGPT2.from_config(model.cfg, seed=5, dtype=model.dtype)
    both = found.hashed(model).difference(attention(other, TOKENS, heads="2.1").hashed(other))
    page = both.page().html()
    assert "<dt>second prompt" in page and report.weights_sha256(other) in page
    assert repr(both).count("(read by ") == 2
    assert "<dt>second prompt" not in found.difference(found).page().html()


def test_several_prompts_share_the_room_of_a_page(model: HookedGPT2) -> None:
    found = attention(model, TOKENS)
    one, four = (attention_page.page([("", found)] * n).html() for n in (1, 4))
    assert "To keep this page small" not in one + four
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "BUDGET", 4 * 6 * 21)
        assert "To keep this page small" in attention_page.page([("", found)] * 4).html()


def test_numbers_that_are_none(model: HookedGPT2) -> None:
    def spoil(pattern: Tensor, hook: Any) -> Tensor:
        pattern[0, 1, 4, 2] = math.nan
        return pattern

    with model.hooks([("blocks.2.attn.hook_pattern", spoil)]):
        found = attention(model, TOKENS, heads="2.1")
    links = found.links(100)
    assert links["pattern"].isna().tolist() == [False] * 20 + [True]
    assert found.to_dict()["heads"][0]["pattern"][4][2] is None
    assert math.isnan(found.plot("2.1").data[0].z[4][2])
    assert "2.1: " in repr(found)
    with pytest.raises(ValueError, match=r"pattern of head 2\.1 is nan at query 4, key 2"):
        found.page()


def test_differences_that_there_are_not(model: HookedGPT2, result: AttentionPatterns) -> None:
    with pytest.raises(ValueError, match=r"7 are \['.*; 6 are \["):
        result.difference(attention(model, TOKENS[:6]))
    with pytest.raises(ValueError, match=r"only the first has 2\.1, only the second none"):
        result.difference(result.select(heads=[str(head) for head in ALL[:-1]]))
    with pytest.raises(ValueError, match=r"different positions: \(0, 1, 2, .*\(1, 2\)"):
        result.difference(result.select(positions=[1, 2]))
    cfg = HookedGPT2Config(**(CFG | dict(n_heads=3, d_head=4)))  # type: ignore[arg-type]
    other = attention(HookedGPT2.from_config(cfg), TOKENS)
    with pytest.raises(ValueError, match="3 layers of 2 heads and 3 layers of 3 heads"):
        result.difference(other)


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize("skip_first", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
def test_links_are_the_largest(result: AttentionPatterns, matrix: str, skip_first: bool) -> None:
    links = result.links(4, matrix, skip_first=skip_first)
    assert len(links) == 4 * 6
    for head in ALL:
        values = result.head(head, matrix)
        there = [(i, j) for i in range(7) for j in range(i + 1) if j or not skip_first]
        expected = sorted(there, key=lambda at: -float(values[at]))[:4]
        mine = links[(links["layer"] == head.layer) & (links["head"] == head.head)]
        assert list(zip(mine["query"], mine["key"], strict=True)) == expected
        assert mine["rank"].tolist() == [0, 1, 2, 3]
        assert mine[matrix].tolist() == [float(values[at]) for at in expected]
        assert mine["key_token"].tolist() == [result.str_tokens[j] for _, j in expected]


def test_links_of_a_selection_without_the_first_token(result: AttentionPatterns) -> None:
    some = result.select(heads="1.1", positions=[2, 5])
    pairs = set(zip(some.links(9)["query"], some.links(9)["key"], strict=True))
    assert pairs == {(2, 2), (5, 2), (5, 5)}
    assert "left out" not in views.links_note(some, "pattern", skip_first=True)
    assert "position 0 left out" in views.links_note(result, "pattern", skip_first=True)


def test_a_frame_has_a_row_per_number(result: AttentionPatterns) -> None:
    frame = result.to_frame()
    assert len(frame) == 6 * 28
    assert not frame.duplicated(["layer", "head", "query", "key"]).any()
    assert (frame["key"] <= frame["query"]).all()
    for row in frame.sample(40, random_state=0).to_dict("records"):
        head = Head(row["layer"], row["head"])
        for name in set(MATRICES) - {"scaled_scores"}:
            assert row[name] == float(result.head(head, name)[row["query"], row["key"]])
        assert row["query_token"] == result.str_tokens[row["query"]]
        assert row["key_token"] == result.str_tokens[row["key"]]
    sums = frame.groupby(["layer", "head", "query"])["pattern"].sum()
    assert (sums - 1).abs().max() < 1e-12


def test_a_frame_survives_csv(model: HookedGPT2) -> None:
    found = attention(model, "a" + "".join(HOSTILE), heads=["0.1", "2.0"])
    frame = found.to_frame("pattern", "scores")
    back = pd.read_csv(io.StringIO(cli.csv_text(frame)), keep_default_na=False)
    pd.testing.assert_frame_equal(back, frame, check_exact=False, rtol=1e-12)
    assert set(HOSTILE) <= set(back["key_token"])


def test_json_holds_the_numbers(result: AttentionPatterns) -> None:
    data = result.select(heads=["1.0"], positions=[0, 3, 6]).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    (head,) = data["heads"]
    assert (head["layer"], head["head"]) == (1, 0)
    assert [len(row) for row in head["pattern"]] == [1, 2, 3]
    assert head["pattern"][2][1] == float(result.head("1.0")[6, 3])
    assert head["scores"][2][1] == float(result.head("1.0", "scores")[6, 3])
    assert head["output_norms"] == result.output_norms[2, [0, 3, 6]].tolist()
    assert [one["id"] for one in data["tokens"]] == list(result.tokens)
    assert data["positions"] == [0, 3, 6]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("tokens", "options", "error", "match"),
    [
        (["ab", "cd"], {}, ValueError, "one prompt, these are 2: ask for each on its own"),
        (torch.zeros(3, 4, dtype=torch.long), {}, ValueError, "one prompt, these are 3"),
        ("", {}, ValueError, "empty"),
        (torch.zeros(1, 2, 2, dtype=torch.long), {}, Exception, "tokens"),
        ("ab", dict(layers=0, heads="0.0"), ValueError, "layers .* or heads, not both"),
        ("ab", dict(layers=3), IndexError, r"layer 3 is out of range: there are 3 layers, 0 to 2"),
        ("ab", dict(layers=[0, -3]), ValueError, "layer 0 is asked for twice"),
        ("ab", dict(layers=[]), ValueError, "layers is empty"),
        ("ab", dict(heads="0.2"), IndexError, r"head 0.2 .* a layer has 2 heads, 0 to 1"),
        ("ab", dict(heads="3.0"), IndexError, r"head 3.0 .* there are 3 layers"),
        ("ab", dict(heads=["0.0", (-3, 0)]), ValueError, r"0.0 is asked for twice .*-3.0"),
        ("ab", dict(heads="L1H0"), ValueError, "'L1H0' is no head: .* such as 3.1"),
        ("ab", dict(heads="1"), ValueError, "all heads of a layer there is layers"),
        ("ab", dict(heads=1.1), TypeError, "1.1 is no head"),
        ("ab", dict(heads=[]), ValueError, "heads is empty"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | dict) else "",
)
def test_what_attention_refuses(
    model: HookedGPT2, tokens: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        attention(model, tokens, **options)


@pytest.mark.parametrize(
    ("ask", "error", "match"),
    [
        (lambda r: r.matrix("patern"), ValueError, "unknown matrix 'patern'.*mean 'pattern'"),
        (lambda r: r.plot(matrix="x"), ValueError, "unknown matrix 'x'"),
        (lambda r: r.plot("2.1"), ValueError, "head 2.1 is not in this result; it has 0.0, 1.0"),
        (lambda r: r.head("7.0"), IndexError, "7.0 is out of range"),
        (lambda r: r.steps("0.0", 7), IndexError, r"position 7 .* 7 tokens, 0 to 6 \(or -7"),
        (lambda r: r.steps("0.0", 1), ValueError, "position 1 is not in this selection; .*0, 2, 5"),
        (lambda r: r.select(positions=[]), ValueError, "positions is empty"),
        (lambda r: r.select(positions=[2, -5]), ValueError, r"position 2 .*twice \(2, -5\)"),
        (lambda r: r.select(layers=2), ValueError, "layer 2 is not in this result; it has 0, 1"),
        (lambda r: r.select(layers=0, heads="0.0"), ValueError, "not both"),
        (lambda r: r.links(0), ValueError, "top_k=0"),
        (lambda r: r.to_frame("scale"), ValueError, "unknown matrix"),
    ],
    ids=range(12),
)
def test_what_a_result_refuses(
    result: AttentionPatterns, ask: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ask(result.select(heads=["0.0", "1.0"], positions=[0, 2, 5]))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("1.0", [(1, 0)]),
        (["1.0"], [(1, 0)]),
        ((1, 0), [(1, 0)]),
        (((1, 0), (0, 1)), [(1, 0), (0, 1)]),
        ([Head(1, 0), "-1.-1"], [(1, 0), (3, 1)]),
        (torch.tensor([[2, 1], [0, 0]]), [(2, 1), (0, 0)]),
    ],
    ids=range(6),
)
def test_names_of_heads(asked: Any, expected: list[tuple[int, int]]) -> None:
    assert list(checked_heads(asked, 4, 2)) == expected
    assert len(checked_heads(None, 4, 2)) == 8
    assert checked_layers(torch.tensor([3, 0]), 4) == (3, 0)


def test_heads_and_layers_of_a_command_line() -> None:
    assert names.parse_heads("3.1, -1.0") == [Head(3, 1), Head(-1, 0)]
    assert names.parse_layers("0,-1") == [0, -1]
    with pytest.raises(cli.CommandError, match=r"--heads '3,1': '3' is no head"):
        names.parse_heads("3,1")
    with pytest.raises(cli.CommandError, match=r"--layers '3.1': expected layers .*--heads"):
        names.parse_layers("3.1")


# ------------------------------------------------------------------ pictures


def test_a_head_plotted_large(result: AttentionPatterns) -> None:
    figure = result.plot("1.0")
    (heat,) = figure.data
    for i in range(7):
        for j in range(7):
            value = heat.z[i][j]
            assert math.isnan(value) if j > i else value == float(result.head("1.0")[i, j])
    assert [name.strip("\u2068\u2069") for name in heat.x] == [
        result.label(slot).replace("&", "&amp;") for slot in range(7)
    ]
    assert heat.y == heat.x
    raw = result.plot("1.0", "raw_scores").data[0]
    assert raw.z[0][6] == float(result.head("1.0", "raw_scores")[0, 6])
    assert raw.zmin == -raw.zmax
    assert (heat.zmin, heat.zmax) == (0.0, 1.0)
    assert figure.layout.title.text == "head 1.0"


def test_all_heads_as_small_maps(result: AttentionPatterns) -> None:
    (heat,) = result.plot().data
    pitch = 7 + 1
    for head in ALL:
        top, left = pitch * head.layer, pitch * head.head
        for i, j in ((0, 0), (4, 1), (6, 6)):
            assert heat.z[top + i][left + j] == float(result.head(head)[i, j])
            assert f"<b>{head}</b>" in heat.text[top + i][left + j]
        assert math.isnan(heat.z[top + 1][left + 3])
    (ragged,) = result.select(heads=["2.1", "0.0"]).plot().data
    assert ragged.z[pitch][pitch] == 1.0 and ragged.z[pitch][0] is None


def test_small_maps_of_a_long_prompt_show_blocks_and_say_so(
    monkeypatch: pytest.MonkeyPatch, result: AttentionPatterns
) -> None:
    monkeypatch.setattr(figures, "_MOST_CELLS", 100)
    figure = result.plot()
    (heat,) = figure.data
    assert "largest in blocks of 2 x 2 tokens" in figure.layout.xaxis.title.text
    pattern = result.head("0.0")
    assert heat.z[3][0] == float(pattern[6, :2].max())
    assert heat.z[1][1] == float(pattern[2:4, 2:4].max())
    assert math.isnan(heat.z[0][1])
    pooled = figures._pooled(torch.tensor([[1.0, -3.0], [2.0, math.nan]]), 2)
    assert pooled.tolist() == [[-3.0]]


def test_a_layer_side_by_side_and_coloured_tokens(result: AttentionPatterns) -> None:
    view = result.side_by_side(-2)
    assert view.props["attentionHeadNames"] == ["1.0", "1.1"]
    for i, name in enumerate(("1.0", "1.1")):
        rows = view.props["attention"][i]
        assert rows[5] == pytest.approx(result.head(name)[5, :6].tolist(), rel=1e-5)
    raw = result.side_by_side(1, "raw_scores").props["attention"]
    assert raw[0][2] == pytest.approx(result.head("1.0", "raw_scores")[2].tolist(), rel=1e-5)
    best = result.busiest_layer()
    assert result.side_by_side().props["attentionHeadNames"] == [f"{best}.0", f"{best}.1"]
    view = result.attended("2.1", 4, "scores")
    expected = [*result.head("2.1", "scores")[4, :5].tolist(), 0, 0]
    assert view.props["values"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="layer 0 is not in this result"):
        result.select(layers=1).side_by_side(0)


def test_heads_with_most_to_see_come_first(result: AttentionPatterns) -> None:
    pattern = torch.zeros(6, 7, 7)
    pattern[:, range(7), range(7)] = 1  # to themselves
    pattern[2, 1:] = torch.eye(7)[:6]  # to the token before
    pattern[4, :, 1:] = 0
    pattern[4, :, 0] = 1  # to the first
    pattern[5, 4:] = torch.eye(7)[2]
    found = dataclasses.replace(result, pattern=pattern.double())
    assert [str(head) for head in found.busiest()[:2]] == ["1.0", "2.1"]
    assert found.busiest_layer() == 1
    same = found.difference(found)
    assert same.busiest()[0] == ALL[0]
    changed = dataclasses.replace(found, pattern=found.pattern.clone())
    changed.pattern[3, 5, 2] = 0.1
    assert str(changed.difference(found).busiest()[0]) == "1.1"


def _console(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width)


def _printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_lists_links_and_shows_a_single_head(result: AttentionPatterns) -> None:
    console = _console()
    views.show(result, console, 2)
    text = _printed(console)
    for row in result.links(2).to_dict("records"):
        assert f"{row['query']} {cli.visible(row['query_token'])} → " in text
        assert f"{row['pattern']:.3f}" in text
    assert "links to position 0 left out" in text
    assert "queries down" not in text
    console = _console()
    views.show(result.select(heads="1.1"), console)
    rows = _printed(console).splitlines()
    last = next(line for line in reversed(rows) if line.startswith("6 "))
    expected = [f"{100 * x:.0f}" for x in result.head("1.1")[6].tolist()]
    assert last.split()[-7:] == expected


def test_the_terminal_of_a_difference(model: HookedGPT2, result: AttentionPatterns) -> None:
    console = _console()
    views.show(result.difference(attention(model, TOKENS.flip(0))), console)
    text = " ".join(_printed(console).split())
    assert "first minus second prompt" in text
    assert "First: 7 tokens" in text and "Second: 7 tokens" in text
    assert re.search(r"→ \d \S+ [+-]0\.\d{3}", text)


def test_a_grid_too_large_for_the_terminal(
    monkeypatch: pytest.MonkeyPatch, result: AttentionPatterns
) -> None:
    monkeypatch.setattr(views, "_MOST_GRID", 6)
    console = _console()
    views.show(result.select(heads="0.0"), console)
    assert "7 x 7 cells are too many for a grid here" in _printed(console)


def test_hostile_tokens_neither_reach_the_terminal_nor_break_the_page(
    model: HookedGPT2, tmp_path: Path
) -> None:
    found = attention(model, "a" + "".join(HOSTILE))
    console = _console(200)
    views.show(found.select(heads="0.0"), console)
    assert "\x1b" not in _printed(console) and "\u202e" not in _printed(console)
    found.to_html(tmp_path / "page.html", model=model)
    page = (tmp_path / "page.html").read_text("utf-8")
    body = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "<b>&amp;amp;" not in body and "&lt;b&gt;&amp;amp;" in body
    assert "\x1b" not in body and "\u202e" not in body
    assert found.hashed(model).provenance.weights_sha256 in body  # type: ignore[operator]
    figure = str(found.plot("0.0").to_json())
    assert "<b>&amp;" not in figure and "\\u003cb\\u003e&amp;" not in figure


def test_a_page_has_maps_steps_links_and_provenance(result: AttentionPatterns) -> None:
    page = result.page().html()
    assert page.count('class="head-maps"') == 1
    found = re.search(r"Step by step: head (\d\.\d) at query (\d)", page)
    assert found
    head, query = found[1], int(found[2])
    assert f'data-open="{head}"' in page
    assert "attention(model, ..., prepend_bos=True)" in page
    steps = result.steps(head, query)
    assert f"{float(steps['output_norm'].iloc[0]):.2f}" in page


def test_steps_of_a_long_prompt_are_cut_and_said(model: HookedGPT2) -> None:
    long = attention(model, torch.arange(60) % 50, heads="1.0")
    page = long.page().html()
    found = re.search(r"Of (\d+) keys up to the query the 24 with the largest share", page)
    assert found and 30 < int(found[1]) <= 60
    rows, note = attention_page._worth_following(long.steps("1.0", 50), 50)
    best = long.head("1.0")[50].topk(24).indices.sort().values
    assert rows["key"].tolist() == [*best.tolist(), 51, 52]
    assert "Of 9 keys after the query the first 2" in note


def test_a_page_of_two_prompts_in_a_browser(
    browser: Browser, model: HookedGPT2, result: AttentionPatterns, tmp_path: Path
) -> None:
    hostile = attention(model, "a" + "".join(HOSTILE), layers=[0, 2])
    difference = result.difference(attention(model, TOKENS.flip(0)))
    attention_page.page([("one", result), ("two", hostile), ("three", difference)]).write(
        tmp_path / "p.html"
    )
    titles = (
        "[...document.querySelectorAll('.head-maps')].map(e => e.querySelector('h3').innerText)"
    )
    with browser.open(tmp_path / "p.html") as page:
        page.click("[data-file='one attention.csv']")
        data = page.download()
        before = page.evaluate(titles)
        other = next(str(head) for head in ALL if f"Head {head}:" not in before[0])
        page.click(f"[data-open='{other}']")
        after = page.evaluate(titles)
        assert after[0].startswith(f"Head {other}:") and after[1:] == before[1:]
        assert [text for text in HOSTILE[:4] if text in page.text()] == HOSTILE[:4]
        assert page.console == []
        assert page.requests == []
    assert data.name == "one attention.csv"
    frame = pd.read_csv(io.BytesIO(data.data))
    assert frame["pattern"].tolist() == pytest.approx(result.to_frame()["pattern"].tolist())


def test_a_notebook_shows_all_heads(browser: Browser, result: AttentionPatterns) -> None:
    shown = result._repr_html_()
    with browser.open(f"<!DOCTYPE html><meta charset='utf-8'><p>before{shown}<p>after") as page:
        (frame,) = page.frames
        frame.wait_for("document.querySelectorAll('.thumb').length == 6")
        assert "after" in page.text()
        assert page.console == []
        assert page.requests == []


# ------------------------------------------------------------------ the bundled model


def test_mini_has_a_previous_token_head_and_an_induction_head(mini: HookedGPT2) -> None:
    ids = torch.randint(1000, 4000, (12,))
    found = attention(mini, torch.cat([ids, ids]), heads=["0.0", "3.3"])
    previous = found.head("0.0").diagonal(-1)[1:]
    assert float(previous.mean()) > 0.8
    targets = found.head("3.3").diagonal(-11)[1:]  # the token after the earlier copy
    assert float(targets.mean()) > 0.6
    best = found.links(5).query("layer == 3")
    assert set(best["query"] - best["key"]) == {11}


# ------------------------------------------------------------------ the command line


@pytest.fixture
def command(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    """`command(*arguments)`: run it in this process; status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        given = ["--model", "mini", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["attention", *given])
        monkeypatch.setenv("COLUMNS", "120")
        status = cli.status(module.main, "python -m analyses.attention", given)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("When Mary and John went out, John gave\n", encoding="utf-8")
    second.write_text("When Mary and John went out, Mary gave\n", encoding="utf-8")
    return first, second


def test_the_command_writes_what_it_shows(
    command: Any, prompts: tuple[Path, Path], tmp_path: Path, mini: HookedGPT2
) -> None:
    page, table, data = (tmp_path / name for name in ("p.html", "t.csv", "d.json"))
    status, out, err = command(
        prompts[0], "--heads", "3.3,0.0", "--html", page, "--csv", table, "--json", data
    )
    assert (status, err) == (0, "")
    expected = attention(mini, prompts[0].read_text("utf-8").strip(), heads=["3.3", "0.0"])
    frame = pd.read_csv(table)
    assert list(frame.columns) == ["source", *expected.to_frame().columns]
    assert frame["pattern"].tolist() == pytest.approx(expected.to_frame()["pattern"].tolist())
    (one,) = json.loads(data.read_text("utf-8"))
    assert one["source"] == str(prompts[0])
    assert len(one["provenance"]["weights_sha256"]) == 64
    assert "--heads 3.3,0.0" in one["provenance"]["call"]
    assert "<h1>Attention: mini</h1>" in page.read_text("utf-8")
    for row in expected.links(3).to_dict("records"):
        assert views.link_text(row, "pattern", expected) in out


def test_the_command_compares_two_prompts(command: Any, prompts: tuple[Path, Path]) -> None:
    first, second = prompts
    options = ("--against", second, "--layers", "-1", "--positions", "-1,2:5", "--top-k", "1")
    status, out, err = command(first, *options)
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    assert f"{first} minus {second}" in text
    assert "of these, positions 2, 3, 4, 9" in text
    assert len(re.findall(r"^3\.\d ", out, flags=re.M)) == 6
    status, out, err = command(first, second, "--heads", "0.0")
    assert status == 0 and out.count("head 0.0: pattern in hundredths") == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--layers", "0", "--heads", "0.0"], "--layers .* or --heads, not both"),
        (["--heads", "9.0"], "head 9.0 is out of range"),
        (["--heads", "0"], "'0' is no head"),
        (["--layers", "0.1"], "--layers '0.1': expected layers"),
        (["--positions", "3-5"], "--positions '3-5': expected all, or numbers and ranges"),
        (["--positions", "99"], "position 99 is out of range: the prompt has 10 tokens"),
        (["--positions", "4:4"], "positions is empty"),
        (["--matrix", "values"], "unknown matrix 'values'; did you mean 'value_weighted'"),
        (["--top-k", "0"], "--top-k is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_command_refuses(
    command: Any, prompts: tuple[Path, Path], options: list[str], match: str
) -> None:
    status, _, err = command(prompts[0], *options)
    assert status == 1
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert re.search(match, err)


def test_prompts_of_unlike_length_are_shown(command: Any, prompts: tuple[Path, Path]) -> None:
    prompts[1].write_text("When Mary", encoding="utf-8")
    status, _, err = command(prompts[0], "--against", prompts[1])
    assert status == 1
    assert "first.txt against" in err and "10 are [" in err and "3 are [" in err


def test_help_comes_without_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['attention', '--help']\n"
        "try: runpy.run_module('analyses.attention', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--against" in done.stdout
