"""The toolkit as a learner: every method's draws, its decomposition, its budget, and what it refuses."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.posterior.gaussian_process import SparseProcess
from probatum.numerics.posterior.predictive import ONE_DRAW, ClassPredictive, RealPredictive
from probatum.numerics.posterior.stacked import Posterior
from probatum.spec import Budget, Data, Optimisation, Part, Spec
from probatum.techniques.learner.probabilistic_toolkit import probabilistic_toolkit
from probatum.techniques.learner.probabilistic_toolkit.probabilistic_toolkit import (
    METHODS,
    ClosedPredictor,
    LinearModel,
    encoded,
    fit,
    last_layer_laplace,
)

CLASSES = Spec("table", "classes", (3,), 2, numeric=2, cardinalities=(3,))
REALS = Spec("table", "reals", (3,), 1, numeric=2, cardinalities=(3,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """With batch norm, and without dropout."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def factory(outputs: int) -> Any:
    count = 0

    def build() -> nn.Module:
        nonlocal count
        count += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(count)
            return Net(outputs)

    return build


def data(spec: Spec, noise: float = 0.3) -> Data:
    draw = generator(3)

    def part(n: int) -> Part:
        x = torch.cat([torch.randn(n, 2, generator=draw), torch.randint(3, (n, 1), generator=draw).float()], dim=1)
        value = x[:, 0] + 0.5 * (x[:, 2] == 1) + noise * torch.randn(n, generator=draw)
        y = (value > 0).long() if spec.task == "classes" else value[:, None]
        return Part(x, y, torch.arange(n))

    return Data(spec, part(200), part(80), part(80))


def fitted(spec: Spec, method: str, steps: int = 200, **settings: Any) -> Any:
    return fit(
        data(spec),
        Budget(steps, 32, 7),
        generator(),
        factory(spec.outputs),
        Optimisation(1e-2),
        method=method,
        draws=12,
        **settings,
    )


@pytest.mark.parametrize("method", METHODS)
def test_methods_learn_and_their_draws_make_up_the_prediction(method: str) -> None:
    before = torch.get_rng_state()
    found, test = fitted(CLASSES, method), data(CLASSES).test
    draws = found.samples(test)
    assert draws.shape == (5 if method == "ensemble" else 12, 80, 2)
    torch.testing.assert_close(draws.sum(2), torch.ones(draws.shape[:2]))
    torch.testing.assert_close(found.predict(test), draws.mean(0))
    torch.testing.assert_close(found.predict(test), found.predict(test), rtol=0, atol=0)
    assert float((found.predict(test).argmax(1) == test.y).float().mean()) > 0.8
    split = ClassPredictive(draws.log())
    torch.testing.assert_close(split.total, split.aleatoric + split.epistemic)
    assert float(split.epistemic.min()) > -1e-6
    assert float(split.epistemic.max()) > 1e-5
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_methods_for_reals_know_the_noise(method: str) -> None:
    found, test = fitted(REALS, method), data(REALS).test
    draws = found.samples(test)
    noise = found.noise(test) if callable(found.noise) else found.noise
    split = RealPredictive(draws, torch.as_tensor(noise).square().expand_as(draws))
    assert 0.2 < float(split.aleatoric.mean().sqrt()) < 0.5  # 0.3 is true
    assert float((found.predict(test) - test.y).square().mean().sqrt()) < 0.5
    low, high = split.interval(0.95)
    assert 0.8 < float(((test.y > low) & (test.y < high)).float().mean()) <= 1
    torch.testing.assert_close(split.total, split.aleatoric + split.epistemic)


@pytest.mark.parametrize("method", METHODS)
def test_targets_in_a_row_give_the_posterior_of_a_column(method: str) -> None:
    held = data(REALS)
    row = Data(REALS, *(Part(p.x, p.y[:, 0], p.rows) for p in (held.train, held.valid, held.test)))
    found = []
    for given in (held, row):
        how = (Budget(16, 32, 2), generator(), factory(1), Optimisation(1e-2))
        one = fit(given, *how, method=method, draws=4, members=2)
        found.append(one.samples(held.test))
        again = pickle.loads(pickle.dumps(one))
        torch.testing.assert_close(again.samples(held.test), found[-1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("method", ["gp", "blr"])
def test_a_closed_model_answers_no_rows(method: str) -> None:
    found = fitted(REALS, method)
    assert found.samples(Part(torch.zeros(0, 3), torch.zeros(0, 1), torch.arange(0))).shape == (12, 0, 1)


def test_laplace_draws_are_as_wide_as_the_temperature_says() -> None:
    def head(temperature: float) -> Tensor:
        return fitted(REALS, "laplace", 40, temperature=temperature).posterior.weights[:, -17:]

    cold, half, bayes = head(0.0), head(0.25), head(1.0)
    torch.testing.assert_close(cold, cold[:1].expand(12, -1))
    torch.testing.assert_close(half - cold, 0.5 * (bayes - cold), rtol=1e-3, atol=1e-5)
    assert float((bayes - cold).abs().max()) > 1e-3


def test_laplace_of_a_last_layer_is_the_closed_posterior() -> None:
    """One output of reals: N(mode, (X^T X / s^2 + precision I)^-1), at the precision that validation rows like best."""
    x = torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    y = (x @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) + 0.3 + 0.2 * torch.randn(50, generator=generator(1)))[
        :, None
    ]
    full = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], dim=1)
    mode = torch.linalg.lstsq(full, y).solution[:, 0]
    noise = torch.randn(40, 4, generator=generator(2), dtype=torch.float64)
    valid = (x[:10] + 0.1, y[:10])
    found = last_layer_laplace((x, y), valid, mode[None, :3], mode[3:], noise)
    scale = (full @ mode - y[:, 0]).square().mean().sqrt()
    covariance = torch.linalg.inv(full.T @ full / scale**2 + found.prior_precision * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found.covariance(), covariance)
    torch.testing.assert_close(found.mode, mode)
    assert found.log_likelihood == pytest.approx(-25.0)  # half the rows, at their own error

    def liked(precision: float) -> float:
        root = torch.linalg.cholesky(full.T @ full / scale**2 + precision * torch.eye(4, dtype=torch.float64))
        draws = mode + torch.linalg.solve_triangular(root.T, noise.T, upper=True).T
        means = torch.cat([valid[0], torch.ones(10, 1, dtype=torch.float64)], dim=1) @ draws.T
        density = torch.distributions.Normal(means, scale).log_prob(valid[1]).logsumexp(dim=1)
        return float(density.mean())

    grid = [10.0 ** (-2 + k / 2) for k in range(15)]
    assert liked(found.prior_precision) == pytest.approx(max(map(liked, grid)))
    row = last_layer_laplace((x, y[:, 0]), (valid[0], y[:10, 0]), mode[None, :3], mode[3:], noise)
    assert row.prior_precision == found.prior_precision


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("method", ["ensemble", "bayes-by-backprop", "laplace", "blr"])
def test_other_precisions(method: str, dtype: torch.dtype) -> None:
    held = data(REALS)
    given = Data(REALS, *(Part(p.x.to(dtype), p.y.to(dtype), p.rows) for p in (held.train, held.valid, held.test)))
    how = (Budget(80, 32, 4), generator(), lambda: factory(1)().to(dtype), Optimisation(1e-2))
    found = fit(given, *how, method=method, draws=6, members=2)
    assert float((found.predict(given.test).float() - held.test.y).square().mean().sqrt()) < 0.6


def test_settings_of_the_variational_posterior_reach_it() -> None:
    def scales(**settings: float) -> float:
        return float(fitted(CLASSES, "bayes-by-backprop", 60, **settings).posterior.weights.std(dim=0).mean())

    assert scales(start_scale=0.2) > 5 * scales(start_scale=0.01)
    assert scales(temperature=0.0) < scales(temperature=1.0)
    assert scales(prior_scale=0.02) < scales(prior_scale=1.0)


def test_a_layer_that_fits_exactly_has_the_least_noise() -> None:
    x = torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    weight, bias = torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    noise = torch.randn(4, 3, generator=generator(2), dtype=torch.float64)
    y = x @ weight.T + bias
    found = last_layer_laplace((x, y), (x, y), weight, bias, noise)
    full = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(found.curvature, full.T @ full / 1e-3**2)


def test_a_linear_models_one_column_of_ones_has_the_weights_prior() -> None:
    x = torch.randn(12, 2, generator=generator(), dtype=torch.float64)
    y = 3.0 + torch.randn(12, 1, generator=generator(1), dtype=torch.float64)
    found = LinearModel(x, y, 0.5, 0.3)
    full = torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], dim=1)
    covariance = torch.linalg.inv(full.T @ full / 0.25 + torch.eye(3, dtype=torch.float64) / 0.09)
    torch.testing.assert_close(found.mean(x), full @ covariance @ full.T @ y / 0.25)
    torch.testing.assert_close(found.variance(x), (full @ covariance @ full.T).diagonal())


def test_latent_values_are_the_mean_and_its_spread_by_standard_draws() -> None:
    found, x = fitted(CLASSES, "gp"), data(CLASSES).test.x
    features = encoded(x, CLASSES)
    mean, deviation = found.model.mean(features), found.model.variance(features).sqrt()
    expected = mean + deviation[:, None] * found.standard[3].double()
    torch.testing.assert_close(found.latent(x)[3].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean.sum(dim=1), torch.zeros(80, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.standard.mean(dim=0), torch.zeros(1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.standard.std(dim=0, unbiased=False), torch.ones(1, 2))
    probabilities = (found.sharpness * found.latent(x)).softmax(dim=2)
    torch.testing.assert_close(found.samples(data(CLASSES).test), probabilities)


def test_a_sparse_process_stands_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(REALS, "gp").predict(data(REALS).test)
    monkeypatch.setattr(probabilistic_toolkit, "MOST_EXACT", 100)
    found = fitted(REALS, "gp")
    assert isinstance(found.model, SparseProcess)
    torch.testing.assert_close(found.predict(data(REALS).test), whole, atol=0.05, rtol=0)


def test_mixture_variance_is_not_the_mean_of_deviations() -> None:
    found = RealPredictive(torch.tensor([[[-1.0]], [[1.0]]]), torch.tensor([[[0.04]], [[0.16]]]))
    assert found.total.item() == pytest.approx(0.1 + 1.0)


def test_members_share_the_steps_or_each_has_all() -> None:
    assert fitted(CLASSES, "ensemble").passes == 200 * 32
    assert fitted(CLASSES, "ensemble", members_budget="full").passes == 5 * 200 * 32
    assert fitted(CLASSES, "swag").passes == 200 * 32


def test_a_process_is_more_uncertain_away_from_the_rows() -> None:
    found = fitted(REALS, "gp")
    near, far = data(REALS).test, data(REALS).test
    far = Part(far.x + torch.tensor([20.0, 20.0, 0.0]), far.y, far.rows)
    assert float(found.samples(far).var(0).mean()) > 10 * float(found.samples(near).var(0).mean())


def test_linear_regression_is_ridge() -> None:
    found, held = fitted(REALS, "blr", prior_scale=100.0), data(REALS)
    assert isinstance(found, ClosedPredictor)
    x = torch.cat([encoded(held.train.x, REALS), torch.ones(200, 1, dtype=torch.float64)], dim=1)
    weights = torch.linalg.lstsq(x, held.train.y.double(), driver="gelsd").solution
    new = torch.cat([encoded(held.test.x, REALS), torch.ones(80, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(found.predict(held.test).double(), new @ weights, atol=1e-3, rtol=0)


def test_codes_are_one_hot_and_token_ids_refused() -> None:
    x = torch.tensor([[0.5, -1.0, 2.0]])
    assert encoded(x, CLASSES).tolist() == [[0.5, -1.0, 0.0, 0.0, 1.0]]
    image = torch.arange(8.0).reshape(2, 1, 2, 2)
    assert torch.equal(encoded(image, Spec("image", "classes", (1, 2, 2), 2)), image.flatten(1).double())
    with pytest.raises(ValueError, match="token ids have no distances"):
        encoded(torch.ones(2, 4).long(), Spec("text", "classes", (4,), 2, vocabulary=9))


def test_a_single_network_has_no_epistemic_uncertainty() -> None:
    one = Posterior.of([Net(2).eval()])
    with pytest.raises(ValueError, match=ONE_DRAW):
        _ = one.predict(data(CLASSES).test.x).epistemic
    with pytest.raises(ValueError, match=re.escape("members is 1 and draws 20; use 2 or more: one draw")):
        fit(data(CLASSES), Budget(5, 16, 2), generator(), factory(2), Optimisation(), members=1)


def test_bad_settings_are_named() -> None:
    for settings, message in (
        ({"method": "magic"}, "method is 'magic'; use one of ensemble"),
        ({"members_budget": "all"}, "members_budget is 'all'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"temperature": 2.0}, "temperature is 2.0"),
        ({"swag_rate": 0.0}, "swag_rate is 0.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            fit(data(CLASSES), Budget(5, 16, 2), generator(), factory(2), Optimisation(), **settings)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 3), nn.Flatten())
    with pytest.raises(ValueError, match="no linear layer"):
        fit(data(CLASSES), Budget(5, 16, 2), generator(), lambda: convolution, Optimisation(), method="laplace")


def test_dropout_goes_before_the_last_layer_only_where_there_is_none() -> None:
    found = fitted(CLASSES, "mc-dropout", dropout=0.4)
    drops = [m for m in found.posterior.stacked.model.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in drops] == [0.4]
    x = data(CLASSES).test
    assert float(found.samples(x).var(0).max()) > 0
    assert float(F.nll_loss(found.predict(x).log(), x.y)) < 0.6


def test_a_head_with_a_rule_of_its_own_has_no_laplace() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(x) @ self.weight.T + self.bias

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), Cosine(8, CLASSES.outputs))

    with pytest.raises(ValueError, match=r"does not end in its last nn\.Linear"):
        fit(data(CLASSES), Budget(5, 16, 2), generator(), net, Optimisation(), method="laplace")
