"""Many seeds of one arm of arena `predict` trained as one stacked computation, and whether that pays here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probatum import catalogue
from probatum.arenas.predict.arena import measured
from probatum.arenas.predict.fit import assembled, predictor, steps_for
from probatum.arenas.predict.swap import swap_of
from probatum.arenas.predict.swapped import swapped
from probatum.numerics.tensors.draws import random_state_kept
from probatum.recipe import Recipe
from probatum.rooms.arena import Outcome, Work
from probatum.train.assemble import Assembly, budget_for
from probatum.train.loop import Single, detach
from probatum.train.replica import Replica
from probatum.train.replicas import Stacked, train_replicas
from probatum.train.rng import derive, generator_for, seeded
from probatum.train.second_choice import SecondChoice
from probatum.train.stack import CannotStackError

MOST = 16
"""Seeds in one stack."""

ROOM = 2**31
"""Bytes of data that the seeds of a stack may take together."""

WORTH = 200
"""Steps of a training below which nothing is probed."""

GAIN = 1.1
"""How much faster a stack must be in the probe to be taken."""

BUSY = 1.25
"""How much faster more threads must be than one to be taken: they suffer most where other programs run beside."""


@dataclass(frozen=True)
class Choice:
    """How an arm's seeds are trained on this machine.

    Attributes:
        stack: whether as one computation.
        threads: torch threads for it.
        pace: seconds that one stacked step took in the probe.
        ratio: time one after another over time stacked; NaN where it was not measured.
        reason: why not stacked, "" where it is.
        problem: what went wrong where it should have been possible; "" = nothing did.
    """

    stack: bool
    threads: int = 1
    pace: float = float("nan")
    ratio: float = float("nan")
    reason: str = ""
    problem: str = ""


def obstacle(recipe: Recipe, builtin: str, tune: int, classical: Sequence[str]) -> str:
    """Why seeds of this arm cannot be stacked, as far as its recipe says; "" where nothing stands against it.

    `classical` are the built-in arms that are no networks.
    """
    if builtin in classical:
        return "it is not trained by gradient steps"
    if recipe.learner is not None:
        return f"{recipe.learner.id} is not trained by the loop"
    if tune:
        return "every seed is tuned apart"
    for use in recipe.uses():
        reason = catalogue.card(use.id).alone
        if reason:
            return f"{use.id}: {reason}"
    return ""


def trials(works: Sequence[Work], choice: Choice, threads: int) -> list[Outcome | Exception]:
    """Train all at once, then measure one after another; what went wrong on one seed stands in its place.

    Args:
        works: seeds of one arm.
        choice: what the probe found.
        threads: torch threads of trials that are run alone.

    Raises:
        CannotStackError: they cannot be trained as one.
    """
    start = time.perf_counter()
    recipe, training = works[0].arm.recipe, works[0].arm.recipe.training
    assemblies = [assembled(work, recipe, steps_for(work, recipe)) for work in works]
    swaps, networks = [swap_of(work) for work in works], [parts.run.model for parts in assemblies]
    second = None
    if not any(swap.reason for swap in swaps):
        second = SecondChoice([work.engine.part(work.data.test) for work in works])
    torch.set_num_threads(choice.threads)
    try:
        failed = train_replicas(
            _replicas(works, assemblies),
            schedule=training.schedule,
            select=training.select,
            progress=works[0].progress,
            threads=threads,
            pace=choice.pace,
            second=second,
        )
    finally:
        torch.set_num_threads(threads)
    seconds = (time.perf_counter() - start) / len(works)
    if second is not None:
        for k, (swap, parts, network) in enumerate(zip(swaps, assemblies, networks, strict=True)):
            swap.trained(parts.run, network, second, k)
    found: list[Outcome | Exception] = []
    for work, parts, swap, problem in zip(works, assemblies, swaps, failed, strict=True):
        if problem is not None:
            found.append(problem)
            continue
        try:
            begun = time.perf_counter()
            fitted = predictor(work, recipe, parts)
            outcome = measured(work, fitted, seconds + time.perf_counter() - begun)
        except Exception as wrong:
            found.append(wrong)
        else:
            outcome = swapped(work, fitted, swap, outcome)
            outcome.timing |= {"stacked": float(len(works)), "stacked-gain": choice.ratio}
            found.append(outcome)
    return found


def probe(works: Sequence[Work], threads: int, most_threads: int, steps: int = 2, rounds: int = 2) -> Choice:
    """Time a few steps one after another and stacked, in turns, and choose; costs about ten steps of every seed.

    Args:
        works: the seeds that would be stacked.
        threads: torch threads of trials that are run alone.
        most_threads: threads that a stack may have, if that many cores are idle.
        steps: steps that are timed at once; fewer for short trainings.
        rounds: times that this is done, besides the first.
    """
    recipe = works[0].arm.recipe
    few = [replace(work, progress=None) for work in works]
    if _bytes(works) > ROOM:
        return Choice(False, threads, reason=f"the data of {len(works)} seeds take more than {ROOM >> 20} MiB")
    first = budget_for(recipe.training, len(works[0].data.train)).steps
    if first < WORTH:
        return Choice(False, threads, reason=f"{first} steps are too few to be worth a probe")
    steps = min(steps, first // WORTH)  # a probe takes less than a twentieth of what it is for
    candidates = [threads, most_threads] if most_threads > threads and _idle(most_threads) else [threads]
    prepared: list[Assembly] = []
    try:
        with random_state_kept():
            for _ in range(2 * len(few)):  # compute-equal budgets would cost more than the probe and change no step
                prepared.append(assembled(few[len(prepared) % len(few)], recipe))
            session = Stacked(_replicas(few, prepared[: len(few)]))
            alone = [_single(work, parts) for work, parts in zip(few, prepared[len(few) :], strict=True)]
            stacked, single = _stacked_stepper(session, steps), _single_stepper(few, alone, steps)
            best = dict.fromkeys((0, *candidates), float("inf"))
            for count in range(rounds + 1):  # the first round warms up
                for name in best:
                    torch.set_num_threads(name or threads)
                    spent = (stacked if name else single)()
                    if count:
                        best[name] = min(best[name], spent)
            session.check()
    except CannotStackError as problem:
        return Choice(False, threads, reason=str(problem))
    finally:
        torch.set_num_threads(threads)
        for parts in prepared:
            detach(parts.methods)
    chosen = threads
    if best[candidates[-1]] * BUSY < best[threads]:
        chosen = candidates[-1]
    ratio = best[0] / best[chosen]
    if ratio < GAIN:
        return Choice(False, threads, best[chosen] / steps, ratio, "one after another is as fast here")
    return Choice(True, chosen, best[chosen] / steps, ratio)


def _replicas(works: Sequence[Work], assemblies: Sequence[Assembly]) -> list[Replica]:
    loss = works[0].arm.recipe.loss
    separable = loss is not None and catalogue.card(loss.id).separable
    return [
        Replica(
            parts.run,
            parts.methods,
            generator_for(work.seed, "order", work.arm.salt),
            derive(work.seed, "training", work.arm.salt),
            separable,
        )
        for work, parts in zip(works, assemblies, strict=True)
    ]


def _single(work: Work, parts: Assembly) -> Single:
    with seeded(work.seed, "training", work.arm.salt):
        return Single(parts.run, parts.methods, generator_for(work.seed, "order"))


def _stacked_stepper(session: Stacked, steps: int) -> Callable[[], float]:
    index: list[Tensor] = []

    def run() -> float:
        while len(index) < steps:
            index.extend(session.epoch())
        start = time.perf_counter()
        for _ in range(steps):
            session.step(index.pop(0), 1e-3, each=False)
        _wait(session.runs[0].train.y)
        return time.perf_counter() - start

    return run


def _single_stepper(works: Sequence[Work], sessions: Sequence[Single], steps: int) -> Callable[[], float]:
    """The plain loop's steps over every seed in turn."""
    index: list[list[Tensor]] = [[] for _ in sessions]

    def run() -> float:
        spent = 0.0
        for work, session, left in zip(works, sessions, index, strict=True):
            with seeded(work.seed, "training", work.arm.salt):
                while len(left) < steps:
                    left.extend(session.epoch())
                _wait(session.run.train.y)
                start = time.perf_counter()
                for _ in range(steps):
                    session.step(left.pop(0), 1e-3)
                _wait(session.run.train.y)
                spent += time.perf_counter() - start
        return spent

    return run


def _wait(where: Tensor) -> None:
    """Until an accelerator has done what it was given."""
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)


def _idle(cores: int) -> bool:
    """Whether this many cores are there and nothing else keeps them busy."""
    try:
        return cores <= (os.cpu_count() or 1) and os.getloadavg()[0] < cores - 0.5
    except OSError:
        return False


def _bytes(works: Sequence[Work]) -> int:
    total = 0
    for work in works:
        x = work.data.train.x
        if not isinstance(x, Tensor):
            return ROOM + 1
        total += x.numel() * x.element_size()
    return total
