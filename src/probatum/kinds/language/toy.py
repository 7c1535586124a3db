"""Small windows of tokens that can be foretold."""

from __future__ import annotations

import torch

from probatum.rooms.kind import Toy


def toy(n: int, vocabulary: int = 20, length: int = 12) -> Toy:
    """Windows of a chain whose next token is a function of the one before, one time in ten any token; y is x moved by one."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, vocabulary, (n, length + 1), generator=generator)
    follows = torch.rand(n, length, generator=generator) < 0.9
    for t in range(length):
        ids[:, t + 1] = torch.where(follows[:, t], 2 + (5 * ids[:, t] + 3) % (vocabulary - 2), ids[:, t + 1])
    x, y = ids[:, :-1], ids[:, 1:]
    text = tuple("".join(chr(95 + t) for t in row) for row in y.tolist())
    fields = {"shape": (length,), "vocabulary": vocabulary, "outputs": vocabulary}
    return Toy(x, fields, text, y)
