"""Whether seeds of a technique train as one stacked computation just as each does alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probatum.checks.odd import plain
from probatum.checks.subject import NotThisOneError, Subject, demand
from probatum.rooms.arena import ModelFactory, alone
from probatum.rooms.task import task
from probatum.slots import contract
from probatum.spec import Data, Part
from probatum.train.assemble import Assembly, assemble
from probatum.train.loop import outputs, train
from probatum.train.replica import Replica
from probatum.train.replicas import train_replicas
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.stack import CannotStackError

SEEDS = (3, 4, 5)
STEPS = 5
"""More than the four of an epoch, so that an epoch's end is met."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}


def check_seeds_stack(subject: Subject) -> None:
    """Three seeds trained as one end where each ends alone; a card that says `alone` is held to that too."""
    if not contract(subject.slot).TRAINED:
        raise NotThisOneError("it is not trained by the loop")
    if not task(subject.data().spec.task).STACKS:
        raise NotThisOneError("seeds of such a task are trained one by one")
    reason = subject.card.alone
    modalities = [name for name in subject.modalities() if name in ("table", "image")] or subject.modalities()[:1]
    problems = []
    for modality in modalities:
        gap = stacked_gap(subject, modality)
        problems += [] if gap is None else [f"{modality}: {gap}"]
    if reason:
        demand(bool(problems), f"the card says alone={reason!r}, but its seeds do stack; take it out")
    else:
        demand(not problems, f"{'; '.join(problems)}; mend it, or say in the card's `alone` why it cannot be stacked")


def stacked_gap(subject: Subject, modality: str) -> str | None:
    """What is wrong with seeds trained as one on these data; None where they equal their own runs."""
    dtype = torch.float64
    try:
        alone = _trained_alone(subject, modality, dtype)
    except RuntimeError:  # a technique with networks of its own may know float32 only
        dtype = torch.float32
        alone = _trained_alone(subject, modality, dtype)
    together = [_assembled(subject, modality, seed, dtype) for seed in SEEDS]
    replicas = [
        Replica(
            parts.run, parts.methods, generator_for(seed, "order"), derive(seed, "training"), subject.card.separable
        )
        for parts, seed in zip(together, SEEDS, strict=True)
    ]
    try:
        failed = train_replicas(replicas, schedule="cosine")
    except CannotStackError as problem:
        return str(problem)
    except Exception as problem:  # whatever a stacked batch makes of it
        return f"{type(problem).__name__}: {problem}"
    for one, other, problem, seed in zip(alone, together, failed, SEEDS, strict=True):
        if problem is not None:
            return f"seed {seed}: {problem}"
        x = one.run.valid.x
        wanted, found = outputs(one.run.model, x), outputs(other.run.model, x)
        gap, scale = float((wanted - found).abs().max()), float(wanted.abs().max())
        if not gap <= TOLERANCE[dtype] * max(scale, 1.0):
            return f"seed {seed}: outputs differ by {gap:.1e} from those of the seed alone"
        curves = [[point["train_loss"] for point in parts.run.curve] for parts in (one, other)]
        if not torch.allclose(*(torch.tensor(curve, dtype=torch.float64) for curve in curves), rtol=1e-2, atol=1e-4):
            return f"seed {seed}: the learning curve differs from that of the seed alone"
    return None


def _trained_alone(subject: Subject, modality: str, dtype: torch.dtype) -> list[Assembly]:
    found = [_assembled(subject, modality, seed, dtype) for seed in SEEDS]
    for parts, seed in zip(found, SEEDS, strict=True):
        with seeded(seed, "training"):
            train(parts.run, parts.methods, generator_for(seed, "order"), schedule="cosine")
    return found


def _assembled(subject: Subject, modality: str, seed: int, dtype: torch.dtype) -> Assembly:
    """A short run on rows of the seed's own."""
    data = subject.data(modality=modality)
    parts = (_turned(part, seed, dtype) for part in (data.train, data.valid, data.test))
    recipe = subject.recipe(steps=STEPS)
    recipe = replace(recipe, training=replace(recipe.training, clip=1.0))
    made = assemble(alone(recipe, Data(data.spec, *parts), seed, factory=_small(subject, modality)))
    made.run.model.to(dtype)
    made.run.loss.to(dtype)
    return made


def _small(subject: Subject, modality: str) -> ModelFactory | None:
    """A small network of convolutions, norms and linear layers, where the technique is no part of the network itself; stacking
    the built-in one is tried elsewhere."""
    if len(subject.data(modality=modality).spec.shape) != 3 or subject.slot in ("layer", "model"):
        return None
    return lambda spec: plain(spec.shape, spec.outputs)


def _turned(part: Part, seed: int, dtype: torch.dtype) -> Part:
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    text = None if part.text is None else tuple(part.text[i] for i in order.tolist())
    return Part(_cast(part.x[order], dtype), _cast(part.y[order], dtype), part.rows[order], text)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
