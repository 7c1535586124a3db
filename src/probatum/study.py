"""A study from Python: what to try on which data, then run, verdicts, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from probatum import catalogue
from probatum.bench.cluster import Cluster, check_cluster
from probatum.bench.contest import contest_of
from probatum.bench.execute import Bench, Executor, Here, Listener, Silent
from probatum.bench.grouping import STACK
from probatum.bench.plan import DataPlan, StudyPlan, key_of
from probatum.bench.pretrained_start import find_start
from probatum.bench.race import looks_to
from probatum.bench.race_run import race_through
from probatum.bench.results import Results, winner_of
from probatum.bench.speed import chosen_speed
from probatum.bench.statistics import FEWEST_SEEDS
from probatum.bench.store import Store
from probatum.bench.verdict import Verdict
from probatum.bench.workers import Workers, checked_workers
from probatum.card import ARENAS
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.measure.base import all_measures
from probatum.measure.truth import measures_of
from probatum.recipe import Arm, Recipe, make_arm
from probatum.rooms.arena import arena
from probatum.rules import Rules
from probatum.train.adapt import MEASURES, REFERENCES
from probatum.train.baselines import training_for
from probatum.train.devices import check_fabric, check_shared
from probatum.train.engine import checked_engine
from probatum.train.own_model import own_model
from probatum.train.speed import SPEEDS

if TYPE_CHECKING:
    import polars

FRACTIONS = (0.6, 0.2, 0.2)
LOWER_IS_FINE = {"log-loss": "log-loss", "brier": "log-loss"}


class Study:
    """Baseline and techniques at equal budget over paired seeds on your data.

    Args:
        data: a dataset's name, a path (text files are for language modelling), a DataFrame, ``(X, y)`` arrays or tensors,
            a `Dataset` or a `Corpus`.
        techniques: ids, with settings and joined by ``+`` if wanted: ``["tabm", "selu-snn+gradient-noise(eta=0.3)"]``;
            None = every technique of the predict arena that applies to the data.
        target: column to predict; task, modality, group, time, split, drop: see `open_dataset`.
        model: the baseline network: an `nn.Module`, a function that builds one, or the id of a model in the catalogue.
        pretrain: fine-tuning: other data, as for `data`, on which the baseline network is trained first, once for all seeds;
            every arm then starts from it, with a new last layer.
        pretrain_steps: updates of that training; None = the modality's usual number, at most 3,000.
        pretrained: fine-tuning from weights: a state dict, a module, or a file by `torch.save` or of safetensors.
        progress: called as (step, steps) while it is pretrained.
        rules: of the arena's contest, where it has any: `probatum.rules.StreamRules` (continual learning) or
            `probatum.rules.AcquireRules` (active learning); None = chosen by the data.
        seeds: paired seeds, 6 or more for a verdict.
        epochs, steps, batch_size: the budget of every arm; None = the modality's default.
        budget: ``"steps"`` (equal gradient steps) or ``"compute"`` (equal arithmetic).
        tune: tuner trials for every arm, the baseline too.
        world: a world of known truth that every split is put into, e.g. ``"label-noise:0.4"``; see `probatum.worlds.in_world`.
        primary: the measure that decides; None = accuracy for classes, rmse for reals, bits-per-character for language.
        margin: region of practical equivalence of the primary measure.
        confirm: try the winner again on as many fresh seeds.
        timing: measure speed, interleaved, after the fits.
        references: show classical predictors beside the baseline.
        store: SQLite file (or database URL) in which trials are kept; None = in memory.
        confidence: of every interval.
        memory: bytes, or words such as ``"2GB"``, that the data may take; larger Parquet files and image folders are
            streamed from disk; None = PROBATUM_MEMORY, or a quarter of what is free.
        stack: train seeds of an arm as one computation: ``"auto"`` where a probe says that it pays, ``"always"`` wherever
            it can be done, ``"never"``. Answers are the same to float tolerance.
        race: stop arms as soon as they are decided or hopeless; `seeds` is then the most that an arm can run.
        threads: torch threads in every trial.
        workers: processes that run trials side by side, each with its own `threads`; 0 = as many as the cores hold.
            Timings are taken alone, in this process.
        on: ``"ray://host:port"`` or ``"ray"``: run the trials on a Ray cluster, or on this machine's.

        device: where networks are trained: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for what is there.
        speed: ``"auto"`` times channels-last images and `torch.compile` on the baseline and uses what pays, in every trial.
        precision: ``"float32"``; ``"bf16"``: training passes in bfloat16, which changes results; ``"auto"``, together with
            ``speed="auto"``: where that pays.
        tokens, vocabulary, length: language modelling: ``"char"`` or ``"bpe"``, byte pairs' ids, tokens of a window.
        devices: how many devices train one network; needs ``pip install probatum[cluster]`` above 1.
        strategy: ``"ddp"`` (copies of the network) or ``"fsdp"`` (its pieces) over several devices.

    Raises:
        InputError: anything above that cannot be used.

    Example:
        >>> study = Study("iris", ["encouraging-loss"], seeds=6, epochs=2, timing=False)
        >>> len(study.run().trials) > 12
        True
    """

    def __init__(
        self,
        data: Any,
        techniques: Sequence[str] | None = None,
        *,
        target: str | None = None,
        task: str = "auto",
        modality: str = "auto",
        group: str | None = None,
        time: str | None = None,
        split: Any = None,
        drop: Sequence[str] = (),
        model: nn.Module | Callable[..., nn.Module] | str | None = None,
        pretrain: Any = None,
        pretrain_steps: int | None = None,
        pretrained: Any = None,
        progress: Callable[[int, int], None] | None = None,
        seeds: int = 8,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        budget: str = "steps",
        tune: int = 0,
        primary: str | None = None,
        margin: float | None = None,
        confirm: bool = True,
        timing: bool = True,
        references: bool = True,
        store: str | Path | None = None,
        confidence: float = 0.95,
        threads: int = 1,
        workers: int = 1,
        on: str | None = None,
        stack: str = "auto",
        race: bool = False,
        memory: float | str | None = None,
        device: str = "cpu",
        speed: str = "plain",
        precision: str = "float32",
        devices: int = 1,
        strategy: str = "ddp",
        tokens: str | None = None,
        vocabulary: int | None = None,
        length: int | None = None,
        world: str | None = None,
        rules: Rules | None = None,
    ) -> None:
        if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
            raise InputError(f"seeds is {seeds!r}; give a whole number, 6 or more for verdicts")
        if budget not in ("steps", "compute"):
            raise InputError(f"budget is {budget!r}; use 'steps' or 'compute'")
        if tune < 0:
            raise InputError(f"tune is {tune}; give 0 or more tuner trials")
        if not 0.5 < confidence < 1:
            raise InputError(f"confidence is {confidence}; it must lie between 0.5 and 1, e.g. 0.95")
        self.workers, self.on = checked_workers(workers, threads), on
        if on is not None:
            if workers != 1:
                raise InputError(
                    "give workers or on, not both: a cluster runs as many trials at once as it has room for"
                )
            check_cluster(on)
        if stack not in STACK:
            raise InputError(f"stack is {stack!r}; use one of {', '.join(STACK)}")
        if speed not in SPEEDS:
            raise InputError(f"speed is {speed!r}; use one of {', '.join(SPEEDS)}")
        if precision == "auto" and speed != "auto":
            raise InputError("precision auto is chosen by the speed probe; add --speed auto, or give float32 or bf16")
        plain = "float32" if precision == "auto" else precision
        engine = checked_engine(device, plain, devices, strategy, workers=self.workers if on is None else 0)
        if devices > 1:
            check_fabric()
        self.timing, self.stack = timing, stack if engine.stacks else "never"
        chosen = None if techniques is None else list(techniques)
        where = _arena_of(chosen)
        if race:
            _check_race(seeds, where)
        self.store = Store(":memory:" if store is None else store)
        self.dataset = open_dataset(
            data,
            target=target,
            task=task,
            modality=modality,
            group=group,
            time=time,
            split=split,
            drop=tuple(drop),
            memory=memory,
            tokens=tokens,
            vocabulary=vocabulary,
            length=length,
            world=world,
        )
        told: dict[str, Any] = {"target": target, "modality": modality, "group": group, "time": time, "task": task}
        told |= {"tokens": tokens, "vocabulary": vocabulary, "length": length, "world": world}
        self._source = _source(
            data, **told, split=split, drop=drop, memory=self.dataset.memory if self.dataset.streamed else memory
        )
        self._factory, identity, base = self._baseline(model, epochs, steps, batch_size)
        about: dict[str, Any] = {}
        if any(given is not None for given in (pretrain, pretrain_steps, pretrained)):
            start = find_start(
                *(self.dataset, base, self.store),
                source=pretrain,
                weights=pretrained,
                steps=pretrain_steps,
                factory=self._factory,
                own=identity,
                engine=engine,
                threads=threads,
                progress=progress,
            )
            self.dataset, self._factory, identity, about = start.dataset, start.factory, start.identity, start.about
        first = self.dataset.prepare(0, fractions=FRACTIONS)
        place = arena(where)
        contest = contest_of(where, rules, first, tune=tune, budget=budget)
        names = (*place.measures(first.spec), *(MEASURES if about and where == "predict" else ()))
        names += measures_of(first.truth, self.dataset.task) if where == "predict" else ()
        primary = _checked_primary(primary, names)
        base = replace(base, training=replace(base.training, select=_selection(primary, self.dataset.task)))
        margins = {} if margin is None else {primary: _checked_margin(margin, primary)}
        arms, skipped = self._arms(chosen, base, where, pretrained=bool(about))
        beside = place.references(first.spec) if references else ()
        if about and references and where == "predict":
            beside = (*REFERENCES, *beside)
        self.plan = StudyPlan(
            arena=where,
            data=DataPlan(
                self.dataset.name,
                self.dataset.fingerprint,
                self.dataset.modality,
                self.dataset.task,
                self.dataset.target,
                self.dataset.n,
                FRACTIONS,
                self.dataset.fixed_split,
                "" if first.truth is None else first.truth.world,
            ),
            base=base,
            arms=arms,
            references=beside,
            seeds=tuple(range(seeds)),
            primary=primary,
            skipped=skipped,
            confirm=tuple(range(1000, 1000 + seeds)) if confirm and where != "probe" else (),
            equal_compute=budget == "compute",
            tune=tune,
            margins=margins,
            confidence=confidence,
            model=identity,
            threads=threads,
            race=looks_to(seeds) if race else (),
            engine=engine,
            pretrained=about,
            contest=contest,
        )
        self.plan = self._rehearsed(self.plan, auto=chosen is None)
        if speed == "auto":
            self.plan = chosen_speed(self.plan, first, self._factory, self.store, bf16=precision == "auto")
            if self.plan.engine != engine:  # arms that cannot be trained with these settings are told of now
                self.plan = self._rehearsed(self.plan, auto=chosen is None)
                self.stack = stack if self.plan.engine.stacks else "never"
        self._results: Results | None = None

    def run(self, listener: Listener | None = None) -> Results:
        """Run what the store lacks; safe to interrupt and to call again."""
        with closing(self.executor()) as executor:
            return self._run(self.bench(listener, executor))

    def _run(self, bench: Bench) -> Results:
        plan = self.plan
        first = plan.race[0] if plan.race else len(plan.seeds)  # a race takes what is context at its first look only
        jobs = bench.jobs(plan.seeds[:first], plan.arms, with_references=True)
        jobs += bench.jobs(plan.seeds[first:], plan.arms, with_references=False)
        timing_jobs = bench.timing_jobs(plan.seeds[:first], plan.arms) if self.timing else []
        confirm_jobs = bench.jobs(plan.confirm, plan.arms, with_references=False)
        keys = {"fit": jobs, "timing": timing_jobs, "confirm": confirm_jobs}
        self.store.put_study(
            key_of(plan.describe()),
            {
                "plan": plan.describe(),
                "summary": self.summary(),
                "keys": {kind: [job.key for job in group] for kind, group in keys.items()},
            },
        )
        if plan.race:
            fits = race_through(
                plan, lambda seeds, arms, refs: bench.run(bench.jobs(seeds, arms, with_references=refs))
            )
            timings = tuple(bench.run(timing_jobs))
        else:
            trials = bench.run([*jobs, *timing_jobs])
            fits, timings = tuple(trials[: len(jobs)]), tuple(trials[len(jobs) :])
        results = Results(plan, fits, timings, (), self.summary())
        winner = winner_of(results.verdicts(), plan.primary, [arm.name for arm in plan.arms])
        if winner is not None and plan.confirm:
            arm = next(arm for arm in plan.arms if arm.name == winner)
            confirmation = bench.run(bench.jobs(plan.confirm, (arm,), with_references=False))
            results = replace(results, confirmation=tuple(confirmation))
        self._results = results
        return results

    def summary(self) -> dict[str, Any]:
        """The dataset's summary, and where it was read from if that can be repeated."""
        return {**self.dataset.summary(), "source": self._source}

    def bench(self, listener: Listener | None = None, executor: Executor | None = None) -> Bench:
        """The plan, data and store as something that runs trials."""
        where = (self.plan, self.dataset, self.store, self._factory)
        return Bench(*where, listener or Silent(), executor or Here(), self.stack)

    def executor(self) -> Executor:
        """Who runs the trials, by `workers` and `on`; to be closed after use."""
        if self.on is not None:
            return Cluster(self.on)
        return Workers(self.workers) if self.workers > 1 else Here()

    @property
    def results(self) -> Results:
        """What `run` found (it is run now if it was not)."""
        return self._results if self._results is not None else self.run()

    def verdicts(self) -> list[Verdict]:
        """One verdict per arm and measure."""
        return self.results.verdicts()

    def frame(self) -> polars.DataFrame:
        """Every measured number: one row per arm, seed and measure."""
        import polars

        return polars.DataFrame(self.results.rows())

    def report(self, path: str | Path) -> Path:
        """Write the stand-alone HTML report and return its path."""
        from probatum.report.write import write_report

        return write_report(self.results, Path(path))

    def ship(self, arm: str, folder: str | Path) -> Path:
        """Train one arm for keeps and write it, its pipeline and its evidence; see `probatum.ship`."""
        from probatum.ship.write import ship

        return ship(self.bench(), self.results, arm, Path(folder))

    def _repr_html_(self) -> str:
        from probatum.report.table import verdict_table_html

        return verdict_table_html(self.results)

    def _baseline(
        self, model: Any, epochs: int | None, steps: int | None, batch_size: int | None
    ) -> tuple[Any, str, Recipe]:
        training = training_for(self.dataset.modality, self.dataset.task)
        given: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size}
        training = replace(training, **{name: value for name, value in given.items() if value is not None})
        if epochs is not None:
            training = replace(training, steps=steps, least_steps=0)  # the user's word counts
        recipe = Recipe(training=training)
        if model is None:
            return None, "", recipe
        if isinstance(model, str):
            arm = make_arm(model, recipe)
            if arm.recipe.model is None or len(arm.recipe.uses()) != 1:
                raise InputError(
                    f"--model {model}: give one technique of slot 'model' ({', '.join(catalogue.names('model'))})"
                )
            reason = not_applicable(arm.recipe.model.id, self.dataset, pretrained=False)
            if reason:
                raise InputError(f"--model {model}: {reason}")
            return None, "", arm.recipe
        factory, identity = own_model(model)
        return factory, identity, recipe

    def _arms(
        self, chosen: Sequence[str] | None, base: Recipe, where: str, *, pretrained: bool
    ) -> tuple[tuple[Arm, ...], dict[str, str]]:
        skipped: dict[str, str] = {}
        if chosen is None:
            chosen = [name for name in catalogue.names() if ARENAS[catalogue.place(name).slot] == where]
        arms: list[Arm] = []
        for text in chosen:
            arm = make_arm(text, base)
            if arm.name in (known.name for known in arms):
                raise InputError(f"{arm.name} is given twice")
            found = (not_applicable(use.id, self.dataset, pretrained=pretrained) for use in arm.recipe.uses())
            reasons = [reason for reason in found if reason]
            if pretrained and arm.recipe.model is not None and arm.recipe.model != base.model:
                reasons.append(f"{arm.recipe.model.id} is not the network that was pretrained; try it with --model")
            if reasons:
                skipped[arm.name] = "; ".join(reasons)
            elif arm.recipe.uses() == base.uses():
                skipped[arm.name] = "it is the baseline here"
            else:
                arms.append(arm)
        if not arms:
            detail = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"no technique applies to {self.dataset.name}: {detail}")
        return tuple(arms), skipped

    def _rehearsed(self, plan: StudyPlan, *, auto: bool) -> StudyPlan:
        """Try every arm for one step on a few rows, so that what cannot work is said before the long work starts."""
        from probatum.arenas.lazy_rows import check_reads
        from probatum.bench.rehearse import rehearse

        quick = replace(plan.engine, devices=1, compile=False)  # processes and compilers take longer than a step
        bench = Bench(replace(plan, engine=quick), self.dataset, self.store, self._factory)
        rules = arena(plan.arena)
        first = bench.work(Arm(rules.BASELINE, plan.base), rules.BASELINE, 0)
        rehearse(first)
        check_reads(first, plan.arena)
        check_shared("the baseline", plan.base, plan.engine)
        kept, skipped = [], dict(plan.skipped)
        for arm in plan.arms:
            try:
                rehearse(bench.work(arm, "", 0))
                check_reads(bench.work(arm, "", 0), plan.arena)
                check_shared(arm.name, arm.recipe, plan.engine)
            except InputError as problem:
                if not auto:
                    raise
                skipped[arm.name] = str(problem)
            else:
                kept.append(arm)
        return replace(plan, arms=tuple(kept), skipped=skipped)


def not_applicable(name: str, dataset: Any, *, pretrained: bool) -> str | None:
    """Why a technique cannot be tried on these data, by its card; None where it can."""
    card = catalogue.card(name)
    if dataset.modality not in card.modalities:
        return f"{name} takes {', '.join(card.modalities)}; these data are {dataset.modality}"
    if dataset.task not in card.tasks:
        return f"{name} needs task {' or '.join(card.tasks)}; the task here is {dataset.task}"
    if "pretrained" in card.needs and not pretrained:
        return f"{name} adapts a pretrained network; give data to pretrain on by --pretrain, or weights by --pretrained"
    return None


def _source(data: Any, **options: Any) -> dict[str, Any] | None:
    """How to open the data again, where a name or path says it all; None for data handed over in memory."""
    if not isinstance(data, str | Path) or not isinstance(options["split"], str | None):
        return None
    found = str(Path(data).resolve()) if Path(data).exists() else str(data)
    return {"data": found, **options, "drop": list(options["drop"])}


def _arena_of(chosen: Sequence[str] | None) -> str:
    if chosen is None:
        return "predict"
    from probatum.recipe import parse_arm

    if not chosen:
        raise InputError("no techniques given; name some, or give None for all that apply")
    found = {ARENAS[catalogue.place(use.id).slot]: use.id for text in chosen for use in parse_arm(text)}
    if len(found) > 1:
        told = ", ".join(f"{name} plays in {where}" for where, name in found.items())
        raise InputError(f"one study holds one arena: {told}; try them in separate commands")
    return next(iter(found))


def _check_race(seeds: int, where: str) -> None:
    if where == "probe":
        raise InputError("probes measure and do not compete, so that there is no race; leave race out")
    if seeds <= FEWEST_SEEDS:
        raise InputError(f"a race needs more than {FEWEST_SEEDS} seeds, seeds is {seeds}; give the most you would run")


def _checked_primary(primary: str | None, names: Sequence[str]) -> str:
    if primary is None:
        return names[0]
    if primary not in names:
        raise InputError(f"primary is {primary!r}; the measures here are {', '.join(names)}")
    return primary


def _checked_margin(margin: float, primary: str) -> float:
    if not margin >= 0:
        raise InputError(f"margin is {margin}; give the smallest difference in {primary} that matters, 0 or more")
    return float(margin)


def _selection(primary: str, task: str) -> str:
    if task == "reals":
        return "rmse"
    if task == "next-token":
        return "log-loss"
    return "log-loss" if all_measures()[primary].axis == "calibration" or primary in LOWER_IS_FINE else "accuracy"
