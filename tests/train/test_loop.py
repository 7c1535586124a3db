"""The loop against a hand-written one, bit for bit; streams; the tuner."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.data.open import open_dataset
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import TrainingFailed, alone
from probatum.spec import Budget, Part
from probatum.train.assemble import assemble, budget_for
from probatum.train.loop import outputs, rate_factor, train
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.run import Run
from probatum.train.tune import tuned

pytestmark = pytest.mark.fast

TRAINING = Training(steps=25, batch_size=16, lr=1e-2)


def test_equals_a_hand_written_loop_bit_for_bit() -> None:
    data = open_dataset("iris").prepare(0)
    parts = assemble(alone(Recipe(training=TRAINING), data, 0))
    by_hand = assemble(alone(Recipe(training=TRAINING), data, 0)).run.model
    with seeded(0, "training"):
        train(parts.run, [], generator_for(0, "order"), schedule="constant", select="last")
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=1e-2, fused=True)
    generator, done = generator_for(0, "order"), 0
    by_hand.train()
    with seeded(0, "training"):
        while done < 25:
            for index in torch.randperm(len(data.train), generator=generator).split(16):
                if len(index) < 2 or done == 25:
                    break
                loss = F.cross_entropy(by_hand(data.train.x[index]), data.train.y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
    for ours, theirs in zip(parts.run.model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_best_weights_by_validation_are_kept() -> None:
    data = open_dataset("wine").prepare(0)
    kept, last = (assemble(alone(Recipe(training=TRAINING), data, 0)) for _ in range(2))
    for parts, select in ((kept, "log-loss"), (last, "last")):
        with seeded(0, "training"):
            train(parts.run, [], generator_for(0, "order"), select=select)
    best = min(point["valid_log_loss"] for point in kept.run.curve)
    now = F.cross_entropy(outputs(kept.run.model, data.valid.x), data.valid.y).item()
    assert now == pytest.approx(best, abs=1e-6)
    assert [point["step"] for point in kept.run.curve] == [point["step"] for point in last.run.curve]


def test_rates_warm_up_and_fall_to_zero_and_are_put_back() -> None:
    factors = [rate_factor(step, 100, "cosine") for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[5:]))
    assert factors[-1] < 1e-3
    assert rate_factor(7, 100, "constant") == 1.0
    parts = assemble(alone(Recipe(training=TRAINING), open_dataset("iris").prepare(0), 0))
    train(parts.run, [], generator_for(0, "order"))
    assert parts.run.optimizer.param_groups[0]["lr"] == 1e-2


def test_a_loss_that_is_not_finite_is_said() -> None:
    data = open_dataset("iris").prepare(0)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    run = Run(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        data.spec,
        data.train,
        data.valid,
        Budget(5, 16, 5),
    )
    with pytest.raises(TrainingFailed, match="nan at step 5"):
        train(run, [], generator_for(0, "order"))


def test_clipping_comes_before_the_gradient_hooks() -> None:
    seen: list[float] = []

    class Watch:
        reads, writes = ("gradients",), ()

        def gradients(self, run: Run) -> None:
            seen.append(
                float(torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm())
            )

    recipe = Recipe(training=replace(TRAINING, clip=1e-3))
    parts = assemble(alone(recipe, open_dataset("iris").prepare(0), 0))
    train(parts.run, [Watch()], generator_for(0, "order"))
    assert max(seen) <= 1e-3 * 1.001


def part_of(part: Part, n: int) -> Part:
    return Part(part.x[:n], part.y[:n], part.rows[:n])


def test_parts_that_a_method_keeps_in_evaluation_stay_so_through_looks() -> None:
    class Frozen:
        def prepare(self, run: Run) -> None:
            self.norm = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
            self.before, self.seen = self.norm.running_mean.clone(), []  # type: ignore[union-attr, operator]

        def step_end(self, run: Run) -> None:
            self.seen.append((self.norm.training, run.model.training))

    class Mistaken:
        def prepare(self, run: Run) -> None:
            run.model.eval()

        def step_end(self, run: Run) -> None:
            self.left = [module for module in run.model.modules() if not module.training]

    data = open_dataset("digits").prepare(0)
    few = replace(data, train=part_of(data.train, 64), valid=part_of(data.valid, 16))
    for mistaken in (None, Mistaken()):
        frozen = Frozen()
        run = assemble(alone(Recipe(training=replace(TRAINING, steps=8)), few, 0)).run
        train(run, [frozen, *([mistaken] if mistaken else [])], generator_for(0, "order"), select="last")
        assert len(run.curve) > 1
        assert frozen.seen == [(False, True)] * 8
        assert torch.equal(frozen.norm.running_mean, frozen.before)  # type: ignore[arg-type]
        assert mistaken is None or mistaken.left == [frozen.norm]


def test_streams_are_apart_and_the_same_everywhere() -> None:
    assert derive(3, "order") == 2401951542776681986  # a stored study must mean the same tomorrow
    assert derive(3, "order") != derive(3, "weights") != derive(4, "order")
    assert derive(3, "a", "b") != derive(3, "ab")
    before = torch.get_rng_state()
    with seeded(1, "x"):
        first = torch.rand(3)
    with seeded(1, "x"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


def test_least_steps_and_explicit_steps() -> None:
    training = Training(epochs=2, batch_size=50, least_steps=30)
    assert budget_for(training, 100).steps == 30
    assert budget_for(training, 5000).steps == 200
    assert budget_for(replace(training, steps=7), 5000).steps == 7


def test_the_tuner_keeps_the_defaults_unless_something_is_better_and_fixed_settings_always() -> None:
    base = Recipe(training=TRAINING)
    recipe = make_arm("encouraging-loss(smoothing=0.1)", base).recipe
    assert tuned(recipe, 6, 0, lambda candidate: 0.0 if candidate == recipe else 1.0) == recipe
    tried: list[Recipe] = []
    best = tuned(recipe, 6, 0, lambda candidate: (tried.append(candidate), candidate.training.lr)[1])
    assert len(tried) == 6
    assert best.training.lr == min(candidate.training.lr for candidate in tried)
    assert all(candidate.loss is not None and candidate.loss.settings["smoothing"] == 0.1 for candidate in tried)
    assert len({candidate.loss.settings.get("log_end") for candidate in tried if candidate.loss}) > 1
