"""Which trials are run together, as one computation, and how."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

from probatum.arenas.predict import stacks
from probatum.arenas.predict.stacks import Choice
from probatum.bench.context import Context, Job, Progress, TimeUp, check_threads, ended, lost, quiet, run_job, told
from probatum.bench.plan import key_of
from probatum.bench.store import REMARK, Store, Trial
from probatum.rooms.arena import Outcome, TrainingFailed
from probatum.rooms.task import task
from probatum.train.stack import CannotStackError

STACK = ("auto", "always", "never")
"""Whether seeds of an arm are trained as one computation: where a probe says that it pays, wherever it can be done, never."""


Prober = Callable[[Context, list[Job]], Choice]
"""Times whether a block of seeds is to be trained as one."""


def groups(
    context: Context,
    jobs: Sequence[Job],
    store: Store,
    prober: Prober | None = None,
    planned: Sequence[Job] | None = None,
) -> Iterator[list[Job]]:
    """Cut jobs into groups, in the order in which they are to be run; every job is in one group.

    They come seed by seed, so that a study cut short is paired as far as it got, and an arm is probed when its turn comes.
    The choice for an arm is made once in a study and kept in the store, so that a resumed study, which finds whole groups
    missing, makes the same groups again and comes to the same bits. For that `planned` are all jobs of the study, those that
    have ended among them; None = these.
    """
    pending, arms = {job.key for job in jobs}, dict[str, list[Job]]()
    for job in jobs if planned is None else planned:
        arm = key_of({"recipe": job.plan["recipe"], "salt": job.arm.salt, "name": job.arm.name})
        arms.setdefault(arm, []).append(job)
    blocks = [
        (arm, members[start : start + stacks.MOST])
        for arm, members in arms.items()
        for start in range(0, len(members), stacks.MOST)
    ]
    stacked: dict[int, bool] = {}
    for seed in sorted({job.seed for job in jobs}):
        for number, (arm, block) in enumerate(blocks):
            if number not in stacked and any(job.seed == seed and job.key in pending for job in block):
                choice = _choice(context, arm, block, store, prober or probed)
                stacked[number] = choice.stack
                block[:] = [job for job in block if job.key in pending]
                if choice.stack or choice.problem:  # where the probe broke they are run one by one, and say why
                    block[:] = [replace(job, stacking=choice) for job in block]
                if choice.stack:
                    yield block
            if stacked.get(number) is False:
                yield from ([job] for job in block if job.seed == seed)


def run_group(context: Context, group: Sequence[Job], progress: Progress | None = None) -> list[Trial]:
    """Run one group and return its trials in the group's order; one after another where they cannot be stacked."""
    choice = group[0].stacking
    if choice is None or not choice.stack or len(group) < 2:
        alone = [run_job(context, job, progress) for job in group]
        return alone if choice is None or not choice.problem else _remarked(alone, choice.problem)
    start = time.perf_counter()
    outcomes = _stacked(context, group, choice, progress)
    if isinstance(outcomes, str):
        return _remarked([run_job(context, job, progress) for job in group], outcomes)
    seconds = (time.perf_counter() - start) / len(group)
    return [_trial(context, job, found, seconds, progress) for job, found in zip(group, outcomes, strict=True)]


def _remarked(trials: Sequence[Trial], why: str) -> list[Trial]:
    """Trials of seeds that were to be trained as one and were not, which is told of them."""
    return [
        replace(trial, timing={**trial.timing, REMARK: f"seeds were trained one by one: {why}"}) for trial in trials
    ]


def _why(problem: BaseException) -> str:
    words = str(problem) if isinstance(problem, CannotStackError) else f"{type(problem).__name__}: {problem}"
    return words[:300]


def _stacked(
    context: Context, group: Sequence[Job], choice: Choice, progress: Progress | None
) -> list[Outcome | Exception] | str:
    """What came of a group as one computation, in its order; or why it cannot be one, told with every trial."""
    with quiet(context.plan.threads):
        try:
            works = [context.work(job.arm, job.builtin, job.seed, progress) for job in group]
            found = stacks.trials(works, choice, context.plan.threads)
            check_threads(context.plan.threads)
            return found
        except TimeUp as problem:
            return [TrainingFailed(str(problem))] * len(group)
        except (
            Exception,
            SystemExit,
        ) as problem:  # it shows again where they are run alone; its traceback would keep all splits
            return _why(problem)


def _trial(context: Context, job: Job, found: Outcome | Exception, seconds: float, progress: Progress | None) -> Trial:
    """The trial of one seed of a stack; what went wrong in it other than in training is tried again alone."""
    if isinstance(found, TrainingFailed):
        return lost(context, job, *told(found), seconds=seconds)
    if isinstance(found, Exception):
        return run_job(context, job, progress)
    return ended(context, job, found, seconds=seconds)


def _choice(context: Context, arm: str, block: list[Job], store: Store, prober: Prober) -> Choice:
    first = block[0]
    plan = context.plan
    if context.stack == "never" or plan.arena != "predict" or len(block) < 2 or first.kind == "timing":
        return Choice(False)
    if not plan.engine.stacks:
        return Choice(False, reason=f"the engine is {plan.engine.words()}")
    classical = task(plan.data.task).references(context.data(first.seed).spec)
    reason = stacks.obstacle(first.arm.recipe, first.builtin, plan.tune, classical)
    if reason:
        return Choice(False, reason=reason)
    if context.stack == "always":
        return Choice(True, context.plan.threads)
    key, name = context.study_key(), f"stack {arm} {len(block)}"
    return store.settled(key, name, lambda: json.dumps(asdict(prober(context, block))).encode(), _read_choice)


def _read_choice(kept: bytes) -> Choice:
    """A choice out of the store; ValueError or TypeError where it is none."""
    choice = Choice(**json.loads(kept))
    if not isinstance(choice.stack, bool) or not isinstance(choice.threads, int) or choice.threads < 1:
        raise ValueError(f"{choice} is no choice")
    return choice


def probed(context: Context, block: list[Job]) -> Choice:
    """What a probe finds of these seeds of one arm, here and now."""
    with quiet(context.plan.threads):
        try:
            works = [context.work(job.arm, job.builtin, job.seed) for job in block]
            return stacks.probe(works, context.plan.threads, context.most_threads)
        except CannotStackError as problem:
            return Choice(False, reason=str(problem))
        except Exception as problem:  # it will show again when the trials are run
            return Choice(False, reason=_why(problem), problem=_why(problem))
