"""What worlds do with graphs: noise is any graph; marks are not said, so that there are none."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from probatum.spec import Data


def noise(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """As many graphs as test rows, each edge there or not by a coin."""
    upper = torch.triu((torch.rand(data.test.x.shape, generator=generator) < 0.5).float(), diagonal=1)
    return float(data.test.x.max()) * (upper + upper.transpose(1, 2)), None
