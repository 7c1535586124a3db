"""From a recipe to something that can be trained: model, loss, optimizer and methods, each from its own stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.contracts.method import ordered
from probatum.engine import PLAIN, Engine
from probatum.errors import InputError
from probatum.recipe import Recipe, Training, Use
from probatum.rooms.arena import ModelFactory, Work
from probatum.rooms.task import task
from probatum.spec import Budget, Data, Optimisation, Spec
from probatum.train import baselines
from probatum.train.adapt import FROM_SCRATCH, Adapted
from probatum.train.loop import rate_factor
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.run import Run, last_layer


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


def assemble(work: Work, recipe: Recipe | None = None, steps: int | None = None) -> Assembly:
    """Build everything one trial trains.

    Args:
        work: data, seed, factory and engine. Weights are drawn on the CPU, then moved.
        recipe: what fills which slot; None = the arm's own.
        steps: overrides the number of updates (compute-equal budgets).
    """
    recipe, data, seed, salt = recipe or work.recipe, work.data, work.seed, work.arm.salt
    factory, engine = work.factory, work.engine
    budget = budget_for(recipe.training, len(data.train))
    if steps is not None:
        budget = Budget(steps, budget.batch_size, budget.steps_per_epoch)
    offer = {**offer_for(data, budget), "pretrained": is_pretrained(factory)}
    with seeded(seed, "initial weights", salt):
        model = _model(recipe, data.spec, factory, offer)
    few = data.train.x[:2]
    swaps = _swap_layers(recipe, model, few, offer, seed, salt)
    engine.network(model)
    offer = {**offer, "model": model, "model_factory": _fresh(recipe, data.spec, factory, offer, seed, salt, engine)}
    loss = task(data.spec.task).loss() if recipe.loss is None else _built(recipe.loss, few, offer, seed, salt)
    engine.network(loss)
    methods = [(use.id, _built(use, few, offer, seed, salt)) for use in recipe.method]
    if recipe.compress is not None:
        methods.append((recipe.compress.id, _built(recipe.compress, few, offer, seed, salt)))
    run = Run(
        model,
        loss,
        _optimizer(recipe, model, loss, offer, seed, salt),
        data.spec,
        engine.part(data.train),
        engine.part(data.valid),
        budget,
        engine=engine,
        forward=engine.forward(model),
        clip=recipe.training.clip,
        draws=derive(seed, "second pass", salt),
    )
    return Assembly(run, [method for _, method in ordered(methods)], swaps)


def _swap_layers(
    recipe: Recipe, model: nn.Module, few: Tensor, offer: Mapping[str, Any], seed: int, salt: str
) -> dict[str, int]:
    """How many places each technique of slot layer changed."""
    swaps = {}
    for use in recipe.layer:
        with seeded(seed, "technique", use.id, salt):
            own = {**offer, "model": model, "generator": generator_for(seed, "technique", use.id, salt)}
            if _wants_last(use):
                own["last_layer"] = _last(model, few)
            swaps[use.id] = int(inject.call(use.id, catalogue.entry(use.id), use.settings, own, net=model))
    return swaps


def offer_for(data: Data, budget: Budget) -> dict[str, Any]:
    """The part of the vocabulary (`inject`) that is known before there is a model."""
    return {
        "spec": data.spec,
        "num_classes": data.spec.outputs,
        "num_examples": len(data.train),
        "total_steps": budget.steps,
        "steps_per_epoch": budget.steps_per_epoch,
        "batch_size": budget.batch_size,
    }


def offer_for_learner(work: Work, recipe: Recipe | None = None) -> dict[str, Any]:
    """The vocabulary for a learner: what the data say, fresh networks of the baseline's kind, and how it is trained."""
    recipe, data = recipe or work.recipe, work.data
    training = recipe.training
    offer = offer_for(data, budget_for(training, len(data.train)))
    return {
        **offer,
        "model_factory": _fresh(recipe, data.spec, work.factory, offer, work.seed, work.arm.salt, PLAIN),
        "optimisation": Optimisation(
            training.lr,
            training.weight_decay,
            lambda step, steps: rate_factor(step, steps, training.schedule),
            training.clip,
        ),
    }


def _last(model: nn.Module, few: Tensor) -> nn.Module:
    """The layer that runs last on these rows, wherever the network is."""
    first = next(model.parameters(), None)
    return last_layer(model, few if first is None else few.to(first.device))


def _built(use: Use, few: Tensor, offer: Mapping[str, Any], seed: int, salt: str) -> Any:
    own = {**offer, "generator": generator_for(seed, "technique", use.id, salt)}
    entry = catalogue.entry(use.id)
    if _wants_last(use):
        own["last_layer"] = _last(offer["model"], few)
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
    recipe: Recipe, model: nn.Module, loss: nn.Module, offer: Mapping[str, Any], seed: int, salt: str
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the network and, where the loss has parameters of its own, over those."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError(f"{type(model).__name__} has no trainable parameters")
    own_loss = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    if recipe.optimizer is None:
        training = recipe.training
        return torch.optim.AdamW(
            [*parameters, *own_loss], lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
    use = recipe.optimizer
    entry = catalogue.entry(use.id)
    own = {**offer, "generator": generator_for(seed, "technique", use.id, salt)}
    if not hasattr(entry, "for_model"):
        return inject.call(use.id, entry, use.settings, own, params=[*parameters, *own_loss])
    if own_loss:
        raise InputError(
            f"{recipe.loss and recipe.loss.id} has parameters of its own, and {use.id} treats a network's by their role; "
            "try them in separate arms"
        )
    return inject.call(use.id, entry.for_model, use.settings, own)
