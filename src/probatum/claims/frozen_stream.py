"""Features of a small CNN trained on Fashion-MNIST, and MNIST in five stages of two classes, for claims on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.library import library, subset
from probatum.recipe import Training
from probatum.spec import Budget, Part, Spec, Stage
from probatum.train.loop import outputs
from probatum.train.rng import generator_for

CLASSES, STAGES = 10, 5
FEATURES, WIDTH = 32 * 7 * 7, 128
CONVOLUTIONS, ALL_BUT_LAST = 5, 7
"""Layers of the CNN that give 1568 features, and 128."""


class Learner(Protocol):
    """What these claims need of a continual learner."""

    def observe(self, stage: Stage, budget: Budget) -> None: ...

    def predict(self, x: Tensor, task: int | None = None) -> Tensor: ...


def small_cnn(spec: Spec) -> nn.Module:
    """Two convolutions and a layer of 128."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(FEATURES, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, spec.outputs),
    )


class FrozenStream:
    """MNIST as features of an encoder that knows Fashion-MNIST alone, standardised on Fashion-MNIST.

    Args:
        seed: of the encoder, the splits and the order of the classes.
        rows: of either set.
        layers: how many of the CNN's layers give the features.

    Attributes:
        other: features of Fashion-MNIST's training rows (n, d).
        stages: MNIST's training rows, two classes a stage, in an order drawn by the seed.
        test: MNIST's test rows.
    """

    def __init__(self, seed: int, rows: int = 10_000, layers: int = CONVOLUTIONS) -> None:
        fashion = subset(library("fashion_mnist"), rows, seed).prepare(seed)
        mnist = subset(library("mnist"), rows, seed).prepare(seed)
        network = fit(None, fashion, seed, training=Training(epochs=5, batch_size=64, lr=2e-3), factory=small_cnn).model
        body = network[:layers]
        found = outputs(body, fashion.train.x)
        mean, scale = found.mean(dim=0), found.std(dim=0).clamp_min(1e-3)

        def features(part: Part) -> Tensor:
            return (outputs(body, part.x) - mean) / scale

        self.other = (found - mean) / scale
        self.test = Part(features(mnist.test), mnist.test.y, mnist.test.rows)
        x, y = features(mnist.train), mnist.train.y
        order = torch.randperm(CLASSES, generator=generator_for(seed, "class order"))
        self.stages = []
        for number, group in enumerate(order.split(CLASSES // STAGES)):
            where = torch.isin(y, group)
            self.stages.append(Stage(number, tuple(sorted(group.tolist())), x[where], y[where]))

    def shown(self, learner: Learner, budget: Budget, after: Callable[[int], None] | None = None) -> None:
        """Show all stages, each once, in order."""
        for stage in self.stages:
            learner.observe(stage, budget)
            if after is not None:
                after(stage.number)

    def accuracy(self, learner: Learner) -> float:
        """Share of MNIST's test rows told rightly among all classes."""
        return float((learner.predict(self.test.x).argmax(dim=1) == self.test.y).float().mean())

    def newest_share(self, learner: Learner) -> float:
        """Share of test rows of earlier stages that are taken for classes of the last one."""
        last = torch.tensor(self.stages[-1].classes)
        said, old = learner.predict(self.test.x).argmax(dim=1), ~torch.isin(self.test.y, last)
        return float(torch.isin(said[old], last).float().mean())
