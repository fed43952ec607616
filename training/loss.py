"""Weighted cross entropy over the vocabulary that never holds all logits at once.

For a small model with 8,192 entries, the logits of a batch are its largest tensor by far. Loss and
gradients are computed here chunk by chunk in one pass, and positions without weight are skipped.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 512


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, unembed: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        grad_h = torch.empty_like(h)
        grad_unembed = torch.zeros_like(unembed)
        loss = h.new_zeros(())
        buffer = h.new_empty(min(CHUNK, len(h)), len(unembed))
        for start in range(0, len(h), CHUNK):
            rows = h[start : start + CHUNK]
            target = targets[start : start + CHUNK, None]
            weight = weights[start : start + CHUNK]
            logits = torch.mm(rows, unembed.t(), out=buffer[: len(rows)])
            logits.sub_(torch.logsumexp(logits, -1, keepdim=True))
            loss -= (logits.gather(1, target)[:, 0] * weight).sum()
            # From here on the buffer is d loss / d logits = weight * (probability - one_hot).
            logits.exp_().scatter_add_(1, target, h.new_full((len(rows), 1), -1.0))
            logits.mul_(weight[:, None])
            torch.mm(logits, unembed, out=grad_h[start : start + CHUNK])
            grad_unembed.addmm_(logits.t(), rows)
        ctx.save_for_backward(grad_h, grad_unembed)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_unembed = ctx.saved_tensors
        return grad_h * grads[0], grad_unembed * grads[0], None, None


def weighted_loss(residual: Tensor, unembed: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of the positions' cross entropies in nats, each times its weight.

    Args:
        residual: [batch, pos, d_model], after the final layer norm.
        unembed: [d_vocab, d_model].
        targets: [batch, pos] int64, the token that follows each position.
        weights: [batch, pos], 0 leaves a position out.
    """
    kept = weights.flatten().nonzero()[:, 0]
    h = residual.flatten(0, 1)[kept]
    return _ChunkedCrossEntropy.apply(  # pyright: ignore[reportReturnType]
        h, unembed, targets.flatten()[kept], weights.flatten()[kept]
    )
