"""Task classes: which of a few classes each row is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from probatum.rooms.arena import Work
from probatum.rooms.task import Looked, Task
from probatum.spec import Data, Spec
from probatum.tasks import classical

BY_LOG_LOSS = ("log-loss", "brier")
"""Measures of quality by which weights are chosen as by the log-loss."""


class Classes(Task):
    """Logits (n, classes); y (n,) int64 in 0 .. classes - 1."""

    NAME = "classes"
    CALIBRATED = True
    SELECT = "accuracy"

    def loss(self) -> nn.Module:
        """Cross-entropy."""
        return nn.CrossEntropyLoss()

    def errors(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Share of rows that are wrong, and log-loss in nats."""
        wrong = (output.argmax(dim=1) != target).float().mean().item()
        return {"error": wrong, "log_loss": F.cross_entropy(output, target).item()}

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        """The error, with the log-loss where it is equal; or the log-loss."""
        if select == "log-loss":
            return (errors["log_loss"],)
        return (errors["error"], errors["log_loss"])

    def selection(self, primary: str, axis: str) -> str:
        """By log-loss where probabilities decide."""
        return "log-loss" if axis == "calibration" or primary in BY_LOG_LOSS else self.SELECT

    def tuned_by(self, errors: Mapping[str, float], primary: str) -> float:
        """The error, and a little of the log-loss."""
        return errors["log_loss"] if primary == "log-loss" else errors["error"] + 1e-3 * errors["log_loss"]

    def predicted(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities (n, classes)."""
        return (output / temperature).softmax(dim=1)

    def served(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """Probabilities."""
        return (output / temperature).softmax(dim=-1)

    def logits(self, predictions: Tensor) -> Tensor:
        """Logarithms of probabilities."""
        return predictions.clamp_min(1e-12).log()

    def decoded(self, predictions: Tensor) -> Tensor:
        """Logits, which the coder takes."""
        return predictions.clamp_min(1e-30).log()

    def measures(self, spec: Spec) -> tuple[str, ...]:
        """Quality, calibration, selection and robustness; accuracy first."""
        return (
            *("accuracy", "balanced-accuracy", "log-loss", "brier", "auroc", "macro-f1"),
            *("ece", "ece-equal-mass", "ece-classwise", "calibration-rms-debiased"),
            *("augrc", "error-auroc", "error-auroc-entropy", "set-size-90", "corrupted-accuracy"),
        )

    def references(self, spec: Spec) -> tuple[str, ...]:
        """Logistic regression, trees, neighbours."""
        return classical.NAMES[self.NAME]

    def reference(self, name: str, data: Data, seed: int) -> Any:
        """One of them, fitted on the training rows."""
        return classical.fit(name, data, seed)

    def measured(self, work: Work, fitted: Any) -> Looked:
        """Everything that predicted probabilities of the test rows can be asked."""
        from probatum.tasks.look import look_at_classes

        return look_at_classes(work, fitted)

    def primary(self, work: Work, fitted: Any) -> dict[str, float]:
        """Accuracy on the test rows."""
        test = work.data.test
        return {"accuracy": float((fitted.predict(test).argmax(dim=1) == test.y).float().mean())}


TASK = Classes()
