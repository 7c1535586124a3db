"""Rows out of the pages of an SQLite file, whatever state its tree is in: every page is looked at by itself.

SQLite goes from the root down, and stops at the first page that is damaged. Here a page is read if it is a leaf, whoever
points to it; what it holds is judged by checksums afterwards. The format: https://www.sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probatum.bench.records import ROWS, Damage, StudyRecord, Trial, blob_of, study_of, trial_of
from probatum.bench.store_words import MAGIC

USUAL_PAGE = 4096
TABLE_LEAF, INDEX_LEAF, INDEX_INNER = 0x0D, 0x0A, 0x02
INNER_HEADER = 12
TRIAL = ("key", "study", "arm", "seed", "kind", "status", "plan", "record", "timing", "created", "checksum")
STUDY = ("key", "plan", "created", "checksum")
BLOB = ("key", "name", "bytes", "checksum")


@dataclass
class Found:
    """What was read from a file.

    Attributes:
        trials: key -> row of a trial that is what was written; likewise `studies`, and `blobs` by key and name.
        seen: keys that stand in a page of an index, of whatever table.
        damaged: rows that are not what was written.
    """

    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    damaged: list[Damage] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Rows that are what was written."""
        return len(self.trials) + len(self.studies) + len(self.blobs)


def salvage(path: Path, *, freed: bool = True) -> Found:
    """Everything in a file, and in its journal, that is what was written.

    Args:
        path: the file.
        freed: also look at pages that are listed as free; they hold what was deleted, or what a damaged list took.
    """
    raw, journal = path.read_bytes(), Path(f"{path}-wal")
    wal = journal.read_bytes() if journal.is_file() else b""
    said = int.from_bytes(raw[16:18], "big") if raw.startswith(MAGIC) else USUAL_PAGE
    sizes = {USUAL_PAGE, *([said] if said in {2**k for k in range(9, 16)} else [])}
    found = []
    for size in sizes:
        pages = _pages(raw, wal, size)
        found.append(_from_pages(pages, size, set() if freed else _free(pages)))
    return max(found, key=lambda one: one.count)


def _pages(raw: bytes, wal: bytes, size: int) -> dict[int, bytes]:
    """Number -> page, those of the journal's finished transactions over those of the file."""
    # the last page may be cut
    pages = {1 + at // size: raw[at : at + size].ljust(size, b"\0") for at in range(0, len(raw), size)}
    held: dict[int, bytes] = {}
    for at in range(32, len(wal) - 24 - size + 1, 24 + size):
        number, commits = struct.unpack_from(">II", wal, at)
        if wal[at + 8 : at + 16] != wal[16:24]:  # left over from before the journal was begun again
            break
        held[number] = wal[at + 24 : at + 24 + size]
        if commits:
            pages |= held
            held.clear()
    return pages


def _free(pages: Mapping[int, bytes]) -> set[int]:
    """Numbers of the pages that are listed as free."""
    found: set[int] = set()
    (trunk,) = struct.unpack_from(">I", pages[1], 32) if 1 in pages else (0,)
    while trunk in pages and trunk not in found:
        following, count = struct.unpack_from(">II", pages[trunk])
        found |= {trunk, *struct.unpack_from(f">{min(count, len(pages[trunk]) // 4 - 2)}I", pages[trunk], 8)}
        trunk = following
    return found


def _from_pages(pages: Mapping[int, bytes], size: int, free: set[int]) -> Found:
    found = Found()
    trials: list[dict[str, Any]] = []
    studies: list[dict[str, Any]] = []
    for number, page in pages.items():
        if number in free:
            continue
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind == TABLE_LEAF:
            for values in _cells(pages, page, start, size):
                row = _row(values)
                if row is None:
                    continue
                if "name" in row:
                    if isinstance(blob_of(row), bytes):
                        found.blobs[row["key"], row["name"]] = row
                    else:
                        found.damaged.append(blob_of(row))  # type: ignore[arg-type]
                else:
                    (trials if "arm" in row else studies).append(row)
        elif kind in (INDEX_LEAF, INDEX_INNER):
            cells = _cells(pages, page, start, size)
            found.seen |= {v[0] for v in cells if len(v) == 2 and isinstance(v[0], str) and isinstance(v[1], int)}
    for row in trials:
        packed = found.blobs.get((row["key"], ROWS), {})
        trial = trial_of({**row, "rows": packed.get("bytes"), "rows_checksum": packed.get("checksum")})
        if isinstance(trial, Trial):
            found.trials[row["key"]] = row
        else:
            found.damaged.append(trial)
    for row in studies:
        study = study_of(row)
        if isinstance(study, StudyRecord):
            found.studies[row["key"]] = row
        else:
            found.damaged.append(study)
    good = {("trials", key) for key in found.trials} | {("studies", key) for key in found.studies}
    found.damaged = [one for one in found.damaged if (one.table, one.key) not in good]
    return found


def _row(values: list[Any]) -> dict[str, Any] | None:
    """Values of a row by the names of the columns that they can be; None where they are of none of our tables."""
    if len(values) in (len(TRIAL) - 1, len(TRIAL)):
        names: tuple[str, ...] = TRIAL
    elif len(values) in (len(STUDY) - 1, len(STUDY)):
        names = BLOB if isinstance(values[2], bytes) else STUDY
    else:
        return None
    row = dict(zip(names, [*values, None], strict=False))
    return row if isinstance(row["key"], str) else None


def _cells(pages: Mapping[int, bytes], page: bytes, start: int, size: int) -> Iterator[list[Any]]:
    """The rows of a page; what cannot be one is passed over."""
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    inner, leaf = page[start] == INDEX_INNER, page[start] == TABLE_LEAF
    first = start + (INNER_HEADER if inner else 8)
    for place in range(min(count, (size - first) // 2)):
        try:
            (at,) = struct.unpack_from(">H", page, first + 2 * place)
            yield _values(_payload(pages, page, at + (4 if inner else 0), size, leaf))
        except (IndexError, KeyError, ValueError, struct.error):
            continue


def _payload(pages: Mapping[int, bytes], page: bytes, at: int, size: int, leaf: bool) -> bytes:
    """The bytes of one row, put together from its page and those into which it overflows."""
    length, at = _varint(page, at)
    if leaf:
        _, at = _varint(page, at)  # its number
    most = size - 35 if leaf else (size - 12) * 64 // 255 - 23
    if length <= most:
        return page[at : at + length]
    if length > size * len(pages):
        raise ValueError("it is longer than the file")
    least = (size - 12) * 32 // 255 - 23
    here = least + (length - least) % (size - 4)
    here = here if here <= most else least
    parts, left = [page[at : at + here]], length - here
    (following,) = struct.unpack_from(">I", page, at + here)
    while left > 0:
        parts.append(pages[following][4 : 4 + left])
        left -= size - 4
        (following,) = struct.unpack_from(">I", pages[following])
    return b"".join(parts)


def _values(payload: bytes) -> list[Any]:
    """The columns of one row; text that is none as bytes."""
    head, at = _varint(payload, 0)
    kinds = []
    while at < head:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if at != head or len(kinds) > len(TRIAL):
        raise ValueError("its header is not one")
    return [_value(payload, kind, start) for kind, start in zip(kinds, _starts(kinds, head, len(payload)), strict=True)]


def _starts(kinds: list[int], at: int, length: int) -> list[int]:
    starts = []
    for kind in kinds:
        starts.append(at)
        at += _size(kind)
    if at != length:
        raise ValueError("its columns are longer or shorter than it")
    return starts


def _size(kind: int) -> int:
    return (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)[kind]


def _value(payload: bytes, kind: int, at: int) -> Any:
    data = payload[at : at + _size(kind)]
    if kind in (0, 10, 11):
        return None
    if kind in (8, 9):
        return kind - 8
    if kind == 7:
        return struct.unpack(">d", data)[0]
    if kind < 7:
        return int.from_bytes(data, "big", signed=True)
    if kind % 2 == 0:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode(errors="surrogateescape")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for place in range(8):
        byte = data[at + place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9
