"""What a run is judged by, as values that say what they read.

A metric gives one number per prompt. Because it names the positions it reads and the tokens of the
vocabulary it needs, a sweep computes nothing else: a logit difference at the last token costs two
columns of the unembedding at one position. Any function of the full logits does too (`Function`);
it then gets all of them.

All numbers are natural: logits and log-probabilities in nats.

    logit_diff(mary, john)(model(tokens))          # of a plain run: one number per prompt
    sweep(model, tokens, edits, {"diff": logit_diff(mary, john), "kl": kl()})

Logit difference: Wang et al. 2022, section 2 (arXiv 2211.00593). Why it and not the probability:
Zhang & Nanda 2023, "Towards Best Practices of Activation Patching", section 4 (arXiv 2309.16042).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.prompts import AnyPrompts, Prompts
from hooks.edits import Where, frozen_indices
from hooks.located import columns_of, real_columns
from interp import HookedGPT2

Ids = (
    int
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Int[Tensor, ""]
    | Int[Tensor, " _"]
    | Int[Tensor, "_ _"]
)
NO_TOKEN = -1


@dataclass(frozen=True, eq=False)
class Cells:
    """Places in a batch whose logits are at hand.

    Attributes:
        example: the prompt of each, `cell`.
        column: its column of the token tensor, `cell`.
        tokens: the token ids of the batch, `batch pos`.
        next_column: the column of the token after each column, `batch pos` (-1: there is none).
        ids: the tokens whose logits are at hand, ascending; None: all of the vocabulary.
        base_logits: a function that gives the logits of the run without edits at the same cells.
    """

    example: Int[Tensor, " cell"]
    column: Int[Tensor, " cell"]
    tokens: Int[Tensor, "batch pos"]
    next_column: Int[Tensor, "batch pos"]
    ids: Int[Tensor, " id"] | None
    base_logits: Callable[[], Tensor]

    def place(self, ids: Int[Tensor, "cell k"]) -> Int[Tensor, "cell k"]:
        """Where tokens are on the last axis of the logits; -1 stays."""
        if self.ids is None:
            return ids
        return torch.where(ids < 0, ids, torch.searchsorted(self.ids, ids.clamp(min=0)))


@dataclass(frozen=True, eq=False)
class Metric(ABC):
    """One number per prompt: a value at every position read, averaged over these.

    Attributes:
        pos: which positions are read, as in `hooks.Edit`.
    """

    pos: Where = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos", frozen_indices("pos", self.pos, per_prompt=True))

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in tables and plots."""

    def vocabulary(self) -> list[int] | None:
        """The tokens whose logits it needs; None: all of the vocabulary."""
        return None

    def against(self, base_logits: Float[Tensor, "batch pos d_vocab"]) -> "Metric":
        """The same metric where the run without edits is known by its logits."""
        return self

    def check(self, n_examples: int, d_vocab: int) -> None:  # noqa: B027 (some need no check)
        """Raise ValueError or IndexError if it cannot judge so many prompts of this model."""

    def reads(self, mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where it reads, of prompts whose tokens are where `mask` is True.

        Raises:
            IndexError: a position out of range of a prompt.
        """
        found = torch.zeros(mask.shape, dtype=torch.bool)
        columns = self._columns(real_columns(mask))
        for row, own in zip(found, columns, strict=True):
            row[torch.from_numpy(own)] = True
        return found

    def _columns(self, real: Any) -> Any:
        return real if self.pos is None else columns_of(self.pos, real, f"metric {self.name}: pos")

    @abstractmethod
    def measure(self, logits: Float[Tensor, "cell id"], cells: Cells) -> Float[Tensor, " cell"]:
        """The value at each place."""

    def __call__(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """The metric of the logits of a plain run; differentiable.

        Args:
            tokens: the run's token ids; only `loss` needs them.
            attention_mask: of a run with padding.

        Raises:
            ValueError, IndexError: it does not fit these prompts; says why. `kl()` without
                reference logits has nothing to compare with here.
        """
        batch, n_pos = logits.shape[:2]
        self.check(batch, logits.shape[2])
        if attention_mask is None:
            attention_mask = torch.ones(batch, n_pos, dtype=torch.bool)
        mask = attention_mask.bool().cpu()
        if tokens is None:
            if isinstance(self, Loss):
                raise ValueError("the loss needs the token ids: loss()(logits, tokens).")
            tokens = torch.zeros(batch, n_pos, dtype=torch.int64)
        example, column = self.reads(mask).to(logits.device).nonzero(as_tuple=True)
        there = logits[example, column]
        cells = Cells(
            example=example,
            column=column,
            tokens=tokens.to(logits.device),
            next_column=next_columns(mask).to(logits.device),
            ids=None,
            base_logits=_no_base,
        )
        return mean_per_row(self.measure(there, cells), example, batch)


def _no_base() -> Tensor:
    raise ValueError(
        "kl() compares with the run without edits, which only a sweep knows: give it "
        "reference_logits, or use metric.against(logits of that run)."
    )


def next_columns(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The column of the token that follows the one in each column; -1 where none does."""
    found = torch.full(mask.shape, -1)
    for row, own in zip(found, real_columns(mask), strict=True):
        columns = torch.from_numpy(own)
        row[columns[:-1]] = columns[1:]
    return found


def mean_per_row(
    values: Float[Tensor, " cell"], row: Int[Tensor, " cell"], n_rows: int
) -> Float[Tensor, " row"]:
    """The mean of the values of each row; every row has at least one."""
    count = torch.bincount(row, minlength=n_rows)
    return values.new_zeros(n_rows).index_add(0, row, values) / count


# ------------------------------------------------------------------ the metrics


@dataclass(frozen=True, eq=False)
class _OfTokens(Metric):
    """A metric of chosen tokens, `example k` or the same for all, -1 for none."""

    def _rows(self, ids: Tensor, cells: Cells) -> Tensor:
        return ids.to(cells.example.device).expand(len(cells.tokens), -1)[cells.example]

    def _check_ids(self, ids: Tensor, what: str, n_examples: int, d_vocab: int) -> None:
        if len(ids) not in (1, n_examples):
            raise ValueError(
                f"metric {self.name}: {what} has {len(ids)} rows, there are {n_examples} prompts. "
                "Several tokens that are the same for all prompts make one row: [[1, 2]]."
            )
        if int(ids.max()) >= d_vocab:
            raise IndexError(
                f"metric {self.name}: token {int(ids.max())} is out of range: this model predicts "
                f"tokens 0 to {d_vocab - 1}."
            )


def _ids(given: Ids, what: str) -> Tensor:
    """Token ids as `example k` (or `1 k`), -1 for none."""
    if isinstance(given, str) or (
        isinstance(given, Sequence) and any(isinstance(one, str) for one in given)
    ):
        raise TypeError(f"{what} are token ids, not text: model.to_single_token gives the id.")
    ids = torch.as_tensor(given)
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim > 2 or not ids.numel():
        raise TypeError(f"{what} are whole numbers, [example] or [example, k], not {given!r}.")
    ids = ids.detach().to("cpu", torch.int64, copy=True)
    ids = ids.reshape(1, 1) if ids.ndim == 0 else ids[:, None] if ids.ndim == 1 else ids
    for row in ids.tolist():
        own = [id for id in row if id != NO_TOKEN]
        if len(set(own)) != len(own):
            raise ValueError(f"{what}: a token is named twice for one prompt: {own}.")
    if int(ids.min()) < NO_TOKEN or bool((ids < 0).all(1).any()):
        raise ValueError(f"{what}: every prompt needs a token, and none is below -1 (for none).")
    return ids


def _mean_of(values: Tensor, ids: Tensor) -> Tensor:
    """The mean over the last axis of what stands where ids are not -1."""
    return torch.where(ids < 0, 0.0, values).sum(-1) / (ids >= 0).sum(-1)


@dataclass(frozen=True, eq=False)
class LogitDiff(_OfTokens):
    """See `logit_diff`."""

    answer_tokens: Tensor = field(kw_only=True)
    wrong_tokens: Tensor = field(kw_only=True)

    @property
    def name(self) -> str:
        """`logit_diff`."""
        return "logit_diff"

    def vocabulary(self) -> list[int]:
        """The tokens compared."""
        both = torch.cat([self.answer_tokens.flatten(), self.wrong_tokens.flatten()])
        return both[both >= 0].unique().tolist()

    def check(self, n_examples: int, d_vocab: int) -> None:
        """As `Metric.check`."""
        self._check_ids(self.answer_tokens, "answer_tokens", n_examples, d_vocab)
        self._check_ids(self.wrong_tokens, "wrong_tokens", n_examples, d_vocab)

    def measure(self, logits: Float[Tensor, "cell id"], cells: Cells) -> Float[Tensor, " cell"]:
        """The difference at each place."""
        means = []
        for ids in (self.answer_tokens, self.wrong_tokens):
            rows = cells.place(self._rows(ids, cells))
            means.append(_mean_of(logits.gather(1, rows.clamp(min=0)), rows))
        return means[0] - means[1]


@dataclass(frozen=True, eq=False)
class LogProb(_OfTokens):
    """See `log_prob` and `prob`."""

    tokens: Tensor = field(kw_only=True)
    exponential: bool = False

    @property
    def name(self) -> str:
        """`prob` or `log_prob`."""
        return "prob" if self.exponential else "log_prob"

    def check(self, n_examples: int, d_vocab: int) -> None:
        """As `Metric.check`."""
        self._check_ids(self.tokens, "tokens", n_examples, d_vocab)

    def measure(self, logits: Float[Tensor, "cell id"], cells: Cells) -> Float[Tensor, " cell"]:
        """The (log-)probability at each place."""
        rows = self._rows(self.tokens, cells)
        log_probs = _log_softmax(logits).gather(1, rows.clamp(min=0))
        together = log_probs.masked_fill(rows < 0, -torch.inf).logsumexp(1)
        return together.exp() if self.exponential else together


@dataclass(frozen=True, eq=False)
class KL(Metric):
    """See `kl`."""

    reference_logits: Tensor | None = None

    @property
    def name(self) -> str:
        """`kl`."""
        return "kl"

    def against(self, base_logits: Float[Tensor, "batch pos d_vocab"]) -> Metric:
        """As `Metric.against`."""
        return self if self.reference_logits is not None else kl(base_logits, self.pos)

    def check(self, n_examples: int, d_vocab: int) -> None:
        """As `Metric.check`."""
        reference = self.reference_logits
        if reference is None:
            return
        if len(reference) != n_examples or reference.shape[-1] != d_vocab:
            raise ValueError(
                f"metric kl: the reference logits are {tuple(reference.shape)}; there are "
                f"{n_examples} prompts and {d_vocab} tokens in the vocabulary."
            )

    def measure(self, logits: Float[Tensor, "cell id"], cells: Cells) -> Float[Tensor, " cell"]:
        """The divergence at each place."""
        reference = self.reference_logits
        if reference is None:
            reference = cells.base_logits()
        elif reference.ndim == 2:
            reference = reference.to(logits.device)[cells.example]
        elif reference.shape[1] != cells.tokens.shape[1]:
            raise ValueError(
                f"metric kl: the reference logits have {reference.shape[1]} positions, the prompts "
                f"{cells.tokens.shape[1]}."
            )
        else:
            reference = reference.to(logits.device)[cells.example, cells.column]
        p, q = _log_softmax(reference), _log_softmax(logits)
        probs = p.exp()
        return torch.where(probs == 0, 0.0, probs * (p - q)).sum(-1)


@dataclass(frozen=True, eq=False)
class Loss(Metric):
    """See `loss`."""

    pos: Where = None

    @property
    def name(self) -> str:
        """`loss`."""
        return "loss"

    def _columns(self, real: Any) -> Any:
        for example, own in enumerate(real):
            if len(own) < 2:
                raise ValueError(
                    f"metric loss: prompt {example} is one token long; nothing follows it."
                )
        if self.pos is None:
            return tuple(own[:-1] for own in real)
        found = columns_of(self.pos, real, "metric loss: pos")
        for example, (own, asked) in enumerate(zip(real, found, strict=True)):
            if own[-1] in asked:
                raise IndexError(
                    f"metric loss: pos {self.pos} has the last token of prompt {example}, which no "
                    f"token follows; pos=-2 predicts the last token."
                )
        return found

    def measure(self, logits: Float[Tensor, "cell id"], cells: Cells) -> Float[Tensor, " cell"]:
        """The surprisal of the token after each place."""
        following = cells.tokens[cells.example, cells.next_column[cells.example, cells.column]]
        return -_log_softmax(logits).gather(1, following[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Function:
    """Any function of the logits of all positions, `batch pos d_vocab`.

    Attributes:
        name: what it is called.
        function: gives one number per prompt, or one for all prompts together.
    """

    name: str
    function: Callable[[Tensor], Any]

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " value"]:
        """Its answer as `batch` numbers, or 1. It is given a copy of the logits.

        Raises:
            ValueError: anything but one number, or one per prompt.
        """
        # Of its own: what it does to them must reach nobody else.
        answer = self.function(logits.clone())
        if not isinstance(answer, Tensor | np.ndarray | np.number | float | int | Sequence) or (
            isinstance(answer, str)
        ):
            raise ValueError(
                f"metric {self.name} answered with {type(answer).__name__}: expected one number, "
                f"or one per prompt ({len(logits)})."
            )
        value = torch.as_tensor(answer)
        if tuple(value.shape) not in ((), (1,), (len(logits),)) or value.is_complex():
            raise ValueError(
                f"metric {self.name} answered with shape {tuple(value.shape)}: expected one "
                f"number, or one per prompt ({len(logits)})."
            )
        return value.reshape(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.log_softmax(-1, dtype=dtype)


# ------------------------------------------------------------------ making them


def logit_diff(answer_tokens: Ids, wrong_tokens: Ids, pos: Where = -1) -> Metric:
    """Logit of the answer minus logit of the wrong answer.

    Args:
        answer_tokens, wrong_tokens: token ids: one for all prompts, `example`, or `example k`
            for several (their mean logit; -1 for none).
        pos: where it is read; several positions are averaged.

    Raises:
        TypeError, ValueError: no such ids.
    """
    return LogitDiff(
        pos=pos,
        answer_tokens=_ids(answer_tokens, "answer_tokens"),
        wrong_tokens=_ids(wrong_tokens, "wrong_tokens"),
    )


def prob(tokens: Ids, pos: Where = -1) -> Metric:
    """Probability of a token; of several, that of any of them.

    Args:
        tokens: token ids: one for all prompts, `example`, or `example k` (-1 for none).
        pos: where it is read; several positions are averaged.

    Raises:
        TypeError, ValueError: no such ids.
    """
    return LogProb(pos=pos, tokens=_ids(tokens, "tokens"), exponential=True)


def log_prob(tokens: Ids, pos: Where = -1) -> Metric:
    """Natural logarithm of `prob`."""
    return LogProb(pos=pos, tokens=_ids(tokens, "tokens"))


def kl(reference_logits: Float[Tensor, "..."] | None = None, pos: Where = -1) -> Metric:
    """KL(reference || edited) of the next-token distributions, in nats.

    Args:
        reference_logits: `batch d_vocab` for one position, or `batch pos d_vocab`; None: those of
            the run without edits.
        pos: where it is read; several positions are averaged.

    Raises:
        ValueError: logits of another rank.
    """
    if reference_logits is not None:
        if reference_logits.ndim not in (2, 3):
            raise ValueError(
                f"reference_logits are batch d_vocab or batch pos d_vocab, not of shape "
                f"{tuple(reference_logits.shape)}."
            )
        several = pos is None or (
            pos.ndim == 2 and pos.shape[1] > 1
            if isinstance(pos, Tensor)
            else not isinstance(pos, int)
        )
        if reference_logits.ndim == 2 and several:
            raise ValueError(
                f"reference_logits batch d_vocab are of one position, but pos={pos!r}: give them "
                f"as batch pos d_vocab."
            )
        reference_logits = reference_logits.detach()
    return KL(pos=pos, reference_logits=reference_logits)


def loss(pos: Where = None) -> Metric:
    """Surprisal of the next token in nats, averaged over the positions that have one.

    Args:
        pos: the positions that predict, counted as everywhere: -2 predicts the last token. None:
            all that predict a token of the prompt.
    """
    return Loss(pos=pos)


AnyMetric = Metric | Function | Callable[[Tensor], Any]


def named_metrics(
    metric: AnyMetric | Sequence[AnyMetric] | Mapping[str, AnyMetric],
) -> dict[str, Metric | Function]:
    """Metrics by name; a plain function becomes a `Function`.

    Raises:
        TypeError: something that is no metric.
        ValueError: none, or two of one name.
    """
    if isinstance(metric, str):
        raise TypeError(
            f"a metric is logit_diff(...), loss() or the like, not the text {metric!r}."
        )
    if isinstance(metric, Mapping):
        pairs = [(str(name), one) for name, one in metric.items()]
    else:
        several = list(metric) if isinstance(metric, Sequence) else [metric]
        pairs = [(_name(one), one) for one in several]
    found: dict[str, Metric | Function] = {}
    for name, one in pairs:
        if name in found:
            raise ValueError(f"two metrics are called {name!r}: name them, {{'a': ..., 'b': ...}}.")
        if isinstance(one, Metric):
            found[name] = one
        elif callable(one):
            found[name] = Function(name, one.function if isinstance(one, Function) else one)
        else:
            raise TypeError(
                f"a metric is one of analyses.metrics, such as logit_diff(...), or a function of "
                f"the logits, not {one!r}."
            )
    if not found:
        raise ValueError("there is no metric.")
    return found


def _name(metric: object) -> str:
    own = metric.name if isinstance(metric, Metric | Function) else None
    return own or getattr(metric, "__name__", "metric")


def evaluate(
    model: HookedGPT2,
    tokens: AnyPrompts,
    metric: AnyMetric | Sequence[AnyMetric] | Mapping[str, AnyMetric],
    *,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = True,
) -> dict[str, Float[Tensor, " value"]]:
    """Metrics of a plain run, by name: one number per prompt each, float64 on the CPU.

    Args:
        tokens, attention_mask, prepend_bos: as in `model.forward`.
        metric: one, several, or several by name.

    Raises:
        others: what `model.forward`, `named_metrics` and the metrics raise.
    """
    found = named_metrics(metric)
    prompts = Prompts.of(model, tokens, attention_mask, prepend_bos)
    ids, mask = prompts.tokens, prompts.attention_mask
    with torch.no_grad():
        logits = model(ids, attention_mask=mask)
        return {
            name: (one(logits) if isinstance(one, Function) else one(logits, ids, mask)).to(
                "cpu", torch.float64
            )
            for name, one in found.items()
        }
