"""Matrices kept as a product of two thin ones, and what can be computed without multiplying out.

A head of GPT-2 reads and writes the whole residual stream through `d_head` numbers, so its circuits
are `d_model x d_model`, or over tokens `d_vocab x d_vocab`, matrices `A @ B` of low rank. Written
as factors they fit in memory, and their singular values, eigenvalues, traces and norms follow from
matrices of the inner size: with `A = Q R` and `B^T = Q' R'` (QR decompositions), `A B` has the
singular values of `R R'^T`; and `A B` has the eigenvalues of `B A`, but for zeros.

Nothing is kept between calls: weights may change, and so may what follows from them.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", appendix "Working
with low-rank matrices". Names are those of TransformerLens' `FactoredMatrix`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Complex, Float
from torch import Tensor

# LAPACK knows no smaller numbers.
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False, repr=False)
class FactoredMatrix:
    """The matrix `A @ B`, or a stack of such, kept as its factors.

        OV = model.OV                          # FactoredMatrix [layer head d_model d_model]
        (model.W_E @ OV[5, 1] @ model.W_U)     # d_vocab x d_vocab, of rank d_head
        OV[5, 1].svd(), OV.eigenvalues, OV.norm()

    Axes before the last two are a stack; those of `A` and `B` are broadcast against each other.

    Attributes:
        A: the left factor.
        B: the right factor.
    """

    A: Float[Tensor, "... ldim mdim"]
    B: Float[Tensor, "... mdim rdim"]

    def __post_init__(self) -> None:
        """Check that the factors fit, and give both the same leading axes.

        Raises:
            ValueError, TypeError: factors that cannot be multiplied, with their shapes.
        """
        for name, factor in (("A", self.A), ("B", self.B)):
            if not isinstance(factor, Tensor):
                raise TypeError(f"{name} is a tensor, not {type(factor).__name__}")
            if factor.ndim < 2 or not factor.is_floating_point():
                raise ValueError(
                    f"{name} is a matrix of floating-point numbers (or a stack of such), not "
                    f"{factor.dtype} of shape {_show(factor.shape)}"
                )
        both = f"A has shape {_show(self.A.shape)}, B {_show(self.B.shape)}"
        if self.A.shape[-1] != self.B.shape[-2]:
            raise ValueError(f"{both}: A's last axis must be as long as B's last but one")
        if self.A.dtype != self.B.dtype or self.A.device != self.B.device:
            raise ValueError(
                f"A is {self.A.dtype} on {self.A.device}, B {self.B.dtype} on {self.B.device}: "
                "both must be of one dtype and on one device"
            )
        try:
            leading = torch.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        except RuntimeError:
            raise ValueError(f"{both}: the axes before the last two do not broadcast") from None
        object.__setattr__(self, "A", self.A.expand(*leading, *self.A.shape[-2:]))
        object.__setattr__(self, "B", self.B.expand(*leading, *self.B.shape[-2:]))

    # ---------------------------------------------------------------- its form

    @property
    def ldim(self) -> int:
        """Rows of the matrix."""
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        """The inner size, which bounds the rank."""
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        """Columns of the matrix."""
        return self.B.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """That of the product."""
        return torch.Size((*self.A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        """How many axes the product has."""
        return self.A.ndim

    @property
    def has_leading_dims(self) -> bool:
        """Whether this is a stack of matrices."""
        return self.ndim > 2

    @property
    def dtype(self) -> torch.dtype:
        """Of both factors."""
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        """Of both factors."""
        return self.A.device

    @property
    def pair(self) -> tuple[Float[Tensor, "... ldim mdim"], Float[Tensor, "... mdim rdim"]]:
        """Both factors."""
        return self.A, self.B

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose, of each matrix of a stack."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def detach(self) -> "FactoredMatrix":
        """The same outside of the autograd graph."""
        return FactoredMatrix(self.A.detach(), self.B.detach())

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """A new axis of length 1 among the leading ones.

        Raises:
            IndexError: `k` is among the axes of the matrix itself.
        """
        n = self.ndim - 2
        if not -self.ndim - 1 <= k <= n or -3 < k < 0:
            raise IndexError(
                f"axis {k} is out of range: a new one goes before the last two, at 0 to {n} "
                f"(or -{self.ndim + 1} to -3)"
            )
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def __repr__(self) -> str:
        return (
            f"FactoredMatrix({_show(self.shape)}, inner size {self.mdim}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Choose matrices of a stack, and of each rows and columns. Always a FactoredMatrix.

        Leading axes answer to what tensors do. After them come rows, then columns: a number (which
        keeps the axis, at length 1: `matrix[2, 3]` is `1 x 1`), a slice, or a list or vector of
        numbers or of booleans; rows and columns are chosen independently of each other. `...`
        stands for all leading axes that are not named.

        Raises:
            IndexError: too many indices, or one that is out of range.
        """
        leading, row, column = self._split(index if isinstance(index, tuple) else (index,))
        try:
            a, b = (self.A[leading], self.B[leading]) if leading else (self.A, self.B)
            return FactoredMatrix(
                a[(..., _kept(row, self.ldim, "row"), slice(None))],
                b[(..., slice(None), _kept(column, self.rdim, "column"))],
            )
        except IndexError as error:
            raise IndexError(f"{self!r} has no [{_show_index(index)}]: {error}") from None

    def _split(self, index: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, Any]:
        """What an index says about leading axes, rows and columns."""
        dots = [i for i, one in enumerate(index) if one is Ellipsis]
        named = sum(_axes_used(one) for one in index)
        if len(dots) > 1 or named > self.ndim:
            raise IndexError(
                f"[{_show_index(index)}] is too long an index for {self!r}: it has {self.ndim} axes"
            )
        if dots:
            full = (slice(None),) * (self.ndim - named)
            index = (*index[: dots[0]], *full, *index[dots[0] + 1 :])
            named = self.ndim
        index = (*index, *(slice(None),) * (self.ndim - named))
        leading, rows = list(index[:-2]), index[-2:]
        if any(one is None or _axes_used(one) != 1 for one in rows):
            raise IndexError(
                f"[{_show_index(index)}]: rows and columns take numbers, slices and vectors; new "
                "axes and masks of several axes go before them"
            )
        return tuple(leading), rows[0], rows[1]

    # ---------------------------------------------------------------- products

    @property
    def AB(self) -> Float[Tensor, "... ldim rdim"]:
        """The matrix itself, multiplied out: `ldim * rdim` numbers, for each of a stack."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "... mdim mdim"]:
        """The factors the other way round, `mdim x mdim`: it has the eigenvalues of `AB`.

        Raises:
            ValueError: the matrix is not square.
        """
        self._square("BA")
        return self.B @ self.A

    @overload
    def __matmul__(self, other: "FactoredMatrix") -> "FactoredMatrix": ...
    @overload
    def __matmul__(self, other: Tensor) -> "FactoredMatrix | Tensor": ...
    def __matmul__(self, other: "FactoredMatrix | Tensor") -> "FactoredMatrix | Tensor":
        """`self @ other`: a FactoredMatrix, or with a vector a tensor `... ldim`.

        Raises:
            ValueError: the inner axes differ.
        """
        if isinstance(other, FactoredMatrix):
            check_inner(self.shape, other.shape)
            core = self.B @ other.A
            if self.mdim <= other.mdim:
                return FactoredMatrix(self.A, core @ other.B)
            return FactoredMatrix(self.A @ core, other.B)
        if not isinstance(other, Tensor):
            return NotImplemented
        check_inner(self.shape, other.shape)
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        if self.rdim < self.mdim:
            return FactoredMatrix(self.AB, other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> "FactoredMatrix | Tensor":
        """`other @ self`: a FactoredMatrix, or with a vector a tensor `... rdim`.

        Raises:
            ValueError: the inner axes differ.
        """
        if not isinstance(other, Tensor):
            return NotImplemented
        check_inner(other.shape, self.shape)
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        if self.ldim < self.mdim:
            return FactoredMatrix(other, self.AB)
        return FactoredMatrix(other @ self.A, self.B)

    def __mul__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        """The matrix times a number.

        Raises:
            ValueError: a tensor of several numbers.
        """
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise ValueError(
                f"* takes one number, this is a tensor of shape {_show(scalar.shape)}; for a "
                "product of matrices there is @"
            )
        if isinstance(scalar, Tensor):
            scalar = scalar.reshape(()).to(self.A)
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __truediv__(self, scalar: int | float | Tensor) -> "FactoredMatrix":
        """The matrix divided by a number; see `__mul__`."""
        return self * (1 / scalar)

    def __neg__(self) -> "FactoredMatrix":
        return self * -1.0

    # ---------------------------------------------------------------- without multiplying out

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "... ldim rank"], Float[Tensor, "... rank"], Float[Tensor, "... rdim rank"]
    ]:
        """Singular value decomposition: `U, S, V` with `AB = U @ S.diag() @ V.T`.

        Columns of `U` and `V` are singular vectors, by falling singular value; there are
        min(ldim, mdim, rdim) of them. As in TransformerLens the third is `V`, not its transpose.
        Each pair is unique up to a common sign only. Half precision is computed in float32.
        """
        q_left, r_left = torch.linalg.qr(full_precision(self.A))
        q_right, r_right = torch.linalg.qr(full_precision(self.B.mT))
        u, s, vh = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
        u, v = q_left @ u, q_right @ vh.mT
        return u.to(self.dtype), s.to(self.dtype), v.to(self.dtype)

    @property
    def U(self) -> Float[Tensor, "... ldim rank"]:
        """Left singular vectors. Computed at each call, as are `S` and `V`: `svd` gives all."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "... rank"]:
        """Singular values, falling."""
        return torch.linalg.svdvals(self._core()).to(self.dtype)

    @property
    def V(self) -> Float[Tensor, "... rdim rank"]:
        """Right singular vectors."""
        return self.svd()[2]

    @property
    def Vh(self) -> Tensor:
        """Refused: in TransformerLens `Vh` is `V`, elsewhere its transpose."""
        raise AttributeError(
            "FactoredMatrix has no Vh: TransformerLens' Vh is V itself, torch's is its transpose. "
            "Say .V or .V.mT"
        )

    @property
    def eigenvalues(self) -> Complex[Tensor, "... min_dim"]:
        """The eigenvalues that can be other than 0: min(ldim, mdim) of them, in no order.

        Raises:
            ValueError: the matrix is not square.
        """
        self._square("eigenvalues")
        small = self.BA if self.mdim <= self.ldim else self.AB
        return torch.linalg.eigvals(full_precision(small))

    def norm(self) -> Float[Tensor, "..."]:
        """The Frobenius norm."""
        return self._core().flatten(-2).norm(dim=-1).to(self.dtype)

    def diagonal(self) -> Float[Tensor, "... ldim"]:
        """The matrix' diagonal.

        Raises:
            ValueError: the matrix is not square.
        """
        self._square("the diagonal")
        return torch.einsum("...lm,...ml->...l", self.A, self.B)

    def trace(self) -> Float[Tensor, "..."]:
        """The sum of the diagonal, which is that of the eigenvalues.

        Raises:
            ValueError: the matrix is not square.
        """
        self._square("the trace")
        return torch.einsum("...lm,...ml->...", self.A, self.B)

    def low_rank(self, rank: int) -> "FactoredMatrix":
        """The nearest matrix of at most this rank, in Frobenius norm (Eckart & Young 1936).

        Raises:
            ValueError: a rank below 1 or above min(ldim, mdim, rdim).
        """
        most = min(self.ldim, self.mdim, self.rdim)
        if not 1 <= rank <= most:
            raise ValueError(f"rank={rank} is out of range: this matrix has 1 to {most}")
        return self._even(rank)

    def make_even(self) -> "FactoredMatrix":
        """The same matrix with its singular values shared evenly: both factors have orthogonal
        columns (`A`) or rows (`B`), of equal norms."""
        return self._even(min(self.ldim, self.mdim, self.rdim))

    def _even(self, rank: int) -> "FactoredMatrix":
        u, s, v = self.svd()
        root = s[..., :rank].sqrt()
        return FactoredMatrix(
            u[..., :rank] * root[..., None, :], root[..., :, None] * v[..., :rank].mT
        )

    def collapse_l(self) -> Float[Tensor, "... rank rdim"]:
        """`S V^T`: the matrix but for a rotation on the left, with all its inner products of
        columns."""
        _, s, v = self.svd()
        return s[..., :, None] * v.mT

    def collapse_r(self) -> Float[Tensor, "... ldim rank"]:
        """`U S`: the matrix but for a rotation on the right, with all its inner products of
        rows."""
        u, s, _ = self.svd()
        return u * s[..., None, :]

    def get_corner(self, k: int = 3) -> Float[Tensor, "..."]:
        """The first k of each axis, multiplied out."""
        return self[tuple(slice(k) for _ in range(self.ndim))].AB

    def allclose(
        self, other: "FactoredMatrix | Tensor", rtol: float = 1e-5, atol: float = 1e-8
    ) -> bool:
        """Whether both are nearly the same matrix, whatever their factors: in each of a stack,
        `norm(self - other) <= atol + rtol * norm(other)`.

        Raises:
            ValueError: they have different shapes.
        """
        if tuple(self.shape) != tuple(other.shape):
            raise ValueError(f"shapes differ: {_show(self.shape)} here, {_show(other.shape)} there")
        if isinstance(other, FactoredMatrix):
            stacked = torch.cat([self.A, -other.A], -1), torch.cat([self.B, other.B], -2)
            gap, size = FactoredMatrix(*stacked).norm(), other.norm()
        else:
            gap, size = (self.AB - other).flatten(-2).norm(dim=-1), other.flatten(-2).norm(dim=-1)
        return bool((gap <= atol + rtol * size).all())

    def _core(self) -> Float[Tensor, "... left right"]:
        """A matrix of at most the inner size with the same singular values."""
        return left_core(self.A) @ left_core(self.B.mT).mT

    def _square(self, what: str) -> None:
        if self.ldim != self.rdim:
            raise ValueError(f"{what} needs a square matrix, this is {self.ldim} x {self.rdim}")


def left_core(factor: Float[Tensor, "... tall wide"]) -> Float[Tensor, "... core wide"]:
    """`R` of the QR decomposition: all inner products of the columns, in the fewest rows."""
    # With Q only where a gradient needs it.
    needed = factor.requires_grad and torch.is_grad_enabled()
    return torch.linalg.qr(full_precision(factor), mode="reduced" if needed else "r").R


def full_precision(values: Tensor) -> Tensor:
    """The same in a dtype that LAPACK knows."""
    return values.float() if values.dtype in _HALF else values


def check_inner(left: Sequence[int], right: Sequence[int]) -> None:
    """Refuse to multiply matrices of these shapes where the inner axes differ."""
    inner = right[-2] if len(right) > 1 else right[-1] if len(right) else None
    if not len(left) or left[-1] != inner:
        raise ValueError(
            f"cannot multiply {_show(left)} with {_show(right)}: the inner axes must be equally "
            "long"
        )


def _kept(one: Any, size: int, what: str) -> Any:
    """An index of rows or columns under which the axis stays."""
    if isinstance(one, Tensor) and one.ndim == 0 and one.dtype != torch.bool:
        one = int(one)
    if isinstance(one, int) and not isinstance(one, bool):
        if not -size <= one < size:
            raise IndexError(f"{what} {one} is out of range: there are {size}, 0 to {size - 1}")
        one %= size
        return slice(one, one + 1)
    return one


def _axes_used(one: Any) -> int:
    """How many axes of a tensor an index takes."""
    if one is None or one is Ellipsis:
        return 0
    if isinstance(one, Tensor) and one.dtype == torch.bool:
        return one.ndim
    return 1


def _show(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _show_index(index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return ", ".join("..." if one is Ellipsis else str(one) for one in parts)
