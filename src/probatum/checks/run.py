"""The contract suite, public: also for techniques of your own (``probatum check my_loss.py``)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from probatum import catalogue
from probatum.checks import fresh
from probatum.checks.subject import CheckFailedError, NotThisOneError, Subject

Check = Callable[[Subject], None]


@dataclass(frozen=True)
class Result:
    """Outcome of one check: passed, failed, not applicable, or expected to fail."""

    check: str
    status: str
    detail: str = ""


def checks_for(slot: str) -> dict[str, Check]:
    """The checks of a slot by name: static ones, universal ones, its own."""
    found: dict[str, Check] = {}
    for module in ("static", "universal", "language", "stacking", slot):
        members = vars(importlib.import_module(f"probatum.checks.{module}"))
        found |= {name.removeprefix("check_"): thing for name, thing in members.items() if name.startswith("check_")}
    return found


def check(what: str) -> list[Result]:
    """Check a technique by id, or a file of your own by path.

    A check that the card's `expect_fail` names must fail; if it passes, that is a failure too, so that exceptions do not
    outlive their reason.
    """
    name = catalogue.add_file(what) if what.endswith(".py") or Path(what).is_file() else what
    subject = Subject(name)
    known = checks_for(subject.slot)
    with fresh.kept():
        results = [run_check(subject, check_name) for check_name in known]
    unknown = set(subject.card.expect_fail) - set(known)
    results += [Result(name, "failed", "the card's expect_fail names a check that does not exist") for name in unknown]
    return results


def run_check(subject: Subject, name: str) -> Result:
    """Run one check on one thread, warnings silenced."""
    its_check = checks_for(subject.slot)[name]
    reason = subject.card.expect_fail.get(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            its_check(subject)
    except NotThisOneError as why:
        return Result(name, "not applicable", str(why))
    except CheckFailedError as problem:
        return Result(name, "expected to fail" if reason else "failed", reason or str(problem))
    except Exception as problem:  # an error inside a technique is a failed check, told with its type
        text = f"{type(problem).__name__}: {problem}"
        return Result(name, "expected to fail" if reason else "failed", reason or text)
    finally:
        torch.set_num_threads(threads)
    return Result(name, "failed", f"passes, although expect_fail says {reason!r}") if reason else Result(name, "passed")
