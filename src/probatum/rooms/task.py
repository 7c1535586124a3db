"""A task: what is asked of the rows, how a network is trained and judged by it; found by name.

A ``task.py`` holds a subclass of `Task` and ``TASK``, an object of it. It lies in ``tasks/NAME/``, or in the folder of the
kind of data that brings the task (`probatum.rooms.find`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from probatum.errors import InputError
from probatum.rooms import find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from probatum.rooms.arena import Work
    from probatum.spec import Data, Part, Spec


class Task:
    """One task; subclasses say what is theirs.

    Attributes:
        NAME: in kebab-case.
        STACKS: whether seeds can be trained as one computation.
        CALIBRATED: whether techniques of slot posthoc have something to calibrate: probabilities of classes.
        SELECT: how the best weights are chosen where nobody says otherwise, see `Training.select`.
    """

    NAME: ClassVar[str] = ""
    STACKS: ClassVar[bool] = True
    CALIBRATED: ClassVar[bool] = False
    SELECT: ClassVar[str] = "last"

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

    def look(self, predict: Callable[[Part], Tensor], part: Part) -> dict[str, float]:
        """`errors` of a part, where `predict` gives outputs for rows; what cannot be held at once is looked at in pieces."""
        return self.errors(predict(part), part.y)

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        """By which the best weights are chosen, lower = better; `select` is the recipe's `Training.select`."""
        raise NotImplementedError

    def selection(self, primary: str, axis: str) -> str:
        """How the best weights are chosen where this measure, of this axis, decides."""
        return self.SELECT

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

    def measured(self, work: Work, fitted: Any) -> tuple[Tensor, dict[str, float], dict[str, Any]]:
        """Look at the test rows: what the digest is taken of, the measures, and details for the report.

        Args:
            work: the trial.
            fitted: a `probatum.arenas.predict.fit.Predictor`.

        Raises:
            TrainingFailed: predictions that are not finite.
        """
        raise NotImplementedError

    def primary(self, work: Work, fitted: Any) -> dict[str, float]:
        """The first of `measures` of a network, named, without all the others."""
        name = self.measures(work.data.spec)[0]
        return {name: self.measured(work, fitted)[1][name]}

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
