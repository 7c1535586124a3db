"""Softmax regression against scikit-learn and its own optimality condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from probatum.numerics.optimisation.softmax_regression import fit_softmax, standardiser

pytestmark = pytest.mark.fast


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (200,), generator=g)
    return torch.randn(200, 5, generator=g) * torch.tensor([1.0, 10, 0.1, 1, 1]) + y[:, None], y


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_agrees_with_scikit_learn(penalty: float) -> None:
    x, y = problem()
    (found,) = fit_softmax(x, y, 3, [penalty])
    z = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).numpy()
    theirs = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-10, max_iter=5000).fit(z, y.numpy())
    np.testing.assert_allclose(found.logits(x).softmax(1).numpy(), theirs.predict_proba(z), atol=1e-5)


def test_a_path_is_the_same_as_single_fits_in_any_order() -> None:
    x, y = problem(1)
    path = fit_softmax(x, y, 3, [1e-2, 1.0, 1e-1])
    for penalty, found in zip([1e-2, 1.0, 1e-1], path, strict=True):
        (alone,) = fit_softmax(x, y, 3, [penalty])
        torch.testing.assert_close(found.weight, alone.weight, atol=1e-5, rtol=1e-4)
        w, b = found.weight.clone().requires_grad_(True), found.bias.clone().requires_grad_(True)
        z = (x.double() - found.mean) / found.scale
        (F.cross_entropy(F.linear(z, w, b), y) + penalty / 2 * w.square().sum()).backward()
        assert float(w.grad.abs().max()) < 1e-6
        assert float(b.grad.abs().max()) < 1e-6


def test_constant_columns_and_other_statistics() -> None:
    x, y = problem(2)
    x[:, 3] = 7.0
    mean, scale = standardiser(x)
    assert float(scale[3]) == 1.0
    (found,) = fit_softmax(x[:50], y[:50], 3, [0.1], standard=(mean, scale))
    assert torch.equal(found.mean, mean)
    assert torch.isfinite(found.logits(x)).all()


def test_misuse_is_named() -> None:
    x, y = problem()
    with pytest.raises(ValueError, match="above 0"):
        fit_softmax(x, y, 3, [])
    with pytest.raises(ValueError, match="above 0"):
        fit_softmax(x, y, 3, [0.0])
    with pytest.raises(ValueError, match="0 rows"):
        fit_softmax(x[:0], y[:0], 3, [1.0])
    for label in (3, -1, -100):
        with pytest.raises(ValueError, match=f"the label {label}"):
            fit_softmax(x, torch.where(y == 2, label, y), 3, [1.0])


def test_a_column_of_labels_and_a_class_without_rows() -> None:
    x, y = problem()
    (one,), (other,) = fit_softmax(x, y[:, None], 3, [0.1]), fit_softmax(x, y, 4, [0.1])
    (plain,) = fit_softmax(x, y, 3, [0.1])
    assert torch.equal(one.weight, plain.weight)
    assert (other.logits(x).argmax(1) != 3).all()
    assert torch.isfinite(other.bias).all()


def test_features_far_from_zero_and_single_rows() -> None:
    x, y = problem()
    (near,), (far,) = fit_softmax(x.double(), y, 3, [0.1]), fit_softmax(x.double() + 1e4, y, 3, [0.1])
    torch.testing.assert_close(far.logits(x.double() + 1e4), near.logits(x.double()), atol=1e-5, rtol=1e-5)
    (single,) = fit_softmax(x[:1], y[:1], 3, [0.1])
    assert torch.equal(single.scale, torch.ones(5, dtype=torch.float64))
    assert int(single.logits(x[:1]).argmax()) == int(y[0])


def test_nothing_of_a_graph_goes_in_or_comes_out() -> None:
    x, y = problem()
    x.requires_grad_()
    with torch.no_grad():
        (found,) = fit_softmax(x, y, 3, [0.1])
    assert x.grad is None
    assert not found.weight.requires_grad
    assert not found.bias.requires_grad
    assert not found.mean.requires_grad


def test_features_that_are_all_small_are_standardised() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    found = [fit_softmax(unit * x, y, 2, [1e-2])[0].logits(unit * x) for unit in (1.0, 1e-9)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    dead = torch.cat([x, 1e-8 * x[:, :1]], dim=1)
    assert float(standardiser(dead)[1][4]) == 1.0  # beside the others it does not vary
