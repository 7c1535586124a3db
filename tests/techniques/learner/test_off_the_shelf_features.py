"""Off-the-shelf features: sklearn's parity, whitening, folds without leakage, retrieval by hand, misuse."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.numerics.networks.backbone import Backbone
from probatum.spec import Budget, Optimisation, Part
from probatum.techniques.learner import off_the_shelf_features as shelf
from probatum.techniques.learner.off_the_shelf_features import (
    Machines,
    Whitening,
    average_precision,
    cross_validate,
    extract,
    fit,
    margins,
    off_the_shelf,
    patch_distance,
    patches,
    unit,
    usable_layers,
    variants,
)

pytestmark = pytest.mark.fast


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def rows(n: int = 60, d: int = 6, k: int = 3) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(1)
    y = torch.arange(n) % k
    return torch.randn(n, d, generator=own, dtype=torch.float64) + 1.5 * nn.functional.one_hot(y, d), y


@pytest.mark.parametrize("k", [2, 3])
def test_unit_and_machines_are_sklearns(k: int) -> None:
    x, y = rows(k=k)
    assert np.allclose(unit(x).numpy(), Normalizer().fit_transform(x.numpy()))
    theirs = LinearSVC(C=2.0, dual="auto", random_state=0, max_iter=20_000).fit(unit(x).numpy(), y.numpy())
    mine = Machines(unit(x), y, k, 2.0)
    decision = theirs.decision_function(unit(x).numpy())
    expected = np.stack([-decision, decision], axis=1) if k == 2 else decision
    assert np.allclose(mine.scores(unit(x)).numpy(), expected, atol=1e-6)


def test_signed_power_keeps_signs_and_length() -> None:
    x, _ = rows()
    found = unit(x, 0.5)
    assert torch.equal(found.sign(), x.sign())
    assert torch.allclose(found.norm(dim=1), torch.ones(60, dtype=torch.float64))
    # 4, -9, 0 -> 2, -3, 0 -> by the root of 13
    torch.testing.assert_close(unit(torch.tensor([[4.0, -9.0, 0.0]]), 0.5), torch.tensor([[2.0, -3.0, 0.0]]) / 13**0.5)
    torch.testing.assert_close(unit(torch.tensor([[8.0, 1.0]]), 1 / 3), torch.tensor([[2.0, 1.0]]) / 5**0.5)


def test_extraction_leaves_the_network_as_it_was() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = extract(model, x, "2"), extract(model, x, "2", block=3)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert whole.shape == (10, 256)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert extract(model, x, "2", pool="mean").shape == (10, 4)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model[6](extract(model, x)), model(x), atol=1e-6)
    assert usable_layers(model, x) == ["2", "penultimate"]


def test_whitened_references_have_unit_covariance_and_queries_do_not_matter() -> None:
    x, _ = rows(200)
    white = Whitening.of(x, width=4)
    z = white.white(x)
    cov = z.T @ z / 199
    assert torch.allclose(cov, torch.eye(4, dtype=torch.float64), atol=1e-6)
    query = torch.tensor([[3.0, -1.0, 0.5, 0.0, 2.0, -4.0]], dtype=torch.float64)
    half = query / query.square().sum().sqrt()
    for power in (0.5, 0.25, 1.0):
        far = (half - white.mean) @ white.directions.T / white.scales
        far = far / far.square().sum().sqrt()  # unit length a second time
        expected = [math.copysign(abs(v) ** power, v) for v in far[0].tolist()]
        assert white(query, power)[0].tolist() == pytest.approx(expected)
        assert white(torch.cat([x, query]), power)[-1].tolist() == pytest.approx(expected)  # others do not matter
    assert white(query).norm() != pytest.approx(1.0, abs=0.05)
    scaled = Whitening.of(3 * x * torch.rand(200, 1, generator=torch.Generator().manual_seed(1)).double(), width=4)
    torch.testing.assert_close(
        scaled(query).abs(), white(query).abs()
    )  # unit length before: sizes of rows do not matter
    assert Whitening.of(x, width=500).directions.shape[0] <= 6
    with pytest.raises(ValueError, match="whitening needs rows that differ"):
        Whitening.of(torch.ones(5, 3))


def test_variants_stay_on_one_side_of_every_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows()
    marked = torch.cat([x, torch.arange(60.0, dtype=torch.float64)[:, None]], dim=1)
    trained: list[set[float]] = []
    asked: list[set[float]] = []

    class Spy:
        def __init__(self, features: Tensor, labels: Tensor, classes: int, penalty: float) -> None:
            trained.append(set(features[:, -1].tolist()))

        def scores(self, features: Tensor) -> Tensor:
            asked.append(set(features[:, -1].tolist()))
            return torch.zeros(len(features), 3)

    monkeypatch.setattr(shelf, "Machines", Spy)
    cross_validate([marked, marked, marked], y, 3, (1.0,))
    assert len(trained) == 3
    for k, rows_seen in enumerate(trained):
        for shown in asked[3 * k : 3 * k + 3]:
            assert not (rows_seen & shown)


def test_variants_are_moved_and_turned_images() -> None:
    x = torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    found = variants(x)
    assert len(found) == 7
    assert all(one.shape == x.shape for one in found)
    assert torch.equal(found[0], x)
    assert torch.equal(found[1][:, :, 1:, 1:], x[:, :, :-1, :-1])  # shifted by one pixel
    assert len(variants(torch.rand(3, 4))) == 1
    assert [len(variants(x, *which)) for which in ((True, False), (False, True), (False, False))] == [5, 3, 1]
    place = (2 * torch.arange(31) + 1) / 31 - 1
    across, down = place[None, :].expand(31, 31), place[:, None].expand(31, 31)
    wide = variants((across + 3 * down)[None, None])
    for k, (dy, dx) in enumerate(((-3, -3), (-3, 3), (3, -3), (3, 3)), start=1):  # a tenth of the side
        moved = (across + 2 * dx / 31) + 3 * (down + 2 * dy / 31)
        torch.testing.assert_close(wide[k][0, 0, 3:-3, 3:-3], moved[3:-3, 3:-3])
    for k, angle in ((5, -10.0), (6, 10.0)):
        c, d = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turned = (c * across - d * down) + 3 * (d * across + c * down)
        torch.testing.assert_close(wide[k][0, 0, 6:-6, 6:-6], turned[6:-6, 6:-6], atol=1e-5, rtol=0)


def test_patches_and_their_distance_by_hand() -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    cut = patches(x, (1, 2))
    assert cut.shape == (3, 5, 1, 8, 8)
    assert torch.allclose(cut[:, 0], x)
    query, others = cut[0].flatten(1), cut.flatten(2)
    found = patch_distance(query, others)
    assert float(found[0]) == pytest.approx(0.0, abs=1e-5)
    expected = torch.stack([torch.stack([(p - others[1]).norm(dim=1).min() for p in query]).mean()])
    assert float(found[1]) == pytest.approx(float(expected), rel=1e-5)


def test_average_precision_is_sklearns() -> None:
    own = torch.Generator().manual_seed(3)
    scores, relevant = torch.randn(50, generator=own), torch.rand(50, generator=own) < 0.3
    assert average_precision(scores, relevant) == pytest.approx(
        average_precision_score(relevant.numpy(), scores.numpy())
    )
    with pytest.raises(ValueError, match="no row is relevant"):
        average_precision(scores, relevant & ~relevant)


@pytest.mark.parametrize("augment", [False, True])
def test_on_the_bench(augment: bool) -> None:
    data = toy("image", "classes")
    found = fit(
        data, Budget(40, 16, 4), torch.Generator(), net, Optimisation(lr=1e-2), augment=augment, penalties=(1.0, 10.0)
    )
    p = found.predict(data.test)
    assert torch.allclose(p.sum(dim=1), torch.ones(len(p)), atol=1e-5)
    assert float((p.argmax(dim=1) == data.test.y).float().mean()) > 0.8
    assert found.power == (0.5 if augment else 1.0)
    assert found.choice.accuracy == max(found.curve.values())


def test_equal_accuracies_are_told_apart_by_margins() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, float("-inf")], [1.0, 0.0, float("-inf")]]).double()
    spread = np.std([3.0, 1.0, 0.0, 0.0, 2.0, 1.0, 0.0])
    found = margins(scores, torch.tensor([0, 0, 2]))
    np.testing.assert_allclose(found.numpy(), [2 / spread, -2 / spread, 0.0])
    x, y = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    same = off_the_shelf(Backbone(net().eval()), x, y, 3, layers=["2", "3"], penalties=(1.0,))
    assert same.curve["2"] == same.curve["3"]  # flattening changes nothing
    assert same.choice.layer == "3"
    assert off_the_shelf(Backbone(net().eval()), x, y, 3, layers=["3", "2"], penalties=(1.0,)).choice.layer == "2"
    # two features tell both classes apart on all rows, the first one by more in its own deviations
    y, noise = torch.arange(40) % 2, torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clear = 0.02 * noise + F.one_hot(y, 2)
    dim = 0.15 * noise + F.one_hot(y, 2)
    (_, a, m), (_, b, n) = (cross_validate([part], y, 2, (1.0,)) for part in (clear, dim))
    assert a == b == 1.0
    assert m > n > 1.0
    penalty, _, most = cross_validate([dim], y, 2, (1e-3, 1.0, 10.0))
    each = {c: cross_validate([dim], y, 2, (c,))[1:] for c in (1e-3, 1.0, 10.0)}
    assert each[penalty] == max(each.values())
    assert most == each[penalty][1]


def test_machines_of_variants_by_hand() -> None:
    x, y = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    features = Backbone(net().eval())
    found = off_the_shelf(features, x, y, 3, layers=["2"], penalties=(1.0,), augment=True)
    shown = [unit(features.network[:3](one).detach().flatten(1), 0.5) for one in variants(x)]
    own = Machines(torch.cat(shown), y.repeat(7), 3, 1.0)
    torch.testing.assert_close(found.machines.weight, own.weight)
    torch.testing.assert_close(found.scores(x), sum(own.scores(one) for one in shown) / 7, atol=1e-6, rtol=1e-6)
    assert found.temperature == 1.0
    plain = off_the_shelf(features, x, y, 3, layers=["2"], penalties=(1.0,))
    expected = Machines(unit(features.network[:3](x).detach().flatten(1)), y, 3, 1.0)
    torch.testing.assert_close(plain.machines.weight, expected.weight)
    p = plain.predict(Part(x, y, y))
    torch.testing.assert_close(p, expected.scores(unit(features.network[:3](x).detach().flatten(1))).softmax(1).float())
    assert found.report() == {"layer 2": found.choice.accuracy, "penalty": 1.0}


def test_the_temperature_is_of_classes_that_have_machines() -> None:
    data = toy("image", "classes")
    kept = data.train.y < 2
    train = Part(data.train.x[kept], data.train.y[kept], data.train.rows[kept])
    args = (Budget(10, 16, 4), torch.Generator(), net, Optimisation(lr=1e-2))
    found = fit(replace(data, train=train), *args, penalties=(1.0,), layers=["penultimate"])
    rows = data.valid.y < 2
    scores = found.scores(data.valid.x[rows])[:, :2]
    assert found.temperature != 1.0
    assert found.temperature == pytest.approx(fit_temperature(scores, data.valid.y[rows]), rel=1e-3)
    assert float(found.predict(data.test)[:, 2].max()) == 0.0


def test_layers_that_give_no_tensor_are_refused() -> None:
    model = nn.Sequential(nn.LSTM(4, 3, batch_first=True))
    with pytest.raises(TypeError, match="layer '0' returns tuple"):
        extract(model, torch.rand(2, 5, 4), "0")


def test_labels_that_are_none() -> None:
    x, y = rows()
    for wrong in (-100, -1, 3):
        with pytest.raises(ValueError, match=f"label {wrong}"):
            Machines(unit(x), torch.where(torch.arange(60) == 4, wrong, y), 3, 1.0)
    column = Machines(unit(x), y[:, None], 3, 1.0)
    assert torch.equal(column.weight, Machines(unit(x), y, 3, 1.0).weight)


def test_misuse() -> None:
    x = torch.rand(12, 1, 8, 8)
    y = torch.arange(12) % 3
    features = Backbone(net().eval())
    with pytest.raises(KeyError, match="conv9"):
        off_the_shelf(features, x, y, 3, layers=["conv9"])
    with pytest.raises(ValueError, match="penalties are"):
        off_the_shelf(features, x, y, 3, penalties=(0.0,))
    with pytest.raises(ValueError, match=r"1 class\(es\) have rows"):
        Machines(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64), 3, 1.0)
    with pytest.raises(ValueError, match="power is 2"):
        unit(torch.rand(2, 2), 2.0)


class HeadFirst(nn.Module):
    """The head is registered before the body."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_layers_before_activations_in_place_frozen_norms_and_a_head_registered_first() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)).train(),
        torch.randn(9, 6),
    )
    model[1].eval()
    torch.testing.assert_close(extract(model, x, "0"), model[0](x))
    found = extract(model, x)
    torch.testing.assert_close(found, torch.relu(model[1](model[0](x))))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    other = HeadFirst()
    torch.testing.assert_close(extract(other, x), other.body(x))
    backbone = Backbone(other.eval())
    torch.testing.assert_close(backbone(x), other.body(x))
    torch.testing.assert_close(backbone.logits(x), other(x))


def test_zeros_stay_zeros_in_half_precision() -> None:
    found = unit(torch.tensor([[0.0, 0.0], [3e-4, 4e-4]], dtype=torch.float16))
    torch.testing.assert_close(found.float(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]), rtol=2e-3, atol=0)
    assert found.dtype == torch.float16


def test_labels_may_stand_in_a_column_and_activations_may_be_functions() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(x)))

    torch.manual_seed(0)
    x, model = torch.randn(30, 6), Plain()
    y = (x[:, 0] > 0).long()
    assert usable_layers(model, x) == ["penultimate"]
    found = [off_the_shelf(Backbone(model), x, labels, 2) for labels in (y, y[:, None])]
    assert found[0].choice == found[1].choice
    assert torch.equal(found[0].scores(x), found[1].scores(x))


def test_a_patch_has_no_distance_to_itself() -> None:
    many = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)) + 10
    assert float(patch_distance(many, many[None])) == 0.0
