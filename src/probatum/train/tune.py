"""Equal tuning: the same number of trials of the same tuner for every arm, on validation rows alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from probatum import catalogue
from probatum.recipe import MANY, Recipe, Use, field_of
from probatum.train.rng import derive

if TYPE_CHECKING:
    import optuna


def tuned(recipe: Recipe, trials: int, seed: int, score: Callable[[Recipe], float]) -> Recipe:
    """The best of `trials` candidates by `score` (lower = better); the first candidate is the recipe as it stands.

    The space is the built-in optimizer's learning rate and weight decay (unless a technique replaces it) and what the
    cards of the recipe's techniques offer in `tune`, less the settings the user fixed. Calibrators are left at their
    defaults: the rows they are fitted on cannot choose among them too. The sampler's seed comes from the trial's, so
    the result is a pure function of its arguments. A candidate that fails, or whose score is not finite, is worse than all
    others; where every one fails, the first one's exception (that of the recipe as it stands) is raised.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # by groups, so that the first candidate, which suggests nothing, does not switch joint sampling off for the others
        sampler = optuna.samplers.TPESampler(
            seed=derive(seed, "tuner") % 2**31, n_startup_trials=max(4, trials // 3), multivariate=True, group=True
        )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    candidates: dict[int, Recipe] = {}

    problems: list[Exception] = []

    def objective(trial: optuna.Trial) -> float:
        candidates[trial.number] = recipe if trial.number == 0 else _candidate(recipe, trial)
        try:
            value = score(candidates[trial.number])
        except Exception as problem:  # settings that the tuner chose need not be good ones
            problems.append(problem)
            return math.inf
        return value if math.isfinite(value) else math.inf

    study.optimize(objective, n_trials=trials)
    if len(problems) == trials:
        raise problems[0]
    return candidates[study.best_trial.number]


def _candidate(recipe: Recipe, trial: optuna.Trial) -> Recipe:
    if recipe.learner is None and recipe.optimizer is None:
        lr = trial.suggest_float("lr", 1e-4, 3e-2, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-6, 0.3, log=True)
        recipe = replace(recipe, training=replace(recipe.training, lr=lr, weight_decay=weight_decay))
    for use in recipe.uses():
        space = {name: values for name, values in catalogue.card(use.id).tune.items() if name not in use.settings}
        if space and use is not recipe.posthoc:
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
    others = getattr(recipe, field_of(slot))
    filled: dict[str, Any] = {field_of(slot): new}
    if slot in MANY:
        filled = {slot: tuple(new if other.id == use.id else other for other in others)}
    return replace(recipe, **filled)
