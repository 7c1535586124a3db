"""What a user may set beyond the dozen arguments of `Study`: frozen values, one a question.

The docstrings are the one place that says what a field means: the command line makes its options and their help from
them (`probatum.cli.options`). Their types are checked here, what they say where it is used; nothing heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from probatum.errors import InputError


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Attributes:
        target: column to predict; without it the last of target, label, class, y, or the last column.
        task: auto, classes, reals, next-token (language modelling), or another task's name.
        modality: auto, table, image, text, series, or another kind of data's name.
        group: column whose values stay on one side of the split.
        time: column to split by: the latest rows are the test.
        split: column, or one word a row, that says train, valid (dev, val) or test.
        test: test rows of your own, in the same form as the data and with the same columns: a file, a folder, a data frame
            or arrays (X, y). Every seed is then tested on them.
        drop: columns to leave out; may be given several times.
        name: what to call the data.
        memory: what the decoded data may take, bytes or words such as 2GB; larger Parquet files and image folders are
            streamed from disk. Without it PROBATUM_MEMORY, or a quarter of what is free.
        world: put every split into a world of known truth: label-noise:RATE, human-labels, spurious:RATE, long-tail:RATIO,
            covariate-shift, label-shift, ood or probabilities.
        options: what only one kind of data asks, by name, e.g. ``{"tokens": "bpe"}`` for long texts, ``{"size": 32}`` for
            folders of images, ``{"text": "review"}`` for a column of texts; see the `options` of the kinds.
    """

    target: str | None = field(default=None, metadata={"flag": ""})
    task: str = "auto"
    modality: str = "auto"
    group: str | None = None
    time: str | None = None
    split: str | Sequence[object] | None = None
    test: Any = None
    drop: tuple[str, ...] = ()
    name: str | None = field(default=None, metadata={"flag": ""})
    memory: float | str | None = None
    world: Any = None
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"flag": ""})


@dataclass(frozen=True)
class Judging:
    """What is compared, and when it counts.

    Attributes:
        budget: steps, or compute: equal arithmetic instead of equal gradient steps.
        references: show classical predictors beside the baseline.
        confirm: try the winner again on as many fresh seeds.
        confidence: of every interval.
        question: data: new rows like these, models trained on samples of these rows; or datasets: other data sets of this
            kind, which makes intervals wider.
        race: stop arms once they are decided or hopeless; the number of seeds is the most that an arm can run.
        holdout: share of the rows that each seed tests, at most 0.5. Seeds are repeated folds, so that every row is tested
            equally often. Validation takes a fifth of all rows, at most a quarter of those not tested.
        swap: test validation rows too, by the weights that test rows choose in the same training, so that no row chooses the
            weights that it tests; intervals are narrower and nothing is trained twice. Where it cannot be it is told.
    """

    budget: str = "steps"
    references: bool = True
    confirm: bool = True
    confidence: float = 0.95
    question: str = field(default="data", metadata={"flag": "--for"})
    race: bool = False
    holdout: float = 0.2
    swap: bool = True


@dataclass(frozen=True)
class Running:
    """Where and how it runs.

    Attributes:
        timing: measure speed, interleaved, after the fits.
        threads: torch threads in every trial.
        workers: processes that run trials side by side; 0: as many as the cores hold; auto: as many as cores and memory
            hold, and this process where it is soon over. Timings are taken alone.
        minutes: use so many minutes as well as they can be: what is promising first, six seeds for every arm before any has
            more, no further ones for arms that are decided or hopeless. The same again goes on from there.
        on: ray://HOST:PORT, or ray: run the trials on a Ray cluster, or on this machine's.
        stack: train an arm's seeds as one computation: auto (where a probe says that it pays), always, never. Answers are
            the same to float tolerance.
        device: where networks are trained: cpu, cuda, cuda:1, mps, or auto for what is there.
        speed: plain, or auto: time channels-last images and torch.compile on the baseline, use what pays in every trial.
        precision: float32; bf16: training passes in bfloat16, which changes results; or auto, with speed auto.
        apart: run techniques from outside this package (--technique, other packages) in a process of their own, so that they
            cannot touch other arms. Without it trials that ran beside them count for no other study.
        trial_minutes: what a trial may take before it is stopped, and has failed; without it 15 minutes, or 100 times the
            baseline's if that is longer.
        trial_memory: what a worker process may take beside what it starts with, bytes or words such as 4GB; without it what
            is free.
        devices: how many devices train one network together; above 1 it needs pip install probatum[cluster].
        strategy: over several devices: ddp (copies of the network) or fsdp (its pieces).
    """

    timing: bool = True
    threads: int = 1
    workers: int | str = field(default=1, metadata={"usual": "auto"})
    minutes: float | None = None
    on: str | None = None
    stack: str = "auto"
    device: str = "cpu"
    speed: str = "plain"
    precision: str = "float32"
    apart: bool = True
    trial_minutes: float | None = None
    trial_memory: float | str | None = None
    devices: int = 1
    strategy: str = "ddp"


@dataclass(frozen=True)
class FineTuning:
    """Every arm starts from one pretrained network, with a new last layer.

    Attributes:
        source: other data, as for the study, on which the baseline's network is trained first, once for all seeds.
        steps: updates of that training; None = the usual number, at most 3,000.
        weights: or weights: a state dict, a module, or a file by torch.save or of safetensors.
    """

    source: Any = field(default=None, metadata={"flag": "--pretrain"})
    steps: int | None = field(default=None, metadata={"flag": "--pretrain-steps"})
    weights: Any = field(default=None, metadata={"flag": "--pretrained"})


T = TypeVar("T")
WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    bool: "True or False",
    NoneType: "None",
    Path: "a path",
    Mapping: "a mapping",
    Sequence: "a list",
    tuple: "a list of words",
}


def checked(value: Any, kind: type[T]) -> T:
    """A value of this kind (None = its defaults) whose fields have the types that it says.

    Numbers of numpy become Python's, and a word where several are asked becomes a tuple of one.

    Raises:
        InputError: it is something else, or one of its fields is; named, with what to give.
    """
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InputError(f"{value!r} stands where a {kind.__name__} is asked; give probatum.{kind.__name__}(...)")
    hints = get_type_hints(kind)
    found = {name: fitting(getattr(value, name), hints[name], name) for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    return replace(value, **found)  # type: ignore[type-var]


def fitting(value: Any, hint: Any, name: str) -> Any:
    """The value as this type; InputError, by the setting's name, where it is none."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for one in choices:
        found = _as(value, one)
        if found is not _OTHER:
            return found
    asked = " or ".join(WORDS.get(get_origin(one) or one, str(one)) for one in choices)
    raise InputError(f"{name} is {value!r}; give {asked}")


_OTHER = object()


def _as(value: Any, hint: Any) -> Any:
    """The value as this type, or `_OTHER`."""
    plain = get_origin(hint) or hint
    if hint is Any:
        return value
    if plain is bool:
        return bool(value) if type(value).__name__ in ("bool", "bool_") else _OTHER
    if plain in (int, float):
        number = isinstance(value, Integral if plain is int else Real) and type(value).__name__ not in ("bool", "bool_")
        return plain(value) if number and math.isfinite(value) else _OTHER
    if plain is tuple:
        words = (value,) if isinstance(value, str) else value
        fine = isinstance(words, tuple | list) and all(isinstance(word, str) for word in words)
        return tuple(words) if fine else _OTHER
    if plain is Sequence:
        listed = hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str | Mapping)
        return value if listed else _OTHER
    return value if isinstance(value, plain) else _OTHER


def with_target(reading: Reading, target: str | None) -> Reading:
    """A reading in which the target, given in short beside it, is said; InputError where it is said twice."""
    if target is None or target == reading.target:
        return reading
    if reading.target is not None:
        raise InputError(f"target is {target!r} and the reading's {reading.target!r}; say it once")
    return replace(reading, target=target)


def with_test(reading: Reading, test: Any) -> Reading:
    """A reading in which the test rows, given in short beside it, are said; InputError where they are said twice."""
    if test is None or test is reading.test:
        return reading
    if reading.test is not None:
        raise InputError("test is said here and in the reading; say it once")
    return replace(reading, test=test)


def told(value: Any) -> dict[str, Any]:
    """The fields of a value that say other than its class does by default."""
    usual, found = type(value)(), {}
    for name in value.__dataclass_fields__:
        got, before = getattr(value, name), getattr(usual, name)
        if got is not before and (before is None or got != before):  # data frames do not compare to one answer
            found[name] = got
    return found


def documented(kind: type) -> dict[str, str]:
    """What a value's docstring says of each of its fields, by name, each on one line."""
    found: dict[str, str] = {}
    lines = (kind.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in lines:
        words = line.strip()
        if words and len(line) - len(line.lstrip()) == margin:
            name, _, about = words.partition(": ")
            found[name] = about
        elif words and found:
            found[next(reversed(found))] += f" {words}"
    return found
