"""The logit lens: its numbers against a naive computation, its edges, its shapes and its errors."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tokenizers import byte_tokenizer
from rich.console import Console
from torch import Tensor

from analyses._lens import arguments as lens_arguments
from analyses._lens import numbers as lens_numbers
from analyses._views import logit_lens as views
from analyses.logit_lens import POINTS, LensPoint, LogitLens, lens_logits, logit_lens
from analyses.report import weights_sha256
from interp import HookedGPT2, HookedGPT2Config

CFG = HookedGPT2Config(
    n_layers=3, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=24, d_vocab=264, act_fn="gelu_new"
)
HOSTILE = ["</script>", "<!--", "<b>&amp;", '"onload="', " Mary", "\n", "\x1b[31m"]


def build(dtype: torch.dtype = torch.float64, cfg: HookedGPT2Config = CFG) -> HookedGPT2:
    model = HookedGPT2.from_config(
        cfg, seed=1, tokenizer=byte_tokenizer(HOSTILE, CFG.d_vocab), dtype=dtype
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # as initialised, all predictions are nearly uniform
    return model


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    return build()


def naive(model: HookedGPT2, tokens: Any, point: LensPoint, **forward: Any) -> Tensor:
    """Log-probabilities at every position, straight from the definition."""
    _, cache = model.run_with_cache(tokens, **forward)
    x = cache[point.hook]
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    weight, bias = model.get_parameter("ln_f.weight"), model.get_parameter("ln_f.bias")
    logits = (centred / scale * weight + bias) @ model.W_U + model.b_U
    return logits.detach().log_softmax(-1)


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_lens_at_the_last_residual_is_the_model(dtype: torch.dtype) -> None:
    model = build(dtype)
    tokens = torch.arange(12).reshape(2, 6)
    logits, cache = model.run_with_cache(tokens)
    assert isinstance(logits, Tensor)
    assert torch.equal(lens_logits(model, cache["resid_post", -1]), logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", ["all", -1, [0, 3, -2]])
def test_last_row_is_the_models_prediction(dtype: torch.dtype, positions: Any) -> None:
    model = build(dtype)
    tokens = torch.arange(12).reshape(2, 6)
    lens = logit_lens(model, tokens, positions=positions, top_k=CFG.d_vocab)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    expected = model(tokens).detach().log_softmax(-1, dtype=exact)
    columns = {"all": list(range(6)), -1: [5]}.get(str(positions) if positions == "all" else -1)
    columns = [0, 3, 4] if isinstance(positions, list) else columns
    got = lens.top_log_probs[-1]
    assert got.dtype == exact
    close = {"rtol": 0, "atol": {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 0.07)}
    torch.testing.assert_close(got, expected[:, columns].gather(-1, lens.top_tokens[-1]), **close)
    assert (lens.kl_final_lens[-1] == 0).all()


@pytest.mark.parametrize("point", POINTS)
def test_every_number_at_every_point(model: HookedGPT2, point: str) -> None:
    tokens = torch.tensor([[5, 7, 1, 30, 12, 2, 2, 9]])
    targets = [0, 3, 30]
    lens = logit_lens(model, tokens, points=point, positions="all", top_k=4, targets=targets)
    assert lens.points == tuple(LensPoint(layer, point) for layer in range(CFG.n_layers))
    final = naive(model, tokens, LensPoint(2, "resid_post"))
    for index, place in enumerate(lens.points):
        log_probs = naive(model, tokens, place)
        close = {"rtol": 0, "atol": 1e-10}
        top = log_probs.sort(-1, descending=True)
        assert torch.equal(lens.top_tokens[index], top.indices[..., :4])
        torch.testing.assert_close(lens.top_log_probs[index], top.values[..., :4], **close)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        torch.testing.assert_close(lens.entropy[index], entropy, **close)
        divergence = torch.nn.functional.kl_div(log_probs, final, log_target=True, reduction="none")
        torch.testing.assert_close(lens.kl_final_lens[index], divergence.sum(-1), **close)
        torch.testing.assert_close(lens.target_log_probs[index], log_probs[..., targets], **close)
        ranks = torch.stack([(top.indices == t).nonzero()[:, -1] for t in targets], -1)
        assert torch.equal(lens.target_ranks[index], ranks[None])


def test_default_points_read_each_residual_once(model: HookedGPT2) -> None:
    lens = logit_lens(model, "abc")
    assert [str(p) for p in lens.points] == [
        "0.resid_pre", "0.resid_mid", "0.resid_post", "1.resid_mid", "1.resid_post",
        "2.resid_mid", "2.resid_post",
    ]  # fmt: skip
    # Both names of what passes between two blocks find it.
    assert lens.index("resid_pre", 1) == lens.index("resid_post", 0) == 2
    assert lens.index("resid_post", -1) == 6
    only = logit_lens(model, "abc", points="resid_pre")
    assert only.index("resid_post", 1) == only.index("resid_pre", 2) == 2
    torch.testing.assert_close(only.entropy[1:], lens.entropy[[2, 4]])
    with pytest.raises(KeyError, match=r"no 1\.attn_out; it has 0\.resid_pre"):
        lens.index("attn_out", 1)


def test_a_uniform_distribution_by_hand() -> None:
    model = build()
    with torch.no_grad():
        model.get_parameter("wte").zero_()  # tied: all logits are zero
    lens = logit_lens(model, torch.tensor([1, 2]), targets=[4], top_k=2)
    torch.testing.assert_close(lens.entropy, torch.full_like(lens.entropy, math.log(264)))
    assert (lens.kl_final_lens == 0).all()
    torch.testing.assert_close(lens.top_probs, torch.full_like(lens.top_probs, 1 / 264))
    assert (lens.target_ranks == 0).all()  # ties share the best rank


def test_divergence_is_that_of_the_lens_from_the_final_distribution() -> None:
    # p = final, q = lens; KL(p || q) differs from KL(q || p) here, by hand.
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.9, 0.05, 0.05]).log()
    assert lens_numbers._kl(p, p).item() == 0
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.05)
    assert lens_numbers._kl(p, q).item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ positions, padding, batches


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: HookedGPT2, side: Any) -> None:
    texts = ["abcdef", "xy", "hello."]
    batch = model.tokenize(texts, padding_side=side)
    for positions in ("all", -1, [1, -1]):
        together = logit_lens(model, batch, positions=positions, targets=["z"])
        for row, text in enumerate(texts):
            alone = logit_lens(model, text, positions=positions, targets=["z"])
            n = alone.position.shape[1]
            assert together.tokens[row] == alone.tokens[0]
            assert torch.equal(together.position[row, :n], alone.position[0])
            assert (together.position[row, n:] == -1).all()
            for name in ("top_log_probs", "entropy", "kl_final_lens", "target_log_probs"):
                whole, one = getattr(together, name)[:, row], getattr(alone, name)[:, 0]
                torch.testing.assert_close(whole[:, :n], one, rtol=0, atol=1e-9)
                assert whole[:, n:].isnan().all()
            assert torch.equal(together.top_tokens[:, row, :n], alone.top_tokens[:, 0])
            assert (together.target_ranks[:, row, n:] == -1).all()
            if positions == "all":
                assert len(together.to_frame().query("batch == @row")) == len(alone.to_frame())


def test_token_ids_with_a_mask(model: HookedGPT2) -> None:
    tokens = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    lens = logit_lens(model, tokens, attention_mask=mask)
    assert lens.position.tolist() == [[2], [4]]
    assert lens.tokens == ((1, 2, 3), (4, 5, 6, 7, 8))
    expected = naive(model, torch.tensor([[1, 2, 3]]), LensPoint(1, "resid_mid"))[0, -1].max()
    index = lens.index("resid_mid", 1)
    torch.testing.assert_close(lens.top_log_probs[index, 0, 0, 0], expected)


def test_one_dimension_is_one_prompt(model: HookedGPT2) -> None:
    one, two = logit_lens(model, torch.tensor([1, 2])), logit_lens(model, torch.tensor([[1, 2]]))
    assert torch.equal(one.entropy, two.entropy)


def test_one_dimension_of_mask_goes_with_one_of_ids(model: HookedGPT2) -> None:
    tokens, mask = torch.tensor([1, 2, 3, 0]), torch.tensor([1, 1, 1, 0])
    one = logit_lens(model, tokens, attention_mask=mask)
    assert one.tokens == ((1, 2, 3),)
    two = logit_lens(model, tokens[None], attention_mask=mask[None])
    assert torch.equal(one.entropy, two.entropy)


@pytest.mark.parametrize(
    "number", [np.int64, np.uint8, torch.tensor, lambda n: np.array(n, dtype=np.int32)]
)
def test_numbers_of_numpy_and_torch(model: HookedGPT2, number: Any) -> None:
    plain = logit_lens(model, "abc", positions=[0, 2], targets=[7], top_k=2)
    other = logit_lens(
        model, "abc", positions=[number(0), number(2)], targets=[number(7)], top_k=number(2)
    )
    assert torch.equal(other.target_log_probs, plain.target_log_probs)
    assert other.provenance.call == plain.provenance.call
    one = logit_lens(model, "abc", positions=number(2), targets=number(7), top_k=2)
    torch.testing.assert_close(one.target_log_probs[:, :, 0], plain.target_log_probs[:, :, 1])
    several = logit_lens(model, "abc", positions=np.array([0, 2]), targets=torch.tensor([7]))
    assert torch.equal(several.position, plain.position)


@pytest.mark.parametrize("value", [2.5, True, "2", None, np.float64(2), torch.tensor(2.5)])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    # Called directly, since in tests the annotations refuse some of these before.
    with pytest.raises(TypeError, match="top_k is a whole number, not "):
        lens_arguments.whole(value, "top_k is a whole number")


def test_tokens_used_are_in_the_result(model: HookedGPT2) -> None:
    with_bos = logit_lens(model, "ab")
    assert with_bos.str_tokens == [["<|endoftext|>", "a", "b"]]
    assert with_bos.prepend_bos is True
    without = logit_lens(model, "ab", prepend_bos=False)
    assert (without.str_tokens, without.prepend_bos) == ([["a", "b"]], False)
    assert logit_lens(model, torch.tensor([0, 1])).prepend_bos is None
    assert logit_lens(model, model.tokenize("ab", prepend_bos=False)).prepend_bos is False


def test_a_model_without_tokenizer_shows_ids() -> None:
    model = HookedGPT2.from_config(CFG)
    lens = logit_lens(model, torch.tensor([3, 4]), targets=7)
    assert lens.str_tokens == [["<3>", "<4>"]]
    with pytest.raises(ValueError, match="no tokenizer"):
        logit_lens(model, "ab")


# ------------------------------------------------------------------ cost


class Watch:
    """Counts what goes through the unembedding."""

    def __init__(self, model: HookedGPT2, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        unembed = type(model).unembed

        def watched(this: HookedGPT2, x: Tensor) -> Tensor:
            self.rows.append(x.numel() // x.shape[-1])
            return unembed(this, x)

        monkeypatch.setattr(type(model), "unembed", watched)


def test_the_last_position_alone_is_unembedded(
    model: HookedGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(model, monkeypatch)
    lens = logit_lens(model, torch.arange(20).reshape(2, 10))
    assert sum(watch.rows) == len(lens.points) * 2
    watch.rows.clear()
    logit_lens(model, torch.arange(10), points="attn_out", positions=[2, 3])
    assert sum(watch.rows) == (CFG.n_layers + 1) * 2  # and the final one, to compare with


def test_many_positions_go_a_few_at_a_time(
    model: HookedGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.arange(20).reshape(2, 10)
    settings: dict[str, Any] = {"positions": "all", "targets": [1], "points": POINTS}
    whole = logit_lens(model, tokens, **settings)
    for at_once in (1, 3, 7, 45):
        monkeypatch.setattr(lens_numbers, "_CHUNK_BYTES", at_once * CFG.d_vocab * 8)
        with monkeypatch.context() as patch:
            watch = Watch(model, patch)
            chunked = logit_lens(model, tokens, **settings)
        assert max(watch.rows) <= at_once
        assert sum(watch.rows) == len(whole.points) * 20
        for name in ("top_log_probs", "entropy", "kl_final_lens", "target_log_probs"):
            got, expected = getattr(chunked, name), getattr(whole, name)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        assert torch.equal(chunked.target_ranks, whole.target_ranks)


def test_the_model_is_left_alone(model: HookedGPT2) -> None:
    before = weights_sha256(model)
    lens = logit_lens(model, "abc", positions="all", targets=["a"])
    assert weights_sha256(model) == before
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in model.hook_dict.values())
    assert all(p.grad is None for p in model.parameters())
    assert not lens.top_log_probs.requires_grad


def test_hooks_that_are_active_count(model: HookedGPT2) -> None:
    def silence(z: Tensor, hook: Any) -> None:
        z[:] = 0

    tokens = torch.tensor([[1, 2, 3, 4]])
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", silence)]):
        lens, logits = logit_lens(model, tokens, top_k=1), model(tokens)
    top = logits[0, -1].log_softmax(-1).max()
    torch.testing.assert_close(lens.top_log_probs[-1, 0, 0, 0], top.detach())
    assert lens.entropy[-1] != logit_lens(model, tokens, top_k=1).entropy[-1]


def test_a_hook_between_two_blocks_parts_their_names(model: HookedGPT2) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    clean = logit_lens(model, tokens)
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", lambda x, hook: -x)]):
        lens = logit_lens(model, tokens)
        only = logit_lens(model, tokens, points="resid_pre")
    assert len(lens.points) == len(clean.points) + 1
    leaves, enters = lens.index("resid_post", 1), lens.index("resid_pre", 2)
    assert leaves + 1 == enters
    expected = clean.entropy[clean.index("resid_post", 1)]
    torch.testing.assert_close(lens.entropy[leaves], expected)
    torch.testing.assert_close(lens.entropy[enters], only.entropy[2])
    assert abs(lens.entropy[leaves] - lens.entropy[enters]) > 0.01
    assert lens.index("resid_pre", 1) == lens.index("resid_post", 0)  # no hook there
    frame = lens.to_frame()[["hook", "same_as"]].drop_duplicates()
    same = dict(frame.values)
    assert same["blocks.1.hook_resid_post"] == same["blocks.2.hook_resid_pre"] == ""
    assert same["blocks.0.hook_resid_post"] == "blocks.1.hook_resid_pre"
    with pytest.raises(KeyError, match=r"no 1\.resid_post"):
        only.index("resid_post", 1)


# ------------------------------------------------------------------ what a result gives


@pytest.fixture(scope="module")
def lens(model: HookedGPT2) -> LogitLens:
    return logit_lens(model, ["abc </script>", "xy"], positions="all", targets=[" Mary"], top_k=3)


def test_frame_has_one_row_per_number(lens: LogitLens) -> None:
    frame = lens.to_frame()
    cells = len(lens.points) * (len(lens.tokens[0]) + len(lens.tokens[1]))
    assert len(frame) == cells * (2 + 2 * 3 + 2)
    key = ["batch", "hook", "position", "quantity", "k", "predicted_id"]
    assert not frame.duplicated(key).any()
    assert frame["value"].notna().to_numpy().all()
    place = "batch == 1 and layer == 1 and point == 'resid_mid' and position == 2"
    here = frame.query(place).set_index("quantity")
    slot = (lens.index("resid_mid", 1), 1, 2)
    assert here.loc["entropy", "value"] == lens.entropy[slot]
    assert here.loc["kl_final_lens", "value"] == lens.kl_final_lens[slot]
    assert here.loc["target_rank", "value"] == lens.target_ranks[slot][0]
    assert here.loc["target_log_prob", "predicted"] == " Mary"
    assert here.loc["log_prob", "value"].tolist() == lens.top_log_probs[slot].tolist()
    assert here.loc["prob", "k"].tolist() == [0, 1, 2]
    assert set(here["token"]) == {"y"}
    pairs = frame.query("point == 'resid_post'")[["hook", "same_as"]].drop_duplicates()
    assert dict(pairs.values)["blocks.0.hook_resid_post"] == "blocks.1.hook_resid_pre"
    assert dict(pairs.values)["blocks.2.hook_resid_post"] == ""


def test_dict_is_json(lens: LogitLens) -> None:
    data = json.loads(json.dumps(lens.to_dict(), allow_nan=False))
    assert data["prepend_bos"] is True
    assert [token["token"] for token in data["prompts"][1]] == ["<|endoftext|>", "x", "y"]
    row = data["lens"][-1]
    assert (row["batch"], row["position"], row["hook"]) == (1, 2, "blocks.2.hook_resid_post")
    assert [t["id"] for t in row["top"]] == lens.top_tokens[-1, 1, 2].tolist()
    assert row["targets"][0]["token"] == " Mary"
    assert data["provenance"]["dtype"] == "float64"


def test_not_finite_is_shown_and_becomes_null_in_json() -> None:
    model = build(torch.float32)
    with torch.no_grad():
        model.get_parameter("ln_f.bias").fill_(math.nan)
    for positions in (-1, "all"):
        lens = logit_lens(model, "ab", positions=positions, targets="a")
        assert ">nan" in views.page([("", lens)]).html()
        out = io.StringIO()
        views.show(lens, Console(file=out))
        assert " nan" in out.getvalue()
    data = lens.to_dict()
    assert data["lens"][0]["entropy"] is None
    json.dumps(data, allow_nan=False)


def test_repr(model: HookedGPT2, lens: LogitLens) -> None:
    assert "2 prompts of 3 to 6 tokens, <|endoftext|> prepended; 7 points x 6" in repr(lens)
    single = repr(logit_lens(model, "abc", top_k=2))
    assert "1 prompt of 4 tokens" in single
    assert len(single.splitlines()) == 8
    assert "  0.resid_pre " in single


def test_heat_map(lens: LogitLens) -> None:
    figure = lens.plot(0)
    heat: Any = figure.data[0]
    assert torch.equal(torch.tensor(heat.z, dtype=torch.float64), lens.top_probs[:, 0, :, 0])
    assert figure.layout.yaxis.ticktext[0].strip() == "0.resid_pre"
    assert "&lt;/script&gt;" in figure.layout.xaxis.ticktext[5]
    assert not any("</script>" in text for row in heat.customdata for text in row)
    assert "target <b>\u2068·Mary\u2069</b>: log-probability" in heat.customdata[0][0]
    menu = figure.layout.updatemenus[0]
    assert [button.label for button in menu.buttons] == [
        "probability", "entropy, nats", "KL(final || lens), nats",
    ]  # fmt: skip
    # The padding of the shorter prompt is not drawn.
    other: Any = lens.plot(1).data[0]
    assert len(other.z[0]) == 3
    with pytest.raises(IndexError, match="prompt 2 is out of range: this lens has 2"):
        lens.plot(2)


def test_heat_map_of_one_position_shows_its_predictions(model: HookedGPT2) -> None:
    lens = logit_lens(model, "abc", top_k=3)
    figure = lens.plot()
    heat: Any = figure.data[0]
    assert list(figure.layout.xaxis.ticktext) == ["rank 0", "rank 1", "rank 2"]
    assert torch.equal(torch.tensor(heat.z, dtype=torch.float64), lens.top_probs[:, 0, 0])


def test_target_curves(model: HookedGPT2, lens: LogitLens) -> None:
    line: Any = lens.plot_targets(1).data[0]
    assert torch.equal(torch.tensor(line.y, dtype=torch.float64), lens.target_log_probs[:, 1, 2, 0])
    assert line.name == "·Mary"
    with pytest.raises(IndexError, match="slot 3 is out of range: 3 positions"):
        lens.plot_targets(1, slot=3)
    with pytest.raises(ValueError, match="no targets"):
        logit_lens(model, "abc").plot_targets()


def test_page(model: HookedGPT2, lens: LogitLens, tmp_path: Path) -> None:
    lens.to_html(tmp_path / "lens.html", model=model)
    page = (tmp_path / "lens.html").read_text(encoding="utf-8")
    assert weights_sha256(model) in page
    assert page.count("<figure>") == 4  # heat map and targets of each prompt
    assert page.count("&lt;/script&gt;") > 1
    assert page.count("</script>") == len(re.findall("<script[ >]", page))  # the page's own
    assert "6 tokens, &lt;|endoftext|&gt; prepended." in page
    assert "logit_lens(model, ..., points=(&#x27;resid_pre&#x27;" in page
    lens.to_html(tmp_path / "lens.html")
    assert weights_sha256(model) not in (tmp_path / "lens.html").read_text(encoding="utf-8")


def test_page_says_when_there_are_too_many_cells_for_words(
    lens: LogitLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    heat: Any = lens.plot().data[0]
    assert heat.texttemplate == "%{text}"
    assert "Too many cells" not in views.page([("", lens)]).html()
    monkeypatch.setattr(views, "_MOST_LABELS", 20)
    heat = lens.plot().data[0]
    assert (heat.texttemplate, heat.text) == (None, None)
    assert "Too many cells for words in them." in views.page([("", lens)]).html()


# ------------------------------------------------------------------ bad inputs

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"points": "resid_mide"}, ValueError, "unknown point 'resid_mide'. Did you mean 'resid_mid'"),
    ({"points": ["resid_pre", "z"]}, ValueError, "unknown point 'z'"),
    ({"points": []}, ValueError, "points is empty"),
    ({"top_k": 0}, ValueError, "top_k=0 is out of range: this model has 1 to 264"),
    ({"top_k": 265}, ValueError, "top_k=265 is out of range"),
    ({"positions": 4}, IndexError, r"position 4 is out of range: the prompt has 4 tokens, 0 to 3"),
    ({"positions": [0, -5]}, IndexError, "position -5 is out of range"),
    ({"positions": []}, ValueError, "positions is empty"),
    ({"positions": "first"}, ValueError, "positions is 'all', a number or several, not 'first'"),
    ({"positions": [0, 2, 0]}, ValueError, "positions 0 and 0 are the same token of the prompt"),
    (
        {
            "tokens": torch.tensor([[1, 2], [3, 0]]),
            "attention_mask": torch.tensor([[1, 1], [1, 0]]),
            "positions": [0, -1],
        },
        ValueError,
        "positions 0 and -1 are the same token of prompt 1, which has 1: ask for it once",
    ),
    ({"targets": ["a", "b", "a"]}, ValueError, r"target 'a' is given twice \(token \d+\)"),
    ({"targets": ["ab"]}, ValueError, r"'ab' is 2 tokens, not one: \['a', 'b'\]"),
    ({"targets": 264}, IndexError, "target 264 is out of range: this model predicts .* 0 to 263"),
    ({"tokens": ""}, ValueError, "empty"),
    ({"tokens": "a" * 24}, ValueError, "has 25 tokens.*at most 24"),
    ({"tokens": torch.zeros(1, 25, dtype=torch.long)}, ValueError, "25 tokens.*n_ctx = 24"),
    ({"tokens": torch.tensor([[264]])}, IndexError, "token id 264 is out of range"),
    ({"tokens": torch.zeros(2, 0, dtype=torch.long)}, ValueError, r"not of shape \(2, 0\)"),
    ({"attention_mask": torch.ones(1, 4)}, ValueError, "text brings its own mask"),
    (
        {"tokens": torch.tensor([1, 2]), "attention_mask": torch.ones(1, 3)},
        ValueError,
        r"attention_mask has shape \(1, 3\), the tokens \(1, 2\)",
    ),
    (
        {"tokens": torch.tensor([1, 2]), "attention_mask": torch.zeros(1, 2)},
        ValueError,
        "without any token",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), BAD)
def test_bad_input(
    model: HookedGPT2, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = weights_sha256(model)
    arguments = {"tokens": "abc", **given}
    with pytest.raises(error, match=message):
        logit_lens(model, arguments.pop("tokens"), **arguments)
    assert weights_sha256(model) == before
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in model.hook_dict.values())


def test_bundled_model(mini: HookedGPT2) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    lens = logit_lens(mini, prompt, targets=[" Mary", " John"])
    log_probs = mini(prompt)[0, -1].detach().log_softmax(-1)
    ids = [mini.to_single_token(name) for name in (" Mary", " John")]
    torch.testing.assert_close(lens.target_log_probs[-1, 0, 0], log_probs[ids])
    assert lens.str_tokens[0][:3] == ["<|endoftext|>", "When", " Mary"]
