"""Tensors against tensorly, brute force and least squares by LAPACK, in float64."""

import math

import pytest
import tensorly
import torch
from tensorly import tenalg

from lowdim.checks import ParameterError
from lowdim.runtime import generator
from lowdim.tensors import (
    CP,
    Tucker,
    cgls,
    check_ranks,
    cp_inner,
    fold,
    hosvd,
    khatri_rao,
    mode_product,
    mttkrp,
    multi_product,
    truncated,
    tucker_size,
    unfold,
)

KINDS = [torch.float64, torch.complex128]
SHAPE = (4, 5, 6)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def backend():
    tensorly.set_backend("pytorch")


def close(a, b, tol=1e-10):
    return float((a - b).abs().max()) < tol


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_unfoldings_and_products_are_tensorlys(dtype, mode):
    x, matrix = random(*SHAPE, dtype=dtype), random(3, SHAPE[mode], seed=1, dtype=dtype)
    assert torch.equal(unfold(x, mode), tensorly.unfold(x, mode))
    assert torch.equal(fold(unfold(x, mode), mode, SHAPE), x)
    assert close(mode_product(x, matrix, mode), tenalg.mode_dot(x, matrix, mode))


@pytest.mark.parametrize("dtype", KINDS)
def test_tucker_is_tensorlys_and_its_unfolding_has_the_kronecker_product(dtype):
    model = Tucker(
        random(2, 3, 4, dtype=dtype), [random(n, r, seed=n, dtype=dtype) for n, r in zip(SHAPE, (2, 3, 4), strict=True)]
    )
    full = model.full()
    assert close(full, tensorly.tucker_tensor.tucker_to_tensor((model.core, model.factors)))
    d, e, f = model.factors
    assert close(unfold(full, 0), d @ unfold(model.core, 0) @ torch.kron(e, f).T)
    assert model.size == sum(t.numel() for t in (model.core, *model.factors)) == tucker_size(SHAPE, (2, 3, 4))
    same = model.orthonormal()
    assert close(same.full(), full)
    assert all(close(q.mH @ q, torch.eye(q.shape[1], dtype=dtype)) for q in same.factors)


@pytest.mark.parametrize("dtype", KINDS)
def test_hosvd_is_exact_at_full_rank_and_batched(dtype):
    x = random(3, *SHAPE, dtype=dtype)
    assert close(hosvd(x, SHAPE).full(), x)
    low = hosvd(x, (2, 3, 4))
    for i in range(3):
        assert close(low.full()[i], hosvd(x[i], (2, 3, 4)).full())
    # quasi-optimal: at most the sum of what each unfolding alone loses, and no less than the largest of them
    lost = [(torch.linalg.svdvals(unfold(x[0], k))[r:] ** 2).sum() for k, r in enumerate((2, 3, 4))]
    error = float((x[0] - low.full()[0]).norm() ** 2)
    assert float(max(lost)) - 1e-9 <= error <= float(sum(lost)) + 1e-9


def test_hosvd_recovers_exactly_low_rank_like_tensorly():
    x = Tucker(random(2, 2, 3), [random(n, r, seed=n) for n, r in zip(SHAPE, (2, 2, 3), strict=True)]).full()
    assert close(hosvd(x, (2, 2, 3)).full(), x)
    theirs = tensorly.decomposition.tucker(x, rank=[2, 2, 3], init="svd")
    assert close(tensorly.tucker_to_tensor(theirs), x, 1e-8)


@pytest.mark.parametrize("dtype", KINDS)
def test_cp_and_khatri_rao_are_tensorlys(dtype):
    factors = [random(n, 3, seed=n, dtype=dtype) for n in SHAPE]
    model, x = CP(factors), random(*SHAPE, dtype=dtype)
    assert close(model.full(), tensorly.cp_to_tensor((None, factors)))
    assert close(khatri_rao(factors[1:]), tenalg.khatri_rao(factors[1:]))
    for mode in range(3):
        others = [f for k, f in enumerate(factors) if k != mode]
        assert close(mttkrp(x, factors, mode), unfold(x, mode) @ khatri_rao(others))
    assert close(cp_inner(x, factors), (x * model.full()).sum())
    assert model.size == 3 * sum(SHAPE)


def test_balancing_keeps_the_tensor_and_equals_the_norms():
    model = CP([random(2, n, 3, seed=n) * 10**k for k, n in enumerate(SHAPE)])
    balanced = model.balanced()
    assert close(balanced.full(), model.full(), 1e-8)
    norms = balanced.norms()
    assert close(norms, norms[:, :1].expand_as(norms), 1e-8)
    model.factors[0][:, :, 1] = 0
    assert close(model.balanced().full(), model.full(), 1e-8)


def test_batches_are_single_runs():
    x, factors = random(3, *SHAPE), [random(3, n, 2, seed=n) for n in SHAPE]
    for i in range(3):
        assert close(mttkrp(x, factors, 1)[i], mttkrp(x[i], [f[i] for f in factors], 1))
        assert close(
            multi_product(x, factors, transpose=True)[i], multi_product(x[i], [f[i] for f in factors], transpose=True)
        )


def test_truncation_is_eckart_youngs():
    x = random(5, 7)
    error = (x - truncated(x, 2)).norm()
    assert math.isclose(error, torch.linalg.svdvals(x)[2:].norm(), rel_tol=1e-12)


@pytest.mark.parametrize("dtype", KINDS)
def test_conjugate_gradients_solve_least_squares_for_each_run(dtype):
    matrix, rhs = random(3, 20, 6, dtype=dtype), random(3, 20, seed=1, dtype=dtype)
    matrix[1] *= 100  # runs of different scale stop on their own
    forward = lambda v: (matrix @ v[..., None])[..., 0]
    adjoint = lambda z: (matrix.mH @ z[..., None])[..., 0]
    wanted = torch.linalg.lstsq(matrix, rhs[..., None]).solution[..., 0]
    zero = torch.zeros(3, 6, dtype=dtype)
    assert close(cgls(forward, adjoint, rhs, zero, steps=50, tolerance=1e-13), wanted)
    inverse = torch.linalg.inv(matrix.mH @ matrix)
    exact = cgls(forward, adjoint, rhs, zero, steps=1, precondition=lambda s: (inverse @ s[..., None])[..., 0])
    assert close(exact, wanted)  # the exact preconditioner needs one step
    assert close(cgls(forward, adjoint, rhs, wanted, steps=5), wanted)  # and a solution stays
    assert not zero.any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_ranks([2, 7, 3], SHAPE), r"ranks\[1\] must be a whole number >= 1 and <= 5, got 7"),
        (lambda: check_ranks([2, 3], SHAPE), "one rank for each of the 3 modes"),
        (lambda: hosvd(random(*SHAPE), (0, 1, 1)), r"ranks\[0\] must be a whole number >= 1"),
        (lambda: hosvd(random(9, 2, 2), (5, 2, 2)), r"ranks\[0\] must be at most 4"),
        (lambda: CP([random(4, 2), random(5, 3)]), "factors must share one rank"),
        (lambda: truncated(random(3, 4), 5), "rank must be a whole number >= 1 and <= 3"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ParameterError, match=words):
        call()
