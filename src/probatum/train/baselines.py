"""The built-in baseline of each modality: a network and the training settings it is used with.

The settings were chosen on validation rows of development seeds (see ARCHITECTURE.md, "How the baselines were tuned").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probatum.kinds.language.network import Decoder
from probatum.numerics.tables.embedded_table import TableEncoder
from probatum.recipe import Training
from probatum.spec import Spec

DEFAULTS = {
    "table": Training(epochs=40, least_steps=300, batch_size=64, lr=8e-3, weight_decay=7e-3),
    "image": Training(epochs=20, least_steps=400, batch_size=64, lr=4e-3, weight_decay=1e-2),
    "text": Training(epochs=15, least_steps=300, batch_size=64, lr=8e-3, weight_decay=7e-3),
    "series": Training(epochs=40, least_steps=300, batch_size=32, lr=8e-3, weight_decay=7e-3),
    "next-token": Training(steps=1600, batch_size=16, lr=8e-3, weight_decay=1e-1, clip=1.0, select="log-loss"),
}


def training_for(modality: str, task: str) -> Training:
    """The settings that the baseline of these data is trained with."""
    return DEFAULTS["next-token" if task == "next-token" else modality]


def build(spec: Spec) -> nn.Module:
    """The baseline network for these data."""
    if spec.task == "next-token":
        return Decoder(spec)
    makers = {"table": TableMLP, "image": SmallResNet, "text": AttentionText, "series": SeriesNet}
    return makers[spec.modality](spec)


class TableMLP(nn.Module):
    """Quantile-scaled numbers and embedded categories through three hidden layers of 192, dropout 0.1."""

    def __init__(self, spec: Spec, width: int = 192, depth: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = TableEncoder(spec.numeric, spec.cardinalities)
        layers: list[nn.Module] = []
        size = self.encoder.width
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
            size = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(size, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.encoder(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the (projected) input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.skip = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(inner)) + self.skip(x))


class SmallResNet(nn.Module):
    """Three residual stages of widths 16, 32, 64 behind a 3x3 stem, then global average pooling."""

    def __init__(self, spec: Spec, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(spec.shape[0], widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks, inputs = [], widths[0]
        for i, width in enumerate(widths):
            blocks.append(Residual(inputs, width, stride=1 if i == 0 else 2))
            inputs = width
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


class AttentionText(nn.Module):
    """Word embeddings pooled by additive attention (softmax over tokens) beside their mean, then one hidden layer."""

    def __init__(self, spec: Spec, width: int = 96, hidden: int = 96, dropout: float = 0.3) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocabulary, width, padding_idx=0)
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.attend = nn.Softmax(dim=1)
        self.body = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        seen = x != 0  # (n, length)
        seen = torch.where(seen.any(dim=1, keepdim=True), seen, torch.ones_like(seen))
        words = self.embed(x)  # (n, length, width)
        scores = self.score(words).squeeze(2).masked_fill(~seen, float("-inf"))
        pooled = (self.attend(scores).unsqueeze(2) * words).sum(dim=1)
        mean = (words * seen.unsqueeze(2)).sum(dim=1) / seen.sum(dim=1, keepdim=True)
        return self.head(self.body(torch.cat([pooled, mean], dim=1)))


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
