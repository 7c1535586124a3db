"""What every strategy of asking for labels promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum.checks.networks import as_users_have_them, fitted
from probatum.checks.subject import Subject, demand, fingerprint
from probatum.spec import Data, Part, Pool, Query


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What it answers once."""
    data = subject.data()
    return asked_for(subject, toy_pool(data), data, 12, settings)._asdict()


def toy_pool(data: Data, labelled: int = 15) -> Pool:
    """Toy data with some labels given, and the baseline network after a little training on them."""
    few = Part(data.train.x[:labelled], data.train.y[:labelled], data.train.rows[:labelled])
    none = torch.zeros(0, dtype=torch.int64)
    model = fitted(replace(data, train=few))
    return Pool(data.train.x, torch.arange(labelled), few.y, model, none, none, 0, 12)


def asked_for(subject: Subject, pool: Pool, data: Data, count: int, settings: Mapping[str, Any] | None = None) -> Query:
    """What a strategy answers."""
    answer = subject.call(data, settings, pool=pool, count=count)
    return answer if isinstance(answer, Query) else Query(answer, pool.machine, pool.guesses)


def check_asks_for_open_rows(subject: Subject) -> None:
    """In every modality: at most `count` different rows without a label; rows, labels and the network are untouched."""
    for modality in subject.modalities():
        data = subject.data(modality=modality, task="classes")
        pool = toy_pool(data)
        before = fingerprint([pool.x, pool.y, pool.labelled, *pool.model.state_dict().values()])
        answer = asked_for(subject, pool, data, 5)
        after = fingerprint([pool.x, pool.y, pool.labelled, *pool.model.state_dict().values()])
        demand(before == after, f"{modality}: rows, labels or weights were changed")
        demand(not pool.model.training, f"{modality}: the network was left in training mode")
        ask = answer.ask
        demand(ask.dtype == torch.int64 and ask.ndim == 1, f"{modality}: positions are {ask.dtype} {tuple(ask.shape)}")
        demand(
            0 < len(ask.unique()) == len(ask) <= 5, f"{modality}: {len(ask)} rows, {len(ask.unique())} different, of 5"
        )
        demand(not torch.isin(ask, pool.labelled).any(), f"{modality}: it asks for labels that were given")
        demand(bool(torch.isin(ask, torch.arange(len(pool.x))).all()), f"{modality}: positions outside the pool")
        demand(not torch.isin(answer.machine, pool.labelled).any(), f"{modality}: it labels rows that have labels")
        demand(len(answer.machine) == len(answer.guesses), f"{modality}: machine labels without rows")


def check_the_last_rows_can_be_asked_for(subject: Subject) -> None:
    """With as many rows open as asked for, it neither fails nor asks for others."""
    data = subject.data(task="classes")
    pool = toy_pool(data, labelled=len(data.train) - 3)
    answer = asked_for(subject, pool, data, 3)
    demand(bool(torch.isin(answer.ask, pool.open()).all()), "it asks for rows that are not open")


def check_networks_as_users_have_them(subject: Subject) -> None:
    """In-place activations change nothing; with other odd networks it asks, or refuses with words, and leaves them alone."""
    for settings in subject.variants():

        def look(model: nn.Module, data: Data, settings: Mapping[str, Any] = settings) -> Tensor:
            pool = replace(toy_pool(data), model=model)
            return asked_for(subject, pool, data, 3, settings).ask.double()

        as_users_have_them(subject, look)
