"""Seeds of an arm run as one computation on the bench: same answers, same bits after a kill, silent when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loosely import study_of
from probatum.arenas.predict import stacks
from probatum.arenas.predict.stacks import Choice
from probatum.bench import grouping
from probatum.bench.context import Job
from probatum.bench.store import Store, Trial
from probatum.errors import InputError
from probatum.report.table import remarks
from probatum.report.write import render
from probatum.settings import Judging, Running
from probatum.study import Study

ARMS = ["encouraging-loss", "gradient-noise", "tabm(k=2, width=8, depth=1)", "h-calibration(window=20)"]


def study(stack: str, store: Any = None, **options: Any) -> Study:
    return study_of(
        "iris",
        ARMS,
        seeds=6,
        epochs=3,
        store=store,
        **options,
        judging=Judging(confirm=False),
        running=Running(timing=False, stack=stack),
    )


def stacked(trial: Trial) -> float:
    return trial.timing.get("measures", {}).get("stacked", 1.0)


def test_stacked_and_single_trials_say_the_same() -> None:
    one, other = study("never").run(), study("always").run()
    assert [(t.arm, t.seed, t.status) for t in one.trials] == [(t.arm, t.seed, t.status) for t in other.trials]
    for mine, theirs in zip(one.trials, other.trials, strict=True):
        assert mine.status == "ok" or mine.record == theirs.record
        for name, value in mine.record.get("measures", {}).items():
            assert theirs.record["measures"][name] == pytest.approx(value, rel=1e-3, abs=1e-3), (mine.arm, name)
    assert [(v.arm, v.measure, v.word) for v in one.verdicts()] == [
        (v.arm, v.measure, v.word) for v in other.verdicts()
    ]
    assert {stacked(t) for t in one.trials} == {1.0}
    sizes = {t.arm: stacked(t) for t in other.trials}
    assert (
        sizes["baseline"]
        == sizes["encouraging-loss"]
        == sizes["gradient-noise"]
        == sizes["h-calibration(window=20)"]
        == 6
    )
    assert sizes["tabm(k=2, width=8, depth=1)"] == 1  # its card says that it cannot be stacked
    assert sizes["logistic regression"] == 1


def test_what_does_nothing_is_bit_identical_to_the_baseline_when_both_are_stacked() -> None:
    found = Study(
        "iris", ["gradient-noise(eta=0.0)"], seeds=6, epochs=3, running=Running(timing=False, stack="always")
    ).run()
    digests = {(t.arm, t.seed): t.record["digest"] for t in found.trials}
    assert all(digests["baseline", seed] == digests["gradient-noise(eta=0.0)", seed] for seed in range(6))


def test_a_resumed_study_forms_the_same_groups_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    whole = study("always", tmp_path / "a.sqlite").run()
    broken = study("always", tmp_path / "b.sqlite")
    seen: list[str] = []

    class StopError(Exception):
        pass

    class Stops:
        def planned(self, jobs: list[Job], done: int) -> None: ...

        def started(self, job: Job) -> None: ...

        def stepped(self, step: int, steps: int) -> None: ...

        def ended(self, job: Job, trial: Trial) -> None:
            seen.append(trial.arm)
            if len(seen) == 9:
                raise StopError

    with pytest.raises(StopError):
        broken.run(Stops())
    again = study("always", tmp_path / "b.sqlite").run()
    assert [t.record for t in again.trials] == [t.record for t in whole.trials]


def test_the_choice_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choose(works: Any, threads: int, most_threads: int) -> Choice:
        asked.append(len(works))
        return Choice(len(asked) % 2 == 1, 1, 0.01, 2.0)

    monkeypatch.setattr(stacks, "probe", choose)
    with Store(tmp_path / "s.sqlite") as store:
        one = study("auto", tmp_path / "s.sqlite")
        bench = one.bench()
        jobs = bench.jobs(one.plan.seeds, one.plan.arms, with_references=False)
        first = list(grouping.groups(bench.context, jobs, store))
        probes = len(asked)
        assert list(grouping.groups(bench.context, jobs, store)) == first
        assert len(asked) == probes == 4
        assert sorted(len(group) for group in first) == [1] * 18 + [6, 6]
        assert all(json.loads(json.dumps(vars(g[0].stacking)))["stack"] for g in first if len(g) > 1)


def test_what_is_left_of_a_study_goes_by_what_all_of_it_was_found_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe would say otherwise the second time, as it may on a busy machine."""
    answers = iter([False, False, True, True, True, True])

    def choose(works: Any, threads: int, most_threads: int) -> Choice:
        return Choice(next(answers), 1, 0.01, 2.0)

    monkeypatch.setattr(stacks, "probe", choose)
    one = study("auto", tmp_path / "s.sqlite")
    bench = one.bench()
    jobs = bench.jobs(one.plan.seeds, one.plan.arms[:1], with_references=False)
    whole = [[job.key for job in group] for group in grouping.groups(bench.context, jobs, one.store)]
    left = [job for job in jobs if job.seed >= 2]
    rest = [[job.key for job in group] for group in bench.groups(left, jobs)]
    assert rest == [group for group in whole if group[0] in {job.key for job in left}]
    assert {len(group) for group in rest} == {1}


def test_arms_are_cut_into_blocks_of_seeds() -> None:
    found = Study(
        "iris",
        ["gradient-noise"],
        seeds=20,
        epochs=1,
        judging=Judging(references=False),
        running=Running(timing=False, stack="always"),
    )
    bench = found.bench()
    jobs = bench.jobs(found.plan.seeds, found.plan.arms, with_references=False)
    sizes = [len(group) for group in grouping.groups(bench.context, jobs, found.store)]
    assert sizes == [16, 16, 4, 4]


def test_short_trainings_are_not_probed() -> None:
    assert {stacked(t) for t in study("auto").run().trials} == {1.0}


def test_the_probe_stacks_small_networks_and_not_streamed_or_single_ones() -> None:
    plan = Study("iris", ["gradient-noise"], seeds=6, steps=200, running=Running(timing=False))
    works = [plan.context.work(plan.plan.arms[0], "", seed) for seed in range(6)]
    choice = stacks.probe(works, 1, 1)
    assert choice.ratio > 0
    assert choice.stack == (choice.ratio >= stacks.GAIN)
    assert choice.pace > 0


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(InputError, match="stack is 'sometimes'; use one of auto, always, never"):
        study("sometimes")


def test_a_trial_that_fails_in_a_group_is_told_of_the_right_seed() -> None:
    """Learning rates that make the loss overflow fail alone and stacked with the same reason."""
    reasons = []
    for stack in ("never", "always"):
        found = Study(
            "iris",
            ["gradient-noise(eta=1e38)"],
            seeds=6,
            epochs=3,
            judging=Judging(references=False),
            running=Running(timing=False, stack=stack),
        )
        trials = [t for t in found.run().trials if t.arm != "baseline"]
        reasons.append([(t.seed, t.status, t.record.get("reason")) for t in trials])
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize(("stack", "broken"), [("always", "trials"), ("auto", "probe")])
def test_what_goes_wrong_in_training_seeds_as_one_is_told_of(
    stack: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials are run one by one all the same; that it took longer, and why, is said in table and report."""

    def fail(*given: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(stacks, broken, fail)
    results = study(stack).run()
    assert {trial.status for trial in results.trials} == {"ok"}
    why = "seeds were trained one by one: ZeroDivisionError: a fault of ours"
    assert results.notes()["gradient-noise"] == why
    assert any(why in line.plain for line in remarks(results))
    assert why in render(results)
