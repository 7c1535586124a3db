"""Overdamped particles in many potentials at once, and what is read off their paths.

    dx = F(x) dt + sqrt(2 kT dt) xi

Every potential (a draw of a posterior of energies) has walkers of its own: positions (S, W, d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]
"""Positions (S, n, d) -> energies (S, n)."""


def forces(energy: Energy, x: Tensor, *, graph: bool = False) -> Tensor:
    """-dU/dx (S, n, d); with `graph` it can be differentiated again, as training on forces needs."""
    with torch.enable_grad():
        place = x if x.requires_grad else x.detach().requires_grad_(True)
        return -torch.autograd.grad(energy(place).sum(), place, create_graph=graph)[0]


@dataclass(frozen=True)
class Paths:
    """Where walkers were.

    Attributes:
        positions: (S, T, W, d), after the burn-in.
        stable: (S,) whether all walkers of a potential stayed finite and within reach.
    """

    positions: Tensor
    stable: Tensor


def simulate(
    force: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    step: float,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    burn: int = 0,
    every: int = 1,
    reach: float = math.inf,
) -> Paths:
    """Euler-Maruyama paths.

    Args:
        force: (S, W, d) -> (S, W, d).
        start: (S, W, d).
        steps: in all; the first `burn` are left out, of the others each `every`-th is kept.
        step: dt > 0.
        generator: of the noise.
        temperature: kT >= 0.
        reach: largest coordinate; a potential whose walkers leave it has exploded. It is held there and told.

    Raises:
        ValueError: nothing would be kept, or a step that is not positive.
    """
    if not step > 0 or not temperature >= 0 or not 0 <= burn < steps or every < 1:
        raise ValueError(
            f"step is {step}, temperature {temperature}, burn {burn}, steps {steps}, every {every}; need step > 0, "
            "temperature >= 0, 0 <= burn < steps, every >= 1"
        )
    x, stable, kept = start.clone(), torch.ones(len(start), dtype=torch.bool), []
    spread = math.sqrt(2 * temperature * step)
    for k in range(steps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + step * force(x) + spread * noise
        outside = ~(x.abs() <= reach)  # also where it is not a number
        stable &= ~outside.flatten(1).any(dim=1)
        x = torch.where(outside, x.nan_to_num(0.0).clamp(-min(reach, 1e6), min(reach, 1e6)), x)
        if k >= burn and (k - burn) % every == 0:
            kept.append(x)
    return Paths(torch.stack(kept, dim=1), stable)


def free_energy(values: Tensor, edges: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log p of each bin (S, B), its mean over the bins taken off, in kT; values (S, n), edges (B + 1,).

    One pseudo-count a bin keeps what was never visited finite.
    """
    bins = len(edges) - 1
    place = (torch.bucketize(values.contiguous(), edges) - 1).clamp(-1, bins)
    inside = (place >= 0) & (place < bins)
    counts = torch.zeros(len(values), bins, dtype=torch.float64)
    share = inside.double() if weights is None else inside.double() * weights
    counts.scatter_add_(1, place.clamp(0, bins - 1), share)
    profile = -(counts + 1).log()
    return profile - profile.mean(dim=1, keepdim=True)


def occupancy(values: Tensor, border: float) -> Tensor:
    """Share (S,) of values (S, n) above the border."""
    return (values > border).double().mean(dim=1)


def mean_passage(values: Tensor, low: float, high: float) -> Tensor:
    """Mean number of kept steps (S,) from reaching below `low` to next reaching above `high`; values (S, T, W).

    NaN where no walker of a potential made such a passage.
    """
    found = []
    for one in values:
        times: list[int] = []
        for path in one.T.tolist():
            since = None
            for t, value in enumerate(path):
                if value < low and since is None:
                    since = t
                elif value > high and since is not None:
                    times.append(t - since)
                    since = None
        found.append(sum(times) / len(times) if times else math.nan)
    return torch.tensor(found, dtype=torch.float64)


_DEPTH = torch.tensor([-200.0, -100.0, -170.0, 15.0])
_A = torch.tensor([-1.0, -1.0, -6.5, 0.7])
_B = torch.tensor([0.0, 0.0, 11.0, 0.6])
_C = torch.tensor([-10.0, -10.0, -6.5, 0.7])
_X = torch.tensor([1.0, 0.0, -0.5, -1.0])
_Y = torch.tensor([0.0, 0.5, 1.5, 1.0])


def mueller_brown(place: Tensor, scale: float = 1.0) -> Tensor:
    """The Müller-Brown surface (1979) times `scale`: positions (..., 2) -> (...)."""
    x, y = place[..., :1] - _X.to(place), place[..., 1:] - _Y.to(place)
    powers = _A.to(place) * x.square() + _B.to(place) * x * y + _C.to(place) * y.square()
    return scale * (_DEPTH.to(place) * powers.exp()).sum(dim=-1)
