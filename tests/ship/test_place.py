"""Shipping that ends early, by a full disk, Ctrl-C or a kill, leaves nothing that is in the way of the next."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.numpy
import torch
from safetensors import SafetensorError

from probatum import Study
from probatum.errors import InputError
from probatum.settings import Judging, Running
from probatum.ship import place, seen, write
from probatum.ship.load import load

HERE = "this_machine"


@pytest.fixture(scope="module")
def study() -> Study:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(90, generator=draw).tolist()
    found = Study(
        pl.DataFrame({"x": x, "y": [int(value > 0) for value in x]}),
        ["h-calibration(window=20, steps=20)"],
        target="y",
        seeds=6,
        steps=2,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    )
    found.run()
    return found


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take longer than all the rest."""
    monkeypatch.setattr(write, "export_onnx", lambda *_: {"written": False, "reason": "left out here"})


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on the disk is full once half of the file of this name is written; "" for none."""
    name = ""

    def stops(path: Any, problem: Exception) -> None:
        if Path(path).name == name:
            Path(path).write_bytes(b"half")
            raise problem

    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for module in (write, seen, safetensors.numpy):
        true = module.save_file  # type: ignore[attr-defined]

        def save(tensors: Any, path: Any, true: Any = true) -> None:
            stops(path, SafetensorError("I/O error: No space left on device (os error 28)"))
            true(tensors, path)

        monkeypatch.setattr(module, "save_file", save)
    true_text, true_folder, true_rename = Path.write_text, Path.mkdir, Path.rename

    def write_text(self: Path, *values: Any, **named: Any) -> int:
        stops(self, no_space)
        return true_text(self, *values, **named)

    def mkdir(self: Path, *values: Any, **named: Any) -> None:
        if name == "mkdir" and self.name.startswith(".shipping-"):
            raise no_space
        true_folder(self, *values, **named)

    def rename(self: Path, target: Path) -> Path:
        if name == "rename" or (name == "move" and self.name == "pipeline.json"):
            raise no_space
        return true_rename(self, target)

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rename", rename)

    def now(of: str) -> None:
        nonlocal name
        name = of

    return now


PLACES = [
    "mkdir",
    "model.safetensors",
    "pipeline.json",
    "pipeline.safetensors",
    "refit.safetensors",
    "refit.json",
    "seen.safetensors",
    "evidence.json",
    "README.md",
    "model.json",
    "manifest.json",
    "rename",
]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.usefixtures("no_export")
def test_a_full_disk_is_one_line_and_no_leftover(
    study: Study, full: Callable[[str], None], tmp_path: Path, name: str
) -> None:
    arm = study.plan.arms[0].name
    full(name)
    with pytest.raises(InputError, match=r"No space left on device.*trials are kept") as problem:
        study.ship(arm, tmp_path / "new" / "model")
    assert name in str(problem.value) or name in ("mkdir", "rename")
    assert not list(tmp_path.iterdir())
    full("")
    load(study.ship(arm, tmp_path / "new" / "model"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_a_full_disk_is_no_fault_of_the_exporter(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="nothing is exported without it")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")

    class Full:
        def save(self, path: str) -> None:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Full())
    with pytest.raises(InputError, match=r"model\.onnx could not be written \(No space"):
        study.ship("baseline", tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["README.md", "manifest.json", "move"])
@pytest.mark.usefixtures("no_export")
def test_an_empty_folder_stays_itself(study: Study, full: Callable[[str], None], tmp_path: Path, name: str) -> None:
    """It may be a mount point, a link, or where a shell stands."""
    (tmp_path / "there").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "there")
    before = (tmp_path / "there").stat().st_ino
    full(name)
    with pytest.raises(InputError, match="No space left"):
        study.ship("baseline", tmp_path / "model")
    assert not list((tmp_path / "there").iterdir())
    full("")
    load(study.ship("baseline", tmp_path / "model"))
    assert (tmp_path / "there").stat().st_ino == before
    assert not list((tmp_path / "there").glob(".*"))


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
@pytest.mark.usefixtures("no_export")
def test_what_ends_early_leaves_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException]
) -> None:
    def stop(*_: object) -> None:
        assert list(tmp_path.iterdir())  # it is being written
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(write, "model_card", stop)
        with pytest.raises(problem):
            study.ship("baseline", tmp_path / "model")
    assert not list(tmp_path.iterdir())
    load(study.ship("baseline", tmp_path / "model"))


def left_by(process: int, home: Path) -> Path:
    """What a process that was killed in the middle leaves."""
    found = home / f".shipping-{HERE}-{process}-0123abcd"
    found.mkdir(parents=True)
    (found / "model.safetensors").write_bytes(b"half")
    return found


def dead() -> int:
    """The number of a process that runs no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.usefixtures("no_export")
def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_host", lambda: HERE)
    killed, running = left_by(dead(), tmp_path), left_by(os.getppid(), tmp_path)
    elsewhere = tmp_path / f".shipping-other-{dead()}-0123abcd"
    elsewhere.mkdir()
    load(study.ship("baseline", tmp_path / "model"))
    assert not killed.exists()
    assert running.exists()
    assert elsewhere.exists()


@pytest.mark.usefixtures("no_export")
def test_a_folder_that_a_killed_process_was_filling_counts_as_empty(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_host", lambda: HERE)
    left_by(dead(), tmp_path / "model")
    (tmp_path / "model" / "evidence.json").write_text("{}")  # moved up already
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        study.ship("baseline", tmp_path / "model")
    assert (tmp_path / "model" / "evidence.json").exists()
    (tmp_path / "model" / "mine.txt").unlink()
    load(study.ship("baseline", tmp_path / "model"))


@pytest.mark.usefixtures("no_export")
def test_what_a_second_shipping_put_there_first_stays(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> str:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").write_text("x")
        return "card"

    monkeypatch.setattr(write, "model_card", other)
    with pytest.raises(InputError, match="was not shipped: the folder could not be written"):
        study.ship("baseline", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["theirs"]


def test_a_place_that_cannot_be_written_is_told_before_any_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study("iris", ["encouraging-loss"], seeds=6, steps=2)
    monkeypatch.setattr(Study, "run", lambda self: pytest.fail("trials were run"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        study.ship("baseline", tmp_path / "file" / "model")
    with pytest.raises(InputError, match="not an empty folder"):
        study.ship("baseline", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="is not writable"):
        study.ship("baseline", tmp_path / "model")


@pytest.mark.usefixtures("no_export")
def test_all_files_are_for_whom_the_folder_is(study: Study, tmp_path: Path) -> None:
    folder = study.ship("baseline", tmp_path / "model")
    wanted = folder.stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {wanted}


@pytest.mark.usefixtures("no_export")
def test_a_diverged_training_is_not_shipped(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = write.fit

    def diverged(work: Any) -> Any:
        fitted = true(work)
        with torch.no_grad():
            next(fitted.model.parameters()).fill_(torch.nan)
        return fitted

    monkeypatch.setattr(write, "fit", diverged)
    monkeypatch.setattr(write, "looked_at", lambda *_: None)
    monkeypatch.setattr(write, "digest", lambda *_: "")
    with pytest.raises(InputError, match=r"baseline diverged: .* that are NaN"):
        study.ship("baseline", tmp_path / "model")
    assert not list(tmp_path.iterdir())
