"""Attribution patching: against finite differences of naive edits, patching of a linear model,
integrals; batching; agreement; errors; what mini's IOI shows."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from _commands import help_without_torch
from _random_pairs import D_VOCAB, N_POS, lively_model, random_pair
from rich.console import Console
from torch import Tensor

from analyses import attribution_patching as module
from analyses import cli
from analyses._views import attribution_patching as views_of
from analyses.activation_patching import VIEWS, activation_patching, model_point
from analyses.attribution_patching import (
    NEURONS,
    AttributionPatching,
    agreement,
    attribution_patching,
)
from analyses.effects import Effects
from analyses.metrics import kl, log_prob, logit_diff, loss, prob
from analyses.pairs import PromptPair
from interp import HookedGPT2, HookedGPT2Config

N_LAYERS, N_HEADS = 2, 3
EVERY = (*VIEWS, NEURONS)


@pytest.fixture(scope="module")
def model(reference_model: Callable[..., Any]) -> HookedGPT2:
    return lively_model(reference_model, N_LAYERS, N_HEADS)


def edited(
    model: HookedGPT2,
    pair: PromptPair,
    direction: str,
    view: str,
    place: dict[str, int],
    share: float,
) -> Tensor:
    """The metric with a share of the way from base to source gone at one place: a full run."""
    base, source = (pair.corrupted, pair.clean)
    if direction == "noising":
        base, source = source, base
    layer = place["layer"]
    name = f"blocks.{layer}.mlp.hook_post" if view == NEURONS else ""
    name = name or model_point(VIEWS[view].point, layer)
    _, cache = model.run_with_cache(source, names_filter=name, attention_mask=pair.attention_mask)
    position = place.get("pos", place.get("query"))

    def patch(activation: Tensor, hook: Any) -> None:
        for example, length in enumerate(pair.lengths.tolist()):
            index: list[Any] = [example]
            for axis in hook.axes[1:]:
                if axis in ("pos", "query"):
                    index.append(slice(length) if position is None else position % length)
                elif axis == "key":
                    index.append(place.get("key", slice(length)))
                elif axis == "head":
                    index.append(place["head"])
                else:
                    index.append(place.get("neuron", slice(None)))
            at = tuple(index)
            activation[at] += share * (cache[name][at] - activation[at])

    logits = model.run_with_hooks(
        base, fwd_hooks=[(name, patch)], attention_mask=pair.attention_mask
    )
    assert isinstance(logits, Tensor)
    return pair.metric(logits, attention_mask=pair.attention_mask)


# ------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("view", EVERY)
def test_an_estimate_is_the_effect_of_going_a_little_of_the_way(
    model: HookedGPT2, view: str, direction: Any
) -> None:
    pair = random_pair(model, (N_POS, N_POS - 2))
    found = attribution_patching(
        model, pair, direction=direction, views=view, positions=[0, 1, -1]
    )[view]
    changes = found.values - found.base
    assert changes.abs().max() > 1e-5
    step = 1e-4
    for index in torch.randint(0, 10**6, (4, len(found.axes))).tolist():
        at = tuple(i % size for i, size in zip(index, found.values.shape, strict=False))
        place = {
            axis: found.numbers[axis][i] if axis in found.numbers else i
            for axis, i in zip(found.axes, at, strict=True)
        }
        if "key" in place:  # -1 is another column in every example
            continue
        there, back = (
            edited(model, pair, direction, view, place, share) for share in (step, -step)
        )
        torch.testing.assert_close(changes[at], (there - back) / (2 * step), rtol=1e-6, atol=1e-10)


def test_pattern_entries_are_those_of_query_and_key(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = attribution_patching(model, pair, views="pattern_by_entry")["pattern_by_entry"]
    for place in ((0, 1, 3, 2), (1, 2, 4, 0)):
        at = dict(zip(found.axes, place, strict=True))
        there, back = (
            edited(model, pair, "denoising", "pattern_by_entry", at, s) for s in (1e-4, -1e-4)
        )
        torch.testing.assert_close(
            found.values[place] - found.base, (there - back) / 2e-4, rtol=1e-6, atol=1e-8
        )


def linear_model() -> HookedGPT2:
    """Layer norms of an all but constant scale, a linear activation, uniform attention."""
    cfg = HookedGPT2Config(n_layers=3, d_model=12, n_heads=3, n_ctx=8, d_vocab=D_VOCAB,
                           act_fn="linear", eps=1e14)  # fmt: skip
    model = HookedGPT2.from_config(cfg, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if ".ln_" in f".{name}" and "weight" in name:
                parameter.add_(1).mul_(1e7)
        model.W_Q.zero_(), model.W_K.zero_(), model.b_Q.zero_(), model.b_K.zero_()
    return model


@pytest.mark.parametrize("steps", [None, 3])
def test_estimates_are_exact_in_a_linear_model(steps: int | None) -> None:
    model = linear_model()
    pair = random_pair(model, (3, 3))
    views = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v",
             "pattern", "v_by_pos"]  # fmt: skip
    exact = activation_patching(model, pair, views=views, progress=False)
    found = attribution_patching(model, pair, views=views, steps=steps)
    for view in views:
        torch.testing.assert_close(found[view].values, exact[view].values, rtol=1e-6, atol=1e-10)
    assert found["z"].change.abs().max() > 0.01
    assert found["pattern"].change.abs().max() < 1e-9


def test_estimates_lie_on_the_axes_of_exact_patching(model: HookedGPT2) -> None:
    pair = random_pair(model, (3, 3))
    exact = activation_patching(model, pair, views=list(VIEWS), direction="noising", progress=False)
    found = attribution_patching(model, pair, views=list(VIEWS), direction="noising")
    assert list(found.views) == list(exact.views)
    for view, effects in exact.views.items():
        same = found[view]
        for field in ("name", "axes", "labels", "numbers", "metric"):
            assert getattr(same, field) == getattr(effects, field), field
        for field in ("base", "corrupted", "clean"):
            torch.testing.assert_close(getattr(same, field), getattr(effects, field))


def test_estimates_add_up(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = attribution_patching(model, pair, views=list(VIEWS))
    for kind in ("z", "q", "k", "v", "pattern"):
        everywhere = found[f"{kind}_by_pos"].change.sum(1)
        torch.testing.assert_close(found[kind].change, everywhere)
    entries = found["pattern_by_entry"].change  # layer head query key
    torch.testing.assert_close(found["pattern_by_pos"].change, entries.sum(-1).transpose(1, 2))
    # What leaves a block enters the next, and attention writes into the residual after it.
    torch.testing.assert_close(found["resid_post"].change[0], found["resid_pre"].change[1])


def test_padding_counts_for_nothing(model: HookedGPT2) -> None:
    pair = random_pair(model, (N_POS, N_POS - 2))
    together = attribution_patching(model, pair, views=["z", "resid_pre"], positions=[1, -1])
    for example in range(2):
        alone = attribution_patching(
            model, pair.select([example]), views=["z", "resid_pre"], positions=[1, -1]
        )
        for view in together.views:
            torch.testing.assert_close(
                together[view].values[..., example], alone[view].values[..., 0]
            )


# ------------------------------------------------------------------ integrated gradients


def naive_integral(model: HookedGPT2, pair: PromptPair, name: str, shares: list[float]) -> Tensor:
    """(clean - corrupted) times the gradient averaged over points between the embeddings."""
    runs = []
    for tokens in (pair.corrupted, pair.clean):
        runs.append(model.run_with_cache(tokens, names_filter=[name, "hook_embed"])[1])
    gradients = []
    for share in shares:

        def between(embed: Tensor, hook: Any, share: float = share) -> Tensor:
            return embed + share * (runs[1]["hook_embed"] - embed)

        with model.hooks([("hook_embed", between)]):
            _, cache = model.run_with_cache(
                pair.corrupted, names_filter=name, incl_bwd=lambda logits: pair.metric(logits).sum()
            )
        gradients.append(cache[f"{name}_grad"])
    return (runs[1][name] - runs[0][name]) * torch.stack(gradients).mean(0)


def test_steps_are_midpoints_between_the_embeddings(model: HookedGPT2) -> None:
    pair = random_pair(model)
    found = attribution_patching(model, pair, views=["z_by_pos", "mlp_out"], steps=3)
    shares = [1 / 6, 3 / 6, 5 / 6]
    z = naive_integral(model, pair, "blocks.1.attn.hook_z", shares).sum(-1)
    torch.testing.assert_close(
        (found["z_by_pos"].values - found["z_by_pos"].base)[1],
        z.movedim(0, -1),
        rtol=1e-9,
        atol=1e-12,
    )
    mlp = naive_integral(model, pair, "blocks.0.hook_mlp_out", shares).sum(-1)
    torch.testing.assert_close(
        (found["mlp_out"].values - found["mlp_out"].base)[0], mlp.movedim(0, -1)
    )


def test_what_is_embedded_sums_to_the_whole_difference(model: HookedGPT2) -> None:
    pair = random_pair(model)

    def missing(steps: int) -> Tensor:
        found = attribution_patching(model, pair, views="resid_pre", steps=steps)["resid_pre"]
        assert found.clean is not None
        whole = found.clean - found.base
        assert whole.abs().min() > 0.05
        return ((found.values - found.base)[0].sum(0) - whole).abs() / whole.abs()

    few, many = missing(40), missing(160)
    assert many.max() < 1e-3
    # The error of midpoints goes as the square: sixteen times less, or the rounding of it.
    assert bool((many < few / 8).all())


def test_integrated_gradients_have_no_direction(model: HookedGPT2) -> None:
    pair = random_pair(model)
    there, back = (
        attribution_patching(model, pair, views=["q", "mlp_out"], steps=3, direction=direction)
        for direction in ("denoising", "noising")
    )
    for view in there.views:
        torch.testing.assert_close(there[view].change, -back[view].change)


# ------------------------------------------------------------------ how it is run


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 2}, {"memory_limit": 1}])
def test_batches_change_nothing(
    model: HookedGPT2, steps: int | None, options: dict[str, Any]
) -> None:
    pair = random_pair(model, (N_POS, N_POS - 1, N_POS - 2))
    views = ["z", "resid_mid", "pattern_by_pos"]
    together = attribution_patching(model, pair, views=views, steps=steps, positions=[0, -1])
    apart = attribution_patching(
        model, pair, views=views, steps=steps, positions=[0, -1], **options
    )
    for view in views:
        torch.testing.assert_close(apart[view].values, together[view].values)


METRICS: dict[str, Callable[[Tensor], Any]] = {
    "logit_diff": lambda _: logit_diff([3, 4], [10, 11]),
    "logit_diff at two": lambda _: logit_diff(torch.tensor([[3, -1], [4, 5]]), 11, pos=[1, -1]),
    "prob": lambda _: prob([3, 4]),
    "log_prob": lambda _: log_prob(torch.tensor([[3, 5], [4, -1]])),
    "loss": lambda _: loss(),
    "kl": lambda logits: kl(logits),
}


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_read_what_they_would_of_all_logits(
    model: HookedGPT2, name: str, steps: int | None
) -> None:
    pair = random_pair(model, (N_POS, N_POS - 1))
    other = model(pair.clean, attention_mask=pair.attention_mask).detach()
    metric = METRICS[name](other)
    views = ["z", "resid_pre"]
    options: dict[str, Any] = {"views": views, "positions": [0, -1], "steps": steps}
    found = attribution_patching(model, pair, metric=metric, **options)

    def whole(logits: Tensor) -> Tensor:
        return metric(logits, pair.corrupted, pair.attention_mask)

    from_all = attribution_patching(model, pair, metric=whole, **options)
    for view in views:
        torch.testing.assert_close(found[view].change, from_all[view].change)
    # With a function at the final layer norm, which must then see all positions pass.
    seen = []
    with model.hooks([("ln_final.hook_normalized", lambda x, hook: seen.append(x.shape[1]))]):
        hooked = attribution_patching(model, pair, metric=metric, **options)
    assert set(seen) == {N_POS}
    for view in views:
        torch.testing.assert_close(found[view].values, hooked[view].values)


def test_the_divergence_from_the_base_run_with_steps(model: HookedGPT2) -> None:
    pair = random_pair(model)
    base = model(pair.corrupted).detach()
    found, same = (
        attribution_patching(model, pair, metric=metric, views="z", steps=3)
        for metric in (kl(), kl(base))
    )
    torch.testing.assert_close(found["z"].values, same["z"].values)
    assert found["z"].change.abs().max() > 1e-6
    # The ends of the scale are both measured against the base run.
    whole = kl(base)(model(pair.clean).detach())
    for one in (found["z"], same["z"]):
        assert one.clean is not None and one.corrupted is not None
        torch.testing.assert_close(one.clean, whole)
        assert one.corrupted.abs().max() < 1e-12 < 1e-3 < whole.min()


def test_a_function_that_edits_its_logits(model: HookedGPT2) -> None:
    pair = random_pair(model)

    def edits(logits: Tensor) -> Tensor:
        logits *= 2
        return logits[:, -1, 3] - logits[:, -1, 4]

    def plain(logits: Tensor) -> Tensor:
        return 2 * (logits[:, -1, 3] - logits[:, -1, 4])

    for steps in (None, 2):
        found, expected = (
            attribution_patching(model, pair, metric=metric, views="z", steps=steps)["z"]
            for metric in (edits, plain)
        )
        torch.testing.assert_close(found.values, expected.values)


def test_one_number_for_all_prompts_together(model: HookedGPT2) -> None:
    pair = random_pair(model)
    apart = attribution_patching(model, pair, views=["z", "mlp_out"], batch_size=1)
    together = attribution_patching(
        model, pair, metric=lambda logits: pair.metric(logits).mean(), views=["z", "mlp_out"]
    )
    for view in together.views:
        assert together[view].n_examples == 1
        torch.testing.assert_close(together[view].change, apart[view].change)


def test_nothing_is_left_behind(model: HookedGPT2) -> None:
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    attribution_patching(model, random_pair(model), steps=2)

    def fails(logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribution_patching(model, random_pair(model), metric=fails)
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def test_hooks_on_the_model_count(model: HookedGPT2) -> None:
    pair = random_pair(model)

    def silence(z: Tensor, hook: Any) -> None:
        z[:, :, 0] = 0

    with model.hooks([("blocks.1.attn.hook_z", silence)]):
        found = attribution_patching(model, pair, views="z")["z"]
    assert found.change[1, 0] == 0
    assert found.change[0, 0] != 0


def test_bfloat16(reference_model: Callable[..., Any]) -> None:
    cfg = dict(n_layer=N_LAYERS, n_head=N_HEADS, n_embd=12, n_positions=12, vocab_size=D_VOCAB,
               bos_token_id=0, eos_token_id=0)  # fmt: skip
    whole = HookedGPT2.from_pretrained(reference_model(cfg), dtype="float32")
    half = HookedGPT2.from_pretrained(reference_model(cfg), dtype="bfloat16")
    pair = random_pair(whole)
    results = [attribution_patching(m, pair, views="resid_mid")["resid_mid"] for m in (whole, half)]
    ours, coarse = (result.change.flatten() for result in results)
    assert torch.corrcoef(torch.stack([ours, coarse]))[0, 1] > 0.98


def test_defaults_are_every_view_but_the_two_largest(model: HookedGPT2) -> None:
    found = attribution_patching(model, random_pair(model))
    assert set(found.views) == set(VIEWS) - {"pattern_by_entry"}
    assert found["z_by_pos"].values.shape == (N_LAYERS, N_POS, N_HEADS, 2)


# ------------------------------------------------------------------ agreement


def effects(name: str, change: list[list[float]], **more: Any) -> Effects:
    values = torch.tensor(change, dtype=torch.float64)[..., None]
    labels = {"layer": ("0", "1"), "head": ("0", "1", "2")} | more.pop("labels", {})
    return Effects(
        name=name,
        axes=tuple(labels),
        labels=labels,
        values=values + 2,
        base=torch.full((1,), more.pop("base", 2.0), dtype=torch.float64),
        metric="diff",
    )


def test_agreement_by_hand() -> None:
    estimate = effects("z", [[0, 1, 2], [2, math.nan, 5]])
    exact = effects("z", [[0, 2, 1], [3, 7, 10]])
    found = agreement(estimate, exact)
    assert found.places == tuple(
        f"layer {i}, head {j}" for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2))
    )
    x, y = pd.Series([0.0, 1, 2, 2, 5]), pd.Series([0.0, 2, 1, 3, 10])
    assert found.pearson == pytest.approx(x.corr(y))
    assert found.spearman == pytest.approx(x.rank().corr(y.rank()))
    assert found.slope == pytest.approx((0 + 2 + 2 + 6 + 50) / (0 + 1 + 4 + 4 + 25))
    assert "5 places" in repr(found)


def test_agreement_with_what_does_not_vary_is_not_a_number() -> None:
    nothing = effects("z", [[0, 0, 0], [0, 0, 0]])
    found = agreement(nothing, effects("z", [[1, 2, 3], [4, 5, 6]]))
    assert math.isnan(found.pearson) and math.isnan(found.spearman) and math.isnan(found.slope)
    assert found.to_dict()["pearson"] is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": {"layer": ("0", "1"), "pos": ("0", "1", "2")}}, "axes"),
        ({"labels": {"layer": ("0", "9"), "head": ("0", "1", "2")}}, "labels"),
        ({"base": 5.0}, "of different runs"),
    ],
)
def test_agreement_of_other_places_is_refused(other: dict[str, Any], message: str) -> None:
    change = [[1.0, 2, 3], [4, 5, 6]]
    labels = other.get("labels", {})
    one = effects("z", change)
    two = effects("z", change, **other) if not labels else relabelled(one, labels)
    with pytest.raises(ValueError, match=message):
        agreement(one, two)


def relabelled(one: Effects, labels: dict[str, tuple[str, ...]]) -> Effects:
    return Effects(one.name, tuple(labels), labels, one.values, one.base, one.metric)


def test_mini_on_ioi_agrees_with_exact_patching(mini: HookedGPT2) -> None:
    pair = PromptPair.from_task(mini, "ioi", 12, 1)
    views = ["attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
    exact = activation_patching(mini, pair, views=views, progress=False)
    found = attribution_patching(mini, pair, views=views).compared(exact.views)
    assert list(found.agreements) == views
    # Measured: Pearson 0.94 (queries) to 1.00, Spearman 0.93 to 1.00.
    for view, one in found.agreements.items():
        assert one.pearson > 0.9, (view, one)
        assert one.spearman > 0.85, (view, one)
    # The name movers that the estimate finds are the ones that there are.
    strongest = found["z"].strongest(2), exact["z"].strongest(2)
    assert set(strongest[0]) == set(strongest[1])


# ------------------------------------------------------------------ what does not fit


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": "zz"}, "unknown view 'zz'"),
        ({"views": ()}, "views is empty"),
        ({"direction": "noisy"}, "did you mean 'noising'?"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"steps": -2}, "steps=-2 is out of range"),
        ({"steps": 1.5}, "steps is a whole number"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"batch_size": "all"}, "batch_size is a whole number or 'auto'"),
        ({"positions": [5]}, "position 5 is out of range"),
        ({"corrupted": None}, "corrupted prompts are missing"),
        ({"corrupted": torch.ones(2, 4, dtype=torch.int64)}, "clean has 5 tokens, corrupted 4"),
        ({"metric": lambda logits: logits[:, -1]}, "shape (2, 31)"),
        ({"metric": lambda logits: logits[:, -1].argmax(-1)}, "not differentiable"),
        ({"metric": lambda logits: 3.0}, "not differentiable"),
        ({"metric": lambda logits: logits[:, -1, 0].detach()}, "not differentiable"),
        ({"metric": lambda logits: logits[:, -1, 0] * math.nan}, "not a finite number"),
        ({"metric": kl()}, "its gradient there is zero"),
        ({"metric": logit_diff([1, 2, 3], 4)}, "3 rows"),
        ({"metric": logit_diff(1, 99)}, "token 99 is out of range"),
        ({"metric": {"a": logit_diff(1, 2), "b": logit_diff(2, 3)}}, "one metric"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: HookedGPT2, change: dict[str, Any], message: str
) -> None:
    pair = random_pair(model)
    arguments: dict[str, Any] = {
        "clean": pair.clean,
        "corrupted": pair.corrupted,
        "metric": logit_diff(1, 2),
        "views": "z_by_pos",
    }
    with pytest.raises((ValueError, TypeError, IndexError), match=re.escape(message)):
        attribution_patching(model, **{**arguments, **change})


def test_a_gradient_that_is_not_finite_is_refused(model: HookedGPT2) -> None:
    pair = random_pair(model)

    def sharp(logits: Tensor) -> Tensor:
        there = logits[:, -1, 0]
        return (there - there.detach()).abs().sqrt()  # infinite slope at 0

    with pytest.raises(ValueError, match="gradient of metric sharp is not finite"):
        attribution_patching(model, pair, metric=sharp, views="z")


def test_padding_on_the_left_is_refused(model: HookedGPT2) -> None:
    pair = random_pair(model)
    mask = torch.ones_like(pair.attention_mask)
    mask[0, 0] = False
    bad = PromptPair(**{**vars(pair), "attention_mask": mask})
    with pytest.raises(ValueError, match="padded on the right"):
        attribution_patching(model, bad, views="z")


# ------------------------------------------------------------------ the result


@pytest.fixture(scope="module")
def result(mini: HookedGPT2) -> AttributionPatching:
    clean = ["When Mary and John went home, John gave a </script> to"]
    corrupted = ["When Mary and John went home, Anna gave a </script> to"]
    pair = PromptPair.from_text(mini, clean, corrupted, " Mary", " John")
    views = ["resid_pre", "mlp_out", "z", "z_by_pos"]
    exact = activation_patching(mini, pair, views=["mlp_out", "z"], progress=False)
    return attribution_patching(mini, pair, views=views).compared(exact.views)


def test_the_table_has_a_row_per_place(result: AttributionPatching) -> None:
    frame = result.to_frame()
    sizes = {view: effects.mean.numel() for view, effects in result.views.items()}
    assert frame["view"].value_counts().to_dict() == sizes
    assert set(frame["direction"]) == {"denoising"} and frame["steps"].isna().all()
    row = frame[(frame["view"] == "z") & (frame["layer"] == 3) & (frame["head"] == 0)]
    assert row["change"].item() == pytest.approx(float(result["z"].change[3, 0]))
    exact = frame.dropna(subset=["exact_change"])
    assert set(exact["view"]) == {"mlp_out", "z"}
    one = result.agreements["z"]
    assert row["exact_change"].item() == pytest.approx(float(one.exact[18]))
    assert one.places[18] == "layer 3, head 0"


def test_a_view_that_is_not_there(result: AttributionPatching) -> None:
    with pytest.raises(KeyError, match=r"'z_by_po'; did you mean 'z_by_pos'"):
        result["z_by_po"]


def test_everything_as_plain_data(result: AttributionPatching) -> None:
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [view["name"] for view in found["views"]] == list(result.views)
    assert found["agreements"][0]["view"] == "mlp_out"
    assert found["steps"] is None
    assert "</script>" in "".join(found["clean"][0])


def test_the_page(result: AttributionPatching, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result.to_html(path)
    text = path.read_text()
    assert "</script> to" not in text
    assert "Agreement with exact patching" in text
    assert "&lt;" in text
    for view in result.views:
        assert view in text
    assert "://" not in re.sub(r"(?s)<script.*?</script>", "", text)


def test_the_picture(result: AttributionPatching) -> None:
    figure = result.plot("z")
    assert len(figure.data) == 1
    with pytest.raises(ValueError, match="different axes"):
        result.plot("z", "mlp_out")
    scatter = result.agreements["z"].plot()
    assert len(scatter.data[1].x) == 24


def test_the_terminal(result: AttributionPatching) -> None:
    console = Console(file=io.StringIO(), width=120)
    views_of.show(result, console, 3)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "agreement with exact patching" in text
    assert "denoising" in text and "resid_pre" in text
    assert repr(result).startswith("AttributionPatching(mini, denoising, gradient at the base run")


# ------------------------------------------------------------------ the command line


def run_command(*arguments: str) -> int:
    return cli.status(module.main, "python -m analyses.attribution_patching", arguments)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--model mini --task ioi --n 2 --views block_every,z --steps 2 --exact".split()
    files = [f"--{kind}={tmp_path}/out.{kind}" for kind in ("html", "csv", "json")]
    assert run_command(*options, *files) == 0
    shown = capsys.readouterr().out
    assert "agreement with exact patching" in shown
    assert "averaged over 2 points" in shown
    frame = pd.read_csv(tmp_path / "out.csv")
    assert set(frame["view"]) == {"resid_pre", "attn_out", "mlp_out", "z"}
    assert frame["exact_change"].notna().all()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["provenance"]["call"].startswith("python -m analyses.attribution_patching")
    assert found["provenance"]["weights_sha256"] in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--direction noisy", "unknown direction 'noisy'; did you mean 'noising'?"),
        ("--views zz", "unknown view 'zz'"),
        ("--views mlp_post --exact", "activation patching has no view mlp_post"),
        ("--steps 0", "--steps is 0: expected at least 1"),
        ("--top-k 0", "--top-k is 0: expected at least 1"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("--model", "mini", "--task", "ioi", *arguments.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_help_needs_no_torch() -> None:
    assert "--exact" in help_without_torch("analyses.attribution_patching")
