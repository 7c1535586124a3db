"""The trained baseline networks that explainers and attacks are tried on; one per seed, made once."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from probatum.arenas.predict.fit import run_training
from probatum.data.lazy.few import first_rows, is_streamed
from probatum.errors import InputError
from probatum.rooms.arena import Work
from probatum.spec import Data, Part
from probatum.train.loop import outputs

STREAMED_ROWS = 2000
"""Test rows of streamed data among which right ones are looked for."""

TOLD_BY = 16
"""First rows of streamed data by which, with all targets and positions, a split is known."""

KEPT_BYTES = 2**28
"""Bytes of networks that are kept: timings come after all fits and look at every seed's network again."""

_kept: list[tuple[tuple[Any, ...], nn.Module]] = []


def trained(work: Work) -> nn.Module:
    """The work's baseline recipe trained on its split, in evaluation mode; the last ones are kept, as many as fit."""
    asked = (_digest(work.data), work.seed, work.base.plan(), work.factory, work.engine)
    place = next((i for i, (before, _) in enumerate(_kept) if before == asked), None)
    if place is None:
        base = replace(work.baseline(), progress=work.progress)
        found = (asked, work.engine.home(run_training(base).run.model.eval()))
        while _kept and sum(_size(model) for _, model in _kept) + _size(found[1]) > KEPT_BYTES:
            del _kept[0]
    else:
        found = _kept.pop(place)
    _kept.append(found)
    return found[1]


def _digest(data: Data) -> str:
    """By which a split is known again, also where it was encoded anew: what the network is trained and chosen on."""
    sha = hashlib.sha256()
    for part in (data.train, data.valid):
        x = part.x[:TOLD_BY] if is_streamed(part) else part.x
        for value in (x, part.y, part.rows):
            flat = value.detach().cpu().contiguous()
            sha.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
            sha.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _size(model: nn.Module) -> int:
    return sum(value.nbytes for value in chain(model.parameters(), model.buffers()))


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
