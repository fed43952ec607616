"""How surprising each token of a text was to a model.

1. Run the model on the text; every position predicts the token after it.
2. The surprisal of a token is minus the logarithm of the probability that it had (Shannon 1948, "A
   Mathematical Theory of Communication", section 6; as a measure of how hard a word is to read:
   Levy 2008, "Expectation-based syntactic comprehension", Cognition 106). Natural logarithms give
   nats; divided by ln 2, bits.
3. e to the power of the mean surprisal is the perplexity: among how many equally likely tokens one
   would be as unsure.

A text longer than the model's context is read in windows, and only if the caller says how they
move. This is the strided evaluation of `transformers`' guide "Perplexity of fixed-length models":
windows of n_ctx tokens begin every `stride` tokens, and a window counts only the tokens that no
earlier one held, so each but the first n_ctx is predicted from at least n_ctx - stride tokens.
Later windows begin in the middle of the text, with no `<|endoftext|>` before them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses import cli, report
from analyses._arguments import whole
from analyses._next_token.result import NATS_PER_BIT, PromptsResult
from analyses._next_token.run import checked_top_k, hidden_states, ids_of, read
from analyses.prompts import Prompts, token_string
from interp import HookedGPT2, TokenBatch

if TYPE_CHECKING:
    import plotly.graph_objects as go

# So many tokens, padding included, go through the model at a time.
_TOKENS_AT_ONCE = 4096


class _Window(NamedTuple):
    """Tokens `begin` to `end` of a text (`end` not included), scored from `first` on."""

    text: int
    begin: int
    end: int
    first: int


def surprisal(
    model: HookedGPT2,
    tokens: str | Sequence[str] | TokenBatch | Int[Tensor, "batch pos"] | Int[Tensor, " pos"],
    *,
    top_k: int = 3,
    stride: int | None = None,
    prepend_bos: bool = True,
    attention_mask: Tensor | None = None,
) -> "Surprisal":
    """The surprisal of each token of one or several texts.

    Args:
        model: what predicts; stays as it is. Functions that are active on it count.
        tokens: text, several texts, what `model.tokenize` gives, or token ids (taken as they are).
        top_k: how many of the tokens that were expected instead to keep.
        stride: how far windows move on in texts of more than `n_ctx` tokens, 1 to `n_ctx` - 1;
            None: such texts are refused. The smaller, the more each token is predicted from, and
            the longer it takes.
        prepend_bos: put `<|endoftext|>` before text, from which the first token is predicted then.
            Without it, and with ids, the first token has no surprisal: nothing is before it.
        attention_mask: `batch pos` (or `pos`, of one text), 1 or True on real tokens; with token
            ids only.

    Returns:
        The surprisal, on the CPU, in float32, or float64 for a float64 model.

    Raises:
        ValueError: a text longer than `n_ctx` without `stride`; a single token with nothing before
            it; stride or top_k out of range.
        others: what tokenizing and a run refuse.
    """
    n_ctx = model.cfg.n_ctx
    top_k = checked_top_k(model, top_k)
    if stride is not None:
        stride = whole(stride, "stride is a whole number")
        if not 1 <= stride < n_ctx:
            raise ValueError(
                f"stride={stride} is out of range: 1 to {n_ctx - 1}, so that the first token of a "
                f"window of n_ctx = {n_ctx} is one that the window before has scored"
            )
    call = f"surprisal(model, ..., top_k={top_k}, stride={stride}, prepend_bos={prepend_bos})"
    if model.tokenizer is not None and not isinstance(tokens, Tensor | TokenBatch):
        # Not `model.tokenize`, which knows n_ctx and no stride.
        tokens = model.tokenizer.tokenize(tokens, prepend_bos=prepend_bos)
    prompts = Prompts.of(model, tokens, attention_mask, prepend_bos)
    ids = ids_of(prompts)
    for text, row in enumerate(ids):
        which = f"text {text}" if len(ids) > 1 else "the text"
        if len(row) == 1:
            raise ValueError(
                f"{which} is the single token {token_string(model, row[0])!r} with nothing before "
                f"it to predict it from (prepend_bos=True puts <|endoftext|> before text)"
            )
        if len(row) > n_ctx and stride is None:
            raise ValueError(
                f"{which} has {len(row)} tokens, this model reads at most n_ctx = {n_ctx}: pass "
                f"stride={n_ctx // 2} for windows of {n_ctx} that move on by {n_ctx // 2}, so that "
                f"each token is predicted from at least {n_ctx - n_ctx // 2} before it; or shorten "
                f"the text"
            )
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    shape = (len(ids), max(map(len, ids)))
    blank = torch.full(shape, torch.nan, dtype=dtype)
    log_probs, entropy, ranks = blank, blank.clone(), torch.full(shape, -1)
    context = ranks.clone()
    expected = torch.full((*shape, top_k), -1)
    expected_log_probs = torch.full((*shape, top_k), torch.nan, dtype=dtype)
    windows = [window for text in range(len(ids)) for window in _windows(ids, text, n_ctx, stride)]
    batches = list(_batches(windows))
    for number in cli.progress(range(len(batches)), "surprisal"):
        hidden, targets, where = _predictions(model, ids, batches[number])
        numbers = read(model, hidden, top_k, targets=targets[:, None])
        place = tuple(torch.tensor([w[axis] for w in where]) for axis in range(2))
        log_probs[place], ranks[place] = numbers.log_probs[:, 0], numbers.ranks[:, 0]
        entropy[place] = numbers.entropy
        context[place] = torch.tensor([w[2] for w in where])
        expected[place], expected_log_probs[place] = numbers.top_tokens, numbers.top_log_probs
    shown = {*(id for row in ids for id in row), *expected.unique().tolist()} - {-1}
    return Surprisal(
        tokens=ids,
        prepend_bos=prompts.prepend_bos,
        strings={id: token_string(model, id) for id in sorted(shown)},
        provenance=report.Provenance.of(model, call),
        n_ctx=n_ctx,
        stride=stride,
        log_probs=log_probs,
        ranks=ranks,
        entropy=entropy,
        context=context,
        expected_tokens=expected,
        expected_log_probs=expected_log_probs,
    )


def _windows(
    ids: Sequence[Sequence[int]], text: int, n_ctx: int, stride: int | None
) -> Iterator[_Window]:
    n, begin, scored = len(ids[text]), 0, 1
    while True:
        end = min(begin + n_ctx, n)
        yield _Window(text, begin, end, scored)
        if end == n or stride is None:
            return
        begin, scored = begin + stride, end


def _batches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Windows that go through the model together, padded to the longest of them."""
    batch: list[_Window] = []
    for window in windows:
        longest = max(one.end - one.begin for one in [*batch, window])
        if batch and longest * (len(batch) + 1) > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _predictions(
    model: HookedGPT2, ids: Sequence[Sequence[int]], windows: Sequence[_Window]
) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """Of every token scored: what the final layer norm gave before it, its id, and where it is
    (text, position, and how many tokens the prediction saw)."""
    width = max(window.end - window.begin for window in windows)
    tokens = torch.zeros(len(windows), width, dtype=torch.long)
    mask = torch.zeros(len(windows), width, dtype=torch.bool)
    where, rows, columns = [], [], []
    for row, (text, begin, end, first) in enumerate(windows):
        tokens[row, : end - begin] = torch.tensor(ids[text][begin:end])
        mask[row, : end - begin] = True
        for position in range(first, end):
            where.append((text, position, position - begin))
            rows.append(row)
            columns.append(position - begin - 1)
    hidden = hidden_states(model, tokens.to(model.device), mask.to(model.device))
    targets = torch.tensor([ids[text][position] for text, position, _ in where])
    return hidden[rows, columns], targets, where


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Surprisal(PromptsResult):
    """How surprising each token of each text was: minus the logarithm of its probability.

    Where texts differ in length, rows of shorter ones are filled up with NaN, and -1 in whole
    numbers. The same stands at a token that nothing was before: it has no surprisal.

    Attributes:
        n_ctx: of the model.
        stride: how far windows move on in texts longer than `n_ctx`; None where all texts fit.
        log_probs: natural, of each token after those before it.
        ranks: how many tokens were likelier.
        entropy: of the prediction, in nats: the surprisal to be expected.
        context: how many tokens the prediction saw.
        expected_tokens, expected_log_probs: the likeliest tokens there, likeliest first.
    """

    n_ctx: int
    stride: int | None
    log_probs: Float[Tensor, "batch pos"]
    ranks: Int[Tensor, "batch pos"]
    entropy: Float[Tensor, "batch pos"]
    context: Int[Tensor, "batch pos"]
    expected_tokens: Int[Tensor, "batch pos k"]
    expected_log_probs: Float[Tensor, "batch pos k"]

    @property
    def surprisal(self) -> Float[Tensor, "batch pos"]:
        """In nats."""
        return -self.log_probs + 0.0  # not -0.0 where a token was certain

    @property
    def bits(self) -> Float[Tensor, "batch pos"]:
        """The surprisal in bits."""
        return self.surprisal / NATS_PER_BIT

    @property
    def scored(self) -> Int[Tensor, " batch"]:
        """How many tokens of each text have a surprisal."""
        return (self.ranks >= 0).sum(1)

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """Surprisal of each text, in nats."""
        return self.surprisal.nan_to_num(0.0).sum(1)

    @property
    def mean(self) -> Float[Tensor, " batch"]:
        """Nats per token that has a surprisal."""
        return self.total / self.scored

    @property
    def perplexity(self) -> Float[Tensor, " batch"]:
        """e to the power of the mean surprisal."""
        return self.mean.exp()

    def __repr__(self) -> str:
        lines = [f"{self._about()}; {self.note()})"]
        for batch in range(min(len(self.tokens), 8)):
            from analyses._views.next_token import totals

            lines.append(f"  {batch}: {totals(self, batch)}")
        if len(self.tokens) > 8:
            lines.append(f"  ... and {len(self.tokens) - 8} more texts")
        return "\n".join(lines)

    def note(self) -> str:
        """How texts longer than `n_ctx` were read, in words."""
        if self.stride is None or max(map(len, self.tokens)) <= self.n_ctx:
            return "each token predicted from all before it"
        return (
            f"windows of {self.n_ctx} tokens that move on by {self.stride}, each token predicted "
            f"from at least {self.n_ctx - self.stride} before it (at the beginning from all)"
        )

    _columns: ClassVar[Mapping[str, str | None]] = {
        "batch": "Int64",
        "position": "Int64",
        "token_id": "Int64",
        "token": None,
        "context": "Int64",
        "log_prob": None,
        "prob": None,
        "surprisal": None,
        "bits": None,
        "rank": "Int64",
        "entropy": None,
        "expected_id": "Int64",
        "expected": None,
        "expected_prob": None,
    }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One line per token.

        Columns: `batch`, `position`, `token_id`, `token`; `context` (how many tokens the
        prediction saw); `log_prob` (natural), `prob`, `surprisal` (nats), `bits`, `rank`; `entropy`
        of the prediction (nats); `expected_id`, `expected`, `expected_prob`: the likeliest token
        there. A token that nothing was before has no numbers.
        """
        names = ("log_probs", "ranks", "entropy", "context")
        values = {name: getattr(self, name).tolist() for name in names}
        likeliest = self.expected_tokens[:, :, 0].tolist()
        its_log_prob = self.expected_log_probs[:, :, 0].tolist()
        for batch, ids in enumerate(self.tokens):
            for position, id in enumerate(ids):
                log_prob, rank, entropy, context = (values[n][batch][position] for n in names)
                there = rank >= 0
                expected = likeliest[batch][position] if there else None
                yield {
                    "batch": batch, "position": position, "token_id": id,
                    "token": self.strings[id], "context": context if there else None,
                    "log_prob": log_prob, "prob": math.exp(log_prob),
                    "surprisal": -log_prob + 0.0, "bits": -log_prob / NATS_PER_BIT + 0.0,
                    "rank": rank if there else None, "entropy": entropy, "expected_id": expected,
                    "expected": None if expected is None else self.strings[expected],
                    "expected_prob": math.exp(its_log_prob[batch][position]),
                }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        return self._dict() | {
            "n_ctx": self.n_ctx,
            "stride": self.stride,
            "texts": [
                {"tokens": scored, "total_nats": total, "total_bits": total / NATS_PER_BIT,
                 "perplexity": perplexity}
                for scored, total, perplexity in zip(
                    self.scored.tolist(), self.total.tolist(), self.perplexity.tolist(), strict=True
                )
            ],
            "surprisal": [cli.finite(row) for row in self.rows()],
        }  # fmt: skip

    def plot(self, batch: int = 0) -> "go.Figure":
        """Bars: the surprisal of each token of a text; a line: the entropy before it.

        Raises:
            IndexError: there is no such text.
        """
        from analyses._next_token import figures

        return figures.curve(self, self._checked_batch(batch))
