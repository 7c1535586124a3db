"""A folder that is written beside its place and moved there when it is whole, so that nothing is ever half shipped.

A new folder is written in its parent and renamed. One that is there already, and empty, may be a mount point, a link or
somebody's working directory, so it stays itself: it is written into a folder inside, whose files then move up. Either
way the folder that is written into has a hidden name that says which process writes; what a killed process left under
such a name blocks nobody and is removed by whoever ships there next.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from probatum.errors import InputError

LAST = "manifest.json"
"""What is moved last into a folder that was there: a folder with it is whole."""
WRITTEN = frozenset(
    [
        "model.safetensors",
        "model.json",
        "pipeline.json",
        "pipeline.safetensors",
        "refit.safetensors",
        "refit.json",
        "model.onnx",
        "model.onnx.data",
        "seen.safetensors",
        "evidence.json",
        "README.md",
    ]
)
"""What a killed process may have moved up already."""
UNFINISHED = re.compile(r"\.shipping-([A-Za-z0-9._]+)-(\d+)-[0-9a-f]{8}")


def check_target(folder: Path) -> None:
    """Before any long work: InputError where something stands at a folder's place, or where it cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} exists and is not an empty folder; name a new one")
    if folder.is_dir() and set(folder.iterdir()) - _leftovers(folder):
        raise InputError(f"{folder} exists and is not an empty folder; name a new one")
    parent = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    if not parent.is_dir():
        raise InputError(f"{folder} cannot be written: {parent} is a file; name another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: {parent} is not writable; name another folder")


@contextmanager
def in_place(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends well and is gone when it does not.

    Raises:
        InputError: something stands at its place, or it cannot be written.
    """
    check_target(folder)
    target = folder.resolve()
    inside = target.is_dir()
    home = target if inside else target.parent
    created = [] if inside else [parent for parent in (home, *home.parents) if not parent.exists()]
    own = home / f".shipping-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with writing(folder, "the folder"):
            home.mkdir(parents=True, exist_ok=True)
            _clear(home, inside)
            own.mkdir()
        yield own
        with writing(folder, "the folder"):
            _readable(own)
            if inside:
                _move_up(own, target)
            else:
                own.rename(target)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(own, ignore_errors=True)
        for parent in created:
            with suppress(OSError):  # not there, or another's by now
                parent.rmdir()
        raise


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """A block that writes one file of a folder to be shipped; where the disk takes no more, it is said in one line."""
    try:
        yield
    except (OSError, SafetensorError) as problem:
        reason = os.strerror(problem.errno) if isinstance(problem, OSError) and problem.errno else str(problem)
        raise InputError(
            f"{folder} was not shipped: {what} could not be written ({reason.strip()}), and nothing of it was left; the "
            "study's trials are kept, so make room or name another folder and ship again"
        ) from problem


def _move_up(own: Path, target: Path) -> None:
    names = sorted((path.name for path in own.iterdir()), key=lambda name: name == LAST)
    moved: list[Path] = []
    try:
        for name in names:
            if (target / name).exists():
                raise InputError(f"{target / name} has come there meanwhile; name a new folder")
            moved.append((own / name).rename(target / name))
        own.rmdir()
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise


def _readable(folder: Path) -> None:
    """Files for whom the folder is: safetensors makes its own for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(mode)


def _clear(home: Path, inside: bool) -> None:
    for path in _leftovers(home) if inside else _unfinished(home):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _leftovers(folder: Path) -> set[Path]:
    """What killed processes left of shipping into a folder that was there: their own folders, and what they had moved up."""
    unfinished = _unfinished(folder)
    return unfinished and unfinished | {folder / name for name in WRITTEN if (folder / name).is_file()}


def _unfinished(home: Path) -> set[Path]:
    """Folders that processes of this machine that run no more were writing into."""
    if os.name != "posix":  # where a process cannot be asked whether it runs
        return set()
    found = set()
    for path in home.iterdir():
        match = UNFINISHED.fullmatch(path.name)
        if match is not None and match.group(1) == _host() and not _runs(int(match.group(2))):
            found.add(path)
    return found


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another's
        return True
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())[:60] or "here"
