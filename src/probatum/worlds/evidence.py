"""World of spurious evidence: a mark that goes with the class in training and is turned round afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from probatum.data.worlds import World, only_words
from probatum.errors import InputError
from probatum.spec import Data, Part, Spec, Truth

if TYPE_CHECKING:
    from probatum.data.dataset import Dataset

WORD = "evidence"
OFFSET = 1.5
"""What is added to the marked stretch of a series, in deviations of its channel."""


@dataclass(frozen=True)
class Spurious(World):
    """Every row carries the mark of a class: its own in a share of the rows, any other's in the rest.

    Images: a bright block on the border, one place a class. Tables: one more number a class, 1 for the marked one. Text: a
    word in front, one a class. Series: one of as many equal stretches as there are classes lies higher (first channel).
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
        spec = marked_spec(data.spec)
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


def _codes(y: Tensor, classes: int, rate: float, generator: Generator) -> Tensor:
    """Whose mark each row carries."""
    shift = torch.randint(1, classes, (len(y),), generator=generator)
    shift[torch.randperm(len(y), generator=generator)[: round(rate * len(y))]] = 0
    return (y + shift) % classes


def _groups(y: Tensor, codes: Tensor) -> Tensor:
    return 2 * y + (codes == y).long()


def marked_spec(spec: Spec) -> Spec:
    """The description of marked rows; InputError where there is no room for one mark a class."""
    classes = spec.outputs
    if spec.modality == "table":
        names = tuple(f"{WORD} {k}" for k in range(classes))
        cut = spec.numeric if len(spec.features) == spec.shape[0] else len(spec.features)
        return replace(
            spec,
            shape=(spec.shape[0] + classes,),
            numeric=spec.numeric + classes,
            features=(*spec.features[:cut], *names, *spec.features[cut:]) if spec.features else (),
        )
    if spec.modality == "text":
        return replace(spec, vocabulary=spec.vocabulary + classes)
    if spec.modality == "image":
        places(spec)
    elif spec.shape[1] < classes:
        raise InputError(f"series of {spec.shape[1]} steps have no room for the marks of {classes} classes")
    return spec


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Rows with the marks of these classes; `spec` is that of the rows as they come."""
    x, n = part.x, len(part)
    if spec.modality == "table":
        mark = torch.nn.functional.one_hot(codes, spec.outputs).to(x.dtype)
        return replace(part, x=torch.cat([x[:, : spec.numeric], mark, x[:, spec.numeric :]], dim=1))
    if spec.modality == "text":
        text = None
        if part.text is not None:
            text = tuple(f"{WORD}{k} {words}" for k, words in zip(codes.tolist(), part.text, strict=True))
        return replace(part, x=torch.cat([spec.vocabulary + codes[:, None], x[:, :-1]], dim=1), text=text)
    x = x.clone()
    if spec.modality == "image":
        side, corners = places(spec)
        for top, left in corners:
            x[:, :, top : top + side, left : left + side] = 0.0
        for k, (top, left) in enumerate(corners):
            x[codes == k, :, top : top + side, left : left + side] = 1.0
        return replace(part, x=x)
    length = x[:, -1].sum(dim=1, keepdim=True) if spec.masked else torch.full((n, 1), float(x.shape[2]))
    step = torch.arange(x.shape[2], dtype=torch.float32)[None]
    stretch = (step * spec.outputs / length.clamp_min(1)).floor() == codes[:, None]
    seen = x[:, -1] if spec.masked else torch.ones_like(x[:, 0])
    x[:, 0] += OFFSET * stretch * seen
    return replace(part, x=x)


def places(spec: Spec) -> tuple[int, list[tuple[int, int]]]:
    """Side of the blocks, and the upper left corner of each class's one, spread evenly over the image's border."""
    _, height, width = spec.shape
    side = max(1, min(height, width) // 8)
    rows, columns = height // side, width // side
    border = [(0, j) for j in range(columns)] + [(i, columns - 1) for i in range(1, rows)]
    border += [(rows - 1, j) for j in range(columns - 2, -1, -1)] + [(i, 0) for i in range(rows - 2, 0, -1)]
    border = list(dict.fromkeys(border))
    if spec.outputs > len(border):
        raise InputError(f"images of {height} x {width} have no room for the marks of {spec.outputs} classes")
    chosen = [border[k * len(border) // spec.outputs] for k in range(spec.outputs)]
    return side, [(i * side, j * side) for i, j in chosen]


WORLDS = (Spurious,)
