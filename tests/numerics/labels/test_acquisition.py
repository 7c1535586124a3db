"""Parts of acquisition strategies against loops, autograd and brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import nn

from probatum.numerics.labels import acquisition as parts
from probatum.numerics.networks.watch import last_features

pytestmark = pytest.mark.fast


def probabilities(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(dim=1)


def test_least_confidence_is_the_chance_of_a_wrong_guess() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(parts.least_confidence(p), torch.tensor([0.5, 0.0]))


def test_two_classes_rank_alike() -> None:
    p = probabilities(50, 2)
    orders = [f(p).argsort().tolist() for f in (parts.least_confidence, parts.closeness, parts.entropy)]
    assert orders[0] == orders[1] == orders[2]
    assert len(set(parts.entropy(p).tolist())) == 50


def test_mutual_information_splits_the_entropy() -> None:
    p = torch.stack([probabilities(20, 4, seed) for seed in range(5)])
    total = parts.entropy(p.mean(dim=0))
    assert torch.allclose(parts.mutual_information(p), total - parts.entropy(p).mean(dim=0))
    same = p[:1].expand(5, -1, -1)
    assert parts.mutual_information(same).abs().max() < 1e-12


def test_vote_entropy_by_hand() -> None:
    votes = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]], [[0.7, 0.3]], [[0.6, 0.4]]], dtype=torch.float64)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(parts.vote_entropy(votes)) == pytest.approx(expected)


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_length_is_the_expected_norm_of_autograd(bias: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(5, 3, bias=bias, dtype=torch.float64)
    h = torch.randn(6, 5, dtype=torch.float64)
    p = head(h).softmax(dim=1).detach()
    found = parts.gradient_length(p, h, bias)
    for i in range(6):
        expected = 0.0
        for c in range(3):
            loss = nn.functional.cross_entropy(head(h[i : i + 1]), torch.tensor([c]))
            norm = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(head.parameters()))) ** 0.5
            expected += float(p[i, c]) * norm
        assert float(found[i]) == pytest.approx(expected, rel=1e-10)


def test_gradient_embedding_is_the_last_layers_gradient() -> None:
    torch.manual_seed(1)
    head = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    h = torch.randn(5, 4, dtype=torch.float64)
    p = head(h).softmax(dim=1).detach()
    for i in range(5):
        loss = nn.functional.cross_entropy(head(h[i : i + 1]), p[i : i + 1].argmax(dim=1))
        (g,) = torch.autograd.grad(loss, [head.weight])
        assert torch.allclose(parts.gradient_embedding(p, h)[i], g.flatten())


def test_farthest_first_is_within_twice_the_best_radius() -> None:
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    centres = points[:1]

    def radius(chosen: torch.Tensor) -> float:
        return float(torch.cdist(points, torch.cat([centres, points[chosen]])).amin(dim=1).max())

    best = min(radius(torch.tensor(pick)) for pick in itertools.combinations(range(9), 3))
    found = parts.farthest_first(points, centres, 3)
    assert len(found.unique()) == 3
    assert best <= radius(found) <= 2 * best


def test_spread_draw_takes_every_point_once() -> None:
    points = torch.tensor([[0.0], [0.0], [3.0], [3.0]])
    found = parts.spread_draw(points, 4, torch.Generator().manual_seed(0))
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    assert points[found[0]] == 3.0  # the longest vector first
    assert points[found[1]] == 0.0  # its twin has no distance, so it is not drawn before


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_draws_of_gradients_are_those_of_their_outer_products(offset: float) -> None:
    p, h = probabilities(60, 5), offset + torch.randn(60, 7, generator=torch.Generator().manual_seed(9)).double()
    p[30:40], h[30:40] = p[:10], h[:10]  # twins, of which the second has no distance left
    slow = parts.spread_draw(parts.gradient_embedding(p, h), 45, torch.Generator().manual_seed(4))
    fast = parts.spread_draw_of_gradients(p, h, 45, torch.Generator().manual_seed(4))
    assert fast.tolist() == slow.tolist()
    twins = {tuple(sorted((i % 30, j % 30))) for i, j in itertools.pairwise(sorted(fast.tolist())) if j - i == 30}
    assert not twins


def test_draws_of_gradients_never_hold_them() -> None:
    wide, rows = torch.randn(400, 3000), 400  # their embeddings are 400 x 3,000,000 numbers, 10 GB in double precision
    p = torch.randn(rows, 1000).softmax(dim=1)
    assert len(parts.spread_draw_of_gradients(p, wide, 3, torch.Generator().manual_seed(0)).unique()) == 3


def test_farthest_first_by_blocks_of_centres() -> None:
    own = torch.Generator().manual_seed(6)
    points, centres = torch.randn(40, 3, generator=own), torch.randn(11, 3, generator=own)
    whole, blocks = (parts.farthest_first(points, centres, 9, block=block).tolist() for block in (1024, 2))
    assert whole == blocks
    left = torch.cdist(points.double(), centres.double()).amin(dim=1)
    assert whole[0] == int(left.argmax())
    middle = points[(points - points.mean(dim=0)).norm(dim=1).argmax()]
    assert torch.equal(points[parts.farthest_first(points, centres[:0], 1)[0]], middle)


def test_density_is_the_mean_cosine() -> None:
    h = torch.randn(7, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = nn.functional.cosine_similarity(h[:, None], h[None], dim=2).mean(dim=1)
    assert torch.allclose(parts.similarity_density(h), expected)


def test_unit_ranks_share_ties() -> None:
    assert parts.unit_ranks(torch.tensor([5.0, 1.0, 5.0, 3.0])).tolist() == pytest.approx([5 / 6, 0.0, 5 / 6, 1 / 3])


def test_kappa_is_sklearns() -> None:
    own = torch.Generator().manual_seed(2)
    a, b = torch.randint(4, (200,), generator=own), torch.randint(4, (200,), generator=own)
    b[:120] = a[:120]
    assert parts.kappa(a, b, 4) == pytest.approx(cohen_kappa_score(a.numpy(), b.numpy()))
    assert parts.kappa(a * 0, a * 0, 4) == 1.0


def test_last_features_reproduce_the_outputs() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    x = torch.randn(30, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = last_features(net, x, block=7)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.allclose(net[4](seen.features), seen.logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        last_features(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 4, 4))


def test_rows_of_zeros_are_like_no_other_in_half_precision() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], dtype=torch.float16)
    torch.testing.assert_close(
        parts.similarity_density(rows).float(), torch.tensor([0.0, 2 / 3, 2 / 3]), atol=2e-3, rtol=0
    )
