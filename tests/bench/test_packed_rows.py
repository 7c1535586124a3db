"""Rows of a trial: what is kept of them, and that it comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probatum.bench.packed_rows import ALONE, GROUPS, gather, grouped, pack, unpack

pytestmark = pytest.mark.fast


def test_deviations_are_summed_by_unit_and_come_back() -> None:
    units = np.array([7, 3, 7, 5, 3])
    values = {
        "accuracy": np.array([1.0, 0.0, 1.0, 1.0, 0.0]),
        "log-loss": np.array([0.5, 2.0, 1.5, 1.0, 0.0]),
        "first": np.array([2.0, 4.0, np.nan, np.nan, np.nan]),
    }
    found = unpack(pack(gather(values, units, 10)))
    assert found.units.tolist() == [3, 5, 7]
    np.testing.assert_allclose(found.deviations["accuracy"], [-1.2, 0.4, 0.8], atol=1e-6)
    np.testing.assert_allclose(found.deviations["log-loss"], [0.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.deviations["first"], [1.0, 0.0, -1.0])
    assert found.counts["accuracy"].tolist() == [2, 1, 2]
    assert found.counts["first"].tolist() == [1, 0, 1]
    assert found.binary == {"accuracy"}


def test_units_of_large_data_are_thrown_into_fixed_groups_of_equal_size() -> None:
    units = np.arange(100_000)
    groups = grouped(units, 100_000)
    sizes = np.bincount(groups, minlength=GROUPS)
    assert len(sizes) == GROUPS
    assert sizes.min() > 0.95 * sizes.mean()
    assert sizes.max() < 1.05 * sizes.mean()
    assert (grouped(units[500:600], 100_000) == groups[500:600]).all()
    assert (np.diff(groups) != 0).all()  # neighbours lie apart
    assert (grouped(units[:50], ALONE) == units[:50]).all()


def test_size_of_what_is_kept() -> None:
    rng = np.random.default_rng(0)
    for rows, known, most in ((100, 500, 7_000), (10_000, 50_000, 45_000)):
        values = {f"measure {k}": rng.normal(size=rows) for k in range(16)}
        assert len(pack(gather(values, rng.permutation(known)[:rows], known))) < most


@pytest.mark.parametrize("damage", ["head", "cut", "other"])
def test_other_bytes_are_told(damage: str) -> None:
    packed = pack(gather({"accuracy": np.array([1.0, 0.0])}, np.array([0, 1]), 2))
    broken = {"head": b"x" + packed, "cut": packed[:-6], "other": b"rows1" + b"abc"}[damage]
    with pytest.raises(ValueError, match="rows of a trial"):
        unpack(broken)


def test_a_measure_that_no_row_counts_for() -> None:
    found = gather({"none": np.full(3, math.nan)}, np.arange(3), 3)
    assert found.counts["none"].sum() == 0
