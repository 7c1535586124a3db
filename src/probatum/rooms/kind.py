"""A kind of data: everything that Probatum must know of data of one sort, in one folder that is found by name.

``kinds/NAME/kind.py`` holds a subclass of `Kind` and ``KIND``, an object of it. What a kind is asked beyond that stands in
further files of its folder, its facets, each with the functions that `probatum.kinds.usual` has under the same file name;
a function, or a whole file, that a kind lacks is taken from there:

=================  ==========================================================================================
``corruptions``    what the world does to inputs, in five severities
``features``       rows as numbers: for classical predictors, audits and worlds
``worlds``         marks that go with a class, rows of noise, rows whose parts are shuffled
``audit``          rows without a pipeline, parts whose part in an answer is asked, simple facts of a row
``restoration``    what noise, lost places and blur are (arena generate)
``pictures``       names of a row's places, and how a row is shown
=================  ==========================================================================================

`tests/rooms/test_kind_from_outside.py` adds a kind that is no part of the package, end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from probatum.errors import InputError
from probatum.rooms import find

if TYPE_CHECKING:
    import hashlib

    import numpy as np
    import polars as pl
    from torch import Tensor, nn

    from probatum.card import Card
    from probatum.recipe import Training
    from probatum.rooms.world import World
    from probatum.settings import Reading
    from probatum.spec import Data, Spec


class Raw(Protocol):
    """Raw rows: in memory (`Held`), or on disk (`Streamed`). Texts have `texts` besides."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Any:
        """The rows with these numbers, in this order."""
        ...

    def digest(self, sha: hashlib._Hash) -> None:
        """Feed schema and values to a hash, the same in every process."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """For each column or channel its name, kind, missing cells and distinct values (None where not counted)."""
        ...


class Held(Raw, Protocol):
    """Raw rows in memory."""

    def row_keys(self) -> list[bytes]:
        """One key a row: rows with equal keys are copies, and stay on one side of a split."""
        ...


class Streamed(Raw, Protocol):
    """Raw rows that are read from disk as they are used; `streamed` is True."""

    streamed: bool

    @property
    def opened_with(self) -> int:
        """A limit in bytes with which the files are opened as they are now."""
        ...

    def prepared(self, dataset: Any, parts: Sequence[np.ndarray], seed: int) -> Data:
        """The split encoded: x of every part is a `probatum.spec.Rows`."""
        ...


class Opened(Protocol):
    """Data that were opened: a `probatum.data.dataset.Dataset`, or what a kind without rows has in its place."""

    @property
    def kind(self) -> Kind: ...
    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def target(self) -> str:
        """What is predicted, in the user's words."""
        ...

    @property
    def n(self) -> int:
        """How much there is, in `Kind.UNIT`."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings of one line, each with what was done or the remedy."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of everything that is trained on, equal in every process."""
        ...

    @property
    def fixed_split(self) -> bool:
        """Whether all seeds share the same test rows."""
        ...

    @property
    def grouped(self) -> bool:
        """Whether groups of the user's are kept together."""
        ...

    @property
    def streamed(self) -> bool: ...
    @property
    def memory(self) -> int | None:
        """Data on disk: a limit in bytes with which they are opened as they are now."""
        ...

    @property
    def world(self) -> World | None: ...

    def prepare(self, seed: int, *, fractions: Sequence[float] = ..., folds: bool = ...) -> Data:
        """The split of a seed, encoded: drawn at random, or a fold of `probatum.data.folds.draw_folds`."""
        ...

    def summary(self, data: Data | None = None) -> dict[str, Any]:
        """What the command line and reports show, as JSON values; `data` is the split of seed 0, if it is there."""
        ...


class Encoder(Protocol):
    """What turns raw rows into x, fitted on training rows alone."""

    def encode(self, raw: Any) -> Tensor:
        """x (n, ...) as `probatum.spec` has it; InputError where rows do not fit."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What to save: JSON values and arrays."""
        ...


class Toy(NamedTuple):
    """Small examples: x, the fields of `Spec` that describe them, their strings if they are texts, and y where the
    kind's task asks something else than a class or a number a row."""

    x: Tensor
    fields: Mapping[str, Any]
    text: tuple[str, ...] | None = None
    y: Tensor | None = None


@dataclass(frozen=True)
class NamedSet:
    """A set that is opened by its name.

    Attributes:
        open: what a user says of it -> the data.
        takes: fields of `Reading`, and options of the kind, that may be said of it besides name, memory and world.
        embedded: whether it needs no file.
        rows: whether it is a set of rows, and not, say, one long text.
    """

    open: Callable[[Reading], Any]
    takes: tuple[str, ...] = ()
    embedded: bool = False
    rows: bool = True


class Kind:
    """One kind of data; subclasses override what is theirs.

    Attributes:
        NAME: as the folder's, in kebab-case.
        MODALITY: what techniques are told that x is (`Spec.modality`); "" = the name. Two kinds may share one and differ in
            their task: long texts are texts of which the next token is asked.
        TASKS: tasks that can be asked of it.
        ABOUT: one line, with the forms that it comes in.
        ORDER: kinds are asked in this order whether data are theirs; what takes nearly everything comes late.
        ROWS: whether rows are given as such, and not cut out of something longer as the seed draws them.
        UNIT: what is counted when the size of the data is told.
        NEW: the name of a file of new data in examples.
        EXAMPLE: the name of an embedded set, a small one, on which `probatum check kind/NAME` tries what needs raw rows.
    """

    NAME: ClassVar[str] = ""
    MODALITY: ClassVar[str] = ""
    TASKS: ClassVar[tuple[str, ...]] = ("classes", "reals")
    ABOUT: ClassVar[str] = ""
    ORDER: ClassVar[int] = 50
    ROWS: ClassVar[bool] = True
    UNIT: ClassVar[str] = "rows"
    NEW: ClassVar[str] = "new.csv"
    EXAMPLE: ClassVar[str] = ""

    @property
    def modality(self) -> str:
        """What `Spec.modality` says of such data."""
        return self.MODALITY or self.NAME

    def options(self) -> type | None:
        """A frozen dataclass, documented by its docstring, of what is asked when such data are read; None = nothing."""
        return None

    # -- what is opened --------------------------------------------------------------------------------------------------

    def sets(self) -> Mapping[str, NamedSet]:
        """Data of this kind that are known by name."""
        return {}

    def opens(self, door: Any) -> bool:
        """Whether what stands at the `probatum.data.door.Door` is data of this kind, and the user said nothing else."""
        return False

    def open(self, door: Any) -> Opened:
        """The data; InputError with the remedy where they cannot be used."""
        raise NotImplementedError

    def read_new(self, path: Any) -> Any:
        """What a file or folder of new rows holds, for `new_rows`."""
        raise NotImplementedError

    # -- how rows become tensors -----------------------------------------------------------------------------------------

    def fit(self, raw: Any) -> Encoder:
        """The encoder, fitted on these training rows."""
        raise NotImplementedError

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Encoder:
        """The encoder whose `state` this is."""
        raise NotImplementedError

    def describe(self, encoder: Any) -> dict[str, Any]:
        """The fields of `Spec` that say what the encoder's x is: shape, features and whatever else."""
        raise NotImplementedError

    def new_rows(self, encoder: Any, source: Any, exclude: Sequence[str] = ()) -> tuple[Any, pl.DataFrame]:
        """Raw rows of new data, and the same rows as a frame to show beside predictions; `exclude` are target columns."""
        raise NotImplementedError

    def as_new(self, raw: Any) -> Any:
        """Raw rows as a user hands them over: what `new_rows` takes, and X where targets stand beside, (X, y); for trying out."""
        raise NotImplementedError

    def predicted(self, pipeline: Any, predict: Callable[[Any], Tensor], source: Any) -> Any:
        """What a shipped model says of new data as a frame; None = the predictions of every row, as the task decodes them.

        Args:
            pipeline: the model's `probatum.data.pipeline.Pipeline`.
            predict: encoded part -> predictions.
            source: new data.
        """
        return None

    def adapted(self, dataset: Any, encoder: Any) -> Any:
        """Fine-tuning: the data encoded as those of pretraining were, where codes mean something only there."""
        return dataset

    def check_weights_alone(self, dataset: Any) -> None:
        """Fine-tuning from weights without their data: InputError where codes would mean nothing."""

    def shared_rows(self, first: Any, second: Any) -> int:
        """How many of the second raw rows stand among the first, too."""
        known = set(first.row_keys())
        return sum(key in known for key in second.row_keys())

    # -- the baseline ----------------------------------------------------------------------------------------------------

    def training(self, task: str) -> Training:
        """How the baseline's network is trained."""
        raise NotImplementedError

    def network(self, spec: Spec) -> nn.Module:
        """The baseline's network, drawn from torch's own stream."""
        raise NotImplementedError

    # -- trying things out -----------------------------------------------------------------------------------------------

    def toy(self, hidden: Tensor, generator: Any) -> Toy:
        """Small examples in which the hidden class (n,) in 0 .. 2 can be seen."""
        raise NotImplementedError

    def facet(self, name: str) -> Any:
        """Further functions of this kind, by the name of their file; see the module's table."""
        return _facet(find.room("kind", self.NAME), name)


class _Facet:
    """A kind's own functions, and the usual ones in place of those that it lacks."""

    def __init__(self, own: Any, usual: Any) -> None:
        self._places = [place for place in (own, usual) if place is not None]

    def __getattr__(self, name: str) -> Any:
        for place in self._places:
            if hasattr(place, name):
                return getattr(place, name)
        raise AttributeError(f"no kind of data has {name}")


@cache
def _facet(room: find.Room, name: str) -> _Facet:
    own = find.part(room, name)
    usual = find.part(find.Room("kind", "usual", find.PACKAGE / "kinds" / "usual", "probatum.kinds.usual"), name)
    if usual is None:
        raise ValueError(f"kinds of data have no facet {name!r}")
    return _Facet(own, usual)


def kind(name: str) -> Kind:
    """The kind of data of this name; InputError where there is none."""
    found = getattr(find.load("kind", name), "KIND", None)
    if not isinstance(found, Kind):
        raise InputError(f"{find.room('kind', name).folder / 'kind.py'} holds no KIND, an object of its class; add it")
    if name != found.NAME:
        raise InputError(f"the kind in the folder {name} calls itself {found.NAME!r}; let NAME say {name!r}")
    return found


def kinds() -> tuple[Kind, ...]:
    """All kinds of data, in the order in which they are asked whether data are theirs."""
    return _known(tuple(find.room("kind", name) for name in find.names("kind")))


@cache
def _known(rooms: tuple[find.Room, ...]) -> tuple[Kind, ...]:
    found = tuple(sorted((kind(room.name) for room in rooms), key=lambda one: (one.ORDER, one.NAME)))
    whose: dict[tuple[str, str], Kind] = {}
    for one in found:
        for asked in one.TASKS:
            other = whose.setdefault((one.modality, asked), one)
            if other is not one:
                raise InputError(
                    f"the kinds {other.NAME} and {one.NAME} both have modality {one.modality!r} and task {asked!r}, so that "
                    f"nobody could tell whose data are whose; give {one.NAME} a MODALITY or TASKS of its own"
                )
    return found


@contextmanager
def blamed(kind: Kind, doing: str) -> Iterator[None]:
    """A block that a kind's own code runs in: what it raises is an InputError that names kind and folder, if it is not ours."""
    try:
        yield
    except Exception as problem:
        room = find.room("kind", kind.NAME)
        if isinstance(problem, InputError) or find.PACKAGE in room.folder.parents:
            raise
        raise InputError(
            f"kind {kind.NAME} ({room.folder}): {doing} fails: {type(problem).__name__}: {problem}"
        ) from problem


def kind_of(modality: str, task: str) -> Kind:
    """The kind whose examples look so and of which this is asked; InputError where there is none."""
    found = [one for one in kinds() if one.modality == modality and task in one.TASKS]
    if not found:
        raise InputError(
            f"no kind of data has modality {modality!r} and task {task!r}; there are {_told()}; one of your own joins by its "
            "folder (--kind, or probatum.rooms.find.add)"
        )
    return found[0]


def modalities() -> tuple[str, ...]:
    """What examples may be, in the order of the kinds."""
    return tuple(dict.fromkeys(one.modality for one in sorted(kinds(), key=lambda one: (-one.ORDER, one.NAME))))


def takes(card: Card, modality: str, task: str) -> str:
    """Why a technique does not take such data, by its card; "" where it does."""
    if card.modalities and modality not in card.modalities:
        return f"takes {', '.join(card.modalities)}; these data are {modality}"
    if task not in card.tasks:
        return f"needs task {' or '.join(card.tasks)}; the task here is {task}"
    return ""


def _told() -> str:
    return "; ".join(f"{one.modality}: {', '.join(one.TASKS)}" for one in kinds())
