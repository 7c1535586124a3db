"""Bits a character and a byte, perplexity and calibration against hand counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probatum.measure.language import language

pytestmark = pytest.mark.fast


def test_hand_count() -> None:
    log_p = np.log([[0.5, 0.25], [0.125, 1.0]])  # 1 + 2 + 3 + 0 = 6 bits
    confidence, right = np.array([[0.5, 0.6], [0.5, 1.0]]), np.array([[1, 0], [0, 1]])
    found = language(log_p, confidence, right, characters=4, size=6)
    assert found["bits-per-character"] == pytest.approx(6 / 4)
    assert found["bits-per-byte"] == pytest.approx(1.0)
    assert found["perplexity"] == pytest.approx(2 ** (6 / 4))
    assert found["next-token-accuracy"] == 0.5
    # bins of 1/15: both 0.5 (one right), 0.6 (wrong), 1.0 (right)
    assert found["ece"] == pytest.approx((2 * 0.0 + 0.6 + 0.0) / 4)


def test_equal_shares_cost_the_logarithm_of_the_vocabulary() -> None:
    found = language(np.full(30, -math.log(32)), np.full(30, 1 / 32), np.zeros(30), characters=30, size=30)
    assert found["bits-per-character"] == pytest.approx(5.0)
    assert found["perplexity"] == pytest.approx(32.0)


def test_bits_do_not_depend_on_the_cut() -> None:
    """A token of two characters with the product of their probabilities costs as many bits, but another perplexity."""
    single = language(np.log([0.5, 0.25]), np.ones(2), np.ones(2), characters=2, size=2)
    pair = language(np.log([0.125]), np.ones(1), np.ones(1), characters=2, size=2)
    assert single["bits-per-character"] == pytest.approx(pair["bits-per-character"])
    assert single["perplexity"] < pair["perplexity"]


@pytest.mark.parametrize(
    ("log_p", "characters", "size", "message"),
    [
        ([], 1, 1, "one or more"),
        ([-1.0], 0, 1, "0 characters"),
        ([-1.0], 1, 0, "0 bytes"),
        ([0.5], 1, 1, "logarithms"),
        ([float("nan")], 1, 1, "logarithms"),
    ],
)
def test_bad_input_is_named(log_p: list[float], characters: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        language(np.array(log_p), np.ones(len(log_p)), np.ones(len(log_p)), characters, size)


def test_a_certain_miss_is_infinite_and_no_crash() -> None:
    found = language(np.array([-1e6]), np.ones(1), np.zeros(1), 1, 1)
    assert found["perplexity"] == math.inf
