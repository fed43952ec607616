"""Sweeps over prompts of small random models, compared with the naive ones."""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from _naive import naive_sweep
from _random_edits import World

from analyses.metrics import kl, log_prob, logit_diff, loss, prob
from analyses.sweep import sweep
from interp import HookedGPT2

SIZES = dict(n_layer=2, n_embd=16, n_head=4, n_inner=24, n_positions=9, vocab_size=31)
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}


def worlds(reference_model: Callable[..., Any]) -> Callable[..., World]:
    """`world(kind, dtype=torch.float64, **config)`: prompts of a small random model."""
    made: dict[tuple, World] = {}

    def make(kind: str, dtype: torch.dtype = torch.float64, **config: Any) -> World:
        key = (kind, dtype, *config.items())
        if key not in made:
            hf = reference_model({**SIZES, **config}, dtype=dtype)
            model = HookedGPT2.from_pretrained(hf, dtype=dtype)
            made[key] = World.of(model, kind)
        return made[key]

    return make


def run(world: World, edits, metric=None, **options):
    """A sweep over the prompts of this world."""
    metric = logit_diff(1, 2) if metric is None else metric
    options = dict(attention_mask=world.mask, progress=False) | options
    return sweep(world.model, world.tokens, edits, metric, **options)


def first_logit_everywhere(logits):
    return logits[..., 0].tanh().mean(1)


def one_number_of_all(logits):
    return float(logits.softmax(-1)[:, -1].max(-1).values.sum())


def all_metrics(world: World) -> dict[str, Any]:
    """One of every kind, reading one, several and all positions."""
    lengths, vocab = world.lengths, world.model.cfg.d_vocab
    n = len(lengths)
    own = torch.tensor([length // 2 for length in lengths])
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(vocab, (n, 2), generator=draw)
    ids[0, 1] = -1
    reference = torch.randn(n, world.tokens.shape[1], vocab, generator=draw, dtype=torch.float64)
    reference = reference.to(world.model.dtype)
    metrics = {
        "last": logit_diff(3, ids),
        "own position": logit_diff(ids, 3, pos=own),
        "every position": log_prob(7, pos=None),
        "two": prob(ids, pos=[0, -1] if min(lengths) > 1 else [0]),
        "kl": kl(),
        "kl everywhere": kl(pos=None),
        "kl to other logits": kl(reference, pos=own[:, None]),
        "kl to other last logits": kl(reference[:, 0]),
        "function": first_logit_everywhere,
        "one number": one_number_of_all,
    }
    if min(lengths) > 1:
        metrics |= {"loss": loss(), "loss of the second": loss(pos=0)}
    return metrics


def some_metrics(rng: Random, world: World) -> dict[str, Any]:
    metrics = all_metrics(world)
    names = ["every position", *rng.sample(list(metrics), 4)]
    return {name: metrics[name] for name in names}


def check(world: World, edits, metrics=None, *, given=(), **options):
    """Sweep, compare every number with the naive one, and return the result."""
    metrics = all_metrics(world) if metrics is None else metrics
    naive = naive_sweep(world.model, world.tokens, edits, metrics, given=given, mask=world.mask)
    return check_against(naive, world, edits, metrics, given=given, **options)


def check_against(naive, world: World, edits, metrics, *, given=(), **options):
    values, base = naive
    result = sweep(
        world.model,
        world.tokens,
        edits,
        metrics,
        given=given,
        attention_mask=world.mask,
        progress=False,
        **options,
    )
    assert set(result.values) == set(result.base) == set(metrics)
    for name in metrics:
        for got, wanted in ((result.values[name], values[name]), (result.base[name], base[name])):
            assert got.dtype == torch.float64 and got.device.type == "cpu"
            assert not got.requires_grad
            torch.testing.assert_close(
                got,
                wanted,
                rtol=0,
                atol=EXACT[world.model.dtype],
                msg=lambda text, name=name: f"{name}: {text}\nedits: {edits}\ngiven: {given}",
            )
    return result


def changes(result) -> bool:
    return any(bool((v - result.base[n]).abs().max() > 1e-6) for n, v in result.values.items())
