"""Training that ends in a posterior: mean-field Gaussians, SWAG and SGLD over any network, stacked; see `members` for ensembles.

Every function takes a `gradient`, by which the plain gradient of the batch loss can be replaced: (weights -> losses (S,),
weights (S, P)) -> gradient (S, P). What belongs to the prior is added afterwards and not replaced.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probatum.numerics.posterior.ensembles import BatchGradient, Losses, Members, RowLoss, member_losses, orders
from probatum.numerics.posterior.sgmcmc import Chains, sgld
from probatum.numerics.posterior.stacked import Posterior
from probatum.numerics.posterior.swag import Swag
from probatum.numerics.posterior.variational import MeanField
from probatum.spec import Optimisation, Part


def plain_gradient(losses: Losses, weights: Tensor) -> Tensor:
    """The gradient (S, P) of every network's own loss."""
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_(True)
        return torch.autograd.grad(losses(leaf).sum(), leaf)[0]


def batch_losses(members: Members, part: Part, index: Tensor, row_losses: RowLoss) -> Losses:
    """weights (S, P) -> mean loss (S,) of one batch that all see, as in training."""
    x, y = part.x[index], part.y[index]

    def losses(weights: Tensor) -> Tensor:
        held = members.buffers
        if held and len(weights) != len(next(iter(held.values()))):
            held = {name: value[:1].expand(len(weights), *value.shape[1:]).clone() for name, value in held.items()}
        return member_losses(row_losses, members.stacked(weights, x, held, training=True), y).mean(dim=1)

    return losses


def fit_mean_field(
    members: Members,
    train: Part,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    optimisation: Optimisation,
    row_losses: RowLoss,
    *,
    draws: int,
    prior_scale: float = 1.0,
    start_scale: float = 0.01,
    temperature: float = 1.0,
    gradient: BatchGradient = plain_gradient,
) -> Posterior:
    """Bayes by backprop from the first member's weights; batch norms' statistics are computed anew for the draws.

    With w = mu + sigma eps the gradient g at w goes to mu as g and to sigma as g eps; that of T KL / N is added.
    """
    q = MeanField(members.weights[0], start_scale, prior_scale)
    optimizer = torch.optim.Adam(q.parameters(), lr=optimisation.lr)
    for step, index in enumerate(orders(len(train), batch_size, steps, generator)):
        noise = torch.randn(1, len(q.mean), generator=generator, dtype=q.mean.dtype)
        weights = q.mean + q.scale * noise
        found = gradient(batch_losses(members, train, index, row_losses), weights.detach())
        optimizer.zero_grad()
        (temperature * q.kl() / len(train)).backward()
        weights.backward(found)
        optimizer.param_groups[0]["lr"] = optimisation.lr * optimisation.factor(step, steps)
        optimizer.step()
    with torch.no_grad():
        found = q.draw(draws, generator)
    return posterior_of(members, found, train, optimisation.lr)


def fit_swag(
    members: Members,
    train: Part,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    row_losses: RowLoss,
    *,
    draws: int,
    rate: float,
    rank: int = 20,
    gradient: BatchGradient = plain_gradient,
) -> Posterior:
    """SGD from the first member's weights, whose path gives a Gaussian; moments are those of w itself.

    Raises:
        ValueError: too few steps for two states, or states that stopped being finite.
    """
    swag, weights = Swag(rank), members.weights[:1].clone()
    every = max(1, steps // max(rank, 20))
    swag.collect(weights)
    for step, index in enumerate(orders(len(train), batch_size, steps, generator)):
        weights = weights - rate * gradient(batch_losses(members, train, index, row_losses), weights)
        if (step + 1) % every == 0 or step + 1 == steps:
            swag.collect(weights)
    if swag.count < 2:
        raise ValueError(f"SWAG has {steps} steps to collect states in; give a budget of 8 steps or more")
    return posterior_of(members, swag.draw(draws, generator)[0], train, rate)


def fit_sgld(
    members: Members,
    train: Part,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    row_losses: RowLoss,
    *,
    draws: int,
    rate: float,
    temperature: float = 1.0,
    prior_scale: float = 1.0,
    gradient: BatchGradient = plain_gradient,
) -> Posterior:
    """SGLD from the first member's weights; the second half of the steps gives the draws.

    Args:
        rate: lr of w <- w - lr (g + w / (N prior_scale^2)) + N(0, 2 lr T / N), g the mean loss's gradient.

    Raises:
        ValueError: too few steps for two draws, or a chain that diverged.
    """
    if steps < 3:
        raise ValueError(f"SGLD has {steps} steps, half of which give draws, and needs 3 or more; give a larger budget")
    chains, n, kept = Chains(members.weights[:1].clone()), len(train), []
    keep = set(torch.linspace(steps // 2, steps - 1, draws + 1).round().long()[1:].tolist())
    for step, index in enumerate(orders(n, batch_size, steps, generator)):
        found = gradient(batch_losses(members, train, index, row_losses), chains.weights)
        slope = -n * found - chains.weights / prior_scale**2
        chains = sgld(chains, slope, 2 * rate / n, generator, temperature)
        if step in keep:
            kept.append(chains.weights[0])
    return posterior_of(members, torch.stack(kept), train, rate)


def posterior_of(
    members: Members, weights: Tensor, train: Part, rate: float, chains: int = 1, noise: Tensor | None = None
) -> Posterior:
    """The posterior of drawn weights (S, P): buffers are those of the members, batch norms' statistics gathered anew.

    Args:
        members: whose first `chains` were drawn from, S / chains times each, one after another.
        weights: what was drawn.
        train: rows that statistics are gathered on.
        rate: learning rate or step size, for the error.
        noise: see `Posterior`.

    Raises:
        ValueError: draws whose weights or outputs are not finite.
    """
    each = len(weights) // chains
    held = {name: value[:chains].repeat_interleave(each, dim=0) for name, value in members.buffers.items()}
    posterior = Posterior(members.stacked.model, {**members.stacked.named(weights), **held}, noise)
    posterior.renew_batch_norm(train.x)
    if not bool(weights.isfinite().all() and posterior.outputs(train.x[:8]).isfinite().all()):
        raise ValueError(f"training diverged at rate {rate}: weights or outputs are not finite; use a lower rate")
    return posterior


def repeated(model: nn.Module, members: Members, draws: int) -> Posterior:
    """The first member several times over, for dropout that stays on."""
    return Posterior(model, {k: v[:1].expand(draws, *v.shape[1:]).clone() for k, v in members.samples().items()})
