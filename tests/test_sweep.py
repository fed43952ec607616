"""A sweep gives what one full run with hooks per intervention gives, whatever the edits.

The reference (`_naive.py`) shares no code with what is tested: neither how edits apply nor how
metrics are computed.
"""

from random import Random

import pytest
import torch
from _micro import AB, A, B, C, micro_model
from _naive import naive_sweep
from _random_edits import World, every_point, padded, random_edit
from _sweeps import (
    SIZES,
    all_metrics,
    changes,
    check,
    check_against,
    first_logit_everywhere,
    some_metrics,
    worlds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.metrics import kl, log_prob, logit_diff, loss, prob
from analyses.sweep import sweep
from hooks import Ablate, Add, Edit, Patch, Scale, resolve
from interp import HookedGPT2
from interp.points import hook_points


@pytest.fixture(scope="module")
def world(reference_model):
    return worlds(reference_model)


# ------------------------------------------------------------------ the same as the naive sweep

NAMES = list(hook_points(SIZES["n_layer"]))


@pytest.mark.parametrize("name", NAMES)
def test_every_point(world, name):
    rng = Random(name)
    found = False
    for kind in ("left", rng.choice(["even", "right", "holes"])):
        here = world(kind)
        edits = [random_edit(rng, here, name) for _ in range(3)]
        edits += [(random_edit(rng, here, name), random_edit(rng, here, name))]
        batch_size = rng.choice(["auto", 1, 3])
        found |= changes(check(here, edits, some_metrics(rng, here), batch_size=batch_size))
    assert found


@pytest.mark.parametrize("name", NAMES)
def test_every_point_in_float32(world, name):
    here = world("left", torch.float32)
    rng = Random(name)
    check(here, [random_edit(rng, here, name) for _ in range(3)], some_metrics(rng, here))


@pytest.mark.parametrize("name", NAMES)
def test_every_point_given(world, name):
    """Something is on throughout at a point; other edits there, before and after it."""
    here = world("right")
    rng = Random(name)
    on = [random_edit(rng, here, name)]
    if not name.endswith("_input"):
        edits = [random_edit(rng, here) for _ in range(4)]
        edits = [e for e in edits if not str(e.point).endswith("_input")]
    else:
        edits = [random_edit(rng, here, f"blocks.{layer}.hook_resid_pre") for layer in range(2)]
    check(here, [*edits, random_edit(rng, here, name)], some_metrics(rng, here), given=on)


def clash(edits: list[Edit]) -> bool:
    """Whether a block gives heads a layer norm of their own and edits the common one."""
    points = [str(edit.point) for edit in edits]
    own = {p.split(".")[1] for p in points if p.endswith("_input")}
    return any(".ln1." in p and p.split(".")[1] in own for p in points)


@settings(max_examples=30)
@given(data=st.data(), rng=st.randoms(use_true_random=False))
def test_any_edits(world, data, rng):
    kind = data.draw(st.sampled_from(["one", "short", "even", "right", "left", "holes"]), "kind")
    here = world(kind)
    on = [random_edit(rng, here) for _ in range(rng.choice([0, 0, 1, 2]))]
    edits = []
    for _ in range(data.draw(st.integers(1, 4), "interventions")):
        together = [random_edit(rng, here) for _ in range(rng.choice([1, 1, 2, 3]))]
        if not clash([*on, *together]):
            edits.append(together[0] if len(together) == 1 else together)
    if clash(on) or not edits:
        return
    metrics = all_metrics(here)
    names = data.draw(st.lists(st.sampled_from(list(metrics)), min_size=1, unique=True), "metrics")
    check(
        here,
        edits,
        {name: metrics[name] for name in names},
        given=on,
        batch_size=data.draw(st.sampled_from(["auto", 1, 2, 7]), "batch size"),
        memory_limit=data.draw(st.sampled_from([2**30, 2**21]), "memory limit"),
    )


@pytest.mark.parametrize("short", ["q_input", "k_input", "v_input", "result", "z", "pattern"])
def test_given_where_nothing_is_carried(world, short):
    """Edits join later in a block than what is on throughout there."""
    here = world("right")
    on = [Scale((short, layer), factor=0.5, pos=-1) for layer in range(2)]
    edits = [Scale(("mlp_out", layer), factor=2.0) for layer in range(2)]
    edits.append(Scale("ln_final.hook_normalized", factor=2.0))
    check(here, edits, given=on)
    check(here, [[*on[1:], edits[1]], [on[1], edits[0]]], given=on[:1])


@pytest.mark.parametrize("short", ["embed", "z", "pattern"])
def test_little_memory(world, short, monkeypatch):
    """Few prompts have their base run at a time, and few rows climb together."""
    model = world("one").model
    lengths = [5, 3, 6, 4, 7, 3, 5, 2]
    tokens, mask = padded(lengths, "left", 31, 11)
    runs = [padded(lengths, side, 31, 12) for side in ("right", "left")]
    source, twins = (
        model.run_with_cache(ids, attention_mask=own, names_filter=every_point)[1]
        for ids, own in runs
    )
    many = World(model, tokens, mask, source, world("even").reference, twins)
    rng = Random(short)
    layers = (None,) if short == "embed" else (0, 1)
    edits = [
        random_edit(rng, many, "hook_embed" if n is None else resolve((short, n), NAMES))
        for n in layers
        for _ in range(3)
    ]
    metrics = {name: all_metrics(many)[name] for name in ("own position", "kl", "loss")}
    base_runs, whole = [], HookedGPT2.run_with_cache

    def counted(model, input, *args, **options):
        base_runs[-1] += 1
        return whole(model, input, *args, **options)

    monkeypatch.setattr(HookedGPT2, "run_with_cache", counted)
    for limit in (2**30, 200_000, 100_000):
        base_runs.append(0)
        check(many, edits, metrics, memory_limit=limit)
    assert base_runs[0] == 1 < base_runs[2] <= 8


@pytest.mark.parametrize("kind", ["even", "left"])
def test_grids(world, kind):
    """What analyses ask for: layer by position, by head, by head and position; one after the other
    in a shuffled order, in one sweep."""
    here = world(kind)
    layers, heads, positions = range(2), range(4), range(-4, 0)
    edits: list[Edit] = [
        Patch((name, layer), pos=pos, source=here.source)
        for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")
        for layer in layers
        for pos in positions
    ]
    edits += [
        Patch((name, layer), head=head, source=here.source)
        for name in ("q", "k", "v", "z", "pattern")
        for layer in layers
        for head in heads
    ]
    edits += [
        Patch(("z", layer), pos=pos, head=head, source=here.source)
        for layer in layers
        for head in heads
        for pos in positions
    ]
    Random(0).shuffle(edits)
    metrics = {name: all_metrics(here)[name] for name in ("last", "kl")}
    naive = naive_sweep(here.model, here.tokens, edits, metrics, mask=here.mask)
    for options in ({}, dict(batch_size=5), dict(memory_limit=2**18)):
        check_against(naive, here, edits, metrics, **options)


@pytest.mark.parametrize("read", ["last", "own position", "function"])
def test_looking_ahead(world, read):
    """An edited pattern may let a query see later tokens: an edit after what is read counts."""
    here = world("left")
    metrics = {read: all_metrics(here)[read]}
    for name in ("pattern", "attn_scores"):
        ahead = Patch((name, 1), pos=0, key=-1, source=torch.tensor(0.7, dtype=torch.float64))
        first = Ablate((name, 0), kind="zero", head=[0, 2])
        later = Scale("hook_embed", pos=-1, factor=2.0)
        edits = [ahead, first, [later, first], [later, ahead], [ahead, first, later], later]
        check(here, edits, metrics, batch_size=2)
        check(here, [later, ahead], metrics, given=[first])
        check(here, [later, first], metrics, given=[ahead, ahead])
    # Reading position 0 a look ahead is all that brings the last token's change there.
    metric = logit_diff(1, 2, pos=0)
    result = check(here, [later, [first, later], first], {"first": metric})
    values = result.values["first"]
    assert torch.equal(values[0], result.base["first"])
    assert float((values[1] - values[2]).abs().min()) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_edits_after_what_is_read_change_nothing(world, name):
    here = world("right")
    edits = [Scale(name, pos=pos, factor=factor) for pos in (-1, [-2, -1]) for factor in (0.5, 2.0)]
    edits.append(Patch(name, pos=torch.tensor([[4, 5], [2, 3], [3, 4]]), source=here.source))
    metrics = {"first": logit_diff(1, 2, pos=0), "also": log_prob(4, pos=[0, 1])}
    if "attn_" in name or "pattern" in name:
        edits = edits[:-1]  # the other run's pattern is its own affair; scaled, it stays causal
    result = sweep(
        here.model, here.tokens, edits, metrics, attention_mask=here.mask, progress=False
    )
    for metric, values in result.values.items():
        expected = result.base[metric].expand_as(values)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-14)


def test_order_at_one_point(world):
    """Edits of one intervention apply in the order given, after those that are on throughout."""
    here = world("even")
    one = torch.arange(16, dtype=torch.float64)
    twice = Scale(("resid_post", 0), pos=1, factor=2.0)
    more = Add(("resid_post", 0), pos=1, value=one)
    metrics = {"kl": kl(pos=None), "last": logit_diff(1, 2)}
    result = check(here, [[twice, more], [more, twice]], metrics)
    last = result.values["last"]
    assert float((last[0] - last[1]).abs().max()) > 1e-6
    on = check(here, [twice, more], metrics, given=[more])
    torch.testing.assert_close(on.values["last"][0], last[1], rtol=0, atol=1e-9)


def test_noise_and_restore(world):
    """Causal tracing: noise on the subject throughout, one state at a time restored."""
    here = world("left")
    subject = torch.tensor([[1, 2], [0, 1], [2, 3]])
    noise = torch.randn(3, 2, 16, dtype=torch.float64)
    with torch.no_grad():
        clean = here.model.run_with_cache(
            here.tokens, attention_mask=here.mask, names_filter=every_point
        )[1]
    edits = [
        Patch((name, layer), pos=pos, source=clean)
        for name in ("resid_post", "mlp_out", "attn_out")
        for layer in range(2)
        for pos in (0, 1, 2, -1, subject)
    ]
    edits += [[Patch(("mlp_out", n), pos=1, source=clean) for n in range(2)]]
    edits += [Patch("hook_embed", pos=subject, source=clean)]
    given = [Add("hook_embed", pos=subject, value=noise)]
    result = check(here, edits, given=given)
    # Restored where the noise came in, the run is the clean one.
    plain = sweep(here.model, here.tokens, edits[-1:], logit_diff(3, 4), attention_mask=here.mask)
    again = sweep(
        here.model, here.tokens, edits[-1:], logit_diff(3, 4), attention_mask=here.mask, given=given
    )
    torch.testing.assert_close(again.values["logit_diff"][0], plain.base["logit_diff"])
    assert float((again.base["logit_diff"] - plain.base["logit_diff"]).abs().min()) > 1e-6
    assert float(result.base["kl"].abs().max()) < 1e-12


def test_a_whole_residual_of_another_run_gives_its_numbers(world):
    here = world("even")
    metrics = {"last": logit_diff(1, 2), "loss": prob(3, pos=None)}
    names = [n for n in NAMES if n.endswith(("resid_pre", "resid_mid", "resid_post"))]
    edits = [Patch(name, source=here.source) for name in names]
    result = sweep(here.model, here.tokens, edits, metrics, progress=False)
    other = sweep(here.model, here.source.tokens, edits[:1], metrics, progress=False)
    for name in metrics:
        expected = other.base[name].expand_as(result.values[name])
        torch.testing.assert_close(result.values[name], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        dict(scale_attn_by_inverse_layer_idx=True, n_layer=3),
        dict(scale_attn_weights=False, activation_function="relu"),
        dict(tie_word_embeddings=False, n_layer=1),
        dict(n_layer=4, n_head=1, n_inner=None),
    ],
    ids=lambda config: " ".join(config),
)
def test_variants_of_the_model(world, config):
    here = world("left", **config)
    rng = Random(1)
    check(here, [random_edit(rng, here) for _ in range(12)])


def test_processed_weights(world):
    """Folded layer norms leave an unembedding bias."""
    here = world("right")
    processed = World.of(here.model.processed(), "right")
    rng = Random(2)
    check(processed, [random_edit(rng, processed) for _ in range(12)])


def test_as_long_as_the_context(world):
    model = world("one").model
    tokens, _ = padded([9, 9], "right", 31, 7)
    source = model.run_with_cache(tokens.flip(0), names_filter=every_point)[1]
    full = World(model, tokens, None, source, world("even").reference, source)
    rng = Random(3)
    check(full, [random_edit(rng, full) for _ in range(12)])


def test_bfloat16(world):
    """As close as one run is to another that is batched differently."""
    here = world("left", torch.bfloat16)
    rng = Random(4)
    edits = [random_edit(rng, here) for _ in range(12)]
    metrics = {"p": prob(3), "f": first_logit_everywhere}
    values, _ = naive_sweep(here.model, here.tokens, edits, metrics, mask=here.mask)
    result = sweep(here.model, here.tokens, edits, metrics, attention_mask=here.mask)
    for name in metrics:
        torch.testing.assert_close(result.values[name], values[name], rtol=0, atol=0.1)


def test_on_a_trained_model(mini):
    """Float32 and logits as large as they are in life."""
    texts = ["When Mary and John went to the store, John gave a drink to", "Anna and Tom met; Tom"]
    batch = mini.tokenize(texts)
    others = mini.tokenize([text.replace("John", "Mary").replace("Tom", "Anna") for text in texts])
    assert torch.equal(batch.attention_mask, others.attention_mask)
    _, source = mini.run_with_cache(others)
    answer, wrong = mini.to_single_token(" Mary"), mini.to_single_token(" John")
    layers, metrics = range(mini.cfg.n_layers), {"diff": logit_diff(answer, wrong), "loss": loss()}
    edits: list[Edit] = [
        Patch((name, layer), pos=pos, source=source)
        for name in ("resid_pre", "mlp_out")
        for layer in layers
        for pos in (-1, -4)
    ]
    edits += [
        Ablate((name, layer), head=head)
        for name in ("z", "pattern")
        for layer in layers
        for head in (0, -1)
    ]
    world = World(mini, batch.tokens, batch.attention_mask.bool(), source, source, source)
    assert changes(check(world, edits, metrics))


@pytest.mark.cuda
def test_on_a_gpu(world):
    here = world("left")
    gpu = HookedGPT2.from_state_dict(
        here.model.cfg, here.model.state_dict(), device="cuda", dtype=torch.float64
    )
    rng = Random(5)
    edits = [random_edit(rng, here) for _ in range(40)]
    values, _ = naive_sweep(
        here.model, here.tokens, edits, {"last": logit_diff(3, 4), "kl": kl()}, mask=here.mask
    )
    result = sweep(
        gpu,
        here.tokens,
        edits,
        {"last": logit_diff(3, 4), "kl": kl()},
        attention_mask=here.mask,
    )
    for name in values:
        torch.testing.assert_close(result.values[name], values[name], rtol=0, atol=1e-9)


# ------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("edit", "logits"),
    [
        (Ablate(("mlp_out", 0)), [0, 5, 0]),
        (Ablate(("post", 0), neuron=0, pos=-1), [0, 5, 0]),
        (Ablate(("post", 0), neuron=1), [0, 3, 4]),
        (Patch(("resid_mid", 0), pos=1, source=A), [5, 0, 0]),
        (Patch(("resid_post", 0), pos=-1, source=3 * A - 4 * C), [3, 0, -4]),
        (Add(("z", 0), pos=1, head=0, neuron=0, value=A[0] * -6), [4, -3, 0]),
        (Ablate(("pattern", 0), pos=1, key=0), [0, 3, 4]),
        (Ablate(("pattern", 0), head=0), [0, 1.25 * 4 / 17**0.5, 1.25 * 16 / 17**0.5]),
        (Patch(("result", 0), pos=1, head=1, source=-6 * B), [4, -3, 0]),
        (Scale("ln_final.hook_scale", factor=2.0), [0, 1.5, 2]),
        (Patch("hook_embed", pos=1, source=C), [0, 0, 5]),
        (Add("hook_pos_embed", pos=1, value=A - B), [5, 0, 0]),
        ([Ablate(("mlp_out", 0)), Scale("ln_final.hook_scale", factor=0.5)], [0, 10, 0]),
    ],
    ids=repr,
)
def test_micro_model(edit, logits):
    """Numbers computed on paper; see `_micro.py`.

    Where head 0 looks nowhere the residual stays B, neuron 0 reads 4, and B + 4C has norm
    sqrt(17).
    """
    wanted = torch.tensor(logits, dtype=torch.float64)
    metrics = {f"{a}-{b}": logit_diff(a, b) for a, b in ((0, 1), (1, 2))} | {
        "a": lambda logits: logits[:, -1, 0]
    }
    result = sweep(micro_model(), AB, [edit], metrics, progress=False)
    found = [float(result.values[name]) for name in metrics]
    expected = [wanted[0] - wanted[1], wanted[1] - wanted[2], wanted[0]]
    assert found == pytest.approx([float(x) for x in expected], abs=1e-9)
    base = [float(result.base[name]) for name in metrics]
    assert base == pytest.approx([-3, -1, 0], abs=1e-9)
