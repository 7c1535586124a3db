"""MIP against an ordinary hypernetwork: digits turned by an angle that the network is told, by SGD and by Adam."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval, mean
from probatum.data.open import open_dataset
from probatum.spec import Data
from probatum.techniques.layer.mip_hypernet import MipHypernet, run, weight_scales
from probatum.train.rng import generator_for, seeded

STEPS, BATCH, LOOK, MOST_DEGREES = 600, 64, 20, 90.0
HIDDEN, ROWS = (16, 64), 400
GRID = torch.linspace(0, 1, 9)[:, None]
ARMS: dict[str, tuple[str, bool]] = {
    "ordinary": ("raw", False),
    "encoding": ("cos-sin", False),
    "residual": ("raw", True),
    "mip": ("cos-sin", True),
}
RATES = {  # each arm's best of GRIDS by its last loss on seeds 1 and 2
    "sgd": {"ordinary": 0.4, "encoding": 0.2, "residual": 0.2, "mip": 0.4},
    "adam": {"ordinary": 1e-2, "encoding": 1e-2, "residual": 1e-2, "mip": 1e-2},
}
GRIDS = {"sgd": (0.03, 0.1, 0.2, 0.4, 0.8), "adam": (1e-3, 3e-3, 1e-2, 3e-2)}
LAST = 5
"""Looks whose losses are averaged at the end."""
SHORT = 360
NOTE = (
    "At equal steps the loss is about 0.5 (SGD) and 0.6 (Adam) of the ordinary hypernetwork's, and each half alone brings it most of "
    "the way. That 0.6 of the steps are enough is true with SGD on average, not on all of the interval, and not with Adam."
)


def rotated(x: Tensor, g: float) -> Tensor:
    """Images (n, 1, h, w) turned by g * 90 degrees about their centre, bilinear."""
    angle = torch.tensor(g * MOST_DEGREES).deg2rad()
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def small_net(seed: int) -> nn.Module:
    """A multilayer perceptron for digits."""
    with seeded(seed, "net"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def learn(data: Data, seed: int, arm: str, optimizer: str, rate: float, most: int = STEPS) -> dict[str, list[float]]:
    """Loss over the grid of g on training rows, every `LOOK` steps; at the end that by g and on test rows; first scales.

    The rate falls by a half cosine over `most` steps.
    """
    encoding, residual = ARMS[arm]
    net, order = small_net(seed), generator_for(seed, "order")
    maker = MipHypernet.of(
        net, 1, hidden=HIDDEN, encoding=encoding, residual=residual, generator=generator_for(seed, "hypernetwork")
    )
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    steps = kinds[optimizer](maker.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(steps, most)
    x, y = data.train.x, data.train.y
    seen = [rotated(x[:ROWS], float(g)) for g in GRID]
    scales = weight_scales(maker, GRID).tolist()
    curve: list[float] = []
    by_g: list[float] = []
    for step in range(1, most + 1):
        i = torch.randint(len(y), (BATCH,), generator=order)
        g = torch.rand(1, generator=order)
        loss = F.cross_entropy(run(net, maker, rotated(x[i], float(g)), g), y[i])
        steps.zero_grad()
        loss.backward()
        steps.step()
        falling.step()
        if step % LOOK == 0:
            by_g = losses(net, maker, seen, y[:ROWS])
            curve.append(mean(by_g))
    test = losses(net, maker, [rotated(data.test.x, float(g)) for g in GRID], data.test.y)
    return {"curve": curve, "scales": scales, "by_g": by_g, "test": test}


@torch.no_grad()
def losses(net: nn.Module, maker: MipHypernet, turned: list[Tensor], y: Tensor) -> list[float]:
    """Cross-entropy at each g of the grid."""
    return [float(F.cross_entropy(run(net, maker, x, g), y)) for x, g in zip(turned, GRID, strict=True)]


def relative_spread(values: list[float]) -> float:
    """Standard deviation over mean."""
    found = torch.tensor(values)
    return float(found.std() / found.mean())


def last(curve: list[float]) -> float:
    """Mean of the last `LAST` losses."""
    return mean(curve[-LAST:])


def compare(data: Data, seed: int, optimizer: str) -> dict[str, float]:
    """All arms with one optimizer, and two of them once more in fewer steps."""
    rates, row = RATES[optimizer], {}
    found = {arm: learn(data, seed, arm, optimizer, rates[arm]) for arm in ARMS}
    for arm in ("ordinary", "mip"):
        found[f"{arm}_short"] = learn(data, seed, arm, optimizer, rates[arm], SHORT)
    for arm, one in found.items():
        name = f"{optimizer}_{arm}"
        row[f"{name}_loss"] = last(one["curve"])
        row[f"{name}_test_loss"] = mean(one["test"])
        row[f"{name}_scale_spread"] = relative_spread(one["scales"])
        row[f"{name}_loss_spread"] = relative_spread(one["by_g"])
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    dataset, rows = open_dataset("digits"), []
    for seed in seeds:
        data = dataset.prepare(seed)
        rows.append({"seed": float(seed), **compare(data, seed, "sgd"), **compare(data, seed, "adam")})
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    holds, controls = True, {}
    for name in ("sgd", "adam"):
        gaps = {
            arm: interval([row[f"{name}_{arm}_loss"] - row[f"{name}_ordinary_loss"] for row in rows])
            for arm in ("mip", "mip_short", "ordinary_short")
        }
        for arm, gap in gaps.items():
            measured |= gap.told(f"{name}_{arm}_less_ordinary")
        holds &= max(gaps["mip"].high, gaps["mip_short"].high) <= 0
        spreads = [measured[f"{name}_{arm}_scale_spread"] for arm in ("mip", "ordinary")]
        controls[f"{name}_ordinary_itself_needs_the_steps"] = gaps["ordinary_short"].mean > 0
        controls[f"{name}_first_weights_vary_less_in_scale"] = spreads[0] < spreads[1]
    return Evidence(holds, measured, tuple(rows), NOTE, controls)


CLAIMS = (
    Claim(
        id="conditioned-on-rotation",
        says="Constant-norm encoding and a residual output let a hypernetwork learn faster and to no higher loss.",
        threshold="last loss less the ordinary hypernetwork's, with all of its steps and in 0.6 of them, with SGD and with Adam: the "
        "intervals over paired seeds at level 0.9 end at 0 or below",
        data="digits turned by an angle in 0 .. 90 degrees, told to the hypernetwork",
        run=_run,
        minutes=3.0,
        seeds=tuple(range(201, 211)),
    ),
)
