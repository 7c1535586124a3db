"""People (or their simulation) who are asked for labels: questions and answers on paper, what was changed, what is left."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

COLUMNS = ("row", "label", "prediction", "answer")


class Annotator(Protocol):
    """Asked for rows (k,), shown their present labels (k,) and a model's predictions (k,): the right labels (k,)."""

    def __call__(self, rows: Tensor, labels: Tensor, predictions: Tensor) -> Tensor: ...


class Change(NamedTuple):
    """One line of the log: which row, in which round, what it was, what the model said, what it is now, and why it was asked."""

    round: int
    row: int
    before: int
    shown: int
    after: int
    reason: str


class SimulatedAnnotator:
    """Knows the truth, errs now and then, and leans towards what it is shown.

    With probability `anchoring` the answer is the prediction shown; otherwise, with probability `error`, a wrong class
    drawn evenly; otherwise the truth. `asked` counts answers.

    Args:
        truth: (n,) int64, right labels by row.
        classes: how many there are, at least 2.
        generator: draws of errors.
        error, anchoring: probabilities in [0, 1].

    Raises:
        ValueError: a probability outside [0, 1], fewer than 2 classes.
    """

    def __init__(
        self, truth: Tensor, classes: int, generator: torch.Generator, error: float = 0.0, anchoring: float = 0.0
    ) -> None:
        for name, value in (("error", error), ("anchoring", anchoring)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must lie in [0, 1]")
        if classes < 2:
            raise ValueError(f"classes is {classes}; a choice needs 2 or more")
        self.truth, self.classes, self.generator = truth, classes, generator
        self.error, self.anchoring, self.asked = error, anchoring, 0

    def __call__(self, rows: Tensor, labels: Tensor, predictions: Tensor) -> Tensor:
        """Answers (k,)."""
        self.asked += len(rows)
        right = self.truth[rows]
        leans, errs = torch.rand(2, len(rows), generator=self.generator)
        other = (right + torch.randint(1, self.classes, (len(rows),), generator=self.generator)) % self.classes
        answer = torch.where(errs < self.error, other, right)
        return torch.where(leans < self.anchoring, predictions, answer)


def write_questions(path: Path, rows: Tensor, labels: Tensor, predictions: Tensor, names: Sequence[str]) -> None:
    """A CSV with one line a row: its number, present label, the model's prediction, and an empty answer.

    Args:
        path: where it goes.
        rows, labels, predictions: (k,) int64.
        names: names of the classes; they must differ.
    """
    _check_names(names)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row, label, shown in zip(rows.tolist(), labels.tolist(), predictions.tolist(), strict=True):
            writer.writerow([row, names[label], names[shown], ""])


def read_answers(path: Path, rows: Tensor, names: Sequence[str]) -> Tensor:
    """The answers (k,) of a filled-in file of `write_questions`, in the order of `rows`; an empty answer keeps the label.

    Raises:
        ValueError: other columns, answers that are no class, rows without a line, or rows with two; it lists them.
    """
    _check_names(names)
    codes = {name: code for code, name in enumerate(names)}
    found: dict[int, int] = {}
    unknown, twice = [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path.name} has columns {reader.fieldnames}; they should be {', '.join(COLUMNS)}")
        for line in reader:
            answer = line["answer"] or line["label"]
            row = int(line["row"]) if line["row"].strip().isdigit() else -1
            if answer not in codes or row < 0:
                unknown.append(f"{line['row']}: {answer}")
            elif row in found:
                twice.append(str(row))
            else:
                found[row] = codes[answer]
    missing = [str(row) for row in rows.tolist() if row not in found]
    if unknown:
        raise ValueError(f"{path.name}: answers that are no class: {_some(unknown)}; classes are {', '.join(names)}")
    if twice:
        raise ValueError(f"{path.name}: rows with two answers: {_some(twice)}; leave one")
    if missing:
        raise ValueError(f"{path.name}: rows without an answer: {_some(missing)}; add their lines")
    return torch.tensor([found[row] for row in rows.tolist()], dtype=torch.int64)


def binomial_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share; (0, 1) of no trials.

    Raises:
        ValueError: more hits than trials, a level outside (0, 1).
    """
    from scipy.stats import beta

    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} hits in {trials} trials")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie in (0, 1)")
    if trials == 0:
        return 0.0, 1.0
    out = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(out, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - out, hits + 1, trials - hits))
    return low, high


def shares_at_least(hits: Tensor, trials: Tensor, confidence: float) -> Tensor:
    """One-sided Clopper-Pearson lower bounds of many shares: (k,), (k,) -> (k,) float64; 0 where nothing hit.

    Args:
        hits: how many of the trials hit, of any number type.
        trials: how many there were, at least 1 each.
        confidence: with which the true share is no lower, in (0, 1).

    Raises:
        ValueError: a confidence outside (0, 1), or more hits than trials.
    """
    from scipy.stats import beta

    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie in (0, 1)")
    if bool((hits > trials).any()) or bool((hits < 0).any()):
        raise ValueError("there are more hits than trials, or fewer than none")
    hit, of = hits.double(), trials.double()
    bound = torch.from_numpy(beta.ppf(1 - confidence, hit.clamp(min=1).numpy(), (of - hit + 1).numpy()))
    return torch.where(hit > 0, bound, 0.0)


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"two classes have the same name: {', '.join(sorted(names))}")


def _some(items: Sequence[str], most: int = 10) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
