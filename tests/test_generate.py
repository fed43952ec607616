"""Generation: what transformers generates, why it stops, what is told of it, text as it comes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hooks import Add
from interp import HookedGPT2, HookedGPT2Config, KeyValueCache

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
@pytest.mark.parametrize("seed", range(2))
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
    rows = zip(ours.new_tokens, ours.new_lengths, sequences[:, first:], strict=True)
    for row, n, want in rows:
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
@pytest.mark.parametrize("seed", range(3))
def test_beams_are_those_of_transformers(pair, beams, seed):
    reference, model = pair(VARIANTS[list(VARIANTS)[seed]], seed)
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


@pytest.fixture(scope="module")
def bundled(mini):
    """The bundled model in transformers and here, float64."""
    from transformers import GPT2LMHeadModel

    folder = Path(__file__).parents[1] / "interp" / "mini"
    reference = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    return reference, HookedGPT2.from_pretrained("mini", dtype=torch.float64)


PROMPTS = [
    "When Mary and John went to the store, John gave a",
    "The dog",
    "Once upon a time, there",
]


@pytest.mark.parametrize("beams", [{}, dict(num_beams=3)], ids=["greedy", "beams"])
def test_the_bundled_model_says_what_it_says_in_transformers(bundled, beams):
    reference, model = bundled
    batch = model.tokenize(PROMPTS, padding_side="left")
    ours = model.generate(
        PROMPTS, 20, do_sample=False, return_type="result", stop_at_eos=True, **beams
    )
    want = theirs(
        reference,
        batch.tokens,
        batch.attention_mask.long(),
        max_new_tokens=20,
        eos_token_id=0,
        **beams,
    )
    check_new_tokens(ours, want, 0)
    for row, prompt in enumerate(PROMPTS):  # and each prompt alone says the same
        alone = model.generate(prompt, 20, do_sample=False, return_type="result", **beams)
        n = alone.new_lengths[0]
        assert alone.text[0] == ours.text[row] and n == ours.new_lengths[row]
        torch.testing.assert_close(alone.log_probs[0], ours.log_probs[row, :n], rtol=0, atol=1e-9)
    right = model.tokenize(PROMPTS, padding_side="right")
    again = model.generate(right, 20, do_sample=False, return_type="result", **beams)
    assert again.tokens.equal(ours.tokens) and again.text == ours.text


# ------------------------------------------------------------------ what is told


@pytest.fixture(scope="module")
def tiny():
    cfg = HookedGPT2Config(n_layers=2, d_model=24, n_heads=3, n_ctx=30, d_vocab=53, eos_token_id=0)
    return HookedGPT2.from_config(cfg, seed=1, dtype=torch.float64)


@torch.no_grad()
def test_log_probabilities(tiny):
    """The model's own, and those of the distribution that was drawn from."""
    tokens, mask = padded(tiny, [2, 6, 1])
    result = tiny.generate(
        tokens,
        9,
        attention_mask=mask,
        seed=3,
        temperature=0.7,
        top_k=9,
        repetition_penalty=1.3,
        num_return_sequences=2,
        stop_at_eos=False,
        return_type="result",
    )
    logits = tiny(result.tokens, attention_mask=result.attention_mask)
    for row, n in enumerate(result.prompt_lengths):
        ids = result.tokens[row][result.attention_mask[row]]
        for step in range(9):
            column = result.tokens.shape[1] - 9 + step
            token, at = ids[n + step], logits[row, column - 1]
            assert token == result.new_tokens[row, step]
            assert result.log_probs[row, step].item() == pytest.approx(
                at.log_softmax(-1)[token].item(), abs=1e-9
            )
            seen = torch.bincount(ids[: n + step], minlength=53) > 0
            at = torch.where(seen, torch.where(at > 0, at / 1.3, at * 1.3), at) / 0.7
            at = at.masked_fill(at < at.topk(9).values[-1], -torch.inf)
            assert result.filtered_log_probs[row, step].item() == pytest.approx(
                at.log_softmax(-1)[token].item(), abs=1e-9
            )


@torch.no_grad()
def test_draws_from_the_model_follow_its_distribution(tiny):
    tokens = prompts(tiny, 1, 4)
    n = 4000
    drawn = tiny.generate(tokens, 1, num_return_sequences=n, seed=0, top_k=5, stop_at_eos=False)[
        :, -1
    ]
    logits = tiny(tokens)[0, -1]
    top = logits.topk(5)
    expected = top.values.softmax(-1) * n
    counts = torch.stack([(drawn == token).sum() for token in top.indices])
    assert counts.sum() == n
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5  # 4 degrees, one in a thousand


def test_a_seed_repeats_the_draws_and_touches_no_others(tiny):
    tokens = prompts(tiny, 2, 4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = (tiny.generate(tokens, 9, seed=11, return_type="result") for _ in range(2))
    assert one.tokens.equal(two.tokens) and one.seed == 11
    free = tiny.generate(tokens, 9, return_type="result")
    assert tiny.generate(tokens, 9, seed=free.seed).equal(free.tokens)
    assert not tiny.generate(tokens, 9, seed=12).equal(one.tokens)
    assert len({tiny.generate(tokens, 9, return_type="result").seed for _ in range(4)}) == 4
    assert torch.get_rng_state().equal(state)
    greedy = tiny.generate(tokens, 9, temperature=0, seed=1, return_type="result")
    assert greedy.seed is None
    assert greedy.tokens.equal(tiny.generate(tokens, 9, do_sample=False))


def test_without_a_cache_it_is_the_same(tiny):
    tokens, mask = padded(tiny, [2, 6, 1])
    for settings in (dict(seed=0), dict(num_beams=3), dict(seed=1, num_return_sequences=2)):
        settings |= dict(attention_mask=mask, return_type="result", stop_at_eos=False)
        cached = tiny.generate(tokens, 9, **settings)
        again = tiny.generate(tokens, 9, use_past_kv_cache=False, **settings)
        assert again.tokens.equal(cached.tokens)
        torch.testing.assert_close(again.log_probs, cached.log_probs, rtol=0, atol=1e-9)


def test_bfloat16(mini):
    """Probabilities are made in float32 whatever the weights are."""
    model = HookedGPT2.from_pretrained("mini", dtype="bfloat16")
    for settings in (dict(seed=0, top_p=0.9), dict(num_beams=2)):
        result = model.generate(PROMPTS, 8, return_type="result", **settings)
        assert result.log_probs.dtype == torch.float32
        assert result.log_probs[~result.log_probs.isnan()].isfinite().all()


def test_a_bar(mini, capsys):
    plain = mini.generate(PROMPTS[0], 4, seed=0)
    assert mini.generate(PROMPTS[0], 4, seed=0, verbose=True) == plain
    assert capsys.readouterr().out == ""


def test_rows_of_one_prompt_stand_together(mini):
    result = mini.generate(PROMPTS[:2], 6, num_return_sequences=3, seed=0, return_type="result")
    assert result.prompt == (0, 0, 0, 1, 1, 1) and len(result) == 6
    assert all(
        text.startswith(PROMPTS[i]) for i, text in zip(result.prompt, result.text, strict=True)
    )
    assert len(set(result.text[:3])) > 1
    assert result.prepend_bos is True and result.str_tokens[0][0] == "<|endoftext|>"


def test_table_and_repr(mini):
    result = mini.generate(PROMPTS, 8, seed=0, return_type="result", stop_strings=["."])
    frame = result.to_frame()
    assert list(frame.columns) == [
        "row", "prompt", "step", "pos", "token", "str_token", "log_prob", "filtered_log_prob",
    ]  # fmt: skip
    assert len(frame) == sum(result.new_lengths)
    for row, part in frame.groupby("row"):
        assert "".join(part.str_token) == result.new_text[row]
        assert list(part.pos) == [result.prompt_lengths[row] + step for step in part.step]
        assert list(part.token) == result.new_tokens[row, : len(part)].tolist()
        known = result.log_probs[row, : len(part)].tolist()
        assert list(part.log_prob) == known
    lines = repr(result).splitlines()
    assert lines[0] == "Generation: 3 of 3 prompts, seed 0"
    assert all(
        repr(text)[1:-1] in line for text, line in zip(result.new_text, lines[1:], strict=True)
    )
    many = mini.generate(PROMPTS[0], 2, num_return_sequences=11, seed=0, return_type="result")
    assert repr(many).endswith("... and 3 more")


def test_return_types(mini):
    tokens = mini.to_tokens(PROMPTS[0])
    greedy = dict(do_sample=False)
    text = mini.generate(PROMPTS[0], 5, **greedy)
    assert isinstance(text, str) and text.startswith(PROMPTS[0])
    assert mini.generate([PROMPTS[0]], 5, **greedy) == [text]
    ids = mini.generate(tokens, 5, **greedy)
    assert ids.equal(mini.generate(PROMPTS[0], 5, return_type="tokens", **greedy))
    assert ids.shape == (1, tokens.shape[1] + 5) and ids[:, :-5].equal(tokens)
    for kind in ("text", "str"):
        assert mini.generate(tokens, 5, return_type=kind, **greedy) == [f"<|endoftext|>{text}"]
    assert mini.generate(tokens[0], 5, **greedy).equal(ids)
    # What was made without gradients can be used with them.
    weight = torch.ones((), requires_grad=True)
    result = mini.generate(tokens, 5, return_type="result", **greedy)
    (result.log_probs * weight).sum().backward()
    assert weight.grad is not None and not result.tokens.is_inference()


# ------------------------------------------------------------------ where it stops


def test_end_of_text(tiny):
    tokens = prompts(tiny, 4, 5)
    free = tiny.generate(tokens, 12, seed=0, stop_at_eos=False, return_type="result")
    ends = [int(free.new_tokens[0, 3]), int(free.new_tokens[2, 5])]
    result = tiny.generate(tokens, 12, seed=0, eos_token_id=ends, return_type="result")
    for row in range(4):
        there = [i for i, t in enumerate(free.new_tokens[row].tolist()) if t in ends]
        n = there[0] + 1 if there else 12
        assert result.new_lengths[row] == n
        assert result.stopped[row] == ("end_of_text" if there else "max_new_tokens")
    # Drawing does not depend on which rows have ended.
    real = result.attention_mask[:, 5:]
    steps = real.shape[1]
    assert result.new_tokens[real].equal(free.new_tokens[:, :steps][real])
    assert result.log_probs.isnan().equal(~real)


def test_all_rows_ended(mini):
    result = mini.generate(PROMPTS[:2], 60, do_sample=False, return_type="result")
    assert set(result.stopped) == {"end_of_text"}
    assert result.log_probs.shape[1] == max(result.new_lengths) < 60
    assert all("<|endoftext|>" not in text for text in result.text)
    for row, n in enumerate(result.new_lengths):
        assert result.new_tokens[row, n - 1] == mini.tokenizer.eos_token_id


def test_a_stop_string_across_the_borders_of_tokens(mini):
    free = mini.generate(PROMPTS[0], 30, do_sample=False, return_type="result")
    pieces = [mini.to_string([id]) for id in free.new_tokens[0].tolist()]
    # The end of one token and the beginning of the next.
    string = pieces[1][-2:] + pieces[2][:3]
    assert string == "to Ma"
    result = mini.generate(
        PROMPTS[0], 30, do_sample=False, stop_strings=["never", string], return_type="result"
    )
    assert result.stopped == ("stop_string",) and result.stop_strings == (string,)
    assert result.new_text[0] == "".join(pieces[:3]) and result.new_lengths == (3,)
    assert result.text[0] == PROMPTS[0] + result.new_text[0]
    assert repr(string) in repr(result)
    # The prompt is not searched.
    assert mini.generate(PROMPTS[0], 30, do_sample=False, stop_strings="Mary and") == free.text[0]
    beams = mini.generate(PROMPTS[0], 30, num_beams=2, stop_strings=".", return_type="result")
    assert beams.stopped == ("stop_string",) and beams.new_text[0].endswith(".")


def test_rows_stop_on_their_own_strings(mini):
    result = mini.generate(
        PROMPTS, 25, seed=2, stop_strings=[" a", "."], return_type="result", stop_at_eos=False
    )
    for row, string in enumerate(result.stop_strings):
        text = result.new_text[row]
        ended = [s for s in (" a", ".") if s in text]
        assert (string in ended) if ended else string is None
        if string is not None:
            before = mini.to_string(result.new_tokens[row, : result.new_lengths[row] - 1])
            assert " a" not in before and "." not in before


# ------------------------------------------------------------------ as it comes


@pytest.mark.parametrize("rows", [1, 3])
def test_a_stream_gives_what_generate_gives(mini, rows):
    given = PROMPTS[0] if rows == 1 else PROMPTS
    settings = dict(seed=4, temperature=1.3)
    whole = mini.generate(given, 20, return_type="result", **settings)
    stream = mini.generate_stream(given, 20, **settings)
    pieces = list(stream)
    if rows == 1:
        assert all(isinstance(piece, str) and piece for piece in pieces)
        assert "".join(pieces) == whole.new_text[0]
    else:
        assert ["".join(row) for row in zip(*pieces, strict=True)] == list(whole.new_text)
    assert stream.result.tokens.equal(whole.tokens) and stream.result.text == whole.text
    steps = list(mini.generate_stream(given, 20, return_type="result", **settings))
    assert [step.step for step in steps] == list(range(len(steps)))
    assert torch.stack([step.log_probs for step in steps], 1).equal(whole.log_probs) or rows > 1
    assert steps[-1].stopped == whole.stopped
    ids = list(mini.generate_stream(given, 20, return_type="tokens", **settings))
    assert torch.stack(ids, 1).equal(whole.new_tokens)


def test_a_stream_left_early(mini):
    stream = mini.generate_stream(PROMPTS[0], 20, do_sample=False, return_type="result")
    with pytest.raises(ValueError, match="no token has come yet"):
        _ = stream.result
    first = [next(stream) for _ in range(3)]
    result = stream.result
    assert result.stopped == (None,) and result.new_lengths == (3,)
    assert "going on" in repr(result)
    assert result.new_text[0] == "".join(step.text[0] for step in first)


@pytest.mark.parametrize("text", ["😀🦊 你好", "是猫 – é"])
@torch.no_grad()
def test_characters_of_several_tokens_are_streamed_whole(mini, text):
    """A model made to say them: whatever the tokens, a character comes with its last byte."""
    said = mini.to_tokens(text, prepend_bos=False)[0].tolist()
    assert len(said) > len(text)
    cfg = HookedGPT2Config(n_layers=1, d_model=16, n_heads=1, n_ctx=40, d_vocab=8192)
    model = HookedGPT2.from_config(cfg, tokenizer=mini.tokenizer)
    # With embeddings of equal length, what equals one of them is most like that one.
    model.W_E.div_(model.W_E.norm(dim=1, keepdim=True))

    def say(act, hook):
        act[:, -1] = model.W_E[said[hook.step]]

    hook = ("ln_final.hook_normalized", say)
    stream = model.generate_stream("Say", len(said), do_sample=False, fwd_hooks=[hook])
    pieces = list(stream)
    assert stream.result.new_tokens[0].tolist() == said
    assert "".join(pieces) == text and stream.result.new_text == (text,)
    assert len(pieces) < len(said) and all("\ufffd" not in piece for piece in pieces)
    steps = model.generate_stream(
        "Say", len(said), do_sample=False, fwd_hooks=[hook], return_type="result"
    )
    texts = [step.text[0] for step in steps]
    for n, id in enumerate(said, 1):
        whole = mini.to_string(said[:n]).rstrip("\ufffd")
        assert "".join(texts[:n]) == whole, id


# ------------------------------------------------------------------ what it goes on from


@torch.no_grad()
def test_from_a_key_value_cache(tiny):
    prefix, rest = prompts(tiny, 2, 6)[:, :4], prompts(tiny, 2, 6)[:, 4:]
    past = KeyValueCache.init_cache(tiny.cfg, "cpu", 2, dtype=torch.float64, capacity=7)
    tiny(prefix, past_kv_cache=past)
    settings = dict(do_sample=False, stop_at_eos=False, return_type="result")
    whole = tiny.generate(torch.cat([prefix, rest], 1), 15, **settings)
    for _ in range(2):  # it is left as it is
        result = tiny.generate(rest, 15, past_kv_cache=past, **settings)
        assert result.new_tokens.equal(whole.new_tokens)
        torch.testing.assert_close(result.log_probs, whole.log_probs, rtol=0, atol=1e-9)
        assert past.length == 4 and past.keys.shape[3] == 7


def test_the_whole_context_can_be_filled(tiny):
    tokens = prompts(tiny, 2, 10)
    result = tiny.generate(
        tokens, 20, seed=0, stop_at_eos=False, record="embed", return_type="result"
    )
    assert result.tokens.shape == (2, 30) and result.record["embed"].shape == (2, 30, 24)
    with pytest.raises(
        ValueError, match=r"10 tokens and max_new_tokens=21.*n_ctx = 30: at most 20"
    ):
        tiny.generate(tokens, 21)
    tokens, mask = padded(tiny, [3, 10])
    with pytest.raises(ValueError, match="longest prompt has 10 tokens"):
        tiny.generate(tokens, 21, attention_mask=mask)


WRONG = {
    "no tokens to come": (dict(max_new_tokens=0), ValueError, "max_new_tokens"),
    "half a token": (dict(max_new_tokens=1.5), TypeError, "max_new_tokens"),
    "unknown": (dict(temprature=1), TypeError, "unknown keyword 'temprature'.*'temperature'"),
    "padding": (dict(padding_side="right"), TypeError, "always padded on the left"),
    "max_length": (dict(max_length=9), TypeError, "max_new_tokens"),
    "kind": (dict(return_type="embeds"), ValueError, "return_type is 'input'"),
    "kind of text": (dict(return_type="text"), ValueError, "needs a tokenizer"),
    "beams": (dict(num_beams=0), ValueError, "num_beams"),
    "too many beams": (dict(num_beams=54), ValueError, "more than d_vocab = 53"),
    "more than beams": (dict(num_beams=2, num_return_sequences=3), ValueError, "more than num_b"),
    "beams drawn": (dict(num_beams=2, do_sample=True), ValueError, "draws nothing"),
    "beams and top_k": (dict(num_beams=2, top_k=4), ValueError, "top_k.*nothing is drawn"),
    "length penalty": (dict(length_penalty=2.0), ValueError, "num_beams above 1"),
    "the same twice": (dict(do_sample=False, num_return_sequences=2), ValueError, "the same"),
    "end and not": (dict(stop_at_eos=False, eos_token_id=3), ValueError, "stop_at_eos=False"),
    "end of no token": (dict(eos_token_id=53), IndexError, "eos_token_id 53.*0 to 52"),
    "end of text": (dict(eos_token_id="x"), TypeError, "eos_token_id"),
    "stop strings": (dict(stop_strings="x"), ValueError, "no tokenizer"),
    "seed": (dict(seed="x"), TypeError, "seed"),
    "penalty and cache": (
        dict(repetition_penalty=2.0, past_kv_cache=True),
        ValueError,
        "past_kv_cache does not know",
    ),
    "record and cache": (dict(record="embed", past_kv_cache=True), ValueError, "has gone by"),
    "cache and none": (dict(use_past_kv_cache=False, past_kv_cache=True), ValueError, "=False"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused_before_anything_runs(tiny, wrong):
    arguments, error, told = WRONG[wrong]
    arguments = dict(arguments)
    if arguments.get("past_kv_cache"):
        past = KeyValueCache.init_cache(tiny.cfg, "cpu", dtype=torch.float64)
        tiny(prompts(tiny), past_kv_cache=past)
        arguments["past_kv_cache"] = past

    def never(act, hook):
        raise AssertionError("the model ran")

    with tiny.hooks(fwd_hooks=[("embed", never)]):
        with pytest.raises(error, match=told):
            tiny.generate(prompts(tiny), **arguments)
        if wrong not in ("beams drawn", "too many beams", "more than beams", "beams and top_k"):
            with pytest.raises(error, match=told):
                tiny.generate_stream(prompts(tiny), **arguments)
    with pytest.raises(ValueError, match="a stream no"):
        tiny.generate_stream(prompts(tiny), num_beams=2)


@pytest.mark.usefixtures("unchecked")
def test_wrong_text_is_refused(mini):
    with pytest.raises(TypeError, match="stop_strings is a text or several, not 5"):
        mini.generate("a", stop_strings=5)
    with pytest.raises(ValueError, match="stop_strings is empty"):
        mini.generate("a", stop_strings=[])
    with pytest.raises(ValueError, match="empty stop string"):
        mini.generate("a", stop_strings=["x", ""])
    with pytest.raises(ValueError, match="empty"):
        mini.generate("")


@pytest.mark.cuda
def test_on_a_gpu_it_says_the_same(mini):
    there = HookedGPT2.from_pretrained("mini", device="cuda", dtype=torch.float64)
    here = HookedGPT2.from_pretrained("mini", dtype=torch.float64)
    for settings in (dict(do_sample=False), dict(seed=0, top_p=0.9), dict(num_beams=3)):
        settings |= dict(return_type="result")
        ours, want = (m.generate(PROMPTS, 20, **settings) for m in (there, here))
        assert ours.text == want.text and ours.tokens.device.type == "cuda"
        torch.testing.assert_close(ours.log_probs.cpu(), want.log_probs, equal_nan=True)


# ------------------------------------------------------------------ numbers that are none


@pytest.mark.parametrize("settings", [{"seed": 0}, {"do_sample": False}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_told_before_a_draw(mini, settings, value):
    edit = Add(("resid_post", 1), value=torch.full((mini.cfg.d_model,), value))
    with pytest.raises(ValueError, match="the logits that predict new token 0 are not finite"):
        mini.generate("Once", 3, edits=edit, **settings)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": 1e-300}, ValueError, "temperature is a number: 0 .* at least 1e-6"),
        ({"temperature": 10**400}, ValueError, "temperature is a number"),
        ({"seed": 2**64}, ValueError, "seed is from"),
        ({"num_beams": 2, "length_penalty": float("nan")}, ValueError, "length_penalty is from"),
        ({"num_beams": 2, "length_penalty": 1e308}, ValueError, "length_penalty is from"),
        ({"past_kv_cache": 3}, TypeError, "past_kv_cache is a KeyValueCache, not 3"),
        ({"max_new_token": 3}, TypeError, "did you mean 'max_new_tokens'"),
        ({"input_ids": 3}, TypeError, "It is input"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_honoured(mini, settings, error, message):
    with pytest.raises(error, match=f"(?i){message}"):
        mini.generate("Once", **settings)
    if "max_new_token" not in settings and "num_beams" not in settings:
        with pytest.raises(error, match=f"(?i){message}"):
            mini.generate_stream("Once", 3, **settings)


@pytest.mark.usefixtures("unchecked")
def test_a_stream_takes_no_verbose(mini):
    with pytest.raises(TypeError, match=r"unknown keyword 'verbose'.*generate_stream takes"):
        mini.generate_stream("Once", 3, verbose=True)
    for wrong in (None, 3):
        with pytest.raises(TypeError, match="input is text, several texts"):
            mini.generate(wrong)


def test_a_hook_has_positions_only_while_a_pass_runs(mini):
    kept = []
    mini.generate(
        "Once", 2, seed=0, fwd_hooks=[("hook_embed", lambda value, hook: kept.append(hook))]
    )
    with pytest.raises(RuntimeError, match="only while a pass is running"):
        _ = kept[0].positions


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers(mini):
    settings = {"seed": np.int64(3), "temperature": np.float32(0.5), "top_k": np.int64(4)}
    plain = {"seed": 3, "temperature": 0.5, "top_k": 4}
    assert mini.generate("Once", np.int64(3), **settings) == mini.generate("Once", 3, **plain)
