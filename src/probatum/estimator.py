"""Scikit-learn estimators around a recipe: the baseline of tables with the techniques you name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import nn

from probatum.arenas.predict.fit import Predictor, fit
from probatum.recipe import Arm, Recipe, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.rooms.task import task
from probatum.spec import Data, Part, Spec
from probatum.train.baselines import training_for
from probatum.train.rng import generator_for


class _ProbatumEstimator(BaseEstimator):
    """What classifier and regressor share."""

    _task = ""

    def __init__(
        self,
        technique: str | None = None,
        *,
        epochs: int = 40,
        batch_size: int = 64,
        lr: float = 8e-3,
        validation_fraction: float = 0.2,
        random_state: int | None = 0,
    ) -> None:
        self.technique = technique
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _fit(self, x: NDArray[Any], y: torch.Tensor, outputs: int) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")
        if len(x) < 2:
            raise ValueError(f"n_samples={len(x)}; give two rows or more")
        seed = self._seed()
        self.mean_, self.scale_ = x.mean(axis=0), x.std(axis=0)
        self.scale_[self.scale_ == 0] = 1.0
        encoded = self._encode(x)
        train, valid = self._halves(len(x), y, seed)
        spec = Spec("table", self._task, (x.shape[1],), outputs, numeric=x.shape[1])
        parts = [Part(encoded[rows], y[rows], rows) for rows in (train, valid)]
        data = Data(spec, parts[0], parts[1], Part(encoded[:0], y[:0], train[:0]))
        training = replace(
            training_for("table", self._task), epochs=self.epochs, batch_size=self.batch_size, lr=self.lr
        )
        base = Recipe(training=replace(training, select=task(self._task).SELECT))
        arm = Arm("baseline", base) if self.technique is None else make_arm(self.technique, base)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self.predictor_: Predictor = fit(
                Work(arm, "" if self.technique else "baseline", Terms(base=base), data, seed)
            )
        finally:
            torch.set_num_threads(threads)
        if self.predictor_.model is not None:  # predictions in double precision do not hang on the size of the batch
            self.predictor_.model = _InDouble(self.predictor_.model.double())

    def _halves(self, n: int, y: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training and validation rows, stratified; every class keeps a training row."""
        order = torch.randperm(n, generator=generator_for(seed, "split"))
        if self._task == "classes":  # stratified: equal shares of every class
            order = order[torch.argsort(y[order], stable=True)]
            position = torch.cat([torch.arange(int(c)) / int(c) for c in y.bincount() if c])
            held = position >= 1 - self.validation_fraction
        else:
            held = torch.arange(n) >= max(1, round(n * (1 - self.validation_fraction)))
        if not held.any():
            held[-1] = True
        train = order[~held]
        return (train if len(train) else order), order[held]

    def _encode(self, x: NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor((x - self.mean_) / self.scale_, dtype=torch.float32).clamp(-10, 10)

    def _output(self, x: ArrayLike) -> torch.Tensor:
        check_is_fitted(self)
        checked = validate_data(self, x, reset=False, dtype=np.float64)
        encoded = self._encode(checked)
        rows = torch.arange(len(encoded))
        with torch.no_grad():
            return self.predictor_.predict(Part(encoded, torch.zeros(len(encoded), dtype=torch.int64), rows))

    def _seed(self) -> int:
        if self.random_state is None:
            return int(np.random.default_rng().integers(2**31))
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(self.random_state.randint(2**31 - 1))


class _InDouble(nn.Module):
    """A network in double precision whose outputs are rounded to single precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.double()).float()


class ProbatumClassifier(ClassifierMixin, _ProbatumEstimator):
    """The table baseline, with a technique if named, as a scikit-learn classifier.

    Args:
        technique: an arm as on the command line, e.g. ``"tabm"`` or ``"selu-snn+gradient-noise(eta=0.3)"``; None = baseline.
        epochs: passes over the training rows.
        batch_size: rows a step.
        lr: learning rate of the built-in AdamW.
        validation_fraction: rows held out for choosing the best weights and fitting calibrators, in (0, 1).
        random_state: seed; None draws one.

    Raises:
        ValueError: data or settings that cannot be used.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> ProbatumClassifier(epochs=30).fit(x, y).score(x, y) > 0.9
        True
    """

    _task = "classes"

    def fit(self, X: ArrayLike, y: ArrayLike) -> ProbatumClassifier:
        """X (n, features), y (n,) labels of any kind."""
        checked, labels = validate_data(self, X, column_or_1d(y, warn=True), dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class only ({self.classes_[0]!r}); a classifier needs two classes or more")
        self._fit(checked, torch.as_tensor(codes, dtype=torch.int64), len(self.classes_))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """X (n, features) -> probabilities (n, classes)."""
        p = self._output(X).double().numpy()
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """X (n, features) -> labels (n,)."""
        output = self._output(X)  # before classes_ is asked for, so that an unfitted estimator says so
        return self.classes_[output.argmax(dim=1).numpy()]


class ProbatumRegressor(RegressorMixin, _ProbatumEstimator):
    """The table baseline, with a technique if named, as a scikit-learn regressor; arguments as `ProbatumClassifier`.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> x, y = load_diabetes(return_X_y=True)
        >>> ProbatumRegressor(epochs=20).fit(x, y).score(x, y) > 0.4
        True
    """

    _task = "reals"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> ProbatumRegressor:
        """X (n, features), y (n,) or (n, targets) numbers."""
        checked, values = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self.flat_ = values.ndim == 1
        table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        self.target_mean_, self.target_scale_ = table.mean(axis=0), table.std(axis=0)
        self.target_scale_[self.target_scale_ == 0] = 1.0
        y_encoded = torch.as_tensor((table - self.target_mean_) / self.target_scale_, dtype=torch.float32)
        self._fit(checked, y_encoded, table.shape[1])
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """X (n, features) -> values (n,) or (n, targets)."""
        output = self._output(X)
        values = output.double().numpy() * self.target_scale_ + self.target_mean_
        return values[:, 0] if self.flat_ else values
