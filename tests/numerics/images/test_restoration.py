"""Operators, solvers, total variation and the Gaussian law, against dense matrices and a bounded least-squares solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from probatum.arenas.generate.classical_restoration import (
    GaussianLaw,
    differences,
    gathered,
    total_variation,
    variation,
)
from probatum.numerics.images.restoration import (
    Blur,
    Identity,
    Mask,
    Operator,
    admm,
    binomial_blur,
    closest,
    conjugate_gradients,
    pgd,
)

SHAPES = [(1, 6), (2, 5), (1, 4, 5), (2, 3, 4)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operators(shape: tuple[int, ...]) -> list[Operator]:
    return [Identity(), Mask((noise(1, *shape, seed=7) > 0).double()), binomial_blur()]


def dense(operator: Operator, shape: tuple[int, ...]) -> Tensor:
    """A as a matrix, from what it does to unit vectors."""
    size = int(np.prod(shape))
    return operator.apply(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


@pytest.mark.parametrize("shape", SHAPES)
def test_adjoints_and_norms(shape: tuple[int, ...]) -> None:
    x, b = noise(3, *shape), noise(3, *shape, seed=1)
    for operator in operators(shape):
        left = (operator.apply(x) * b).sum()
        assert left == pytest.approx(float((x * operator.adjoint(b)).sum()), abs=1e-12)
        assert torch.linalg.matrix_norm(dense(operator, shape), 2) <= 1 + 1e-12
    p = noise(len(shape) - 1, 3, *shape, seed=2)
    assert (differences(x) * p).sum() == pytest.approx(float((x * gathered(p)).sum()), abs=1e-12)


def test_blur_is_a_convolution_with_zeros_outside() -> None:
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 1
    taps = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16
    torch.testing.assert_close(binomial_blur().apply(x)[0, 0], taps[:, None] * taps)


@pytest.mark.parametrize("taps", [[0.5, 0.5], [0.2, 0.5, 0.3], [-0.1, 0.5, -0.1], [0.5, 0.5, 0.5]])
def test_taps_that_are_no_self_adjoint_average_are_refused(taps: list[float]) -> None:
    with pytest.raises(ValueError, match="odd number"):
        Blur(torch.tensor(taps))


def test_blur_of_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="blur takes"):
        binomial_blur().apply(torch.zeros(2, 4))


def test_conjugate_gradients_solve_every_row() -> None:
    root = noise(6, 6)
    matrix, b = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64), noise(4, 6, seed=1)
    b[2] = 0
    found = conjugate_gradients(lambda u: u @ matrix, b, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, b.T).T, atol=1e-8, rtol=1e-8)
    assert not found[2].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_closest_is_the_regularised_least_squares_solution(shape: tuple[int, ...]) -> None:
    b, z, rho = noise(3, *shape), noise(3, *shape, seed=1), 0.3
    for operator in operators(shape):
        A = dense(operator, shape)
        wanted = torch.linalg.solve(
            A.T @ A + rho * torch.eye(len(A), dtype=A.dtype), (b.flatten(1) @ A + rho * z.flatten(1)).T
        ).T
        torch.testing.assert_close(closest(operator, b, z, rho).flatten(1), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("solver", [admm, pgd])
def test_plug_and_play_with_a_quadratic_prior_is_ridge_regression(solver: object) -> None:
    shape, q, rho = (1, 4, 5), 0.5, 2.0
    b = noise(3, *shape)
    for operator in operators(shape):
        A = dense(operator, shape)
        wanted = torch.linalg.solve(A.T @ A / rho + q * torch.eye(len(A), dtype=A.dtype), (b.flatten(1) @ A / rho).T).T
        found = solver(operator, b, lambda y: y / (1 + q), rho=rho, iterations=200)  # type: ignore[operator]
        torch.testing.assert_close(found.x.flatten(1), wanted, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found.dual, q * found.x, atol=1e-6, rtol=1e-6)
        assert found.moved < 1e-8


def test_solvers_refuse_what_they_cannot_use() -> None:
    b = noise(1, 1, 4)
    with pytest.raises(ValueError, match=r"rho is 0\.5, but proximal gradient"):
        pgd(Identity(), b, lambda y: y, rho=0.5)
    with pytest.raises(ValueError, match="rho is -1"):
        admm(Identity(), b, lambda y: y, rho=-1.0)
    with pytest.raises(ValueError, match="iterations is 0"):
        admm(Identity(), b, lambda y: y, iterations=0)
    with pytest.raises(ValueError, match="weight is -1"):
        total_variation(Identity(), b, -1.0)


@pytest.mark.parametrize("blurred", [False, True])
def test_total_variation_of_a_series(blurred: bool) -> None:
    size, weight = 9, 0.4
    operator: Operator = binomial_blur() if blurred else Identity()
    b = noise(2, 1, size)
    found = total_variation(operator, b, weight, iterations=20_000)
    A, D = dense(operator, (1, size)), torch.diff(torch.eye(size, dtype=torch.float64), dim=0)
    for row in range(2):
        if not blurred:  # the dual problem: min |b - D^T p|^2 / 2 over |p| <= weight
            dual = lsq_linear(D.T.numpy(), b[row, 0].numpy(), (-weight, weight), tol=1e-14)
            wanted = b[row, 0] - D.T @ torch.from_numpy(dual.x)
            torch.testing.assert_close(found[row, 0], wanted, atol=1e-5, rtol=0)
        slope = A.T @ (A @ found[row, 0] - b[row, 0])  # stationary: slope = -D^T p with |p| <= weight
        p = torch.cumsum(slope, dim=0)[:-1]
        assert p.abs().max() <= weight + 1e-4
        assert slope.sum() == pytest.approx(0, abs=1e-4)
        jumps = D @ found[row, 0]
        there = jumps.abs() > 1e-3
        torch.testing.assert_close(p[there], weight * jumps[there].sign(), atol=1e-3, rtol=0)


def test_total_variation_of_an_image() -> None:
    x = torch.zeros(1, 1, 3, 3)
    x[..., 1, 1] = 1.0
    assert float(variation(x)) == pytest.approx(2 + 2**0.5)
    flat = total_variation(Identity(), x, 100.0, iterations=3000)
    torch.testing.assert_close(flat, x.mean().expand_as(x), atol=1e-3, rtol=0)
    torch.testing.assert_close(total_variation(Identity(), x, 0.0), x, atol=1e-5, rtol=0)


def test_gaussian_law_gives_the_posterior_mean() -> None:
    shape, sigma = (1, 3, 3), 0.4
    x = (noise(50, 9) @ noise(9, 9, seed=1) + 1).view(50, *shape)
    law = GaussianLaw.of(x)
    mean, covariance = x.flatten(1).mean(dim=0), torch.cov(x.flatten(1).T)
    b = noise(4, *shape, seed=3)
    for operator in operators(shape):
        A = dense(operator, shape)
        gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + sigma**2 * torch.eye(9, dtype=A.dtype))
        wanted = mean + (b.flatten(1) - A @ mean) @ gain.T
        torch.testing.assert_close(law.restore(operator, b, sigma).flatten(1), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="noise is 0"):
        law.restore(Identity(), b, 0.0)
    with pytest.raises(ValueError, match="1 rows"):
        GaussianLaw.of(x[:1])
