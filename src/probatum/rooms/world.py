"""Worlds: any data put into a situation of which the truth is known, such as labels of which a known share is wrong.

A world is a frozen value, written ``KIND[:NUMBER][:WORD ...]``, and acts on the encoded split of a seed: a pure function
of split, world and seed, so that all arms of a seed live in the same one. The pipeline was fitted before, on the rows
as they are. A module of the package ``probatum.worlds`` defines its kinds in a tuple ``WORLDS``; there is no other list.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import pkgutil
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch

from probatum.errors import InputError
from probatum.spec import Data

PACKAGE = "probatum.worlds"


@dataclass(frozen=True)
class World:
    """A world; subclasses have a kind of their own.

    Attributes:
        KIND: the first word of its name.
        USAGE: how it is written.
        ABOUT: one line on what it does and what is known then.
        TASKS: tasks that it is made for.
    """

    KIND: ClassVar[str] = ""
    USAGE: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    TASKS: ClassVar[tuple[str, ...]] = ("classes",)

    @property
    def name(self) -> str:
        """The world as it is written, every choice told; equal worlds have equal names."""
        raise NotImplementedError

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> World:
        """From the number and the words behind the kind; raises InputError."""
        raise NotImplementedError

    def apply(self, data: Data, generator: torch.Generator, source: Any) -> Data:
        """The split in this world, with its `truth`; raises InputError where these data cannot be put into it."""
        raise NotImplementedError


@cache
def kinds() -> dict[str, type[World]]:
    """Every kind of world, from the ``WORLDS`` of the modules of `probatum.worlds`."""
    package = importlib.import_module(PACKAGE)
    found: dict[str, type[World]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for kind in getattr(importlib.import_module(f"{PACKAGE}.{module.name}"), "WORLDS", ()):
            found[kind.KIND] = kind
    return dict(sorted(found.items()))


def parse_world(text: str | World) -> World:
    """A world from ``KIND[:NUMBER][:WORD ...]``, e.g. ``label-noise:0.4:pair``; raises InputError."""
    if isinstance(text, World):
        return text
    kind, *pieces = str(text).strip().split(":")
    known = kinds()
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
        hint = f"; nearest: {near[0]}" if near else ""
        raise InputError(f"no world called {kind!r}{hint}; worlds are {', '.join(w.USAGE for w in known.values())}")
    number: float | None = None
    if pieces:
        try:
            number = float(pieces[0])
        except ValueError:
            number = None
        else:
            pieces = pieces[1:]
    if number is not None and not math.isfinite(number):
        raise InputError(f"world {text!r}: the number is not finite; write {known[kind].USAGE}")
    return known[kind].read(number, tuple(piece for piece in pieces if piece))


def in_world(dataset: Any, world: str | World) -> Any:
    """The `Dataset` in a world, which its fingerprint tells; raises InputError where that cannot be."""
    found = parse_world(world)
    if not dataset.kind.ROWS:
        raise InputError(
            f"world {found.name} is made of rows, and {dataset.name} ({dataset.kind.NAME}) has none of its own; leave it out"
        )
    if dataset.streamed:
        raise InputError(
            f"world {found.name}: {dataset.name} is streamed from disk; worlds are made of rows held in memory, give a larger "
            "--memory or fewer rows"
        )
    if dataset.world is not None:
        raise InputError(f"{dataset.name} is in the world {dataset.world.name} already; give one world")
    if dataset.task not in found.TASKS:
        raise InputError(
            f"world {found.name} is for task {' or '.join(found.TASKS)}; the task of {dataset.name} is {dataset.task}"
        )
    return replace(dataset, world=found, fingerprint=world_mark(dataset.fingerprint, found.name))


def world_mark(fingerprint: str, name: str) -> str:
    """The fingerprint of data in the world of this name."""
    return hashlib.sha256(f"{fingerprint}\x1f{name}".encode()).hexdigest()


def world_generator(name: str, seed: int) -> torch.Generator:
    """The generator of a world's draws for one seed."""
    digest = hashlib.sha256(f"world\x1f{name}\x1f{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
