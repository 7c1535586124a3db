"""A task: what is asked of the rows, how a network is trained and judged by it; found by name.

A ``task.py`` holds a subclass of `Task` and ``TASK``, an object of it. It lies in ``tasks/NAME/``, or in the folder of the
kind of data that brings the task (`probatum.rooms.find`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from probatum.errors import InputError
from probatum.rooms import find

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from probatum.rooms.arena import Work
    from probatum.spec import Data, Part, Spec


@dataclass(frozen=True)
class Looked:
    """What a look at the test rows found.

    Attributes:
        output: what the digest is taken of.
        measures: numbers by the names of `Task.measures`, as far as there are any.
        details: for the report, JSON values.
        rows: of measures that have them, what each test row adds: float64 (n_test,), in the order of the rows, whose mean is
            the measure. A mean over rows has the terms that it is the mean of; others have the measure plus the influence of the
            row on it (`probatum.measure.row_values`). NaN where a row does not count.
    """

    output: Tensor
    measures: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    rows: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Task:
    """One task; subclasses say what is theirs.

    Attributes:
        NAME: in kebab-case.
        STACKS: whether seeds can be trained as one computation.
        CALIBRATED: whether techniques of slot posthoc have something to calibrate: probabilities of classes.
        SELECT: how the best weights are chosen where nobody says otherwise, see `Training.select`.
        CHOOSES: measures that can choose the best weights themselves -> the `Training.select` that does it; empty = that is
            not known.
    """

    NAME: ClassVar[str] = ""
    STACKS: ClassVar[bool] = True
    CALIBRATED: ClassVar[bool] = False
    SELECT: ClassVar[str] = "last"
    CHOOSES: ClassVar[Mapping[str, str]] = {}

    # -- training --------------------------------------------------------------------------------------------------------

    def loss(self) -> nn.Module:
        """The baseline's loss."""
        raise NotImplementedError

    def shape(self, spec: Spec) -> tuple[int, ...]:
        """What a network gives for one row."""
        return (spec.outputs,)

    def as_rows(self, output: Any, target: Tensor) -> tuple[Any, Tensor]:
        """Outputs and targets as a loss sees them: one row for everything that is foretold."""
        return output, target

    def errors(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """How wrong outputs are: named numbers, lower = better."""
        raise NotImplementedError

    def further_errors(self, output: Tensor, target: Tensor, select: str) -> dict[str, float]:
        """What `score` needs for this `Training.select` besides `errors`, likewise."""
        return {}

    def look(self, predict: Callable[[Part], Tensor], part: Part, select: str = "") -> dict[str, float]:
        """`errors` and `further_errors` of a part, where `predict` gives outputs for rows; what cannot be held at once is
        looked at in pieces."""
        output = predict(part)
        return {**self.errors(output, part.y), **self.further_errors(output, part.y, select)}

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        """By which the best weights are chosen, lower = better; `select` is the recipe's `Training.select`."""
        raise NotImplementedError

    def selection(self, primary: str, axis: str) -> str:
        """How the best weights are chosen where this measure, of this axis, decides."""
        return self.CHOOSES.get(primary, self.SELECT)

    def tuned_by(self, errors: Mapping[str, float], primary: str) -> float:
        """What a tuner lowers where this measure decides."""
        return self.score(errors, self.selection(primary, ""))[0]

    # -- predicting ------------------------------------------------------------------------------------------------------

    def predicted(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """Predictions from a network's outputs: probabilities, or values."""
        return output

    def logits(self, predictions: Tensor) -> Tensor:
        """Outputs from which `predicted` makes these predictions, for what is fitted on a learner's."""
        return predictions

    def served(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """What a graph gives that is served by another runtime."""
        return output

    def decoded(self, predictions: Tensor) -> Tensor:
        """Predictions as the pipeline's target coder takes them."""
        return predictions

    # -- arena predict ---------------------------------------------------------------------------------------------------

    def measures(self, spec: Spec) -> tuple[str, ...]:
        """Names of the measures of quality and the like, the primary one first; costs come besides."""
        raise NotImplementedError

    def references(self, spec: Spec) -> tuple[str, ...]:
        """Names of the classical predictors that stand beside the baseline."""
        return ()

    def reference(self, name: str, data: Data, seed: int) -> Any:
        """One of them, fitted on the training rows: an object with ``predict(part)``."""
        raise NotImplementedError

    def measured(self, work: Work, fitted: Any) -> Looked:
        """Look at the test rows.

        Args:
            work: the trial.
            fitted: a `probatum.arenas.predict.fit.Predictor`.

        Raises:
            TrainingFailed: predictions that are not finite.
        """
        raise NotImplementedError

    def tested_rows(self, work: Work, fitted: Any) -> Mapping[str, NDArray[np.float64]]:
        """The values of rows that `measured` gives, alone; those that take many passes may be left out."""
        return self.measured(work, fitted).rows

    def primary(self, work: Work, fitted: Any) -> dict[str, float]:
        """The first of `measures` of a network, named, without all the others."""
        name = self.measures(work.data.spec)[0]
        return {name: self.measured(work, fitted).measures[name]}

    def looked_at(self, work: Work, fitted: Any) -> Tensor:
        """What the digest of a trained arm is taken of."""
        return fitted.predict(work.data.test)

    def for_timing(self, data: Data) -> Data:
        """The data that steps are timed on."""
        return data


@cache
def task(name: str) -> Task:
    """The task of this name; InputError where there is none."""
    found: Task = find.load("task", name).TASK
    if name != found.NAME:
        raise InputError(f"the task {name} calls itself {found.NAME!r}")
    return found


def without_answers(part: Part) -> Part:
    """The rows as they are asked about: all answers 0, whatever they are."""
    return replace(part, y=part.y.new_zeros(part.y.shape))


def rows_of(rows: Mapping[str, NDArray[np.float64]], measures: Mapping[str, float], count: int) -> dict[str, Any]:
    """The values of rows, checked, without those of measures that are not finite.

    Args:
        rows: by name of a measure, as in `Looked`.
        measures: the numbers that they are to average to.
        count: of test rows.

    Raises:
        ValueError: values of no measure, of another shape, or with another mean.
    """
    found = {}
    for name, values in rows.items():
        if name not in measures or np.shape(values) != (count,):
            raise ValueError(
                f"values of rows {np.shape(values)} for {name!r}; give ({count},), one for each test row, for one of "
                f"{', '.join(measures)}"
            )
        if not np.isfinite(measures[name]):
            continue
        counted = values[~np.isnan(values)]
        mean = float(counted.mean()) if len(counted) else float("nan")
        if not abs(mean - measures[name]) <= 1e-6 * max(1.0, abs(measures[name])):
            raise ValueError(
                f"the rows' values of {name} have the mean {mean:.9g}, the measure is {measures[name]:.9g}"
            )
        found[name] = values.astype(np.float64, copy=False)
    return found


def check_shape(output: Any, rows: int, spec: Spec, who: str) -> None:
    """InputError where outputs are not what the task asks: (rows, outputs), or one such row for every place."""
    shape, right = tuple(getattr(output, "shape", ())), (rows, *task(spec.task).shape(spec))
    if shape == right:
        return
    if len(right) > 2:
        raise InputError(f"{who} gives outputs of shape {shape}; for task {spec.task} it should give {right} here")
    wanted = f"{spec.outputs} classes" if spec.classes or spec.task == "classes" else f"{spec.outputs} target(s)"
    raise InputError(
        f"{who} gives outputs of shape {shape} for {rows} rows, but the data have {wanted}: "
        f"it should give {right}; change the size of its last layer"
    )
