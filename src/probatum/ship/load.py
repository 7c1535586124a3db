"""Load a shipped arm and predict with it; nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.data.pipeline import Pipeline, load_pipeline
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, Use
from probatum.rooms.arena import alone
from probatum.rooms.kind import kind_of
from probatum.rooms.task import task
from probatum.ship.write import FORMAT
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
    """

    pipeline: Pipeline
    model: nn.Module | None
    predict_part: Callable[[Part], Tensor]
    description: dict[str, Any]

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


def load(folder: str | Path, model: nn.Module | Callable[..., nn.Module] | None = None) -> Shipped:
    """Load a shipped folder.

    Args:
        folder: written by `probatum ship`.
        model: your own network, if the arm was made with one; its weights are loaded into it. Of a learner that fits
            several of them, what the study was given: a network or a function that builds one.

    Raises:
        InputError: not a shipped folder, another format, a technique that is not installed or has changed.
    """
    folder = Path(folder)
    if not (folder / "model.json").is_file():
        raise InputError(f"{folder} is not a folder that `probatum ship` wrote: model.json is missing")
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if description.get("format") != FORMAT:
        raise InputError(f"{folder} has format {description.get('format')!r}; this version reads {FORMAT}")
    pipeline = load_pipeline(folder)
    recipe = _recipe(description)
    if recipe.learner is not None:
        return _load_learner(folder, pipeline, recipe, recipe.learner, description, model)
    network = _build(description, pipeline.spec, recipe, model)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.eval()
    spec, temperature = pipeline.spec, float(description["temperature"])
    calibrator = _calibrator(folder, recipe, description, spec)

    def predict_part(part: Part) -> Tensor:
        output = outputs(network, part.x)
        if calibrator is None:
            return task(spec.task).predicted(output, temperature)
        with torch.no_grad():
            return calibrator(output)

    return Shipped(pipeline, network, predict_part, description)


def _recipe(description: dict[str, Any]) -> Recipe:
    found = Recipe(training=Training(**description["recipe"]["training"]))
    for use in description["recipe"]["techniques"]:
        if use["id"] not in catalogue.names():
            raise InputError(
                f"the model was made with {use['id']}, which is not installed; give its file by --technique"
            )
        found = found.placed(Use(use["id"], use["settings"]), use["slot"])
    return found


def _build(
    description: dict[str, Any], spec: Spec, recipe: Recipe, model: nn.Module | Callable[..., nn.Module] | None
) -> nn.Module:
    offer = {"spec": spec, "num_classes": spec.outputs}
    with seeded(description["seed"], "initial weights"):
        if description["own_model"]:
            if model is None:
                raise InputError(
                    "the model was made with a network of your own; load it by probatum.ship.load.load(folder, model=...)"
                )
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
    use, held = recipe.posthoc, load_file(folder / "refit.safetensors")
    seed = description["seed"]
    offer = {"num_classes": spec.outputs, "generator": generator_for(seed, "technique", use.id, ""), "spec": spec}
    with seeded(seed, "technique", use.id, ""):
        fitted = inject.call(use.id, catalogue.entry(use.id), use.settings, offer)
        fitted.fit(held["logits"], held["target"])
    return fitted


def _load_learner(
    folder: Path,
    pipeline: Pipeline,
    recipe: Recipe,
    use: Use,
    description: dict[str, Any],
    model: nn.Module | Callable[..., nn.Module] | None,
) -> Shipped:
    entry = catalogue.entry(use.id)
    if description["own_model"] and model is None and "model_factory" in inject.inspect.signature(entry).parameters:
        raise InputError(
            f"{use.id} was fitted with networks of your own; load it by probatum.ship.load.load(folder, model=...)"
        )
    held = load_file(folder / "refit.safetensors")
    texts = json.loads((folder / "refit.json").read_text(encoding="utf-8"))["text"]

    def part(name: str) -> Part:
        text = tuple(texts[name]) if name in texts else None
        return Part(held[f"{name}.x"], held[f"{name}.y"], held[f"{name}.rows"], text)

    train, valid = part("train"), part("valid")
    empty = Part(train.x[:0], train.y[:0], train.rows[:0], () if train.text is not None else None)
    data = Data(pipeline.spec, train, valid, empty, pipeline)
    factory = None if model is None or not description["own_model"] else own_model(model)[0]
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
    return Shipped(pipeline, None, predictor.predict, description)
