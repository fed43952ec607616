"""What a logit lens costs, in forward passes of the Hugging Face model of the same weights.

GPT-2 small's shape, random weights, float32. The lens at the last position unembeds that position
only, at 25 points; the lens at all positions unembeds 25 times what the model does.

    python -m benchmarks.logit_lens [--rounds 9] [--threads 2] [--pos 64]
"""

import argparse
from functools import partial

import torch

from analyses.logit_lens import logit_lens
from benchmarks._interleaved import interleaved
from benchmarks.forward import reference, without_grad
from interp import HookedGPT2


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pos", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sdpa = reference("sdpa", "cpu")
    model = HookedGPT2.from_pretrained(sdpa)
    tokens = torch.randint(0, model.cfg.d_vocab, (1, options.pos))
    # Without a tokenizer the lens has no strings to show; ids stand for themselves.
    ways = {
        "hf sdpa forward": without_grad(partial(sdpa, tokens, use_cache=False)),
        "lens, last position": partial(logit_lens, model, tokens),
        "lens, all positions": partial(logit_lens, model, tokens, positions="all"),
    }
    timing = interleaved(ways, options.rounds)
    print(f"batch x pos = 1 x {options.pos}, {options.threads} threads, {options.rounds} rounds")
    for way in list(ways)[1:]:
        print(
            f"  {way} / hf sdpa forward: {timing.ratio(way, 'hf sdpa forward'):.2f}"
            f"  ({1e3 * timing.median(way):.0f} ms / "
            f"{1e3 * timing.median('hf sdpa forward'):.0f} ms)"
        )


if __name__ == "__main__":
    main()
