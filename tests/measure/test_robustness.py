"""Robustness: the right averages, streams that depend on nothing else, and inputs left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from probatum.measure.robustness import robustness
from probatum.spec import Spec

pytestmark = pytest.mark.fast

CLASSES = Spec("table", "classes", (2,), 2, numeric=2)
REALS = Spec("table", "reals", (2,), 1, numeric=2)


def shift(x: Tensor, spec: Spec, severity: int, generator: torch.Generator) -> Tensor:
    x[:, 0] -= severity
    return x


def noise(x: Tensor, spec: Spec, severity: int, generator: torch.Generator) -> Tensor:
    return x + severity * torch.randn(x.shape, generator=generator)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive(x: Tensor) -> Tensor:
    return torch.stack([-x[:, 0], x[:, 0]], 1)


def test_accuracy_is_averaged_over_severities_and_corruptions() -> None:
    x = torch.tensor([[0.5, 0.0], [2.5, 0.0], [4.5, 0.0], [6.5, 0.0]])
    y = torch.ones(4, dtype=torch.int64)
    same = {"shift": shift, "none": lambda x, spec, severity, generator: x}
    found, rows = robustness(positive, x, y, CLASSES, same, stream())
    assert found["corrupted-accuracy/shift"] == pytest.approx((3 / 4 + 2 / 4 + 1 / 4) / 3)
    assert found["corrupted-accuracy/none"] == 1.0
    assert found["corrupted-accuracy"] == pytest.approx(0.75)
    # right: not at all, at severity 1, at 1 and 3, always; and always where nothing is done
    assert {name: values.tolist() for name, values in rows.items()} == {
        "corrupted-accuracy": pytest.approx([3 / 6, 4 / 6, 5 / 6, 1.0])
    }
    assert x[0, 0] == 0.5


def test_reals_report_rmse() -> None:
    x = torch.zeros(3, 2)
    found, rows = robustness(
        lambda x: x[:, :1], x, torch.zeros(3, 1), REALS, {"shift": shift}, stream(), severities=(2, 4)
    )
    assert found == {"corrupted-rmse": 3.0, "corrupted-rmse/shift": 3.0}
    assert rows["corrupted-rmse"].tolist() == [3.0, 3.0, 3.0]


def test_streams_follow_the_generator_and_the_name_alone() -> None:
    x, y = torch.randn(50, 2, generator=stream(1)), torch.zeros(50, 1)
    arguments = (lambda x: x[:, :1], x, y, REALS)
    alone, _ = robustness(*arguments, {"noise": noise}, stream(), (1, 3))
    other, _ = robustness(*arguments, {"zoom": noise, "noise": noise, "blur": shift}, stream(), (3, 1))
    assert alone["corrupted-rmse/noise"] == pytest.approx(other["corrupted-rmse/noise"])
    assert other["corrupted-rmse/zoom"] != other["corrupted-rmse/noise"]
    assert robustness(*arguments, {"noise": noise}, stream(5), (1, 3))[0] != alone


def test_bad_input_is_named() -> None:
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 corruptions"):
        robustness(positive, x, y, CLASSES, {}, stream())
    with pytest.raises(ValueError, match="shift: predictions are not finite"):
        robustness(lambda x: x * math.nan, x, y, CLASSES, {"shift": shift}, stream())
    with pytest.raises(ValueError, match="do not fit"):
        robustness(lambda x: x[:2], x, y, CLASSES, {"shift": shift}, stream())
