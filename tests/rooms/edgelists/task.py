"""Task medians: values foretold by their median, which this kind brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from probatum.rooms.arena import Work
from probatum.rooms.task import Looked, Task
from probatum.spec import Spec


class Medians(Task):
    """Values and y (n, outputs) float32, standardised on the training rows."""

    NAME = "medians"
    SELECT = "mae"

    def loss(self) -> nn.Module:
        return nn.L1Loss()

    def errors(self, output: Tensor, target: Tensor) -> dict[str, float]:
        return {"mae": float((output - target).abs().mean())}

    def score(self, errors: Mapping[str, float], select: str) -> tuple[float, ...]:
        return (errors["mae"],)

    def measures(self, spec: Spec) -> tuple[str, ...]:
        return ("mae",)

    def measured(self, work: Work, fitted: Any) -> Looked:
        output = fitted.predict(work.data.test)
        off = (output - work.data.test.y).abs().double().mean(dim=1)
        return Looked(output, self.errors(output, work.data.test.y), rows={"mae": off.numpy()})


TASK = Medians()
