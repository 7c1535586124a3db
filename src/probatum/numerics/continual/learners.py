"""Continual learners to build on: fine-tuning with hooks, replay of exemplars, prototypes on frozen features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probatum.numerics.continual.stages import (
    Exemplars,
    Split,
    as_it_was_on_failure,
    check_stage,
    class_mask,
    evaluate,
    herding,
    masked,
    seen_loss,
    train_stage,
)
from probatum.numerics.tensors.precision import computed_wide, unit, widened
from probatum.spec import Batch, Budget, Optimisation, Stage

FORWARD = 1 / 3
"""A pass forward alone, in passes forward and backward."""


@computed_wide
def nearness(features: Tensor, means: Tensor) -> Tensor:
    """Minus the squared distance of features (n, d) to means (classes, d), brought to unit length: (n, classes)."""
    return -torch.cdist(features, unit(means)).square()


@dataclass(frozen=True)
class Settings:
    """What a learner works with.

    Attributes:
        num_classes: classes in all.
        model_factory: a fresh network, x -> logits (n, num_classes).
        generator: the learner's own draws.
        order: batch orders.
        memory: bytes that may be kept between stages.
        batch_size: rows of a batch beside the loop's own.
        optimisation: rate, decay and schedule of every stage.
        strength: weight of what holds old knowledge, None = the learner's own.
        temperature: of distillation.
        held_out: share of rows held out where a learner does so.
        selection: of exemplars: herding or random.
    """

    num_classes: int
    model_factory: Callable[[], nn.Module]
    generator: torch.Generator
    order: torch.Generator
    memory: int = 0
    batch_size: int = 64
    optimisation: Optimisation = Optimisation()  # noqa: RUF009  # a frozen value
    strength: float | None = None
    temperature: float = 2.0
    held_out: float = 0.1
    selection: str = "herding"


class FineTune:
    """One network trained stage after stage, the loss over the classes seen; every other method adds to it."""

    needs_stages = False
    default_strength = 1.0

    def __init__(self, settings: Settings) -> None:
        self.s = settings
        self.seen = torch.zeros(settings.num_classes, dtype=torch.bool)
        self.old = self.seen
        self.stages: list[tuple[int, ...]] = []
        self.passes = 0.0
        self.exemplars = Exemplars(settings.memory)
        self.strength = self.default_strength if settings.strength is None else settings.strength
        self.network: nn.Module = self.build()

    def build(self) -> nn.Module:
        """The network before the first stage."""
        return self.s.model_factory()

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Learn one stage; where that fails, it can be shown again."""
        stage = check_stage(stage, self.s.num_classes, self.seen.nonzero().flatten().tolist())
        before = self.old, self.seen, self.stages, copy.copy(self.exemplars)
        self.old = self.seen.to(stage.y.device)
        self.seen = self.old | class_mask(stage.classes, self.s.num_classes, stage.y.device)
        self.stages = [*self.stages, *([stage.classes] if stage.classes else [])]
        try:
            with as_it_was_on_failure(self.network):  # what comes after the training may fail, too
                x, y = self.begin(stage)
                self.train(x, y, budget)
                self.end(stage)
        except BaseException:
            self.old, self.seen, self.stages, self.exemplars = before
            raise

    def train(self, x: Tensor, y: Tensor, budget: Budget) -> None:
        """The updates of one stage."""
        self.plain_loss = seen_loss(self.network, self.seen)
        try:
            passed = train_stage(
                self.network, x, y, budget, self.s.optimisation, self.s.order, self.loss, gradients=self.gradients,
                stepped=self.stepped,
            )  # fmt: skip
        finally:
            del self.plain_loss  # a function that no pickle takes
        self.passes += passed  # hooks add theirs meanwhile

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Before the training: which rows are trained on."""
        return stage.x, stage.y

    def loss(self, batch: Batch, output: Any) -> Tensor:
        """What is differentiated."""
        return self.plain_loss(batch, output)

    def gradients(self) -> None:
        """Before each update."""

    def stepped(self) -> None:
        """After each update."""

    def end(self, stage: Stage) -> None:
        """After the training."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits (n, num_classes), -inf for classes not seen, and for those of other stages where `task` is given."""
        output = masked(self.logits(x), self.seen.to(x.device))
        if task is None:
            return output
        if not 0 <= task < len(self.stages):
            raise ValueError(f"task is {task}; {len(self.stages)} stage(s) have been seen, from 0")
        return masked(output, class_mask(self.stages[task], self.s.num_classes, x.device))

    def logits(self, x: Tensor) -> Tensor:
        """What is masked and compared (n, num_classes)."""
        return evaluate(self.network, x)

    def stored_bytes(self) -> int:
        """Bytes kept beyond one plain network."""
        return self.exemplars.nbytes

    def teach(self, x: Tensor) -> Tensor:
        """What the network says of these rows before the stage (n, num_classes); charged as passes forward."""
        self.passes += FORWARD * len(x)
        return widened(evaluate(self.network, x))


class Replay(FineTune):
    """New rows together with exemplars (herding: the running mean of features stays near the class's mean)."""

    def build(self) -> nn.Module:
        """The network, cut before its last layer."""
        return Split(self.s.model_factory(), self.s.num_classes)

    def begin(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """New rows and exemplars."""
        return self.exemplars.beside(stage.x, stage.y)

    def end(self, stage: Stage) -> None:
        """Choose exemplars of the new classes."""
        self.keep(stage.x, stage.y)

    def features(self, x: Tensor) -> Tensor:
        """Features of unit length (n, d)."""
        self.network.eval()
        return unit(evaluate(self.network.features, x))  # type: ignore[arg-type]

    def keep(self, x: Tensor, y: Tensor) -> None:
        """Fill the exemplars again."""
        if self.s.selection == "random":
            self.exemplars.update(
                x, y, lambda rows, count: torch.randperm(len(rows), generator=self.s.generator)[:count]
            )
        else:
            self.passes += FORWARD * len(x)
            self.exemplars.update(x, y, lambda rows, count: herding(self.features(rows), count))


class Prototypes(Replay):
    """The network learns the first stage and is frozen; later classes are means of its features.

    A class that was named and of which no row came has no mean; its logits are -inf until rows come.
    """

    needs_stages = True

    def build(self) -> nn.Module:
        """The network, cut before its last layer; no means yet."""
        self.means = torch.zeros(self.s.num_classes, 0)
        self.shown = torch.zeros(self.s.num_classes, dtype=torch.bool)
        self.missing = False  # of classes that were named, so that a prediction need not ask
        return super().build()

    def train(self, x: Tensor, y: Tensor, budget: Budget) -> None:
        """The first stage trains the network; nothing does after it."""
        if not self.means.numel():
            super().train(x, y, budget)

    def end(self, stage: Stage) -> None:
        """Means of the stage's classes, and of those whose rows come for the first time."""
        found = self.features(stage.x)
        self.passes += FORWARD * len(stage)
        if not self.means.numel():
            self.means = found.new_zeros(self.s.num_classes, found.shape[1])
        self.shown = self.shown.to(found.device)
        late = [c for c in stage.y.unique().tolist() if not self.shown[c]]
        for c in dict.fromkeys([*stage.classes, *late]):
            own = found[stage.y == c]
            if len(own):
                self.means[c], self.shown[c] = own.mean(dim=0), True
        self.missing = not bool(self.shown[self.seen.to(found.device)].all())

    def logits(self, x: Tensor) -> Tensor:
        """Minus the squared distance to each class's mean."""
        near = nearness(self.features(x), self.means)
        return masked(near, self.shown) if self.missing else near

    def stored_bytes(self) -> int:
        """One mean a class seen."""
        return int(self.seen.sum()) * self.means.shape[1] * self.means.element_size() if self.stages else 0
