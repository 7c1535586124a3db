"""What every technique that takes part in training shares: short trainings on toy data, run once for all checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from probatum.checks.networks import anatomy
from probatum.checks.subject import Subject, fingerprint
from probatum.checks.toy import toy
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Data
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import train
from probatum.train.rng import generator_for, seeded


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Final weights of a short training with the technique."""
    return final_weights(subject.recipe(settings), subject.data())


def neutral(subject: Subject, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Final weights without the technique, and with it at these settings."""
    spec = subject.data().spec
    return plain(spec.modality, spec.task), exercise(subject, settings)


@cache
def plain(modality: str, task: str) -> dict[str, Tensor]:
    """Final weights of a short training without any technique."""
    return final_weights(Recipe(training=Training(steps=12, batch_size=16, lr=1e-2)), toy(modality, task))


def draws(subject: Subject) -> bool:
    """Whether training with the technique moves torch's global random state, dropout aside: that, the bench seeds."""
    preferred = [name for name in ("image", "table", "series") if name in subject.modalities()]
    data = subject.data(modality=preferred[0] if preferred else None)
    parts = assemble(alone(subject.recipe(), data, 3))
    for module in parts.run.model.modules():
        if type(module).__module__.startswith("torch.nn."):
            for name in ("p", "dropout"):  # of dropout, and inside attention and recurrent layers
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    with seeded(3, "training"):
        before = torch.get_rng_state()
        train(parts.run, parts.methods, generator_for(3, "order"), schedule="constant")
        return not torch.equal(before, torch.get_rng_state())


def final_weights(recipe: Recipe, data: Data) -> dict[str, Tensor]:
    """Final weights of a short training of this recipe."""
    parts = assemble(alone(recipe, data, 3))
    with seeded(3, "training"):
        train(parts.run, parts.methods, generator_for(3, "order"), schedule=recipe.training.schedule)
    return dict(parts.run.model.state_dict())


@dataclass(frozen=True)
class Trained:
    """A short training that has ended, and how things were before it; shared, so that nobody may change it.

    Attributes:
        parts: run and methods.
        anatomy: of the network before, see `networks.anatomy`.
        types: of its modules before.
        rows: fingerprint of the training rows before.
        parameters: how many numbers the network had before.
    """

    parts: Assembly
    anatomy: list[str]
    types: frozenset[type]
    rows: str
    parameters: int


@cache
def trained(subject: Subject, modality: str) -> Trained:
    """A short training of a technique on toy data of a modality."""
    parts = prepared(subject, modality)
    model, rows = parts.run.model, parts.run.train
    types = frozenset(type(module) for module in model.modules())
    before = (anatomy(model), types, fingerprint([rows.x, rows.y]), sum(p.numel() for p in model.parameters()))
    run_it(parts)
    return Trained(parts, *before)


def prepared(subject: Subject, modality: str | None = None) -> Assembly:
    """A short run with the technique in it."""
    return assemble(alone(subject.recipe(), subject.data(modality=modality), 2))


def run_it(parts: Assembly) -> None:
    """Train the assembly."""
    with seeded(2, "training"):
        train(parts.run, parts.methods, generator_for(2, "order"), schedule="constant")
