"""Studies whose settings are said in one breath, as tests share them in dicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from probatum.settings import FineTuning, Judging, Reading, Running
from probatum.study import Study

VALUES = {"reading": Reading, "judging": Judging, "running": Running, "fine_tuning": FineTuning}
CALLED = {"pretrain": "source", "pretrain_steps": "steps", "pretrained": "weights"}


def study_of(data: Any, techniques: Any = None, **said: Any) -> Study:
    """A study; what is a field of `Reading`, `Judging`, `Running` or `FineTuning` may be said by its name alone."""
    for argument, kind in VALUES.items():
        names = CALLED if kind is FineTuning else {name: name for name in kind.__dataclass_fields__ if name != "target"}
        given = {field: said.pop(name) for name, field in names.items() if name in said}
        if given:
            said[argument] = replace(said.get(argument) or kind(), **given)
    return Study(data, techniques, **said)
