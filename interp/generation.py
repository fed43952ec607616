"""What generation gives: the whole of it (`Generation`), and each step while it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooks import ActivationCache

if TYPE_CHECKING:
    import pandas as pd

# Why a row ended.
StopReason = Literal["max_new_tokens", "end_of_text", "stop_string"]


@dataclass(frozen=True, eq=False)
class GenerationStep:
    """One new token of every row.

    Attributes:
        step: 0 for the first new token.
        tokens: the new tokens; padding in rows that have ended before.
        text: what became readable with them, whole characters only, per row; None for a model
            without tokenizer.
        log_probs: natural logarithm of the token's probability, in the model's own distribution
            (hooks and edits included, penalties, temperature and filters not); NaN in rows that
            have ended before.
        filtered_log_probs: the same in the distribution that was drawn from (in greedy decoding:
            that whose largest was taken).
        stopped: per row, why it has ended, or None while it goes on.
    """

    step: int
    tokens: Int[Tensor, " row"]
    text: tuple[str, ...] | None
    log_probs: Float[Tensor, " row"]
    filtered_log_probs: Float[Tensor, " row"]
    stopped: tuple[StopReason | None, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """Prompts and how the model went on.

    A row is one continuation of one prompt. Rows of one prompt stand next to each other.

    Attributes:
        tokens: prompts, padded on the left, then the new tokens, padded on the right.
        attention_mask: False on padding. `model(g.tokens, attention_mask=g.attention_mask)` is
            the forward pass over what was generated.
        str_tokens: one string per entry of `tokens`; None for a model without tokenizer.
        prepend_bos: whether `<|endoftext|>` was put before the text; None for token ids.
        prompt: per row, the number of its prompt.
        prompt_lengths: per row, how many tokens come before the new ones; those that were in
            `past_kv_cache` count, though `tokens` does not have them.
        log_probs: `row step`, natural logarithm of each new token's probability in the model's own
            distribution (hooks and edits included, penalties, temperature and filters not). NaN
            after the end of a row.
        filtered_log_probs: the same in the distribution that was drawn from (without drawing: that
            whose largest was taken).
        stopped: per row, why it ended: "end_of_text" (the token is in `tokens`, but not in
            `text`), "stop_string" (the token that completes it is the last one), or
            "max_new_tokens". None while it goes on, in what a stream has given so far.
        stop_strings: per row, the stop string that ended it, or None.
        text: per row, prompt and continuation, without the `<|endoftext|>` that was put before it.
            None for a model without tokenizer.
        new_text: per row, the continuation alone: everything its tokens spell, also what the last
            one has beyond a stop string.
        seed: with which the draws can be repeated; None where nothing was drawn.
        scores: of beam search, per row, what beams were compared by.
        record: what `record=` asked for, at all positions of `tokens`; None before the end of a
            stream.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Bool[Tensor, "row pos"]
    str_tokens: list[list[str]] | None
    prepend_bos: bool | None
    prompt: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    log_probs: Float[Tensor, "row step"]
    filtered_log_probs: Float[Tensor, "row step"]
    stopped: tuple[StopReason | None, ...]
    stop_strings: tuple[str | None, ...]
    text: tuple[str, ...] | None
    new_text: tuple[str, ...] | None
    seed: int | None = None
    scores: Float[Tensor, " row"] | None = None
    record: ActivationCache | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.tokens)

    @property
    def new_tokens(self) -> Int[Tensor, "row step"]:
        """The new tokens alone, padded on the right."""
        return self.tokens[:, self.tokens.shape[1] - self.log_probs.shape[1] :]

    @property
    def new_lengths(self) -> tuple[int, ...]:
        """Per row, how many new tokens there are."""
        return tuple((~self.log_probs.isnan()).sum(1).tolist())

    def to_frame(self) -> "pd.DataFrame":
        """One line per new token.

        Columns: `row`, `prompt`, `step`, `pos` (absolute, counted from the prompt's first token),
        `token`, `str_token`, `log_prob`, `filtered_log_prob`.
        """
        import pandas as pd

        lines: list[dict[str, Any]] = []
        first = self.tokens.shape[1] - self.log_probs.shape[1]
        new = self.new_tokens.tolist()
        own, filtered = self.log_probs.tolist(), self.filtered_log_probs.tolist()
        for row, length in enumerate(self.new_lengths):
            for step in range(length):
                strings = None if self.str_tokens is None else self.str_tokens[row]
                lines.append(
                    {
                        "row": row,
                        "prompt": self.prompt[row],
                        "step": step,
                        "pos": self.prompt_lengths[row] + step,
                        "token": new[row][step],
                        "str_token": None if strings is None else strings[first + step],
                        "log_prob": own[row][step],
                        "filtered_log_prob": filtered[row][step],
                    }
                )
        return pd.DataFrame(lines)

    def __repr__(self) -> str:
        n_prompts = len(set(self.prompt))
        head = f"Generation: {len(self)} of {n_prompts} prompt{'s' * (n_prompts > 1)}"
        if self.seed is not None:
            head += f", seed {self.seed}"
        lines = [head]
        totals = torch.nan_to_num(self.log_probs).sum(1).tolist()
        ends = zip(self.new_lengths, self.stopped, self.stop_strings, totals, strict=True)
        for row, (length, reason, string, total) in enumerate(list(ends)[:8]):
            why = reason or "going on"
            why = why if string is None else f"{why} {string!r}"
            text = "" if self.new_text is None else f": {_short(self.new_text[row])}"
            lines.append(f"  {row}: {length} tokens, {why}, log-prob {total:.3f}{text}")
        if len(self) > 8:
            lines.append(f"  ... and {len(self) - 8} more")
        return "\n".join(lines)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
