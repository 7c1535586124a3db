"""World of spurious evidence: a mark that goes with the class in training and is turned round afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.rooms.kind import kind_of
from probatum.rooms.world import World
from probatum.spec import Data, Part, Spec, Truth
from probatum.worlds.parts import only_words

if TYPE_CHECKING:
    from probatum.data.dataset import Dataset


@dataclass(frozen=True)
class Spurious(World):
    """Every row carries the mark of a class: its own in a share of the rows, any other's in the rest.

    What a mark is says the kind of data. Images: a bright block on the border, one place a class. Tables: one more number
    a class, 1 for the marked one. Text: a word in front, one a class. Series: a raised stretch.
    Training, validation and test rows are marked alike; `shifted` holds the test rows with another class's mark. Groups
    are (class, whether the mark is its own).

    Attributes:
        rate: the share of rows that carry their own class's mark, exact in every part.
    """

    rate: float
    KIND: ClassVar[str] = "spurious"
    USAGE: ClassVar[str] = "spurious:RATE"
    ABOUT: ClassVar[str] = (
        "a mark goes with the class in this share of the rows; shifted rows carry another class's mark"
    )

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.rate:g}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> Spurious:
        only_words(words, (), cls.USAGE)
        if number is None or not 0 <= number <= 1:
            told = "no share" if number is None else f"share {number:g}"
            raise InputError(f"world {cls.KIND} has {told} of aligned rows; give one from 0 to 1, as in spurious:0.95")
        return cls(number)

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        classes = data.spec.outputs
        spec = kind_of(data.spec.modality, data.spec.task).facet("worlds").marked_spec(data.spec)
        codes = [_codes(part.y, classes, self.rate, generator) for part in (data.train, data.valid, data.test)]
        other = _codes(data.test.y, classes, 0.0, generator)
        train, valid, test = (
            marked(part, code, data.spec) for part, code in zip((data.train, data.valid, data.test), codes, strict=True)
        )
        aligned = codes[0] == data.train.y
        truth = Truth(
            self.name,
            groups=_groups(data.test.y, codes[2]),
            shifted=marked(data.test, other, data.spec),
            shifted_groups=_groups(data.test.y, other),
            counts={
                "training rows with their own class's mark": float(aligned.sum()),
                "training rows with another's": float((~aligned).sum()),
            },
        )
        return replace(data, spec=spec, train=train, valid=valid, test=test, truth=truth)


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Rows with the marks of these classes (n,); `spec` is that of the rows as they come."""
    return kind_of(spec.modality, spec.task).facet("worlds").marked(part, codes, spec)


def _codes(y: Tensor, classes: int, rate: float, generator: Generator) -> Tensor:
    """Whose mark each row carries."""
    shift = torch.randint(1, classes, (len(y),), generator=generator)
    shift[torch.randperm(len(y), generator=generator)[: round(rate * len(y))]] = 0
    return (y + shift) % classes


def _groups(y: Tensor, codes: Tensor) -> Tensor:
    return 2 * y + (codes == y).long()


WORLDS = (Spurious,)
