"""Arena stream: the split into stages, fairness between arms, the budget of bytes, the protocols, what users see."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loosely import study_of
from probatum import StreamRules, Study, catalogue
from probatum.arenas.stream import arena
from probatum.bench.plan import plan_from
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.report.commands import repeat_command
from probatum.report.write import render
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging, Running
from probatum.spec import Data

LEARNER = '''"""Remembers what it was shown, for tests.

Paper     none
Computes  class means
Shapes    x (n, ...) -> logits (n, num_classes)
Departs   none
"""
import torch
from probatum.card import Card
from probatum.settings import Judging
from probatum.settings import Running
from probatum.rooms.arena import Terms

CARD = Card(paper="unpublished", title="Recorder", entry="Recorder", slot="stream", tags=("own",), tasks=("classes",),
)
SHOWN = []
ASKED = []


class Recorder:
    """Keeps what it is told to keep and records the stages and budgets that it was shown."""

    def __init__(self, num_classes, memory, order, keep=0, needs=False):
        self.num_classes, self.keep, self.needs_stages, self.memory = num_classes, keep, needs, memory
        SHOWN.append([])

    def observe(self, stage, budget):
        SHOWN[-1].append((stage, budget))

    def predict(self, x, task=None):
        ASKED.append((x.clone(), task))
        seen = [c for stage, _ in SHOWN[-1] for c in stage.classes]
        logits = torch.full((len(x), self.num_classes), -torch.inf)
        logits[:, seen] = 0.0
        logits[:, seen[-1]] = 1.0
        return logits

    def stored_bytes(self):
        return self.keep
'''


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The record of a learner that says what it was shown."""
    monkeypatch.setattr(catalogue, "_added", {})
    file = tmp_path / "recorder.py"
    file.write_text(LEARNER)
    catalogue.add_file(file)
    record: list[Any] = catalogue.load("recorder").SHOWN
    return record


def digits(seed: int = 0) -> Data:
    return open_dataset("digits").prepare(seed)


def work(arm: str, data: Data, seed: int = 0, steps: int | None = 20, **rules: Any) -> Work:
    base = Recipe(training=Training(steps=steps, batch_size=32) if steps else Training(epochs=2, batch_size=32))
    contest = arena.contest(data.spec, data.train, **rules)
    builtin = arm if arm in ("fine-tuning", "joint") else ""
    return Work(
        Arm(arm, base) if builtin else make_arm(arm, base),
        builtin,
        Terms(base=base, contest=contest),
        data,
        seed,
        factory=tiny,
    )


def tiny(spec: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(spec.shape)), 16), nn.ReLU(), nn.Linear(16, spec.outputs))


@pytest.mark.parametrize(
    ("classes", "stages", "base", "sizes"),
    [(10, 5, 0, [2] * 5), (10, 1, 0, [10]), (10, 3, 4, [4, 3, 3]), (10, 6, 5, [5, 1, 1, 1, 1, 1]), (10, 1, 10, [10])],
)
def test_stages_cover_the_classes(classes: int, stages: int, base: int, sizes: list[int]) -> None:
    assert arena.split(classes, stages, base) == sizes


@pytest.mark.parametrize(("classes", "stages", "base"), [(10, 4, 0), (10, 3, 5), (10, 11, 0), (7, 2, 0), (10, 2, 10)])
def test_splits_that_do_not_cover_are_refused_with_ones_that_do(classes: int, stages: int, base: int) -> None:
    with pytest.raises(InputError, match=f"do not cover {classes} classes evenly; use stages") as problem:
        arena.split(classes, stages, base)
    for found in re.finditer(r"stages (\d+)(?: with base classes (\d+))? \(", str(problem.value)):
        assert sum(arena.split(classes, int(found[1]), int(found[2] or 0))) == classes


def test_every_number_of_classes_has_usual_stages() -> None:
    for classes in range(2, 60):
        count, base = arena._chosen(classes, None, None)
        assert sum(arena.split(classes, count, base)) == classes
        assert 2 <= count <= 5
    assert arena._chosen(10, None, None) == (5, 0)
    assert arena._chosen(10, None, 4) == (4, 4)


def test_arms_of_a_seed_share_stages_budget_and_see_each_row_once(shown: list[Any]) -> None:
    data = digits(3)
    arena.trial(work("recorder", data, seed=3, steps=50))
    arena.trial(work("recorder(keep=5)", data, seed=3, steps=50))
    first, second = shown
    assert [stage.classes for stage, _ in first] == [stage.classes for stage, _ in second]
    assert all(torch.equal(a.x, b.x) for (a, _), (b, _) in zip(first, second, strict=True))
    assert sum(len(stage) for stage, _ in first) == len(data.train)
    assert sum(budget.steps for _, budget in first) == 50
    assert max(abs(budget.steps / 50 - len(stage) / len(data.train)) for stage, budget in first) < 0.03
    for stage, _ in first:
        assert set(stage.y.tolist()) == set(stage.classes)
    orders = {tuple(arena.class_groups(work("recorder", data, seed=seed))) for seed in range(6)}
    assert len(orders) == 6, "each seed draws its own order of classes"


def test_too_many_bytes_fail_the_trial_and_the_reason_names_them(shown: list[Any]) -> None:
    with pytest.raises(
        Exception, match=r"keeps 5.0 kB after stage 1 of 5, and the stream's memory is 1.0 kB"
    ) as problem:
        arena.trial(work("recorder(keep=5000)", digits(), memory=1000))
    assert type(problem.value).__name__ == "TrainingFailed"
    assert arena.trial(work("recorder(keep=1000)", digits(), memory=1000)).measures["stream-memory"] == 1000


def test_the_matrix_is_of_test_rows_of_each_stage(shown: list[Any]) -> None:
    data = digits()
    outcome = arena.trial(work("recorder", data))
    stages = outcome.details["stages"]
    for b, row in enumerate(stages["matrix"]):
        for i, accuracy in enumerate(row):  # it always says the newest class
            rows = torch.isin(data.test.y, torch.tensor(stages["classes"][i]))
            expected = (data.test.y[rows] == stages["classes"][b][-1]).float().mean()
            assert accuracy == pytest.approx(float(expected))
    newest = (data.test.y == stages["classes"][-1][-1]).float().mean()
    assert outcome.measures["last-accuracy"] == pytest.approx(float(newest))


def test_free_protocol_shows_small_chunks_and_refuses_learners_that_need_stages(shown: list[Any]) -> None:
    data = digits()
    outcome = arena.trial(work("recorder", data, protocol="free"))
    chunks = [stage for stage, _ in shown[0]]
    assert {len(stage) for stage in chunks[:-1]} == {32}
    assert sum(len(stage) for stage in chunks) == len(data.train)
    assert sorted(c for stage in chunks for c in stage.classes) == list(range(10))
    assert any(not stage.classes for stage in chunks)
    assert len(outcome.details["stages"]["matrix"]) == 5
    with pytest.raises(InputError, match=r"recorder\(needs=True\) needs stage boundaries"):
        arena.trial(work("recorder(needs=True)", data, protocol="free"))


def test_no_batch_of_test_rows_tells_which_stage_it_is_of(shown: list[Any]) -> None:
    data = digits()
    case = work("recorder", data)
    arena.trial(case)
    asked = catalogue.load("recorder").ASKED
    groups = arena.class_groups(case)
    label = {row.numpy().tobytes(): int(y) for row, y in zip(data.test.x, data.test.y, strict=True)}
    assert len(asked) == len(groups)
    for b, (x, task) in enumerate(asked):
        assert task is None
        stages = [next(i for i, g in enumerate(groups) if label[row.numpy().tobytes()] in g) for row in x]
        assert set(stages) == set(range(b + 1))
        assert b == 0 or sum(i != j for i, j in itertools.pairwise(stages)) > len(x) / 4


def test_joint_is_trained_once_a_stage_also_without_boundaries() -> None:
    data = digits()
    free, told = (arena.trial(work("joint", data, protocol=rule)).measures for rule in ("free", "class"))
    assert free["training-passes"] <= 4 * told["training-passes"]  # a chunk has a step at least


def test_hypernetworks_count_the_statistics_of_every_task() -> None:
    case = replace(work("dependency-hypernet", digits(), steps=10, memory="40KB"), factory=None)
    assert arena.trial(case).measures["stream-memory"] <= 40_000


def test_told_tasks_only_their_classes_compete() -> None:
    data = digits()
    told = arena.trial(work("fine-tuning", data, steps=100, protocol="task")).measures["last-accuracy"]
    assert told > arena.trial(work("fine-tuning", data, steps=100)).measures["last-accuracy"] + 0.2


def test_neutral_learner_is_the_baseline_and_joint_knows_more() -> None:
    data = digits()
    base, neutral, joint = (
        arena.trial(work(arm, data, steps=150))
        for arm in ("fine-tuning", "class-incremental(method='finetune')", "joint")
    )
    assert base.digest == neutral.digest
    assert base.measures == neutral.measures
    assert joint.measures["last-accuracy"] > base.measures["last-accuracy"] + 0.3
    steps = np.cumsum([round(150 * k) for k in np.full(5, 0.2)])
    assert joint.measures["training-passes"] == pytest.approx(32 * steps.sum(), rel=0.1)


def test_a_bare_word_is_a_setting() -> None:
    base = Recipe()
    assert make_arm("class-incremental(method=replay)", base) == make_arm("class-incremental(method='replay')", base)


def test_same_bits_twice() -> None:
    arm = "class-incremental(method='replay')"
    assert arena.trial(work(arm, digits())).digest == arena.trial(work(arm, digits())).digest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rules": StreamRules(stages=4)}, "do not cover 10 classes"),
        ({"rules": StreamRules(protocol="any")}, "use one of class, task, free"),
        ({"rules": StreamRules(memory="lots")}, "memory is 'lots'"),
        ({"rules": StreamRules(stages=10, protocol="task")}, "tells nothing"),
        ({"rules": StreamRules(base_classes=-1)}, "base_classes is -1"),
        ({"tune": 2}, "tune is 2"),
        ({"budget": "compute"}, "'compute'"),
    ],
)
def test_bad_rules_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study_of("digits", ["class-incremental"], seeds=1, **options)


def test_rules_are_refused_by_name_elsewhere_and_reals_here() -> None:
    with pytest.raises(InputError, match="memory belongs to the arena stream"):
        Study("iris", ["encouraging-loss"], seeds=1, rules=StreamRules(memory="1KB"))
    with pytest.raises(InputError, match="task here is reals"):
        Study("diabetes", ["class-incremental"], seeds=1)


def test_a_study_from_plan_to_report() -> None:
    arms = ["class-incremental(method='replay')", "class-incremental(method='der')"]
    study = Study("iris", arms, seeds=6, steps=30, rules=StreamRules(memory=600), judging=Judging(confirm=False))
    assert study.plan.contest == {"stages": 3, "base_classes": 0, "memory": 600, "protocol": "class"}
    results = study.run()
    words = {v.arm: v.word for v in results.primary_verdicts()}
    assert words[arms[1]] == "failed"
    assert words[arms[0]] in ("helps", "undecided")
    assert plan_from(results.plan.describe()).contest == study.plan.contest
    assert "--stages 3 --base-classes 0 --stream-memory 600 --protocol class" in repeat_command(results)
    page = render(results)
    assert 'id="stages"' in page
    assert "memory of the stream" in page
    assert results.reference_note() == ""
    plain = Study(
        "iris", ["encouraging-loss"], seeds=6, steps=5, judging=Judging(confirm=False), running=Running(timing=False)
    )
    assert "contest" not in plain.plan.trial(plain.plan.arms[0], "", 0)
