"""Task reals: one or several real numbers for each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from probatum.rooms.arena import Work
from probatum.rooms.task import Looked, Task
from probatum.spec import Data, Spec
from probatum.tasks import classical


class Reals(Task):
    """Values (n, outputs) and y (n, outputs) float32, standardised on the training rows."""

    NAME = "reals"
    SELECT = "rmse"

    def loss(self) -> nn.Module:
        """Mean squared error."""
        return nn.MSELoss()

    def errors(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Root mean squared error on the standardised scale."""
        return {"rmse": F.mse_loss(output, target).sqrt().item()}

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        """The error."""
        return (errors["rmse"],)

    def tuned_by(self, errors: Mapping[str, float], primary: str) -> float:
        """The error."""
        return errors["rmse"]

    def measures(self, spec: Spec) -> tuple[str, ...]:
        """Quality, intervals and robustness; the root mean squared error first."""
        return (
            *("rmse", "mae", "r2", "interval-width-90"),
            *("nll", "coverage-gap-95", "interval-width-95", "corrupted-rmse"),
        )

    def references(self, spec: Spec) -> tuple[str, ...]:
        """Ridge regression, trees, neighbours."""
        return classical.NAMES[self.NAME]

    def reference(self, name: str, data: Data, seed: int) -> Any:
        """One of them, fitted on the training rows."""
        return classical.fit(name, data, seed)

    def measured(self, work: Work, fitted: Any) -> Looked:
        """Everything that predicted values of the test rows can be asked."""
        from probatum.tasks.look import look_at_reals

        return look_at_reals(work, fitted)

    def primary(self, work: Work, fitted: Any) -> dict[str, float]:
        """Root mean squared error on the test rows, standardised scale."""
        test = work.data.test
        return {"rmse": float((fitted.predict(test) - test.y).square().mean().sqrt())}


TASK = Reals()
