"""What the world does to graphs: edges get lost."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from probatum.data.corrupt import Corruption, level, uniform
from probatum.spec import Spec


def lose(x: Tensor, spec: Spec, severity: int, generator: Generator) -> Tensor:
    """Take random edges away."""
    gone = (uniform(tuple(x.shape), x, generator) < level(severity, (0.05, 0.1, 0.2, 0.35, 0.5))).triu(diagonal=1)
    return x.masked_fill(gone | gone.transpose(1, 2), 0.0)


def corruptions(spec: Spec) -> Mapping[str, Corruption]:
    return {"lost edges": lose}
