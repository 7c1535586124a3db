"""One of several runs that are trained as one computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probatum.train.run import Run


@dataclass
class Replica:
    """One run and what belongs to it.

    Attributes:
        run: model, loss, optimizer, data, budget.
        methods: objects with hooks, in order.
        order: stream of the batch order.
        draws: seed of the global stream that the run would be trained on alone (dropout).
        separable: whether the loss is a mean of terms of one row each.
    """

    run: Run
    methods: Sequence[Any]
    order: torch.Generator
    draws: int
    separable: bool = False
