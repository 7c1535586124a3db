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
