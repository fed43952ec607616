"""Next tokens, branches and surprisal: against full forward passes, in pages, and as a command."""

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from _commands import help_without_torch
from _tokenizers import byte_tokenizer
from rich.console import Console
from torch import Tensor

from analyses import cli
from analyses import next_token as module
from analyses._next_token import page as page_module
from analyses._next_token import run as run_module
from analyses._next_token import session as session_module
from analyses._next_token import surprisal as surprisal_module
from analyses._next_token.session import Session, converse
from analyses._views import next_token as views
from analyses.next_token import branches, next_token, surprisal
from analyses.report import weights_sha256
from interp import HookedGPT2, HookedGPT2Config
from notebooks.browser import Browser

CFG = HookedGPT2Config(
    n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=24, d_vocab=264, act_fn="gelu_new"
)
HOSTILE = ["</script>", "<!--", "<b>&amp;", '"onload="', " Mary", "\n", "\x1b[31m"]
IOI = "When Mary and John went to the store, John gave a drink to"
EXACT = {"rtol": 0, "atol": 1e-9}


def build(dtype: torch.dtype = torch.float64) -> HookedGPT2:
    model = HookedGPT2.from_config(
        CFG, seed=1, tokenizer=byte_tokenizer(HOSTILE, CFG.d_vocab), dtype=dtype
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # as initialised, all predictions are nearly uniform
    return model


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return build()


def naive(model: HookedGPT2, ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the next token at every position, by one full pass: [pos d_vocab]."""
    logits = model(torch.tensor([list(ids)]))[0].detach()
    return (logits / temperature).log_softmax(-1)


def rank(log_probs: Tensor, id: int) -> int:
    return int((log_probs > log_probs[id]).sum())


class Reading:
    """Counts the tokens that a model reads, and keeps the batch sizes."""

    def __init__(self, model: HookedGPT2) -> None:
        self.model, self.shapes = model, []

    def __enter__(self) -> "Reading":
        self._hooks = self.model.hooks(fwd_hooks=[("hook_embed", self._count)])
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _count(self, embed: Tensor, hook: Any) -> None:
        self.shapes.append(tuple(embed.shape[:2]))

    @property
    def tokens(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)


# ------------------------------------------------------------------ the next token


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 1])
def test_likeliest_tokens_are_those_of_a_full_pass(model: HookedGPT2, temperature: float) -> None:
    prompts = ["abc", "defghi", "x"]  # of unequal lengths
    result = next_token(model, prompts, top_k=7, temperature=temperature)
    for batch, text in enumerate(prompts):
        ids = model.to_tokens(text)[0].tolist()
        assert result.tokens[batch] == tuple(ids)
        log_probs, logits = naive(model, ids, temperature)[-1], model(text)[0, -1].detach()
        top = log_probs.sort(descending=True)
        assert torch.equal(result.top_tokens[batch], top.indices[:7])
        torch.testing.assert_close(result.top_log_probs[batch], top.values[:7], **EXACT)
        torch.testing.assert_close(result.top_probs[batch], top.values[:7].exp(), **EXACT)
        torch.testing.assert_close(result.top_logits[batch], logits[top.indices[:7]], **EXACT)
        entropy = -(log_probs.exp() * log_probs).sum()
        torch.testing.assert_close(result.entropy[batch], entropy, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = build(dtype)
    result = next_token(model, "abc", top_k=264)
    logits = model("abc")[0, -1].detach()
    expected = logits.log_softmax(-1, dtype=torch.float32)
    got = result.top_log_probs[0]
    assert got.dtype == torch.float32
    # The logits themselves in bfloat16, what follows from them in float32.
    rounding = float((result.top_logits[0] - logits[result.top_tokens[0]].float()).abs().max())
    assert rounding <= (1e-5 if dtype == torch.float32 else 0.1)
    close = {"rtol": 0, "atol": 1e-5 + 2 * rounding}
    torch.testing.assert_close(got, expected[result.top_tokens[0]], **close)


def test_extreme_temperatures(model: HookedGPT2) -> None:
    cold, hot = (next_token(model, "abc", temperature=t, top_k=264) for t in (1e-6, 1e30))
    assert cold.top_probs[0].tolist() == [1.0] + [0.0] * 263
    assert cold.entropy.tolist() == [0.0]
    torch.testing.assert_close(hot.entropy[0].item(), math.log(264))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(model: HookedGPT2, side: Any) -> None:
    batch = model.tokenize(["abc", "defghi"], padding_side=side)
    result = next_token(model, batch, continuations=["xyz", " Mary"])
    by_mask = next_token(
        model, batch.tokens, attention_mask=batch.attention_mask, continuations=["xyz", " Mary"]
    )
    assert by_mask.prepend_bos is None and result.prepend_bos is True
    for number, text in enumerate(["abc", "defghi"]):
        alone = next_token(model, text, continuations=["xyz", " Mary"])
        for one in (result, by_mask):
            assert one.tokens[number] == alone.tokens[0]
            for name in ("top_log_probs", "continuation_log_probs", "continuation_entropy"):
                expected = getattr(alone, name)[0]
                got = getattr(one, name)[number]
                torch.testing.assert_close(got, expected, **EXACT, equal_nan=True)


# ------------------------------------------------------------------ continuations

ASKED: list[Any] = [" Mary", "xyz", "x", 5, [7, 8, 9, 10], "é", "z<|endoftext|>"]


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_continuations_are_those_of_full_passes(model: HookedGPT2, temperature: float) -> None:
    prompts = ["abc", "defghi", "x"]
    result = next_token(model, prompts, continuations=ASKED, temperature=temperature)
    for batch, text in enumerate(prompts):
        ids = model.to_tokens(text)[0].tolist()
        for index, (given, one) in enumerate(zip(ASKED, result.continuations, strict=True)):
            if isinstance(given, str):
                expected = model.to_tokens(given, prepend_bos=False)[0].tolist()
                assert (one.text, one.from_text) == (given, True)
            else:
                expected = given if isinstance(given, list) else [given]
                assert not one.from_text
            assert list(one.ids) == expected
            whole = [*ids, *one.ids]
            log_probs = naive(model, whole, temperature)
            logits = model(torch.tensor([whole]))[0].detach()
            total = 0.0
            for step, id in enumerate(one.ids):
                here = log_probs[len(ids) - 1 + step]
                place = (batch, index, step)
                assert float(result.continuation_log_probs[place]) == pytest.approx(
                    float(here[id]), abs=1e-9
                )
                assert float(result.continuation_logits[place]) == pytest.approx(
                    float(logits[len(ids) - 1 + step, id]), abs=1e-9
                )
                assert float(result.continuation_entropy[place]) == pytest.approx(
                    float(-(here.exp() * here).sum()), abs=1e-9
                )
                assert int(result.continuation_ranks[place]) == rank(here, id)
                total += float(here[id])
            rest = (batch, index, slice(len(one.ids), None))
            assert result.continuation_log_probs[rest].isnan().all()
            assert (result.continuation_ranks[rest] == -1).all()
            assert float(result.total_log_probs[batch, index]) == pytest.approx(total, abs=1e-9)
            assert float(result.total_probs[batch, index]) == pytest.approx(
                math.exp(total), rel=1e-9
            )


def test_the_prompt_is_read_once(model: HookedGPT2) -> None:
    with Reading(model) as reading:
        next_token(model, "abcdefgh", continuations=["xyz", "uvw", "q"])
    assert reading.shapes == [(1, 9), (2, 2)]  # prompt; all but the last token of two
    with Reading(model) as reading:
        next_token(model, "abcdefgh", continuations=["x", "y"])
    assert reading.shapes == [(1, 9)]


def test_memory_is_bounded_and_numbers_are_the_same(
    model: HookedGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["abc", "defghi", "x", "yz"]
    asked = ["xyz", "uvwx", "pq"]
    plain = next_token(model, prompts, continuations=asked)
    tree = branches(model, "abc", 3, 3, min_prob=0)
    monkeypatch.setattr(run_module, "_CACHE_BYTES", 2 * run_module.bytes_per_row(model, 10))
    monkeypatch.setattr(run_module, "_CHUNK_BYTES", 2 * CFG.d_vocab * 8)
    with Reading(model) as reading:
        bounded = next_token(model, prompts, continuations=asked)
    assert reading.shapes[0] == (2, 7) and max(rows for rows, _ in reading.shapes) == 3
    with Reading(model) as reading:
        other = branches(model, "abc", 3, 3, min_prob=0)
    assert reading.shapes == [(1, 4), (3, 1), (3, 2), (3, 2), (3, 2)]
    for name in ("top_log_probs", "entropy", "continuation_log_probs", "continuation_ranks"):
        got, expected = getattr(bounded, name), getattr(plain, name)
        torch.testing.assert_close(got, expected, **EXACT, equal_nan=True)
    assert torch.equal(other.token, tree.token)
    torch.testing.assert_close(other.total_log_prob, tree.total_log_prob, **EXACT)


def test_text_that_is_tokenised_otherwise_together_is_refused(mini: HookedGPT2) -> None:
    with pytest.raises(ValueError) as error:
        next_token(mini, "John gave a drink to ", continuations=["Mary"])
    message = str(error.value)
    assert "together they end in [' drink', ' to', ' Mary']" in message
    assert "apart in [' drink', ' to', ' ', 'Mary']" in message
    ids = mini.to_tokens("Mary", prepend_bos=False)[0].tolist()
    assert f"give their ids (in Python): {ids}" in message
    # Ids are taken as they are, and so are those that no text has.
    meant = next_token(mini, "John gave a drink to ", continuations=[ids])
    assert meant.continuations[0].ids == tuple(ids)
    odd = mini.to_tokens("to", prepend_bos=False)[0].tolist() * 2
    next_token(mini, torch.tensor(odd), continuations=[" Mary"])
    half = mini.to_tokens("é", prepend_bos=False)[0].tolist()[:1]
    next_token(mini, torch.tensor(half), continuations=[" Mary"])
    with pytest.raises(ValueError, match="prompt 1 are tokenised otherwise"):
        next_token(mini, ["John gave", "gave "], continuations=["Mary"])
    # The same from ids of a text, and where a word would go on.
    tokens = mini.to_tokens("John gave a drink to ")
    with pytest.raises(ValueError, match="tokenised otherwise together"):
        next_token(mini, tokens, continuations=["Mary"])
    assert next_token(mini, "John gave a drink to", continuations=[" Mary"]).tokens


def test_prediction_after_a_full_context(model: HookedGPT2) -> None:
    text = "a" * (CFG.n_ctx - 1)
    result = next_token(model, text, continuations=["b"])
    ids = model.to_tokens(text)[0].tolist()
    assert len(ids) == CFG.n_ctx
    expected = naive(model, ids)[-1][model.to_single_token("b")]
    torch.testing.assert_close(result.continuation_log_probs[0, 0, 0], expected, **EXACT)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"top_k": 0}, ValueError, "top_k=0 is out of range: this model has 1 to 264"),
    ({"top_k": 265}, ValueError, "top_k=265 is out of range"),
    ({"temperature": 0}, ValueError, "temperature is above 0: at 0 the likeliest token is all"),
    ({"temperature": -1.0}, ValueError, r"temperature is a number from 1e-6 to 1e30, not -1\.0"),
    ({"temperature": math.nan}, ValueError, "temperature is a number from 1e-6 to 1e30, not nan"),
    ({"temperature": math.inf}, ValueError, "temperature is a number from 1e-6 to 1e30, not inf"),
    ({"continuations": ""}, ValueError, "a continuation is empty: expected text such as ' Mary'"),
    ({"continuations": [[]]}, ValueError, "a continuation is empty"),
    ({"continuations": ["x", "y", "x"]}, ValueError, r"continuation 'x' is given twice \(tokens"),
    (
        {"continuations": "x<|endoftext|>y"},
        ValueError,
        r"goes on after '<\|endoftext\|>', which ends a text: it may be the last token only",
    ),
    ({"continuations": 264}, IndexError, "token id 264 of a continuation is out of range: .* 263"),
    ({"continuations": [[1, -1]]}, IndexError, "token id -1 of a continuation is out of range"),
    ({"continuations": 1.5}, TypeError, "a continuation is text, a token id, or several ids"),
    ({"continuations": [["a"]]}, TypeError, "a continuation is text, a token id, or several ids"),
    (
        {"tokens": "a" * 20, "continuations": "b" * 5},
        ValueError,
        "the prompt has 21 tokens and continuation 'bbbbb' 5: all but the last are read, .* 24",
    ),
    ({"tokens": ""}, ValueError, "empty"),
    ({"tokens": "a" * 24}, ValueError, "has 25 tokens.*at most 24"),
    ({"tokens": torch.tensor([[264]])}, ValueError, "token id 264 at position 0 is out of range"),
    ({"attention_mask": torch.ones(1, 4)}, ValueError, "text brings its own mask"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(
    model: HookedGPT2, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = weights_sha256(model)
    arguments = {"tokens": "abc", **given}
    with pytest.raises(error, match=message):
        next_token(model, arguments.pop("tokens"), **arguments)
    assert weights_sha256(model) == before
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("value", ["1", None, True])
def test_a_temperature_is_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match="temperature is a number, not"):
        run_module.checked_temperature(value)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = build()
    with torch.no_grad():
        model.get_parameter("ln_f.bias").fill_(math.nan)
    for question in (next_token, branches, surprisal):
        with pytest.raises(ValueError, match=r"logits are not numbers \(NaN\)"):
            question(model, "abc")


def test_hooks_that_are_active_count(model: HookedGPT2) -> None:
    def silence(z: Tensor, hook: Any) -> None:
        z[:] = 0

    def bend(normalized: Tensor, hook: Any) -> Tensor:
        return normalized.flip(-1)

    hooks = [("blocks.1.attn.hook_z", silence), ("ln_final.hook_normalized", bend)]
    clean = next_token(model, "abc", continuations="xyz")
    with model.hooks(fwd_hooks=hooks):
        result = next_token(model, "abc", continuations="xyz")
        expected = naive(model, [*result.tokens[0], *result.continuations[0].ids])
        surprised = surprisal(model, "abcxyz")
    for step, id in enumerate(result.continuations[0].ids):
        got = result.continuation_log_probs[0, 0, step]
        torch.testing.assert_close(got, expected[3 + step, id], **EXACT)
        torch.testing.assert_close(surprised.log_probs[0, 4 + step], expected[3 + step, id])
    assert not torch.allclose(result.entropy, clean.entropy)


def test_a_model_without_tokenizer() -> None:
    model = HookedGPT2.from_config(CFG)
    result = next_token(model, torch.tensor([3, 4]), continuations=[[5, 6]])
    assert result.str_tokens == [["<3>", "<4>"]]
    assert result.continuations[0].name == "<5><6>"
    assert surprisal(model, torch.tensor([3, 4])).str_tokens == [["<3>", "<4>"]]
    with pytest.raises(ValueError, match="no tokenizer"):
        next_token(model, torch.tensor([3, 4]), continuations=["a"])
    for question in (next_token, surprisal):
        with pytest.raises(ValueError, match="no tokenizer"):
            question(model, "ab")


# ------------------------------------------------------------------ the tree


def enumerated(
    model: HookedGPT2, ids: list[int], depth: int, width: int, temperature: float = 1.0
) -> dict[tuple[int, ...], tuple[float, float]]:
    """Every branch with its token's log-probability and its own, by one full pass each."""
    found: dict[tuple[int, ...], tuple[float, float]] = {}
    level: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        following = []
        for path in level:
            log_probs = naive(model, [*ids, *path], temperature)[-1]
            top = log_probs.topk(width)
            for own, id in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                before = found[path][1] if path else 0.0
                found[(*path, id)] = (own, before + own)
                following.append((*path, id))
        level = following
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_tree_is_every_branch(model: HookedGPT2, temperature: float) -> None:
    tree = branches(model, "abc", 3, 4, temperature=temperature, min_prob=0)
    expected = enumerated(model, list(tree.tokens[0]), 3, 4, temperature)
    assert len(tree) == len(expected) == 4 + 16 + 64
    assert {tree.path(node) for node in range(len(tree))} == set(expected)
    for node in range(len(tree)):
        own, total = expected[tree.path(node)]
        assert float(tree.log_prob[node]) == pytest.approx(own, abs=1e-9)
        assert float(tree.total_log_prob[node]) == pytest.approx(total, abs=1e-9)
        assert int(tree.level[node]) == len(tree.path(node))
    for level in range(3):
        mass = sum(math.exp(t) for path, (_, t) in expected.items() if len(path) == level + 1)
        assert float(tree.mass[level]) == pytest.approx(mass, abs=1e-9)
    assert tree.left_out == 0


@pytest.mark.parametrize("most", [1, 5, 23])
def test_the_likeliest_nodes_are_kept(model: HookedGPT2, most: int) -> None:
    tree = branches(model, "abc", 3, 4, min_prob=0, max_nodes=most)
    everything = enumerated(model, list(tree.tokens[0]), 3, 4)
    best = sorted(everything, key=lambda path: -everything[path][1])[:most]
    assert {tree.path(node) for node in range(len(tree))} == set(best)
    assert tree.left_out > 0


def test_branches_below_a_probability_are_left_out(model: HookedGPT2) -> None:
    everything = enumerated(model, model.to_tokens("abc")[0].tolist(), 3, 4)
    totals = sorted(math.exp(total) for _, total in everything.values())
    least = (totals[50] + totals[51]) / 2
    tree = branches(model, "abc", 3, 4, min_prob=least)
    expected = {path for path, (_, total) in everything.items() if math.exp(total) >= least}
    assert {tree.path(node) for node in range(len(tree))} == expected


def test_order_and_neighbours(model: HookedGPT2) -> None:
    tree = branches(model, "abc", 3, 3, min_prob=0)
    assert tree.children() == [n for n, level in enumerate(tree.level.tolist()) if level == 1]
    for node in range(-1, len(tree)):
        children = tree.children(node)
        assert [int(tree.rank[child]) for child in children] == list(range(len(children)))
        assert all(child > node for child in children)
        for a, b in pairwise(children):  # all below the one before the next
            inside = [
                n for n in range(a + 1, b) if tree.path(n)[: len(tree.path(a))] == tree.path(a)
            ]
            assert inside == list(range(a + 1, b))
    with pytest.raises(IndexError, match="node 39 is out of range: this tree has 39"):
        tree.path(39)


def test_what_ends_a_text_is_not_followed(mini: HookedGPT2) -> None:
    tree = branches(mini, IOI, 4, 3)
    ended = [node for node in range(len(tree)) if tree.ended[node]]
    assert ended and all(tree.children(node) == [] for node in ended)
    assert {int(tree.token[node]) for node in ended} == {mini.tokenizer.eos_token_id}
    # A branch that has ended stays part of what is covered.
    for depth in range(1, 5):
        covered = sum(
            float(tree.total_prob[node])
            for node in range(len(tree))
            if len(tree.path(node)) == depth or (tree.ended[node] and len(tree.path(node)) < depth)
        )
        assert float(tree.mass[depth - 1]) == pytest.approx(covered, abs=1e-6)
    assert float(tree.mass[-1]) > float(tree.total_prob[ended].sum()) > 0.1


def test_the_prompt_is_read_once_for_a_tree(model: HookedGPT2) -> None:
    with Reading(model) as reading:
        branches(model, "abcdefgh", 3, 3, min_prob=0)
    assert reading.shapes == [(1, 9), (3, 1), (9, 2)]


TREE_BAD: list[tuple[dict[str, Any], str]] = [
    ({"depth": 0}, "depth=0 is out of range: expected at least 1"),
    ({"width": 0}, "width=0 is out of range: this model has 1 to 264 predictions"),
    ({"max_nodes": 0}, "max_nodes=0 is out of range"),
    ({"min_prob": 1.0}, "min_prob=1.0 is out of range: expected 0 or more, below 1"),
    ({"min_prob": -0.1}, "min_prob=-0.1 is out of range"),
    ({"min_prob": 0.999999}, "min_prob=0.999999 leaves nothing: the likeliest next token has"),
    ({"temperature": 0}, "temperature is above 0"),
    ({"tokens": ["ab", "cd"]}, "branches takes one prompt, these are 2"),
    (
        {"tokens": "a" * 21, "depth": 4},
        "depth=4 is too much: the prompt has 22 tokens, .* so that 3 more can be looked at",
    ),
]


@pytest.mark.parametrize(("given", "message"), TREE_BAD, ids=range(len(TREE_BAD)))
def test_bad_trees(model: HookedGPT2, given: dict[str, Any], message: str) -> None:
    arguments = {"tokens": "abc", **given}
    with pytest.raises(ValueError, match=message):
        branches(model, arguments.pop("tokens"), **arguments)


def test_a_tree_may_fill_the_context(model: HookedGPT2) -> None:
    tree = branches(model, "a" * 21, 3, 2, min_prob=0)
    expected = enumerated(model, list(tree.tokens[0]), 3, 2)
    assert {tree.path(node) for node in range(len(tree))} == set(expected)


# ------------------------------------------------------------------ surprisal


def test_surprisal_is_that_of_full_passes(model: HookedGPT2) -> None:
    texts = ["abcdef", "xy", "The cat\n sat"]
    result = surprisal(model, texts, top_k=4)
    for batch, text in enumerate(texts):
        ids = model.to_tokens(text)[0].tolist()
        log_probs = naive(model, ids)
        assert result.log_probs[batch, 0].isnan() and result.ranks[batch, 0] == -1
        for position in range(1, len(ids)):
            here = log_probs[position - 1]
            place = (batch, position)
            torch.testing.assert_close(result.log_probs[place], here[ids[position]], **EXACT)
            torch.testing.assert_close(result.surprisal[place], -here[ids[position]], **EXACT)
            torch.testing.assert_close(
                result.bits[place], -here[ids[position]] / math.log(2), **EXACT
            )
            assert int(result.ranks[place]) == rank(here, ids[position])
            assert int(result.context[place]) == position
            torch.testing.assert_close(result.entropy[place], -(here.exp() * here).sum(), **EXACT)
            assert torch.equal(result.expected_tokens[place], here.topk(4).indices)
            torch.testing.assert_close(
                result.expected_log_probs[place], here.topk(4).values, **EXACT
            )
        assert result.log_probs[batch, len(ids) :].isnan().all()
        loss = float(model(text, return_type="loss").detach())
        assert float(result.mean[batch]) == pytest.approx(loss, abs=1e-9)
        assert float(result.perplexity[batch]) == pytest.approx(math.exp(loss), rel=1e-9)
        assert float(result.total[batch]) == pytest.approx(loss * (len(ids) - 1), abs=1e-9)
        assert int(result.scored[batch]) == len(ids) - 1


def test_texts_together_are_as_texts_alone(
    model: HookedGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["abcdef", "xy", "klmnopqrst", "z"]
    together = surprisal(model, texts)
    monkeypatch.setattr(surprisal_module, "_TOKENS_AT_ONCE", 12)
    with Reading(model) as reading:
        in_groups = surprisal(model, texts)
    assert reading.shapes == [(1, 7), (1, 3), (1, 11), (1, 2)]
    padded = model.tokenize(texts, padding_side="left")
    by_mask = surprisal(model, padded.tokens, attention_mask=padded.attention_mask)
    for batch, text in enumerate(texts):
        alone = surprisal(model, text)
        n = len(alone.tokens[0])
        for result in (together, in_groups, by_mask):
            got = result.log_probs[batch, :n]
            torch.testing.assert_close(got, alone.log_probs[0], **EXACT, equal_nan=True)
            assert torch.equal(result.ranks[batch, :n], alone.ranks[0])


def test_the_first_token_has_none_without_one_before_it(model: HookedGPT2) -> None:
    result = surprisal(model, "abc", prepend_bos=False)
    assert result.str_tokens == [["a", "b", "c"]]
    assert result.scored.tolist() == [2]
    frame = result.to_frame()
    assert frame["surprisal"].isna().tolist() == [True, False, False]
    assert frame["rank"].isna().tolist() == [True, False, False]
    assert views.notes(result, 0)[0].endswith("no surprisal: nothing was before it")


@pytest.mark.parametrize("stride", [1, 7, 12, 23])
@pytest.mark.parametrize("length", [24, 25, 60])
def test_windows_are_those_of_the_guide(reference_model: Any, stride: int, length: int) -> None:
    """Of `transformers`, "Perplexity of fixed-length models": labels of -100 are not scored."""
    reference = reference_model(
        {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 24, "vocab_size": 50},
        dtype=torch.float64,
    )
    model = HookedGPT2.from_pretrained(reference, dtype=torch.float64)
    tokens = torch.randint(50, (1, length), generator=torch.Generator().manual_seed(length))
    total, scored, previous_end, contexts = 0.0, 0, 0, [0]
    for begin in range(0, length, stride):
        end = min(begin + 24, length)
        labels = tokens[:, begin:end].clone()
        labels[:, : -(end - previous_end)] = -100
        # Not the loss of the reference itself, which it computes in float32.
        logits = reference(tokens[:, begin:end]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
        scored += int((labels[:, 1:] != -100).sum())
        contexts += range(max(previous_end - begin, 1), end - begin)
        previous_end = end
        if end == length:
            break
    result = surprisal(model, tokens, stride=stride)
    assert float(result.total[0]) == pytest.approx(total, abs=1e-8)
    assert int(result.scored[0]) == scored == length - 1
    seen = result.context[0].tolist()
    assert seen[1:] == contexts[1:]
    assert min(seen[24:], default=24) >= 24 - stride
    assert ("windows of 24 tokens" in result.note()) == (length > 24)


def test_long_and_short_texts_together(model: HookedGPT2) -> None:
    texts = ["abcdefghij" * 6, "xyz"]
    result = surprisal(model, texts, stride=10)
    for batch, text in enumerate(texts):
        alone = surprisal(model, text, stride=10)
        n = len(alone.tokens[0])
        torch.testing.assert_close(
            result.log_probs[batch, :n], alone.log_probs[0], **EXACT, equal_nan=True
        )
    assert "predicted from 14 tokens" in views.notes(result, 0)[24]


SURPRISAL_BAD: list[tuple[dict[str, Any], str]] = [
    ({"tokens": "a" * 24}, "the text has 25 tokens, this model reads at most n_ctx = 24: pass "
     "stride=12 for windows of 24 that move on by 12, .* at least 12 before it; or shorten"),
    ({"tokens": ["a", "a" * 30]}, "text 1 has 31 tokens"),
    ({"tokens": torch.zeros(30, dtype=torch.long)}, "the text has 30 tokens"),
    ({"stride": 0}, "stride=0 is out of range: 1 to 23"),
    ({"stride": 24}, "stride=24 is out of range: 1 to 23"),
    ({"top_k": 0}, "top_k=0 is out of range"),
    ({"tokens": "a", "prepend_bos": False}, "the text is the single token 'a' with nothing before"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), SURPRISAL_BAD, ids=range(len(SURPRISAL_BAD)))
def test_bad_surprisal(model: HookedGPT2, given: dict[str, Any], message: str) -> None:
    arguments = {"tokens": "abc", **given}
    with pytest.raises(ValueError, match=message):
        surprisal(model, arguments.pop("tokens"), **arguments)


# ------------------------------------------------------------------ what results give


def results(model: HookedGPT2, prompt: str = "abc </script>") -> dict[str, Any]:
    return {
        "next_token": next_token(model, prompt, top_k=5, continuations=[" Mary", "xyz"]),
        "branches": branches(model, prompt, 3, 3, min_prob=0),
        "surprisal": surprisal(model, prompt),
    }


def test_frames(model: HookedGPT2) -> None:
    found = results(model)
    frame = found["next_token"].to_frame()
    assert frame["kind"].tolist() == ["top"] * 5 + ["continuation"] * 4
    top = frame[frame["kind"] == "top"]
    assert top["rank"].tolist() == list(range(5))
    assert top["prob"].tolist() == found["next_token"].top_probs[0].tolist()
    last = frame.iloc[-1]
    assert (last["continuation"], last["step"], last["token"]) == (1, 2, "z")
    assert last["total_log_prob"] == pytest.approx(float(found["next_token"].total_log_probs[0, 1]))
    tree = found["branches"].to_frame()
    assert len(tree) == 39 and tree["node"].tolist() == list(range(39))
    child = tree.iloc[1]
    assert child["text"] == tree.iloc[0]["token"] + child["token"]
    assert child["total_prob"] == pytest.approx(tree.iloc[0]["prob"] * child["prob"])
    texts = found["surprisal"].to_frame()
    assert len(texts) == len(found["surprisal"].tokens[0])
    assert texts["bits"].sum() == pytest.approx(float(found["surprisal"].total) / math.log(2))


@pytest.mark.parametrize("kind", ["next_token", "branches", "surprisal"])
def test_as_plain_data(model: HookedGPT2, kind: str) -> None:
    result = results(model)[kind]
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["prepend_bos"] is True
    assert [token["token"] for token in data["prompts"][0]][:4] == ["<|endoftext|>", "a", "b", "c"]
    assert data["provenance"]["call"].startswith(f"{kind}(model, ...")
    assert data["provenance"]["weights_sha256"] is None
    hashed = result.hashed(model)
    assert hashed.to_dict()["provenance"]["weights_sha256"] == weights_sha256(model)
    assert hashed.tokens == result.tokens
    assert "1 prompt of 6 tokens, <|endoftext|> prepended" in repr(result)
    rows = {"next_token": "next", "branches": "nodes", "surprisal": "surprisal"}[kind]
    assert len(data[rows]) == len(result.to_frame())


def test_reprs(model: HookedGPT2) -> None:
    many = next_token(model, ["abc"] * 10, continuations="x")
    assert "... and 2 more prompts" in repr(many)
    assert "'x': log-probability -" in repr(many)
    assert "... and 2 more texts" in repr(surprisal(model, ["abc"] * 10))
    assert "... and 19 more nodes" in repr(branches(model, "abc", 3, 3, min_prob=0))


def test_figures(model: HookedGPT2) -> None:
    found = results(model)
    bar: Any = found["next_token"].plot().data[0]
    assert list(bar.x) == found["next_token"].top_probs[0].tolist()
    drawn = found["branches"].plot()
    labels: Any = drawn.data[-1]
    assert len(labels.text) == 40
    assert len({(x, y) for x, y in zip(labels.x, labels.y, strict=True)}) == 40  # none covered
    assert not any("</script>" in text for text in labels.customdata)
    curve: Any = found["surprisal"].plot().data[0]
    assert curve.y[0] is None
    assert list(curve.y[1:]) == found["surprisal"].surprisal[0, 1:].tolist()
    with pytest.raises(IndexError, match="prompt 1 is out of range: this result has 1"):
        found["surprisal"].plot(1)


# ------------------------------------------------------------------ the page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page(model: HookedGPT2, browser: Browser, tmp_path: Path, theme: Any) -> None:
    nasty = '</script><!-- <b>&amp;"onload="'
    found = list(results(model, nasty[:20]).values())
    page_module.page([(nasty, found)]).write(tmp_path / "page.html")
    with browser.open(tmp_path / "page.html", theme=theme) as page:
        page.wait_for("document.querySelectorAll('.plot .main-svg').length >= 3")
        assert page.evaluate("document.querySelectorAll('.plot').length") == 3
        assert "</script>" in page.text()
        assert page.evaluate("document.querySelectorAll('b:not(svg b)').length") == 0
        # Nothing is wider than the page; every token of the tree can be read.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        texts = page.evaluate(
            "[...document.querySelectorAll('.plot')[1].querySelectorAll('.textpoint text')]"
            ".map(text => text.textContent)"
        )
        assert len(texts) == 1 + len(found[1])
        hover = page.evaluate("[...document.querySelectorAll('.tokens')].at(-1).children[2].title")
        assert re.search(r"surprisal \d+\.\d+ nats \(\d+\.\d+ bits\), probability", hover)
        assert "expected: " in hover and "rank " in hover
        page.click("#theme")
        for index, result in enumerate(found):
            page.click("button[data-table]", index)
            table = page.download()
            frame = result.to_frame()
            frame.insert(0, "source", nasty)
            assert table.data.decode() == cli.csv_text(frame)
        assert page.console == [] and page.requests == []


@pytest.mark.parametrize("kind", ["next_token", "branches", "surprisal"])
def test_a_page_of_its_own(model: HookedGPT2, tmp_path: Path, kind: str) -> None:
    result = results(model)[kind]
    result.to_html(tmp_path / "page.html", model=model)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert weights_sha256(model) in text
    assert text.count("<figure>") == 1
    assert "<iframe" in result._repr_html_()


def test_pages_of_many_prompts(model: HookedGPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_MOST_PROMPTS", 2)
    text = next_token(model, ["ab", "cd", "ef", "gh"]).page().html()
    assert text.count("<figure>") == 2
    assert "And 2 more prompts" in text
    assert text.count("Next token after position 2") == 4


# ------------------------------------------------------------------ going on token by token


def test_a_session_predicts_as_full_passes_do(model: HookedGPT2) -> None:
    session = Session(model, "abc", top_k=6, temperature=0.7)
    prompt = list(session.ids)

    def check() -> None:
        expected = naive(model, session.ids, 0.7)[-1].topk(6)
        got = session.prediction()
        assert torch.equal(got.top_tokens[0], expected.indices)
        torch.testing.assert_close(got.top_log_probs[0], expected.values, **EXACT)
        assert got.tokens == (tuple(session.ids),)

    check()
    with Reading(model) as reading:
        for number in (0, 3, 200):
            expected = naive(model, session.ids)[-1].sort(descending=True).indices[number]
            reading.shapes.clear()
            assert session.pick(number) == model.to_single_str_token(int(expected))
            assert reading.shapes == [(1, 1)]
            assert session.ids[-1] == expected
    check()
    tokens, other = session.write("xy z")
    assert (tokens, other) == (("x", "y", " ", "z"), None)
    check()
    before = session.surprisal()
    plain = surprisal(model, torch.tensor(session.ids))
    assert before.prepend_bos is True
    assert torch.equal(before.ranks, plain.ranks)
    assert session.text.startswith("abc") and session.added.endswith("xy z")
    with Reading(model) as reading:
        session.back()
        check_ids = session.ids
        assert reading.shapes == []  # nothing is read again
    assert len(check_ids) == len(prompt) + 3
    check()
    for _ in range(3):
        session.back()
    assert session.ids == prompt
    check()
    with pytest.raises(ValueError, match="nothing to take back: this is the prompt"):
        session.back()
    session.pick(1)  # another way on from the same place
    check()


def test_a_rank_is_the_token_shown_there_among_equals() -> None:
    model = build()
    with torch.no_grad():
        model.get_parameter("wte").zero_()  # tied: all logits are zero
    for number in range(10):
        session = Session(model, "abc", top_k=10)
        shown = int(session.prediction().top_tokens[0, number])
        session.pick(number)
        assert session.ids[-1] == shown


def test_a_session_at_the_end_of_the_context(model: HookedGPT2) -> None:
    session = Session(model, "a" * 22)
    with pytest.raises(ValueError, match=r"2 more tokens make 25, .* at most n_ctx = 24"):
        session.write("xy")
    session.pick(0)
    before = list(session.ids)
    with pytest.raises(ValueError, match="1 more token make"):
        session.pick(0)
    assert session.ids == before
    with pytest.raises(IndexError, match="rank 264 is out of range: 0 to 263"):
        session.pick(264)
    with pytest.raises(ValueError, match="a continuation is empty"):
        session.write("")
    torch.testing.assert_close(
        session.prediction().top_log_probs[0], naive(model, before)[-1].topk(10).values, **EXACT
    )


def test_a_session_says_where_one_text_would_be_other_tokens(mini: HookedGPT2) -> None:
    session = Session(mini, "John gave a drink to ")
    assert session.write("Mary") == (("Mary",), (" Mary",))
    session.back()
    assert Session(mini, "John gave a drink to").write(" Mary") == ((" Mary",), None)


def conversation(session: Session, lines: str) -> str:
    out = io.StringIO()
    converse(session, Console(file=out, width=100, highlight=False), io.StringIO(lines))
    return out.getvalue()


def test_a_conversation(mini: HookedGPT2) -> None:
    said = conversation(Session(mini, IOI, top_k=3), "0\n and went\nu\nu\nu\n9999\n=u\n\ns\nq\n0\n")
    assert f"{IOI} Mary\n" in said
    assert "added ·and ·went" in said
    assert f"{IOI} Mary and went\n" in said
    assert "not possible: there is nothing to take back" in said
    assert "not possible: rank 9999 is out of range: 0 to 8191" in said
    assert "surprisal in the model's own distribution" in said
    assert said.rstrip().endswith(f"{IOI}u")  # =u is text, and nothing is read after q
    assert said.count("next token after position 14") == 2  # at first, and after two steps back


def test_a_number_after_a_blank_is_text(mini: HookedGPT2) -> None:
    assert conversation(Session(mini, IOI), " 0\nq\n").rstrip().endswith(f"{IOI} 0")


def test_a_conversation_ends_with_its_input(mini: HookedGPT2) -> None:
    assert conversation(Session(mini, IOI), "0").rstrip().endswith(f"{IOI} Mary")
    with pytest.raises(cli.CommandError, match="reads standard input, which ended at once"):
        conversation(Session(mini, IOI), "")


def test_a_conversation_at_a_terminal(mini: HookedGPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come by `input`, which lets the reader edit them; Ctrl-D ends."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed, asked = iter(["0", ", 😀"]), []

    def answer(question: str) -> str:
        asked.append(question)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    out = io.StringIO()
    converse(Session(mini, IOI), Console(file=out, width=100, highlight=False), Terminal())
    assert asked == ["> "] * 3
    assert out.getvalue().rstrip().endswith(f"{IOI} Mary, 😀")


def test_a_conversation_shows_no_control_characters(model: HookedGPT2) -> None:
    said = conversation(Session(model, "a\x1b[31m"), "=\x1b[31m\u202e\nq\n")
    assert "\x1b" not in said and "\u202e" not in said
    assert "\\x1b[31m" in said


def test_characters_of_several_tokens_are_whole(model: HookedGPT2) -> None:
    session = Session(model, "ab")
    tokens, _ = session.write("é😀")
    assert tokens == ("\\xc3", "\\xa9", "\\xf0", "\\x9f", "\\x98", "\\x80")
    assert session.text == "abé😀"
    assert "abé😀" in conversation(session, "q\n")


# ------------------------------------------------------------------ the command line


@pytest.fixture
def command(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    """`command(*arguments, stdin="")`: run it in this process; status, output and errors."""

    def run(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
        given = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["next_token", *given])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = cli.status(module.main, "python -m analyses.next_token", given)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def prompt(tmp_path: Path, mini: object) -> Path:
    path = tmp_path / "prompt.txt"
    path.write_text(IOI + "\n", encoding="utf-8")
    return path


def test_the_command(command: Any, prompt: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Once upon a time there was a little girl", encoding="utf-8")
    html, csv, data = (tmp_path / f"out.{end}" for end in ("html", "csv", "json"))
    status, out, err = command(
        prompt, other, "--model", "mini", "--top-k", 4, "--continuation", " Mary",
        "--continuation", " the river", "--depth", 3, "--width", 2, "--surprisal",
        "--html", html, "--csv", csv, "--json", data,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert out.startswith("model: mini (as asked)\n")
    assert out.index("wrote ") < out.index("rank  token")
    assert re.search(r"0  ·Mary +0\.9", out)
    assert re.search(r"·the ·river .*\d+ \d+ +-\d", out)
    assert "└── " in out and "…·to\n" in out
    assert "perplexity" in out and "\x1b" not in out
    frame = pd.read_csv(csv, keep_default_na=False)
    assert frame["source"].unique().tolist() == [str(prompt), str(other)]
    assert frame["table"].unique().tolist() == ["next_token", "branches", "surprisal"]
    assert not frame["rank"].astype(str).str.contains(".", regex=False).any()
    found = json.loads(data.read_text(encoding="utf-8"))
    assert list(found[0]) == ["source", "next_token", "branches", "surprisal"]
    assert found[1]["branches"]["depth"] == 3
    assert re.fullmatch("[0-9a-f]{64}", found[0]["surprisal"]["provenance"]["weights_sha256"])
    assert "--depth 3" in found[0]["branches"]["provenance"]["call"]
    assert html.read_text(encoding="utf-8").count("<figure>") == 6


def test_the_plain_command(command: Any, prompt: Path) -> None:
    status, out, _ = command(prompt, "--model", "mini", "--temperature", 2)
    assert status == 0
    assert "next token after position 14 ·to at temperature 2" in out
    assert "surprisal" not in out and "└" not in out
    status, out, err = command(prompt, "--model", "mini", "--csv", "-")
    assert len(pd.read_csv(io.StringIO(out))) == 10
    assert err.startswith("model: mini")


def test_long_texts_as_a_command(command: Any, prompt: Path, mini: HookedGPT2) -> None:
    prompt.write_text("the cat sat. " * mini.cfg.n_ctx, encoding="utf-8")
    status, _, err = command(prompt, "--model", "mini", "--surprisal")
    assert status == 1 and "pass stride=" in err and err.count("\n") == 1
    status, out, err = command(
        prompt, "--model", "mini", "--surprisal", "--stride", mini.cfg.n_ctx - 1
    )
    assert (status, err) == (0, "")
    assert "windows of" in out and "most surprising" in out
    assert "no next token" in out
    status, _, err = command(
        prompt, "--model", "mini", "--surprisal", "--stride", 200, "--continuation", " Mary"
    )
    assert status == 1 and "at most" in err


COMMAND_BAD: list[tuple[list[str], str]] = [
    (["--width", "2"], "--width goes with --depth"),
    (["--min-prob", "0.1"], "--min-prob goes with --depth"),
    (["--stride", "2"], "--stride goes with --surprisal"),
    (["--temperature", "0"], "temperature is above 0"),
    (["--continuation", ""], "a continuation is empty"),
    (["--depth", "0"], "depth=0 is out of range"),
    (["--interactive", "--csv", "x.csv"], "--interactive shows in the terminal: leave out --csv"),
    (["--interactive", "--depth", "2"], "leave out --depth"),
    (["--interactive", "--surprisal"], "leave out --surprisal"),
    (["--interactive", "--continuation", "x"], "leave out --continuation"),
    (["--interactive"], "--interactive reads standard input, which ended at once"),
]


@pytest.mark.parametrize(("options", "message"), COMMAND_BAD, ids=range(len(COMMAND_BAD)))
def test_wrong_commands(command: Any, prompt: Path, options: list[str], message: str) -> None:
    status, _, err = command(prompt, "--model", "mini", *options)
    assert status == 1
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_interactive_wants_one_prompt_from_a_file(command: Any, prompt: Path) -> None:
    status, _, err = command(prompt, prompt, "--interactive")
    assert status == 1 and "goes on with one prompt, not 2" in err
    status, _, err = command("-", "--interactive", stdin=IOI)
    assert status == 1 and "the prompt cannot come from there too" in err


def test_interactive_through_a_pipe(prompt: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "analyses.next_token", str(prompt), "--model", "mini",
         "--interactive", "--top-k", "3"],
        cwd=Path(__file__).parents[1], input="0\n, 😀\nu\n.\nq\n", text=True, encoding="utf-8",
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert f"{IOI} Mary, 😀\n" in run.stdout
    assert run.stdout.endswith(f"{IOI} Mary.\n")


def test_colours_in_a_terminal(model: HookedGPT2) -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=True, color_system="truecolor")
    views.show(list(results(model, "a\x1b[31m b c d e f").values()), console)
    assert "\\x1b[31m" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()
    assert "full colour: " in out.getvalue()
    assert re.search(r"\x1b\[38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+m", out.getvalue())


def test_help_comes_without_torch() -> None:
    text = help_without_torch("analyses.next_token")
    assert "--continuation" in text and "--interactive" in text


def test_the_session_explains_itself() -> None:
    assert all(part in session_module.HELP for part in ("u goes back", "q ends", "(=42)"))


# ------------------------------------------------------------------ the bundled model


def test_the_bundled_model_completes_the_example(mini: HookedGPT2) -> None:
    text = (Path(__file__).parents[1] / "examples" / "prompt.txt").read_text("utf-8").strip()
    result = next_token(mini, text, continuations=[" Mary", " John"])
    assert result.strings[int(result.top_tokens[0, 0])] == " Mary"
    assert float(result.total_probs[0, 0]) > 10 * float(result.total_probs[0, 1])
    assert int(result.continuation_ranks[0, 0, 0]) == 0
    tree = branches(mini, text, 2, 3)
    assert mini.to_string(list(tree.path(0))) == " Mary"
    usual = surprisal(mini, text + " Mary.")
    odd = surprisal(mini, text + " the.")
    assert float(odd.surprisal[0, 15]) > float(usual.surprisal[0, 15]) + 3
