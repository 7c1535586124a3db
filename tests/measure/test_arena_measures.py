"""Measures of the arenas explain, attack and select against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from probatum.measure.adversarial import attacked, sign_line_search
from probatum.measure.detection import detection
from probatum.measure.faithfulness import deletion, erase, log_odds, max_sensitivity

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def test_erase_takes_the_largest_share() -> None:
    x = torch.arange(10.0).reshape(1, 2, 5)
    values = torch.tensor([[[0.0, 9, 1, 8, 2], [7, 3, 6, 4, 5]]])
    out = erase(x, values, 0.3, torch.tensor(-1.0))
    assert out.flatten().tolist() == [0, -1, 2, -1, 4, -1, 6, 7, 8, 9]


def test_log_odds_is_the_logit_of_the_softmax() -> None:
    logits, target = torch.randn(20, 5, generator=generator(), dtype=torch.float64), torch.arange(20) % 5
    p = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(log_odds(logits, target), torch.logit(p))


def test_deletion_of_a_two_class_linear_model_is_its_contributions() -> None:
    weight = torch.randn(2, 10, generator=generator())
    model, x = linear(weight), torch.randn(6, 10, generator=generator(1))
    target = torch.zeros(6, dtype=torch.int64)
    contributions = (weight[0] - weight[1]) * x
    found = deletion(model, x, target, contributions, torch.zeros(1, 10))
    best_two = contributions.topk(2, dim=1).values.sum(1)  # 20 % of ten features
    assert found["deletion-drop"] == pytest.approx(float(best_two.mean()), abs=1e-5)
    worse = deletion(model, x, target, -contributions, torch.zeros(1, 10))
    assert worse["deletion-drop"] < found["deletion-drop"]
    assert worse["deletion-area"] > found["deletion-area"]


def test_sensitivity_is_zero_for_constants_and_the_noise_for_the_identity() -> None:
    x = torch.randn(8, 30, generator=generator())
    ones = torch.ones_like(x)
    assert max_sensitivity(lambda z: torch.ones_like(z), x, ones, generator()) == 0.0
    moved = max_sensitivity(lambda z: z, x, x, generator())
    assert 0 < moved <= 0.02 * float(x.std()) * math.sqrt(30) / float(x.norm(dim=1).min())


def test_line_search_finds_the_boundary_of_a_linear_model() -> None:
    weight = torch.randn(2, 12, generator=generator())
    model, x = linear(weight), torch.randn(9, 12, generator=generator(2))
    with torch.no_grad():
        logits = model(x)
    target, w = logits.argmax(1), weight[0] - weight[1]
    exact = (logits[:, 0] - logits[:, 1]).abs() / w.abs().sum()  # distance in the largest coordinate
    changed = sign_line_search(model, x, target, steps=2000, largest=1.0)
    step = float(x.max() - x.min()) / 2000
    size = (changed - x).abs().amax(1)
    assert bool(((size >= exact - 1e-6) & (size <= exact + step + 1e-6)).all())


def test_attacks_that_fail_count_as_the_whole_input() -> None:
    model = linear(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    x, target = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), torch.zeros(3, dtype=torch.int64)
    changed = torch.tensor([[-0.5, 0.0], [2.0, 0.0], [1.0, 0.0]])
    found = attacked(model, x, target, changed)
    assert found["attack-success"] == pytest.approx(1 / 3)
    assert found["adversarial-distance"] == pytest.approx(1.0)


def test_detection_against_all_pairs() -> None:
    scores = torch.rand(40, generator=generator())
    flipped = torch.rand(40, generator=generator(1)) < 0.3
    pairs = list(itertools.product(scores[flipped].tolist(), scores[~flipped].tolist()))
    expected = sum(bad < good for bad, good in pairs) / len(pairs)
    found = detection(scores, flipped)
    assert found["flip-auroc"] == pytest.approx(expected)
    lowest = sorted(range(40), key=lambda i: float(scores[i]))[: int(flipped.sum())]
    assert found["flip-precision"] == pytest.approx(sum(bool(flipped[i]) for i in lowest) / len(lowest))
    with pytest.raises(ValueError, match="0 of 40 rows are flipped"):
        detection(scores, torch.zeros(40, dtype=torch.bool))
