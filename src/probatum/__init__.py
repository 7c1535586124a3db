"""Probatum: published deep-learning techniques, alone or tried on your own data at equal budget.

Importing this package loads neither torch nor numpy; public names arrive when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from probatum.version import VERSION

__version__ = VERSION

_HOMES = {
    "AcquireRules": "probatum.arenas.acquire.rules",
    "Card": "probatum.card",
    "Data": "probatum.spec",
    "FineTuning": "probatum.settings",
    "InputError": "probatum.errors",
    "Judging": "probatum.settings",
    "Part": "probatum.spec",
    "ProbatumClassifier": "probatum.estimator",
    "ProbatumRegressor": "probatum.estimator",
    "Reading": "probatum.settings",
    "Running": "probatum.settings",
    "Spec": "probatum.spec",
    "StreamRules": "probatum.arenas.stream.rules",
    "Study": "probatum.study",
    "advise": "probatum.advising.advise",
    "audit": "probatum.auditing.audit",
    "card": "probatum.catalogue",
    "check": "probatum.checks.run",
    "find": "probatum.catalogue",
    "load": "probatum.catalogue",
    "names": "probatum.catalogue",
    "open_dataset": "probatum.data.open",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from probatum.advising.advise import advise
    from probatum.arenas.acquire.rules import AcquireRules
    from probatum.arenas.stream.rules import StreamRules
    from probatum.auditing.audit import audit
    from probatum.card import Card
    from probatum.catalogue import card, find, load, names
    from probatum.checks.run import check
    from probatum.data.open import open_dataset
    from probatum.errors import InputError
    from probatum.estimator import ProbatumClassifier, ProbatumRegressor
    from probatum.settings import FineTuning, Judging, Reading, Running
    from probatum.spec import Data, Part, Spec
    from probatum.study import Study


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'probatum' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
