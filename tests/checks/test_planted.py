"""Bugs planted into three honest techniques: the contract suite passes the honest ones and tells each planted bug by a check."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from probatum.checks.run import check

HEADER = '''"""A technique to be checked.

Paper     nobody
Computes  what it says
Shapes    any
Departs   none
"""
import torch
from torch import nn
from torch.nn import functional as F

from probatum.card import Card

'''
FOCAL = (
    HEADER
    + '''
CARD = Card(
    paper="none", title="Focal loss", entry="Focal", slot="loss", tags=("own",), tasks=("classes",), tune={"gamma": [1.0, 3.0]}
)


class Focal(nn.Module):
    """Mean of (1 - p)^gamma times cross-entropy, outputs (n, classes), targets (n,); gamma at least 0."""

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}; give a number of at least 0")
        self.gamma = gamma

    def forward(self, output, target):
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        if bool(((target < 0) | (target >= output.shape[1])).any()):
            raise ValueError(f"labels are {target.min()} to {target.max()} of {output.shape[1]} classes")
        log_p = output.log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)
        rest = -torch.expm1(log_p)
        return -(rest**self.gamma * log_p).mean()
'''
)
SAM = (
    HEADER
    + '''
CARD = Card(
    paper="none", title="Sharpness-aware minimisation", entry="Sam", slot="method", tags=("own",), tune={"rho": [0.01, 0.3]}
)


class Sam:
    """Gradients at the weights moved uphill by rho along the gradient; rho above 0."""

    reads = ("gradients", "weights")
    writes = ("gradients",)

    def __init__(self, rho: float = 0.05) -> None:
        if not rho > 0:
            raise ValueError(f"rho is {rho}; give a number above 0")
        self.rho = rho

    def gradients(self, run):
        here = [p for p in run.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in here]).norm() + 1e-12
        moves = [self.rho * p.grad / norm for p in here]
        with torch.no_grad():
            for p, move in zip(here, moves, strict=True):
                p.add_(move)
        run.second_pass()
        with torch.no_grad():
            for p, move in zip(here, moves, strict=True):
                p.sub_(move)
'''
)
FT = (
    HEADER
    + '''
CARD = Card(
    paper="none", title="Tokens of a table", entry="build", slot="model", tags=("own",), modalities=("table",),
    alone="it has tensors of its own", tiny={"dropout": 0.1}, tune={"depth": [1, 2], "dropout": [0.0, 0.5]},
)


def build(spec, depth: int = 1, dropout: float = 0.0) -> nn.Module:
    """Tokens of columns through attention blocks: (n, columns) -> (n, outputs); depth 1 on, dropout in [0, 1)."""
    if depth < 1:
        raise ValueError(f"depth is {depth}; give a whole number from 1 on")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; give a number in [0, 1)")
    return Tokens(spec, depth, dropout)


class Tokens(nn.Module):
    def __init__(self, spec, depth, dropout):
        super().__init__()
        self.numeric = spec.numeric
        self.scale = nn.Parameter(0.3 * torch.randn(spec.numeric, 8))
        self.bias = nn.Parameter(0.3 * torch.randn(spec.numeric, 8))
        self.tables = nn.ModuleList(nn.Embedding(size, 8) for size in spec.cardinalities)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True) for _ in range(depth))
        self.head = nn.Linear(8, spec.outputs)

    def forward(self, x):
        tokens = x[:, : self.numeric, None] * self.scale + self.bias
        codes = [table(x[:, self.numeric + i].long())[:, None] for i, table in enumerate(self.tables)]
        tokens = torch.cat([tokens, *codes], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.mean(dim=1))
'''
)
HONEST = {"focal": FOCAL, "sam": SAM, "ft": FT}
PLANTED = {
    "focal, negated": ("focal", [("return -(", "return (")]),
    "focal, the exponent's sign": ("focal", [("rest**self.gamma", "(rest + 1e-9) ** -self.gamma")]),
    "focal, p for 1 - p": ("focal", [("rest = -torch.expm1(log_p)", "rest = log_p.exp()")]),
    "focal, outputs changed in place": (
        "focal",
        [("log_p = output.log", "output.detach().mul_(1.01)\n        log_p = output.log")],
    ),
    "focal, gamma ignored": ("focal", [("**self.gamma", "**2.0")]),
    "sam, weights are not put back": ("sam", [("p.sub_(move)", "pass")]),
    "sam, training rows changed": (
        "sam",
        [("run.second_pass()", "run.train.x.mul_(1.001)\n        run.second_pass()")],
    ),
    "sam, the batch changed": (
        "sam",
        [
            (
                "    def gradients",
                "    def loss(self, run, batch, output, loss):\n        batch.x.mul_(1.001)\n        return loss\n\n    def gradients",
            )
        ],
    ),
    "sam, rho ignored": ("sam", [("self.rho * p.grad", "0.05 * p.grad")]),
    "sam, the second pass is not charged": (
        "sam",
        [("run.second_pass()", "run.second_pass()\n        run.extra_passes -= len(run.batch.y)")],
    ),
    "sam, it does not say what it reads": ("sam", [('reads = ("gradients", "weights")', "reads = ()")]),
    "ft, inputs changed in place": (
        "ft",
        [("tokens = x[:, : self.numeric", "x.mul_(1.001)\n        tokens = x[:, : self.numeric")],
    ),
    "ft, depth ignored": ("ft", [("range(depth)", "range(1)")]),
    "ft, dropout ignored": ("ft", [("dropout=dropout", "dropout=0.0")]),
    "ft, categories dropped": ("ft", [("[tokens, *codes]", "[tokens]")]),
}
"""Bug -> which technique, and what is put in place of what. Two of the usual kind are not here: a step down in place of up, and a
sign inside of a network, are other techniques of the same shape; only a technique's own test can tell them."""


@pytest.mark.parametrize("name", HONEST)
def test_honest_techniques_pass(name: str, tmp_path: Path) -> None:
    assert _failed(_written(tmp_path, f"honest_{name}", HONEST[name])) == []


@pytest.mark.parametrize("bug", PLANTED)
def test_the_suite_tells_it(bug: str, tmp_path: Path) -> None:
    name, changes = PLANTED[bug]
    path = _written(
        tmp_path,
        "planted_" + bug.replace(", ", "_").replace(" ", "_").replace("'", "").replace("-", "m"),
        _changed(HONEST[name], changes),
    )
    assert _failed(path), "every check passes"


def _changed(source: str, changes: Sequence[tuple[str, str]]) -> str:
    for before, after in changes:
        assert before in source, before
        source = source.replace(before, after)
    return source


def _written(folder: Path, name: str, source: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    return str(path)


@cache
def _failed(path: str) -> list[str]:
    return [f"{result.check}: {result.detail}" for result in check(path) if result.status == "failed"]
