"""Shipped folders for tests: copied, changed byte by byte, and given the manifest that fits the change."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probatum.ship.manifest import FILE, sources, write_manifest


def copied(folder: Path, to: Path) -> Path:
    """A copy that may be changed."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def said(folder: Path, file: str, **values: Any) -> None:
    """Other values at the top of a JSON file."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def made_to_fit(folder: Path) -> Path:
    """With a manifest of what the files are now: only what they say can be found wrong."""
    (folder / FILE).unlink(missing_ok=True)
    write_manifest(folder, sources(json.loads((folder / "model.json").read_text())))
    return folder


def earlier(folder: Path) -> Path:
    """As the version before manifests shipped it."""
    (folder / FILE).unlink()
    description = json.loads((folder / "model.json").read_text())
    for name in ("task", "outputs", "classes"):
        del description[name]
    (folder / "model.json").write_text(json.dumps({**description, "format": 1}))
    return folder


def flips(folder: Path, count: int, seed: int) -> Iterator[str]:
    """The folder with one byte of one file changed, `count` times; a file and place each time, put back afterwards."""
    draw = random.Random(seed)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for number in range(count):
        path = files[number % len(files)]
        before = path.read_bytes()
        at = draw.randrange(len(before))
        other = bytes([before[at] ^ draw.randrange(1, 256)])
        path.write_bytes(before[:at] + other + before[at + 1 :])
        yield f"{path.name}, byte {at}: {before[at : at + 1]!r} -> {other!r}"
        path.write_bytes(before)
