"""Arena acquire: shared starts, labels counted, answers checked, what users see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from probatum import AcquireRules, StreamRules, Study, catalogue
from probatum.arenas.acquire import arena
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.recipe import Arm, Recipe, Training, make_arm
from probatum.report.commands import repeat_command
from probatum.report.write import render
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging, Reading
from probatum.spec import Data

RULES = {"start": 12, "query": 6, "rounds": 3}
BASE = Recipe(training=Training(steps=15, batch_size=16, lr=1e-2))

OWN = '''"""Asks for what a test tells it to.

Paper     none
Computes  fixed answers
Shapes    pool, count -> positions
Departs   none
"""

import torch

from probatum.card import Card
from probatum.spec import Query
from probatum.settings import Judging
from probatum.settings import Reading
from probatum.rooms.arena import Terms

CARD = Card(paper="none", title="own", entry="ask", slot="acquire", tags=("own",), tasks=("classes",))
SEEN = []


def ask(pool, count, *, how="first"):
    SEEN.append(pool)
    rows = pool.open()
    none = rows[:0]
    answers = {
        "first": rows[:count],
        "fewer": rows[:0],
        "known": pool.labelled[:count],
        "twice": rows[:1].repeat(count),
        "more": rows[: count + 1],
        "outside": rows[:1] + 10**6,
        "floats": rows[:count].float(),
        "wrong": Query(rows[:count], rows[count : count + 5], torch.full((5,), 99)),
        "machine": Query(rows[:count], rows[count:], torch.zeros(len(rows) - count, dtype=torch.int64)),
        "given": Query(rows[:count], pool.labelled[:1], torch.zeros(1, dtype=torch.int64)),
        "uneven": Query(rows[:count], rows[count : count + 5], none),
    }
    return answers[how]
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})
    file = tmp_path / "own_asker.py"
    file.write_text(OWN)
    catalogue.add_file(file)


@pytest.fixture(scope="module")
def data() -> Data:
    return open_dataset("iris").prepare(0)


def work(name: str, data: Data, rules: dict[str, Any] = RULES, seed: int = 0) -> Work:
    builtin = name if name in (arena.BASELINE, arena.CERTAIN, arena.EVERYTHING) else ""
    arm = Arm(name, BASE) if builtin else make_arm(name, BASE)
    return Work(arm, builtin, Terms(base=BASE, contest=rules), data, seed)


def test_arms_of_a_seed_share_the_start_and_its_network(data: Data) -> None:
    curves = [arena.trial(work(name, data)).details["curve over labels"] for name in (arena.BASELINE, arena.CERTAIN)]
    assert curves[0]["labels"] == curves[1]["labels"] == [12, 18, 24, 30]
    assert curves[0]["accuracy"][0] == curves[1]["accuracy"][0]
    assert curves[0]["with all labels"] == curves[1]["with all labels"]


def test_a_trial_is_a_function_of_its_plan(data: Data) -> None:
    first, second = (arena.trial(work(arena.BASELINE, data)) for _ in range(2))
    assert first.measures == second.measures
    assert first.digest == second.digest
    assert first.digest != arena.trial(work(arena.BASELINE, data, seed=1)).digest


def test_the_strategy_sees_only_labels_that_were_paid_for(data: Data) -> None:
    arena.trial(work("own-asker", data))
    pools = catalogue.entry("own-asker").__globals__["SEEN"]
    assert [len(pool.labelled) for pool in pools[-3:]] == [12, 18, 24]
    assert [pool.left for pool in pools[-3:]] == [18, 12, 6]
    for pool in pools[-3:]:
        assert torch.equal(pool.y, data.train.y[pool.labelled])
        assert not torch.isin(pool.open(), pool.labelled).any()
        assert not pool.model.training


def test_who_stops_asking_keeps_what_it_has(data: Data) -> None:
    outcome = arena.trial(work("own-asker(how='fewer')", data))
    curve = outcome.details["curve over labels"]
    assert curve["labels"] == [12]
    assert outcome.measures["label-auc"] == pytest.approx(curve["accuracy"][0])


def test_who_stops_asking_has_not_arrived(data: Data) -> None:
    outcome = arena.trial(work("own-asker(how='fewer')", data, RULES | {"start": 2}))
    curve = outcome.details["curve over labels"]
    assert curve["accuracy"][0] < 0.95 * curve["with all labels"]
    assert outcome.measures["labels-to-95"] == 2 + 3 * 6 + 6


def test_machine_labels_are_trained_on_and_their_errors_counted(data: Data) -> None:
    outcome = arena.trial(work("own-asker(how='machine')", data))
    wrong = outcome.measures["machine-label-errors"]
    assert 0.3 < wrong < 0.9  # all rows called class 0, of three
    assert outcome.details["curve over labels"]["machine"][1] == len(data.train) - 18


def test_machine_errors_are_counted_against_right_labels() -> None:
    plain, noisy = (open_dataset("iris", Reading(world=world)).prepare(0) for world in (None, "label-noise:0.5"))
    found = [arena.trial(work("own-asker(how='machine')", data)).measures for data in (plain, noisy)]
    assert found[0]["machine-label-errors"] == found[1]["machine-label-errors"]  # the same rows, called class 0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("known", "no open label"),
        ("twice", "1 of them different"),
        ("more", "7 rows, 7 of them different; 6 can be asked for"),
        ("outside", "no open label"),
        ("floats", "int64"),
        ("wrong", "outside 0 to 2"),
        ("given", "whose labels were given"),
        ("uneven", "0 labels by machine to 5"),
    ],
)
def test_answers_that_cannot_be_used_are_named(data: Data, how: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        arena.trial(work(f"own-asker(how={how!r})", data))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (AcquireRules(start=0), "start is 0"),
        (
            AcquireRules(start=20, query=30, rounds=9),
            "there are 89 training rows",
        ),  # one is a copy: parts are as large on all seeds
        (StreamRules(stages=2), "stages belongs to the arena stream"),
    ],
)
def test_bad_rules_are_refused(rules: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Study("iris", ["text-active-learning"], seeds=1, rules=rules)


def test_rules_without_their_arena_and_reals_are_refused() -> None:
    with pytest.raises(InputError, match="start belongs to the arena acquire"):
        Study("iris", ["encouraging-loss"], seeds=1, rules=AcquireRules(start=5))
    with pytest.raises(InputError, match="reals"):
        Study("diabetes", ["text-active-learning"], seeds=1)


def test_a_study_from_plan_to_report() -> None:
    arms = ["text-active-learning", "dynamic-al(scope='last')"]
    study = Study(
        "iris", arms, seeds=6, steps=10, rules=AcquireRules(start=9, query=6, rounds=2), judging=Judging(confirm=False)
    )
    assert study.plan.contest == {"start": 9, "query": 6, "rounds": 2}
    results = study.run()
    assert all(t.status == "ok" for t in results.trials)
    assert {v.arm for v in results.primary_verdicts()} == set(arms)
    page = render(results)
    assert "test accuracy by labels asked for" in page
    assert "labels at the beginning" in page
    command = repeat_command(results)
    assert "--start-labels 9 --query-labels 6 --rounds 2" in command
