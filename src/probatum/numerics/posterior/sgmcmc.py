"""Markov chains over flat weights (C, P): C chains are one computation.

Every sampler takes a function of all chains' weights. Those that follow a stochastic gradient (SGLD: Welling and Teh 2011;
pSGLD: Li et al. 2016, arXiv:1512.07666; SGHMC: Chen et al. 2014, arXiv:1402.4102) need no density and take small steps;
those with a Metropolis correction (MALA, HMC) need the density of all rows and are exact at any step size. At temperature
T the target is p(w | data)^(1 / T): 1 is Bayes, below 1 a cold posterior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
"""Weights (C, P) -> an estimate (C, P) of the gradient of the log posterior."""
Density = Callable[[Tensor], Tensor]
"""Weights (C, P) -> log posterior (C,) up to a constant."""


def gaussian_log_prior(weights: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """log N(w; 0, scale^2) up to a constant: (C, P) -> (C,); scale a number or (P,)."""
    return -0.5 * (weights / scale).square().sum(dim=1)


def log_posterior(loss: Callable[..., Tensor], prior: Density, n_data: int | None = None) -> Callable[..., Tensor]:
    """The log posterior (C,) whose likelihood is minus `loss`: -(N / B) sum_b loss_b + log prior.

    Args:
        loss: (weights, *batch) -> negative log-likelihoods of rows (C, B), or their mean over the batch (C,).
        prior: (C, P) -> (C,).
        n_data: number of training rows N; None = the rows of the batch are all there are.

    Raises:
        ValueError: a loss that is one number a chain, so probably a mean, without `n_data`; one for all chains together.
    """
    if n_data is None and getattr(loss, "reduction", None) == "mean":
        raise _mean_reduced(loss)
    if n_data is not None and n_data < 1:
        raise ValueError(f"n_data is {n_data}; give the number of training rows, 1 or more")

    def value(weights: Tensor, *batch: Any) -> Tensor:
        found = loss(weights, *batch)
        if found.ndim == 0 or len(found) != len(weights):
            raise ValueError(
                f"the loss is of shape {tuple(found.shape)} for {len(weights)} chains; give (chains, rows) or (chains,)"
            )
        if found.ndim == 1:
            if n_data is None:
                raise _mean_reduced(loss)
            return prior(weights) - n_data * found
        rows = found.flatten(1)
        return prior(weights) - rows.sum(dim=1) * (1 if n_data is None else n_data / rows.shape[1])

    return value


def _mean_reduced(loss: Any) -> ValueError:
    name = getattr(loss, "__name__", type(loss).__name__)
    return ValueError(
        f"{name} gives one number a chain, a mean over rows; a posterior needs the sum over all training rows: give "
        "n_data, their number (or a loss of every row)"
    )


def gradient_of(density: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """(weights (C, P), ...) -> gradient (C, P) of a density of every chain by itself."""

    def gradient(weights: Tensor, *batch: Any) -> Tensor:
        with torch.enable_grad():
            leaf = weights.detach().requires_grad_(True)
            return torch.autograd.grad(density(leaf, *batch).sum(), leaf)[0]

    return gradient


@dataclass
class Chains:
    """Where C chains are.

    Attributes:
        weights: (C, P).
        step: updates done.
        momentum: of SGHMC and HMC, (C, P).
        second: running mean of squared gradients, of the preconditioned samplers, (C, P).
        accepted: moves accepted and proposed, of MALA and HMC.
    """

    weights: Tensor
    step: int = 0
    momentum: Tensor | None = None
    second: Tensor | None = None
    accepted: list[float] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Mean share of accepted moves; 1 where nothing can be refused."""
        return sum(self.accepted) / len(self.accepted) if self.accepted else 1.0


def decayed(step: int, rate: float, offset: float = 0.0, power: float = 0.0) -> float:
    """The step size rate * (1 + step / offset)^(-power), i.e. c (b + t)^(-power); constant at power 0.

    Raises:
        ValueError: a power outside [0, 1], or a positive one without a positive offset.
    """
    if not 0 <= power <= 1 or (power > 0 and not offset > 0):
        raise ValueError(f"power is {power} and offset {offset}; need power in [0, 1] and offset > 0")
    return rate * (1 + step / offset) ** -power if power else rate


def sgld(chains: Chains, gradient: Tensor, rate: float, generator: torch.Generator, temperature: float = 1.0) -> Chains:
    """w <- w + (rate / 2) g + sqrt(rate T) xi, in place; g (C, P) is the gradient of the log posterior."""
    _check(rate, temperature)
    noise = math.sqrt(rate * temperature) * _normal(chains.weights, generator)
    chains.weights = chains.weights + 0.5 * rate * gradient + noise
    chains.step += 1
    return chains


def psgld(
    chains: Chains,
    gradient: Tensor,
    rate: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    *,
    n_data: int,
    decay: float = 0.99,
    damping: float = 1e-5,
) -> Chains:
    """SGLD with a diagonal preconditioner G = 1 / (damping + sqrt V), V the running mean of (g / N)^2.

    w <- w + (rate / 2) G g + sqrt(rate T G) xi. The drift that the changing G would need is left out, as is usual. V starts
    at 1, as in jax-sgmc: at a mode one gradient is about 0, and steps by it alone throw the chains out.
    """
    _check(rate, temperature)
    if not 0 <= decay < 1 or not damping > 0 or n_data < 1:
        raise ValueError(f"decay is {decay}, damping {damping}, n_data {n_data}; need [0, 1), > 0 and >= 1")
    before = torch.ones_like(chains.weights) if chains.second is None else chains.second
    chains.second = decay * before + (1 - decay) * (gradient / n_data).square()
    scale = 1 / (damping + chains.second.sqrt())
    noise = (rate * temperature * scale).sqrt() * _normal(chains.weights, generator)
    chains.weights = chains.weights + 0.5 * rate * scale * gradient + noise
    chains.step += 1
    return chains


def sghmc(
    chains: Chains,
    gradient: Tensor,
    rate: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    *,
    friction: float = 0.1,
    scale: Tensor | float = 1.0,
) -> Chains:
    """Momentum m <- (1 - friction) m + rate G g + sqrt(2 friction rate T G) xi, then w <- w + m.

    Args:
        friction: alpha in (0, 1].
        scale: a preconditioner G that stays fixed, positive: a number or of the weights' shape (see `precondition`).
    """
    _check(rate, temperature)
    if not 0 < friction <= 1:
        raise ValueError(f"friction is {friction}; use one in (0, 1]")
    momentum = torch.zeros_like(chains.weights) if chains.momentum is None else chains.momentum
    spread = torch.as_tensor(2 * friction * rate * temperature * scale, dtype=chains.weights.dtype).sqrt()
    chains.momentum = (1 - friction) * momentum + rate * scale * gradient + spread * _normal(chains.weights, generator)
    chains.weights = chains.weights + chains.momentum
    chains.step += 1
    return chains


def precondition(chains: Chains, gradient: Tensor, n_data: int, decay: float = 0.99, damping: float = 1e-5) -> Tensor:
    """Update the running second moment of g / N and return 1 / (damping + sqrt V), for burn-in; then keep it fixed."""
    mean = (gradient / n_data).square()
    chains.second = mean if chains.second is None else decay * chains.second + (1 - decay) * mean
    return 1 / (damping + chains.second.sqrt())


def metropolis(
    chains: Chains, density: Density, scale: float, generator: torch.Generator, temperature: float = 1.0
) -> Chains:
    """A random walk of Gaussian steps (Metropolis-Hastings): exact for density^(1 / T), needs no gradient."""
    _check(scale, temperature)
    proposal = chains.weights + scale * _normal(chains.weights, generator)
    return _metropolis(chains, proposal, (density(proposal) - density(chains.weights)) / temperature, generator)


def mala(chains: Chains, density: Density, rate: float, generator: torch.Generator, temperature: float = 1.0) -> Chains:
    """A Langevin step with Metropolis correction: exact for density^(1 / T) at any rate."""
    _check(rate, temperature)
    here, slope = _valued(density, chains.weights, temperature)
    proposal = chains.weights + 0.5 * rate * slope + math.sqrt(rate) * _normal(chains.weights, generator)
    there, back = _valued(density, proposal, temperature)
    forth = (proposal - chains.weights - 0.5 * rate * slope).square().sum(dim=1)
    home = (chains.weights - proposal - 0.5 * rate * back).square().sum(dim=1)
    return _metropolis(chains, proposal, there - here + (forth - home) / (2 * rate), generator)


def hmc(
    chains: Chains,
    density: Density,
    rate: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    *,
    leaps: int = 10,
) -> Chains:
    """Hamiltonian Monte Carlo: `leaps` leapfrog steps of size `rate`, then Metropolis; unit mass."""
    _check(rate, temperature)
    if leaps < 1:
        raise ValueError(f"leaps is {leaps}; use 1 or more")
    start, slope = _valued(density, chains.weights, temperature)
    momentum = _normal(chains.weights, generator)
    energy = start - 0.5 * momentum.square().sum(dim=1)
    place, value = chains.weights, start
    for _ in range(leaps):
        momentum = momentum + 0.5 * rate * slope
        place = place + rate * momentum
        value, slope = _valued(density, place, temperature)
        momentum = momentum + 0.5 * rate * slope
    return _metropolis(chains, place, value - 0.5 * momentum.square().sum(dim=1) - energy, generator)


def draws(
    update: Callable[[Chains], Chains], chains: Chains, steps: int, *, burn: int = 0, thin: int = 1
) -> Iterator[Tensor]:
    """Weights (C, P) after every `thin` updates past the first `burn`, of `steps` in all.

    Raises:
        ValueError: nothing would be kept, or thin below 1.
    """
    if thin < 1 or not burn >= 0 or steps - burn < thin:
        raise ValueError(f"steps is {steps}, burn {burn}, thin {thin}; need thin >= 1 and steps >= burn + thin")
    for step in range(1, steps + 1):
        chains = update(chains)
        if step > burn and (step - burn) % thin == 0:
            yield chains.weights.clone()


def sample(update: Callable[[Chains], Chains], chains: Chains, steps: int, *, burn: int = 0, thin: int = 1) -> Tensor:
    """All of `draws`, stacked: (C, K, P).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> chains = Chains(torch.zeros(4, 2))
        >>> found = sample(lambda c: hmc(c, gaussian_log_prior, 0.5, generator), chains, 300, burn=100)
        >>> tuple(found.shape), chains.acceptance > 0.8
        ((4, 200, 2), True)
    """
    return torch.stack(list(draws(update, chains, steps, burn=burn, thin=thin)), dim=1)


def _metropolis(chains: Chains, proposal: Tensor, log_ratio: Tensor, generator: torch.Generator) -> Chains:
    chance = torch.rand(len(proposal), generator=generator, dtype=proposal.dtype).log()
    taken = chance < log_ratio.nan_to_num(nan=-math.inf)
    chains.weights = torch.where(taken[:, None], proposal, chains.weights)
    chains.accepted.append(float(taken.double().mean()))
    chains.step += 1
    return chains


def _valued(density: Density, weights: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_(True)
        value = density(leaf) / temperature
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _check(rate: float, temperature: float) -> None:
    if not rate > 0 or not math.isfinite(rate):
        raise ValueError(f"rate is {rate}; a step size is positive")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; use 0 (no noise) or more, 1 for the posterior itself")
