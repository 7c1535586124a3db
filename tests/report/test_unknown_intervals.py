"""Intervals without ends are told in words and drawn as far as they are known."""

from __future__ import annotations

import math

import pytest

from probatum.bench.results import change_text
from probatum.bench.verdict import Verdict
from probatum.drawing import charts
from probatum.measure.base import Measure

pytestmark = pytest.mark.fast

ACCURACY = Measure("accuracy", "quality", True, 0.01)
BYTES = Measure("stream-memory", "size", False, 1000)
RMSE = Measure("rmse", "quality", False, 0.1, kind="ratio")


def verdict(mean: float, low: float, high: float) -> Verdict:
    return Verdict("arm", "m", "quality", "undecided", mean, low, high, 8, 1.0, 1.0, 0.01, None, 0.5, 0.5, "")


@pytest.mark.parametrize(
    ("measure", "values", "told"),
    [
        (ACCURACY, (0.1, -math.inf, math.inf), "+0.1000, interval unknown"),
        (ACCURACY, (0.1, math.nan, math.nan), "+0.1000, interval unknown"),
        (ACCURACY, (0.1, 0.05, 0.15), "+0.1000 [+0.0500, +0.1500]"),
        (ACCURACY, (math.nan, math.nan, math.nan), ""),
        (BYTES, (-2048.0, -math.inf, math.inf), "+2,048, interval unknown"),
        (BYTES, (-2048.0, -4096.0, 0.0), "+2,048 [+0, +4,096]"),
        (RMSE, (math.log(2), -math.inf, math.inf), "x0.50, interval unknown"),
        (RMSE, (math.log(2), -800.0, 800.0), "x0.50, interval unknown"),
        (RMSE, (math.log(2), 0.0, math.log(4)), "x0.50 [0.25, 1.00]"),
    ],
)
def test_what_is_read_of_a_difference(measure: Measure, values: tuple[float, float, float], told: str) -> None:
    assert change_text(verdict(*values), measure) == told


@pytest.mark.parametrize("end", [math.inf, math.nan])
def test_a_chart_of_an_interval_without_ends_has_its_mean(end: float) -> None:
    rows = [
        charts.Interval("open", 0.3, -end, end, "undecided", "+0.3000, interval unknown"),
        charts.Interval("shut", 0.1, 0.05, 0.15, "helps", "+0.1000"),
    ]
    drawn = charts.forest(rows, 0.01, "better", "worse", "accuracy")
    assert drawn.count("<circle") == 2
    assert drawn.count('class="range') == 1
    assert charts.forest(rows[:1], 0.0, "better", "worse", "accuracy").count("<circle") == 1
    assert not any(word in drawn for word in ("nan", "inf,", '"inf', '"-inf'))
    places = [float(part.split('"')[0]) for part in drawn.split('cx="')[1:]]
    assert all(210 <= place <= 580 for place in places)


def test_points_without_a_place_are_not_drawn() -> None:
    points = [
        ("a", 1.0, 0.5, "good"),
        ("b", 2.0, 0.6, "good"),
        ("c", math.inf, 0.7, "good"),
        ("d", 3.0, math.nan, "bad"),
    ]
    assert charts.scatter(points, "x", "y", "both").count("<circle") == 2
