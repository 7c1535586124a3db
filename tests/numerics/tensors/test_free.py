"""What may be moved of a row, and what may not."""

from __future__ import annotations

import pytest
import torch

from probatum.numerics.tensors.free import free_entries
from probatum.spec import Spec

pytestmark = pytest.mark.fast


def test_masks_and_what_they_hide_are_held() -> None:
    x = torch.tensor([[[5.0, 6, 0], [7, 8, 0], [1, 1, 0]], [[5, 0, 0], [7, 0, 0], [1, 0, 0]]])
    free = free_entries(Spec("series", "classes", (3, 3), 2, masked=True), x)
    assert free is not None
    assert free.tolist() == [
        [[True, True, False], [True, True, False], [False, False, False]],
        [[True, False, False], [True, False, False], [False, False, False]],
    ]


def test_codes_of_categories_are_held() -> None:
    spec = Spec("table", "classes", (3,), 2, numeric=1, cardinalities=(4, 5))
    free = free_entries(spec, torch.zeros(2, 3))
    assert free is not None
    assert free.tolist() == [[True, False, False]] * 2


def test_plain_numbers_are_all_free() -> None:
    assert free_entries(Spec("table", "classes", (3,), 2, numeric=3), torch.zeros(2, 3)) is None
    assert free_entries(None, torch.zeros(2, 3)) is None
