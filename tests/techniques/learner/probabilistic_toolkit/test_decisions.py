"""Gaussian processes, filters, Bayesian optimisation and decision processes against closed forms and other packages."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import Tensor

from probatum.numerics.posterior import gaussian_process as gp
from probatum.techniques.learner.probabilistic_toolkit import bayes_opt, kalman, mdp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int = 30, d: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, d, generator=generator(seed), dtype=torch.float64)
    y = x.sin().sum(1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=generator(seed + 1), dtype=torch.float64)
    return x, y


def test_process_against_scikit_learn() -> None:
    x, y = rows()
    new = torch.randn(9, 2, generator=generator(5), dtype=torch.float64)
    kernel = ConstantKernel(1.5**2) * RBF(0.8)
    theirs = GaussianProcessRegressor(kernel, alpha=0.2**2, optimizer=None).fit(x.numpy(), y.numpy()[:, 0])
    mean, deviation = theirs.predict(new.numpy(), return_std=True)
    ours = gp.gaussian_process(x, y, gp.rbf(0.8, 1.5), 0.2)
    np.testing.assert_allclose(ours.mean(new)[:, 0], mean, atol=1e-6)
    np.testing.assert_allclose(ours.variance(new).sqrt(), deviation, atol=1e-6)
    assert float(ours.log_evidence) == pytest.approx(theirs.log_marginal_likelihood(), abs=1e-6)
    torch.testing.assert_close(ours.covariance(new).diagonal(), ours.variance(new))


def test_the_best_evidence_is_scikit_learns() -> None:
    x, y = rows(40)
    theirs = GaussianProcessRegressor(
        ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(0.1), n_restarts_optimizer=2, random_state=0
    )
    best = theirs.fit(x.numpy(), y.numpy()[:, 0]).log_marginal_likelihood_value_
    length, scale, noise = gp.fit_rbf(x, y)
    found = gp.gaussian_process(x, y, gp.rbf(length, scale), noise)
    assert float(found.log_evidence) == pytest.approx(best, abs=0.05)


def test_bayesian_linear_regression_is_a_process_with_linear_kernel() -> None:
    x, y = rows(25, 3)
    new = torch.randn(8, 3, generator=generator(5), dtype=torch.float64)
    process = gp.gaussian_process(x, y, gp.linear(0.7), 0.3)
    found = gp.bayesian_linear(x, y, 0.3, 0.7)
    torch.testing.assert_close(new @ found.mean, process.mean(new), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.variance(new), process.variance(new), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.log_evidence, process.log_evidence, atol=1e-8, rtol=0)
    draws = found.draw(40000, generator(2))[:, :, 0]
    torch.testing.assert_close(draws.T.cov(), found.covariance(), atol=2e-4, rtol=0.05)


def test_draws_of_functions() -> None:
    x, y = rows(6)
    new = torch.randn(4, 2, generator=generator(5), dtype=torch.float64)
    process = gp.gaussian_process(x, y, gp.rbf(1.0), 0.3)
    draws = process.draw(new, 40000, generator(2))[:, :, 0]
    torch.testing.assert_close(draws.mean(0), process.mean(new)[:, 0], atol=0.02, rtol=0)
    torch.testing.assert_close(draws.T.cov(), process.covariance(new), atol=0.02, rtol=0)


def test_fourier_features_approach_the_kernel() -> None:
    x, _ = rows(20, 3)
    features = gp.fourier_features(3, 20000, 1.3, generator())(x)
    assert float((features @ features.T - gp.rbf(1.3)(x, x)).abs().max()) < 0.03


def test_sparse_processes() -> None:
    x, y = rows(30)
    new = torch.randn(7, 2, generator=generator(5), dtype=torch.float64)
    exact = gp.gaussian_process(x, y, gp.rbf(1.0), 0.3)
    for fitc in (False, True):  # all rows as inducing points: exact
        found = gp.sparse_process(x, y, x, gp.rbf(1.0), 0.3, fitc=fitc)
        torch.testing.assert_close(found.mean(new), exact.mean(new), atol=1e-4, rtol=0)
    far = torch.full((1, 2), 30.0, dtype=torch.float64)
    few = {kind: gp.sparse_process(x, y, x[:8], gp.rbf(1.0), 0.3, fitc=kind) for kind in (False, True)}
    assert float(few[False].variance(far)) < 1e-9  # what is wrong with the subset of regressors
    assert float(few[True].variance(far)) == pytest.approx(1.0)
    kernel = gp.rbf(1.0)
    low = kernel(x, x[:8]) @ torch.linalg.solve(kernel(x[:8], x[:8]), kernel(x[:8], x))
    full = low + torch.diag((kernel(x, x) - low).diagonal()) + 0.09 * torch.eye(30, dtype=torch.float64)
    cross = kernel(new, x[:8]) @ torch.linalg.solve(kernel(x[:8], x[:8]), kernel(x[:8], x))
    torch.testing.assert_close(few[True].mean(new), cross @ torch.linalg.solve(full, y), atol=1e-6, rtol=0)
    expected = 1 - (cross @ torch.linalg.solve(full, cross.T)).diagonal()
    torch.testing.assert_close(few[True].variance(new), expected, atol=1e-6, rtol=0)


def test_prior_variances_of_many_rows_of_none_and_of_any_kernel() -> None:
    x, y = rows(40)
    new = torch.randn(50, 2, generator=generator(5), dtype=torch.float64)

    def growing(a: Tensor, b: Tensor) -> Tensor:  # not the same everywhere, and not for batches
        return (a @ b.T) ** 2 + gp.rbf(0.8)(a, b)

    torch.testing.assert_close(gp.prior_variance(growing, new), growing(new, new).diagonal())
    for process in (
        gp.gaussian_process(x, y, growing, 0.3),
        gp.sparse_process(x, y, x, growing, 0.3),
    ):
        k = growing(x, x) + 0.09 * torch.eye(40, dtype=torch.float64)
        cross = growing(new, x)
        expected = growing(new, new).diagonal() - (cross @ torch.linalg.solve(k, cross.T)).diagonal()
        torch.testing.assert_close(process.variance(new), expected, atol=1e-5, rtol=1e-5)
        assert process.variance(new[:0]).shape == (0,)
        assert process.mean(new[:0]).shape == (0, 1)


def test_targets_in_a_row_are_a_column() -> None:
    x, y = rows()
    kernel = gp.rbf(0.8)
    assert torch.equal(
        gp.gaussian_process(x, y[:, 0], kernel, 0.2).weights, gp.gaussian_process(x, y, kernel, 0.2).weights
    )
    assert torch.equal(gp.bayesian_linear(x, y[:, 0], 0.2).mean, gp.bayesian_linear(x, y, 0.2).mean)
    assert gp.fit_rbf(x, y[:, 0], 5)[1:] == gp.fit_rbf(x, y, 5)[1:]
    with pytest.raises(ValueError, match="one row of targets a row"):
        gp.gaussian_process(x, y[:-1], kernel, 0.2)


def test_what_holds_a_kernel_can_be_pickled() -> None:
    x, y = rows()
    process = gp.gaussian_process(x, y, gp.rbf(torch.tensor([0.8]), 1.5), 0.2)
    again = pickle.loads(pickle.dumps(process))
    assert torch.equal(again.variance(x), process.variance(x))
    assert torch.equal(pickle.loads(pickle.dumps(gp.linear(0.5, 2.0)))(x, x), 0.25 * x @ x.T + 4)
    waves = gp.fourier_features(2, 6, 0.5, generator())
    assert torch.equal(pickle.loads(pickle.dumps(waves))(x), waves(x))


def test_greedy_information_keeps_its_promise() -> None:
    x = torch.rand(9, 1, generator=generator(), dtype=torch.float64) * 3
    covariance = gp.rbf(0.7)(x, x)

    def information(chosen: list[int]) -> float:
        part = covariance[chosen][:, chosen]
        return 0.5 * float(torch.logdet(torch.eye(len(chosen), dtype=torch.float64) + part / 0.25))

    greedy = information(gp.greedy_information(covariance, 0.5, 4))
    best = max(information(list(chosen)) for chosen in itertools.combinations(range(9), 4))
    assert (1 - 1 / math.e) * best <= greedy <= best + 1e-12


def test_kernels_that_are_none() -> None:
    with pytest.raises(ValueError, match="not positive semi-definite"):
        gp.cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        gp.cholesky(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="noise is 0"):
        gp.gaussian_process(*rows(), gp.rbf(), 0.0)


def test_filter_is_regression_on_all_that_was_seen() -> None:
    steps, draw = 12, generator()
    move = torch.tensor([[1.0, 0.1], [0.0, 0.95]], dtype=torch.float64)
    look, drift = torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.05 * torch.eye(2, dtype=torch.float64)
    noise = torch.tensor([[0.2]], dtype=torch.float64)
    seen = torch.randn(steps, 1, generator=draw, dtype=torch.float64)
    state, total = kalman.State(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)), 0.0
    for one in seen:
        state, log_p = kalman.update(kalman.predict(state, move, drift), one, look, noise)
        total += log_p
    size = 2 * steps  # the whole path as one Gaussian
    lower = torch.zeros(size, size + 2, dtype=torch.float64)
    for t in range(steps):
        lower[2 * t : 2 * t + 2, :2] = torch.linalg.matrix_power(move, t + 1)
        for s in range(t + 1):
            lower[2 * t : 2 * t + 2, 2 + 2 * s : 4 + 2 * s] = torch.linalg.matrix_power(move, t - s) * 0.05**0.5
    path = lower @ lower.T
    rows_seen = path[::2][:, ::2] + 0.2 * torch.eye(steps, dtype=torch.float64)
    last = path[-2:, ::2]
    torch.testing.assert_close(state.mean, last @ torch.linalg.solve(rows_seen, seen[:, 0]))
    torch.testing.assert_close(state.covariance, path[-2:, -2:] - last @ torch.linalg.solve(rows_seen, last.T))
    law = torch.distributions.MultivariateNormal(torch.zeros(steps, dtype=torch.float64), rows_seen)
    assert total == pytest.approx(float(law.log_prob(seen[:, 0])))


def test_acquisitions_against_draws() -> None:
    mean, deviation = torch.tensor([0.3, -0.5, 1.0]), torch.tensor([0.5, 1.0, 0.0])
    draws = mean + deviation * torch.randn(400000, 3, generator=generator())
    ei = bayes_opt.expected_improvement(mean, deviation, 0.4)
    torch.testing.assert_close(ei, (draws - 0.4).clamp_min(0).mean(0), atol=3e-3, rtol=0)
    pi = bayes_opt.probability_of_improvement(mean[:2], deviation[:2], 0.4)
    torch.testing.assert_close(pi, (draws[:, :2] > 0.4).float().mean(0), atol=3e-3, rtol=0)
    assert bayes_opt.upper_bound(mean, deviation, 4.0).tolist() == pytest.approx([1.3, 1.5, 1.0])
    assert bayes_opt.finite_beta(100, 3) > bayes_opt.finite_beta(100, 2)
    sure = torch.zeros(3)  # in float32 1e-300 is 0
    assert bayes_opt.probability_of_improvement(torch.tensor([0.3, 0.4, 0.5]), sure, 0.4).tolist() == [0, 0, 1]
    assert bayes_opt.expected_improvement(torch.tensor([0.3, 0.4, 0.9]), sure, 0.4).tolist() == pytest.approx(
        [0, 0, 0.5]
    )
    assert bayes_opt.finite_beta(50, 3, 0.2) == pytest.approx(2 * math.log(50 * 9 * math.pi**2 / 1.2))
    with pytest.raises(ValueError, match="beta is -1"):
        bayes_opt.upper_bound(mean, deviation, -1.0)


@pytest.mark.parametrize("strategy", ["ei", "ucb", "pi", "thompson"])
def test_a_simple_hill_is_climbed(strategy: str) -> None:
    axis = torch.linspace(0, 1, 15, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)

    def hill(x: Tensor) -> Tensor:
        return -(x - 0.62).square().sum(1)

    at, values = bayes_opt.maximise(hill, grid, 14, generator(), strategy)
    assert len(set(at.tolist())) == 14
    assert float(values.max()) > -0.01
    with pytest.raises(ValueError, match="strategy is 'best'"):
        bayes_opt.maximise(hill, grid, 5, generator(), "best")


def test_scores_of_every_strategy_are_those_of_the_process() -> None:
    x, y = rows(8)
    process = gp.gaussian_process(x, y, gp.rbf(0.7, 1.2), 0.3)
    new = torch.randn(5, 2, generator=generator(5), dtype=torch.float64)
    mean, deviation = process.mean(new)[:, 0], process.variance(new).sqrt()
    law = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    z = (mean - 0.2) / deviation
    expected = {
        "ei": (mean - 0.2) * law.cdf(z) + deviation * law.log_prob(z).exp(),
        "pi": law.cdf(z),
        "ucb": mean + 2 * deviation,
        "thompson": process.draw(new, 1, generator(3))[0, :, 0],
    }
    for strategy, values in expected.items():
        torch.testing.assert_close(bayes_opt._score(process, new, 0.2, strategy, 4.0, generator(3)), values)
    torch.testing.assert_close(bayes_opt._score(process, new, 0.2, "ucb", None, generator(3)), mean + deviation)


def test_one_first_value_and_values_that_are_none() -> None:
    grid = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    at, values = bayes_opt.maximise(lambda x: -(x - 0.4).square().sum(1), grid, 8, generator(), start=1)
    assert len(set(at.tolist())) == 8
    assert float(values.max()) > -0.01
    flat, _ = bayes_opt.maximise(lambda x: torch.tensor(2.0), grid, 12, generator(), start=2)
    assert sorted(flat.tolist()) == list(range(12))
    with pytest.raises(ValueError, match="function gives nan at candidate"):
        bayes_opt.maximise(lambda x: torch.tensor(math.nan), grid, 3, generator(), start=1)
    for start, evaluations in ((0, 3), (4, 3), (2, 13)):
        with pytest.raises(ValueError, match="need them rising"):
            bayes_opt.maximise(lambda x: x.sum(), grid, evaluations, generator(), start=start)


def process(states: int = 5, actions: int = 3) -> tuple[Tensor, Tensor]:
    transitions = torch.rand(actions, states, states, generator=generator(), dtype=torch.float64).square()
    return transitions / transitions.sum(2, keepdim=True), torch.rand(
        states, actions, generator=generator(1), dtype=torch.float64
    )


def test_planning_against_all_policies() -> None:
    transitions, rewards = process()
    values = torch.stack(
        [
            mdp.policy_values(torch.tensor(policy), transitions, rewards, 0.9)
            for policy in itertools.product(range(3), repeat=5)
        ]
    )
    best = values.amax(0)
    exact = mdp.policy_iteration(transitions, rewards, 0.9)
    torch.testing.assert_close(exact.values, best)
    for tolerance in (1e-1, 1e-4):
        swept = mdp.value_iteration(transitions, rewards, 0.9, tolerance)
        error = float((swept.values - best).abs().max())
        assert error <= swept.bound <= tolerance  # the Bellman residual's bound
    assert torch.equal(swept.policy, exact.policy)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planning_ends_at_every_scale_and_precision(scale: float, dtype: torch.dtype) -> None:
    transitions, rewards = process(6, 3)
    best = mdp.policy_iteration(transitions, rewards, 0.95)
    given = (transitions.to(dtype), (scale * rewards).to(dtype), 0.95)
    for plan in (mdp.policy_iteration(*given), mdp.value_iteration(*given, 1e-8 * min(scale, 1.0))):
        assert torch.equal(plan.policy, best.policy)
        assert plan.values.dtype == dtype
        torch.testing.assert_close(plan.values / scale, best.values.to(dtype), rtol=1e-5, atol=0)
    swept = mdp.value_iteration(*given, 0.0)
    assert swept.bound <= 1e-9 * scale  # as near as rounding lets it
    states = torch.cat([rewards, rewards], dim=1)  # every action twice: ties do not go round in circles
    twice = mdp.policy_iteration(torch.cat([transitions, transitions]), states, 0.95)
    torch.testing.assert_close(twice.values, best.values)


def test_learning_from_moves() -> None:
    transitions, rewards = process(3, 2)
    best = mdp.policy_iteration(transitions, rewards, 0.5)
    q_best = mdp.action_values(best.values, transitions, rewards, 0.5)
    move = mdp.simulator(transitions, rewards, generator(3))
    q = mdp.learn(move, 3, 2, 0.5, 12000, generator(4))
    assert float((q - q_best).abs().max()) < 0.06
    sarsa = mdp.learn(move, 3, 2, 0.5, 12000, generator(4), kind="sarsa", explore=1.0)
    mixed = torch.einsum("ast->st", transitions) / 2
    random_values = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - 0.5 * mixed, rewards.mean(1))
    q_random = mdp.action_values(random_values, transitions, rewards, 0.5)
    assert float((sarsa - q_random).abs().max()) < 0.06
    policy, visits = mdp.r_max(move, 3, 2, 0.5, 400, 1.0, known=40)
    gap = best.values - mdp.policy_values(policy, transitions, rewards, 0.5)
    assert float(gap.max()) < 0.1
    assert float(visits.sum()) == 400


def test_processes_that_are_none() -> None:
    transitions, rewards = process()
    with pytest.raises(ValueError, match="discount is 1"):
        mdp.value_iteration(transitions, rewards, 1.0)
    with pytest.raises(ValueError, match="rows must sum to 1"):
        mdp.policy_iteration(2 * transitions, rewards, 0.9)
    with pytest.raises(ValueError, match="transitions are"):
        mdp.value_iteration(transitions[:2], rewards, 0.9)
    negative = transitions.clone()
    negative[0, 0, :2] += torch.tensor([-2.0, 2.0])  # still sums to 1
    with pytest.raises(ValueError, match=r"transitions hold -1.*probabilities are 0 or more"):
        mdp.value_iteration(negative, rewards, 0.9)
    with pytest.raises(ValueError, match="rewards hold numbers that are not finite"):
        mdp.policy_iteration(transitions, rewards / 0, 0.9)
    with pytest.raises(ValueError, match="kind is 'td'"):
        mdp.learn(lambda s, a: (0, 0.0), 2, 2, 0.5, 1, generator(), kind="td")
