"""Annotators, their files, and intervals of shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import binom

from probatum.numerics.labels.annotators import (
    SimulatedAnnotator,
    binomial_interval,
    read_answers,
    shares_at_least,
    write_questions,
)

pytestmark = pytest.mark.fast

NAMES = ("cat", "dog, small", 'the "bird"')


def test_simulated_annotator_errs_and_leans_as_often_as_told() -> None:
    truth = torch.arange(20000) % 4
    rows, labels, shown = torch.arange(20000), (truth + 1) % 4, (truth + 2) % 4
    who = SimulatedAnnotator(truth, 4, torch.Generator().manual_seed(0), error=0.1, anchoring=0.25)
    answers = who(rows, labels, shown)
    assert who.asked == 20000
    right = float((answers == truth).float().mean())
    assert right == pytest.approx(0.75 * 0.9, abs=0.015)
    leant = float((answers == shown).float().mean())
    assert leant == pytest.approx(0.25 + 0.75 * 0.1 / 3, abs=0.015)
    knows = SimulatedAnnotator(truth, 4, torch.Generator())
    assert torch.equal(knows(rows[5:9], labels[5:9], shown[5:9]), truth[5:9])


def test_file_round_trip_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "questions.csv"
    rows, labels, shown = torch.tensor([7, 3, 11]), torch.tensor([0, 1, 2]), torch.tensor([2, 2, 1])
    write_questions(file, rows, labels, shown, NAMES)
    assert torch.equal(read_answers(file, rows, NAMES), labels)  # nothing filled in: labels stay
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    file.write_text("\n".join([lines[0], lines[2] + '"dog, small"', lines[1] + "cat", lines[3] + "cat"]) + "\n")
    assert read_answers(file, rows, NAMES).tolist() == [0, 1, 0]  # in the order asked, whatever the file's


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], "rows without an answer: 11"),
        (lambda lines: [*lines, lines[1]], "rows with two answers: 7"),
        (lambda lines: [lines[0], lines[1] + "fish", *lines[2:]], "no class: 7: fish"),
        (lambda lines: ["a,b", *lines[1:]], "has columns"),
    ],
)
def test_bad_files_are_told_by_row(tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "questions.csv"
    rows = torch.tensor([7, 3, 11])
    write_questions(file, rows, torch.tensor([0, 1, 2]), torch.tensor([2, 2, 1]), NAMES)
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")
    with pytest.raises(ValueError, match=words):
        read_answers(file, rows, NAMES)


def test_interval_holds_the_tails_of_the_binomial() -> None:
    low, high = binomial_interval(7, 40)
    assert 1 - binom.cdf(6, 40, low) == pytest.approx(0.025, abs=1e-9)
    assert binom.cdf(7, 40, high) == pytest.approx(0.025, abs=1e-9)
    assert binomial_interval(0, 5)[0] == 0.0
    assert binomial_interval(5, 5)[1] == 1.0
    assert binomial_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="6 hits in 5"):
        binomial_interval(6, 5)


def test_many_lower_bounds_hold_the_tail_of_the_binomial() -> None:
    hits, trials = torch.tensor([0, 3, 7, 12]), torch.tensor([4, 9, 7, 40])
    found = shares_at_least(hits, trials, 0.93)
    assert float(found[0]) == 0.0
    for h, n, low in zip(hits[1:].tolist(), trials[1:].tolist(), found[1:].tolist(), strict=True):
        assert 1 - binom.cdf(h - 1, n, low) == pytest.approx(0.07, abs=1e-9)
    with pytest.raises(ValueError, match="confidence is 1"):
        shares_at_least(hits, trials, 1.0)
    with pytest.raises(ValueError, match="more hits than trials"):
        shares_at_least(trials + 1, trials, 0.9)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="error is 2"):
        SimulatedAnnotator(torch.zeros(3), 3, torch.Generator(), error=2.0)
    with pytest.raises(ValueError, match="classes is 1"):
        SimulatedAnnotator(torch.zeros(3), 1, torch.Generator())
