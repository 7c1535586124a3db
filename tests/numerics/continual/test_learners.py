"""Learners to build on: what is masked, charged, kept and compared, by hand."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.continual.learners import FineTune, Prototypes, Replay, Settings, nearness
from probatum.numerics.continual.stages import herding
from probatum.spec import Budget, Optimisation, Stage

pytestmark = pytest.mark.fast

BUDGET = Budget(12, 10, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factory() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))


def settings(memory: int = 0, selection: str = "herding") -> Settings:
    own = {"selection": selection, "optimisation": Optimisation(5e-2)}
    return Settings(5, factory, generator(1), generator(2), memory, **own)  # type: ignore[arg-type]


def stage(number: int, classes: tuple[int, ...], rows: int = 20) -> Stage:
    y = torch.tensor(classes).repeat(rows)
    centres = 2 * torch.randn(5, 4, generator=generator(9))
    return Stage(number, classes, centres[y] + 0.2 * torch.randn(len(y), 4, generator=generator(number)), y)


def test_nearness_by_hand_and_in_half_precision() -> None:
    features, means = torch.randn(6, 3, generator=generator()), torch.randn(4, 3, generator=generator(1))
    expected = torch.stack(
        [torch.stack([-((row - m / m.norm()) ** 2).sum() for m in means]) for row in features],
    )
    torch.testing.assert_close(nearness(features, means), expected)
    low = nearness(features.bfloat16(), means.bfloat16())
    torch.testing.assert_close(low, nearness(features.bfloat16().float(), means.bfloat16().float()).bfloat16())


def test_fine_tuning_masks_what_it_has_not_seen_and_charges_what_it_passes() -> None:
    found, first = FineTune(settings()), stage(0, (0, 3))
    assert not found.needs_stages
    assert bool((found.predict(first.x) == -math.inf).all())
    found.observe(first, BUDGET)
    assert found.passes == 12 * 10
    assert found.stages == [(0, 3)]
    assert found.stored_bytes() == 0
    found.observe(Stage(1, (), first.x[:7], first.y[:7]), BUDGET)  # a chunk without new classes
    found.observe(stage(2, (1,)), BUDGET)
    assert found.stages == [(0, 3), (1,)]
    raw = found.network(first.x).detach()
    told = found.predict(first.x)
    assert torch.equal(told[:, [0, 1, 3]], raw[:, [0, 1, 3]])
    assert bool((told[:, [2, 4]] == -math.inf).all())
    assert torch.equal(found.predict(first.x, 1).isfinite().any(dim=0).nonzero().flatten(), torch.tensor([1]))
    before = found.passes
    assert torch.equal(found.teach(first.x), raw)
    assert found.passes == pytest.approx(before + 40 / 3)
    for task in (-1, 2):
        with pytest.raises(ValueError, match=rf"task is {task}; 2 stage\(s\)"):
            found.predict(first.x, task)


def test_the_strength_is_the_methods_own_unless_it_is_given() -> None:
    assert FineTune(settings()).strength == 1.0
    given = Settings(5, factory, generator(), generator(), strength=0.0)
    assert FineTune(given).strength == 0.0


@pytest.mark.parametrize("selection", ["herding", "random"])
def test_replay_trains_on_new_rows_and_those_kept(selection: str) -> None:
    found, first, second = Replay(settings(300, selection)), stage(0, (0, 3)), stage(1, (1, 4))
    found.observe(first, BUDGET)
    charged = 12 * 10 + (40 / 3 if selection == "herding" else 0)
    assert found.passes == pytest.approx(charged)
    assert 0 < found.stored_bytes() <= 300
    each = len(found.exemplars.of(0))
    assert each == len(found.exemplars.of(3)) >= 2
    rows = first.x[first.y == 3]
    if selection == "herding":
        features = F.normalize(found.network.features(rows), dim=1).detach()  # type: ignore[operator]
        torch.testing.assert_close(found.features(rows), features)
        assert torch.equal(found.exemplars.of(3), rows[herding(features, each)])
    else:
        assert not torch.equal(found.exemplars.of(3), rows[:each])
        assert all(bool((row == rows).all(dim=1).any()) for row in found.exemplars.of(3))
    x, y = found.begin(second)
    assert torch.equal(x[:40], second.x)
    assert y.tolist() == [*second.y.tolist(), *[0] * each, *[3] * each]


def test_prototypes_learn_once_and_then_take_means() -> None:
    found, first, second = Prototypes(settings()), stage(0, (0, 3)), stage(1, (1, 4))
    assert found.needs_stages
    assert found.stored_bytes() == 0
    found.observe(first, BUDGET)
    assert found.passes == pytest.approx(12 * 10 + 40 / 3)
    weights = [p.detach().clone() for p in found.network.parameters()]
    found.observe(Stage(1, (1, 4, 2), second.x, second.y), BUDGET)
    assert found.passes == pytest.approx(12 * 10 + 80 / 3)
    assert all(torch.equal(p, before) for p, before in zip(found.network.parameters(), weights, strict=True))
    assert found.stored_bytes() == 5 * 8 * 4

    def unit(x: Tensor) -> Tensor:
        return F.normalize(F.relu(x @ weights[0].T + weights[1]), dim=1)

    means = {
        c: unit(part.x[part.y == c]).mean(dim=0) for part, names in ((first, (0, 3)), (second, (1, 4))) for c in names
    }
    told = found.predict(second.x)
    for c, mean in means.items():
        torch.testing.assert_close(told[:, c], -(unit(second.x) - mean / mean.norm()).square().sum(dim=1))
    assert bool((told[:, 2] == -math.inf).all())  # named, but no row came
    third = stage(2, (2,))
    found.observe(Stage(2, (), third.x, third.y), BUDGET)  # now they come
    mean = unit(third.x).mean(dim=0)
    torch.testing.assert_close(
        found.predict(third.x)[:, 2], -(unit(third.x) - mean / mean.norm()).square().sum(dim=1), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match=r"rows of classes \[4\]"):
        Prototypes(settings()).observe(Stage(0, (1,), second.x, second.y), BUDGET)


@pytest.mark.parametrize("kind", [FineTune, Replay, Prototypes])
def test_what_has_learned_can_be_pickled(kind: type[FineTune]) -> None:
    learner = kind(settings(2000))
    learner.observe(stage(0, (0, 1)), BUDGET)
    again = pickle.loads(pickle.dumps(learner))
    for one in (learner, again):
        one.observe(stage(1, (2, 3)), BUDGET)
    x = stage(2, (0, 1, 2, 3)).x
    assert torch.equal(again.predict(x), learner.predict(x))
