"""Continual-learning measures on matrices worked out by hand."""

from __future__ import annotations

import pytest

from probatum.measure.continual import accuracies, backward_transfer, continual, forgetting, memory_area

pytestmark = pytest.mark.fast

MATRIX = [[1.0], [0.5, 0.9], [0.6, 0.3, 0.8]]


def test_measures_by_hand() -> None:
    rows = [10, 10, 20]
    assert accuracies(MATRIX, rows) == pytest.approx([1.0, 0.7, (6 + 3 + 16) / 40])
    assert forgetting(MATRIX) == pytest.approx(((1.0 - 0.6) + (0.9 - 0.3)) / 2)
    assert backward_transfer(MATRIX) == pytest.approx(((0.6 - 1.0) + (0.3 - 0.9)) / 2)
    found = continual(MATRIX, rows)
    assert found["last-accuracy"] == pytest.approx(0.625)
    assert found["average-accuracy"] == pytest.approx((1.0 + 0.7 + 0.625) / 3)


def test_forgetting_is_from_the_best_and_transfer_from_the_first() -> None:
    rising = [[0.5], [0.9, 1.0], [0.7, 1.0, 1.0]]
    assert forgetting(rising) == pytest.approx((0.2 + 0.0) / 2)
    assert backward_transfer(rising) == pytest.approx((0.2 + 0.0) / 2)


def test_what_is_learned_better_later_is_negative_forgetting() -> None:
    assert forgetting([[0.5], [0.8, 1.0]]) == pytest.approx(-0.3)


def test_one_stage_forgets_nothing() -> None:
    assert continual([[0.75]], [8]) == {
        "last-accuracy": 0.75,
        "average-accuracy": 0.75,
        "forgetting": 0.0,
        "backward-transfer": 0.0,
    }


def test_area_over_memory_sizes() -> None:
    assert memory_area([100, 200, 400], [0.2, 0.4, 0.6]) == pytest.approx((100 * 0.3 + 200 * 0.5) / 300)
    assert memory_area([1, 7], [0.5, 0.5]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: accuracies([[1.0], [0.5]], [1, 1]), "row b needs"),
        (lambda: accuracies(MATRIX, [1, 2]), "one count a stage"),
        (lambda: accuracies(MATRIX, [1, 0, 2]), "needs a test row"),
        (lambda: forgetting([]), "row b needs"),
        (lambda: memory_area([2, 1], [0.1, 0.2]), "growing sizes"),
        (lambda: memory_area([1], [0.1]), "growing sizes"),
    ],
)
def test_bad_input(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        call()
