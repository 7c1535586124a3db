"""The calibration benchmark: errors against torchmetrics, stacked members against networks trained alone, tau by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional import calibration_error

from probatum.data.open import open_dataset
from probatum.spec import Spec
from probatum.techniques.probe.calibration_benchmark import (
    Design,
    Stacked,
    calibration_benchmark,
    column,
    flattened,
    measures,
    summarise,
    survey,
    tau,
    train_members,
)

pytestmark = pytest.mark.fast

SMALL = {"depths": [1], "widths": [4, 16], "activations": ["relu", "tanh"], "norms": ["none", "batch"], "steps": 20}


def drawn(n: int = 400, k: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(n, k, generator=draw, dtype=torch.float64)).softmax(dim=1)
    return p, torch.randint(k, (n,), generator=draw)


@pytest.mark.parametrize("bins", [5, 15, 50])
def test_errors_against_torchmetrics(bins: int) -> None:
    p, y = drawn()
    found = measures(p.numpy(), y.numpy(), [bins])
    for name, norm in (("ece", "l1"), ("mce", "max")):
        theirs = calibration_error(p, y, "multiclass", n_bins=bins, norm=norm, num_classes=3)
        assert found[f"{name}@{bins}"] == pytest.approx(float(theirs), abs=1e-6)
    assert found[f"ece@{bins}"] <= found[f"mce@{bins}"]


def test_ks_is_at_most_the_error_of_one_bin_a_row() -> None:
    p, y = (value.numpy() for value in drawn())
    top, right = p.max(1), p.argmax(1) == y
    assert measures(p, y)["ks"] <= abs(top - right).mean()


def test_certain_rows_and_empty_bins() -> None:
    p = np.array([[1.0, 0.0]] * 6 + [[0.5, 0.5]] * 4)
    y = np.array([0] * 6 + [0, 0, 1, 1])
    found = measures(p, y, [10])
    assert found["ece@10"] == found["mce@10"] == found["ks"] == 0.0  # confidence 1 falls into the last bin


def test_temperature_leaves_accuracy_as_it_was() -> None:
    data = open_dataset("iris").prepare(0)
    rows = survey(data, [0], **SMALL, bins=[5])
    for width in (4, 16):
        before, after = (column(rows, "accuracy", stage=stage, width=width) for stage in ("before", "after"))
        assert before == after
    assert len(rows) == 2 * 2 * 2 * 2


def test_stacked_members_equal_networks_alone() -> None:
    data = open_dataset("wine").prepare(0)
    x, _, test = flattened(data.spec, data.train.x, data.valid.x, data.test.x)
    design = Design(2, 8, "tanh", "batch")
    both = train_members(design, x, data.train.y, 3, [5, 6], steps=15, batch_size=16)
    alone = train_members(design, x, data.train.y, 3, [6], steps=15, batch_size=16)
    with torch.no_grad():
        torch.testing.assert_close(both(test.expand(2, -1, -1))[1], alone(test[None])[0], atol=1e-5, rtol=1e-4)


def test_a_stacked_member_is_the_network_it_says() -> None:
    net = Stacked(Design(1, 6, "relu", "batch"), 4, 3, [torch.Generator().manual_seed(s) for s in (0, 1)])
    plain = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for layer, weight, bias in zip((plain[0], plain[3]), net.weights, net.biases, strict=True):
            layer.weight.copy_(weight[1].T)
            layer.bias.copy_(bias[1, 0])
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        ours, theirs = net(x.expand(2, -1, -1), training=True)[1], plain(x)
        torch.testing.assert_close(ours, theirs)
    plain.eval()
    torch.testing.assert_close(net(x.expand(2, -1, -1))[1], plain(x))


def test_tau_by_brute_force() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    pairs = list(itertools.combinations(range(9), 2))
    assert tau(a, b) == pytest.approx(sum(np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs) / len(pairs))
    assert tau([1, 1, 1], [1, 2, 3]) == 0.0


def test_the_summary_is_of_the_table() -> None:
    data = open_dataset("iris").prepare(0)
    rows = survey(data, [0, 1], **SMALL, bins=[5, 10])
    told = summarise(rows, 10)
    first, second = (column(rows, "ece@10", seed=s, stage="before") for s in (0.0, 1.0))
    assert told["tau: ece, between seeds"] == pytest.approx(tau(first, second))
    wide, narrow = (column(rows, "ece@10", stage="before", width=w) for w in (16, 4))
    assert told["ece: width 16 less 4"] == pytest.approx(np.mean(wide) - np.mean(narrow))
    with pytest.raises(ValueError, match="no column ece@15"):
        summarise(rows, 15)


def test_categories_become_columns() -> None:
    spec = Spec("table", "classes", (2,), 2, numeric=1, cardinalities=(3,))
    x = torch.tensor([[0.5, 0.0], [1.5, 2.0], [2.5, 1.0], [3.5, 2.0]])
    (found,) = flattened(spec, x)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"members": 1}, "members is 1"),
        ({"main": 7}, "main is 7"),
        ({"bins": [999], "main": 999}, "999 bins for"),
        ({"widths": []}, "widths is"),
        ({"norms": ["layer"]}, "norms is"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_settings_out_of_range(settings: dict, word: str) -> None:
    data = open_dataset("iris").prepare(0)
    with pytest.raises(ValueError, match=word):
        calibration_benchmark(data, torch.Generator().manual_seed(0), **settings)


def test_logits_and_few_rows_are_told_of() -> None:
    p, y = (value.numpy() for value in drawn(10))
    with pytest.raises(ValueError, match="apply softmax"):
        measures(np.log(p), y, [5])
    with pytest.raises(ValueError, match="for 10 rows"):
        measures(p, y, [15])


def test_labels_outside_and_numbers_that_are_none_are_refused() -> None:
    p, y = (value.numpy() for value in drawn())
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"the label {wrong}"):
            measures(p, np.where(np.arange(len(y)) == 7, wrong, y))
    spoiled = p.copy()
    spoiled[5] = np.nan
    with pytest.raises(ValueError, match="softmax"):
        measures(spoiled, y)


def test_labels_of_other_kinds() -> None:
    p, y = (value.numpy() for value in drawn())
    assert measures(p, y.astype(np.uint8)) == measures(p, y)
    with pytest.raises(TypeError, match="float64"):
        measures(p, y.astype(np.float64))
    with pytest.raises(ValueError, match="the label 3"):
        measures(p.astype(np.float32), np.where(y == 2, 3, y))


def test_measures_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    y = np.array([0, 1, 1, 0])
    found = measures(p, y, [2])
    assert found["accuracy"] == 0.5
    assert found["log-loss"] == pytest.approx(-np.log([0.9, 0.3, 0.8, 0.4]).mean())
    assert found["brier"] == pytest.approx(2 * np.mean([0.01, 0.49, 0.04, 0.36]))
    # one bin holds all; of equal mass 0.6 0.7 are wrong both and 0.8 0.9 right
    assert found["ece@2"] == pytest.approx(0.25)
    assert found["mce@2"] == pytest.approx(0.25)
    assert found["ece-mass@2"] == pytest.approx((0.65 + 0.15) / 2)
    # of class 0: below a half 0.2 0.4 with one of two; above 0.7 0.9 with one of two; class 1 mirrors it
    assert found["classwise@2"] == pytest.approx((0.2 + 0.3) / 2)
    assert found["classwise-mass@2"] == pytest.approx((0.2 + 0.3) / 2)
    certain = measures(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1]), [1])
    assert certain["log-loss"] == pytest.approx(-np.log(1e-12) / 4)  # held
    assert measures(p.astype(np.float32), y, [2])["brier"] == pytest.approx(found["brier"])


def test_class_wise_errors_by_hand() -> None:
    p = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
    found = measures(p, np.array([0, 0, 1, 1]), [1])
    # shares 1/2, 1/2, 0 against means 0.525, 0.25, 0.225
    assert found["classwise@1"] == pytest.approx((0.025 + 0.25 + 0.225) / 3)
    assert found["classwise-mass@1"] == pytest.approx((0.025 + 0.25 + 0.225) / 3)


def test_first_weights_are_those_of_linear_layers() -> None:
    net = Stacked(Design(2, 5, "relu", "none"), 9, 3, [torch.Generator().manual_seed(4)])
    draw = torch.Generator().manual_seed(4)
    for weight, bias, (a, b) in zip(net.weights, net.biases, [(9, 5), (5, 5), (5, 3)], strict=True):
        expected = (2 * torch.rand(a + 1, b, generator=draw) - 1) / a**0.5
        torch.testing.assert_close(weight[0], expected[:a])
        torch.testing.assert_close(bias[0], expected[a:])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_training_is_that_of_one_network_by_torch(norm: str) -> None:
    own = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 4, generator=own), torch.randint(3, (30,), generator=own)
    found = train_members(
        Design(1, 6, "relu", norm), x, y, 3, [8, 9], steps=4, batch_size=10, lr=0.02, weight_decay=0.3
    )
    draw = torch.Generator().manual_seed(9)
    first = Stacked(Design(1, 6, "relu", norm), 4, 3, [draw])
    middle = nn.BatchNorm1d(6) if norm == "batch" else nn.Identity()
    plain = nn.Sequential(nn.Linear(4, 6), middle, nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for layer, weight, bias in zip((plain[0], plain[3]), first.weights, first.biases, strict=True):
            layer.weight.copy_(weight[0].T)
            layer.bias.copy_(bias[0, 0])
    rule = torch.optim.AdamW(plain.parameters(), lr=0.02, weight_decay=0.3)
    for step in range(4):
        rule.param_groups[0]["lr"] = 0.02 * (1 + np.cos(np.pi * step / 4)) / 2
        index = torch.randint(30, (10,), generator=draw)
        rule.zero_grad()
        nn.functional.cross_entropy(plain(x[index]), y[index]).backward()
        rule.step()
    torch.testing.assert_close(found.weights[1][1], plain[3].weight.T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.weights[0][1], plain[0].weight.T, rtol=1e-3, atol=1e-4)
    assert not any(part.requires_grad for pair in found.running for part in pair)
    if norm == "none":  # a bias before a batch norm moves by rounding alone, and running means are behind it
        torch.testing.assert_close(found(x.expand(2, -1, -1))[1], plain(x), rtol=1e-3, atol=1e-4)


def test_rows_as_vectors_by_hand() -> None:
    from probatum.spec import Spec

    spec = Spec("table", "classes", (3,), 2, numeric=1, cardinalities=(3, 2))
    x = torch.tensor([[1.0, 0, 1], [3.0, 2, 1], [5.0, 2, 1]])
    first, second = flattened(spec, x, torch.tensor([[7.0, 1.0, 0.0]]))
    third = 3**0.5
    expected = [
        [-1.0, 2 / third, 0, -2 / third, 0, 0],
        [0, -1 / third, 0, 1 / third, 0, 0],
        [1, -1 / third, 0, 1 / third, 0, 0],
    ]
    torch.testing.assert_close(first, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    # never seen in the first part: taken as it is
    torch.testing.assert_close(second, torch.tensor([[2.0, -1 / third, 1, -2 / third, 1, -1]]), atol=1e-6, rtol=1e-6)
    (image,) = flattened(Spec("image", "classes", (1, 1, 2), 2), torch.tensor([[[[0.0, 1.0]]], [[[2.0, 5.0]]]]))
    torch.testing.assert_close(image, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) / 2**0.5)
    (lone,) = flattened(Spec("table", "classes", (2,), 2, numeric=2), torch.tensor([[3.0, 4.0]]))
    assert lone.tolist() == [[0.0, 0.0]]


def test_columns_are_of_the_rows_asked_for() -> None:
    table = [
        {"seed": 0.0, "stage": "before", "a": 1.0},
        {"seed": 0.0, "stage": "after", "a": 2.0},
        {"seed": 1.0, "stage": "before", "a": 3.0},
    ]
    assert column(table, "a", stage="before") == [1.0, 3.0]
    assert column(table, "a", stage="before", seed=0.0) == [1.0]
    assert column(table, "a") == [1.0, 2.0, 3.0]


def test_every_row_of_the_table_anew() -> None:
    """Temperature, errors and the area against scrambled rows of one member, from the network itself."""
    from sklearn.metrics import roc_auc_score

    data = open_dataset("iris").prepare(0)
    own = {**SMALL, "widths": [16], "activations": ["tanh"], "norms": ["none"], "steps": 60}
    before, after = survey(data, [3], **own, bins=[5])
    x, _, test = flattened(data.spec, data.train.x, data.valid.x, data.test.x)
    net = train_members(Design(1, 16, "tanh", "none"), x, data.train.y, 3, [3], steps=60)
    mixer = torch.Generator().manual_seed(3)
    outside = torch.stack([values[torch.randperm(len(values), generator=mixer)] for values in test.T], dim=1)
    with torch.no_grad():
        logits, strange = (net(part[None])[0].double() for part in (test, outside))
    assert before["temperature"] == 1.0 != after["temperature"]
    for row in (before, after):
        p, q = ((part / row["temperature"]).softmax(dim=1).numpy() for part in (logits, strange))
        told = [1] * len(p) + [0] * len(q)
        assert row["ood-auroc"] == pytest.approx(roc_auc_score(told, [*p.max(axis=1), *q.max(axis=1)]))
        assert measures(p, data.test.y.numpy(), [5]).items() <= row.items()
    assert after["log-loss"] != before["log-loss"]


def test_bins_that_the_test_rows_do_not_fill_are_left_out() -> None:
    data = open_dataset("iris").prepare(0)
    small = {"depths": [1], "widths": [4, 8], "activations": ["relu"], "norms": ["none"], "steps": 5, "main": 5}
    found = calibration_benchmark(data, torch.Generator().manual_seed(0), **small, bins=[5, 9999])
    own = torch.Generator().manual_seed(0)
    seeds = [int(torch.randint(2**31, (), generator=own)) for _ in range(2)]
    again = survey(data, seeds, **{k: v for k, v in small.items() if k != "main"}, bins=[5])
    assert found == summarise(again, 5)


def test_a_constant_column_stays_small_beside_rounding() -> None:
    spec = Spec("table", "classes", (1,), 2, numeric=1)
    seen, other = flattened(spec, torch.full((999, 1), 16777.1), torch.full((5, 1), 16778.1))
    assert float(seen.abs().max()) < 0.01
    assert float(other.abs().max()) < 1.01
    small = torch.randn(99, 1, generator=torch.Generator().manual_seed(0)) * 1e-8
    torch.testing.assert_close(flattened(spec, small)[0].std(), torch.tensor(1.0))
