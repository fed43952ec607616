"""How well does a model do a task?

1. Run the clean prompts in batches, and keep the logits at the positions that are read only.
2. Per example, compare the answers with the wrong tokens (each a group, where there are several).
3. Average over examples, with a 95 % interval.

Metrics:
- `accuracy`: share of examples whose answers have more probability than the wrong tokens. For
  induction it is top-1 accuracy: share of the second copy's predictable tokens that the model ranks
  first of the whole vocabulary.
- `top1`: share of examples whose most probable token of the whole vocabulary is an answer.
- `logit_diff`: log-sum-exp of the answers' logits minus that of the wrong tokens'; with one token
  each, the plain difference of logits. In nats.
- `prob_diff`: probability of all answers minus probability of all wrong tokens.

Intervals: Wilson's score interval for shares, seeded percentile bootstrap over examples for means
(of two examples or more; a single one has none).
Induction's examples are whole sequences, since the tokens of one sequence are not independent.

Sources: logit difference: Wang et al. 2022, section 2 (arXiv 2211.00593); probability difference:
Hanna et al. 2023, section 2.2 (arXiv 2305.00586); Wilson 1927, JASA 22:209.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from analyses.tasks.data import NO_TOKEN, TaskData
from interp import HookedGPT2

Predict = Callable[[Tensor], Tensor]

_RESAMPLES = 2000
_Z = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean over examples, and the ends of its 95 % interval (nan where there is none)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "no interval" if math.isnan(self.low) else f"{self.low:.3f}, {self.high:.3f}"
        return f"{self.value:.3f} [{interval}]"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A model's scores on a task.

    Attributes:
        data: the examples, which also say split, seed, `prepend_bos` and dropped words.
        per_example: metric -> `[example]`, the values that are averaged.
        scores: metric -> mean and interval.
    """

    data: TaskData
    per_example: dict[str, Float[Tensor, " example"]]
    scores: dict[str, Estimate]

    def to_frame(self) -> pd.DataFrame:
        """One row per metric: value, interval, and what it was measured on."""
        return pd.DataFrame(
            {
                "task": self.data.task,
                "split": self.data.split,
                "metric": metric,
                "value": score.value,
                "low": score.low,
                "high": score.high,
                "n": len(self.data),
                "seed": self.data.seed,
                "prepend_bos": self.data.prepend_bos,
                "n_dropped": sum(map(len, self.data.dropped.values())),
            }
            for metric, score in self.scores.items()
        )

    def examples_frame(self) -> pd.DataFrame:
        """One row per example: template, prompt, and its value of each metric."""
        columns = {metric: values.tolist() for metric, values in self.per_example.items()}
        prompts = {"template": self.data.templates, "prompt": self.data.clean_prompts}
        return pd.DataFrame(prompts | columns)

    def __repr__(self) -> str:
        scores = ", ".join(f"{metric} {score}" for metric, score in self.scores.items())
        return f"Evaluation({scores})\n{self.data!r}"


def evaluate(
    model: HookedGPT2 | Predict,
    data: TaskData,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> Evaluation:
    """Score a model on a task's clean prompts.

    Args:
        model: a HookedGPT2, or any causal function from tokens `[batch, pos]` to logits
            `[batch, pos, d_vocab]`, such as `lambda tokens: hf_model(tokens).logits`.
        data: what `generate` made, with the model's own tokenizer, on the model's device.
        batch_size: prompts per forward pass.
        progress: whether to show a progress bar, on stderr when that is a terminal.

    Raises:
        ValueError: batch_size < 1; logits of another shape, or with fewer entries than the data's
            tokens need; a logit that is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts: list[dict[str, Tensor]] = []
    console = Console(stderr=True)
    starts = track(
        range(0, len(data), batch_size),
        description=data.task,
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    )
    with torch.inference_mode():
        for start in starts:
            rows = slice(start, start + batch_size)
            logits = _read(model, data.clean_tokens[rows], data.read_positions[rows])
            _check(logits, data)
            score = _score_tokens if data.per_position else _score_groups
            parts.append(score(logits, data.answers[rows], data.wrong[rows]))
    per_example = {metric: torch.cat([part[metric] for part in parts]).cpu() for metric in parts[0]}
    return Evaluation(
        data,
        per_example,
        {
            metric: wilson(values)
            if metric in ("accuracy", "top1")
            else bootstrap(values, data.seed)
            for metric, values in per_example.items()
        },
    )


def wilson(shares: Float[Tensor, " example"]) -> Estimate:
    """The mean of values in 0..1 with Wilson's 95 % score interval.

    Of several predictions per example the mean may stand in `shares`: then examples, not
    predictions, count as the sample size, which errs on the wide side.
    """
    n, mean = len(shares), float(shares.mean())
    spread = _Z * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    middle, scale = mean + _Z**2 / (2 * n), 1 + _Z**2 / n
    low, high = (middle - spread) / scale, (middle + spread) / scale
    # At shares of 0 and 1 rounding would otherwise leave the mean a hair outside.
    return Estimate(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)))


def bootstrap(values: Float[Tensor, " example"], seed: int) -> Estimate:
    """The mean with a 95 % percentile bootstrap interval over examples (seeded).

    One example says nothing about how others would differ: its interval is nan.
    """
    if len(values) < 2:
        return Estimate(float(values.mean()), math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(0, _RESAMPLES, 100):  # in parts, to bound memory for large n
        picks = torch.randint(len(values), (100, len(values)), generator=generator)
        means.append(values[picks].mean(dim=1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(float(values.mean()), low, high)


def _read(
    model: HookedGPT2 | Predict, tokens: Int[Tensor, "batch pos"], where: Int[Tensor, "batch read"]
) -> Float[Tensor, "batch read d_vocab"]:
    """Logits at the read positions; a HookedGPT2 unembeds no others."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    if isinstance(model, HookedGPT2):
        residual = model(tokens, stop_at_layer=model.cfg.n_layers)
        return model.unembed(model.ln_final(residual[rows, where])).float()
    logits = model(tokens)
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"the model must give logits [batch, pos, d_vocab] for tokens {list(tokens.shape)}, "
            f"got shape {list(logits.shape)}"
        )
    return logits[rows, where].float()


def _check(logits: Float[Tensor, "batch read d_vocab"], data: TaskData) -> None:
    highest = max(int(data.answers.max()), int(data.wrong.max()))
    if highest >= logits.shape[-1]:
        raise ValueError(
            f"the data holds token {highest}, but the model has {logits.shape[-1]} tokens; "
            "make the data with the model's own tokenizer"
        )
    if not logits.isfinite().all():
        raise ValueError("the model gave a logit that is not finite (nan or inf)")


def _score_groups(
    logits: Float[Tensor, "batch 1 d_vocab"],
    answers: Int[Tensor, "batch answer"],
    wrong: Int[Tensor, "batch wrong"],
) -> dict[str, Float[Tensor, " batch"]]:
    """Answers and wrong tokens as two groups, at one position."""
    log_probs = logits[:, 0].log_softmax(dim=-1)
    right = _log_sum(log_probs, answers)
    other = _log_sum(log_probs, wrong)
    return {
        "accuracy": (right > other).float(),
        "top1": (log_probs.argmax(dim=-1, keepdim=True) == answers).any(dim=1).float(),
        "logit_diff": right - other,
        "prob_diff": right.exp() - other.exp(),
    }


def _score_tokens(
    logits: Float[Tensor, "batch read d_vocab"],
    answers: Int[Tensor, "batch read"],
    wrong: Int[Tensor, "batch read"],
) -> dict[str, Float[Tensor, " batch"]]:
    """One answer and one wrong token at each read position, averaged within the example."""
    log_probs = logits.log_softmax(dim=-1)
    right = log_probs.gather(-1, answers[..., None])[..., 0]
    other = log_probs.gather(-1, wrong[..., None])[..., 0]
    return {
        "accuracy": (log_probs.argmax(dim=-1) == answers).float().mean(dim=1),
        "logit_diff": (right - other).mean(dim=1),
        "prob_diff": (right.exp() - other.exp()).mean(dim=1),
    }


def _log_sum(
    log_probs: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, "batch id"]
) -> Float[Tensor, " batch"]:
    """Log of a group's summed probability; -1 marks no token."""
    real: Bool[Tensor, "batch id"] = ids != NO_TOKEN
    values = log_probs.gather(1, ids.clamp(min=0)).masked_fill(~real, -math.inf)
    return values.logsumexp(dim=1)
