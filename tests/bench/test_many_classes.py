"""Thousands of classes: a record keeps the confusions that occurred, and says the same of them as the whole square would."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from probatum.bench.degenerate import only_class
from probatum.bench.many_classes import MOST_PAIRS, SQUARE, classes_of, compact, occurred
from probatum.measure.quality import per_class

pytestmark = pytest.mark.fast


def details(classes: int, rows: int, seed: int = 0) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (rows,), generator=generator)
    output = torch.rand(rows, classes, generator=generator)
    return {"per_class": per_class(output / output.sum(1, keepdim=True), truth), "constant": False}


def test_few_classes_stay_as_they_are() -> None:
    found = details(SQUARE, 50)
    assert compact(found) is found
    assert compact({"curve": []}) == {"curve": []}


def test_the_pairs_are_the_square() -> None:
    found = details(SQUARE + 1, 3000)
    kept = compact(found)["per_class"]
    square = np.zeros((SQUARE + 1, SQUARE + 1), dtype=int)
    for truth, answer, rows in kept["pairs"]:
        square[truth, answer] = rows
    assert square.tolist() == found["per_class"]["confusion"]
    assert kept["rows_left_out"] == 0
    assert "confusion" not in kept
    assert {name: kept[name] for name in ("recall", "precision", "support")} == {
        name: found["per_class"][name] for name in ("recall", "precision", "support")
    }
    assert list(occurred(kept)) == list(occurred(found["per_class"]))
    assert classes_of(kept) == classes_of(found["per_class"]) == SQUARE + 1


def test_a_record_of_5000_classes_is_small() -> None:
    rows, classes = 3000, 5000
    matrix = [[0] * classes for _ in range(classes)]
    for row in range(rows):
        matrix[row][row * 7 % classes] += 1
    whole = {"support": [1] * classes, "recall": [1 / 3] * classes, "precision": [1 / 7] * classes, "confusion": matrix}
    kept = compact({"per_class": whole})
    assert len(json.dumps(kept)) < 400_000
    assert len(kept["per_class"]["pairs"]) == rows


def test_the_rarest_pairs_are_cut_and_counted() -> None:
    size = 200
    matrix = [[1 + (i == j) for j in range(size)] for i in range(size)]
    kept = compact({"per_class": {"support": [size + 1] * size, "confusion": matrix}})["per_class"]
    assert len(kept["pairs"]) == MOST_PAIRS
    assert {(i, i, 2) for i in range(size)} <= set(map(tuple, kept["pairs"]))
    assert kept["rows_left_out"] == size * size - MOST_PAIRS


@pytest.mark.parametrize("answers", [1, 2])
def test_one_answer_for_all_is_seen_in_either_form(answers: int) -> None:
    size = 300
    matrix = [[int(j == i % answers) for j in range(size)] for i in range(size)]
    found = {"per_class": {"support": [1] * size, "confusion": matrix}}
    assert only_class({"details": found}) == only_class({"details": compact(found)}) == (0 if answers == 1 else None)
