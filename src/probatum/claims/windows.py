"""Windows of Tiny Shakespeare as data of task next-token, for claims that train the bench's language model."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from probatum.claims.language import shakespeare
from probatum.kinds.language.network import Decoder
from probatum.spec import Data, Part, Spec
from probatum.train.loop import outputs
from probatum.train.rng import generator_for

four_layers = partial(Decoder, width=64, depth=4, heads=8)
"""spec -> the bench's language model with four layers of width 64 and eight heads."""


def windows(seed: int, length: int, train: int, other: int = 64) -> Data:
    """`train` windows of so many characters from random places of the training text, the same for all arms of a seed.

    Those to validate and to test lie evenly spaced in the two halves of the held-out text. Without the ids of padding and
    of unknown characters, which a text of known letters does not need.
    """
    text = shakespeare()
    half = len(text.test) // 2
    drawn = torch.randint(len(text.train) - length, (train,), generator=generator_for(seed, "windows"))
    even = torch.linspace(0, half - length - 1, other).long()
    parts = []
    for ids, starts in ((text.train, drawn), (text.test[:half], even), (text.test[half:], even)):
        taken = ids[starts[:, None] + torch.arange(length + 1)]
        parts.append(Part(taken[:, :-1].contiguous(), taken[:, 1:].contiguous(), torch.arange(len(starts))))
    return Data(Spec("text", "next-token", (length,), text.vocabulary, vocabulary=text.vocabulary), *parts)


def loss_of(model: nn.Module, part: Part) -> float:
    """Mean cross-entropy in nats a character, in evaluation mode."""
    return float(F.cross_entropy(outputs(model, part.x).flatten(0, 1), part.y.flatten()))
