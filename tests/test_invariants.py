"""The design's invariants, over every hook point there is."""

from itertools import pairwise

import pytest
import torch

from hooks import HookError
from interp import HookedGPT2, HookedGPT2Config, KeyValueCache
from interp.points import ON_REQUEST, hook_points

CFG = HookedGPT2Config(
    n_layers=2, d_model=24, n_heads=3, n_ctx=16, d_vocab=37, act_fn="gelu_new", eps=1e-5
)
POINTS = list(hook_points(CFG.n_layers))
# hook_k_input and so on of these layers replace what flows into one of queries, keys, values.
RESIDUAL_POINTS = [
    n for n in POINTS if n.endswith(("hook_resid_pre", "hook_resid_mid", "hook_resid_post"))
]
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def model() -> HookedGPT2:
    model = HookedGPT2.from_config(CFG, seed=1, dtype="float64").requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.requires_grad_(True)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, CFG.d_vocab, (2, 7), generator=torch.Generator().manual_seed(3))


def noise(value: torch.Tensor) -> torch.Tensor:
    return torch.rand(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("name", POINTS)
@torch.no_grad()
def test_every_point_is_live(model, tokens, name, mask):
    plain = model(tokens, attention_mask=mask)
    same = model.run_with_hooks(
        tokens, fwd_hooks=[(name, lambda act, hook: act.clone())], attention_mask=mask
    )
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-10)
    other = model.run_with_hooks(
        tokens, fwd_hooks=[(name, lambda act, hook: noise(act))], attention_mask=mask
    )
    assert (other - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("grad", [False, True])
def test_in_place_and_returned_edits_agree(model, tokens, name, grad):
    def in_place(act, hook):
        act.mul_(0.5)

    def in_place_part(act, hook):
        act[:, 0] *= 0.5

    def returned_part(act, hook):
        first = torch.arange(act.shape[1]).view(1, -1, *[1] * (act.ndim - 2)) == 0
        return torch.where(first, act * 0.5, act)

    with torch.set_grad_enabled(grad):
        for edit, other in [
            (in_place, lambda act, hook: act * 0.5),
            (in_place_part, returned_part),
        ]:
            outs = [model.run_with_hooks(tokens, fwd_hooks=[(name, fn)]) for fn in (edit, other)]
            torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
            if grad:
                wte = [torch.autograd.grad(out.sum(), model.W_pos)[0] for out in outs]
                torch.testing.assert_close(wte[0], wte[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", POINTS)
def test_what_is_kept_is_what_flowed(model, tokens, name):
    """An edit changes what is cached at its point and after, never what was cached before."""
    before = POINTS[: POINTS.index(name)]

    def triple(act, hook):
        act.mul_(3)

    with torch.no_grad():
        _, clean = model.run_with_cache(tokens, names_filter=POINTS)
        with model.hooks(fwd_hooks=[(name, triple)]):
            _, edited = model.run_with_cache(tokens, names_filter=POINTS)
    torch.testing.assert_close(edited[name], 3 * clean[name], rtol=0, atol=1e-12)
    for earlier in before:
        # Queries, keys and values of a block are computed together, in this order.
        torch.testing.assert_close(edited[earlier], clean[earlier], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", RESIDUAL_POINTS)
@torch.no_grad()
def test_patching_a_whole_residual_stream_is_exact(model, tokens, name):
    other = tokens.flip(0)
    _, source = model.run_with_cache(other)
    patched = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda act, hook: source[name])])
    torch.testing.assert_close(patched, model(other), rtol=0, atol=1e-12)


@torch.no_grad()
def test_parts_sum_to_the_residual(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=POINTS)
    residual = cache["embed"] + cache["pos_embed"]
    for layer in range(CFG.n_layers):
        torch.testing.assert_close(cache["resid_pre", layer], residual, rtol=0, atol=1e-12)
        by_head = cache["result", layer].sum(2) + model.b_O[layer]
        torch.testing.assert_close(cache["attn_out", layer], by_head, rtol=0, atol=1e-12)
        residual = residual + cache["attn_out", layer]
        torch.testing.assert_close(cache["resid_mid", layer], residual, rtol=0, atol=1e-12)
        residual = residual + cache["mlp_out", layer]
        torch.testing.assert_close(cache["resid_post", layer], residual, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        model.unembed(model.ln_final(cache["resid_post", -1])), model(tokens), rtol=0, atol=1e-12
    )


@torch.no_grad()
def test_points_mean_what_they_say(model, tokens):
    """Each point against its definition, from the weights in TransformerLens' layout."""
    _, cache = model.run_with_cache(tokens, names_filter=POINTS)
    for layer in range(CFG.n_layers):
        block = model.blocks[layer]
        assert cache["attn_in", layer].equal(cache["resid_pre", layer])
        assert cache["mlp_in", layer].equal(cache["resid_mid", layer])
        for norm, resid in (("ln1", "resid_pre"), ("ln2", "resid_mid")):
            x = cache[resid, layer]
            scale = (x.var(-1, correction=0, keepdim=True) + CFG.eps).sqrt()
            torch.testing.assert_close(cache["scale", layer, norm], scale, rtol=0, atol=1e-12)
            out = (x - x.mean(-1, keepdim=True)) / scale
            torch.testing.assert_close(cache["normalized", layer, norm], out, rtol=0, atol=1e-12)
        normalized = cache["normalized", layer, "ln1"] * block.ln1.w + block.ln1.b
        attn = block.attn
        for name, w, b in (
            ("q", attn.W_Q, attn.b_Q),
            ("k", attn.W_K, attn.b_K),
            ("v", attn.W_V, attn.b_V),
        ):
            want = torch.einsum("bpd,hde->bphe", normalized, w) + b
            torch.testing.assert_close(cache[name, layer], want, rtol=0, atol=1e-12)
            every_head = cache["resid_pre", layer][:, :, None].expand(-1, -1, CFG.n_heads, -1)
            assert cache[f"{name}_input", layer].equal(every_head)
        scores = torch.einsum("bqhe,bkhe->bhqk", cache["q", layer], cache["k", layer])
        scores = (scores / CFG.d_head**0.5).masked_fill(
            torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf
        )
        torch.testing.assert_close(cache["attn_scores", layer], scores, rtol=0, atol=1e-12)
        pattern = scores.softmax(-1)
        torch.testing.assert_close(cache["pattern", layer], pattern, rtol=0, atol=1e-12)
        z = torch.einsum("bhqk,bkhe->bqhe", pattern, cache["v", layer])
        torch.testing.assert_close(cache["z", layer], z, rtol=0, atol=1e-12)
        result = torch.einsum("bphe,hed->bphd", z, attn.W_O)
        torch.testing.assert_close(cache["result", layer], result, rtol=0, atol=1e-12)
        normalized = cache["normalized", layer, "ln2"] * block.ln2.w + block.ln2.b
        pre = normalized @ block.mlp.W_in + block.mlp.b_in
        torch.testing.assert_close(cache["pre", layer], pre, rtol=0, atol=1e-12)
        post = torch.nn.functional.gelu(pre, approximate="tanh")
        torch.testing.assert_close(cache["post", layer], post, rtol=0, atol=1e-12)
        mlp_out = post @ block.mlp.W_out + block.mlp.b_out
        torch.testing.assert_close(cache["mlp_out", layer], mlp_out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", POINTS)
def test_gradients_match_finite_differences(model, tokens, name):
    """The gradient kept at a point predicts what a small step there does to the loss."""
    loss, cache = model.run_with_cache(tokens, "loss", names_filter=name, incl_bwd=True)
    assert list(cache) == [name, name + "_grad"]
    assert loss.item() == pytest.approx(model(tokens, "loss").item(), abs=1e-12)
    direction = noise(cache[name]) - 0.5
    losses = []
    for size in (1e-5, -1e-5):
        step = size * direction
        losses.append(
            model.run_with_hooks(
                tokens, "loss", fwd_hooks=[(name, lambda act, hook, step=step: act + step)]
            )
        )
    slope = (losses[0] - losses[1]).item() / 2e-5
    gradient = cache[name + "_grad"]
    finite = torch.where(cache[name].isfinite(), gradient * direction, 0.0)
    assert finite.sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_of_resid_mid_is_that_of_attn_out(model, tokens):
    _, cache = model.run_with_cache(tokens, "loss", incl_bwd=True)
    for layer in range(CFG.n_layers):
        mid = cache[f"blocks.{layer}.hook_resid_mid_grad"]
        torch.testing.assert_close(mid, cache[f"blocks.{layer}.hook_attn_out_grad"])


def test_gradients_of_branches_and_stream_add_up(model, tokens):
    """Points that pass the same tensor have gradients of their own: of what comes after each."""
    _, cache = model.run_with_cache(
        tokens, "loss", incl_bwd=True, names_filter=lambda name: not name.endswith("_input")
    )
    for layer in range(CFG.n_layers):
        pre, mid, post, attn_in, mlp_in = (
            cache[f"blocks.{layer}.hook_{name}_grad"]
            for name in ("resid_pre", "resid_mid", "resid_post", "attn_in", "mlp_in")
        )
        torch.testing.assert_close(pre, mid + attn_in)
        torch.testing.assert_close(mid, post + mlp_in)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_do_not_need_trainable_weights(model, tokens, frozen):
    model.requires_grad_(not frozen)
    try:
        with torch.no_grad():
            _, cache = model.run_with_cache(
                tokens, incl_bwd=lambda logits: logits[0, -1, 3] - logits[0, -1, 5]
            )
    finally:
        model.requires_grad_(True)
    direct = (model.W_U[:, 3] - model.W_U[:, 5]) * model.get_parameter("ln_f.weight")
    got = cache["ln_final.hook_normalized_grad"]
    torch.testing.assert_close(got[0, -1], direct.detach())
    assert got[0, :-1].abs().max() == 0 and got[1].abs().max() == 0
    assert cache["hook_embed_grad"].abs().max() > 0


@pytest.mark.parametrize("name", POINTS)
def test_backward_hooks_see_and_change_gradients(model, tokens, name):
    _, cache = model.run_with_cache(tokens, "loss", names_filter=name, incl_bwd=True)
    seen = []
    loss = model.run_with_hooks(
        tokens, "loss", bwd_hooks=[(name, lambda grad, hook: seen.append((grad.clone(), hook)))]
    )
    torch.autograd.grad(loss, (model.W_E, model.W_pos))
    ((gradient, hook),) = seen
    torch.testing.assert_close(gradient, cache[name + "_grad"], rtol=0, atol=1e-12)
    assert hook is model.hook_dict[name]

    def nothing(grad, hook):
        grad.zero_()

    loss = model.run_with_hooks(tokens, "loss", bwd_hooks=[(name, nothing)])
    inputs = (model.W_E, model.W_pos)
    changed = torch.autograd.grad(loss, inputs)
    plain = torch.autograd.grad(model(tokens, "loss"), inputs)
    assert max((a - b).abs().max() for a, b in zip(changed, plain, strict=True)) > 1e-8


@pytest.mark.parametrize("stop", range(CFG.n_layers + 1))
@pytest.mark.parametrize("start", range(CFG.n_layers + 1))
@torch.no_grad()
def test_start_and_stop(model, tokens, start, stop):
    _, cache = model.run_with_cache(tokens)
    residuals = [cache["resid_pre", layer] for layer in range(CFG.n_layers)]
    residuals.append(cache["resid_post", -1])
    stopped = model(tokens, stop_at_layer=stop)
    torch.testing.assert_close(stopped, residuals[stop], rtol=0, atol=1e-12)
    onward = model(residuals[start], start_at_layer=start)
    torch.testing.assert_close(onward, model(tokens), rtol=0, atol=1e-12)
    if stop < start:
        with pytest.raises(IndexError, match="before start_at_layer"):
            model(residuals[start], start_at_layer=start, stop_at_layer=stop)
        return
    out, part = model.run_with_cache(residuals[start], start_at_layer=start, stop_at_layer=stop)
    torch.testing.assert_close(out, residuals[stop], rtol=0, atol=1e-12)
    layers = {model.hook_dict[name].layer() for name in part}
    assert layers == set(range(start, stop))


def count_calls(monkeypatch, name):
    calls = []
    real = getattr(HookedGPT2, name)
    monkeypatch.setattr(
        HookedGPT2, name, lambda self, *args, **kw: calls.append(args) or real(self, *args, **kw)
    )
    return calls


@torch.no_grad()
def test_looking_costs_what_you_look_at(model, tokens, monkeypatch):
    blocks, unembed = count_calls(monkeypatch, "block"), count_calls(monkeypatch, "unembed")
    sdpa = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kw: sdpa.append(1) or real(*args, **kw),
    )
    model(tokens, stop_at_layer=1)
    assert (len(blocks), len(unembed), len(sdpa)) == (1, 0, 1)
    model.run_with_cache(tokens, names_filter=("resid_post", 0))
    assert (len(blocks), len(unembed), len(sdpa)) == (3, 1, 3)
    model.run_with_cache(tokens, names_filter=("pattern", 0))
    assert len(sdpa) == 4  # one of two layers computes its pattern
    einsum = []
    real_einsum = torch.einsum
    monkeypatch.setattr(torch, "einsum", lambda *args: einsum.append(args[0]) or real_einsum(*args))
    model.run_with_cache(tokens)
    assert einsum == []
    model.run_with_cache(tokens, names_filter="blocks.0.hook_q_input")
    assert einsum == []
    model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_result")
    assert len(einsum) == 1


@torch.no_grad()
def test_without_output_nothing_is_unembedded(model, tokens, monkeypatch):
    _, whole = model.run_with_cache(tokens)
    unembed = count_calls(monkeypatch, "unembed")
    out, cache = model.run_with_cache(tokens, return_type=None)
    assert out is None and unembed == []
    assert set(cache) == set(whole)
    assert all(value.equal(whole[name]) for name, value in cache.items())


@torch.no_grad()
def test_a_filter_may_be_any_iterable(model, tokens):
    names = ["hook_embed", ("pattern", 1)]
    for names_filter in (names, (name for name in names), {"hook_embed": 0, ("pattern", 1): 0}):
        _, cache = model.run_with_cache(tokens, names_filter=names_filter)
        assert list(cache) == ["hook_embed", "blocks.1.attn.hook_pattern"]


@torch.no_grad()
def test_default_cache_holds_each_tensor_once(model, tokens):
    _, cache = model.run_with_cache(tokens)
    assert set(cache) == set(POINTS) - {n for n in POINTS if n.split(".", 2)[-1] in ON_REQUEST}
    assert cache["resid_post", 0].data_ptr() == cache["resid_pre", 1].data_ptr()
    pos, d, h, mlp, layers = 7, CFG.d_model, CFG.n_heads, CFG.d_mlp, CFG.n_layers
    # attn_out, resid_mid, mlp_out, resid_post, both layer norms, q, k, v, z; scores and pattern
    numbers = layers * (2 * pos * (10 * d + 2 * mlp + 2) + 2 * 2 * h * pos * pos)
    numbers += 2 * pos * (d + d + d + 1) + pos * d  # embed, first resid_pre, ln_final; pos_embed
    assert cache.nbytes <= numbers * 8 + tokens.nbytes


@torch.no_grad()
def test_a_view_asked_for_alone_does_not_hold_its_neighbours(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_q")
    assert cache.nbytes == CFG.n_layers * 2 * 7 * CFG.d_model * 8 + tokens.nbytes


def hook_count(model):
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in model.hook_dict.values())


@torch.no_grad()
def test_a_later_hook_cannot_reach_an_earlier_ones_tensors(model, tokens):
    _, clean = model.run_with_cache(tokens)
    source, stash = clean["resid_post", 0], []
    before = source.clone()

    def patch(act, hook):
        return source

    def clear(act, hook):
        act.zero_()

    def keep(act, hook):
        stash.append(act)

    name = "blocks.0.hook_resid_post"
    with model.hooks(fwd_hooks=[(name, patch), (name, clear)]):
        _, patched = model.run_with_cache(tokens)
    assert source.equal(before) and patched[name].abs().max() == 0

    def clear_stash(act, hook):
        stash[0].zero_()

    with model.hooks(fwd_hooks=[(name, keep), ("blocks.1.attn.hook_z", clear_stash)]):
        out, kept = model.run_with_cache(tokens)
    assert kept[name].equal(before)
    torch.testing.assert_close(out, model(tokens), rtol=0, atol=1e-12)


def test_contexts_that_overlap_remove_their_own_hooks(model):
    def fn(act, hook):
        return None

    first, second = (model.hooks(fwd_hooks=[("hook_embed", fn)]) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert hook_count(model) == 1
    second.__exit__(None, None, None)
    assert hook_count(model) == 0


def test_gradients_with_padding_are_finite(model, tokens):
    _, cache = model.run_with_cache(tokens, "loss", attention_mask=MASK, incl_bwd=True)
    for name in cache:
        if name.endswith("_grad"):
            assert cache[name].isfinite().all(), name


def test_gradients_through_a_key_value_cache(model, tokens):
    past = KeyValueCache.init_cache(CFG, "cpu", 2, dtype=torch.float64)
    model(tokens[:, :4], past_kv_cache=past)
    assert not past.keys.requires_grad
    loss = model(tokens[:, 4:], "loss", past_kv_cache=past)
    loss.backward()
    model.zero_grad()
    whole = model(tokens, "loss", loss_per_token=True)[:, 4:].mean()
    torch.testing.assert_close(loss, whole)


def test_functional_call(model, tokens):
    weights = {name: value.detach() * 0.5 for name, value in model.named_parameters()}
    out = torch.func.functional_call(model, weights, (tokens,))
    assert not out.equal(model(tokens))


class Stop(BaseException):
    pass


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
def test_nothing_leaks(model, tokens, name, error):
    def fail(act, hook):
        raise error("from the hook")

    plain = model(tokens)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error):
        model.run_with_hooks(tokens, fwd_hooks=[(name, fail)])
    assert hook_count(model) == 0
    model.add_hook("hook_embed", lambda act, hook: None)
    with (
        pytest.raises(error),
        model.hooks(fwd_hooks=[(name, fail)]),
        model.hooks(fwd_hooks=[("hook_embed", lambda act, hook: None)]),
    ):
        model.add_hook(name, fail)
        assert hook_count(model) == 4
        model(tokens)
    assert hook_count(model) == 1
    model.reset_hooks()
    assert hook_count(model) == 0
    torch.testing.assert_close(model(tokens), plain, rtol=0, atol=0)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda act: act[:1], "of shape"),
        (lambda act: act.float(), "of dtype torch.float32: expected torch.float64"),
        (lambda act: act.to("meta"), "of device meta: expected cpu"),
        (lambda act: 3, "returned int"),
    ],
    ids=["shape", "dtype", "device", "type"],
)
def test_a_wrong_answer_is_refused(model, tokens, name, answer, told):
    with pytest.raises(HookError) as error:
        model.run_with_hooks(tokens, fwd_hooks=[(name, lambda act, hook: answer(act))])
    assert name in str(error.value) and told in str(error.value)
    assert hook_count(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["blocks.0.attn.hook_k", "blocks.1.hook_resid_post", None])
def test_key_value_cache(model, tokens, mask, name):
    """Running the tokens in pieces gives what running them at once gives, hooks included."""
    hooks = [] if name is None else [(name, lambda act, hook: act * 1.5)]
    names = [name or "blocks.1.attn.hook_pattern"]
    with model.hooks(fwd_hooks=hooks):
        whole = model(tokens, attention_mask=mask)
        for cuts in [(0, 3, 7), (0, 1, 2, 6, 7), (0, 7)]:
            past = KeyValueCache.init_cache(CFG, "cpu", 2, dtype=torch.float64)
            parts = []
            for a, b in pairwise(cuts):
                part = None if mask is None else mask[:, a:b]
                if part is not None and a == 0 and not part.any(1).all():
                    break  # a prompt of which nothing has come yet is refused
                out, _ = model.run_with_cache(
                    tokens[:, a:b], names_filter=names, attention_mask=part, past_kv_cache=past
                )
                parts.append(out)
            else:
                got = torch.cat(parts, 1)
                torch.testing.assert_close(got, whole, rtol=0, atol=1e-10)
                assert past.length == 7


@torch.no_grad()
def test_a_failed_run_leaves_the_key_value_cache_as_it_was(model, tokens):
    def fail(act, hook):
        raise RuntimeError("stop")

    past = KeyValueCache.init_cache(CFG, "cpu", 2, dtype=torch.float64)
    model(tokens[:, :4], past_kv_cache=past)
    with pytest.raises(RuntimeError):
        model.run_with_hooks(
            tokens[:, 4:], fwd_hooks=[("blocks.1.attn.hook_z", fail)], past_kv_cache=past
        )
    assert past.length == 4
    rest = model(tokens[:, 4:], past_kv_cache=past)
    torch.testing.assert_close(rest, model(tokens)[:, 4:], rtol=0, atol=1e-12)
