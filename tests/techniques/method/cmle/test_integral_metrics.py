"""MMD and entropic transport against closed forms, brute force and another package."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from probatum.techniques.method.cmle.integral_metrics import linear_mmd, rbf_mmd, squared_distances, transport_cost

pytestmark = pytest.mark.fast


def samples(n: int, m: int, shift: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = torch.randn(n + m, 3, generator=g, dtype=torch.float64)
    return draw[:n], draw[n:] + shift


def test_linear_mmd_is_the_distance_of_means() -> None:
    a, b = samples(7, 5, 1.0)
    expected = sum((float(a[:, j].mean()) - float(b[:, j].mean())) ** 2 for j in range(3))
    assert float(linear_mmd(a, b)) == pytest.approx(expected)


def test_rbf_mmd_is_the_u_statistic() -> None:
    a, b = samples(6, 4, 0.5)

    def k(u: torch.Tensor, v: torch.Tensor) -> float:
        return math.exp(-float((u - v).square().sum()) / (2 * 0.7**2))

    own_a = np.mean([k(u, v) for u, v in itertools.permutations(a, 2)])
    own_b = np.mean([k(u, v) for u, v in itertools.permutations(b, 2)])
    cross = np.mean([k(u, v) for u in a for v in b])
    assert float(rbf_mmd(a, b, 0.7)) == pytest.approx(own_a + own_b - 2 * cross)


def test_rbf_mmd_of_equal_laws_is_nought_on_average() -> None:
    values = torch.stack([rbf_mmd(*samples(20, 30, seed=seed)) for seed in range(300)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 300**0.5
    assert float(values.min()) < 0  # an unbiased estimate falls on both sides
    assert float(rbf_mmd(*samples(60, 60, 2.0))) > 0.2


def costs(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return np.array([[float((u - v).square().sum()) for v in b] for u in a])


def test_small_regularisation_is_the_assignment() -> None:
    a, b = samples(9, 9, 1.0)
    cost = costs(a, b)
    rows, columns = linear_sum_assignment(cost)
    found = float(transport_cost(a, b, reg=0.02 / cost.mean(), rounds=4000))
    assert found == pytest.approx(cost[rows, columns].mean(), rel=2e-2)


def test_transport_agrees_with_plain_sinkhorn() -> None:
    a, b = samples(12, 8, 0.5)
    cost = costs(a, b)
    kernel, v = np.exp(-cost / 0.8), np.ones(8)
    for _ in range(3000):
        u = (1 / 12) / (kernel @ v)
        v = (1 / 8) / (kernel.T @ u)
    expected = ((u[:, None] * kernel * v[None]) * cost).sum()
    assert float(transport_cost(a, b, reg=0.8 / cost.mean(), rounds=500)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_transport_agrees_with_pot_in_value_and_gradient(share: float) -> None:
    ot = pytest.importorskip("ot", reason="POT is the witness of entropic transport")
    a, b = samples(15, 11, 0.5)
    cost = costs(a, b)
    plan = ot.sinkhorn(
        np.full(15, 1 / 15), np.full(11, 1 / 11), cost, share * cost.mean(), numItermax=5000, stopThr=1e-12
    )
    a.requires_grad_()
    found = transport_cost(a, b, reg=share)
    found.backward()
    assert float(found.detach()) == pytest.approx((plan * cost).sum(), abs=1e-4)
    slope = 2 * (plan[:, :, None] * (a.detach()[:, None] - b[None]).numpy()).sum(axis=1)  # the plan held fixed
    np.testing.assert_allclose(a.grad.numpy(), slope, atol=1e-5)


def test_the_gradient_is_that_of_the_regularised_cost() -> None:
    ot = pytest.importorskip("ot", reason="POT is the witness of entropic transport")
    a, b = samples(6, 5, 0.5)
    reg = 0.3 * costs(a, b).mean()

    def minimum(moved: torch.Tensor) -> float:
        cost = costs(moved, b)
        plan = ot.sinkhorn(np.full(6, 1 / 6), np.full(5, 1 / 5), cost, reg, numItermax=9000, stopThr=1e-13)
        return float((plan * cost).sum() + reg * (plan * np.log(plan)).sum())

    step = torch.zeros_like(a)
    step[2, 1] = 1e-4
    slope = (minimum(a + step) - minimum(a - step)) / 2e-4
    transport_cost(a.requires_grad_(), b, reg=0.3).backward()
    assert float(a.grad[2, 1]) == pytest.approx(slope, rel=1e-4)


def test_few_rows_far_away_are_carried_there() -> None:
    near, far = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 30.0, dtype=torch.float64)
    a, b = torch.cat([near] * 39 + [far]), torch.cat([near] * 20 + [far] * 20)
    assert float(transport_cost(a, b)) == pytest.approx(19 / 40 * 1800, rel=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_wider_samples_cost_by_the_square_and_never_less_than_the_assignment(scale: float) -> None:
    a, b = samples(20, 20, 1.0)
    cost = costs(a, b)
    rows, columns = linear_sum_assignment(cost)
    found = float(transport_cost(scale * a, scale * b)) / scale**2
    assert found == pytest.approx(float(transport_cost(a, b)), rel=1e-6)
    assert cost[rows, columns].mean() <= found < 1.3 * cost[rows, columns].mean()


def test_a_plan_that_has_not_converged_is_told() -> None:
    a, b = samples(9, 9, 1.0)
    with pytest.warns(
        UserWarning, match=r"after 3 rounds the transport plan's marginals are off by .* raise reg or rounds"
    ):
        transport_cost(a, b, reg=0.001, rounds=3)


@pytest.mark.parametrize("metric", [linear_mmd, rbf_mmd])
def test_gradients(metric: object) -> None:
    a, b = samples(5, 4, 0.5)
    torch.autograd.gradcheck(
        lambda u: metric(u, b, 1.0) if metric is rbf_mmd else metric(u, b),  # type: ignore[operator]
        (a.requires_grad_(),),
    )


@pytest.mark.parametrize("metric", [linear_mmd, rbf_mmd, transport_cost])
def test_an_offset_changes_nothing_and_half_precision_little(metric: object) -> None:
    a, b = (sample.float() for sample in samples(12, 9, 1.0))
    plain = float(metric(a, b))  # type: ignore[operator]
    assert float(metric(a + 1024, b + 1024)) == pytest.approx(plain, rel=1e-3)  # type: ignore[operator]
    low, high = a.bfloat16().requires_grad_(), a.bfloat16().float().requires_grad_()
    metric(low, b.bfloat16()).backward()  # type: ignore[operator]
    metric(high, b.bfloat16().float()).backward()  # type: ignore[operator]
    torch.testing.assert_close(low.grad, high.grad.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert float(metric(a, b)) == plain  # type: ignore[operator]


def test_squared_distances_by_loop() -> None:
    a, b = samples(7, 5, 0.5)
    np.testing.assert_allclose(squared_distances(a, b).numpy(), costs(a, b), atol=1e-12)
    c = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert float(squared_distances(c, c).min()) >= 0


def test_the_median_distance_is_the_default_scale_and_no_gradient_goes_through_it() -> None:
    a, b = samples(6, 5, 0.5)
    joint = torch.cat([a, b])
    middle = np.sort([float((u - v).norm()) for u, v in itertools.combinations(joint, 2)])[54 // 2]
    slopes = []
    for scale in (None, float(middle)):
        moved = a.clone().requires_grad_()
        found = rbf_mmd(moved, b, scale)
        found.backward()
        slopes.append((float(found.detach()), moved.grad))
    assert slopes[0][0] == pytest.approx(slopes[1][0])
    torch.testing.assert_close(slopes[0][1], slopes[1][1])


def test_misuse_is_named() -> None:
    a, b = samples(3, 1)
    with pytest.raises(ValueError, match="3 and 1 rows"):
        rbf_mmd(a, b)
    with pytest.raises(ValueError, match="scale is 0"):
        rbf_mmd(a, a, 0)
    with pytest.raises(ValueError, match="reg is 0"):
        transport_cost(a, a, 0)
    with pytest.raises(ValueError, match="rounds 0"):
        transport_cost(a, a, rounds=0)
    assert float(transport_cost(a[:1], a[:1])) == 0.0  # nothing to carry


def test_where_most_rows_are_equal_the_mean_distance_is_the_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((40, 8), 0.3)
    rows[32:] += torch.randn(8, 8, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        a = rows.to(dtype, copy=True).requires_grad_()
        value = rbf_mmd(a[::2], a[1::2])
        value.backward()
        found.append((value.detach(), a.grad))
    squares = np.square(rows.numpy()[:, None] - rows.numpy()[None]).sum(axis=2)
    scale = math.sqrt(squares[np.triu_indices(40, 1)].mean())
    assert float(found[1][0]) == pytest.approx(float(rbf_mmd(rows[::2].double(), rows[1::2].double(), scale)), rel=1e-5)
    torch.testing.assert_close(found[0][0], found[1][0].float(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        found[0][1], found[1][1].float(), rtol=1e-3, atol=1e-6
    )  # rounding was raised to thousands
    equal = torch.full((6, 3), 0.7, requires_grad=True)
    rbf_mmd(equal[:3], equal[3:]).backward()
    assert not equal.grad.any()


def test_the_median_follows_samples_of_every_size() -> None:
    a, b = samples(12, 15)
    expected = float(rbf_mmd(a, b))
    assert [float(rbf_mmd(scale * a, scale * b)) for scale in (1e-9, 1e9)] == pytest.approx([expected] * 2, rel=1e-6)


@pytest.mark.parametrize("metric", [rbf_mmd, transport_cost])
def test_no_differences_of_all_pairs_are_held(metric: object) -> None:
    a = torch.randn(30, 200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    largest = 0

    def note(kept: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        metric(a, a.detach() + 1).backward()  # type: ignore[operator]
    assert largest <= 60 * 200  # pairs times columns would be 60 * 60 * 200
