"""Gradient-boosted neural networks against finite differences, their own parts and the published package."""

from __future__ import annotations

import doctest
import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from probatum.data.open import open_dataset
from probatum.spec import Budget, Part
from probatum.techniques.learner import gbnn
from probatum.techniques.learner.gbnn import GBNN, features_of, fit, last_hidden, newton_step, prior, residuals

pytestmark = pytest.mark.fast

KINDS = ("reals", "binary", "multiclass")


def problem(kind: str, n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(3)
    X = random.randn(n, 4)
    signal = X[:, 0] * X[:, 1] + np.sin(2 * X[:, 2])
    if kind == "reals":
        return X, signal + 0.1 * random.randn(n)
    if kind == "binary":
        return X, (signal > 0).astype(int)
    return X, np.digitize(signal, [-0.5, 0.5])


def model(kind: str, **settings: float) -> GBNN:
    chosen = {"total": 12, "units": 3, "max_iter": 40, "seed": 1} | settings
    return GBNN("reals" if kind == "reals" else "classes", **chosen).fit(*problem(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_assembled_network_equals_the_additive_model(kind: str) -> None:
    grown, (X, _) = model(kind), problem(kind)
    net = grown.assemble()
    with torch.no_grad():
        output = net(torch.from_numpy(X)).numpy()
    if kind == "binary":
        np.testing.assert_allclose(output[:, 1:] - output[:, :1], 2 * grown.raw(X), atol=1e-8)
        np.testing.assert_allclose(torch.from_numpy(output).softmax(1).numpy(), grown.predict(X), atol=1e-8)
    else:
        np.testing.assert_allclose(output, grown.raw(X), atol=1e-8)
    assert net[0].out_features == 12


@pytest.mark.parametrize("kind", KINDS)
def test_first_units_are_the_staged_prediction(kind: str) -> None:
    grown, (X, _) = model(kind), problem(kind)
    stages = list(grown.staged(X))
    assert len(stages) == 5
    for t in (1, 2, 4):
        net = grown.assemble(t)
        assert net[0].out_features == 3 * t
        with torch.no_grad():
            output = net(torch.from_numpy(X)).numpy()
        np.testing.assert_allclose(output[:, -1:] if kind == "binary" else output, stages[t], atol=1e-8)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_regression_loss_never_rises_on_all_rows(eta: float) -> None:
    losses = model("reals", eta=eta, subsample=1.0, total=30, units=2).losses
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))


def test_a_step_that_raises_the_loss_is_halved() -> None:
    # -log p of two rows of classes +1 and -1 at F = 0: log 2 = 0.693; along h = (1, 1) they move alike, one up and one down
    y, raw = np.array([[1.0], [-1.0]]), np.zeros((2, 1))
    good, bad = np.array([[1.0], [-1.0]]), np.array([[1.0], [1.0]])
    assert gbnn.held_back(y, raw, good, 3.0, "binary") == 3.0  # never longer, never shorter than it has to be
    assert gbnn.held_back(y, raw, bad, 3.0, "binary") < 1e-7  # any step raises it, down to rounding
    mixed = np.array(
        [[1.0], [0.5]]
    )  # the loss rises from a step of 1.005 on: 0.5 (log(1 + e^-2s) + log(1 + e^s)) = log 2
    ends = minimize_scalar(
        lambda s: (np.log1p(np.exp(-2 * s)) + np.log1p(np.exp(s)) - 2 * np.log(2)) ** 2, (0.5, 1.5), (0.6, 3.0)
    )
    crossing = float(ends.x)
    step = gbnn.held_back(y, raw, mixed, 7.0, "binary")
    assert step in (7.0 / 4, 7.0 / 8, 7.0 / 16)
    assert step <= crossing < 2 * step
    # squared error of y = 1 along h = 1: s and 2 - s cost the same, so that the longest is 2
    one = np.ones((1, 1))
    assert gbnn.held_back(one, 0 * one, one, 2.0, "reals") == 2.0
    assert gbnn.held_back(one, 0 * one, one, 2.5, "reals") == 1.25
    assert gbnn.held_back(one, one, one, 1.0, "reals") < 1e-7
    assert gbnn.held_back(one, 0 * one, one, float("inf"), "reals") == 0.0


@pytest.mark.parametrize(("kind", "total", "units"), [("reals", 40, 10), ("multiclass", 200, 5)])
def test_the_training_loss_never_rises_on_a_part_of_the_rows_either(kind: str, total: int, units: int) -> None:
    settings = {"total": total, "units": units, "max_iter": 100}
    wild, kept = (model(kind, guard=guard, **settings) for guard in (False, True))
    assert max(np.diff(wild.losses)) > 0.01
    assert max(np.diff(kept.losses)) <= 0
    X, y = problem(kind)
    last = kept.raw(X)
    told = kept.predict(X)
    by_hand = np.mean((y[:, None] - last) ** 2) if kind == "reals" else -np.log(told[np.arange(len(y)), y]).mean()
    assert kept.losses[-1] == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_are_the_negative_gradient_of_the_loss(kind: str) -> None:
    random = np.random.RandomState(0)
    y = {
        "reals": random.randn(6, 2),
        "binary": random.choice([-1.0, 1.0], (6, 1)),
        "multiclass": np.eye(3)[[0, 1, 2, 0, 1, 2]],
    }[kind]
    raw, h = random.randn(*y.shape), random.randn(*y.shape)
    rows = len(y) * (y.shape[1] if kind == "reals" else 1)
    slope = (gbnn._loss(y, raw + 1e-5 * h, kind) - gbnn._loss(y, raw - 1e-5 * h, kind)) / 2e-5 * rows
    factor = 2 if kind == "reals" else 1  # squared error's gradient is -2 (y - F)
    assert slope == pytest.approx(-factor * (residuals(y, raw, kind) * h).sum(), rel=1e-6)


def test_prior_minimises_the_loss() -> None:
    y = np.array([[1.0], [1.0], [-1.0], [1.0]])
    best = minimize_scalar(lambda f: gbnn._loss(y, np.full((4, 1), f), "binary")).x
    assert prior(y, "binary")[0] == pytest.approx(best, abs=1e-5)


def test_newton_step_is_gradient_over_curvature() -> None:
    random = np.random.RandomState(5)
    y, raw, h = random.choice([-1.0, 1.0], (9, 1)), random.randn(9, 1), random.randn(9, 1)

    def along(step: float) -> float:
        return gbnn._loss(y, raw + step * h, "binary")

    first = (along(1e-4) - along(-1e-4)) / 2e-4
    second = (along(1e-4) - 2 * along(0.0) + along(-1e-4)) / 1e-8
    assert newton_step(y, residuals(y, raw, "binary"), h, "binary") == pytest.approx(-first / second, rel=1e-4)


def test_saturated_classes_give_no_step() -> None:
    y = np.array([[1.0], [-1.0]])
    raw = 400.0 * y
    assert newton_step(y, residuals(y, raw, "binary"), y, "binary") == 0.0
    one_hot = np.eye(3)
    assert newton_step(one_hot, residuals(one_hot, 900.0 * one_hot, "multiclass"), one_hot, "multiclass") == 0.0
    X = np.array([[-1.0], [-1.1], [1.0], [1.1]])
    grown = GBNN(total=60, units=1, subsample=1.0).fit(X, np.array([0, 0, 1, 1]))
    assert np.isfinite(grown.predict(X)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_published_package(kind: str) -> None:
    published = pytest.importorskip("gbnn", reason="the gbnn package is the witness")
    from sklearn.base import ClassifierMixin, RegressorMixin

    X, y = problem(kind)
    # the package's own order of base classes hides from newer scikit-learn what kind of model it is
    mixin, loss = (RegressorMixin, published.GBNN.squared_loss) if kind == "reals" else (ClassifierMixin, lambda: None)
    base = type("Published", (mixin, published.GBNN.GNEGNE), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = base(loss(), total_nn=8, num_nn_step=2, eta=0.7, subsample=1.0, max_iter=10, random_state=4)
        theirs.fit(X, y)
        raw = theirs._decision_function(X)
    ours = model(kind, total=8, units=2, eta=0.7, subsample=1.0, max_iter=10, seed=4, guard=False)
    np.testing.assert_allclose(ours.raw(X), raw.reshape(len(X), -1), rtol=1e-4, atol=1e-5)  # L-BFGS amplifies rounding


def test_units_above_total_and_other_settings() -> None:
    with pytest.raises(ValueError, match="units is 30 and total 20"):
        GBNN(total=20, units=30)
    for setting, value in (("eta", 0.0), ("subsample", 1.5), ("alpha", -1.0), ("max_iter", 0), ("activation", "gelu")):
        with pytest.raises(ValueError, match=f"{setting} is {value!r}"):
            GBNN(**{setting: value})
    with pytest.raises(ValueError, match="task is"):
        GBNN("ranks")


def test_one_class_and_shapes_that_do_not_fit() -> None:
    X, _ = problem("binary")
    with pytest.raises(ValueError, match=r"single class \[1\]"):
        GBNN().fit(X, np.ones(len(X), dtype=int))
    with pytest.raises(ValueError, match="n targets"):
        GBNN().fit(X, np.ones(3))
    with pytest.raises(ValueError, match="codes 0 to 5"):
        GBNN().fit(X, np.where(np.arange(len(X)) % 2, 5, 0), classes=3)
    for wrong in (
        0.5 * (np.arange(len(X)) % 3),
        np.array(["a", "b"] * (len(X) // 2)),
        np.eye(2)[np.arange(len(X)) % 2],
    ):
        with pytest.raises(ValueError, match="classes are whole codes"):
            GBNN().fit(X, wrong)
    with pytest.raises(ValueError, match="call fit"):
        GBNN().raw(X)
    with pytest.raises(ValueError, match="stages is 9"):
        model("reals").assemble(9)


def test_two_real_targets() -> None:
    X, y = problem("reals")
    grown = GBNN("reals", total=10, units=2, max_iter=40).fit(X, np.stack([y, -2 * y], axis=1))
    assert grown.predict(X).shape == (len(X), 2)
    assert grown.losses[-1] < grown.losses[0]


def test_features_of_a_network() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)).train()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = net[0](x).relu().detach().double().numpy()
    np.testing.assert_array_equal(last_hidden(net, net[3], x), expected)
    assert net.training
    net[2].eval()  # frozen on purpose
    last_hidden(net, net[3], x)
    assert net.training
    assert not net[2].training
    assert not net[3]._forward_pre_hooks
    with pytest.raises(ValueError, match="took no part"):
        last_hidden(net, nn.Linear(2, 2), x)


@pytest.mark.parametrize("name", ["breast-cancer", "wine", "diabetes"])
def test_learns_through_its_slot(name: str) -> None:
    data = open_dataset(name).prepare(1)
    state = torch.get_rng_state()
    found = [
        fit(data, Budget(10, 32, 5), torch.Generator().manual_seed(2), total=10, units=2, eta=0.3, max_iter=50)
        for _ in range(2)
    ]
    found = [learner.predict(data.test) for learner in found]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    if name == "diabetes":
        assert float((found[0] - data.test.y).square().mean()) < 1.0
    else:
        torch.testing.assert_close(found[0].sum(1), torch.ones(len(data.test)))
        assert float((found[0].argmax(1) == data.test.y).float().mean()) > 0.85


def test_through_its_slot_no_processor_decides() -> None:
    data = open_dataset("breast-cancer").prepare(3)
    features = features_of(data.train.x, data.spec)
    learner = fit(data, Budget(1, 1, 1), torch.Generator().manual_seed(2), units=10)
    model = learner.model
    assert (model.max_iter, model.alpha, model.eta, model.guard, model.total) == (10, 1e-4, 1.0, True, 200)
    nudged = GBNN(units=10, max_iter=10, seed=model.seed).fit(features * (1 + 2**-50), data.train.y.numpy())
    asked = features_of(data.test.x, data.spec)
    np.testing.assert_allclose(nudged.predict(asked), model.predict(asked), atol=1e-4)


def test_every_setting_reaches_the_stages() -> None:
    data = open_dataset("wine").prepare(1)
    settings = {"total": 6, "units": 2, "eta": 0.3, "subsample": 0.7, "max_iter": 4, "alpha": 0.2, "guard": False}
    grown = fit(data, Budget(1, 1, 1), torch.Generator().manual_seed(2), **settings).model
    assert {name: getattr(grown, name) for name in settings} == settings
    assert [stage.alpha for stage in grown.stages] == [0.2] * 3
    assert {stage.n_iter_ for stage in grown.stages} == {4}
    assert {stage.coefs_[0].shape for stage in grown.stages} == {(13, 2)}


def test_no_rows_have_no_predictions() -> None:
    for kind, width in (("reals", 1), ("binary", 2), ("multiclass", 3)):
        assert model(kind).predict(np.zeros((0, 4))).shape == (0, width)


def test_categories_become_one_hot() -> None:
    spec = open_dataset("wine").prepare(1).spec
    mixed = type(spec)("table", "classes", (3,), 2, numeric=1, cardinalities=(3, 2))
    part = Part(torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([0]), torch.tensor([0]))
    np.testing.assert_array_equal(features_of(part.x, mixed), [[0.5, 0, 0, 1, 0, 1]])


def test_example() -> None:
    assert doctest.testmod(gbnn).failed == 0


def test_last_hidden_draws_nothing_from_the_global_stream() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + torch.randn(x.shape))

    net, x = Noisy(), torch.randn(3, 4)
    before = torch.get_rng_state()
    last_hidden(net, net.head, x)
    assert torch.equal(torch.get_rng_state(), before)
