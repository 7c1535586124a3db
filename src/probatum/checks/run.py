"""The contract suite, public: also for techniques of your own (``probatum check my_loss.py``) and for kinds of data."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probatum import catalogue
from probatum.checks import fresh
from probatum.checks.kind_subject import KindSubject
from probatum.checks.subject import CheckFailedError, NotDoneYetError, NotThisOneError, Subject
from probatum.rooms import find

Check = Callable[[Any], None]

COMMON = ("static", "house", "universal", "tuned", "language", "stacking")
"""Modules of checks that every technique must pass, whatever its slot."""
KINDS = ("kind_rows", "kind_network")
"""Modules of checks of kinds of data."""
KIND = "kind/"
"""What stands before a kind's name: ``kind/table``."""


@dataclass(frozen=True)
class Result:
    """Outcome of one check.

    Attributes:
        check: its name.
        status: passed, failed, not applicable, expected to fail, or to do (nothing is wrong, something is still missing).
        detail: why, and the remedy.
    """

    check: str
    status: str
    detail: str = ""


def checks_for(slot: str) -> dict[str, Check]:
    """The checks of a slot by name: of the file, of what belongs to it, universal ones, its own."""
    return _checks(*COMMON, slot)


def kind_checks() -> dict[str, Check]:
    """The checks of kinds of data by name."""
    return _checks(*KINDS)


def check(what: str) -> list[Result]:
    """Check a technique by id, a file of your own by path, or a kind of data: ``kind/NAME``, or its folder by path.

    A check that the card's `expect_fail` names must fail; if it passes, that is a failure too, so that exceptions do not
    outlive their reason.

    Raises:
        InputError: there is no such technique, file or kind.
    """
    kind = kind_meant(what)
    if kind is not None:
        return [run_check(KindSubject(kind), name) for name in kind_checks()]
    name = catalogue.add_file(what) if what.endswith(".py") or Path(what).is_file() else what
    subject = Subject(name)
    known = checks_for(subject.slot)
    with fresh.kept():
        results = [run_check(subject, check_name) for check_name in known]
    unknown = set(subject.card.expect_fail) - set(known)
    results += [Result(name, "failed", "the card's expect_fail names a check that does not exist") for name in unknown]
    return results


def kind_meant(what: str) -> str | None:
    """The name of the kind of data that ``kind/NAME`` or the path of a kind's folder means; None for anything else."""
    if (Path(what) / "kind.py").is_file():
        return find.add(what) if find.PACKAGE not in Path(what).resolve().parents else Path(what).resolve().name
    if not what.startswith(KIND):
        return None
    return find.room("kind", what.removeprefix(KIND)).name


def run_check(subject: Subject | KindSubject, name: str) -> Result:
    """Run one check on one thread, warnings silenced."""
    if isinstance(subject, KindSubject):
        its_check, reason = kind_checks()[name], None
    else:
        its_check, reason = checks_for(subject.slot)[name], subject.card.expect_fail.get(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            its_check(subject)
    except NotThisOneError as why:
        return Result(name, "not applicable", str(why))
    except NotDoneYetError as what:
        return Result(name, "to do", str(what))
    except CheckFailedError as problem:
        return Result(name, "expected to fail" if reason else "failed", reason or str(problem))
    except Exception as problem:  # an error inside what is checked is a failed check, told with its type
        text = f"{type(problem).__name__}: {problem}"
        return Result(name, "expected to fail" if reason else "failed", reason or text)
    finally:
        torch.set_num_threads(threads)
    return Result(name, "failed", f"passes, although expect_fail says {reason!r}") if reason else Result(name, "passed")


def _checks(*modules: str) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for module in modules:
        members = vars(importlib.import_module(f"probatum.checks.{module}"))
        found |= {name.removeprefix("check_"): thing for name, thing in members.items() if name.startswith("check_")}
    return found
