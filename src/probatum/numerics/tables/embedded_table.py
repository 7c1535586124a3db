"""The encoded table as model input: scaled numbers beside embedded categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def embedding_width(cardinality: int) -> int:
    """Width of a category's embedding: half its values, between 2 and 32."""
    return max(2, min(32, (cardinality + 1) // 2))


class TableEncoder(nn.Module):
    """Split (n, numeric + categories) into numbers and codes and return (n, width) features.

    Args:
        numeric: how many leading columns are numbers.
        cardinalities: sizes of the category columns behind them.
    """

    def __init__(self, numeric: int, cardinalities: Sequence[int] = ()) -> None:
        super().__init__()
        self.numeric = numeric
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding_width(size)) for size in cardinalities)
        self.width = numeric + sum(embedding_width(size) for size in cardinalities)

    def forward(self, x: Tensor) -> Tensor:
        if not self.embeddings:
            return x
        codes = x[:, self.numeric :].long()
        columns = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        return torch.cat([x[:, : self.numeric], *columns], dim=1)
