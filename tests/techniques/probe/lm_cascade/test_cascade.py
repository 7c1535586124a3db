"""Cascades: scores, curves against brute force, thresholds, costs, chains."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from probatum.techniques.probe.lm_cascade.cascade import (
    LEVELS,
    Curve,
    area_over_cost,
    at_threshold,
    audc,
    chain,
    chain_thresholds,
    chow_average,
    chow_quantile,
    chow_sum,
    closed_share,
    cost_curve,
    deferral_curve,
    numbers,
    oracle_score,
    quality_at,
    quantile_features,
    threshold_for,
    tokens,
)

pytestmark = pytest.mark.fast


def ragged(rng: np.random.Generator, n: int = 30) -> list[list[float]]:
    return [(-rng.exponential(size=rng.integers(1, 9))).tolist() for _ in range(n)]


def test_scores_are_numpys_and_padding_does_not_count() -> None:
    logs = ragged(np.random.default_rng(0))
    found = tokens(logs)
    np.testing.assert_allclose(chow_sum(found), [sum(row) for row in logs])
    np.testing.assert_allclose(chow_average(found), [np.mean(row) for row in logs])
    for level in (*LEVELS, 0.33):
        np.testing.assert_allclose(chow_quantile(found, level), [np.quantile(row, level) for row in logs])
    longest = max(map(len, logs))
    padded = torch.tensor([row + [-7.0] * (longest - len(row)) for row in logs], dtype=torch.float64)
    mask = torch.tensor([[t < len(row) for t in range(longest)] for row in logs])
    again = tokens(padded, mask)
    np.testing.assert_array_equal(quantile_features(again), quantile_features(found))
    assert quantile_features(found).shape == (30, 14)
    assert quantile_features(found)[:, -1].tolist() == [len(row) for row in logs]


def test_one_token_makes_all_scores_equal() -> None:
    found = tokens(-np.random.default_rng(1).exponential(size=(20, 1)))
    for score in (chow_average(found), *(chow_quantile(found, level) for level in LEVELS)):
        np.testing.assert_array_equal(score, chow_sum(found))


def test_curve_is_that_of_deferring_row_by_row() -> None:
    rng = np.random.default_rng(2)
    score, small, large = rng.permutation(40), rng.random(40), rng.random(40)
    curve = deferral_curve(score, small, large)
    for k in range(41):
        deferred = np.isin(np.arange(40), np.argsort(score)[:k])
        assert curve.quality[k] == pytest.approx(np.where(deferred, large, small).mean())
        assert curve.rate[k] == k / 40
    assert audc(curve) == pytest.approx(np.trapezoid(curve.quality, curve.rate))


def test_scores_of_chance_give_the_straight_line() -> None:
    rng = np.random.default_rng(3)
    small, large = rng.random(50), rng.random(50) + 0.2
    line = audc(deferral_curve(np.zeros(50), small, large))
    assert line == pytest.approx((small.mean() + large.mean()) / 2)
    drawn = [audc(deferral_curve(rng.random(50), small, large)) for _ in range(2000)]
    assert abs(np.mean(drawn) - line) < 4 * np.std(drawn) / 2000**0.5
    tied = np.repeat([0.0, 1.0], 25)  # ties: the mean over random orders within them
    broken = [audc(deferral_curve(tied + 0.1 * rng.random(50), small, large)) for _ in range(2000)]
    assert abs(np.mean(broken) - audc(deferral_curve(tied, small, large))) < 4 * np.std(broken) / 2000**0.5


def test_oracle_is_above_every_rule_at_every_rate() -> None:
    rng = np.random.default_rng(4)
    small, large = rng.random(25), rng.random(25)
    best = deferral_curve(oracle_score(small, large), small, large)
    for _ in range(200):
        assert bool((deferral_curve(rng.random(25), small, large).quality <= best.quality + 1e-12).all())


def test_monotone_maps_leave_the_curve_alone() -> None:
    rng = np.random.default_rng(5)
    score, small, large = rng.normal(size=60).round(1), rng.random(60), rng.random(60)
    expected = audc(deferral_curve(score, small, large))
    for image in (np.exp(score), 3 * score - 8, np.arctan(score)):
        assert audc(deferral_curve(image, small, large)) == expected
    assert audc(deferral_curve(-score, small, large)) != pytest.approx(expected)


def test_thresholds_come_from_other_rows() -> None:
    rng = np.random.default_rng(6)
    held, score, small, large = rng.normal(size=4000), rng.normal(size=4000), rng.random(4000), rng.random(4000)
    for rate in (0.1, 0.5, 0.9):
        threshold = threshold_for(held, rate)
        assert (held < threshold).mean() == rate
        used, quality = at_threshold(threshold, score, small, large)
        assert abs(used - rate) < 0.03
        assert quality == pytest.approx(quality_at(deferral_curve(score, small, large), used))
    assert at_threshold(threshold_for(held, 0.0), held, small, large) == (0.0, pytest.approx(small.mean()))
    assert at_threshold(threshold_for(held, 1.0), score, small, large)[0] == 1.0


def test_partial_cost_is_paid_by_every_row() -> None:
    curve = deferral_curve(np.arange(4), np.zeros(4), np.ones(4))
    free, paid = cost_curve(curve, 0.1, 1.0), cost_curve(curve, 0.1, 1.0, 0.4)
    np.testing.assert_allclose(free.rate, [0.1, 0.35, 0.6, 0.85, 1.1])
    np.testing.assert_allclose(paid.rate, [0.1, 0.5, 0.65, 0.8, 0.95, 1.1])
    assert quality_at(paid, 0.5) == 0.0
    assert quality_at(free, 0.6) == 0.5
    assert area_over_cost(free) == pytest.approx(0.5)
    assert area_over_cost(paid) == pytest.approx(0.3)  # 0.4 of the way nothing, then the line from 0 to 1
    assert area_over_cost(cost_curve(curve, 0.1, 1.0, 1.0)) == pytest.approx(0.0)


def test_chain_of_three() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    qualities = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    found = chain(scores, qualities, (1.0, 10.0, 100.0), (1.0, 1.0))
    assert found.model.tolist() == [0, 1, 2]
    assert found.quality.tolist() == [1, 5, 9]
    assert found.cost.tolist() == [1, 11, 111]
    rng = np.random.default_rng(7)
    many = rng.random((1000, 2))
    cuts = chain_thresholds(many, (0.5, 0.2))
    stands = chain(many, rng.random((1000, 3)), (1, 1, 1), cuts).model
    assert np.bincount(stands).tolist() == [500, 400, 100]


def test_a_chain_of_two_is_the_curve() -> None:
    rng = np.random.default_rng(8)
    score, small, large = rng.random(100), rng.random(100), rng.random(100)
    curve = deferral_curve(score, small, large)
    for rate in (0.0, 0.25, 1.0):
        found = chain(score[:, None], np.column_stack([small, large]), (1, 9), [threshold_for(score, rate)])
        assert found.quality.mean() == pytest.approx(quality_at(curve, rate))
        assert found.cost.mean() == pytest.approx(1 + 9 * rate)
        assert quality_at(cost_curve(curve, 1, 9), 1 + 9 * rate) == pytest.approx(found.quality.mean())


def test_closed_share() -> None:
    assert closed_share(0.6, 0.5, 0.9) == pytest.approx(0.25)
    assert closed_share(0.5, 0.5, 0.5) == 0.0
    areas = [audc(deferral_curve(s, [0, 1], [1, 0])) for s in ([1, 0], [0, 0], [0, 1])]
    assert all(a < b for a, b in pairwise(areas))


@pytest.mark.parametrize(
    ("logs", "what"),
    [
        ([[-1.0], [0.3]], "0.3"),
        ([[-1.0], []], "output 1 has no tokens"),
        ([[float("-inf")]], "-inf"),
        ([], "0 outputs"),
    ],
)
def test_bad_tokens(logs: list[list[float]], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        tokens(logs)


def test_bad_qualities_and_settings() -> None:
    with pytest.raises(ValueError, match="both models' qualities"):
        deferral_curve([0, 1], [0, 1], [0, float("nan")])
    with pytest.raises(ValueError, match="none missing"):
        deferral_curve([0, 1], [0, 1], [0])
    with pytest.raises(ValueError, match=r"level is 1\.5"):
        chow_quantile(tokens([[-1.0]]), 1.5)
    with pytest.raises(ValueError, match="rate is 2"):
        threshold_for([0.0], 2)
    for bad in (float("inf"), float("-inf"), float("nan")):
        with pytest.raises(ValueError, match=f"a score is {bad}, 1 of 3 are not finite; leave these rows out"):
            threshold_for([0.0, bad, 1.0], 0.5)
    with pytest.raises(ValueError, match="partial 3"):
        cost_curve(deferral_curve([0], [0], [1]), 1, 2, 3)
    with pytest.raises(ValueError, match="thresholds"):
        chain(np.zeros((2, 1)), np.zeros((2, 3)), (1, 1, 1), (0.5,))
    with pytest.raises(ValueError, match="quality is missing"):
        chain(np.zeros((1, 1)), np.array([[0, np.nan]]), (1, 1), (0.5,))
    with pytest.raises(ValueError, match="mask"):
        tokens(np.zeros((2, 3)), np.ones((2, 2), dtype=bool))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_precision_and_with_a_history(dtype: torch.dtype) -> None:
    rows = torch.tensor([[-1.0, -2.5], [-0.5, 0.0]], dtype=dtype, requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    for found in (tokens(rows, mask), tokens([rows[0], rows[1, :1]])):
        assert chow_sum(found).tolist() == [-3.5, -0.5]
        assert chow_average(found).tolist() == [-1.75, -0.5]
    score, small, large = (torch.tensor(v, dtype=dtype) for v in ([1.0, 2.0], [0.5, 0.0], [1.0, 0.5]))
    assert deferral_curve(score, small, large).quality.tolist() == [0.25, 0.5, 0.75]
    assert threshold_for(score, 0.5) == threshold_for([*rows[0] * 0 + 1, *score], 0.75) == 2.0
    qualities = torch.stack([small, large], dim=1)
    assert chain(score[:, None], qualities, (1, 2), [1.5]).quality.tolist() == [1.0, 0.0]
    assert chain_thresholds(score[:, None], [0.5]) == [2.0]


def test_shares_are_whole_numbers_of_rows_where_they_can_be() -> None:
    for n in (7, 100, 250):
        score = np.arange(float(n))
        for k in range(n + 1):
            assert (score < threshold_for(score, k / n)).sum() == k
    assert [(np.arange(100) < threshold_for(np.arange(100.0), rate)).mean() for rate in (0.29, 0.57)] == [0.29, 0.57]


def test_scores_that_are_missing_are_told() -> None:
    with pytest.raises(ValueError, match="score is not a number"):
        chain(np.array([[np.nan], [2.0]]), np.ones((2, 2)), (1, 2), [1.0])
    with pytest.raises(ValueError, match=r"scores \(2,\)"):
        chain(np.ones(2), np.ones((2, 2)), (1, 2), [1.0])
    with pytest.raises(ValueError, match="is nan"):
        threshold_for([0.0, float("nan"), 1.0], 0.9)
    with pytest.raises(ValueError, match="a score is nan, 1 of 3"):
        threshold_for(np.ma.masked_array([5, 2, 3], [1, 0, 0]), 0.9)
    masked = [np.ma.masked_array([1.0, 2.0], [0, 1]), torch.tensor([3.0, 4.0], requires_grad=True)]
    np.testing.assert_array_equal(numbers(masked), [[1, np.nan], [3, 4]])
    np.testing.assert_array_equal(numbers([masked, masked]), [[[1, np.nan], [3, 4]]] * 2)
    assert tokens(np.array([[-1.0, -2.0]]), np.ma.masked_array([[1, 1]], [[0, 1]])).mask.tolist() == [[True, False]]
    assert threshold_for([torch.tensor(1.0), 0.1, 3], 0.0) == 0.1  # not through float32
    with pytest.raises(ValueError, match="n >= 1"):
        threshold_for([], 0.5)


def fractions(curve: list[tuple[float, float]]) -> float:
    """Mean quality over costs, by exact arithmetic."""
    points = [(Fraction(x), Fraction(y)) for x, y in curve]
    area = sum((b[1] + a[1]) / 2 * (b[0] - a[0]) for a, b in pairwise(points))
    return float(area / (points[-1][0] - points[0][0]))


@pytest.mark.parametrize(
    ("dtype", "costs"),
    [
        (np.int32, (1_500_000_000, 2_000_000_000, 900_000_000)),
        (np.uint8, (200, 250, 100)),
        (np.int8, (100, 120, 100)),
        (np.float16, (40_000, 60_000, 30_000)),
    ],
)
def test_costs_of_few_bits_are_the_numbers_that_they_are(dtype: type, costs: tuple[int, int, int]) -> None:
    curve = deferral_curve([0.1, 0.2, 0.3], [0, 1, 1], [1, 1, 1])
    given = np.array(costs, dtype=dtype)
    small, large, part = (int(one) for one in given)
    points = [(small, curve.quality[0])]
    points += [(small + part + Fraction(k, 3) * (large - part), curve.quality[k]) for k in range(4)]
    for some in (
        given,
        torch.tensor(given),
        [torch.tensor(one, requires_grad=True) for one in given.astype(np.float32)],
    ):
        found = cost_curve(curve, *some)
        assert area_over_cost(found) == pytest.approx(fractions(points))
        assert quality_at(found, some[0]) == curve.quality[0]
    whole = Curve(np.array([0, 100, 255], np.uint8), np.array([200, 250, 255], np.uint8))
    assert audc(whole) == 225 * 100 + 252.5 * 155
    assert area_over_cost(whole) == fractions([(0, 200), (100, 250), (255, 255)])
    scores = np.array([[0.2], [0.7]])
    assert chain(scores, np.ones((2, 2)), given[:2], [0.5]).cost.tolist() == [small + large, small]


BAD: tuple[object, ...] = (
    float("nan"), np.ma.masked, "0.5", b"1", None, 1j, torch.tensor(0.5 + 1j), [0.5, 0.5], np.datetime64("2020"),
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_numbers_that_are_none_are_refused_by_name(bad: object) -> None:
    score, small, large = [0.1, 0.2], [0, 1], [1, 1]
    curve, table, q = deferral_curve(score, small, large), np.array([[0.2], [0.7]]), np.ones((2, 2))
    calls = [
        ("large", lambda: cost_curve(curve, 1, bad)),
        ("small", lambda: cost_curve(curve, bad, 1)),
        ("partial", lambda: cost_curve(curve, 1, 1, bad)),
        ("budget", lambda: quality_at(curve, bad)),
        ("threshold", lambda: at_threshold(bad, score, small, large)),
        ("rate", lambda: threshold_for(score, bad)),
        ("rates", lambda: chain_thresholds(table, [bad])),
        ("level", lambda: chow_quantile(tokens([[-1.0]]), bad)),
        ("levels", lambda: quantile_features(tokens([[-1.0]]), [bad])),
        ("oracle", lambda: closed_share(0.5, 0.1, bad)),
        ("costs", lambda: chain(table, q, [bad, 1], [0.5])),
        ("thresholds", lambda: chain(table, q, [1, 1], [bad])),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=rf"^{name} ") as told:
            call()
        assert re.search("give|use|need", str(told.value))


def test_costs_and_thresholds_out_of_range_or_of_another_shape_are_refused() -> None:
    scores, q = np.array([[0.2], [0.7]]), np.array([[0, 1], [1, 1.0]])
    for costs, what in (
        (np.ma.masked_array([1, 10], [0, 1]), "costs hold nan; use a finite number of 0 or more"),
        ([-5, 1], "costs hold -5"),
        ([np.inf, 1], "costs hold inf"),
        (np.array([[1, 2], [10, 20.0]]), "shape (2, 2); give a list of numbers"),
        ([1, 10, 100], "3 costs"),
    ):
        with pytest.raises(ValueError, match=re.escape(what)):
            chain(scores, q, costs, [0.5])
    with pytest.raises(ValueError, match=re.escape("shape (2, 1)")):
        chain(scores, q, [1, 1], [[0.5], [0.9]])
    with pytest.raises(ValueError, match=r"scores .* complex128"):
        chain(scores + 1j, q, [1, 1], [0.5])
    with pytest.raises(ValueError, match=r"a score or quality .* complex"):
        deferral_curve(torch.tensor([1 + 1j, 2]), [0, 1], [1, 1])
    with pytest.raises(ValueError, match=r"threshold is .*give a single number"):
        at_threshold([0.1, 0.3], [0.1, 0.2], [0, 1], [1, 1])
    for bad in (np.inf, 0.0, 1e308 * 1.5):
        with pytest.raises(ValueError, match=r"large is|large inf|large 0|large 1.5e\+308"):
            cost_curve(deferral_curve([0], [0], [1]), 1e308, bad)
    with pytest.raises(ValueError, match=r"budget is inf; use a finite number"):
        quality_at(deferral_curve([0], [0], [1]), np.inf)
    with pytest.raises(ValueError, match="all costs of the curve are 1e"):
        area_over_cost(cost_curve(deferral_curve([0], [0], [1]), 1e30, 1.0))
    with pytest.raises(ValueError, match="ascending"):
        quality_at(Curve(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 0.5)
    with pytest.raises(ValueError, match=r"different|inhomogeneous"):
        deferral_curve([[0.1], [0.2, 0.3]], [0, 1], [1, 1])
    assert chain(scores, q, torch.tensor([0.5, 2], dtype=torch.bfloat16, requires_grad=True), [0.5]).cost.tolist() == [
        2.5,
        0.5,
    ]
    for end, model in ((np.inf, 1), (-np.inf, 0)):  # what `threshold_for` gives where all are deferred
        assert chain(scores, q, [1, 1], [end]).model.tolist() == [model, model]
        assert at_threshold(end, [0.1, 0.2], [0, 1], [1, 1])[0] == model


KEEP = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])


@pytest.mark.parametrize(
    "mask",
    [
        np.where(KEEP, 0.0, np.finfo("f4").min),
        np.where(KEEP, 0.0, -np.inf),
        torch.where(torch.tensor(KEEP) > 0, 0.0, -torch.inf).bfloat16(),
        np.where(KEEP, 5, -100),
        np.where(KEEP, 0.7, 0.0),
        np.where(KEEP, 1.0, np.nan),
        np.where(KEEP, 2, 0),
    ],
)
def test_masks_of_other_numbers_are_refused(mask: np.ndarray | torch.Tensor) -> None:
    log_p = np.array([[-0.1, -0.2, -9, -9], [-1, -2, -3, -9.0]])
    with pytest.raises(ValueError, match=r"mask holds .* additive mask .* mask == 0, of labels with -100"):
        tokens(log_p, mask)
    for good in (KEEP, KEEP.astype(bool), KEEP.astype(np.float16), torch.tensor(KEEP), KEEP.tolist(), KEEP > 0):
        np.testing.assert_allclose(chow_average(tokens(log_p, good)), [-0.15, -2.0])
    hidden = np.ma.masked_array(np.where(KEEP, 1.0, np.nan), KEEP == 0)  # NaN where it says nothing
    np.testing.assert_allclose(chow_average(tokens(log_p, hidden)), [-0.15, -2.0])
    np.testing.assert_allclose(chow_average(tokens(log_p, list(hidden))), [-0.15, -2.0])


def test_log_probabilities_of_whole_vocabularies_and_of_a_single_output_are_refused() -> None:
    log_p = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ids = torch.tensor([[0, 1, 2], [4, 4, 0]])
    for mask in (None, torch.ones(2, 3)):
        with pytest.raises(ValueError, match=re.escape("log_p.gather(-1, ids[..., None])[..., 0]")):
            tokens(log_p, mask)
        chosen = tokens(log_p.gather(-1, ids[..., None])[..., 0], mask)
        assert chosen.log_p.shape == (2, 3)
        assert chosen.log_p[1, 2] == float(log_p[1, 2, 0])
    with pytest.raises(ValueError, match="a list for every output"):
        tokens([-1.0, -2.0, -3.0])
    for bad in (-1.0, torch.tensor(-1.0), "abc", {"a": [-1.0]}):
        with pytest.raises(ValueError, match="give one list of log-probabilities an output"):
            tokens(bad)
    with pytest.raises(ValueError, match=r"log_p .*<U"):
        tokens([["-1.0"]])
