"""Bytes changed, and files cut, at random places of a store and of a shipped folder: never another number without a word."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faulty import studies
from faulty.command import Ended, ran
from faulty.disks import Made, made

AUDITED = 5
"""Every how many flips of a folder it is audited, too, which takes longest."""
READ_BY_PEOPLE = ("README.md",)


def damage(content: bytes, draw: random.Random) -> bytes:
    """In six of ten times one byte is another, in two twenty are, in two the end is cut off."""
    if not content:
        return content
    sort = draw.randrange(10)
    if sort >= 8:
        return content[: draw.randrange(len(content))]
    found = bytearray(content)
    for _ in range(1 if sort < 6 else 20):
        found[draw.randrange(len(found))] ^= draw.randrange(1, 256)
    return bytes(found)


def flips(home: Path, count: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """So many damaged stores and so many damaged folders: what commands say of them, counted, and what they should not say."""
    home.mkdir()
    known = made(home.parent / "made")
    found: dict[str, Any] = {}
    for what, try_one in (("store", _Stores(home, known)), ("folder", _Folders(home, known))):
        draw, counts, faults = random.Random(f"{seed} {what}"), Counter[str](), []
        for number in range(count):
            told, wrong = try_one(draw, number)
            counts.update(told)
            faults += [f"{number}: {fault}" for fault in wrong]
            for fault in wrong:
                tell(f"  {what} {number}: {fault}")
            if number % 20 == 19 or number == count - 1:
                tell(f"  {what}: {number + 1} of {count}, {len(faults)} faults")
        found[what] = {"files": count, "told": dict(sorted(counts.items())), "faults": faults}
    return found


class _Stores:
    """Damaged stores: listed, reported, gone on with, and mended where that is refused."""

    def __init__(self, home: Path, known: Made) -> None:
        self.place = home / "store"
        self.whole = known.store.read_bytes()
        self.words = studies.words()
        self.right = studies.verdicts(known.store.with_name(studies.JSON))
        self.records = studies.records(known.store)
        self.said = {name: ran([name, studies.STORE], known.store.parent).out for name in ("runs", "report")}

    def __call__(self, draw: random.Random, number: int) -> tuple[list[str], list[str]]:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        (self.place / studies.STORE).write_bytes(damage(self.whole, draw))
        told, faults = [], []
        for name, right in self.said.items():
            mark, fault = _read(ran([name, studies.STORE], self.place), right)
            told.append(f"{name} {mark}")
            faults += [f"{name} {fault}"] * bool(fault)
        resumed = ran(self.words, self.place)
        told.append("try goes on" if resumed.code == 0 else "try refuses")
        if resumed.code:
            faults += [f"try: {resumed.words()}"] * (not resumed.plain)
            mended = ran(["runs", "--repair", studies.STORE], self.place)
            told.append("repair mends" if mended.code == 0 else "repair refuses")
            faults += [f"repair: {mended.words()}"] * (mended.raw or not (mended.code == 0 or mended.plain))
            if mended.code:  # nothing of a store is left in it
                return told, faults
            resumed = ran(self.words, self.place)
        if resumed.code or resumed.raw:
            return told, [*faults, f"try goes on: {resumed.words()}"]
        if studies.verdicts(self.place / studies.JSON) != self.right:
            faults.append("other verdicts")
        if studies.records(self.place / studies.STORE) != self.records:
            faults.append("other records")
        return told, faults


class _Folders:
    """Folders with a damaged file: predicted with, and audited now and then."""

    def __init__(self, home: Path, known: Made) -> None:
        self.whole, self.rows = known.folder, known.rows
        self.place = home / "folder" / known.folder.name  # an audit tells the name
        self.commands = {
            "predict": ("--data", str(self.rows)),
            "audit": ("--data", str(self.rows), "--target", "species"),
        }
        self.right = {name: self._said(name, self.whole) for name in self.commands}

    def __call__(self, draw: random.Random, number: int) -> tuple[list[str], list[str]]:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.whole, self.place)
        path = draw.choice(sorted(self.place.iterdir()))
        path.write_bytes(damage(path.read_bytes(), draw))
        told, faults = [], []
        for name in self.commands:
            if name == "audit" and number % AUDITED:
                continue
            mark, fault = _read(
                self._said(name, self.place), self.right[name].out.replace(str(self.whole), str(self.place))
            )
            told.append(f"{name} {mark}")
            faults += [f"{name}, {path.name}: {fault}"] * bool(fault)
            if (
                mark == "same"
                and path.name not in READ_BY_PEOPLE
                and path.read_bytes() != (self.whole / path.name).read_bytes()
            ):
                faults.append(f"{name}: nothing is said of {path.name}")
        return told, faults

    def _said(self, name: str, folder: Path) -> Ended:
        return ran([name, str(folder), *self.commands[name]], folder.parent)


def _read(ended: Ended, right: str) -> tuple[str, str]:
    """How a command that only reads took it: same, told or refused; and what is wrong with that, "" = nothing."""
    if ended.raw:
        return "raw", ended.words()
    if ended.code:
        return "refused", "" if ended.plain else ended.words()
    if ended.out == right:
        return ("told" if ended.err else "same"), ""
    # a trial that nothing points to any more is as one that has not been run, and is counted as such
    told = ended.err or "not finished" in ended.out
    return "told", "" if told else "another answer without a word"
