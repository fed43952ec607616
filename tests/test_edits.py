"""Edits as values, and as hook functions of a plain run."""

import math
from random import Random

import numpy as np
import pytest
import torch
from _micro import AB, A, B, C, micro_model
from _naive import edit_hook
from _random_edits import World, every_point, padded, random_edit
from hypothesis import given
from hypothesis import strategies as st

from hooks import Ablate, ActivationCache, Add, Edit, Patch, Scale, UnknownHookName
from hooks.edits import frozen_indices
from hooks.located import Locator
from interp import HookedGPT2
from interp.points import axis_sizes, hook_points

SIZES = dict(n_layer=2, n_embd=16, n_head=4, n_inner=24, n_positions=9, vocab_size=31)
NAMES = list(hook_points(SIZES["n_layer"]))
WORLDS: dict[str, World] = {}


@pytest.fixture(scope="module")
def world(reference_model):
    def make(kind: str) -> World:
        if kind not in WORLDS:
            hf = reference_model(SIZES, dtype=torch.float64)
            model = HookedGPT2.from_pretrained(hf, dtype=torch.float64)
            WORLDS[kind] = World.of(model, kind)
        return WORLDS[kind]

    yield make
    WORLDS.clear()


# ------------------------------------------------------------------ what an edit does


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["even", "left", "right", "holes", "short"])
def test_of_an_activation(world, kind, name):
    """Everything an edit can say, applied to a whole activation, against plain indexing."""
    here = world(kind)
    rng = Random(f"{kind} {name}")
    point = here.model.hook_dict[name]
    mask = here.mask if here.mask is not None else torch.ones(here.tokens.shape, dtype=torch.bool)
    _, cache = here.model.run_with_cache(
        here.tokens, attention_mask=here.mask, names_filter=every_point
    )
    locator = Locator(here.model.hook_dict, axis_sizes(here.model.cfg), mask, here.model.W_E)
    differs = False
    for _ in range(8):
        edit = random_edit(rng, here, name)
        before = cache[name]
        wanted, got = before.clone(), before.clone()
        edit_hook(edit, mask)(wanted, point)
        locator.locate(edit)(got, point)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12, msg=lambda m, e=edit: f"{e}{m}")
        differs |= not torch.equal(before, wanted)
        # Padding stays as it is.
        axis = 2 if "query" in point.axes else 1
        still = got.movedim(axis, 1)[~mask]
        assert torch.equal(still, before.movedim(axis, 1)[~mask])
    assert differs


@given(rng=st.randoms(use_true_random=False))
def test_as_a_hook_function(world, rng):
    """Without padding an edit is a hook, for any name that stands for its point."""
    here = world(rng.choice(["one", "short", "even"]))
    edit = random_edit(rng, here)
    mask = torch.ones(here.tokens.shape, dtype=torch.bool)
    got = here.model.run_with_hooks(here.tokens, fwd_hooks=[(edit.point, edit)])
    wanted = here.model.run_with_hooks(here.tokens, fwd_hooks=[(edit.point, edit_hook(edit, mask))])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


def test_in_a_run_of_their_own(world):
    """Given as they are they apply in order, after functions at the same point."""
    here = world("even")
    edits = [
        Scale(("z", 0), head=1, factor=2.0),
        Add(("z", 0), pos=1, value=torch.ones(4, dtype=torch.float64)),
    ]

    def shift(z, hook):
        return z + 1

    first = [("blocks.0.attn.hook_z", shift)]
    wanted = here.model.run_with_hooks(here.tokens, fwd_hooks=first + [(e.point, e) for e in edits])
    got = here.model.run_with_hooks(here.tokens, fwd_hooks=first, edits=edits)
    assert torch.equal(got, wanted)
    with here.model.hooks(first, edits=edits):
        assert torch.equal(here.model(here.tokens), wanted)
    assert torch.equal(here.model(here.tokens), here.model.run_with_hooks(here.tokens, edits=[]))
    one = here.model.run_with_hooks(here.tokens, edits=edits[0])
    assert torch.equal(one, here.model.run_with_hooks(here.tokens, edits=edits[:1]))


def test_edits_that_are_none(world, unchecked):
    here = world("even")
    edit = Scale(("z", 0), factor=2.0)
    with pytest.raises(TypeError, match=r"give Scale\(.*\) to edits="):
        here.model.run_with_hooks(here.tokens, fwd_hooks=[edit])
    for wrong in [(edit.point, edit)], "z", 3, [len]:
        with pytest.raises(TypeError, match="edits are Patch, Ablate, Scale or Add"):
            here.model.run_with_hooks(here.tokens, edits=wrong)
        with pytest.raises(TypeError, match="edits are"), here.model.hooks(edits=wrong):
            pass
    assert not any(point.fwd_hooks for point in here.model.hook_dict.values())


def test_as_a_hook_at_another_point(world):
    """One edit at a glob of points."""
    here = world("even")
    edit = Scale("anything", pos=1, factor=2.0)
    got = here.model.run_with_hooks(here.tokens, fwd_hooks=[("*hook_z", edit)])
    both = [(("z", layer), Scale(("z", layer), pos=1, factor=2.0)) for layer in range(2)]
    assert torch.equal(got, here.model.run_with_hooks(here.tokens, fwd_hooks=both))


def test_as_a_hook_that_does_not_fit(world):
    here = world("even")
    for edit, error, words in [
        (Ablate(("z", 0), pos=6), IndexError, "pos 6 .* prompt 0 has 6 tokens"),
        (Ablate(("z", 0), head=4), IndexError, "head 4"),
        (Patch(("z", 0), source=torch.zeros(5, dtype=torch.float64)), ValueError, "d_head=4"),
        (Patch(("z", 0), source=world("one").source), ValueError, "6 tokens, its source 5"),
        (Ablate(("z", 0), pos=torch.tensor([0, 1])), ValueError, "2 rows, there are 3 prompts"),
    ]:
        with pytest.raises(error, match=words):
            here.model.run_with_hooks(here.tokens, fwd_hooks=[(edit.point, edit)])


def test_gradients_flow_through(world):
    """An edit in a run that is differentiated: what it replaced gets no gradient."""
    here = world("one")
    with torch.enable_grad():
        residual = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
        edits = [
            Ablate(("resid_pre", 1), pos=1),
            Scale(("resid_pre", 1), pos=2, factor=3.0),
            Scale(("resid_pre", 1), pos=3, neuron=[0, 1], factor=0.0),
        ]
        out = here.model(residual, start_at_layer=1, stop_at_layer=None)
        out[0, -1, 0].backward()
        plain = residual.grad.clone()
        residual.grad = None
        out = here.model.run_with_hooks(
            residual, start_at_layer=1, fwd_hooks=[(e.point, e) for e in edits]
        )
        out[0, -1, 0].backward()
    assert bool((residual.grad[0, 1] == 0).all()) and bool((plain[0, 1] != 0).any())
    assert bool((residual.grad[0, 3, :2] == 0).all()) and bool((residual.grad[0, 3, 2:] != 0).all())


def test_by_hand():
    """The micro model: the logits of its last position, from paper."""
    model = micro_model()
    _, cache = model.run_with_cache(torch.tensor([[2, 0]]))
    for edit, logits in [
        (Ablate(("mlp_out", 0)), [0, 5, 0]),
        (Patch(("resid_pre", 0), pos=-1, source=cache), [5, 0, 0]),
        (Patch("hook_embed", pos=1, source=C), [0, 0, 5]),
        (Add(("resid_mid", 0), pos=1, value=A - 3 * B), [5, 0, 0]),
        (Ablate(("mlp_out", 0), kind="mean", reference=cache), [0, 5, 0]),
    ]:
        got = model.run_with_hooks(AB, fwd_hooks=[(edit.point, edit)])
        wanted = torch.tensor(logits, dtype=torch.float64)
        torch.testing.assert_close(got[0, -1], wanted, rtol=0, atol=1e-9)


# ------------------------------------------------------------------ mean and resample


def test_the_mean_is_over_tokens_not_prompts(world):
    """A long prompt weighs more than a short one; padding weighs nothing."""
    here = world("even")
    tokens, mask = padded([2, 6], "left", 31, 0)
    _, reference = here.model.run_with_cache(tokens, attention_mask=mask)
    every_token = reference["z", 0][mask]
    assert every_token.shape == (8, 4, 4)
    edit = Ablate(("z", 0), kind="mean", pos=2, reference=reference)
    z = torch.zeros(3, 6, 4, 4, dtype=torch.float64)
    edit(z, here.model.hook_dict["blocks.0.attn.hook_z"])
    torch.testing.assert_close(z[:, 2], every_token.mean(0).expand(3, 4, 4))
    assert int(z.count_nonzero()) == 3 * 16


def test_resampling_is_seeded(world):
    here = world("even")
    hook = here.model.hook_dict["blocks.0.attn.hook_z"]
    drawn = []
    for seed in range(20):
        edit = Ablate(("z", 0), kind="resample", reference=here.twins, seed=seed)
        first, again = (torch.zeros(3, 6, 4, 4, dtype=torch.float64) for _ in range(2))
        edit(first, hook)
        edit(again, hook)
        assert torch.equal(first, again)
        same = [
            int((here.twins["z", 0][:, :6] == row).flatten(1).all(1).nonzero()[0]) for row in first
        ]
        drawn.append(same)
        # The same draw at other points, positions and heads.
        other = torch.zeros(3, 6, 16, dtype=torch.float64)
        elsewhere = Ablate(
            ("resid_pre", 1), pos=2, kind="resample", reference=here.twins, seed=seed
        )
        elsewhere(other, here.model.hook_dict["blocks.1.hook_resid_pre"])
        assert torch.equal(other[:, 2], here.twins["resid_pre", 1][same, 2])
    assert {i for row in drawn for i in row} == {0, 1, 2, 4, 5, 6}  # 3 is of another length
    assert len({tuple(row) for row in drawn}) > 10


# ------------------------------------------------------------------ values


def test_repr():
    cache = ActivationCache(
        {"hook_embed": torch.zeros(3, 2, 4)}, {"hook_embed": ("batch", "pos", "d_model")}
    )
    assert repr(Ablate(("z", 9), head=[6, 9], pos=-1)) == "Ablate(('z', 9), pos=-1, head=[6, 9])"
    assert (
        repr(Patch("hook_embed", source=cache))
        == "Patch('hook_embed', source=<cache of 3 prompts>)"
    )
    assert (
        repr(Add("hook_embed", value=torch.zeros(2, 4))) == "Add('hook_embed', value=<tensor 2x4>)"
    )
    assert repr(Scale(("pattern", 0), pos=torch.tensor([1, 2]), key=0, factor=0.5)) == (
        "Scale(('pattern', 0), pos=tensor([1, 2]), key=0, factor=0.5)"
    )
    assert repr(Ablate(("z", 0), kind="mean", reference=cache, per_position=True)) == (
        "Ablate(('z', 0), kind='mean', reference=<cache of 3 prompts>, per_position=True)"
    )


def test_equality_and_hash(world):
    source = world("even").source
    a = Patch(("z", 0), pos=[0, 1], source=source)
    assert a == Patch(("z", 0), pos=(0, 1), source=source)
    assert hash(a) == hash(Patch(("z", 0), pos=np.array([0, 1]).tolist(), source=source))
    assert a != Patch(("z", 0), pos=[1, 0], source=source)
    assert a != Patch(("z", 0), pos=torch.tensor([0, 1]), source=source)
    assert a != Patch(("z", 0), pos=[0, 1], source=source.slice(batch=[0, 1, 2]))
    assert Ablate(("z", 0)) != Scale(("z", 0), factor=0.0) and Ablate(("z", 0)) != "z"
    value = torch.randn(3)
    assert Add("hook_embed", value=value) == Add("hook_embed", value=value.clone())
    assert Add("hook_embed", value=value) != Add("hook_embed", value=value.double())
    assert len({Ablate(("z", 0)), Ablate(("z", 0)), Ablate(("z", 1))}) == 2


def test_an_edit_does_not_change():
    pos = torch.tensor([1, 2])
    edit = Ablate(("z", 0), pos=pos, head=[1, 2])
    pos += 1
    assert edit == Ablate(("z", 0), pos=torch.tensor([1, 2]), head=(1, 2))
    for name, value in (("pos", 3), ("kind", "mean"), ("new", 1)):
        with pytest.raises((AttributeError, TypeError)):
            setattr(edit, name, value)


def test_numbers_of_other_kinds():
    assert Ablate(("z", 0), pos=torch.tensor(3)).pos == 3
    assert Ablate(("z", 0), head=torch.arange(2)).head == (0, 1)
    assert Ablate(("z", 0), neuron=range(3)).neuron == (0, 1, 2)
    assert Scale("hook_embed", factor=2).factor == 2  # a whole number is a number
    assert (
        Ablate(("pattern", 0), pos=torch.tensor([[1, 2]]), key=torch.tensor([[1]])).key is not None
    )


def frozen(name, value):
    # Where annotations are checked, the constructors let nothing of this through.
    return frozen_indices(name, value, per_prompt=True)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Edit("hook_embed"), TypeError, "use Patch, Ablate, Scale or Add"),
        (lambda: Patch("hook_embed"), TypeError, "needs a source.*NoneType"),
        (lambda: Add("hook_embed"), TypeError, "needs a value.*NoneType"),
        (lambda: Ablate("hook_embed", kind="mean"), TypeError, "needs reference="),
        (lambda: Ablate("hook_embed", kind="resample"), TypeError, "needs reference="),
        (lambda: Ablate("hook_embed", seed=1, per_position=True), ValueError, "kind='mean'"),
        (lambda: Ablate("hook_embed", pos=[]), ValueError, "pos is empty; None means all"),
        (lambda: Ablate("hook_embed", head=[]), ValueError, "head is empty"),
        (lambda: Ablate("hook_embed", pos=[True]), TypeError, "pos is a whole number"),
        (lambda: frozen("pos", torch.tensor(1.0)), TypeError, "float32"),
        (lambda: frozen("key", torch.tensor([True])), TypeError, r"key is .*bool"),
        (lambda: frozen("pos", torch.zeros(1, 0, dtype=torch.long)), ValueError, "shape"),
        (lambda: frozen("pos", "1"), TypeError, "pos is a whole number"),
        (lambda: frozen("pos", 1.0), TypeError, "not 1.0"),
    ],
)
def test_edits_that_make_no_sense(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_ablation_of_unknown_kind(world):
    with pytest.raises(Exception, match=r"(?i)kind"):
        Ablate("hook_embed", kind="men")
    with pytest.raises(ValueError, match="zero ablation takes no reference"):
        Ablate("hook_embed", reference=world("even").source)


def test_where_an_edit_is_looked_for(world):
    """Errors come when it is located, before anything runs, with the nearest right name."""
    here = world("even")
    mask = torch.ones(here.tokens.shape, dtype=torch.bool)
    locator = Locator(here.model.hook_dict, axis_sizes(here.model.cfg), mask, here.model.W_E)
    with pytest.raises(UnknownHookName, match=r"Did you mean 'blocks.0.mlp.hook_post'"):
        locator.locate(Ablate("blocks.0.mlp.hook_pots"))
    with pytest.raises(UnknownHookName, match="ambiguous"):
        locator.locate(Ablate(("scale", 0)))
    with pytest.raises(IndexError, match=r"neuron 16 .* 'd_model', 0 to 15"):
        locator.locate(Ablate(("result", 0), neuron=16))
    with pytest.raises(ValueError, match="neuron names one of them twice"):
        locator.locate(Ablate(("post", 0), neuron=[-1, 23]))
    with pytest.raises(ValueError, match="batch=3 query=2 key=6"):
        locator.locate(
            Patch(("pattern", 0), pos=[0, 1], head=1, source=torch.zeros(4, dtype=torch.float64))
        )
    assert math.isnan(Scale("hook_embed", factor=math.nan).factor)
