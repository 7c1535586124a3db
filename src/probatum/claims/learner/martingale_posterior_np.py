"""Claim of martingale posterior neural processes (arXiv:2304.09431): imagined points make the likelihood of functions higher.

Draws of a Gaussian process on [-2, 2] with noise 0.05 and one length a batch between 0.2 and 1.2, 50 points each, 3 to 47 of them
context. Three networks of the same layers (width 64, mean of the context) and rate (1e-3, not searched) see the same 3000 batches of
four tasks, a size set by time. Likelihoods are those of whole target sets, 50 functions each, over their points; the context's points
are not among them. A latent process is trained on its evidence bound with as many draws as the martingale one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.techniques.learner.martingale_posterior_np.martingale_posterior_np import fit_tasks
from probatum.techniques.learner.martingale_posterior_np.neural_process import (
    Context,
    LatentProcess,
    MartingaleProcess,
    NeuralProcess,
    joint_log_likelihood,
    spread,
)
from probatum.techniques.learner.pfn.prior import gp_prior
from probatum.train.rng import generator_for, seeded

POINTS, LEAST, MOST = 50, 3, 47
WIDTH, STEPS, TASKS, DRAWS, RATE = 64, 3000, 4, 5, 1e-3
SIZES = (3, 6, 12, 24, 47)
KINDS = {"cnp": NeuralProcess, "np": LatentProcess, "mpnp": MartingaleProcess}


def functions(tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (tasks, 50, 1) in [-2, 2] and values (tasks, 50, 1)."""
    length = 0.05 + 0.25 * float(torch.rand(1, generator=generator))
    x, y = gp_prior(tasks, POINTS, generator, length=length, noise=0.05)
    return 4 * x - 2, y[:, :, None]


def masks(tasks: int, generator: torch.Generator) -> Tensor:
    """The first n points of every task, n from 3 to 47."""
    n = torch.randint(LEAST, MOST + 1, (tasks, 1), generator=generator)
    return torch.arange(POINTS) < n


def one(seed: int) -> dict[str, float]:
    """Held-out log-likelihood a point of every network, and the martingale one's spread by context size."""
    draw = generator_for(seed, "test")
    tests = [(*functions(16, draw), masks(16, draw)) for _ in range(10)]
    row = {"seed": float(seed)}
    for name, kind in KINDS.items():
        with seeded(seed, "initial weights"):
            model = kind(1, 1, width=WIDTH)
        order = generator_for(seed, "tasks")

        def task(order: torch.Generator = order) -> tuple[Context, Tensor, Tensor]:
            (x, y), mask = functions(TASKS, order), masks(TASKS, order)
            return Context(x, y, mask), x, y

        fit_tasks(model, task, STEPS, DRAWS, RATE, generator_for(seed, "noise"))
        with torch.no_grad():
            found = [
                joint_log_likelihood(model.functions(Context(x, y, mask), x, 50, draw), y, ~mask)
                for x, y, mask in tests
            ]
            row[name] = float(torch.cat(found).mean())
            if name == "mpnp":
                for n in SIZES:
                    few = torch.arange(POINTS) < n
                    values = [
                        spread(model.functions(Context(x, y, few.expand(len(x), -1)), x, 50, draw)).mean()
                        for x, y, _ in tests[:5]
                    ]
                    row[f"spread_{n}"] = float(torch.stack(values).mean())
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    rows = [one(seed) for seed in seeds]
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["share_above_cnp"] = mean([float(row["mpnp"] > row["cnp"]) for row in rows])
    measured["share_at_least_np"] = mean([float(row["mpnp"] >= row["np"]) for row in rows])
    shrinks = [all(row[f"spread_{a}"] > row[f"spread_{b}"] for a, b in pairwise(SIZES)) for row in rows]
    measured["share_shrinking"] = mean([float(shrink) for shrink in shrinks])
    holds = min(measured["share_above_cnp"], measured["share_at_least_np"]) >= 0.8 and all(shrinks)
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="imagined-points-raise-the-likelihood",
        says="Functions of imagined context points give held-out targets a higher likelihood than one function, or those of a "
        "Gaussian latent variable, and differ less as the context grows.",
        threshold=(
            "held-out log-likelihood a point above the conditional and at least that of the latent process on 4 of 5 seeds; the "
            "spread of the functions falls at every step of 3, 6, 12, 24 and 47 context points on every seed"
        ),
        data="Gaussian processes in one dimension",
        run=_run,
        minutes=4.0,
    ),
)
