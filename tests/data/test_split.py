"""Splits: disjoint, covering, stratified, grouped, by time, given; deterministic."""

from __future__ import annotations

import numpy as np
import pytest

from probatum.data import open_dataset
from probatum.data.split import SplitPlan, draw_split, given_parts, merge_units
from probatum.errors import InputError
from probatum.settings import Reading

pytestmark = pytest.mark.fast

FRACTIONS = (0.6, 0.2, 0.2)


def parts_of(n: int, split: tuple[np.ndarray, ...]) -> np.ndarray:
    part = np.full(n, -1)
    for number, rows in enumerate(split):
        assert (part[rows] == -1).all()
        part[rows] = number
    assert (part >= 0).all()
    return part


@pytest.mark.parametrize("name", ["digits", "iris", "diabetes", "toy-topics", "cbf"])
def test_parts_are_disjoint_and_cover_all_rows(name):
    dataset = open_dataset(name)
    part = parts_of(dataset.n, dataset.split(3))
    np.testing.assert_allclose(np.bincount(part) / dataset.n, FRACTIONS, atol=0.02)


def test_every_class_has_its_share_in_every_part():
    labels = np.repeat([0, 1, 2], [100, 35, 5])
    plan = SplitPlan(labels, np.arange(140))
    part = parts_of(140, draw_split(plan, 0, FRACTIONS, "abc"))
    for code, sizes in ((0, [60, 20, 20]), (1, [21, 7, 7]), (2, [3, 1, 1])):
        assert np.bincount(part[labels == code]).tolist() == sizes


def test_same_seed_same_split_and_other_seeds_differ():
    dataset = open_dataset("wine")
    first, again, other = dataset.split(5), dataset.split(5), dataset.split(6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


def test_duplicates_stay_on_one_side():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, (300, 2)).astype(float)
    y = (x.sum(axis=1) > 5).astype(int)
    dataset = open_dataset((x, y))
    assert any("duplicated rows" in notice for notice in dataset.notices)
    for seed in range(5):
        part = parts_of(dataset.n, dataset.split(seed))
        for row in np.unique(x, axis=0):
            assert len(np.unique(part[(x == row).all(axis=1)])) == 1


def test_a_class_of_copies_is_split_all_the_same_and_said():
    x = np.concatenate([np.random.default_rng(0).normal(size=(30, 2)), np.zeros((10, 2))])
    dataset = open_dataset((x, ["a"] * 30 + ["b"] * 10))
    assert any("'b' has only 1 distinct" in notice for notice in dataset.notices)
    part = parts_of(40, dataset.split(0))
    assert set(part[30:]) == {0, 1, 2}


def test_groups_do_not_straddle():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 40, 400)
    labels = rng.integers(0, 3, 400)
    plan = SplitPlan(labels, groups, grouped=True)
    for seed in range(3):
        part = parts_of(400, draw_split(plan, seed, FRACTIONS, "abc"))
        assert all(len(np.unique(part[groups == g])) == 1 for g in range(40))
        np.testing.assert_allclose(np.bincount(part) / 400, FRACTIONS, atol=0.08)
        for code in range(3):
            np.testing.assert_allclose(np.bincount(part[labels == code]) / (labels == code).sum(), FRACTIONS, atol=0.1)


def test_time_puts_the_latest_rows_last_and_keeps_moments_together():
    moment = np.random.default_rng(2).integers(0, 50, 500).astype(float)
    plan = SplitPlan(None, np.arange(500), moment=moment)
    train, valid, test = draw_split(plan, 0, FRACTIONS)
    parts_of(500, (train, valid, test))
    assert moment[train].max() < moment[valid].min()
    assert moment[valid].max() < moment[test].min()
    assert plan.fixed


def test_given_test_rows_are_kept_and_valid_is_drawn_anew():
    labels = np.arange(200) % 2
    given = np.where(np.arange(200) < 150, 0, 2)
    plan = SplitPlan(labels, np.arange(200), given=given)
    first, second = draw_split(plan, 0, FRACTIONS, "ab"), draw_split(plan, 1, FRACTIONS, "ab")
    assert np.array_equal(first[2], np.arange(150, 200))
    assert np.array_equal(first[2], second[2])
    assert not np.array_equal(first[1], second[1])
    assert abs(len(first[1]) - 37.5) <= 1


def test_given_valid_rows_are_kept_too():
    words = ["train"] * 20 + ["dev"] * 10 + ["test"] * 10
    x = np.random.default_rng(0).normal(size=(40, 2))
    dataset = open_dataset((x, np.arange(40) % 2), Reading(split=words))
    assert dataset.fixed_split
    for seed in (0, 1):
        train, valid, test = dataset.split(seed)
        assert (train.tolist(), valid.tolist(), test.tolist()) == (
            list(range(20)),
            list(range(20, 30)),
            list(range(30, 40)),
        )


def test_all_means_no_given_split():
    assert given_parts(["all", "all"], "split") is None


def test_merge_units_is_the_transitive_closure():
    a = np.array([0, 0, 1, 2, 3, 4])
    b = np.array([0, 1, 1, 2, 2, 3])
    merged = merge_units(a, b)
    assert merged[0] == merged[1] == merged[2]
    assert merged[3] == merged[4]
    assert len(np.unique(merged)) == 3


@pytest.mark.parametrize(
    ("fractions", "word"), [((0.5, 0.5), "fractions"), ((0.8, 0.3, 0.1), "sum"), ((0.8, 0.2, 0.0), "positive")]
)
def test_bad_fractions_are_refused(fractions, word):
    with pytest.raises(InputError, match=word):
        open_dataset("iris").prepare(0, fractions=fractions)


def test_too_few_groups_are_refused():
    plan = SplitPlan(np.arange(20) % 2, np.arange(20) % 2, grouped=True)
    with pytest.raises(InputError, match="2 groups"):
        draw_split(plan, 0, FRACTIONS, "ab")


def test_groups_that_hold_one_class_each_are_refused_by_the_class():
    labels = np.repeat([0, 1], [30, 10])
    groups = np.concatenate([np.arange(30), np.full(10, 30)])
    with pytest.raises(InputError, match="class 'b'"):
        draw_split(SplitPlan(labels, groups, grouped=True), 0, FRACTIONS, "ab")


def test_a_class_without_training_rows_is_refused():
    given = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    labels = np.array([0, 0, 1, 1, 0, 1, 0, 2])
    with pytest.raises(InputError, match="'c' has no training row"):
        draw_split(SplitPlan(labels, np.arange(8), given=given), 0, FRACTIONS, "abc")
