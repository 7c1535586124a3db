"""Claim of learned proximal networks: proximal matching finds the proximal operator of the prior, squared error its mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.techniques.generate.learned_proximal_network import LearnedProximalNetwork, train

STEPS, BATCH, WIDTH, LAYERS, LR = 4000, 256, 50, 2, 1e-2
C, STAGES = 0.3, 3

NOTE = (
    "Width, rate and stages (c 1.2, 0.6, 0.3) were chosen on seeds 1 and 2; the network trained by the squared error has the same "
    "weights at the start, rows, noise, rate and steps. "
    "It comes to the posterior mean instead, whose distance to the prox is measured beside it."
)


def laplace(n: int, generator: torch.Generator) -> Tensor:
    """Rows (n, 1) of the Laplace law of scale 1."""
    u = torch.rand(n, 1, generator=generator, dtype=torch.float64) - 0.5
    return (-u.sign() * torch.log1p(-2 * u.abs().clamp_max(0.5 - 1e-12))).float()


def soft_threshold(y: Tensor) -> Tensor:
    """The proximal operator of |x|."""
    return y.sign() * (y.abs() - 1).clamp_min(0)


def posterior_mean(y: Tensor) -> Tensor:
    """E[x | y] of the Laplace law of scale 1 under noise of deviation 1, y (n, 1), by quadrature."""
    x = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    weights = (-x.abs() - 0.5 * (y.double() - x).square()).softmax(dim=1)
    return (weights * x).sum(dim=1, keepdim=True).float()


def trained(loss: str, seed: int) -> LearnedProximalNetwork:
    """The network of one seed, trained by this loss."""
    generator = torch.Generator().manual_seed(seed)
    net = LearnedProximalNetwork((1,), 1.0, width=WIDTH, layers=LAYERS, generator=generator)
    how = {"loss": loss, "c": C, "stages": STAGES, "lr": LR}
    train(net, lambda: laplace(BATCH, generator), STEPS, generator=generator, **how)
    return net


def _run(seeds: Sequence[int]) -> Evidence:
    y = torch.linspace(-2, 2, 401)[:, None]
    target, middle = soft_threshold(y), posterior_mean(y)
    rows = []
    for seed in seeds:
        found = {loss: trained(loss, seed).denoise(y) for loss in ("matching", "l2")}
        row = {f"{loss}_error": float((f - target).abs().mean()) for loss, f in found.items()}
        rows.append({"seed": float(seed), **row, "l2_to_mean": float((found["l2"] - middle).abs().mean())})
    measured = {name: mean([row[name] for row in rows]) for name in rows[0] if name != "seed"}
    measured["mean_to_prox"] = float((middle - target).abs().mean())
    measured["ratio"] = measured["matching_error"] / measured["l2_error"]
    return Evidence(measured["ratio"] <= 0.6, measured, tuple(rows), NOTE)


CLAIMS = (
    Claim(
        id="matching-finds-the-prox",
        says="Trained by proximal matching the network becomes the proximal operator of -log p; by squared error it does not.",
        threshold="mean error to soft-thresholding on |y| <= 2 at most 0.6 times that of the same network trained by squared error",
        data="generated: Laplace numbers of scale 1 under noise of deviation 1",
        run=_run,
        minutes=1.0,
    ),
)
