"""What a shipped language model says of new texts: how many bits each takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from probatum.errors import InputError
from probatum.kinds.language.corpus import SUFFIXES, read_text, windows
from probatum.kinds.language.look import WINDOWS
from probatum.kinds.language.tokens import TokenEncoder
from probatum.spec import Part

Predict = Callable[[Part], Tensor]


def scored(predict: Predict, encoder: TokenEncoder, source: Any) -> pl.DataFrame:
    """One row a text: characters, bits-per-character, perplexity, and the share of its tokens that the model knows.

    Args:
        predict: windows of tokens -> natural logarithms of probabilities (n, length, vocabulary).
        encoder: text -> tokens.
        source: texts, or the path of a .txt or .txt.gz file, which is one text.

    Raises:
        InputError: no texts, or one of under two tokens: the first token of a text is not foretold.
    """
    texts = _texts(source)
    rows = []
    for number, text in enumerate(texts):
        ids, begins = encoder.encode(text)
        if len(ids) < 2:
            raise InputError(f"text {number} is {text[:40]!r}; bring two tokens or more, the first is not foretold")
        x, y, _, _ = windows(encoder, text)
        whole = x.size
        total = sum(
            _log_p(predict, torch.from_numpy(x[i : i + WINDOWS]), torch.from_numpy(y[i : i + WINDOWS]))
            for i in range(0, len(x), WINDOWS)
        )
        if whole + 1 < len(ids):  # the rest that fills no window
            rest = torch.from_numpy(ids[whole:])[None]
            total += _log_p(predict, rest[:, :-1], rest[:, 1:])
        rows.append(
            {
                "text": number,
                "characters": len(text),
                "bits-per-character": -total / math.log(2) / (len(text) - int(begins[1])),
                "perplexity": math.exp(min(-total / (len(ids) - 1), 700.0)),
                "known": float((ids != 1).mean()),
            }
        )
    return pl.DataFrame(rows)


def _log_p(predict: Predict, x: Tensor, y: Tensor) -> float:
    log_p = predict(Part(x, y, torch.arange(len(x))))
    return float(log_p.gather(2, y[:, :, None]).double().sum())


def _texts(source: Any) -> list[str]:
    if isinstance(source, str | Path):
        if not str(source).lower().endswith(SUFFIXES):
            raise InputError(
                f"{str(source)!r} is no {' or '.join(SUFFIXES)} file; a language model reads those, or texts"
            )
        return [read_text(Path(source))]
    if isinstance(source, list | tuple) and source and all(isinstance(text, str) for text in source):
        return list(source)
    raise InputError(f"a language model reads a list of texts or a text file, not a {type(source).__name__}")
