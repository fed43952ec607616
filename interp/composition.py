"""The circuits of attention heads, and their composition: what one writes and another one reads.

The score of matrices `M` and `N` (row vectors: `x @ M @ N`) is `|M N| / (|M| |N|)` in Frobenius
norms: 0 where `M` writes into a subspace that `N` does not read, at most 1. Of two random
directions it is not 0 but about `1 / sqrt(d)`, see `random_composition`.

For factored matrices nothing of size `d x d` is made. What `M = A B` writes is, but for a rotation
of what it reads, `R B` with `A = Q R`: as many rows as the inner size. Likewise for what `N` reads.
Then one product of thin matrices gives all pairs.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Two-Layer
Attention-Only Transformers".
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hooks.names import nearest
from interp.factored import FactoredMatrix, check_inner, full_precision, left_core

# So many numbers of products are held at a time.
_AT_ONCE = 2**24

COMPOSITION_MODES = ("Q", "K", "V")


@runtime_checkable
class HeadWeights(Protocol):
    """What holds the weights of heads, `... head d_model d_head` and (`W_O`) `d_head d_model`."""

    @property
    def W_Q(self) -> Tensor:
        """Makes queries."""
        ...

    @property
    def W_K(self) -> Tensor:
        """Makes keys."""
        ...

    @property
    def W_V(self) -> Tensor:
        """Makes values."""
        ...

    @property
    def W_O(self) -> Tensor:
        """Makes what is written."""
        ...


class Circuits:
    """The two circuits of attention heads, of whatever holds their weights.

    Row vectors: a query `x` scores a key `y` by `x @ QK @ y`, but for biases and the division by
    `sqrt(d_head)`; attention to `y` writes `y @ OV`, but for biases. Where layer norms are not
    folded into the weights (`model.processed()`), `x` and `y` are what leaves the layer norm.
    """

    @property
    def QK(self: HeadWeights) -> FactoredMatrix:
        """`W_Q W_K^T`, per head `d_model x d_model`; biases are left out."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self: HeadWeights) -> FactoredMatrix:
        """`W_V W_O`, per head `d_model x d_model`; biases are left out."""
        return FactoredMatrix(self.W_V, self.W_O)


def composed(
    QK: FactoredMatrix, OV: FactoredMatrix, mode: str
) -> tuple[FactoredMatrix, FactoredMatrix]:
    """What writes and what reads in a mode of composition.

    The OV circuit of the earlier head writes; the later one reads it with its QK circuit from the
    side of queries ("Q") or keys ("K"), or with its OV circuit ("V").

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in COMPOSITION_MODES:
        raise ValueError(
            f"mode is one of {', '.join(COMPOSITION_MODES)}, not {mode!r}."
            f"{nearest(str(mode).upper(), COMPOSITION_MODES)}"
        )
    return OV, OV if mode == "V" else QK if mode == "Q" else QK.T


def composition_scores(left: FactoredMatrix, right: FactoredMatrix) -> Float[Tensor, "..."]:
    """The score of every matrix of one stack with every matrix of another.

    Args:
        left: `*left n d`, what writes.
        right: `*right d m`, what reads.

    Returns:
        the leading axes of `left`, then those of `right`. NaN where one of both is 0.

    Raises:
        ValueError: the inner axes differ.
    """
    check_inner(left.shape, right.shape)
    written, read = _written(left), _read(right)
    lefts, rights = left.shape[:-2], right.shape[:-2]
    scores = _scores(written.reshape(-1, *written.shape[-2:]), read.reshape(-1, *read.shape[-2:]))
    return scores.to(left.dtype).reshape((*lefts, *rights))


def later_composition_scores(
    left: FactoredMatrix, right: FactoredMatrix
) -> Float[Tensor, "layer head later_layer later_head"]:
    """The same for heads `layer head`, where what reads is in a later layer; others are NaN.

    Raises:
        ValueError: the shapes are no `layer head d_model d_model`, the same for both.
    """
    if left.ndim != 4 or left.shape != right.shape:
        raise ValueError(
            f"expected two stacks layer head d_model d_model, got {tuple(left.shape)} and "
            f"{tuple(right.shape)}"
        )
    written, read = _written(left), _read(right)
    n_layers, n_heads = left.shape[:2]
    scores = written.new_full((n_layers, n_heads, n_layers, n_heads), torch.nan)
    for layer in range(n_layers - 1):
        later = read[layer + 1 :]
        found = _scores(written[layer], later.flatten(0, 1))
        scores[layer, :, layer + 1 :] = found.view(n_heads, *later.shape[:2])
    return scores.to(left.dtype)


def random_composition(left: FactoredMatrix, right: FactoredMatrix) -> tuple[Tensor, Tensor]:
    """What the *square* of a score is where the one matrix is turned at random against the other.

    1. Let `O` be a random rotation of the `d` numbers between both (Haar), `p` and `q` the shares
       of the squared singular values of `M` and `N`. Then the squared score of `M O N` is
       `sum_ij p_i q_j o_ij^2` with `o` entries of such a rotation.
    2. E[o^2] = 1/d, so its mean is `1/d`, whatever the matrices. That holds for products of
       independent Gaussian factors too: they look the same from every side.
    3. E[o^4] = 3/(d(d+2)); for two entries in one row or column E = 1/(d(d+2)); for two in neither
       E = (d+1)/((d-1)d(d+2)). That gives the variance, from `sum p^2` and `sum q^2` alone.

    Args:
        left, right: as in `composition_scores`.

    Returns:
        mean (one number) and standard deviation (`*left *right`) of the squared score.

    Raises:
        ValueError: the inner axes differ.
    """
    check_inner(left.shape, right.shape)
    d = left.rdim
    spread = [_participation(one) for one in (left, right)]
    a = spread[0].reshape((*left.shape[:-2], *(1 for _ in right.shape[:-2])))
    b = spread[1]
    mean = a.new_tensor(1 / d)
    if d == 1:
        return mean, torch.zeros_like(a * b)
    same, beside, apart = 3.0, 1.0, (d + 1) / (d - 1)
    second = a * b * same + (a + b - 2 * a * b) * beside + (1 - a) * (1 - b) * apart
    variance = second / (d * (d + 2)) - mean**2
    return mean, variance.clamp(min=0).sqrt()


def _participation(matrix: FactoredMatrix) -> Tensor:
    """`sum p^2`, where p are the shares of the squared singular values; in float64."""
    # With the core's columns C: sum s^2 = |C|^2, and sum s^4 = |C^T C|^2.
    core = (left_core(matrix.A) @ left_core(matrix.B.mT).mT).double()
    fourth = (core.mT @ core).flatten(-2).norm(dim=-1).square()
    return fourth / core.flatten(-2).norm(dim=-1) ** 4


def _written(left: FactoredMatrix) -> Tensor:
    """`... core d`: what `left` writes, but for a rotation of what it reads."""
    return left_core(left.A) @ full_precision(left.B)


def _read(right: FactoredMatrix) -> Tensor:
    """`... d core`: what `right` reads, but for a rotation of what it writes."""
    return full_precision(right.A) @ left_core(right.B.mT).mT


def _scores(written: Float[Tensor, "n core d"], read: Float[Tensor, "m d other"]) -> Tensor:
    """`n m`: the scores, from what the one writes and the other reads."""
    n, m, other = len(written), len(read), read.shape[-1]
    # All that reads side by side: few large products instead of many small ones.
    wide = read.transpose(0, 1).reshape(read.shape[1], m * other)
    at_once = max(1, _AT_ONCE // max(1, written.shape[1] * m * other))
    product = torch.cat(
        [
            torch.linalg.vector_norm(
                (part.flatten(0, 1) @ wide).view(len(part), -1, m, other), dim=(1, 3)
            )
            for part in written.split(at_once)
        ]
    )
    norms = [one.flatten(1).norm(dim=-1) for one in (written, read)]
    return product.view(n, m) / (norms[0][:, None] * norms[1])
