"""Logits that want to be calibrated."""

from __future__ import annotations

import torch
from torch import Tensor


def logits_and_target(n: int = 300, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Overconfident logits (n, classes) and targets drawn from the calibrated probabilities."""
    generator = torch.Generator().manual_seed(11)
    calm = 1.5 * torch.randn(n, classes, generator=generator)
    target = torch.multinomial(calm.softmax(dim=1), 1, generator=generator).squeeze(1)
    return 3.0 * calm, target
