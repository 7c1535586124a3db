"""Small learnable problems of every kind of data."""

from __future__ import annotations

import torch

from probatum.rooms.kind import Kind, kind_of
from probatum.spec import Data, Part, Spec

ROWS = (64, 40, 40)
"""Training, validation and test rows."""


def toy(modality: str, task: str) -> Data:
    """Three classes or one real target that can be seen in x, or what the kind's own task asks."""
    return toy_of(kind_of(modality, task), task)


def toy_of(kind: Kind, task: str) -> Data:
    """The same of a kind."""
    generator = torch.Generator().manual_seed(7)
    n = sum(ROWS)
    hidden = torch.randint(3, (n,), generator=generator)
    made = kind.toy(hidden, generator)
    fields = {"outputs": 3 if task == "classes" else 1, **made.fields}
    spec = Spec(modality=kind.modality, task=task, **fields)
    y = made.y
    if y is None and task == "reals":
        y = (hidden.float() - 1 + 0.1 * torch.randn(n, generator=generator))[:, None]
    target = hidden if y is None else y
    parts = []
    for rows in torch.arange(n).split(list(ROWS)):
        text = None if made.text is None else tuple(made.text[i] for i in rows.tolist())
        parts.append(Part(made.x[rows], target[rows], rows, text))
    return Data(spec, *parts)
