"""Activation patching: against one hooked run per place; shapes; errors; what mini's IOI shows."""

import html
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from _commands import help_without_torch
from rich.console import Console
from torch import Tensor

from analyses import activation_patching as module
from analyses._views import activation_patching as views_of
from analyses.activation_patching import (
    GROUPS,
    VIEWS,
    ActivationPatching,
    activation_patching,
    checked_views,
    generic_activation_patch,
    layer_head_vector_patch_setter,
    layer_pos_patch_setter,
)
from analyses.metrics import kl, logit_diff
from analyses.pairs import PromptPair
from hooks import UnknownHookName
from interp import HookedGPT2
from notebooks.browser import Browser

N_LAYERS, N_HEADS, N_POS = 2, 3, 5


@pytest.fixture(scope="module")
def model(reference_model: Callable[..., Any]) -> HookedGPT2:
    cfg = dict(n_layer=N_LAYERS, n_head=N_HEADS, n_embd=12, n_positions=12, vocab_size=31,
               bos_token_id=0, eos_token_id=0)  # fmt: skip
    return HookedGPT2.from_pretrained(reference_model(cfg, dtype=torch.float64), dtype="float64")


def tokens(n: int = 2) -> tuple[Tensor, Tensor]:
    clean = torch.randint(1, 31, (n, N_POS))
    corrupted = clean.clone()
    corrupted[:, 1] = (clean[:, 1] + 7) % 30 + 1
    return clean, corrupted


def metric(n: int = 2) -> Any:
    return logit_diff(list(range(3, 3 + n)), list(range(9, 9 + n)))


def diff(logits: Any) -> Tensor:
    """The same metric, by hand."""
    rows = torch.arange(len(logits))
    return (logits[rows, -1, 3 + rows] - logits[rows, -1, 9 + rows]).detach()


def naive(model: HookedGPT2, into: Tensor, source: Tensor, view: str, place: Any) -> Tensor:
    """The metric with one place patched, by a hook that does as the view's name says."""
    _, cache = model.run_with_cache(source)
    point, axes = VIEWS[view]
    at = dict(zip(axes, place, strict=True))
    index: list[Any] = [slice(None)] * 4
    if point == "pattern":
        index[1] = at["head"]
        index[2] = at.get("pos", at.get("query", slice(None)))
        index[3] = at.get("key", slice(None))
    else:
        index[1] = at.get("pos", slice(None))
        index[2] = at.get("head", slice(None))
        index = index[:3]

    def hook(activation: Tensor, hook: Any) -> None:
        activation[tuple(index)] = cache[hook.name][tuple(index)]

    (name,) = {n for n in cache if n.startswith(f"blocks.{at['layer']}.") and n.endswith(
        f"hook_{point}")}  # fmt: skip
    return diff(model.run_with_hooks(into, fwd_hooks=[(name, hook)]))


def some_places(shape: Sequence[int]) -> list[Tensor]:
    """All places on these axes, or a good dozen spread over all of them."""
    places = list(torch.cartesian_prod(*map(torch.arange, shape)))
    return places[:: max(1, len(places) // 12) + (len(places) > 24)]


# ------------------------------------------------------------------ numbers


@pytest.fixture(scope="module", params=["denoising", "noising"])
def everything(model: HookedGPT2, request: Any) -> tuple[ActivationPatching, Tensor, Tensor]:
    """All views at once, what was patched into, and where from."""
    torch.manual_seed(0)
    clean, corrupted = tokens()
    found = activation_patching(
        model, clean, corrupted, metric(), views=list(VIEWS), direction=request.param
    )
    into, source = (corrupted, clean) if request.param == "denoising" else (clean, corrupted)
    return found, into, source


@pytest.mark.parametrize("view", VIEWS)
def test_every_place_equals_a_hooked_run(model: HookedGPT2, view: str, everything: Any) -> None:
    result, into, source = everything
    effects = result[view]
    sizes = dict(layer=N_LAYERS, head=N_HEADS, pos=N_POS, query=N_POS, key=N_POS)
    assert effects.values.shape == (*(sizes[axis] for axis in VIEWS[view].axes), 2)
    for place in some_places(effects.values.shape[:-1]):
        expected = naive(model, into, source, view, place.tolist())
        assert torch.allclose(effects.values[tuple(place)], expected, atol=1e-12), place
    assert effects.base.tolist() == pytest.approx(diff(model(into)).tolist())


def test_the_ends_are_the_two_runs(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    for direction in module.DIRECTIONS:
        result = activation_patching(
            model, clean, corrupted, metric(), views="resid_post", direction=direction
        )
        effects = result["resid_post"]
        assert effects.clean is not None and effects.corrupted is not None
        assert torch.allclose(effects.clean, diff(model(clean)), atol=1e-12)
        assert torch.allclose(effects.corrupted, diff(model(corrupted)), atol=1e-12)
        # Only the last position of the last residual is read, so all is decided there.
        assert float(effects.normalised[-1, -1]) == pytest.approx(float(direction == "denoising"))


def test_a_metric_against_the_unedited_run_has_its_ends_too(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    effects = activation_patching(model, clean, corrupted, kl(), views="z")["z"]
    logits: Any = model(clean)
    other: Any = model(corrupted)
    p, q = other[:, -1].log_softmax(-1), logits[:, -1].log_softmax(-1)
    assert effects.corrupted is not None and effects.clean is not None
    assert effects.corrupted.tolist() == [0, 0]
    assert torch.allclose(effects.clean, (p.exp() * (p - q)).sum(-1).detach(), atol=1e-12)


def test_any_function_of_the_logits(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    by_value = activation_patching(model, clean, corrupted, metric(), views=("mlp_out", "k"))
    by_function = activation_patching(model, clean, corrupted, diff, views=("mlp_out", "k"))
    summed = activation_patching(
        model, clean, corrupted, lambda logits: diff(logits).mean(), views=("mlp_out", "k")
    )
    for view in ("mlp_out", "k"):
        assert torch.allclose(by_value[view].values, by_function[view].values, atol=1e-12)
        assert torch.allclose(by_value[view].mean, summed[view].mean, atol=1e-12)
        assert summed[view].n_examples == 1


def test_layers_and_positions_chosen(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    everything = activation_patching(model, clean, corrupted, metric(), views="z_by_pos")
    some = activation_patching(
        model, clean, corrupted, metric(), views="z_by_pos", layers=[-1], positions=[3, -1]
    )["z_by_pos"]
    whole = everything["z_by_pos"].values
    assert torch.allclose(some.values, whole[1:, [3, 4]], atol=1e-12)
    assert some.numbers == {"layer": (1,), "pos": (3, 4)}
    assert some.labels["pos"][1] == "4"  # the examples have different tokens there
    frame = some.to_frame()
    assert set(frame["layer"]) == {1} and set(frame["pos"]) == {3, 4}


def test_examples_of_unequal_length_at_named_positions(mini: Any) -> None:
    pair = PromptPair.from_task(mini, "ioi", n=5)
    assert pair.is_padded
    chosen: dict[str, Any] = dict(views=("resid_pre", "z"), layers=[1])
    result = activation_patching(mini, pair, **chosen)
    effects = result["resid_pre"]
    assert effects.labels["pos"] == tuple(pair.positions)
    s2 = effects.labels["pos"].index("S2")
    for example in (0, 3):
        alone = pair.select([example])
        own = activation_patching(mini, alone, **chosen)
        at = int(alone.positions["S2"][0])
        assert float(effects.values[0, s2, example]) == pytest.approx(
            float(own["resid_pre"].values[0, at, 0]), abs=1e-3
        )
        assert torch.allclose(result["z"].values[..., example], own["z"].values[..., 0], atol=1e-3)


def test_groups_are_their_views_side_by_side(model: HookedGPT2) -> None:
    clean, corrupted = tokens(1)
    for group, names in GROUPS.items():
        assert checked_views(group) == names
        assert len({VIEWS[name].axes for name in names}) == 1
    result = activation_patching(model, clean, corrupted, metric(1), views="block_every")
    assert len(result.plot().data) == len(result.views) == 3
    assert checked_views(("z", "head_all_pos_every", "z")) == ("z", "q", "k", "v", "pattern")


def test_the_model_is_left_as_it_was(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    activation_patching(model, clean, corrupted, metric())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# ------------------------------------------------------------------ what mini's IOI shows


@pytest.fixture(scope="module")
def ioi(mini: Any) -> ActivationPatching:
    """Where S2 differs: the corrupted prompt names the other person again."""
    pair = PromptPair.from_task(mini, "ioi", n=8, corruption="flip", template="when_went/ABBA",
                                split="train")  # fmt: skip
    return activation_patching(mini, pair, views=("block_every", "head_all_pos_every"))


def test_the_answer_moves_from_the_changed_name_to_the_end(ioi: ActivationPatching) -> None:
    resid = ioi["resid_pre"].normalised
    s2, end = (int(ioi.pair.positions[name][0]) for name in ("S2", "END"))
    # The token that differs carries everything at first, the last token at last.
    assert float(resid[0, s2]) == pytest.approx(1, abs=1e-4)
    assert float(resid[0, end]) == pytest.approx(0, abs=1e-4)
    assert float(resid[-1, end]) > 0.8
    assert abs(float(resid[-1, s2])) < 0.1
    # Nothing before that token differs, or carries anything.
    assert float(resid[:, :s2].abs().max()) < 1e-4
    # What S2 loses on the way, END gains.
    for layer in range(len(resid)):
        assert 0.8 < float(resid[layer, [s2, end]].sum()) < 1.2


def test_attention_moves_it_and_queries_use_it(ioi: ActivationPatching) -> None:
    s2, end = (int(ioi.pair.positions[name][0]) for name in ("S2", "END"))
    attn = ioi["attn_out"].normalised
    assert attn[:, end].max() > 0.5  # it comes to END through attention
    assert ioi["mlp_out"].normalised[1:, s2].abs().max() < 0.2
    # One head's values carry it there; later heads' queries ask differently because of it.
    v, q = ioi["v"].normalised, ioi["q"].normalised
    (carrier,) = ioi["v"].strongest(1)
    (asker,) = ioi["q"].strongest(1)
    assert float(v[carrier]) > 0.3 and float(q[asker]) > 0.1
    assert carrier[0] < asker[0]


def test_noising_takes_away_what_denoising_brings(mini: Any, ioi: ActivationPatching) -> None:
    noising = activation_patching(mini, ioi.pair, views="resid_pre", direction="noising")
    there, away = ioi["resid_pre"].normalised, noising["resid_pre"].normalised
    assert noising["resid_pre"].neutral("normalised") == 1
    # Patching the whole of what differs in one direction undoes it in the other.
    s2 = int(ioi.pair.positions["S2"][0])
    assert float(there[0, s2]) == pytest.approx(1, abs=1e-4)
    assert float(away[0, s2]) == pytest.approx(0, abs=1e-4)


# ------------------------------------------------------------------ what is refused


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": "resid_prae"}, "unknown view 'resid_prae'; did you mean 'resid_pre'?"),
        ({"views": ()}, "views is empty"),
        ({"direction": "noisy"}, "did you mean 'noising'?"),
        ({"layers": [2]}, "layer 2 is out of range: there are 2 layers"),
        ({"layers": [1, -1]}, "layer 1 is asked for twice"),
        ({"layers": []}, "layers is empty"),
        ({"positions": [5]}, "position 5 is out of range"),
        ({"positions": [4, -1]}, "asked for twice"),
        ({"positions": []}, "positions is empty"),
        ({"positions": ["S2"]}, "unknown position 'S2'"),
        ({"metric": None}, "this pair has no answers"),
        ({"corrupted": None}, "corrupted prompts are missing"),
        ({"corrupted": torch.ones(2, 4, dtype=torch.int64)}, "clean has 5 tokens, corrupted 4"),
        ({"corrupted": torch.ones(1, 5, dtype=torch.int64)}, "2 clean prompts and 1 corrupted"),
        ({"metric": lambda logits: logits[:, -1]}, "shape (2, 31)"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: HookedGPT2, change: dict[str, Any], message: str
) -> None:
    clean, corrupted = tokens()
    given: dict[str, Any] = {"corrupted": corrupted, "metric": metric()} | change
    with pytest.raises(ValueError) as error:
        activation_patching(model, clean, **given)
    assert message in str(error.value)


def test_all_positions_of_unequal_examples_are_refused(mini: Any) -> None:
    pair = PromptPair.from_task(mini, "ioi", n=5)
    with pytest.raises(ValueError, match=r"15 to 19 tokens.*S2.*groups\(\)"):
        activation_patching(mini, pair, positions="all")
    with pytest.raises(ValueError, match="brings its corrupted prompts"):
        activation_patching(mini, pair, pair.corrupted)


# ------------------------------------------------------------------ TransformerLens' functions

BY_POS = ("layer", "pos", "head")
SHAPES = {
    "resid_pre": ("resid_pre", ("layer", "pos")),
    "resid_mid": ("resid_mid", ("layer", "pos")),
    "attn_out": ("attn_out", ("layer", "pos")),
    "mlp_out": ("mlp_out", ("layer", "pos")),
    **{f"attn_head_{n}_by_pos": (f"{p}_by_pos", BY_POS) for n, p in zip(
        ("out", "q", "k", "v"), "zqkv", strict=True)},
    **{f"attn_head_{n}_all_pos": (p, ("layer", "head")) for n, p in zip(
        ("out", "q", "k", "v"), "zqkv", strict=True)},
    "attn_head_pattern_all_pos": ("pattern", ("layer", "head")),
    "attn_head_pattern_by_pos": ("pattern_by_pos", ("layer", "head", "pos")),
    "attn_head_pattern_dest_src_pos": ("pattern_by_entry", ("layer", "head", "query", "key")),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_functions_of_transformer_lens(model: HookedGPT2, name: str) -> None:
    clean, corrupted = tokens(1)
    _, cache = model.run_with_cache(clean)
    function = getattr(module, f"get_act_patch_{name}")
    found = function(model, corrupted, cache, lambda logits: diff(logits).mean())
    view, axes = SHAPES[name]
    sizes = dict(layer=N_LAYERS, head=N_HEADS, pos=N_POS, query=N_POS, key=N_POS)
    assert found.shape == tuple(sizes[axis] for axis in axes)
    assert found.dtype == torch.float64
    for place in some_places(found.shape):
        at = dict(zip(axes, place.tolist(), strict=True))
        ordered = [at[axis] for axis in VIEWS[view].axes]
        expected = naive(model, corrupted, clean, view, ordered).mean()
        assert float(found[tuple(place)]) == pytest.approx(float(expected), abs=1e-12)
    assert f"[{' '.join(axes[:1])}" in function.__doc__ and function.__name__.endswith(name)


def test_a_metric_that_says_what_it_reads_gives_the_same(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean)
    for function in (module.get_act_patch_mlp_out, module.get_act_patch_attn_head_pattern_all_pos):
        whole = function(model, corrupted, cache, lambda logits: diff(logits).mean())
        read = function(model, corrupted, cache, metric())
        assert torch.allclose(read, whole, atol=1e-12)


def test_every_kind_stacked(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean)
    call = (model, corrupted, cache, metric())
    stacked = module.get_act_patch_attn_head_all_pos_every(*call)
    assert stacked.shape == (5, N_LAYERS, N_HEADS)
    for row, kind in ((1, "q"), (4, "pattern")):
        one = getattr(module, f"get_act_patch_attn_head_{kind}_all_pos")(*call)
        assert torch.allclose(stacked[row], one, atol=1e-12)
    stacked = module.get_act_patch_attn_head_by_pos_every(*call)
    assert stacked.shape == (5, N_LAYERS, N_POS, N_HEADS)
    pattern = module.get_act_patch_attn_head_pattern_by_pos(*call)
    assert torch.allclose(stacked[4, 1, 2], pattern[1, :, 2], atol=1e-12)
    stacked = module.get_act_patch_block_every(*call)
    assert stacked.shape == (3, N_LAYERS, N_POS)
    assert torch.allclose(stacked[2], module.get_act_patch_mlp_out(*call), atol=1e-12)


def test_indices_given_in_a_table(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean)
    table = pd.DataFrame({"layer": [1, 0, 1], "pos": [4, 1, 0]})
    whole = module.get_act_patch_mlp_out(model, corrupted, cache, metric())
    some, back = module.get_act_patch_mlp_out(
        model, corrupted, cache, metric(), index_df=table, return_index_df=True
    )
    assert torch.allclose(some, torch.stack([whole[1, 4], whole[0, 1], whole[1, 0]]))
    assert back is table
    _, made = module.get_act_patch_mlp_out(model, corrupted, cache, metric(), return_index_df=True)
    assert list(made.columns) == ["layer", "pos"]
    assert made.iloc[N_POS].tolist() == [1, 0]


def test_any_setter(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean)

    def half(activation: Tensor, index: Any, other: Tensor) -> Tensor:
        layer, pos = index
        assert isinstance(layer, int)
        activation[:, pos] += 0.5 * (other[:, pos] - activation[:, pos])
        return activation

    found = generic_activation_patch(
        model, corrupted, cache, lambda x: diff(x).mean(), half, "mlp_out", ("layer", "pos")
    )
    for layer in range(N_LAYERS):
        for pos in range(N_POS):

            def hook(activation: Tensor, hook: Any, pos: int = pos) -> None:
                activation[:, pos] = (activation[:, pos] + cache[hook.name][:, pos]) / 2

            logits = model.run_with_hooks(
                corrupted, fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", hook)]
            )
            assert float(found[layer, pos]) == pytest.approx(float(diff(logits).mean()), abs=1e-12)
    by_metric = generic_activation_patch(
        model, corrupted, cache, metric(), half, "mlp_out", ("layer", "pos")
    )
    assert torch.allclose(by_metric, found, atol=1e-12)


def test_a_setter_means_the_same_as_edit_and_as_hook(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean, names_filter=["*hook_pattern", "*hook_result"])
    call = (model, corrupted, cache, metric())
    # A setter for vectors, at a pattern: it indexes that axis, whatever it is.
    odd = generic_activation_patch(*call, layer_pos_patch_setter, "pattern", ("layer", "head"))
    heads = module.get_act_patch_attn_head_pattern_all_pos(*call)
    assert torch.allclose(odd, heads, atol=1e-12)
    # A plain mapping as the cache: full runs, the same numbers.
    plain = {name: cache[name] for name in cache}
    axes = ("layer", "head_index")
    by_edit = generic_activation_patch(*call, layer_head_vector_patch_setter, "result", axes)
    by_hook = generic_activation_patch(
        model, corrupted, plain, metric(), layer_head_vector_patch_setter, "result", axes
    )
    assert torch.allclose(by_edit, by_hook, atol=1e-12)


def test_a_point_missing_in_the_cache_is_named(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean, names_filter="*hook_z")
    with pytest.raises(UnknownHookName, match=r"blocks\.0\.hook_resid_pre"):
        module.get_act_patch_resid_pre(model, corrupted, cache, metric())
    with pytest.raises(KeyError, match=r"nothing at 'blocks\.0\.hook_mlp_out'"):
        module.get_act_patch_mlp_out(model, corrupted, {"other": clean}, metric())


def test_calls_that_cannot_be_honoured(model: HookedGPT2) -> None:
    clean, corrupted = tokens()
    _, cache = model.run_with_cache(clean)
    call = (model, corrupted, cache, metric(), layer_pos_patch_setter, "resid_pre")
    table = pd.DataFrame({"layer": [0], "pos": [0]})
    for wrong in ((None, None), (("layer", "pos"), table)):
        with pytest.raises(ValueError, match="either index_axis_names or index_df"):
            generic_activation_patch(*call, *wrong)
    with pytest.raises(ValueError, match="unknown axis 'position'"):
        generic_activation_patch(*call, ("layer", "position"))
    with pytest.raises(ValueError, match="first axis is 'layer', not 'pos'"):
        generic_activation_patch(*call, ("pos", "layer"))
    with pytest.raises(ValueError, match=r"takes an index \(layer, pos\)"):
        generic_activation_patch(*call, ("layer", "pos", "head"))
    with pytest.raises(ValueError, match="no index to patch"):
        generic_activation_patch(*call, None, table.iloc[:0])
    with pytest.raises(IndexError, match="out of range"):
        generic_activation_patch(*call, None, pd.DataFrame({"layer": [0], "pos": [5]}))
    with pytest.raises(ValueError, match="gave 2 numbers, one per prompt"):
        module.get_act_patch_resid_pre(model, corrupted, cache, diff)
    _, longer = model.run_with_cache(torch.cat([clean, clean], 1))
    with pytest.raises(ValueError, match="tokens"):
        module.get_act_patch_resid_pre(model, corrupted, longer, metric())


# ------------------------------------------------------------------ tables, pages, terminal


@pytest.fixture(scope="module")
def result(mini: Any) -> ActivationPatching:
    clean = "When Mary and John </script> to the <b>store</b>, John gave a drink to"
    pair = PromptPair.from_text(
        mini, clean, clean.replace("John gave", "Mary gave"), " Mary", " John"
    )
    return activation_patching(mini, pair, views=("block_every", "z", "z_by_pos"), layers=[0, 3])


def test_frame_and_json(result: ActivationPatching) -> None:
    frame = result.to_frame()
    n_pos = result.pair.clean.shape[1]
    assert len(frame) == 3 * 2 * n_pos + 2 * 6 + 2 * n_pos * 6
    assert set(frame["direction"]) == {"denoising"} and set(frame["layer"]) == {0, 3}
    row = frame[(frame["view"] == "attn_out") & (frame["layer"] == 3) & (frame["pos"] == 2)]
    assert float(row["normalised"].iloc[0]) == float(result["attn_out"].normalised[1, 2])
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [view["name"] for view in data["views"]] == list(result.views)
    assert data["clean"] == [list(result.pair.str_tokens[0])]
    assert data["prepend_bos"] is True


def test_plot_and_lookup(result: ActivationPatching) -> None:
    assert len(result.plot().data) == 3
    assert len(result.plot("z").data) == 1
    with pytest.raises(ValueError, match="different axes"):
        result.plot("z", "resid_pre")
    with pytest.raises(KeyError, match="did you mean 'mlp_out'"):
        _ = result["mlp_outt"]
    assert "denoising" in repr(result) and "resid_pre: layer 2 x pos" in repr(result)


def test_page_is_drawn_offline(
    result: ActivationPatching, mini: Any, tmp_path: Path, browser: Browser
) -> None:
    path = tmp_path / "page.html"
    result.to_html(path, model=mini)
    source = path.read_text()
    assert "</script> to" not in source
    assert "sha256" in source and result.provenance.call.split("(")[0] in html.unescape(source)
    with browser.open(path) as page:
        n_plots = 3 + 1 + 1  # three panels, heads, heads by position
        page.wait_for(f"document.querySelectorAll('.heatmaplayer').length === {n_plots}")
        ticks = page.evaluate(
            "[...document.querySelectorAll('.xtick text')].map(e => e.textContent)"
        )
        assert any("<" in tick for tick in ticks)
        assert "·Mary/·John" in page.html() or "·John/·Mary" in page.html()
        assert page.console == []
        assert page.requests == []


def test_terminal(result: ActivationPatching) -> None:
    stream = io.StringIO()
    views_of.show(result, Console(file=stream, width=100, highlight=False, markup=False), 4)
    text = stream.getvalue()
    assert "denoising: clean activations put into the corrupted run" in text
    assert "<|endoftext|> prepended" in text
    assert "resid_pre: logit_diff, normalised, by layer and pos" in text
    assert "folded into" in text  # too wide, and it says so
    assert "z_by_pos: logit_diff, normalised, the strongest 4 of" in text
    assert max(map(len, text.splitlines())) <= 140


# ------------------------------------------------------------------ the command


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analyses.activation_patching", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_command_line(tmp_path: Path) -> None:
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    run = run_command(
        "--task", "ioi", "--n", "4", "--model", "mini", "--views", "resid_pre,z",
        "--positions", "S2,END", "--html", str(page), "--csv", str(table),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "S2" in run.stdout and "means over 4 examples" in run.stdout
    frame = pd.read_csv(table)
    assert set(frame["pos_label"].dropna()) == {"S2", "END"}
    assert "python -m analyses.activation_patching --task ioi" in page.read_text()


def test_command_line_answers_at_once_and_in_one_line() -> None:
    assert "--corruption" in help_without_torch("analyses.activation_patching")
    run = run_command("--task", "ioi", "--views", "resid_prr")
    assert run.returncode == 1
    assert run.stderr.startswith("error: unknown view 'resid_prr'; did you mean 'resid_pre'")
    assert len(run.stderr.splitlines()) == 1
