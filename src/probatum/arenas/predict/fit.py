"""Training one arm of arena `predict`: a network, a learner or a classical reference, and what is fitted after it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.arenas.predict.reported import reported
from probatum.arenas.predict.swap import Swap
from probatum.data.lazy.few import release
from probatum.errors import InputError
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.recipe import Recipe, Use
from probatum.rooms.arena import Work
from probatum.rooms.task import check_shape, task, without_answers
from probatum.spec import Part
from probatum.train.assemble import Assembly, assemble, budget_for, offer_for_learner
from probatum.train.compute import equal_steps
from probatum.train.devices import train_on_devices
from probatum.train.loop import outputs, train
from probatum.train.rng import draws_of, generator_for, seeded
from probatum.train.second_choice import SecondChoice
from probatum.train.tune import tuned

SCALED = "temperature scaling"


@dataclass
class Predictor:
    """A trained arm.

    Attributes:
        task: what is asked, as `Spec.task`.
        model: the network, None for learners and references.
        learner: what predicts where there is no network.
        temperature: what logits are divided by.
        calibrator: fitted map from logits to probabilities, or None.
        effects: named numbers of what the techniques did.
        curve: the learning curve.
        passes: examples passed forward and backward.
        posthoc: the technique whose calibrator is fitted, or None.
        scores: whether the network gives scores that are no logits of probabilities yet.
    """

    task: str
    model: nn.Module | None = None
    learner: Any = None
    temperature: float = 1.0
    calibrator: Any = None
    effects: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    passes: float = 0.0
    posthoc: Use | None = None
    scores: bool = False

    def predict(self, part: Part) -> Tensor:
        """What the task predicts: probabilities (n, classes), values (n, outputs) on the standardised scale, ..."""
        asked = task(self.task)
        if self.model is None:
            with draws_of(0):  # the same again for the same rows
                found = self.learner.predict(without_answers(part))
            if self.calibrator is None:
                return found
            output = asked.logits(found)
        else:
            output = outputs(self.model, part.x)
        if self.calibrator is None:
            return asked.predicted(output, self.temperature)
        with torch.no_grad():
            return self.calibrator(output)


def fit(work: Work, swap: Swap | None = None) -> Predictor:
    """Train one arm and, where it has them, its calibrator and its tuned settings; the test rows are not read.

    With a swap that is possible they are: the best weights by them are kept in it, which changes nothing else.
    """
    spec = work.data.spec
    asked = task(spec.task)
    swap = swap or Swap("it was not asked for")
    if work.builtin in asked.references(spec):
        return Predictor(spec.task, learner=asked.reference(work.builtin, swap.noting(work.data), work.seed))
    recipe = work.recipe
    if work.terms.tune:
        recipe = tuned(recipe, work.terms.tune, work.seed, lambda candidate: validation_score(work, candidate))
    check_calibrator(recipe, spec.task)
    if recipe.learner is None:
        return fit_network(work, recipe, swap)
    return fit_learner(work, recipe, recipe.learner, swap)


def check_calibrator(recipe: Recipe, name: str) -> None:
    """InputError where there is a calibrator and nothing to calibrate."""
    if recipe.posthoc is not None and not task(name).CALIBRATED:
        raise InputError(f"{recipe.posthoc.id} calibrates class probabilities; the task here is {name}")


def fit_learner(work: Work, recipe: Recipe, use: Use, swap: Swap | None = None) -> Predictor:
    """A learner, and its calibrator if there is one."""
    data = work.data
    budget = budget_for(recipe.training, len(data.train))
    generator = generator_for(work.seed, "technique", use.id, work.arm.salt)
    hidden = replace(data, test=no_rows(data.test))  # a learner cannot look at the test rows
    if swap is not None:
        hidden = swap.noting(hidden)
    offer = offer_for_learner(work, recipe)
    with seeded(work.seed, "learner", use.id, work.arm.salt):  # for what it is made of and can only draw from there
        learner = inject.call(
            use.id, catalogue.entry(use.id), use.settings, offer, data=hidden, budget=budget, generator=generator
        )
    effects = reported(learner, use.id)
    found = Predictor(data.spec.task, learner=learner, effects=effects, posthoc=recipe.posthoc)
    found.passes = float(getattr(learner, "passes", 0.0))
    return calibrate(found, work)


def fit_network(work: Work, recipe: Recipe, swap: Swap | None = None) -> Predictor:
    """A network, trained, and what is fitted on validation rows after it."""
    return predictor(work, recipe, run_training(work, recipe, steps_for(work, recipe), swap))


def steps_for(work: Work, recipe: Recipe) -> int | None:
    """The updates that cost what the baseline's cost, where compute is to be equal; None = the recipe's own."""
    if work.terms.equal_compute and recipe.uses() != work.base.uses():
        return equal_steps(work, recipe)
    return None


def predictor(work: Work, recipe: Recipe, parts: Assembly) -> Predictor:
    """What a trained assembly predicts with: temperature or calibrator fitted on validation rows."""
    run, spec = parts.run, work.data.spec
    effects: dict[str, float] = {f"{name}: places changed": float(count) for name, count in parts.swaps.items()}
    for method in parts.methods:
        effects |= reported(method, type(method).__name__)
    found = Predictor(spec.task, run.model, effects=effects | run.notes, curve=run.curve, posthoc=recipe.posthoc)
    found.passes = float(run.passes + run.extra_passes)
    found.scores = not getattr(run.loss, "probabilistic", True)
    calibrate(found, work)
    work.engine.home(run.model)
    return found


def calibrate(found: Predictor, work: Work) -> Predictor:
    """Fit the predictor's temperature or calibrator, where it has one, on the validation rows; the predictor."""
    asked, data = task(found.task), work.data
    if found.model is None:
        if found.posthoc is not None:
            found.calibrator = _calibrator(
                found.posthoc, work, asked.logits(found.learner.predict(without_answers(data.valid)))
            )
    elif asked.CALIBRATED:
        valid = outputs(found.model, data.valid.x)
        if found.posthoc is not None:
            found.calibrator = _calibrator(found.posthoc, work, valid)
        elif found.scores or work.builtin == SCALED:
            found.temperature = fit_temperature(valid, data.valid.y)
    return found


def run_training(
    work: Work, recipe: Recipe | None = None, steps: int | None = None, swap: Swap | None = None
) -> Assembly:
    """Assemble a recipe (None = the arm's own) and train it on the work's split; what the test rows choose goes to `swap`."""
    recipe = recipe or work.recipe
    if work.engine.devices > 1:
        return train_on_devices(work, recipe, steps)
    parts = assembled(work, recipe, steps)
    training, network = recipe.training, parts.run.model
    second = None if swap is None or swap.reason else SecondChoice([work.engine.part(work.data.test)])
    try:
        with seeded(work.seed, "training", work.arm.salt):
            train(
                parts.run,
                parts.methods,
                generator_for(work.seed, "order", work.arm.salt),
                schedule=training.schedule,
                select=training.select,
                progress=work.progress,
                second=second,
            )
    finally:
        release(work.data.train, work.data.valid)  # what reads streamed rows ahead ends with the training
    if swap is not None and second is not None:
        swap.trained(parts.run, network, second)
    return parts


def assembled(work: Work, recipe: Recipe, steps: int | None = None) -> Assembly:
    """A recipe ready to train on the work's split, its network's outputs checked."""
    parts = assemble(work, recipe, steps)
    with torch.no_grad():
        head = outputs(parts.run.model, work.data.valid.x[:2])
    check_shape(head, min(2, len(work.data.valid)), work.data.spec, type(parts.run.model).__name__)
    return parts


def _calibrator(use: Use, work: Work, logits: Tensor) -> Any:
    offer = {
        "num_classes": work.data.spec.outputs,
        "generator": generator_for(work.seed, "technique", use.id, work.arm.salt),
        "spec": work.data.spec,
    }
    with seeded(work.seed, "technique", use.id, work.arm.salt):
        fitted = inject.call(use.id, catalogue.entry(use.id), use.settings, offer)
        fitted.fit(logits, work.data.valid.y)
    return fitted


def validation_score(work: Work, recipe: Recipe) -> float:
    """What the tuner lowers: validation error of the primary measure's kind, of one candidate recipe."""
    candidate = replace(work, arm=replace(work.arm, recipe=recipe), progress=None).on(tune=0)
    valid, asked = work.data.valid, task(work.data.spec.task)
    select = asked.CHOOSES.get(work.terms.primary, recipe.training.select)
    if recipe.learner is not None:
        learner = fit_learner(candidate, recipe, recipe.learner)
        found = asked.look(lambda part: asked.logits(learner.predict(without_answers(part))), valid, select)
    else:
        model = run_training(candidate, recipe).run.model
        found = asked.look(lambda part: outputs(model, part.x), valid, select)
    return asked.tuned_by(found, work.terms.primary)


def no_rows(part: Part) -> Part:
    """The part without any row; copies, for a slice would hold on to what it is a slice of."""
    empty = (part.x[:0].clone(), part.y[:0].clone(), part.rows[:0].clone())
    return Part(*empty, () if part.text is not None else None)
