"""Hooks and edits while generating: at absolute positions, when they say, nothing left behind."""

import pytest
import torch

from hooks import (
    Ablate,
    Add,
    HookError,
    NewTokens,
    Patch,
    PromptTokens,
    Scale,
    Steps,
    UnknownHookName,
    load_edits,
    save_edits,
)
from interp import HookedGPT2, HookedGPT2Config, KeyValueCache

CFG = HookedGPT2Config(n_layers=2, d_model=24, n_heads=3, n_ctx=40, d_vocab=53, eos_token_id=0)
LENGTHS = (2, 6, 1, 5)
N_NEW = 7
EXACT = dict(rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def model():
    model = HookedGPT2.from_config(CFG, dtype=torch.float64)
    with torch.no_grad():  # far from uniform attention, and biases that are not zero
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "wte" in name or "wpe" in name:
                continue
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim < 3 else 0.15))
    return model


@pytest.fixture(scope="module")
def batch():
    """Prompts of unequal length, with padding here and there, and their mask."""
    tokens = torch.randint(1, CFG.d_vocab, (4, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(tokens)
    for row, n in enumerate(LENGTHS):
        mask[row, (2 * row) % (9 - n) : (2 * row) % (9 - n) + n] = 1
    return tokens, mask


def run(model, batch, **arguments):
    tokens, mask = batch
    settings = dict(do_sample=False, stop_at_eos=False, return_type="result") | arguments
    return model.generate(tokens, N_NEW, attention_mask=mask, **settings)


def rows(result):
    """Per row, its tokens without padding and the length of its prompt."""
    for tokens, mask, n in zip(
        result.tokens, result.attention_mask, result.prompt_lengths, strict=True
    ):
        yield tokens[mask], n


def check_against_one_pass(model, result, hooks_of):
    """Every new token is what a full forward pass, with the hooks at the same absolute positions,
    predicts, and is as likely there."""
    for row, (tokens, n) in enumerate(rows(result)):
        logits = model.run_with_hooks(tokens[:-1], fwd_hooks=hooks_of(n, len(tokens)))[0, n - 1 :]
        assert logits.argmax(-1).equal(tokens[n:])
        want = logits.log_softmax(-1).gather(1, tokens[n:, None])[:, 0]
        torch.testing.assert_close(result.log_probs[row, : len(want)], want, **EXACT)


def vector(size=24, scale=2.0):
    return (
        torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * scale
    )


EDITS = {
    "steer a residual": lambda **at: Add(("resid_pre", 1), value=vector(), **at),
    "scale queries": lambda **at: Scale(("q", 0), factor=3.0, **at),
    "silence heads": lambda **at: Ablate(("z", 1), head=[0, 2], **at),
    "values": lambda **at: Patch(("v", 0), head=1, source=vector(8), **at),
    "neurons": lambda **at: Add(("post", 0), neuron=[3, 4], value=vector(2, 9.0), **at),
    "embeddings": lambda **at: Scale("embed", factor=-2.0, **at),
    "last norm": lambda **at: Ablate("ln_final.hook_normalized", neuron=range(9), **at),
    "scale of a norm": lambda **at: Scale(("scale", 1, "ln2"), factor=1.7, **at),
    "a result": lambda **at: Ablate(("result", 0), head=2, **at),
    "a query's input": lambda **at: Add(("q_input", 1), head=0, value=vector(), **at),
    "scores": lambda **at: Scale(("attn_scores", 1), factor=4.0, head=1, **at),
    "a pattern": lambda **at: Ablate(("pattern", 0), key=0, **at),
}
WHENS = {
    "always": (None, lambda n, end: range(end)),
    "prompt": (PromptTokens(), lambda n, end: range(n)),
    "new": (NewTokens(), lambda n, end: range(n, end)),
    "steps": (Steps(0, 3), lambda n, end: range(n - 1, n + 2)),
    "later steps": (Steps(2), lambda n, end: range(n + 1, end)),
}


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("edit", EDITS)
@torch.no_grad()
def test_edits_are_where_one_pass_has_them(model, batch, edit, when):
    make = EDITS[edit]
    selector, positions = WHENS[when]
    result = run(model, batch, edits=make(when=selector))
    assert not result.log_probs.equal(run(model, batch).log_probs)

    def hooks_of(n, length):
        at = [p for p in positions(n, length) if p < length - 1]
        return [(make().point, make(pos=at))] if at else []

    check_against_one_pass(model, result, hooks_of)


@torch.no_grad()
def test_positions_are_absolute(model, batch):
    for pos in (0, [3, 5], 7):
        tokens = batch[0][1:2, 2:8]
        edit = Add(("resid_mid", 0), pos=pos, value=vector())
        result = model.generate(
            tokens, N_NEW, do_sample=False, stop_at_eos=False, edits=[edit], return_type="result"
        )
        check_against_one_pass(model, result, lambda n, end, edit=edit: [(edit.point, edit)])
    # One position per prompt: in the prompt of one, among the new tokens of the others.
    pos = torch.tensor([3, 5, 1, 8])
    result = run(model, batch, edits=Add(("resid_mid", 0), pos=pos, value=vector()))
    for row, (tokens, n) in enumerate(rows(result)):
        edit = Add(("resid_mid", 0), pos=int(pos[row]), value=vector())
        logits = model.run_with_hooks(tokens[:-1], fwd_hooks=[(edit.point, edit)])[0, n - 1 :]
        want = logits.log_softmax(-1).gather(1, tokens[n:, None])[:, 0]
        torch.testing.assert_close(result.log_probs[row], want, **EXACT)


@torch.no_grad()
def test_negative_positions_count_from_the_prompts_end(model, batch):
    last = Add(("resid_pre", 1), pos=-1, value=vector(), when=PromptTokens())
    step = Add(("resid_pre", 1), value=vector(), when=Steps(0, 1))
    plain = run(model, batch)
    assert run(model, batch, edits=last).log_probs.equal(run(model, batch, edits=step).log_probs)
    assert not run(model, batch, edits=last).log_probs.equal(plain.log_probs)
    with pytest.raises(ValueError, match=r"counts from the end, which moves.*PromptTokens"):
        run(model, batch, edits=Add(("resid_pre", 1), pos=-1, value=vector()))
    with pytest.raises(ValueError, match="negative key counts from the end"):
        run(model, batch, edits=Ablate(("pattern", 1), key=-1))


@torch.no_grad()
def test_patch_from_a_run_over_the_prompts(model, batch):
    tokens, mask = batch
    _, cache = model.run_with_cache(tokens.flip(0) % 50 + 1, attention_mask=mask)
    patch = Patch(("resid_post", 0), source=cache, when=PromptTokens())
    result = run(model, batch, edits=patch)
    for row, (ids, n) in enumerate(rows(result)):
        own = cache["resid_post", 0][row][mask[row].bool()]

        def put(act, hook, own=own, n=n):
            act[:, :n] = own

        logits = model.run_with_hooks(ids[:-1], fwd_hooks=[("blocks.0.hook_resid_post", put)])
        want = logits[0, n - 1 :].log_softmax(-1).gather(1, ids[n:, None])[:, 0]
        torch.testing.assert_close(result.log_probs[row], want, **EXACT)
    with pytest.raises(ValueError, match="its source 2") as error:
        run(model, batch, edits=Patch(("resid_post", 0), source=cache))
    assert "positions are those of the prompt and of the new tokens" in error.value.__notes__[0]


@torch.no_grad()
def test_beams_with_edits(model, batch):
    """Rows change places all the time; each keeps the edit of its own prompt."""
    pos = torch.tensor([3, 5, 1, 8])
    edit = Add(("resid_mid", 0), pos=pos, value=vector())
    result = run(model, batch, edits=edit, num_beams=3, num_return_sequences=2, do_sample=None)
    for row, (tokens, n) in enumerate(rows(result)):
        own = Add(edit.point, pos=int(pos[result.prompt[row]]), value=vector())
        logits = model.run_with_hooks(tokens[:-1], fwd_hooks=[(own.point, own)])[0, n - 1 :]
        want = logits.log_softmax(-1).gather(1, tokens[n:, None])[:, 0]
        torch.testing.assert_close(result.log_probs[row], want, **EXACT)
        assert result.scores[row].item() == pytest.approx(want.mean().item(), abs=1e-9)
    plain = run(model, batch, num_beams=3, num_return_sequences=2, do_sample=None)
    assert not plain.scores.equal(result.scores)


@torch.no_grad()
def test_positions_count_from_the_beginning_of_a_cache(model, batch):
    tokens, mask = batch
    past = KeyValueCache.init_cache(CFG, "cpu", 4, dtype=torch.float64)
    model(tokens, attention_mask=mask, past_kv_cache=past)
    more = tokens[:, :3] % 7 + 1
    steps = []

    def watch(act, hook):
        steps.append((hook.step, hook.positions))

    edits = [
        Add(("resid_mid", 0), pos=torch.tensor([3, 8, 6, 13]), value=vector()),
        Scale(("z", 1), factor=2.0, pos=-1, when=PromptTokens()),
    ]
    settings = dict(do_sample=False, stop_at_eos=False, return_type="result")
    result = model.generate(
        more, N_NEW, edits=edits, fwd_hooks=[("embed", watch)], past_kv_cache=past, **settings
    )
    assert steps[0][1].tolist() == [[n, n + 1, n + 2] for n in LENGTHS]
    assert [step for step, _ in steps] == list(range(N_NEW))
    assert result.prompt_lengths == tuple(n + 3 for n in LENGTHS)
    for row, (n, at) in enumerate(zip(LENGTHS, (3, 8, 6, 13), strict=True)):
        ids = torch.cat([tokens[row][mask[row].bool()], result.tokens[row]])
        own = [
            (("resid_mid", 0), Add(("resid_mid", 0), pos=at, value=vector())),
            (("z", 1), Scale(("z", 1), factor=2.0, pos=n + 2)),
        ]
        logits = model.run_with_hooks(ids[:-1], fwd_hooks=own)[0, n + 2 :]
        assert logits.argmax(-1).equal(ids[n + 3 :])
        want = logits.log_softmax(-1).gather(1, ids[n + 3 :, None])[:, 0]
        torch.testing.assert_close(result.log_probs[row], want, **EXACT)
    gone = Add(("resid_mid", 0), pos=1, value=vector())
    with pytest.raises(IndexError, match=r"position 1 of prompt 0.*those before are in past_kv"):
        model.generate(more, N_NEW, edits=gone, past_kv_cache=past)


# ------------------------------------------------------------------ functions


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("name", ["blocks.1.hook_resid_mid", "blocks.0.attn.hook_pattern"])
@pytest.mark.parametrize("inplace", [True, False])
@torch.no_grad()
def test_functions_see_the_positions_they_apply_to(model, batch, when, name, inplace):
    selector, positions = WHENS[when]
    seen, steps = [], []

    def fn(act, hook):
        axis = hook.axes.index("query" if "query" in hook.axes else "pos")
        assert act.shape[axis] == hook.positions.shape[1]
        assert hook.positions.shape[0] == act.shape[0] and hook.name == name
        seen.append(hook.positions)
        steps.append(hook.step)
        if inplace:
            act *= 0.5
            return None
        return act * 0.5

    hook = (name, fn) if selector is None else (name, fn, selector)
    result = run(model, batch, fwd_hooks=[hook])
    assert steps == sorted(steps)
    for row, (tokens, n) in enumerate(rows(result)):
        got = [p for part in seen for p in part[row].tolist() if p >= 0]
        assert got == [p for p in positions(n, len(tokens)) if p < len(tokens) - 1]

    def hooks_of(n, length):
        at = [p for p in positions(n, length) if p < length - 1]
        return [(name, Scale(name, pos=at, factor=0.5))] if at else []

    check_against_one_pass(model, result, hooks_of)


@torch.no_grad()
def test_hooks_that_stay_take_part(model, batch):
    edit = Add(("resid_pre", 1), pos=3, value=vector())
    names = ["blocks.0.hook_mlp_out"]
    whole = run(model, batch, edits=edit, fwd_hooks=[(names, lambda act, hook: act * 2)])
    with model.hooks(fwd_hooks=[(names, lambda act, hook: act * 2), (edit.point, edit)]):
        stays = run(model, batch)
    assert stays.log_probs.equal(whole.log_probs)
    assert not stays.log_probs.equal(run(model, batch).log_probs)
    given = run(model, batch, edits=edit, fwd_hooks=[(names, Scale(names[0], factor=2.0))])
    assert given.log_probs.equal(whole.log_probs)


@torch.no_grad()
def test_an_edit_in_a_hook_says_when(model, batch):
    add = Add(("resid_pre", 1), value=vector())
    whens = [(add.point, add, NewTokens())]
    later = Add(("resid_pre", 1), value=vector(), when=NewTokens())
    got = run(model, batch, fwd_hooks=whens)
    assert got.log_probs.equal(run(model, batch, edits=[later]).log_probs)
    with pytest.raises(ValueError, match="says when it applies, and its hook says"):
        run(model, batch, fwd_hooks=[(add.point, later, Steps(1))])


def test_when_is_printed_and_saved(tmp_path):
    edits = [
        Add(("resid_pre", 1), value=vector(), when=Steps(2, 5)),
        Scale("embed", factor=2.0, pos=-1, when=PromptTokens()),
        [Ablate(("z", 0), when=NewTokens()), Ablate(("z", 1), when=Steps())],
    ]
    save_edits(tmp_path / "edits.safetensors", edits)
    one, two, several = load_edits(tmp_path / "edits.safetensors")
    assert (one, two, list(several)) == tuple(edits)
    assert "when=Steps(start=2, stop=5)" in repr(one)
    assert one != Add(("resid_pre", 1), value=vector(), when=Steps(2, 6))
    assert one != Add(("resid_pre", 1), value=vector())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: Steps(-1), ValueError, "begin at 0"),
        (lambda: Steps(3, 3), ValueError, "no step at all"),
        (lambda: Steps(1.5), TypeError, "start of Steps is a whole number"),
        (lambda: Steps(0, "x"), TypeError, "stop of Steps is a whole number"),
        (lambda: Scale("embed", factor=1, when="prompt"), TypeError, "PromptTokens"),
    ],
    ids=["negative", "empty", "half", "text", "no when"],
)
def test_a_wrong_when_is_refused(make, error, told):
    with pytest.raises(error, match=told):
        make()


def test_when_elsewhere_is_refused(model, batch):
    edit = Add(("resid_pre", 1), value=vector(), when=NewTokens())
    with pytest.raises(ValueError, match="when goes with generate"):
        model.run_with_hooks(batch[0], fwd_hooks=[(edit.point, edit)])


# ------------------------------------------------------------------ records


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
@torch.no_grad()
def test_a_record_is_that_of_one_pass(model, batch, cached, edited, unequal):
    """At every point, at padding too, rows that end early included."""
    if not unequal:
        batch = (batch[0], torch.ones_like(batch[0]))
    heads = [f"blocks.{layer}.hook_{x}_input" for layer in range(2) for x in "qkv"]
    names = [name for name in model.hook_dict if name not in heads]
    edits = [Add(("resid_pre", 1), value=vector(), when=NewTokens())] if edited else []
    new = run(model, batch, edits=edits).new_tokens
    # A token that ends some rows early and others not at all.
    (end, *_) = (
        token for token in new.unique().tolist() if 0 < (new == token).any(1).sum() < len(new)
    )
    for chosen in (names, heads):
        result = run(
            model,
            batch,
            edits=edits,
            record=chosen,
            stop_at_eos=True,
            eos_token_id=end,
            use_past_kv_cache=cached,
        )
        assert set(result.stopped) == {"end_of_text", "max_new_tokens"}
        record, mask = result.record, result.attention_mask
        assert list(record) == chosen
        assert record.tokens.equal(result.tokens) and record.attention_mask.equal(mask)
        starts = torch.tensor(result.prompt_lengths)[:, None]

        def add(act, hook, mask=mask, starts=starts):
            act[mask & (mask.long().cumsum(1) - 1 >= starts)] += vector()

        with model.hooks(fwd_hooks=[(("resid_pre", 1), add)] if edited else []):
            _, cache = model.run_with_cache(result.tokens, names_filter=chosen, attention_mask=mask)
        for name in chosen:
            assert record.axes[name] == cache.axes[name]
            torch.testing.assert_close(record[name], cache[name], **EXACT)


@torch.no_grad()
def test_a_record_of_samples(model, batch):
    result = run(
        model,
        batch,
        do_sample=True,
        seed=0,
        num_return_sequences=3,
        record=["*hook_pattern", "*hook_resid_post"],
    )
    assert len(result) == 12 and result.prompt == tuple(i for i in range(4) for _ in range(3))
    _, cache = model.run_with_cache(
        result.tokens,
        names_filter=list(result.record),
        attention_mask=result.attention_mask,
    )
    for name in cache:
        torch.testing.assert_close(result.record[name], cache[name], **EXACT)


@torch.no_grad()
def test_a_record_can_be_differentiated_with(model, batch):
    with torch.enable_grad():
        record = run(model, batch, record="*hook_resid_post").record
        weight = torch.ones(24, dtype=torch.float64, requires_grad=True)
        (record["resid_post", 0] @ weight).sum().backward()
    assert weight.grad is not None


# ------------------------------------------------------------------ nothing stays behind


def hook_count(model):
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in model.hook_dict.values())


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("at_step", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_leaks(model, batch, error, at_step, stream):
    past = KeyValueCache.init_cache(CFG, "cpu", dtype=torch.float64)
    prefix, rest = batch[0][:1, :4], batch[0][:1, 4:]
    model(prefix, past_kv_cache=past)
    keys, length = past.keys.clone()[:, :, :, :4], past.length
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    plain = run(model, batch)
    state = torch.get_rng_state()

    def fail(act, hook):
        if hook.step == at_step:
            raise error("from the hook")

    settings = dict(past_kv_cache=past, fwd_hooks=[(("z", 1), fail)], stop_at_eos=False)
    with pytest.raises(error):
        if stream:
            for _ in model.generate_stream(rest, 5, **settings):
                pass
        else:
            model.generate(rest, 5, **settings)
    assert hook_count(model) == 0 and past.length == length
    assert past.keys[:, :, :, :4].equal(keys)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    assert run(model, batch).log_probs.equal(plain.log_probs)
    assert torch.get_rng_state().equal(state) and torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_stream_does_not_change_the_callers_gradient_mode(model, batch):
    stream = model.generate_stream(batch[0], 4, stop_at_eos=False)
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.no_grad():
        next(stream)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("unchecked")
def test_hook_errors_are_the_users_own(model, batch):
    with pytest.raises(HookError, match=r"returned a tensor of shape \(4, 1, 24\)"):
        run(model, batch, fwd_hooks=[(("resid_pre", 1), lambda act, hook: act[:, :1])])
    with pytest.raises(HookError, match="returned int"):
        run(model, batch, fwd_hooks=[(("resid_pre", 1), lambda act, hook: 3, NewTokens())])
    with pytest.raises(ValueError, match="new token 2 are not finite"):
        run(
            model,
            batch,
            fwd_hooks=[(("resid_pre", 1), lambda act, hook: act * torch.nan, Steps(2))],
        )


WRONG = {
    "unknown point": (dict(edits=Scale(("zz", 0), factor=1)), UnknownHookName, "zz"),
    "unknown filter": (dict(fwd_hooks=[("*nothing*", print)]), UnknownHookName, "nothing"),
    "no edit": (dict(edits=["z"]), TypeError, "Patch, Ablate, Scale or Add"),
    "one hook": (dict(fwd_hooks=print), TypeError, "fwd_hooks is a list"),
    "a text": (dict(edits="z"), TypeError, "edits is a list, not 'z'"),
    "hook alone": (dict(fwd_hooks=[print]), TypeError, "name, function, when"),
    "other way": (dict(fwd_hooks=[(print, "embed")]), TypeError, "other way round"),
    "no when": (dict(fwd_hooks=[("embed", print, "prompt")]), TypeError, "PromptTokens"),
    "no such step": (dict(edits=Scale("embed", factor=1, when=Steps(7))), IndexError, "nowhere"),
    "after all": (dict(edits=Scale("embed", factor=1, pos=9)), IndexError, "pos 9"),
    "not in prompt": (
        dict(edits=Scale("embed", factor=1, pos=2, when=PromptTokens())),
        IndexError,
        "pos 2 is out of range: prompt 0 has 2 tokens",
    ),
    "not new": (
        dict(edits=Scale("embed", factor=1, pos=2, when=NewTokens())),
        IndexError,
        "position 2 of prompt 1 is not among those at which it applies, 6 to 11",
    ),
    "bad hook": (dict(fwd_hooks=[("embed", lambda act: act)]), HookError, "cannot be called"),
    "heads": (dict(edits=Ablate(("z", 0), head=3)), IndexError, "head 3"),
    "record": (dict(record="*nothing*"), UnknownHookName, "nothing"),
    "record of beams": (dict(record="embed", num_beams=2, do_sample=None), ValueError, "num_beams"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_hooks_are_refused_before_anything_runs(model, batch, wrong):
    arguments, error, told = WRONG[wrong]

    def never(act, hook):
        raise AssertionError("the model ran")

    with model.hooks(fwd_hooks=[("embed", never)]), pytest.raises(error, match=told):
        run(model, batch, **arguments)


def test_backward_hooks_are_refused(model, batch):
    with (
        model.hooks(bwd_hooks=[("embed", lambda grad, hook: None)]),
        pytest.raises(ValueError, match="backward hook listens at 'hook_embed'"),
    ):
        run(model, batch)
