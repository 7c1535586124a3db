"""Checks of the inputs' part in the answers: mild corruption, and reliance on a single column or patch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from probatum.auditing.case import Case
from probatum.auditing.finding import FAULT, PASS, Finding, not_measurable, percent
from probatum.data.corrupt import corruptions
from probatum.spec import Spec

SEVERITIES = (1, 3, 5)
FEW = 50
GRID = 4
"""Images are cut into GRID x GRID patches, series into 2 GRID stretches."""
ROUNDS = 3
COARSE = ("shift", "pixelate")
SMALL = 20
"""Pixels of an image's side below which a shift by one of them is more than 5 % of it, and blocks of two 10 %."""


def corruption(case: Case) -> Finding:
    """Loss of accuracy under each corruption and severity; the mildest one decides.

    For reals the loss is the growth of the mean absolute error, as a share of the targets' mean absolute deviation.
    """
    name = "corruption"
    if not case.subject.by_x:
        return not_measurable(name, "this learner reads the raw texts, which the corruptions of tokens do not touch")
    if len(case.rows) < FEW:
        return not_measurable(name, f"{len(case.rows)} rows are too few; {FEW} or more are needed")
    some = case.some(name, 2000)
    rows, spec = some.rows, some.rows.spec
    x = rows.part.x
    if spec.modality == "image" and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        return not_measurable(name, "pixels lie outside [0, 1]; give images, or (X, y), before they are normalised")
    before, table = _loss(some, some.output), []
    worst: tuple[float, float, float, str] | None = None
    for kind, corrupt in sorted(corruptions(spec).items()):
        row: dict[str, object] = {"corruption": kind}
        for severity in SEVERITIES:
            draw = torch.Generator().manual_seed(int(case.rng(f"{kind}/{severity}").integers(2**62)))
            hit = rows.own(corrupt(rows.standard(x).clone(), spec, severity, draw)) if rows.centre is not None else None
            hit = corrupt(x.clone(), spec, severity, draw) if hit is None else hit
            change = _loss(some, some.answers(hit)) - before
            mean, half = float(change.mean()), 1.96 * float(change.std()) / math.sqrt(len(change))
            row[f"severity {severity}"] = f"{mean:+.3f}"
            if (
                severity == SEVERITIES[0]
                and not (kind in COARSE and _small(spec))
                and (worst is None or mean > worst[0])
            ):
                worst = (mean, mean - half, mean + half, kind)
        table.append(row)
    if worst is None:
        return not_measurable(name, "no corruption is known for such rows")
    mean, low, high, kind = worst
    bad = low > case.limits.corruption
    unit = "accuracy" if case.task == "classes" else "mean absolute deviation"
    return Finding(
        name,
        FAULT if bad else PASS,
        f"mildest {kind} costs {mean:.3f} [{low:.3f}, {high:.3f}]",
        f"lower end > {case.limits.corruption:g} of {unit}",
        f"Loss of {unit} by severity is in the table."
        + (
            " A shift by a pixel or blocks of two are not mild for so small images, and not judged."
            if _small(spec)
            else ""
        ),
        ("fragile",) if bad else (),
        {"worst": kind, "loss": mean, "interval": [low, high]},
        tuple(table),
    )


def reliance(case: Case) -> Finding:
    """Share of the model's answers that hang on each column, patch or stretch: how many change when it is permuted.

    No label is read. Shares are of the change when whole rows are permuted, so that 1 says: the answer is that part.
    """
    name = "reliance"
    if case.rows.spec.modality == "text":
        return not_measurable(name, "words have no fixed place whose content could be permuted")
    if len(case.rows) < FEW:
        return not_measurable(name, f"{len(case.rows)} rows are too few; {FEW} or more are needed")
    some = case.some(name, 1000)
    x, rng = some.rows.part.x, case.rng(name)
    orders = [torch.from_numpy(rng.permutation(len(x))) for _ in range(ROUNDS)]
    whole = float(np.mean([_moved(some, some.output[order.numpy()]) for order in orders]))
    if whole < 0.02:
        return not_measurable(name, "the model answers nearly the same for all rows")
    found = []
    for part, where in _parts(some):
        changes = []
        for order in orders:
            mixed = x.clone()
            mixed[where] = x[order][where]
            changes.append(_moved(some, some.answers(mixed)))
        found.append((float(np.mean(changes)) / whole, part))
    found.sort(key=lambda pair: -pair[0])
    (share, part), second = found[0], found[1][0] if len(found) > 1 else 0.0
    bad = len(found) > 1 and share >= case.limits.reliance and second <= share / 3
    about = (
        f"Nearly every answer hangs on {part}; the next part carries {percent(second)}. A shortcut, unless it is meant to."
        if bad
        else f"The next part carries {percent(second)}."
    )
    return Finding(
        name,
        FAULT if bad else PASS,
        f"{part} carries {percent(share)}",
        f"one part ≥ {percent(case.limits.reliance)} and thrice the next",
        about,
        ("shortcut",) if bad else (),
        {"part": part, "share": share, "second": second},
        tuple({"part": title, "share of answers": percent(value)} for value, title in found[:8]),
    )


def _small(spec: Spec) -> bool:
    return spec.modality == "image" and min(spec.shape[1:]) < SMALL


def _loss(case: Case, output: np.ndarray) -> np.ndarray:
    """(n,) 1 where wrong; for reals the absolute error over the targets' mean absolute deviation."""
    if case.task == "classes":
        return (output.argmax(axis=1) != case.y).astype(np.float64)
    spread = np.abs(case.y - case.y.mean(axis=0)).mean(axis=0)
    return (np.abs(output - case.y) / np.maximum(spread, 1e-12)).mean(axis=1)


def _moved(case: Case, output: np.ndarray) -> float:
    if case.task == "classes":
        return float((output.argmax(axis=1) != case.guess).mean())
    return float(np.abs(output - case.output).mean())


def _parts(case: Case) -> Iterator[tuple[str, tuple[slice | int | Tensor, ...]]]:
    """Names and places of the parts of x."""
    spec, every = case.rows.spec, slice(None)
    if spec.modality == "table":
        for i in range(spec.shape[0]):
            yield (spec.features[i] if i < len(spec.features) else f"column {i}"), (every, i)
        return
    if spec.modality == "series":
        for i in range(spec.shape[0] if spec.shape[0] > 1 else 0):
            yield (spec.features[i] if i < len(spec.features) else f"channel {i}"), (every, i)
        for low, high in _cuts(spec.shape[1], 2 * GRID):
            yield f"steps {low} to {high - 1}", (every, every, slice(low, high))
        return
    for top, bottom in _cuts(spec.shape[1], GRID):
        for left, right in _cuts(spec.shape[2], GRID):
            place = (every, every, slice(top, bottom), slice(left, right))
            yield f"patch rows {top}-{bottom - 1}, columns {left}-{right - 1}", place


def _cuts(length: int, pieces: int) -> list[tuple[int, int]]:
    edges = np.unique(np.linspace(0, length, min(pieces, length) + 1).round().astype(int))
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]
