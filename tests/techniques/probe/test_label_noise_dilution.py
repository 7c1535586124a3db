"""Label noise dilution: sizes, the empirical law, the margin rule, and what a probe reports."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from probatum.data.open import open_dataset
from probatum.numerics.labels.noise import diluted_law, survives
from probatum.techniques.probe.label_noise_dilution import (
    _pool,
    accuracy,
    confused,
    dilute,
    fit,
    label_noise_dilution,
    outside_rows,
    probabilities,
    structured_law,
)

UNIFORM = torch.full((4, 4), 0.25, dtype=torch.float64)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.3, 10.0])
def test_sizes_are_exact_and_inputs_come_equally_often(alpha: float) -> None:
    y = torch.arange(200) % 4
    found = dilute(y, alpha, UNIFORM, stream())
    assert len(found.y) == len(found.index) == 200 + round(200 * alpha)
    assert torch.equal(found.y[:200], y)
    assert int(found.noisy.sum()) == round(200 * alpha)
    counts = found.index.bincount(minlength=200)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("delta", [1.0, 0.2])
def test_empirical_law_is_the_mixture(delta: float) -> None:
    y, alpha = torch.arange(8000) % 4, 3.0
    law = structured_law(torch.eye(4, dtype=torch.float64).roll(1, dims=1), delta)
    found = dilute(y, alpha, law, stream(1))
    clean = torch.eye(4, dtype=torch.float64)
    expected = diluted_law(clean, law, alpha)
    for k in range(4):
        mine = found.y[y[found.index] == k]
        share = mine.bincount(minlength=4).double() / len(mine)
        sigma = (expected[k] * (1 - expected[k]) / len(mine)).sqrt()
        assert bool(((share - expected[k]).abs() <= 3 * sigma + 1e-12).all())
    # noisy labels alone decide whether the right class leads, and the rule says so
    leads = expected.argmax(dim=1) == torch.arange(4)
    assert torch.equal(survives(clean, law, alpha), leads)
    assert bool(leads.all()) == (delta == 1.0)


def test_other_pools_get_the_noisy_labels() -> None:
    y, others = torch.zeros(10, dtype=torch.int64), torch.ones(7, dtype=torch.int64)
    law = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = dilute(y, 2.0, law, stream(), (others, 10))
    assert bool((found.index[found.noisy] >= 10).all())
    assert int(found.index.max()) == 16
    assert found.y[found.noisy].tolist() == [1] * 20


def test_outside_rows_keep_the_places() -> None:
    x = torch.rand(50, 2, 3, generator=stream())
    assert torch.equal(outside_rows(x, stream(1)).sort(dim=0).values, x.sort(dim=0).values)


def test_confusion_of_known_probabilities() -> None:
    p = torch.tensor([[0.8, 0.15, 0.05], [0.7, 0.3, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    found = confused(p, torch.tensor([0, 0, 1]), 3)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.9, 0.1], dtype=torch.float64))
    assert found[1].tolist() == [0.5, 0.0, 0.5]
    assert found[2].tolist() == [0.5, 0.5, 0.0]


def test_digits_survive_a_little_and_structure_is_worse() -> None:
    torch.manual_seed(0)
    data = open_dataset("digits").prepare(1)
    found = label_noise_dilution(
        small,
        data,
        stream(),
        alphas=[1.0, 8.0],
        sources=["repeated", "fresh", "outside"],
        rows=500,
        steps=250,
        rate_multiples=[1.0],
        batch_multiples=[1, 4],
        sizes=[0.5],
        delta=0.0,
        target=0.8,
    )
    assert found["alpha 8: noise rate"] == pytest.approx(8 / 9)
    assert found["clean: accuracy"] > 0.9
    mild, harsh = (found[f"uniform, repeated, alpha {a}: accuracy"] for a in (1, 8))
    assert found["clean: accuracy"] > harsh
    assert mild > harsh > 2 * found["chance"]
    assert harsh > found["structured, repeated, alpha 8: accuracy"]
    assert found["uniform, repeated, alpha 8: survives"] == 1.0
    assert found["structured, repeated, alpha 8: survives"] < 0.1
    assert found["uniform, repeated, alpha 1: effective batch"] == found["uniform, repeated, alpha 1: batch"] / 4
    assert found["uniform, fresh, alpha 8: fresh rows used again"] == 4000 - (len(data.train) - 500)
    assert "uniform, repeated, alpha 1: accuracy at batch 256" in found
    assert found["uniform, repeated, alpha 1: smallest n that reaches the target"] in (250.0, 500.0)
    again = label_noise_dilution(small, data, stream(), alphas=[], rows=100, steps=2)
    assert set(again) >= {"clean: accuracy", "chance", "rows"}


BAD = {
    "alpha below nought": ({"alphas": [-1.0]}, "alpha is -1"),
    "law": ({"confusion": torch.full((10, 10), 0.2)}, "sums to 2"),
    "delta": ({"delta": 1.5}, r"delta is 1\.5"),
    "pattern": ({"patterns": ["odd"]}, "'odd'"),
    "source": ({"sources": ["odd"]}, "'odd'"),
    "rows": ({"rows": 1}, "rows 1"),
    "rate": ({"lr": 0.0}, "lr is 0"),
    "rates": ({"rate_multiples": []}, "rate_multiples"),
    "sizes": ({"sizes": [1.5]}, r"1\.5"),
}


@pytest.mark.parametrize(("settings", "told"), BAD.values(), ids=BAD)
def test_settings_out_of_range_are_named(settings: dict[str, Any], told: str) -> None:
    data = open_dataset("digits").prepare(1)
    with pytest.raises(ValueError, match=told):
        label_noise_dilution(small, data, stream(), **{"steps": 2, "rows": 40, "alphas": [], **settings})
    reals = replace(data, spec=replace(data.spec, task="reals"))
    with pytest.raises(ValueError, match="need classes"):
        label_noise_dilution(small, reals, stream())


def test_only_the_best_network_of_a_grid_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    most = 0

    def counted(model: nn.Module, *rest: Any) -> nn.Module:
        nonlocal most
        alive.append(weakref.ref(model))
        most = max(most, sum(ref() is not None for ref in alive))
        return plain(model, *rest)

    from probatum.techniques.probe import label_noise_dilution as file

    plain = file.fit
    monkeypatch.setattr(file, "fit", counted)
    data = open_dataset("digits").prepare(0)
    label_noise_dilution(
        small, data, stream(), alphas=(1.0,), patterns=("uniform",), sources=("repeated",), rows=60, sizes=(), steps=2,
        rate_multiples=(1.0, 0.5, 0.3, 0.1), batch_multiples=(1, 2),
    )  # fmt: skip
    assert len(alive) == 16
    assert most <= 4  # the clean one, the best and the last one so far, and the one in training


def test_what_is_memorised_is_the_noise() -> None:
    """Eight wrong examples for a right one, all of them of the next class: the network learns these and not the truth."""
    torch.manual_seed(0)
    found = label_noise_dilution(
        small,
        open_dataset("digits").prepare(1),
        stream(),
        alphas=[8.0],
        patterns=["structured"],
        sources=["repeated"],
        confusion=torch.eye(10).roll(1, dims=1),
        delta=0.0,
        rows=300,
        steps=400,
        sizes=[],
        rate_multiples=[1.0],
        batch_multiples=[1],
    )
    assert found["structured, repeated, alpha 8: memorised"] > 0.9
    assert found["structured, repeated, alpha 8: accuracy"] < 0.1


def test_draws_are_the_generators_wherever_tensors_are_made() -> None:
    """With another default device positions and labels are drawn where the generator is, and lie where the labels are."""
    y, x = torch.arange(30) % 4, torch.rand(30, 2, generator=stream(5))
    others = torch.arange(20) % 4
    expected = (
        dilute(y, 1.5, UNIFORM, stream()),
        dilute(y, 1.5, UNIFORM, stream(), (others, 30)),
        outside_rows(x, stream(1)),
    )
    with torch.device("meta"):
        found = (
            dilute(y, 1.5, UNIFORM, stream()),
            dilute(y, 1.5, UNIFORM, stream(), (others, 30)),
            outside_rows(x, stream(1)),
        )
    for a, b in zip((*expected[0], *expected[1], expected[2]), (*found[0], *found[1], found[2]), strict=True):
        assert b.device.type == "cpu"
        assert torch.equal(a, b)


def test_frozen_layers_stay_frozen() -> None:
    x, y = 3 + torch.rand(40, 5, generator=stream()), torch.arange(40) % 2
    norm = nn.BatchNorm1d(5)
    net = nn.Sequential(norm, nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    norm.eval()
    net[1].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit(net, x, dilute(y, 1.0, UNIFORM[:2, :2] * 2, stream()), 5, 16, 1e-2, stream())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert not net.training


def test_training_is_torchs_own() -> None:
    x, y = torch.randn(12, 3, generator=stream()), torch.arange(12) % 4
    diluted = dilute(y, 1.0, UNIFORM, stream(1))
    net, twin = nn.Linear(3, 4), nn.Linear(3, 4)
    twin.load_state_dict(net.state_dict())
    fit(net, x, diluted, 3, 8, 0.05, stream(7))
    rule = torch.optim.AdamW(twin.parameters(), lr=0.05)
    batches = torch.randperm(24, generator=stream(7)).split(8)
    for step, rows in enumerate(reversed(batches)):
        rule.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 3)) / 2
        rule.zero_grad()
        nn.functional.cross_entropy(twin(x[diluted.index[rows]]), diluted.y[rows]).backward()
        rule.step()
    torch.testing.assert_close(net.weight, twin.weight)


def test_structured_law_by_hand() -> None:
    confusion = torch.tensor([[0.0, 0.75, 0.25], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    found = structured_law(confusion, 0.3)
    torch.testing.assert_close(found[0], torch.tensor([0.1, 0.625, 0.275], dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64))


def test_pools_of_the_noisy_examples() -> None:
    x, spare, classes = torch.zeros(3, 2), torch.ones(2, 2), torch.tensor([4, 5])
    own, others = _pool(x, "repeated", spare, classes, stream())
    assert own is x
    assert others is None
    fresh, others = _pool(x, "fresh", spare, classes, stream())
    assert fresh.tolist() == [[0, 0]] * 3 + [[1, 1]] * 2
    assert others is not None
    assert (others[0].tolist(), others[1]) == ([4, 5], 3)
    x = torch.arange(8.0).view(4, 2)
    mixed, others = _pool(x, "outside", spare, classes, stream())
    assert torch.equal(mixed[:4], x)
    assert torch.equal(mixed[4:].sort(dim=0).values, x)
    assert others is not None
    assert (others[0].tolist(), others[1]) == ([0] * 4, 4)


def test_accuracy_of_some_rows_and_of_none() -> None:
    x, y = torch.eye(3), torch.tensor([0, 1, 0])
    assert accuracy(nn.Identity(), x, y) == pytest.approx(2 / 3)
    assert accuracy(nn.Identity(), x, y[:2], torch.tensor([2, 1])) == 0.5
    assert accuracy(nn.Identity(), x, y[:0]) == 0.0


def test_batches_of_two_are_trained_on() -> None:
    net, x = nn.Linear(3, 4), torch.randn(4, 3, generator=stream())
    before = net.weight.detach().clone()
    fit(net, x, dilute(torch.arange(4), 0.0, UNIFORM, stream()), 1, 2, 0.1, stream())
    assert not torch.equal(net.weight, before)
    torch.testing.assert_close(probabilities(net, x), net(x).detach().double().softmax(dim=1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"confusion": torch.ones(1, 1)}, r"confusion is \(1, 1\) for 10 classes"),
        ({"confusion": torch.eye(12).roll(1, dims=1)}, r"confusion is \(12, 12\) for 10 classes"),
        ({"confusion": torch.full((10, 10), 0.2)}, "sums to 2"),
        ({"delta": -0.1}, "delta is -0"),
        ({"batch_multiples": [1.5]}, "whole number"),
    ],
)
def test_noise_that_cannot_be_is_told_before_anything_is_trained(settings: dict[str, Any], told: str) -> None:
    def never() -> nn.Module:
        raise AssertionError("a network was made")

    with pytest.raises(ValueError, match=told):
        label_noise_dilution(never, open_dataset("digits").prepare(1), stream(), **settings)


def test_labels_and_laws_that_do_not_go_together_are_told() -> None:
    y = torch.tensor([0, 1, 1])
    for wrong in (-1, -100, 4):
        with pytest.raises(ValueError, match=f"the label {wrong}"):
            dilute(torch.tensor([0, wrong, 1]), 1.0, UNIFORM, stream())
        with pytest.raises(ValueError, match=f"the label {wrong}"):
            dilute(y, 1.0, UNIFORM, stream(), (torch.tensor([wrong]), 3))
    with pytest.raises(ValueError, match=r"the noise matrix is \(2, 4\)"):
        dilute(y, 1.0, UNIFORM[:2], stream())
    with pytest.raises(ValueError, match="batch_size is 1, of 6 examples"):
        fit(nn.Linear(2, 4), torch.zeros(3, 2), dilute(y, 1.0, UNIFORM, stream()), 1, 1, 0.1, stream())


def test_a_batch_is_no_larger_than_all_examples() -> None:
    found = label_noise_dilution(
        small, open_dataset("digits").prepare(1), stream(), alphas=[1.0, 4.0], patterns=["uniform"], sources=["repeated"],
        rows=20, steps=1, sizes=[], batch=80, rate_multiples=[1.0], batch_multiples=[1],
    )  # fmt: skip
    assert found["uniform, repeated, alpha 1: effective batch"] == 40 / 4
    assert found["uniform, repeated, alpha 4: effective batch"] == 80 / 25


def test_batches_are_named_by_whole_numbers() -> None:
    data = open_dataset("digits").prepare(1)
    found = label_noise_dilution(
        small, data, stream(), alphas=[], rows=20, steps=1, batch=8, batch_multiples=[1.0, 2.0]
    )
    assert {"clean: accuracy at batch 8", "clean: accuracy at batch 16"} <= set(found)


def test_a_last_batch_of_one_is_left_out() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    x = torch.randn(5, 3, generator=stream())
    fit(net, x, dilute(torch.arange(5) % 4, 0.0, UNIFORM, stream()), 4, 4, 0.1, stream())
    assert int(net[0].num_batches_tracked) == 4
