"""Zero-shot measures by hand and by brute force."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import skew

from probatum.techniques.learner.zero_shot_toolkit.zero_shot import (
    class_accuracy,
    class_folds,
    csls,
    generalised,
    hubness,
    propagate,
    seen_unseen_area,
    stacked,
)

pytestmark = pytest.mark.fast


def test_class_accuracy_weighs_classes_alike() -> None:
    scores = torch.tensor([[1.0, 0.0, 9.0], [1.0, 0.0, 9.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    y = torch.tensor([0, 0, 0, 1])
    assert class_accuracy(scores, y) == pytest.approx((1 / 3 + 1) / 2)
    assert class_accuracy(scores, y, among=torch.tensor([0, 1])) == 1.0


def test_stacking_ends_in_ordinary_zero_shot() -> None:
    own = torch.Generator().manual_seed(0)
    scores, y, seen = torch.randn(200, 6, generator=own), torch.randint(6, (200,), generator=own), torch.arange(4)
    late = y >= 4
    found = generalised(scores, y, seen, float("inf"))
    assert found.unseen == class_accuracy(scores[late], y[late], torch.tensor([4, 5]))
    assert found.seen == 0.0
    assert generalised(scores, y, seen, -1e9).unseen == 0.0
    some = generalised(scores, y, seen, 0.3)
    assert some.harmonic == pytest.approx(2 * some.seen * some.unseen / (some.seen + some.unseen))
    assert torch.equal(stacked(scores, seen, 0.3)[:, 4:], scores[:, 4:])
    with pytest.raises(ValueError, match="some of both kinds"):
        generalised(scores[late], y[late], seen)


def test_area_is_one_for_a_perfect_scorer_and_small_for_a_blind_one() -> None:
    y = torch.arange(4).repeat(10)
    seen = torch.tensor([0, 1])
    perfect = 5 * torch.nn.functional.one_hot(y, 4).double()
    assert seen_unseen_area(perfect, y, seen) == pytest.approx(1.0)
    blind = torch.rand(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert 0.0 < seen_unseen_area(blind, y, seen) < 0.45


def test_area_by_every_gamma() -> None:
    own = torch.Generator().manual_seed(3)
    y, seen = torch.arange(5).repeat(6), torch.tensor([0, 1, 2])
    scores = torch.randn(30, 5, generator=own, dtype=torch.float64) + torch.nn.functional.one_hot(y, 5)
    gammas = torch.linspace(-8, 8, 4001)[:, None, None]
    right = ((scores - gammas * (torch.arange(5) < 3)).argmax(dim=2) == y).double().unflatten(1, (6, 5)).mean(dim=1)
    old, new = right[:, :3].mean(dim=1), right[:, 3:].mean(dim=1)
    area = float(((old[:-1] - old[1:]) * (new[:-1] + new[1:]) / 2).sum())
    assert 0.2 < area < 0.9
    assert seen_unseen_area(scores, y, seen) == pytest.approx(area, abs=1e-9)
    one = generalised(scores, y, seen, 0.7)
    right = (scores - 0.7 * (torch.arange(5) < 3)).argmax(dim=1) == y
    each = [float(right[y == c].double().mean()) for c in range(5)]
    a, b = sum(each[:3]) / 3, sum(each[3:]) / 2
    assert one == pytest.approx((a, b, 2 / (1 / a + 1 / b)))


def test_hubness_is_scipys_skewness() -> None:
    similarity = torch.rand(60, 9, generator=torch.Generator().manual_seed(4))
    counts = similarity.argmax(dim=1).bincount(minlength=9)
    assert hubness(similarity) == pytest.approx(float(skew(counts.numpy())))
    assert hubness(torch.eye(5)) == 0.0  # each column once


def test_propagation_is_the_limit_of_its_steps() -> None:
    own = torch.Generator().manual_seed(5)
    x, scores = torch.randn(9, 3, generator=own), torch.randn(9, 4, generator=own)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    similar = (unit @ unit.T).clamp(min=0)
    graph = torch.zeros(9, 9, dtype=torch.float64)
    for i in range(9):
        order = sorted((j for j in range(9) if j != i), key=lambda j: -float(similar[i, j]))
        for j in order[:3]:
            graph[i, j] = graph[j, i] = similar[i, j]
    degree = graph.sum(dim=1)
    start = scores.double().softmax(dim=1)
    found = start
    for _ in range(300):
        found = 0.7 * (graph / (degree[:, None] * degree).sqrt()) @ found + 0.3 * start
    torch.testing.assert_close(propagate(x, scores, k=3, share=0.7), found)


def test_csls_by_loop_and_against_hubs() -> None:
    own = torch.Generator().manual_seed(1)
    s = torch.rand(7, 5, generator=own, dtype=torch.float64)
    found = csls(s, k=2)
    for i in range(7):
        for j in range(5):
            row, column = s[i].sort().values[-2:].mean(), s[:, j].sort().values[-2:].mean()
            assert float(found[i, j]) == pytest.approx(float(2 * s[i, j] - row - column))
    hub = torch.rand(200, 10, generator=own)
    hub[:, 0] += 0.8
    assert hubness(csls(hub)) < hubness(hub)


def test_propagation_solves_its_equation_and_fills_in() -> None:
    own = torch.Generator().manual_seed(2)
    x = torch.cat([torch.randn(20, 3, generator=own) + 4, torch.randn(20, 3, generator=own) - 4])
    scores = torch.zeros(40, 2)
    scores[0, 0] = scores[39, 1] = 5.0  # only two rows are told apart
    found = propagate(x, scores, k=5)
    assert (found.argmax(dim=1) == (torch.arange(40) >= 20)).all()
    assert torch.allclose(propagate(x, scores, share=0.0), scores.double().softmax(dim=1))


def test_folds_part_the_classes() -> None:
    parts = class_folds(torch.arange(7), 3, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    with pytest.raises(ValueError, match="folds is 9"):
        class_folds(torch.arange(7), 9, torch.Generator())
