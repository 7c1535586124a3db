"""The trained baseline network that explainers and attacks are tried on; one per seed, made once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from probatum.arenas.predict.fit import run_training
from probatum.data.lazy.few import first_rows, is_streamed
from probatum.errors import InputError
from probatum.rooms.arena import Work
from probatum.spec import Part
from probatum.train.loop import outputs

STREAMED_ROWS = 2000
"""Test rows of streamed data among which right ones are looked for."""

_last: tuple[Work, nn.Module] | None = None


def trained(work: Work) -> nn.Module:
    """The work's baseline recipe trained on its split, in evaluation mode; the last one is kept for the next arm."""
    global _last
    if _last is None or not _same(_last[0], work):
        base = replace(work.baseline(), progress=work.progress)
        _last = (work, work.engine.home(run_training(base).run.model.eval()))
    return _last[1]


def _same(first: Work, second: Work) -> bool:
    """Whether two works train the same baseline; the kept work holds its rows, so that identities are not used again."""
    rows = all(getattr(first.data, part) is getattr(second.data, part) for part in ("train", "valid", "test"))
    return (
        rows
        and first.seed == second.seed
        and first.base == second.base
        and first.factory is second.factory
        and first.engine == second.engine
    )


def rows_for(work: Work, model: nn.Module, most: int) -> tuple[Tensor, Tensor]:
    """Up to `most` test rows (of streamed data: of the first 2000) that the model has right, with their classes."""
    part: Part = work.data.test
    if is_streamed(part):
        part = first_rows(part, STREAMED_ROWS)
    with torch.no_grad():
        right = (outputs(model, part.x).argmax(dim=1) == part.y).nonzero().squeeze(1)[:most]
    if not len(right):
        raise InputError("the baseline has no test row right, so there is nothing to explain or attack; train longer")
    return part.x[right], part.y[right]
