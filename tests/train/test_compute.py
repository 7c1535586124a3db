"""Equal compute: arms get the updates that cost what the baseline costs, counted over their own schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probatum.data.open import open_dataset
from probatum.numerics.cost.operations import counted
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.spec import Data, Spec
from probatum.train.assemble import assemble
from probatum.train.compute import costs, equal_steps
from probatum.train.loop import Single, train_session
from probatum.train.rng import generator_for, seeded


class Recurrent(nn.Module):
    """An LSTM whose last state is classified."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(spec.shape[0], 32, batch_first=True), nn.Linear(32, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.transpose(1, 2))[0][:, -1])


class Depthwise(nn.Module):
    """Depthwise and pointwise convolutions, the mean, a linear head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.wide = nn.Conv1d(spec.shape[0], 32, 1)
        self.deep, self.point = nn.Conv1d(32, 32, 5, padding=2, groups=32), nn.Conv1d(32, 32, 1)
        self.head = nn.Linear(32, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.point(self.deep(self.wide(x)).relu()).relu().mean(dim=2))


def work(data: str, arm: str, steps: int, factory: Any = None) -> Work:
    base = Recipe(training=Training(steps=steps, batch_size=32))
    return Work(make_arm(arm, base), "", Terms(base=base), open_dataset(data).prepare(0), 0, factory)


class Blind(Single):
    """A training that does not look at validation rows."""

    def looks(self) -> list[dict[str, float]]:
        return [{}]


def spent(one: Work, recipe: Recipe, steps: int | None = None) -> int:
    """Operations of a whole training, counted throughout."""
    with seeded(0, "training"):
        parts = assemble(one, recipe, steps)
        with counted() as operations:
            session = Blind(parts.run, parts.methods, generator_for(0, "order"))
            train_session(session, recipe.training.schedule, "last")
    return operations.total


@pytest.mark.parametrize("factory", [None, Recurrent, Depthwise])
def test_an_arm_that_costs_the_same_gets_the_same_steps(factory: Any) -> None:
    one = work("cbf", "encouraging-loss", 36, factory)
    assert equal_steps(one, one.recipe) == 36


@pytest.mark.parametrize("factory", [Recurrent, Depthwise])
def test_an_arm_that_costs_twice_as_much_gets_half_the_steps(factory: Any) -> None:
    one = work("cbf", "encouraging-loss", 40, factory)
    half = Recipe(training=Training(steps=40, batch_size=16))
    assert costs(one.baseline(), half, 40).total < 0.6 * costs(one.baseline(), one.base, 40).total
    assert 75 <= equal_steps(one, half) <= 81


@pytest.mark.parametrize(
    ("data", "arm"),
    [
        ("digits", "cyclical-curriculum"),
        ("digits", "sorted-net(draws=2)"),
        ("digits", "maestro-lowrank"),
        ("breast-cancer", "roadblocks"),
        ("breast-cancer", "gradual-magnitude-pruning"),
    ],
)
def test_schedules_that_change_their_cost_are_counted_over_all_of_it(data: str, arm: str) -> None:
    one = work(data, arm, 60)
    steps = equal_steps(one, one.recipe)
    allowed, used = spent(one.baseline(), one.base), spent(one, one.recipe, steps)
    assert used == pytest.approx(allowed, rel=max(0.06, 1.5 / steps))


def test_counting_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    one = work("iris", "gradient-noise", 20)
    before = torch.get_rng_state()
    equal_steps(one, one.recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert Arm("baseline", one.base).recipe.training.steps == 20
    assert isinstance(one.data, Data)
