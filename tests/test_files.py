"""Files that commands write: tried before long work, whole or not at all, and one clear line where it cannot be."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from commands import told
from probatum.cli.main import main
from probatum.errors import InputError
from probatum.files import check_folder, check_writable, no_room, write_together, write_whole
from processes import started

pytestmark = pytest.mark.fast


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    check_writable(path, "--to")
    assert list(tmp_path.iterdir()) == []
    assert write_whole(path, "µ") == path
    write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there_and_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    write_whole(path, "old")

    def half(self: Path, text: str, encoding: str) -> None:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:3])
        full()

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(InputError, match=r"r\.html cannot be written: No space left on device; make room"):
        write_whole(path, "new text")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_is_found_before_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"--json .*j\.json cannot be written: No space left"):
        check_writable(tmp_path / "j.json", "--json")
    assert list(tmp_path.iterdir()) == []


def test_no_killed_process_leaves_what_it_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Path]] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(list(tmp_path.iterdir())))
    check_writable(tmp_path / "j.json")
    assert seen == [[]]


def test_files_that_belong_together_are_all_old_or_all_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, told = tmp_path / "a.html", tmp_path / "a.json"
    write_together({told: "old", page: "old"})
    monkeypatch.setattr(Path, "write_text", lambda self, *_, **__: full() if "html" in self.name else self.touch())
    with pytest.raises(InputError, match=r"a\.html cannot be written: No space left"):
        write_together({told: "new", page: "new"})
    monkeypatch.undo()
    assert [path.read_text() for path in (page, told)] == ["old", "old"]
    assert set(tmp_path.iterdir()) == {page, told}


def test_which_errors_are_of_a_full_disk() -> None:
    assert no_room(OSError(errno.ENOSPC, "No space left on device", "/x/y")) == "No space left on device: /x/y"
    assert no_room(OSError(errno.EFBIG, "File too large")) == "File too large"
    assert no_room(FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"))
    assert no_room(FileNotFoundError(errno.ENOENT, "No such file")) == no_room(ValueError("No space left")) == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there are no such devices")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_no_more(unbuffered: str, tmp_path: Path) -> None:
    with (
        open("/dev/full", "w") as out,
        started(
            sys.executable, "-m", "probatum", "list", env={"PYTHONUNBUFFERED": unbuffered}, stdout=out.fileno()
        ) as process,
    ):
        said = process.communicate()[1]
    assert process.returncode == 2
    assert said.startswith("error: there is no room left (No space left on device)")
    assert said.count("\n") == 1


def test_an_output_without_a_buffer_that_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(io.RawIOBase):
        written = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if self.written:
                full()
            self.written = 10
            return 10

    told_first, said = io.TextIOWrapper(Short(), write_through=True), io.StringIO()  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdout", told_first)
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "argv", ["probatum", "list"])
    with pytest.raises(SystemExit) as end:
        main()
    monkeypatch.undo()
    assert end.value.code == 2
    assert "no room left" in said.getvalue()


def test_what_cannot_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path, "--to")
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "no" / "r.html", "--to")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*the folder cannot be made"):
        check_folder(tmp_path / "file", "--out")
    check_folder(tmp_path / "new" / "one", "--out")
    assert (tmp_path / "new" / "one").is_dir()
    check_writable(None)
    check_folder(None)


def test_what_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("kept")
    monkeypatch.setattr(os, "access", lambda place, mode: place != path)  # root may write anywhere
    with pytest.raises(InputError, match="is not writable"):
        check_writable(path, "--to")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(InputError, match=r"the folder .* is not writable"):
        check_writable(tmp_path / "other.html", "--to")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there are no such devices")
def test_devices_stay_what_they_are() -> None:
    check_writable("/dev/null", "--to")
    write_whole("/dev/null", "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(InputError, match="--to /dev/full cannot be written: No space left"):
        check_writable("/dev/full", "--to")
    with pytest.raises(InputError, match="/dev/full cannot be written"):
        write_whole("/dev/full", "text")
    assert Path("/dev/full").is_char_device()


def test_a_link_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "there.html")
    check_writable(tmp_path / "link.html")
    write_whole(tmp_path / "link.html", "text")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "there.html").read_text() == "text"


@pytest.mark.parametrize("option", ["--report", "--json", "--store"])
def test_a_study_says_before_it_begins_that_nothing_can_be_written(option: str) -> None:
    run = told("try", "gradient-noise", "--data", "nowhere.csv", option, "/dev/full")
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "/dev/full" in run.stderr
    assert "nowhere" not in run.stderr
