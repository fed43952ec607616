"""The tasks: examples that are what they say, held-out parts that are held out, honest scores."""

import io
import json
import math
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from analyses import cli
from analyses.tasks import TASKS, generate, texts, words
from analyses.tasks.__main__ import main, show
from analyses.tasks.data import TaskData
from analyses.tasks.evaluate import Estimate, bootstrap, evaluate, wilson
from interp import HookedGPT2
from interp.tokenizer import Tokenizer as InterpTokenizer

END = "<|endoftext|>"
SPLITS = [(name, split) for name, task in TASKS.items() for split in task.templates]
WORDED = [name for name in TASKS if name != "induction"]


def bpe(entries: tuple[str, ...], bos: bool = True) -> Tokenizer:
    """A byte-level BPE whose only tokens of several bytes are these strings and their prefixes."""
    space = "\u0120"
    vocab = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    # Strings with a space first: their merges start at the space, so they match from the left;
    # digits without one come last, and so only join what a century left over.
    for entry in sorted(entries, key=lambda entry: not entry.startswith(" ")):
        symbols = entry.replace(" ", space)
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in vocab:
                vocab.append(symbols[:end])
                merges.append((symbols[: end - 1], symbols[end - 1]))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.add_special_tokens([END])
    return tokenizer


@cache
def full() -> Tokenizer:
    return bpe(words.all_words())


def make(name: str, n: int = 12, seed: int = 0, split: str = "held_out", **options) -> TaskData:
    return generate(name, full(), n, seed=seed, split=split, **options)


def real(data: TaskData, tokens: Tensor, example: int) -> list[int]:
    return tokens[example, : data.lengths[example]].tolist()


def strings(ids: Tensor) -> list[str]:
    return [full().decode([token]) for token in ids.tolist() if token >= 0]


# ------------------------------------------------------------------ the words


def test_all_words_are_listed_once_and_are_single_tokens():
    listed = words.all_words()
    assert len(listed) == len(set(listed))
    assert all(len(full().encode(word).ids) == 1 for word in listed)


def test_the_lists_are_as_large_as_promised():
    assert len(words.NAMES_TRAIN) >= 60 and len(words.NAMES_HELD_OUT) >= 20
    assert 40 <= len(words.CAPITALS_TRAIN + words.CAPITALS_HELD_OUT) <= 60
    assert len(make("ioi", 200, split="train").templates) == 200
    assert len({t.name.split("/")[0] for t in TASKS["ioi"].templates["train"]}) >= 15
    for name in WORDED:
        assert len({t.text for part in TASKS[name].templates.values() for t in part}) >= 6


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (words.NAMES_TRAIN, words.NAMES_HELD_OUT),
        (words.EVENTS_TRAIN, words.EVENTS_HELD_OUT),
        (sum(words.NOUNS_TRAIN, ()), sum(words.NOUNS_HELD_OUT, ())),
        (sum(words.CAPITALS_TRAIN, ()), sum(words.CAPITALS_HELD_OUT, ())),
        (words.MALE_NAMES_TRAIN + words.MALE_NAMES_HELD_OUT,
         words.FEMALE_NAMES_TRAIN + words.FEMALE_NAMES_HELD_OUT),
    ],
)  # fmt: skip
def test_word_lists_are_disjoint_and_without_repeats(train, held_out):
    assert len(set(train + held_out)) == len(train) + len(held_out)


def test_words_and_texts_do_not_import_torch():
    code = (
        "import sys; from analyses.tasks import words, texts; texts('ioi', 2, seed=0);"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
    )


# ------------------------------------------------------------------ held out


@pytest.mark.parametrize("name", WORDED)
def test_held_out_templates_are_other_sentences(name):
    def bare(split: str) -> set[str]:
        return {re.sub(r"\{\w+\}", "_", t.text) for t in TASKS[name].templates[split]}

    assert not bare("train") & bare("held_out")
    names = [t.name for split in ("train", "held_out") for t in TASKS[name].templates[split]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("ioi", words.NAMES_HELD_OUT),
        ("pronouns", words.NAMES_HELD_OUT),
        ("greater_than", words.EVENTS_HELD_OUT),
        ("agreement", sum(words.NOUNS_HELD_OUT, ())),
        ("capitals", sum(words.CAPITALS_HELD_OUT, ())),
    ],
)
def test_training_texts_hold_no_held_out_word(name, held_out):
    seen = set(re.findall(r"\w+", " ".join(texts(name, 2000, seed=0))))
    assert not seen & set(held_out)
    # ... and the held-out split holds no training word of that kind, and does hold the others.
    split = "held_out_facts" if name == "capitals" else "held_out"
    mine = set(re.findall(r"\w+", " ".join(texts(name, 2000, seed=0, split=split))))
    assert mine >= set(held_out)
    train = {
        word.strip()
        for pool in ("names", "he", "she", "events", "nouns", "facts")
        for entry in TASKS[name].pools("train").get(pool, ())
        for word in entry
    }
    assert not mine & train


def test_capitals_held_out_asks_for_taught_facts_in_other_words():
    data = make("capitals", 100)
    taught = dict(words.CAPITALS_TRAIN)
    for prompt, answer in zip(data.clean_prompts, data.answers, strict=True):
        country = next(word for word in re.findall(r"\w+", prompt) if word in taught)
        assert strings(answer) == [f" {taught[country]}"]


# ------------------------------------------------------------------ examples


@pytest.mark.parametrize(("name", "split"), SPLITS)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), bos=st.booleans())
def test_clean_and_corrupted_align(name, split, seed, bos):
    data = make(name, 8, seed, split, prepend_bos=bos)
    vocabulary = {
        text for pool in TASKS[name].pools(split).values() for entry in pool for text in entry
    }
    for i in range(len(data)):
        clean, corrupted = real(data, data.clean_tokens, i), real(data, data.corrupted_tokens, i)
        assert len(clean) == len(corrupted) == len(data.labels[i]) == len(data.str_tokens[i])
        assert clean != corrupted
        assert (full().token_to_id(END) == clean[0]) == bos
        if name == "induction":
            continue
        prefix = END if bos else ""
        assert full().decode(clean, skip_special_tokens=False) == prefix + data.clean_prompts[i]
        assert full().encode(data.corrupted_prompts[i]).ids == corrupted[bos:]
        assert data.positions["END"][i] == len(clean) - 1
        named = {label for part in data.labels[i] for label in part.split("/") if label}
        assert named == set(data.positions) | ({"bos"} if bos else set())
        for label, where in data.positions.items():
            assert label in data.labels[i][where[i]].split("/")
            if label not in ("END", "S1+1"):
                assert data.str_tokens[i][where[i]] in vocabulary
        differing = {p for p in range(len(clean)) if clean[p] != corrupted[p]}
        assert differing <= {int(where[i]) for where in data.positions.values()}


@pytest.mark.parametrize(("name", "split"), SPLITS)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_answers_are_never_wrong(name, split, seed):
    data = make(name, 8, seed, split)
    for answers, wrong in zip(data.answers.tolist(), data.wrong.tolist(), strict=True):
        right = [token for token in answers if token >= 0]
        other = [token for token in wrong if token >= 0]
        assert right and other and not set(right) & set(other)
        assert len(right) == len(set(right))


@given(seed=st.integers(0, 10**6), corruption=st.sampled_from(TASKS["ioi"].corruptions))
def test_ioi_names(seed, corruption):
    data = make("ioi", 24, seed, corruption=corruption)
    rows = torch.arange(len(data))
    io, s1, s2 = (data.clean_tokens[rows, data.positions[p]] for p in ("IO", "S1", "S2"))
    other = [data.corrupted_tokens[rows, data.positions[p]] for p in ("IO", "S1", "S2")]
    assert torch.equal(s1, s2) and not (io == s1).any()
    assert torch.equal(data.answers, io[:, None]) and torch.equal(data.wrong, s1[:, None])
    assert torch.equal(data.positions["S1+1"], data.positions["S1"] + 1)
    for i, template in enumerate(data.templates):
        assert (data.positions["IO"][i] < data.positions["S1"][i]) == template.endswith("/ABBA")
        names = {int(name[i]) for name in (io, s1, *other)}
        assert len(names) == (5 if corruption == "abc" else 2)
    if corruption == "flip":
        assert torch.equal(other[0], io) and torch.equal(other[1], s1) and torch.equal(other[2], io)
    assert len(set(data.templates)) == 12  # each template once before any twice


@given(seed=st.integers(0, 10**6), length=st.integers(2, 40))
def test_induction(seed, length):
    data = make("induction", 4, seed, length=length)
    first, second = data.clean_tokens[:, 1 : length + 1], data.clean_tokens[:, length + 1 :]
    assert torch.equal(first, second)
    assert torch.equal(data.corrupted_tokens[:, length + 1 :], second)
    assert not (data.corrupted_tokens[:, 1 : length + 1] == first).any()
    assert (data.clean_tokens[:, 1:] != full().token_to_id(END)).all()
    assert all(len(set(row.tolist())) == length for row in first)
    assert data.per_position and data.answers.shape == (4, length - 1)
    read = data.clean_tokens.gather(1, data.read_positions + 1)
    assert torch.equal(read, data.answers)
    for i in range(4):
        assert data.labels[i] == ("bos",) + ("first copy",) * length + ("second copy",) * length
        assert data.read_positions[i, 0] == data.positions["SECOND"][i] == length + 1
        assert data.read_positions[i, -1] == data.positions["END"][i]


@given(seed=st.integers(0, 10**6))
def test_greater_than_answers_are_exactly_the_later_years(seed):
    data = make("greater_than", 8, seed)
    for i in range(len(data)):
        start = int(data.str_tokens[i][data.positions["YY"][i]])
        assert [int(half) for half in strings(data.answers[i])] == list(range(start + 1, 100))
        assert [int(half) for half in strings(data.wrong[i])] == list(range(start + 1))
        assert strings(data.corrupted_tokens[i, data.positions["YY"][i], None]) == ["01"]
        assert data.str_tokens[i][data.positions["XX1"][i]] == data.str_tokens[i][-1]


@given(seed=st.integers(0, 10**6))
def test_agreement_attractor_has_the_other_number(seed):
    data = make("agreement", 8, seed)
    singular, plural = ({f" {pair[i]}" for pair in words.NOUNS_HELD_OUT} for i in range(2))
    for i in range(len(data)):
        subject, attractor = (
            data.str_tokens[i][data.positions[p][i]] for p in ("SUBJECT", "ATTRACTOR")
        )
        assert (subject in singular) != (attractor in singular)
        verbs = [f" {pair[subject in plural]}" for pair in words.VERBS]
        assert strings(data.answers[i]) == verbs


def test_agreement_texts_also_have_agreeing_nouns():
    plural = {pair[1] for pair in words.NOUNS_TRAIN}
    nouns = plural | {pair[0] for pair in words.NOUNS_TRAIN}
    same = 0
    for text in texts("agreement", 400, seed=0):
        one, two = [word in plural for word in re.findall(r"\w+", text) if word in nouns]
        verb = next(w for w in re.findall(r"\w+", text) if w in sum(words.VERBS, ()))
        assert (verb in ("are", "were", "have")) == one
        same += one == two
    assert 120 < same < 280


def test_pronouns_follow_the_name():
    data = make("pronouns", 60)
    rows = torch.arange(len(data))
    for i, name in enumerate(strings(data.clean_tokens[rows, data.positions["SUBJECT"]])):
        he = name.strip() in words.MALE_NAMES_HELD_OUT
        assert strings(data.answers[i])[0] in ((" he", " his") if he else (" she", " her"))


@pytest.mark.parametrize("name", WORDED)
def test_texts_continue_a_prompt_with_its_answer(name):
    for text in texts(name, 200, seed=3, split="train"):
        assert text == text.strip() and text.endswith(".") and "{" not in text and "  " not in text
    assert len(set(texts(name, 200, seed=3))) > 100
    assert texts(name, 20, seed=3) == texts(name, 20, seed=3) != texts(name, 20, seed=4)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_a_seed_makes_the_same_data(name, split):
    one, same, other = (make(name, 20, seed, split) for seed in (7, 7, 8))
    assert torch.equal(one.clean_tokens, same.clean_tokens)
    assert torch.equal(one.corrupted_tokens, same.corrupted_tokens)
    assert torch.equal(one.answers, same.answers) and torch.equal(one.wrong, same.wrong)
    assert one.clean_prompts == same.clean_prompts != other.clean_prompts


def test_groups_are_free_of_padding_and_lose_nothing():
    data = make("ioi", 60)
    parts = data.groups()
    assert len(parts) > 1 and sum(map(len, parts)) == len(data)
    assert not data.attention_mask.all() and data.attention_mask.sum() == data.lengths.sum()
    assert sorted(p for part in parts for p in part.clean_prompts) == sorted(data.clean_prompts)
    for part in parts:
        assert part.attention_mask.all()
        assert (part.lengths == part.clean_tokens.shape[1]).all()
        for i in range(len(part)):
            assert part.clean_tokens[i].tolist()[1:] == full().encode(part.clean_prompts[i]).ids
            assert part.str_tokens[i][part.positions["IO"][i]] == strings(part.answers[i])[0]
    one = make("ioi", 10, template="sunday/ABBA")
    assert set(one.templates) == {"sunday/ABBA"} and len(one.groups()) == 1


def test_any_kind_of_tokenizer_gives_the_same_data():
    from transformers import PreTrainedTokenizerFast

    others = [
        InterpTokenizer(full()),
        PreTrainedTokenizerFast(tokenizer_object=full(), bos_token=END, eos_token=END),
    ]
    for name in TASKS:
        for tokenizer in others:
            data = generate(name, tokenizer, 5, seed=0)
            assert torch.equal(data.clean_tokens, make(name, 5, split="train").clean_tokens)


# ------------------------------------------------------------------ drops and errors


def test_dropped_words_are_reported_and_not_used():
    less = bpe(tuple(word for word in words.all_words() if word not in (" Mary", " John", " keys")))
    data = generate("ioi", less, 500, seed=0)
    assert data.dropped == {"names": ("John", "Mary")}
    assert "2 names (John, Mary)" in repr(data)
    assert not {"Mary", "John"} & set(re.findall(r"\w+", " ".join(data.clean_prompts)))
    assert generate("agreement", less, 5, seed=0).dropped == {"nouns": ("key keys",)}
    assert not make("ioi").dropped and "left out" not in repr(make("ioi"))


def test_a_year_that_is_one_token_is_dropped():
    # bpe() then also holds " 173", so that every year 173. is cut in the wrong place.
    data = generate("greater_than", bpe((*words.all_words(), " 1732")), 200, seed=0)
    assert data.dropped == {"years": tuple(f"173{digit} 1701" for digit in range(10))}
    assert not any("173" in prompt for prompt in data.clean_prompts)


@pytest.mark.parametrize("name", WORDED)
def test_a_tokenizer_without_any_of_the_words_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: only 0 of the .* are single tokens"):
        generate(name, bpe(()), 5, seed=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("capitls", 5), {}, r"unknown task 'capitls'; did you mean 'capitals'\? \(known: ioi, "),
        (("zzz", 5), {}, r"unknown task 'zzz' \(known"),
        (("ioi", 0), {}, "n must be at least 1, got 0"),
        (("ioi", 5), {"split": "heldout"}, "split of ioi 'heldout'; did you mean 'held_out'"),
        (("ioi", 5), {"split": "held_out_facts"}, "unknown split of ioi"),
        (("ioi", 5), {"corruption": "flp"}, "unknown corruption of ioi 'flp'; did you mean 'flip'"),
        (("ioi", 5), {"template": "before/ABBA"}, "unknown template of ioi in 'train'"),
        (("ioi", 5), {"length": 3}, "length is an option of induction, not of ioi"),
        (("induction", 5), {"length": 1}, "length must be at least 2"),
        (("induction", 5), {"length": 10**4}, "needs 30000 different ordinary tokens"),
        (("induction", 5), {"template": "x"}, "induction has no templates"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(arguments, options, message):
    name, n = arguments
    with pytest.raises(ValueError, match=message):
        generate(name, full(), n, seed=0, **options)


def test_bad_requests_for_texts():
    with pytest.raises(ValueError, match="induction is made of random token ids"):
        texts("induction", 5, seed=0)
    with pytest.raises(ValueError, match="did you mean 'pronouns'"):
        texts("pronoun", 5, seed=0)
    with pytest.raises(ValueError, match="got -1"):
        texts("ioi", -1, seed=0)


def test_bad_tokenizers():
    with pytest.raises(ValueError, match="pass prepend_bos=False"):
        generate("ioi", bpe(words.all_words(), bos=False), 5, seed=0)
    data = generate("ioi", bpe(words.all_words(), bos=False), 5, seed=0, prepend_bos=False)
    assert data.labels[0][0] == ""
    with pytest.raises(TypeError, match="got None"):
        generate("ioi", None, 5, seed=0)
    with pytest.raises(TypeError, match="got str"):
        generate("ioi", "gpt2", 5, seed=0)


def test_select_refuses_examples_that_are_not_there():
    data = make("ioi", 3)
    with pytest.raises(IndexError, match="example 3 is out of range for 3 examples"):
        data.select([0, 3])
    with pytest.raises(ValueError, match="at least one"):
        data.select([])


# ------------------------------------------------------------------ evaluation


def constant(values: dict[int, float]):
    """A model whose logits are these, everywhere, and 0 for the other tokens."""

    def model(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, full().get_vocab_size())
        for token, value in values.items():
            logits[..., token] = value
        return logits

    return model


def test_scores_of_one_prompt_by_hand():
    data = make("ioi", 1)
    answer, wrong = int(data.answers), int(data.wrong)
    result = evaluate(constant({answer: 3.0, wrong: 1.0}), data, progress=False)
    total = math.exp(3) + math.exp(1) + full().get_vocab_size() - 2
    assert result.scores["accuracy"].value == result.scores["top1"].value == 1
    assert result.scores["logit_diff"].value == pytest.approx(2, abs=1e-5)
    expected = (math.exp(3) - math.exp(1)) / total
    assert result.scores["prob_diff"].value == pytest.approx(expected, abs=1e-6)


def test_groups_of_answers_are_summed():
    data = make("greater_than", 1)
    right, wrong = (int((ids >= 0).sum()) for ids in (data.answers, data.wrong))
    result = evaluate(constant({}), data, progress=False)
    assert result.scores["logit_diff"].value == pytest.approx(math.log(right / wrong), abs=1e-5)
    size = full().get_vocab_size()
    assert result.scores["prob_diff"].value == pytest.approx((right - wrong) / size, abs=1e-6)


def copier(tokens: Tensor) -> Tensor:
    """A perfect induction head: predicts what followed the last occurrence of the token."""
    logits = torch.zeros(*tokens.shape, full().get_vocab_size())
    for row, ids in enumerate(tokens.tolist()):
        for pos, token in enumerate(ids):
            before = [p for p in range(pos) if ids[p] == token]
            if before:
                logits[row, pos, ids[before[-1] + 1]] = 10.0
    return logits


def test_induction_accuracy():
    data = make("induction", 6, length=8)
    assert evaluate(copier, data, progress=False).scores["accuracy"].value == 1
    assert evaluate(constant({}), data, progress=False).scores["accuracy"].value < 0.5
    swapped = data.answers.clone()
    swapped[:, 0] = data.wrong[:, 0]
    spoilt = TaskData(**{**vars(data), "answers": swapped})
    score = evaluate(copier, spoilt, progress=False).scores["accuracy"]
    assert score.value == pytest.approx(6 / 7) and score.low < 6 / 7 < score.high


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reference_model) -> Path:
    """A random GPT-2 with the tests' tokenizer, as a folder."""
    path = tmp_path_factory.mktemp("model")
    size = full().get_vocab_size()
    cfg = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128, "vocab_size": size}
    cfg |= {"bos_token_id": size - 1, "eos_token_id": size - 1}
    reference_model(cfg).save_pretrained(path)
    full().save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("name", TASKS)
def test_every_way_to_run_a_model_scores_the_same(name, folder):
    from transformers import GPT2LMHeadModel

    ours, theirs = HookedGPT2.from_pretrained(folder), GPT2LMHeadModel.from_pretrained(folder)
    data = generate(name, ours.tokenizer, 20, seed=0, split="held_out")
    first = evaluate(ours, data, progress=False).per_example
    second = evaluate(lambda tokens: theirs(tokens).logits, data, batch_size=7, progress=False)
    # Pad-free groups must give the padded batch's scores: padding on the right is not seen.
    groups = [evaluate(ours, part, progress=False).per_example for part in data.groups()]
    for metric, values in first.items():
        torch.testing.assert_close(second.per_example[metric], values, atol=1e-4, rtol=1e-4)
        parts = torch.cat([part[metric] for part in groups])
        torch.testing.assert_close(parts.sort().values, values.sort().values, atol=1e-4, rtol=1e-4)


def test_frames(folder):
    result = evaluate(HookedGPT2.from_pretrained(folder), make("ioi", 20), progress=False)
    frame, examples = result.to_frame(), result.examples_frame()
    rows = frame[["low", "value", "high"]].to_numpy()
    assert (rows[:, :-1] <= rows[:, 1:]).all()
    assert list(frame["metric"]) == ["accuracy", "top1", "logit_diff", "prob_diff"]
    assert list(examples["prompt"]) == list(result.data.clean_prompts)
    assert examples["logit_diff"].to_numpy().mean() == pytest.approx(
        result.scores["logit_diff"].value
    )
    assert "logit_diff" in repr(result) and "prepend_bos=True" in repr(result)


def test_wilson_known_values():
    eight = wilson(torch.tensor([1.0] * 8 + [0.0] * 2))
    assert (eight.low, eight.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    every = wilson(torch.ones(100))
    assert every.value == every.high == 1 and every.low == pytest.approx(0.9630, abs=1e-4)


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30), st.integers(0, 99))
def test_bootstrap_is_seeded_and_inside_the_data(values, seed):
    tensor = torch.tensor(values)
    one = bootstrap(tensor, seed)
    assert one == bootstrap(tensor, seed)
    assert min(values) - 1e-5 <= one.low <= one.high <= max(values) + 1e-5


def test_bootstrap_interval_has_the_width_of_theory():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    estimate = bootstrap(values, 0)
    assert estimate.high - estimate.low == pytest.approx(
        2 * 1.96 * float(values.std()) / 20, rel=0.1
    )
    assert str(Estimate(0.5, 0.25, 1.0)) == "0.500 [0.250, 1.000]"


def test_one_example_has_no_interval(folder):
    model = HookedGPT2.from_pretrained(folder)
    one = evaluate(model, make("ioi", 1), progress=False).scores
    for metric in ("logit_diff", "prob_diff"):
        assert math.isnan(one[metric].low) and math.isnan(one[metric].high)
        assert str(one[metric]) == f"{one[metric].value:.3f} [no interval]"
    assert one["accuracy"].high - one["accuracy"].low > 0.7  # Wilson's says how little one tells


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_the_table_loses_nothing_at_any_width(folder, width):
    model = HookedGPT2.from_pretrained(folder)
    results = [evaluate(model, make(name, 4), progress=False) for name in TASKS]
    out = io.StringIO()
    show("model", results, Console(file=out, width=width))
    shown = out.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.split("\n\n", 1)[1].splitlines())) <= width
    for result in results:
        assert result.data.task in shown
        for score in result.scores.values():
            assert f"{score.low:.2f}..{score.high:.2f}" in shown


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda tokens: torch.zeros(3), r"must give logits \[batch, pos, d_vocab\]"),
        (lambda tokens: torch.zeros(*tokens.shape, 7), "the model has 7 tokens"),
        (lambda tokens: torch.full((*tokens.shape, 2000), float("nan")), "not finite"),
    ],
)
def test_models_that_cannot_be_scored(model, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, make("ioi", 2), progress=False)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(model, make("ioi", 2), batch_size=0, progress=False)


# ------------------------------------------------------------------ the command


def command(*arguments: str) -> int:
    return cli.status(main, "python -m analyses.tasks", arguments)


def test_command_writes_table_json_and_csv(folder, tmp_path, capsys):
    paths = [str(tmp_path / "out.json"), str(tmp_path / "out.csv")]
    options = ["--n", "6", "--model", str(folder), "--json", paths[0], "--csv", paths[1]]
    assert command("all", *options) == 0
    stdout = capsys.readouterr().out
    assert all(name in stdout for name in TASKS)
    rows = json.loads(Path(paths[0]).read_text())["results"]
    table = pd.read_csv(paths[1])
    assert len(rows) == len(table) == 5 * 4 + 3
    assert set(table["task"]) == set(TASKS) and set(table["split"]) == {"held_out"}


def test_any_model_name_survives_csv(folder, tmp_path):
    odd = tmp_path / 'a\r"b'
    odd.symlink_to(folder)
    path = tmp_path / "out.csv"
    assert command("ioi", "--n", "4", "--model", str(odd), "--csv", str(path)) == 0
    assert set(pd.read_csv(path)["model"]) == {str(odd)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ioy"], "error: unknown task 'ioy'; did you mean 'ioi'?"),
        (["ioi", "--n", "0"], "error: n must be at least 2 to have intervals, got 0"),
        (["ioi", "--n", "1"], "error: n must be at least 2 to have intervals, got 1"),
        (["ioi", "--split", "tran"], "error: unknown split of ioi 'tran'; did you mean 'train'?"),
        (["ioi", "--model", "/no/such/folder"], "error: "),
        (["ioi", "--dtype", "float23"], "error: "),
        (["ioi", "--json", "/no/such/folder/out.json"], "error: "),
    ],
)
def test_command_errors_are_one_line(folder, arguments, message, capsys):
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(folder)]
    assert command(*arguments) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(message) and stderr.count("\n") == 1


def test_the_module_runs(folder):
    command = [sys.executable, "-m", "analyses.tasks", "ioi", "--n", "3", "--model", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0 and "logit_diff" in done.stdout, done.stderr


def test_the_bundled_tokenizer_holds_every_word(mini):
    for name, split in SPLITS:
        assert not generate(name, mini.tokenizer, 5, seed=0, split=split).dropped
