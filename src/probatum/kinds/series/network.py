"""The baseline's network for series."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probatum.spec import Spec


class SeriesNet(nn.Module):
    """Three convolutions (widths 32, 64, 64; kernels 7, 5, 3) with batch norm and pooling, then mean and max over time."""

    def __init__(
        self, spec: Spec, widths: tuple[int, ...] = (32, 64, 64), kernels: tuple[int, ...] = (7, 5, 3)
    ) -> None:
        super().__init__()
        self.masked = spec.masked
        layers: list[nn.Module] = []
        inputs, length = spec.shape
        for width, kernel in zip(widths, kernels, strict=True):
            layers += [nn.Conv1d(inputs, width, kernel, padding=kernel // 2), nn.BatchNorm1d(width), nn.ReLU()]
            if length >= 16:
                layers.append(nn.MaxPool1d(2))
                length //= 2
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(2 * inputs, spec.outputs))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)  # (n, width, time)
        return self.head(torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1))
