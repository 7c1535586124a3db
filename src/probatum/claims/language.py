"""A small character transformer on Tiny Shakespeare, for claims about optimizers and language models."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.data.library import root
from probatum.errors import InputError
from probatum.train.loop import rate_factor
from probatum.train.rng import generator_for, seeded

CONTEXT = 64
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Text:
    """Character ids: `train` and, behind it in the source, `test`; `vocabulary` different characters."""

    train: Tensor
    test: Tensor
    vocabulary: int


@cache
def shakespeare() -> Text:
    """Tiny Shakespeare under PROBATUM_DATA, its last tenth held out; InputError if it is not there."""
    folder = root()
    path = None if folder is None else folder / "tiny_shakespeare" / "tiny_shakespeare.txt.gz"
    if path is None or not path.is_file():
        raise InputError("tiny_shakespeare needs the data folder; set PROBATUM_DATA to it")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        letters = file.read()
    codes = {letter: i for i, letter in enumerate(sorted(set(letters)))}
    ids = torch.tensor([codes[letter] for letter in letters])
    cut = int(0.9 * len(ids))
    return Text(ids[:cut], ids[cut:], len(codes))


class Block(nn.Module):
    """Pre-norm causal self-attention and a GELU layer of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (n, heads, length, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharTransformer(nn.Module):
    """Ids (n, length) -> logits (n, length, vocabulary); length at most `context`."""

    def __init__(
        self, vocabulary: int, width: int = 64, depth: int = 2, heads: int = 4, context: int = CONTEXT
    ) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


@dataclass(frozen=True)
class Curve:
    """Held-out losses (nats a character) after `steps` updates each, the model and its optimizer."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def reaches(self, loss: float) -> float:
        """The first measured step with at most this loss; infinity if there is none."""
        return next((float(s) for s, value in zip(self.steps, self.losses, strict=True) if value <= loss), float("inf"))


def next_character_loss(model: nn.Module, ids: Tensor, starts: Tensor) -> Tensor:
    """Mean cross-entropy of the characters that follow, over windows that begin at `starts`."""
    windows = ids[starts[:, None] + torch.arange(CONTEXT + 1)]
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def held_out_loss(model: nn.Module, text: Text, windows: int = 128) -> float:
    """Loss over evenly spaced windows of the held-out part, in evaluation mode."""
    starts, mode = torch.linspace(0, len(text.test) - CONTEXT - 1, windows).long(), model.training
    model.eval()
    try:
        with torch.no_grad():
            return float(next_character_loss(model, text.test, starts))
    finally:
        model.train(mode)


def train_language(
    make: MakeOptimizer,
    seed: int,
    steps: int,
    *,
    batch_size: int = 16,
    every: int = 20,
    schedule: str = "cosine",
) -> Curve:
    """Train a fresh transformer; weights and batches depend on the seed alone, so that optimizers are paired.

    The learning rate warms up over 5 % of the steps and then falls by a half cosine, or stays ("constant").
    """
    text, order = shakespeare(), generator_for(seed, "order")
    with seeded(seed, "initial weights"):
        model = CharTransformer(text.vocabulary)
    optimizer = make(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    measured = []
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, steps // 20))
        factor = warm if schedule == "constant" else rate_factor(step, steps, schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        starts = torch.randint(len(text.train) - CONTEXT, (batch_size,), generator=order)
        optimizer.zero_grad(set_to_none=True)
        next_character_loss(model, text.train, starts).backward()
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            measured.append((step + 1, held_out_loss(model, text)))
    return Curve(tuple(s for s, _ in measured), tuple(v for _, v in measured), model, optimizer)


def best_rate(make: Callable[[float], MakeOptimizer], rates: tuple[float, ...], seed: int, steps: int) -> float:
    """The learning rate with the least final held-out loss on one development seed (NaN counts as infinite)."""
    finals = [train_language(make(rate), seed, steps, every=steps).losses[-1] for rate in rates]
    return min(zip(finals, rates, strict=True), key=lambda pair: pair[0] if pair[0] == pair[0] else float("inf"))[1]
