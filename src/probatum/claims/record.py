"""Run claims and keep their evidence in one generated file, `evidence.json`."""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import importlib
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probatum import catalogue
from probatum.claims.base import Claim, Evidence
from probatum.errors import InputError

EVIDENCE = Path(__file__).with_name("evidence.json")


def claims_of(name: str) -> tuple[Claim, ...]:
    """The claims of a technique, from ``claims/<slot>/<name>.py`` (or the file beside an outside technique)."""
    where = catalogue.place(name)
    if where.inside is None:
        raise InputError(f"{name} comes from outside the package ({where.path}) and brings no recorded claim")
    module = ".".join(("probatum", "claims", *where.inside.parts))
    try:
        return tuple(importlib.import_module(module).CLAIMS)
    except ModuleNotFoundError as problem:
        if problem.name != module:
            raise
        raise InputError(f"{name} has no claim file; expected {module.replace('.', '/')}.py") from problem


def run_claim(name: str, claim: Claim, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Run one claim and return its record; torch runs on one thread, so that results do not depend on the machine's cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        evidence = claim.run(tuple(seeds or claim.seeds))
    finally:
        torch.set_num_threads(threads)
    return _entry(name, claim, evidence, tuple(seeds or claim.seeds), time.perf_counter() - start)


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
    """Whether the technique's or the claim's file changed since the evidence was recorded."""
    return entry["source"] != _sources(name)


def _entry(name: str, claim: Claim, found: Evidence, seeds: tuple[int, ...], seconds: float) -> dict[str, Any]:
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
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "source": _sources(name),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def digest_of(*sources: str) -> str:
    """Hash of what Python sources do: their syntax trees without the card, so that comments and metadata do not count."""
    found = hashlib.sha256()
    for source in sources:
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if not (isinstance(node, ast.Assign) and _is_card(node))]
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:16]


def _is_card(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "CARD" for target in node.targets)


def _sources(name: str) -> str:
    where = catalogue.place(name)
    files = [where.path]
    if where.inside is not None:
        files.append(Path(__file__).parent / where.inside.with_suffix(".py"))
    return digest_of(*(file.read_text(encoding="utf-8") for file in files if file.exists()))


def main() -> None:
    """Run the claims of the named techniques (all without a name) and record them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("technique", nargs="*")
    parser.add_argument("--dry", action="store_true", help="print, do not record")
    parser.add_argument("--stale", action="store_true", help="only claims whose files changed since they were recorded")
    arguments = parser.parse_args()
    asdicts = evidence()
    for name in arguments.technique or catalogue.names():
        for claim in claims_of(name):
            key = f"{name}/{claim.id}"
            if arguments.stale and key in asdicts and not is_stale(name, asdicts[key]):
                continue
            entry = run_claim(name, claim)
            if not arguments.dry:
                record(name, entry)
            print(f"{key}: {entry['verdict']} in {entry['seconds']} s  {json.dumps(entry['measured'])}", flush=True)


if __name__ == "__main__":
    main()
