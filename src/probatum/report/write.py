"""The stand-alone HTML report: one file, no network, light and dark, every text escaped by the template."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from probatum import catalogue
from probatum.bench.many_classes import classes_of
from probatum.bench.plan import DataPlan
from probatum.bench.results import Results, change_text
from probatum.bench.verdict import Verdict
from probatum.drawing import charts
from probatum.files import write_whole
from probatum.measure.base import Measure
from probatum.report.commands import repeat_command
from probatum.report.pretrained_start import started_from
from probatum.report.world import world_blocks
from probatum.rooms.arena import blocks_of, competes, rule_words
from probatum.train.speed import lines

DRAWING = Path(charts.__file__).parent
AXES = (
    *("quality", "calibration", "selection", "robustness", "faithfulness", "attack", "detection", "retention"),
    *("size", "speed"),
)


SHOWN_CLASSES = 60
"""Classes of which a table tells one by one."""
TESTED = {
    "folds": "{} folds, drawn anew for every repeat; each row is tested equally often",
    "given": "the same for every seed",
    "random": "drawn anew for every seed",
}
"""How test rows come about, by `DataPlan.splits`; the number of folds goes in."""
LINKS = (
    (re.compile(r"arXiv:\s*([\w./-]+\d)"), "https://arxiv.org/abs/"),
    (re.compile(r"OpenReview[: ]+(?:forum\?id=)?([\w-]{8,})"), "https://openreview.net/forum?id="),
    (re.compile(r"(?:doi[: ]+|doi\.org/)(10\.\d{4,}/[^\s,;]+)", re.IGNORECASE), "https://doi.org/"),
)
"""How cards name papers, and where these are."""


@dataclass(frozen=True)
class Section:
    """One measure's forest plot under its axis."""

    measure: Measure
    chart: Markup
    rows: list[dict[str, str]]


def write_report(results: Results, path: Path) -> Path:
    """Write the report of a study to `path`, whole or not at all."""
    return write_whole(path, render(results))


def render(results: Results) -> str:
    """The report as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    plan = results.plan
    primary = results.measure(plan.primary)
    return environment.get_template("page.html").render(
        results=results,
        plan=plan,
        primary=primary,
        answer=results.answer(),
        reference_note=results.reference_note(),
        degenerate=results.degenerate(),
        question=_question(results),
        rows=_verdict_rows(results, primary),
        axes=_axes(results),
        cost=_cost_chart(results, primary),
        reliability=_reliability(results),
        curves=_curves(results),
        per_class=_per_class(results),
        effects=_effects(results),
        blocks=[*world_blocks(results), *blocks_of(plan.arena, results)],
        competes=competes(plan.arena),
        contest=_contest(results),
        data=[
            *_data_rows(results.summary, results.plan.data),
            *(("start", line.strip()) for line in started_from(plan.pretrained)),
        ],
        classes=results.summary.get("classes") or {},
        notices=results.summary.get("notices", ()),
        columns=results.summary.get("columns", ()),
        failures=[t for t in (*results.trials, *results.timings) if t.status != "ok"],
        command=repeat_command(results),
        versions=plan.versions,
        speed=lines(plan.speed),
        race=[{"seeds": seeds, "level": f"{100 * level:.2f}"} for seeds, level in results.race_looks()],
        seeds_run=results.seeds_run(),
        papers=_papers(results),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((DRAWING / "page.css").read_text(encoding="utf-8")),
        script=Markup((DRAWING / "page.js").read_text(encoding="utf-8")),
    )


def _question(results: Results) -> str:
    plan, data = results.plan, results.plan.data
    arms = ", ".join(arm.name for arm in plan.arms)
    budget = "at equal arithmetic" if plan.equal_compute else "at equal gradient steps"
    size = f"{data.n} {results.summary.get('unit', 'rows')}"
    where = f" in the world {data.world}" if data.world else ""
    return (
        f"Does {arms} improve {plan.primary} over the {results.baseline} on {data.name}{where} ({size}, {data.modality}, "
        f"target {data.target}), {budget}, over {plan.over_seeds()}? Asked of {results.asked_of()}."
    )


def _verdict_rows(results: Results, primary: Measure) -> list[dict[str, Any]]:
    rows, notes = [], results.notes()
    for v in results.primary_verdicts():
        note = "; ".join(filter(None, (v.note, notes.get(v.arm, ""))))
        if v.word == "undecided" and v.seeds_needed:
            note = f"about {v.seeds_needed} seeds would decide (chance 80 %)" + (f"; {note}" if note else "")
        rows.append(
            {
                "arm": v.arm,
                "value": _number(v.arm_mean),
                "change": change_text(v, primary),
                "word": v.word,
                "kind": charts.WORD_CLASSES[v.word],
                "n": v.n or "",
                "p": f"{v.p_adjusted:.3g}" if math.isfinite(v.p_adjusted) else "",
                "note": note,
            }
        )
    return rows


def _axes(results: Results) -> list[tuple[str, list[Section]]]:
    by_axis: dict[str, list[Section]] = defaultdict(list)
    found = results.verdicts()
    for measure in results.measures():
        mine = [v for v in found if v.measure == measure.name and v.n]
        if not mine or all(v.mean == 0 for v in mine):
            continue
        by_axis[measure.axis].append(
            Section(measure, Markup(_forest(mine, measure, results)), [_row(v, measure) for v in mine])
        )
    known = [axis for axis in AXES if axis in by_axis]
    return [(axis, by_axis[axis]) for axis in (*known, *(axis for axis in by_axis if axis not in AXES))]


def _forest(found: list[Verdict], measure: Measure, results: Results) -> str:
    references = set(results.plan.references)
    rows = [
        charts.Interval(
            v.arm, v.mean, v.low, v.high, charts.REFERENCE if v.arm in references else v.word, change_text(v, measure)
        )
        for v in found
    ]
    return charts.forest(rows, found[0].margin, "better", "worse", f"{measure.name}: difference to the baseline")


def _row(v: Verdict, measure: Measure) -> dict[str, str]:
    return {
        "arm": v.arm,
        "baseline": _number(v.baseline_mean),
        "value": _number(v.arm_mean),
        "change": change_text(v, measure),
        "word": v.word,
        "note": v.note,
    }


def _cost_chart(results: Results, primary: Measure) -> Markup:
    cost = next((name for name in ("macs", "parameters") if results.mean(results.baseline, name)), None)
    if cost is None:
        return Markup("")
    words = {v.arm: v.word for v in results.primary_verdicts()}
    points = []
    for arm in (results.baseline, *(arm.name for arm in results.plan.arms)):
        x, y = results.mean(arm, cost), results.mean(arm, primary.name)
        if x and y is not None:
            points.append(
                (arm, x, y, "base" if arm == results.baseline else charts.WORD_CLASSES[words.get(arm, "undecided")])
            )
    label = f"{cost} (log scale)"
    return Markup(charts.scatter(points, label, primary.name, f"{primary.name} against {cost}"))


def _reliability(results: Results) -> list[tuple[str, Markup]]:
    shown = [
        results.baseline,
        *(arm.name for arm in results.plan.arms),
        *(n for n in results.plan.references if "scaling" in n),
    ]
    found = []
    for arm in shown:
        trials = [t for t in results.trials if t.arm == arm and "reliability" in t.record.get("details", {})]
        if trials:
            pooled = _pooled([t.record["details"]["reliability"] for t in trials])
            found.append((arm, Markup(charts.reliability(pooled, f"reliability of {arm}"))))
    return found


def _pooled(tables: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Bins of several seeds added up by their centres; a seed leaves out bins that are empty."""
    sums: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for table in tables:
        rows = zip(table["centre"], table["confidence"], table["accuracy"], table["count"], strict=True)
        for centre, confidence, accuracy, count in rows:
            if count:
                found = sums[round(centre, 6)]
                found[0] += confidence * count
                found[1] += accuracy * count
                found[2] += count
    bins = [sums[centre] for centre in sorted(sums)]
    return {
        "confidence": [confidence / count for confidence, _, count in bins],
        "accuracy": [accuracy / count for _, accuracy, count in bins],
        "count": [count for _, _, count in bins],
    }


def _curves(results: Results) -> list[tuple[str, Markup]]:
    found = []
    names = {
        "train_loss": "training loss",
        "valid_error": "validation error",
        "valid_rmse": "validation RMSE",
        "valid_log_loss": "validation log-loss",
        "valid_balanced_error": "validation error, mean over classes",
        "valid_macro_f1_error": "1 - validation macro F1",
        "valid_auroc_error": "1 - validation AUROC",
    }
    for key, label in names.items():
        lines = {}
        for arm in (results.baseline, *(arm.name for arm in results.plan.arms)):
            tables = [
                t.record["details"]["curve"]
                for t in results.trials
                if t.arm == arm and t.record.get("details", {}).get("curve")
            ]
            lines[arm] = _mean_curve(tables, key)
        chart = charts.curves(lines, "gradient steps", label, f"{label} by gradient step, mean over seeds")
        if chart:
            found.append((label, Markup(chart)))
    return found


def _mean_curve(tables: list[list[dict[str, float]]], key: str) -> list[tuple[float, float]]:
    values: dict[float, list[float]] = defaultdict(list)
    for table in tables:
        for point in table:
            if key in point:
                values[point["step"]].append(point[key])
    return [(step, sum(found) / len(found)) for step, found in sorted(values.items())]


def _per_class(results: Results) -> list[dict[str, Any]]:
    names = list((results.summary.get("classes") or {}).keys())
    best = results.winner() or (results.plan.arms[0].name if results.plan.arms else None)
    found: list[dict[str, Any]] = []
    for arm in dict.fromkeys((results.baseline, best)):
        tables = [
            t.record["details"]["per_class"]
            for t in results.trials
            if t.arm == arm and "per_class" in t.record.get("details", {})
        ]
        if not tables or not names:
            continue
        size = classes_of(tables[0])
        if size > SHOWN_CLASSES:
            found.append({"arm": arm, "note": f"{size} classes are too many to be shown one by one."})
            continue
        matrix = [[sum(t["confusion"][i][j] for t in tables) for j in range(size)] for i in range(size)]
        rows = [
            {
                "name": names[i],
                "recall": _mean(t["recall"][i] for t in tables),
                "precision": _mean(t["precision"][i] for t in tables),
            }
            for i in range(size)
        ]
        if size != len(names):  # a world took a class out, each seed its own
            continue
        chart = Markup(charts.confusion(matrix, names, f"confusion matrix of {arm}, all seeds"))
        found.append({"arm": arm, "chart": chart, "rows": rows})
    return found


def _contest(results: Results) -> list[tuple[str, str]]:
    """The contest's own rules in words."""
    words = rule_words(results.plan.arena)
    return [
        (words.get(name, name.replace("_", " ")), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in results.plan.contest.items()
        if not (name == "base_classes" and not value)
    ]


def _effects(results: Results) -> list[dict[str, str]]:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for trial in results.trials:
        for name, value in (trial.record.get("details", {}).get("effects") or {}).items():
            values[trial.arm, name].append(float(value))
    return [{"arm": arm, "name": name, "mean": _number(_mean(v))} for (arm, name), v in values.items()]


def _data_rows(summary: dict[str, Any], plan: DataPlan) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [
        (str(key), str(summary[key]))
        for key in ("name", "n", "modality", "task", "target", "tokens", "vocabulary", "fingerprint")
        if key in summary
    ]
    if "split" in summary:
        counts = ", ".join(f"{part} {count}" for part, count in summary["split"].items())
        rows.append(("windows" if "tokens" in summary else "rows", counts))
    rows.append(
        ("test rows", TESTED["given" if plan.fixed_split else plan.splits].format(int(1 / plan.fractions[2] + 1e-9)))
    )
    if "world" in summary:
        world = summary["world"]
        rows.append(("world", f"{world['name']}: {world['about']}"))
        rows += [(f"{what} (seed 0)", f"{number:g}") for what, number in world["counts"].items()]
    if "shape" in summary:
        rows.append(("one example", " x ".join(map(str, summary["shape"]))))
    return rows


def _papers(results: Results) -> list[dict[str, str]]:
    """The papers of all techniques, tried or not, with links."""
    arms = [use.id for arm in results.plan.arms for use in arm.recipe.uses()]
    skipped = [part.split("(")[0].strip() for name in results.plan.skipped for part in name.split("+")]
    found = {}
    for name in (*arms, *skipped):
        if name not in found and name in catalogue.names():
            card = catalogue.card(name)
            found[name] = {"id": name, "title": card.title, "paper": card.paper, "link": link_of(card.paper)}
    return list(found.values())


def link_of(paper: str) -> str:
    """Where a paper can be read, from how a card names it; "" where that is not known."""
    for form, place in LINKS:
        match = form.search(paper)
        if match is not None:
            return place + match.group(1)
    return ""


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
