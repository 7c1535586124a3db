"""The manifest of a shipped folder: what each of its files was, so that no altered one predicts without a word.

It is there for what happens to files on their way: cut copies, bad disks, edits, mixed-up versions. Whoever can write
the folder can write the manifest too, so it is no signature.

Two sorts of files are free, since nothing in them decides a prediction: texts for people at the top (README, LICENSE
and NOTICE, with any suffix), which are edited and to which hubs add, and whatever lies at the top under a name that
begins with a dot (``.git``, ``.gitattributes``, ``.cache``). Every other file is as it was shipped, or the folder does
not load.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from probatum.data.stored import read_json
from probatum.errors import InputError
from probatum.ship.place import LAST as FILE

FORMAT = 1
FREE = ("README", "LICENSE", "NOTICE")
BLOCK = 1 << 16
"""Bytes read at a time: hashlib.file_digest takes four times as many, whose fresh pages cost as much as hashing."""
LARGE = 1 << 20
"""Bytes from which a file is hashed beside what loading does meanwhile."""
POINTER = b"version https://git-lfs"


class Check:
    """A shipped folder that is held against its manifest: small files at once, large ones while other work goes on."""

    def __init__(self, folder: Path) -> None:
        """Look at names, sizes and small files; InputError where these differ already, or for a broken manifest."""
        self.folder = folder
        self.known = _read(folder)
        there = {name: path for name, path in _files(folder).items() if not _is_free(name)}
        wrong = {name: _size_told(there.get(name), its["bytes"]) for name, its in self.known.items()}
        wrong = {name: told for name, told in wrong.items() if told}
        wrong |= dict.fromkeys(sorted(there.keys() - self.known.keys()), "was not shipped with it")
        whole = [name for name in self.known if name not in wrong]
        large = [name for name in whole if self.known[name]["bytes"] >= LARGE]
        self._altered: dict[str, str] = {}
        self._hashing: Thread | None = None
        wrong |= self._hash(sorted(set(whole) - set(large)))
        if wrong:
            self._tell(wrong | self._hash(large))
        elif large:
            self._hashing = Thread(target=lambda: self._altered.update(self._hash(large)), daemon=True)
            self._hashing.start()

    def finish(self) -> None:
        """Wait for the large files; InputError that names all that are altered."""
        if self._hashing is not None:
            self._hashing.join()
        if self._altered:
            self._tell(self._altered)

    def _hash(self, names: Sequence[str]) -> dict[str, str]:
        """What is wrong with the contents of these files, by their names."""
        found = {}
        for name in names:
            try:
                if _sha256(self.folder / name) != self.known[name]["sha256"]:
                    found[name] = "is altered"
            except OSError as problem:
                found[name] = f"cannot be read ({problem.strerror})"
        return found

    def _tell(self, wrong: Mapping[str, str]) -> None:
        said = ", ".join(f"{name} {what}" for name, what in wrong.items())
        raise InputError(
            f"{self.folder} is not as it was shipped: {said}; copy it anew from where it was shipped, or ship again"
        )


def check(folder: Path) -> bool:
    """Whether a folder has a manifest; InputError that names every file that is not as the manifest says."""
    if not (folder / FILE).is_file():
        return False
    Check(folder).finish()
    return True


def write_manifest(folder: Path, techniques: Mapping[str, str]) -> Path:
    """Write down what every file of a folder is now, and the hashes of the techniques' source files by their ids."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in sorted(_files(folder).items())
    }
    said = {"format": FORMAT, "files": files, "techniques": dict(techniques)}
    path = folder / FILE
    path.write_text(json.dumps({**said, "sha256": _own(said)}, indent=1) + "\n", encoding="utf-8")
    return path


def seal(folder: Path) -> Path:
    """Write the manifest that a folder shipped by an earlier version lacks; from then on it is checked as it is now.

    Raises:
        InputError: no shipped folder, or one that has a manifest.
    """
    if (folder / FILE).exists():
        check(folder)
        raise InputError(f"{folder} has its manifest, and all is as it was shipped; there is nothing to seal")
    if not (folder / "model.json").is_file():
        raise InputError(f"{folder} is not a folder that `probatum ship` wrote: model.json is missing")
    description = read_json(folder / "model.json")
    if description.get("format") != 1:
        raise InputError(f"{folder} was shipped with {FILE}, which is missing; copy the folder anew, or ship again")
    try:
        return write_manifest(folder, sources(description))
    except OSError as problem:
        (folder / FILE).unlink(missing_ok=True)
        raise InputError(
            f"{folder / FILE} could not be written ({problem.strerror}); make room or name a copy"
        ) from problem


def sources(description: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each technique's source files, by its id, as ``model.json`` has them."""
    uses = description.get("recipe", {}).get("techniques", [])
    return {use["id"]: use["source"] for use in uses if use.get("source")}


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """Files by name, of a manifest that is whole itself; free ones left out."""
    path = folder / FILE
    said = read_json(path)
    if said.get("sha256") != _own(said):
        raise InputError(f"{path} is altered; copy the folder anew from where it was shipped, or ship again")
    if said["format"] != FORMAT:
        raise InputError(f"{path} has format {said['format']!r}; this version reads {FORMAT}")
    return {name: its for name, its in said["files"].items() if not _is_free(name)}


def _own(said: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in said.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """All files but hidden ones at the top and the manifest itself, by their place in the folder."""
    found = {}
    for at, folders, files in os.walk(folder):
        top = at == str(folder)
        if top:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not (top and (name == FILE or name.startswith("."))):
                path = Path(at, name)
                found[path.relative_to(folder).as_posix()] = path
    return found


def _is_free(name: str) -> bool:
    return "/" not in name and name.split(".")[0].upper() in FREE


def _size_told(path: Path | None, shipped: int) -> str:
    """What a file's size says is wrong with it; "" where it is right."""
    if path is None:
        return "is missing"
    try:
        said = path.stat()
        if not stat.S_ISREG(said.st_mode):
            return "is no file"
        size = said.st_size
        if size == shipped:
            return ""
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return "is a Git LFS pointer, not the file (git lfs pull brings it)"
    except FileNotFoundError:  # a link that leads nowhere
        return "is missing"
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"
    if size < shipped:
        return f"is cut ({size:,} of {shipped:,} bytes)"
    return f"is altered ({size:,} bytes, {shipped:,} shipped)"


def _sha256(path: Path) -> str:
    found, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            found.update(block[:size])
    return found.hexdigest()
