"""Direct logit attribution: parts sum to the model's own logits, each part is the right one."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from _micro import AB, micro_model
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses import cli
from analyses.attribution import (
    accumulated_resid,
    apply_ln_to_stack,
    attribution,
    decompose_resid,
    logit_attrs,
    main,
    stack_head_results,
)
from analyses.pairs import PromptPair
from hooks import UnknownHookName
from interp import HookedGPT2, HookedGPT2Config

CFG = dict(
    vocab_size=31,
    n_positions=16,
    n_embd=24,
    n_layer=3,
    n_head=4,
    n_inner=40,
    bos_token_id=0,
    eos_token_id=0,
)
EXACT = dict(rtol=0, atol=1e-9)


def close(got, expected, **tolerance):
    torch.testing.assert_close(got, expected, **(tolerance or EXACT))


@pytest.fixture(scope="module")
def model(reference_model) -> HookedGPT2:
    """Random weights, with biases, gains and shifts, and an unembedding bias."""
    plain = HookedGPT2.from_pretrained(reference_model(CFG, dtype=torch.float64), dtype="float64")
    cfg = HookedGPT2Config(**{**vars(plain.cfg), "tie_word_embeddings": False})
    parameters = {name: value.detach().clone() for name, value in plain.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    for name, shape in (("lm_head.weight", (31, 24)), ("lm_head.bias", (31,))):
        parameters[name] = torch.randn(shape, generator=draw, dtype=torch.float64)
    return HookedGPT2(cfg, parameters).requires_grad_(False)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(31, (3, 9), generator=torch.Generator().manual_seed(0))


MASK = torch.arange(9)[None] < torch.tensor([9, 6, 7])[:, None]
ANSWERS, WRONG = torch.tensor([4, 5, 6]), torch.tensor([[7, 8], [9, -1], [1, 2]])


def expected_diff(logits, answers, wrong, columns):
    """Answer minus wrong, one prompt and one position at a time."""
    found = []
    for row, answer, others, where in zip(logits, answers, wrong, columns, strict=True):
        others = [i for i in others.tolist() if i >= 0]
        at = [row[c, answer] - sum(row[c, i] for i in others) / len(others) for c in where]
        found.append(sum(at) / len(at))
    return torch.stack(found)


def check_sums(found):
    views = {name: effects.values for name, effects in found.views.items()}
    close(views["component"].sum(0), found.logit_diff)
    close(views["lens"][-1], found.logit_diff)
    names = found["component"].labels["component"]
    for layer in range(views["head"].shape[0]):
        attention = views["component"][names.index(f"{layer}.attn_out")]
        close(views["head"][layer].sum(0) + views["attn_bias"][layer], attention)
        if "neuron" in views:
            mlp = views["component"][names.index(f"{layer}.mlp_out")]
            close(views["neuron"][layer].sum(0) + views["mlp_bias"][layer], mlp)
    # The lens grows by what is written, part by part.
    shift, bias = views["component"][-2:]
    running = views["component"][:-2].cumsum(0)[1:] + shift + bias
    close(views["lens"], running)


# ------------------------------------------------------------------ sums


@pytest.mark.parametrize(
    ("pos", "columns"),
    [
        (-1, [[8], [5], [6]]),
        (2, [[2], [2], [2]]),
        ([0, -2], [[0, 7], [0, 4], [0, 5]]),
        (torch.tensor([3, -1, 0]), [[3], [5], [0]]),
        (None, [range(9), range(6), range(7)]),
    ],
)
@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_parts_sum_to_the_models_logit_difference(model, tokens, pos, columns, batch_size):
    found = attribution(
        model, tokens, ANSWERS, WRONG, pos=pos, attention_mask=MASK, batch_size=batch_size
    )
    logits = model(tokens, attention_mask=MASK)
    close(found.logit_diff, expected_diff(logits, ANSWERS, WRONG, columns))
    check_sums(found)
    assert float(found.remainder.abs().max()) < 1e-9
    assert [list(row) for row in found.positions] == [list(row) for row in columns]


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_sums_for_random_prompts_and_answers(model, seed, n_pos, n_wrong, left):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(31, (2, n_pos), generator=draw)
    answers = torch.randint(31, (2,), generator=draw)
    wrong = torch.stack([torch.randperm(31, generator=draw)[:n_wrong] for _ in range(2)])
    mask = torch.ones(2, n_pos, dtype=torch.bool)
    short = 1 + int(torch.randint(n_pos, (), generator=draw))
    mask[1] = torch.arange(n_pos) >= n_pos - short if left else torch.arange(n_pos) < short
    found = attribution(model, tokens, answers, wrong, attention_mask=mask)
    logits = model(tokens, attention_mask=mask)
    last = [[n_pos - 1], [n_pos - 1 if left else short - 1]]
    close(found.logit_diff, expected_diff(logits, answers, wrong, last))
    check_sums(found)


def test_without_a_wrong_token_it_is_the_logit(model, tokens):
    found = attribution(model, tokens, ANSWERS)
    close(found.logit_diff, model(tokens)[range(3), -1, ANSWERS])
    check_sums(found)


def test_a_padded_prompt_is_as_it_would_be_alone(model, tokens):
    together = attribution(model, tokens, ANSWERS, WRONG, attention_mask=MASK)
    alone = attribution(model, tokens[1, :6], 5, 9)
    for name, effects in together.views.items():
        close(effects.values[..., 1], alone[name].values[..., 0])


# ------------------------------------------------------------------ the right part


def test_every_part_against_the_layer_norm_done_by_hand(model, tokens):
    """Scale, centring and gain written out for every part, from a cache with `hook_result`."""
    found = attribution(model, tokens, ANSWERS, ANSWERS + 1)
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
    scale = cache["ln_final.hook_scale"][:, -1]
    u = model.W_U.T[ANSWERS] - model.W_U.T[ANSWERS + 1]

    def adds(wrote):
        wrote = wrote.expand(3, -1)
        return ((wrote - wrote.mean(-1, keepdim=True)) / scale * model.ln_f.weight * u).sum(-1)

    names = found["component"].labels["component"]
    of = dict(zip(names, found["component"].values, strict=True))
    close(of["embed"], adds(cache["embed"][:, -1]))
    close(of["pos_embed"], adds(cache["pos_embed"][:, -1]))
    close(of["ln_final.b"], u @ model.ln_f.bias)
    close(of["b_U"], model.b_U[ANSWERS] - model.b_U[ANSWERS + 1])
    for layer in range(3):
        close(of[f"{layer}.attn_out"], adds(cache["attn_out", layer][:, -1]))
        close(of[f"{layer}.mlp_out"], adds(cache["mlp_out", layer][:, -1]))
        close(found["attn_bias"].values[layer], adds(model.b_O[layer]))
        close(found["mlp_bias"].values[layer], adds(model.b_out[layer]))
        for head in range(4):
            close(found["head"].values[layer, head], adds(cache["result", layer][:, -1, head]))
        for neuron in (0, 17, 39):
            wrote = cache["post", layer][:, -1, neuron, None] * model.W_out[layer, neuron]
            close(found["neuron"].values[layer, neuron], adds(wrote))
    lens = dict(zip(found["lens"].labels["point"], found["lens"].values, strict=True))
    constant = of["ln_final.b"] + of["b_U"]
    close(lens["1.resid_mid"], adds(cache["resid_mid", 1][:, -1]) + constant)
    close(lens["2.resid_pre"], adds(cache["resid_post", 1][:, -1]) + constant)


def test_a_model_computed_by_hand():
    """The micro model at the second token: its embedding is b, head 0 writes 2 b, neuron 0 writes
    4 c, so the residual is 3 b + 4 c with scale 5. Of logit b minus logit c each b is worth 1 and
    each c -1."""
    found = attribution(micro_model(), AB, 1, 2)
    assert found["component"].values[:, 0].tolist() == pytest.approx([1, 0, 2, -4, 0, 0])
    assert found["head"].values[0, :, 0].tolist() == pytest.approx([2, 0])
    assert found["neuron"].values[0, :, 0].tolist() == pytest.approx([-4, 0])
    assert found["lens"].values[:, 0].tolist() == pytest.approx([1, 3, -1])
    assert found.logit_diff.tolist() == pytest.approx([-1])


def test_parts_that_were_replaced_count_as_they_were_left(model, tokens):
    def silence(act, hook):
        act[:, :, 2] = 0

    for name in ("z", "result"):
        with model.hooks([((name, 1), silence)]):
            found = attribution(model, tokens, ANSWERS, WRONG)
            close(found.logit_diff, expected_diff(model(tokens), ANSWERS, WRONG, [[-1]] * 3))
        assert found["head"].values[1, 2].abs().max() == 0
        check_sums(found)


def test_what_a_function_adds_is_the_remainder(model, tokens):
    push = torch.linspace(-1, 1, 24, dtype=torch.float64).square()
    with model.hooks([(("resid_pre", 2), lambda act, hook: act + push)]):
        found = attribution(model, tokens, ANSWERS, WRONG)
        _, cache = model.run_with_cache(tokens)
    added = found.remainder
    assert float(added.abs().min()) > 1e-3
    close(found["component"].values.sum(0) + added, found.logit_diff)
    stack = push.expand(1, 3, 24)
    close(
        logit_attrs(model, cache, stack, ANSWERS, pos_slice=-1)[0],
        attribution_of(model, cache, push, ANSWERS),
    )


def attribution_of(model, cache, vector, tokens):
    scale = cache["ln_final.hook_scale"][:, -1, 0]
    return (vector - vector.mean()) @ (model.W_U[:, tokens] * model.ln_f.weight[:, None]) / scale


def test_low_precision_and_gradients(model, tokens):
    low = HookedGPT2(model.cfg, {n: p.bfloat16() for n, p in model.named_parameters()})
    found = attribution(low, tokens, ANSWERS, WRONG)
    assert found.logit_diff.dtype == torch.float32
    assert not found.logit_diff.requires_grad
    # The stream itself is rounded after every addition; the parts are not.
    assert float(found.remainder.abs().max()) < 0.2


# ------------------------------------------------------------------ stacks


@pytest.fixture(scope="module")
def cache(model, tokens):
    return model.run_with_cache(tokens)[1]


@pytest.mark.parametrize("layer", [0, 1, 2, 3, None, -1])
@pytest.mark.parametrize("pos_slice", [None, -1, slice(1, 4), [2, 0]])
def test_stacks_sum_to_the_residual(model, cache, layer, pos_slice):
    end = 3 if layer in (None, -1) else layer
    whole = cache["resid_post", 2] if end == 3 else cache["resid_pre", end]
    whole = whole if pos_slice is None else whole[:, pos_slice]
    parts, labels = decompose_resid(model, cache, layer, pos_slice=pos_slice, return_labels=True)
    close(parts.sum(0), whole)
    assert labels[:2] == ["embed", "pos_embed"]
    assert labels[2:] == [f"{i}_{out}" for i in range(end) for out in ("attn_out", "mlp_out")]
    heads, labels = stack_head_results(
        model, cache, layer, return_labels=True, incl_remainder=True, pos_slice=pos_slice
    )
    close(heads.sum(0), whole)
    assert labels == [f"L{i}H{h}" for i in range(end) for h in range(4)] + ["remainder"]
    stream, labels = accumulated_resid(
        model, cache, layer, incl_mid=True, pos_slice=pos_slice, return_labels=True
    )
    close(stream[-1], whole)
    mids = [f"{i}_{at}" for i in range(end) for at in ("pre", "mid")]
    assert labels == [*mids, "final_post" if end == 3 else f"{end}_pre"]


def test_stacks_of_some_parts(model, cache):
    _, labels = decompose_resid(model, cache, 1, mlp_input=True, return_labels=True)
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out"]
    parts = decompose_resid(model, cache, 1, mlp_input=True)
    close(parts.sum(0), cache["resid_mid", 1])
    _, labels = decompose_resid(
        model, cache, 2, mode="mlp", mlp_input=True, incl_embeds=False, return_labels=True
    )
    assert labels == ["0_mlp_out", "1_mlp_out"]
    _, labels = decompose_resid(model, cache, 1, mode="attn", return_labels=True)
    assert labels == ["embed", "pos_embed", "0_attn_out"]
    _, labels = accumulated_resid(model, cache, 1, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "1_mid"]
    assert len(stack_head_results(model, cache, 2)) == 8


def test_heads_from_results_and_from_z_are_the_same(model, cache, tokens):
    _, with_results = model.run_with_cache(tokens, names_filter=["*hook_result", "*resid_post"])
    close(stack_head_results(model, with_results), stack_head_results(model, cache))
    close(stack_head_results(model, cache)[5], with_results["result", 1][:, :, 1])


def test_layer_norms_of_stacks(model, cache, tokens):
    normal = cache["ln_final.hook_normalized"]
    close(decompose_resid(model, cache, apply_ln=True).sum(0), normal)
    close(
        stack_head_results(model, cache, 1, incl_remainder=True, apply_ln=True).sum(0),
        cache["normalized", 1, "ln1"],
    )
    parts = decompose_resid(model, cache, 1, mlp_input=True, apply_ln=True, pos_slice=[3])
    close(parts.sum(0), cache["normalized", 1, "ln2"][:, [3]])
    # Up to the end of the model, accumulated residuals get a scale each: the logit lens.
    lens = accumulated_resid(model, cache, apply_ln=True)
    close(model.unembed(lens[-1]), model(tokens))
    close(lens[0], model.ln_final(cache["resid_pre", 0]))
    # Before it, the one scale with which that layer reads.
    stream = accumulated_resid(model, cache, 1, apply_ln=True)
    close(stream[-1], cache["normalized", 1, "ln1"])
    ratio = (cache["resid_pre", 0] - cache["resid_pre", 0].mean(-1, keepdim=True)) / stream[0]
    close(ratio, cache["scale", 1, "ln1"].expand_as(ratio))


def logit_parts(model, logits, tokens):
    """What of a logit is no part of the residual."""
    return logits - model.b_U[tokens] - model.ln_f.bias @ model.W_U[:, tokens]


def test_logit_attrs_sum_to_logits(model, cache, tokens):
    logits = model(tokens)
    parts = decompose_resid(model, cache)
    # One token for all, one per prompt, one per prompt and position; alone and as a difference.
    close(logit_attrs(model, cache, parts, 4).sum(0), logit_parts(model, logits[..., 4], 4))
    close(
        logit_attrs(model, cache, parts, ANSWERS).sum(0)[2],
        logit_parts(model, logits[2, :, 6], 6),
    )
    following = tokens.roll(-1, 1)
    got = logit_attrs(model, cache, parts, following, tokens).sum(0)
    assert got.shape == (3, 9)
    for b, p in ((0, 3), (2, 8)):
        right, wrong = following[b, p], tokens[b, p]
        expected = logit_parts(model, logits[b, p, right], right)
        close(got[b, p], expected - logit_parts(model, logits[b, p, wrong], wrong))


def test_logit_attrs_slices(model, cache, tokens):
    whole = logit_attrs(model, cache, decompose_resid(model, cache), ANSWERS, ANSWERS + 2)
    last = decompose_resid(model, cache, pos_slice=-1)
    got = logit_attrs(model, cache, last, ANSWERS, ANSWERS + 2, pos_slice=-1)
    close(got, whole[:, :, -1])
    got = logit_attrs(
        model, cache, last, ANSWERS[1:], ANSWERS[1:] + 2, pos_slice=-1, batch_slice=slice(1, 3)
    )
    close(got, whole[:, 1:, -1])
    got = logit_attrs(model, cache, last, 6, 8, pos_slice=-1, batch_slice=2)
    close(got, whole[:, 2, -1])
    _, one = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    got = logit_attrs(model, one, decompose_resid(model, one), 4, 6, has_batch_dim=False)
    close(got, whole[:, 0])
    _, one = model.run_with_cache(tokens[:1])
    stack = decompose_resid(model, one)[:, 0]
    close(logit_attrs(model, one, stack, 4, 6, has_batch_dim=False), whole[:, 0])


def test_processed_weights_leave_nothing_out(model, tokens):
    """With gain, shift and centring folded into the weights, the raw dot product is the same."""
    folded = model.processed()
    _, cache = folded.run_with_cache(tokens)
    stack = decompose_resid(folded, cache, pos_slice=-1)
    scaled = apply_ln_to_stack(folded, cache, stack, pos_slice=-1)
    plain = torch.einsum("cbd,db->cb", scaled, folded.W_U[:, ANSWERS])
    close(logit_attrs(folded, cache, stack, ANSWERS, pos_slice=-1), plain)


# ------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(answers=None), ValueError, "answers is missing"),
        (dict(answers=31), IndexError, "token 31 is out of range.*0 to 30"),
        (dict(answers=torch.tensor([1, 2])), ValueError, "2 rows, there are 3 prompts"),
        (dict(answers=" a"), ValueError, "no tokenizer"),
        (dict(answers=1, wrong=[["a"], ["b"]]), ValueError, "wrong: there are 2 for 3 examples"),
        (dict(answers=1, pos=9), IndexError, "9 is out of range: prompt 0 has 9 tokens"),
        (dict(answers=1, batch_size=0), ValueError, "batch_size=0 is out of range"),
    ],
)
def test_bad_arguments(model, tokens, arguments, error, message):
    with pytest.raises(error, match=message):
        attribution(model, tokens, **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, c: decompose_resid(m, c, 4), IndexError, "layer 4 is out of range"),
        (lambda m, c: decompose_resid(m, c, mlp_input=True), ValueError, "below 3"),
        (lambda m, c: stack_head_results(m, c, 0), ValueError, "no head before layer 0"),
        (
            lambda m, c: decompose_resid(m, c, 0, incl_embeds=False),
            ValueError,
            "nothing is left",
        ),
        (lambda m, c: decompose_resid(m, c, pos_slice=9), IndexError, "pos 9 is out of range"),
        (
            lambda m, c: logit_attrs(m, c, decompose_resid(m, c, pos_slice=-1), 3),
            ValueError,
            "expected component batch=3 pos=9 d_model=24",
        ),
        (
            lambda m, c: logit_attrs(m, c, decompose_resid(m, c), torch.arange(9)),
            ValueError,
            r"tokens of shape \(9,\) do not fit",
        ),
        (
            lambda m, c: logit_attrs(m, c, decompose_resid(m, c), 3, ANSWERS),
            ValueError,
            "same shape",
        ),
        (lambda m, c: logit_attrs(m, c, decompose_resid(m, c), 31), IndexError, "0 to 30"),
    ],
)
def test_bad_stacks(model, cache, call, error, message):
    with pytest.raises(error, match=message):
        call(model, cache)


def test_unknown_mode_and_missing_activation(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter="*hook_attn_out")
    with pytest.raises(UnknownHookName, match="hook_embed"):
        decompose_resid(model, cache)
    parts = decompose_resid(model, cache, mode="attn", incl_embeds=False)
    with pytest.raises(UnknownHookName, match="hook_scale"):
        logit_attrs(model, cache, parts, 3)


# ------------------------------------------------------------------ results


@pytest.fixture(scope="module")
def pair(mini):
    return PromptPair.from_task(mini, "ioi", n=12, seed=1)


@pytest.fixture(scope="module")
def found(mini, pair):
    return attribution(mini, pair)


def test_a_pair_brings_prompts_and_answers(mini, pair, found):
    close(found.logit_diff.double(), pair.ends(mini)["clean"], rtol=0, atol=1e-4)
    assert float(found.remainder.abs().max()) < 1e-4
    assert found.str_tokens == pair.str_tokens
    with pytest.raises(ValueError, match="brings its answers"):
        attribution(mini, pair, " Mary")
    with pytest.raises(ValueError, match="brings its own mask"):
        attribution(mini, pair, attention_mask=pair.attention_mask)
    with pytest.raises(ValueError, match="has no answers"):
        attribution(mini, replace(pair, answers=None, wrong=None))


def test_text_answers(mini):
    text = ["When Mary and John went to the store, John gave a drink to"] * 2
    by_text = attribution(mini, text, [" Mary", " John"], [" John", " Mary"])
    right, wrong = (mini.to_single_token(name) for name in (" Mary", " John"))
    by_id = attribution(mini, text, torch.tensor([right, wrong]), torch.tensor([wrong, right]))
    close(by_text.logit_diff, by_id.logit_diff)
    close(by_text.logit_diff[0], -by_text.logit_diff[1], rtol=0, atol=1e-4)
    one = attribution(mini, text[0], " Mary", " John")
    assert "' Mary' minus ' John'" in repr(one)
    close(one.logit_diff[0], by_text.logit_diff[0], rtol=0, atol=1e-4)


def test_ioi_is_written_by_late_attention(found):
    """The picture of the paper: heads of the later layers write the name, the embeddings do not."""
    names = found["component"].labels["component"]
    adds = dict(zip(names, found["component"].mean.tolist(), strict=True))
    heads = found["head"].mean
    assert float(found.logit_diff.mean()) > 2
    assert abs(adds["embed"]) + abs(adds["pos_embed"]) < 0.2
    assert float(heads[1:].sum()) > 10 * abs(float(heads[0].sum()))
    lens = found["lens"].mean
    assert lens[0] < 0.5 < 2 < lens[-2] < lens[-1]


def test_frame(found):
    frame = found.to_frame()
    assert set(frame["view"]) == {*found.views}
    head = frame[(frame["view"] == "head") & (frame["layer"] == 3) & (frame["head"] == 4)]
    assert head["value"].item() == pytest.approx(float(found["head"].mean[3, 4]))
    assert head["stderr"].item() == pytest.approx(float(found["head"].stderr[3, 4]))
    parts = frame[frame["view"] == "component"]
    assert parts["value"].sum() == pytest.approx(float(found.logit_diff.mean()), abs=1e-5)
    assert len(frame[frame["view"] == "neuron"]) == 4 * 768
    assert "3.mlp_out" in set(parts["component_label"])


def test_pictures_and_page(mini, found, tmp_path):
    for view in found.views:
        found.plot(view)
    with pytest.raises(KeyError, match=r"no view 'heads'\. Did you mean 'head'"):
        found.plot("heads")
    found.to_html(tmp_path / "page.html", model=mini, top_k=3)
    page = (tmp_path / "page.html").read_text()
    assert "Direct logit attribution: mini" in page
    assert "Neurons: the 3 furthest from 0, of 3072" in page
    assert "3.mlp_out" in page and "95 % bootstrap intervals" in page


def test_hostile_tokens_on_a_page(model, tokens, tmp_path):
    found = attribution(model, tokens, 3, neurons=False)
    bad = "</script><img src=x>"
    hostile = replace(found, str_tokens=((bad,) * 9,) * 3, strings={3: bad})
    hostile.to_html(tmp_path / "page.html")
    assert "<img" not in (tmp_path / "page.html").read_text()
    assert "neuron" not in found.views


# ------------------------------------------------------------------ the command


def run(*arguments):
    return cli.status(main, "attribution", [*map(str, arguments)])


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("When Mary and John went to the store, John gave a drink to\n")
    return path


def test_command(prompt, tmp_path, capsys):
    out = {name: tmp_path / f"out.{name}" for name in ("html", "csv", "json")}
    outputs = [part for name, path in out.items() for part in (f"--{name}", path)]
    asked = ["--answer", " Mary", "--wrong", " John", "--model", "mini"]
    assert run(prompt, *asked, "--top-k", 4, *outputs) == 0
    shown = capsys.readouterr().out
    assert "logit of ' Mary' minus ' John'" in shown
    assert "Heads: the 4 furthest from 0, of 24" in shown
    frame = pd.read_csv(out["csv"])
    (result,) = json.loads(out["json"].read_text())
    total = frame[frame["view"] == "component"]["value"].sum()
    assert total == pytest.approx(result["logit_diff"][0], abs=1e-4)
    assert result["provenance"]["weights_sha256"]
    assert "Direct logit attribution" in out["html"].read_text()


def test_command_on_a_task(capsys):
    asked = ["--task", "ioi", "--n", 3, "--model", "mini", "--no-neurons", "--positions", "2,-1"]
    assert run(*asked) == 0
    shown = capsys.readouterr().out
    assert "on average over 3 prompts and the positions read" in " ".join(shown.split())
    assert "Neurons" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected prompt files, or --task"),
        (["PROMPT"], "--answer is missing"),
        (["PROMPT", "--answer", " a", "--n", "3"], "--n goes with --task"),
        (["PROMPT", "--task", "ioi"], "leave out the files"),
        (["--task", "ioi", "--top-k", "0"], "--top-k is 0"),
        (["PROMPT", "--answer", " not one", "--model", "mini"], "prompt.txt: "),
        (["--task", "iio"], "did you mean 'ioi'"),
    ],
)
def test_wrong_calls(prompt, capsys, arguments, message):
    assert run(*(prompt if one == "PROMPT" else one for one in arguments)) == 1
    assert message in capsys.readouterr().err
