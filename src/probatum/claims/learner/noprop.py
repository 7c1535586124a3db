"""Claims of NoProp (arXiv:2503.24322): blocks that learn alone come near networks trained by back-propagation.

Learning rates were chosen by validation accuracy on seeds 1 and 2, on both sets, out of 0.0003, 0.001, 0.003 and 0.01: for
NoProp and for one block's encoder with a linear head by back-propagation, which is the bar: the same chain by
back-propagation through ten softmaxes and their noise trains badly at these lengths. Memory is what `fit`'s own step holds at
most for backward passes, against a step of that chain; beside it a step that builds the losses of all blocks before the first
of them goes backward, which learns the same and saves nothing.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.base import Claim, Evidence
from probatum.claims.tools import interval, mean
from probatum.data.library import library, subset
from probatum.data.open import open_dataset
from probatum.spec import Budget, Data, Part
from probatum.techniques.learner.noprop import NoProp, chain_coefficients, fit, local_parameters, update
from probatum.train.rng import generator_for, seeded

BLOCKS, BATCH = 10, 128
EPOCHS = {"digits": 60, "mnist": 10}
WITHIN = {"digits": 0.05, "mnist": 0.02}
MEMORY = 0.5
RATES = {
    ("digits", "noprop"): 3e-3,
    ("digits", "plain"): 1e-2,
    ("mnist", "noprop"): 1e-2,
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


def by_back_propagation(data: Data, budget: Budget, seed: int, rate: float) -> nn.Module:
    """The encoder of one block with a linear head."""
    order = generator_for(seed, "order")
    with seeded(seed, "initial weights"):
        look = NoProp(data.spec, blocks=1).blocks[0].look
        net = nn.Sequential(look, nn.ReLU(), nn.Linear(64, data.spec.outputs))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3, fused=True)
    x, y = data.train.x, data.train.y
    for _ in range(budget.steps):
        index = torch.randint(len(y), (budget.batch_size,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(net(x[index]), y[index]).backward()
        optimizer.step()
    return net.eval()


def accuracy(net: nn.Module, part: Part, seed: int) -> float:
    """Of the mean over eight chains, or of the plain network."""
    with torch.no_grad():
        found = net.probabilities(part.x, generator_for(seed, "chains"), 8) if isinstance(net, NoProp) else net(part.x)
    return float((found.argmax(dim=1) == part.y).float().mean())


class Held:
    """Bytes that graphs keep for their backward passes: `now`, and the `most` there were; weights and inputs do not count."""

    def __init__(self, net: nn.Module, *given: Tensor) -> None:
        self.free = {value.untyped_storage().data_ptr() for value in (*net.parameters(), *net.buffers(), *given)}
        self.uses: Counter[int] = Counter()
        self.now = self.most = 0

    def while_doing(self, step: Callable[[], object]) -> int:
        """The most of them at any time in the step."""
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor):
            step()
        return self.most


class _Kept:
    """A tensor that a graph keeps, until the graph lets go of it."""

    def __init__(self, held: Held, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.held, self.tensor, self.place, self.bytes = held, tensor, storage.data_ptr(), storage.nbytes()
        if self.place not in held.free:
            held.uses[self.place] += 1
            held.now += self.bytes if held.uses[self.place] == 1 else 0
            held.most = max(held.most, held.now)

    def __del__(self) -> None:
        if self.place not in self.held.free:
            self.held.uses[self.place] -= 1
            self.held.now -= self.bytes if not self.held.uses[self.place] else 0


def memories(net: NoProp, data: Data, seed: int) -> dict[str, int]:
    """Bytes held at most in a step of `fit`, of all block losses at once, and of the chain by back-propagation."""
    x, y = data.train.x[:BATCH].clone(), data.train.y[:BATCH].clone()
    steps: dict[str, Callable[[NoProp, torch.Generator], object]] = {
        "step": lambda own, draws: update(own, [torch.optim.AdamW(g) for g in local_parameters(own)], x, y, draws),
        "all": lambda own, draws: torch.stack(list(own.block_losses(x, y, draws))).sum().backward(),
        "chain": lambda own, draws: F.cross_entropy(chained(own, x, draws), y).backward(),
    }
    found = {}
    for name, step in steps.items():
        own = copy.deepcopy(net)
        found[name] = Held(own, x, y).while_doing(lambda own=own, step=step: step(own, generator_for(seed, "memory")))
    return found


def _run(seeds: Sequence[int]) -> Evidence:
    rows: list[dict[str, float | str]] = []
    for name in EPOCHS:
        for seed in seeds:
            data = data_of(name, seed)
            budget = budget_of(name, data)
            ours = fit(data, budget, generator_for(seed, "noprop"), blocks=BLOCKS, rate=RATES[name, "noprop"]).net
            plain = by_back_propagation(data, budget, seed, RATES[name, "plain"])
            row: dict[str, float | str] = {"data": name, "seed": float(seed)}
            row |= {"noprop": accuracy(ours, data.test, seed), "plain": accuracy(plain, data.test, seed)}
            held = memories(ours, data, seed)
            row |= {"memory": held["step"] / held["chain"], "memory_of_all_at_once": held["all"] / held["chain"]}
            rows.append(row)
    measured: dict[str, float] = {}
    holds, controls = True, {}
    for name, within in WITHIN.items():
        own = [row for row in rows if row["data"] == name]
        for key in ("noprop", "plain", "memory", "memory_of_all_at_once"):
            measured[f"{name}_{key}"] = mean([float(row[key]) for row in own])
        gap = interval([float(row["noprop"]) - float(row["plain"]) for row in own])
        measured |= gap.told(f"{name}_gap")
        holds &= gap.low >= -within and measured[f"{name}_memory"] <= MEMORY
        controls[f"{name}: all losses at once save no memory"] = measured[f"{name}_memory_of_all_at_once"] > 0.9
    return Evidence(holds, measured, tuple(rows), controls=controls)


CLAIMS = (
    Claim(
        id="near-back-propagation",
        says="Blocks that learn to denoise the label, each alone, come near a network trained by back-propagation.",
        threshold=(
            "90 % interval of the accuracy less that of a plain network by back-propagation above -5 points on digits and -2 on "
            "mnist; a step of training holds at most half of the activations of one of the chain by back-propagation"
        ),
        data="digits; mnist at half resolution, 10,000 rows",
        run=_run,
        minutes=5.0,
        needs_library=True,
        seeds=tuple(range(201, 206)),
    ),
)
