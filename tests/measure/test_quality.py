"""Quality measures against torchmetrics, scikit-learn and hand-made examples."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics
from sklearn.metrics import roc_auc_score
from torchmetrics import functional as witness

from probatum.measure.quality import per_class, quality

pytestmark = pytest.mark.fast


def draw(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator) + torch.nn.functional.one_hot(y, k)
    return logits.to(dtype).softmax(1), y


@pytest.mark.parametrize("k", [2, 3, 7])
def test_classes_against_torchmetrics(k: int) -> None:
    p, y = draw(300, k)
    found = quality(p, y, "classes", k)
    expected = {
        "accuracy": witness.accuracy(p, y, "multiclass", num_classes=k, average="micro"),
        "balanced-accuracy": witness.recall(p, y, "multiclass", num_classes=k, average="macro"),
        "macro-f1": witness.f1_score(p, y, "multiclass", num_classes=k, average="macro"),
        "auroc": witness.auroc(p, y, "multiclass", num_classes=k, average="macro"),
        "log-loss": torch.nn.functional.nll_loss(p.log(), y),
        "brier": (p - torch.nn.functional.one_hot(y, k)).square().sum(1).mean(),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)
    exact = p.double() / p.double().sum(1, keepdim=True)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(y, exact, scale_by_half=False))


def test_binary_auroc_is_the_plain_one() -> None:
    p, y = draw(200, 2)
    assert quality(p, y, "classes", 2)["auroc"] == pytest.approx(float(witness.auroc(p[:, 1], y, "binary")), abs=1e-6)


def test_by_hand() -> None:
    p = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]], dtype=torch.float64)
    found = quality(p, torch.tensor([0, 1, 1, 0]), "classes", 2)
    assert found["accuracy"] == 0.75
    assert found["balanced-accuracy"] == 0.75
    assert found["auroc"] == 1.0
    assert found["log-loss"] == pytest.approx(-math.log(0.8 * 0.4 * 0.7 * 0.9) / 4)
    assert found["brier"] == pytest.approx(2 * (0.04 + 0.36 + 0.09 + 0.01) / 4)
    assert found["macro-f1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)


def test_absent_classes_are_left_out_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
    p, y = draw(200, 5)
    keep = (y != 3) & (y != 1)
    found = quality(p[keep], y[keep], "classes", 5)
    areas = [metrics.roc_auc_score(y[keep] == k, p[keep][:, k]) for k in (0, 2, 4)]
    assert found["auroc"] == pytest.approx(sum(areas) / 3)
    recalls = [float((p[y == k].argmax(1) == k).double().mean()) for k in (0, 2, 4)]
    assert found["balanced-accuracy"] == pytest.approx(sum(recalls) / 3)
    alone = quality(p[y == 2], y[y == 2], "classes", 5)
    assert "auroc" not in alone
    assert all(math.isfinite(value) for value in (*found.values(), *alone.values()))
    assert not recwarn.list


def test_certain_and_wrong_stays_finite() -> None:
    assert math.isfinite(quality(torch.eye(2), torch.tensor([1, 0]), "classes", 2)["log-loss"])


def test_reals_against_torchmetrics_in_original_units() -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(200, 3, generator=generator)
    guess = y + 0.5 * torch.randn(200, 3, generator=generator)
    scale, mean = torch.tensor([1.0, 20.0, 0.1]), torch.tensor([5.0, -3.0, 0.0])
    found = quality(guess, y, "reals", 3, scale)
    original, target = guess * scale + mean, y * scale + mean
    assert found["rmse"] == pytest.approx(
        float(witness.mean_squared_error(original, target, squared=False, num_outputs=3).mean()), rel=1e-4
    )
    assert found["mae"] == pytest.approx(
        float(witness.mean_absolute_error(original, target, num_outputs=3).mean()), rel=1e-4
    )
    assert found["r2"] == pytest.approx(float(witness.r2_score(original, target)), rel=1e-4)
    assert quality(guess, y, "reals", 3)["rmse"] == pytest.approx(
        metrics.root_mean_squared_error(y.numpy(), guess.numpy()), rel=1e-5
    )


def test_r2_is_left_out_for_a_constant_target() -> None:
    assert quality(torch.rand(5, 1), torch.zeros(5, 1), "reals", 1).keys() == {"rmse", "mae"}


@pytest.mark.parametrize(
    ("output", "y", "task", "outputs", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "classes", 2, "softmax"),
        (torch.tensor([[0.5, math.nan]]), torch.tensor([0]), "classes", 2, "1 of 1 rows"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([2]), "classes", 2, "spans 2 to 2"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([0.0]), "classes", 2, "integer codes"),
        (torch.tensor([[0.5, 0.5]]), torch.tensor([0, 1]), "classes", 2, "do not fit"),
        (torch.tensor([[1.0]]), torch.tensor([0]), "classes", 1, "two columns"),
        (torch.empty(0, 2), torch.empty(0, dtype=torch.int64), "classes", 2, "n >= 1"),
        (torch.zeros(3, 1), torch.zeros(3), "reals", 1, "do not fit"),
        (torch.full((3, 1), math.inf), torch.zeros(3, 1), "reals", 1, "3 of 3 rows"),
        (torch.zeros(3, 1), torch.zeros(3, 1), "ranking", 1, "'ranking'"),
    ],
)
def test_bad_input_is_named(output: torch.Tensor, y: torch.Tensor, task: str, outputs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quality(output, y, task, outputs)


def test_bad_scale_is_named() -> None:
    with pytest.raises(ValueError, match="scale"):
        quality(torch.zeros(3, 1), torch.ones(3, 1), "reals", 1, 0.0)


def test_per_class_against_scikit_learn() -> None:
    p, y = draw(150, 4, seed=2)
    p[:, 3] = 0  # a class never predicted
    p = p / p.sum(1, keepdim=True)
    found = per_class(p, y)
    guess = p.argmax(1)
    precision, recall, _, support = metrics.precision_recall_fscore_support(y, guess, zero_division=0)
    assert found["precision"] == pytest.approx(precision.tolist())
    assert found["recall"] == pytest.approx(recall.tolist())
    assert found["support"] == support.tolist()
    assert found["confusion"] == metrics.confusion_matrix(y, guess).tolist()


def test_auroc_keeps_the_order_of_saturated_probabilities() -> None:
    """torchmetrics 1.9.0 ties scores beyond 17, where a float32 sigmoid is 1; here the other class's probability tells."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=draw)
    logit = 30 + 3 * torch.randn(400, generator=draw) + 2 * y
    p = torch.stack([torch.zeros(400), logit], dim=1).softmax(dim=1)
    assert (p[:, 1] == 1).float().mean() > 0.9
    assert quality(p, y, "classes", 2)["auroc"] == pytest.approx(roc_auc_score(y, logit))


def test_r2_has_no_unit() -> None:
    """torchmetrics 1.9.0 takes sums of squares below 1e-4 for zero; a target measured in other units has the same R2."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(200, 1, generator=draw)
    guess = y + 0.3 * torch.randn(200, 1, generator=draw)
    usual = quality(guess, y, "reals", 1)["r2"]
    assert 0.8 < usual < 0.95
    assert quality(1e-4 * guess, 1e-4 * y, "reals", 1)["r2"] == pytest.approx(usual, rel=1e-4)
