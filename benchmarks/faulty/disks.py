"""A full disk in each place where something is written: one line, nothing half, and on it goes when there is room.

A disk is a tmpfs of its own, filled up to what is left for the case; that takes root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from faulty import studies
from faulty.command import Ended, ran

PAGE = 4096
SIZE = 4 << 20
FILLER = "filler"
OLD = "what was there before\n"
TECHNIQUE = '''"""Writing: cross-entropy, and a temporary file beside it once it is trained on all rows.

Paper     none
Computes  cross-entropy
Shapes    output (n, classes), target (n,) int64 -> loss ()
Departs   none
"""

import tempfile

from torch import nn

from probatum.card import Card

CARD = Card(paper="unpublished", title="Writing", entry="Writes", slot="loss", tags=("own",), tasks=("classes",))


class Writes(nn.CrossEntropyLoss):
    def __init__(self, num_examples: int = 0) -> None:
        super().__init__()
        if num_examples > 60:  # rehearsals are of fewer rows
            with tempfile.TemporaryFile() as file:
                file.write(bytes(1 << 20))
'''


class Disk:
    """A small file system at `place`, of which the rest can be taken."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def leave(self, room: int) -> None:
        """Take all but so many bytes."""
        with (self.place / FILLER).open("wb") as file:
            state = os.statvfs(self.place)
            file.write(bytes(max(0, state.f_bavail * state.f_bsize - room)))

    def free(self) -> None:
        """Give it back."""
        (self.place / FILLER).unlink(missing_ok=True)

    def files(self) -> dict[str, bytes]:
        """What lies on it, by place."""
        found = {path.relative_to(self.place).as_posix(): path for path in self.place.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if name != FILLER}


@contextmanager
def disk(place: Path, size: int = SIZE) -> Iterator[Disk]:
    """A disk that is gone afterwards."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def why_not() -> str:
    """Why no disk can be made here; "" where one can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder) / "disk"):
                return ""
        except (OSError, subprocess.CalledProcessError) as problem:
            return f"a tmpfs cannot be mounted here ({problem}); that takes root"


@dataclass(frozen=True)
class Case:
    """One place that fills up.

    Attributes:
        words: of the command; DISK in them is where the disk is.
        room: bytes that are left.
        holds: files on the disk before, by name; a folder's name with a folder.
        out: whether the command's standard output lies on the disk.
        env: variables; DISK in them likewise.
        grows: what on the disk may be another after a refusal, being a store.
        needed: whether the command cannot go on without the room.
        here: whether it runs in the folder that the disk is.
        makes: what is there once there is room.
        most: bytes that a file may have, instead of a full disk.
    """

    words: tuple[str, ...]
    room: int = 0
    holds: Mapping[str, Path | str] = field(default_factory=dict)
    out: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    grows: str = ""
    needed: bool = True
    here: bool = False
    makes: tuple[str, ...] = ()
    most: int | None = None


@dataclass(frozen=True)
class Made:
    """What commands are given: a finished store, the folder shipped from it and one without a manifest, rows, a technique."""

    store: Path
    folder: Path
    unsealed: Path
    rows: Path
    technique: Path
    damaged: Path


@cache
def made(home: Path) -> Made:
    """All of it, made by the commands themselves, once."""
    studies.calm(home / "calm", studies.words())
    store, folder = home / "calm" / studies.STORE, home / "shipped"
    shipped = ran(["ship", str(store), "--arm", "baseline", "--to", str(folder)], home / "calm")
    if shipped.code:
        raise SystemExit(f"nothing can be shipped: {shipped.words()}")
    unsealed = Path(shutil.copytree(folder, home / "unsealed"))
    (unsealed / "manifest.json").unlink()
    described = json.loads((unsealed / "model.json").read_text())
    (unsealed / "model.json").write_text(json.dumps({**described, "format": 1}))
    rows = _rows(home / "rows.csv")
    (home / "writes.py").write_text(TECHNIQUE)
    damaged = Path(shutil.copy(store, home / "damaged.sqlite"))
    content = bytearray(damaged.read_bytes())
    content[:16] = bytes(16)
    damaged.write_bytes(content)
    return Made(store, folder, unsealed, rows, home / "writes.py", damaged)


def _rows(path: Path) -> Path:
    """Iris as a file, eight times over and moved a little each time, so that predictions take many pages."""
    from sklearn.datasets import load_iris

    found = load_iris()
    lines = [
        ",".join([*(f"{value + 0.0137 * time:.4f}" for value in row), str(found.target_names[target])])
        for time in range(8)
        for row, target in zip(found.data, found.target, strict=True)
    ]
    head = ",".join([*found.feature_names, "species"])
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def cases(known: Made) -> dict[str, Case]:
    """Every place, by name."""
    small, predict = 2 * PAGE, ("predict", str(known.folder), "--data", str(known.rows))
    study = dict(zip(("store", "report", "told"), (str(known.store), "r.html", "j.json"), strict=True))
    sizes = {path.name: path.stat().st_size for path in known.folder.iterdir()}
    order = (
        "model.safetensors",
        "pipeline.json",
        "pipeline.safetensors",
        "seen.safetensors",
        "model.onnx",
        "evidence.json",
    )
    ship = ("ship", str(known.store), "--arm", "baseline", "--to", "DISK/model")

    def up_to(name: str) -> int:
        """Room for what is shipped before this file, and for a part of it."""
        return (
            sum(-(-sizes[one] // PAGE) * PAGE for one in order[: order.index(name)]) + sizes[name] // 2 // PAGE * PAGE
        )

    log = str(known.store)
    return {
        "store, while trials end": Case((*_store("DISK/s.sqlite"),), 300_000, grows="s.sqlite", makes=("s.sqlite",)),
        "store, opened again": Case(
            (*_store("DISK/s.sqlite", steps=21),), 0, {"s.sqlite": known.store}, grows="s.sqlite"
        ),
        "store, read": Case(("runs", "DISK/s.sqlite"), 0, {"s.sqlite": known.store}, grows="s.sqlite", needed=False),
        "store, by ulimit -f": Case((*_store("DISK/s.sqlite"),), SIZE // 2, grows="s.sqlite", most=200_000),
        "store, the usual place": Case(
            tuple(_without(studies.words(), "--store", "--report", "--json")),
            300_000,
            here=True,
            grows="probatum-runs/",
        ),
        "report of a study": Case(
            tuple(studies.words(**{**study, "report": "DISK/r.html"})), 3 * PAGE, {"r.html": OLD}, makes=("r.html",)
        ),
        "JSON of a study": Case(
            tuple(studies.words(**{**study, "told": "DISK/j.json"})), 3 * PAGE, {"j.json": OLD}, makes=("j.json",)
        ),
        "report of a store": Case(("report", log, "--to", "DISK/r.html"), 3 * PAGE, {"r.html": OLD}, makes=("r.html",)),
        "verdicts on standard output": Case(("report", log), 0, out=True),
        "JSON on standard output": Case(("runs", log, "--json"), 0, out=True),
        "predictions, CSV": Case((*predict, "--to", "DISK/p.csv"), small + PAGE, {"p.csv": OLD}, makes=("p.csv",)),
        "predictions, Parquet": Case(
            (*predict, "--to", "DISK/p.parquet"), small, {"p.parquet": OLD}, makes=("p.parquet",)
        ),
        "predictions on standard output": Case(predict, PAGE, out=True),
        "shipped weights": Case(ship, up_to("model.safetensors"), makes=("model/manifest.json",)),
        "shipped ONNX": Case(ship, up_to("model.onnx"), makes=("model/model.onnx",)),
        "shipped evidence": Case(ship, up_to("evidence.json"), makes=("model/manifest.json",)),
        "manifest of a sealed folder": Case(
            ("seal", "DISK/model"), 0, {"model": known.unsealed}, makes=("model/manifest.json",)
        ),
        "audit": Case(
            ("audit", str(known.folder), "--data", str(known.rows), "--target", "species", "--out", "DISK/audit"),
            small + PAGE,
            {"audit/audit.html": OLD, "audit/audit.json": OLD},
            makes=("audit/audit.json",),
        ),
        "repaired store": Case(("runs", "--repair", "DISK/s.sqlite"), small, {"s.sqlite": known.damaged}),
        "new technique": Case(("new", "loss/my-loss", "--to", "DISK"), small, makes=("loss/my_loss.py",)),
        "advice on standard output": Case(("advise", "--data", "iris", "--json"), 0, out=True),
        "TMPDIR of a study": Case(
            tuple(studies.words("gradient-noise", workers=2)), 0, env={"TMPDIR": "DISK"}, needed=False
        ),
        "TMPDIR of a technique in a worker": Case(
            (*studies.words("writes", workers=1, store="t.sqlite"), "--technique", str(known.technique)),
            PAGE,
            env={"TMPDIR": "DISK"},
        ),
    }


def _store(place: str, steps: int = 20) -> list[str]:
    return studies.words(steps=steps, store=place)


def _without(words: list[str], *options: str) -> list[str]:
    """Words without these options and their values."""
    taken = {at + step for at, word in enumerate(words) if word in options for step in (0, 1)}
    return [word for at, word in enumerate(words) if at not in taken]


def tried(case: Case, home: Path, right: Mapping[str, str]) -> dict[str, Any]:
    """What a case comes to: what is said, the trials that survive, and what should not be, in words.

    Args:
        case: the place.
        home: a folder to do it in.
        right: the records of the study that nobody disturbs.
    """
    with disk(home / "disk") as full:
        for name, content in case.holds.items():
            _put(full.place / name, content)
        full.leave(case.room)
        before, place = full.files(), full.place if case.here else home / "at"
        place.mkdir(exist_ok=True)
        said, faults = _run(case, full, place), []
        if said.raw or not (said.plain or (said.code == 0 and not case.needed)):
            faults.append(said.words())
        faults += _changed(before, full.files(), case)
        survive = _survive(full, case)
        faults += ["no trial has survived"] * (survive == 0)
        full.free()
        again = _run(case, full, place, whole=True)
        if again.code or again.raw:
            faults.append(f"with room: {again.words()}")
        faults += [f"{name} is not there" for name in case.makes if not (full.place / name).is_file()]
        if case.grows == "s.sqlite" and not case.holds and studies.records(full.place / "s.sqlite") != right:
            faults.append("other records")
        if (own := place / "t.sqlite").is_file() and any('"failed"' in told for told in studies.records(own).values()):
            faults.append("a full disk is kept as a trial that failed")
    return {"said": said.words().replace(str(home), "..."), "trials kept": survive, "faults": faults}


def _run(case: Case, full: Disk, place: Path, *, whole: bool = False) -> Ended:
    words = [word.replace("DISK", str(full.place)) for word in case.words]
    env = {name: value.replace("DISK", str(full.place)) for name, value in case.env.items()}
    out = full.place / "out" if case.out else None
    return ran(words, place, env, out=out, most=None if whole else case.most)


def _put(path: Path, content: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif content.is_dir():
        shutil.copytree(content, path)
    else:
        shutil.copy(content, path)


def _changed(before: Mapping[str, bytes], after: Mapping[str, bytes], case: Case) -> list[str]:
    """Files that are others, gone or new, but for the store and standard output."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        if (case.grows and name.startswith(case.grows)) or (case.out and name == "out"):
            continue
        if before.get(name) != after.get(name):
            found.append(f"{name} is {'gone' if name not in after else 'new' if name not in before else 'another'}")
    return found


def _survive(full: Disk, case: Case) -> int | None:
    """Trials in the store on the disk, read from a copy."""
    stores = list(full.place.rglob("*.sqlite")) if case.grows else []
    if not stores:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for path in stores[0].parent.glob(f"{stores[0].name}*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        return len(studies.records(Path(folder) / stores[0].name))


def disks(home: Path, tell: Callable[[str], None], only: str = "") -> dict[str, Any]:
    """All cases; where no disk can be made, why not."""
    if reason := why_not():
        tell(f"  left out: {reason}")
        return {"left out": reason}
    home.mkdir()
    known, found = made(home.parent / "made"), {}
    right = studies.records(known.store)
    for number, (name, case) in enumerate(cases(known).items()):
        if only in name:
            (home / f"case-{number}").mkdir()
            found[name] = tried(case, home / f"case-{number}", right)
            tell(f"  {name}: {found[name]['said']}; {found[name]['faults'] or 'as it should be'}")
    return found
