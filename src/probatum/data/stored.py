"""Saved files, read so that whatever is wrong with one of them is said in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

REMEDY = "copy the folder anew from where it was written, or write it again"


@contextmanager
def told(path: Path) -> Iterator[None]:
    """A block that reads a file or uses what it says: what fails in it is an InputError that names file and remedy."""
    try:
        yield
    except MemoryError:
        raise
    except InputError as problem:  # of what is built by the file
        if str(path.parent) in str(problem):
            raise
        raise InputError(f"{path}: {problem}") from problem
    except FileNotFoundError as problem:
        raise InputError(f"{path} is missing; {REMEDY}") from problem
    except Exception as problem:  # what broken content does is not foreseen
        first = (str(problem).strip().splitlines() or [""])[0][:200]
        what = f"no {first}" if isinstance(problem, KeyError) else f"{type(problem).__name__}: {first}"
        raise InputError(f"{path} is broken ({what}); {REMEDY}") from problem


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError where there is none."""
    with told(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"an object is needed, it holds a {type(found).__name__}")
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a safetensors file; InputError where it is missing, cut or none."""
    from safetensors.numpy import load_file

    with told(path):
        return load_file(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; InputError where it is missing, cut or none."""
    from safetensors.torch import load_file

    with told(path):
        return load_file(path)
