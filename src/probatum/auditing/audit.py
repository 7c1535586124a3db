"""An audit: what is wrong with a model that a user already has, on rows it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probatum.auditing import confidence, inputs, labels, shift, slices
from probatum.auditing.case import Case
from probatum.auditing.faults import FAULTS, advised, try_commands
from probatum.auditing.finding import FAULT, Finding, Limits
from probatum.auditing.rows import Rows, fit_outputs, read_rows
from probatum.auditing.subject import Subject, open_subject
from probatum.errors import InputError
from probatum.files import write_together
from probatum.measure.calibration import calibration
from probatum.measure.groups import wilson
from probatum.measure.quality import quality
from probatum.ship.seen import seen_rows
from probatum.spec import Part

CHECKS = (
    confidence.calibration,
    confidence.selection,
    inputs.corruption,
    shift.shift,
    shift.label_shift,
    shift.outliers,
    labels.suspicious,
    labels.suspicious_reference,
    slices.groups,
    slices.slices,
    inputs.reliance,
)
"""In the order of the report; a check that was not asked for gives None."""
LEAST = 10


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        model: what was audited.
        data: on which data.
        rows: how many rows.
        findings: one a check.
        quality: accuracy, log-loss ... or rmse ... on these rows.
        notes: what was done with rows before: seen ones left out, samples.
        advice: for each fault found: its words, techniques by id, and the commands that try them.
        modality: of the data.
        task: of the data.
        limits: what was a fault.
    """

    model: str
    data: str
    rows: int
    findings: tuple[Finding, ...]
    quality: Mapping[str, float]
    notes: tuple[str, ...]
    advice: tuple[Mapping[str, Any], ...]
    modality: str
    task: str
    limits: Limits = field(default_factory=Limits)

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of the faults found, in the order of the checks."""
        return tuple(dict.fromkeys(fault for finding in self.findings for fault in finding.faults))

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"no check {check!r}; there are {', '.join(finding.check for finding in self.findings)}")

    def answer(self) -> str:
        """One sentence."""
        measured = [finding for finding in self.findings if finding.verdict != "not measurable"]
        bad = [finding.check for finding in measured if finding.verdict == FAULT]
        if not bad:
            return f"{self.model}: no fault found by {len(measured)} checks on {self.rows} rows of {self.data}."
        return f"{self.model}: faults in {len(bad)} of {len(measured)} checks on {self.rows} rows of {self.data}: {', '.join(bad)}."

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "model": self.model,
            "data": self.data,
            "rows": self.rows,
            "answer": self.answer(),
            "faults": list(self.faults),
            "quality": dict(self.quality),
            "notes": list(self.notes),
            "findings": [finding.as_json() for finding in self.findings],
            "advice": [dict(item) for item in self.advice],
            "limits": dict(self.limits.__dict__),
        }

    def write(self, folder: str | Path) -> Path:
        """Write audit.html and audit.json into a folder; returns the page's path."""
        from probatum.auditing.page import render

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        page = where / "audit.html"
        write_together({where / "audit.json": json.dumps(self.as_json(), indent=1) + "\n", page: render(self)})
        return page

    def _repr_html_(self) -> str:
        from probatum.auditing.page import render

        return render(self)


def audit(
    model: Any,
    data: Any,
    *,
    target: str | None = None,
    reference: Any = None,
    groups: Sequence[str] = (),
    time: str | None = None,
    drop: Sequence[str] = (),
    task: str = "auto",
    modality: str = "auto",
    pipeline: str | Path | None = None,
    trust: bool = False,
    trust_changed: bool = False,
    keep_seen: bool = False,
    limits: Mapping[str, float] | Limits | None = None,
    seed: int = 0,
) -> AuditReport:
    """Check a model on rows it was not trained on; every check says pass, fault, or why it cannot be measured.

    Args:
        model: a folder by `probatum ship`, a torch.nn.Module, "FILE.py:NAME", a .pt file (with `trust`) or an .onnx file.
        data: labelled rows: a path, name or frame, or (X, y) with X as the model takes it.
        target: the label's column.
        reference: rows like those the model was trained on, in the same form, for the checks of shift, outliers and
            labels; of a shipped model's own data they are known.
        groups: columns whose groups are compared.
        time: column that orders the rows; without a reference the later half is compared with the earlier one.
        drop: columns that a model without preprocessing of its own does not take.
        task: auto, classes or reals.
        modality: auto, table, image, text or series.
        pipeline: a shipped folder whose preprocessing encodes the rows for a network of one's own.
        trust: unpickle .pt files, which runs their code.
        trust_changed: audit a shipped folder although techniques that its predictions rest on have changed since.
        keep_seen: audit rows that the model was trained on, too (told in the notes).
        limits: other values for some `probatum.auditing.finding.Limits`.
        seed: of all draws.

    Raises:
        InputError: for anything that cannot be audited.
    """
    chosen = limits if isinstance(limits, Limits) else Limits().changed(limits or {})
    subject = open_subject(model, trust=trust, pipeline=pipeline, trust_changed=trust_changed)
    options: dict[str, Any] = {"target": target, "task": task, "modality": modality, "drop": drop}
    rows = read_rows(data, subject, **options)
    if time is not None and (rows.columns is None or time not in rows.columns.columns):
        raise InputError(f"time column {time!r} is not in the data; name a column of the file")
    other = None if reference is None else read_rows(reference, subject, **options, like=rows)
    if subject.pipeline is None:
        outputs = subject.answers(_first(rows), rows.spec.task).shape[1]
        rows = fit_outputs(rows, outputs, subject.name)
        other = None if other is None else fit_outputs(other, outputs, subject.name)
    rows, other, notes = _unseen(subject, rows, other, data, keep_seen)
    if len(rows) < LEAST:
        raise InputError(f"{len(rows)} rows are left to audit; bring {LEAST} or more that the model was not trained on")
    output = subject.answers(rows.part, rows.spec.task)
    if output.shape[1] != rows.spec.outputs:
        raise InputError(f"{subject.name} gives {output.shape[1]} outputs; the data have {rows.spec.outputs}")
    case = Case(subject, rows, output, other, tuple(groups), time or "", chosen, seed)
    found = (check(case) for check in CHECKS)
    findings = tuple(finding for finding in found if finding is not None)
    where = data if isinstance(data, str | Path) else getattr(data, "name", "the arrays given")
    return AuditReport(
        model=subject.name,
        data=str(where),
        rows=len(rows),
        findings=findings,
        quality=_quality(case),
        notes=(*subject.notes, *notes),
        advice=_advice(findings, rows, str(where) if isinstance(data, str | Path) else "DATA", target or ""),
        modality=rows.spec.modality,
        task=rows.spec.task,
        limits=chosen,
    )


def _first(rows: Rows) -> Part:
    few = rows.take(np.arange(min(2, len(rows))))
    return few.part


def _unseen(
    subject: Subject, rows: Rows, reference: Rows | None, data: Any, keep: bool
) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    """The rows that the model was not trained on, reference rows where they are known, and what is to be told."""
    notes: list[str] = []
    seen = None
    if subject.folder is not None and subject.pipeline is not None:
        seen = seen_rows(subject.folder, rows.part)
        if seen is None:
            notes.append(
                "the shipped folder does not say which rows it was trained on: whether these were seen is unknown"
            )
    elif reference is None:
        notes.append("which rows the model was trained on is unknown: give rows that it has not seen")
    if reference is not None:
        known = {row.tobytes() for row in reference.part.x.numpy()}
        same = np.array([row.tobytes() in known for row in rows.part.x.numpy()])
        seen = same if seen is None else seen | same
    if seen is None or not seen.any():
        if seen is not None:
            notes.append("none of the rows was seen in training")
        return rows, reference, tuple(notes)
    count, n = int(seen.sum()), len(rows)
    if keep:
        notes.append(f"{count} of {n} rows were SEEN IN TRAINING and are audited as asked: figures flatter the model")
        return rows, reference, tuple(notes)
    notes.append(f"{count} of {n} rows were seen in training and are left out; {n - count} are audited")
    if reference is None:
        reference = rows.take(np.flatnonzero(seen))
        notes.append(f"the {count} rows seen in training serve as reference")
    return rows.take(np.flatnonzero(~seen)), reference, tuple(notes)


def _quality(case: Case) -> dict[str, float]:
    output, y = torch.from_numpy(case.output), case.rows.part.y
    if case.task == "reals":
        scale = None
        if case.subject.pipeline is not None:
            scale = torch.as_tensor(case.subject.pipeline.target.std)
        return quality(output, y.double(), "reals", output.shape[1], scale)
    found = quality(output, y, "classes", output.shape[1])
    found["accuracy-low"], found["accuracy-high"] = wilson(int(case.right.sum()), len(case.right))
    return found | {"ece": calibration(output, y)["ece"]}


def _advice(findings: Sequence[Finding], rows: Rows, data: str, target: str) -> tuple[Mapping[str, Any], ...]:
    told = []
    for fault in dict.fromkeys(fault for finding in findings for fault in finding.faults):
        ids = advised([fault], rows.spec)
        told.append(
            {
                "fault": fault,
                "words": FAULTS[fault].words,
                "techniques": ids,
                "commands": try_commands(ids, data, target),
            }
        )
    return tuple(told)
