"""The bundled model: its files are whole, it loads everywhere, and it does what its card says.

The figures are measured again here on fewer examples, and asserted with a margin below what the
card shows, so that a file that was damaged or exchanged cannot land.
"""

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from analyses.tasks import generate, get_task
from analyses.tasks.evaluate import evaluate
from training.card import ROWS, render
from training.loss import weighted_loss
from training.measure import head_scores, validation
from training.mixture import Mixture, Rows, TaskDocuments
from training.more_templates import MORE_TEMPLATES
from training.muon import orthogonalise
from training.ngram import KneserNey

FOLDER = Path(__file__).parents[1] / "interp" / "mini"
CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
TEXTS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The war lasted from the year 1732 to the year 1745, or 365 days; 12,345 men.",
    "  two spaces, don't we'll\ttab\n\n\nthree lines \n",
    "naïve café 日本語 🙂 e\u0301 \u200b",
    "one<|endoftext|>two <|endoftext|>",
    "\n",
]
# Original English sentences, in the manner of what the model was trained on.
PASSAGE = (
    "Tom went to the kitchen and opened the door. There was a little dog under the table. "
    '"What are you doing here?" asked Tom. The dog looked at him and did not move. '
    "He gave it a piece of bread, and they were friends from that day."
)


@pytest.fixture(scope="module")
def figures():
    return json.loads((FOLDER / "figures.json").read_text("utf-8"))


def test_the_folder_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "CREDITS.md",
        "figures.json",
        "curve.csv",
    } <= files.keys()
    assert sum(files.values()) <= 15 * 2**20


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_and_tokenizers_read_the_same_tokenizer(mini, text):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    ours = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(FOLDER)
    ids = ours.encode(text, add_special_tokens=False).ids
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert theirs(text)["input_ids"] == ids
    assert ours.decode(ids, skip_special_tokens=False) == text
    assert theirs.decode(ids) == text
    assert mini.to_tokens(text, prepend_bos=True)[0].tolist() == [theirs.bos_token_id, *ids]


def test_special_tokens_and_year_halves():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.tokenize(" 1732") == ["Ġ17", "32"]
    assert len(tokenizer) == 8192


def test_no_word_of_the_tasks_is_dropped(mini):
    from analyses.tasks.words import all_words

    split = [word for word in all_words() if mini.to_tokens(word, prepend_bos=False).shape[1] != 1]
    assert split == []


def test_logits_are_those_of_transformers(mini):
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokens = torch.randint(0, mini.cfg.d_vocab, (2, mini.cfg.n_ctx))
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits
        assert (mini(tokens) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("task", "split", "metric"),
    sorted({(*row.split("/"), metric) for row, metric, _ in ROWS.values()}),
)
def test_tasks_are_done_as_well_as_the_card_says(mini, figures, task, split, metric):
    said = figures["tasks"][f"{task}/{split}"][metric][0]
    n = 20 if task == "induction" else 150
    data = generate(task, mini.tokenizer, n, seed=11, split=split)
    found = evaluate(mini, data, progress=False).scores[metric]
    # About three standard errors at this n, and a tenth for what is measured in nats.
    margin = 0.12 if metric != "logit_diff" else 0.25 * abs(said) + 0.1
    assert abs(found.value - said) <= margin


def test_heads_are_those_of_the_card(mini, figures):
    with torch.no_grad():
        found = head_scores(mini, generate("induction", mini.tokenizer, 20, seed=11))
    for kind, said in figures["heads"].items():
        assert found[kind]["head"] == said["head"]
        assert found[kind]["score"] == pytest.approx(said["score"], abs=0.1)


def test_plain_english_is_expected_more_than_shuffled_english(mini, figures):
    tokens = mini.to_tokens(PASSAGE)
    shuffled = tokens.clone()
    shuffled[0, 1:] = tokens[0, 1:][torch.randperm(tokens.shape[1] - 1)]
    with torch.no_grad():
        plain = float(mini(tokens, return_type="loss"))
        mixed = float(mini(shuffled, return_type="loss"))
    assert plain <= figures["validation"]["nats_per_token"] + 0.3
    assert mixed >= plain + 1.5


def test_the_card_is_rendered_from_the_figures(figures):
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == render(figures, config)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not there")
def test_validation_loss_is_near_the_cards(mini, figures):
    from training.corpus import documents, encode

    texts = documents(CORPUS, "val")[::12]
    tokens = torch.from_numpy(encode(mini.tokenizer.backend, texts, "val").astype(np.int32))[:8000]
    with torch.no_grad():
        total, count = validation(mini, tokens)
    assert total / count == pytest.approx(figures["validation"]["nats_per_token"], abs=0.4)


def test_validation_scores_every_token_once(mini):
    tokens = torch.randint(0, mini.cfg.d_vocab, (mini.cfg.n_ctx + 1 + 3 * 128,))
    with torch.no_grad():
        total, count = validation(mini, tokens)
        first = mini(tokens[None, : mini.cfg.n_ctx + 1][:, :-1])[0]
        last = mini(tokens[None, -mini.cfg.n_ctx - 1 : -1])[0, -128:]
    assert count == len(tokens) - 1
    expected = torch.nn.functional.cross_entropy(first, tokens[1 : mini.cfg.n_ctx + 1])
    windows, _ = validation(mini, tokens[: mini.cfg.n_ctx + 1])
    assert windows / mini.cfg.n_ctx == pytest.approx(float(expected), rel=1e-5)
    with torch.no_grad():
        shorter, _ = validation(mini, tokens[:-128])
    tail = torch.nn.functional.cross_entropy(last, tokens[-128:], reduction="sum")
    assert total - shorter == pytest.approx(float(tail), rel=1e-4)


def test_ngram_probabilities_sum_to_one():
    rng = np.random.default_rng(0)
    model = KneserNey(rng.integers(0, 7, 500), 7, order=3)
    for context in ([0, 1], [3, 3], [6, 2]):
        rows = [model.log_probs(np.array([*context, token])) for token in range(7)]
        assert np.exp(np.concatenate(rows)).sum() == pytest.approx(1.0)


def test_ngram_learns_a_cycle():
    text = np.tile(np.arange(5), 100)
    model = KneserNey(text, 5, order=3)
    assert model.log_probs(text[:50]).mean() > np.log(0.9)
    with pytest.raises(ValueError, match="order must be 1 to"):
        KneserNey(text, 8192, order=5)


# ------------------------------------------------------------------ how it is trained


def _rows(seed=0):
    rng = np.random.default_rng(7)
    documents = [np.array([0, *rng.integers(5, 50, 9)]) for _ in range(20)]
    packed = TaskDocuments(
        np.concatenate(documents),
        np.tile(np.array([1.0] * 9 + [4.0]), 20),
        np.arange(0, 201, 10),
    )
    text = {name: rng.integers(1, 50, 5000).astype(np.uint16) for name in ("modern", "books")}
    return Rows(
        text, packed, packed, end_of_text=0, newline_ids=[1, 2], d_vocab=50, n_ctx=64, seed=seed
    )


def test_a_step_always_gets_the_same_rows():
    mixture = Mixture()
    tokens, weights = _rows().batch(12, mixture)
    again, weights_again = _rows().batch(12, mixture)
    assert tokens.shape == weights.shape == (mixture.n_rows, 65)
    assert (tokens == again).all() and (weights == weights_again).all()
    assert (tokens != _rows().batch(13, mixture)[0]).any()
    assert (tokens != _rows(seed=1).batch(12, mixture)[0]).any()


def test_only_later_copies_of_a_repeated_sequence_are_predicted():
    only_repeats = Mixture(modern=0, books=0, tasks=0, repeats=20)
    tokens, weights = _rows().batch(0, only_repeats)
    for row, weight in zip(tokens, weights, strict=True):
        starts = [*np.flatnonzero(row == 0), len(row)]
        for start, end in pairwise(starts):
            for at in range(start, end):
                if weight[at]:
                    # Predictable: this token and the one before stood side by side already.
                    earlier = row[start:at]
                    seen = (earlier[1:] == row[at]) & (earlier[:-1] == row[at - 1])
                    assert seen.any()
    assert 0.2 < weights.mean() < 0.9


def test_chunked_loss_is_cross_entropy():
    residual = torch.randn(3, 400, 8, requires_grad=True)
    unembed = torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(0, 30, (3, 400))
    weights = torch.rand(3, 400) * (torch.rand(3, 400) < 0.7)
    ours = weighted_loss(residual, unembed, targets, weights)
    logits = (residual @ unembed.T).flatten(0, 1)
    each = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
    expected = (each * weights.flatten()).sum()
    torch.testing.assert_close(ours, expected)
    found = torch.autograd.grad(ours, (residual, unembed))
    wanted = torch.autograd.grad(expected, (residual, unembed))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_muons_update_is_nearly_orthogonal():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 16, 40)))
    assert values.min() > 0.5
    assert values.max() < 1.5


@pytest.mark.parametrize("task", sorted(MORE_TEMPLATES))
def test_templates_made_for_training_are_not_held_out(task):
    rng = Random(0)
    made = {MORE_TEMPLATES[task](rng) for _ in range(5000)}
    assert len(made) > 300
    for template in get_task(task).templates["held_out"]:
        assert template.text not in made
