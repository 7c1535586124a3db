"""One network on several devices: shares of batches, refusals, and two processes against one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum import catalogue
from probatum.arenas.predict import arena as predict
from probatum.data.open import open_dataset
from probatum.engine import Engine
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, Training, Use, make_arm
from probatum.rooms.arena import Terms, TrainingFailed, Work, alone
from probatum.settings import Running
from probatum.spec import Batch, Spec
from probatum.study import Study
from probatum.train import devices
from probatum.train.devices import Shard, check_shared, train_on_devices

BASE = Recipe(training=Training(steps=20, batch_size=25, lr=1e-2, clip=0.5))


def plain() -> Callable[[Spec], nn.Module]:
    """Networks without dropout and batch statistics, so that two devices can be compared with one."""
    return lambda spec: nn.Sequential(nn.Linear(spec.shape[0], 16), nn.ReLU(), nn.Linear(16, spec.outputs))


@pytest.mark.parametrize(("rows", "count"), [(10, 2), (9, 2), (7, 3), (2, 3), (5, 4)])
def test_weighted_shares_add_up_to_the_gradient_of_the_batch(rows: int, count: int) -> None:
    torch_stream = torch.Generator().manual_seed(rows)
    x, y = torch.randn(rows, 3, generator=torch_stream), torch.arange(rows) % 2
    weight = torch.randn(3, 2, generator=torch_stream, requires_grad=True)
    whole = torch.autograd.grad(F.cross_entropy(x @ weight, y), weight)[0]
    found, seen = torch.zeros(3, 2), []
    for rank in range(count):
        shard = Shard(rank, count)
        batch = shard.part(Batch(x, y, torch.arange(rows)))
        loss = shard.weighted(F.cross_entropy(batch.x @ weight, batch.y))
        found += torch.autograd.grad(loss, weight)[0] / count
        seen += batch.index.tolist() if shard.share else []
    torch.testing.assert_close(found, whole)
    assert seen == list(range(rows))


def fit(engine: Engine, recipe: Recipe) -> predict.Predictor:
    data = open_dataset("wine").prepare(0)
    return predict.fit(Work(Arm("arm", recipe, ""), "", Terms(base=BASE, engine=engine), data, 3, factory=plain()))


@pytest.mark.parametrize(("strategy", "technique"), [("ddp", "gradient-noise"), ("fsdp", "encouraging-loss")])
def test_two_processes_find_what_one_finds(strategy: str, technique: str) -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need Lightning Fabric")
    recipe = make_arm(technique, BASE).recipe
    alone, both = fit(Engine(), recipe), fit(Engine(devices=2, strategy=strategy), recipe)
    assert alone.model is not None
    assert both.model is not None
    for ours, theirs in zip(both.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(both.curve) == len(alone.curve) > 1
    for ours, theirs in zip(both.curve, alone.curve, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert (both.passes, both.effects.keys()) == (alone.passes, alone.effects.keys())


TEMPERED = '''"""A loss that learns a temperature.

Paper     none
Computes  cross-entropy of output / temperature
Shapes    (n, classes), (n,) -> ()
Departs   none
"""
import torch
from torch import nn
from torch.nn import functional as F

from probatum.card import Card

CARD = Card(paper="none", title="Tempered", entry="Tempered", slot="loss", tasks=("classes",), separable=True)


class Tempered(nn.Module):
    """Cross-entropy of outputs divided by a temperature that is learned with the network."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return F.cross_entropy(output / self.temperature, target)
'''


def test_a_loss_learns_from_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need Lightning Fabric")
    monkeypatch.setattr(catalogue, "_added", {})
    (tmp_path / "tempered.py").write_text(TEMPERED, encoding="utf-8")
    recipe = make_arm(catalogue.add_file(tmp_path / "tempered.py"), BASE).recipe
    alone, both = fit(Engine(), recipe), fit(Engine(devices=2, strategy="ddp"), recipe)
    assert alone.model is not None
    assert both.model is not None
    for ours, theirs in zip(both.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_goes_wrong_in_a_process_is_told() -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need Lightning Fabric")
    data = open_dataset("wine").prepare(0)
    hot = replace(BASE, training=replace(BASE.training, lr=1e30, clip=None))
    with pytest.raises(TrainingFailed, match="lower learning rate"):
        train_on_devices(alone(hot, data, 0, engine=Engine(devices=2), factory=plain()))


def test_batch_statistics_are_told_of() -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need Lightning Fabric")

    def normed(spec: Spec) -> nn.Module:
        return nn.Sequential(nn.Linear(spec.shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, spec.outputs))

    steps = []
    work = alone(BASE, open_dataset("wine").prepare(0), 0, engine=Engine(devices=2), factory=normed)
    work = replace(work, progress=lambda step, steps_: steps.append((step, steps_)))
    found = train_on_devices(work, steps=8)
    assert found.run.notes == {"batch statistics are of each device's share": 1.0}
    assert found.run.step == 8
    assert steps
    assert steps[-1][1] == 8


def test_without_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'probatum\[cluster\]'"):
        Study("iris", ["encouraging-loss"], running=Running(devices=2))


def test_refused_before_the_long_work() -> None:
    two, pieces = Engine(devices=2), Engine(devices=2, strategy="fsdp")

    def arm(text: str) -> Recipe:
        return make_arm(text, BASE).recipe

    for text in ("gradient-noise", "encouraging-loss", "scale-optimizer"):
        check_shared(text, arm(text), two)
        check_shared(text, arm(text), Engine())
    with pytest.raises(InputError, match="gradual-magnitude-pruning touches the optimizer"):
        check_shared("arm", arm("gradual-magnitude-pruning"), two)
    with pytest.raises(InputError, match="early-learning-regularization is not a mean of terms of one row"):
        check_shared("arm", arm("early-learning-regularization"), two)
    with pytest.raises(InputError, match=r"gradient-noise touches the gradients.*use ddp"):
        check_shared("arm", arm("gradient-noise"), pieces)
    with pytest.raises(InputError, match="scale-optimizer needs whole matrices"):
        check_shared("arm", arm("scale-optimizer"), pieces)
    small = replace(BASE, training=replace(BASE.training, batch_size=1))
    with pytest.raises(InputError, match="cannot share batches of 1 rows"):
        check_shared("arm", small, two)
    check_shared("arm", replace(BASE, learner=Use("gzip-knn", {})), two)


def test_a_study_refuses_by_name() -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need Lightning Fabric")
    with pytest.raises(InputError, match="gradual-magnitude-pruning"):
        Study("iris", ["gradual-magnitude-pruning"], steps=2, running=Running(devices=2))
    with pytest.raises(InputError, match="devices is 2 and workers 2"):
        Study("iris", ["encouraging-loss"], running=Running(devices=2, workers=2))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices here")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_cuda_devices_find_what_the_cpu_finds(strategy: str) -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need Lightning Fabric")
    alone, both = fit(Engine(), BASE), fit(Engine("cuda", devices=2, strategy=strategy), BASE)
    assert both.curve[-1] == pytest.approx(alone.curve[-1], rel=2e-2)
