"""Task classes: which of a few classes each row is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from probatum.rooms.arena import Work
from probatum.rooms.task import Looked, Task
from probatum.spec import Data, Spec
from probatum.tasks import classical
from probatum.tasks.classes.choosing import FURTHER


class Classes(Task):
    """Logits (n, classes); y (n,) int64 in 0 .. classes - 1."""

    NAME = "classes"
    CALIBRATED = True
    SELECT = "accuracy"
    CHOOSES: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "log-loss": "log-loss",
        **{name: name for name in FURTHER},
    }

    def loss(self) -> nn.Module:
        """Cross-entropy."""
        return nn.CrossEntropyLoss()

    def errors(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Share of rows that are wrong, and log-loss in nats."""
        wrong = (output.argmax(dim=1) != target).float().mean().item()
        return {"error": wrong, "log_loss": F.cross_entropy(output, target).item()}

    def further_errors(self, output: Tensor, target: Tensor, select: str) -> dict[str, float]:
        """One less the measure, where that is balanced accuracy, macro F1 or AUROC."""
        if select not in FURTHER:
            return {}
        name, error = FURTHER[select]
        return {name: error(output, target)}

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        """The error of the measure that `select` names, with the log-loss where it is equal; or the log-loss."""
        if select == "log-loss":
            return (errors["log_loss"],)
        if select in FURTHER:
            return (errors[FURTHER[select][0]], errors["log_loss"])
        return (errors["error"], errors["log_loss"])

    def selection(self, primary: str, axis: str) -> str:
        """By the measure itself where that can be, else by log-loss where probabilities decide."""
        by = "log-loss" if axis == "calibration" or primary == "brier" else self.SELECT
        return self.CHOOSES.get(primary, by)

    def tuned_by(self, errors: Mapping[str, float], primary: str) -> float:
        """The error of the measure, or of accuracy, and a little of the log-loss."""
        if primary == "log-loss":
            return errors["log_loss"]
        name = FURTHER[primary][0] if primary in FURTHER else "error"
        return errors[name] + 1e-3 * errors["log_loss"]

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

    def tested_rows(self, work: Work, fitted: Any) -> dict[str, Any]:
        """Likewise, without robustness."""
        from probatum.tasks.look import rows_of_classes

        return rows_of_classes(work, fitted)

    def primary(self, work: Work, fitted: Any) -> dict[str, float]:
        """Accuracy on the test rows."""
        test = work.data.test
        return {"accuracy": float((fitted.predict(test).argmax(dim=1) == test.y).float().mean())}


TASK = Classes()
