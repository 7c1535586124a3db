"""Learning curves of strategies as the arena draws them, for claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probatum.arenas.acquire import arena as acquire
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import ModelFactory, Outcome, Terms, Work
from probatum.spec import Data


def curve(
    who: str,
    data: Data,
    seed: int,
    rules: Mapping[str, Any],
    training: Training,
    factory: ModelFactory | None = None,
) -> Outcome:
    """One trial of arena acquire: `who` is one of its built-in arms or a technique with its settings."""
    base = Recipe(training=training)
    builtin = who if who in (acquire.BASELINE, acquire.CERTAIN, acquire.EVERYTHING) else ""
    arm = Arm(who, base) if builtin else make_arm(who, base)
    return acquire.trial(Work(arm, builtin, Terms(base=base, contest=dict(rules)), data, seed, factory))
