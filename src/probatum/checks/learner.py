"""What every learner promises."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probatum.checks.subject import Subject, demand
from probatum.spec import Budget, Data, Part


def check_predicts(subject: Subject) -> None:
    """Finite predictions of the right shape for every task, better than knowing nothing; the test rows are not read."""
    for modality in subject.card.modalities:
        for task in subject.card.tasks:
            data = subject.data(modality=modality, task=task)
            output = predictions(subject, data)
            where = f"{modality}, {task}"
            demand(output.shape == (len(data.valid), data.spec.outputs), f"{where}: shape {tuple(output.shape)}")
            demand(bool(torch.isfinite(output).all()), f"{where}: predictions are not finite")
            if task == "classes":
                demand(
                    torch.allclose(output.sum(dim=1), torch.ones(len(output)), atol=1e-4),
                    f"{where}: rows do not sum to 1",
                )
                accuracy = (output.argmax(dim=1) == data.valid.y).float().mean().item()
                demand(accuracy > 0.4, f"{where}: accuracy {accuracy:.2f} with three equal classes")
            else:
                error = (output - data.valid.y).square().mean().item()
                demand(error < data.valid.y.var().item(), f"{where}: worse than predicting the mean")


def predictions(subject: Subject, data: Data) -> Tensor:
    """Predictions for the validation rows by the learner at its tiny settings; it is given no test rows."""
    empty = Part(data.test.x[:0], data.test.y[:0], data.test.rows[:0], () if data.test.text is not None else None)
    predictor = subject.call(data, data=replace(data, test=empty), budget=Budget(12, 16, 4))
    return predictor.predict(data.valid)
