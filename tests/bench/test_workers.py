"""Several processes: the same records as one, whoever dies, and nobody left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from holding import Holding
from loosely import study_of
from probatum import Study, catalogue
from probatum.bench import workers
from probatum.bench.execute import Here
from probatum.bench.parcel import check_versions, pack, unpack
from probatum.bench.store import Store
from probatum.bench.stored import find_study, results_of, trials_of
from probatum.bench.workers import Task, Workers, checked_workers, cores, too_many
from probatum.cli.progress import LiveTable
from probatum.errors import InputError
from probatum.settings import Running
from processes import alive, children, ran, started, until

Records = Callable[..., dict[str, str]]
SHORT: dict[str, Any] = {
    **{"seeds": 6, "epochs": 1, "timing": False, "references": False, "confirm": False},
    "stack": "never",  # what is stacked is decided by a stopwatch, and may differ in the last digits
}
LONG = ["--data", "iris", "--seeds", "6", "--steps", "150", "--no-timing", "--no-references", "--no-confirm"]
LONG += ["--stack", "never"]


class Log:
    """Hears who did what in which order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def planned(self, jobs: list[Any], done: int) -> None:
        self.lines.append(("planned", str(done)))

    def started(self, job: Any) -> None:
        self.lines.append(("started", job.key))

    def stepped(self, step: int, steps: int) -> None:
        return

    def ended(self, job: Any, trial: Any) -> None:
        self.lines.append(("ended", job.key))


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    """Two workers that several tests share: a worker takes in one study after another."""
    with closing(Workers(2)) as pool:
        yield pool


@pytest.fixture
def warm(two: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies with workers run on the shared two."""
    monkeypatch.setattr(two, "close", lambda: None)
    monkeypatch.setattr(Study, "executor", lambda self: two if self.running.workers > 1 else Here())


def test_two_workers_find_what_one_process_finds(records: Records) -> None:
    arms = ["selu-snn+h-calibration(window=10, steps=5)"]
    one, two = (study_of("wine", arms, **{**SHORT, "timing": n == 2}, running=Running(workers=n)) for n in (1, 2))
    log = Log()
    first, second = one.run(), two.run(log)
    assert records(first.trials) == records(second.trials)
    assert [t.key for t in first.trials] == [t.key for t in second.trials]
    assert [(v.arm, v.measure, v.word) for v in first.verdicts() if v.measure == "accuracy"] == [
        (v.arm, v.measure, v.word) for v in second.verdicts() if v.measure == "accuracy"
    ]
    assert {t.status for t in second.timings} == {"ok"}
    # timings begin when every fit has ended, and one at a time
    timings = {t.key for t in second.timings}
    first_timing = next(i for i, (_, key) in enumerate(log.lines) if key in timings)
    last_fit = max(i for i, (word, key) in enumerate(log.lines) if word == "ended" and key not in timings)
    assert last_fit < first_timing
    assert [word for word, _ in log.lines[first_timing:]] == ["started", "ended"] * len(timings)


def test_two_trials_are_under_way_at_once(warm: None, holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is held until both are in the middle of a training: however slow a worker is, none can end before."""
    monkeypatch.setattr(catalogue, "_added", {})
    catalogue.add_file(holding.file)
    study = study_of("iris", [holding.arm(free=0)], **_without("epochs"), steps=150, running=Running(workers=2))
    seen: list[set[int]] = []

    def watch() -> None:
        try:
            seen.append(until(lambda: held if len(held := holding.held()) == 2 else set()))
        finally:
            holding.let_go()

    watching = threading.Thread(target=watch)
    watching.start()
    results = study.run()
    watching.join()
    assert len(seen) == 1, "one was held alone to the end"
    assert {t.status for t in results.trials} == {"ok"}


def test_stacked_seeds_are_the_same_in_any_process(warm: None, records: Records) -> None:
    settings = {**SHORT, "stack": "always"}
    one, two = (study_of("iris", ["gradient-noise"], **settings, running=Running(workers=n)).run() for n in (1, 2))
    assert {t.timing["measures"]["stacked"] for t in two.trials} == {6}
    assert records(one.trials) == records(two.trials)


def test_a_network_that_no_module_defines(warm: None, records: Records) -> None:
    width = 7

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.first(x)))

    one, two = (
        study_of("iris", ["gradient-noise"], model=lambda: Small(), **SHORT, running=Running(workers=n)).run()
        for n in (1, 2)
    )
    assert {t.status for t in two.trials} == {"ok"}
    assert records(one.trials) == records(two.trials)


def test_a_worker_that_is_killed_is_replaced(warm: None, deadly: Callable[..., str], tmp_path: Path) -> None:
    calm = study_of("iris", [deadly()], **SHORT, running=Running(apart=False)).run()
    wild = study_of("iris", [deadly()], **SHORT, running=Running(workers=2)).run()
    assert len(list(tmp_path.glob("graves/death-*"))) == 1
    assert found(calm) == found(wild)


def test_a_trial_that_always_kills_is_given_up(warm: None, deadly: Callable[..., str], tmp_path: Path) -> None:
    study = study_of("iris", [deadly(deaths=99)], store=tmp_path / "store.sqlite", **SHORT, running=Running(workers=2))
    results = study.run()
    assert len(list(tmp_path.glob("graves/death-*"))) == 3
    failed = [t for t in results.trials if t.status != "ok"]
    reason = "the worker died (signal 9: killed, perhaps for lack of memory) three times"
    assert failed[0].record == {"reason": reason}
    # where none of the arm had ended by then, its others are not tried
    assert {t.record["reason"] for t in failed[1:]} <= {f"{reason} on seed {failed[0].seed}"}
    assert {t.status for t in results.trials if t.arm == "baseline"} == {"ok"}
    assert len(results.trials) == 12
    again = Log()
    study.run(again)
    assert ("planned", "12") in again.lines
    assert not [word for word, _ in again.lines if word == "started"]


def test_a_group_that_kills_is_taken_apart(
    warm: None, deadly: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def in_fours(setup: Any, jobs: list[Any], store: Any, prober: Any, planned: Any) -> list[list[Any]]:
        return [jobs[i : i + 4] for i in range(0, len(jobs), 4)]

    monkeypatch.setattr("probatum.bench.grouping.groups", in_fours)
    results = study_of("iris", [deadly()], **SHORT, running=Running(workers=2)).run()
    assert {t.status for t in results.trials} == {"ok"}
    assert len(list(tmp_path.glob("graves/death-*"))) == 1
    pair: list[Any] = ["a", "b"]
    assert Task(pair).again() == [Task(["a"]), Task(["b"])]  # type: ignore[list-item]
    alone = Task(pair[:1])
    assert [alone.again(), alone.again(), alone.again()] == [[alone], [alone], None]


def found(results: Any) -> dict[tuple[str, int], Any]:
    """What came of each trial, whatever its plan says of where it was run."""
    return {(t.arm, t.seed): (t.status, t.record) for t in results.trials}


def stored(path: Path) -> int:
    """Trials in the store of the only study."""
    with Store(path) as store:
        return sum(len(store.trials(study.key)) for study in store.studies())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="children are found through /proc")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_no_orphans_and_the_same_command_goes_on(
    blow: signal.Signals, holding: Holding, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, arms, temporary = tmp_path / "store.sqlite", ["gradient-noise", holding.arm()], tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    command = [sys.executable, "-m", "probatum", "try", *arms, *LONG, "--technique", str(holding.file)]
    command += ["--workers", "2", "--store", str(path), "--report", str(tmp_path / "report.html")]
    with started(*command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        until(lambda: len(holding.held()) == 2, process)
        (nursery,) = children(process.pid, b"probatum.bench.workers")
        known = children(nursery)
        assert known >= holding.held(), "both workers are in the middle of a training"
        known |= {nursery}
        process.send_signal(blow)
        _, told = process.communicate()
        until(lambda: not alive(known))
    assert not [*temporary.glob("probatum-*")], "nor are temporary files left"
    held = stored(path)
    assert 2 <= held < 18
    if blow == signal.SIGINT:
        assert process.returncode == 130
        assert told.strip() == "stopped; what has ended is stored, and the same command goes on from there"
    holding.let_go()
    again = ran(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"{held} of 18 trials are in the store already" in again.stdout
    monkeypatch.setattr(catalogue, "_added", {})
    catalogue.add_file(holding.file)
    calm = study_of("iris", arms, seeds=6, steps=150, **_without("seeds", "epochs"))
    with Store(path) as store:
        found = find_study(store)
        assert records(trials_of(store, found, "fit")) == records(calm.run().trials)
        assert results_of(store, found).answer() == calm.results.answer()


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SHORT.items() if name not in names}


def test_two_studies_write_one_file_at_once(records: Records, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    command = [sys.executable, "-m", "probatum", "try", "gradient-noise", *LONG]
    command += ["--store", str(path), "--report"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL}
    with (
        started(*command, tmp_path / "a.html", **quiet) as one,
        started(*command, tmp_path / "b.html", **quiet) as other,
    ):
        told = [process.communicate()[1] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], told
    calm = study_of("iris", ["gradient-noise"], seeds=6, steps=150, **_without("seeds", "epochs"))
    with Store(path) as store:
        assert len(store.studies()) == 1
        assert records(trials_of(store, find_study(store), "fit")) == records(calm.run().trials)


def test_what_cannot_travel_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()

    def net() -> nn.Module:
        with lock:
            return nn.Linear(4, 3)

    with pytest.raises(InputError, match="cannot be sent to other processes"):
        study_of("iris", ["gradient-noise"], model=net, **SHORT, running=Running(workers=2)).run()
    (tmp_path / "far_away.py").write_text("from torch import nn\n\ndef far():\n    return nn.Linear(4, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import far_away

    parcel = pack(study_of("iris", ["gradient-noise"], model=far_away.far, **SHORT).context)
    assert unpack(parcel).plan.model
    monkeypatch.delitem(sys.modules, "far_away")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    with pytest.raises(InputError, match="far_away"):
        unpack(parcel)


def test_a_technique_file_travels_with_the_study(deadly: Callable[..., str], tmp_path: Path) -> None:
    study = study_of("iris", [deadly()], **SHORT)
    digest = catalogue.digest("deadly")
    parcel = pack(study.context)
    (tmp_path / "method" / "deadly.py").unlink()
    catalogue._added.clear()
    setup = unpack(parcel)
    assert catalogue.digest("deadly") == digest
    assert catalogue.place("deadly").slot == "method"
    assert catalogue.place("deadly").path != tmp_path / "method" / "deadly.py"
    assert setup.study_key() == study.context.study_key()


def test_other_versions_are_refused() -> None:
    study = study_of("iris", ["gradient-noise"], **SHORT)
    job = study.bench().jobs((0,), study.plan.arms, with_references=False)[0]
    check_versions([job])
    job.plan["versions"] = {**job.plan["versions"], "torch": "1.0"}
    with pytest.raises(InputError, match=r"a worker has torch .* instead of 1\.0"):
        check_versions([job])


def test_workers_that_cannot_begin_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="workers die before they have taken in the data"):
        study_of("iris", ["gradient-noise"], **SHORT, running=Running(workers=2)).run()


@pytest.mark.parametrize("number", [-1, True, 1.5])
def test_a_number_of_workers_that_is_none(number: Any) -> None:
    with pytest.raises(InputError, match="workers is"):
        study_of("iris", ["gradient-noise"], **SHORT, running=Running(workers=number))


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert checked_workers(0, 3) == 2
    assert checked_workers(3, 1) == 3
    assert too_many(8, 1) is None
    assert "5 workers of 2 threads on 8 cores" in str(too_many(5, 2))
    assert 1 <= cores() <= (os.cpu_count() or 1)
    with pytest.raises(InputError, match="threads is 0"):
        checked_workers(1, 0)


def test_the_table_names_what_is_under_way() -> None:
    study = study_of("iris", ["gradient-noise"], **SHORT)
    jobs = study.bench().jobs(study.plan.seeds, study.plan.arms, with_references=False)
    screen = io.StringIO()
    table = LiveTable(Console(file=screen, force_terminal=True, width=120), "accuracy")
    with table:
        table.planned(jobs, 0)
        for job in jobs[:6]:
            table.started(job)
        table.live.refresh()  # type: ignore[union-attr]
    shown = screen.getvalue()
    assert "baseline, seed 0; gradient-noise, seed 0; " in shown
    assert "2 more" in shown
