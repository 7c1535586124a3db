"""Claims of dependency-preserving hypernetworks (arXiv:2209.07712): an LSTM that makes the weights beats a chunked MLP.

Tasks are told at prediction. Both hypernetworks make the same MLP in the same 137 chunks, and the chunked MLP has no fewer
parameters. Each has the better of the rates 3e-3 and 1e-2 by the mean of the last accuracies of both benchmarks on seeds 1 and
2; fine-tuning has the LSTM's, so that what it forgets is not for a slower rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.frozen_stream import Learner
from probatum.claims.tools import interval, mean
from probatum.data.library import library, subset
from probatum.measure.continual import continual
from probatum.spec import Budget, Optimisation, Part, Stage
from probatum.techniques.stream.class_incremental.class_incremental import ClassIncremental
from probatum.techniques.stream.dependency_hypernet.dependency_hypernet import DependencyHypernet
from probatum.train.rng import generator_for, seeded

BENCHMARKS = ("split", "permuted")
TASKS, CLASSES, PIXELS, WIDTH = 5, 10, 14 * 14, 64
BUDGET = Budget(250, 64, 25)
HIDDEN, CHUNK = 32, 128
BETA = {"lstm": 0.1, "mlp": 0.1}
MOST_FORGOTTEN, LEAST_FORGOTTEN = 0.01, 0.20
RATES = {"lstm": 1e-2, "mlp": 3e-3, "finetune": 1e-2}

NOTE = (
    "A small MLP of 17,418 weights in 137 chunks of 128, images of 14 x 14 pixels, 250 steps a task. At the LSTM's rate the chunked "
    "MLP did not train on one of two development seeds, so that it has one of its own."
)


def network() -> nn.Module:
    """The network whose weights are made: 17,418 of them."""
    layers = (nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    return nn.Sequential(*layers)


def tasks(name: str, seed: int) -> list[tuple[Stage, Tensor, Tensor]]:
    """Five tasks with their test rows: two digits each, or all digits under a permutation of the pixels each."""
    data = subset(library("mnist"), 10_000, seed).prepare(seed)

    def rows(part: Part) -> Tensor:
        return F.avg_pool2d(part.x, 2).flatten(1)

    train, test, draw = rows(data.train), rows(data.test), generator_for(seed, "tasks")
    found = []
    groups = torch.randperm(CLASSES, generator=draw).split(CLASSES // TASKS)
    for number in range(TASKS):
        if name == "split":
            classes = tuple(sorted(groups[number].tolist()))
            mine, asked = (torch.isin(part.y, groups[number]) for part in (data.train, data.test))
            stage = Stage(number, classes, train[mine], data.train.y[mine])
            found.append((stage, test[asked], data.test.y[asked]))
        else:
            order = torch.randperm(PIXELS, generator=draw) if number else torch.arange(PIXELS)
            stage = Stage(number, tuple(range(CLASSES)), train[:, order], data.train.y)
            found.append((stage, test[:, order], data.test.y))
    return found


def hypernet(cell: str, seed: int) -> DependencyHypernet:
    """A hypernetwork of either kind."""
    given = (generator_for(seed, "hypernet"), generator_for(seed, "order"), None, Optimisation(RATES[cell], 0.0))
    return DependencyHypernet(CLASSES, network, *given, cell=cell, hidden=HIDDEN, chunk=CHUNK, beta=BETA[cell])


def fine_tuned(seed: int) -> ClassIncremental:
    """The network itself, trained on."""
    given = (
        generator_for(seed, "own"),
        generator_for(seed, "order"),
        0,
        BUDGET.batch_size,
        Optimisation(RATES["finetune"], 0.0),
    )
    with seeded(seed, "network"):
        first = network()
    return ClassIncremental(CLASSES, lambda: first, *given, method="finetune")


def measured_on(learner: Learner, shown: Sequence[tuple[Stage, Tensor, Tensor]]) -> dict[str, float]:
    """Last accuracy and forgetting, tasks told."""
    matrix: list[list[float]] = []
    for stage, _, _ in shown:
        learner.observe(stage, BUDGET)
        said = [(x, y, learner.predict(x, number)) for number, (_, x, y) in enumerate(shown[: stage.number + 1])]
        matrix.append([float((logits.argmax(dim=1) == y).float().mean()) for _, y, logits in said])
    return continual(matrix, [len(y) for _, _, y in shown])


def arms(seed: int) -> dict[str, Callable[[], Learner]]:
    """What is compared."""
    return {
        "lstm": lambda: hypernet("lstm", seed),
        "mlp": lambda: hypernet("mlp", seed),
        "finetune": lambda: fine_tuned(seed),
    }


def row_of(seed: int, names: Sequence[str] = ("lstm", "mlp", "finetune")) -> dict[str, float]:
    """Both benchmarks of one seed."""
    row = {"seed": float(seed)}
    for benchmark in BENCHMARKS:
        shown = tasks(benchmark, seed)
        for name in names:
            found = measured_on(arms(seed)[name](), shown)
            row[f"{benchmark}_{name}"] = found["last-accuracy"]
            row[f"{benchmark}_{name}_forgetting"] = found["forgetting"]
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    rows = [row_of(seed) for seed in seeds]
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    held, controls = [], {}
    for benchmark in BENCHMARKS:
        gain = interval([row[f"{benchmark}_lstm"] - row[f"{benchmark}_mlp"] for row in rows])
        measured |= gain.told(f"{benchmark}_gain")
        held += [gain.low > 0, measured[f"{benchmark}_lstm_forgetting"] <= MOST_FORGOTTEN]
        lost = measured[f"{benchmark}_finetune_forgetting"]
        controls[f"fine-tuning at the LSTM's rate forgets 20 points on {benchmark}"] = lost >= LEAST_FORGOTTEN
        controls[f"the chunked MLP keeps old tasks on {benchmark}"] = (
            measured[f"{benchmark}_mlp_forgetting"] <= MOST_FORGOTTEN
        )
    measured |= {f"{cell}_parameters": _parameters(hypernet(cell, seeds[0])) for cell in ("lstm", "mlp")}
    return Evidence(all(held), measured, tuple(rows), NOTE, controls)


def _parameters(learner: DependencyHypernet) -> float:
    return float(sum(p.numel() for p in learner.emitter.chunks.parameters()))


CLAIMS = (
    Claim(
        id="dependency-helps",
        says="Weights made chunk after chunk by an LSTM serve tasks better than chunks made apart, and old tasks are kept.",
        threshold="on both benchmarks the 90 % paired interval of the last accuracy's gain over the chunked MLP begins above 0, and "
        "mean forgetting is at most 1 point",
        data="10,000 images of MNIST at 14 x 14: five tasks of two digits, and five permutations of the pixels",
        run=_run,
        minutes=4.0,
        needs_library=True,
        seeds=tuple(range(201, 211)),
    ),
)
