"""What every continual learner promises."""

from __future__ import annotations

import gc
import types
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum.checks.subject import MEMORY, NotThisOneError, Subject, demand, fingerprint
from probatum.numerics.continual.learners import FineTune, Settings
from probatum.spec import Budget, Data, Optimisation, Stage
from probatum.train.rng import generator_for

BUDGET = Budget(6, 16, 4)


def exercise(subject: Subject, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Its logits after two stages, and what it keeps."""
    data = subject.data()
    return streamed(subject.call(data, settings), data)


def neutral(subject: Subject, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits of plain fine-tuning, and its own at these settings."""
    data = subject.data()
    offer = {"model_factory": subject.factory(data), "order": generator_for(0, "check", "order"), "batch_size": 16}
    own = Settings(data.spec.outputs, generator=generator_for(0, "check"), optimisation=Optimisation(lr=1e-2), **offer)
    return streamed(FineTune(own), data)["logits"], exercise(subject, settings)["logits"]


def stages_of(data: Data) -> list[Stage]:
    """Two stages of toy data: all classes but the last, then the last."""
    last = data.spec.outputs - 1
    found = []
    for number, classes in enumerate((tuple(range(last)), (last,))):
        rows = torch.isin(data.train.y, torch.tensor(classes))
        found.append(Stage(number, classes, data.train.x[rows], data.train.y[rows]))
    return found


def streamed(learner: Any, data: Data) -> dict[str, Any]:
    """What a continual learner gives after two stages, and what it keeps."""
    for stage in stages_of(data):
        learner.observe(stage, BUDGET)
    return {"logits": learner.predict(data.valid.x), "bytes": int(learner.stored_bytes())}


def check_predicts_the_classes_seen(subject: Subject) -> None:
    """After every stage, in every modality: logits of the right shape, -inf just for classes not seen; inputs untouched."""
    for modality in subject.modalities():
        data = subject.data(modality=modality, task="classes")
        stages = stages_of(data)
        before = fingerprint([data.valid.x, *(value for stage in stages for value in (stage.x, stage.y))])
        learner, seen = subject.call(data), torch.zeros(data.spec.outputs, dtype=torch.bool)
        for stage in stages:
            learner.observe(stage, BUDGET)
            seen[list(stage.classes)] = True
            _check_logits(learner.predict(data.valid.x), len(data.valid), seen, f"{modality}, stage {stage.number}")
        after = fingerprint([data.valid.x, *(value for stage in stages for value in (stage.x, stage.y))])
        demand(before == after, f"{modality}: rows or classes were changed")


def check_tells_tasks_apart(subject: Subject) -> None:
    """With the stage told at prediction, the logits of its own classes are finite."""
    data = subject.data(task="classes")
    learner = _after_two(subject, data)
    for stage in stages_of(data):
        logits = learner.predict(data.valid.x[:5], stage.number)
        own = logits[:, list(stage.classes)]
        demand(
            logits.shape == (5, data.spec.outputs), f"logits of shape {tuple(logits.shape)} with task={stage.number}"
        )
        demand(bool(torch.isfinite(own).all()), f"with task={stage.number} the stage's own logits are not finite")


def check_bytes_are_counted(subject: Subject) -> None:
    """`stored_bytes` is a whole number within the memory, and covers all rows of past stages that can be reached."""
    for modality in subject.modalities():
        data = subject.data(modality=modality, task="classes")
        learner = _after_two(subject, data)
        stored = learner.stored_bytes()
        ours = {id(part.x) for part in (data.train, data.valid, data.test)}  # the factory may know the data
        demand(isinstance(stored, int) and 0 <= stored <= MEMORY, f"{modality}: stored_bytes is {stored!r}")
        held = sum(
            t.numel() * t.element_size()
            for t in reachable(learner)
            if id(t) not in ours
            and t.ndim == data.train.x.ndim
            and t.shape[1:] == data.train.x.shape[1:]
            and not isinstance(t, nn.Parameter)
        )
        demand(
            held <= stored, f"{modality}: {held} bytes of rows are held after two stages, stored_bytes says {stored}"
        )


def check_learns_more_than_nothing(subject: Subject) -> None:
    """With steps enough, rows of the first stage are told apart right after it."""
    data = subject.data(task="classes")
    first = stages_of(data)[0]
    learner = subject.call(data)
    learner.observe(first, Budget(60, 16, 4))
    right = (learner.predict(first.x).argmax(dim=1) == first.y).float().mean().item()
    demand(right > 0.6, f"accuracy {right:.2f} on the first stage's own rows, two equal classes")


def check_stands_alone_by_seed(subject: Subject) -> None:
    """A second learner of the same seeds, alive at the same time, gives the same bits."""
    data = subject.data(task="classes")
    one, other = subject.call(data), subject.call(data)
    demand(fingerprint(streamed(one, data)) == fingerprint(streamed(other, data)), "two learners of one seed differ")


def check_chunks_without_boundaries(subject: Subject) -> None:
    """A learner that does not need stages takes chunks in which no class is new."""
    data = subject.data(task="classes")
    learner = subject.call(data)
    if getattr(learner, "needs_stages", False):
        raise NotThisOneError("it needs stage boundaries")
    first = stages_of(data)[0]
    learner.observe(first, BUDGET)
    learner.observe(replace(first, number=1, classes=(), x=first.x[:7], y=first.y[:7]), BUDGET)
    seen = torch.zeros(data.spec.outputs, dtype=torch.bool)
    seen[list(first.classes)] = True
    _check_logits(learner.predict(data.valid.x), len(data.valid), seen, "after a chunk without new classes")


def check_state_resumes(subject: Subject) -> None:
    """A learner with a state dict goes on from it in a fresh object."""
    data = subject.data(task="classes")
    one, other = subject.call(data), subject.call(data)
    if not (hasattr(one, "state_dict") and hasattr(one, "load_state_dict")):
        raise NotThisOneError("it has no state dict")
    first, second = stages_of(data)
    one.observe(first, BUDGET)
    other.load_state_dict(one.state_dict())
    one.observe(second, BUDGET)
    other.observe(second, BUDGET)
    demand(
        torch.equal(one.predict(data.valid.x), other.predict(data.valid.x)), "it goes on otherwise from its state dict"
    )


def reachable(root: Any) -> list[Tensor]:
    """Tensors that can be reached from an object through the garbage collector's references, modules and classes left out."""
    found: dict[int, Tensor] = {}
    known, waiting = {id(root)}, [root]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, Tensor):
            found[id(thing)] = thing
        inner = list(gc.get_referents(thing))
        if not isinstance(thing, Tensor):
            inner += list(getattr(thing, "__dict__", {}).values())
        for one in inner:
            if id(one) in known or isinstance(one, type | types.ModuleType) or one is None:
                continue
            if isinstance(one, dict) and "__builtins__" in one:  # the globals of a function
                continue
            known.add(id(one))
            waiting.append(one)
    return list(found.values())


def _after_two(subject: Subject, data: Data) -> Any:
    """A learner after both stages; the stages themselves are gone."""
    learner = subject.call(data)
    for stage in stages_of(data):
        copy = Stage(stage.number, stage.classes, stage.x.clone(), stage.y.clone())
        learner.observe(copy, BUDGET)
    return learner


def _check_logits(logits: Any, rows: int, seen: Tensor, where: str) -> None:
    shape = tuple(getattr(logits, "shape", ()))
    demand(shape == (rows, len(seen)), f"{where}: logits of shape {shape}, ({rows}, {len(seen)}) are needed")
    demand(
        logits.is_floating_point() and not logits.requires_grad, f"{where}: logits are {logits.dtype} with gradients"
    )
    demand(bool(torch.isfinite(logits[:, seen]).all()), f"{where}: logits of seen classes are not finite")
    demand(bool((logits[:, ~seen] == -torch.inf).all()), f"{where}: classes not seen need logits of -inf")
