"""Arena `acquire`: labels cost; who learns most from as many, asked for round after round?

Every arm of a seed starts from the same rows and the same initial weights, and every round trains the baseline network
anew (cold restart) for the baseline's steps on what is labelled. Validation rows choose nothing, since their labels would
have to be paid for: the last weights are kept. Test rows are looked at after every round, for the curve alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from probatum import catalogue, inject
from probatum.arenas.predict.fit import run_training
from probatum.arenas.select.arena import fresh_models
from probatum.errors import InputError
from probatum.measure import calibration
from probatum.measure.acquisition import ENOUGH, area, labels_to
from probatum.numerics.labels.acquisition import closeness, kappa, top
from probatum.recipe import Training
from probatum.rooms.arena import Outcome, Work
from probatum.spec import Part, Pool, Query, Spec
from probatum.train.assemble import budget_for
from probatum.train.loop import outputs
from probatum.train.rng import generator_for

BASELINE = "random sampling"
CERTAIN = "margin sampling"
EVERYTHING = "all labels"
ROUNDS = 6
LEAST = 20
"""Labels of the start where nothing is said: two a class, and no fewer than this."""

Strategy = Callable[[Pool, int], Query]


def references(spec: Spec) -> tuple[str, ...]:
    """The oldest strategy (Scheffer et al. 2001: the smallest gap between the two likeliest classes), and the upper bound."""
    return (CERTAIN, EVERYTHING)


def measures(spec: Spec) -> tuple[str, ...]:
    """Names of the measures, the primary one first."""
    return ("label-auc", "last-label-accuracy", "labels-to-95", "machine-label-errors")


def contest(
    spec: Spec, train: Part, start: int | None = None, query: int | None = None, rounds: int | None = None
) -> dict[str, Any]:
    """The rules of a study, as JSON values; what is not given is chosen by the data; see `probatum.arenas.acquire.rules`.

    Raises:
        InputError: no classes, numbers below 1, or more labels than there are rows.
    """
    if spec.task != "classes":
        raise InputError(f"arena acquire asks for class labels; the task here is {spec.task}")
    for name, value in (("start", start), ("query", query), ("rounds", rounds)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name} is {value!r}; give a whole number of at least 1")
    n = len(train)
    start = start or min(max(LEAST, 2 * spec.outputs), max(1, n // 4))
    query = query or start
    rounds = rounds or max(1, min(ROUNDS, (n - start) // query))
    if start + rounds * query > n:
        raise InputError(
            f"{start} labels and {rounds} rounds of {query} are {start + rounds * query}, but there are {n} training rows; "
            f"use fewer rounds, e.g. {max(1, (n - start) // query)}, or smaller ones"
        )
    return {"start": start, "query": query, "rounds": rounds}


def trial(work: Work) -> Outcome:
    """Ask, train, look; and once with all labels, against which labels are counted."""
    rules, spec = work.terms.contest or contest(work.data.spec, work.data.train), work.data.spec
    everything = _accuracy(_train(work, work.data.train), work.data.test)
    if work.builtin == EVERYTHING:
        n = len(work.data.train)
        found = {"label-auc": everything, "last-label-accuracy": everything, "labels-to-95": float(n)}
        return Outcome({**found, "machine-label-errors": 0.0}, {}, f"{everything:.9f}", {"labels": n})
    course = _course(work, rules)
    labels, accuracy = list(course.labels), list(course.accuracy)
    end = rules["start"] + rules["rounds"] * rules["query"]
    if labels[-1] < end:  # it stopped asking: the labels saved would not have changed anything
        labels, accuracy = [*labels, end], [*accuracy, accuracy[-1]]
    found = {
        "label-auc": area(labels, accuracy),
        "last-label-accuracy": course.accuracy[-1],
        "labels-to-95": labels_to(course.labels, course.accuracy, ENOUGH * everything, end + rules["query"]),
        "machine-label-errors": course.errors[-1],
    }
    shares = torch.bincount(work.data.train.y[course.asked], minlength=spec.outputs)
    details = {
        "curve over labels": {
            "labels": course.labels,
            "accuracy": course.accuracy,
            "ece": course.ece,
            "kappa": course.kappa,
            "machine": course.machine,
            "with all labels": everything,
        },
        "labels a class": shares.tolist(),
    }
    digest = hashlib.sha256(course.asked.numpy().tobytes() + course.last.numpy().tobytes()).hexdigest()[:16]
    return Outcome(found, {"query-seconds": course.seconds}, digest, details)


def timings(work: Work) -> dict[str, float]:
    """None: what asking takes is in the trials' query-seconds."""
    return {}


def rehearse(work: Work) -> None:
    """One round on a few rows; InputError where the strategy does not run or answers what cannot be used."""
    n = len(work.data.train)
    _course(work.on(base=_short(work)), {"start": max(2, n // 3), "query": 1, "rounds": 1})


@dataclass
class _Course:
    """Round by round: labels, accuracy and calibration error on test rows, kappa to the round before, machine labels and
    their errors; all positions asked for, the last outputs, seconds spent on choosing."""

    labels: list[int]
    accuracy: list[float]
    ece: list[float]
    kappa: list[float]
    machine: list[int]
    errors: list[float]
    asked: Tensor
    last: Tensor
    seconds: float = 0.0


def _course(work: Work, rules: Mapping[str, Any]) -> _Course:
    train, test, spec = work.data.train, work.data.test, work.data.spec
    order = torch.randperm(len(train), generator=generator_for(work.seed, "first labels"))
    asked = order[: rules["start"]]
    none = torch.zeros(0, dtype=torch.int64)
    choose, machine, guesses = _strategy(work), none, none
    clean = None if work.truth is None else work.truth.clean_train
    right = train.y if clean is None else clean  # who is asked may be wrong; errors are counted against the truth
    course = _Course([], [], [], [], [], [], asked, none)
    for number in range(rules["rounds"] + 1):
        own = ~torch.isin(machine, asked)
        machine, guesses = machine[own], guesses[own]
        rows = torch.cat([asked, machine])
        model = _train(work, _relabelled(train, rows, torch.cat([train.y[asked], guesses])))
        output = outputs(model, test.x)
        before = course.last
        course.labels.append(len(asked))
        course.accuracy.append(float((output.argmax(dim=1) == test.y).float().mean()))
        course.ece.append(calibration.calibration(output.softmax(dim=1), test.y)["ece"])
        if len(before):
            course.kappa.append(kappa(before.argmax(dim=1), output.argmax(dim=1), spec.outputs))
        course.machine.append(len(machine))
        course.errors.append(float((guesses != right[machine]).float().mean()) if len(machine) else 0.0)
        course.last, course.asked = output, asked
        if number == rules["rounds"]:
            break
        left = (rules["rounds"] - number) * rules["query"]
        pool = Pool(train.x, asked, train.y[asked], model, machine, guesses, number, left)
        count = min(rules["query"], len(pool.open()))
        if count == 0:
            break  # everything is labelled, by hand or by machine
        begun = time.perf_counter()
        answer = choose(pool, count)
        course.seconds += time.perf_counter() - begun
        _check(answer, pool, count, spec, work.arm.name)
        if not len(answer.ask):
            break
        asked = torch.cat([asked, answer.ask])
        machine, guesses = answer.machine, answer.guesses
        if work.progress is not None:
            work.progress(number + 1, rules["rounds"] + 1)
    return course


def _strategy(work: Work) -> Strategy:
    none = torch.zeros(0, dtype=torch.int64)
    own = generator_for(work.seed, "technique", work.builtin or work.arm.name)
    if work.builtin == CERTAIN:
        return lambda pool, count: Query(_closest(pool, count), none, none)
    if work.builtin:

        def at_random(pool: Pool, count: int) -> Query:
            rows = pool.open()
            return Query(rows[torch.randperm(len(rows), generator=own)[:count]], none, none)

        return at_random
    use = work.player
    offer = {
        "spec": work.data.spec,
        "num_classes": work.data.spec.outputs,
        "generator": generator_for(work.seed, "technique", use.id),
        "model_factory": fresh_models(work),
    }

    def ask(pool: Pool, count: int) -> Query:
        answer = inject.call(use.id, catalogue.entry(use.id), use.settings, offer, pool=pool, count=count)
        return answer if isinstance(answer, Query) else Query(answer, pool.machine, pool.guesses)

    return ask


def _closest(pool: Pool, count: int) -> Tensor:
    rows = pool.open()
    return rows[top(closeness(outputs(pool.model, pool.x[rows]).softmax(dim=1)), count)]


def _check(answer: Query, pool: Pool, count: int, spec: Spec, who: str) -> None:
    ask, machine, guesses = answer
    for name, value in (("ask", ask), ("machine", machine), ("guesses", guesses)):
        if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 1:
            raise InputError(f"{who}: {name} should be a tensor (k,) of int64, it is {value!r}"[:300])
    if len(ask) > count or len(ask.unique()) != len(ask):
        raise InputError(
            f"{who} asks for {len(ask)} rows, {len(ask.unique())} of them different; {count} can be asked for"
        )
    if len(machine) != len(guesses) or len(machine.unique()) != len(machine):
        raise InputError(f"{who} gives {len(guesses)} labels by machine to {len(machine.unique())} different rows")
    labelled = torch.isin(ask, pool.labelled)
    if labelled.any() or not torch.isin(ask, torch.arange(len(pool.x))).all():
        raise InputError(
            f"{who} asks for row {ask[labelled].tolist()[:1] or ask.tolist()[:1]}, which has no open label"
        )
    if len(guesses) and not (int(guesses.min()) >= 0 and int(guesses.max()) < spec.outputs):
        raise InputError(f"{who} gives labels outside 0 to {spec.outputs - 1}")
    if torch.isin(machine, pool.labelled).any():
        raise InputError(f"{who} labels rows by machine whose labels were given")


def _train(work: Work, part: Part) -> nn.Module:
    """The baseline network trained from its initial weights; steps as the recipe takes on all training rows."""
    steps = budget_for(work.base.training, len(work.data.train)).steps
    training = replace(work.base.training, select="last", batch_size=min(work.base.training.batch_size, len(part)))
    alone = work.on(base=replace(work.base, training=training)).baseline(data=replace(work.data, train=part))
    return work.engine.home(run_training(alone, steps=steps).run.model.eval())


def _short(work: Work) -> Any:
    training: Training = replace(work.base.training, steps=2, epochs=1)
    return replace(work.base, training=training)


def _relabelled(part: Part, rows: Tensor, y: Tensor) -> Part:
    text = None if part.text is None else tuple(part.text[i] for i in rows.tolist())
    return Part(part.x[rows], y, part.rows[rows], text)


def _accuracy(model: nn.Module, part: Part) -> float:
    return float((outputs(model, part.x).argmax(dim=1) == part.y).float().mean())
