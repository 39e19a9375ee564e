import math

import pytest
import torch
from torch import Tensor

from rango.numerics.svd import (
    effective_rank,
    entropy_rank,
    spectrum_of_product,
    truncated_svd,
    truncation_error,
)


def _matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (7, 7), (1, 9)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_error_of_the_truncation_is_eckart_and_youngs(shape: tuple[int, int], rank: int) -> None:
    W = _matrix(*shape).double()
    U, S, Vh = truncated_svd(W, rank)
    measured = float((W - U * S @ Vh).norm() / W.norm())
    assert measured == pytest.approx(truncation_error(torch.linalg.svdvals(W), rank), abs=1e-12)


def test_no_other_matrix_of_that_rank_is_nearer() -> None:
    W = _matrix(20, 16)
    error = truncation_error(torch.linalg.svdvals(W), 4)
    U, S, Vh = truncated_svd(W, 4)
    for seed in range(20):
        other = (U + 0.01 * _matrix(20, 4, seed)) * S @ Vh
        assert float((W - other).norm() / W.norm()) > error


def test_shapes_order_and_types() -> None:
    U, S, Vh = truncated_svd(_matrix(6, 4).bfloat16(), 10)
    assert (U.shape, S.shape, Vh.shape) == ((6, 4), (4,), (4, 4))
    assert U.dtype == torch.float32
    assert (S.diff() <= 0).all()
    assert torch.allclose(U.T @ U, torch.eye(4), atol=1e-5)
    assert truncated_svd(_matrix(6, 4).double(), 2)[1].dtype == torch.float64


@pytest.mark.parametrize(("shape", "rank"), [((3,), 1), ((3, 3, 3), 1), ((3, 3), 0)])
def test_what_is_no_matrix_or_no_rank_is_refused(shape: tuple[int, ...], rank: int) -> None:
    with pytest.raises(ValueError, match="expected a matrix"):
        truncated_svd(torch.zeros(shape), rank)


@pytest.mark.parametrize(("out", "r", "into"), [(30, 4, 20), (20, 7, 50), (3, 8, 20), (30, 8, 2)])
def test_spectrum_of_a_product_without_the_product(out: int, r: int, into: int) -> None:
    B, A = _matrix(out, r, 1), _matrix(r, into, 2)
    spectrum = spectrum_of_product(B, A)
    assert len(spectrum) == min(out, r, into)
    expected = torch.linalg.svdvals(B.double() @ A.double())[: len(spectrum)]
    torch.testing.assert_close(spectrum, expected, rtol=1e-10, atol=1e-10)


def test_spectrum_of_trained_factors_needs_no_graph() -> None:
    B, A = _matrix(5, 2).requires_grad_(), _matrix(2, 5).requires_grad_()
    assert not spectrum_of_product(B, A).requires_grad


def test_true_rank_three_of_eight_is_found() -> None:
    B = _matrix(64, 3, 1) @ _matrix(3, 8, 2)
    assert effective_rank(spectrum_of_product(B, _matrix(8, 96, 3))) == 3


def test_ranks_of_nothing_and_of_equal_values() -> None:
    assert effective_rank(torch.zeros(4)) == 0
    assert effective_rank(torch.zeros(0)) == 0
    assert entropy_rank(torch.zeros(4)) == 0
    assert truncation_error(torch.zeros(4), 1) == 0
    assert entropy_rank(torch.full((5,), 2.0)) == pytest.approx(5)
    assert effective_rank(torch.tensor([1.0, 0.5, 0.2, 0.01]), tolerance=0.1) == 3


def test_entropy_rank_of_uneven_values_is_between_one_and_their_number() -> None:
    values = torch.tensor([1.0, 0.5])
    p = (2 / 3, 1 / 3)
    assert entropy_rank(values) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert 1 < entropy_rank(values) < 2
