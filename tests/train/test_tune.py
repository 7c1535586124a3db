"""The tuner: the recipe as it stands is tried first and does not spoil the search."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest

from probatum.recipe import Recipe, Training, make_arm
from probatum.train.tune import tuned

pytestmark = pytest.mark.fast

BASE = Recipe(training=Training(steps=10))


def valley(recipe: Recipe) -> float:
    """Low along a diagonal of rate and decay: where one is, depends on the other."""
    a, b = math.log10(recipe.training.lr) + 3, math.log10(recipe.training.weight_decay) + 3
    return (a + b) ** 2 + 0.05 * (a - b - 1) ** 2


def candidates(trials: int, seed: int) -> list[tuple[float, float]]:
    seen: list[tuple[float, float]] = []
    tuned(BASE, trials, seed, lambda r: (seen.append((r.training.lr, r.training.weight_decay)), valley(r))[1])
    return seen


def test_the_first_candidate_is_the_recipe_as_it_stands() -> None:
    assert candidates(3, 0)[0] == (BASE.training.lr, BASE.training.weight_decay)


def test_settings_are_searched_jointly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates are not those of a sampler that takes one setting after another (Optuna 5.0: the first candidate,
    which suggests nothing, made them so, bit for bit)."""
    joint = candidates(30, 1)
    original = optuna.samplers.TPESampler

    def one_by_one(**settings: Any) -> Any:
        return original(**{**settings, "multivariate": False, "group": False})

    monkeypatch.setattr(optuna.samplers, "TPESampler", one_by_one)
    apart = candidates(30, 1)
    assert joint[:9] == apart[:9]  # random at first
    assert joint != apart


def test_the_search_is_better_than_chance() -> None:
    best = [min(valley_of(lr, decay) for lr, decay in candidates(30, seed)) for seed in range(12)]
    rng = np.random.default_rng(0)
    chance = [
        min(
            valley_of(10**a, 10**b) for a, b in zip(rng.uniform(-4, -1.52, 30), rng.uniform(-6, -0.52, 30), strict=True)
        )
        for _ in range(200)
    ]
    assert np.median(best) < 0.5 * np.median(chance)


def valley_of(lr: float, decay: float) -> float:
    return valley(Recipe(training=Training(steps=10, lr=lr, weight_decay=decay)))


def test_a_technique_s_own_settings_take_part_and_fixed_ones_do_not() -> None:
    recipe, tried = make_arm("encouraging-loss(smoothing=0.1)", BASE).recipe, []
    tuned(recipe, 8, 0, lambda r: (tried.append(dict(r.loss.settings)), 0.0)[1])  # type: ignore[union-attr, func-returns-value]
    assert all(settings["smoothing"] == 0.1 for settings in tried)
    assert len({str(settings) for settings in tried}) > 2
