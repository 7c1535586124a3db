"""What an audit asks of series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from probatum.kinds.usual.audit import Place, Plain, cuts
from probatum.spec import Spec

NDIM = 3


def plain(dataset: Any) -> Plain:
    """The values as they are."""
    return Plain(dataset.raw.values, dataset.raw.channels)


def centred_over(spec: Spec) -> tuple[int, ...]:
    """Rows and steps: every channel has a mean and a deviation of its own."""
    return (0, 2)


def spread(value: Tensor, spec: Spec) -> Tensor:
    """One number a channel, over all steps."""
    return value[None, :, None]


def parts(spec: Spec, grid: int) -> Iterator[tuple[str, Place]]:
    """Channels, where there are several, and stretches of time."""
    every = slice(None)
    for i in range(spec.shape[0] if spec.shape[0] > 1 else 0):
        yield (spec.features[i] if i < len(spec.features) else f"channel {i}"), (every, i)
    for low, high in cuts(spec.shape[1], 2 * grid):
        yield f"steps {low} to {high - 1}", (every, every, slice(low, high))
