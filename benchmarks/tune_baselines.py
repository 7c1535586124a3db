"""Choose the built-in baselines' settings on validation rows and print what was found; test rows are not read.

    python benchmarks/tune_baselines.py --trials 12

For each modality: Optuna (seeded TPE) over learning rate, weight decay and epochs; the score of a candidate is its mean
validation log-loss (or RMSE) over the listed sets and seeds 0 to 2, each relative to the default settings' score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import torch

from probatum.claims.tools import fit
from probatum.data.dataset import Dataset
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.recipe import Training
from probatum.rooms.task import task as task_of
from probatum.train.baselines import training_for
from probatum.train.loop import outputs

SEEDS = (0, 1, 2)
EMBEDDED = {
    "table": ("breast-cancer", "wine", "diabetes", "friedman"),
    "image": ("digits",),
    "text": ("toy-topics",),
    "series": ("cbf",),
}
LIBRARY = {"table": ("german_credit",), "text": ("trec",), "series": ("ItalyPowerDemand",), "image": ()}


def sets_of(modality: str) -> list[Dataset]:
    """The development sets of a modality; those of the library only where it is there."""
    found = [open_dataset(name) for name in EMBEDDED[modality]]
    for name in LIBRARY[modality]:
        try:
            found.append(open_dataset(name))
        except InputError:
            continue
    return found


def score(training: Training, sets: Sequence[Dataset]) -> list[float]:
    """Mean validation log-loss or RMSE over the seeds, set by set."""
    scores = []
    for dataset in sets:
        values = []
        for seed in SEEDS:
            data = dataset.prepare(seed)
            chosen = replace(training, select="rmse" if dataset.task == "reals" else "log-loss")
            model = fit(None, data, seed, training=chosen).model
            found = task_of(dataset.task).errors(outputs(model, data.valid.x), data.valid.y)
            values.append(found["rmse" if dataset.task == "reals" else "log_loss"])
        scores.append(sum(values) / len(values))
    return scores


def tune(modality: str, trials: int) -> None:
    """Search one modality and print default and best settings with their scores."""
    sets = sets_of(modality)
    default = training_for(modality, "classes")
    base = score(default, sets)

    def objective(trial: optuna.Trial) -> float:
        candidate = replace(
            default,
            lr=trial.suggest_float("lr", 3e-4, 2e-2, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 0.3, log=True),
            least_steps=0,
            epochs=trial.suggest_categorical(
                "epochs", sorted({default.epochs // 2, default.epochs, 2 * default.epochs})
            ),
        )
        relative = [mine / max(theirs, 1e-9) for mine, theirs in zip(score(candidate, sets), base, strict=True)]
        return sum(relative) / len(relative)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    names = ", ".join(dataset.name for dataset in sets)
    print(
        f"{modality} ({names}): default lr {default.lr:g}, wd {default.weight_decay:g}, {default.epochs} epochs = 1.000"
    )
    for trial in sorted(study.trials, key=lambda t: t.value or 0.0)[:3]:
        settings = ", ".join(f"{key} {value:.3g}" for key, value in trial.params.items())
        print(f"  {trial.value:.3f}  {settings}", flush=True)


def main() -> None:
    """Tune the modalities asked for."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--modality", nargs="*", default=list(EMBEDDED))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for modality in arguments.modality:
        tune(modality, arguments.trials)


if __name__ == "__main__":
    main()
