"""The contract suite lets honest techniques of a user's own pass, whatever they are built of."""

from __future__ import annotations

from pathlib import Path

import pytest

from probatum import catalogue
from probatum.checks.run import check

HEADER = '''"""A technique to be checked.

Paper     nobody
Computes  what it says
Shapes    any
Departs   none
"""
import torch
from torch import nn

from probatum.card import Card

'''
SHARPNESS = (
    HEADER
    + '''
CARD = Card(paper="none", title="Closure SAM", entry="ClosureSam", slot="optimizer", tags=("own",))


class ClosureSam(torch.optim.SGD):
    """SGD by the gradients at weights that are moved uphill by rho; parameters of any shape; lr and rho above 0."""

    closure = True

    def __init__(self, params, lr=0.05, rho=0.01):
        if not lr > 0 or not rho > 0:
            raise ValueError(f"lr is {lr} and rho {rho}; both must be above 0")
        super().__init__(params, lr=lr)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        here = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in here]).norm()
        steps = [self.rho * p.grad / (norm + 1e-12) for p in here]
        for p, move in zip(here, steps, strict=True):
            p.add_(move)
        with torch.enable_grad():
            loss = closure()
        for p, move in zip(here, steps, strict=True):
            p.sub_(move)
        super().step()
        return loss
'''
)
ATTENTION = (
    HEADER
    + '''
CARD = Card(paper="none", title="Encoder", entry="build", slot="model", modalities=("series",), tags=("own",), alone="attention")


class Encoder(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.inside = nn.Linear(channels, 8)
        self.mixed = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.mixed(self.inside(x.transpose(1, 2))).mean(dim=1))


def build(spec):
    """A layer of attention over series x (n, channels, steps) -> (n, outputs); dropout inside attention as well."""
    return Encoder(spec.shape[0], spec.outputs)
'''
)


@pytest.mark.parametrize("text", [SHARPNESS, ATTENTION], ids=["closure", "attention"])
def test_it_passes(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_added", dict(catalogue._added))
    file = tmp_path / "own_idea.py"
    file.write_text(text, encoding="utf-8")
    results = check(str(file))
    failed = {result.check: result.detail for result in results if result.status == "failed"}
    assert not failed
    assert sum(result.status == "passed" for result in results) > 5
