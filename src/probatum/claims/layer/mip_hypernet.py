"""MIP against an ordinary hypernetwork: digits turned by an angle that the network is told, by SGD and by Adam."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
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
RATES = {  # each arm's best of 0.03, 0.1, 0.2, 0.4 (SGD) or 0.001, 0.003, 0.01 (Adam) by its last loss on seeds 1 and 2
    "sgd": {"ordinary": 0.1, "encoding": 0.2, "residual": 0.1, "mip": 0.1},
    "adam": {"ordinary": 3e-3, "encoding": 1e-3, "residual": 1e-2, "mip": 1e-3},
}
NOTE = (
    "Every arm has the best of its rates on seeds 1 and 2. There SGD showed the harm: the ordinary hypernetwork ended at 0.27 and 0.44 "
    "with 0.1 and diverged with 0.4 (both seeds) and 0.2 (one), MIP ended at 0.09 and 0.23 and stood 0.4. Adam, which takes the scale "
    "of gradients out, showed no gain: 0.07 and 0.18 against 0.11 and 0.17. Where MIP falls short on the recorded seeds it is the "
    "0.6 of the steps more than the last loss: one g, a small network and a baseline that starts at hyperfan-in scale leave less harm "
    "to undo than in the paper, and losses of single steps at a constant rate are noisy."
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


def learn(data: Data, seed: int, arm: str, optimizer: str, rate: float) -> dict[str, list[float]]:
    """Loss over the grid of g on training rows, every `LOOK` steps; at the end that by g and on test rows; first scales."""
    encoding, residual = ARMS[arm]
    net, order = small_net(seed), generator_for(seed, "order")
    maker = MipHypernet.of(
        net, 1, hidden=HIDDEN, encoding=encoding, residual=residual, generator=generator_for(seed, "hypernetwork")
    )
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    steps = kinds[optimizer](maker.parameters(), lr=rate)
    x, y = data.train.x, data.train.y
    seen = [rotated(x[:ROWS], float(g)) for g in GRID]
    scales = weight_scales(maker, GRID).tolist()
    curve: list[float] = []
    by_g: list[float] = []
    for step in range(1, STEPS + 1):
        i = torch.randint(len(y), (BATCH,), generator=order)
        g = torch.rand(1, generator=order)
        loss = F.cross_entropy(run(net, maker, rotated(x[i], float(g)), g), y[i])
        steps.zero_grad()
        loss.backward()
        steps.step()
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


def compare(data: Data, seed: int, optimizer: str) -> dict[str, float]:
    """All arms with one optimizer; steps to the ordinary hypernetwork's final loss, as a share of all steps."""
    found = {arm: learn(data, seed, arm, optimizer, RATES[optimizer][arm]) for arm in ARMS}
    goal = found["ordinary"]["curve"][-1]
    row = {}
    for arm, one in found.items():
        name = f"{optimizer}_{arm}"
        reached = [number for number, loss in enumerate(one["curve"], start=1) if loss <= goal]
        row[f"{name}_loss"] = one["curve"][-1]
        row[f"{name}_share_of_steps"] = reached[0] * LOOK / STEPS if reached else 2.0
        row[f"{name}_test_loss"] = mean(one["test"])
        row[f"{name}_scale_spread"] = relative_spread(one["scales"])
        row[f"{name}_loss_spread"] = relative_spread(one["by_g"])
    row[f"{optimizer}_met"] = float(
        row[f"{optimizer}_mip_share_of_steps"] <= 0.6
        and row[f"{optimizer}_mip_loss"] <= goal
        and row[f"{optimizer}_mip_scale_spread"] < row[f"{optimizer}_ordinary_scale_spread"]
    )
    return row


def _run(seeds: Sequence[int]) -> Evidence:
    dataset, rows = open_dataset("digits"), []
    for seed in seeds:
        data = dataset.prepare(seed)
        rows.append({"seed": float(seed), **compare(data, seed, "sgd"), **compare(data, seed, "adam")})
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    return Evidence(min(measured["sgd_met"], measured["adam_met"]) >= 0.8, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="conditioned-on-rotation",
        says="Constant-norm encoding and a residual output let a hypernetwork learn faster and to no higher loss.",
        threshold="MIP reaches the ordinary hypernetwork's final loss in at most 0.6 of the steps, ends no higher, and its first "
        "weights vary less in scale over g, on 4 of 5 seeds, with SGD and with Adam",
        data="digits turned by an angle in 0 .. 90 degrees, told to the hypernetwork",
        run=_run,
        minutes=1.0,
    ),
)
