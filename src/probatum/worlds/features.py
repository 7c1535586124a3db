"""Numbers that worlds look at: each row as a short standardised vector, whatever the modality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from probatum.rooms.kind import kind_of
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
        how = kind_of(self.spec.modality, self.spec.task).facet("features")
        return (how.vectors(part.x, self.spec, self.tables) - self.mean) / self.scale


def features(data: Data, generator: Generator) -> Features:
    """Features of these data; the projections are drawn from the generator, the standardisation is the training rows'."""
    spec = data.spec
    how = kind_of(spec.modality, spec.task).facet("features")
    tables = how.tables(spec, data.train, MOST, generator)
    raw = how.vectors(data.train.x, spec, tables)
    spread = raw.std(dim=0, correction=0)
    scale = torch.where(spread > LEAST_SPREAD, spread, torch.ones_like(spread))
    return Features(spec, tables, raw.mean(dim=0), scale)


def network_scores(z: Tensor, outputs: int, generator: Generator, hidden: int = 16) -> Tensor:
    """(n, outputs): a random network of one tanh layer on (n, d) features; scores of each output have mean 0, deviation 1
    over the rows."""
    first = torch.randn(z.shape[1], hidden, generator=generator, dtype=torch.float64) / z.shape[1] ** 0.5
    second = torch.randn(hidden, outputs, generator=generator, dtype=torch.float64)
    scores = torch.tanh(1.5 * z @ first) @ second
    return (scores - scores.mean(dim=0)) / scores.std(dim=0, correction=0).clamp_min(LEAST_SPREAD)
