"""Checks of what belongs to a technique of this package besides its file: claims and their evidence, its test, an example.

They apply inside a checkout alone. What is not done yet, but not wrong, is said to be "to do", with the command to run.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from probatum import catalogue
from probatum.checks.subject import NotDoneYetError, NotThisOneError, Subject, demand

CLAIMS = "probatum.claims"
"""Claims stand on a floor above this one, and are loaded by name where they are there."""
TESTS = Path(__file__).parents[3] / "tests"


def check_claims_match(subject: Subject) -> None:
    """The claims that the card names are those its claim file runs."""
    claims = tuple(claim.id for claim in _claims(subject))
    demand(claims == subject.card.claims, f"the card names claims {subject.card.claims}, the claim file runs {claims}")


def check_evidence_is_recorded(subject: Subject) -> None:
    """Every claim was run on its own seeds and recorded, and nothing that its evidence rests on has changed since."""
    record = _part_of_claims("record", subject)
    known, command = record.evidence(), f"python -m probatum.claims.record {subject.name}"
    keys = {claim.id: f"{subject.name}/{claim.id}" for claim in _claims(subject)}
    missing = [name for name, key in keys.items() if key not in known]
    stale = [name for name, key in keys.items() if key in known and record.is_stale(subject.name, known[key])]
    told = [
        f"{', '.join(names)} {why}" for names, why in ((missing, "not run yet"), (stale, "no longer fresh")) if names
    ]
    if told:
        raise NotDoneYetError(f"{'; '.join(told)}: {command} (try it first: probatum claim {subject.name} --seeds 1-5)")


def check_has_a_test_of_its_own(subject: Subject) -> None:
    """Its test file is there and holds more than the contract suite: a witness for what it computes."""
    path = _test_file(subject)
    demand(path.is_file(), f"there is no {_short(path)}; write it (`probatum new` shows one)")
    own = [test for test in _tests(ast.parse(path.read_text(encoding="utf-8"))) if not _runs_the_suite(test)]
    demand(bool(own), f"{_short(path)} runs the contract suite alone; add a test against an independent witness")


def check_shows_an_example(subject: Subject) -> None:
    """The main file shows a use alone, ``>>>``, which the documents' tests run."""
    where = catalogue.place(subject.name)
    if where.inside is None:
        raise NotThisOneError("a technique from outside the package")
    text = where.path.read_text(encoding="utf-8")
    demand(
        ">>>" in text,
        f"{where.path.name} shows no example; put one into the docstring of {subject.card.entry}: >>> ...",
    )


def _claims(subject: Subject) -> tuple[Any, ...]:
    """The claims in the technique's claim file."""
    _part_of_claims("base", subject)
    inside = catalogue.place(subject.name).inside
    assert inside is not None
    module = ".".join((CLAIMS, *inside.parts))
    try:
        return tuple(importlib.import_module(module).CLAIMS)
    except ModuleNotFoundError as problem:
        if problem.name is None or not module.startswith(problem.name):
            raise
        demand(False, f"there is no claim file src/{module.replace('.', '/')}.py; write it (`probatum new` shows one)")
        return ()


def _part_of_claims(name: str, subject: Subject) -> ModuleType:
    if catalogue.place(subject.name).inside is None or importlib.util.find_spec(CLAIMS) is None:
        raise NotThisOneError("a technique from outside the package")
    return importlib.import_module(f"{CLAIMS}.{name}")


def _test_file(subject: Subject) -> Path:
    """Where the technique's test stands in a checkout."""
    where = catalogue.place(subject.name)
    if where.inside is None:
        raise NotThisOneError("a technique from outside the package")
    if not TESTS.is_dir():
        raise NotThisOneError("this is no checkout: there are no tests")
    home = where.inside if where.folder is not None else where.inside.parent
    return TESTS / "techniques" / home / f"test_{where.path.name}"


def _tests(tree: ast.Module) -> list[ast.FunctionDef]:
    """The test functions of a file, those in classes too."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def _runs_the_suite(test: ast.FunctionDef) -> bool:
    """Whether a test calls the contract suite."""
    called = (node.func for node in ast.walk(test) if isinstance(node, ast.Call))
    return any(isinstance(func, ast.Name) and func.id in ("check", "run_check") for func in called)


def _short(path: Path) -> str:
    return path.relative_to(TESTS.parent).as_posix()
