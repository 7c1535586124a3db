"""Making a study: read the data, choose the baseline, make the arms, rehearse them, freeze the plan; in this order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from probatum import catalogue, slots
from probatum.bench.budget import FRESH, MOST_SEEDS
from probatum.bench.cluster import check_cluster
from probatum.bench.contest import contest_of
from probatum.bench.context import Context
from probatum.bench.grouping import STACK
from probatum.bench.isolation import all_outsiders
from probatum.bench.plan import DataPlan, StudyPlan
from probatum.bench.pretrained_start import find_start
from probatum.bench.race import looks_to
from probatum.bench.rehearsing import Elsewhere, tried
from probatum.bench.speed import Measure, chosen_speed, measured
from probatum.bench.splits import Splits
from probatum.bench.statistics import FEWEST_SEEDS
from probatum.bench.store import Store
from probatum.bench.workers import AUTO, checked_workers
from probatum.data.folds import fractions_of
from probatum.data.library import embedded_names
from probatum.data.open import open_dataset
from probatum.engine import Engine, checked_engine
from probatum.errors import InputError
from probatum.measure.base import all_measures
from probatum.measure.truth import measures_of
from probatum.options import of_the_study
from probatum.recipe import Arm, Recipe, make_arm, parse_arm
from probatum.rooms import find
from probatum.rooms.arena import ModelFactory, arena, competes
from probatum.rooms.kind import takes
from probatum.rooms.task import task
from probatum.settings import FineTuning, Judging, Reading, Running, fitting
from probatum.spec import Spec, Truth
from probatum.train.adapt import MEASURES, REFERENCES
from probatum.train.devices import check_fabric
from probatum.train.own_model import own_model
from probatum.train.speed import SPEEDS

SEEDS = 8
"""Paired seeds where nothing is said."""
QUESTIONS = ("data", "datasets")
COST_AXES = ("size", "speed")
"""Axes whose measures are told beside the one that decides; only in fine-tuning what is stored may decide."""
FEWEST_TESTED = 10
"""Test rows of a seed that a smaller share than usual must leave."""


@dataclass(frozen=True)
class Wishes:
    """What a user asks of a study, beside the data.

    Attributes:
        techniques: as `probatum.study.Study` takes them, likewise all others.
    """

    techniques: Sequence[str] | None
    model: Any
    seeds: int | None
    epochs: int | None
    steps: int | None
    batch_size: int | None
    primary: str | None
    margin: float | None
    tune: int
    judging: Judging
    running: Running
    fine_tuning: FineTuning | None
    rules: Any

    def checked(self) -> Wishes:
        """The same with numbers of numpy as Python's; InputError for what cannot be used whatever the data are."""
        hints: dict[str, Any] = {
            "seeds": int | None,
            "epochs": int | None,
            "steps": int | None,
            "batch_size": int | None,
            "tune": int,
        }
        hints |= {"primary": str | None, "margin": float | None}
        wishes = replace(self, **{name: fitting(getattr(self, name), hint, name) for name, hint in hints.items()})
        if wishes.seeds is None:
            wishes = replace(wishes, seeds=SEEDS if wishes.running.minutes is None else MOST_SEEDS)
        wishes._check()
        return wishes

    def _check(self) -> None:
        if self.count < 1:
            raise InputError(f"seeds is {self.seeds!r}; give a whole number, 6 or more for verdicts")
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; give 1 or more")
        if self.margin is not None and self.margin < 0:
            raise InputError(f"margin is {self.margin}; give the smallest difference that matters, 0 or more")
        if self.primary is not None and self.primary not in all_measures():
            near = difflib.get_close_matches(self.primary, all_measures(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"measures are {', '.join(all_measures())}"
            raise InputError(f"primary is {self.primary!r}, which no measure is called; {hint}")
        if self.tune < 0:
            raise InputError(f"tune is {self.tune}; give 0 or more tuner trials")
        if self.judging.budget not in ("steps", "compute"):
            raise InputError(f"budget is {self.judging.budget!r}; use 'steps' or 'compute'")
        if not 0.5 < self.judging.confidence < 1:
            raise InputError(f"confidence is {self.judging.confidence}; it must lie between 0.5 and 1, e.g. 0.95")
        if self.judging.question not in QUESTIONS:
            raise InputError(f"for is {self.judging.question!r}; use one of {', '.join(QUESTIONS)}")
        fractions_of(self.judging.holdout)
        minutes = self.running.minutes
        if minutes is not None and minutes <= 0:
            raise InputError(f"minutes is {minutes:g}; give the time to use, above 0")
        where = self.arena  # named techniques are there, and play in one arena
        if self.raced:
            _check_race(self.count, where, "race" if minutes is None else "minutes")

    @property
    def count(self) -> int:
        """Paired seeds."""
        return SEEDS if self.seeds is None else self.seeds

    @property
    def raced(self) -> bool:
        """Whether arms may stop before the last seed."""
        return self.judging.race or self.running.minutes is not None

    @property
    def arena(self) -> str:
        """The arena that the techniques play in; InputError where they play in several."""
        if self.techniques is None:
            return slots.PREDICT
        if not self.techniques:
            raise InputError("no techniques given; name some, or give None for all that apply")
        uses = (use for text in self.techniques for use in parse_arm(text))
        found = {slots.arena_of(catalogue.place(use.id).slot): use.id for use in uses}
        if len(found) > 1:
            told = ", ".join(f"{name} plays in {where}" for where, name in found.items())
            raise InputError(f"one study holds one arena: {told}; try them in separate commands")
        return next(iter(found))


@dataclass(frozen=True)
class Baseline:
    """What the arms are compared with.

    Attributes:
        recipe: its recipe.
        factory: builds its network; None = the built-in one.
        identity: of the user's own network, "" for the built-in one.
        pretrained: where its weights come from; empty = drawn.
    """

    recipe: Recipe
    factory: ModelFactory | None = None
    identity: str = ""
    pretrained: dict[str, Any] | None = None


def checked_running(running: Running) -> tuple[Running, Engine]:
    """Where it runs, with numbers instead of words such as "all cores", and the engine; InputError where that cannot be."""
    workers = checked_workers(running.workers, running.threads)
    if running.on is not None:
        if running.workers not in (1, AUTO):
            raise InputError("give workers or on, not both: a cluster runs as many trials at once as it has room for")
        check_cluster(running.on)
    for name, value, known in (("stack", running.stack, STACK), ("speed", running.speed, SPEEDS)):
        if value not in known:
            raise InputError(f"{name} is {value!r}; use one of {', '.join(known)}")
    if running.precision == "auto" and running.speed != "auto":
        raise InputError("precision auto is chosen by the speed probe; add --speed auto, or give float32 or bf16")
    plain = "float32" if running.precision == "auto" else running.precision
    automatic = running.workers == AUTO
    side_by_side = 0 if running.on is not None else 1 if automatic else workers
    engine = checked_engine(running.device, plain, running.devices, running.strategy, workers=side_by_side)
    if running.devices > 1:
        check_fabric()
    if automatic and (running.on is not None or engine.device != "cpu" or running.devices > 1):
        workers = 1
    return replace(running, workers=workers), engine


def read(data: Any, reading: Reading) -> tuple[Any, dict[str, Any] | None]:
    """The data, and how to open them again, where a name or path says it all."""
    dataset = open_dataset(data, reading)
    if not isinstance(data, str | Path) or not isinstance(reading.split, str | None):
        return dataset, None
    if not isinstance(reading.test, str | Path | None):
        return dataset, None
    memory = dataset.memory if dataset.streamed else reading.memory
    named = isinstance(data, str) and data in embedded_names()  # such a name means the set, whatever lies here
    place = str(data) if named or not Path(data).exists() else str(Path(data).resolve())
    said = {name: getattr(reading, name) for name in reading.__dataclass_fields__}
    drop = [reading.drop] if isinstance(reading.drop, str) else list(reading.drop)
    world = None if reading.world is None else str(getattr(reading.world, "name", reading.world))
    test = None if reading.test is None else str(Path(reading.test).resolve())
    source = {"data": place, **said, "test": test, "drop": drop, "memory": memory, "world": world}
    outside = {room.name: str(room.folder) for room in find.added() if room.sort == "kind"}
    kind = dataset.kind.NAME
    return dataset, source | ({"kind": kind, "folder": outside[kind]} if kind in outside else {})


def read_again(source: dict[str, Any]) -> Any:
    """The data of which `read` gave this; InputError where they are of a kind from outside that has not joined."""
    said = {**source, "drop": tuple(source["drop"])}
    kind, folder = (said.pop(name, None) for name in ("kind", "folder"))
    if kind is not None and kind not in find.names("kind"):
        raise InputError(f"the data are of kind {kind}, which is no part of Probatum; give its folder: --kind {folder}")
    return open_dataset(said.pop("data"), Reading(**said))


def said(wishes: Wishes, engine: Engine) -> dict[str, Any]:
    """What was asked beside the data, as JSON values, and the files and folders from outside: with this a study is repeated.

    The device is the one that was found, and a network handed over in Python is left out.
    """
    running = replace(wishes.running, device=engine.device)
    return {
        "techniques": None if wishes.techniques is None else [str(text) for text in wishes.techniques],
        "model": wishes.model if isinstance(wishes.model, str) else None,
        **{name: getattr(wishes, name) for name in ("seeds", "epochs", "steps", "batch_size", "primary", "tune")},
        "margin": None if wishes.margin is None else float(wishes.margin),
        "judging": of_the_study(wishes.judging),
        "running": of_the_study(running),
        "files": _files(wishes),
        "kinds": [str(room.folder) for room in find.added() if room.sort == "kind"],
    }


def _files(wishes: Wishes) -> list[str]:
    """Files of the techniques from outside that take part."""
    if wishes.techniques is None:
        ids = catalogue.names()
    else:
        texts = [*wishes.techniques, *([wishes.model] if isinstance(wishes.model, str) else ())]
        ids = [use.id for text in texts for use in parse_arm(text)]
    places = (catalogue.place(name) for name in dict.fromkeys(ids))
    return [str(place.path) for place in places if place.module.startswith(catalogue.ADDED)]


def baseline(dataset: Any, wishes: Wishes) -> Baseline:
    """How the baseline is trained, and its network."""
    training = dataset.kind.training(dataset.task)
    given = {"epochs": wishes.epochs, "steps": wishes.steps, "batch_size": wishes.batch_size}
    training = replace(training, **{name: value for name, value in given.items() if value is not None})
    if wishes.epochs is not None:
        training = replace(training, steps=wishes.steps, least_steps=0)  # the user's word counts
    recipe, model = Recipe(training=training), wishes.model
    if model is None:
        return Baseline(recipe)
    if not isinstance(model, str):
        factory, identity = own_model(model)
        return Baseline(recipe, factory, identity)
    arm = make_arm(model, recipe)
    if arm.recipe.model is None or len(arm.recipe.uses()) != 1:
        raise InputError(f"--model {model}: give one technique of slot 'model' ({', '.join(catalogue.names('model'))})")
    reason = not_applicable(arm.recipe.model.id, dataset, pretrained=False)
    if reason:
        raise InputError(f"--model {model}: {reason}")
    return Baseline(arm.recipe)


def pretrained(
    dataset: Any,
    found: Baseline,
    wishes: Wishes,
    store: Store,
    engine: Engine,
    progress: Callable[[int, int], None] | None,
) -> tuple[Any, Baseline]:
    """Data and baseline as they are, or made to start from pretrained weights."""
    if wishes.fine_tuning is None:
        return dataset, found
    start = find_start(
        dataset,
        found.recipe,
        store,
        wishes.fine_tuning,
        factory=found.factory,
        own=found.identity,
        engine=engine,
        threads=wishes.running.threads,
        progress=progress,
    )
    return start.dataset, Baseline(found.recipe, start.factory, start.identity, start.about)


def arms(dataset: Any, base: Baseline, wishes: Wishes) -> tuple[tuple[Arm, ...], dict[str, str]]:
    """The arms that can be tried on these data, and why the others cannot; InputError where none can."""
    chosen, where, skipped = wishes.techniques, wishes.arena, {}
    if chosen is None:
        chosen = [name for name in catalogue.names() if slots.arena_of(catalogue.place(name).slot) == where]
    found: list[Arm] = []
    for text in chosen:
        arm = make_arm(text, base.recipe)
        if arm.name in (known.name for known in found):
            raise InputError(f"{arm.name} is given twice")
        reasons = _reasons(arm, dataset, base)
        if reasons:
            skipped[arm.name] = "; ".join(reasons)
        elif arm.recipe.uses() == base.recipe.uses():
            skipped[arm.name] = "it is the baseline here"
        else:
            found.append(arm)
    if not found:
        detail = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise InputError(f"no technique applies to {dataset.name}: {detail}")
    return tuple(found), skipped


def _reasons(arm: Arm, dataset: Any, base: Baseline) -> list[str]:
    """Why an arm cannot be tried on these data, by the cards of its techniques."""
    tuned = bool(base.pretrained)
    found = (not_applicable(use.id, dataset, pretrained=tuned) for use in arm.recipe.uses())
    reasons = [reason for reason in found if reason]
    if tuned and arm.recipe.model is not None and arm.recipe.model != base.recipe.model:
        reasons.append(f"{arm.recipe.model.id} is not the network that was pretrained; try it with --model")
    return reasons


def not_applicable(name: str, dataset: Any, *, pretrained: bool) -> str | None:
    """Why a technique cannot be tried on these data, by its card; None where it can."""
    card = catalogue.card(name)
    why = takes(card, dataset.modality, dataset.task)
    if why:
        return f"{name} {why}"
    if "pretrained" in card.needs and not pretrained:
        return f"{name} adapts a pretrained network; give data to pretrain on by --pretrain, or weights by --pretrained"
    return None


def fractions(dataset: Any, judging: Judging) -> tuple[float, float, float]:
    """Shares of train, valid and test.

    Raises:
        InputError: a share of test rows is asked for where they are given, or one that leaves too few of them.
    """
    holdout = judging.holdout
    if holdout != Judging.holdout:
        by_time = getattr(getattr(dataset, "plan", None), "moment", None) is not None
        if dataset.fixed_split and not by_time:
            raise InputError(
                f"holdout is {holdout:g}, but the test rows of {dataset.name} are given; leave holdout out"
            )
        if holdout * dataset.n < FEWEST_TESTED and holdout < Judging.holdout:
            raise InputError(
                f"holdout is {holdout:g}: {holdout * dataset.n:.1f} of {dataset.n} {dataset.kind.UNIT} would be tested; "
                f"give at least {min(ceil(1000 * FEWEST_TESTED / dataset.n) / 1000, Judging.holdout):g}"
            )
    return fractions_of(holdout)


def frozen(dataset: Any, splits: Splits, base: Baseline, wishes: Wishes, engine: Engine) -> StudyPlan:
    """The plan, before any arm was rehearsed."""
    where, first = wishes.arena, splits.data(0)
    if wishes.judging.question == "datasets" and dataset.fixed_split:
        raise InputError("given test rows tell nothing of other data sets; leave out --for datasets, or the split")
    contest = contest_of(where, wishes.rules, first, tune=wishes.tune, budget=wishes.judging.budget)
    primary = _primary(wishes.primary, _measures(where, first.spec, first.truth, base))
    margins = {} if wishes.margin is None else {primary: _checked_margin(wishes.margin, primary)}
    select = task(dataset.task).selection(primary, all_measures()[primary].axis)
    base = replace(base, recipe=replace(base.recipe, training=replace(base.recipe.training, select=select)))
    found, skipped = arms(dataset, base, wishes)
    seeds, judging, minutes = wishes.count, wishes.judging, wishes.running.minutes
    fresh = seeds if minutes is None else min(seeds, FRESH)
    beside = () if wishes.running.apart else tuple(map(catalogue.digest, all_outsiders(base.recipe, found)))
    return StudyPlan(
        arena=where,
        data=_data_plan(dataset, first.truth, splits),
        base=base.recipe,
        arms=found,
        references=_references(where, first.spec, base) if judging.references else (),
        seeds=tuple(range(seeds)),
        primary=primary,
        skipped=skipped,
        confirm=tuple(range(1000, 1000 + fresh)) if judging.confirm and competes(where) else (),
        equal_compute=judging.budget == "compute",
        tune=wishes.tune,
        swap=judging.swap
        and where == slots.PREDICT
        and not dataset.fixed_split
        and splits.units(0, "valid") is not None,
        margins=margins,
        confidence=judging.confidence,
        question=judging.question,
        model=base.identity,
        threads=wishes.running.threads,
        race=looks_to(seeds) if wishes.raced else (),
        minutes=minutes or 0.0,
        engine=engine,
        pretrained=base.pretrained or {},
        contest=contest,
        beside=beside,
    )


def rehearsed(context: Context, *, auto: bool, elsewhere: Elsewhere | None = None) -> StudyPlan:
    """The plan with the arms that can be trained here, each tried on a few rows (`elsewhere` if it is from outside).

    Raises:
        InputError: the baseline cannot; or an arm that the user named (`auto` says that none was).
    """
    plan = context.plan
    tried(context, None, elsewhere)
    kept, skipped = [], dict(plan.skipped)
    for arm in plan.arms:
        try:
            tried(context, arm, elsewhere)
        except InputError as problem:
            if not auto:
                raise
            skipped[arm.name] = str(problem)
        else:
            kept.append(arm)
    return replace(plan, arms=tuple(kept), skipped=skipped)


def at_speed(
    context: Context,
    running: Running,
    store: Store,
    *,
    auto: bool,
    elsewhere: Elsewhere | None = None,
    measure: Measure = measured,
) -> Context:
    """The context with the speed settings that pay, where they are to be probed; arms that cannot take them are told of."""
    if running.speed != "auto":
        return context
    plan = chosen_speed(context, store, bf16=running.precision == "auto", measure=measure)
    changed = plan.engine != context.plan.engine
    context = replace(context, plan=plan)
    if not changed:
        return context
    stack = running.stack if plan.engine.stacks else "never"
    return replace(context, plan=rehearsed(context, auto=auto, elsewhere=elsewhere), stack=stack)


def _measures(where: str, spec: Spec, truth: Truth | None, base: Baseline) -> tuple[str, ...]:
    """Names of all measures that can decide."""
    found = arena(where).measures(spec)
    if where != slots.PREDICT:
        return found
    return (*found, *(MEASURES if base.pretrained else ()), *measures_of(truth, spec.task))


def _references(where: str, spec: Spec, base: Baseline) -> tuple[str, ...]:
    tuned = REFERENCES if base.pretrained and where == slots.PREDICT else ()
    return (*tuned, *arena(where).references(spec))


def _data_plan(dataset: Any, truth: Truth | None, splits: Splits) -> DataPlan:
    return DataPlan(
        dataset.name,
        dataset.fingerprint,
        dataset.modality,
        dataset.task,
        dataset.target,
        dataset.n,
        splits.fractions,
        dataset.fixed_split,
        "" if truth is None else truth.world,
        "given" if dataset.fixed_split else "folds" if splits.folds else "random",
        dataset.grouped,
    )


def _check_race(seeds: int, where: str, asked: str) -> None:
    if not competes(where):
        raise InputError(
            f"what plays in arena {where} measures and does not compete, so that there is no race; leave {asked} out"
        )
    if seeds <= FEWEST_SEEDS:
        raise InputError(f"a race needs more than {FEWEST_SEEDS} seeds, seeds is {seeds}; give the most you would run")


def _primary(primary: str | None, names: Sequence[str]) -> str:
    if primary is None:
        return names[0]
    able = [name for name in names if name in MEASURES or all_measures()[name].axis not in COST_AXES]
    if primary in able:
        return primary
    if primary in names:
        raise InputError(
            f"primary is {primary!r}, a cost, which is told beside and decides nothing; what can decide here are "
            f"{', '.join(able)}"
        )
    raise InputError(f"primary is {primary!r}; the measures here are {', '.join(able)}")


def _checked_margin(margin: float, primary: str) -> float:
    if not margin >= 0:
        raise InputError(f"margin is {margin}; give the smallest difference in {primary} that matters, 0 or more")
    return float(margin)
