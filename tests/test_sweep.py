"""A sweep gives what one full run with hooks per intervention gives, whatever the edits.

The reference (`_naive.py`) shares no code with what is tested: neither how edits apply nor how
metrics are computed.
"""

import math
import weakref
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _micro import AB, A, B, C, micro_model
from _naive import naive_sweep
from _random_edits import World, every_point, padded, random_edit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analyses.metrics import Function, kl, log_prob, logit_diff, loss, prob
from analyses.sweep import sweep
from hooks import Ablate, Add, Edit, HookError, Patch, Scale, UnknownHookName, resolve
from interp import HookedGPT2, HookedGPT2Config
from interp.points import hook_points

SIZES = dict(n_layer=2, n_embd=16, n_head=4, n_inner=24, n_positions=9, vocab_size=31)
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
WORLDS: dict[tuple, World] = {}


@pytest.fixture(scope="module")
def world(reference_model):
    """`world(kind, dtype=torch.float64, **config)`: prompts of a small random model."""

    def make(kind: str, dtype: torch.dtype = torch.float64, **config: Any) -> World:
        key = (kind, dtype, *config.items())
        if key not in WORLDS:
            hf = reference_model({**SIZES, **config}, dtype=dtype)
            model = HookedGPT2.from_pretrained(hf, dtype=dtype)
            WORLDS[key] = World.of(model, kind)
        return WORLDS[key]

    yield make
    WORLDS.clear()


def first_logit_everywhere(logits):
    return logits[..., 0].tanh().mean(1)


def one_number_of_all(logits):
    return float(logits.softmax(-1)[:, -1].max(-1).values.sum())


def all_metrics(world: World) -> dict[str, Any]:
    """One of every kind, reading one, several and all positions."""
    lengths, vocab = world.lengths, world.model.cfg.d_vocab
    n = len(lengths)
    own = torch.tensor([length // 2 for length in lengths])
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(vocab, (n, 2), generator=draw)
    ids[0, 1] = -1
    reference = torch.randn(n, world.tokens.shape[1], vocab, generator=draw, dtype=torch.float64)
    reference = reference.to(world.model.dtype)
    metrics = {
        "last": logit_diff(3, ids),
        "own position": logit_diff(ids, 3, pos=own),
        "every position": log_prob(7, pos=None),
        "two": prob(ids, pos=[0, -1] if min(lengths) > 1 else [0]),
        "kl": kl(),
        "kl everywhere": kl(pos=None),
        "kl to other logits": kl(reference, pos=own[:, None]),
        "kl to other last logits": kl(reference[:, 0]),
        "function": first_logit_everywhere,
        "one number": one_number_of_all,
    }
    if min(lengths) > 1:
        metrics |= {"loss": loss(), "loss of the second": loss(pos=0)}
    return metrics


def some_metrics(rng: Random, world: World) -> dict[str, Any]:
    metrics = all_metrics(world)
    names = ["every position", *rng.sample(list(metrics), 4)]
    return {name: metrics[name] for name in names}


def check(world: World, edits, metrics=None, *, given=(), **options):
    """Sweep, compare every number with the naive one, and return the result."""
    metrics = all_metrics(world) if metrics is None else metrics
    naive = naive_sweep(world.model, world.tokens, edits, metrics, given=given, mask=world.mask)
    return check_against(naive, world, edits, metrics, given=given, **options)


def check_against(naive, world: World, edits, metrics, *, given=(), **options):
    values, base = naive
    result = sweep(
        world.model,
        world.tokens,
        edits,
        metrics,
        given=given,
        attention_mask=world.mask,
        progress=False,
        **options,
    )
    assert set(result.values) == set(result.base) == set(metrics)
    for name in metrics:
        for got, wanted in ((result.values[name], values[name]), (result.base[name], base[name])):
            assert got.dtype == torch.float64 and got.device.type == "cpu"
            assert not got.requires_grad
            torch.testing.assert_close(
                got,
                wanted,
                rtol=0,
                atol=EXACT[world.model.dtype],
                msg=lambda text, name=name: f"{name}: {text}\nedits: {edits}\ngiven: {given}",
            )
    return result


def changes(result) -> bool:
    return any(bool((v - result.base[n]).abs().max() > 1e-6) for n, v in result.values.items())


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


# ------------------------------------------------------------------ prompts in every form


def test_text_of_unequal_length(mini):
    texts = ["Mary and John went to the store", "Anna saw Tom"]
    edits = [Ablate(("attn_out", 1), pos=pos) for pos in (0, -1)]
    result = sweep(mini, texts, edits, logit_diff(5, 6), progress=False)
    assert result.prepend_bos is True
    assert [len(row) for row in result.str_tokens] == mini.tokenize(texts).attention_mask.sum(
        1
    ).tolist()
    assert all("endoftext" in row[0] for row in result.str_tokens)
    left = mini.tokenize(texts, padding_side="left")
    same = sweep(mini, left, edits, logit_diff(5, 6), progress=False)
    torch.testing.assert_close(
        same.values["logit_diff"], result.values["logit_diff"], rtol=0, atol=1e-4
    )
    bare = sweep(mini, texts, edits, logit_diff(5, 6), prepend_bos=False, progress=False)
    assert bare.prepend_bos is False and "endoftext" not in bare.str_tokens[0][0]


def test_forms_of_ids(world):
    here = world("one")
    edit = [Ablate(("z", 1))]
    whole = sweep(here.model, here.tokens, edit, loss(), progress=False)
    flat = sweep(here.model, here.tokens[0].int(), edit, loss(), progress=False)
    masked = sweep(
        here.model,
        torch.cat([here.tokens, here.tokens[:, :1]], dim=1),
        edit,
        loss(),
        attention_mask=torch.tensor([[1] * 5 + [0]]),
        progress=False,
    )
    for other in (flat, masked):
        torch.testing.assert_close(other.values["loss"], whole.values["loss"])
    assert whole.prepend_bos is None
    assert whole.str_tokens == (tuple(f"<{i}>" for i in here.tokens[0].tolist()),)


def test_metric_forms(world):
    here = world("one")
    edits = [Ablate(("z", 1))]

    def mine(logits):
        assert logits.shape == (1, 5, 31)
        return logits[:, -1, 0]

    several = sweep(here.model, here.tokens, edits, [logit_diff(1, 2), mine, kl()], progress=False)
    assert list(several.values) == ["logit_diff", "mine", "kl"]
    named = sweep(here.model, here.tokens, edits, Function("own", mine), progress=False)
    torch.testing.assert_close(named.values["own"], several.values["mine"])


def test_a_function_that_edits_its_logits(world):
    """What it is given is its own."""
    here = world("left")

    def doubled(logits):
        logits *= 2
        return logits[:, :, 3].sum(1).tanh()

    def first(logits):
        logits[:, 0] = 0.0
        return logits[..., 5].mean(1)

    edits = [Scale(("z", 0), pos=pos, factor=2.0) for pos in (-1, -2, -3)]
    check(here, edits, {"doubled": doubled, "kl": kl(pos=None), "first": first})


def test_nothing_is_left_behind(world, capfd):
    here = world("left")
    before = {n: p.clone() for n, p in here.model.named_parameters()}
    tensors = {n: t.clone() for n, t in here.source.tensors.items()}
    edits = [random_edit(Random(6), here) for _ in range(10)]
    with torch.enable_grad():
        sweep(here.model, here.tokens, edits, loss(), attention_mask=here.mask)
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in here.model.hook_dict.values())
    for name, parameter in here.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
    assert all(torch.equal(t, tensors[n]) for n, t in here.source.tensors.items())
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "")  # no progress bar where there is no terminal


class LiveBytes(TorchDispatchMode):
    """How much memory tensors take that are made while it is on."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._storages = [tensor.untyped_storage() for tensor in known]
        self._sizes = {storage._cdata: 0 for storage in self._storages}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@pytest.mark.parametrize("metric", [logit_diff(1, 2), kl(), loss()], ids=lambda m: m.name)
@pytest.mark.parametrize("short", ["resid_pre", "pattern"])
def test_the_memory_limit_holds(metric, short):
    """More would be taken, were there room."""
    cfg = HookedGPT2Config(n_layers=3, d_model=64, n_heads=4, n_ctx=32, d_vocab=400)
    model = HookedGPT2.from_config(cfg).requires_grad_(False)
    tokens = torch.randint(400, (8, 32))
    _, source = model.run_with_cache(tokens.flip(0), names_filter=[f"*hook_{short}"])
    edits = [
        Patch((short, layer), pos=pos, source=source)
        for layer in range(3)
        for pos in range(0, 32, 3)
    ]
    peaks, values = [], []
    for limit in (2**21, 2**26):
        with LiveBytes([tokens, *model.parameters(), *source.tensors.values()]) as live:
            result = sweep(model, tokens, edits, metric, memory_limit=limit, progress=False)
        peaks.append(live.peak)
        values.append(result.values[metric.name])
    assert peaks[0] < 2**21 < peaks[1] < 2**26
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_with_gradients_off(world, mode):
    here = world("right")
    edits = [random_edit(Random(7), here) for _ in range(4)]
    with mode():
        check(here, edits)


# ------------------------------------------------------------------ the plan


def test_plan(world):
    from analyses.sweep import plan

    here = world("even")
    edits = [
        Patch(("resid_pre", layer), pos=pos, source=here.source)
        for layer in range(2)
        for pos in range(6)
    ]
    planned = plan(here.model, here.tokens, edits, logit_diff(1, 2))
    text = planned.explain()
    assert isinstance(text, str)
    for word in ("rows", "floating-point operations", "MiB", "layer"):
        assert word in text
    result = planned.run()
    same = sweep(here.model, here.tokens, edits, logit_diff(1, 2), progress=False)
    assert torch.equal(result.values["logit_diff"], same.values["logit_diff"])


# ------------------------------------------------------------------ bad inputs


def run(world: World, edits, metric=None, **options):
    metric = logit_diff(1, 2) if metric is None else metric
    options = dict(attention_mask=world.mask, progress=False) | options
    return sweep(world.model, world.tokens, edits, metric, **options)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (Ablate(("z", 5)), UnknownHookName, "layer 5"),
        (Ablate("blocks.7.attn.hook_z"), UnknownHookName, "0 to 1"),
        (Ablate("blocks.0.attn.hook_zz"), UnknownHookName, "Did you mean 'blocks.0.attn.hook_z'"),
        (Ablate(("rezid_pre", 0)), UnknownHookName, "Did you mean 'resid_pre'"),
        (Ablate(("z", 0), head=4), IndexError, "head 4 .* 0 to 3"),
        (Ablate(("z", 0), head=-5), IndexError, "head -5"),
        (Ablate(("z", 0), pos=4), IndexError, "pos 4 .* prompt 1 has 4 tokens"),
        (Ablate(("z", 0), pos=[0, -5]), IndexError, "pos -5 .* prompt 1"),
        (Ablate(("z", 0), pos=torch.tensor([5, 3, 5])), IndexError, "pos 5 .* prompt 2"),
        (Ablate(("z", 0), pos=torch.tensor([0, 1])), ValueError, "2 rows, there are 3 prompts"),
        (Ablate(("z", 0), pos=[3, -1]), ValueError, "twice"),
        (Ablate(("z", 0), head=[1, -3]), ValueError, "twice"),
        (Ablate(("post", 0), neuron=24), IndexError, "neuron 24 .* 'd_mlp'"),
        (Ablate(("z", 0), neuron=4), IndexError, "neuron 4 .* 'd_head'"),
        (Ablate(("pattern", 0), key=4), IndexError, "key 4 .* prompt 1"),
        (Ablate(("pattern", 0), neuron=0), ValueError, "key"),
        (Ablate(("z", 0), key=0), ValueError, "key is for attention"),
        (Ablate(("resid_pre", 0), head=0), ValueError, "no heads"),
        (Patch(("z", 0), source=zeros(5)), ValueError, r"\(5,\).* batch=3 pos=6 head=4 d_head=4"),
        (Add("hook_embed", pos=0, value=zeros(2, 16)), ValueError, "batch=3 d_model=16"),
        (
            Add("hook_embed", value=torch.zeros(16)),
            ValueError,
            "float32, the activation torch.float64",
        ),
    ],
    ids=repr,
)
def test_an_edit_outside_the_model(world, edit, error, words):
    here = world("left")
    with pytest.raises(error, match=words):
        run(here, [Scale(("z", 0), factor=2.0), edit])
    with pytest.raises(error, match=words):
        run(here, [[Scale(("z", 0), factor=2.0), edit]])
    with pytest.raises(error, match=words):
        run(here, [Scale(("z", 0), factor=2.0)], given=[edit])


def test_a_source_that_does_not_fit(world):
    here, model = world("left"), world("left").model
    _, few = model.run_with_cache(here.tokens, attention_mask=here.mask, names_filter=["*hook_q"])
    with pytest.raises(UnknownHookName, match=r"not kept 'blocks.0.attn.hook_z'.*names_filter"):
        run(here, [Patch(("z", 0), source=few)])
    tokens, mask = padded([6, 5, 5], "left", 31, 0)
    other = model.run_with_cache(tokens, attention_mask=mask)[1]
    with pytest.raises(ValueError, match="prompt 1 has 4 tokens, its source 5"):
        run(here, [Patch(("z", 0), source=other)])
    # Two of four positions: as many as the second prompt here has, and not the same ones.
    tokens, _ = padded([4, 4, 4], "right", 31, 0)
    _, some = model.run_with_cache(tokens, pos_slice=[1, 3])
    with pytest.raises(ValueError, match="some positions only"):
        sweep(model, tokens[:, :2], [Patch(("z", 0), source=some)], logit_diff(1, 2))
    with pytest.raises(ValueError, match="source holds 2 prompts, there are 3"):
        run(here, [Patch(("z", 0), source=other.slice(batch=[0, 1]))])
    with pytest.raises(ValueError, match="axis batch"):
        run(here, [Patch(("z", 0), source=other.slice(batch=0))])
    with pytest.raises(ValueError, match="prompt 1 has 4 tokens, the reference prompts have 5, 6"):
        run(here, [Ablate(("z", 0), kind="resample", reference=other)])
    with pytest.raises(ValueError, match="prompt 1 has 4 tokens, the reference prompts have 5, 6"):
        run(here, [Ablate(("z", 0), kind="mean", per_position=True, reference=other)])
    with pytest.raises(ValueError, match="per_position=True"):
        run(here, [Ablate(("pattern", 0), kind="mean", reference=other)])
    with pytest.raises(ValueError, match="float32"):
        run(here, [Patch(("z", 0), source=here.source.to(torch.float32))])
    small = world("left", n_embd=8).source
    with pytest.raises(ValueError, match="2 along 'd_head', there are 4"):
        run(here, [Patch(("z", 0), source=small)])


def test_prompts_of_different_token_lengths(world):
    here = world("even")
    other = world("one").source
    with pytest.raises(ValueError, match="6 tokens, its source 5"):
        run(here, [Patch(("resid_pre", 0), source=other)])


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (lambda logits: logits[:, -1], ValueError, r"\(3, 31\).*one number, or one per prompt"),
        (lambda logits: logits[:2, -1, 0], ValueError, r"\(2,\)"),
        (logit_diff([1, 2], 3), ValueError, "answer_tokens has 2 rows, there are 3 prompts"),
        (logit_diff(31, 3), IndexError, "token 31 .* 0 to 30"),
        (logit_diff(1, 2, pos=4), IndexError, "pos 4 .* prompt 1 has 4 tokens"),
        (loss(pos=3), IndexError, "pos 3"),
        (kl(torch.zeros(2, 31, dtype=torch.float64)), ValueError, "3 prompts"),
        (3, TypeError, "metric"),
        ({}, ValueError, "no metric"),
        ([kl(), kl(pos=0)], ValueError, "two metrics are called 'kl'"),
    ],
)
def test_a_metric_that_does_not_fit(world, metric, error, words):
    with pytest.raises(error, match=words):
        run(world("left"), [Ablate(("z", 0))], metric)


def test_a_metric_that_is_no_number(world):
    """NaN names the intervention and the prompt; infinity too is no result."""
    here = world("left")
    plain = run(here, [Ablate(("z", 1))], lambda logits: logits[:, -1, 0])
    level = plain.base[next(iter(plain.base))]

    def broken(logits):
        value = logits[:, -1, 0].clone()
        value[1] = torch.where((value[1] - level[1]).abs() > 1e-6, torch.nan, value[1])
        return value

    edits = [Scale(("z", 1), factor=1.0), Ablate(("z", 1), head=2)]
    with pytest.raises(ValueError, match=r"broken.*(NaN|nan).*prompt 1|example 1") as caught:
        run(here, edits, broken)
    assert repr(edits[1]) in str(caught.value)
    (found,) = caught.value.partial.values.values()
    assert found.isnan().tolist() == [[False] * 3, [False, True, False]]
    nowhere = Patch(("resid_post", 0), pos=1, source=torch.tensor(torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"(?i)nan") as caught:
        run(here, [edits[0], [edits[1], nowhere]])
    assert repr(nowhere) in str(caught.value)
    with pytest.raises(ValueError, match=r"(?i)nan"):
        run(here, edits, given=[nowhere])


def test_nothing_to_do(world):
    here = world("even")
    with pytest.raises(ValueError, match="edit"):
        run(here, [])
    with pytest.raises(ValueError, match=r"intervention 1|edits\[1\]"):
        run(here, [Ablate(("z", 0)), []])


@pytest.mark.parametrize("options", [dict(batch_size=0), dict(batch_size=-1), dict(memory_limit=0)])
def test_limits_that_leave_nothing(world, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        run(world("even"), [Ablate(("z", 0))], **options)


def test_unknown_batch_size(world):
    with pytest.raises(Exception, match=r"batch_size"):
        run(world("even"), [Ablate(("z", 0))], batch_size="automatic")


def test_hooks_that_are_active_already(world):
    here = world("even")
    active = [(("z", 0), lambda act, hook: act * 2)]
    with (
        here.model.hooks(fwd_hooks=active),
        pytest.raises(ValueError, match=r"blocks\.0\.attn\.hook_z"),
    ):
        run(here, [Ablate(("z", 1))])
    run(here, [Ablate(("z", 1))])


def test_two_layer_norms_of_one_block(world):
    """As in a full run."""
    here = world("even")
    edits = [Scale(("q_input", 0), factor=2.0), Scale(("scale", 0, "ln1"), factor=2.0)]
    with pytest.raises(HookError, match="hook_q_input"):
        run(here, [edits])
    with pytest.raises(HookError, match="hook_q_input"):
        run(here, edits[:1], given=edits[1:])
    elsewhere = Scale(("scale", 1, "ln1"), factor=2.0)
    check(here, [*edits, [edits[0], elsewhere]], {"last": logit_diff(1, 2)})


def test_wrong_prompts(world):
    model, edits, metric = world("even").model, [Ablate(("z", 0))], logit_diff(1, 2)
    for tokens, mask, error, words in [
        (torch.zeros(2, 3), None, TypeError, "whole numbers"),
        (torch.zeros(0, 3, dtype=torch.long), None, ValueError, "batch pos"),
        (torch.tensor([[0, 31]]), None, (IndexError, ValueError), "31"),
        (torch.zeros(1, 10, dtype=torch.long), None, ValueError, "10"),
        (torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 4), ValueError, "shape"),
        (torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3), ValueError, "without any token"),
        (torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), 2), ValueError, "0 and 1"),
        ("text", None, ValueError, "tokenizer"),
    ]:
        with pytest.raises(error, match=words):
            sweep(model, tokens, edits, metric, attention_mask=mask, progress=False)


# ------------------------------------------------------------------ stopped in the middle


def test_interrupt(world):
    from analyses.sweep import SweepInterrupted

    here = world("right")
    edits = [random_edit(Random(8), here) for _ in range(6)]
    calls = 0

    def stopped(logits):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return logits[:, -1, 0]

    with pytest.raises(KeyboardInterrupt) as caught:
        run(here, edits, {"last": logit_diff(1, 2), "f": stopped}, batch_size=1)
    assert isinstance(caught.value, SweepInterrupted)
    partial = caught.value.partial
    assert partial.edits == tuple((edit,) for edit in edits)
    whole = run(here, edits, {"last": logit_diff(1, 2), "f": lambda logits: logits[:, -1, 0]})
    done = ~partial.values["f"].isnan().any(1)
    assert 0 < int(done.sum()) < len(edits)
    for name in whole.values:
        assert torch.equal(partial.values[name].isnan().any(1), ~done)
        got, wanted = partial.values[name][done], whole.values[name][done]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)
    assert all(not p.fwd_hooks for p in here.model.hook_dict.values())
    repr(partial), partial.to_frame()


def test_interrupt_before_there_is_anything(world):
    here = world("right")

    def stopped(logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(here, [Ablate(("z", 0))], stopped, given=[Ablate(("z", 1))])
    assert all(not p.fwd_hooks for p in here.model.hook_dict.values())


# ------------------------------------------------------------------ what a result tells


@pytest.fixture(scope="module")
def result(world):
    here = world("even")
    edits = [Ablate(("z", 1), head=h) for h in range(4)]
    return run(here, edits, {"diff": logit_diff(1, 2), "p": prob(3)})


def test_mean_and_error(result):
    values = result.values["diff"].numpy()
    np.testing.assert_allclose(result.mean("diff"), values.mean(1))
    np.testing.assert_allclose(result.stderr("diff"), values.std(1, ddof=1) / math.sqrt(3))


def test_interval(result):
    low, high = result.interval("diff", level=0.9)
    mean = result.mean("diff")
    assert bool(((low <= mean) & (mean <= high)).all())
    wide_low, wide_high = result.interval("diff", level=0.99)
    assert bool((wide_low <= low).all() and (high <= wide_high).all())
    assert torch.equal(result.interval("diff", level=0.9)[0], low)
    with pytest.raises(ValueError, match="level"):
        result.interval("diff", level=95.0)
    # Of three numbers the mean of a draw of three is never outside them.
    assert bool((wide_low >= result.values["diff"].min(1).values - 1e-12).all())


def test_interval_of_many_examples(result):
    """It is that of the normal distribution."""
    values = torch.randn(4, 400, dtype=torch.float64) + 5
    many = replace(result, values={"x": values}, base={"x": values[0]})
    low, high = many.interval()
    error = values.std(1) / 20
    torch.testing.assert_close(many.stderr(), error)
    torch.testing.assert_close(high - low, 2 * 1.96 * error, rtol=0.1, atol=0)
    torch.testing.assert_close((high + low) / 2, values.mean(1), rtol=0.01, atol=0)


def test_interval_of_a_single_example(result):
    values = torch.randn(4, 1, dtype=torch.float64)
    single = replace(result, values={"x": values}, base={"x": values[0]})
    assert all(bool(end.isnan().all()) for end in (*single.interval(), single.stderr()))
    torch.testing.assert_close(single.mean(), values[:, 0])


def test_normalised(result):
    zero, one = result.base["diff"], result.base["diff"] + 4.0
    got = result.normalised(zero, one, "diff")
    torch.testing.assert_close(got, (result.mean("diff") - zero.mean()) / 4)
    torch.testing.assert_close(result.normalised(0.0, 2.0, "diff"), result.mean("diff") / 2)
    with pytest.raises(ValueError, match="no normalised scale"):
        result.normalised(zero, zero, "diff")


def test_frame(result):
    frame = result.to_frame()
    assert list(frame.columns) == ["edit", "edits", "example", "metric", "value", "base"]
    assert len(frame) == 4 * 3 * 2
    row = frame.query("metric == 'p' and edit == 2 and example == 1").iloc[0]
    assert row["value"] == float(result.values["p"][2, 1])
    assert row["base"] == float(result.base["p"][1])
    assert row["edits"] == "Ablate(('z', 1), head=2)"
    assert isinstance(frame, pd.DataFrame)


def test_repr(result):
    text = repr(result)
    assert "4 interventions on 3 prompts" in text
    strongest = int((result.mean("p") - result.base["p"].mean()).abs().argmax())
    assert text.split("p: ")[1].split("Ablate")[1].startswith(f"(('z', 1), head={strongest})")


def test_which_metric(result):
    with pytest.raises(ValueError, match="several metrics"):
        result.mean()
    with pytest.raises(KeyError, match=r"Did you mean 'diff'"):
        result.mean("dif")
