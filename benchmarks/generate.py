"""Tokens per second, against `transformers.generate` and a bare loop over the reference.

GPT-2 small's shape, random weights, greedy, nothing stops early. The bare loop calls the reference
with its own key/value cache and takes the largest logit, no more. Every step reads every weight
once, so how fast memory can be read bounds the steps: that is measured too, by summing as many
bytes. Ratios are medians over interleaved rounds in one process.

    python -m benchmarks.generate [--rounds 7] [--threads 2] [--device cpu] [--dtype float32]
                                  [--batches 1,8] [--prompt 16] [--new 48]
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks._interleaved import interleaved
from benchmarks.forward import reference
from hooks import Add
from interp import HookedGPT2

POINT = "blocks.5.hook_resid_post"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    hf = reference("sdpa", options.device).to(getattr(torch, options.dtype))
    model = HookedGPT2.from_pretrained(hf, device=options.device, dtype=options.dtype)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    for batch in map(int, options.batches.split(",")):
        shape = (batch, options.prompt)
        tokens = torch.randint(0, model.cfg.d_vocab, shape, device=options.device)
        measure(model, hf, tokens, options.new, options.rounds)


def measure(model: HookedGPT2, hf: Any, tokens: torch.Tensor, new: int, rounds: int) -> None:
    """Print the numbers of one batch."""
    ours = partial(model.generate, tokens, do_sample=False, stop_at_eos=False)
    direction = torch.randn(model.cfg.d_model).to(model.W_E)
    weights = bytes_per_step(model)
    memory = torch.zeros(weights // 4, device=tokens.device)
    ways: dict[str, Callable[[], Any]] = {
        "transformers.generate": partial(
            hf.generate,
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        ),
        "bare loop": partial(bare_loop, hf, tokens, new),
        "generate": partial(ours, new),
        "generate, a function listening": partial(
            ours, new, fwd_hooks=[(POINT, lambda act, hook: None)]
        ),
        "generate, steered by Add": partial(ours, new, edits=Add(POINT, value=direction)),
        "the first token": partial(ours, 1),
        "reading the weights' bytes": memory.sum,
    }
    if tokens.device.type == "cuda":
        ways = {name: partial(_synchronised, way) for name, way in ways.items()}
    timing = interleaved(ways, rounds)
    print(f"\nbatch {len(tokens)}, {tokens.shape[1]} tokens and {new} new ones, {model.dtype}")
    for way in list(ways)[:-2]:
        seconds = timing.median(way)
        print(
            f"  {way:<31} {len(tokens) * new / seconds:7.1f} tokens/s   "
            f"{timing.ratio(way, 'transformers.generate'):.3f} x transformers.generate, "
            f"{timing.ratio(way, 'bare loop'):.3f} x bare loop"
        )
    for way in ("generate, a function listening", "generate, steered by Add"):
        print(f"  {way} / generate: {timing.ratio(way, 'generate'):.3f}")
    step = (timing.median("generate") - timing.median("the first token")) / (new - 1)
    reading = timing.median("reading the weights' bytes")
    print(
        f"  a step takes {1e3 * step:.2f} ms; reading its {weights / 2**20:.0f} MiB of weights "
        f"takes {1e3 * reading:.2f} ms ({weights / reading / 1e9:.1f} GB/s): "
        f"{100 * reading / step:.0f} % of the bandwidth reached"
    )


@torch.inference_mode()
def bare_loop(hf: Any, tokens: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy decoding with nothing but the model and its cache."""
    from transformers import DynamicCache

    past, column, chosen = DynamicCache(config=hf.config), tokens, []
    for _ in range(new):
        out = hf(column, past_key_values=past, use_cache=True, logits_to_keep=1)
        column = out.logits[:, -1].argmax(-1, keepdim=True)
        chosen.append(column)
    return torch.cat([tokens, *chosen], dim=1)


def bytes_per_step(model: HookedGPT2) -> int:
    """Bytes of the weights that a step reads whole: all but the embeddings, of which it reads a
    row, and the unembedding."""
    embeddings = {"wte", "wpe"}
    rest = sum(p.nbytes for name, p in model.named_parameters() if name not in embeddings)
    return rest + (model.W_E.nbytes if model.cfg.tie_word_embeddings else 0)


def _synchronised(way: Callable[[], Any]) -> Any:
    kept = way()
    torch.cuda.synchronize()
    return kept


if __name__ == "__main__":
    main()
