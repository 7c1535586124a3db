"""Worlds with wrong labels: made ones of a known share, and the real ones of people."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from probatum.data import library
from probatum.errors import InputError
from probatum.numerics.labels import noise as label_noise
from probatum.rooms.world import World
from probatum.spec import Data, Part, Truth
from probatum.worlds.features import features
from probatum.worlds.parts import classes_stay, only_words

if TYPE_CHECKING:
    from probatum.data.dataset import Dataset

PATTERNS = ("symmetric", "pair", "instance", "confusion")
CLEAN_VALID = "clean-valid"
HUMAN = {"worse": "worse_label", "aggre": "aggre_label", "random1": "random_label1"}
HUMAN_SET = "cifar10_subset"


@dataclass(frozen=True)
class LabelNoise(World):
    """A share of the training and validation labels is wrong; the test labels are right.

    Attributes:
        rate: the share; exact but for pattern instance, where it is the mean of the rows' own rates.
        pattern: symmetric (any other class), pair (the next class), confusion (the class that a linear model confuses
            with it), instance (depends on the row, Xia et al. 2020).
        clean_valid: whether validation labels stay right.
    """

    rate: float
    pattern: str = "symmetric"
    clean_valid: bool = False
    KIND: ClassVar[str] = "label-noise"
    USAGE: ClassVar[str] = "label-noise:RATE[:symmetric|pair|instance|confusion][:clean-valid]"
    ABOUT: ClassVar[str] = "a known share of the training and validation labels is wrong, test labels are right"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.rate:g}:{self.pattern}" + (f":{CLEAN_VALID}" if self.clean_valid else "")

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> LabelNoise:
        if number is None or not 0 <= number < 1:
            told = "no rate" if number is None else f"rate {number:g}"
            raise InputError(f"world {cls.KIND} has {told}; give a share from 0 to below 1, as in label-noise:0.4")
        words = only_words(words, (*PATTERNS, CLEAN_VALID), cls.USAGE, most=2)
        patterns = [word for word in words if word in PATTERNS]
        if len(patterns) > 1:
            raise InputError(f"{' and '.join(patterns)} are two patterns; write {cls.USAGE}")
        return cls(number, patterns[0] if patterns else PATTERNS[0], CLEAN_VALID in words)

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        train, valid = self._labels(data, generator)
        return _relabelled(data, self.name, train, valid)

    def _labels(self, data: Data, generator: Generator) -> tuple[Tensor, Tensor]:
        parts: list[Part] = [data.train] if self.clean_valid else [data.train, data.valid]
        outputs = data.spec.outputs
        if self.pattern in ("instance", "confusion"):
            seen = features(data, generator)
        if self.pattern == "instance":
            z = torch.cat([seen(part) for part in parts])
            y = torch.cat([part.y for part in parts])
            if self.rate == 0:
                found = y
            else:
                law = label_noise.instance_law(z, y, outputs, self.rate, generator)
                found = label_noise.draw_labels(law, generator)
            noisy = list(found.split([len(part) for part in parts]))
        else:
            if self.pattern == "confusion":
                law = label_noise.confusion_law(seen(data.train), data.train.y, outputs, generator)
            else:
                law = {"symmetric": label_noise.symmetric_law, "pair": label_noise.pair_law}[self.pattern](outputs)
            noisy = [label_noise.wrong_labels(part.y, law, self.rate, generator) for part in parts]
        return noisy[0], data.valid.y if self.clean_valid else noisy[1]


@dataclass(frozen=True)
class HumanLabels(World):
    """CIFAR-10N: the labels that people gave (Wei et al. 2022); test rows have CIFAR-10H votes (Peterson et al. 2019).

    Attributes:
        which: worse (wrong wherever one of three was, about 40 %), aggre (majority, about 9 %), random1 (about 17 %).
    """

    which: str = "worse"
    KIND: ClassVar[str] = "human-labels"
    USAGE: ClassVar[str] = "human-labels[:worse|aggre|random1]"
    ABOUT: ClassVar[str] = f"training and validation labels as people gave them, for {HUMAN_SET} alone"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.which}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> HumanLabels:
        if number is not None:
            raise InputError(f"world {cls.KIND} takes no number; write {cls.USAGE}")
        return cls(*only_words(words, tuple(HUMAN), cls.USAGE))

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        folder = library.root()
        images = None if folder is None else folder / HUMAN_SET / f"{HUMAN_SET}.npz"
        if folder is None or images is None or not images.is_file():
            raise InputError(f"world {self.name} needs {HUMAN_SET} and cifar10_human_labels; set {library.VARIABLE}")
        with np.load(images) as pixels:
            order, tested = pixels["index_train"], pixels["index_test"]
        n = len(order)
        if source.modality != "image" or source.n != n + len(tested) or int(data.test.rows.min()) < n:
            raise InputError(
                f"world {self.name} knows the labels of the images of {HUMAN_SET} in their own order and split; "
                f"{source.name} is other data: use --data {HUMAN_SET}, or label-noise"
            )
        labels = folder / "cifar10_human_labels"
        with np.load(labels / "cifar10n_train.npz") as given:
            clean = torch.from_numpy(given["clean_label"][order].astype(np.int64))
            human = torch.from_numpy(given[HUMAN[self.which]][order].astype(np.int64))
        with np.load(labels / "cifar10h_test.npz") as given:
            votes = torch.from_numpy(given["counts"][tested].astype(np.float64))
        for part in (data.train, data.valid):
            if not torch.equal(clean[part.rows], part.y):
                raise InputError(f"world {self.name}: the labels of {source.name} are not those of {HUMAN_SET}")
        probabilities = (votes / votes.sum(dim=1, keepdim=True))[data.test.rows - n].float()
        return _relabelled(data, self.name, human[data.train.rows], human[data.valid.rows], probabilities)


def _relabelled(data: Data, name: str, train: Tensor, valid: Tensor, probabilities: Tensor | None = None) -> Data:
    counts = {}
    for what, part, y in (("training", data.train, train), ("validation", data.valid, valid)):
        wrong = y != part.y
        counts[f"wrong {what} labels"] = float(wrong.sum())
        counts[f"share of {what} labels wrong"] = float(wrong.double().mean())
    truth = Truth(name, clean_train=data.train.y, clean_valid=data.valid.y, probabilities=probabilities, counts=counts)
    found = replace(data, train=replace(data.train, y=train), valid=replace(data.valid, y=valid), truth=truth)
    classes_stay(found, name)
    return found


WORLDS = (LabelNoise, HumanLabels)
