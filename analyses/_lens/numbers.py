"""What the logit lens reads off distributions, a few of them at a time."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses import cli
from analyses._distributions import entropy, ranks
from analyses._lens.points import LensPoint
from interp import HookedGPT2

# So many bytes of distributions over the vocabulary are made at a time, however many points and
# positions are asked for. They take about ten times that in passing; larger pieces are no faster.
_CHUNK_BYTES = 8 * 2**20


def lens_logits(
    model: HookedGPT2, residual: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """What the lens sees in residuals: the final layer norm and the unembedding applied to them.

    At the last `resid_post` these are the model's logits.
    """
    return model.unembed(model.ln_final(residual))


class Numbers(NamedTuple):
    """What is read off the distributions at points and tokens, on the CPU."""

    top_tokens: Tensor  # point token k
    top_log_probs: Tensor  # point token k
    entropy: Tensor  # point token
    kl: Tensor  # point token
    target_log_probs: Tensor  # point token target
    target_ranks: Tensor  # point token target


def read(
    model: HookedGPT2,
    seen: Mapping[LensPoint, Tensor],
    looked: Sequence[LensPoint],
    final: LensPoint,
    top_k: int,
    target_ids: Sequence[int],
) -> Numbers:
    """The numbers of every point and token, a few distributions at a time."""
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    at_once = max(1, _CHUNK_BYTES // (model.cfg.d_vocab_out * dtype.itemsize))
    targets = torch.tensor(target_ids, dtype=torch.int64, device=model.device)
    n_tokens = len(seen[final])
    chunks: list[Numbers] = []
    for start in cli.progress(range(0, n_tokens, at_once), "logit lens"):
        here = slice(start, start + at_once)
        size = min(at_once, n_tokens - start)
        # The final distribution first: all others are compared with it.
        order = [final, *(point for point in looked if point != final)]
        groups = at_once // size
        last = torch.empty(0)
        found: dict[LensPoint, Numbers] = {}
        for first in range(0, len(order), groups):
            group = order[first : first + groups]
            logits = lens_logits(model, torch.stack([seen[p][here] for p in group]))
            log_probs = logits.log_softmax(-1, dtype=dtype)  # point token d_vocab
            if first == 0:
                last = log_probs[0]
            top_log_probs, top_tokens = log_probs.topk(top_k)
            numbers = Numbers(
                top_tokens,
                top_log_probs,
                entropy(log_probs),
                _kl(last, log_probs),
                log_probs[..., targets],
                ranks(logits, logits[..., targets]),
            )
            for index, point in enumerate(group):
                found[point] = Numbers(*(values[index].cpu() for values in numbers))
        chunks.append(Numbers(*map(torch.stack, zip(*(found[p] for p in looked), strict=True))))
    return Numbers(*(torch.cat(parts, dim=1) for parts in zip(*chunks, strict=True)))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, from log-probabilities; what p holds impossible counts nothing."""
    probs = p.exp()
    # Rounding can leave a sum that is 0 a hair below it.
    return torch.where(probs == 0, 0.0, probs * (p - q)).sum(-1).clamp_min(0.0)
