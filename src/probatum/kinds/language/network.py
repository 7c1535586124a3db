"""The built-in language model: a small decoder-only transformer."""

from __future__ import annotations

import math

from torch import Tensor, nn

from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.spec import Spec

SPREAD = 0.02
"""Standard deviation of the initial weights, as in GPT-2."""


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, then a GELU layer of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Ids (n, t) -> logits (n, t, vocabulary) of the token that follows each; t is at most what memory holds.

    Positions are rotary, the head is not tied to the embedding. The last layer of each branch starts smaller by the
    square root of the number of branches, so that the sum does not grow with depth.
    """

    def __init__(self, spec: Spec, width: int = 96, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocabulary, width)
        self.blocks = nn.Sequential(*[DecoderBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, spec.outputs)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith(("attention.out", "mlp.2"))
                nn.init.normal_(module.weight, std=SPREAD / math.sqrt(2 * depth) if last else SPREAD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))))
