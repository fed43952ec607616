"""Two runs and the gradient between them: what attribution patching of nodes and of edges share.

A pair of prompts is run twice: once plainly (the *source*, whose activations are patched in) and
once with a backward pass from the metric (the *base*, which they are patched into). With integrated
gradients the backward passes are taken at points of the straight line between the two at the
embeddings instead. Examples do not see each other, so one backward pass of the metric's sum over
examples gives each example its own gradient.

As in a sweep, only what the metric reads is unembedded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses import cli
from analyses.metrics import (
    KL,
    AnyMetric,
    Cells,
    Function,
    Metric,
    mean_per_row,
    named_metrics,
    next_columns,
)
from analyses.pairs import PromptPair
from analyses.tasks import unknown
from hooks import ActivationCache
from interp import HookedGPT2

Direction = Literal["denoising", "noising"]
# Direction -> the prompts of the base run and those of the source run.
RUNS = {"denoising": ("corrupted", "clean"), "noising": ("clean", "corrupted")}


@dataclass(frozen=True, eq=False)
class Contrast:
    """Both runs of some examples.

    Attributes:
        examples: which ones.
        source, base: what passed the points in the two runs; `batch` is these examples.
        source_metric, base_metric: the metric of the two runs, `value`: one per example, or a
            single one from a function that judges all prompts together.
        gradients: the runs whose gradients are averaged, as pairs of how many steps they hold and
            a cache with `name + "_grad"`, whose axis `batch` is all examples of the first step,
            then all of the next. To be gone through once: they are made while one does.
    """

    examples: slice
    source: ActivationCache
    base: ActivationCache
    source_metric: Float[Tensor, " value"]
    base_metric: Float[Tensor, " value"]
    gradients: Iterator[tuple[int, ActivationCache]]


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Makes the runs, some examples at a time, by iterating over it.

    Attributes:
        pair: the prompts.
        direction: which of the two is the base.
        steps: how many points on the line of integrated gradients; None for the gradient at base.
        names: the hook points to keep, with their gradients, in the blocks.
        embeddings: whether to keep what is embedded too.
        rows: how many prompts are run at a time.
    """

    model: HookedGPT2
    pair: PromptPair
    direction: str
    steps: int | None
    names: tuple[str, ...]
    embeddings: bool
    rows: int
    judge: "Judge"

    @classmethod
    def checked(
        cls,
        model: HookedGPT2,
        pair: PromptPair,
        metric: AnyMetric | None,
        *,
        direction: str,
        steps: int | None,
        names: Sequence[str],
        batch_size: int | str,
        memory_limit: int,
        embeddings: bool = False,
        more_bytes: int = 0,
    ) -> "Contrasts":
        """Check what the analyses take alike.

        Args:
            metric: None for the pair's own.
            names: full names of hook points in the blocks.
            embeddings: keep `hook_embed` and `hook_pos_embed` of both runs too.
            more_bytes: what the analysis itself needs per prompt, besides the runs.
            others: as in `analyses.attribution_patching.attribution_patching`.

        Raises:
            ValueError, TypeError, IndexError: one that does not fit; says which and why.
        """
        name, chosen = one_metric(pair.metric if metric is None else metric)
        if direction not in RUNS:
            raise ValueError(unknown("direction", str(direction), tuple(RUNS)))
        _check_count("steps", steps, None)
        _check_count("batch_size", batch_size, "auto")
        if steps is None and isinstance(chosen, KL) and chosen.reference_logits is None:
            raise ValueError(
                "the divergence from the base run's own prediction is smallest at the base run, so "
                "its gradient there is zero: give kl() the reference_logits of the other run, or "
                "use integrated gradients (steps=...)"
            )
        _check_pair(pair)
        judge = Judge(model, chosen, name, pair.attention_mask)
        rows = len(pair)
        if not judge.together:
            # In numbers: per layer and position about 40 d_model (the graph, what is kept of both
            # runs, gradients) and six patterns; and the logits, where all of them are made.
            cfg, n_pos = model.cfg, pair.clean.shape[1]
            each = cfg.n_layers * n_pos * (40 * cfg.d_model + 6 * cfg.n_heads * n_pos)
            each += 4 * n_pos * cfg.d_vocab_out if judge.whole else 0
            # With steps, both plain runs are there while others with gradients are made.
            each = each if steps is None else each * 3 // 2
            rows = max(1, memory_limit // (each * model.dtype.itemsize + more_bytes))
            rows = rows if batch_size == "auto" else int(batch_size)
        embeddings = embeddings or steps is not None
        return cls(model, pair, direction, steps, tuple(names), embeddings, rows, judge)

    def __iter__(self) -> Iterator[Contrast]:
        n = len(self.pair)
        for start in cli.progress(range(0, n, self.rows), "gradients"):
            yield self._contrast(slice(start, min(start + self.rows, n)))

    def _contrast(self, examples: slice) -> Contrast:
        base, source = (
            _Prompts(getattr(self.pair, which), self.pair.attention_mask, examples, self.model)
            for which in RUNS[self.direction]
        )
        if self.steps is None:
            base_cache, output, base_metric = self._with_gradients(base, base.tokens, 1)
            gradients = iter([(1, base_cache)])
            source_cache, _, source_metric = self._plain(source, output)
        else:
            base_cache, output, base_metric = self._plain(base)
            source_cache, _, source_metric = self._plain(source, output)
            # Their sum enters the first block.
            begin, end = (
                cache["hook_embed"] + cache["hook_pos_embed"]
                for cache in (base_cache, source_cache)
            )
            gradients = self._along(base, begin, end, output)
        return Contrast(examples, source_cache, base_cache, source_metric, base_metric, gradients)

    def _names(self, input: Tensor) -> list[str]:
        embedded = self.embeddings and not input.is_floating_point()
        return [*(("hook_embed", "hook_pos_embed") if embedded else ()), *self.names]

    def _along(
        self, base: "_Prompts", begin: Tensor, end: Tensor, output: Tensor
    ) -> Iterator[tuple[int, ActivationCache]]:
        """Runs from the midpoints of equal parts of the line between two inputs of block 0."""
        steps = self.steps or 1
        at_once = max(1, self.rows // len(begin))
        starts = range(0, steps, at_once)
        # One bar at a time: of the examples, where they are run apart.
        if self.rows >= len(self.pair):
            starts = cli.progress(starts, "integrated gradients")
        for first in starts:
            count = min(at_once, steps - first)
            share = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) / steps
            share = share.to(begin.dtype).to(begin.device)[:, None, None, None]
            points = (begin + share * (end - begin)).flatten(0, 1)  # (step example) pos d_model
            yield count, self._with_gradients(base, points, count, output)[0]

    def _plain(
        self, prompts: "_Prompts", reference: Tensor | None = None
    ) -> tuple[ActivationCache, Tensor, Tensor]:
        """One run without gradients: what it kept, its output, the metric.

        Args:
            reference: the output of the base run, where this is not that run.
        """
        with torch.no_grad():
            output, cache = self.model.run_with_cache(
                prompts.tokens,
                attention_mask=prompts.mask,
                names_filter=self._names(prompts.tokens),
                stop_at_layer=self.judge.stop,
            )
            output = cast(Tensor, output)
            against = output if reference is None else reference
            return cache, output, self.judge(output, prompts.rows, prompts.all_tokens, against)

    def _with_gradients(
        self, base: "_Prompts", input: Tensor, repeats: int, reference: Tensor | None = None
    ) -> tuple[ActivationCache, Tensor, Tensor]:
        """A run with a backward pass: what it kept, its output, the metric.

        Args:
            input: the base's tokens, or what enters block 0, `repeats` times the examples.
            reference: the output of the base run, where this is not that run.
        """
        found: list[Tensor] = []

        def total(output: Tensor) -> Tensor:
            against = output.detach() if reference is None else reference
            values = self.judge(output, base.rows.repeat(repeats), base.all_tokens, against)
            if not values.requires_grad:
                raise ValueError(
                    f"metric {self.judge.name} is not differentiable: nothing leads from its value "
                    "back to the logits (argmax, .item(), .detach() and comparisons cut the way)"
                )
            found.extend((output.detach(), values.detach()))
            return values.sum()

        _, cache = self.model.run_with_cache(
            input,
            attention_mask=base.mask.repeat(repeats, 1),
            names_filter=self._names(input),
            incl_bwd=total,
            start_at_layer=0 if input.is_floating_point() else None,
            stop_at_layer=self.judge.stop,
        )
        return cache, found[0], found[1]


class _Prompts:
    """Some examples of one of the two kinds of prompts, on the model's device."""

    def __init__(self, tokens: Tensor, mask: Tensor, examples: slice, model: HookedGPT2) -> None:
        self.all_tokens = tokens.to(model.device)
        self.tokens = self.all_tokens[examples]
        self.mask = mask[examples].to(model.device)
        self.rows = torch.arange(examples.start, examples.stop, device=model.device)


class Judge:
    """The metric of what runs give, differentiable.

    Attributes:
        name: the metric's.
        together: it is a function of all prompts' logits, which must not be parted.
        whole: it needs all logits; otherwise runs end at the last residual.
        stop: `stop_at_layer` of those runs.
    """

    def __init__(
        self,
        model: HookedGPT2,
        metric: Metric | Function,
        name: str,
        mask: Bool[Tensor, "example pos"],
    ) -> None:
        self.name = name
        self.together = isinstance(metric, Function)
        # A function at the final layer norm must see it pass; without one, a few positions do.
        hooked = any(
            point.fwd_hooks or point.bwd_hooks
            for point in (model.hook_dict[f"ln_final.hook_{n}"] for n in ("scale", "normalized"))
        )
        self.whole = self.together or hooked
        self.stop = None if self.whole else model.cfg.n_layers
        self._model = model
        self._metric = metric
        self._ids: Tensor | None = None
        if isinstance(metric, Metric):
            metric.check(len(mask), model.cfg.d_vocab_out)
            self._reads = metric.reads(mask.cpu()).to(model.device)
            self._next = next_columns(mask.cpu()).to(model.device)
            ids = None if self.whole else metric.vocabulary()
            if ids is not None:
                self._ids = torch.tensor(sorted(ids), device=model.device)

    def __call__(
        self,
        output: Float[Tensor, "row pos d_model_or_vocab"],
        example: Int[Tensor, " row"],
        tokens: Int[Tensor, "example pos"],
        base_output: Float[Tensor, "here pos d_model_or_vocab"],
    ) -> Float[Tensor, " value"]:
        """One number per row, or per function call.

        Args:
            output: last residuals, or logits if `whole`.
            example: which of the pair's examples each row is.
            tokens: of all examples.
            base_output: of the base run, a row for each of the examples at hand.
        """
        if isinstance(self._metric, Function):
            parts = output.split(len(base_output))
            # A function may edit its logits: it gets its own.
            values = torch.cat([self._metric(part.clone()) for part in parts])
        else:
            values = self._of_cells(self._metric, output, example, tokens, base_output)
        if not bool(values.isfinite().all()):
            raise ValueError(f"metric {self.name} is {values.tolist()}, not a finite number")
        return values

    def _of_cells(
        self, metric: Metric, output: Tensor, example: Tensor, tokens: Tensor, base_output: Tensor
    ) -> Tensor:
        row, column = self._reads[example].nonzero(as_tuple=True)
        at, first = example[row], example[0]
        cells = Cells(
            example=at,
            column=column,
            tokens=tokens,
            next_column=self._next,
            ids=self._ids,
            base_logits=lambda: self._logits(base_output[at - first, column]),
        )
        return mean_per_row(
            metric.measure(self._logits(output[row, column]), cells), row, len(output)
        )

    def _logits(self, there: Float[Tensor, "cell d"]) -> Float[Tensor, "cell id"]:
        if self.whole:
            return there
        return self._model.unembed(self._model.ln_final(there), self._ids)


def one_metric(metric: AnyMetric) -> tuple[str, Metric | Function]:
    """A metric and its name.

    Raises:
        ValueError, TypeError: there are several, or it is none.
    """
    named = named_metrics(metric)
    if len(named) != 1:
        raise ValueError(f"one metric is differentiated, not {len(named)}: {', '.join(named)}")
    return next(iter(named.items()))


def _check_count(name: str, value: object, besides: object) -> None:
    if value == besides:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number or {besides!r}, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value} is out of range: expected at least 1, or {besides!r}")


def _check_pair(pair: PromptPair) -> None:
    shapes = [tuple(t.shape) for t in (pair.clean, pair.corrupted, pair.attention_mask)]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2 or not pair.clean.numel():
        raise ValueError(
            f"clean, corrupted and attention_mask of a pair have one shape, example pos, not "
            f"{', '.join(map(str, shapes))}"
        )
    steps = torch.arange(shapes[0][1])
    if not torch.equal(steps < pair.lengths.cpu()[:, None], pair.attention_mask.cpu().bool()):
        raise ValueError("the prompts of a pair are padded on the right, after their last token")
    if not bool((pair.lengths > 0).all()):
        raise ValueError("attention_mask leaves a prompt without any token")


def check_finite(scores: Tensor, metric: str, what: str) -> None:
    """Raise ValueError if estimates are NaN or infinite."""
    if not bool(scores.isfinite().all()):
        raise ValueError(
            f"the gradient of metric {metric} is not finite: {what} come out NaN or infinite (a "
            "square root or a logarithm at 0, or too narrow a dtype)"
        )


def upcast(values: Tensor) -> Tensor:
    """At least float32: differences and sums of shorter numbers would keep two or three digits."""
    return values if values.dtype.itemsize >= 4 else values.float()


def columns_of_places(
    where: Sequence[int | Tensor], pair: PromptPair
) -> Int[Tensor, "example place"]:
    """The column of each position asked for, in each example.

    Args:
        where: numbers, the same in every prompt (negative ones from its end), or `example`.
    """
    lengths = pair.lengths.cpu()
    columns = [torch.as_tensor(one).cpu() % lengths for one in where]
    return torch.stack(columns, -1) if columns else torch.zeros(len(pair), 0, dtype=torch.int64)


def take(
    values: Float[Tensor, "example ..."], dim: int, columns: Int[Tensor, "example place"]
) -> Float[Tensor, "example ..."]:
    """Places along one axis, other ones in every example."""
    index = columns.to(values.device)
    shape = [1] * values.ndim
    shape[0], shape[dim] = index.shape
    sizes = list(values.shape)
    sizes[dim] = index.shape[1]
    return values.gather(dim, index.view(shape).expand(sizes))
