"""Muon for the matrices inside the blocks: momentum whose update is made orthogonal.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. PyTorch has
one too, but it orthogonalises in bfloat16, which CPUs without bfloat16 units do twenty times more
slowly than this file's float32, batched over all matrices of a shape.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of the source.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of a batch of matrices [n, rows <= cols] near 1."""
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


@torch.no_grad()
def _apply(pairs: list[tuple[Tensor, Tensor]], lr: float) -> None:
    """Subtract the orthogonalised updates of matrices of one shape."""
    rows, cols = pairs[0][0].shape
    updates = orthogonalise(torch.stack([update for _, update in pairs]))
    for (matrix, _), update in zip(pairs, updates, strict=True):
        matrix.add_(update, alpha=-lr * (cols / rows) ** 0.5)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per square-ish block of each matrix.

    GPT-2 stores queries, keys and values side by side as [d_model, 3 d_model]; they are three maps,
    so matrices of exactly that shape are orthogonalised as three.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        pool: Executor,
    ):
        self.pool = pool
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply one update; a closure is not supported and must be left out."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"])
                param.mul_(1 - group["lr"] * group["weight_decay"])
                rows, cols = param.shape
                n_blocks = 3 if cols == 3 * rows else 1
                for block, part in zip(
                    param.chunk(n_blocks, 1), update.chunk(n_blocks, 1), strict=True
                ):
                    if block.shape[0] > block.shape[1]:
                        block, part = block.mT, part.mT
                    by_shape[(block.shape[0], block.shape[1])].append((block, part))
            # A few matrices per job: enough jobs for every thread of the pool.
            jobs = [
                pairs[i : i + 4] for pairs in by_shape.values() for i in range(0, len(pairs), 4)
            ]
            list(self.pool.map(lambda pairs, lr=group["lr"]: _apply(pairs, lr), jobs))
