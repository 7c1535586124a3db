"""Classical predictors that stand beside the baseline, so that a user sees when deep learning is not worth it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probatum.data.lazy.few import drawn_rows, is_streamed
from probatum.errors import InputError
from probatum.rooms.kind import kind_of
from probatum.spec import Data, Part, Spec

NAMES = {
    "classes": ("logistic regression", "gradient boosting", "nearest neighbours"),
    "reals": ("ridge regression", "gradient boosting", "nearest neighbours"),
}
MOST_DENSE_FEATURES = 256
STREAMED_ROWS = 20_000
"""Training rows that references are fitted on where the data are streamed from disk."""
SLICE = 4096


@dataclass(frozen=True)
class Reference:
    """A fitted scikit-learn pipeline as a predictor."""

    estimator: Any
    features: Callable[[Part], Any]
    task: str
    outputs: int

    def predict(self, part: Part) -> Tensor:
        """part -> probabilities (n, classes), or values (n, outputs); streamed rows a slice at a time."""
        if is_streamed(part):
            starts = range(0, len(part), SLICE)
            pieces = [slice(start, start + SLICE) for start in starts]
            return torch.cat([self.predict(Part(part.x[p], part.y[p], part.rows[p])) for p in pieces])
        x = self.features(part)
        if self.task == "reals":
            return torch.as_tensor(self.estimator.predict(x), dtype=torch.float32).reshape(len(part), -1)
        found = torch.as_tensor(self.estimator.predict_proba(x), dtype=torch.float32)
        full = torch.zeros(len(part), self.outputs)
        full[:, torch.as_tensor(self.estimator.classes_, dtype=torch.int64)] = found
        return full


def fit(name: str, data: Data, seed: int) -> Reference:
    """Fit the reference called `name` on the training rows; regularisation is chosen by cross-validation inside them.

    Data streamed from disk: on `STREAMED_ROWS` training rows drawn by the seed; raises InputError for nearest neighbours,
    whose predictions would compare every test row with each of them.
    """
    if is_streamed(data.train):
        if name == "nearest neighbours":
            raise InputError(f"{name} are left out for data streamed from disk: their predictions would take too long")
        data = replace(data, train=drawn_rows(data.train, STREAMED_ROWS, seed))
    spec = data.spec
    features = kind_of(spec.modality, spec.task).facet("features").matrix(spec, data.train)
    estimator = _estimator(name, spec, seed, len(data.train))
    y: NDArray[Any] = data.train.y.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence warnings of a reference are not the user's concern
        estimator.fit(features(data.train), y if spec.task == "classes" or y.shape[1] > 1 else y[:, 0])
    return Reference(estimator, features, spec.task, spec.outputs)


def _estimator(name: str, spec: Spec, seed: int, rows: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = spec.task == "classes"
    how = kind_of(spec.modality, spec.task).facet("features")
    scaler = [StandardScaler()] if how.STANDARDISED else []
    if name == "logistic regression":
        folds = 3 if rows >= 3 * spec.outputs else 2
        model = LogisticRegressionCV(
            Cs=[0.01, 0.1, 1.0, 10.0],
            cv=folds,
            max_iter=300,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
            scoring="neg_log_loss",
        )
        return make_pipeline(*scaler, model)
    if name == "ridge regression":
        return make_pipeline(*scaler, RidgeCV(alphas=np.logspace(-3, 3, 13)))
    small = how.fewer(spec, MOST_DENSE_FEATURES, rows, seed)
    if name == "gradient boosting":
        if classes:
            return make_pipeline(
                *small, HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=seed)
            )
        trees = HistGradientBoostingRegressor(max_iter=100, early_stopping=False, random_state=seed)
        return make_pipeline(*small, trees if spec.outputs == 1 else MultiOutputRegressor(trees))
    neighbours = min(5, rows)
    model = KNeighborsClassifier(neighbours) if classes else KNeighborsRegressor(neighbours)
    return make_pipeline(*scaler, *small, model)
