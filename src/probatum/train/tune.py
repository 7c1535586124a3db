"""Equal tuning: the same number of trials of the same tuner for every arm, on validation rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna

from probatum import catalogue
from probatum.recipe import MANY, Recipe, Use
from probatum.train.streams import derive


def tuned(recipe: Recipe, trials: int, seed: int, score: Callable[[Recipe], float]) -> Recipe:
    """The best of `trials` candidates by `score` (lower = better); the first candidate is the recipe as it stands.

    The space is the built-in optimizer's learning rate and weight decay (unless a technique replaces it) and what the
    cards of the recipe's techniques offer in `tune`. The sampler's seed comes from the trial's, so the result is a pure
    function of its arguments.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive(seed, "tuner") % 2**31, n_startup_trials=max(4, trials // 3))
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.enqueue_trial(_defaults(recipe))
    candidates: dict[int, Recipe] = {}

    def objective(trial: optuna.Trial) -> float:
        candidates[trial.number] = _candidate(recipe, trial)
        return score(candidates[trial.number])

    study.optimize(objective, n_trials=trials)
    return candidates[study.best_trial.number]


def _defaults(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if _trains(recipe) and recipe.optimizer is None:
        found = {"lr": recipe.training.lr, "weight_decay": max(recipe.training.weight_decay, 1e-6)}
    for use in recipe.uses():
        found |= {
            f"{use.id}.{name}": use.settings[name] for name in catalogue.card(use.id).tune if name in use.settings
        }
    return found


def _candidate(recipe: Recipe, trial: optuna.Trial) -> Recipe:
    if _trains(recipe) and recipe.optimizer is None:
        lr = trial.suggest_float("lr", 1e-4, 3e-2, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-6, 0.3, log=True)
        recipe = replace(recipe, training=replace(recipe.training, lr=lr, weight_decay=weight_decay))
    for use in recipe.uses():
        space = catalogue.card(use.id).tune
        if space:
            chosen = {name: _suggest(trial, f"{use.id}.{name}", values) for name, values in space.items()}
            recipe = _with_settings(recipe, use, chosen)
    return recipe


def _suggest(trial: optuna.Trial, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    low, high = values[0], values[1]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=len(values) == 3)
    return trial.suggest_float(name, low, high, log=len(values) == 3)


def _with_settings(recipe: Recipe, use: Use, chosen: Mapping[str, Any]) -> Recipe:
    slot = catalogue.place(use.id).slot
    new = Use(use.id, {**use.settings, **chosen})
    if slot in MANY:
        return replace(recipe, **{slot: tuple(new if other.id == use.id else other for other in getattr(recipe, slot))})
    return replace(recipe, **{slot: new})


def _trains(recipe: Recipe) -> bool:
    return recipe.learner is None
