"""What techniques from outside leave in their own process, what they report, and what is asked of them before trials."""

from __future__ import annotations

import enum
import pickle
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sloppy
from loosely import study_of
from probatum import catalogue
from probatum.bench.isolation import Printed
from probatum.bench.parcel import pack
from probatum.bench.plain import plain, received
from probatum.bench.store import REMARK, Trial
from probatum.errors import InputError
from probatum.settings import Running

SHORT: dict[str, Any] = {"seeds": 2, "steps": 4, "timing": False, "references": False, "confirm": False}


@pytest.fixture(autouse=True)
def none_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", {})


def learner(folder: Path, name: str, report: str) -> str:
    text = sloppy.LEARNER.format(title=name, deed="pass")
    path = folder / f"{name}.py"
    path.write_text(f"{text}\n    def report(self):\n        return {report}\n", encoding="utf-8")
    return catalogue.add_file(path)


REPORTS = {
    "words": "{'share': 'most'}",
    "names": "{Kind.A: 1.0}",
    "many": "{'shares': torch.ones(2)}",
    "list": "[1.0]",
    "complex": "{'z': 1j}",
}


def test_what_a_report_holds_besides_numbers_fails_its_own_trials(tmp_path: Path) -> None:
    good = learner(tmp_path, "good", "{'a': Own(2.5), 'b': np.float32(0.5), 'c': torch.tensor(3), Word('d'): True}")
    assert_good(study_of("iris", [good, "gradient-noise"], **SHORT).run().trials)
    assert not imported(tmp_path)
    for name, report in REPORTS.items():  # as named by the user they are refused at once
        with pytest.raises(InputError, match=rf"{name} does not run .*report\(\) of {name}"):
            study_of("iris", [learner(tmp_path, name, report)], **SHORT)
    later = learner(tmp_path, "later", "{'share': 'most'} if len(self.data.train) > 200 else {}")
    trials = study_of("breast-cancer", [later, "gradient-noise"], **SHORT).run().trials
    assert all("give one real number" in t.record["reason"] for t in trials if t.arm == "later")
    assert {t.status for t in trials if t.arm != "later"} == {"ok"}


def imported(folder: Path) -> list[str]:
    """Modules of files in this folder that this process has loaded."""
    files = {name: str(getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items())}
    return [name for name, file in files.items() if file.startswith(str(folder))]


def assert_good(trials: tuple[Trial, ...]) -> None:
    for trial in (t for t in trials if t.arm == "good"):
        effects = trial.record["details"]["effects"]
        assert effects == {"a": 2.5, "b": 0.5, "c": 3.0, "d": 1.0}
        assert {type(key) for key in effects} == {str}
        assert {type(value) for value in effects.values()} == {float}


def test_every_trial_of_a_file_begins_anew(tmp_path: Path) -> None:
    """What a module keeps would make a trial depend on those before it, and a resumed study another one."""
    name = learner(tmp_path, "counts", "{'count': float(COUNT.append(0) or len(COUNT))}")
    trials = study_of("iris", [name], **{**SHORT, "seeds": 3}).run().trials
    counts = [t.record["details"]["effects"]["count"] for t in trials if t.arm == "counts"]
    assert counts == [counts[0]] * 3


def test_what_a_file_keeps_in_temporary_files_no_other_trial_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights kept "for the next time" would have seen the rows that the next seed tests."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    name = learner(tmp_path, "keeps", "{'seen': float(SEEN)}")
    path, keeping = catalogue.place(name).path, "kept = tempfile.mkstemp(prefix='kept')"
    deed = f"import os\nimport tempfile\n\nSEEN = len(os.listdir(tempfile.gettempdir()))\n{keeping}\n"
    path.write_text(path.read_text(encoding="utf-8").replace("import enum\n", f"{deed}import enum\n"), encoding="utf-8")
    catalogue._added.clear()
    catalogue.add_file(path)
    trials = study_of("iris", [name], **{**SHORT, "seeds": 3}).run().trials
    assert [t.record["details"]["effects"]["seen"] for t in trials if t.arm == "keeps"] == [0.0] * 3
    ends = time.monotonic() + 60
    while (left := [*folder.glob("probatum-workers-*/*")]) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not left
    assert len([*folder.glob("probatum-workers-*")]) == 1, "the nursery's own, as long as it is there"


def test_nothing_that_an_arm_started_outlives_it(tmp_path: Path) -> None:
    seconds = "86399.25"
    path = tmp_path / "leaves.py"
    started = f"subprocess.Popen(['sleep', '{seconds}'], start_new_session=True)"
    path.write_text(sloppy.LOSS.format(title="leaves", deed=f"import subprocess; {started}; os._exit(3)"))
    trials = study_of("iris", [catalogue.add_file(path)], **SHORT).run().trials
    assert next(t.record["reason"] for t in trials if t.arm == "leaves") == "the worker died (exit code 3) three times"
    ends = time.monotonic() + 60
    while sleeping(seconds) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not sleeping(seconds)


def sleeping(seconds: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if seconds.encode() in words:
            found.append(str(path))
    return found


MODEL = '''"""A network, and a deed when the file is loaded.

Paper     none
Computes  logits
Shapes    x (n, features) -> (n, classes)
Departs   none
"""

import torch
from torch import nn

from probatum.card import Card

CARD = Card(paper="unpublished", title="own", entry="Own", slot="model", tags=("own",), tasks=("classes",))
{deed}


class Own(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.shape[0], spec.outputs)

    def forward(self, x):
        return self.layer(x)
'''


@pytest.mark.parametrize("workers", ["auto", 1])
def test_a_network_from_a_file_runs_apart_too(workers: Any, tmp_path: Path) -> None:
    path = tmp_path / "own_net.py"
    path.write_text(MODEL.format(deed=""), encoding="utf-8")
    running = Running(workers=workers, speed="auto" if workers == 1 else "plain")
    study = study_of("iris", ["gradient-noise"], model=catalogue.add_file(path), **SHORT, running=running)
    assert {t.status for t in study.run().trials} == {"ok"}
    assert not imported(tmp_path)


def test_what_a_file_does_when_it_is_loaded_is_told(tmp_path: Path) -> None:
    path = tmp_path / "own_net.py"
    path.write_text(MODEL.format(deed="nn.functional.relu = torch.sigmoid"), encoding="utf-8")
    with pytest.raises(InputError, match=r"the baseline cannot take part: it changed .*torch\.nn\.functional\.relu"):
        study_of("iris", ["gradient-noise"], model=catalogue.add_file(path), **SHORT)


def test_a_probe_that_hangs_takes_no_longer_than_its_trials(tmp_path: Path) -> None:
    path = tmp_path / "hangs.py"
    path.write_text(sloppy.LOSS.format(title="hangs", deed="time.sleep(3600)"), encoding="utf-8")
    study = study_of("iris", [catalogue.add_file(path)], **{**SHORT, "steps": 300}, running=Running(trial_minutes=0.05))
    jobs = [
        job for job in study.bench().jobs((0, 1), study.plan.arms, with_references=False) if job.arm.name == "hangs"
    ]
    assert study.apart is not None
    with pytest.raises(InputError, match=r"hangs was tried on a few rows, and it took longer than 6 s"):
        study.apart.probe(study.context, jobs)
    study.apart.close()


def test_what_a_probe_touches_is_told_with_the_trials(tmp_path: Path) -> None:
    path, flag = tmp_path / "once.py", str(tmp_path / "done")  # in its probe alone, which comes first
    deed = f"os.path.exists({flag!r}) or (os.mkdir({flag!r}), torch.set_default_dtype(torch.float64))"
    path.write_text(sloppy.LOSS.format(title="once", deed=deed), encoding="utf-8")
    trials = study_of("iris", [catalogue.add_file(path)], **{**SHORT, "steps": 300}).run().trials
    told = [t for t in trials if t.arm == "once"]
    assert all("the default dtype" in str((t.record, t.timing)) for t in told)


def test_an_arm_that_touches_others_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("iris", ["gradient-noise"], **SHORT)
    study.run()
    entry = catalogue.entry("gradient-noise")
    before = entry.gradients

    def gradients(self: Any, run: Any) -> None:
        torch.set_default_dtype(torch.float64)
        before(self, run)

    monkeypatch.setattr(entry, "gradients", gradients)
    with pytest.raises(InputError, match=r"gradient-noise cannot be shipped: it changed .*: the default dtype"):
        study.ship("gradient-noise", tmp_path / "model")
    assert torch.get_default_dtype() == torch.float32
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_edited_meanwhile_counts_as_it_was(tmp_path: Path) -> None:
    """Trials of the file as it was were kept under the key of the edited one, and later studies took them over."""
    path = sloppy.placed(tmp_path, "seeds-numpy")
    plain_text = path.read_text().replace("np.random.seed(0)", "pass")
    path.write_text(plain_text, encoding="utf-8")
    name = catalogue.add_file(path)
    study = study_of("iris", [name], **SHORT)
    before = {job.key for job in study.bench().jobs((0,), study.plan.arms, with_references=False)}
    path.write_text(plain_text.replace("cross-entropy, and", "cross-entropy and"), encoding="utf-8")
    assert {job.key for job in study.bench().jobs((0,), study.plan.arms, with_references=False)} == before
    again = replace(study.context)  # another process would be given the file as it is now
    with pytest.raises(InputError, match=r"seeds_numpy\.py was edited while the study was made or run"):
        pack(again)
    assert catalogue.add_file(path) == name
    assert not catalogue.edited(name)
    later = study_of("iris", [name], **SHORT)
    after = {job.key for job in later.bench().jobs((0,), later.plan.arms, with_references=False)}
    assert len(after - before) == 1


def test_learners_may_draw_from_torch_s_stream(tmp_path: Path) -> None:
    """Layers, loaders and the like draw from there; each trial's draws are its own, and the same again."""
    path = tmp_path / "draws.py"
    deed = "self.layer = torch.nn.Linear(2, 2); return torch.rand(len(part), self.k).softmax(1)"
    path.write_text(sloppy.LEARNER.format(title="draws", deed=deed), encoding="utf-8")
    state = torch.get_rng_state()
    runs = [study_of("iris", [catalogue.add_file(path)], **SHORT).run().trials for _ in range(2)]
    own = [[t.record["digest"] for t in trials if t.arm == "draws"] for trials in runs]
    assert own[0] == own[1]
    assert {t.status for t in runs[0]} == {"ok"}
    assert torch.equal(torch.get_rng_state(), state)


def test_what_no_file_can_hold_is_written_out(tmp_path: Path) -> None:
    """As names of files in other encodings come from the operating system: half a character."""
    path = tmp_path / "names.py"
    deed = "raise ValueError('cannot read caf\\udce9.txt')"
    path.write_text(sloppy.LOSS.format(title="names", deed=deed), encoding="utf-8")
    study = study_of("iris", [catalogue.add_file(path), "gradient-noise"], **SHORT)
    reasons = [t.record["reason"] for t in study.run().trials if t.arm == "names"]
    assert all(r"caf\udce9.txt" in reason for reason in reasons)
    assert r"caf\udce9.txt" in study.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert plain({"caf\udce9": ["\udce9", "\U0001f600"]}) == {r"caf\udce9": [r"\udce9", "\U0001f600"]}


def test_standard_output_is_what_programs_expect_of_it(tmp_path: Path) -> None:
    printed = Printed()
    printed.buffer.write(b"bytes, ")
    print("words \udce9", file=printed)
    printed.reconfigure(line_buffering=True)
    assert printed.encoding.lower() == "utf-8"
    assert printed.fileno() == 1
    (told,) = printed.told([Trial("k", "s", "arm", 0, "fit", "ok", {}, {}, {})])
    assert told.timing[REMARK] == r"it printed 20 characters, beginning 'bytes, words \\udce9'"
    assert printed.told([told]) == [told]


class Grade(enum.IntEnum):
    A = 1


def test_plain_values() -> None:
    found = plain({"a": (np.float32(0.5), torch.tensor(2)), 3: Grade.A, "none": None, "b": np.int64(7)})
    assert found == {"a": [0.5, 2], "3": 1, "none": None, "b": 7}
    assert type(found["3"]) is int
    for wrong in ({"a": torch.ones(2)}, {"a": 1j}, {("a", 1): 1}, {"a": {1, 2}}, {"a": object()}):
        with pytest.raises(TypeError, match="cannot be kept"):
            plain(wrong)


def test_a_process_sends_no_classes_of_its_own() -> None:
    trial = Trial("k", "s", "arm", 0, "fit", "ok", {}, {"a": 1.0}, {})
    assert received(pickle.dumps(("done", [trial]))) == ("done", [trial])
    for wrong in (Grade.A, Path("x"), np.float32(1)):
        with pytest.raises(pickle.UnpicklingError, match="a process sent"):
            received(pickle.dumps(("done", wrong)))
