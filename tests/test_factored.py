"""FactoredMatrix against the matrix multiplied out, composition against its definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp import FactoredMatrix, HookedGPT2, HookedGPT2Config
from interp.composition import (
    composed,
    composition_scores,
    later_composition_scores,
    random_composition,
)

SIZES = st.integers(1, 7)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def factored(*leading: int, rows: int = 6, inner: int = 3, columns: int = 6, seed: int = 0):
    a = draw(*leading, rows, inner, seed=seed)
    return FactoredMatrix(a, draw(*leading, inner, columns, seed=seed + 1))


def spectrum(values: Tensor) -> Tensor:
    """Complex numbers in an order that rounding does not change much: by rounded parts."""
    pairs = sorted((round(v.real, 6) + 0.0, round(v.imag, 6) + 0.0) for v in values.tolist())
    return torch.tensor(pairs)


# ------------------------------------------------------------------ what it computes


@given(rows=SIZES, inner=SIZES, columns=SIZES, leading=st.lists(SIZES, max_size=2), seed=SIZES)
def test_singular_values_norm_and_products(rows, inner, columns, leading, seed) -> None:
    matrix = factored(*leading, rows=rows, inner=inner, columns=columns, seed=seed)
    full = matrix.AB
    assert matrix.shape == full.shape and matrix.ndim == full.ndim
    u, s, v = matrix.svd()
    rank = min(rows, inner, columns)
    assert s.shape == (*leading, rank)
    expected = torch.linalg.svdvals(full)
    torch.testing.assert_close(s, expected[..., :rank])
    torch.testing.assert_close(matrix.S, s)
    torch.testing.assert_close(u * s[..., None, :] @ v.mT, full)
    for vectors in (u, v):
        eye = torch.eye(rank, dtype=torch.float64).expand(*leading, -1, -1)
        torch.testing.assert_close(vectors.mT @ vectors, eye)
    torch.testing.assert_close(matrix.norm(), full.flatten(-2).norm(dim=-1))
    torch.testing.assert_close(matrix.T.AB, full.mT)
    torch.testing.assert_close((matrix.collapse_l().mT @ matrix.collapse_l()), full.mT @ full)
    torch.testing.assert_close((matrix.collapse_r() @ matrix.collapse_r().mT), full @ full.mT)
    even = matrix.make_even()
    torch.testing.assert_close(even.AB, full)
    torch.testing.assert_close(even.A.norm(dim=-2), even.B.norm(dim=-1))
    assert even.allclose(matrix, rtol=1e-10) and matrix.allclose(full, rtol=1e-10)
    assert not (matrix * 1.001).allclose(matrix, rtol=1e-4)


@given(size=SIZES, inner=SIZES, seed=SIZES)
def test_eigenvalues_and_traces_of_square_matrices(size, inner, seed) -> None:
    matrix = factored(2, rows=size, inner=inner, columns=size, seed=seed)
    full = matrix.AB
    torch.testing.assert_close(matrix.trace(), full.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(matrix.diagonal(), full.diagonal(dim1=-2, dim2=-1))
    found = matrix.eigenvalues
    assert found.shape == (2, min(size, inner))
    torch.testing.assert_close(found.sum(-1).real, matrix.trace())
    # What is left out of the whole spectrum is zeros: all power sums agree.
    for power in (2, 3):
        whole = torch.linalg.matrix_power(full, power).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close((found**power).sum(-1).real, whole)


def test_eigenvalues_that_are_known() -> None:
    basis = draw(9, 3)
    inverse = torch.linalg.pinv(basis)
    rotation = torch.tensor([[0.0, -2, 0], [2, 0, 0], [0, 0, -5]], dtype=torch.float64)
    found = FactoredMatrix(basis @ rotation, inverse).eigenvalues
    torch.testing.assert_close(
        spectrum(found), torch.tensor([[-5.0, 0.0], [0.0, -2.0], [0.0, 2.0]])
    )


@given(data=st.data(), inner=st.integers(1, 5), other=st.integers(1, 5))
def test_products_with_matrices_vectors_and_factored_ones(data, inner, other) -> None:
    left = factored(2, rows=4, inner=inner, columns=5)
    right = factored(2, rows=5, inner=other, columns=3, seed=7)
    both = left @ right
    assert both.mdim == min(inner, other)
    torch.testing.assert_close(both.AB, left.AB @ right.AB)
    plain = data.draw(st.sampled_from([draw(5, 3), draw(2, 5, 3)]))
    torch.testing.assert_close((left @ plain).AB, left.AB @ plain)
    before = data.draw(st.sampled_from([draw(3, 4), draw(2, 3, 4)]))
    torch.testing.assert_close((before @ left).AB, before @ left.AB)
    assert (left @ plain).mdim <= 5 and (before @ left).mdim <= 5
    vector = draw(5)
    torch.testing.assert_close(left @ vector, left.AB @ vector)
    torch.testing.assert_close(draw(4) @ left, draw(4) @ left.AB)
    torch.testing.assert_close((2 * left / 4).AB, left.AB / 2)
    torch.testing.assert_close((-left * torch.tensor(3.0)).AB, -3 * left.AB)


def test_the_nearest_matrix_of_a_rank() -> None:
    matrix = factored(2, rows=8, inner=5, columns=7)
    u, s, vh = torch.linalg.svd(matrix.AB, full_matrices=False)
    nearest = (u[..., :2] * s[..., None, :2]) @ vh[..., :2, :]
    found = matrix.low_rank(2)
    assert found.mdim == 2
    torch.testing.assert_close(found.AB, nearest)
    with pytest.raises(ValueError, match="rank=6 is out of range: this matrix has 1 to 5"):
        matrix.low_rank(6)


# ------------------------------------------------------------------ indexing


INDICES = [
    1, -1, slice(1, None), ..., (0, 2), (..., slice(None)), (slice(None), -1),
    (1, slice(None), slice(2, 4)), (torch.tensor([1, 0, 1]),), (None, 0), ([0, 1], 1),
    (torch.tensor([True, False]),), (..., slice(None, None, 2), slice(None, 3)),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_leading_axes_and_slices_are_those_of_tensors(index) -> None:
    matrix = factored(2, 3, rows=5, inner=2, columns=4)
    torch.testing.assert_close(matrix[index].AB, matrix.AB[index])


def test_rows_and_columns_stay_matrices() -> None:
    matrix = factored(2, 3, rows=5, inner=2, columns=4)
    full = matrix.AB
    torch.testing.assert_close(matrix[1, 2, 3].AB, full[1, 2, 3:4])
    torch.testing.assert_close(matrix[1, 2, -1, -2].AB, full[1, 2, 4:5, 2:3])
    torch.testing.assert_close(matrix[..., 0, :].AB, full[..., :1, :])
    torch.testing.assert_close(matrix[0, ..., torch.tensor(3)].AB, full[0, ..., 3:4])
    # Rows and columns are chosen independently, where tensors would pair them.
    rows, columns = [4, 0, 2], [1, 3, 3]
    torch.testing.assert_close(matrix[0, 0, rows, columns].AB, full[0, 0][rows][:, columns])
    mask = torch.tensor([True, False, True, False, True])
    torch.testing.assert_close(matrix[0, 0, mask].AB, full[0, 0][mask])
    torch.testing.assert_close(matrix.get_corner(2), full[:2, :2, :2, :2])
    torch.testing.assert_close(matrix.unsqueeze(1).AB, full.unsqueeze(1))
    torch.testing.assert_close(matrix.unsqueeze(-3).AB, full.unsqueeze(-3))


@pytest.mark.usefixtures("unchecked")
def test_indices_that_there_are_not() -> None:
    matrix = factored(2, 3, rows=5, inner=2, columns=4)
    for index, why in (
        ((0, 0, 5), "row 5 is out of range: there are 5, 0 to 4"),
        ((0, 0, 0, -5), "column -5 is out of range"),
        ((2,), "out of bounds"),
        ((0, 0, 0, 0, 0), "too long an index"),
        ((..., 0, ...), "too long an index"),
        ((0, 0, 0, None), "new axes"),
        ((0, 0, slice(None), torch.ones(2, 2, dtype=torch.bool)), "too long an index"),
    ):
        with pytest.raises(IndexError, match=why):
            matrix[index]
    for axis in (3, -2, -6):
        with pytest.raises(IndexError, match="goes before the last two"):
            matrix.unsqueeze(axis)


# ------------------------------------------------------------------ what it refuses


@pytest.mark.usefixtures("unchecked")
def test_factors_that_do_not_fit() -> None:
    for a, b, error, why in (
        (draw(4, 3), draw(2, 5), ValueError, r"A has shape \[4, 3\], B \[2, 5\]"),
        (draw(2, 4, 3), draw(5, 3, 5), ValueError, "do not broadcast"),
        (draw(3), draw(3, 4), ValueError, "A is a matrix"),
        (draw(4, 3), draw(3, 4).float(), ValueError, "B torch.float32"),
        (draw(4, 3), torch.ones(3, 4, dtype=torch.int64), ValueError, "B is a matrix of floating"),
        (draw(4, 3), [[1.0]], TypeError, "B is a tensor, not list"),
    ):
        with pytest.raises(error, match=why):
            FactoredMatrix(a, b)  # type: ignore[arg-type]
    wide = factored(rows=4, columns=5)
    for what in (lambda: wide.eigenvalues, wide.trace, wide.diagonal, lambda: wide.BA):
        with pytest.raises(ValueError, match="needs a square matrix, this is 4 x 5"):
            what()
    for product in (lambda: wide @ draw(4, 2), lambda: draw(2, 5) @ wide, lambda: wide @ draw(4),
                    lambda: wide @ wide, lambda: draw(5) @ wide):  # fmt: skip
        with pytest.raises(ValueError, match="cannot multiply"):
            product()
    with pytest.raises(TypeError):
        _ = wide @ 3  # type: ignore[operator]
    with pytest.raises(ValueError, match="there is @"):
        _ = wide * draw(5)
    with pytest.raises(ValueError, match=r"\[4, 5\] here, \[5, 4\] there"):
        wide.allclose(wide.T)
    with pytest.raises(AttributeError, match=r"Say \.V or \.V\.mT"):
        _ = wide.Vh


def test_half_precision_is_computed_in_float32() -> None:
    matrix = factored(rows=6, columns=6)
    half = FactoredMatrix(matrix.A.bfloat16(), matrix.B.bfloat16())
    exact = FactoredMatrix(half.A.double(), half.B.double())
    assert half.S.dtype == half.norm().dtype == torch.bfloat16
    torch.testing.assert_close(half.S.double(), exact.S, rtol=1e-2, atol=0)
    assert half.eigenvalues.dtype == torch.complex64


def test_nothing_of_the_outer_size_is_made() -> None:
    """On a million tokens, `ldim x rdim` would be 8 TB."""
    n = 1_000_000
    thin = FactoredMatrix(torch.full((n, 2), 1e-3).double(), torch.full((2, n), 1e-3).double())
    assert float(thin.norm()) == pytest.approx(2, rel=1e-3)
    assert float(thin.trace()) == pytest.approx(2, rel=1e-3)
    assert float(thin.eigenvalues.abs().max()) == pytest.approx(2, rel=1e-3)
    assert thin[5, -1].AB.item() == pytest.approx(2e-6)
    assert float(thin.svd()[1][0]) == pytest.approx(2, rel=1e-3)
    assert float((thin @ thin).norm()) == pytest.approx(4, rel=1e-3)


def test_gradients_flow() -> None:
    a, b = draw(5, 2).requires_grad_(), draw(2, 5).requires_grad_()
    FactoredMatrix(a, b).norm().backward()
    expected = (a @ b).norm()
    torch.testing.assert_close(a.grad, torch.autograd.grad(expected, a)[0])
    assert not FactoredMatrix(a, b).detach().A.requires_grad


# ------------------------------------------------------------------ composition


def naive(left: Tensor, right: Tensor) -> Tensor:
    """The definition, pair by pair."""
    return torch.stack(
        [torch.stack([(m @ n).norm() / (m.norm() * n.norm()) for n in right]) for m in left]
    )


@given(inner=st.integers(1, 6), d=st.integers(1, 6), n=SIZES, m=SIZES, other=st.integers(1, 6))
def test_scores_are_their_definition(inner, d, n, m, other) -> None:
    left = factored(n, rows=5, inner=inner, columns=d)
    right = factored(m, rows=d, inner=other, columns=4, seed=9)
    torch.testing.assert_close(composition_scores(left, right), naive(left.AB, right.AB))


def test_scores_of_a_model_are_their_definition_for_all_pairs() -> None:
    cfg = HookedGPT2Config(n_layers=3, d_model=24, n_heads=4, d_vocab=11, n_ctx=8)
    model = HookedGPT2.from_config(cfg, dtype="float64").requires_grad_(False)
    for mode in "QKV":
        found = model.all_composition_scores(mode)
        later = later_composition_scores(*composed(model.QK, model.OV, mode))
        for l1 in range(3):
            for h1 in range(4):
                ov = model.W_V[l1, h1] @ model.W_O[l1, h1]
                for l2 in range(3):
                    for h2 in range(4):
                        reads = {
                            "Q": model.W_Q[l2, h2] @ model.W_K[l2, h2].T,
                            "K": model.W_K[l2, h2] @ model.W_Q[l2, h2].T,
                            "V": model.W_V[l2, h2] @ model.W_O[l2, h2],
                        }[mode]
                        score = float((ov @ reads).norm() / (ov.norm() * reads.norm()))
                        here = (l1, h1, l2, h2)
                        if l2 > l1:
                            assert float(found[here]) == pytest.approx(score, abs=1e-12)
                            assert float(later[here]) == float(found[here])
                        else:
                            assert float(found[here]) == 0
                            assert math.isnan(later[here])


def test_views_of_a_model(reference_model) -> None:
    hf = reference_model({"n_layer": 2, "n_embd": 12, "n_head": 3, "vocab_size": 20})
    model = HookedGPT2.from_pretrained(hf).requires_grad_(False)
    torch.testing.assert_close(model.OV.AB, model.W_V @ model.W_O)
    torch.testing.assert_close(model.QK[1, 2].AB, model.W_Q[1, 2] @ model.W_K[1, 2].T)
    attn = model.blocks[1].attn
    torch.testing.assert_close(attn.OV[2].AB, model.OV[1, 2].AB)
    torch.testing.assert_close(attn.QK.AB, model.QK[1].AB)
    assert model.OV.A.data_ptr() == model.W_V.data_ptr()
    assert model.all_head_labels()[:4] == ["L0H0", "L0H1", "L0H2", "L1H0"]
    with pytest.raises(ValueError, match=r"one of Q, K, V, not 'q'. Did you mean 'Q'"):
        model.all_composition_scores("q")


def test_random_factors_score_what_is_expected() -> None:
    """The squared score has the mean 1/d, whatever the inner size."""
    d, n = 20, 4000
    for inner in (1, 3, 20):
        left = factored(n, rows=d, inner=inner, columns=d, seed=1)
        right = factored(n, rows=d, inner=inner, columns=d, seed=3)
        product = (left @ right).norm() / (left.norm() * right.norm())
        squared = product.square()
        mean, _ = random_composition(left[:1], right[:1])
        assert float(mean) == pytest.approx(1 / d)
        error = float(squared.std()) / math.sqrt(n)
        assert abs(float(squared.mean()) - 1 / d) < 4 * error
        assert float(product.mean()) < math.sqrt(1 / d)


def test_the_spread_is_that_of_random_rotations() -> None:
    d, n = 7, 60_000
    q, r = torch.linalg.qr(draw(n, d, d, seed=5))
    turns = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    for inner, other in ((1, 1), (2, 5), (7, 3)):
        left = factored(rows=d, inner=inner, columns=d, seed=2)
        right = factored(rows=d, inner=other, columns=d, seed=4)
        turned = (left.AB @ turns @ right.AB).flatten(1).norm(dim=1)
        squared = (turned / (left.norm() * right.norm())).square()
        mean, spread = random_composition(left, right)
        assert float(squared.mean()) == pytest.approx(float(mean), rel=0.02)
        assert float(squared.std()) == pytest.approx(float(spread), rel=0.02)
    stacked = random_composition(factored(2, rows=d, columns=d), factored(3, rows=d, columns=d))
    assert stacked[1].shape == (2, 3)


def test_composition_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="inner axes"):
        composition_scores(factored(columns=5), factored(rows=6))
    with pytest.raises(ValueError, match="inner axes"):
        random_composition(factored(columns=5), factored(rows=6))
    with pytest.raises(ValueError, match="layer head d_model d_model"):
        later_composition_scores(factored(2), factored(2))


def test_composition_makes_no_product_of_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = factored(2, 3, rows=50, inner=2, columns=50)
    sizes: list[int] = []
    plain = Tensor.__matmul__

    def recorded(self: Tensor, other: Tensor) -> Tensor:
        found = plain(self, other)
        sizes.append(max(a * b for a, b in [(found.shape[-1], found.shape[-2])]))
        return found

    monkeypatch.setattr(Tensor, "__matmul__", recorded)
    monkeypatch.setattr(FactoredMatrix, "AB", property(lambda self: pytest.fail("multiplied out")))
    later_composition_scores(matrix, matrix.T)
    assert sizes and max(sizes) < 50 * 50
