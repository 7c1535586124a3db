"""Worlds where other rows are met than those trained on: rare classes, another region of inputs, other class shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.rooms.world import World
from probatum.spec import Data, Truth
from probatum.worlds.features import features, network_scores
from probatum.worlds.parts import classes_stay, only_words, taken

if TYPE_CHECKING:
    from probatum.data.dataset import Dataset

PROFILES = ("exponential", "step")
FEWEST = 10
"""Rows that every part of a shifted split needs."""


@dataclass(frozen=True)
class LongTail(World):
    """Training and validation rows of the classes are thinned out to a long tail; the test rows stay.

    The order of the classes is drawn by the seed, so that an average over seeds is one over which class is rare. Groups
    of test rows are their classes.

    Attributes:
        ratio: rows of the largest class over those of the smallest.
        profile: exponential (each class smaller by the same factor), step (half of the classes large, half small).
    """

    ratio: float
    profile: str = "exponential"
    KIND: ClassVar[str] = "long-tail"
    USAGE: ClassVar[str] = "long-tail:RATIO[:exponential|step]"
    ABOUT: ClassVar[str] = "the largest class has RATIO times the training rows of the smallest; test rows stay"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.ratio:g}:{self.profile}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> LongTail:
        if number is None or number < 1:
            told = "no ratio" if number is None else f"ratio {number:g}"
            raise InputError(f"world {cls.KIND} has {told} of class sizes; give 1 or more, as in long-tail:20")
        return cls(number, *only_words(words, PROFILES, cls.USAGE))

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        order = torch.randperm(data.spec.outputs, generator=generator)
        size = torch.empty(data.spec.outputs, dtype=torch.float64)
        size[order] = self.sizes(data.spec.outputs)
        train = taken(data.train, thinned(data.train.y, size, generator))
        valid = taken(data.valid, thinned(data.valid.y, size, generator, least=1))
        counts = torch.bincount(train.y, minlength=data.spec.outputs)
        told = {
            "training rows left": float(len(train)),
            "training rows of the largest class": float(counts.max()),
            "training rows of the smallest class": float(counts.min()),
        }
        found = replace(data, train=train, valid=valid, truth=Truth(self.name, groups=data.test.y, counts=told))
        classes_stay(found, self.name, least=2)
        return found

    def sizes(self, classes: int) -> Tensor:
        """(classes,) relative sizes, the largest 1 first."""
        place = torch.arange(classes, dtype=torch.float64) / (classes - 1)
        if self.profile == "step":
            place = (place > 0.5).double()
        return self.ratio**-place


@dataclass(frozen=True)
class CovariateShift(World):
    """Training meets one region of the inputs more often, `shifted` rows come from the other; p(y|x) is the same.

    A random smooth score s of the features (deviation 1) decides: a row is kept for training and validation, and a test row
    is of the usual kind, with probability sigmoid(-strength s); the other test rows are `shifted`. The density of shifted
    rows over that of training rows is then proportional to exp(strength s), which `weights` hold.

    Attributes:
        strength: 0 = no shift.
    """

    strength: float = 1.0
    KIND: ClassVar[str] = "covariate-shift"
    USAGE: ClassVar[str] = "covariate-shift[:STRENGTH]"
    ABOUT: ClassVar[str] = "training rows come more often from one region of the inputs, shifted rows from the other"
    TASKS: ClassVar[tuple[str, ...]] = ("classes", "reals")

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.strength:g}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> CovariateShift:
        only_words(words, (), cls.USAGE)
        if number is not None and not 0 <= number <= 10:
            raise InputError(f"world {cls.KIND} has strength {number:g}; give one from 0 to 10, 1 is usual")
        return cls() if number is None else cls(number)

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        seen = features(data, generator)
        parts = (data.train, data.valid, data.test)
        scores = network_scores(torch.cat([seen(part) for part in parts]), 1, generator)[:, 0]
        usual = torch.rand(len(scores), generator=generator, dtype=torch.float64) < torch.sigmoid(
            -self.strength * scores
        )
        kept = [flags.nonzero()[:, 0] for flags in usual.split([len(part) for part in parts])]
        far = (~usual[-len(data.test) :]).nonzero()[:, 0]
        train, valid, test = (taken(part, rows) for part, rows in zip(parts, kept, strict=True))
        shifted = taken(data.test, far)
        for what, part in (("training", train), ("validation", valid), ("test", test), ("shifted", shifted)):
            if len(part) < FEWEST:
                raise InputError(
                    f"world {self.name} leaves {len(part)} {what} rows, {FEWEST} are needed; lower the strength"
                )
        weights = torch.exp(self.strength * scores[: len(data.train)][kept[0]])
        weights = weights / weights.mean()
        counts = {
            "training rows left": float(len(train)),
            "test rows as in training": float(len(test)),
            "shifted rows": float(len(shifted)),
            "effective share of training rows after weighing": float(weights.sum() ** 2 / weights.square().sum())
            / len(weights),
        }
        truth = Truth(self.name, shifted=shifted, weights=weights.float(), counts=counts)
        found = replace(data, train=train, valid=valid, test=test, truth=truth)
        if data.spec.task == "classes":
            classes_stay(found, self.name)
        return found


@dataclass(frozen=True)
class LabelShift(World):
    """`shifted` holds test rows with class shares drawn from a Dirichlet law; p(x|y) is the same.

    Attributes:
        alpha: the law's parameter: small = one or two classes prevail, large = even shares.
    """

    alpha: float = 1.0
    KIND: ClassVar[str] = "label-shift"
    USAGE: ClassVar[str] = "label-shift[:ALPHA]"
    ABOUT: ClassVar[str] = "shifted rows have other class shares, drawn from a Dirichlet law; classes look as they do"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.alpha:g}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> LabelShift:
        only_words(words, (), cls.USAGE)
        if number is not None and not 0.01 <= number <= 1e6:
            raise InputError(f"world {cls.KIND} has alpha {number:g}; give 0.01 to 1e6, 1 is usual")
        return cls() if number is None else cls(number)

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        draws = np.random.Generator(np.random.PCG64(seed)).dirichlet(np.full(data.spec.outputs, self.alpha))
        share = torch.from_numpy(draws).clamp_min(1e-12)
        shifted = taken(data.test, thinned(data.test.y, share, generator))
        if len(shifted) < FEWEST:
            raise InputError(
                f"world {self.name} leaves {len(shifted)} shifted rows, {FEWEST} are needed; raise alpha, or bring more rows"
            )
        before = torch.bincount(data.train.y, minlength=data.spec.outputs).double() / len(data.train)
        after = torch.bincount(shifted.y, minlength=data.spec.outputs).double() / len(shifted)
        weights = (after / before.clamp_min(1e-12))[data.train.y]
        counts = {"shifted rows": float(len(shifted)), "largest share of a shifted class": float(after.max())}
        truth = Truth(self.name, shifted=shifted, weights=(weights / weights.mean()).float(), counts=counts)
        return replace(data, truth=truth)


def thinned(y: Tensor, size: Tensor, generator: Generator, least: int = 0) -> Tensor:
    """Positions, ascending, of as many rows as there can be with class counts proportional to `size`, drawn at random.

    Args:
        y: (n,) class codes.
        size: (classes,) positive relative sizes.
        generator: source of randomness.
        least: rows of every class that stay where it has them.
    """
    counts = torch.bincount(y, minlength=len(size))
    there = counts > 0
    unit = (counts[there] / size[there]).min()
    want = torch.floor(unit * size + 1e-9).long().clamp_min(least)
    chosen = []
    for k in range(len(size)):
        rows = (y == k).nonzero()[:, 0]
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[: int(want[k])]])
    return torch.cat(chosen).sort().values


WORLDS = (LongTail, CovariateShift, LabelShift)
