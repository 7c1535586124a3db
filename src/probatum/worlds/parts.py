"""What worlds share: rows of a part, words of a name, and whether every class is still there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from probatum.errors import InputError
from probatum.spec import Data, Part


def taken(part: Part, rows: torch.Tensor) -> Part:
    """The rows of a part at these positions."""
    text = None if part.text is None else tuple(part.text[i] for i in rows.tolist())
    return Part(part.x[rows], part.y[rows], part.rows[rows], text)


def only_words(words: Sequence[str], known: Sequence[str], usage: str, most: int = 1) -> tuple[str, ...]:
    """The words, checked: each is known, none comes twice, at most so many; raises InputError."""
    for word in words:
        if word not in known:
            raise InputError(f"{word!r} is no part of a world {usage}; use {', '.join(known) or 'the number alone'}")
    if len(set(words)) < len(words) or len(words) > most:
        raise InputError(f"{':'.join(words)} says too much; write {usage}")
    return tuple(words)


def classes_stay(data: Data, world: str, least: int = 1) -> None:
    """InputError, with the remedy, unless every class has so many training rows and the other parts have rows."""
    counts = torch.bincount(data.train.y, minlength=data.spec.outputs)
    if int(counts.min()) < least:
        k = int(counts.argmin())
        name = data.spec.classes[k] if k < len(data.spec.classes) else str(k)
        raise InputError(
            f"world {world} leaves class {name!r} {int(counts[k])} training row(s), {least} are needed; "
            "give a milder number, or bring more rows"
        )
    for what in ("valid", "test"):
        if len(getattr(data, what)) == 0:
            raise InputError(f"world {world} leaves no {what} rows; give a milder number, or bring more rows")
