"""Effects: numbers against plain definitions, holes, errors, tables, figures."""

import io
import json
import math
from typing import Any

import pytest
import torch
from rich.console import Console

from analyses import report
from analyses._views import effects as views
from analyses.effects import SCALES, Effects

F64 = torch.float64
LAYERS, POS, HEADS = ("0", "1", "2"), ("0 ·a", "1 ·<b>", "2 ·c", "3 ·d"), ("0", "1")


def effects(*, ends: bool = True, holes: bool = False, n: int = 5, **change: Any) -> Effects:
    values = torch.randn(3, 4, n, dtype=F64)
    if holes:
        values[0, 1, 0] = values[2, 3] = math.nan
    given: dict[str, Any] = dict(
        name="resid_pre",
        axes=("layer", "pos"),
        labels={"layer": LAYERS, "pos": POS},
        values=values,
        base=torch.randn(n, dtype=F64),
        metric="logit_diff",
        corrupted=torch.randn(n, dtype=F64) - 2 if ends else None,
        clean=torch.randn(n, dtype=F64) + 2 if ends else None,
    )
    return Effects(**given | change)


def by_head(n: int = 2) -> Effects:
    values = torch.randn(3 * 4 * 2, n, dtype=F64)
    labels = {"layer": LAYERS, "pos": POS, "head": HEADS}
    return Effects.on_axes("z", labels, values, torch.zeros(n, dtype=F64), "prob")


# ------------------------------------------------------------------ numbers


def test_numbers_are_what_they_say() -> None:
    e = effects(holes=True)
    assert e.clean is not None and e.corrupted is not None
    for layer in range(3):
        for pos in range(4):
            row = [float(v) for v in e.values[layer, pos]]
            there = [i for i, v in enumerate(row) if not math.isnan(v)]
            assert float(e.examples[layer, pos]) == len(there)
            if not there:
                assert math.isnan(float(e.mean[layer, pos]))
                continue
            mean = sum(row[i] for i in there) / len(there)
            low = sum(float(e.corrupted[i]) for i in there) / len(there)
            high = sum(float(e.clean[i]) for i in there) / len(there)
            change = sum(row[i] - float(e.base[i]) for i in there) / len(there)
            variance = sum((row[i] - mean) ** 2 for i in there) / (len(there) - 1)
            assert float(e.mean[layer, pos]) == pytest.approx(mean)
            assert float(e.change[layer, pos]) == pytest.approx(change)
            assert float(e.normalised[layer, pos]) == pytest.approx((mean - low) / (high - low))
            assert float(e.stderr[layer, pos]) == pytest.approx((variance / len(there)) ** 0.5)
            each = torch.tensor([row[i] - float(e.base[i]) for i in there])
            error = each.std() / len(there) ** 0.5
            assert float(e.change_stderr[layer, pos]) == pytest.approx(float(error), rel=1e-5)


def test_the_ends_are_0_and_1_and_no_edit_is_neutral() -> None:
    e = effects()
    assert e.clean is not None and e.corrupted is not None
    values = torch.stack([e.corrupted, e.clean, e.base])
    e = effects(
        axes=("layer",), labels={"layer": LAYERS}, values=values,
        base=e.base, corrupted=e.corrupted, clean=e.clean,
    )  # fmt: skip
    assert e.normalised.tolist() == pytest.approx([0, 1, e.neutral("normalised")])
    assert e.mean[2] == pytest.approx(e.neutral("value"))
    assert e.change[2] == e.neutral("change") == 0


def test_scale_of_pictures() -> None:
    assert effects().scale == "normalised"
    assert effects(ends=False).scale == "change"
    same = torch.ones(5, dtype=F64)
    assert effects(corrupted=same, clean=same).scale == "change"
    with pytest.raises(ValueError, match="1 in the corrupted run and in the clean one alike"):
        _ = effects(corrupted=same, clean=same).normalised
    with pytest.raises(ValueError, match="takes the metric of two runs"):
        _ = effects(ends=False).normalised


@pytest.mark.parametrize("scale", SCALES)
def test_interval_is_a_bootstrap_over_examples(scale: Any) -> None:
    e = effects(n=40)
    low, high = e.interval(scale=scale)
    assert bool((low < e.on(scale)).all() and (e.on(scale) < high).all())
    if scale == "value":  # close to the normal approximation
        assert torch.allclose(high - low, 2 * 1.96 * e.stderr, rtol=0.15)
    narrow = e.interval(0.5, scale=scale)
    assert bool((narrow.low > low).all() and (narrow.high < high).all())
    assert torch.equal(e.interval(scale=scale).low, low)
    assert not torch.equal(e.interval(scale=scale, seed=1).low, low)


def test_interval_draws_an_example_with_its_ends() -> None:
    # Every example answers with its own clean value: on the normalised scale there is no spread.
    clean = torch.randn(6, dtype=F64) * 9
    corrupted = clean - 2
    e = effects(n=6, values=clean.expand(3, 4, 6).clone(), corrupted=corrupted, clean=clean)
    low, high = e.interval(scale="normalised")
    assert torch.allclose(low, torch.ones_like(low)) and torch.allclose(high, torch.ones_like(low))
    assert bool((e.interval().high - e.interval().low > 1).all())


def test_one_example_has_no_interval() -> None:
    e = effects(n=1)
    assert bool(e.stderr.isnan().all())
    assert bool(torch.stack(e.interval()).isnan().all())
    holes = effects(holes=True)
    assert holes.interval().low.isnan().nonzero().tolist() == [[2, 3]]


def test_strongest_are_furthest_from_no_edit() -> None:
    e = effects(holes=True)
    order = e.strongest(12)
    assert len(order) == 11  # the place that no example has is left out
    distance = [abs(float(e.normalised[p]) - e.neutral("normalised")) for p in order]
    assert distance == sorted(distance, reverse=True)
    assert e.where(order[0]).startswith("layer ")
    top = e.top(3)
    assert list(zip(top["layer"], top["pos"], strict=True)) == order[:3]
    with pytest.raises(ValueError, match="k=0"):
        e.strongest(0)


# ------------------------------------------------------------------ layout


def test_edits_fill_the_axes_last_one_fastest() -> None:
    values = torch.arange(24, dtype=F64)[:, None]
    labels = {"layer": LAYERS, "pos": POS, "head": HEADS}
    e = Effects.on_axes("z", labels, values, torch.zeros(1, dtype=F64), "m")
    assert e.values.shape == (3, 4, 2, 1)
    assert float(e.mean[1, 2, 1]) == 1 * 8 + 2 * 2 + 1
    with pytest.raises(ValueError, match="24 edits do not fill 3 layer x 4 pos"):
        Effects.on_axes("z", {"layer": LAYERS, "pos": POS}, values, torch.zeros(1), "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": ("layer",)}, "do not fit the axes layer and example"),
        ({"axes": ("layer", "head")}, "'head' has no labels"),
        ({"labels": {"layer": LAYERS, "pos": POS[:2]}}, "'pos' has 2 labels for 4"),
        ({"numbers": {"pos": (1,)}}, "'pos' has 1 numbers for 4"),
        ({"clean": None}, "both ends"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        effects(**change)
    assert message in str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("what", ["base", "clean"])
def test_other_examples_are_refused(what: str) -> None:
    with pytest.raises(ValueError, match=rf"{what} has shape \(3,\), the values have 5 examples"):
        effects(**{what: torch.zeros(3, dtype=F64)})


@pytest.mark.usefixtures("unchecked")
def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="normalised"):
        effects().on("normalized")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="level=95"):
        effects().interval(95)
    with pytest.raises(ValueError, match="axis of resid_pre 'heads'"):
        effects().plot(rows=["heads"])
    with pytest.raises(ValueError, match="leaves no table"):
        effects().plot(rows=["layer", "pos"])


# ------------------------------------------------------------------ tables


def test_frame_is_tidy() -> None:
    e = effects(holes=True, numbers={"layer": (3, 5, 7)})
    frame = e.to_frame()
    assert len(frame) == 11
    assert list(frame.columns) == [
        "view", "metric", "layer", "layer_label", "pos", "pos_label",
        "value", "stderr", "change", "change_stderr", "normalised", "examples",
    ]  # fmt: skip
    row = frame[(frame["layer"] == 5) & (frame["pos"] == 2)].iloc[0]
    assert row["value"] == float(e.mean[1, 2])
    assert row["normalised"] == float(e.normalised[1, 2])
    assert row["pos_label"] == "2 ·c"
    assert "normalised" not in effects(ends=False).to_frame()
    each = e.to_frame(per_example=True)
    assert len(each) == 12 * 5 - 6
    one = each[(each["layer"] == 5) & (each["pos"] == 2) & (each["example"] == 4)].iloc[0]
    assert one["value"] == float(e.values[1, 2, 4])
    assert one["change"] == float(e.values[1, 2, 4] - e.base[4])


def test_frames_of_several_views() -> None:
    frame = views.concatenated({"a": effects(), "b": by_head()})
    assert len(frame) == 12 + 24
    assert frame[frame["view"] == "a"]["head"].isna().all()
    assert str(frame["head"].dtype) == "Int64"


def test_plain_data_goes_to_json() -> None:
    data = json.loads(json.dumps(effects(holes=True).to_dict(), allow_nan=False))
    assert data["values"][0][1][0] is None
    assert data["axes"] == ["layer", "pos"]
    assert effects(ends=False).to_dict()["clean"] is None


def test_repr_says_what_it_is() -> None:
    text = repr(effects())
    assert "resid_pre: layer 3 x pos 4, 5 examples; logit_diff" in text
    assert len(text.splitlines()) == 4


# ------------------------------------------------------------------ pictures


def test_heat_map_colours_part_where_nothing_changes() -> None:
    e = effects()
    (heat,) = e.plot().data
    assert heat.zmin == -heat.zmax
    z = torch.tensor(heat.z, dtype=F64)
    assert torch.allclose(z, e.normalised - e.neutral("normalised"))
    assert float(z.abs().max()) == pytest.approx(heat.zmax)
    at_zero = heat.colorbar.tickvals.index(0.0)
    assert float(heat.colorbar.ticktext[at_zero]) == pytest.approx(e.neutral("normalised"), rel=0.1)
    assert heat.text[1][2] == views._short(float(e.normalised[1, 2]))


def test_labels_are_no_markup() -> None:
    ticks = effects().plot().layout.xaxis.ticktext
    assert ticks[1] == "1 ·&lt;b&gt;"


def test_nothing_changes_at_all() -> None:
    e = effects(ends=False, values=torch.zeros(3, 4, 5), base=torch.zeros(5))
    (heat,) = e.plot().data
    assert heat.zmax == 1.0
    assert report.Page("x").figure(e.plot()) is None


def test_more_axes_fold_into_two() -> None:
    e = by_head()
    (heat,) = e.plot().data
    z = torch.tensor(heat.z, dtype=F64)
    assert z.shape == (6, 4)
    assert torch.allclose(z.view(3, 2, 4), e.change.transpose(1, 2))
    assert e.plot().layout.yaxis.ticktext[3] == "1.1"
    other = torch.tensor(e.plot(rows=["pos"]).data[0].z, dtype=F64)
    assert torch.allclose(other.view(4, 3, 2), e.change.transpose(0, 1))


def test_several_panels_share_their_colours() -> None:
    strong = effects(values=torch.full((3, 4, 5), 100.0, dtype=F64))
    figure = views.panels([("a", effects()), ("b", strong)])
    assert len({heat.zmax for heat in figure.data}) == 1
    assert [heat.showscale for heat in figure.data] == [False, True]
    assert effects().plot(limit=7.0).data[0].zmax == 7.0


def test_one_axis_becomes_bars() -> None:
    e = effects(
        ends=False, axes=("layer",), labels={"layer": LAYERS}, values=torch.randn(3, 5, dtype=F64)
    )
    (bars,) = e.plot("value").data
    base = e.neutral("value")
    assert torch.allclose(torch.tensor(bars.y, dtype=F64) + base, e.mean)
    assert bars.base == base
    with pytest.raises(ValueError, match="no rows to choose"):
        e.plot(rows=["layer"])


def shown(e: Effects, width: int = 100) -> str:
    stream = io.StringIO()
    views.show(e, Console(file=stream, width=width), top_k=3)
    return stream.getvalue()


def test_terminal_shows_a_grid_or_the_strongest() -> None:
    e = effects()
    assert f"{float(e.normalised[1, 2]):.2f}" in shown(e)
    text = shown(by_head())
    assert "the strongest 3 of 24" in text


def test_summary_names_the_scale() -> None:
    e = effects()
    assert e.corrupted is not None and e.clean is not None
    text = views.summary(e)
    assert f"corrupted {float(e.corrupted.mean()):.3f} (0 on the normalised scale)" in text
    assert f"clean {float(e.clean.mean()):.3f} (1)" in text
    assert "means over 5 examples" in text


def test_a_long_title_of_colours_goes_in_lines() -> None:
    """Plotly cuts a title that is longer than its colour bar."""
    (heat,) = effects(ends=False, metric="loss on the <second> copy").plot().data
    assert heat.colorbar.title.text == "change of loss on the<br>&lt;second&gt; copy"
