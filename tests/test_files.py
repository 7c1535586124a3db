"""Files that commands write: tried before long work, whole or not at all, and one clear line where it cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from commands import told
from probatum.errors import InputError
from probatum.files import check_folder, check_writable, write_whole

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
