"""Generation: what transformers generates, hooks at absolute positions, records, streams."""

import pytest
import torch

from hooks import Ablate, Add, NewTokens, Patch, PromptTokens, Scale, Steps
from interp import HookedGPT2, KeyValueCache

SMALL = dict(
    n_layer=2, n_embd=24, n_head=3, n_positions=40, vocab_size=53, bos_token_id=0, eos_token_id=0
)
VARIANTS = {
    "plain": {},
    "untied, scaled by layer": dict(
        tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, n_layer=3
    ),
    "relu, wide": dict(activation_function="relu", n_inner=80, vocab_size=211),
}


@pytest.fixture
def pair(reference_model):
    """(the reference, ours of the same weights), float64: no ties."""

    def build(config=None, seed=0, device="cpu"):
        reference = reference_model(SMALL | (config or {}), seed=seed, dtype=torch.float64)
        return reference, HookedGPT2.from_pretrained(reference, dtype=torch.float64, device=device)

    return build


def prompts(model, batch=1, length=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.cfg.d_vocab, (batch, length), generator=generator)


def padded(model, lengths, seed=0):
    """Prompts of these lengths, padded on the left, and their mask."""
    tokens = prompts(model, len(lengths), max(lengths), seed)
    mask = torch.ones_like(tokens)
    for row, n in enumerate(lengths):
        mask[row, : max(lengths) - n] = 0
    return tokens * mask, mask


def theirs(reference, tokens, mask=None, **settings):
    mask = torch.ones_like(tokens) if mask is None else mask
    settings = dict(do_sample=False, pad_token_id=0, max_new_tokens=15) | settings
    return reference.generate(tokens, attention_mask=mask, **settings)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_what_transformers_generates(pair, variant, seed):
    reference, model = pair(VARIANTS[variant], seed)
    tokens = prompts(model, 3, 6, seed)
    ours = model.generate(tokens, 15, do_sample=False)
    assert ours.equal(theirs(reference, tokens))
    tokens, mask = padded(model, [2, 6, 1, 5], seed)
    ours = model.generate(tokens, 15, do_sample=False, attention_mask=mask)
    assert ours.equal(theirs(reference, tokens, mask))


def check_new_tokens(ours, sequences, padding):
    """The new tokens are those of transformers, which go on with padding."""
    first = ours.tokens.shape[1] - ours.log_probs.shape[1]
    assert ours.attention_mask[:, first:].equal(~ours.log_probs.isnan())
    for row, want in zip(ours.new_tokens, sequences[:, first:], strict=True):
        n = ours.new_lengths[int((ours.new_tokens == row).all(1).nonzero()[0])]
        assert row[:n].equal(want[:n]) and (want[n:] == padding).all()


BEAMS = {
    "two": dict(num_beams=2),
    "five, three returned": dict(num_beams=5, num_return_sequences=3),
    "short ones": dict(num_beams=4, length_penalty=-1.5, num_return_sequences=4),
    "long ones": dict(num_beams=4, length_penalty=2.0, num_return_sequences=4),
    "early": dict(num_beams=3, early_stopping=True, num_return_sequences=3),
    "penalty": dict(num_beams=3, repetition_penalty=1.7),
}


@pytest.mark.parametrize("beams", BEAMS)
@pytest.mark.parametrize("seed", range(4))
def test_beams_are_those_of_transformers(pair, beams, seed):
    reference, model = pair(VARIANTS[list(VARIANTS)[seed % 3]], seed)
    settings = BEAMS[beams]
    tokens = prompts(model, 3, 6, seed)
    # Tokens that are likely after these prompts end a text, so that beams end early too.
    ends = sorted(set(theirs(reference, tokens)[:, 7:10].flatten().tolist()))[:2]
    answer = theirs(
        reference,
        tokens,
        eos_token_id=ends,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    ours = model.generate(tokens, 15, eos_token_id=ends, return_type="result", **settings)
    check_new_tokens(ours, answer.sequences, ends[0])
    torch.testing.assert_close(ours.scores.float(), answer.sequences_scores, rtol=0, atol=1e-4)
    assert "end_of_text" in ours.stopped
    if beams == "penalty":
        return  # padding is a token there, and is penalised
    tokens, mask = padded(model, [2, 6, 1], seed)
    ours = model.generate(
        tokens, 15, attention_mask=mask, eos_token_id=ends, return_type="result", **settings
    )
    want = theirs(reference, tokens, mask, eos_token_id=ends, **settings)
    check_new_tokens(ours, want, ends[0])
