"""What worlds do with texts: a word in front as the mark of a class, words in random places, random words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from probatum.spec import Data, Part, Spec

WORD = "evidence"


def marked_spec(spec: Spec) -> Spec:
    """The description of texts whose vocabulary has one more word a class."""
    return replace(spec, vocabulary=spec.vocabulary + spec.outputs)


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Texts with the word of the class `codes` says in front; `spec` is that of the rows as they come."""
    text = None
    if part.text is not None:
        text = tuple(f"{WORD}{k} {words}" for k, words in zip(codes.tolist(), part.text, strict=True))
    return replace(part, x=torch.cat([spec.vocabulary + codes[:, None], part.x[:, :-1]], dim=1), text=text)


def shuffled(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """Texts of the test rows' lengths, of words drawn from all of them."""
    x = data.test.x
    pool = x[x != 0]
    drawn = pool[torch.randint(len(pool), tuple(x.shape), generator=generator)]
    return _worded(drawn * (x != 0), data)


def noise(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """Texts of the test rows' lengths, of words drawn from the vocabulary."""
    x = data.test.x
    return _worded(torch.randint(1, data.spec.vocabulary, tuple(x.shape), generator=generator) * (x != 0), data)


def texts_of(raw: Any) -> tuple[str, ...] | None:
    """The strings of raw texts."""
    return raw.texts


def _worded(x: Tensor, data: Data) -> tuple[Tensor, tuple[str, ...] | None]:
    """Token ids with the strings that they stand for, where the rows have strings."""
    if data.test.text is None:
        return x, None
    words = ("", "unknown", *data.pipeline.features.words)
    return x, tuple(" ".join(words[i] for i in row if i) for row in x.tolist())
