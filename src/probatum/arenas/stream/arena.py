"""Arena `stream`: classes come stage after stage and never again; who knows most at the end, with so many bytes kept?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.data.lazy.memory import memory_limit, told
from probatum.errors import InputError
from probatum.measure.continual import accuracies, continual
from probatum.numerics.continual.learners import FineTune, Settings
from probatum.numerics.continual.stages import kept_bytes
from probatum.recipe import Training
from probatum.rooms.arena import Outcome, TrainingFailed, Work
from probatum.spec import Budget, Optimisation, Part, Spec, Stage
from probatum.train.assemble import budget_for, network_of
from probatum.train.loop import rate_factor
from probatum.train.rng import generator_for, seeded

BASELINE = "fine-tuning"
JOINT = "joint"
RIVALS = False
"""The reference is an upper bound: that it is ahead is no warning."""
PROTOCOLS = ("class", "task", "free")
"""Classes of all stages compete; the row's stage is told at prediction; rows come in small chunks without boundaries."""
STAGES = 5
SHARE = 0.05
"""Bytes that may be kept where nothing is said: this share of the training rows' own."""


def references(spec: Spec) -> tuple[str, ...]:
    """The upper bound: all rows so far, trained anew after every stage."""
    return (JOINT,)


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    quality = ("last-accuracy", "average-accuracy", "forgetting", "backward-transfer")
    return (*quality, "stream-memory", "parameters", "training-passes")


def contest(
    spec: Spec,
    train: Part,
    stages: int | None = None,
    base_classes: int | None = None,
    memory: float | str | None = None,
    protocol: str | None = None,
) -> dict[str, Any]:
    """The rules of a study, as JSON values; what is not given is chosen by the data.

    Args:
        spec, train: what the data are.
        stages: None = 5, or as many as divide the classes.
        base_classes: classes of the first stage; None or 0 = as many as in the others.
        memory: bytes, or words such as ``"50KB"``, that may be kept between stages; None = 5 % of the training rows'.
        protocol: class (default), task or free, see `PROTOCOLS`.

    Raises:
        InputError: no classes, classes that the stages do not cover evenly (with the splits that do), other bad values.
    """
    if spec.task != "classes":
        raise InputError(f"arena stream brings classes stage after stage; the task here is {spec.task}")
    protocol = protocol or PROTOCOLS[0]
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}; use one of {', '.join(PROTOCOLS)}")
    for name, value in (("stages", stages), ("base_classes", base_classes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InputError(f"{name} is {value!r}; give a whole number")
    count, base = _chosen(spec.outputs, stages, base_classes)
    sizes = split(spec.outputs, count, base)
    if protocol == "task" and min(sizes) < 2:
        raise InputError(f"protocol task with stages of {min(sizes)} class tells nothing; give fewer stages")
    if memory is None:
        kept = round(SHARE * kept_bytes(train.x[:1000]) * len(train) / max(1, min(1000, len(train))))
    else:
        kept = 0 if memory in (0, "0") else int(memory_limit(memory))
    return {"stages": count, "base_classes": base, "memory": kept, "protocol": protocol}


def split(classes: int, stages: int, base_classes: int = 0) -> list[int]:
    """How many classes each stage brings: `base_classes` first (0 = as many as the others), then equally many.

    Raises:
        InputError: they do not cover the classes; it names the splits that would.
    """
    later = stages - 1 if base_classes else stages
    rest = classes - base_classes
    if stages == 1 and base_classes in (0, classes):
        return [classes]
    if stages < 1 or later < 1 or rest < later or rest % later:
        even = [s for s in range(2, classes + 1) if classes % s == 0]
        ways = [f"stages {s} ({classes // s} each)" for s in even[:4]]
        if stages > 1:
            each = max(1, (classes - 1) // stages)
            first = classes - each * (stages - 1)
            if first > 0 and first != each:
                ways.append(f"stages {stages} with base classes {first} (then {each} each)")
        has = f"stages {stages}" + (f" with base classes {base_classes}" if base_classes else "")
        raise InputError(f"{has} do not cover {classes} classes evenly; use {' or '.join(ways) or 'stages 1'}")
    return [base_classes] * bool(base_classes) + [rest // later] * later


def _chosen(classes: int, stages: int | None, base: int | None) -> tuple[int, int]:
    """Stages and base classes where one or both are not given."""
    base = base or 0
    if stages is not None:
        return stages, base
    rest = classes - base
    found = [s for s in range(2, min(STAGES - bool(base), rest) + 1) if rest % s == 0]
    if base:
        return 1 + max([1, *found]), base
    if found or classes < 2:
        return max([1, *found]), 0
    count = min(STAGES, classes)
    return count, classes - (classes // count) * (count - 1)


def class_groups(work: Work) -> list[tuple[int, ...]]:
    """The classes of each stage, in an order drawn by the seed alone, so that all its arms share it."""
    rules = _rules(work)
    sizes = split(work.data.spec.outputs, rules["stages"], rules["base_classes"])
    order = torch.randperm(work.data.spec.outputs, generator=generator_for(work.seed, "class order"))
    return [tuple(sorted(group.tolist())) for group in order.split(sizes)]


def trial(work: Work) -> Outcome:
    """Show the stages one after another; look at the test rows of the classes seen after each of them."""
    rules, groups = _rules(work), class_groups(work)
    train, test = work.engine.part(work.data.train), work.engine.part(work.data.test)
    asked = [_rows_of(test.y, group) for group in groups]
    _check_rows(train, groups, [len(rows) for rows in asked])
    name, learner = _learner(work, rules["memory"])
    if rules["protocol"] == "free" and getattr(learner, "needs_stages", False):
        raise InputError(f"{work.arm.name} needs stage boundaries; try it with protocol class or task")
    training = work.arm.recipe.training
    found, most, spent, total = hashlib.sha256(), 0, 0.0, budget_for(training, len(train)).steps
    matrix: list[list[float]] = []
    stored: list[int] = []
    for stage, budget, ends in _shown(work, groups, train, training):
        with seeded(work.seed, "training", str(stage.number), work.arm.salt):
            _call(name, partial(learner.observe, stage, budget))
        spent += budget.steps * budget.batch_size
        kept = int(_call(name, learner.stored_bytes))
        most = max(most, kept)
        if kept > rules["memory"] and work.builtin != JOINT:
            raise TrainingFailed(
                f"{work.arm.name} keeps {told(kept)} after stage {len(matrix) + 1} of {len(groups)}, and the stream's memory "
                f"is {told(rules['memory'])}; allow more (stream memory), or leave it out"
            )
        for _ in range(ends):
            with seeded(work.seed, "prediction", work.arm.salt):
                mix = generator_for(work.seed, "asked order", str(len(matrix)))
                row, logits = _known(learner, name, test, asked, groups, len(matrix), rules["protocol"], mix)
            matrix.append(row)
            stored.append(kept)
            found.update(logits.contiguous().cpu().numpy().tobytes())
            if work.progress is not None:
                work.progress(min(total, math.ceil(total * len(matrix) / len(groups))), total)
    rows = [len(one) for one in asked]
    values = {**continual(matrix, rows), "stream-memory": float(most)}
    values["training-passes"] = float(getattr(learner, "passes", spent))
    if isinstance(getattr(learner, "network", None), nn.Module):
        values["parameters"] = float(sum(p.numel() for p in learner.network.parameters()))
    details = {
        "stages": {
            "classes": [list(group) for group in groups],
            "matrix": matrix,
            "accuracy": accuracies(matrix, rows),
            "stored": stored,
        }
    }
    return Outcome(values, {}, found.hexdigest()[:16], details)


def timings(work: Work) -> dict[str, float]:
    """None: a stage is a whole training, which is charged in the trials' seconds and passes."""
    return {}


def rehearse(work: Work) -> None:
    """A stream of two steps a stage; validation rows stand where test rows will."""
    steps = 2 * _rules(work)["stages"]

    def short(training: Training) -> Training:
        return replace(training, steps=steps, epochs=1)

    arm = replace(work.arm, recipe=replace(work.arm.recipe, training=short(work.arm.recipe.training)))
    base = replace(work.base, training=short(work.base.training))
    trial(replace(work, arm=arm, data=replace(work.data, test=work.data.valid), progress=None).on(base=base))


class Joint:
    """All rows so far are kept; a fresh network is trained on them, with the steps so far, when it is next asked."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.learner = settings, FineTune(settings)
        self.rows: list[Stage] = []
        self.steps = 0
        self.passes = 0.0
        self.budget: Budget | None = None

    @property
    def network(self) -> nn.Module:
        """What predicts."""
        return self.learner.network

    def observe(self, stage: Stage, budget: Budget) -> None:
        """Keep the rows."""
        self.rows.append(stage)
        self.steps += budget.steps
        self.budget = replace(budget, steps=self.steps, batch_size=self.settings.batch_size)

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits (n, classes), by a network trained on all rows so far."""
        if self.budget is not None:
            self.learner = FineTune(self.settings)
            rows, y = torch.cat([one.x for one in self.rows]), torch.cat([one.y for one in self.rows])
            classes = tuple(c for one in self.rows for c in one.classes)
            budget = replace(self.budget, batch_size=min(self.budget.batch_size, len(y)))
            self.learner.observe(Stage(self.rows[-1].number, classes, rows, y), budget)
            self.passes += self.learner.passes
            self.budget = None
        return self.learner.predict(x)

    def stored_bytes(self) -> int:
        """All rows of earlier stages."""
        return sum(kept_bytes(one.x) for one in self.rows)


def _learner(work: Work, memory: int) -> tuple[str, Any]:
    """Whose trial it is, and the learner."""
    spec, training = work.data.spec, work.arm.recipe.training
    uses = [use for use in work.recipe.uses() if use not in work.base.uses()]
    name = uses[0].id if uses and not work.builtin else work.arm.name
    optimisation = Optimisation(
        training.lr,
        training.weight_decay,
        lambda step, steps: rate_factor(step, steps, training.schedule),
        training.clip,
    )
    offer: dict[str, Any] = {
        "num_classes": spec.outputs,
        "model_factory": _fresh(work),
        "generator": generator_for(work.seed, "technique", name, work.arm.salt),
        "order": generator_for(work.seed, "order", work.arm.salt),
        "memory": memory,
        "batch_size": training.batch_size,
        "optimisation": optimisation,
    }
    if work.builtin:
        settings = Settings(**offer)
        return name, Joint(settings) if work.builtin == JOINT else FineTune(settings)
    with seeded(work.seed, "technique", name, "construction", work.arm.salt):
        return name, inject.call(name, catalogue.entry(name), uses[0].settings, {**offer, "spec": spec})


def _fresh(work: Work) -> Callable[[], nn.Module]:
    """Networks for one trial: the first has the seed's initial weights, as every arm's first has."""
    count = 0

    def build() -> nn.Module:
        nonlocal count
        count += 1
        purpose = ("initial weights",) if count == 1 else ("fresh model", str(count))
        with seeded(work.seed, *purpose, work.arm.salt):
            return work.engine.network(network_of(work.base, work.data.spec, work.factory))

    return build


def _shown(
    work: Work, groups: Sequence[tuple[int, ...]], train: Part, training: Training
) -> Iterator[tuple[Stage, Budget, int]]:
    """What is shown in turn, with its share of the steps, and how many stages of the protocol end with it."""
    n, total = len(train), budget_for(training, len(train)).steps
    pieces = [_rows_of(train.y, group) for group in groups]
    if _rules(work)["protocol"] == "free":
        draw = generator_for(work.seed, "stream order")
        rows = torch.cat([one[torch.randperm(len(one), generator=draw)] for one in pieces])
        ends = [sum(len(one) for one in pieces[: b + 1]) for b in range(len(pieces))]
        chunks = list(rows.split(training.batch_size))
    else:
        chunks, ends = pieces, []
    done, seen = 0, set[int]()
    for number, rows in enumerate(chunks):
        before, done = done, done + len(rows)
        steps = max(1, round(total * done / n) - round(total * before / n))
        place = rows.to(train.y.device)
        y = train.y[place]
        there = [int(c) for c in y.unique()]
        classes = tuple(c for c in there if c not in seen) if ends else groups[number]
        seen |= set(there)
        size = min(training.batch_size, len(rows))
        yield (
            Stage(number, classes, train.x[place], y),
            Budget(steps, size, math.ceil(len(rows) / size)),
            (sum(before < end <= done for end in ends) if ends else 1),
        )


def _known(
    learner: Any,
    name: str,
    test: Part,
    asked: Sequence[Tensor],
    groups: Sequence[tuple[int, ...]],
    stage: int,
    protocol: str,
    mix: torch.Generator,
) -> tuple[list[float], Tensor]:
    """Accuracy on the test rows of every stage so far, and the logits.

    Unless the task is told, all rows are asked for at once and mixed, so that no batch tells which stage it is of.
    """
    outputs = sum(len(group) for group in groups)
    sizes = [len(rows) for rows in asked[: stage + 1]]
    if protocol == "task":
        pieces = []
        for i in range(stage + 1):
            logits = _asked(learner, name, test, asked[i], outputs, stage, (i,))
            others = torch.ones(outputs, dtype=torch.bool, device=logits.device)
            others[list(groups[i])] = False
            pieces.append(logits.masked_fill(others, -math.inf))
        found = torch.cat(pieces)
    else:
        rows = torch.cat(list(asked[: stage + 1]))
        order = torch.randperm(len(rows), generator=mix)
        logits = _asked(learner, name, test, rows[order], outputs, stage, ())
        found = torch.empty_like(logits).index_copy(0, order.to(logits.device), logits)
    right = found.argmax(dim=1) == test.y[torch.cat(list(asked[: stage + 1])).to(test.y.device)]
    return [float(part.float().mean()) for part in right.split(sizes)], found


def _asked(
    learner: Any, name: str, test: Part, rows: Tensor, outputs: int, stage: int, task: tuple[int, ...]
) -> Tensor:
    """Logits for some test rows, checked."""
    x = test.x[rows.to(test.y.device)]
    logits = _call(name, partial(learner.predict, x, *task))
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (len(x), outputs):
        raise InputError(f"{name} gave logits of shape {shape} for {len(x)} rows; ({len(x)}, {outputs}) are needed")
    if bool(torch.isnan(logits).any()):
        raise TrainingFailed(f"{name} gave logits that are not numbers after stage {stage + 1}")
    return logits.detach()


def _call(name: str, what: Callable[[], Any]) -> Any:
    """Call a learner; what it says of bad values becomes the user's, a loss that is not finite a failed training."""
    try:
        return what()
    except FloatingPointError as problem:
        raise TrainingFailed(f"{name}: {problem}") from problem
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as problem:
        raise InputError(f"{name}: {problem}") from problem


def _rows_of(y: Tensor, classes: Sequence[int]) -> Tensor:
    return torch.isin(y.cpu(), torch.tensor(classes)).nonzero().squeeze(1)


def _check_rows(train: Part, groups: Sequence[tuple[int, ...]], test: Sequence[int]) -> None:
    have = set(train.y.unique().tolist())
    for number, group in enumerate(groups):
        if not have & set(group) or not test[number]:
            part = "training" if not have & set(group) else "test"
            raise InputError(
                f"stage {number + 1} (classes {list(group)}) has no {part} rows; give fewer stages or more rows"
            )


def _rules(work: Work) -> Mapping[str, Any]:
    return work.terms.contest or contest(work.data.spec, work.data.train)
