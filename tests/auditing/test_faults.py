"""Planted faults are found, and a model without fault raises no alarm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probatum
from probatum.auditing.faults import FAULTS
from probatum.data.open import open_dataset


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, outputs))


def trained(x: Tensor, y: Tensor, outputs: int, seed: int = 0, steps: int = 400) -> nn.Sequential:
    torch.manual_seed(seed)
    model = network(x[0].numel(), outputs)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


class Divided(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.temperature


class Posterior(nn.Module):
    """The very probabilities of classes that are Gaussians round their means: a model without fault."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.means).square().sum(dim=2) / 2


def gaussians(
    seed: int, n: int, classes: int = 3, columns: int = 8, spread: float = 0.8
) -> tuple[Posterior, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(classes, columns, generator=draw)
    y = torch.randint(classes, (n,), generator=draw)
    return Posterior(means), means[y] + torch.randn(n, columns, generator=draw), y


def digits(seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training rows, and the others."""
    data = open_dataset("digits").prepare(seed)
    train = data.train.x, data.train.y
    return train, (torch.cat([data.valid.x, data.test.x]), torch.cat([data.valid.y, data.test.y]))


def flipped(y: Tensor, rate: float, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which a share is another class, and which."""
    draw = torch.Generator().manual_seed(seed)
    hit = torch.rand(len(y), generator=draw) < rate
    other = (y + torch.randint(1, classes, (len(y),), generator=draw)) % classes
    return torch.where(hit, other, y), hit


def marked(x: Tensor, code: Tensor) -> Tensor:
    """Faint digits with a class written in binary into the four pixels of a corner."""
    x = 0.4 * x
    for bit in range(4):
        x[:, 0, bit // 2, bit % 2] = ((code >> bit) & 1).float()
    return x


@pytest.mark.parametrize("seed", [1, 2])
def test_overconfidence_is_found(seed: int) -> None:
    model, x, y = gaussians(seed, 600)
    report = probatum.audit(Divided(model, 0.3), (x, y))
    finding = report["calibration"]
    assert finding.verdict == "fault"
    assert finding.faults == ("overconfident",)
    assert 2.2 < finding.numbers["temperature"] < 4.8  # about 1 / 0.3
    low, high = finding.numbers["interval"]
    assert low <= finding.numbers["error"] <= high
    advice = {item["fault"]: item for item in report.advice}["overconfident"]
    assert "h-calibration" in advice["techniques"]
    assert advice["commands"][0].startswith("probatum try ")


def test_underconfidence_is_told_apart() -> None:
    model, x, y = gaussians(1, 600)
    assert probatum.audit(Divided(model, 4.0), (x, y))["calibration"].faults == ("underconfident",)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_shortcut_is_found(seed: int) -> None:
    train, (x, y) = digits(seed)
    draw = torch.Generator().manual_seed(seed)
    model = trained(marked(train[0], train[1]), train[1], 10, seed)
    anything = torch.randint(10, (len(y),), generator=draw)
    report = probatum.audit(model, (marked(x, anything), y))
    assert {"shortcut", "weak-group"} <= set(report.faults)
    assert report["reliance"].numbers["part"] == "patch rows 0-1, columns 0-1"


def test_a_weak_group_is_named_by_its_column() -> None:
    draw = torch.Generator().manual_seed(0)
    _, x, y = gaussians(5, 1600, classes=2, spread=0.5)
    evidence = torch.where(torch.rand(1600, generator=draw) < 0.97, y, 1 - y)
    before = torch.cat([x, 2.0 * evidence[:, None] - 1], dim=1)[:800]
    model = trained(before, y[:800], 2)
    turned = torch.cat([x, 1 - 2.0 * (torch.rand(1600, generator=draw) < 0.5)[:, None]], dim=1)[800:]
    report = probatum.audit(model, (turned, y[800:]))
    assert "weak-group" in report.faults
    assert any("column 8" in name for name in report["weak slices"].numbers["faulty"])


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_labels_are_found(seed: int) -> None:
    train, (x, y) = digits(seed)
    noisy, hit = flipped(train[1], 0.2, 10, seed)
    other, hit_other = flipped(y, 0.2, 10, seed + 10)
    report = probatum.audit(trained(train[0], noisy, 10, seed), (x, other), reference=(train[0], noisy))
    assert "noisy-labels" in report.faults
    for check, truth in (("suspicious labels", hit_other), ("suspicious labels (reference rows)", hit)):
        assert report[check].verdict == "fault"
        found = report[check].numbers["rows"]
        assert float(truth[found].float().mean()) > 0.9  # precision
        assert len(found) > 0.6 * int(truth.sum())


@pytest.mark.parametrize(("spread", "share", "verdict"), [(0.2, 0.0, "not measurable"), (0.8, 0.1, "fault")])
def test_classes_that_overlap_are_no_wrong_labels(spread: float, share: float, verdict: str) -> None:
    model, x, y = gaussians(0, 1200, classes=2, spread=spread)
    hit = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < share
    finding = probatum.audit(model, (x, torch.where(hit, 1 - y, y)))["suspicious labels"]
    assert finding.verdict == verdict
    assert finding.numbers["interval"][0] > 0.05  # more than a share alone would let pass, in both
    assert ("explains as many" in finding.about) is (verdict == "not measurable")


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_mistaken_for_one_other_class_are_never_passed(seed: int) -> None:
    """Models that learn from them answer 70 to 30, as where classes overlap; here none do."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.randint(3, (1500,), generator=draw)
    x = 6 * torch.randn(3, 4, generator=draw)[true] + torch.randn(1500, 4, generator=draw)
    y = torch.where(torch.rand(1500, generator=draw) < 0.3, (true + 1) % 3, true)
    model = trained(x, y, 3)
    finding = probatum.audit(model, (x, y))["suspicious labels"]
    assert finding.verdict in ("fault", "not measurable")
    assert finding.numbers["interval"][0] > 0.05
    assert finding.table


def test_a_shift_and_other_class_shares_are_found() -> None:
    model, x, y = gaussians(3, 900)
    old, new = (x[:450], y[:450]), (x[450:] + 0.5, y[450:])
    report = probatum.audit(model, new, reference=old)
    assert report["shift"].verdict == "fault"
    of_class = y[450:] == 0
    kept = torch.cat([of_class.nonzero()[:40, 0], (~of_class).nonzero()[:, 0]]) + 450
    report = probatum.audit(model, (x[kept], y[kept]), reference=old)
    assert report["label shift"].verdict == "fault"


def test_outliers_are_found_by_row() -> None:
    model, x, y = gaussians(4, 800)
    odd = x[400:].clone()
    odd[::10] += 12
    finding = probatum.audit(model, (odd, y[400:]), reference=(x[:400], y[:400]))["outliers"]
    assert finding.verdict == "fault"
    assert {row % 10 for row in finding.numbers["rows"][:40]} == {0}


def test_confidence_that_finds_no_errors() -> None:
    _, x, y = gaussians(2, 500)

    class Blind(torch.nn.Module):
        """Right answers and wrong ones with confidence drawn at random."""

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            means = rows[:, :3]
            noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))
            return torch.nn.functional.one_hot(means.argmax(1), 3) * (1 + 2 * noise[:, None])

    assert "errors-unnoticed" in probatum.audit(Blind(), (x, y)).faults


def test_a_model_without_fault_passes() -> None:
    alarms = []
    for seed in range(100, 106):
        model, x, y = gaussians(seed, 800)
        report = probatum.audit(model, (x[400:], y[400:]), reference=(x[:400], y[:400]), seed=seed)
        assert len(report.findings) == 10
        alarms += report.faults
    assert len(alarms) <= 1  # sixty checks, at most a hundredth of which may err


def test_reals_are_audited_too() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=draw)
    y = x @ torch.tensor([1.0, -1, 0.5, 0.5]) + 0.3 * torch.randn(600, generator=draw)
    model = torch.nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1, 0.5, 0.5]]))
        model.bias.zero_()
    clean = probatum.audit(model, (x[300:], y[300:]), reference=(x[:300], y[:300]))
    assert clean.faults == ()
    assert clean["calibration"].verdict == "not measurable"
    worse = torch.where((x[:, 0] > 0.6)[:, None], y[:, None] + 3, y[:, None])
    assert "weak-group" in probatum.audit(model, (x, worse)).faults


def test_every_fault_has_words_and_tags() -> None:
    assert all(fault.words and fault.tags for fault in FAULTS.values())


def test_the_same_seed_says_the_same_and_the_network_is_left_as_it_was() -> None:
    model, x, y = gaussians(1, 300)
    model.train()
    first, second = (probatum.audit(model, (x, y), seed=3).as_json() for _ in range(2))
    assert first == second
    assert model.training
    assert np.isfinite(first["quality"]["log-loss"])
