"""The baseline's network for texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probatum.spec import Spec


class AttentionText(nn.Module):
    """Word embeddings pooled by additive attention (softmax over tokens) beside their mean, then one hidden layer."""

    def __init__(self, spec: Spec, width: int = 96, hidden: int = 96, dropout: float = 0.3) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocabulary, width, padding_idx=0)
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.attend = nn.Softmax(dim=1)
        self.body = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        seen = x != 0  # (n, length)
        seen = torch.where(seen.any(dim=1, keepdim=True), seen, torch.ones_like(seen))
        words = self.embed(x)  # (n, length, width)
        scores = self.score(words).squeeze(2).masked_fill(~seen, float("-inf"))
        pooled = (self.attend(scores).unsqueeze(2) * words).sum(dim=1)
        mean = (words * seen.unsqueeze(2)).sum(dim=1) / seen.sum(dim=1, keepdim=True)
        return self.head(self.body(torch.cat([pooled, mean], dim=1)))
