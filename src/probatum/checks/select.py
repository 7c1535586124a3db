"""What every selector promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probatum.checks.subject import Subject, demand, fingerprint
from probatum.errors import InputError
from probatum.measure.detection import detection


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> Tensor:
    """Scores of the training rows."""
    data = subject.data()
    return subject.call(data, settings, x=data.train.x, y=data.train.y)


def check_scores_every_row(subject: Subject) -> None:
    """One finite score a row; data untouched."""
    data = subject.data()
    before = fingerprint([data.train.x, data.train.y])
    scores = subject.call(data, x=data.train.x, y=data.train.y)
    demand(scores.shape == (len(data.train),), f"scores of shape {tuple(scores.shape)} for {len(data.train)} rows")
    demand(bool(torch.isfinite(scores).all()), "scores are not finite")
    demand(fingerprint([data.train.x, data.train.y]) == before, "rows or labels were changed")


def check_labels_that_do_not_fit(subject: Subject) -> None:
    """Labels that are missing (-100) or outside the classes are refused with words, or their rows get finite scores."""
    data = subject.data()
    for bad in (-100, -1, data.spec.outputs):
        y = data.train.y.clone()
        y[3] = bad
        try:
            scores = subject.call(data, x=data.train.x, y=y)
        except (ValueError, TypeError, InputError) as problem:
            demand(str(bad) in str(problem), f"a label {bad} is refused with {str(problem)!r}; name the label")
            continue
        demand(False, f"a label {bad} of {data.spec.outputs} classes was taken, with scores {scores[:4].tolist()}")


def check_flipped_labels_score_lower(subject: Subject) -> None:
    """On an easy problem, rows with flipped labels score lower than clean ones."""
    data = subject.numbers(3, 1, 2)[0]
    y = data.train.y.clone()
    flipped = torch.zeros(len(y), dtype=torch.bool)
    flipped[::10] = True
    y[flipped] = (y[flipped] + 1) % data.spec.outputs
    scores = subject.call(data, x=data.train.x, y=y).double()
    area = detection(scores, flipped)["flip-auroc"]
    demand(area > 0.6, f"AUROC of finding flipped labels is {area:.2f}")
