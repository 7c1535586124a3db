"""Files that a command writes: tried before long work, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from probatum.errors import InputError

ROOM = 8192
"""Bytes that must fit beside a file that will be written."""
PART = ".part"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk, a quota and a process's limit."""
MEMORY = 1
"""Major number, on Linux, of /dev/null, /dev/full and their like, which can be written to as a trial."""


def check_writable(path: str | os.PathLike[str] | None, option: str = "") -> None:
    """Before any long work: the file can be written, as far as trying tells. A pipe or a terminal is left alone.

    Args:
        path: the file, which may be there already; None = nothing is to be written.
        option: what it was given as, e.g. ``"--report"``.

    Raises:
        InputError: it is a folder, its folder is not there, it may not be written, or there is no room.
    """
    if path is None:
        return
    asked = " ".join(filter(None, (option, os.fspath(path))))
    place = Path(os.path.realpath(path))  # a link is written where it leads
    if place.is_dir():
        raise InputError(f"{asked} is a folder; name a file in it")
    if not place.parent.is_dir():
        raise InputError(f"{asked}: the folder {place.parent} does not exist; make it first")
    try:
        if _special(place):
            _try_device(place)
            return
        if place.exists() and not os.access(place, os.W_OK):
            raise InputError(f"{asked} is not writable; change its permissions, or name another file")
        if not os.access(place.parent, os.W_OK):
            raise InputError(f"{asked}: the folder {place.parent} is not writable; name another")
        with tempfile.TemporaryFile(dir=place.parent) as file:  # without a name, so that no killed process leaves one
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())  # some file systems find out only here that they are full
    except OSError as problem:
        raise _cannot(asked, problem) from problem


def check_folder(path: str | os.PathLike[str] | None, option: str = "") -> None:
    """Before any long work: the folder is there, or is made, and takes files; see `check_writable`."""
    if path is None:
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(
            f"{option} {path}: the folder cannot be made ({problem.strerror or problem}); name another"
        ) from problem
    check_writable(Path(path) / "trial", option)


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    """Write beside the file and move it into place; what was there stays where that fails, and nothing half is left.

    Raises:
        InputError: it cannot be written; the message says why.
    """
    write_together({Path(path): text})
    return Path(path)


def write_together(texts: Mapping[Path, str]) -> None:
    """Files that belong together, as `write_whole` writes one: none is moved into place before all of them are written.

    Raises:
        InputError: one of them cannot be written; the message says which and why.
    """
    parts: list[tuple[Path, Path]] = []
    try:
        for path, text in texts.items():
            place = Path(os.path.realpath(path))
            part = place if _special(place) else place.with_name(place.name + PART)
            try:
                if part != place:
                    parts.append((part, place))
                part.write_text(text, encoding="utf-8")
            except OSError as problem:
                raise _cannot(os.fspath(path), problem) from problem
        for part, place in parts:
            try:
                os.replace(part, place)
            except OSError as problem:
                raise _cannot(os.fspath(place), problem) from problem
    except BaseException:
        for part, _ in parts:
            with suppress(OSError):
                part.unlink()
        raise


def no_room(problem: BaseException) -> str:
    """What an error says of a disk that takes no more, with the file where it names one; "" where it is another error."""
    if not isinstance(problem, OSError):
        return ""
    said = problem.strerror or str(problem)
    if problem.errno in NO_ROOM or "usable temporary directory" in said:
        return f"{said}: {problem.filename}" if problem.filename else said
    return ""


def _special(path: Path) -> bool:
    """Whether it is there and is no file: a device or a pipe, which must not be replaced by one."""
    return path.exists() and not path.is_file()


def _try_device(path: Path) -> None:
    found = path.stat()
    memory = stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == MEMORY
    if memory:
        path.write_bytes(b"\n")


def _cannot(asked: str, problem: OSError) -> InputError:
    remedy = "make room there, or name another file" if no_room(problem) else "name another file"
    return InputError(f"{asked} cannot be written: {problem.strerror or problem}; {remedy}")
