"""What a check looks at, what it says, and small synthetic data of every modality to try techniques on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue
from probatum.card import Card
from probatum.contracts import inject
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, Use
from probatum.spec import Data, Optimisation, Part, Spec
from probatum.train import baselines
from probatum.train.assemble import budget_for, offer_for
from probatum.train.rng import seeded, stream
from probatum.train.run import last_layer

ROWS = {"train": 64, "valid": 40, "test": 40}
MEMORY = 8_000_000
"""Bytes that a continual learner may keep; further copies of a toy network fit."""


class NotThisOneError(Exception):
    """The check does not apply to this technique; the message says why."""


class CheckFailedError(AssertionError):
    """The technique breaks its contract; the message says how and what to do."""


def demand(truth: bool, message: str) -> None:
    """Fail the check with `message` unless `truth`."""
    if not truth:
        raise CheckFailedError(message)


@dataclass(frozen=True)
class Subject:
    """One technique under check."""

    name: str

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

    def data(self, *, modality: str | None = None, task: str | None = None) -> Data:
        """Toy data of the first modality and task that it takes."""
        task = task or self.card.tasks[0]
        return toy(modality or ("text" if task == "next-token" else self.card.modalities[0]), task)

    def kinds(self) -> list[tuple[str, str]]:
        """The modalities and tasks that it takes and that go together: next-token is a task of texts."""
        pairs = [(modality, task) for modality in self.card.modalities for task in self.card.tasks]
        return [(modality, task) for modality, task in pairs if modality == "text" or task != "next-token"]

    def recipe(self, settings: Mapping[str, Any] | None = None, *, steps: int = 12) -> Recipe:
        """A short recipe with the technique at its tiny settings (or these)."""
        base = Recipe(training=Training(steps=steps, batch_size=16, lr=1e-2))
        return base.filled(Use(self.name, dict(self.card.tiny if settings is None else settings)))

    def call(self, data: Data, settings: Mapping[str, Any] | None = None, /, *, seed: int = 0, **fixed: Any) -> Any:
        """Call the entry with its tiny settings (or these), what its slot passes, and the offered vocabulary."""
        model = self.model(data)
        offer = {
            **offer_for(data, budget_for(Training(steps=12, batch_size=16), len(data.train))),
            "generator": stream(seed, "check", self.name),
            "model": model,
            "last_layer": last_layer(model),
            "model_factory": self.factory(data),
            "memory": MEMORY,
            "order": stream(seed, "check", "order"),
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


def toy(modality: str, task: str) -> Data:
    """A small learnable problem: three classes, or one real target, in any modality; or the next token of a text."""
    if task == "next-token":
        return _language()
    makers = {"table": _table, "image": _image, "text": _text, "series": _series}
    generator = torch.Generator().manual_seed(7)
    n = sum(ROWS.values())
    hidden = torch.randint(3, (n,), generator=generator)
    x, shape = makers[modality](hidden, generator)
    spec = Spec(modality, task, shape, 3 if task == "classes" else 1, **EXTRA.get(modality, {}))
    y = hidden if task == "classes" else (hidden.float() - 1 + 0.1 * torch.randn(n, generator=generator))[:, None]
    parts, start = [], 0
    for size in ROWS.values():
        rows = torch.arange(start, start + size)
        text = tuple(" ".join(f"w{t}" for t in row.tolist() if t) for row in x[rows]) if modality == "text" else None
        parts.append(Part(x[rows], y[rows], rows, text))
        start += size
    return Data(spec, *parts)


EXTRA: dict[str, dict[str, Any]] = {
    "table": {"numeric": 5, "cardinalities": (4,)},
    "text": {"vocabulary": 20},
}


def _table(hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
    numbers = torch.randn(len(hidden), 5, generator=generator)
    numbers[:, 0] += 2.0 * (hidden - 1)
    numbers[:, 1] -= 1.5 * (hidden == 1)
    codes = torch.randint(4, (len(hidden), 1), generator=generator)
    return torch.cat([numbers, codes.float()], dim=1), (6,)


def _image(hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
    x = 0.3 * torch.rand(len(hidden), 1, 8, 8, generator=generator)
    for row, c in enumerate(hidden.tolist()):
        x[row, 0, :, 2 * c : 2 * c + 2] += 0.6
    return x, (1, 8, 8)


def _text(hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
    x = torch.randint(2, 20, (len(hidden), 12), generator=generator)
    for row, c in enumerate(hidden.tolist()):
        x[row, 1:5] = 3 + c
        x[row, 8 + row % 4 :] = 0
    return x, (12,)


def _language(vocabulary: int = 20, length: int = 12) -> Data:
    """Windows of a chain whose next token is a function of the one before, one time in ten any token."""
    generator = torch.Generator().manual_seed(7)
    n = sum(ROWS.values())
    ids = torch.randint(2, vocabulary, (n, length + 1), generator=generator)
    follows = torch.rand(n, length, generator=generator) < 0.9
    for t in range(length):
        ids[:, t + 1] = torch.where(follows[:, t], 2 + (5 * ids[:, t] + 3) % (vocabulary - 2), ids[:, t + 1])
    spec = Spec("text", "next-token", (length,), vocabulary, vocabulary=vocabulary)
    parts = []
    for rows in torch.arange(n).split(list(ROWS.values())):
        x, y = ids[rows, :-1], ids[rows, 1:]
        parts.append(Part(x, y, rows, tuple("".join(chr(95 + t) for t in row) for row in y.tolist())))
    return Data(spec, *parts)


def _series(hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
    time = torch.arange(32) / 32
    waves = torch.stack([torch.sin(6.28 * (c + 1) * time) for c in hidden.tolist()])
    return (waves + 0.3 * torch.randn(len(hidden), 32, generator=generator))[:, None, :], (1, 32)


def fingerprint(value: Any) -> str:
    """A hash of tensors, numbers and containers of them, exact to the bit."""
    found = hashlib.sha256()

    def feed(thing: Any) -> None:
        if isinstance(thing, Tensor):
            found.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
            found.update(thing.detach().contiguous().numpy().tobytes())
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
