"""Language: one long text, of which the next token is asked at every place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probatum.errors import InputError
from probatum.recipe import Training
from probatum.rooms.kind import Kind, NamedSet, Toy

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from probatum.spec import Spec


class Language(Kind):
    """Windows of tokens; what techniques see of them are texts."""

    NAME = "language"
    MODALITY = "text"
    TASKS = ("next-token",)
    ABOUT = "language modelling, of .txt or .txt.gz files or a corpus by name"
    ORDER = 10
    ROWS = False
    UNIT = "characters"
    NEW = "new.txt"
    EXAMPLE = "python-topics"

    def options(self) -> type:
        """How the text is cut into tokens."""
        from probatum.kinds.language.options import Options

        return Options

    def sets(self) -> Mapping[str, NamedSet]:
        """The help texts of Python, and the corpora of the folder of data."""
        from probatum.kinds.language.corpus import sets

        return sets()

    def opens(self, door: Any) -> bool:
        """Text files, unless they are said to be of another kind, and whatever is said to be of this task, which then is
        refused by name."""
        from probatum.kinds.language.corpus import SUFFIXES

        return door.reading.task in self.TASKS or (door.asked(self) and door.ends(*SUFFIXES))

    def open(self, door: Any) -> Any:
        """A `Corpus`."""
        from probatum.kinds.language.corpus import open_corpus

        return open_corpus(door.source, door.reading)

    def read_new(self, path: Any) -> Any:
        """Nothing: whole texts are read, not rows."""
        raise InputError("a language model reads whole texts, not rows; give it texts to predict")

    def predicted(self, pipeline: Any, predict: Callable[[Any], Tensor], source: Any) -> Any:
        """The bits that each text takes."""
        from probatum.kinds.language.scored import scored

        return scored(predict, pipeline.features, source)

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
        """The tokens as they were saved."""
        from probatum.kinds.language.tokens import TokenEncoder

        return TokenEncoder.from_state(meta, arrays)

    def describe(self, encoder: Any) -> dict[str, Any]:
        """Tokens of a window, and how many there are to choose from."""
        return {"shape": (encoder.length,), "vocabulary": encoder.vocabulary, "features": ("text",)}

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> Any:
        """Nothing: whole texts are read, not rows."""
        return self.read_new(source)

    def training(self, task: str) -> Training:
        """Chosen on validation text of a development seed, see decisions/language.md."""
        return Training(steps=1600, batch_size=16, lr=8e-3, weight_decay=1e-1, clip=1.0, select="log-loss")

    def network(self, spec: Spec) -> nn.Module:
        """A small decoder."""
        from probatum.kinds.language.network import Decoder

        return Decoder(spec)

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        """Windows of a chain whose next token is a function of the one before, one time in ten any token."""
        from probatum.kinds.language.toy import toy

        return toy(len(hidden))


KIND = Language()
