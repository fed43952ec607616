"""Pairs of prompts: their tokens, their answers, what is refused; and the options for them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from analyses.cli import CommandError
from analyses.metrics import prob
from analyses.pair_options import PairRequest
from analyses.pairs import PromptPair
from analyses.tasks import TASKS, generate

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"


def ioi_pair(mini: Any, **options: Any) -> PromptPair:
    return PromptPair.from_text(mini, CLEAN, CORRUPTED, " Mary", " John", **options)


# ------------------------------------------------------------------ from text


def test_a_pair_of_texts(mini: Any) -> None:
    pair = ioi_pair(mini)
    assert torch.equal(pair.clean, mini.to_tokens(CLEAN))
    assert torch.equal(pair.corrupted, mini.to_tokens(CORRUPTED))
    assert pair.answers.tolist() == [[mini.to_single_token(" Mary")]]
    assert pair.str_tokens == (tuple(mini.to_str_tokens(CLEAN)),)
    assert pair.corrupted_str_tokens == (tuple(mini.to_str_tokens(CORRUPTED)),)
    assert pair.prepend_bos is True and len(pair) == 1 and not pair.is_padded
    assert CLEAN in repr(pair)
    bare = ioi_pair(mini, prepend_bos=False)
    assert torch.equal(bare.clean, pair.clean[:, 1:])


def test_several_texts_are_padded_on_the_right(mini: Any) -> None:
    pair = PromptPair.from_text(
        mini, [CLEAN, "John saw"], [CORRUPTED, "Mary saw"], [[" Mary", " Anna"], [" her"]], 7
    )
    n = pair.lengths.tolist()
    assert pair.clean.shape == (2, n[0])
    assert pair.attention_mask.sum(1).tolist() == n
    assert bool(pair.attention_mask[1, : n[1]].all())
    assert pair.answers[1].tolist() == [mini.to_single_token(" her"), -1]
    assert pair.wrong.tolist() == [[7], [7]]
    assert len(pair.str_tokens[1]) == n[1]


def test_ids_with_a_mask_are_taken_as_they_are(mini: Any) -> None:
    ids = torch.tensor([[9, 9, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    pair = PromptPair.of(mini, ids, ids + 1, attention_mask=mask)
    assert pair.prepend_bos is None and pair.answers is None
    assert pair.lengths.tolist() == [2, 4]
    assert pair.clean[0, :2].tolist() == [5, 6]  # padded on the right now
    with pytest.raises(ValueError, match="no answers"):
        _ = pair.metric


def test_prompts_of_unequal_length_show_both_tokenisations(mini: Any) -> None:
    with pytest.raises(ValueError) as error:
        PromptPair.from_text(mini, "When Mary and John", "When Mary", " Mary", " John")
    text = str(error.value)
    assert "clean has 5 tokens, corrupted 3" in text
    assert "2:·Mary 3:·and 4:·John" in text
    assert "corrupted: 0:<|endoftext|> 1:When 2:·Mary" in text
    with pytest.raises(ValueError, match="of example 1 differ in length"):
        PromptPair.from_text(mini, ["a b", "a b"], ["b a", "b"], " Mary", " John")


@pytest.mark.parametrize(
    ("clean", "corrupted", "answers", "wrong", "message"),
    [
        (["a"], ["a", "b"], 1, 2, "1 clean prompts and 2 corrupted ones"),
        (["a", "b"], ["b", "a"], [1, 2, 3], 4, "answers: there are 3 for 2 examples"),
        ("a", "b", [], 4, "answers is empty"),
        ("a", "b", 10**6, 4, "token 1000000 is out of range"),
        ("a", "b", 5, [3, 5], "is an answer of example 0 and also wrong"),
        ("a", "b", " Mary John", 4, "2 tokens, not one"),
    ],
)
def test_what_does_not_fit_is_refused(
    mini: Any, clean: Any, corrupted: Any, answers: Any, wrong: Any, message: str
) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        PromptPair.from_text(mini, clean, corrupted, answers, wrong)


def test_one_kind_of_answer_alone_is_refused(mini: Any) -> None:
    with pytest.raises(ValueError, match="wrong is missing"):
        PromptPair.of(mini, "a", "b", answers=" Mary")


# ------------------------------------------------------------------ from tasks


@pytest.mark.parametrize("task", sorted(TASKS))
def test_tasks_give_pairs(mini: Any, task: str) -> None:
    pair = PromptPair.from_task(mini, task, n=5, seed=3)
    data = generate(task, mini.tokenizer, 5, seed=3, split="held_out")
    assert len(pair) == 5 and task in pair.source
    read = data.read_positions[:, -1]
    assert torch.equal(pair.lengths - 1, read)  # the answer follows the last token
    last = data.answers[:, -1:] if data.per_position else data.answers
    assert torch.equal(pair.answers, last)
    for row, strings in enumerate(pair.str_tokens):
        n = int(pair.lengths[row])
        assert pair.clean[row, :n].tolist() == data.clean_tokens[row, :n].tolist()
        assert strings == data.str_tokens[row][:n]
        assert len(pair.corrupted_str_tokens[row]) == n
    assert torch.equal(pair.positions["END"], read)


def test_groups_have_one_length_and_keep_everything(mini: Any) -> None:
    pair = PromptPair.from_task(mini, "ioi", n=12)
    groups = pair.groups()
    assert len(groups) > 1 and sum(map(len, groups)) == 12
    for group in groups:
        assert not group.is_padded
        s2 = group.positions["S2"]
        names = group.clean[torch.arange(len(group)), s2]
        assert torch.equal(names, group.wrong[:, 0])
    with pytest.raises(IndexError, match="example 12"):
        pair.select([12])
    with pytest.raises(ValueError, match="at least one"):
        pair.select([])


def test_metric_and_ends_are_those_of_plain_runs(mini: Any) -> None:
    pair = PromptPair.from_task(mini, "ioi", n=6)
    ends = pair.ends(mini)
    for name, tokens in (("clean", pair.clean), ("corrupted", pair.corrupted)):
        for row in range(len(pair)):
            n = int(pair.lengths[row])
            logits = mini(tokens[row : row + 1, :n])[0, -1].detach()
            expected = logits[pair.answers[row, 0]] - logits[pair.wrong[row, 0]]
            assert float(ends[name][row]) == pytest.approx(float(expected), abs=1e-4)
    assert float(ends["clean"].mean()) > float(ends["corrupted"].mean()) + 1
    own = pair.ends(mini, prob(pair.answers))
    assert 0 < float(own["clean"].mean()) < 1


def test_position_labels(mini: Any) -> None:
    labels = ioi_pair(mini).position_labels()
    assert labels[0] == "0 <|endoftext|>"
    assert labels[10] == "10 ·John/·Mary"
    assert labels[14] == "14 ·to"
    (group,) = PromptPair.from_task(mini, "ioi", n=4, template="before/ABBA").groups()
    labels = group.position_labels()
    assert labels[2] == "2 IO" and labels[4] == "4 S1" and labels[3] == "3 ·and"
    assert ioi_pair(mini).position_labels()[4] == "4 ·John"


# ------------------------------------------------------------------ the options of commands


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, text in (("clean", CLEAN), ("corrupted", CORRUPTED)):
        (tmp_path / f"{name}.txt").write_text(text + "\n")
    return [str(tmp_path / f"{name}.txt") for name in ("clean", "corrupted")]


def test_files_make_a_pair(mini: Any, files: list[str]) -> None:
    request = PairRequest.checked(files, [" Mary"], [" John"], None)
    assert request.inputs == tuple(files)
    pair = request.load(mini, prepend_bos=True)
    assert torch.equal(pair.clean, ioi_pair(mini).clean)
    assert torch.equal(pair.answers, ioi_pair(mini).answers)
    assert math.prod(pair.wrong.shape) == 1


def test_a_task_makes_a_pair(mini: Any) -> None:
    pair = PairRequest.checked(None, None, None, "ioi", 3, 5, "flip").load(mini, prepend_bos=False)
    expected = PromptPair.from_task(mini, "ioi", 3, 5, corruption="flip", prepend_bos=False)
    assert torch.equal(pair.corrupted, expected.corrupted)
    assert pair.prepend_bos is False
    one = PairRequest.checked(None, None, None, "ioi", template="before/ABBA")
    assert not one.load(mini, prepend_bos=True).is_padded
    with pytest.raises(CommandError, match="unknown template of ioi"):
        PairRequest.checked(None, None, None, "ioi", template="x").load(mini, prepend_bos=True)
    assert len(PairRequest.checked(None, None, None, "ioi").load(mini, prepend_bos=True)) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, None, None), "expected two prompt files, CLEAN and CORRUPTED, or --task"),
        ((["a"], None, None, None), "got 1 file$"),
        ((["a", "b"], None, None, "ioi"), "leave out the files"),
        ((None, [" Mary"], None, "ioi"), "--answer"),
        ((["a", "b"], None, [" x"], None), '--answer " Mary"'),
        ((["a", "b"], [" x"], None, None), "--wrong is missing"),
        ((["a", "b"], [" x"], [" y"], None, 3), "--n goes with --task"),
        ((None, None, None, "ioi", 0), "--n is 0"),
        ((None, None, None, "ioi", 2, 0, "flop"), "did you mean 'flip'"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        PairRequest.checked(*arguments)


def test_what_is_wrong_with_a_pair_names_its_files(mini: Any, files: list[str]) -> None:
    Path(files[1]).write_text("When Mary")
    request = PairRequest.checked(files, [" Mary"], [" John"], None)
    with pytest.raises(CommandError, match=r"corrupted\.txt: .*differ in length"):
        request.load(mini, prepend_bos=True)
