"""What a user sets is checked before anything is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from probatum import FineTuning, InputError, Judging, Reading, Running, Study, open_dataset
from probatum.settings import checked

pytestmark = pytest.mark.fast

SHORT: dict[str, Any] = {"seeds": 2, "steps": 2, "judging": Judging(confirm=False), "running": Running(timing=False)}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"reading": {"target": "y"}}, r"stands where a Reading is asked; give probatum.Reading\(...\)"),
        ({"judging": {}}, "stands where a Judging is asked"),
        ({"running": Judging()}, "stands where a Running is asked"),
        ({"fine_tuning": {"source": "wine"}}, "stands where a FineTuning is asked"),
        ({"rules": 3}, "rules is 3; give the rules of an arena"),
        ({"techniques": [3]}, r"techniques is \[3\]; give a list of words"),
        ({"steps": "8"}, "steps is '8'; give a whole number or None"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number or None"),
        ({"steps": True}, "steps is True; give a whole number or None"),
        ({"tune": None}, "tune is None; give a whole number"),
        ({"margin": float("inf")}, "margin is inf; give a finite number or None"),
        ({"store": 3}, "store is 3; give a word or a path"),
        ({"running": Running(threads=1.5)}, "threads is 1.5; give a whole number"),
        ({"running": Running(timing="no")}, "timing is 'no'; give True or False"),
        ({"judging": Judging(confidence="0.9")}, "confidence is '0.9'; give a finite number"),
        ({"reading": Reading(options=None)}, "options is None; give a mapping"),
        ({"reading": Reading(drop=3)}, "drop is 3; give a list of words"),
        ({"reading": Reading(memory="lots")}, "memory is 'lots'"),
    ],
)
def test_a_wrong_type_is_one_clear_error(given: dict[str, Any], told: str) -> None:
    arguments = {**SHORT, "techniques": ["gradient-noise"], **given}
    with pytest.raises(InputError, match=told):
        Study("iris", **arguments)


def test_what_numpy_counts_is_a_number() -> None:
    study = Study("iris", "gradient-noise", **{**SHORT, "steps": np.int64(2), "seeds": np.int32(2)})  # type: ignore[arg-type]
    assert type(study.plan.base.training.steps) is int
    assert [arm.name for arm in study.plan.arms] == ["gradient-noise"]
    assert checked(Reading(drop="a"), Reading).drop == ("a",)  # type: ignore[arg-type]
    assert checked(Judging(confidence=np.float32(0.75)), Judging).confidence == 0.75  # type: ignore[arg-type]
    assert checked(None, FineTuning) == FineTuning()


@pytest.mark.parametrize(
    ("reading", "told"),
    [
        (Reading(target="y", group="y"), "group and target are both 'y'"),
        (Reading(target="y", time="y"), "time and target are both 'y'"),
        (Reading(target="y", time="t", split="part"), "time and split both say which rows are the test"),
    ],
)
def test_columns_that_contradict_one_another(reading: Reading, told: str) -> None:
    frame = pd.DataFrame({"t": range(30), "x": range(30), "part": ["train", "valid", "test"] * 10, "y": [0, 1, 1] * 10})
    with pytest.raises(InputError, match=told):
        open_dataset(frame, reading)
