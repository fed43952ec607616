"""The reference for edits, metrics and sweeps: everything the long way round.

One full forward pass per intervention, with a hook that picks the edited places with plain indexing
on the whole activation, one prompt at a time; metrics with one loop over prompts and positions.
Nothing of `hooks.located`, `analyses.metrics` or `analyses.sweep` is used: what edits and metrics
mean is written here a second time, from their docstrings.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from analyses.metrics import KL, Function, LogitDiff, LogProb, Loss, Metric
from hooks import Ablate, ActivationCache, Add, Edit, HookPoint, Patch, Scale
from interp import HookedGPT2

POSITIONS = ("pos", "query", "key")


def of_prompt(where: Any, example: int, real: Sequence[int]) -> list[int]:
    """The columns of some positions of a prompt whose tokens are in the columns `real`."""
    if where is None:
        return list(real)
    if isinstance(where, Tensor):
        where = where[example].reshape(-1).tolist()
    return [real[p] for p in ([where] if isinstance(where, int) else where)]


def _asked(edit: Edit, axis: str) -> Any:
    return {
        "pos": edit.pos,
        "query": edit.pos,
        "key": edit.key,
        "head": edit.head,
    }.get(axis, edit.neuron)


def _places(edit: Edit, axis: str, size: int, example: int, real: Sequence[int]) -> list[int]:
    asked = _asked(edit, axis)
    if axis in POSITIONS:
        return of_prompt(asked, example, real)
    if asked is None:
        return list(range(size))
    return [i % size for i in ([asked] if isinstance(asked, int) else asked)]


def _given_values(
    edit: Edit, value: Tensor, activation: Tensor, axes: Sequence[str], example: int, real: list
) -> Tensor:
    """Of a tensor that broadcasts to the selection, the part of one prompt, every axis kept."""
    full, short = [len(activation)], [len(activation)]
    for axis, size in zip(axes[1:], activation.shape[1:], strict=True):
        asked = _asked(edit, axis)
        single = isinstance(asked, int) or (isinstance(asked, Tensor) and asked.ndim == 1)
        n = size if asked is None else 1 if single else len(asked)
        if isinstance(asked, Tensor) and not single:
            n = asked.shape[1]
        full.append(n)
        if not single:
            short.append(n)
    if value.ndim <= len(short):
        mine = value.broadcast_to(short).reshape(full)[example]
    else:
        mine = value.broadcast_to(full)[example]
    for dim, axis in enumerate(axes[1:]):
        if axis in POSITIONS and _asked(edit, axis) is None:
            mine = mine.index_select(dim, torch.tensor(real))
    return mine


def _columns(cache: ActivationCache, example: int, length: int) -> list[int]:
    if cache.attention_mask is None:
        return list(range(length))
    return cache.attention_mask[example].nonzero().flatten().tolist()


def _token_by_token(cache: ActivationCache, name: str, example: int) -> Tensor:
    """One prompt's activation without its padding; of attention, queries and keys."""
    value, axes = cache[name][example], cache.axes[name][1:]
    for dim, axis in enumerate(axes):
        if axis in POSITIONS:
            real = _columns(cache, example, value.shape[dim])
            value = value.index_select(dim, torch.tensor(real))
    return value


def _at_places(edit: Edit, value: Tensor, hook: HookPoint, example: int, real: list) -> Tensor:
    """Of another prompt of as many tokens, what is at the places of the edit."""
    for dim, axis in enumerate(hook.axes[1:]):
        size = value.shape[dim]
        tokens = list(range(len(real)))  # in `value` positions count tokens
        index = _places(edit, axis, size, example, tokens)
        value = value.index_select(dim, torch.tensor(index))
    return value


def _runs(edit: Ablate, hook: HookPoint, length: int | None = None) -> list[Tensor]:
    """The reference prompts without padding, all or those of a length."""
    reference = edit.reference
    assert reference is not None
    runs = [_token_by_token(reference, hook.name, i) for i in range(len(reference[hook.name]))]
    dim = hook.axes.index("query" if "query" in hook.axes else "pos") - 1
    return [run for run in runs if length in (None, run.shape[dim])]


def _mean(edit: Ablate, hook: HookPoint, example: int, real: list) -> Tensor:
    if edit.per_position:
        mean = torch.stack(_runs(edit, hook, len(real))).mean(0)
    else:
        mean = torch.stack([torch.cat(_runs(edit, hook)).mean(0)] * len(real))
    return _at_places(edit, mean, hook, example, real)


def edit_hook(edit: Edit, mask: Tensor) -> Callable[[Tensor, HookPoint], None]:
    """A hook that does what the edit says to a batch of prompts."""

    def apply(activation: Tensor, hook: HookPoint) -> None:
        draw = torch.Generator().manual_seed(getattr(edit, "seed", 0))
        for example in range(len(activation)):
            real = mask[example].nonzero().flatten().tolist()
            own = activation[example]
            places = [
                torch.tensor(_places(edit, axis, size, example, real))
                for axis, size in zip(hook.axes[1:], own.shape, strict=True)
            ]
            grid = torch.meshgrid(*places, indexing="ij")
            if isinstance(edit, Scale):
                own[grid] = own[grid] * edit.factor
            elif isinstance(edit, Add):
                assert edit.value is not None
                own[grid] = own[grid] + _given_values(
                    edit, edit.value, activation, hook.axes, example, real
                )
            elif isinstance(edit, Patch) and isinstance(edit.source, Tensor):
                own[grid] = _given_values(
                    edit, edit.source, activation, hook.axes, example, real
                ).expand(grid[0].shape)
            elif isinstance(edit, Patch):
                assert edit.source is not None
                row = example if len(edit.source[hook.name]) > 1 else 0
                run = _token_by_token(edit.source, hook.name, row)
                own[grid] = _at_places(edit, run, hook, example, real)
            elif isinstance(edit, Ablate) and edit.kind == "zero":
                own[grid] = 0.0
            elif isinstance(edit, Ablate) and edit.kind == "mean":
                own[grid] = _mean(edit, hook, example, real)
            else:
                assert isinstance(edit, Ablate)
                runs = _runs(edit, hook, len(real))
                drawn = runs[int(torch.randint(len(runs), (), generator=draw))]
                own[grid] = _at_places(edit, drawn, hook, example, real)

    return apply


# ------------------------------------------------------------------ metrics


def _row(ids: Tensor, example: int) -> list[int]:
    return [i for i in ids[example if len(ids) > 1 else 0].tolist() if i >= 0]


def _at(metric: Metric, logits: Tensor, base: Tensor, example: int, column: int, next: int | None):
    here = logits[example, column]
    if isinstance(metric, LogitDiff):
        right, wrong = _row(metric.answer_tokens, example), _row(metric.wrong_tokens, example)
        return here[right].mean() - here[wrong].mean()
    if isinstance(metric, LogProb):
        chance = here.double().softmax(-1)[_row(metric.tokens, example)].sum()
        return chance if metric.exponential else chance.log()
    if isinstance(metric, KL):
        reference = metric.reference_logits
        if reference is None:
            reference = base
        row = reference[example] if reference.ndim == 2 else reference[example, column]
        p, q = row.double().softmax(-1), here.double().softmax(-1)
        some = p > 0
        return (p[some] * (p[some].log() - q[some].log())).sum()
    assert isinstance(metric, Loss) and next is not None
    return -here.double().softmax(-1)[next].log()


def naive_metric(
    metric: Metric | Function | Callable, logits: Tensor, tokens: Tensor, mask: Tensor, base: Tensor
) -> Tensor:
    """One number per prompt, in float64. `base`: the logits of the run without the edits."""
    if not isinstance(metric, Metric):
        return torch.as_tensor(metric(logits.clone())).reshape(-1).double()
    found = []
    for example in range(len(logits)):
        real = mask[example].nonzero().flatten().tolist()
        following = dict(pairwise(real))
        counted = real[:-1] if isinstance(metric, Loss) and metric.pos is None else real
        values = []
        for column in of_prompt(metric.pos, example, counted):
            next = int(tokens[example, following[column]]) if column in following else None
            values.append(float(_at(metric, logits, base, example, column, next)))
        found.append(sum(values) / len(values))
    return torch.tensor(found, dtype=torch.float64)


# ------------------------------------------------------------------ sweeps


def naive_logits(
    model: HookedGPT2, tokens: Tensor, edits: Sequence[Edit], mask: Tensor | None = None
) -> Tensor:
    """One full run with the edits on, in the order given."""
    whole = torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask.bool()
    hooks = [(edit.point, edit_hook(edit, whole)) for edit in edits]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks, attention_mask=mask)
    assert isinstance(logits, Tensor)
    return logits


def naive_sweep(
    model: HookedGPT2,
    tokens: Tensor,
    edits: Sequence[Edit | Sequence[Edit]],
    metrics: Mapping[str, Any],
    *,
    given: Sequence[Edit] = (),
    mask: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values (metric -> `edit example`) and base (metric -> `example`) of a sweep."""
    whole = torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask.bool()
    base = naive_logits(model, tokens, given, mask)

    def judge(logits: Tensor) -> dict[str, Tensor]:
        return {n: naive_metric(m, logits, tokens, whole, base) for n, m in metrics.items()}

    found = []
    for one in edits:
        together = [one] if isinstance(one, Edit) else list(one)
        found.append(judge(naive_logits(model, tokens, [*given, *together], mask)))
    return {n: torch.stack([one[n] for one in found]) for n in metrics}, judge(base)
