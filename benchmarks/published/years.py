"""Figures of "How does GPT-2 compute greater-than?" (Hanna et al. 2023): how each is measured here.

" The war lasted from the year 1732 to the year 17" after `<|endoftext|>`, with the space before
"The" that the authors' code has; nouns are this package's. Weights as they are.

The circuit: at the last token, heads 5.1 5.5 6.9 7.10 8.8 8.11 9.1 say what they say on the prompt,
and the last third of the MLPs answers to them; all other heads and MLPs say what they say on the
prompt whose year ends in 01.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analyses.pairs import PromptPair
from analyses.path_patching import path_patching
from analyses.tasks import generate, words
from benchmarks.published.bench import Bench, by_group, figure, parsed, ranked
from benchmarks.published.figures import Measured
from hooks import Edit, Patch

_HEADS = ("5.1", "5.5", "6.9", "7.10", "8.8", "8.11", "9.1")
# The MLPs after two thirds of the layers: 8 to 11 of GPT-2 small.
_FIRST_MLP_SHARE = 2 / 3
# So many prompts go through the model at a time.
_AT_ONCE = 40


@dataclass(frozen=True, eq=False)
class Years:
    """Prompts.

    Attributes:
        pair: with their 01 prompts.
        nouns: of each prompt.
        starts: the last two digits of the year, as a number.
        halves: token ids of "00" to "99".
    """

    pair: PromptPair
    nouns: tuple[str, ...]
    starts: Tensor
    halves: Tensor


def years(bench: Bench) -> Years:
    """All prompts."""
    return bench.once("years", lambda: _made(bench))


def _made(bench: Bench) -> Years:
    model = bench.model
    data = generate(
        "greater_than",
        model.tokenizer,
        bench.n_prompts,
        seed=0,
        split="train",
        template="lasted_year",
        prepend_bos=False,
    )
    starts = [
        int(row[int(at)]) for row, at in zip(data.str_tokens, data.positions["YY"], strict=True)
    ]
    halves = words.YEAR_HALVES
    pair = PromptPair.from_text(
        model,
        [f" {text}" for text in data.clean_prompts],
        [f" {text}" for text in data.corrupted_prompts],
        [halves[start + 1 :] for start in starts],
        [halves[: start + 1] for start in starts],
    )
    return Years(
        pair=pair,
        nouns=tuple(
            row[int(at)] for row, at in zip(data.str_tokens, data.positions["EVENT"], strict=True)
        ),
        starts=torch.tensor(starts),
        halves=torch.tensor([model.to_single_token(half) for half in halves]),
    )


def _probabilities(bench: Bench, logits: Tensor) -> Tensor:
    """Of the 100 endings, `example ending`, from logits `example pos d_vocab`."""
    return logits[:, -1].double().softmax(-1).cpu()[:, years(bench).halves]


def _difference(found: Tensor, starts: Tensor) -> Tensor:
    """Probability of later years minus that of the others, of `example ending`."""
    later = torch.arange(100)[None] > starts[:, None]
    return torch.where(later, found, -found).sum(1)


def _parts(bench: Bench) -> Iterator[PromptPair]:
    """The prompts, so many at a time that their logits fit into any memory."""
    pair = years(bench).pair
    for start in range(0, len(pair), _AT_ONCE):
        yield pair.select(range(start, min(start + _AT_ONCE, len(pair))))


def _clean(bench: Bench) -> Tensor:
    def make() -> Tensor:
        found = []
        for pair in _parts(bench):
            with torch.no_grad():
                logits = bench.model.forward(pair.clean.to(bench.model.device))
            assert isinstance(logits, Tensor)
            found.append(_probabilities(bench, logits))
        return torch.cat(found)

    return bench.once("year probabilities", make)


@figure("greater-than/probability-difference")
def probability_difference(bench: Bench) -> Measured:
    data = years(bench)
    return by_group(_difference(_clean(bench), data.starts), data.nouns)


@figure("greater-than/sharpness")
def sharpness(bench: Bench) -> Measured:
    found, data = _clean(bench), years(bench)
    rows = torch.arange(len(found))
    return by_group(found[rows, data.starts + 1] - found[rows, data.starts - 1], data.nouns)


def _heads(bench: Bench, first_mlp: int) -> list[tuple[int, int]]:
    """The published heads; of another model as many that act most through the MLPs and directly."""
    if bench.checkpoint == "gpt2":
        return [parsed(name) for name in _HEADS]
    model, data = bench.model, years(bench)
    receivers = [f"mlp_in.{layer}" for layer in range(first_mlp, model.cfg.n_layers)]
    found = path_patching(model, data.pair, [*receivers, "logits"], senders="head", pos=-1)
    return [parsed(name) for name in ranked(-found.views["head"].change)[: len(_HEADS)]]


@figure("greater-than/circuit")
def circuit(bench: Bench) -> Measured:
    data = years(bench)
    first_mlp = math.ceil(_FIRST_MLP_SHARE * bench.model.cfg.n_layers)
    inside = _heads(bench, first_mlp)
    found = torch.cat([_alone(bench, pair, inside, first_mlp) for pair in _parts(bench)])
    return by_group(_difference(found, data.starts), data.nouns)


def _alone(
    bench: Bench, pair: PromptPair, inside: Sequence[tuple[int, int]], first_mlp: int
) -> Tensor:
    """Probabilities of the endings with all else as on the 01 prompts, `example ending`."""
    model = bench.model
    with torch.no_grad():
        clean, corrupted = (
            model.run_with_cache(
                tokens.to(model.device),
                return_type=None,
                names_filter=["*hook_z", "*hook_mlp_out"],
                pos_slice=[tokens.shape[1] - 1],
            )[1]
            for tokens in (pair.clean, pair.corrupted)
        )
        edits: list[Edit] = []
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                source = clean if (layer, head) in inside else corrupted
                said = source["z", layer][:, 0, head]
                edits.append(Patch(("z", layer), head=head, pos=-1, source=said))
            if layer < first_mlp:
                said = corrupted["mlp_out", layer][:, 0]
                edits.append(Patch(("mlp_out", layer), pos=-1, source=said))
        logits = model.run_with_hooks(
            pair.corrupted.to(model.device), fwd_hooks=[(edit.point, edit) for edit in edits]
        )
    assert isinstance(logits, Tensor)
    return _probabilities(bench, logits)
