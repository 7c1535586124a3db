"""How many processes a study gets by itself, and when they are started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from probatum.bench import hands
from probatum.bench.execute import Bench, Here, Listener, Silent
from probatum.bench.hands import START_SECONDS, Hands, HereFirst
from probatum.bench.workers import Workers, checked_workers
from probatum.errors import InputError
from probatum.options import options, values_of
from probatum.settings import Judging, Running
from probatum.study import Study

SHORT: dict[str, Any] = {"steps": 3, "seeds": 3, "judging": Judging(references=False, confirm=False)}


class Elsewhere(Here):
    """Stands for processes, and remembers what they were given."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.jobs, self.closed = count, list[str](), False

    def run(self, context: Any, groups: Iterable[Any], listener: Listener) -> Iterator[Any]:
        for group in groups:
            self.jobs += [job.key for job in group]
            yield from super().run(context, [group], listener)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("each", "here"), [(0.5, 6), (1.7, 3), (60.0, 1)])
def test_processes_join_once_it_takes_longer_than_their_start(each: float, here: int) -> None:
    study = Study("iris", ["gradient-noise"], **SHORT, running=Running(timing=False, stack="never"))
    made: list[Elsewhere] = []
    times = iter(range(1000))

    def pool(count: int) -> Elsewhere:
        made.append(Elsewhere(count))
        return made[-1]

    executor = HereFirst(3, clock=lambda: next(times) * each, pool=pool)
    jobs = study.bench().jobs(study.plan.seeds, study.plan.arms, with_references=False)
    trials = Bench(study.context, study.store, Silent(), executor).run(jobs)
    assert [trial.key for trial in trials] == [job.key for job in jobs]
    assert {trial.status for trial in trials} == {"ok"}
    elsewhere = [key for one in made for key in one.jobs]
    assert len(jobs) - len(elsewhere) == here
    assert [one.count for one in made] == ([] if here == 6 else [3])
    executor.close()
    assert all(one.closed for one in made)
    assert executor.slots(study.context) == 3


@pytest.mark.parametrize(
    ("free", "rehearsal", "expected"),
    [
        (9.0, 0.001, Hands(4, later=True)),
        (9.0, 60.0, Hands(4, later=False)),
        (2.5, 60.0, Hands(3, later=False)),
        (0.5, 60.0, Hands(1)),
    ],
)
def test_as_many_as_cores_and_memory_hold(
    free: float, rehearsal: float, expected: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "taken", lambda: 1e9)
    monkeypatch.setattr(hands, "available", lambda: free * 1e9)
    monkeypatch.setattr(hands, "rehearsal_seconds", lambda context, elsewhere: rehearsal)
    monkeypatch.setattr("probatum.bench.workers.cores", lambda: 4)
    study = Study("iris", ["gradient-noise"], **SHORT, running=Running(workers="auto", timing=False))
    assert study.hands == expected
    assert study.running.workers == expected.workers
    executor = study.executor()
    assert type(executor) is (Here if expected.workers == 1 else HereFirst if expected.later else Workers)
    executor.close()


def test_the_words_of_the_plan() -> None:
    assert Hands().words() == ""
    assert Hands(2).words() == "2 workers"
    assert Hands(2, later=True).words() == f"2 workers once it has run for {START_SECONDS:.0f} s"
    assert hands.taken() > 1e7, "bytes"


def test_auto_is_what_the_command_line_says_and_one_what_python_says() -> None:
    option = next(one for one in options() if one.flag == "--workers")
    assert option.default == "auto"
    assert Running().workers == 1
    assert values_of({})["running"].workers == "auto"
    assert values_of({"workers": "1"})["running"].workers == "1"
    assert (checked_workers("3", 1), checked_workers("1", 1)) == (3, 1)
    with pytest.raises(InputError, match="workers is 'many'"):
        checked_workers("many", 1)
    on_a_cluster = Running(workers="auto", on="ray://nowhere:1")
    with pytest.raises(InputError, match="ray"):
        Study("iris", ["gradient-noise"], running=on_a_cluster)


def test_a_device_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probatum.bench.workers.cores", lambda: 4)
    monkeypatch.setattr("probatum.engine._present", lambda device: "meta")
    from probatum.bench.making import checked_running

    assert checked_running(Running(workers="auto", device="meta"))[0].workers == 1
    assert checked_running(Running(workers=2, device="meta"))[0].workers == 2
