"""A budget of time: which trials are begun, and in which order, so that a study tells most whenever its time is up.

It is a race over seeds (`probatum.bench.race`) whose stages are cut by the clock. Rounds bring arms to 1 and 2 seeds, which
say what a trial costs, then to the first look of the race; none goes further while another can be brought there. A first
trial whose first steps foretell that it takes far longer than the baseline's is put off: with what it told, its arm comes
after those that tell more per second. An arm whose way to the first look does not fit in the time that is
left is passed over, and in the rounds no block of seeds is begun that would not end in time, so that arms stop at looks.
Where no arm can come so far, what time there is goes into pairs of trials of the most promising one, and every run begins
at least one more of them, so that the same command always comes further. References wait until some arm has a verdict.
Whatever came of the results so far, p-values and intervals of a race hold at whichever look one stops; which look that is
may hang on the clock or on anything else.

What is run next depends on the trials that are there, their times, and the clock: a study that goes on is one that has
some trials already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import fsum

from probatum.bench.context import Job
from probatum.bench.costs import Costs
from probatum.bench.execute import Bench
from probatum.bench.plan import StudyPlan
from probatum.bench.race_run import goes_on
from probatum.bench.records import PUT_OFF
from probatum.bench.results import Results, winner_of
from probatum.bench.store import Trial
from probatum.bench.time_words import clock_words
from probatum.bench.verdict import Verdict
from probatum.recipe import Arm
from probatum.rooms.arena import arena

PILOT = 2
"""Seeds after which it is told what a trial of each arm costs."""
MOST_SEEDS = 24
"""Seeds that an arm runs at most where nothing else is said."""
KEPT = 0.2
"""Share of the time that is kept, at most, to confirm a winner."""
NAMED = 8
"""Arms that are named where it is told for whom there is no time."""
DEAR = 4
"""An arm's first trial is put off if it would take longer than so many of the baseline's, and than the arm's share of the time."""
FRESH = 8
"""Fresh seeds of a confirmation: a number fixed beforehand, since nobody corrects for looking at them twice."""


@dataclass(frozen=True)
class Found:
    """What the time was enough for: trials that count, timings, and the winner's confirmation, () where it is not complete."""

    trials: tuple[Trial, ...]
    timings: tuple[Trial, ...]
    confirmation: tuple[Trial, ...]


def order_of(arms: Iterable[str], points: Mapping[str, float]) -> tuple[str, ...]:
    """Arms in the order of promise, the most promising first; equals as they come, and those without points as if 0.

    Args:
        arms: their names, several techniques joined by " + ".
        points: promise of each technique.
    """

    def promise(arm: str) -> float:
        return sum(points.get(part.partition("(")[0].strip(), 0.0) for part in arm.split(" + "))

    return tuple(sorted(arms, key=lambda arm: -round(promise(arm), 9)))


def whole(plan: StudyPlan, trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that count: of each arm those up to the last look that it and the baseline have completed.

    Before the first look they are there for their means alone. References are no part of the race and keep all.
    """
    held = {(trial.arm, trial.seed): trial for trial in trials}
    baseline, arms = arena(plan.arena).BASELINE, {arm.name for arm in plan.arms}
    base = _in_a_row(plan, held, baseline)
    ends = {name: _look(plan, min(base, _in_a_row(plan, held, name))) for name in arms}
    ends[baseline] = max(ends.values(), default=0) if any(ends.values()) else base
    place = {seed: i for i, seed in enumerate(plan.seeds)}
    return in_order(
        plan,
        (t for (name, seed), t in held.items() if name not in ends or place.get(seed, len(place)) < ends[name]),
    )


def in_order(plan: StudyPlan, trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Trials in the plan's order, whichever ended first: seed by seed the baseline, the arms, the references."""
    names = (arena(plan.arena).BASELINE, *(arm.name for arm in plan.arms), *plan.references)
    arms, seeds = ({one: i for i, one in enumerate(some)} for some in (names, (*plan.seeds, *plan.confirm)))
    return tuple(sorted(trials, key=lambda t: (seeds.get(t.seed, len(seeds)), arms.get(t.arm, len(arms)))))


def confirmation(plan: StudyPlan, trials: Iterable[Trial], winner: str | None) -> tuple[Trial, ...]:
    """The winner's and the baseline's trials on the fresh seeds, if all of them are there; else ()."""
    names = (arena(plan.arena).BASELINE, winner)
    found = in_order(plan, (trial for trial in trials if trial.arm in names))
    return found if winner is not None and plan.confirm and len(found) == 2 * len(plan.confirm) else ()


def _in_a_row(plan: StudyPlan, held: Mapping[tuple[str, int], Trial], name: str) -> int:
    return next((i for i, seed in enumerate(plan.seeds) if (name, seed) not in held), len(plan.seeds))


def _look(plan: StudyPlan, seeds: int) -> int:
    return max((look for look in plan.race if look <= seeds), default=seeds)


@dataclass
class Budget:
    """The trials so far and the clock, and with them what is begun next.

    Attributes:
        bench: runs trials; its plan is a race.
        order: names of the arms, the most promising first.
        end: when the time is up, by the clock.
        kept: seconds of it that are kept for a confirmation.
        clock: seconds that pass.
        slots: trials that run at once.
        trials: of the screen, by arm and seed.
        fresh: of confirmations.
        costs: seconds of fits, and of timings under "timing of ARM".
    """

    bench: Bench
    order: tuple[str, ...]
    end: float
    kept: float = 0.0
    clock: Callable[[], float] = time.monotonic
    slots: int = 1
    trials: dict[tuple[str, int], Trial] = field(default_factory=dict)
    fresh: dict[tuple[str, int], Trial] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    keeping: bool = True
    _further: bool = False
    _must: bool = False
    _flying: dict[str, tuple[float, float]] = field(default_factory=dict)
    _jobs: dict[tuple[str, int], Job] = field(default_factory=dict)
    _judged: tuple[int, list[str]] = (-1, [])

    def __post_init__(self) -> None:
        plan = self.plan
        first = plan.seeds[: plan.race[0]]
        jobs = self.bench.jobs(first, plan.arms, with_references=True)
        jobs += self.bench.jobs(plan.seeds[len(first) :], plan.arms, with_references=False)
        self._jobs = {(job.arm.name, job.seed): job for job in jobs}
        self.costs = Costs(self.baseline)
        self.trials |= self._held(self._jobs)

    @property
    def plan(self) -> StudyPlan:
        """The study."""
        return self.bench.plan

    @property
    def baseline(self) -> str:
        """Name of the baseline's arm."""
        return arena(self.plan.arena).BASELINE

    @property
    def until(self) -> float:
        """When the screen must end."""
        return self.end - (self.held_back() if self.keeping else 0.0)

    def held_back(self) -> float:
        """Seconds kept for a confirmation: what it would take for the dearest arm, at most what was set aside."""
        if not self.plan.confirm or not self.costs.knows(self.baseline):
            return self.kept if self.plan.confirm else 0.0
        dearest = max(map(self.costs.of, self.order), default=0.0)
        rounds = -(-2 * len(self.plan.confirm) // self.slots)  # as many, one after another
        return min(self.kept, rounds * max(dearest, self.costs.of(self.baseline)))

    def screen(self, *, tell: bool = False) -> None:
        """Run rounds until none is left or the time is up; `tell` what trials cost and how far the time will reach."""
        for target in (1, PILOT):
            self._play(target)
        if tell:
            self.bench.listener.said(self.reach_words())
        self._play(self.plan.race[0])
        self._first_look()
        if any(self.seeds(name) >= self.plan.race[0] for name in self.order):
            self._run([self._block(name, self.plan.race[0]) for name in self.plan.references], self.trials)
        index = 0
        while index + 1 < len(self.plan.race) and self.clock() < self.until:
            index = self._next(index)
            self._play(self.plan.race[index])
            self._first_look()

    def _first_look(self) -> None:
        """Rounds to the first look, as long as they bring somebody further: of an arm decided, time is left for others."""
        before = -1
        while before != len(self.trials) and self.clock() < self.until:
            before = len(self.trials)
            for target in (1, PILOT, self.plan.race[0]):
                self._play(target)

    def _next(self, index: int) -> int:
        """The next look; a later one where there is room for all its trials at once, which take no longer."""
        index, looks = index + 1, self.plan.race
        while index + 1 < len(looks) and 0 < self._count(looks[index + 1]) <= self.slots:
            index += 1
        return index

    def _count(self, target: int) -> int:
        """Trials that would bring every living arm that has come to the first look to this number of seeds."""
        names = [name for name in self.living() if self.plan.race[0] <= self.seeds(name) < target]
        return sum(len(self._block(name, target)) for name in (self.baseline, *names)) if names else 0

    def confirm(self, *, complete: bool) -> None:
        """Try the winner on fresh seeds, `complete`: only if the time is enough for all of them."""
        winner = self.winner()
        if winner is None or not self.plan.confirm:
            return
        jobs = self.bench.jobs(self.plan.confirm, (self._arm(winner),), with_references=False)
        by_name = {(job.arm.name, job.seed): job for job in jobs}
        self.fresh |= self._held(by_name)
        lacking = [job for key, job in by_name.items() if key not in self.fresh]
        self.keeping = False
        if lacking and not (complete and fsum(self.costs.of(job.arm.name) for job in lacking) > self.room()):
            self.bench.listener.said(f"confirming {winner} on {len(self.plan.confirm)} fresh seeds")
            pairs = [[job for job in lacking if job.seed == seed] for seed in self.plan.confirm]
            self._run(pairs, self.fresh)

    def ahead(self) -> None:
        """Use what time is left, too little for any arm's next look, for trials that count when the same command goes on.

        One arm after another, in pairs with the baseline. Where no arm came further by a trial, one always does by a pair.
        """
        for target in self.plan.race:
            names = self.ranking(target)
            known = [name for name in names if self.costs.knows(name)]  # the end is no time for surprises
            self._run(self._pairs_to(target, known or names), self.trials)
        names = next(filter(None, map(self.ranking, self.plan.race)), [])
        if names and not self._further:
            self._must, name = True, next(filter(self.costs.knows, names), names[0])
            self._run(self._pairs_to(self._paired(name) + 1, [name]), self.trials)
            self._must = False

    def _pairs_to(self, target: int, names: Sequence[str]) -> Iterator[list[Job]]:
        """Blocks that bring one arm after another to a number of seeds, none of them further than the baseline comes."""
        for name in names:
            for seeds in sorted({min(PILOT, target), target}):
                yield self._lacking(self.baseline, seeds)
                yield self._held_to(name, self._lacking(name, seeds - len(self._lacking(self.baseline, seeds))))

    def _paired(self, name: str) -> int:
        """Seeds, from the first on, that the arm and the baseline both have."""
        both = ((name, seed) in self.trials and (self.baseline, seed) in self.trials for seed in self.plan.seeds)
        return sum(1 for _ in takewhile(bool, both))

    def timings(self) -> tuple[Trial, ...]:
        """Measure speed as long as the time lasts, arms that help first; nothing else runs beside it."""
        helping = {v.arm for v in self.standing() if v.word == "helps"}
        names = sorted(self.order, key=lambda name: name not in helping)
        known: dict[tuple[str, int], Trial] = {}
        self.keeping = False
        for name in names:
            jobs = self.bench.timing_jobs(self.plan.seeds[: self.plan.race[0]], (self._arm(name),))
            by_name = {(job.arm.name, job.seed): job for job in jobs}
            known |= self._held(by_name)
            lacking = [job for key, job in by_name.items() if key not in known]
            self._run([[job] for job in lacking], known, here=True)
        return in_order(self.plan, known.values())

    def counted(self) -> tuple[Trial, ...]:
        """The trials that count."""
        return whole(self.plan, self.trials.values())

    def standing(self) -> list[Verdict]:
        """Verdicts on the primary measure as they are now."""
        return Results(self.plan, self.counted(), (), (), {}).standing()

    def winner(self) -> str | None:
        """The arm with the largest gain among those that help so far."""
        return winner_of(self.standing(), self.plan.primary, self.order)

    def seeds(self, name: str) -> int:
        """How many seeds an arm has completed, from the first on."""
        return _in_a_row(self.plan, self.trials, name)

    def living(self) -> list[str]:
        """Arms that more seeds may decide, the most promising first."""
        if self._judged[0] != len(self.trials):
            self._judged = (len(self.trials), self._living())
        return self._judged[1]

    def _living(self) -> list[str]:
        plan, trials = self.plan, self.counted()
        standing = {}
        if any(trial.arm in self.order for trial in trials):
            standing = {v.arm: v for v in self.standing()}
        found = []
        for name in self.order:
            done = sum(trial.arm == name for trial in trials)
            if done >= len(plan.seeds) or (done >= PILOT and self._lost(name)):
                continue
            if done < plan.race[0]:
                found.append(name)
                continue
            index = plan.race.index(done)
            before = self._pairs(name, plan.race[index - 1] if index else 0)
            if name in standing and goes_on(plan, index, standing[name], before):
                found.append(name)
        return found

    def _lost(self, name: str) -> bool:
        """Whether every trial of the arm went wrong."""
        return all(trial.status != "ok" for (arm, _), trial in self.trials.items() if arm == name)

    def _pairs(self, name: str, seeds: int) -> int:
        """Pairs among the first seeds in which neither the arm nor the baseline went wrong."""
        both = [[self.trials.get((who, seed)) for who in (self.baseline, name)] for seed in self.plan.seeds[:seeds]]
        return sum(all(trial is not None and trial.status == "ok" for trial in pair) for pair in both)

    def room(self) -> float:
        """Seconds of work that can be begun still: of all slots, less what is running."""
        now = self.clock()
        running = fsum(max(0.0, begun + cost - now) for begun, cost in self._flying.values())
        return self.slots * max(0.0, self.until - now) - running

    def need(self, name: str, target: int) -> float:
        """Seconds of work until an arm has so many seeds, beside what is running."""
        return len(self._lacking(name, target)) * self.costs.of(name)

    def within(self, names: Sequence[str], target: int) -> list[str]:
        """Those of the arms, the first of them first, that can come to so many seeds, the baseline too."""
        left, found = self.room() - self.need(self.baseline, target), []
        for name in names:
            need = self.need(name, target)
            if need <= left:
                found.append(name)
                left -= need
        return found if left >= 0 else []

    def ranking(self, target: int) -> list[str]:
        """Living arms that lack seeds, by promise per second; in the first round, those without a trial by promise, last.

        Beyond the first look those that have come to it.
        """
        first = self.plan.race[0]
        goal, least = max(target, first), first if target > first else 0
        lacking = [name for name in self.living() if least <= self.seeds(name) < goal]
        worth = {name: (len(self.order) - place) for place, name in enumerate(self.order)}
        known = lacking if target > 1 else [name for name in lacking if self.costs.knows(name)]
        by_time = sorted(known, key=lambda name: -worth[name] / max(self.costs.of(name), 1e-9))
        return by_time + [name for name in lacking if name not in by_time]

    def _play(self, target: int) -> None:
        """A round: the arms that can be brought to this number of seeds, the baseline first."""
        self._run(self._round(target), self.trials)

    def _round(self, target: int) -> Iterator[list[Job]]:
        """Blocks of a round, each chosen when somebody is free for it."""
        names, goal = self.ranking(target), max(target, self.plan.race[0])
        players = [name for name in names if self._block(name, target)]
        if not set(players) & set(self.within(names, goal)) and self.trials:
            return
        yield self._block(self.baseline, target)
        for name in players:
            if name in self.within(names, goal):
                yield self._block(name, target)

    def _lacking(self, name: str, target: int) -> list[Job]:
        """Jobs that an arm lacks up to a number of seeds."""
        keys = [(name, seed) for seed in self.plan.seeds[:target]]
        return [self._jobs[k] for k in keys if k not in self.trials and self._jobs[k].key not in self._flying]

    def _block(self, name: str, target: int) -> list[Job]:
        """Those of them that can be begun; the first alone, up to its allowance, where nothing tells yet what it takes."""
        jobs = self._held_to(name, self._lacking(name, target))
        return jobs[:1] if name in self.order and not self.costs.knows(name) else jobs

    def _held_to(self, name: str, jobs: Sequence[Job]) -> list[Job]:
        """Jobs up to their allowance, where nothing tells yet what they take and nothing must be begun."""
        if self._must or name == self.baseline or self.costs.knows(name):
            return list(jobs)
        return [replace(job, allowance=self.allowance(name)) for job in jobs]

    def allowance(self, name: str) -> float:
        """Seconds of a trial up to which one of whom nothing is known comes in its turn; never more than are left."""
        first, time_left = self.plan.race[0], max(0.0, self.until - self.clock())
        if name not in self.order:  # nobody waits for what a reference leaves
            return time_left
        waiting = sum(self.seeds(one) < first for one in self.living())
        share = self.slots * time_left / (first * max(1, waiting))
        usual = self.costs.of(self.baseline) if self.costs.knows(self.baseline) else share  # which is under way
        return min(max(DEAR * usual, share), time_left)

    def _run(self, blocks: Iterable[list[Job]], known: dict[tuple[str, int], Trial], *, here: bool = False) -> None:
        """Run blocks as long as each of their groups would end in time."""
        told = (block for block in blocks if block)
        for job, trial in self.bench.run_within(
            self._announced(told), self._admits, self.bench.alone() if here else None
        ):
            self._flying.pop(job.key, None)
            if trial.status != PUT_OFF:
                known[job.arm.name, job.seed] = trial
                self._further |= job.arm.name in self.order
            self.costs.add(account(job), float(trial.timing.get("seconds", 0.0)))

    def _announced(self, blocks: Iterable[list[Job]]) -> Iterator[list[Job]]:
        """Blocks of which something would end in time; of the others nobody asks how their seeds are best trained."""
        for block in blocks:
            if self._in_time(min(map(self._cost, block))):
                self.bench.listener.planned(block, 0)
                yield block

    def _in_time(self, cost: float) -> bool:
        """Whether what begins now would end in time; the first trial of all is always begun, and what must be."""
        now, first = self.clock(), not (self.trials or self._flying)
        return first or self._must or (now < self.until and now + cost <= self.until)

    def _admits(self, group: Sequence[Job]) -> bool:
        """Whether a group would end in time if it began now; if so it is begun."""
        if not self._in_time(fsum(self._cost(job) for job in group)):
            return False
        now = self.clock()
        for job in group:
            self._flying[job.key] = (now, self._cost(job))
        return True

    def _cost(self, job: Job) -> float:
        """Seconds of a job; of an arm's first trial at most its allowance, of its first timing its and the baseline's."""
        known = account(job)
        if job.kind != "timing" and not self.costs.knows(known):
            return min(self.costs.most(), job.allowance)
        if job.kind == "timing" and not self.costs.knows(known):
            return self.costs.of(job.arm.name) + self.costs.of(self.baseline)
        return self.costs.of(known)

    def _held(self, jobs: Mapping[tuple[str, int], Job]) -> dict[tuple[str, int], Trial]:
        """What the store holds of these jobs; it is told, and teaches what trials cost."""
        held = {k: t for k, job in jobs.items() if (t := self.bench.store.get(job.key)) is not None}
        known = [jobs[k] for k in held]
        if known:
            self.bench.listener.planned(known, len(known))
        for k, trial in held.items():
            self.bench.listener.ended(jobs[k], trial)
            self.costs.add(account(jobs[k]), float(trial.timing.get("seconds", 0.0)))
        return held

    def _arm(self, name: str) -> Arm:
        return next(arm for arm in self.plan.arms if arm.name == name)

    def reach_words(self) -> str:
        """What a trial of each arm costs, and how far the time will reach, in two or three sentences."""
        known = [name for name in self.order if self.costs.knows(name)]
        costs = ", ".join(f"{name} {self.costs.of(name):.2g}" for name in (self.baseline, *known))
        first = self.plan.race[0]
        open_arms = self.ranking(first)
        reached = self.within(open_arms, first)
        missed = [name for name in open_arms if name not in reached]
        work = fsum(self.need(name, first) for name in (self.baseline, *reached)) / self.slots
        left = max(0.0, self.until - self.clock())
        told = f"seconds of a trial: {costs}. "
        if open_arms and not reached:
            work = fsum(self.need(name, first) for name in (self.baseline, open_arms[0])) / self.slots
            return (
                f"{told}No arm comes to {first} seeds in the {clock_words(left)} left: {open_arms[0]} with the baseline "
                f"would take about {clock_words(work)}. The time goes into their trials, which count in the next run."
            )
        come = f"{len(reached)} arm{' comes' if len(reached) == 1 else 's come'}"
        told += f"{come} to {first} seeds in about {clock_words(work)}; {clock_words(left)} are left"
        if not missed:
            return f"{told} for these and further seeds."
        more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
        return f"{told}. No time: {', '.join(missed[:NAMED])}{more}."


def run_budget(bench: Bench, order: tuple[str, ...], *, begun: float, timing: bool) -> Found:
    """Use the plan's minutes, from `begun` by `time.monotonic`, as well as it can be."""
    seconds = 60 * bench.plan.minutes
    slots = bench.executor.slots(bench.context)
    return spend(Budget(bench, order, begun + seconds, KEPT * seconds, slots=slots), timing=timing)


def spend(budget: Budget, *, timing: bool) -> Found:
    """The screen; its winner on fresh seeds, for which time was kept; with what that leaves the screen again; timings.

    Time in which nothing more can be shown goes into trials for the next time.
    """
    budget.screen(tell=True)
    budget.confirm(complete=True)
    budget.keeping = False
    budget.screen()
    budget.confirm(complete=False)
    budget.ahead()
    timings = budget.timings() if timing else ()
    return Found(budget.counted(), timings, confirmation(budget.plan, budget.fresh.values(), budget.winner()))


def account(job: Job) -> str:
    """Under which name a job's seconds are counted."""
    return f"timing of {job.arm.name}" if job.kind == "timing" else job.arm.name
