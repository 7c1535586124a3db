"""What is said, in one line each, when a store cannot be opened, read or written."""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import struct
from pathlib import Path

import sqlalchemy as sa

from probatum.errors import InputError

WAIT_SECONDS = 60
"""How long a writer waits for another process that is writing."""
NO_PRIVILEGE = "42501"
"""PostgreSQL's code of "insufficient privilege"."""
MAGIC = b"SQLite format 3\x00"
GOES_ON = "what has ended is stored, and the same command goes on from there"


class Broken(InputError):
    """The file itself is damaged, not a record in it."""


def one_line(error: BaseException | None) -> str:
    """What the driver says, in one line."""
    words = " ".join(str(error).split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def plain(name: str, error: Exception) -> InputError | None:
    """An error of the database in words; None where it is a fault of the program."""
    if isinstance(error, sqlite3.Error):  # while a connection is made
        return _of_sqlite(name, error)
    if isinstance(error, UnicodeDecodeError):  # SQLite quotes from a damaged schema what is no text
        return broken(name, "its schema is no text")
    if not isinstance(error, sa.exc.DBAPIError):
        return None
    if error.connection_invalidated:
        return InputError(
            f"{name}: the connection is lost ({one_line(error.orig)}); the same command goes on where it was"
        )
    if getattr(error.orig, "sqlstate", None) == NO_PRIVILEGE:
        return InputError(
            f"{name}: {one_line(error.orig)}; the user must own the database, or be granted what is missing"
        )
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(name, error.orig)
    return None


def _of_sqlite(name: str, error: sqlite3.Error) -> InputError | None:
    said = one_line(error)
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE):
        return None
    told = {
        sqlite3.SQLITE_BUSY: f"another process has held it for {WAIT_SECONDS} s ({said}); {GOES_ON}",
        sqlite3.SQLITE_LOCKED: f"another process holds it ({said}); {GOES_ON}",
        sqlite3.SQLITE_FULL: f"there is no room left ({said}); {GOES_ON} when there is",
        sqlite3.SQLITE_IOERR: f"it cannot be read or written ({said}), as on a full disk; {GOES_ON} when it can",
        sqlite3.SQLITE_CANTOPEN: f"it cannot be opened ({said}); see to its folder and permissions, or give another path",
        sqlite3.SQLITE_READONLY: f"it cannot be written ({said}); change its permissions, or give another path, and "
        "where it may be written, it is damaged: `probatum runs --repair` makes a new file of what can be read",
        sqlite3.SQLITE_NOMEM: f"there is not enough memory to read it ({said})",
    }
    if code in told:
        return InputError(f"{name}: {told[code]}")
    return broken(name, said)


def broken(name: str, why: str) -> Broken:
    """A file that begins as ours and is damaged, or is somebody else's database."""
    if "://" in name:
        return Broken(f"{name} is corrupted or not a Probatum store ({why}); give another database")
    return Broken(
        f"{name} is corrupted or not a Probatum store ({_cut_off(Path(name)) or why}); `probatum runs --repair {shlex.quote(name)}` "
        "makes a new file of what can be read in it, or give another path"
    )


def _cut_off(path: Path) -> str:
    """How much of a file is left that is shorter than it says of itself; "" where it is not."""
    try:
        if Path(f"{path}-wal").is_file():  # then pages may be there
            return ""
        with path.open("rb") as file:
            size, head = path.stat().st_size, file.read(100)
    except OSError:
        return ""
    if len(head) < 100:
        return f"it is cut off after {size} bytes"
    page, pages = struct.unpack(">H", head[16:18])[0], struct.unpack(">I", head[28:32])[0]
    if head[24:28] != head[92:96]:  # then SQLite itself does not believe how many pages it says
        return ""
    whole = (65536 if page == 1 else page) * pages
    return f"it is cut off: {size:,} of {whole:,} bytes are there" if size < whole else ""


def check_path(path: Path) -> str:
    """InputError where there can be no store; else a remark about the file, "" where there is none to make."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; make it, or give another path")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a file")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is a device or a pipe; give the path of a file")
    # SQLite writes its journal beside the file, so the folder must be writable too
    for place in (folder, path):
        if place.exists() and not os.access(place, os.R_OK | os.W_OK):
            raise InputError(f"{place} is not writable; change its permissions, or give another path")
    if not path.exists():
        return ""
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    if not head:
        return f"{path} was an empty file; a new store is made in it"
    if not MAGIC.startswith(head):  # SQLite takes a file of a few bytes for an empty database, and writes over it
        raise broken(str(path), "file is not a database")
    if _cut_off(path):  # SQLite does not mind where only a part of the last page is gone
        raise broken(str(path), "")
    return ""
