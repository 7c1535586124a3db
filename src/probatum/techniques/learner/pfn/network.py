"""A transformer over a set of labelled rows and queries, and its training on data sets drawn from a prior."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.tensors.draws import random_state_kept
from probatum.techniques.learner.pfn.bar_distribution import BarDistribution

Prior = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""generator -> x (B, N, d) and y (B, N): classes as int64, or real numbers."""


@dataclass(frozen=True)
class Limits:
    """What a network was trained for.

    Attributes:
        features: most columns; fewer are padded with zeros.
        rows: most rows of a context.
        outputs: classes, or bars of a real target.
        classes: whether targets are classes.
    """

    features: int
    rows: int
    outputs: int
    classes: bool


class _Layer(nn.Module):
    """Attention of context to context, and of each query to context and itself; then a feed-forward network."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, context: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        known, asked = self.norm1(context), self.norm1(query)
        q1, k1, v1 = self._split(known)
        q2, k2, v2 = self._split(asked)
        if context.shape[1]:
            context = context + self.out(_joined(F.scaled_dot_product_attention(q1, k1, v1)))
        scale = 1 / math.sqrt(q2.shape[-1])
        own = (q2 * k2).sum(dim=-1, keepdim=True) * scale
        weights = torch.cat([q2 @ k1.transpose(-1, -2) * scale, own], dim=-1).softmax(dim=-1)
        query = query + self.out(_joined(weights[..., :-1] @ v1 + weights[..., -1:] * v2))
        return context + self.feed(self.norm2(context)), query + self.feed(self.norm2(query))

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


def _joined(h: Tensor) -> Tensor:
    return h.transpose(1, 2).flatten(2)


class PriorFitted(nn.Module):
    """Context rows with targets, and query rows -> logits of each query's target, in one pass.

    Rows of the context have no order, and queries do not see each other.

    Args:
        limits: what it is for.
        width, layers, heads, hidden: of the transformer.
        borders: of the bars of a real target, (outputs + 1,); None for classes.

    Example:
        >>> net = PriorFitted(Limits(3, 10, 2, True), width=8, layers=1, heads=2, hidden=8)
        >>> tuple(net(torch.randn(1, 5, 3), torch.zeros(1, 5).long(), torch.randn(1, 4, 3)).shape)
        (1, 4, 2)
    """

    def __init__(
        self,
        limits: Limits,
        width: int = 96,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 192,
        borders: Tensor | None = None,
    ) -> None:
        super().__init__()
        if limits.classes != (borders is None):
            raise ValueError("borders of bars belong to real targets, and only to them")
        self.limits = limits
        self.sizes = {"width": width, "layers": layers, "heads": heads, "hidden": hidden}
        self.of_x = nn.Linear(limits.features, width)
        self.of_y: nn.Module = nn.Embedding(limits.outputs, width) if limits.classes else nn.Linear(1, width)
        self.layers = nn.ModuleList(_Layer(width, heads, hidden) for _ in range(layers))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, limits.outputs)
        )
        self.borders: Tensor
        self.register_buffer("borders", torch.zeros(0) if borders is None else borders.float())

    @property
    def bars(self) -> BarDistribution:
        """The density that logits of a real target stand for."""
        return BarDistribution(self.borders)

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Logits (B, m, outputs) of queries (B, m, d) given context rows (B, n, d) with targets (B, n); n may be 0.

        Rows of another precision are taken in the network's own.
        """
        x, query = (rows.to(self.of_x.weight.dtype) for rows in (x, query))
        self.check(x, y)
        if not torch.isfinite(query).all():
            raise ValueError("queries hold numbers that are not finite; fill or drop them")
        context = self.of_x(self._padded(x)) + (self.of_y(y) if self.limits.classes else self.of_y(y[..., None].to(x)))
        asked = self.of_x(self._padded(query))
        for layer in self.layers:
            context, asked = layer(context, asked)
        return self.head(asked)

    def check(self, x: Tensor, y: Tensor) -> None:
        """ValueError, naming what it was trained for, where a context is beyond it."""
        if x.shape[2] > self.limits.features or x.shape[1] > self.limits.rows:
            raise ValueError(
                f"a context of {x.shape[1]} rows and {x.shape[2]} features; this network was trained for at most "
                f"{self.limits.rows} rows and {self.limits.features} features"
            )
        if not torch.isfinite(x).all():
            raise ValueError("the context holds numbers that are not finite; fill or drop them")
        if not self.limits.classes and y.numel():
            low, high = float(self.borders[0]), float(self.borders[-1])
            reach = 3 * (high - low)
            if float(y.min()) < low - reach or float(y.max()) > high + reach:
                raise ValueError(
                    f"targets run from {float(y.min()):.3g} to {float(y.max()):.3g}, far outside the bars that were trained "
                    f"({low:.3g} to {high:.3g}); standardise them"
                )
        if self.limits.classes and y.numel():
            if int(y.max()) >= self.limits.outputs:
                raise ValueError(
                    f"{int(y.max()) + 1} classes; this network was trained for at most {self.limits.outputs}"
                )
            if int(y.min()) < 0:
                raise ValueError(f"targets hold the label {int(y.min())}; classes are 0 .. {self.limits.outputs - 1}")

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """-log q(y) of every query: (B, m, outputs), (B, m) -> (B, m)."""
        if self.limits.classes:
            return F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
        return -self.bars.log_density(logits, y)

    def _padded(self, x: Tensor) -> Tensor:
        """Fewer features are scaled up by how many are missing, so that sums keep their size, and padded with zeros."""
        d, most = x.shape[2], self.limits.features
        return F.pad(x * (most / d) ** 0.5, (0, most - d)) if d < most else x


def context_size(rows: int, generator: torch.Generator) -> int:
    """n in 0 .. rows - 1 with weight 1 / (rows - n), so that each position is a query equally often."""
    weights = 1 / (rows - torch.arange(rows, dtype=torch.float64))
    return int(torch.multinomial(weights, 1, generator=generator))


def fit_prior(
    model: PriorFitted,
    prior: Prior,
    steps: int,
    generator: torch.Generator,
    lr: float = 1e-3,
    warm_up: float = 0.1,
    seconds: float = float("inf"),
    told: Callable[[int, float], None] | None = None,
) -> PriorFitted:
    """Train on data sets from the prior: Adam, linear warm-up, then a cosine; in place, left in evaluation mode.

    Args:
        model: its limits must hold what the prior draws.
        prior: draws one batch of data sets.
        steps: updates, one batch each.
        generator: draws of the prior and of context sizes.
        lr: highest rate.
        warm_up: share of the steps until it is reached.
        seconds: the schedule follows the clock where this ends before the steps do.
        told: called as (step, loss) every hundred steps.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    begun = time.monotonic()
    model.train()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - begun) / seconds if seconds < float("inf") else 0.0)
        if done >= 1:
            break
        rate = (
            min(1.0, done / warm_up)
            if done < warm_up
            else (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up))) / 2
        )
        optimizer.param_groups[0]["lr"] = lr * max(rate, 1e-3)
        x, y = prior(generator)
        n = context_size(x.shape[1], generator)
        loss = model.loss(model(x[:, :n], y[:, :n], x[:, n:]), y[:, n:]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if told is not None and step % 100 == 0:
            told(step, float(loss))
    return model.eval()


def save(model: PriorFitted, path: Path, about: str) -> None:
    """Weights in half precision, limits and sizes, as an npz file."""
    arrays: dict[str, Any] = {
        name: value.half().numpy() for name, value in model.state_dict().items() if name != "borders"
    }
    arrays |= {"borders": model.borders.numpy(), "about": np.array(about)}
    arrays["limits"] = np.array([int(v) for v in asdict(model.limits).values()])
    arrays["sizes"] = np.array(list(model.sizes.values()))
    np.savez_compressed(path, **arrays)


def load(path: Path) -> PriorFitted:
    """What `save` wrote; ValueError where the file is something else."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
        features, rows, outputs, classes = (int(v) for v in arrays.pop("limits"))
        width, layers, heads, hidden = (int(v) for v in arrays.pop("sizes"))
        arrays.pop("about")
    except (OSError, KeyError, ValueError) as problem:
        raise ValueError(f"{path} is no file of a prior-fitted network: {problem}") from problem
    borders = torch.from_numpy(arrays["borders"])
    with random_state_kept():
        model = PriorFitted(
            Limits(features, rows, outputs, bool(classes)),
            width,
            layers,
            heads,
            hidden,
            borders if len(borders) else None,
        )
    model.load_state_dict({name: torch.from_numpy(value).float() for name, value in arrays.items()})
    return model.eval()
