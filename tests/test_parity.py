"""It is that model: logits of random-weight `transformers` models, in every variant and dtype."""

from typing import Any

import pytest
import torch

from interp import HookedGPT2, KeyValueCache

SMALL = dict(n_layer=3, n_embd=48, n_head=4, n_positions=24, vocab_size=101)
# The published sizes' exact widths and heads, with fewer layers and a smaller vocabulary.
PUBLISHED = {
    "gpt2": dict(n_layer=12, n_embd=768, n_head=12, vocab_size=50257),
    "distilgpt2": dict(n_layer=6, n_embd=768, n_head=12, vocab_size=503),
    "gpt2-medium": dict(n_layer=2, n_embd=1024, n_head=16, vocab_size=503),
    "gpt2-large": dict(n_layer=2, n_embd=1280, n_head=20, vocab_size=503),
    "gpt2-xl": dict(n_layer=1, n_embd=1600, n_head=25, vocab_size=503),
}
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer, one head": dict(n_layer=1, n_head=1),
    "n_inner": dict(n_inner=70),
    "eps": dict(layer_norm_epsilon=1e-2),
    "untied": dict(tie_word_embeddings=False),
    "unscaled": dict(scale_attn_weights=False),
    "scaled by layer": dict(scale_attn_by_inverse_layer_idx=True),
    "reorder and upcast": dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
    **{
        f"act {name}": dict(activation_function=name)
        for name in ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh", "sigmoid")
    },
    "everything": dict(
        n_inner=50,
        layer_norm_epsilon=1e-3,
        tie_word_embeddings=False,
        activation_function="relu",
        scale_attn_by_inverse_layer_idx=True,
        scale_attn_weights=False,
    ),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture
def pair(reference_model):
    """(the reference, ours of the same weights) for a config, dtype, device."""
    from transformers import GPT2Config

    def build(config: dict, dtype=torch.float64, device="cpu", attention="sdpa"):
        full = SMALL | dict(bos_token_id=0, eos_token_id=0) | config
        hf = GPT2Config(**full)
        hf._attn_implementation = attention
        reference = reference_model(hf, dtype=dtype)
        return reference.to(device), HookedGPT2.from_pretrained(
            reference, dtype=dtype, device=device
        )

    return build


def random_tokens(model, batch, length):
    return torch.randint(0, model.cfg.d_vocab, (batch, length), device=model.device)


def check(ours, theirs, dtype):
    assert ours.dtype == theirs.dtype == dtype
    assert (ours - theirs).abs().max() <= TOLERANCE[dtype]
    assert ours.argmax(-1).equal(theirs.argmax(-1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("variant", ODD)
@torch.no_grad()
def test_variants(pair, variant, dtype, attention, device):
    if variant == "reorder and upcast" and attention == "eager" and dtype == torch.float64:
        pytest.skip("the reference computes these scores in float32 even of a float64 model")
    reference, model = pair(ODD[variant], dtype, device, attention)
    for batch, length in [(1, 1), (2, 7), (3, 24)]:
        tokens = random_tokens(model, batch, length)
        theirs = reference(tokens).logits
        check(model(tokens), theirs, dtype)
        looked_at, _ = model.run_with_cache(tokens)  # the path with an explicit softmax
        check(looked_at, theirs, dtype)
        loss = model(tokens, "loss") if length > 1 else None
        if loss is not None:
            theirs = reference(tokens, labels=tokens).loss
            assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_published_shapes(pair, name, dtype):
    if name == "gpt2" and dtype == torch.float64:
        pytest.skip("GPT-2 small's whole shape is checked in float32")
    reference, model = pair(PUBLISHED[name] | dict(n_positions=1024), dtype)
    tokens = random_tokens(model, 2, 11)
    check(model(tokens), reference(tokens).logits, dtype)


@torch.no_grad()
def test_at_full_context(pair):
    reference, model = pair(dict(n_positions=1024, n_layer=2), torch.float32)
    tokens = random_tokens(model, 1, 1024)
    check(model(tokens), reference(tokens).logits, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("look", [False, True])
@torch.no_grad()
def test_padding(pair, side, attention, device, look):
    reference, model = pair({}, torch.float64, device, attention)
    tokens = random_tokens(model, 4, 9)
    mask = torch.ones(4, 9, dtype=torch.long, device=device)
    for row, n in enumerate([0, 1, 5, 8]):
        mask[row, :n] = 0
    mask = mask if side == "left" else mask.flip(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = reference(tokens, attention_mask=mask, position_ids=positions).logits
    ours = (
        model.run_with_cache(tokens, attention_mask=mask)[0]
        if look
        else model(tokens, attention_mask=mask)
    )
    real = mask.bool()
    assert (ours - theirs)[real].abs().max() <= 1e-9
    for row in range(4):  # padded, a prompt gives what it gives alone
        alone = model(tokens[row][real[row]])[0]
        assert (ours[row][real[row]] - alone).abs().max() <= 1e-9
    assert ours.isfinite().all()
    loss = model(tokens, "loss", attention_mask=mask, loss_per_token=True)
    counted = real[:, 1:] & real[:, :-1]
    assert loss.isnan().equal(~counted)
    mean = model(tokens, "loss", attention_mask=mask)
    assert mean.item() == pytest.approx(loss[counted].mean().item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@torch.no_grad()
def test_key_value_cache(pair, dtype):
    from transformers import DynamicCache

    reference, model = pair({}, dtype)
    tokens = random_tokens(model, 2, 24)
    theirs, past = (
        DynamicCache(config=reference.config),
        KeyValueCache.init_cache(model.cfg, "cpu", 2, dtype=dtype),
    )
    for a, b in [(0, 5), (5, 6), (6, 7), (7, 24)]:
        want = reference(tokens[:, a:b], past_key_values=theirs).logits
        check(model(tokens[:, a:b], past_kv_cache=past), want, dtype)
    assert past.length == 24
    with pytest.raises(ValueError, match="room for 24 positions: 24 are filled and 1 more"):
        model(tokens[:, :1], past_kv_cache=past)


@pytest.mark.parametrize("variant", ["plain", "untied", "reorder and upcast", "act relu"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_bfloat16_is_no_further_off_than_the_reference(pair, variant, attention):
    exact, _ = pair(ODD[variant], torch.float32, attention=attention)
    reference, model = pair(ODD[variant], torch.bfloat16, attention=attention)
    tokens = random_tokens(model, 8, 24)
    want = exact(tokens).logits
    ours = (model(tokens).float() - want).pow(2).mean().sqrt()
    theirs = (reference(tokens).logits.float() - want).pow(2).mean().sqrt()
    assert ours <= 1.05 * theirs  # both round at random: a twentieth is noise
    looked_at = model.run_with_cache(tokens)[0]
    assert (looked_at.float() - want).pow(2).mean().sqrt() <= 1.05 * theirs


@torch.no_grad()
def test_a_model_object_is_left_unchanged(pair, reference_model):
    reference, model = pair({})
    before = {k: v.clone() for k, v in reference.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in reference.modules()]
    for parameter in model.parameters():
        parameter.zero_()
    assert all(v.equal(before[k]) for k, v in reference.state_dict().items())
    assert hooks == [len(m._forward_hooks) for m in reference.modules()]


@pytest.mark.parametrize(
    "steps",
    [
        {},
        dict(center_unembed=False),
        dict(fold_ln=False),
        dict(fold_ln=False, center_writing_weights=False, center_unembed=False),
        dict(fold_ln=False, center_unembed=False, fold_value_biases=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", ["plain", "everything"])
@torch.no_grad()
def test_processing_keeps_what_the_model_predicts(pair, steps, variant):
    _, model = pair(ODD[variant])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tokens = random_tokens(model, 2, 9)
    processed = model.processed(**steps)
    a, b = processed(tokens), model(tokens)
    difference = a.log_softmax(-1) - b.log_softmax(-1)
    assert difference.abs().max() <= 1e-9
    if steps.get("center_unembed", True):
        assert a.mean(-1).abs().max() <= 1e-9
    else:
        assert (a - b).abs().max() <= 1e-9
    if steps.get("fold_ln", True):
        for weights in (processed.W_Q, processed.W_in):
            assert weights.mean(-2).abs().max() <= 1e-12
        assert processed.blocks[0].ln1.w.equal(torch.ones(48, dtype=torch.float64))
    if steps.get("center_writing_weights", True):
        for written in (processed.W_E, processed.W_pos, processed.W_O, processed.W_out):
            assert written.mean(-1).abs().max() <= 1e-12
    if steps.get("fold_value_biases", True):
        assert processed.b_V.abs().max() == 0
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())


@torch.no_grad()
def test_weights_are_views_in_both_layouts(pair):
    reference, model = pair(dict(tie_word_embeddings=False))
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    stacked = "W_E W_pos W_U W_Q W_K W_V W_O b_Q b_K b_V b_O W_in b_in W_out b_out".split()
    for name in stacked:
        assert getattr(model, name).untyped_storage().data_ptr() in held, name
    for layer, theirs in enumerate(reference.transformer.h):
        attn, mlp = model.blocks[layer].attn, model.blocks[layer].mlp
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            assert getattr(attn, name).equal(getattr(model, name)[layer])
            assert getattr(attn, name).untyped_storage().data_ptr() in held
        q, k, v = theirs.attn.c_attn.weight.split(48, dim=1)
        for got, want in ((attn.W_Q, q), (attn.W_K, k), (attn.W_V, v)):
            for head in range(4):
                assert got[head].equal(want[:, 12 * head : 12 * head + 12])
        assert attn.W_O.reshape(48, 48).equal(theirs.attn.c_proj.weight)
        assert mlp.W_in.equal(theirs.mlp.c_fc.weight) and mlp.W_out.equal(theirs.mlp.c_proj.weight)
    assert model.W_U.equal(reference.lm_head.weight.T)
    tokens = random_tokens(model, 1, 5)
    before = model(tokens)
    model.W_V[1, 2] = 0
    assert not model(tokens).equal(before)
    with pytest.raises(IndexError, match="layer 3 is out of range: there are 3"):
        model.blocks[3]


def test_trains_as_the_reference_does(pair):
    """Gradients of the loss in all weights, through the stacked layout."""
    reference, model = pair(dict(tie_word_embeddings=False))
    tokens = random_tokens(model, 2, 9)
    reference.requires_grad_(True)
    try:
        reference(tokens, labels=tokens).loss.backward()
        model(tokens, "loss").backward()
        for layer, theirs in enumerate(reference.transformer.h):
            for name, parameter in theirs.named_parameters():
                ours = model.get_parameter(name).grad
                assert ours is not None
                torch.testing.assert_close(ours[layer], parameter.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(model.W_E.grad, reference.transformer.wte.weight.grad)
    finally:
        reference.zero_grad()
        reference.requires_grad_(False)
