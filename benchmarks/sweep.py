"""Activation patching by sweep against one full hooked forward pass per edit, in one process.

GPT-2 small's shape, random weights, float32, a pair of 15-token prompts that differ in every token
(so that no edit can be skipped), batch 1. Prints medians and ratios of interleaved rounds, the
worst difference and the peak memory. A round of the pass per edit takes minutes; `--part` times
only every n-th edit of it, and takes the mean for the rest.

    python -m benchmarks.sweep [--rounds 3] [--part 10] [--threads 2] [--device cpu]
"""

import argparse
import resource
import time
from collections.abc import Sequence

import torch

from analyses.metrics import logit_diff
from analyses.sweep import plan
from benchmarks.forward import reference, without_grad
from hooks import ActivationCache, Edit, Patch
from interp import HookedGPT2

TARGETS = {"resid_pre": 16, "heads": 10, "heads by position": 20}


def edits(model: HookedGPT2, source: ActivationCache, n_pos: int) -> dict[str, list[Edit]]:
    """The three sweeps: 180, 144 and 2,160 edits of GPT-2 small at 15 tokens."""
    layers, heads, positions = range(model.cfg.n_layers), range(model.cfg.n_heads), range(n_pos)
    return {
        "resid_pre": [
            Patch(("resid_pre", layer), pos, source=source) for layer in layers for pos in positions
        ],
        "heads": [Patch(("z", layer), None, head, source) for layer in layers for head in heads],
        "heads by position": [
            Patch(("z", layer), pos, head, source)
            for layer in layers
            for pos in positions
            for head in heads
        ],
    }


def one_by_one(
    model: HookedGPT2, tokens: torch.Tensor, todo: Sequence[Edit], metric: object
) -> torch.Tensor:
    """The metric under each edit, by a full forward pass with a hook."""
    values = []
    for edit in todo:
        logits = model.run_with_hooks(tokens, fwd_hooks=[(edit.point, edit)])
        values.append(metric(logits))  # type: ignore[operator]
    return torch.cat(values)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = HookedGPT2.from_pretrained(reference("sdpa", options.device), device=options.device)
    model.requires_grad_(False)
    prompts = torch.randint(0, model.cfg.d_vocab, (2, options.length), device=options.device)
    base, other = prompts[:1], prompts[1:]
    source = without_grad(lambda: model.run_with_cache(other))()[1]
    metric = logit_diff(11, 12)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.length} tokens")
    for name, todo in edits(model, source, options.length).items():
        planned = plan(model, base, todo, metric)
        part = todo[:: options.part]
        ratios, ours, theirs, differences = [], [], [], []
        for _ in range(options.rounds):
            start = time.perf_counter()
            found = planned.run(progress=False)
            middle = time.perf_counter()
            exact = without_grad(lambda part=part: one_by_one(model, base, part, metric))()
            end = time.perf_counter()
            ours.append(middle - start)
            theirs.append((end - middle) * len(todo) / len(part))
            ratios.append(theirs[-1] / ours[-1])
            differences.append(float((found.mean()[:: options.part] - exact.cpu()).abs().max()))
        print(
            f"{name:>18}: {len(todo)} edits, {sorted(ratios)[len(ratios) // 2]:.1f} times faster "
            f"(target {TARGETS[name]}; {min(ours):.2f} s / {min(theirs):.1f} s), worst difference "
            f"{max(differences):.1e}"
        )
        print("\n".join(f"    {line}" for line in planned.explain().splitlines()[-2:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory of the process: {peak:.0f} MiB, weights and one cache included")


if __name__ == "__main__":
    main()
