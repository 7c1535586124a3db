"""Load a shipped arm and predict with it; nothing is unpickled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.data.pipeline import Pipeline, load_pipeline
from probatum.data.stored import REMEDY, read_json, read_tensors, told
from probatum.errors import InputError
from probatum.recipe import Recipe
from probatum.rooms.arena import alone
from probatum.rooms.kind import kind_of
from probatum.rooms.task import task
from probatum.ship.content import (
    UNCHECKED,
    changed,
    changed_kind,
    check_spec,
    not_finite,
    read_description,
    read_recipe,
    unchecked,
)
from probatum.ship.manifest import FILE, Check
from probatum.spec import Data, Part, Spec
from probatum.train import baselines
from probatum.train.assemble import budget_for, offer_for_learner
from probatum.train.loop import outputs
from probatum.train.own_model import own_model
from probatum.train.rng import generator_for, seeded


@dataclass(frozen=True)
class Shipped:
    """A loaded arm.

    Attributes:
        pipeline: raw rows -> x, and outputs -> predictions.
        model: the network, None for learners.
        predict_part: encoded rows -> probabilities (n, classes) or values (n, outputs); tokens -> logarithms of
            probabilities (n, length, outputs).
        description: what ``model.json`` says.
        notices: what is to be told beside, a line each.
    """

    pipeline: Pipeline
    model: nn.Module | None
    predict_part: Callable[[Part], Tensor]
    description: dict[str, Any]
    notices: tuple[str, ...] = ()

    @property
    def spec(self) -> Spec:
        """Description of one encoded example."""
        return self.pipeline.spec

    def encode(self, source: Any) -> tuple[Part, pl.DataFrame]:
        """New rows (path, frame, array or texts) as a part without targets, and the raw rows."""
        x, frame = self.pipeline.encode_source(source)
        column = getattr(self.pipeline.features, "column", None)  # of texts, whose strings learners may read
        text = None if column is None else tuple(frame[column].to_list())
        return Part(x, torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)), text), frame

    def predict(self, source: Any) -> pl.DataFrame:
        """Predictions for new rows: the class and its probabilities, or the values; of a language model the bits that
        each text takes."""
        own = kind_of(self.spec.modality, self.spec.task).predicted(self.pipeline, self.predict_part, source)
        if own is not None:
            return own
        part, _ = self.encode(source)
        decoded = task(self.spec.task).decoded(self.predict_part(part))
        return pl.DataFrame(self.pipeline.decode_output(decoded))


def load(
    folder: str | Path, model: nn.Module | Callable[..., nn.Module] | None = None, *, trust_changed: bool = False
) -> Shipped:
    """Load a shipped folder, once its files are known to be those that were shipped.

    Which files may be edited or added (README.md, what hubs add) says `probatum.ship.manifest`. What is to be told beside,
    as that a folder of an earlier version cannot be checked, is warned of and stands in `Shipped.notices`.

    Args:
        folder: written by `probatum ship`.
        model: your own network, if the arm was made with one; its weights are loaded into it. Of a learner that fits
            several of them, what the study was given: a network or a function that builds one.
        trust_changed: load although techniques whose code runs in predictions have changed since it was shipped.

    Raises:
        InputError: not a shipped folder, another format; files that are altered, cut, missing or were not shipped, all of
            them named; a technique that is not installed or has changed; weights, temperature or classes that cannot be.
    """
    found = opened(folder, model, trust_changed=trust_changed)
    for notice in found.notices:
        warnings.warn(notice, stacklevel=2)
    return found


def opened(
    folder: str | Path, model: nn.Module | Callable[..., nn.Module] | None = None, *, trust_changed: bool = False
) -> Shipped:
    """As `load`, for those who tell the notices themselves: nothing is warned of."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that `probatum ship` wrote")
    check = Check(folder) if (folder / FILE).is_file() else None
    try:
        found = _loaded(folder, model, trust_changed=trust_changed, before_weights=check.finish if check else None)
    except InputError:
        if check is not None:  # what is altered explains what does not fit
            check.finish()
        raise
    if check is not None:
        return found
    if found.description["format"] != UNCHECKED:
        raise InputError(f"{folder / FILE} is missing; copy the folder anew from where it was shipped, or ship again")
    return replace(found, notices=(unchecked(folder), *found.notices))


def _loaded(
    folder: Path,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    *,
    trust_changed: bool = False,
    before_weights: Callable[[], None] | None = None,
) -> Shipped:
    """As `opened`, whatever the files are; `before_weights` is called before the weights, or what a learner is fitted on, are used."""
    description = read_description(folder)
    recipe = read_recipe(folder, description)
    pipeline = load_pipeline(folder)
    check_spec(folder, description, pipeline.spec)
    with told(folder / "model.json"):
        notices = changed(folder, description, trust_changed) + changed_kind(description, pipeline.spec)
    network = None if recipe.learner is not None else _build(folder, description, pipeline.spec, recipe, model)
    if before_weights is not None:
        before_weights()
    if network is None:
        found = _load_learner(folder, pipeline, recipe, description, model)
    else:
        found = _load_network(folder, pipeline, recipe, description, network)
    return replace(found, notices=tuple(notices))


def _load_network(
    folder: Path, pipeline: Pipeline, recipe: Recipe, description: dict[str, Any], network: nn.Module
) -> Shipped:
    path = folder / "model.safetensors"
    weights = read_tensors(path)
    if bad := not_finite(network, weights):
        raise InputError(f"{path}: {bad}; {REMEDY}")
    with told(path):
        network.load_state_dict(weights)
    network.eval()
    spec, temperature = pipeline.spec, float(description["temperature"])
    calibrator = _calibrator(folder, recipe, description, spec)

    def predict_part(part: Part) -> Tensor:
        output = outputs(network, part.x)
        if spec.classes and output.shape[-1] != len(spec.classes):
            raise InputError(
                f"{folder}: the network gives {output.shape[-1]} outputs, its pipeline has {len(spec.classes)} classes; load it "
                "with the network that it was shipped with"
            )
        if calibrator is None:
            return task(spec.task).predicted(output, temperature)
        with torch.no_grad():
            return calibrator(output)

    return Shipped(pipeline, network, predict_part, description)


def _build(
    folder: Path,
    description: dict[str, Any],
    spec: Spec,
    recipe: Recipe,
    model: nn.Module | Callable[..., nn.Module] | None,
) -> nn.Module:
    if description["own_model"] and model is None:
        raise InputError(
            "the model was made with a network of your own; load it by probatum.ship.load.load(folder, model=...)"
        )
    offer = {"spec": spec, "num_classes": spec.outputs}
    with told(folder / "model.json"), seeded(description["seed"], "initial weights"):
        if description["own_model"] and model is not None:
            network = model if isinstance(model, nn.Module) else own_model(model)[0](spec)
        elif recipe.model is not None:
            network = inject.call(recipe.model.id, catalogue.entry(recipe.model.id), recipe.model.settings, offer)
        else:
            network = baselines.build(spec)
        for use in recipe.layer:
            own = {**offer, "model": network, "generator": generator_for(description["seed"], "technique", use.id)}
            inject.call(use.id, catalogue.entry(use.id), use.settings, own, net=network)
    return network


def _calibrator(folder: Path, recipe: Recipe, description: dict[str, Any], spec: Spec) -> Any:
    if recipe.posthoc is None:
        return None
    use, held = recipe.posthoc, read_tensors(folder / "refit.safetensors")
    seed = description["seed"]
    offer = {"num_classes": spec.outputs, "generator": generator_for(seed, "technique", use.id, ""), "spec": spec}
    with told(folder / "refit.safetensors"), seeded(seed, "technique", use.id, ""):
        fitted = inject.call(use.id, catalogue.entry(use.id), use.settings, offer)
        fitted.fit(held["logits"], held["target"])
    return fitted


def _load_learner(
    folder: Path,
    pipeline: Pipeline,
    recipe: Recipe,
    description: dict[str, Any],
    model: nn.Module | Callable[..., nn.Module] | None,
) -> Shipped:
    use = recipe.learner
    assert use is not None
    entry = catalogue.entry(use.id)
    if description["own_model"] and model is None and "model_factory" in inject.inspect.signature(entry).parameters:
        raise InputError(
            f"{use.id} was fitted with networks of your own; load it by probatum.ship.load.load(folder, model=...)"
        )
    train, valid = _refit_parts(folder)
    empty = Part(train.x[:0], train.y[:0], train.rows[:0], () if train.text is not None else None)
    data = Data(pipeline.spec, train, valid, empty, pipeline)
    factory = None if model is None or not description["own_model"] else own_model(model)[0]
    with told(folder / "refit.safetensors"):
        offer = offer_for_learner(alone(recipe, data, description["seed"], factory=factory))
        predictor = inject.call(
            use.id,
            entry,
            use.settings,
            offer,
            data=data,
            budget=budget_for(recipe.training, len(train)),
            generator=generator_for(description["seed"], "technique", use.id, ""),
        )
    calibrator = _calibrator(folder, recipe, description, pipeline.spec)

    def predict_part(part: Part) -> Tensor:
        found = predictor.predict(part)
        if calibrator is None:
            return found
        with torch.no_grad():
            return calibrator(task(pipeline.spec.task).logits(found))

    return Shipped(pipeline, None, predict_part, description)


def _refit_parts(folder: Path) -> tuple[Part, Part]:
    """The training and validation rows that a learner is fitted on again."""
    held = read_tensors(folder / "refit.safetensors")
    with told(folder / "refit.json"):
        texts = read_json(folder / "refit.json")["text"]
        given = {name: tuple(texts[name]) if name in texts else None for name in ("train", "valid")}
    with told(folder / "refit.safetensors"):
        found = [Part(held[f"{name}.x"], held[f"{name}.y"], held[f"{name}.rows"], text) for name, text in given.items()]
        for part in found:
            if not len(part.x) == len(part.y) == len(part.rows) == len(part.text or part.x):
                raise ValueError("rows, labels and texts are not equally many")
    return found[0], found[1]
