"""What a check looks at, and what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.card import Card
from probatum.checks.toy import toy
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, Use
from probatum.rooms.kind import kinds, modalities
from probatum.spec import Data, Optimisation
from probatum.train import baselines
from probatum.train.assemble import budget_for, offer_for
from probatum.train.rng import generator_for, seeded
from probatum.train.run import last_layer

QUICKEST = "table"
"""The modality whose toy network is trained fastest."""
MEMORY = 8_000_000
"""Bytes that a continual learner may keep; further copies of a toy network fit."""


class NotThisOneError(Exception):
    """The check does not apply to this technique; the message says why."""


class NotDoneYetError(Exception):
    """Nothing is wrong, but something is still to be done; the message says what to run."""


class CheckFailedError(AssertionError):
    """The technique breaks its contract; the message says how and what to do."""


def demand(truth: bool, message: str) -> None:
    """Fail the check with `message` unless `truth`."""
    if not truth:
        raise CheckFailedError(message)


@dataclass(frozen=True)
class Subject:
    """One technique under check, as it is now: an edited one is another subject."""

    name: str
    version: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", catalogue.digest(self.name))

    @cached_property
    def slot(self) -> str:
        """Its slot."""
        return catalogue.place(self.name).slot

    @cached_property
    def card(self) -> Card:
        """Its card."""
        return catalogue.card(self.name)

    @cached_property
    def entry(self) -> Any:
        """The object that is the technique."""
        return catalogue.entry(self.name)

    def pairs(self) -> list[tuple[str, str]]:
        """Modalities and tasks that it takes, as far as there are kinds of data for them."""
        known = {(kind.modality, task) for kind in kinds() for task in kind.TASKS}
        asked = ((modality, task) for modality in self.card.modalities or modalities() for task in self.card.tasks)
        found = [pair for pair in asked if pair in known]
        demand(bool(found), "no kind of data has the modalities and tasks that its card names")
        return found

    def modalities(self) -> list[str]:
        """Modalities in which its first task is asked."""
        return [modality for modality, task in self.pairs() if task == self.pairs()[0][1]]

    def data(self, *, modality: str | None = None, task: str | None = None) -> Data:
        """Toy data of the first task that it takes and of tables, if it takes them (they are fastest), or of these."""
        fits = [pair for pair in self.pairs() if modality in (None, pair[0]) and task in (None, pair[1])]
        demand(bool(fits), f"it does not take {modality or 'any modality'} with task {task or 'any'}")
        return toy(*min(fits, key=lambda pair: (self.card.tasks.index(pair[1]), pair[0] != QUICKEST)))

    def numbers(self, *ranks: int) -> list[Data]:
        """Toy data whose rows are plain numbers, of the modalities it takes, those of the ranks first named first.

        Args:
            ranks: dimensions of a row: 1 for columns, 2 for channels and steps, 3 for channels and pixels.
        """
        found = [self.data(modality=name) for name in self.modalities()]
        plain = [data for data in found if data.train.x.is_floating_point() and len(data.spec.shape) in ranks]
        if not plain:
            raise NotThisOneError("it takes no rows of plain numbers")
        return sorted(plain, key=lambda data: ranks.index(len(data.spec.shape)))

    def recipe(self, settings: Mapping[str, Any] | None = None, *, steps: int = 12) -> Recipe:
        """A short recipe with the technique at its tiny settings (or these)."""
        return Recipe(training=Training(steps=steps, batch_size=16, lr=1e-2)).filled(self.use(settings))

    def use(self, settings: Mapping[str, Any] | None = None) -> Use:
        """The technique at its tiny settings, or these."""
        return Use(self.name, dict(self.card.tiny if settings is None else settings))

    def values(self, name: str) -> list[Any]:
        """The values of an entry of the card's `tune` that checks try: what `tried` says, all of a list, the ends of a range."""
        offered = self.card.tried.get(name, self.card.tune[name])
        return list(offered) if isinstance(offered, list) else list(offered[:2])

    def variants(self) -> list[dict[str, Any]]:
        """The card's tiny settings, and these with one setting at each value that the tuner may choose."""
        tiny = dict(self.card.tiny)
        return [tiny, *({**tiny, name: value} for name in self.card.tune for value in self.values(name))]

    def call(self, data: Data, settings: Mapping[str, Any] | None = None, /, *, seed: int = 0, **fixed: Any) -> Any:
        """Call the entry with its tiny settings (or these), what its slot passes, and the offered vocabulary."""
        model = self.model(data)
        offer = {
            **offer_for(data, budget_for(Training(steps=12, batch_size=16), len(data.train))),
            "generator": generator_for(seed, "check", self.name),
            "model": model,
            "last_layer": last_layer(model),
            "model_factory": self.factory(data),
            "memory": MEMORY,
            "order": generator_for(seed, "check", "order"),
            "optimisation": Optimisation(lr=1e-2),
            "trusted": data.valid,
            "parameters": 2000,
        }
        chosen = dict(self.card.tiny if settings is None else settings)
        offer = {name: value for name, value in offer.items() if name not in fixed}
        return inject.call(self.name, self.entry, chosen, offer, **fixed)

    def model(self, data: Data) -> nn.Module:
        """The baseline network for these data, the same every time."""
        with seeded(0, "check", "model"):
            return baselines.build(data.spec)

    def factory(self, data: Data) -> Callable[[], nn.Module]:
        """Fresh baseline networks."""
        count = 0

        def build() -> nn.Module:
            nonlocal count
            count += 1
            with seeded(count, "check", "fresh"):
                return baselines.build(data.spec)

        return build


def fingerprint(value: Any) -> str:
    """A hash of tensors, numbers and containers of them, exact to the bit."""
    found = hashlib.sha256()

    def feed(thing: Any) -> None:
        if isinstance(thing, Tensor):
            found.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
            found.update(thing.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(thing, Mapping):
            for key in sorted(thing, key=str):
                found.update(str(key).encode())
                feed(thing[key])
        elif isinstance(thing, list | tuple):
            for inner in thing:
                feed(inner)
        else:
            found.update(repr(thing).encode())

    feed(value)
    return found.hexdigest()


def expect_error(call: Callable[[], Any], value: str, what: str) -> None:
    """Demand a ValueError, TypeError, KeyError or InputError that names `value`."""
    try:
        call()
    except (ValueError, TypeError, KeyError, InputError) as problem:
        demand(
            value in str(problem), f"{what}: the error should name the value {value}, but says {str(problem)[:200]!r}"
        )
        return
    raise CheckFailedError(f"{what} was accepted; raise a ValueError that names the value and the range")
