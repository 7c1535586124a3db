"""Claims of the textbook's tools (arXiv:2502.05244): looking where a process hopes pays, and ensembles know where they know.

The ensemble's width, rate and steps were chosen on seeds 1 and 2 by validation log-density out of width 32, 64, rate 0.003,
0.01 and 1000, 2000 steps; beta of the confidence bound (1, out of 1, 4 and 9) on seeds 1 to 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.spec import Budget, Data, Optimisation, Part, Spec
from probatum.techniques.learner.probabilistic_toolkit.bayes_opt import maximise
from probatum.techniques.learner.probabilistic_toolkit.probabilistic_toolkit import fit
from probatum.train.loop import rate_factor
from probatum.train.rng import generator_for, seeded

TEN = tuple(range(101, 111))
EVALUATIONS, SIDE = 25, 41
ROWS, WIDTH, RATE, STEPS = 600, 32, 1e-2, 2000


def branin(unit: Tensor) -> Tensor:
    """Minus the Branin function of points (n, 2) in the unit square; its largest value is -0.397887."""
    a, b = 15 * unit[:, 0] - 5, 15 * unit[:, 1]
    bowl = b - 5.1 / (4 * math.pi**2) * a.square() + 5 / math.pi * a - 6
    return -(bowl.square() + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10)


def regrets(seed: int) -> dict[str, float]:
    """Simple regret on a grid after 25 evaluations; both strategies begin with the same five points."""
    axis = torch.linspace(0, 1, SIDE, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    best = float(branin(grid).max())
    return {
        strategy: best - float(maximise(branin, grid, EVALUATIONS, generator_for(seed, "branin"), strategy)[1].max())
        for strategy in ("ucb", "random")
    }


def _optimisation(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    for seed in seeds:
        rows.append({"seed": float(seed), **regrets(seed)})
    wins = mean([float(float(row["ucb"]) < float(row["random"])) for row in rows])
    measured = {name: mean([float(row[name]) for row in rows]) for name in ("ucb", "random")} | {"share_of_wins": wins}
    return Evidence(wins >= 0.8, measured, tuple(rows))


def noise_of(x: Tensor) -> Tensor:
    """Standard deviation of the observations."""
    return 0.15 + 0.1 * x.abs()


def toy(seed: int, rows: int = ROWS) -> Data:
    """y = sin 3x with noise that grows with |x|, rows drawn from [-1, 1]; targets are about standardised as they are."""
    draw = generator_for(seed, "rows")

    def part(n: int) -> Part:
        x = 2 * torch.rand(n, 1, generator=draw) - 1
        return Part(x, (3 * x).sin() + noise_of(x) * torch.randn(n, 1, generator=draw), torch.arange(n))

    return Data(Spec("table", "reals", (1,), 1, numeric=1), part(rows), part(rows // 3), part(rows))


def ensemble(seed: int, width: int = WIDTH, rate: float = RATE, steps: int = STEPS) -> tuple[dict[str, float], float]:
    """What five networks with a variance each say within and outside of [-1, 1], and their validation log-density."""
    data, count = toy(seed), 0

    def network() -> nn.Module:
        nonlocal count
        count += 1
        with seeded(seed, "network", str(count)):
            return nn.Sequential(
                nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
            )

    how = Optimisation(rate, 1e-4, lambda step, steps: rate_factor(step, steps, "cosine"))
    budget = Budget(steps, 64, ROWS // 64)
    found = fit(data, budget, generator_for(seed, "fit"), network, how, members_budget="full")
    inside, outside = (torch.linspace(*ends, 201)[:, None] for ends in ((-1.0, 1.0), (1.5, 3.0)))
    outside = torch.cat([outside, -outside])
    within, beyond = (found.posterior.predict_reals(x) for x in (inside, outside))
    told = {
        "epistemic_inside": float(within.epistemic.mean()),
        "epistemic_outside": float(beyond.epistemic.mean()),
        "aleatoric_over_noise": float(within.aleatoric.mean() / noise_of(inside).square().mean()),
        "worst_aleatoric_over_noise": float((within.aleatoric / noise_of(inside).square()).log().abs().max().exp()),
    }
    told["epistemic_ratio"] = told["epistemic_outside"] / told["epistemic_inside"]
    density = found.posterior.predict_reals(data.valid.x).log_density(data.valid.y)
    return told, float(density.mean())


def _ensemble(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = [{"seed": float(seed), **ensemble(seed)[0]} for seed in seeds]
    names = [name for name in rows[0] if name != "seed"]
    measured = {name: mean([float(row[name]) for row in rows]) for name in names}
    holds = all(float(row["epistemic_ratio"]) >= 3 for row in rows) and all(
        abs(float(row["aleatoric_over_noise"]) - 1) <= 0.2 for row in rows
    )
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="gp-ucb-beats-random",
        says="Bayesian optimisation by upper confidence bounds finds better points than random search.",
        threshold="lower simple regret than random search on Branin after 25 evaluations, on 8 of 10 seeds",
        data="the Branin function on a grid of 41 x 41",
        run=_optimisation,
        minutes=0.5,
        seeds=TEN,
    ),
    Claim(
        id="ensemble-knows-where",
        says="An ensemble's epistemic variance is large where there were no data, and its aleatoric variance is the noise.",
        threshold=(
            "mean epistemic variance on 1.5 <= |x| <= 3 at least 3 times that on [-1, 1], and mean aleatoric variance on "
            "[-1, 1] within 20 % of the noise's, on every seed"
        ),
        data="y = sin 3x with noise of 0.15 + 0.1 |x|, 600 rows on [-1, 1]",
        run=_ensemble,
        minutes=0.3,
    ),
)
