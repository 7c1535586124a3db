"""Predictors that are many networks: stacked, beside the same networks one after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.posterior.ensembles import Members, class_losses, train_members
from probatum.numerics.posterior.sgmcmc import Chains, gaussian_log_prior, gradient_of, log_posterior, psgld
from probatum.numerics.posterior.stacked import Posterior, Stacked
from probatum.numerics.tensors.draws import own_draws
from probatum.spec import Optimisation, Part
from suite.timing import Benchmark, Call, updating, versus

MEMBERS, CHAINS, TIMES = 10, 8, 20


def _net(width: int = 64) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def _rows() -> Part:
    torch.manual_seed(0)
    return Part(torch.randn(1024, 64), torch.randint(10, (1024,)), torch.arange(1024))


def _alone(net: nn.Module, part: Part, steps: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(len(part))
    for step in range(steps):
        index = order[step % 16 * 64 : (step % 16 + 1) * 64]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(part.x[index]), part.y[index]).backward()
        optimizer.step()


def _ensemble(steps: int, width: int) -> tuple[Call, Call]:
    part, nets = _rows(), [_net(width) for _ in range(MEMBERS)]
    stacked = Stacked(nets[0])

    def together() -> None:
        members = Members(stacked, *stacked.gather(nets))
        with own_draws(torch.Generator().manual_seed(0)):
            train_members(
                members, part, None, steps, 64, torch.Generator().manual_seed(0), Optimisation(1e-3), class_losses
            )

    def one_by_one() -> None:
        for net in nets:
            _alone(net, part, steps)

    return together, one_by_one


def ensemble_stacked_x10(updates: int) -> tuple[Call, Call]:
    """Training ten 64-64-64-10 networks, each by its own batches: stacked, against one after another with fused AdamW."""
    return _ensemble(updates, 64)


def ensemble_stacked_256_x10(updates: int) -> tuple[Call, Call]:
    """The same at width 256."""
    return _ensemble(updates, 256)


def chains_stacked_x8(updates: int) -> tuple[Call, Call]:
    """Preconditioned SGLD with eight chains of a 64-64-64-10 network: one computation, against one chain after another."""
    part, nets = _rows(), [_net() for _ in range(CHAINS)]
    stacked = Stacked(nets[0])
    start, _ = stacked.gather(nets)

    def losses(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        output = stacked(weights, x)
        return F.cross_entropy(output.flatten(0, 1), y.repeat(len(output)), reduction="none").unflatten(
            0, output.shape[:2]
        )

    slope = gradient_of(log_posterior(losses, gaussian_log_prior, n_data=len(part)))

    def run(weights: Tensor) -> None:
        chains, draw = Chains(weights), torch.Generator().manual_seed(0)
        for _ in range(updates):
            index = torch.randint(len(part), (64,), generator=draw)
            psgld(chains, slope(chains.weights, part.x[index], part.y[index]), 1e-6, draw, n_data=len(part))

    def one_by_one() -> None:
        for k in range(CHAINS):
            run(start[k : k + 1])

    return lambda: run(start), one_by_one


def posterior_predicts_x10() -> tuple[Call, Call]:
    """Ten networks' outputs for 256 rows, twenty times: a `Posterior`, against a loop over the networks."""
    part, nets = _rows(), [_net().eval() for _ in range(MEMBERS)]
    posterior, x = Posterior.of(nets), part.x[:256]

    def loop() -> Tensor:
        with torch.no_grad():
            return torch.stack([net(x) for net in nets])

    # one takes less than a millisecond, of which whoever comes first after a collection of garbage pays for cold caches
    return lambda: [posterior.outputs(x) for _ in range(TIMES)], lambda: [loop() for _ in range(TIMES)]


BENCHMARKS: tuple[Benchmark, ...] = (
    updating(ensemble_stacked_x10),
    updating(ensemble_stacked_256_x10),
    updating(chains_stacked_x8),
    versus(posterior_predicts_x10),
)
