"""Runs trained as one against the same runs trained one after another."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Data, Part
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import outputs, train
from probatum.train.replicas import Replica, train_replicas
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.run import Run
from probatum.train.stack import CannotStackError

SEEDS = (1, 2, 3)
RECIPE = Recipe(training=Training(steps=22, batch_size=16, lr=1e-2))  # epochs of 4 steps: 22 ends in the middle of one


def shuffled(data: Data, seed: int) -> Data:
    def turned(part: Part) -> Part:
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        x = part.x[order]
        return Part(x.double() if x.is_floating_point() else x, _double(part.y[order]), part.rows)

    return Data(data.spec, turned(data.train), turned(data.valid), turned(data.test))


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def prepared(data: Data, methods: Any = (), factory: Any = None, recipe: Recipe = RECIPE) -> list[Assembly]:
    found = []
    for seed in SEEDS:
        parts = assemble(alone(recipe, shuffled(data, seed), seed, factory=factory))
        parts.run.model.double()
        parts.methods.extend(copy.deepcopy(method) for method in methods)
        found.append(parts)
    return found


def run_alone(parts: list[Assembly], **options: Any) -> list[Run]:
    for one, seed in zip(parts, SEEDS, strict=True):
        with seeded(seed, "training"):
            train(one.run, one.methods, generator_for(seed, "order"), **options)
    return [one.run for one in parts]


def together(parts: list[Assembly], **options: Any) -> tuple[list[Run], list[Any]]:
    replicas = [
        Replica(one.run, one.methods, generator_for(seed, "order"), derive(seed, "training"))
        for one, seed in zip(parts, SEEDS, strict=True)
    ]
    return [one.run for one in parts], train_replicas(replicas, **options)


def assert_same(wanted: list[Run], found: list[Run], tolerance: float = 1e-7) -> None:
    for one, other in zip(wanted, found, strict=True):
        a, b = outputs(one.model, one.valid.x), outputs(other.model, other.valid.x)
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
        assert (other.step, other.epoch) == (one.step, one.epoch)
        assert [point["step"] for point in other.curve] == [point["step"] for point in one.curve]
        for mine, theirs in zip(other.curve, one.curve, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)
        for (name, value), theirs in zip(
            other.model.state_dict().items(), one.model.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(value, theirs, rtol=tolerance, atol=tolerance, msg=lambda t, n=name: f"{n}: {t}")
        assert not other.model.training


@pytest.mark.parametrize("task", ["classes", "reals"])
@pytest.mark.parametrize("modality", ["table", "image", "text", "series"])
def test_baselines_train_as_one_as_each_does_alone(modality: str, task: str) -> None:
    data = toy(modality, task)
    found, failed = together(prepared(data))
    assert failed == [None] * len(SEEDS)
    assert_same(run_alone(prepared(data)), found)


@pytest.mark.parametrize("select", ["last", "log-loss"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedule_selection_and_clipping(select: str, schedule: str) -> None:
    options = {"select": select, "schedule": schedule}
    clipped = replace(RECIPE, training=replace(RECIPE.training, clip=0.05))
    data = toy("table", "classes")
    found, _ = together(prepared(data, recipe=clipped), **options)
    assert_same(run_alone(prepared(data, recipe=clipped), **options), found)
    assert found[0].clip == 0.05


class Hooks:
    """Uses every hook: other order, noise on inputs, a penalty, scaled gradients, decayed and replaced weights."""

    reads, writes = (), ("batch", "loss", "gradients", "weights", "order")

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.epochs = 0

    def prepare(self, run: Run) -> None:
        run.notes["prepared"] = 1.0

    def order(self, run: Run, order: Tensor) -> Tensor:
        return order.flip(0)

    def batch(self, run: Run, batch: Any) -> Any:
        return batch._replace(
            x=batch.x + 0.01 * torch.randn(batch.x.shape, generator=self.generator, dtype=batch.x.dtype)
        )

    def loss(self, run: Run, batch: Any, output: Tensor, loss: Tensor) -> Tensor:
        weights = sum(value.square().sum() for value in run.model.parameters())
        return loss + 0.01 * output.square().mean() + 1e-3 * weights

    def gradients(self, run: Run) -> None:
        for i, value in enumerate(run.model.parameters()):
            if value.grad is not None:
                value.grad = value.grad * 0.5 if i % 2 else value.grad.mul_(0.5)

    def step_end(self, run: Run) -> None:
        with torch.no_grad():
            for i, value in enumerate(run.model.parameters()):
                if i % 2:
                    value.data = value.data * 0.999
                else:
                    value.mul_(0.999)

    def epoch_end(self, run: Run) -> None:
        self.epochs += 1
        run.notes["epochs"] = float(self.epochs)


@pytest.mark.parametrize("modality", ["table", "image"])
def test_hooks_see_one_replica_each(modality: str) -> None:
    data = toy(modality, "classes")
    if modality == "table":  # the category column is no number to add noise to
        data = Data(data.spec, *(Part(p.x, p.y, p.rows) for p in (data.train, data.valid, data.test)))

    class Encoded(Hooks):
        def batch(self, run: Run, batch: Any) -> Any:
            if modality == "image":
                return super().batch(run, batch)
            return batch._replace(y=(batch.y + 1) % 3)

    found, failed = together(prepared(data, [Encoded()]))
    wanted = run_alone(prepared(data, [Encoded()]))
    assert failed == [None] * len(SEEDS)
    assert_same(wanted, found, 1e-6)
    assert [run.notes for run in found] == [run.notes for run in wanted]


def test_a_replica_that_fails_does_not_touch_the_others() -> None:
    data = toy("table", "classes")
    parts = prepared(data)
    bad = parts[1].run.train
    wild = bad.x.clone()
    wild[:, :5] = float("inf")  # the last column holds category codes
    parts[1].run.train = Part(wild, bad.y, bad.rows)
    found, failed = together(parts)
    wanted = run_alone(prepared(data))
    assert failed[0] is None
    assert failed[2] is None
    assert "training loss is" in str(failed[1])
    assert_same([wanted[0], wanted[2]], [found[0], found[2]])


def test_optimizers_with_rules_of_their_own_update_each_replica() -> None:
    class Signs(torch.optim.Optimizer):
        """Steps by the sign of the gradient times the norm of its matrix: not elementwise."""

        def __init__(self, parameters: Any, lr: float = 1e-3) -> None:
            super().__init__(parameters, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for value in group["params"]:
                    if value.grad is not None:
                        value.sub_(group["lr"] * value.grad.norm() * value.grad.sign())

    def ready() -> list[Assembly]:
        parts = prepared(toy("image", "classes"))
        for one in parts:
            one.run.optimizer = Signs(one.run.model.parameters(), lr=1e-2)
        return parts

    found, _ = together(ready())
    assert_same(run_alone(ready()), found)


class Coupled(nn.Module):
    """Looks at the other rows of the batch, which folding cannot see from the modules."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.head = nn.Linear(spec.shape[0], spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(dim=0))


class OwnDropout(Coupled):
    """Draws random numbers outside any module."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("factory", [Coupled, OwnDropout])
def test_what_cannot_be_seen_is_found_by_the_first_step(factory: Any) -> None:
    with pytest.raises(CannotStackError, match="other outputs or gradients"):
        together(prepared(toy("table", "classes"), factory=factory))


def test_unlike_data_budgets_and_objectives_are_refused() -> None:
    data = toy("table", "classes")
    parts = prepared(data)
    part = parts[2].run.train
    parts[2].run.train = Part(part.x[:40], part.y[:40], part.rows[:40])
    with pytest.raises(CannotStackError, match="differ in shape"):
        together(parts)


def test_parameters_of_a_loss_are_trained_as_alone() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output / self.temperature, target)

    def ready() -> list[Assembly]:
        parts = prepared(toy("table", "classes"))
        for one in parts:
            run = one.run
            run.loss = Tempered()
            run.optimizer = torch.optim.AdamW([*run.model.parameters(), run.loss.temperature], lr=1e-2)
        return parts

    wanted, found = run_alone(ready()), together(ready())[0]
    assert_same(wanted, found)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.loss.temperature.item() == pytest.approx(theirs.loss.temperature.item(), abs=1e-12) != 1.0  # type: ignore[union-attr, operator]


def test_parts_kept_in_evaluation_are_not_stacked() -> None:
    class Frozen:
        reads, writes = (), ("model",)

        def prepare(self, run: Run) -> None:
            next(m for m in run.model.modules() if isinstance(m, nn.Dropout | nn.LayerNorm | nn.BatchNorm2d)).eval()

    with pytest.raises(CannotStackError, match=r"keeps parts of .* in evaluation"):
        together(prepared(toy("image", "classes"), [Frozen()]))


def test_methods_are_detached_after_an_error() -> None:
    left: list[int] = []

    class Bad:
        reads, writes = (), ("weights",)

        def step_end(self, run: Run) -> None:
            raise ValueError("on purpose")

        def detach(self) -> None:
            left.append(1)

    with pytest.raises(ValueError, match="on purpose"):
        together(prepared(toy("table", "classes"), [Bad()]))
    assert len(left) == len(SEEDS)


def test_losses_that_reach_weights_past_the_network_count() -> None:
    """A loss with a penalty on the last layer's own weights sends gradients past the stack; they must arrive."""

    class Penalty(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._model = (model,)

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output, target) + 0.5 * self._model[0].head.weight.square().sum()

    def ready() -> list[Assembly]:
        parts = prepared(toy("table", "classes"))
        for one in parts:
            one.run.loss = Penalty(one.run.model)
        return parts

    found, _ = together(ready())
    assert_same(run_alone(ready()), found)
    assert not math.isnan(found[0].curve[-1]["train_loss"])
