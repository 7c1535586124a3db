"""Claims of the survey of class-incremental learning (arXiv:2302.03648): who forgets least, and what equal memory changes.

The network is a small CNN (53 kB), so that one extractor costs der about as much as 68 images cost, much as a ResNet-32 costs
603 images of CIFAR. Steps, rate and the methods' own weights were looked at on seeds 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from probatum.arenas.stream import arena as stream
from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.library import library, subset
from probatum.measure.continual import memory_area
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.spec import Data, Spec

SETS = ("mnist", "fashion_mnist")
TRAINING = Training(steps=1000, batch_size=64, lr=2e-3)
FEW = 159_000
"""Bytes of 20 images a class, their table of levels and class numbers."""
EXTRACTORS = 212_000
"""Bytes of the four extractors, and the wider head, that der has beyond one network at the end."""
SIZES = (FEW + EXTRACTORS, 2 * FEW + EXTRACTORS, 4 * FEW + EXTRACTORS)


def _network(spec: Spec) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 7 * 7, 32),
        nn.ReLU(),
        nn.Linear(32, spec.outputs),
    )


def _run_one(method: str, data: Data, seed: int, memory: int) -> dict[str, float]:
    """The measures of one method at one memory size."""
    base = Recipe(training=TRAINING)
    rules = stream.contest(data.spec, data.train, stages=5, memory=memory)
    arm = Arm(method, base) if method == stream.BASELINE else make_arm(f"class-incremental(method='{method}')", base)
    builtin = method if method == stream.BASELINE else ""
    return stream.trial(Work(arm, builtin, Terms(base=base, contest=rules), data, seed, _network)).measures


def _row(name: str, seed: int) -> dict[str, float | str]:
    data = subset(library(name), 10_000, 0).prepare(seed)
    row: dict[str, float | str] = {"data": name, "seed": float(seed)}
    much = SIZES[0]
    found = {
        "finetune": _run_one(stream.BASELINE, data, seed, 0),
        "lwf": _run_one("lwf", data, seed, 0),
        "replay": _run_one("replay", data, seed, FEW),
        "icarl": _run_one("icarl", data, seed, FEW),
        "der": _run_one("der", data, seed, much),
        "replay_aligned": _run_one("replay", data, seed, much),
        "icarl_aligned": _run_one("icarl", data, seed, much),
    }
    for method, measures in found.items():
        row[f"{method}_last"] = measures["last-accuracy"]
        row[f"{method}_average"] = measures["average-accuracy"]
    row["der_bytes"] = found["der"]["stream-memory"]
    return row


def _sweep(seed: int) -> dict[str, float]:
    """Areas under average (AUC-A) and last accuracy (AUC-L) over memory sizes, on MNIST."""
    data = subset(library("mnist"), 10_000, 0).prepare(seed)
    areas = {}
    for method in ("replay", "icarl", "der"):
        curve = [_run_one(method, data, seed, size) for size in SIZES]
        areas[f"auc_a_{method}"] = memory_area(SIZES, [point["average-accuracy"] for point in curve])
        areas[f"auc_l_{method}"] = memory_area(SIZES, [point["last-accuracy"] for point in curve])
    return areas


def _run(seeds: Sequence[int]) -> Evidence:
    rows = [_row(name, seed) for name in SETS for seed in seeds]
    measured: dict[str, float] = {}
    ordered, shrinks = [], []
    for name in SETS:
        mine = [row for row in rows if row["data"] == name]
        last = {
            key.removesuffix("_last"): mean([float(row[key]) for row in mine])
            for key in mine[0]
            if key.endswith("_last")
        }
        measured |= {f"{name}_{method}": value for method, value in last.items()}
        rehearsed = (last["replay"], last["icarl"])
        ordered.append(last["finetune"] < last["lwf"] < min(rehearsed) and max(rehearsed) < last["der"])
        gap = last["der"] - mean(list(rehearsed))
        aligned = last["der"] - mean([last["replay_aligned"], last["icarl_aligned"]])
        measured[f"{name}_der_advantage"], measured[f"{name}_der_advantage_aligned"] = gap, aligned
        shrinks.append(aligned < gap)
    measured |= _sweep(seeds[0])
    note = (
        "der and the methods without growth have 20 exemplars a class in the ordering; aligned, the latter get the bytes of der's "
        "four extractors as exemplars too. Areas are of the first seed on MNIST."
    )
    return Evidence(all(ordered) and all(shrinks), measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="who-forgets-least",
        says="Fine-tuning forgets most, then LwF, then replay and iCaRL, and DER least; at equal bytes DER's advantage shrinks.",
        threshold="mean last accuracies of 3 seeds in that order on both sets, and DER's lead over the mean of replay and iCaRL "
        "smaller when they get its extractors' bytes as exemplars",
        data="10,000 images each of MNIST and Fashion-MNIST, five stages of two classes",
        run=_run,
        minutes=5.0,
        needs_library=True,
        seeds=(101, 102, 103),
    ),
)
