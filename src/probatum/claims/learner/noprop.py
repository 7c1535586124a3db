"""Claims of NoProp (arXiv:2503.24322): blocks that learn alone come near networks trained by back-propagation.

Learning rates were chosen by validation accuracy on seeds 1 and 2, on both sets, out of 0.0003, 0.001, 0.003 and 0.01: for
NoProp, for the same chain and for one block's encoder with a linear head, the latter two by back-propagation. That through
ten softmaxes and their noise trains badly at these lengths, so that the bar is the plain network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import mean
from probatum.data.library import library, subset
from probatum.data.open import open_dataset
from probatum.spec import Budget, Data, Part
from probatum.techniques.learner.noprop import NoProp, chain_coefficients, fit
from probatum.train.rng import generator_for, seeded

BLOCKS, BATCH = 10, 128
EPOCHS = {"digits": 60, "mnist": 20}
WITHIN = {"digits": 0.05, "mnist": 0.02}
RATES = {
    ("digits", "noprop"): 3e-3,
    ("digits", "chain"): 1e-2,
    ("digits", "plain"): 1e-2,
    ("mnist", "noprop"): 1e-2,
    ("mnist", "chain"): 1e-2,
    ("mnist", "plain"): 1e-2,
}


def data_of(name: str, seed: int) -> Data:
    """digits, or 10,000 rows of MNIST at half resolution."""
    if name == "digits":
        return open_dataset("digits").prepare(seed)
    data = subset(library("mnist"), 10_000, seed).prepare(seed)

    def half(part: Part) -> Part:
        return replace(part, x=F.avg_pool2d(part.x, 2))

    spec = replace(data.spec, shape=(1, 14, 14))
    return replace(data, spec=spec, train=half(data.train), valid=half(data.valid), test=half(data.test))


def budget_of(name: str, data: Data) -> Budget:
    """The epochs of a set."""
    per_epoch = len(data.train) // BATCH
    return Budget(EPOCHS[name] * per_epoch, BATCH, per_epoch)


def chained(net: NoProp, x: Tensor, generator: torch.Generator) -> Tensor:
    """Logits at the end of the chain, with gradients through all of it."""
    z = torch.randn(len(x), net.table.shape[1], generator=generator)
    for block, a, b, c in zip(net.blocks, *(v.float() for v in chain_coefficients(net.levels)), strict=True):
        z = a * net.expected(block(z, x)) + b * z + c.sqrt() * torch.randn(z.shape, generator=generator)
    return net.head(z)


def by_back_propagation(kind: str, data: Data, budget: Budget, seed: int, rate: float) -> nn.Module:
    """The same chain end to end, or "plain": the encoder of one block with a linear head."""
    generator, order = generator_for(seed, "noise"), generator_for(seed, "order")
    with seeded(seed, "initial weights"):
        chain = NoProp(data.spec, blocks=BLOCKS)
        look = chain.blocks[0].look
        net = chain if kind == "chain" else nn.Sequential(look, nn.ReLU(), nn.Linear(64, data.spec.outputs))
    logits: Callable[[Tensor], Tensor] = net if kind == "plain" else lambda rows: chained(chain, rows, generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3, fused=True)
    x, y = data.train.x, data.train.y
    for _ in range(budget.steps):
        index = torch.randint(len(y), (budget.batch_size,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(logits(x[index]), y[index]).backward()
        optimizer.step()
    return net.eval()


def accuracy(net: nn.Module, part: Part, seed: int) -> float:
    """Of the mean over eight chains, or of the plain network."""
    with torch.no_grad():
        found = net.probabilities(part.x, generator_for(seed, "chains"), 8) if isinstance(net, NoProp) else net(part.x)
    return float((found.argmax(dim=1) == part.y).float().mean())


def held_bytes(passes: Callable[[], Tensor]) -> float:
    """Bytes of activations that a pass keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        passes()
    return float(sum(kept.values()))


def memories(net: NoProp, data: Data, seed: int) -> tuple[float, float]:
    """Bytes held in a step: the most of any block alone, and of the whole chain."""
    x, y, generator = data.train.x[:BATCH], data.train.y[:BATCH], generator_for(seed, "memory")
    z = torch.randn(BATCH, net.table.shape[1], generator=generator)
    one = max(
        held_bytes(lambda block=block: (net.expected(block(z, x)) - net.table[y]).square().sum())
        for block in net.blocks
    )
    return one, held_bytes(lambda: F.cross_entropy(chained(net, x, generator), y))


def _run(seeds: Sequence[int]) -> Evidence:
    rows = []
    for name in EPOCHS:
        for seed in seeds:
            data = data_of(name, seed)
            budget = budget_of(name, data)
            ours = fit(data, budget, generator_for(seed, "noprop"), blocks=BLOCKS, rate=RATES[name, "noprop"]).net
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            row["noprop"] = accuracy(ours, data.test, seed)
            for kind in ("chain", "plain"):
                theirs = by_back_propagation(kind, data, budget, seed, RATES[name, kind])
                row[kind] = accuracy(theirs, data.test, seed)
            one, all_of_them = memories(ours, data, seed)
            row["share_of_activation_memory"] = one / all_of_them
            rows.append(row)
    measured: dict[str, float] = {}
    holds = True
    for name, within in WITHIN.items():
        own = [row for row in rows if row["data"] == name]
        for key in ("noprop", "chain", "plain", "share_of_activation_memory"):
            measured[f"{name}_{key}"] = mean([float(row[key]) for row in own])
        near = [float(float(row["plain"]) - float(row["noprop"]) <= within) for row in own]
        measured[f"{name}_share_of_seeds_near"] = mean(near)
        holds &= mean(near) >= 0.8 and measured[f"{name}_share_of_activation_memory"] < 1
    return Evidence(holds, measured, tuple(rows))


CLAIMS = (
    Claim(
        id="near-back-propagation",
        says="Blocks that learn to denoise the label, each alone, come near a network trained by back-propagation.",
        threshold=(
            "accuracy within 5 points of a plain network by back-propagation on digits and within 2 on mnist, on 4 of 5 seeds, "
            "and less activation memory than the chain by back-propagation"
        ),
        data="digits; mnist at half resolution, 10,000 rows",
        run=_run,
        minutes=5.0,
        needs_library=True,
    ),
)
