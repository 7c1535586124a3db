"""No arm touches another: what sloppy techniques do is theirs alone, is named, and counts for nobody else."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import signal
import struct
import sys
import tempfile
import threading
import zlib
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn import metrics

import sloppy
from loosely import study_of
from probatum import Study, catalogue
from probatum.bench import isolation
from probatum.bench.context import Limit, TimeUp
from probatum.bench.execute import Silent
from probatum.bench.isolation import Ran, at_most, guarded, watching
from probatum.bench.nursery import Scratch
from probatum.bench.packed_rows import _MAGIC
from probatum.bench.store import REMARK, Store, Trial
from probatum.bench.untouched import TORCH, Untouched
from probatum.bench.workers import Workers
from probatum.errors import InputError
from probatum.settings import Running

SHORT: dict[str, Any] = {"seeds": 2, "steps": 4, "timing": False, "references": False, "confirm": False}
SHORT["stack"] = "never"
OTHERS = ("baseline", "gradient-noise")


@pytest.fixture(autouse=True)
def none_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})


@pytest.fixture(scope="module")
def clean() -> dict[tuple[str, int], Any]:
    return records(study_of("iris", ["gradient-noise"], **SHORT).run().trials)


def records(trials: tuple[Trial, ...]) -> dict[tuple[str, int], Any]:
    return {(t.arm, t.seed): (t.key, t.status, t.record) for t in trials if t.arm in OTHERS}


def arms(folder: Path, *names: str) -> list[str]:
    return [catalogue.add_file(sloppy.placed(folder, name)) for name in names]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_sloppy_technique_touches_another_arm(workers: int, clean: dict[Any, Any], tmp_path: Path) -> None:
    names = [*sloppy.DEEDS, *sloppy.LEARNERS]
    path = tmp_path / "store.sqlite"
    study = study_of(
        "iris", ["gradient-noise", *arms(tmp_path, *names)], **SHORT, running=Running(workers=workers), store=path
    )
    results = study.run()
    assert records(results.trials) == clean
    said = {**sloppy.DEEDS, **sloppy.LEARNERS}
    for name in names:
        own = [t for t in results.trials if t.arm == name]
        assert {t.status for t in own} == {"failed"}, name
        for trial in own:
            assert said[name][1] in trial.record["reason"], (name, trial.record)
    with Store(path) as store:  # which were never beside another file, and so are everybody's
        assert all(store.get(key) is not None for key, _, _ in clean.values())
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_what_is_done_in_the_rehearsal_is_refused_by_name(tmp_path: Path) -> None:
    path = sloppy.placed(tmp_path, "changes-the-dtype")
    path.write_text(path.read_text().replace("num_examples > 60", "True"))
    name = catalogue.add_file(path)
    with pytest.raises(InputError, match=r"changes-the-dtype cannot take part: it changed .*: the default dtype"):
        study_of("iris", ["gradient-noise", name], **SHORT)
    assert torch.get_default_dtype() == torch.float32


def test_a_learner_is_asked_without_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "cheat.py"
    text = sloppy.LEARNER.format(title="cheat", deed="return torch.nn.functional.one_hot(part.y, self.k).float()")
    path.write_text(text, encoding="utf-8")
    trials = study_of("iris", [catalogue.add_file(path)], **SHORT).run().trials
    assert max(t.record["measures"]["accuracy"] for t in trials if t.arm == "cheat") < 0.6


def test_what_is_printed_is_counted_and_goes_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loud.py"
    path.write_text(sloppy.LOSS.format(title="loud", deed="print('so much to say ' * 1000)"), encoding="utf-8")
    trials = [t for t in study_of("iris", [catalogue.add_file(path)], **SHORT).run().trials if t.arm == "loud"]
    assert {t.status for t in trials} == {"ok"}
    for one in trials:  # once a step
        assert re.fullmatch(r"it printed 60,00\d characters, beginning 'so much to say .*'", one.timing[REMARK]), (
            one.timing
        )
    assert "so much" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_hangs_is_stopped(workers: int, tmp_path: Path, clean: dict[Any, Any]) -> None:
    path = tmp_path / "hangs.py"
    path.write_text(sloppy.LOSS.format(title="hangs", deed="time.sleep(3600)"), encoding="utf-8")
    running = Running(workers=workers, trial_minutes=0.05)
    results = study_of("iris", [catalogue.add_file(path), "gradient-noise"], **SHORT, running=running).run()
    assert records(results.trials) == clean
    own = [t for t in results.trials if t.arm == "hangs"]
    assert [t.record["reason"] for t in own] == ["it took longer than 3 s; --trial-minutes gives more"] * 2


def test_too_much_memory_fails_the_trial_alone(tmp_path: Path, clean: dict[Any, Any]) -> None:
    path = tmp_path / "hungry.py"
    path.write_text(sloppy.LOSS.format(title="hungry", deed="self.all = torch.ones(2**31)"), encoding="utf-8")
    running = Running(trial_memory="4GB")
    results = study_of("iris", [catalogue.add_file(path), "gradient-noise"], **SHORT, running=running).run()
    assert records(results.trials) == clean
    own = [t for t in results.trials if t.arm == "hungry"]
    assert {t.status for t in own} == {"failed"}
    assert all("allocate memory" in t.record["reason"] for t in own)


def test_an_arm_whose_process_dies_at_once_is_given_up(tmp_path: Path) -> None:
    (name,) = arms(tmp_path, "exits")
    results = study_of("iris", [name], **{**SHORT, "seeds": 6}).run()
    reasons = [t.record["reason"] for t in results.trials if t.arm == name]
    assert reasons[0] == "the worker died (exit code 3) three times"
    assert reasons[1:] == ["the worker died (exit code 3) three times on seed 0"] * 5


def test_what_is_given_up_takes_no_other_trial_with_it(tmp_path: Path) -> None:
    """All that a pool has just taken may be given up, and there is more to come."""
    (name,) = arms(tmp_path, "exits")
    study = study_of("iris", [name, "gradient-noise"], **{**SHORT, "seeds": 6})
    bench = study.bench()
    jobs = bench.jobs(study.plan.seeds, study.plan.arms, with_references=False)
    jobs.sort(key=lambda job: job.arm.name != name)  # the arm that dies first, all of it
    with closing(Workers(2)) as pool:
        ended = [job.key for group, _ in pool.run(study.context, [[job] for job in jobs], Silent()) for job in group]
    assert sorted(ended) == sorted(job.key for job in jobs)


def test_without_a_process_of_their_own_trials_count_for_no_other_study(tmp_path: Path) -> None:
    (name,) = arms(tmp_path, "seeds-numpy")
    beside = study_of("iris", ["gradient-noise", name], **SHORT, running=Running(apart=False))
    assert beside.apart is None
    results = beside.run()
    assert {t.status for t in results.trials if t.arm == name} == {"failed"}
    keys = {t.key for t in results.trials if t.arm in OTHERS}
    assert not keys & {t.key for t in study_of("iris", ["gradient-noise"], **SHORT).run().trials}
    assert all(t.plan["beside"] == [catalogue.digest(name)] for t in results.trials)


def test_a_technique_in_this_process_is_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("iris", ["gradient-noise"], **SHORT)
    job = study.bench().jobs((0,), study.plan.arms, with_references=False)[1]
    entry = catalogue.entry("gradient-noise")
    before = entry.gradients

    def gradients(self: Any, run: Any) -> None:
        torch.nn.functional.relu = torch.nn.functional.gelu
        before(self, run)

    relu = torch.nn.functional.relu
    monkeypatch.setattr(entry, "gradients", gradients)
    ran = guarded(study.context, [job])
    assert ran.touched
    assert not ran.lasting
    assert ran.trials[0].record["reason"] == "it changed what belongs to all trials: torch.nn.functional.relu"
    assert torch.nn.functional.relu is relu


def test_rows_that_were_changed_are_encoded_anew() -> None:
    splits = study_of("iris", ["gradient-noise"], **SHORT).context.splits
    before = splits.data(0).train.x.clone()
    assert splits.intact(0)
    splits.data(0).train.x[0, 0] += 1
    assert not splits.intact(0)
    assert splits.mended(0)
    assert torch.equal(splits.data(0).train.x, before)
    splits.data(1).test.y[[0, -1]] = splits.data(1).test.y[[-1, 0]]  # no sum would tell
    assert not splits.intact(1)


def test_libraries_may_load_and_nothing_is_told() -> None:
    guard = Untouched()
    import torch.distributions.kumaraswamy

    torch.optim.ASGD([torch.nn.Parameter(torch.zeros(1))])  # torch wraps its step when it is first made
    assert guard.look().what == ()
    guard.begin()
    torch.manual_seed(int(torch.initial_seed()) + 1)
    assert guard.look().what == ("torch's global random stream",)
    assert guard.look().what == ()


def test_draws_of_a_library_that_loads_are_told_from_a_technique_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Rich 15.0 does: its module of styles draws from Python's random stream when it is imported."""
    (tmp_path / "drawn_once.py").write_text("import random\nSTART = random.getrandbits(24)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    study = study_of("iris", ["gradient-noise"], **SHORT)
    job = study.bench().jobs((0,), study.plan.arms, with_references=False)[1]
    entry = catalogue.entry("gradient-noise")
    before, runs, always = entry.gradients, [], False

    def gradients(self: Any, run: Any) -> None:
        runs.append(run)
        importlib.import_module("drawn_once")
        if always:
            random.random()
        before(self, run)

    monkeypatch.setattr(entry, "gradients", gradients)
    state = random.getstate()
    ran = guarded(study.context, [job])
    assert not ran.touched
    assert ran.trials[0].status == "ok"
    assert len(runs) == 2 * 4  # four steps, done again once it was loaded
    assert random.getstate() == state
    del sys.modules["drawn_once"]
    always = True
    assert guarded(study.context, [job]).trials[0].record["reason"].endswith("Python's random stream")


def test_a_handler_that_torch_sets_is_no_change() -> None:
    """torch 2.13's DataLoader handles SIGCHLD from its first worker processes on."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        guard = Untouched()
        code = compile("def handler(number, frame): pass", f"{TORCH}utils/data/_utils/signal_handling.py", "exec")
        space: dict[str, Any] = {}
        exec(code, space)
        signal.signal(signal.SIGCHLD, space["handler"])
        assert guard.look().what == ()
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        assert guard.look().what == ("signal handlers",)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_a_process_that_a_trial_branches_off_has_no_part_in_what_follows() -> None:
    context = Study("iris", ["gradient-noise"], seeds=2, running=Running(timing=False, workers=1)).context
    for deed in (os.fork, lambda: sys.exit(3) if (pid := os.fork()) == 0 else pid):
        pid, found = watching(context, (), deed)
        if not pid:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert found.what == []


def test_what_records_and_measures_are_made_with_is_watched() -> None:
    context = Study("iris", ["gradient-noise"], seeds=2, running=Running(timing=False, workers=1)).context
    for module, name in ((json, "dumps"), (json.encoder.JSONEncoder, "default"), (metrics, "roc_auc_score")):
        true = getattr(module, name)
        _, found = watching(context, (), partial(setattr, module, name, lambda *a, **k: 1.0))
        assert getattr(module, name) is true
        assert len(found.what) == 1
        assert found.what[0].endswith(name)


def test_what_a_process_sends_is_read_before_it_is_believed() -> None:
    """Rows that nobody can read would end the study, and every later one that finds them in the store."""
    study = Study("iris", ["gradient-noise"], seeds=2, steps=4, running=Running(timing=False, workers=1))
    job, other = study.bench().jobs((0, 1), study.plan.arms, with_references=False)[1::2]
    (good,) = guarded(study.context, [job]).trials
    assert isolation.believed(study.context, [job], Ran([good])).trials == [good]
    empty = _MAGIC + zlib.compress(struct.pack("<II", 2, 0) + b"{}")
    bad = [replace(good, rows=empty), replace(good, record={}), replace(good, record={"measures": {"accuracy": "1"}})]
    bad += [replace(good, timing={"seconds": "long"}), replace(good, status="well")]
    for ran in [*([one] for one in bad), [], [good, good]]:
        (trial,) = isolation.believed(study.context, [job], Ran(ran)).trials
        assert (trial.key, trial.status, trial.rows) == (job.key, "failed", b"")
        assert trial.record["reason"].startswith("what its process sent cannot be read (")
    (trial,) = isolation.believed(study.context, [other], Ran([good])).trials
    assert (trial.key, trial.seed, trial.status) == (other.key, 1, "failed"), "another's trial"


def test_folders_for_temporary_files_are_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of processes come again, and on a shared disk others have them too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first, second = Scratch(), Scratch()
    folders = []
    for scratch in (first, second):
        scratch.begin()
        scratch.enter()
        folders.append(Path(tempfile.gettempdir()))
        (folders[-1] / "kept").touch()
        tempfile.tempdir = str(tmp_path)
    assert folders[0] != folders[1]
    assert all(folder.name == str(os.getpid()) for folder in folders)
    first.remove(os.getpid())
    assert [folder.exists() for folder in folders] == [False, True]
    folders[0].symlink_to(folders[1])
    first.remove(os.getpid())
    first.end()
    assert (folders[1] / "kept").exists(), "what a link leads to is another's"
    second.end()
    assert [*tmp_path.iterdir()] == []


def test_where_no_folder_can_be_made_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**terms: str) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    before, scratch = tempfile.gettempdir(), Scratch()
    scratch.begin()
    scratch.enter()
    assert tempfile.gettempdir() == before
    scratch.remove(1)
    scratch.end()
    assert Path(before).is_dir()


def test_a_time_limit_and_what_it_is_by_default() -> None:
    with pytest.raises(TimeUp, match=r"longer than 0\.05 s"), at_most(0.05):
        threading.Event().wait(20)
    with at_most(None):
        pass
    limit = Limit()
    assert limit.seconds() is None
    limit.seen(trial("gradient-noise", 1e5), "baseline")
    assert limit.seconds() is None
    limit.seen(trial("baseline", 2.0), "baseline")
    assert limit.seconds() == 900
    limit.seen(trial("baseline", 20.0), "baseline")
    assert limit.seconds() == 2000
    limit.given = 5.0
    assert limit.seconds() == 5


def trial(arm: str, seconds: float) -> Trial:
    return Trial("k", "s", arm, 0, "fit", "ok", {}, {}, {"seconds": seconds})


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_limit_that_is_none(value: float) -> None:
    with pytest.raises(InputError, match="trial_minutes is"):
        Study("iris", ["gradient-noise"], running=Running(trial_minutes=value))
    with pytest.raises(InputError, match="trial_memory is"):
        Study("iris", ["gradient-noise"], running=Running(trial_memory=value))
