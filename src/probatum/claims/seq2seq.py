"""A small sequence-to-sequence network for claims: a GRU reads, a GRU with attention writes, token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD, BOS, EOS = 0, 1, 2


class Written(NamedTuple):
    """Outputs (n, length) padded after EOS, and the log-probability of every token (n, length), 0 at padding."""

    tokens: Tensor
    log_p: Tensor

    @property
    def total(self) -> Tensor:
        """Log-likelihood of each output, EOS included, (n,)."""
        return self.log_p.sum(dim=1)


class Seq2Seq(nn.Module):
    """x (n, source) and y (n, target) token ids; 0 pads, 1 begins, 2 ends.

    Args:
        vocabulary: token ids.
        width: of embeddings and states.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.reader = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.writer = nn.GRUCell(3 * width, width)
        self.start, self.query = nn.Linear(2 * width, width), nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.Linear(3 * width, width), nn.Tanh(), nn.Linear(width, vocabulary))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded source (n, source, 2 width), where it is not padding, and the first state."""
        seen, _ = self.reader(self.embed(x))
        mask = x != PAD
        mean = (seen * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return seen, mask, torch.tanh(self.start(mean))

    def step(self, token: Tensor, state: Tensor, seen: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next token (n, vocabulary) and the state after it."""
        weights = (seen @ self.query(state)[:, :, None]).squeeze(2).masked_fill(~mask, float("-inf")).softmax(dim=1)
        context = (weights[:, :, None] * seen).sum(dim=1)
        state = self.writer(torch.cat([self.embed(token), context], dim=1), state)
        return self.out(torch.cat([state, context], dim=1)).log_softmax(dim=1), state

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-probability of every token of y (n, target) given those before it, 0 at padding; y ends with EOS."""
        seen, mask, state = self.read(x)
        token, found = torch.full_like(y[:, 0], BOS), []
        for t in range(y.shape[1]):
            log_p, state = self.step(token, state, seen, mask)
            found.append(log_p.gather(1, y[:, t : t + 1]).squeeze(1))
            token = y[:, t]
        return torch.stack(found, dim=1) * (y != PAD)

    @torch.no_grad()
    def write(self, x: Tensor, length: int, generator: torch.Generator | None = None) -> Written:
        """Sample token by token, or take the likeliest ones where no generator is given."""
        seen, mask, state = self.read(x)
        token = torch.full((len(x),), BOS)
        done = torch.zeros(len(x), dtype=torch.bool)
        tokens, logs = [], []
        for _ in range(length):
            log_p, state = self.step(token, state, seen, mask)
            if generator is None:
                token = log_p.argmax(dim=1)
            else:
                token = torch.multinomial(log_p.exp(), 1, generator=generator).squeeze(1)
            own = log_p.gather(1, token[:, None]).squeeze(1)
            tokens.append(torch.where(done, PAD, token))
            logs.append(torch.where(done, 0.0, own))
            done = done | (token == EOS)
            token = torch.where(done, PAD, token)
        return Written(torch.stack(tokens, dim=1), torch.stack(logs, dim=1))


def fit_pairs(
    model: Seq2Seq, x: Tensor, y: Tensor, steps: int, generator: torch.Generator, batch_size: int = 64, lr: float = 3e-3
) -> Seq2Seq:
    """Maximum likelihood by AdamW, the rate along a half cosine; in place, left in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (batch_size,), generator=generator)
        loss = -model(x[rows], y[rows]).sum() / (y[rows] != PAD).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return model.eval()


def padded(rows: list[list[int]], length: int) -> Tensor:
    """Token lists with EOS behind them, padded to `length`."""
    return torch.stack([F.pad(torch.tensor([*row, EOS]), (0, length - len(row) - 1)) for row in rows])
