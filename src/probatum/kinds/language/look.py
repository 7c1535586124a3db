"""Looking at windows of tokens: a few at a time, since the logits of all of them would fill the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probatum.measure.calibration import diagram
from probatum.measure.language import language
from probatum.measure.row_values import of_tokens
from probatum.rooms.arena import TrainingFailed
from probatum.rooms.task import Looked
from probatum.spec import Part

WINDOWS = 64
"""Windows whose predictions are held at once."""

MEASURES = ("bits-per-character", "bits-per-byte", "perplexity", "next-token-accuracy", "ece")
Check = Callable[[Tensor, int], None]


@dataclass(frozen=True)
class Seen:
    """Every token of some windows (n, length): log p of the one that came, p of the likeliest, whether that came."""

    log_p: Tensor
    confidence: Tensor
    right: Tensor


@torch.no_grad()
def look(predict: Callable[[Part], Tensor], part: Part, check: Check | None = None) -> Seen:
    """What the logarithms of probabilities (n, length, vocabulary) of `predict` say of a part's tokens.

    Predictions are held for `WINDOWS` windows at a time; `check` sees them with the number of windows.

    Raises:
        TrainingFailed: predictions that are not finite.
    """
    pieces = []
    for start in range(0, len(part), WINDOWS):
        some = slice(start, start + WINDOWS)
        few = Part(part.x[some], part.y[some], part.rows[some])
        log_p = predict(few)
        if check is not None:
            check(log_p, len(few))
        if not torch.isfinite(log_p).all():
            raise TrainingFailed("predictions on the test rows are not finite")
        best, guess = log_p.max(dim=2)
        own = log_p.gather(2, few.y[:, :, None]).squeeze(2)
        pieces.append((own, best.exp(), guess == few.y))
    return Seen(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def measured(seen: Seen, part: Part) -> Looked:
    """The measures of a part's tokens; a row is a window."""
    text = part.text or ()
    characters, sizes = np.array([(len(piece), len(piece.encode())) for piece in text], dtype=np.int64).reshape(-1, 2).T
    log_p, confidence, right = (value.double().numpy() for value in (seen.log_p, seen.confidence, seen.right))
    found = language(log_p, confidence, right, int(characters.sum()), int(sizes.sum()))
    details = {"reliability": diagram(confidence.ravel(), right.ravel())}
    return Looked(seen.log_p, found, details, of_tokens(log_p, confidence, right, characters, sizes))
