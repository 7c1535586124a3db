"""The baseline of restoration: an ordinary denoiser trained on the squared error, used as a plug-and-play prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.images.restoration import Identity, Operator, admm
from probatum.spec import Budget

PARAMETERS = 20_000
"""Weights of the baseline, about; rows longer than 256 get more."""
LR = 4e-3
ITERATIONS = 50


def parameters_for(shape: tuple[int, ...]) -> int:
    """How many weights a prior of such rows should have."""
    return PARAMETERS if len(shape) > 1 else max(PARAMETERS, 80 * shape[0])


class Denoiser(nn.Module):
    """y less the noise that four layers see in it: 3x3 convolutions (series: 3 taps; tables: dense layers) and ReLU.

    Args:
        shape: of one row.
        parameters: how many weights it has, about.
    """

    def __init__(self, shape: tuple[int, ...], parameters: int) -> None:
        super().__init__()
        axes, channels = len(shape) - 1, shape[0]
        taps = 3**axes
        linear = 2 * channels * taps + 3
        width = max(4, round((math.sqrt(linear**2 + 8 * taps * parameters) - linear) / (4 * taps)))

        def layer(inputs: int, outputs: int) -> nn.Module:
            if axes == 0:
                return nn.Linear(inputs, outputs)
            return (nn.Conv1d if axes == 1 else nn.Conv2d)(inputs, outputs, 3, padding=1)

        self.body = nn.Sequential(
            *(layer(channels, width), nn.ReLU(), layer(width, width), nn.ReLU()),
            *(layer(width, width), nn.ReLU(), layer(width, channels)),
        )

    def forward(self, y: Tensor) -> Tensor:
        return y - self.body(y)


class PlugAndPlay:
    """A trained denoiser as prior: one pass where A is the identity, else ADMM with rho 1."""

    def __init__(self, network: Denoiser) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def denoise(self, y: Tensor) -> Tensor:
        """Rows (n, ...) without the noise."""
        return self.network(y)

    def restore(self, b: Tensor, operator: Operator) -> Tensor:
        """Rows from b = A x + noise."""
        if isinstance(operator, Identity):
            return self.denoise(b)
        return admm(operator, b, self.denoise, iterations=ITERATIONS).x


def fit(x: Tensor, noise: float, budget: Budget, generator: torch.Generator, network: Denoiser) -> PlugAndPlay:
    """Train the network on clean rows with fresh noise at every step: Adam, cosine decay, mean squared error."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    for step in range(budget.steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / budget.steps))
        rows = x[torch.randint(len(x), (min(budget.batch_size, len(x)),), generator=generator)]
        loss = F.mse_loss(network(rows + noise * torch.randn(rows.shape, generator=generator)), rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return PlugAndPlay(network)
