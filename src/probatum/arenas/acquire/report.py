"""Learning curves over labels, of an active-learning study: means over seeds."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from probatum.bench.results import Results
from probatum.drawing import charts

KEY = "curve over labels"


def label_curves(results: Results) -> Markup:
    """Test accuracy by number of labels asked for, one line an arm; empty for other arenas."""
    lines = {}
    for arm, found in _by_arm(results).items():
        shortest = min((one["labels"] for one in found), key=len)
        means = [sum(one["accuracy"][k] for one in found) / len(found) for k in range(len(shortest))]
        lines[arm] = list(zip([float(n) for n in shortest], means, strict=True))
    return Markup(charts.curves(lines, "labels", "accuracy", "test accuracy by labels asked for, mean over seeds"))


def label_rows(results: Results) -> list[dict[str, Any]]:
    """For each arm as text: calibration error at the first and last round, agreement of the last two rounds, machine labels."""
    rows = []
    for arm, found in _by_arm(results).items():
        kappas = [one["kappa"][-1] for one in found if one["kappa"]]
        rows.append(
            {
                "arm": arm,
                "ece": f"{_mean([one['ece'][0] for one in found]):.3f} → {_mean([one['ece'][-1] for one in found]):.3f}",
                "kappa": f"{_mean(kappas):.3f}" if kappas else "",
                "machine": f"{_mean([one['machine'][-1] for one in found]):,.0f}",
            }
        )
    return rows


def _by_arm(results: Results) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in (results.baseline, *(arm.name for arm in results.plan.arms), *results.plan.references):
        details = [
            t.record["details"][KEY] for t in results.trials if t.arm == arm and KEY in t.record.get("details", {})
        ]
        if details:
            found[arm] = details
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
