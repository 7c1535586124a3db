"""Ship an arm: weights, preprocessing and evidence in a folder that loads again without pickle.

============================  ======================================================================================
model.safetensors             the network's weights (absent for learners, which are fitted again from training rows)
model.json                    how the network is built: recipe, spec, temperature, format version
pipeline.json, .safetensors   the preprocessing, fitted on training rows
refit.safetensors, .json      what calibrators and learners are fitted on again when the folder is loaded
model.onnx                    the network with its softmax, where it can be exported; outputs compared in ONNX Runtime
seen.safetensors              hashes of training and validation rows, so that an audit knows them
evidence.json, README.md      verdicts of the study and a model card
manifest.json                 size and SHA-256 of every file, and the hashes of the techniques' source files
============================  ======================================================================================
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from probatum.arenas.predict.arena import digest, looked_at
from probatum.arenas.predict.fit import Predictor, fit, validation_score
from probatum.bench.context import Context
from probatum.bench.isolation import watching
from probatum.bench.plan import key_of, versions
from probatum.bench.results import Results
from probatum.data.pipeline import save_pipeline
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe
from probatum.rooms.arena import Work
from probatum.rooms.task import task
from probatum.ship.card import model_card
from probatum.ship.content import FORMAT, not_finite
from probatum.ship.load import opened
from probatum.ship.manifest import FILE, sources, write_manifest
from probatum.ship.onnx import TOLERANCE, export_onnx
from probatum.ship.place import check_target, in_place, writing
from probatum.ship.seen import save_seen
from probatum.spec import Part
from probatum.train.adapt import own_part
from probatum.train.assemble import is_pretrained
from probatum.train.loop import outputs
from probatum.train.tune import tuned

ASKED = 64
"""Rows that a network predicts before and after it is loaded again."""


def ship(context: Context, results: Results, arm_name: str, folder: Path) -> Path:
    """Train one arm on the study's first seed once more and write it to `folder`; `context` is the study's.

    The trial is a pure function of its plan, so the shipped weights are those whose evidence is in the store; where the
    digest differs (another machine, seeds that were trained as one), or code or libraries have changed since,
    the model card says so.

    It is written beside its place and moved there when it is whole: what ends early leaves nothing.

    Raises:
        InputError: an unknown arm, a folder that is not empty or cannot be written, a study of another arena, a training
            that diverged, a network that does not predict the same when it is loaded.
    """
    check_target(folder)
    plan = results.plan
    if plan.arena != "predict":
        raise InputError(f"the study is of arena {plan.arena}; only arms of arena predict can be shipped")
    if plan.data.world:
        raise InputError(
            f"the study was run in the world {plan.data.world}, whose data are not yours; run it again without a world to ship"
        )
    arm, builtin = _arm(results, arm_name)
    work = context.work(arm, builtin, plan.seeds[0])
    if arm.recipe.learner is not None and is_pretrained(work.factory):
        raise InputError(
            f"{arm.name} starts from pretrained weights and is fitted again on loading; it cannot be shipped"
        )
    with in_place(folder) as place:
        threads = torch.get_num_threads()
        torch.set_num_threads(plan.threads)
        try:
            (work, fitted, test), found = watching(context, {work.seed}, functools.partial(_trained, work))
        finally:
            torch.set_num_threads(threads)
        if found.what:
            raise InputError(f"{arm.name} cannot be shipped: {found.words()}")
        description = _description(results, arm, builtin, work, fitted, digest(fitted.model, test))
        _write(folder, place, results, work, fitted, description)
        _check_whole(folder, place, work, fitted)
    return folder


def _trained(work: Work) -> tuple[Work, Predictor, Any]:
    """The trial as it is built again on loading, trained, and what is seen of its test rows."""
    work = _with_tuned_settings(work)
    fitted = fit(work)
    return work, fitted, looked_at(fitted, work)


def _with_tuned_settings(work: Work) -> Work:
    """The same trial with the settings that the tuner chooses written down, by which it is built again on loading."""
    if not work.terms.tune:
        return work
    recipe = tuned(work.recipe, work.terms.tune, work.seed, lambda candidate: validation_score(work, candidate))
    return replace(work, arm=replace(work.arm, recipe=recipe)).on(tune=0)


def _check_whole(folder: Path, place: Path, work: Work, fitted: Predictor) -> None:
    """InputError where what was written does not load, or its network predicts otherwise than the one that was tried.

    Learners are not asked: they would have to be fitted once more. Nor are networks that draw when they predict.
    """
    if fitted.model is None:
        return
    test = work.data.test
    few = Part(test.x[:ASKED], test.y[:ASKED], test.rows[:ASKED], None if test.text is None else test.text[:ASKED])
    wanted = fitted.predict(few)
    try:
        found = opened(place, work.factory).predict_part(few)
    except InputError as problem:
        raise InputError(str(problem).replace(str(place), str(folder))) from problem
    alike = found.shape == wanted.shape and torch.allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE)
    if not alike and torch.equal(wanted, fitted.predict(few)):
        raise InputError(
            f"{work.arm.name} predicts otherwise once it is loaded again, so it cannot be shipped: something that its "
            "network predicts by is no parameter or buffer in its state_dict()"
        )


def _description(
    results: Results, arm: Arm, builtin: str, work: Work, fitted: Predictor, found_digest: str
) -> dict[str, Any]:
    """What ``model.json`` says, but for the export."""
    plan, seed, spec = results.plan, work.seed, work.data.spec
    stored = next((t for t in results.trials if t.arm == arm.name and t.seed == seed), None)
    today = replace(plan, versions=versions())
    return {
        "format": FORMAT,
        "arm": arm.name,
        "seed": seed,
        "recipe": _buildable(work.recipe),
        "own_model": bool(own_part(plan.model)) and arm.recipe.model is None,
        "task": spec.task,
        "outputs": spec.outputs,
        "classes": list(spec.classes),
        "temperature": fitted.temperature,
        "study": key_of(plan.describe()),
        "digest": found_digest,
        "digest_in_study": None if stored is None else stored.record.get("digest"),
        "same_plan": stored is not None and stored.key == key_of(today.trial(arm, builtin, seed)),
        "versions": dict(today.versions),
    }


def _write(
    folder: Path, place: Path, results: Results, work: Work, fitted: Predictor, description: dict[str, Any]
) -> None:
    """All files into `place`; `folder` is what they are for."""
    if fitted.model is not None:
        weights = {name: value.contiguous() for name, value in _tensors(fitted.model).items()}
        if bad := not_finite(fitted.model, weights):
            raise InputError(f"{work.arm.name} diverged: {bad}; nothing was shipped. Try a smaller learning rate")
        with writing(folder, "model.safetensors"):
            save_file(weights, place / "model.safetensors")
    with writing(folder, "pipeline.json or pipeline.safetensors"):
        save_pipeline(work.data.pipeline, place)
    with writing(folder, "refit.safetensors or refit.json"):
        _save_refit(work, fitted, place)
    with writing(folder, "seen.safetensors"):
        save_seen(work.data, place)
    with writing(folder, "model.onnx"):
        description["onnx"] = export_onnx(fitted, work, place / "model.onnx")
    with writing(folder, "evidence.json"):
        evidence = results.as_json()
        evidence.pop("trials")
        (place / "evidence.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    with writing(folder, "README.md"):
        (place / "README.md").write_text(model_card(results, work.arm.name, description), encoding="utf-8")
    with writing(folder, "model.json"):
        (place / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    with writing(folder, FILE):  # last: now it is whole
        write_manifest(place, sources(description))


def _arm(results: Results, name: str) -> tuple[Arm, str]:
    plan = results.plan
    if name == results.baseline:
        return Arm(name, plan.base), name
    if name == "temperature scaling" and name in plan.references:
        return Arm(name, plan.base), name
    found = [arm for arm in plan.arms if name in (arm.name, arm.name.replace(" + ", "+"))]
    if not found:
        known = ", ".join([results.baseline, *(arm.name for arm in plan.arms)])
        raise InputError(f"no arm {name!r} in this study; it has {known}")
    return found[0], ""


def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """State without shared storage, which safetensors refuses."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _save_refit(work: Work, fitted: Predictor, folder: Path) -> None:
    recipe = work.arm.recipe
    tensors: dict[str, Tensor] = {}
    texts: dict[str, list[str]] = {}
    if recipe.learner is not None:
        for name, part in (("train", work.data.train), ("valid", work.data.valid)):
            tensors |= {f"{name}.x": part.x, f"{name}.y": part.y, f"{name}.rows": part.rows}
            if part.text is not None:
                texts[name] = list(part.text)
    if recipe.posthoc is not None:
        valid: Part = work.data.valid
        if fitted.model is None:
            logits = task(work.data.spec.task).logits(fitted.learner.predict(valid))
        else:
            logits = outputs(fitted.model, valid.x)
        tensors |= {"logits": logits, "target": valid.y.clone()}  # shared ones safetensors refuses
    if tensors:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "refit.safetensors")
        (folder / "refit.json").write_text(json.dumps({"text": texts}) + "\n", encoding="utf-8")


def _buildable(recipe: Recipe) -> dict[str, Any]:
    return {"training": asdict(recipe.training), "techniques": [use.plan() for use in recipe.uses()]}
