"""What every check gets: the model, the rows and its answers on them; and the features that distances are taken in."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from probatum.auditing.finding import Limits
from probatum.auditing.rows import Rows
from probatum.auditing.subject import Subject
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.modes import evaluating
from probatum.numerics.networks.watch import hooked
from probatum.rooms.kind import kind_of
from probatum.spec import Part

MOST = 4000
"""Rows that the dearer checks look at; drawn by the seed where there are more."""
DIMENSIONS = 32
FOLDS = 5


@dataclass(frozen=True)
class Case:
    """One audit.

    Attributes:
        subject: the model.
        rows: the audited rows.
        output: (n, outputs) its answers: probabilities or values.
        reference: rows like those it was trained on, or None.
        groups: columns whose groups are wanted.
        time: column that orders the rows, or "".
        limits: what is a fault.
        seed: of every draw.
    """

    subject: Subject
    rows: Rows
    output: np.ndarray
    reference: Rows | None = None
    groups: tuple[str, ...] = ()
    time: str = ""
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    @property
    def task(self) -> str:
        """classes or reals."""
        return self.rows.spec.task

    @cached_property
    def y(self) -> np.ndarray:
        """Class codes (n,), or values (n, outputs)."""
        return self.rows.part.y.numpy()

    @cached_property
    def guess(self) -> np.ndarray:
        """Classes: the likeliest (n,)."""
        return self.output.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Classes: its probability (n,)."""
        return self.output.max(axis=1)

    @cached_property
    def right(self) -> np.ndarray:
        """Classes: whether it is the label (n,), 0 or 1."""
        return (self.guess == self.y).astype(np.float64)

    @cached_property
    def others(self) -> np.ndarray | None:
        """Classes: (n, classes) probabilities of each row by plain models of the other rows; None where a class is too rare."""
        return None if self.each_other is None else np.asarray(self.each_other.mean(axis=0))

    @cached_property
    def each_other(self) -> np.ndarray | None:
        """The same by either of the two (2, n, classes), logistic regression first."""
        counts = np.bincount(self.y, minlength=2)
        if (counts[counts > 0] < FOLDS).any() or (counts > 0).sum() < 2:
            return None
        return both_out_of_fold(self.rows, int(self.rng("others").integers(2**31)))

    def rng(self, name: str) -> np.random.Generator:
        """Draws of one check, whatever other checks draw."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def some(self, name: str, most: int = MOST) -> Case:
        """The case with at most so many rows, drawn by the seed."""
        if len(self.rows) <= most:
            return self
        index = np.sort(self.rng(name).choice(len(self.rows), most, replace=False))
        return replace(self, rows=self.rows.take(index), output=self.output[index])

    def answers(self, x: Tensor) -> np.ndarray:
        """The model's answers when the rows' x are these."""
        part = self.rows.part
        return self.subject.answers(Part(x, part.y, part.rows, part.text), self.task)


def input_features(*parts: Rows) -> list[np.ndarray]:
    """(n, d) numbers for every set of rows, scaled and reduced alike by what all of them together are.

    Numbers are standardised, categories one-hot, texts weighed counts of their words; more than 32 columns are reduced
    to 32 principal components.
    """
    spec = parts[0].spec
    return kind_of(spec.modality, spec.task).facet("features").input_features(list(parts), DIMENSIONS)


def learned_features(subject: Subject, rows: Rows) -> np.ndarray | None:
    """What goes into the network's last linear layer (n, d); None where there is no such layer or no network."""
    if subject.model is None or not subject.by_x:
        return None
    head = find_last_layer(subject.model, rows.part.x)
    if not isinstance(head, nn.Linear):
        return None
    kept: list[Tensor] = []

    def note(_name: str, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].detach().flatten(1).cpu())

    with hooked(subject.model, {"": head}, before=note), evaluating(subject.model), torch.no_grad():
        subject.ask(rows.part)
    found = torch.cat(kept).double().numpy() if kept else np.zeros((0, 0))
    return found if len(found) == len(rows) else None


def both_out_of_fold(rows: Rows, seed: int) -> np.ndarray:
    """Probabilities (2, n, classes) of each row by models of the other folds: logistic regression, and a forest."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    x, y = input_features(rows)[0], rows.part.y.numpy()
    found = np.zeros((2, len(y), rows.spec.outputs))
    for train, out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        models = (
            LogisticRegression(max_iter=300),
            ExtraTreesClassifier(150, min_samples_leaf=2, random_state=seed),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit stopped early is good enough for a second opinion
            for mine, model in zip(found, models, strict=True):
                model.fit(x[train], y[train])
                mine[np.ix_(out, model.classes_)] = model.predict_proba(x[out])
    return found
