"""A new file from all that is readable and right in a damaged store; the damaged one is kept."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probatum.bench.records import StudyRecord, study_of
from probatum.bench.salvage import Found, salvage
from probatum.bench.store import Store
from probatum.bench.store_words import Broken
from probatum.bench.tables import BLOBS, STUDIES, TRIALS
from probatum.errors import InputError

HEADER = 100
BATCH = 200
"""Rows that go into one statement."""
DAMAGED, NEW = ".damaged", ".repairing"
BESIDE = ("", "-wal", "-shm")


@dataclass(frozen=True)
class Repaired:
    """What a repair came to.

    Attributes:
        needed: whether anything was wrong; if not, nothing was done.
        kept: trials, studies and blobs that are in the new file.
        arms: trials among them, by arm.
        lost: what was in the damaged file and is not in the new one, in words.
        damaged: where the damaged file is now; None where none was made.
    """

    needed: bool
    kept: tuple[int, int, int]
    arms: Mapping[str, int]
    lost: tuple[str, ...] = ()
    damaged: Path | None = None

    def lines(self, path: str) -> list[str]:
        """Sentences for whoever asked for it."""
        trials, studies, blobs = self.kept
        held = f"{trials} trials of {studies} studies, {blobs} blobs"
        if not self.needed:
            return [f"{path} needs no repair: {held}, all of them what was written"]
        arms = ", ".join(f"{arm} {count}" for arm, count in self.arms.items())
        lines = [f"{path} is a new file now; the damaged one is kept as {self.damaged}"]
        lines.append(f"kept: {held}" + (f" (trials by arm: {arms})" if arms else ""))
        if not self.lost:
            return [*lines, "lost: nothing that can be told of"]
        again = f"the same `probatum try ... --store {shlex.quote(path)}` runs again what is lost"
        return [*lines, f"lost: {'; '.join(self.lost)}", again]


def repair(path: Path) -> Repaired:
    """Make a new file of a store's rows, if anything in it is not what was written.

    Raises:
        InputError: it is in use, there is nothing of a store in it, or the new file cannot be written.
    """
    if not path.is_file():
        raise InputError(f"no store at {path}; only SQLite files are repaired, a server's database sees to itself")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): nothing was lost, `probatum try ... --store {path}` fills it")
    whole, found = _looked_at(path)
    lost = _lost(found)
    kept = (len(found.trials), len(found.studies), len(found.blobs))
    arms = Counter(str(row["arm"]) for row in found.trials.values())
    if whole and not lost:  # a study that somebody deleted is no damage
        return Repaired(False, kept, arms)
    if not found.count:
        raise InputError(f"nothing of a Probatum store can be read in {path}; it is left as it is")
    new = path.with_name(path.name + NEW)
    try:
        _remove(new)
        with Store(new) as store:
            _fill(store, found)
    except InputError as problem:
        _remove(new)
        raise InputError(f"{path} was not repaired and is left as it is: {problem}") from problem
    except BaseException:
        _remove(new)
        raise
    _remove(new, "-wal", "-shm")  # closing the store has emptied its journal
    aside = _moved_aside(path)
    os.replace(new, path)
    return Repaired(True, kept, arms, tuple(lost + _studies_gone(found)), aside)


def _looked_at(path: Path) -> tuple[bool, Found]:
    """Whether SQLite finds the file whole and takes it for a store, and its rows, read while nobody else writes."""
    if path.stat().st_size < HEADER:  # SQLite takes one byte for an empty database, and deletes its journal
        return False, salvage(path)
    with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
        whole = True
        try:
            connection.execute("BEGIN IMMEDIATE")
            whole = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if "locked" in str(error):
                raise InputError(f"{path} is in use; end what writes to it, and repair it then") from error
            whole = False
        found = salvage(path, freed=not whole)
        with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
            connection.execute("ROLLBACK")
    if whole:
        try:
            with Store(path) as store:
                store.studies()
        except Broken:  # a store of a later version is not broken, and is not made one of this
            whole, found = False, salvage(path)
    return whole, found


def _fill(store: Store, found: Found) -> None:
    """The rows as they were, those without a checksum too."""
    with store.writing() as connection:
        for table, rows in ((STUDIES, found.studies), (TRIALS, found.trials), (BLOBS, found.blobs)):
            for some in _batches(list(rows.values())):
                connection.execute(table.insert(), some)


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _lost(found: Found) -> list[str]:
    """What is damaged, or stands in an index and nowhere else: trials by arm, then the rest."""
    names: dict[str, tuple[str, int, str]] = {}
    for row in found.studies.values():
        study = study_of(row)
        if isinstance(study, StudyRecord):
            names |= names_of(study)
    by_arm: dict[str, set[int]] = defaultdict(set)
    others = []
    gone = {one.key: one.whose for one in found.damaged if one.table == "trials"}
    gone |= dict.fromkeys((found.seen & names.keys()) - found.trials.keys(), "")
    for key, whose in gone.items():
        if key in names:
            arm, seed, kind = names[key]
            by_arm[arm if kind == "fit" else f"{arm} ({kind})"].add(seed)
        else:
            others.append(whose)
    told = [f"{arm} {_seeds(seeds)}" for arm, seeds in sorted(by_arm.items())] + sorted(others)
    return told + sorted({one.whose for one in found.damaged if one.table != "trials"})


def _studies_gone(found: Found) -> list[str]:
    """Studies of which only trials are left, those apart whose own row is damaged."""
    known = found.studies.keys() | {one.key for one in found.damaged if one.table == "studies"}
    return sorted({f"study {row['study'][:8]}" for row in found.trials.values() if row["study"] not in known})


def names_of(study: StudyRecord) -> dict[str, tuple[str, int, str]]:
    """Key -> arm, seed and kind of every trial that a study may want; the order in which `Study` lists keys tells."""
    try:
        described, keys = study.plan["plan"], study.plan["keys"]
        from probatum.bench.plan import plan_from  # takes longer than a repair
        from probatum.rooms.arena import arena

        plan = plan_from(described)
        arms = [arm.name for arm in plan.arms]
        players = [arena(plan.arena).BASELINE, *arms]
        first = plan.race[0] if plan.race else len(plan.seeds)
        wanted = {
            "fit": [
                (name, seed)
                for place, seed in enumerate(plan.seeds)
                for name in (*players, *(plan.references if place < first else ()))
            ],
            "timing": [(name, seed) for seed in plan.seeds[:first] for name in arms],
            "confirm": [(name, seed) for seed in plan.confirm for name in players],
        }
        return {
            key: (name, seed, kind)
            for kind, pairs in wanted.items()
            if len(pairs) == len(keys[kind])
            for key, (name, seed) in zip(keys[kind], pairs, strict=True)
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # an arena or a field that is not known here
        return {}


def _seeds(seeds: Iterable[int]) -> str:
    found = sorted(seeds)
    return f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def _moved_aside(path: Path) -> Path:
    """The damaged file under another name, its journal with it; nothing that is there already is written over."""
    aside = path.with_name(path.name + DAMAGED)
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{DAMAGED}.{number}")
    for ending in BESIDE:
        if Path(f"{path}{ending}").exists():
            os.replace(f"{path}{ending}", f"{aside}{ending}")
    return aside


def _remove(path: Path, *endings: str) -> None:
    for ending in endings or BESIDE:
        with suppress(OSError):
            Path(f"{path}{ending}").unlink()
