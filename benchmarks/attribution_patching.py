"""Attribution patching of all nodes and edges against the passes it cannot do without.

GPT-2 small's shape, random weights, float32, a pair of 15-token prompts. Prints medians and ratios
of interleaved runs: the base is one forward pass and one forward-backward pass with frozen weights,
without any hook, all positions unembedded.

    python -m benchmarks.attribution_patching [--rounds 15] [--threads 2] [--device cpu]
        [--shapes 1x15,8x15]
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from analyses.attribution_patching import attribution_patching
from analyses.edge_attribution import edge_attribution
from analyses.pairs import PromptPair
from benchmarks._interleaved import interleaved
from interp import HookedGPT2, HookedGPT2Config

STEPS = 5
SMALL = HookedGPT2Config(n_layers=12, d_model=768, n_heads=12)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", default="1x15,8x15", help="batch x pos, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = HookedGPT2.from_config(SMALL, device=options.device)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    for shape in ([int(n) for n in s.split("x")] for s in options.shapes.split(",")):
        measure(model, shape, options.rounds)


def pair_of(model: HookedGPT2, shape: list[int]) -> PromptPair:
    """A pair of prompts of random tokens, the last few alike."""
    clean, corrupted = torch.randint(0, model.cfg.d_vocab, (2, *shape))
    corrupted[:, -3:] = clean[:, -3:]
    return PromptPair.of(model, clean, corrupted, 11, 12)


def measure(model: HookedGPT2, shape: list[int], rounds: int) -> None:
    """Print the ratios for one shape of prompts."""
    pair = pair_of(model, shape)
    clean, corrupted = pair.clean.to(model.device), pair.corrupted.to(model.device)

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, -1, 11] - logits[:, -1, 12]).sum()

    def forward() -> Any:
        with torch.no_grad():
            return model(clean)

    def passes() -> Any:
        gradient = model.run_with_cache(corrupted, names_filter="hook_embed", incl_bwd=difference)
        return forward(), gradient

    ways: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "forward, forward-backward": passes,
        "all nodes": partial(attribution_patching, model, pair),
        "all edges": partial(edge_attribution, model, pair),
        f"all nodes, {STEPS} steps": partial(attribution_patching, model, pair, steps=STEPS),
        f"all edges, {STEPS} steps": partial(edge_attribution, model, pair, steps=STEPS),
    }
    timing = interleaved(ways, rounds)
    print(f"\nbatch x pos = {' x '.join(map(str, shape))}")
    base = "forward, forward-backward"
    for way in ways:
        print(f"  {way:>26} {1e3 * timing.median(way):8.1f} ms  {timing.ratio(way, base):.3f}")


if __name__ == "__main__":
    main()
