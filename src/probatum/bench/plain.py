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
        text = json.dumps(value, default=_number)
        return printable(json.loads(text)) if "\\ud" in text else json.loads(text)
    except (TypeError, ValueError) as problem:
        raise TypeError(
            f"what it leaves cannot be kept: {problem}; numbers, strings, lists and dictionaries can"
        ) from None


def printable(value: Any) -> Any:
    """The same with what no file can hold, halves of characters as in names of files of other encodings, written out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [printable(one) for one in value]
    return {printable(k): printable(v) for k, v in value.items()} if isinstance(value, dict) else value


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
