"""What techniques see of the data: a `Spec` that describes one example, `Part`s of rows, and the `Data` of one split.

Every example is one tensor, whatever the modality, so that losses, explainers, attacks and exports need no special case:

========  ==========================  =================================================================
modality  x                           notes
========  ==========================  =================================================================
table     (n, numeric + categories)   float32; first `numeric` columns are scaled numbers, the others are
                                      category codes 0 .. cardinality-1 (0 = missing or rare/unseen)
image     (n, channels, height, width)  float32, values in [0, 1]; models normalise inside if they want to
text      (n, length)                 int64 token ids; 0 = padding (on the right), 1 = unknown
series    (n, channels, time)         float32; if `masked`, the last channel is 1 where observed and 0 at padding
========  ==========================  =================================================================

Targets: task ``classes``: y (n,) int64 in 0 .. outputs-1. Task ``reals``: y (n, outputs) float32, standardised on the
training rows. Predictors return (n, outputs): logits for classes (two columns in the binary case), values for reals.
Task ``next-token`` (text): y (n, length) int64, the token after each one of x, every position counts and none is
padding; outputs is the vocabulary and predictors return logits (n, length, outputs).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Spec:
    """Shape and meaning of one example.

    Attributes:
        modality: table, image, text, series, or another kind of data's.
        task: classes, reals, next-token, or another task's name.
        shape: shape of one x, without the batch.
        outputs: number of classes, of real targets, or of tokens.
        numeric: tables: how many leading columns of x are numbers.
        cardinalities: tables: sizes of the category columns that follow.
        vocabulary: text: number of token ids, padding and unknown included.
        masked: series: the last channel marks observed steps.
        classes: names of the classes, in the order of their codes.
        features: names of the columns or channels.
    """

    modality: str
    task: str
    shape: tuple[int, ...]
    outputs: int
    numeric: int = 0
    cardinalities: tuple[int, ...] = ()
    vocabulary: int = 0
    masked: bool = False
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("modality", "task"):  # which there are, the kinds of data say
            if not WORD.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use a word such as table or classes")


class Rows(Protocol):
    """Encoded rows that stay on disk and stand where `Part.x` is a Tensor otherwise: read them in slices or by index.

    Attributes:
        shape: rows, then the shape of one example.
        dtype: of what is read.
        device: where it is read to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The encoded rows at these positions, in the order asked; InputError where they are too many to hold."""
        ...

    def order(self, generator: torch.Generator) -> Tensor:
        """All positions in a shuffled order that is cheap to read, drawn from the generator alone."""
        ...

    def ahead(self, batches: Sequence[Tensor]) -> None:
        """Announce the batches that will be asked for, in order, so that reading runs ahead; others may be asked too."""
        ...

    def close(self) -> None:
        """Stop reading ahead and free what is held; reading again starts anew."""
        ...


@dataclass(frozen=True)
class Part:
    """Some rows: x and y as in the module's table, `rows` their numbers in the whole dataset, `text` the raw strings.

    For data larger than memory x is a `Rows`: slices and batches of it are tensors, the whole is never one.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    text: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Truth:
    """What is known of a split in a world made by `probatum.rooms.world`; techniques never see it.

    Attributes:
        world: the world's name.
        clean_train: (n_train,) labels before they were made wrong, or None.
        clean_valid: (n_valid,) likewise.
        groups: (n_test,) int64, the group of each test row, or None.
        shifted: rows from the other side of the world (evidence turned round, another share of rows or classes), or None.
        shifted_groups: (n_shifted,) their groups, or None.
        outside: rows that belong to no class of the data, or None; their y says nothing.
        probabilities: (n_test, outputs) the probabilities that the test labels were drawn from, or None.
        weights: (n_train,) density of `shifted` over that of training, mean 1, or None.
        counts: what was changed, by words for the report.
    """

    world: str
    clean_train: Tensor | None = None
    clean_valid: Tensor | None = None
    groups: Tensor | None = None
    shifted: Part | None = None
    shifted_groups: Tensor | None = None
    outside: Part | None = None
    probabilities: Tensor | None = None
    weights: Tensor | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """One split of a dataset, encoded; the pipeline that encoded it was fitted on the training rows alone.

    `truth` is what is known of rows in a made world; arenas take it off before a technique gets the data.
    """

    spec: Spec
    train: Part
    valid: Part
    test: Part
    pipeline: Any = None
    truth: Truth | None = None


class Batch(NamedTuple):
    """One training batch; `index` are positions in the training part (0 .. len(train)-1)."""

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # a field, not the tuple's method


@dataclass(frozen=True)
class Budget:
    """What a trial may spend: gradient steps of `batch_size` examples."""

    steps: int
    batch_size: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Stage:
    """What a continual learner is shown at one time: the rows of now alone.

    Attributes:
        number: 0, 1, ... in the order of time; also the task's number where tasks are told at prediction.
        classes: classes in y that no stage before had; () where a stream without boundaries brings none.
        x: encoded rows, as in the module's table.
        y: their classes (n,) int64, codes among all classes of the data.
    """

    number: int
    classes: tuple[int, ...]
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def constant_rate(step: int, steps: int) -> float:
    """The factor 1 at every step."""
    return 1.0


@dataclass(frozen=True)
class Optimisation:
    """How the baseline takes its steps, for techniques that train networks of their own at its side.

    Attributes:
        lr: learning rate of AdamW.
        weight_decay: its decoupled weight decay.
        factor: (step, steps) -> multiplier of the rate, the schedule.
        clip: global gradient norm to clip at, or None.
    """

    lr: float = 2e-3
    weight_decay: float = 1e-2
    factor: Callable[[int, int], float] = constant_rate
    clip: float | None = None


class Explanation(NamedTuple):
    """What an explainer returns: `values` shaped like the inputs, and the per-example completeness `gap` or None."""

    values: Tensor
    gap: Tensor | None = None


@dataclass(frozen=True)
class Pool:
    """Arena acquire: rows of which labels can be asked for, and what is known of them so far.

    Attributes:
        x: all rows, (n, ...).
        labelled: (m,) int64, positions of the rows whose labels were given, in the order they were asked for.
        y: (m,) int64, their labels.
        model: the network trained on them (and on what was labelled by machine), in evaluation mode.
        machine: (k,) int64, positions of rows that were labelled by machine; `guesses` (k,) int64 are their labels.
        rounds: how many rounds came before this one.
        left: labels that can still be asked for, this round's among them.
    """

    x: Tensor
    labelled: Tensor
    y: Tensor
    model: torch.nn.Module
    machine: Tensor
    guesses: Tensor
    rounds: int
    left: int

    def open(self) -> Tensor:
        """Positions of the rows without a label of their own or by machine, ascending."""
        taken = self.labelled.new_zeros(len(self.x)).bool()
        taken[self.labelled] = True
        taken[self.machine] = True
        return (~taken).nonzero().squeeze(1)


class Query(NamedTuple):
    """What a strategy answers: rows to ask for, and all rows that it labels itself (positions and labels)."""

    ask: Tensor
    machine: Tensor
    guesses: Tensor
