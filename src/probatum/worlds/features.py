"""Numbers that worlds look at: each row as a short standardised vector, whatever the modality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from probatum.spec import Data, Part, Spec

MOST = 64
"""Features of a row; where there are more, random projections of them."""
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Features:
    """Rows -> (n, d) float64, standardised on training rows.

    Attributes:
        spec: of the data.
        tables: what is added up: a projection of the numbers, and a random vector for each code or token.
        mean: of the training rows.
        scale: their deviation, 1 where they do not vary.
    """

    spec: Spec
    tables: tuple[Tensor, ...]
    mean: Tensor
    scale: Tensor

    def __call__(self, part: Part) -> Tensor:
        return (_raw(part.x, self.spec, self.tables) - self.mean) / self.scale


def features(data: Data, generator: Generator) -> Features:
    """Features of these data; the projections are drawn from the generator, the standardisation is the training rows'."""
    spec = data.spec
    tables: list[Tensor] = []
    if spec.modality == "text":
        tables.append(torch.randn(spec.vocabulary, MOST, generator=generator, dtype=torch.float64))
    else:
        width = spec.numeric if spec.modality == "table" else data.train.x[0].numel()
        if spec.cardinalities or width > MOST:
            tables.append(torch.randn(width, MOST, generator=generator, dtype=torch.float64) / max(1, width) ** 0.5)
        tables += [torch.randn(n, MOST, generator=generator, dtype=torch.float64) for n in spec.cardinalities]
    raw = _raw(data.train.x, spec, tuple(tables))
    spread = raw.std(dim=0, correction=0)
    scale = torch.where(spread > LEAST_SPREAD, spread, torch.ones_like(spread))
    return Features(spec, tuple(tables), raw.mean(dim=0), scale)


def _raw(x: Tensor, spec: Spec, tables: tuple[Tensor, ...]) -> Tensor:
    if spec.modality == "text":
        seen = (x != 0).double()
        ids = x.flatten()
        sums = torch.zeros(len(x), MOST, dtype=torch.float64)
        for start in range(0, len(x), 1024):  # the vectors of all tokens at once could fill the memory
            rows = slice(start, start + 1024)
            count = x[rows].shape[0]
            found = tables[0][ids[start * x.shape[1] : start * x.shape[1] + count * x.shape[1]]]
            sums[rows] = (found.view(count, x.shape[1], MOST) * seen[rows, :, None]).sum(dim=1)
        return sums / seen.sum(dim=1, keepdim=True).clamp_min(1).sqrt()
    if spec.modality == "table" and spec.cardinalities:
        total = x[:, : spec.numeric].double() @ tables[0]
        for column, table in enumerate(tables[1:]):
            total = total + table[x[:, spec.numeric + column].long()]
        return total
    flat = x.flatten(1).double()
    return flat @ tables[0] if tables else flat


def network_scores(z: Tensor, outputs: int, generator: Generator, hidden: int = 16) -> Tensor:
    """(n, outputs): a random network of one tanh layer on (n, d) features; scores of each output have mean 0, deviation 1
    over the rows."""
    first = torch.randn(z.shape[1], hidden, generator=generator, dtype=torch.float64) / z.shape[1] ** 0.5
    second = torch.randn(hidden, outputs, generator=generator, dtype=torch.float64)
    scores = torch.tanh(1.5 * z @ first) @ second
    return (scores - scores.mean(dim=0)) / scores.std(dim=0, correction=0).clamp_min(LEAST_SPREAD)
