"""Forward passes, caching and gradients against the Hugging Face forward of the same weights.

GPT-2 small's shape, random weights, float32. Prints medians and ratios of interleaved runs.

    python -m benchmarks.forward [--rounds 15] [--threads 2] [--device cpu] [--shapes 1x64,8x128]
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks._interleaved import interleaved
from interp import HookedGPT2

SHAPES = "1x64,8x128,1x1024"


def reference(attention: str, device: str) -> Any:
    """A GPT-2 small with random weights, the same for every `attention`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config()
    config._attn_implementation = attention
    return torch.nn.Module.to(GPT2LMHeadModel(config).eval().requires_grad_(False), device)


def without_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` with gradients off, then waited for."""

    def inner() -> Any:
        with torch.no_grad():
            return run()

    return inner


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", default=SHAPES, help="batch x pos, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sdpa, eager = (reference(kind, options.device) for kind in ("sdpa", "eager"))
    model = HookedGPT2.from_pretrained(sdpa, device=options.device)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    for shape in ([int(n) for n in s.split("x")] for s in options.shapes.split(",")):
        tokens = torch.randint(0, model.cfg.d_vocab, shape, device=options.device)
        measure(model, sdpa, eager, tokens, options.rounds)


def measure(model: HookedGPT2, sdpa: Any, eager: Any, tokens: torch.Tensor, rounds: int) -> None:
    """Print the ratios for one shape of tokens."""

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, -1, 11] - logits[:, -1, 12]).sum()

    def head_edit(act: torch.Tensor, hook: object) -> None:
        act[:, :, 7] = 0

    def reference_gradients(reference: Any) -> Any:
        embeddings = reference.transformer.wte(tokens).detach().requires_grad_()
        value = difference(reference(inputs_embeds=embeddings, use_cache=False).logits)
        return torch.autograd.grad(value, embeddings)

    ways = {
        "hf sdpa": without_grad(partial(sdpa, tokens, use_cache=False)),
        "hf eager": without_grad(partial(eager, tokens, use_cache=False)),
        "forward": without_grad(partial(model, tokens)),
        "cache all": without_grad(partial(model.run_with_cache, tokens)),
        "cache resid_post": without_grad(
            partial(model.run_with_cache, tokens, names_filter="*hook_resid_post")
        ),
        "edit one head": without_grad(
            partial(model.run_with_hooks, tokens, fwd_hooks=[("blocks.5.attn.hook_z", head_edit)])
        ),
        "hf eager forward+backward": partial(reference_gradients, eager),
        "hf sdpa forward+backward": partial(reference_gradients, sdpa),
        "all gradients": partial(model.run_with_cache, tokens, incl_bwd=difference),
    }
    if tokens.device.type == "cuda":
        ways = {name: _synchronised(way) for name, way in ways.items()}
    timing = interleaved(ways, rounds)
    _, cache = without_grad(partial(model.run_with_cache, tokens))()
    rows = [
        ("forward", "hf sdpa", 0.90 if tokens.shape[1] == 1024 else 0.97),
        ("cache all", "hf eager", 1.1),
        ("cache resid_post", "hf sdpa", 1.03),
        ("edit one head", "hf sdpa", 1.03),
        ("all gradients", "hf sdpa forward+backward", 1.1),
        ("all gradients", "hf eager forward+backward", 1.1),
    ]
    print(f"\nbatch x pos = {' x '.join(map(str, tokens.shape))}")
    for way, base, target in rows:
        print(
            f"  {way:>18} / {base:<26} {timing.ratio(way, base):.3f}  (target {target}; "
            f"{1e3 * timing.median(way):.1f} ms / {1e3 * timing.median(base):.1f} ms)"
        )
    print(f"  default cache: {cache.nbytes / 2**20:.1f} MiB")


def _synchronised(way: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        kept = way()
        torch.cuda.synchronize()
        return kept

    return run


if __name__ == "__main__":
    main()
