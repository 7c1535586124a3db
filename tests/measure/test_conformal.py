"""Conformal sets and intervals: the guarantee by simulation, thresholds by hand, and MAPIE as a witness."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from probatum.measure.conformal import (
    aps,
    conformal,
    interval_coverage,
    lac,
    quantile_interval,
    raps,
    residual_interval,
    set_coverage,
    sets,
    threshold,
)


def rows(n: int, k: int, seed: int, tilt: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, k))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.array([rng.choice(k, p=row) for row in p])
    q = p**tilt
    return q / q.sum(1, keepdims=True), y


def test_threshold_by_hand() -> None:
    scores = np.array([5.0, 1, 2, 3, 4, 6, 7, 8, 9])
    assert threshold(scores, 0.1) == 9  # the 9th of 9: ceil(10 * 0.9)
    assert threshold(scores, 0.5) == 5
    assert threshold(scores[:5], 0.1) == math.inf
    with pytest.raises(ValueError, match="alpha is 1"):
        threshold(scores, 1)


def test_scores_by_hand() -> None:
    p = np.array([[0.2, 0.7, 0.1]])
    np.testing.assert_allclose(aps(p), [[0.9, 0.7, 1.0]])
    np.testing.assert_allclose(lac(p), [[0.8, 0.3, 0.9]])
    np.testing.assert_allclose(raps(p, weight=0.5, free=1), [[1.4, 0.7, 2.0]])


@pytest.mark.parametrize("score", [lac, aps, raps])
@pytest.mark.parametrize("tilt", [1.0, 3.0])
def test_coverage_holds_whatever_the_model(score, tilt: float) -> None:
    covered = []
    for seed in range(40):
        p, y = rows(600, 5, seed, tilt)
        inside = sets(p[:300], y[:300], p[300:], 0.1, score)
        covered.append(set_coverage(inside, y[300:])["coverage"])
    assert np.mean(covered) > 0.895


def test_split_coverage_is_exact_for_continuous_scores() -> None:
    covered = []
    for seed in range(60):
        p, y = rows(600, 5, seed)
        inside = sets(p[:300], y[:300], p[300:], 0.1, lac, keep_top=False)
        covered.append(set_coverage(inside, y[300:])["coverage"])
    assert abs(np.mean(covered) - math.ceil(301 * 0.9) / 301) < 0.006


def test_by_class_covers_every_class() -> None:
    worst_of_class, worst_of_all = [], []
    for seed in range(30):
        p, y = rows(1500, 3, seed)
        p = p * np.array([1.0, 0.3, 0.3])
        p /= p.sum(1, keepdims=True)
        for found, by_class in ((worst_of_class, True), (worst_of_all, False)):
            inside = sets(p[:750], y[:750], p[750:], 0.1, by_class=by_class, keep_top=False)
            found.append(set_coverage(inside, y[750:])["worst-class"])
    assert np.mean(worst_of_class) > 0.87 > np.mean(worst_of_all)


def test_no_set_is_empty_and_few_rows_give_whole_sets() -> None:
    p, y = rows(300, 4, 0, tilt=8.0)
    assert sets(p[:100], p[:100].argmax(1), p[100:]).sum(1).min() >= 1
    assert sets(p[:5], y[:5], p[100:]).all()


def test_sets_against_mapie() -> None:
    mapie = pytest.importorskip("mapie.classification", reason="mapie is the witness for conformal sets")

    class Given:
        classes_ = np.arange(4)
        _estimator_type = "classifier"

        def fit(self, x, y):
            return self

        def predict(self, x):
            return x.argmax(1)

        def predict_proba(self, x):
            return x

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def __sklearn_tags__(self):
            from sklearn.linear_model import LogisticRegression

            return LogisticRegression().__sklearn_tags__()

    p, y = rows(500, 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = mapie.SplitConformalClassifier(Given(), confidence_level=0.9, prefit=True, conformity_score="lac")
        _, found = theirs.conformalize(p[:250], y[:250]).predict_set(p[250:])
    np.testing.assert_array_equal(found[:, :, 0], sets(p[:250], y[:250], p[250:], 0.1, lac, keep_top=False))


def test_intervals_cover_and_adapt() -> None:
    plain, adapted = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0.1, 2, 800)
        y = x * rng.normal(size=800)  # heteroscedastic
        low, high = residual_interval(np.zeros(400), y[:400], np.zeros(400))
        plain.append(interval_coverage(low, high, y[400:]))
        ends = (-x, x)  # quantiles that are too narrow by a factor
        low, high = quantile_interval((ends[0][:400], ends[1][:400]), y[:400], (ends[0][400:], ends[1][400:]))
        adapted.append(interval_coverage(low, high, y[400:]))
    for found in (plain, adapted):
        assert abs(np.mean([f["coverage"] for f in found]) - 0.9) < 0.01
    assert np.mean([f["width"] for f in adapted]) < np.mean([f["width"] for f in plain])


def test_what_the_arena_records() -> None:
    p, y = rows(800, 3, 1)
    both = [torch.from_numpy(v) for v in (p[:400], y[:400], p[400:], y[400:])]
    found, told, of_rows = conformal(*both, "classes")
    inside = sets(p[:400], y[:400], p[400:])
    assert found == {"set-size-90": pytest.approx(inside.sum(1).mean())}
    assert of_rows["set-size-90"].tolist() == inside.sum(1).tolist()
    assert told["coverage-90"] >= 0.86
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.normal(size=(500, 2)))
    found, told, of_rows = conformal(
        0 * truth[:250], truth[:250], 0 * truth[250:], truth[250:], "reals", scale=np.array([1.0, 10.0])
    )
    assert found["interval-width-90"] == pytest.approx(2 * 1.645 * 5.5, rel=0.12)
    assert abs(told["coverage-90"] - 0.9) < 0.05
    assert of_rows["interval-width-90"].tolist() == [found["interval-width-90"]] * 250
    few = [torch.zeros(4, 1, dtype=torch.float64)] * 4  # too few for an interval that ends
    assert conformal(*few, "reals")[::2] == ({}, {})


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="weight is -1"):
        raps(np.ones((1, 2)) / 2, weight=-1)
