"""Randomization tests: the data variants, the regularisers, and what a run reports."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.data.open import open_dataset
from probatum.spec import Data, Part, Spec
from probatum.techniques.probe.randomization_tests.randomization_tests import (
    Settings,
    change_inputs,
    corrupt_labels,
    randomization_tests,
    regularise,
    shift,
    train_until_fit,
)
from probatum.train.baselines import build

IMAGE = Spec("image", "classes", (2, 4, 4), 3)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_corruption_counts() -> None:
    y = torch.randint(10, (20_000,), generator=stream())
    any_class = corrupt_labels(y, 10, 0.5, stream(1))
    other = corrupt_labels(y, 10, 0.5, stream(1), other=True)
    assert float((any_class != y).float().mean()) == pytest.approx(0.45, abs=0.015)
    assert float((other != y).float().mean()) == pytest.approx(0.5, abs=0.015)
    assert torch.equal(corrupt_labels(y, 10, 0.0, stream()), y)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        corrupt_labels(y, 10, 1.5, stream())


def test_shuffled_inputs_share_one_permutation() -> None:
    x = torch.rand(6, 2, 4, 4, generator=stream())
    one, two = change_inputs((x, x + 10), IMAGE, "shuffled-inputs", stream(1))
    torch.testing.assert_close(two - one, torch.full_like(one, 10.0), atol=1e-4, rtol=0)
    position = (one[0, 0].flatten()[:, None] == x[0, 0].flatten()).int().argmax(1)
    assert sorted(position.tolist()) == list(range(16))
    assert torch.equal(one.flatten(2), x.flatten(2)[..., position])  # the same for every image and channel


def test_random_inputs_have_a_permutation_each() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(6, 2, 4, 4)
    (changed,) = change_inputs((x,), IMAGE, "random-inputs", stream(1))
    rows = changed.flatten(2)
    assert torch.equal(rows.sort(dim=2).values, x.flatten(2))
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert len({tuple(row) for row in rows[:, 0].tolist()}) == 6


def test_gaussian_inputs_have_the_datas_moments_and_codes_stay() -> None:
    x = 3 + 2 * torch.rand(500, 2, 4, 4, generator=stream())
    (noise,) = change_inputs((x,), IMAGE, "gaussian-inputs", stream(1))
    assert float(noise.mean()) == pytest.approx(float(x.mean()), abs=0.03)
    assert float(noise.std()) == pytest.approx(float(x.std()), abs=0.03)
    table = torch.cat([torch.rand(9, 3, generator=stream()), torch.arange(9.0)[:, None]], dim=1)
    before = table.clone()
    for kind in ("shuffled-inputs", "random-inputs", "gaussian-inputs"):
        (changed,) = change_inputs((table,), Spec("table", "classes", (4,), 2, 3, (9,)), kind, stream(2))
        assert torch.equal(changed[:, 3], before[:, 3])
        assert not torch.equal(changed[:, :3], before[:, :3])
    assert torch.equal(table, before)


def test_regularisers() -> None:
    net = build(Spec("image", "classes", (1, 8, 8), 3))
    regularise(net, "no-batch-norm", 0.0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    mlp = regularise(nn.Sequential(nn.Linear(4, 200), nn.Linear(200, 200)), "dropout", 0.5)
    seen = []
    mlp[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    mlp(torch.ones(3, 4))
    assert 0.3 < float((seen[0] == 0).float().mean()) < 0.7
    mlp.eval()
    mlp(torch.ones(3, 4))
    assert not (seen[1] == 0).any()
    x = torch.rand(2, 1, 20, 20, generator=stream())
    moved = shift(x, stream(3))
    assert torch.equal(moved.flatten().sort().values, x.flatten().sort().values)
    assert not torch.equal(moved, x)


def test_a_wide_net_memorises_noise_and_a_narrow_one_does_not() -> None:
    data = open_dataset("wine").prepare(1)
    settings = {"corruption": [0.5], "regularisers": ["weight-decay"], "lr": 3e-3, "max_steps": 600, "rows": 100}
    width = data.spec.shape[0]

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 3))

    before = torch.get_rng_state()
    torch.manual_seed(0)
    found = randomization_tests(wide, data, stream(), **settings)
    torch.manual_seed(0)
    again = randomization_tests(wide, data, stream(), **settings)
    torch.set_rng_state(before)
    assert found == again
    assert found["memorises"] == found["random labels: fitted"] == 1.0
    assert found["random labels: slowdown"] > 1
    assert found["0.5 corrupted: test error"] > found["true labels: test error"]
    assert found["random labels: test error"] > 0.4
    narrow = randomization_tests(
        lambda: nn.Linear(width, 3), data, stream(), corruption=[], inputs=[], regularisers=[], max_steps=100
    )
    assert narrow["memorises"] == 0.0  # too small a net is reported, not raised
    assert narrow["random labels: fitted"] == 0.0
    assert narrow["random labels: steps to fit"] == 100
    assert narrow["parameters per row"] == pytest.approx(3 * (width + 1) / len(data.train))


def test_labels_stay_frozen_and_early_stopping_is_by_validation() -> None:
    x = torch.randn(40, 5, generator=stream())
    y = torch.arange(40) % 2
    frozen = y.clone()
    net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 2))
    fit = train_until_fit(net, (x, y), (x, y), (x, 1 - y), Settings(2000, 8, 1e-2, "adam", 1.0), stream())
    assert torch.equal(y, frozen)
    assert fit.train_accuracy == 1.0
    assert fit.test_accuracy == 0.0 == fit.best_valid_test_accuracy
    assert fit.steps % 5 == 0


@pytest.mark.parametrize("name", ["digits", "toy-topics", "cbf"])
def test_every_modality(name: str) -> None:
    data = open_dataset(name).prepare(1)
    tiny = {
        "max_steps": 2,
        "rows": 40,
        "corruption": [0.5],
        "regularisers": ["dropout", "augmentation", "no-batch-norm"],
    }
    found = randomization_tests(lambda: build(data.spec), data, stream(), **tiny)
    assert ("gaussian inputs: test error" in found) == data.train.x.is_floating_point()
    assert all(isinstance(value, float) for value in found.values())


def test_misuse() -> None:
    part = Part(torch.rand(6, 2), torch.arange(6) % 2, torch.arange(6))
    data = Data(Spec("table", "classes", (2,), 2, numeric=2), part, part, part)
    reals = Data(Spec("table", "reals", (2,), 1, numeric=2), part, part, part)
    for wrong, message in (
        ({"inputs": ["blurred"]}, "inputs holds 'blurred'"),
        ({"regularisers": ["early"]}, "regularisers holds 'early'"),
        ({"optimizer": "lbfgs"}, "optimizer holds 'lbfgs'"),
        ({"fit_accuracy": 1.5}, r"fit_accuracy is 1\.5"),
        ({"max_steps": 0}, "max_steps 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"dropout": -0.1}, r"dropout is -0\.1"),
        ({"lr": 0.0}, r"lr is 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            randomization_tests(lambda: nn.Linear(2, 2), data, stream(), **wrong)
    with pytest.raises(ValueError, match="random labels need classes"):
        randomization_tests(lambda: nn.Linear(2, 1), reals, stream())


def test_noise_leaves_masks_and_padding_alone() -> None:
    values = 3 + 2 * torch.rand(400, 1, 6, generator=stream())
    mask = (torch.arange(6) < torch.randint(2, 6, (400, 1), generator=stream(1))).float()[:, None]
    x = torch.cat([values * mask, mask], dim=1)
    before = x.clone()
    spec = Spec("series", "classes", (2, 6), 2, masked=True)
    one, other = change_inputs((x, x + mask), spec, "gaussian-inputs", stream(2))
    assert torch.equal(one[:, 1:], mask)
    assert torch.equal(one * (1 - mask), before * (1 - mask))
    seen = values[mask > 0]
    for noise in (one, other):  # of the first part's moments
        drawn = noise[:, :1][mask > 0]
        assert float(drawn.mean()) == pytest.approx(float(seen.mean()), abs=0.06)
        assert float(drawn.std()) == pytest.approx(float(seen.std()), abs=0.06)
    assert not torch.equal(one[:, :1], other[:, :1])
    assert torch.equal(x, before)


def test_noise_in_place_of_numbers_is_what_it_was() -> None:
    table = torch.cat([torch.rand(40, 3, generator=stream()), torch.arange(40.0)[:, None]], dim=1)
    (changed,) = change_inputs((table,), Spec("table", "classes", (4,), 2, 3, (40,)), "gaussian-inputs", stream(2))
    numbers = table[:, :3]
    own = stream(2)
    torch.randperm(3, generator=own)
    again = torch.randn(40, 3, generator=own) * numbers.std() + numbers.mean()
    torch.testing.assert_close(changed[:, :3], again)


def test_the_chance_error_is_that_of_the_random_labels() -> None:
    y = torch.randint(4, (4000,), generator=stream())
    part = Part(torch.rand(4000, 2, generator=stream(1)), y, torch.arange(4000))
    data = Data(Spec("table", "classes", (2,), 4, numeric=2), part, part, part)
    for other in (False, True):
        found = randomization_tests(
            lambda: nn.Linear(2, 4), data, stream(), corruption=[], inputs=[], regularisers=[], other=other, max_steps=1
        )
        drawn = corrupt_labels(y, 4, 1.0, stream(2), other)
        assert found["chance error"] == pytest.approx(float((drawn != y).double().mean()), abs=0.02)
    with pytest.raises(ValueError, match="there is 1 class"):
        corrupt_labels(torch.zeros(3, dtype=torch.int64), 1, 1.0, stream(), other=True)


def test_labels_of_other_classes_are_uniform() -> None:
    y = torch.full((30_000,), 1)
    found = corrupt_labels(y, 4, 0.75, stream(), other=True).bincount(minlength=4).double() / 30_000
    torch.testing.assert_close(found, torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64), atol=0.01, rtol=0)
    any_class = corrupt_labels(y, 4, 0.75, stream()).bincount(minlength=4).double() / 30_000
    expected = torch.tensor([3 / 16, 7 / 16, 3 / 16, 3 / 16], dtype=torch.float64)
    torch.testing.assert_close(any_class, expected, atol=0.01, rtol=0)


class HeadFirst(nn.Module):
    """Registers its head before its body."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(50, 3), nn.Linear(4, 50)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_dropout_comes_before_all_but_the_layer_that_runs_first() -> None:
    net = HeadFirst()
    regularise(net, "dropout", 0.5, torch.ones(2, 4))
    assert len(net.head._forward_pre_hooks) == 1
    assert not net.body._forward_pre_hooks
    only = regularise(nn.Linear(4, 3), "dropout", 0.5, torch.ones(2, 4))
    assert len(only._forward_pre_hooks) == 1


def test_frozen_weights_and_statistics_stay() -> None:
    x, y = 5 + torch.randn(40, 5, generator=stream()), torch.arange(40) % 2
    norm = nn.BatchNorm1d(5)
    net = nn.Sequential(norm, nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    norm.eval()
    net[1].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit = train_until_fit(net, (x, y), (x, y), (x, y), Settings(20, 8, 1e-2, "adam", 1.0), stream())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert fit.steps == 20
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_is_torchs_own(optimizer: str) -> None:
    """Three updates of a linear network, batch by batch, beside torch's optimizer on the same order."""
    x, y = torch.randn(12, 3, generator=stream()), torch.arange(12) % 2
    net, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(net.state_dict())
    train_until_fit(net, (x, y), (x, y), (x, y), Settings(3, 4, 0.05, optimizer, 1.0), stream(7), weight_decay=0.1)
    rule = (
        torch.optim.Adam(twin.parameters(), lr=0.05, weight_decay=0.1)
        if optimizer == "adam"
        else torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    )
    for index in torch.randperm(12, generator=stream(7)).split(4):
        rule.zero_grad()
        nn.functional.cross_entropy(twin(x[index]), y[index]).backward()
        rule.step()
    assert torch.equal(net.weight, twin.weight)


def test_time_steps_of_all_channels_move_alike() -> None:
    x = torch.stack([torch.arange(7.0), torch.arange(7.0) + 100]).expand(4, 2, 7)
    for kind in ("shuffled-inputs", "random-inputs"):
        (changed,) = change_inputs((x,), Spec("series", "classes", (2, 7), 2), kind, stream(3))
        assert torch.equal(changed[:, 1] - changed[:, 0], torch.full((4, 7), 100.0))
        assert all(sorted(row) == list(range(7)) != row for row in changed[:, 0].tolist())
    image = torch.arange(16.0).view(1, 1, 4, 4)
    (changed,) = change_inputs((image,), IMAGE, "shuffled-inputs", stream(1))
    assert (changed[0, 0] != image[0, 0]).any(dim=1).all()  # in every row of pixels


def test_moves_are_a_tenth_at_most_in_either_direction() -> None:
    x = torch.arange(40.0).view(1, 1, 40)
    own = stream()
    moves = {int((shift(x, own)[0, 0] == 0).nonzero()) for _ in range(200)}
    assert moves == {0, 1, 2, 3, 4, 36, 37, 38, 39}
    assert torch.equal(shift(torch.ones(2, 3), own), torch.ones(2, 3))
    down = {tuple((shift(torch.eye(20)[None, None, :1], own)[0, 0] == 1).nonzero()[0].tolist()) for _ in range(60)}
    assert {place[1] for place in down} == {0, 1, 2, 18, 19}


def test_what_is_told_of_every_run() -> None:
    x = torch.randn(24, 4, generator=stream())
    part = Part(x, torch.arange(24) % 3, torch.arange(24))
    data = Data(Spec("table", "classes", (4,), 3, numeric=4), part, part, part)
    found = randomization_tests(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), data, stream(), corruption=[0.3],
        regularisers=["dropout"], max_steps=2, batch_size=12,
    )  # fmt: skip
    runs = [
        "true labels", "0.3 corrupted", "random labels", "shuffled inputs", "random inputs", "gaussian inputs",
        "random labels, dropout",
    ]  # fmt: skip
    for run in runs:
        assert found[f"{run}: steps to fit"] == 2
        assert found[f"{run}: slowdown"] == 1
        assert found[f"{run}: fitted"] == 0
        assert found[f"{run}: train accuracy"] < 1
        assert 0 <= found[f"{run}: test error"] <= 1
    assert found["true labels: test error"] == pytest.approx(1 - found["true labels: train accuracy"])  # the same rows
    assert found["true labels: test error if stopped early"] == pytest.approx(found["true labels: test error"])
    assert found["chance error"] == pytest.approx(2 / 3)
    assert found["parameters per row"] == (4 * 8 + 8 + 8 * 3 + 3) / 24
    assert len(found) == 5 * len(runs) + 4


def test_noise_takes_its_moments_from_what_is_there() -> None:
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
    x[::3, 1] = float("nan")
    spec = Spec("table", "classes", (3,), 2, numeric=3)
    found = change_inputs([x], spec, "gaussian-inputs", torch.Generator().manual_seed(1))[0]
    assert not bool(found.isnan().any())
    torch.testing.assert_close(found.mean(), torch.tensor(5.0), atol=0.1, rtol=0)
    torch.testing.assert_close(found.std(), torch.tensor(2.0), atol=0.1, rtol=0)
