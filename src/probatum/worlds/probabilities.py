"""World of known probabilities: labels are drawn anew from a known function of the row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator

from probatum.errors import InputError
from probatum.numerics.labels.noise import draw_labels
from probatum.rooms.world import World
from probatum.spec import Data, Truth
from probatum.worlds.features import features, network_scores
from probatum.worlds.parts import classes_stay, only_words

if TYPE_CHECKING:
    from probatum.data.dataset import Dataset


@dataclass(frozen=True)
class Probabilities(World):
    """Labels of all rows are drawn from p*(x) = softmax(sharpness s(x)), s a random network of the row's features.

    The names of the classes stay and mean nothing any more. The scores of a class have deviation 1 over the rows, and the
    network is the seed's.

    Attributes:
        sharpness: 0 = even odds, large = labels nearly certain.
    """

    sharpness: float = 2.0
    KIND: ClassVar[str] = "probabilities"
    USAGE: ClassVar[str] = "probabilities[:SHARPNESS]"
    ABOUT: ClassVar[str] = "labels are drawn anew from known probabilities of each row"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.sharpness:g}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> Probabilities:
        only_words(words, (), cls.USAGE)
        if number is not None and not 0 <= number <= 100:
            raise InputError(f"world {cls.KIND} has sharpness {number:g}; give one from 0 to 100, 2 is usual")
        return cls() if number is None else cls(number)

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        seen = features(data, generator)
        parts = (data.train, data.valid, data.test)
        scores = network_scores(torch.cat([seen(part) for part in parts]), data.spec.outputs, generator)
        law = (self.sharpness * scores).softmax(dim=1)
        drawn = draw_labels(law, generator).split([len(part) for part in parts])
        train, valid, test = (replace(part, y=y) for part, y in zip(parts, drawn, strict=True))
        own = law[-len(test) :]
        best = float((own.argmax(dim=1) == test.y).double().mean())
        counts = {"accuracy of the likeliest class on test rows": best}
        truth = Truth(self.name, probabilities=own.float(), counts=counts)
        found = replace(data, train=train, valid=valid, test=test, truth=truth)
        classes_stay(found, self.name)
        return found


WORLDS = (Probabilities,)
