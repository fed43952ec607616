"""Ablation equals full runs with one unit replaced by hand, and finds what is known to matter."""

import json

import pandas as pd
import pytest
import torch
from _micro import AB, micro_model

from analyses import cli
from analyses._head_groups import taken_out
from analyses.ablation import ablation, main
from analyses.metrics import kl, log_prob, logit_diff, loss
from analyses.pairs import PromptPair
from analyses.tasks import generate
from hooks import UnknownHookName
from interp import HookedGPT2

CFG = dict(
    vocab_size=29,
    n_positions=16,
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_inner=6,
    bos_token_id=0,
    eos_token_id=0,
)
LENGTHS = torch.tensor([7, 4, 7])
MASK = torch.arange(7)[None] < LENGTHS[:, None]
METRIC = logit_diff([3, 4, 5], [6, 7, 8])
# name -> the points in a layer, and how many units there are at one
UNITS = {
    "heads": (("attn.hook_z",), 2),
    "layers": (("hook_attn_out", "hook_mlp_out"), None),
    "neurons": (("mlp.hook_post",), 6),
}


@pytest.fixture(scope="module")
def model(reference_model) -> HookedGPT2:
    return HookedGPT2.from_pretrained(reference_model(CFG, dtype=torch.float64), dtype="float64")


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(29, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return torch.randint(29, (5, 7), generator=torch.Generator().manual_seed(1))


def naive(model, tokens, units, layers, value, mask=None, metric=METRIC, pos=None):
    """`[unit example]`: a full run per unit; `value(name)` stands in the unit's place."""
    points, size = UNITS[units]  # the axis after `pos` is the one of units
    pos = torch.arange(tokens.shape[1]) if pos is None else torch.tensor(pos)
    found = []
    for layer in layers:
        for point in points:
            for unit in range(size or 1):

                def put(act, hook, unit=unit):
                    new = value(hook.name).expand_as(act)
                    if size is None:
                        act[:, pos] = new[:, pos]
                    else:
                        act[:, pos, unit] = new[:, pos, unit]

                name = f"blocks.{layer}.{point}"
                with torch.no_grad():
                    logits = model.run_with_hooks(
                        tokens, fwd_hooks=[(name, put)], attention_mask=mask
                    )
                found.append(metric(logits, tokens, mask))
    return torch.stack(found)


def flat(found):
    return found.effects.values.flatten(0, -2)


def close(got, expected):
    torch.testing.assert_close(got, expected.double(), rtol=0, atol=1e-9)


def nothing(name):
    return torch.zeros((), dtype=torch.float64)


# ------------------------------------------------------------------ against full runs


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("layers", [None, [1], [1, 0]])
def test_zero(model, tokens, units, layers):
    found = ablation(
        model, tokens, METRIC, kind="zero", units=units, layers=layers, attention_mask=MASK
    )
    expected = naive(model, tokens, units, layers or range(2), nothing, MASK)
    close(flat(found), expected)
    close(found.effects.base, METRIC(model(tokens, attention_mask=MASK), None, MASK))
    assert found.effects.labels["layer"] == tuple(map(str, layers or range(2)))


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("per_position", [False, True])
def test_mean(model, tokens, reference, units, per_position):
    """Of the reference prompts alone, over all their tokens, or position by position."""
    _, cache = model.run_with_cache(reference)

    def mean(name):
        return cache[name].mean((0,) if per_position else (0, 1))[None]

    found = ablation(
        model,
        tokens,
        METRIC,
        kind="mean",
        units=units,
        reference=reference,
        per_position=per_position,
    )
    close(flat(found), naive(model, tokens, units, range(2), mean))


def test_mean_leaves_padding_out(model, tokens, reference):
    """The padding of the reference prompts counts for nothing, nor does their length."""
    pair = PromptPair.of(model, reference, reference, attention_mask=MASK[[0, 1, 1, 2, 0]])
    _, cache = model.run_with_cache(reference, attention_mask=pair.attention_mask)

    def mean(name):
        return cache[name][pair.attention_mask].mean(0)

    longer = torch.cat([tokens, tokens[:, :4]], 1)
    found = ablation(model, longer, METRIC, kind="mean", units="layers", reference=pair)
    close(flat(found), naive(model, longer, "layers", range(2), mean))


@pytest.mark.parametrize("units", ["heads", "layers"])
def test_resample_takes_one_reference_prompt_per_prompt(model, tokens, reference, units):
    """Each prompt gets the activations of some reference prompt, the same in every unit."""
    _, cache = model.run_with_cache(reference)
    found = {
        seed: flat(
            ablation(
                model,
                tokens,
                METRIC,
                kind="resample",
                units=units,
                reference=reference,
                seed=seed,
            )
        )
        for seed in range(3)
    }
    possible = torch.stack(
        [
            naive(model, tokens, units, range(2), lambda name, row=row: cache[name][row])
            for row in range(5)
        ]
    )
    drawn = set()
    for values in found.values():
        matches = (possible - values).abs().amax(1) < 1e-9  # reference example
        assert matches.sum(0).tolist() == [1, 1, 1]
        drawn |= {tuple(matches.int().argmax(0).tolist())}
    assert len(drawn) > 1


def test_reference_of_the_same_length(model, tokens, reference):
    """With prompts of several lengths, positions are those of reference prompts as long."""
    pair = PromptPair.of(model, tokens, tokens.flip(0), attention_mask=MASK)
    others = PromptPair.of(model, reference, reference, attention_mask=MASK[[0, 1, 1, 2, 0]])
    _, cache = model.run_with_cache(others.clean, attention_mask=others.attention_mask)

    def mean(name):
        long, short = cache[name][[0, 3, 4]].mean(0), cache[name][[1, 2]].mean(0)
        return torch.stack([long, short, long])

    found = ablation(model, pair, METRIC, kind="mean", reference=others, per_position=True)
    close(flat(found), naive(model, tokens, "heads", range(2), mean, MASK))
    resampled = ablation(model, pair, METRIC, kind="resample", reference=others)
    possible = torch.stack(
        [
            naive(model, tokens, "heads", range(2), lambda name, row=row: cache[name][row], MASK)
            for row in range(5)
        ]
    )
    matches = (possible - flat(resampled)).abs().amax(1) < 1e-9
    assert matches[[1, 2], 1].any() and not matches[[1, 2], 0].any()
    assert matches[[0, 3, 4]].any(0).tolist() == [True, False, True]


def test_many_reference_prompts_go_in_pieces(model, tokens, reference, monkeypatch):
    pair = PromptPair.of(model, reference, reference, attention_mask=MASK[[0, 1, 1, 2, 0]])
    _, cache = model.run_with_cache(reference, attention_mask=pair.attention_mask)
    options = dict(kind="mean", units="layers", attention_mask=MASK)
    monkeypatch.setattr("analyses.ablation._TOKENS_AT_ONCE", 2 * 7)
    for per_position in (False, True):
        both = [
            ablation(model, tokens, METRIC, reference=given, per_position=per_position, **options)
            for given in (pair, cache)
        ]
        close(flat(both[0]), flat(both[1]))


def test_at_some_positions(model, tokens):
    found = ablation(model, tokens, METRIC, pos=[1, -2])
    close(flat(found), naive(model, tokens, "heads", range(2), nothing, pos=[1, 5]))
    each = torch.tensor([0, 6, 3])
    found = ablation(model, tokens, METRIC, pos=each)
    for row, pos in enumerate(each.tolist()):
        expected = naive(model, tokens, "heads", range(2), nothing, pos=[pos])
        close(flat(found)[:, row], expected[:, row])


@pytest.mark.parametrize("metric", [log_prob([1, 2, 3]), loss(), kl(), logit_diff(1, 2, pos=3)])
def test_other_metrics(model, tokens, metric):
    if metric.name == "kl":
        with torch.no_grad():
            expected_metric = kl(model(tokens)[:, -1])
    else:
        expected_metric = metric
    found = ablation(model, tokens, metric)
    expected = naive(model, tokens, "heads", range(2), nothing, metric=expected_metric)
    close(flat(found), expected)
    assert found.effects.metric == metric.name


def test_a_function_as_metric(model, tokens):
    found = ablation(model, tokens, lambda logits: logits[:, -1].amax(-1))
    with torch.no_grad():
        close(found.effects.base, model(tokens)[:, -1].amax(-1))


def test_change_and_its_errors(model, tokens):
    found = ablation(model, tokens, METRIC)
    change = found.effects.values - found.effects.base
    frame = found.to_frame()
    assert len(frame) == 4
    row = frame[(frame["layer"] == 1) & (frame["head"] == 1)].iloc[0]
    assert row["change"] == pytest.approx(float(change[1, 1].mean()))
    assert row["change_stderr"] == pytest.approx(float(change[1, 1].std() / 3**0.5))
    assert row["change_low"] <= row["change"] <= row["change_high"]
    assert change[1, 1].min() <= row["change_low"] < row["change_high"] <= change[1, 1].max()
    assert row["value"] - row["base"] == pytest.approx(row["change"])
    one = ablation(model, tokens[:1], logit_diff(1, 2)).to_frame()
    assert one["change_stderr"].isna().all() and one["change"].notna().all()


def test_by_hand():
    """The micro model, at the second token b: its residual ends as 3 b + 4 c with scale
    5, logits (0, 3, 4). Without head 0 it is b + 4 c, scale sqrt(17); without the neuron that
    fires on b, or the MLP, 3 b, scale 3 and logits (0, 5, 0)."""
    model = micro_model()
    metric = logit_diff(2, 1)
    heads = ablation(model, AB, metric)
    assert heads.effects.base.tolist() == pytest.approx([1])
    assert heads.effects.values[0, :, 0].tolist() == pytest.approx([15 / 17**0.5, 1])
    neurons = ablation(model, AB, metric, units="neurons")
    assert neurons.effects.values[0, :, 0].tolist() == pytest.approx([-5, 1])
    layers = ablation(model, AB, metric, units="layers")
    assert layers.effects.values[0, :, 0].tolist() == pytest.approx([15 / 17**0.5, -5])


# ------------------------------------------------------------------ groups of heads

GROUPS = {"one": "1.0", "several": ["0.1", (1, 1)], "none": []}


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("keep", [False, True])
def test_groups_equal_full_runs_without_all_their_heads(model, tokens, reference, kind, keep):
    groups = {name: heads for name, heads in GROUPS.items() if heads or keep}
    how = {} if kind == "zero" else {"reference": reference}
    found = ablation(model, tokens, METRIC, kind=kind, groups=groups, keep=keep, **how)
    _, cache = model.run_with_cache(reference, names_filter="*hook_z")
    out = {"one": {(1, 0)}, "several": {(0, 1), (1, 1)}, "none": set()}
    every = {(layer, head) for layer in range(2) for head in range(2)}
    for name, values in zip(groups, found.effects.values, strict=True):
        taken = every - out[name] if keep else out[name]
        assert found.groups[name] == tuple(sorted(taken))
        # Of "resample": what each of the reference prompts would give.
        for row in range(5) if kind == "resample" else [0]:

            def put(z, hook, row=row, taken=taken):
                new = {
                    "zero": torch.zeros_like(z),
                    "mean": cache[hook.name].mean((0, 1)).expand_as(z),
                    "resample": cache[hook.name][row].expand_as(z),
                }[kind]
                for layer, head in taken:
                    if layer == hook.layer():
                        z[:, :, head] = new[:, :, head]

            with torch.no_grad():
                logits = model.run_with_hooks(tokens, fwd_hooks=[("*hook_z", put)])
            expected = METRIC(logits)
            if kind != "resample":
                close(values, expected)
            drawn = (values - expected).abs() < 1e-9
            values = torch.where(drawn, torch.nan, values)
        assert values.isnan().all(), f"{name}: {kind} gave what no reference prompt gives"
    assert found.effects.axes == ("component",)
    assert found.effects.labels["component"] == tuple(groups)


def test_a_group_of_one_is_that_head(model, tokens):
    alone = ablation(model, tokens, METRIC, pos=[1, 3])
    groups = {f"{layer}.{head}": (layer, head) for layer in range(2) for head in range(2)}
    found = ablation(model, tokens, METRIC, pos=[1, 3], groups=groups)
    close(flat(found), flat(alone))
    frame = found.to_frame()
    assert frame["component_label"].tolist() == list(groups)
    assert frame["view"].unique().tolist() == ["groups of heads"]


def test_a_circuit_of_mini_does_most_of_ioi_alone(mini):
    """Three heads that copy the right name, and two that tell them which one not to: 5 of 24."""
    circuit = ["3.0", "3.3", "3.4", "1.5", "2.5"]
    pair = PromptPair.from_task(mini, "ioi", n=24, template="before/ABBA")
    options = dict(kind="mean", per_position=True)
    alone = ablation(mini, pair, groups={"circuit": circuit, "none": []}, keep=True, **options)
    without = ablation(mini, pair, groups={"circuit": circuit}, **options)
    base = alone.effects.base.mean()
    kept, nothing_kept = (alone.effects.mean / base).tolist()
    assert kept > 0.6 and abs(nothing_kept) < 0.2
    assert abs(float(without.effects.mean[0] / base)) < 0.2
    assert "'circuit': ['1.5', '2.5', '3.0', '3.3', '3.4']" in alone.provenance.call
    assert "mean ablation of all heads but those of a group" in repr(alone)


def test_page_of_groups(model, tokens, tmp_path):
    found = ablation(model, tokens, METRIC, groups={"</b>": ["1.0", "0.1"]})
    found.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "without each group of heads" in page and "0.1, 1.0" in page and "&lt;/b&gt;" in page
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["taken_out"] == {"</b>": ["0.1", "1.0"]} and plain["keep"] is False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(groups={}), ValueError, "groups is empty"),
        (dict(groups={"a": []}), ValueError, "group 'a' has no heads: there is nothing to take"),
        (dict(groups={"a": "2.0"}), IndexError, "group 'a': head 2.0 is out of range"),
        (dict(groups={"a": ["1.0", (1, 0)]}), ValueError, "group 'a': head 1.0 is asked for twice"),
        (dict(groups={"a": "x"}), ValueError, "group 'a': 'x' is no head"),
        (dict(groups={"a": 3}), TypeError, "group 'a': 3 is no head"),
        (dict(groups={"a": "1.0"}, layers=1), ValueError, "leave out layers"),
        (dict(groups={"a": "1.0"}, units="neurons"), ValueError, "leave out units='neurons'"),
        (dict(keep=True), ValueError, "keep goes with groups"),
        (
            dict(groups={"a": ["0.0", "0.1", "1.0", "1.1"]}, keep=True),
            ValueError,
            "group 'a' keeps every head",
        ),
    ],
)
def test_bad_groups(model, tokens, arguments, error, message):
    with pytest.raises(error, match=message):
        ablation(model, tokens, METRIC, **arguments)


def test_groups_are_heads_by_name():
    with pytest.raises(TypeError, match=r"groups are heads by name.*not list"):
        taken_out(["1.0"], keep=False, n_layers=2, n_heads=2)
    with pytest.raises(TypeError, match="called by a text, not 1"):
        taken_out({1: "1.0"}, keep=False, n_layers=2, n_heads=2)


# ------------------------------------------------------------------ pairs and pictures


def test_a_pair_brings_metric_and_reference(mini):
    pair = PromptPair.from_task(mini, "ioi", n=6, seed=2)
    found = ablation(mini, pair, kind="mean")
    named = ablation(mini, pair, pair.metric, kind="mean", reference=pair)
    torch.testing.assert_close(found.effects.values, named.effects.values)
    torch.testing.assert_close(
        found.effects.base.double(), pair.ends(mini)["clean"], rtol=0, atol=1e-4
    )
    assert "corrupted prompts of ioi: 6 held_out" in found.reference
    assert found.str_tokens == pair.str_tokens
    _, cache = mini.run_with_cache(
        pair.corrupted, attention_mask=pair.attention_mask, names_filter="*hook_z"
    )
    given = ablation(mini, pair, kind="mean", reference=cache)
    torch.testing.assert_close(given.effects.values, found.effects.values, rtol=0, atol=1e-4)


def test_induction_needs_its_heads(mini):
    """Without the previous-token head 0.0 nothing is repeated; the best induction head, 3.3, is
    missed next, far more than a head picked at random."""
    data = generate("induction", mini.tokenizer, 8, seed=0)
    repeated = loss(pos=list(range(26, 50)))  # a token, 25 tokens, and the same 25 again
    found = ablation(
        mini, data.clean_tokens, repeated, kind="mean", reference=data.corrupted_tokens
    )
    assert float(found.effects.base.mean()) < 0.2
    change = found.effects.change
    assert change[0, 0] > 2
    assert found.effects.strongest(2, "change") == [(0, 0), (3, 3)]
    assert change[3, 3] > 0.2 > 10 * change.median()


def test_ioi_needs_a_few_heads(mini):
    pair = PromptPair.from_task(mini, "ioi", n=16, seed=0)
    other = PromptPair.from_task(mini, "ioi", n=32, seed=1)
    found = ablation(mini, pair, kind="mean", reference=other)
    change = found.effects.change
    (strongest, *_) = found.effects.strongest(1, "change")
    assert change[strongest] < -2
    low, high = found.effects.interval(scale="change")
    assert high[strongest] < -0.5
    assert low[strongest] < change[strongest] < high[strongest]
    assert (change.abs() < 0.3).sum() >= 8


# ------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(kind="mena"), ValueError, "unknown kind of ablation 'mena'; did you mean 'mean'"),
        (dict(units="head"), ValueError, "unknown unit 'head'; did you mean 'heads'"),
        (dict(layers=2), IndexError, "layer 2 is out of range.*2 layers, 0 to 1"),
        (dict(layers=[0, -2]), ValueError, "one of them twice"),
        (dict(layers=[]), ValueError, "layers is empty"),
        (dict(kind="mean"), ValueError, "reference is missing: kind='mean'"),
        (dict(kind="zero", reference="x"), ValueError, "takes no reference"),
        (dict(kind="zero", per_position=True), ValueError, "per_position goes with kind='mean'"),
        (dict(metric=None), ValueError, "metric is missing"),
        (dict(metric={"a": kl(), "b": loss()}), ValueError, "takes one metric"),
        (dict(metric=logit_diff([1, 2], 3)), ValueError, "2 rows, there are 3 prompts"),
        (dict(pos=7), IndexError, "7 is out of range"),
        (
            dict(kind="resample", reference=torch.ones(2, 5, dtype=torch.int64)),
            ValueError,
            "prompt 0 has 7 tokens, the reference prompts have 5",
        ),
    ],
)
def test_bad_arguments(model, tokens, arguments, error, message):
    metric = arguments.pop("metric", METRIC)
    with pytest.raises(error, match=message):
        ablation(model, tokens, metric, **{**dict(kind="zero"), **arguments})


def test_bad_references(model, mini, tokens):
    _, cache = model.run_with_cache(tokens, names_filter="*hook_z")
    with pytest.raises(UnknownHookName, match=r"has not kept 'blocks\.0\.mlp\.hook_post'"):
        ablation(model, tokens, METRIC, kind="mean", units="neurons", reference=cache)
    pair = PromptPair.from_task(mini, "ioi", n=2)
    with pytest.raises(ValueError, match="brings its own mask"):
        ablation(mini, pair, attention_mask=pair.attention_mask)


# ------------------------------------------------------------------ results and the command


@pytest.fixture(scope="module")
def neurons(mini):
    pair = PromptPair.from_text(mini, "The cat sat on the", "The dog sat on the", " mat", " sky")
    return ablation(mini, pair, kind="mean", units="neurons", layers=3)


def test_page_and_dict(mini, neurons, tmp_path):
    neurons.to_html(tmp_path / "page.html", model=mini, top_k=4)
    page = (tmp_path / "page.html").read_text()
    assert "Ablation: mini" in page and "The 4 strongest, of 768" in page
    assert "The 30 strongest neurons" in page
    plain = json.loads(json.dumps(neurons.to_dict()))
    assert plain["effects"]["numbers"] == {"layer": [3]}
    assert len(plain["effects"]["values"][0]) == 768
    assert neurons.to_frame()["layer"].unique().tolist() == [3]
    assert "mean ablation of neurons (mean over the corrupted prompts" in repr(neurons)
    assert "neurons" in neurons.views


def run(*arguments):
    return cli.status(main, "ablation", [*map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    paths = []
    for name, text in (("clean", "Mary and John left, John"), ("other", "Mary and John left, Tom")):
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text(text)
    return paths


def test_command(files, tmp_path, capsys):
    out = {name: tmp_path / f"out.{name}" for name in ("html", "csv", "json")}
    outputs = [part for name, path in out.items() for part in (f"--{name}", path)]
    asked = ["--answer", " gave", "--wrong", " the", "--model", "mini", "--units", "layers"]
    more = ["--reference", files[1], "--reference", files[0], "--layers", "1,-1"]
    assert run(*files, *asked, *more, *outputs) == 0
    shown = capsys.readouterr().out
    assert "mean ablation of layers (mean over 2 reference prompts): the 4 strongest" in shown
    frame = pd.read_csv(out["csv"])
    assert frame["layer"].tolist() == [1, 1, 3, 3]
    assert frame["component_label"].tolist() == ["attn_out", "mlp_out"] * 2
    result = json.loads(out["json"].read_text())
    assert result["effects"]["values"][0][0][0] == pytest.approx(frame["value"][0])
    assert result["provenance"]["call"].startswith("python -m analyses.ablation")
    assert "Ablation: mini" in out["html"].read_text()


def test_command_on_a_task(capsys):
    assert run("--task", "ioi", "--n", 3, "--model", "mini", "--kind", "resample") == 0
    shown = capsys.readouterr().out
    assert "drawn from the corrupted prompts of ioi: 64 held_out examples" in shown
    assert "95 % interval" in shown


def test_command_on_a_group_of_heads(capsys, tmp_path):
    """Alone, as all but the group, and with the same numbers as the function."""
    pair = dict(n=3, seed=0, corruption="abc")
    for options, keep in (([], False), (["--keep"], True)):
        path = tmp_path / "out.csv"
        asked = ["--task", "ioi", "--n", 3, "--model", "mini", "--heads", "3.0,1.5", "--csv", path]
        assert run(*asked, *options) == 0
        assert ("all heads but those of a group" in capsys.readouterr().out) == keep
        model = HookedGPT2.from_pretrained("mini")
        found = ablation(
            model,
            PromptPair.from_task(model, "ioi", **pair),
            kind="mean",
            reference=PromptPair.from_task(model, "ioi", **{**pair, "n": 64, "seed": 1}),
            groups={"3.0,1.5": ["3.0", "1.5"]},
            keep=keep,
        )
        (value,) = pd.read_csv(path)["value"]
        assert value == pytest.approx(float(found.effects.mean[0]), abs=1e-4)
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected two prompt files"),
        (["--task", "ioi", "--keep"], "--keep goes with --heads"),
        (["--task", "ioi", "--heads", "3", "--model", "mini"], "--heads '3': '3' is no head"),
        (["--task", "ioi", "--heads", "3.0", "--layers", "3"], "leave out --layers"),
        (["--task", "ioi", "--heads", "9.0", "--model", "mini"], "head 9.0 is out of range"),
        (["--task", "ioi", "--kind", "mena"], "--kind 'mena': expected zero, mean, resample"),
        (["--task", "ioi", "--units", "head"], "--units 'head': expected heads"),
        (["--task", "ioi", "--layers", "a"], "--layers 'a': expected a list"),
        (["--task", "ioi", "--layers", "9", "--model", "mini"], "layer 9 is out of range"),
        (["--task", "ioi", "--top-k", "0"], "--top-k is 0"),
        (["--task", "ioi", "--kind", "zero", "--reference", "x"], "--reference goes with"),
    ],
)
def test_wrong_calls(capsys, arguments, message):
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err
