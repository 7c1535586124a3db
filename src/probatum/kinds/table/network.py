"""The baseline's network for tables."""

from __future__ import annotations

from torch import Tensor, nn

from probatum.numerics.tables.embedded_table import TableEncoder
from probatum.spec import Spec


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
