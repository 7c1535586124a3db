"""Arena `predict`: train an arm on the split's training rows, choose on validation rows, look at the test rows once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue
from probatum.arenas.lazy_rows import first_rows, release, small
from probatum.arenas.predict.uncertainty import uncertainty
from probatum.contracts import inject
from probatum.data.corrupt import corruptions
from probatum.errors import InputError
from probatum.kinds.language import look as language
from probatum.measure import calibration, conformal, cost, quality, robustness, selective
from probatum.measure.truth import truth_measures
from probatum.numerics.calibration.temperature import fit_temperature
from probatum.recipe import Recipe, Use
from probatum.rooms.arena import Outcome, Work
from probatum.spec import Data, Part, Spec
from probatum.tasks import classical
from probatum.train.adapt import Adapted
from probatum.train.assemble import Assembly, assemble, budget_for, offer_for_learner
from probatum.train.compute import equal_steps
from probatum.train.devices import train_on_devices
from probatum.train.loop import errors, outputs, train
from probatum.train.rng import seeded, stream
from probatum.train.run import TrainingFailed
from probatum.train.tune import tuned

BASELINE = "baseline"


def references(spec: Spec) -> tuple[str, ...]:
    """Classical predictors, and temperature scaling where a calibrator has something to beat."""
    return (*classical.NAMES[spec.task], *(("temperature scaling",) if spec.task == "classes" else ()))


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    size = (
        "parameters",
        "nonzero-parameters",
        "macs",
        "training-passes",
        "step-time-ratio",
        "latency-ratio",
        "peak-memory",
    )
    if spec.task == "reals":
        return (
            *("rmse", "mae", "r2", "interval-width-90"),
            *("nll", "coverage-gap-95", "interval-width-95", "corrupted-rmse"),
            *size,
        )
    if language.is_language(spec):
        return (*language.MEASURES, *size)
    return (
        *("accuracy", "balanced-accuracy", "log-loss", "brier", "auroc", "macro-f1"),
        *("ece", "ece-equal-mass", "ece-classwise", "calibration-rms-debiased"),
        *("augrc", "error-auroc", "error-auroc-entropy", "set-size-90", "corrupted-accuracy"),
        *size,
    )


@dataclass
class Predictor:
    """A trained arm.

    Attributes:
        task: classes, reals or next-token.
        model: the network, None for learners and references.
        learner: what predicts where there is no network.
        temperature: what logits are divided by.
        calibrator: fitted map from logits to probabilities, or None.
        effects: named numbers of what the techniques did.
        curve: the learning curve.
        passes: examples passed forward and backward.
    """

    task: str
    model: nn.Module | None = None
    learner: Any = None
    temperature: float = 1.0
    calibrator: Any = None
    effects: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    passes: float = 0.0

    def predict(self, part: Part) -> Tensor:
        """Probabilities (n, classes), or values (n, outputs) on the standardised scale; next-token: natural logarithms of
        probabilities (n, length, outputs)."""
        if self.model is None:
            found = self.learner.predict(part)
            if self.calibrator is None:
                return found
            output = found.clamp_min(1e-12).log()
        else:
            output = outputs(self.model, part.x)
        if self.task == "reals":
            return output
        if self.task == "next-token":
            return output.log_softmax(dim=2)
        if self.calibrator is None:
            return (output / self.temperature).softmax(dim=1)
        with torch.no_grad():
            return self.calibrator(output)


def trial(work: Work) -> Outcome:
    """Train and measure one arm on one seed."""
    start = time.perf_counter()
    fitted = fit(work)
    return measured(work, fitted, time.perf_counter() - start)


def measured(work: Work, fitted: Predictor, seconds: float) -> Outcome:
    """Look at the test rows: every measure of a trained arm; `seconds` is what its training took."""
    spec, test, engine = work.data.spec, work.data.test, work.engine
    if fitted.model is not None:
        engine.network(fitted.model)
    details: dict[str, Any] = {"curve": fitted.curve, "effects": fitted.effects}
    if language.is_language(spec):
        seen = _seen(fitted, work)
        found, told = language.measured(seen, test)
        output, details = seen.log_p, details | told
    else:
        with torch.no_grad():
            output = fitted.predict(test)
        check_output(output, len(test), spec, work.arm.name)
        if not torch.isfinite(output).all():
            raise TrainingFailed("predictions on the test rows are not finite")
        found = quality.quality(output, test.y, spec.task, spec.outputs, scale=target_scale(work.data))
    if spec.task == "classes":
        found |= calibration.calibration(output, test.y) | selective.selection(output, test.y)
        details["reliability"] = calibration.reliability(output, test.y)
        details["per_class"] = quality.per_class(output, test.y)
    found |= _conformal(work, fitted, output, details)
    if not language.is_language(spec):
        drawn = fitted.learner if fitted.calibrator is None else None  # calibrated probabilities have no draws
        with torch.no_grad():
            sure = uncertainty(work, drawn, output, fitted.predict)
        found, details["effects"] = found | sure[0], fitted.effects | sure[1]
    found |= _robustness(work, fitted)
    if work.truth is not None:
        with torch.no_grad():
            true = truth_measures(fitted.predict, output, test, work.data.train, work.truth, spec.task)
        found, details["truth"] = found | true[0], true[1]
    timing = {"training-seconds": seconds}
    if fitted.passes:
        found["training-passes"] = fitted.passes
    if (model := fitted.model) is not None:
        engine.home(model)
        tuned_start = isinstance(work.factory, Adapted)  # fine-tuning: the frozen body is part of what is kept
        found["parameters"] = float(cost.parameters(model, frozen=tuned_start))
        found["nonzero-parameters"] = float(cost.nonzero(model, frozen=tuned_start))
        if isinstance(work.factory, Adapted):
            found |= work.factory.sizes(model)
        few = test.x[:64]
        found["macs"] = float(cost.macs(model, few))
        found["peak-memory"] = float(cost.peak_memory(lambda: outputs(model, few)))
    release(work.data.train, work.data.valid, test)
    return Outcome(found, timing, digest(fitted.model, output), details)


def looked_at(fitted: Predictor, work: Work) -> Tensor:
    """What the digest of a trained arm is taken of: its test outputs, for next-token the log p of the tokens that came."""
    if language.is_language(work.data.spec):
        return _seen(fitted, work).log_p
    return fitted.predict(work.data.test)


def _seen(fitted: Predictor, work: Work) -> language.Seen:
    spec, who = work.data.spec, work.arm.name
    return language.look(fitted.predict, work.data.test, lambda log_p, rows: check_output(log_p, rows, spec, who))


def fit(work: Work) -> Predictor:
    """Train one arm and, where it has them, its calibrator and its tuned settings; the test rows are not read."""
    spec = work.data.spec
    if work.builtin in classical.NAMES[spec.task]:
        reference = classical.fit(work.builtin, work.data, work.seed)
        return Predictor(spec.task, learner=reference)
    recipe = work.arm.recipe
    if work.tune:
        recipe = tuned(recipe, work.tune, work.seed, lambda candidate: _validation_score(work, candidate))
    if recipe.posthoc is not None and spec.task != "classes":
        raise InputError(f"{recipe.posthoc.id} calibrates class probabilities; the task here is {spec.task}")
    return _fit_network(work, recipe) if recipe.learner is None else _fit_learner(work, recipe, recipe.learner)


def _fit_learner(work: Work, recipe: Recipe, use: Use) -> Predictor:
    data = work.data
    budget = budget_for(recipe.training, len(data.train))
    generator = stream(work.seed, "technique", use.id, work.arm.salt)
    hidden = replace(data, test=_no_rows(data.test))  # a learner cannot look at the test rows
    offer = offer_for_learner(recipe, data, work.seed, salt=work.arm.salt, factory=work.factory)
    learner = inject.call(
        use.id, catalogue.entry(use.id), use.settings, offer, data=hidden, budget=budget, generator=generator
    )
    found = Predictor(data.spec.task, learner=learner, effects=getattr(learner, "report", dict)())
    found.passes = float(getattr(learner, "passes", 0.0))
    if recipe.posthoc is not None:
        found.calibrator = _calibrator(recipe.posthoc, work, learner.predict(data.valid).clamp_min(1e-12).log())
    return found


def _fit_network(work: Work, recipe: Recipe) -> Predictor:
    return predictor(work, recipe, run_training(recipe, work, steps_for(work, recipe)))


def steps_for(work: Work, recipe: Recipe) -> int | None:
    """The updates that cost what the baseline's cost, where compute is to be equal; None = the recipe's own."""
    if work.equal_compute and recipe.uses() != work.base.uses():
        return equal_steps(work.base, recipe, work.data, work.seed, work.factory)
    return None


def predictor(work: Work, recipe: Recipe, parts: Assembly) -> Predictor:
    """What a trained assembly predicts with: temperature or calibrator fitted on validation rows."""
    run, spec = parts.run, work.data.spec
    effects: dict[str, float] = {f"{name}: places changed": float(count) for name, count in parts.swaps.items()}
    for method in parts.methods:
        effects |= getattr(method, "report", dict)()
    passes = run.step * run.budget.batch_size + run.extra_passes
    found = Predictor(spec.task, run.model, effects=effects | run.notes, curve=run.curve, passes=float(passes))
    if spec.task == "classes":
        valid = outputs(run.model, work.data.valid.x)
        scores_only = not getattr(run.loss, "probabilistic", True)
        if recipe.posthoc is not None:
            found.calibrator = _calibrator(recipe.posthoc, work, valid)
        elif scores_only or work.builtin == "temperature scaling":
            found.temperature = fit_temperature(valid, work.data.valid.y)
    work.engine.home(run.model)
    return found


def run_training(recipe: Recipe, work: Work, steps: int | None = None) -> Assembly:
    """Assemble a recipe and train it on the work's split."""
    if work.engine.devices > 1:
        return train_on_devices(
            recipe,
            work.data,
            work.seed,
            engine=work.engine,
            salt=work.arm.salt,
            factory=work.factory,
            steps=steps,
            progress=work.progress,
        )
    parts = assembled(recipe, work, steps)
    training = recipe.training
    try:
        with seeded(work.seed, "training", work.arm.salt):
            train(
                parts.run,
                parts.methods,
                stream(work.seed, "order", work.arm.salt),
                schedule=training.schedule,
                clip=training.clip,
                select=training.select,
                progress=work.progress,
            )
    finally:
        release(work.data.train, work.data.valid)  # what reads streamed rows ahead ends with the training
    return parts


def assembled(recipe: Recipe, work: Work, steps: int | None = None) -> Assembly:
    """A recipe ready to train on the work's split, its network's outputs checked."""
    parts = assemble(
        recipe, work.data, work.seed, salt=work.arm.salt, factory=work.factory, steps=steps, engine=work.engine
    )
    with torch.no_grad():
        head = outputs(parts.run.model, work.data.valid.x[:2])
    check_output(head, min(2, len(work.data.valid)), work.data.spec, type(parts.run.model).__name__)
    return parts


def check_output(output: Any, rows: int, spec: Spec, who: str) -> None:
    """InputError where outputs are not (rows, spec.outputs), or (rows, length, spec.outputs) for next-token."""
    shape = tuple(getattr(output, "shape", ()))
    if language.is_language(spec):
        right = (rows, *spec.shape, spec.outputs)
        if shape != right:
            raise InputError(f"{who} gives outputs of shape {shape}; a language model gives logits {right} here")
    elif shape != (rows, spec.outputs):
        wanted = f"{spec.outputs} classes" if spec.task == "classes" else f"{spec.outputs} real target(s)"
        raise InputError(
            f"{who} gives outputs of shape {shape} for {rows} rows, but the data have {wanted}: "
            f"it should give ({rows}, {spec.outputs}); change the size of its last layer"
        )


def target_scale(data: Data) -> Tensor | None:
    """Standard deviations the real targets were divided by, None for other tasks."""
    return torch.as_tensor(data.pipeline.target.std) if data.spec.task == "reals" else None


def timings(work: Work) -> dict[str, float]:
    """Step time and latency as ratios to the baseline's, measured A B A B in this process."""
    recipe = work.arm.recipe
    if recipe.learner is not None or work.builtin:
        return {}
    work = replace(work, data=small(work.data, max(1024, 4 * recipe.training.batch_size)))
    if language.is_language(work.data.spec):
        work = replace(work, data=language.for_timing(work.data))
    mine, base = (_stepper(recipe, work), _stepper(work.base, work))
    x = work.engine.part(work.data.test).x[:256]
    step = cost.interleave(mine.step, base.step, pairs=6, warmup=2)
    latency = cost.interleave(lambda: outputs(mine.model, x), lambda: outputs(base.model, x), pairs=8, warmup=2)
    return {"step-time-ratio": _mean_ratio(step.log_ratios), "latency-ratio": _mean_ratio(latency.log_ratios)}


@dataclass
class _Stepper:
    model: nn.Module
    step: Callable[[], None]


def _stepper(recipe: Recipe, work: Work) -> _Stepper:
    """Something that trains a few steps each time it is called, hooks included."""
    parts = assemble(recipe, work.data, work.seed, factory=work.factory, engine=work.engine)
    run, block = parts.run, 4
    run.budget = replace(run.budget, steps=block, steps_per_epoch=block + 1)
    started: list[bool] = []

    def step() -> None:
        run.step = 0
        quiet = parts.methods if not started else [WithoutPrepare(method) for method in parts.methods]
        started.append(True)
        with seeded(work.seed, "timing"):
            train(run, quiet, stream(work.seed, "timing order"), schedule="constant", select="last")
        run.curve.clear()

    return _Stepper(run.model, step)


class WithoutPrepare:
    """A method's hooks without the ones that come once a run."""

    def __init__(self, method: Any) -> None:
        for hook in ("order", "batch", "loss", "gradients", "step_end", "epoch_end"):
            if hasattr(method, hook):
                setattr(self, hook, getattr(method, hook))


def _mean_ratio(log_ratios: tuple[float, ...]) -> float:
    return float(torch.tensor(log_ratios, dtype=torch.float64).median().exp())


def _calibrator(use: Use, work: Work, logits: Tensor) -> Any:
    offer = {
        "num_classes": work.data.spec.outputs,
        "generator": stream(work.seed, "technique", use.id, work.arm.salt),
        "spec": work.data.spec,
    }
    with seeded(work.seed, "technique", use.id, work.arm.salt):
        fitted = inject.call(use.id, catalogue.entry(use.id), use.settings, offer)
        fitted.fit(logits, work.data.valid.y)
    return fitted


def _validation_score(work: Work, recipe: Recipe) -> float:
    """What the tuner lowers: validation error of the primary measure's kind, of one candidate recipe."""
    candidate = replace(work, arm=replace(work.arm, recipe=recipe), tune=0, progress=None)
    data, spec = work.data, work.data.spec
    if language.is_language(spec):
        learner = recipe.learner
        fitted = _fit_network(candidate, recipe) if learner is None else _fit_learner(candidate, recipe, learner)
        return -float(language.look(fitted.predict, data.valid).log_p.mean())
    if recipe.learner is not None:
        output = _fit_learner(candidate, recipe, recipe.learner).predict(data.valid)
        output = output.clamp_min(1e-12).log() if spec.task == "classes" else output
    else:
        output = outputs(run_training(recipe, candidate).run.model, data.valid.x)
    found = errors(output, data.valid, spec.task)
    if spec.task == "reals":
        return found["valid_rmse"]
    return (
        found["valid_log_loss"] if work.primary == "log-loss" else found["valid_error"] + 1e-3 * found["valid_log_loss"]
    )


def _conformal(work: Work, fitted: Predictor, output: Tensor, details: dict[str, Any]) -> dict[str, float]:
    """Size of the sets or width of the intervals that hold 90 % of the truth, by validation rows; coverage to details."""
    spec, valid, test = work.data.spec, first_rows(work.data.valid, 2000), work.data.test
    if language.is_language(spec):
        return {}
    with torch.no_grad():
        known = fitted.predict(valid)
    if not torch.isfinite(known).all():
        return {}
    scale = target_scale(work.data)
    found, details["conformal"] = conformal.conformal(
        known, valid.y, output, test.y, spec.task, None if scale is None else scale.numpy()
    )
    return found


def _robustness(work: Work, fitted: Predictor) -> Mapping[str, float]:
    if language.is_language(work.data.spec):
        return {}
    if work.builtin in classical.NAMES[work.data.spec.task] or work.arm.recipe.learner is not None:
        return {}  # these read more than the encoded tensor (raw text), which corruptions do not touch
    part = first_rows(work.data.test, 2000)
    return robustness.robustness(
        lambda x: fitted.predict(replace(part, x=x)),
        part.x,
        part.y,
        work.data.spec,
        corruptions(work.data.spec),
        stream(work.seed, "corruptions"),
    )


def _no_rows(part: Part) -> Part:
    return Part(part.x[:0], part.y[:0], part.rows[:0], () if part.text is not None else None)


def digest(model: nn.Module | None, output: Tensor) -> str:
    """Hash of a trained arm's test outputs and weights."""
    found = hashlib.sha256(output.contiguous().numpy().tobytes())
    for _, value in sorted((model.state_dict() if model is not None else {}).items()):
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
