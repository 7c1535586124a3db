"""What faults do to studies and files: kills at random moments, full disks, bytes that changed on their way.

    python benchmarks/faults.py                          # 200 kills, every place that fills up, 200 flips: an hour on one core
    python benchmarks/faults.py --only disks --case ship
    python benchmarks/faults.py --kills 20 --flips 20 --out /tmp/faults.json

A small study (two arms, six seeds of iris) is killed by SIGKILL at a random moment, or one of its workers is; the same command
goes on, and at the end records and verdicts must be those of a study that nobody disturbed, no half file and no process being
left. Disks are of a few pages each (tmpfs, which takes root) and full in one place after another: the command must say so in
one line, what was whole must be so still, and the same command must go on when there is room. Bytes are changed, and ends cut
off, in stores and in shipped folders: commands that read them must answer as before, or say that something is damaged.

Each part is written to benchmarks/faults.json as soon as it has ended. The exit code is 1 where a fault was found.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faulty.disks import disks
from faulty.flips import flips
from faulty.kills import kills

OUT = Path(__file__).parent / "faults.json"
PARTS = ("kills", "disks", "flips")
WORKERS = {"one process": 1, "two workers": 2}


def parts(asked: argparse.Namespace, home: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Each part by name, and what runs it."""
    if "kills" in asked.only:
        for number, (name, workers) in enumerate(WORKERS.items()):
            count = (asked.kills + 1 - number) // len(WORKERS)
            place = home / f"kills-{workers}"
            yield f"kills, {name}", lambda p=place, c=count, w=workers: kills(p, c, w, asked.seed, tell)  # type: ignore[misc]
    if "disks" in asked.only:
        yield "disks", lambda: disks(home / "disks", tell, asked.case)
    if "flips" in asked.only:
        yield "flips", lambda: flips(home / "flips", asked.flips, asked.seed, tell)


def tell(line: str) -> None:
    print(line, flush=True)


def faults_of(found: Any) -> list[str]:
    """Every fault of a part, wherever it stands in it."""
    if not isinstance(found, dict):
        return []
    return [*found.get("faults", ()), *(fault for value in found.values() for fault in faults_of(value))]


def table(found: dict[str, Any]) -> list[str]:
    """A line for every part."""
    lines = []
    for name, part in found.items():
        if name.startswith("kills"):
            what = f"{part['main']} kills of the study, {part['worker']} of a worker, {part['studies']} studies ended"
        elif "left out" in part:
            what = part["left out"]
        elif name == "disks":
            what = f"{len(part) - 1} places"
        else:
            what = ", ".join(f"{part[one]['files']} of a {one}" for one in ("store", "folder"))
        lines.append(f"{name:20} {what}; {len(faults_of(part))} faults")
    return lines


def main() -> int:
    """Run the parts, write them down, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=200, help="of a store, and as many of a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--case", default="", help="only places in whose name this stands")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="probatum-faults-") as folder:
        for name, run in parts(asked, Path(folder)):
            tell(f"{name} ...")
            begun = time.monotonic()
            found[name] = run() | {"seconds": round(time.monotonic() - begun)}
            if name == "disks" and asked.case:  # a look at some places is no record of all
                continue
            kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
            kept |= {name: {"seed": asked.seed, **found[name]}, "python": platform.python_version()}
            asked.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(found)))
    for fault in faults_of(found):
        print(f"  {fault}")
    return bool(faults_of(found))


if __name__ == "__main__":
    sys.exit(main())
