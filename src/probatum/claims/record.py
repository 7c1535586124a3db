"""Run claims and keep their evidence in one generated file, `evidence.json`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probatum import catalogue
from probatum.claims.base import Claim, Evidence
from probatum.claims.chosen import choose, in_turn, read_seeds, seeds_in_words
from probatum.claims.fingerprint import fingerprint
from probatum.errors import InputError

EVIDENCE = Path(__file__).with_name("evidence.json")


def run_claim(name: str, claim: Claim, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Run one claim and return its record; torch runs on one thread, so that results do not depend on the machine's cores."""
    import torch

    basis = fingerprint(name)  # of the files as they are before, whatever is edited meanwhile
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        evidence = claim.run(tuple(seeds or claim.seeds))
    finally:
        torch.set_num_threads(threads)
    return _entry(name, claim, evidence, tuple(seeds or claim.seeds), time.perf_counter() - start, basis)


def record(name: str, entry: dict[str, Any], path: Path = EVIDENCE) -> None:
    """Put one record into the evidence file; safe against another process doing the same."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = evidence(path)
        known[f"{name}/{entry['claim']}"] = entry
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def evidence(path: Path = EVIDENCE) -> dict[str, Any]:
    """All recorded evidence, keyed ``technique/claim``."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_stale(name: str, entry: dict[str, Any]) -> bool:
    """Whether anything that the evidence rests on (see `probatum.claims.fingerprint`) changed since it was recorded."""
    return entry.get("fingerprint") != fingerprint(name)


def recorded(name: str, claim: str, known: dict[str, Any]) -> dict[str, Any]:
    """The evidence of one claim among what is known; InputError, with the command to run, where there is none."""
    key = f"{name}/{claim}"
    if key not in known:
        raise InputError(f"{key} has no recorded evidence; run `python -m probatum.claims.record {name}`")
    return known[key]


def _entry(
    name: str, claim: Claim, found: Evidence, seeds: tuple[int, ...], seconds: float, basis: str
) -> dict[str, Any]:
    import numpy
    import torch

    return {
        "technique": name,
        "claim": claim.id,
        "says": claim.says,
        "threshold": claim.threshold,
        "data": claim.data,
        "verdict": "reproduced" if found.holds else "not reproduced here",
        "measured": {key: _short(value) for key, value in found.measured.items()},
        "rows": [{key: _short(value) for key, value in row.items()} for row in found.rows],
        "note": found.note,
        "controls": dict(found.controls),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "fingerprint": basis,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def check_recordable(chosen: Sequence[tuple[str, Claim]], seeds: tuple[int, ...]) -> None:
    """InputError unless these are the seeds on which each of the claims is recorded."""
    for name, claim in chosen:
        if seeds != claim.seeds:
            raise InputError(
                f"seeds {seeds_in_words(seeds)} are not those of the record: {name}/{claim.id} is recorded on "
                f"{seeds_in_words(claim.seeds)}, for seeds 101 on are for the record; add --dry to run on others"
            )


def run_and_record(names: Sequence[str], claim: str | None, seeds: str | None, *, dry: bool, stale: bool) -> None:
    """Run claims and record them, telling what is done.

    Args:
        names: techniques; none = all.
        claim: id of one claim of one technique; None = all.
        seeds: e.g. ``"1-5"``; None = those of each claim.
        dry: print, do not record.
        stale: only claims whose evidence is missing or stale.

    Raises:
        InputError: for what is not there, and for seeds that are not for the record unless `dry`.
    """
    chosen = choose(names or catalogue.names(), claim)
    wanted = None if seeds is None else read_seeds(seeds)
    if wanted is not None and not dry:
        check_recordable(chosen, wanted)
    if stale:
        known = evidence()
        chosen = [
            (name, its) for name, its in chosen if (k := f"{name}/{its.id}") not in known or is_stale(name, known[k])
        ]
    if not chosen:
        print("nothing is stale: every claim's evidence is of the code as it stands")
    if dry and chosen:
        spent = sorted({seed for _, its in chosen for seed in wanted or its.seeds})
        print(f"dry: nothing is recorded; spends seeds {seeds_in_words(spent)}", flush=True)
    for name, its, its_seeds, line in in_turn(chosen, wanted):
        print(line, file=sys.stderr, flush=True)
        entry = run_claim(name, its, its_seeds)
        if not dry:
            record(name, entry)
        told = f"{entry['verdict']} in {entry['seconds']} s  {json.dumps(entry['measured'])}"
        print(f"{name}/{its.id}: {told}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the claims of the named techniques (all without a name) and record them."""
    parser = argparse.ArgumentParser(prog="python -m probatum.claims.record", description=main.__doc__)
    parser.add_argument("technique", nargs="*")
    parser.add_argument("--claim", help="id of one claim of one technique")
    parser.add_argument("--seeds", help="e.g. 1-5 or 1,2,7; other seeds than a claim's own need --dry")
    parser.add_argument("--dry", action="store_true", help="print, do not record")
    parser.add_argument("--stale", action="store_true", help="only claims whose evidence is missing or stale")
    asked = parser.parse_args(arguments)
    try:
        run_and_record(asked.technique, asked.claim, asked.seeds, dry=asked.dry, stale=asked.stale)
    except InputError as problem:
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
