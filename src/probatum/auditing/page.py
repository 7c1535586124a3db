"""The audit as one HTML page: no network, light and dark, every text escaped by the template."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from probatum.auditing.finding import FAULT, NOT_MEASURABLE, PASS, Finding
from probatum.drawing import charts

KINDS = {PASS: "good", FAULT: "bad", NOT_MEASURABLE: "faint"}
STYLE = Path(charts.__file__).parent


def render(report: Any) -> str:
    """The page of a `probatum.auditing.audit.AuditReport` as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("audit.html").render(
        report=report,
        kinds=KINDS,
        quality=quality_line(report),
        details=[
            {"finding": finding, "chart": Markup(_chart(finding))}
            for finding in report.findings
            if finding.verdict != NOT_MEASURABLE
        ],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((STYLE / "page.css").read_text(encoding="utf-8")),
        script=Markup((STYLE / "page.js").read_text(encoding="utf-8")),
    )


def quality_line(report: Any) -> str:
    """How good the model is on the audited rows, in one line."""
    found = report.quality
    if "accuracy" in found:
        area = f", AUROC {found['auroc']:.3f}" if "auroc" in found else ""
        return (
            f"Accuracy {found['accuracy']:.3f} [{found['accuracy-low']:.3f}, {found['accuracy-high']:.3f}], "
            f"log-loss {found['log-loss']:.3f}, ECE {found['ece']:.3f}{area}"
        )
    return f"RMSE {found['rmse']:.4g}, MAE {found['mae']:.4g}" + (f", R2 {found['r2']:.3f}" if "r2" in found else "")


def _chart(finding: Finding) -> str:
    numbers: Any = finding.numbers
    if "reliability" in numbers:
        return charts.reliability(numbers["reliability"], "reliability: share right against confidence")
    if "curve" in numbers:
        lines = {
            "risk": [tuple(point) for point in numbers["curve"]],
            "all rows": [(0.0, numbers["curve"][-1][1]), (1.0, numbers["curve"][-1][1])],
        }
        return charts.curves(lines, "share of rows answered, surest first", "share wrong", "risk by coverage")
    return ""
