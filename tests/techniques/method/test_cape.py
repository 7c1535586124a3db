"""Calibrated probability estimation: targets by definition, epochs of targets and labels, best weights, bad input."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.spec import Batch, Data, Part, Spec
from probatum.techniques.method.cape import Cape, bin_targets, kde_targets

pytestmark = pytest.mark.fast


def predictions(n: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=draw, dtype=torch.float64)
    return p, (torch.rand(n, generator=draw, dtype=torch.float64) < p).long()


def toy(n: int = 120, seed: int = 0) -> Data:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=draw)
    y = (torch.rand(n, generator=draw) < torch.sigmoid(2 * x[:, 0])).long()
    part = Part(x, y, torch.arange(n))
    return Data(Spec("table", "classes", (3,), 2, numeric=3, classes=("a", "b")), part, part, part)


def running(data: Data, model: nn.Module, steps: int = 100) -> SimpleNamespace:
    return SimpleNamespace(
        model=model,
        train=data.train,
        valid=data.valid,
        spec=data.spec,
        step=0,
        epoch=-1,
        keep_best=True,
        extra_passes=0.0,
        budget=SimpleNamespace(steps=steps),
    )


def test_one_group_is_the_base_rate_and_a_group_a_row_the_labels() -> None:
    p, y = predictions()
    torch.testing.assert_close(bin_targets(p, y, 1), torch.full_like(p, float(y.double().mean())))
    torch.testing.assert_close(bin_targets(p, y, len(p)), y.double())


@pytest.mark.parametrize("bins", [1, 7, 10, 300])
def test_the_mean_of_the_targets_is_that_of_the_labels(bins: int) -> None:
    p, y = predictions()
    assert float(bin_targets(p, y, bins).mean()) == pytest.approx(float(y.double().mean()))


def test_groups_are_of_equal_count_in_the_order_of_predictions() -> None:
    p, y = predictions(20)
    q = bin_targets(p, y, 4)
    for group in p.argsort().split(5):
        torch.testing.assert_close(q[group], y[group].double().mean().expand(5))


@pytest.mark.parametrize("neighbours", [500, 20])
def test_kernel_targets_by_brute_force(neighbours: int) -> None:
    p, y = predictions(700)
    order = p.argsort(stable=True)
    place = torch.empty(700, dtype=torch.int64)
    place[order] = torch.arange(700)
    near = (place[:, None] - place[None]).abs() <= neighbours
    weight = torch.exp(-0.5 * ((p[:, None] - p[None]) / 0.1) ** 2) * near
    torch.testing.assert_close(kde_targets(p, y, 0.1, neighbours), (weight @ y.double()) / weight.sum(dim=1))


def test_targets_stand_by_row_number_and_labels_in_between() -> None:
    data = toy()
    model = nn.Linear(3, 2)
    cape, run = Cape(labels_between=2, bins=5, share=0.2), running(data, model)
    cape.prepare(run)
    assert not run.keep_best
    batch = Batch(data.train.x[[5, 2]], data.train.y[[5, 2]], torch.tensor([5, 2]))
    seen = []
    for epoch in range(8):
        run.epoch, run.step = epoch, 10 * epoch
        cape.order(run, torch.arange(len(data.train)))
        given = cape.batch(run, batch)
        seen.append(given.y.is_floating_point())
        if seen[-1]:
            p = model(data.train.x).softmax(dim=1)[:, 1].detach()
            q = bin_targets(p, data.train.y, 5)[[5, 2]]
            torch.testing.assert_close(given.y, torch.stack([1 - q, q], dim=1))
        cape.epoch_end(run)
    # stage 2 from epoch 2 (a fifth of 100 steps): targets, labels, labels, targets ...
    assert seen == [False, False, True, False, False, True, False, False]
    assert cape.report()["stage 2 began"] == 2
    assert cape.report()["epochs with targets"] == 2
    assert run.extra_passes == 2 * len(data.train) / 3


def test_stage_one_ends_when_validation_stands_still() -> None:
    data = toy()
    cape, run = Cape(patience=2, share=0.9), running(data, nn.Linear(3, 2))
    cape.prepare(run)
    for epoch in range(4):  # the model never changes: its log-loss falls once, from infinity
        run.epoch = epoch
        cape.order(run, torch.arange(120))
        cape.epoch_end(run)
    assert cape.begun == 3


def test_the_weights_of_lowest_log_loss_are_kept_and_predicting_is_in_evaluation_mode() -> None:
    data = toy()
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 2))
    cape, run = Cape(), running(data, model)
    cape.prepare(run)
    model.train()
    statistics = model[0].running_mean.clone()
    losses, states = [], []
    for step in range(5):
        torch.manual_seed(step)
        with torch.no_grad():
            model[2].weight.normal_()
        cape.epoch_end(run)
        model.eval()
        losses.append(float(F.cross_entropy(model(data.valid.x), data.valid.y).detach()))
        model.train()
        states.append(model[2].weight.clone())
    cape.finish(run)
    best = min(range(5), key=losses.__getitem__)
    torch.testing.assert_close(model[2].weight, states[best])
    assert cape.best == pytest.approx(losses[best])
    assert torch.equal(model[0].running_mean, statistics)
    assert model.training


def test_it_trains_on_the_bench() -> None:
    data = open_dataset("breast-cancer").prepare(0)
    run = fit("cape(labels_between=1, share=0.3)", data, 0)
    p = torch.softmax(run.model(data.test.x).detach(), dim=1)
    assert float((p.argmax(1) == data.test.y).float().mean()) > 0.85
    more = fit(
        "cape(one_vs_rest=True, labels_between=1, share=0.3, grouping='kde')", open_dataset("iris").prepare(0), 0
    )
    assert all(bool(torch.isfinite(value).all()) for value in more.model.state_dict().values())


def test_bad_input() -> None:
    p, y = predictions(10)
    with pytest.raises(ValueError, match="other values than 0 and 1"):
        bin_targets(p, y + 1)
    for make in (bin_targets, kde_targets):
        with pytest.raises(ValueError, match="the prediction of row 4 is nan"):
            make(torch.where(torch.arange(10) == 4, float("nan"), p), y)
    with pytest.raises(ValueError, match="bins is 11 for 10 rows"):
        bin_targets(p, y, 11)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        kde_targets(p, y, 0)
    for setting, word in (
        ({"labels_between": 0}, "labels_between is 0"),
        ({"grouping": "tree"}, "grouping is 'tree'"),
        ({"share": 1.0}, "share is"),
        ({"bins": 0}, "bins is 0"),
        ({"bandwidth": -1}, "bandwidth is -1"),
    ):
        with pytest.raises(ValueError, match=word):
            Cape(**setting)
    data = toy()
    soft = replace(data, train=replace(data.train, y=F.one_hot(data.train.y).float()))
    with pytest.raises(ValueError, match="soft already"):
        Cape().prepare(running(soft, nn.Linear(3, 2)))
    with pytest.raises((ValueError, InputError), match="there are 3 classes"):
        fit("cape", open_dataset("iris").prepare(0), 0)
    cape, run = Cape(share=0.1), running(data, nn.Linear(3, 2))
    run.epoch, run.step = 0, 50
    cape.order(run, torch.arange(120))
    with pytest.raises(ValueError, match="row numbers"):
        cape.batch(run, SimpleNamespace(x=data.train.x[:2], y=data.train.y[:2]))


def test_targets_from_labels_in_a_column_and_half_precision() -> None:
    p, y = predictions()
    for make in (bin_targets, kde_targets):
        assert torch.equal(make(p, y[:, None]), make(p, y))
        low = p.bfloat16()
        found = make(low, y)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, make(low.float(), y).bfloat16())
        with pytest.raises(ValueError, match=r"\(300,\) and y \(299,\)"):
            make(p, y[:-1])


def test_a_restart_in_the_middle_goes_on_alike() -> None:
    data = toy()
    batch = Batch(data.train.x[:4], data.train.y[:4], torch.arange(4))
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    first, run = Cape(labels_between=1, share=0.3, grouping="kde", bandwidth=0.2), running(data, model)
    first.prepare(run)

    def epochs(cape: Cape, these: range) -> list[torch.Tensor]:
        seen = []
        for epoch in these:
            run.epoch, run.step = epoch, 10 * epoch
            cape.order(run, torch.arange(120))
            seen.append(cape.batch(run, batch).y)
            with torch.no_grad():
                model.weight.copy_(torch.full((2, 3), float(epoch) - 4).cumsum(0))
            cape.epoch_end(run)
        return seen

    epochs(first, range(5))
    second = Cape(labels_between=1, share=0.3, grouping="kde", bandwidth=0.2)
    second.load_state_dict(first.state_dict())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert second.report() == first.report()
    assert second.begun == 3
    ours = epochs(first, range(5, 8))
    first.finish(run)
    best = model.weight.detach().clone()
    model.load_state_dict(weights)
    theirs = epochs(second, range(5, 8))
    second.finish(run)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(model.weight, best)
    assert ours[0].is_floating_point()
    assert not ours[1].is_floating_point()


def test_stage_two_begins_from_the_best_weights_and_one_against_the_rest_sums_to_one() -> None:
    data, draw = toy(), torch.Generator().manual_seed(3)
    y = torch.randint(0, 3, (120,), generator=draw)
    part = Part(data.train.x, y, torch.arange(120))
    three = Data(Spec("table", "classes", (3,), 3, numeric=3, classes=("a", "b", "c")), part, part, part)
    model = nn.Linear(3, 3)
    cape, run = Cape(bins=4, share=0.2, one_vs_rest=True, patience=9), running(three, model)
    cape.prepare(run)
    run.epoch = 0
    cape.order(run, torch.arange(120))
    cape.epoch_end(run)
    good = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.mul_(-30)
    run.epoch, run.step = 1, 19
    cape.order(run, torch.arange(120))
    assert cape.begun is None
    run.epoch, run.step = 2, 20
    cape.order(run, torch.arange(120))
    assert torch.equal(model.weight, good)
    p = model(part.x).softmax(1).detach()
    each = torch.stack([bin_targets(p[:, k], (y == k).long(), 4) for k in range(3)], dim=1)
    found = cape.batch(run, Batch(part.x[7:9], y[7:9], torch.tensor([7, 8]))).y
    torch.testing.assert_close(found, (each / each.sum(1, keepdim=True))[7:9])
