"""Numbers and words alone: what trials leave goes through JSON, and what processes send holds no class of a technique's.

Otherwise a number of a class of a technique's own could not be stored, after all training, and the process that runs
everything would load the technique's file to read it.
"""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

SENT = {
    ("probatum.bench.isolation", "Ran"),
    ("probatum.bench.records", "Trial"),
    ("probatum.arenas.predict.stacks", "Choice"),
}
"""Module and name of the classes that workers send."""


def plain(value: Any) -> Any:
    """The value as JSON holds it: dictionaries with strings for keys, lists, strings, numbers, True, False, None.

    Arrays and tensors of one number count as that number.

    Raises:
        TypeError: something in it is none of these.
    """
    try:
        return json.loads(json.dumps(value, default=_number))
    except (TypeError, ValueError) as problem:
        raise TypeError(
            f"what it leaves cannot be kept: {problem}; numbers, strings, lists and dictionaries can"
        ) from None


def _number(value: Any) -> Any:
    found = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else None
    if type(found) not in (int, float, bool):
        raise TypeError(f"it is of class {type(value).__name__}")
    return found


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SENT:
            raise pickle.UnpicklingError(f"a process sent {module}.{name}")
        return super().find_class(module, name)


def received(message: bytes) -> Any:
    """What a worker has sent.

    Raises:
        pickle.UnpicklingError: it holds something else than trials, numbers and words.
    """
    return _Reader(io.BytesIO(message)).load()
