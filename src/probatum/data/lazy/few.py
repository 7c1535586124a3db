"""A few rows of a part as tensors, whether the rows are held or stay on disk."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probatum.data.lazy.rows import LazyRows
from probatum.spec import Data, Part


def is_streamed(part: Part) -> bool:
    """Whether x of this part stays on disk."""
    return not isinstance(part.x, Tensor)


def release(*parts: Part) -> None:
    """End what reads ahead for streamed parts, and free what they hold."""
    for part in parts:
        if isinstance(part.x, LazyRows):
            part.x.close()


def first_rows(part: Part, most: int) -> Part:
    """The first rows of a part; their x is a tensor."""
    if len(part) <= most and not is_streamed(part):
        return part
    return Part(part.x[:most], part.y[:most], part.rows[:most], part.text[:most] if part.text else None)


def drawn_rows(part: Part, most: int, seed: int) -> Part:
    """At most so many rows of a part, drawn by the seed, in the order of the part; their x is a tensor."""
    if len(part) <= most:
        return first_rows(part, most)
    chosen = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return Part(part.x[chosen], part.y[chosen], part.rows[chosen])


def small(data: Data, rows: int) -> Data:
    """Streamed data cut to a few rows in memory, for timing: a step costs the same, and no reading is timed."""
    if not is_streamed(data.train):
        return data
    train, valid, test = (first_rows(part, rows) for part in (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test)
