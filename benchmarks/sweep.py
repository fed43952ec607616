"""Activation patching by sweep against one full hooked forward pass per edit, in one process.

GPT-2 small's shape, random weights, float32, a pair of 15-token prompts that differ in every token
(so that no edit can be skipped), batch 1. Prints medians of interleaved rounds, the worst
difference and the peak memory. A round of a pass per edit takes minutes, so only every n-th edit
(`--every`) is timed that way and counted n-fold.

    python -m benchmarks.sweep [--rounds 3] [--every 12] [--threads 2] [--device cpu] [--peer]

With `--alike 10` the prompts begin with the same ten tokens, as those of a task mostly do.
`--peer` compares with TransformerLens 4 instead of this package's own hooked pass, where it is
installed in the same environment.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analyses.metrics import logit_diff
from analyses.sweep import plan
from benchmarks.forward import reference
from hooks import ActivationCache, Patch
from interp import HookedGPT2


class Place(NamedTuple):
    """What is patched: all positions or heads where None."""

    point: str
    layer: int
    pos: int | None
    head: int | None


class Sweep(NamedTuple):
    """One of the sweeps: how many times faster it should be, and its places."""

    target: float
    places: list[Place]


def sweeps(n_layers: int, n_heads: int, n_pos: int) -> dict[str, Sweep]:
    """The three sweeps: 180, 144 and 2,160 edits of GPT-2 small at 15 tokens."""
    layers, heads, positions = range(n_layers), range(n_heads), range(n_pos)
    return {
        "resid_pre": Sweep(16, [Place("resid_pre", i, p, None) for i in layers for p in positions]),
        "heads": Sweep(10, [Place("z", i, None, h) for i in layers for h in heads]),
        "heads by position": Sweep(
            20, [Place("z", i, p, h) for i in layers for p in positions for h in heads]
        ),
    }


Run = Callable[[Place], Tensor]


def hooked(model: Any, tokens: Tensor, source: Any) -> Run:
    """The logits under one patch, by a full pass with a function hook; any model with
    TransformerLens' call forms."""

    def run(place: Place) -> Tensor:
        within = "attn.hook_z" if place.point == "z" else f"hook_{place.point}"
        name = f"blocks.{place.layer}.{within}"
        where: tuple[Any, ...] = (slice(None), slice(None) if place.pos is None else place.pos)
        where += () if place.head is None else (place.head,)

        def patch(activation: Tensor, hook: object) -> Tensor:
            activation[where] = source[name][where]
            return activation

        return model.run_with_hooks(tokens, fwd_hooks=[(name, patch)])

    return run


def transformer_lens(reference: Any) -> Any:
    """The same weights in TransformerLens 4."""
    from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        # It will have a tokenizer; which one does not matter here.
        file = resources.files("interp") / "mini" / "tokenizer.json"
        end = "<|endoftext|>"
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file), bos_token=end, eos_token=end, pad_token=end
        )
        tokenizer.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder).eval()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=15)
    parser.add_argument("--alike", type=int, default=0, help="tokens that both prompts begin with")
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    same = reference("eager" if options.peer else "sdpa", options.device)
    model = HookedGPT2.from_pretrained(same, device=options.device)
    other = transformer_lens(same) if options.peer else model
    prompts = torch.randint(0, 8000, (2, options.length), device=options.device)
    prompts[1, : options.alike] = prompts[0, : options.alike]
    tokens = prompts[:1]
    # Kept with patterns too, it would be computed by another kernel, and what both prompts begin
    # with would differ by rounding.
    _, source = model.run_with_cache(prompts[1:], names_filter=["*resid_pre", "*hook_z"])
    one_by_one = hooked(other, tokens, other.run_with_cache(prompts[1:])[1])
    metric = logit_diff(11, 12)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.length} tokens")
    before = _peak()
    for name, (target, places) in sweeps(
        model.cfg.n_layers, model.cfg.n_heads, options.length
    ).items():
        measure(name, target, places, model, tokens, source, metric, one_by_one, options)
    print(f"peak memory: the weights and one cache, and {_peak() - before:.0f} MiB more")


def measure(
    name: str,
    target: float,
    places: list[Place],
    model: HookedGPT2,
    tokens: Tensor,
    source: ActivationCache,
    metric: Any,
    one_by_one: Run,
    options: argparse.Namespace,
) -> None:
    """Time one sweep both ways, and compare their numbers."""
    planned = plan(
        model, tokens, [Patch((p.point, p.layer), p.pos, p.head, source) for p in places], metric
    )
    planned.run()
    one_by_one(places[0])
    some = places[:: options.every]
    ours, theirs, worst = [], [], 0.0
    for _ in range(options.rounds):
        start = time.perf_counter()
        found = planned.run(progress=False)
        middle = time.perf_counter()
        exact = torch.cat([metric(one_by_one(place)) for place in some])
        end = time.perf_counter()
        ours.append(middle - start)
        theirs.append((end - middle) * len(places) / len(some))
        worst = max(worst, float((found.mean()[:: options.every] - exact.cpu()).abs().max()))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name:>18}: {len(places)} edits, {ratio:.1f} times faster (target {target}; "
        f"{statistics.median(ours):.2f} s / {statistics.median(theirs):.1f} s), "
        f"worst difference {worst:.0e}"
    )
    for line in planned.explain().splitlines()[-2:]:
        print(f"{'':20}{line}")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
