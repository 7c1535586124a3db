"""Checks of the inputs' part in the answers: mild corruption, and reliance on a single column or patch."""

from __future__ import annotations

import math

import numpy as np
import torch

from probatum.auditing.case import Case
from probatum.auditing.finding import FAULT, PASS, Finding, not_measurable, percent
from probatum.auditing.rows import how
from probatum.data.corrupt import corruptions

SEVERITIES = (1, 3, 5)
FEW = 50
GRID = 4
"""Images are cut into GRID x GRID patches, series into 2 GRID stretches."""
ROUNDS = 3


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
    reason = how(spec).not_corruptible(x, spec)
    if reason:
        return not_measurable(name, reason)
    coarse = how(spec).too_coarse(spec)
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
            if severity == SEVERITIES[0] and kind not in coarse and (worst is None or mean > worst[0]):
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
        + (" A shift by a pixel or blocks of two are not mild for so small images, and not judged." if coarse else ""),
        ("fragile",) if bad else (),
        {"worst": kind, "loss": mean, "interval": [low, high]},
        tuple(table),
    )


def reliance(case: Case) -> Finding:
    """Share of the model's answers that hang on each column, patch or stretch: how many change when it is permuted.

    No label is read. Shares are of the change when whole rows are permuted, so that 1 says: the answer is that part.
    """
    name = "reliance"
    spec = case.rows.spec
    parts = list(how(spec).parts(spec, GRID))
    if not parts:
        return not_measurable(name, how(spec).NO_PARTS)
    if len(case.rows) < FEW:
        return not_measurable(name, f"{len(case.rows)} rows are too few; {FEW} or more are needed")
    some = case.some(name, 1000)
    x, rng = some.rows.part.x, case.rng(name)
    orders = [torch.from_numpy(rng.permutation(len(x))) for _ in range(ROUNDS)]
    whole = float(np.mean([_moved(some, some.output[order.numpy()]) for order in orders]))
    if whole < 0.02:
        return not_measurable(name, "the model answers nearly the same for all rows")
    found = []
    for part, where in parts:
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
