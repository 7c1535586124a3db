"""Learning curves over labels, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from probatum.measure.acquisition import area, labels_to

pytestmark = pytest.mark.fast


def test_area_is_the_trapezoid_rule() -> None:
    labels, accuracy = [20, 30, 60], [0.2, 0.6, 0.7]
    assert area(labels, accuracy) == pytest.approx(np.trapezoid(accuracy, labels) / 40)
    assert area([20], [0.4]) == 0.4
    assert area([1, 5, 9], [0.3, 0.3, 0.3]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="must grow"):
        area([20, 20], [0.1, 0.2])
    with pytest.raises(ValueError, match="at least one"):
        area([], [])


def test_labels_to_reads_between_the_rounds() -> None:
    labels, accuracy = [20, 40, 60], [0.2, 0.6, 0.7]
    assert labels_to(labels, accuracy, 0.4) == 30
    assert labels_to(labels, accuracy, 0.1) == 20
    assert labels_to(labels, accuracy, 0.9) == 80  # never: one round more than there was
    assert labels_to(labels, accuracy, 0.9, never=100) == 100
    assert labels_to([20, 40, 60], [0.5, 0.3, 0.6], 0.5) == 20  # the first time counts
