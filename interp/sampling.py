"""From logits to a next token: penalties, temperature, filters, the draw.

The order is that of `transformers`, whose names the settings have, with TransformerLens'
`freq_penalty` where TransformerLens has it: repetition penalty, temperature, frequency penalty,
top-k, top-p, min-p. What a filter removes has a logit of -inf.

| setting | source |
|---|---|
| `top_k` | Fan, Lewis, Dauphin 2018, *Hierarchical Neural Story Generation*, section 5.1 |
| `top_p` | Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, section 3.1 |
| `min_p` | Nguyen et al. 2024, *Turning Up the Heat: Min-p Sampling*, arXiv 2407.01082 |
| `repetition_penalty` | Keskar et al. 2019, *CTRL*, section 4.1 |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TEMPERATURE = "a number: 0 (takes the likeliest), or at least 1e-6"
Logits = Float[Tensor, "row d_vocab"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a next token is chosen.

    Attributes:
        do_sample: draw; otherwise take the likeliest.
        temperature: what logits are divided by; 0 takes the likeliest token.
        top_k: draw from the `top_k` likeliest (more than the vocabulary: from all of it).
        top_p: draw from the likeliest tokens that together have probability `top_p`, the one that
            crosses it included.
        min_p: draw from tokens at least `min_p` times as probable as the likeliest.
        repetition_penalty: logits of tokens there already are divided by it where positive,
            multiplied where negative. More than 1 discourages.
        freq_penalty: subtracted from a token's logit for each time that it is there already.

    Raises:
        ValueError, TypeError: a setting out of its range, or without effect.
    """

    do_sample: bool = True
    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    min_p: float | int | None = None
    repetition_penalty: float | int = 1.0
    freq_penalty: float | int = 0.0

    def __post_init__(self) -> None:
        check_flag("do_sample", self.do_sample)
        check_number("temperature", self.temperature, _TEMPERATURE, lambda x: x == 0 or x >= 1e-6)
        check_number("top_k", self.top_k, "a whole number, 1 or more", lambda x: x >= 1, whole=True)
        check_number("top_p", self.top_p, "a number above 0, at most 1", lambda x: 0 < x <= 1)
        check_number("min_p", self.min_p, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        # Wider, and float32 could not hold what comes of it.
        check_number("repetition_penalty", self.repetition_penalty, "a number from 0.001 to 1000",
               lambda x: 1e-3 <= x <= 1e3)  # fmt: skip
        check_number("freq_penalty", self.freq_penalty, "a number from -1e6 to 1e6",
               lambda x: abs(x) <= 1e6)  # fmt: skip
        if not self.do_sample:
            unused = [n for n in ("top_k", "top_p", "min_p") if getattr(self, n) is not None]
            unused += ["temperature"] if self.temperature not in (0, 1) else []
            if unused:
                raise ValueError(
                    f"{' and '.join(unused)} shape the distribution that is drawn from, but "
                    f"nothing is drawn (do_sample=False, or num_beams above 1)."
                )

    @property
    def draws(self) -> bool:
        """Whether chance has a part."""
        return self.do_sample and self.temperature > 0

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters which tokens are there already."""
        return self.repetition_penalty != 1 or self.freq_penalty != 0

    def processed(self, logits: Logits, counts: Int[Tensor, "row d_vocab"] | None) -> Logits:
        """The logits of the distribution that is drawn from, in float32 or better.

        Args:
            counts: how often each token is in each row already; needed with a penalty.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if counts is not None and self.repetition_penalty != 1:
            logits = with_repetition_penalty(logits, counts > 0, self.repetition_penalty)
        if self.draws and self.temperature != 1:
            logits = logits / self.temperature
        if counts is not None and self.freq_penalty != 0:
            logits = logits - self.freq_penalty * counts
        if self.draws:
            if self.top_k is not None:
                logits = top_k_only(logits, self.top_k)
            if self.top_p is not None and self.top_p < 1:
                logits = top_p_only(logits, self.top_p)
            if self.min_p:
                logits = min_p_only(logits, self.min_p)
        return logits

    def choose(self, processed: Logits, generator: torch.Generator | None) -> Int[Tensor, " row"]:
        """A token of each row."""
        if not self.draws or generator is None:
            return processed.argmax(-1)
        return draw(processed, generator)


def with_repetition_penalty(logits: Logits, seen: Tensor, penalty: float) -> Logits:
    """Logits of tokens seen, divided by `penalty` where positive, else multiplied by it."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k_only(logits: Logits, k: int) -> Logits:
    """The `k` largest logits, and what equals the smallest of them; -inf elsewhere."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def top_p_only(logits: Logits, p: float) -> Logits:
    """The largest logits up to the one with which they have probability `p`; -inf elsewhere."""
    ascending, order = logits.sort(dim=-1)
    # From below, so that what is left out is summed and not what stays: tiny numbers first.
    left_out = ascending.softmax(-1).cumsum(-1) <= 1 - p
    left_out[..., -1] = False
    return logits.masked_fill(left_out.scatter(-1, order, left_out), -torch.inf)


def min_p_only(logits: Logits, p: float) -> Logits:
    """The logits of tokens at least `p` times as probable as the likeliest; -inf elsewhere."""
    probabilities = logits.softmax(-1)
    least = p * probabilities.amax(-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)


def draw(logits: Logits, generator: torch.Generator) -> Int[Tensor, " row"]:
    """A token of each row, drawn from the softmax of its logits.

    One number of `generator` (on the CPU, whatever the device of the logits) per row decides: the
    token at which the cumulated probability passes it. A token of logit -inf is never drawn.
    """
    u = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(logits.device)
    cumulated = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    total = cumulated[:, -1:]
    # Rounded up to the total, it would pass nothing.
    passed = torch.minimum(u * total, total * (1 - 2**-52))
    return torch.searchsorted(cumulated, passed, right=True)[:, 0]


def check_flag(name: str, value: object) -> None:
    """Raise TypeError unless a setting is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}.")


def check_number(
    name: str, value: Any, what: str, fits: Callable[[Any], bool], *, whole: bool = False
) -> None:
    """Raise TypeError unless a setting is a number, ValueError unless it `fits`."""
    if value is None and name in ("top_k", "top_p", "min_p"):
        return
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} is {what}, not {value!r}.")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        finite = False
    if not finite or not fits(value):
        raise ValueError(f"{name} is {what}, not {value!r}.")
