"""Damage done to a store's file at random, and what is said of it. ``python tests/damaging.py`` does much of it.

Nothing may come back that was not written, unless the change itself cannot be told from a record (none can), and nothing
may end in an error that is not one line.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from probatum.bench.repair import repair
from probatum.bench.store import Store, Trial
from probatum.errors import InputError

Known = Mapping[str, Trial]


def known_in(path: Path) -> dict[str, Trial]:
    """Every trial of a store that is whole, by its key."""
    with Store(path) as store:
        return {trial.key: trial for study in store.studies() for trial in store.trials(study.key)}


def flipped(path: Path, copy: Path, flips: int, seed: int) -> Path:
    """A copy of a file in which so many bytes are others."""
    draws, content = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(flips):
        content[draws.randrange(len(content))] ^= draws.randrange(1, 256)
    fresh(copy)
    copy.write_bytes(content)
    return copy


def fresh(path: Path) -> None:
    """Nothing of an earlier file is left, nor what was kept of it."""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()


def read(path: Path, known: Known) -> str:
    """What a reader meets: "same", "told" (something was left out, and said) or "refused" (one line).

    AssertionError where a number is another one, or a trial is absent and nothing is said.
    """
    lines: list[str] = []
    try:
        with Store(path, forgiving=True) as store:
            store.tell(lines.append)
            studies = store.studies()
            for key, trial in known.items():
                held = store.get(key)
                assert held in (None, trial), f"{path}: {key} came back as something else"
                if held is None and not lines:
                    lines.append(f"{key} is absent")  # as if it had never been run: `report` and `runs` count it
            if store.unchecked:
                lines.append("some cannot be checked")
            whole = bool(studies)
    except InputError as problem:
        return _one_line(problem, "refused")
    assert all("\n" not in line for line in lines)
    return "told" if lines or not whole else "same"


def repaired(path: Path, known: Known) -> str:
    """What a repair makes of it: "sound", "all" (everything is back), "some", or "nothing" (one line)."""
    try:
        done = repair(path)
    except InputError as problem:
        return _one_line(problem, "nothing")
    with Store(path) as store:
        held = {key: store.get(key) for key in known}
        assert not store.damaged, store.damaged
    assert all(trial in (None, known[key]) for key, trial in held.items())
    assert (done.damaged is not None and done.damaged.is_file()) == done.needed
    if not done.needed:
        assert None not in held.values(), f"{path}: sound, and trials are missing"
        return "sound"
    return "some" if None in held.values() else "all"


def _one_line(problem: InputError, mark: str) -> str:
    assert "\n" not in str(problem)
    return mark


def main() -> None:
    """200 files with one byte flipped, 20 with 20, cuts at 100 places: what `report` says, and what a repair saves."""
    from commands import told
    from probatum import Study
    from probatum.settings import Judging, Running

    with tempfile.TemporaryDirectory() as folder:
        whole, copy = Path(folder) / "whole.sqlite", Path(folder) / "copy.sqlite"
        few = {"judging": Judging(confirm=False, references=False), "running": Running(timing=False)}
        study = Study("iris", ["gradient-noise", "encouraging-loss"], seeds=6, steps=30, store=whole, **few)
        study.run()
        study.store.close()
        known, size = known_in(whole), whole.stat().st_size
        right = told("report", str(whole))
        for what, files in (("1 flip", 200), ("20 flips", 20), ("cut", 100)):
            found: Counter[str] = Counter()
            for seed in range(files):
                if what == "cut":
                    fresh(copy)
                    copy.write_bytes(whole.read_bytes()[: random.Random(seed).randrange(size)])
                else:
                    flipped(whole, copy, int(what.split()[0]), seed)
                mark = read(copy, known)
                run = told("report", str(copy))
                same = run.stdout == right.stdout
                assert same or run.stderr, f"{what} {seed}: report differs and says nothing"
                assert "Traceback" not in run.stderr, run.stderr
                assert run.returncode in (0, 2), run.stderr
                found[f"read {mark}"] += 1
                found[f"report {'same' if same else 'other, told' if run.returncode == 0 else 'refused'}"] += 1
                found[f"repair {repaired(copy, known)}"] += 1
            print(what, json.dumps(dict(sorted(found.items()))), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
