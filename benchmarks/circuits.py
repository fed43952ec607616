"""Composition scores of all pairs of heads against a plain loop over pairs.

GPT-2 small's shape, random weights, float32; the three modes of `analyses.circuits.composition`,
28,512 scores. Three ways, interleaved: ours, with the random baseline's spread or without; and a
loop that multiplies `d_model x d_model` circuits for each pair, as one would write it down. That
loop takes minutes, so it runs over a sample of its pairs, drawn anew each round, and its time is
scaled up to all; `--pairs 0` runs all of them.

    python -m benchmarks.circuits [--rounds 5] [--threads 2] [--pairs 60] [--device cpu]
"""

import argparse
import itertools
import random
import time

import torch

from analyses.circuits import AttentionLayers, composition
from benchmarks._interleaved import Timing, interleaved
from interp import HookedGPT2, HookedGPT2Config

SMALL = HookedGPT2Config(n_layers=12, d_model=768, n_heads=12)
MODES = ("Q", "K", "V")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=60, help="of the loop; 0 for all")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = HookedGPT2.from_config(SMALL, device=options.device).requires_grad_(False)
    heads = list(itertools.product(range(SMALL.n_layers), range(SMALL.n_heads)))
    pairs = [(a, b) for a in heads for b in heads if b[0] > a[0]]
    n = options.pairs or len(pairs)
    worst, scale = check(model, pairs), len(pairs) / n
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    print(f"{len(MODES) * len(pairs)} scores; largest difference of 20 from the loop's {worst:.1e}")
    timing = interleaved(
        {
            "composition": lambda: composition(model),
            "scores alone": lambda: [model.all_composition_scores(mode) for mode in MODES],
            "loop": lambda: loop(model, random.sample(pairs, n)),
        },
        options.rounds,
        warm_up=1,
    )
    # Of every pair that the loop leaves out it would have made the same products again.
    scaled = Timing(
        {way: [s * (scale if way == "loop" else 1) for s in seconds]
         for way, seconds in timing.seconds.items()}
    )  # fmt: skip
    sampled = "" if n == len(pairs) else f" (from {n} of {len(pairs)} pairs)"
    for way in scaled.seconds:
        note = sampled if way == "loop" else ""
        ratio = scaled.ratio("loop", way)
        print(f"  {way:>14} {scaled.median(way):9.2f} s  loop / this {ratio:7.1f}{note}")
    start = time.perf_counter()
    count = AttentionLayers.from_model(model).OV.eigenvalues.numel()
    print(f"  {count} eigenvalues of 144 OV circuits, once: {time.perf_counter() - start:.2f} s")


def loop(
    model: HookedGPT2, pairs: list[tuple[tuple[int, int], tuple[int, int]]]
) -> list[tuple[float, float, float]]:
    """The definition, pair by pair."""
    found = []
    for a, b in pairs:
        out = model.W_V[a] @ model.W_O[a]
        qk, ov = model.W_Q[b] @ model.W_K[b].T, model.W_V[b] @ model.W_O[b]
        scores = [
            float((out @ read).norm() / (out.norm() * read.norm())) for read in (qk, qk.T, ov)
        ]
        found.append(tuple(scores))
    return found


def check(model: HookedGPT2, pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> float:
    """The largest difference of some scores from the loop's."""
    some = random.sample(pairs, 20)
    ours = [model.all_composition_scores(mode) for mode in MODES]
    theirs = loop(model, some)
    return max(
        abs(float(scores[(*a, *b)]) - row[i])
        for (a, b), row in zip(some, theirs, strict=True)
        for i, scores in enumerate(ours)
    )


if __name__ == "__main__":
    main()
