"""From a recipe to something that can be trained: model, loss, optimizer and methods, each from its own stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probatum import catalogue
from probatum.contracts import inject
from probatum.contracts.method import ordered
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, Use
from probatum.spec import Budget, Data, Optimisation, Spec
from probatum.train import baselines
from probatum.train.adapt import FROM_SCRATCH, Adapted
from probatum.train.engine import PLAIN, Engine
from probatum.train.loop import rate_factor
from probatum.train.rng import seeded, stream
from probatum.train.run import Run, last_layer

ModelFactory = Callable[[Spec], nn.Module]


@dataclass
class Assembly:
    """A run ready to start, its methods in order, and what surgery did."""

    run: Run
    methods: list[Any]
    swaps: dict[str, int]


def budget_for(training: Training, rows: int) -> Budget:
    """Steps, batch size and steps per epoch for this many training rows."""
    batch_size = min(training.batch_size, rows)
    per_epoch = math.ceil(rows / batch_size)
    if rows % batch_size == 1 and per_epoch > 1:
        per_epoch -= 1  # the loop leaves a last batch of one row out
    steps = training.steps or max(training.epochs * per_epoch, training.least_steps)
    return Budget(steps, batch_size, per_epoch)


def assemble(
    recipe: Recipe,
    data: Data,
    seed: int,
    *,
    salt: str = "",
    factory: ModelFactory | None = None,
    steps: int | None = None,
    engine: Engine = PLAIN,
) -> Assembly:
    """Build everything one trial trains.

    Args:
        recipe: what fills which slot.
        data: one split.
        seed: the trial's seed; `salt` re-draws the training streams without touching the split.
        factory: builds the baseline network, e.g. around a user's own module; None = the built-in one.
        steps: overrides the number of updates (compute-equal budgets).
        engine: where and how it is to be trained. Weights are drawn on the CPU, then moved.
    """
    budget = budget_for(recipe.training, len(data.train))
    if steps is not None:
        budget = Budget(steps, budget.batch_size, budget.steps_per_epoch)
    offer = {**offer_for(data, budget), "pretrained": is_pretrained(factory)}
    with seeded(seed, "initial weights", salt):
        model = _model(recipe, data.spec, factory, offer)
    swaps = {}
    for use in recipe.layer:
        with seeded(seed, "technique", use.id, salt):
            own = {**offer, "model": model, "generator": stream(seed, "technique", use.id, salt)}
            if _wants_last(use):
                own["last_layer"] = last_layer(model)
            swaps[use.id] = int(inject.call(use.id, catalogue.entry(use.id), use.settings, own, net=model))
    engine.network(model)
    offer = {**offer, "model": model, "model_factory": _fresh(recipe, data.spec, factory, offer, seed, salt, engine)}
    loss = default_loss(data.spec) if recipe.loss is None else _built(recipe.loss, offer, seed, salt)
    engine.network(loss)
    methods = [(use.id, _built(use, offer, seed, salt)) for use in recipe.method]
    if recipe.compress is not None:
        methods.append((recipe.compress.id, _built(recipe.compress, offer, seed, salt)))
    optimizer = _optimizer(recipe, model, offer, seed, salt)
    train, valid = engine.part(data.train), engine.part(data.valid)
    run = Run(model, loss, optimizer, data.spec, train, valid, budget, engine=engine, forward=engine.forward(model))
    return Assembly(run, [method for _, method in ordered(methods)], swaps)


def offer_for(data: Data, budget: Budget) -> dict[str, Any]:
    """The part of the vocabulary (`contracts.inject`) that is known before there is a model."""
    return {
        "spec": data.spec,
        "num_classes": data.spec.outputs,
        "num_examples": len(data.train),
        "total_steps": budget.steps,
        "steps_per_epoch": budget.steps_per_epoch,
        "batch_size": budget.batch_size,
    }


def offer_for_learner(
    recipe: Recipe, data: Data, seed: int, *, salt: str = "", factory: ModelFactory | None = None
) -> dict[str, Any]:
    """The vocabulary for a learner: what the data say, fresh networks of the baseline's kind, and how it is trained."""
    training = recipe.training
    offer = offer_for(data, budget_for(training, len(data.train)))
    return {
        **offer,
        "model_factory": _fresh(recipe, data.spec, factory, offer, seed, salt, PLAIN),
        "optimisation": Optimisation(
            training.lr,
            training.weight_decay,
            lambda step, steps: rate_factor(step, steps, training.schedule),
            training.clip,
        ),
    }


def default_loss(spec: Spec) -> nn.Module:
    """Cross-entropy for classes and tokens, mean squared error for reals."""
    return nn.MSELoss() if spec.task == "reals" else nn.CrossEntropyLoss()


def _built(use: Use, offer: Mapping[str, Any], seed: int, salt: str) -> Any:
    own = {**offer, "generator": stream(seed, "technique", use.id, salt)}
    entry = catalogue.entry(use.id)
    if _wants_last(use):
        own["last_layer"] = last_layer(offer["model"])
    with seeded(seed, "technique", use.id, "construction", salt):
        return inject.call(use.id, entry, use.settings, own)


def _model(recipe: Recipe, spec: Spec, factory: ModelFactory | None, offer: Mapping[str, Any]) -> nn.Module:
    if recipe.model is not None:
        built = inject.call(recipe.model.id, catalogue.entry(recipe.model.id), recipe.model.settings, offer)
        return factory.adapt(built) if isinstance(factory, Adapted) else built
    return (factory or baselines.build)(spec)


def network_of(recipe: Recipe, spec: Spec, factory: ModelFactory | None) -> nn.Module:
    """The recipe's network for these data as it is before any technique of another slot, drawn from torch's own stream."""
    return _model(recipe, spec, factory, {"spec": spec, "num_classes": spec.outputs})


def is_pretrained(factory: ModelFactory | None) -> bool:
    """Whether networks start from pretrained weights."""
    return isinstance(factory, Adapted) and factory.start != FROM_SCRATCH


def _wants_last(use: Use) -> bool:
    return "last_layer" in inject.inspect.signature(catalogue.entry(use.id)).parameters


def _fresh(
    recipe: Recipe,
    spec: Spec,
    factory: ModelFactory | None,
    offer: Mapping[str, Any],
    seed: int,
    salt: str,
    engine: Engine,
) -> Callable[[], nn.Module]:
    count = 0

    def build() -> nn.Module:
        nonlocal count
        count += 1
        with seeded(seed, "fresh model", str(count), salt):
            return engine.network(_model(recipe, spec, factory, offer))

    return build


def _optimizer(
    recipe: Recipe, model: nn.Module, offer: Mapping[str, Any], seed: int, salt: str
) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError(f"{type(model).__name__} has no trainable parameters")
    if recipe.optimizer is None:
        training = recipe.training
        return torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, fused=True)
    use = recipe.optimizer
    entry = catalogue.entry(use.id)
    own = {**offer, "generator": stream(seed, "technique", use.id, salt)}
    if hasattr(entry, "for_model"):
        return inject.call(use.id, entry.for_model, use.settings, own)
    return inject.call(use.id, entry, use.settings, own, params=parameters)
