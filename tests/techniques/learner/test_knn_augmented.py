"""kNN-augmented classifier: sklearn's votes, the components as ends of the mixture, the losses, misuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.numerics.networks.backbone import Backbone
from probatum.spec import Budget, Optimisation
from probatum.techniques.learner.knn_augmented import Store, augment, fit, fit_head, knn_loss, mix, votes

pytestmark = pytest.mark.fast


def rows(n: int = 80, d: int = 5, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=own)
    return torch.randn(n, d, generator=own, dtype=torch.float64) + F.one_hot(y, d), y


@pytest.mark.parametrize("k", [1, 7, 79])
def test_votes_are_sklearns(k: int) -> None:
    (x, y), (q, _) = rows(), rows(20, seed=1)
    unit = F.normalize(x, dim=1).numpy()

    def weigh(d: np.ndarray) -> np.ndarray:
        return np.exp(-d / 0.3)

    theirs = KNeighborsClassifier(k, weights=weigh).fit(unit, y.numpy()).predict_proba(F.normalize(q, dim=1).numpy())
    mine = Store.of(x, y, 3).vote(q, k, 0.3)
    assert np.allclose(mine.numpy(), theirs, atol=1e-6)


def test_a_row_has_no_part_in_its_own_vote() -> None:
    x, y = rows()
    store = Store.of(x, y, 3)
    mine = store.vote(x, 5, 0.3, own=True)
    for i in (0, 17, 79):
        others = torch.arange(80) != i
        assert torch.allclose(mine[i], Store.of(x[others], y[others], 3).vote(x[i : i + 1], 5, 0.3)[0])
    with pytest.raises(ValueError, match="k is 80, but the store has 79 rows"):
        store.vote(x, 80, 0.3, own=True)


def test_blocks_and_halves_agree() -> None:
    x, y = rows()
    store = Store.of(x, y, 3)
    whole, parts = store.nearest(x, 4, own=True), store.nearest(x, 4, own=True, block=13)
    assert torch.allclose(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    half = Store.of(x, y, 3, half=True)
    assert half.features.dtype == torch.float16
    assert torch.allclose(half.vote(x, 10, 0.3), store.vote(x, 10, 0.3), atol=0.02)


def test_rows_that_point_the_same_way_keep_their_distances() -> None:
    x, y = rows(60)
    q, _ = rows(7, seed=1)
    for own, asked in ((False, q), (True, x)):
        gaps = torch.cdist(
            F.normalize(asked + 1e4, dim=1), F.normalize(x + 1e4, dim=1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        exact = (gaps + (torch.eye(60) * 9 if own else 0)).topk(5, dim=1, largest=False)
        exact = exact.values.square(), y[exact.indices]
        found = Store.of((x + 1e4).float(), y, 3).nearest((asked + 1e4).float(), 5, own)
        assert float((found[0] - exact[0]).abs().max() / exact[0].mean()) < 0.05
        assert float((found[1] == exact[1]).double().mean()) > 0.9


def test_half_precision_and_no_rows() -> None:
    x, y = rows()
    store = Store.of(x.float(), y, 3)
    for kind in (torch.bfloat16, torch.float16):
        low = x.to(kind)
        torch.testing.assert_close(store.vote(low, 7, 0.3), store.vote(low.float(), 7, 0.3))
        logits, vote = x[:, :3].to(kind).requires_grad_(), torch.linspace(0.001, 0.999, 80).to(kind)
        loss = knn_loss(logits, y, vote, "focal", 1.5)
        wide = logits.detach().float().requires_grad_()
        expected = knn_loss(wide, y, vote.float(), "focal", 1.5)
        torch.testing.assert_close(loss, expected.to(kind))
        torch.testing.assert_close(
            torch.autograd.grad(loss.float().sum(), logits)[0].float(),
            torch.autograd.grad(expected.sum(), wide)[0],
            atol=2e-2,
            rtol=2e-2,
        )
    assert store.vote(x[:0].float(), 7, 0.3).shape == (0, 3)


def test_far_neighbours_do_not_underflow() -> None:
    found = votes(torch.tensor([[4.0, 4.0]]), torch.tensor([[0, 1]]), 1e-4, 3)
    assert found.tolist() == [[0.5, 0.5, 0.0]]


def test_ends_of_the_mixture_are_the_components() -> None:
    a, b = torch.rand(4, 3).softmax(dim=1), torch.rand(4, 3).softmax(dim=1)
    assert torch.equal(mix(a, b, 1.0), a)
    assert torch.equal(mix(a, b, 0.0), b)
    assert torch.allclose(mix(a, b, 0.3).sum(dim=1), torch.ones(4))
    with pytest.raises(ValueError, match=r"share is 1\.2"):
        mix(a, b, 1.2)


def test_losses_by_hand_and_at_their_edges() -> None:
    logits, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    vote = torch.tensor([0.5, 0.0, 1.0, 0.25], dtype=torch.float64)
    plain = F.cross_entropy(logits, y, reduction="none")
    for kind in ("plain", "regularise", "focal"):
        assert torch.equal(knn_loss(logits, y, vote, kind, 0.0), plain)
    up = knn_loss(logits, y, vote, "regularise", 2.0) / plain
    assert up.tolist() == pytest.approx([1 + 2 * math.log(2), 201.0, 1.0, 1 + 2 * math.log(4)])
    focal = knn_loss(logits, y, vote, "focal", 2.0) / plain
    assert focal.tolist() == pytest.approx([0.25, 1.0, 0.0, 0.5625], abs=1e-12)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: knn_loss(z, y, vote, "focal", 1.5), (logits,))


def test_head_is_at_a_minimum_of_its_loss() -> None:
    x, y = rows()
    vote = torch.rand(80, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    head = fit_head(x, y, 3, vote, "regularise", 1.0, 1e-2)
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    z = (x - head.mean) / head.scale
    (knn_loss(z @ weight.T + bias, y, vote, "regularise", 1.0).mean() + 5e-3 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-4
    assert float(bias.grad.abs().max()) < 1e-4
    assert not head.weight.requires_grad
    assert not head.bias.requires_grad
    torch.testing.assert_close(head.logits(x), ((x - x.mean(0)) / x.std(0, correction=0)) @ head.weight.T + head.bias)


def test_what_is_chosen_is_the_best_on_validation_rows() -> None:
    train, valid = rows(), rows(60, seed=3)
    grids = {"neighbors": (3, 500), "temperatures": (0.1, 0.5), "shares": (0.0, 0.5, 1.0), "penalties": (1e-3, 1e-1)}
    best = augment(Backbone(None), train, valid, 3, **grids)

    def loss(share: float, temperature: float, penalty: float) -> float:
        one = {"shares": (share,), "temperatures": (temperature,), "penalties": (penalty,), "neighbors": (3,)}
        p = augment(Backbone(None), train, valid, 3, **one).mixture(valid[0])
        return -float(p.double().gather(1, valid[1][:, None]).clamp(min=1e-6).log().mean())

    tried = [loss(s, t, p) for s in grids["shares"] for t in grids["temperatures"] for p in grids["penalties"]]
    assert loss(best.share, best.temperature, best.penalty) == pytest.approx(min(tried), rel=1e-5)
    assert best.k == 3  # 500 is more than there are


@pytest.mark.parametrize("training", ["plain", "regularise", "focal"])
def test_on_the_bench(training: str) -> None:
    data = toy("image", "classes")

    def factory() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))

    found = fit(data, Budget(40, 16, 4), torch.Generator(), factory, Optimisation(lr=1e-2), training=training)
    p = found.predict(data.test)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    assert float((p.argmax(dim=1) == data.test.y).float().mean()) > 0.9
    assert 0 <= found.report()["knn-share"] <= 1


def test_misuse() -> None:
    x, y = rows()
    with pytest.raises(ValueError, match="k is 81, but the store has 80 rows"):
        Store.of(x, y, 3).vote(x, 81, 0.3)
    with pytest.raises(ValueError, match="queries have 4 features and the store 5"):
        Store.of(x, y, 3).vote(x[:, :4], 3, 0.3)
    bad = y.clone()
    bad[4] = -1
    with pytest.raises(ValueError, match="1 rows of the store have no label in 0 to 2, first row 4"):
        Store.of(x, bad, 3)
    with pytest.raises(ValueError, match="strength is -1"):
        knn_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1), "focal", -1.0)
    with pytest.raises(ValueError, match="temperature is 0"):
        Store.of(x, y, 3).vote(x, 3, 0.0)


def test_rows_of_zeros_have_distances_in_half_precision() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-4.0, 3.0]], dtype=torch.float16)
    store = Store.of(rows, torch.tensor([0, 1, 2]), 3)
    assert store.features.dtype == torch.float16
    squares, classes = store.nearest(torch.tensor([[6.0, 8.0]], dtype=torch.float16), 3)
    torch.testing.assert_close(squares, torch.tensor([[0.0, 1.0, 2.0]]), atol=2e-3, rtol=0)
    assert classes.tolist() == [[1, 0, 2]]
    squares, _ = store.nearest(torch.zeros(1, 2), 3)
    torch.testing.assert_close(squares, torch.tensor([[0.0, 1.0, 1.0]]), atol=2e-3, rtol=0)
