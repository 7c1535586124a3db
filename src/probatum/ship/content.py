"""What a shipped folder says, held against itself: numbers that are numbers, parts that belong together.

A manifest tells that files are as they were written. Folders of earlier versions have none, and what was written may
have been wrong; so what would predict nonsense without a word is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue, slots
from probatum.data.stored import REMEDY, read_json, told
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, Use
from probatum.rooms import find
from probatum.rooms.kind import kind_of
from probatum.ship.manifest import FILE
from probatum.spec import Spec

FORMAT = 2
"""Of `model.json`."""
UNCHECKED = 1
"""The format of folders that had no manifest."""
ACTING = ("model", "layer", "learner", "posthoc")
"""Slots whose techniques' code runs when a shipped model predicts; those of the others have done their work in training."""


def read_description(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says; InputError where it is missing, broken, of another format, or lacks something."""
    path = folder / "model.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a folder that `probatum ship` wrote: model.json is missing")
    found = read_json(path)
    if found.get("format") not in (UNCHECKED, FORMAT):
        raise InputError(
            f"{path} has format {found.get('format')!r}; this version reads {UNCHECKED} and {FORMAT}: install the version "
            "of Probatum that wrote it, or ship again"
        )
    with told(path):
        for name, sort in (("arm", str), ("seed", int), ("recipe", dict), ("own_model", bool), ("onnx", dict)):
            if not isinstance(found[name], sort):
                raise TypeError(f"{name} is {found[name]!r}")
        temperature = found["temperature"]
        if type(temperature) not in (int, float) or not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature is {temperature!r}; it must be finite and above 0")
    return found


def read_recipe(folder: Path, description: Mapping[str, Any]) -> Recipe:
    """The recipe in ``model.json``; InputError for a technique that is not installed, and for slots that are not its own."""
    path = folder / "model.json"
    with told(path):
        found = Recipe(training=Training(**description["recipe"]["training"]))
        for use in description["recipe"]["techniques"]:
            name, slot, settings = use["id"], use["slot"], use["settings"]
            if name not in catalogue.names():
                raise InputError(
                    f"{folder}: the model was made with {name!r}, which is not installed; give its file by --technique"
                )
            own = catalogue.place(name).slot
            if slot != own or slots.arena_of(own) != slots.PREDICT:
                raise ValueError(f"{name} stands in slot {slot!r}; its own is {own!r}")
            if not isinstance(settings, dict):
                raise TypeError(f"settings of {name} are {settings!r}")
            found = found.placed(Use(name, settings), slot)
    return found


def changed(folder: Path, description: Mapping[str, Any], trust_changed: bool) -> list[str]:
    """What is to be said of techniques whose installed source is not that of shipping.

    Raises:
        InputError: it is the source of one whose code runs in predictions, and nobody takes that on trust.
    """
    acting: list[str] = []
    others: list[str] = []
    for use in description["recipe"]["techniques"]:
        shipped, installed = use.get("source"), catalogue.digest(use["id"])
        if shipped not in (None, installed):
            which = f"{use['id']} (source {installed}, shipped with {shipped})"
            (acting if use["slot"] in ACTING else others).append(which)
    notices = []
    if acting and not trust_changed:
        wrote = description.get("versions", {}).get("probatum", "unknown")
        raise InputError(
            f"{folder}: another version of {', '.join(acting)} is installed, whose predictions may differ; install the one it "
            f"was shipped with (Probatum {wrote}, or its file by --technique), ship again, or take the installed one on trust "
            "(--trust-changed, or trust_changed=True)"
        )
    if acting:
        notices.append(f"taken on trust: {', '.join(acting)}; predictions may differ from those that were tried")
    if others:
        notices.append(f"{', '.join(others)} has changed since; it acted in training alone, predictions are the same")
    return notices


def changed_kind(description: Mapping[str, Any], spec: Spec) -> list[str]:
    """What is to be said of a kind of data from outside the package whose files are not those of shipping."""
    kind = kind_of(spec.modality, spec.task)
    if find.PACKAGE in find.room("kind", kind.NAME).folder.parents:
        return []
    if description.get("versions", {}).get("rooms") in (None, find.digest()):
        return []
    return [
        f"files of kinds of data from outside (--kind) are not those it was shipped with; rows of kind {kind.NAME} may be encoded in another way"
    ]


def check_spec(folder: Path, description: Mapping[str, Any], spec: Spec) -> None:
    """InputError where ``pipeline.json`` is not of the model: another task, other outputs, classes in another order."""
    own = {"task": spec.task, "outputs": spec.outputs, "classes": list(spec.classes)}
    for name, value in own.items():
        if name in description and description[name] != value:  # earlier versions did not say
            raise InputError(
                f"{folder}: {name} of model.json is {description[name]!r}, of pipeline.json {value!r}; they are not of one "
                f"model: {REMEDY}"
            )


def not_finite(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """The weights that are NaN or infinite, in words; "" where none is. Buffers may be infinite, as masks are."""
    weights = {name for name, _ in model.named_parameters()}
    found = []
    for name, value in tensors.items():
        if not value.is_floating_point() or torch.isfinite(value.sum()):  # a sum tells in a fraction of the time
            continue
        bad = ~value.isfinite() if name in weights else value.isnan()
        if count := int(bad.sum()):
            found.append(f"{name} holds {count} value(s) that are NaN{' or infinite' if name in weights else ''}")
    return ", ".join(found)


def unchecked(folder: Path) -> str:
    """What is to be said of a folder without a manifest."""
    return (
        f"{folder} was shipped by an earlier version without {FILE}, so altered files cannot be told; `probatum seal {folder}` "
        "writes down what they are now, `probatum ship` ships again"
    )
