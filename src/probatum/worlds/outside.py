"""World with rows from outside: they belong to no class of the data and should be met with low confidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.rooms.kind import kind_of
from probatum.rooms.world import World, world_mark
from probatum.spec import Data, Part, Truth
from probatum.worlds.parts import classes_stay, taken

if TYPE_CHECKING:
    from probatum.data.dataset import Dataset

NOISE, SHUFFLED, HELD_OUT = "noise", "shuffled", "held-out"


@dataclass(frozen=True)
class Outside(World):
    """`outside` holds rows to be told from the test rows; training never sees any.

    Attributes:
        what: held-out (a class, drawn by the seed, that training does without), shuffled (each number of a test row is
            that of a random other one: same marginals, nothing holds together), noise (uniform pixels, normal numbers,
            random words), or the name of another set (images or series of equal shape, or texts).
    """

    what: str = SHUFFLED
    KIND: ClassVar[str] = "ood"
    USAGE: ClassVar[str] = "ood[:held-out|shuffled|noise|NAME OF A SET]"
    ABOUT: ClassVar[str] = "rows that belong to no class are told from test rows by the confidence of predictions"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.what}"

    @classmethod
    def read(cls, number: float | None, words: tuple[str, ...]) -> Outside:
        if number is not None or len(words) > 1:
            raise InputError(f"world {cls.KIND} takes one word and no number; write {cls.USAGE}")
        return cls(*words)

    def apply(self, data: Data, generator: Generator, source: Dataset) -> Data:
        if self.what == HELD_OUT:
            return self._without_a_class(data, generator)
        if self.what in (NOISE, SHUFFLED):
            how = kind_of(data.spec.modality, data.spec.task).facet("worlds")
            outside = _outside(*(how.noise if self.what == NOISE else how.shuffled)(data, generator))
        else:
            outside = self._from_set(data, generator, source)
        return replace(data, truth=self._truth(outside))

    def _truth(self, outside: Part, **more: float) -> Truth:
        return Truth(self.name, outside=outside, counts={"rows from outside": float(len(outside)), **more})

    def _without_a_class(self, data: Data, generator: Generator) -> Data:
        spec = data.spec
        if spec.outputs < 3:
            raise InputError(
                f"world {self.name} takes a class out of {spec.outputs}; it needs 3 or more: use ood:shuffled"
            )
        gone = int(torch.randint(spec.outputs, (1,), generator=generator))
        outside = taken(data.test, (data.test.y == gone).nonzero()[:, 0])

        def kept(part: Part) -> Part:
            rest = taken(part, (part.y != gone).nonzero()[:, 0])
            return replace(rest, y=rest.y - (rest.y > gone).long())

        smaller = replace(
            spec, outputs=spec.outputs - 1, classes=tuple(name for k, name in enumerate(spec.classes) if k != gone)
        )
        found = replace(
            data,
            spec=smaller,
            train=kept(data.train),
            valid=kept(data.valid),
            test=kept(data.test),
            truth=self._truth(outside, **{"classes left": float(spec.outputs - 1)}),
        )
        classes_stay(found, self.name)
        return found

    def _from_set(self, data: Data, generator: Generator, source: Dataset) -> Part:
        from probatum.data.open import open_dataset

        spec: Any = data.spec
        how = kind_of(spec.modality, spec.task).facet("worlds")
        how.check_other_set(spec, self.name)
        other: Any = open_dataset(self.what)
        if getattr(other, "modality", "") != spec.modality or getattr(other, "raw", None) is None or other.streamed:
            raise InputError(f"world {self.name}: {self.what} is no set of {spec.modality} rows; name one")
        if source.fingerprint in (other.fingerprint, world_mark(other.fingerprint, self.name)):
            raise InputError(
                f"world {self.name}: {self.what} are these data themselves, which training sees; name others"
            )
        rows = torch.randperm(other.n, generator=generator)[: len(data.test)].sort().values
        raw = other.raw.take(rows.numpy().astype(np.int64))
        try:
            x = data.pipeline.encode(raw)
        except (ValueError, RuntimeError, IndexError) as problem:
            raise InputError(f"world {self.name}: rows of {self.what} do not fit these data: {problem}") from problem
        if tuple(x.shape[1:]) != spec.shape:
            shapes = " and ".join("x".join(map(str, shape)) for shape in (x.shape[1:], spec.shape))
            raise InputError(f"world {self.name}: examples of {self.what} and of these data have shapes {shapes}")
        return _outside(x, how.texts_of(raw))


def _outside(x: Tensor, text: tuple[str, ...] | None) -> Part:
    return Part(x, torch.zeros(len(x), dtype=torch.int64), torch.full((len(x),), -1), text)


WORLDS = (Outside,)
