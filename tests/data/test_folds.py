"""Folds: every row is tested equally often; classes, groups and small classes; and random splits that stayed as they were."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from probatum.data import open_dataset
from probatum.data.folds import draw_folds, fold_count, folds_of, fractions_of
from probatum.data.library import library_names
from probatum.data.split import SplitPlan, draw_split
from probatum.errors import InputError
from probatum.kinds.language.corpus import corpus

pytestmark = pytest.mark.fast

FRACTIONS = (0.6, 0.2, 0.2)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def counted(plan: SplitPlan, seeds: int, fractions: tuple[float, float, float] = FRACTIONS) -> np.ndarray:
    """How often each row is tested; parts are disjoint, and training has every class."""
    counts = np.zeros(len(plan.units), dtype=int)
    for seed in range(seeds):
        train, valid, test = draw_folds(plan, seed, fractions, LETTERS)
        rows = np.concatenate([train, valid, test])
        assert len(np.unique(rows)) == len(rows)
        assert all((np.diff(part) > 0).all() for part in (train, valid, test))
        part = np.full(len(plan.units), -1)
        for number, mine in enumerate((train, valid, test)):
            part[mine] = number
        for unit in np.flatnonzero(np.bincount(plan.units) > 1):
            assert len(set(part[plan.units == unit]) - {-1}) <= 1, "a unit lies in two parts"
        if plan.labels is not None:
            assert set(plan.labels[train]) == set(plan.labels)
        counts[test] += 1
    return counts


def with_copies(n: int = 300, seed: int = 0) -> SplitPlan:
    """Rows of which some occur up to forty times, the copies among each other."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([np.ones(n // 2, dtype=int), rng.integers(2, 8, n // 12), [40, 25]])
    units = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return SplitPlan((np.arange(len(sizes)) % 3)[units], units)


@pytest.mark.parametrize("labelled", [True, False])
def test_every_row_is_tested_twice_in_ten_seeds_copies_too(labelled):
    plan = with_copies()
    plan = plan if labelled else SplitPlan(None, plan.units)
    assert set(counted(plan, 10)) == {2}
    for seeds in (3, 7, 13):
        counts = counted(plan, seeds)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", ["iris", "wine", "breast-cancer", "diabetes"])
def test_folds_of_embedded_sets(name):
    dataset = open_dataset(name)
    counts, sizes = np.zeros(dataset.n, dtype=int), set()
    for seed in range(10):
        train, valid, test = dataset.split(seed, folds=True)
        counts[test] += 1
        sizes.add((len(train), len(valid)))
        assert abs(len(test) - dataset.n / 5) < 2
        assert dataset.n - len(train) - len(valid) - len(test) <= 1 + dataset.n - len(np.unique(dataset.plan.units))
        np.testing.assert_allclose(np.array([len(train), len(valid)]) / dataset.n, FRACTIONS[:2], atol=0.01)
    assert set(counts) == {2}
    assert len(sizes) == 1, "all seeds train on as many rows, so that they can be one computation"


@pytest.mark.parametrize("name", ["titanic", "congress_vote", "mammography", "wine_quality", "soybean"])
def test_rows_with_copies_are_tested_on_real_tables(name):
    if f"tables/{name}" not in library_names():
        pytest.skip(f"tables/{name} is not under PROBATUM_DATA")
    dataset = open_dataset(name)
    counts, at_random = np.zeros(dataset.n, dtype=int), np.zeros(dataset.n)
    for seed in range(10):
        counts[dataset.split(seed, folds=True)[2]] += 1
    assert set(counts) == {2}
    for seed in range(60):
        at_random[dataset.split(seed)[2]] += 1 / 60
    sizes = np.bincount(dataset.plan.units)
    assert (sizes[dataset.plan.units] > 1).mean() > 0.1
    of_unit = np.bincount(dataset.plan.units, weights=at_random) / sizes
    assert abs(of_unit[sizes > 1].mean() - 0.2) < 0.06  # a quarter of mammography's rows are one unit
    assert abs(of_unit[sizes == 1].mean() - 0.2) < 0.06


def test_a_repeat_is_permuted_anew_and_by_nothing_but_the_seed():
    plan = with_copies()
    first, again = (folds_of(plan, 0.2, repeat) for repeat in (0, 0))
    assert np.array_equal(first, again)
    other = folds_of(plan, 0.2, 1)
    together = np.mean([len(np.unique(other[first == fold])) for fold in range(5)])
    assert together == 5, "folds of another repeat cut across"


def test_seeds_of_the_confirmation_are_further_repeats():
    plan = with_copies()
    for repeat in (0, 3, 200):
        tested = np.concatenate([draw_folds(plan, 5 * repeat + fold, FRACTIONS, LETTERS)[2] for fold in range(5)])
        assert np.array_equal(np.sort(tested), np.arange(len(plan.units)))


def test_the_same_folds_in_every_process():
    code = (
        "import hashlib, numpy as np; from probatum.data.folds import draw_folds; from probatum.data.split import SplitPlan; "
        "plan = SplitPlan(np.arange(90) % 3, np.arange(90) // 2 * 3); "
        "rows = [part.tolist() for seed in (0, 7, 1003) for part in draw_folds(plan, seed, (0.6, 0.2, 0.2), 'abc')]; "
        "found = hashlib.sha256(repr(rows).encode()).hexdigest()"
    )
    here: dict[str, str] = {}
    exec(code, here)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", code + "; print(found)"], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here["found"]


def test_classes_have_their_share_in_every_fold():
    labels = np.repeat([0, 1, 2], [97, 38, 11])
    fold = folds_of(SplitPlan(labels, np.arange(146)), 0.2, 4)
    for code, n in ((0, 97), (1, 38), (2, 11)):
        sizes = np.bincount(fold[labels == code], minlength=5)
        assert set(sizes) <= {n // 5, n // 5 + 1}
    assert set(np.bincount(fold)) <= {29, 30}


def test_many_small_classes_fill_all_folds_alike():
    labels = np.repeat(np.arange(26), 3)
    plan = SplitPlan(labels, np.arange(78))
    assert set(np.bincount(folds_of(plan, 0.2, 0))) == {15, 16}
    assert set(counted(plan, 5)) == {1}


@pytest.mark.parametrize("rows", [3, 4])
def test_a_small_class_is_always_trained_on_and_tested_as_often_as_others(rows):
    plan = SplitPlan(np.repeat([0, 1], [60, rows]), np.arange(60 + rows))
    assert set(counted(plan, 5)) == {1}
    seen = []
    for seed in range(5):
        train, valid, test = draw_folds(plan, seed, FRACTIONS, LETTERS)
        assert (train >= 60).any()
        assert (valid >= 60).any()
        seen.append(int((test >= 60).sum()))
    assert sorted(seen) == [0] * (5 - rows) + [1] * rows


@pytest.mark.parametrize("share", [0.3, 0.35, 0.4, 0.15, 0.07])
def test_what_folds_leave_over_goes_round(share):
    count = int(1 / share)
    n = 180
    plan = SplitPlan(np.repeat([0, 1, 2], [60, 72, 48]), np.arange(n))
    for repeats in (1, 4, 11):
        counts = counted(plan, count * repeats, fractions_of(share))
        assert counts.max() - counts.min() <= 1
        assert abs(counts.sum() - count * repeats * share * n) <= 3 * repeats
    assert abs((folds_of(plan, share, 0) < 0).mean() - (1 - count * share)) < 0.02


def test_groups_are_tested_once_whatever_their_size():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), rng.integers(1, 60, 30))
    labels = rng.integers(0, 3, len(groups))
    plan = SplitPlan(labels, groups, grouped=True)
    assert set(counted(plan, 10)) == {2}
    fold = folds_of(plan, 0.2, 0, LETTERS)
    np.testing.assert_allclose(np.bincount(fold) / len(groups), 0.2, atol=0.05)
    for code in range(3):
        np.testing.assert_allclose(np.bincount(fold[labels == code]) / (labels == code).sum(), 0.2, atol=0.07)
    when = [int(folds_of(plan, 0.2, repeat, LETTERS)[np.argmax(groups == 5)]) for repeat in range(60)]
    assert set(when) == set(range(5)), "a group is not tied to a fold"


def test_few_groups_make_fewer_folds():
    groups = np.repeat(np.arange(4), [10, 40, 7, 3])
    assert fold_count(4, 0.2) == 4
    assert set(counted(SplitPlan(None, groups, grouped=True), 4)) == {1}
    with pytest.raises(InputError, match="2 groups for 3 parts"):
        draw_folds(SplitPlan(None, groups % 2, grouped=True), 0, FRACTIONS)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("groups", [3, 4])
def test_three_groups_train_validate_and_test_in_turn(groups, labelled):
    units = np.repeat(np.arange(groups), 20)
    plan = SplitPlan(np.tile([0, 1], 10 * groups) if labelled else None, units, grouped=True)
    assert set(counted(plan, 4 * groups)) == {4}
    for seed in range(4 * groups):
        assert [len(np.unique(units[part])) for part in draw_folds(plan, seed, FRACTIONS, "ab")] == [groups - 2, 1, 1]
        assert all(len(part) for part in draw_split(plan, seed, FRACTIONS, "ab"))


def test_halves_of_groups_leave_two_to_learn_from():
    groups = np.repeat(np.arange(4), [100, 1, 2, 1])
    half = fractions_of(0.5)
    assert set(counted(SplitPlan(None, groups, grouped=True), 2, half)) == {1}
    for seed in range(6):
        assert all(len(part) for part in draw_folds(SplitPlan(None, groups, grouped=True), seed, half))
    with pytest.raises(InputError, match="3 groups, and 2 of them at a time would be tested"):
        draw_folds(SplitPlan(None, groups % 3, grouped=True), 0, half)


def test_a_class_that_two_groups_cannot_both_hold_is_named():
    plan = SplitPlan(np.repeat([0, 1, 0, 1], 20), np.repeat([0, 1, 2, 2], 20), grouped=True)
    with pytest.raises(InputError, match=r"class '[ab]' is in training"):
        _ = [draw_folds(plan, seed, FRACTIONS, "ab") for seed in range(3)]


def test_a_class_of_one_row_is_trained_on_and_never_tested():
    counts = counted(SplitPlan(np.repeat([0, 1], [60, 1]), np.arange(61)), 10)
    assert set(counts[:60]) == {2}
    assert counts[60] == 0


def test_a_class_in_one_group_is_refused_and_in_two_is_trained_on():
    labels = np.repeat([0, 1], [30, 10])
    alone = SplitPlan(labels, np.concatenate([np.arange(30), np.full(10, 30)]), grouped=True)
    with pytest.raises(InputError, match="class 'b' is in training"):
        draw_folds(alone, 0, FRACTIONS, "ab")
    two = SplitPlan(labels, np.concatenate([np.arange(30), np.repeat([30, 31], 5)]), grouped=True)
    assert set(counted(two, 10)) == {2}


def test_copies_that_are_half_of_the_rows_leave_no_fold_empty():
    for units in (np.repeat([0, 1, 2], [100, 1, 1]), np.concatenate([np.zeros(300, dtype=int), np.arange(1, 200)])):
        plan = SplitPlan(None, units)
        count = fold_count(len(np.unique(units)), 0.2)
        assert set(counted(plan, 2 * count)) == {2}


def test_given_and_timed_test_rows_stay():
    given = np.where(np.arange(200) < 150, 0, 2)
    for plan in (
        SplitPlan(np.arange(200) % 2, np.arange(200), given=given),
        SplitPlan(None, np.arange(200), moment=np.arange(200.0)),
    ):
        for seed in (0, 6):
            for mine, theirs in zip(
                draw_folds(plan, seed, FRACTIONS, "ab"), draw_split(plan, seed, FRACTIONS, "ab"), strict=True
            ):
                assert np.array_equal(mine, theirs)


def test_blocks_of_text_are_tested_in_folds():
    text = corpus("the quick brown fox jumps over the lazy dog. " * 900, length=16)
    covered = np.zeros(text.n, dtype=int)
    for seed in range(5):
        train, valid, test = text.split(seed, folds=True)
        assert train
        assert valid
        for span in test:
            covered[span.begin : span.end] += 1
    assert covered.max() == 1
    assert covered.mean() > 0.9, "all but the gaps between blocks"


@pytest.mark.parametrize(
    ("holdout", "shares"),
    [(0.2, (0.6, 0.2, 0.2)), (0.1, (0.7, 0.2, 0.1)), (0.4, (0.45, 0.15, 0.4)), (0.5, (0.375, 0.125, 0.5))],
)
def test_shares_of_a_holdout(holdout, shares):
    assert fractions_of(holdout) == shares


@pytest.mark.parametrize("holdout", [0, -0.1, 0.51, 1])
def test_a_holdout_out_of_range_is_refused(holdout):
    with pytest.raises(InputError, match=r"at most 0\.5"):
        fractions_of(holdout)


def old_random_split(labels: np.ndarray | None, n: int, seed: int) -> list[np.ndarray]:
    """The random split of rows without copies, written out plainly: claims rest on these rows."""
    rng, part = np.random.Generator(np.random.PCG64(seed)), np.full(n, -1)
    for rows in [np.arange(n)] if labels is None else [np.flatnonzero(labels == code) for code in np.unique(labels)]:
        exact = np.array(FRACTIONS) * len(rows)
        counts = [int(value) for value in exact]
        by_rest = sorted(range(3), key=lambda number: -(exact[number] - counts[number]))
        for number in by_rest[: len(rows) - sum(counts)]:
            counts[number] += 1
        for number in range(3):
            if counts[number] == 0:
                counts[int(np.argmax(counts))] -= 1
                counts[number] = 1
        drawn = rows[rng.permutation(len(rows))]
        for number in range(3):
            part[drawn[: counts[number]]] = number
            drawn = drawn[counts[number] :]
    return [np.flatnonzero(part == number) for number in range(3)]


@pytest.mark.parametrize("name", ["wine", "breast-cancer", "diabetes", "digits"])
def test_random_splits_of_rows_without_copies_are_what_they_were(name):
    dataset = open_dataset(name)
    assert len(np.unique(dataset.plan.units)) == dataset.n
    for seed in (0, 5, 101):
        for mine, theirs in zip(
            dataset.split(seed), old_random_split(dataset.plan.labels, dataset.n, seed), strict=True
        ):
            assert np.array_equal(mine, theirs)


def test_random_test_rows_that_earlier_versions_drew():
    test = open_dataset("wine").split(0)[2]
    assert test.tolist()[:8] == [5, 7, 14, 15, 29, 31, 33, 39]
    assert len(test) == 35


def test_random_splits_do_not_ask_how_many_copies_a_row_has():
    plan = with_copies()
    sizes = np.bincount(plan.units)[plan.units]
    tested, parts = np.zeros(len(sizes)), np.zeros(3)
    for seed in range(400):
        split = draw_split(plan, seed, FRACTIONS, "abc")
        tested[split[2]] += 1 / 400
        parts += [len(rows) / len(sizes) / 400 for rows in split]
        for rows, share in zip(split, FRACTIONS, strict=True):
            assert abs(len(rows) - share * len(sizes)) <= 3 * 40
    np.testing.assert_allclose(parts, FRACTIONS, atol=0.01)
    for alike in (sizes == 1, (sizes > 1) & (sizes < 8), sizes == 25, sizes == 40):
        assert abs(tested[alike].mean() - 0.2) < 0.07  # three standard errors of one unit in 400 seeds
