"""Claim of the calibration benchmark (arXiv:2308.11838): errors agree within, but hardly across, data sets and scaling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.open import open_dataset
from probatum.settings import Reading
from probatum.spec import Data
from probatum.techniques.probe.calibration_benchmark import Row, column, summarise, survey, tau

SETS = ("digits", "breast-cancer", "waveform")
FRACTIONS = (0.4, 0.2, 0.4)
STEPS = 200
SPLIT = 0
"""All networks meet one split, so that seeds differ by weights and batches alone."""


def waveform(n: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Breiman et al.'s waveforms: three classes of mixtures of two triangles with unit noise, Bayes accuracy 0.86."""
    rng = np.random.default_rng(seed)
    at = np.arange(1, 22)
    shapes = np.stack([np.maximum(6 - np.abs(at - centre), 0) for centre in (11, 15, 7)])
    pairs = np.array([(0, 1), (0, 2), (1, 2)])
    y = rng.integers(0, 3, n)
    share = rng.random((n, 1))
    x = share * shapes[pairs[y, 0]] + (1 - share) * shapes[pairs[y, 1]] + rng.normal(size=(n, 21))
    return x, y


def data_set(name: str) -> Data:
    """The split of one of `SETS`."""
    if name == "waveform":
        x, y = waveform()
        return open_dataset((x, y), Reading(name=name, task="classes")).prepare(SPLIT, fractions=FRACTIONS)
    found = open_dataset(name)
    return found.prepare(SPLIT, fractions=FRACTIONS)  # type: ignore[union-attr, call-arg]


def across(first: Sequence[Row], second: Sequence[Row], seeds: Sequence[int], name: str) -> float:
    """Mean tau of the networks' orders between two data sets, over pairs of different seeds."""
    pairs = [(a, b) for a, b in itertools.product(seeds, seeds) if a != b]
    return mean(
        [
            tau(column(first, name, seed=float(a), stage="before"), column(second, name, seed=float(b), stage="before"))
            for a, b in pairs
        ]
    )


def _run(seeds: Sequence[int]) -> Evidence:
    tables = {name: survey(data_set(name), list(seeds), steps=STEPS) for name in SETS}
    told = {name: summarise(table) for name, table in tables.items()}
    cross = {f"{a}, {b}": across(tables[a], tables[b], seeds, "ece@15") for a, b in itertools.combinations(SETS, 2)}
    wanted = ("tau: ece, ks", "tau: ece, mce", "tau: ece, between seeds", "tau: ece, before and after scaling")
    measured = {f"mean {name}": mean([found[name] for found in told.values()]) for name in wanted}
    measured["mean tau: ece, between data sets"] = mean(list(cross.values()))
    measured["mean tau: ece, accuracy of the best third"] = mean(
        [found["tau: ece, accuracy of the best third"] for found in told.values()]
    )
    holds = (
        measured["mean tau: ece, ks"] > measured["mean tau: ece, mce"]
        and measured["mean tau: ece, between data sets"] < measured["mean tau: ece, between seeds"]
        and measured["mean tau: ece, before and after scaling"] < 0.9
    )
    rows = [{"data": name, **{key: round(value, 4) for key, value in found.items()}} for name, found in told.items()]
    rows += [{"data": pair, "tau: ece, between data sets": round(value, 4)} for pair, value in cross.items()]
    note = (
        "36 multilayer perceptrons on each of three small sets, not the paper's 117,702 convolutional networks; each seed is one "
        "training of the whole family on the same split."
    )
    return Evidence(holds, measured, tuple(rows), note)


CLAIMS = (
    Claim(
        id="which-errors-agree",
        says="Calibration errors agree with ECE to different degrees, and the order of networks by ECE hardly carries over "
        "to other data or past temperature scaling.",
        threshold="means over three sets: tau(ECE, KS) > tau(ECE, MCE); tau between data sets < tau between seeds; tau before "
        "and after scaling < 0.9",
        data="digits, breast-cancer and the waveform generator, 40 % for training, 40 % for testing",
        run=_run,
        minutes=1.5,
    ),
)
