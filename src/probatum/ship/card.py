"""The model card that goes with a shipped arm."""

from __future__ import annotations

import math
from typing import Any

from probatum import catalogue
from probatum.bench.results import Results, change_text
from probatum.bench.unjudged import is_judged
from probatum.report.pretrained_start import started_from
from probatum.rooms.kind import kind_of


def sameness(description: dict[str, Any]) -> str:
    """Whether the shipped weights are those of the study's trial, by their digests and the plans that they come from."""
    if description["digest"] == description["digest_in_study"]:
        return "the very weights of the study"
    if description["digest_in_study"] is None:
        return "the study holds no digest to compare its weights with"
    if description["same_plan"]:
        return "weights differ from the study's in the last digits (another machine, or seeds that were trained as one)"
    return (
        "trained again, for code or libraries have changed since the study; its numbers are of the earlier weights, "
        "`probatum try` measures these"
    )


def unbacked(results: Results, arm: str) -> str:
    """Why no verdict of the study backs an arm, without a full stop; "" where one does, and for the baseline of one that judged."""
    nothing = results.unjudged()
    if nothing or arm not in {one.name for one in results.plan.arms}:
        return nothing
    mine = next((v for v in results.primary_verdicts() if v.arm == arm), None)
    if mine is None:
        return f"no seed has {results.plan.primary} for it and the baseline"
    return "" if is_judged(mine) else ": ".join(filter(None, (mine.word, mine.note)))


def model_card(results: Results, arm: str, description: dict[str, Any]) -> str:
    """Markdown: what the model is, what it was tried against, what was found, how to use it."""
    plan, data = results.plan, results.plan.data
    lines = [
        f"# {arm} on {data.name}",
        "",
        f"Predicts `{data.target}` ({data.task}, {data.modality} data, {data.n} {results.summary.get('unit', 'rows')} in all). Trained on seed {description['seed']} "
        f"of study `{description['study'][:8]}`; no test row chose the weights or settings that it judged.",
        *(f"\n{line.strip().capitalize()}." for line in started_from(plan.pretrained)),
        "",
        f"**{results.answer()}**",
        *([f"\nNo verdict backs this model: {without}."] if (without := unbacked(results, arm)) else []),
        "",
        "## Evidence",
        "",
        f"| measure | baseline | this arm | difference [{100 * plan.confidence:g} % interval] | verdict |",
        "|---|---|---|---|---|",
    ]
    measures = {measure.name: measure for measure in results.measures()}
    mine = [v for v in results.verdicts() if v.arm == arm and v.n]
    for v in mine:
        change = change_text(v, measures[v.measure])
        means = [f"{mean:.4g}" if math.isfinite(mean) else "" for mean in (v.baseline_mean, v.arm_mean)]
        lines.append(f"| {v.measure} | {means[0]} | {means[1]} | {change} | {v.word} |")
    if not mine:
        shown = [name for name in measures if results.mean(arm, name) is not None]
        lines += [f"| {name} | {results.mean(arm, name):.4g} | | | |" for name in shown]
    lines += [
        "",
        f"{plan.over_seeds().capitalize()}, {'equal arithmetic' if plan.equal_compute else 'equal gradient steps'}.",
    ]
    if results.reference_note():
        lines += ["", results.reference_note()]
    confirmed = results.confirmed()
    if confirmed is not None:
        change = change_text(confirmed, measures[confirmed.measure])
        lines += ["", f"On {confirmed.n} fresh seeds: {confirmed.word}{f' ({change})' if change else ''}."]
    if description["digest_in_study"] != description["digest"]:
        told = sameness(description)
        lines += ["", f"{told[:1].upper()}{told[1:]}."]
    lines += ["", "## Limits", ""]
    lines += [f"- {notice}" for notice in results.summary.get("notices", ())]
    lines += ["- Intervals speak of data like these; another population needs its own trial."]
    if any(use["slot"] == "learner" for use in description["recipe"]["techniques"]):
        lines += ["- The folder holds training rows, because the learner is fitted from them when it is loaded."]
    onnx = description["onnx"]
    new = kind_of(data.modality, data.task).NEW
    lines += ["", "## Use", "", "```", f"probatum predict . --data {new}", "```", ""]
    if onnx["written"]:
        lines += [f"`model.onnx` gives the same outputs (largest difference {onnx['largest_difference']:.1e})."]
    else:
        lines += [f"No ONNX file: {onnx['reason']}."]
    lines += ["", "## Papers", ""]
    for use in description["recipe"]["techniques"]:
        card = catalogue.card(use["id"])
        lines.append(f"- {use['id']}: {card.title} ({card.paper})")
    return "\n".join(lines) + "\n"
