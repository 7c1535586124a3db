"""Equal compute: arms get the updates that cost what the baseline costs, counted over their own schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probatum import catalogue
from probatum.data.open import open_dataset
from probatum.numerics.cost.operations import counted
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.spec import Data, Spec
from probatum.train import compute
from probatum.train.assemble import assemble
from probatum.train.compute import can_change, costs, equal_steps
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


class RandomDepth(nn.Module):
    """Layers that run or not by a draw of each batch."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(spec.shape[0], 128), nn.Linear(128, spec.outputs)
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        for layer in self.layers:
            if not self.training or float(torch.rand(())) < 0.5:
                h = h + layer(h).relu()
        return self.last(h)


HEAD = '''"""{name}: for a test.

Paper     none
Computes  what its docstring says
Shapes    as its slot has it
Departs   none
"""

import torch
from torch import nn
from torch.nn import functional as F

from probatum.card import Card

CARD = Card(paper="unpublished", title="{name}", entry="Own", slot="{slot}", tags=("own",))


'''

NOW_AND_THEN = '''class Own:
    """A second pass every so many steps."""

    reads, writes = ("weights",), ("gradients",)

    def __init__(self, every: int = 5) -> None:
        self.every = every

    def gradients(self, run) -> None:
        if run.step % self.every == 0:
            run.second_pass()
'''

DEAR_LATE = '''class Own(nn.Module):
    """Cross-entropy, with a large product besides in the second half of the training."""

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total, self.calls = total_steps, 0

    def forward(self, output, target):
        self.calls += 1
        loss = F.cross_entropy(output, target)
        if self.calls > self.total // 2:
            wide = output.repeat(1, 64)
            loss = loss + 1e-9 * (wide @ (wide.T @ wide)).mean()
        return loss
'''

RANDOM_DEPTH = '''class Own(nn.Module):
    """Layers that run or not by a draw of each batch."""

    def __init__(self, spec) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(spec.shape[0], 128), nn.Linear(128, spec.outputs)
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(6))

    def forward(self, x):
        h = self.first(x).relu()
        for layer in self.layers:
            if not self.training or float(torch.rand(())) < 0.5:
                h = h + layer(h).relu()
        return self.last(h)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Techniques whose cost changes from step to step."""
    monkeypatch.setattr(catalogue, "_added", {})
    for name, slot, body in (
        ("now_and_then", "method", NOW_AND_THEN),
        ("dear_late", "loss", DEAR_LATE),
        ("random_depth", "model", RANDOM_DEPTH),
    ):
        (tmp_path / f"{name}.py").write_text(HEAD.format(name=name, slot=slot) + body)
        catalogue.add_file(tmp_path / f"{name}.py")


def work(data: str, arm: str, steps: int, factory: Any = None) -> Work:
    base = Recipe(training=Training(steps=steps, batch_size=32))
    return Work(make_arm(arm, base), "", Terms(base=base), open_dataset(data).prepare(0), 0, factory)


class Blind(Single):
    """A training that does not look at validation rows."""

    def looks(self, *_: Any) -> list[dict[str, float]]:
        return [{}]


def spent(one: Work, recipe: Recipe, steps: int | None = None) -> int:
    """Operations of a whole training, counted throughout."""
    parts = assemble(one, recipe, steps)
    with seeded(0, "training", one.arm.salt), counted() as operations:
        session = Blind(parts.run, parts.methods, generator_for(0, "order", one.arm.salt))
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


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("arm", "steps", "factory"),
    [
        ("now-and-then(every=2)", 128, None),
        ("now-and-then(every=5)", 320, None),  # five times 64: a count of every fifth step meets it always
        ("random-depth", 60, None),
        ("dear-late", 60, None),
        ("gradient-noise", 60, RandomDepth),
        ("encouraging-loss", 60, RandomDepth),
        ("conda", 60, RandomDepth),
    ],
)
def test_what_costs_more_now_and_then_is_counted_as_it_comes(arm: str, steps: int, factory: Any) -> None:
    one = work("iris", arm, steps, factory)
    given = equal_steps(one, one.recipe)
    allowed, used = spent(one.baseline(), one.base), spent(one, one.recipe, given)
    assert used == pytest.approx(allowed, rel=max(0.025, 1.1 / given))


def test_what_cannot_change_is_counted_on_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    one = work("iris", "encouraging-loss", 400)
    assert not can_change(one, one.base)
    assert not can_change(one, one.recipe)
    assert can_change(work("iris", "gradient-noise", 2), work("iris", "gradient-noise", 2).recipe)
    assert can_change(replace(one, factory=RandomDepth), one.base)
    counts = []
    monkeypatch.setattr(compute, "counted", lambda: (counts.append(1), counted())[1])
    assert equal_steps(one, one.recipe) == 400
    assert len(counts) < 12


def test_a_baseline_that_may_change_is_counted_once_for_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    one = work("iris", "gradient-noise", 30, RandomDepth)
    lengths: list[int] = []
    original = compute.costs

    def counting(work: Work, recipe: Recipe, steps: int) -> compute.Costs:
        if recipe == work.base:
            lengths.append(steps)
        return original(work, recipe, steps)

    monkeypatch.setattr(compute, "costs", counting)
    first = equal_steps(one, one.recipe)
    assert equal_steps(replace(one, arm=make_arm("gradient-noise", one.base)), one.recipe) == first
    assert lengths == [30]
    equal_steps(replace(one, seed=1), one.recipe)
    other = work("iris", "gradient-noise", 30, RandomDepth)
    equal_steps(other, other.recipe)
    assert lengths == [30, 30, 30]


def test_counting_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    one = work("iris", "gradient-noise", 20)
    before = torch.get_rng_state()
    equal_steps(one, one.recipe)
    assert torch.equal(torch.get_rng_state(), before)
    assert Arm("baseline", one.base).recipe.training.steps == 20
    assert isinstance(one.data, Data)
