"""The estimators pass scikit-learn's own checks and agree with the loop they wrap."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_wine
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probatum import ProbatumClassifier, ProbatumRegressor


@parametrize_with_checks(
    [ProbatumClassifier(epochs=15, batch_size=16), ProbatumRegressor(epochs=40, batch_size=16, lr=5e-3)]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_cross_validation_in_a_pipeline() -> None:
    x, y = load_wine(return_X_y=True)
    scores = cross_val_score(make_pipeline(StandardScaler(), ProbatumClassifier(epochs=15)), x, y, cv=3)
    assert scores.mean() > 0.9


def test_technique_is_used() -> None:
    x, y = load_wine(return_X_y=True)
    plain = ProbatumClassifier(epochs=5).fit(x, y).predict_proba(x)
    other = ProbatumClassifier("encouraging-loss", epochs=5).fit(x, y).predict_proba(x)
    neutral = ProbatumClassifier("encouraging-loss(log_end=None)", epochs=5).fit(x, y).predict_proba(x)
    assert not np.allclose(plain, other)
    np.testing.assert_array_equal(plain, neutral)


def test_string_labels_and_several_targets() -> None:
    x, y = load_wine(return_X_y=True)
    names = np.array(["red", "white", "rose"])[y]
    assert set(ProbatumClassifier(epochs=3).fit(x, names).predict(x)) <= {"red", "white", "rose"}
    x, y = load_diabetes(return_X_y=True)
    two = np.column_stack([y, -y])
    assert ProbatumRegressor(epochs=3).fit(x, two).predict(x).shape == two.shape


def test_bad_fraction_is_named() -> None:
    x, y = load_wine(return_X_y=True)
    with pytest.raises(ValueError, match=r"validation_fraction is 1\.5"):
        ProbatumClassifier(validation_fraction=1.5).fit(x, y)
