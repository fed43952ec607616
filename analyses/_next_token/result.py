"""The results of [`analyses.next_token`][]: predictions, branches, surprisal."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from analyses import cli, report
from analyses._next_token.continuations import Continuation
from analyses._views.words import bos_note

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd
    import plotly.graph_objects as go

    from interp import HookedGPT2

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PromptsResult(ABC):
    """What the results have in common.

    Attributes:
        tokens: the ids of each prompt, without padding.
        prepend_bos: whether `<|endoftext|>` was put before the text; None where token ids were
            given, which are taken as they are.
        strings: the token string of every id in this result.
        provenance: model, dtype, versions, the call.
    """

    tokens: tuple[tuple[int, ...], ...]
    prepend_bos: bool | None
    strings: Mapping[int, str]
    provenance: report.Provenance

    # Of `to_frame`, with the types of those that pandas would guess wrong.
    _columns: ClassVar[Mapping[str, str | None]] = {}

    @property
    def str_tokens(self) -> list[list[str]]:
        """The tokens of each prompt as strings, without padding."""
        return [[self.strings[id] for id in row] for row in self.tokens]

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of `to_frame` as plain data."""

    def to_frame(self) -> "pd.DataFrame":
        """A table; see the class that it is of."""
        import pandas as pd

        rows = list(self.rows())
        frame = pd.DataFrame({name: [row[name] for row in rows] for name in self._columns})
        return frame.astype({n: kind for n, kind in self._columns.items() if kind})

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""

    def page(self) -> report.Page:
        """The page that `to_html` writes."""
        from analyses._next_token.page import page

        return page([("", [self])])

    def to_html(self, path: str | PathLike[str], *, model: "HookedGPT2 | None" = None) -> None:
        """Write the page. It needs no network.

        Args:
            path: the file to write.
            model: to put the hash of its weights on the page (reads all of them once).
        """
        (self if model is None else self.hashed(model)).page().write(path)

    def hashed(self, model: "HookedGPT2", call: str | None = None) -> "Self":
        """The same with the hash of the model's weights, and another call where one is given."""
        return replace(self, provenance=self.provenance.with_weights(model, call))

    def _repr_html_(self) -> str:
        from analyses._next_token.page import notebook

        return notebook(self)

    def _checked_batch(self, batch: int) -> int:
        if not -len(self.tokens) <= batch < len(self.tokens):
            n = len(self.tokens)
            raise IndexError(f"prompt {batch} is out of range: this result has {n}")
        return batch % len(self.tokens)

    def _about(self) -> str:
        """Model, prompts and `<|endoftext|>`, for `repr`."""
        lengths = sorted({len(row) for row in self.tokens})
        length = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        n = len(self.tokens)
        return (
            f"{type(self).__name__}({self.provenance.model}, {n} prompt{'s'[: n != 1]} of "
            f"{length} tokens, {bos_note(self.prepend_bos)}"
        )

    def _dict(self) -> dict[str, Any]:
        return {
            "prepend_bos": self.prepend_bos,
            "prompts": [
                [{"id": id, "token": self.strings[id]} for id in row] for row in self.tokens
            ],
            "provenance": self.provenance.to_dict(),
        }


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class NextToken(PromptsResult):
    """What comes after each prompt. Probabilities are those under the temperature, logits raw.

    Attributes:
        temperature: what logits were divided by.
        top_tokens, top_logits, top_log_probs: of the likeliest next tokens, likeliest first.
        entropy: of the distribution over the next token, in nats.
        continuations: the axis `continuation`.
        continuation_logits, continuation_log_probs, continuation_ranks: of each token of a
            continuation after the prompt and the tokens of the continuation before it. Rank: how
            many tokens are likelier there. Beyond the end of a continuation NaN, ranks -1.
        continuation_entropy: of the distribution that each of these tokens is from.
    """

    temperature: float
    top_tokens: Int[Tensor, "batch k"]
    top_logits: Float[Tensor, "batch k"]
    top_log_probs: Float[Tensor, "batch k"]
    entropy: Float[Tensor, " batch"]
    continuations: tuple[Continuation, ...]
    continuation_logits: Float[Tensor, "batch continuation step"]
    continuation_log_probs: Float[Tensor, "batch continuation step"]
    continuation_ranks: Int[Tensor, "batch continuation step"]
    continuation_entropy: Float[Tensor, "batch continuation step"]

    @property
    def top_probs(self) -> Float[Tensor, "batch k"]:
        """Probabilities of the likeliest next tokens."""
        return self.top_log_probs.exp()

    @property
    def total_log_probs(self) -> Float[Tensor, "batch continuation"]:
        """Log-probability of each whole continuation, in nats: the sum over its tokens."""
        return self.continuation_log_probs.nan_to_num(0.0).sum(-1)

    @property
    def total_probs(self) -> Float[Tensor, "batch continuation"]:
        """Probability of each whole continuation."""
        return self.total_log_probs.exp()

    def __repr__(self) -> str:
        lines = [
            f"{self._about()}; temperature={self.temperature:g}, top_k={self.top_tokens.shape[1]})"
        ]
        for batch in range(min(len(self.tokens), 8)):
            best = "  ".join(
                f"{self.strings[id]!r} {p:.3f}"
                for id, p in zip(
                    self.top_tokens[batch, :5].tolist(),
                    self.top_probs[batch, :5].tolist(),
                    strict=True,
                )
            )
            lines.append(f"  {batch}: entropy {self.entropy[batch]:.3f} nats  {best}")
            for index, one in enumerate(self.continuations):
                total, n = float(self.total_log_probs[batch, index]), len(one.ids)
                ranks = self.continuation_ranks[batch, index, :n].tolist()
                lines.append(f"     {one.name!r}: log-probability {total:.3f}, ranks {ranks}")
        if len(self.tokens) > 8:
            lines.append(f"  ... and {len(self.tokens) - 8} more prompts")
        return "\n".join(lines)

    _columns: ClassVar[Mapping[str, str | None]] = {
        "batch": "Int64",
        "kind": None,
        "continuation": "Int64",
        "step": "Int64",
        "token_id": "Int64",
        "token": None,
        "rank": "Int64",
        "logit": None,
        "log_prob": None,
        "prob": None,
        "total_log_prob": None,
        "entropy": None,
    }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One line per token: the likeliest, then those of the continuations.

        Columns: `batch`; `kind` ("top" or "continuation"); `continuation` (its number) and `step`
        (the token's place in it, 0 for the first); `token_id`, `token`; `rank` (how many tokens
        are likelier); `logit`; `log_prob`, `prob`; `total_log_prob` (of all tokens of the
        continuation up to this one); `entropy` of the distribution that the token is from.
        Logarithms are natural.
        """
        names = ("logits", "log_probs", "ranks", "entropy")
        of = {name: getattr(self, f"continuation_{name}").tolist() for name in names}
        for batch in range(len(self.tokens)):
            top = zip(
                self.top_tokens[batch].tolist(),
                self.top_logits[batch].tolist(),
                self.top_log_probs[batch].tolist(),
                strict=True,
            )
            for rank, (id, logit, log_prob) in enumerate(top):
                yield self._row(
                    batch,
                    "top",
                    None,
                    0,
                    id,
                    rank,
                    logit,
                    log_prob,
                    0.0,
                    float(self.entropy[batch]),
                )
            for index, one in enumerate(self.continuations):
                before = 0.0
                for step, id in enumerate(one.ids):
                    logit, log_prob, rank, entropy = (of[n][batch][index][step] for n in names)
                    yield self._row(
                        batch, "continuation", index, step, id, rank, logit, log_prob, before,
                        entropy,
                    )  # fmt: skip
                    before += log_prob

    def _row(
        self, batch: int, kind: str, continuation: int | None, step: int, id: int, rank: int,
        logit: float, log_prob: float, before: float, entropy: float,
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "batch": batch, "kind": kind, "continuation": continuation, "step": step,
            "token_id": id, "token": self.strings[id], "rank": rank, "logit": logit,
            "log_prob": log_prob, "prob": math.exp(log_prob),
            "total_log_prob": before + log_prob, "entropy": entropy,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON. A number that is not finite is None."""
        return self._dict() | {
            "temperature": self.temperature,
            "continuations": [
                {"text": one.text, "from_text": one.from_text, "ids": list(one.ids)}
                for one in self.continuations
            ],
            "next": [cli.finite(row) for row in self.rows()],
        }

    def plot(self, batch: int = 0) -> "go.Figure":
        """Bars: the likeliest next tokens of a prompt.

        Raises:
            IndexError: there is no such prompt.
        """
        from analyses._next_token import figures

        return figures.bars(self, self._checked_batch(batch))
