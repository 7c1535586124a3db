"""Flat-seeking Bayesian networks: every trainer's gradient is taken at the worst weights within a ball.

Paper     Nguyen, Vuong, Phan et al. 2023, "Flat Seeking Bayesian Neural Networks", NeurIPS 2023, arXiv:2302.02713
Computes  sharpness-aware posterior p(w) exp(-N max_{|v - w| <= rho} L(v)): g = grad L(w), w_a = w + rho g / (|g| + 1e-12) with
          the norm over all weights of a network, g_a = grad L(w_a) stands for the likelihood's gradient. Base trainers
          (`method`): ensemble, mc-dropout, mean-field (one eps for both passes; g_a to mu, g_a eps to sigma, then the divergence),
          sgld (prior and noise as they were), swag (moments on w). `FlatSeeking` wraps any torch optimizer
Shapes    data -> predictor with `samples` (S, n, ...); weights (S, P), a norm each
Departs   1. rho = 0 takes one gradient a step, not two equal ones
          2. the budget counts gradients, so that rho > 0 takes half as many steps; budget_is="steps" does not
          3. sgld and swag start from AdamW's weights after half and three quarters of the steps, all of them flat-seeking
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.posterior.approximations import (
    Losses,
    fit_mean_field,
    fit_sgld,
    fit_swag,
    plain_gradient,
    repeated,
)
from probatum.numerics.posterior.ensembles import Members, train_members
from probatum.numerics.posterior.predictors import (
    Drawn,
    Factory,
    fresh_network,
    losses_for,
    predictor_of,
    started,
)
from probatum.numerics.posterior.stacked import Posterior
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import computed_wide, widened
from probatum.spec import Budget, Data, Optimisation

CARD = Card(
    paper="arXiv:2302.02713",
    title="Flat Seeking Bayesian Neural Networks",
    entry="fit",
    number=4,
    tags=("uncertainty", "posterior", "sharpness", "label-noise"),
    tiny={"method": "ensemble", "members": 2, "members_budget": "full", "budget_is": "steps", "draws": 4},
    tune={"rho": (0.005, 0.5, "log"), "method": ["ensemble", "mc-dropout", "mean-field", "sgld", "swag"]},
    claims=("flatter-at-equal-gradients",),
)

METHODS = ("ensemble", "mc-dropout", "mean-field", "sgld", "swag")
BUDGETS = ("shared", "full")
COUNTS = ("gradients", "steps")
TINY = 1e-12


@computed_wide
def ascended(weights: Tensor, gradient: Tensor, rho: float) -> Tensor:
    """w + rho g / (|g| + 1e-12), row by row of (S, P); in float32 where they are of half precision."""
    return weights + rho * gradient / (gradient.norm(dim=1, keepdim=True) + TINY)


def flat_gradient(members: Members, rho: float) -> Callable[[Losses, Tensor], Tensor]:
    """A gradient for `numerics.posterior.ensembles` and `numerics.posterior.approximations`, taken at the worst weights nearby.

    Both passes draw the same dropout masks from torch's global stream; batch norms gather statistics in the first alone.
    """
    check_rho(rho)

    def gradient(losses: Losses, weights: Tensor) -> Tensor:
        if rho == 0:
            return plain_gradient(losses, weights)
        begin = _streams()
        first = plain_gradient(losses, weights)
        with _replayed(begin), _still(members.buffers.values()):
            return plain_gradient(losses, ascended(weights, first, rho))

    return gradient


class FlatSeeking:
    """Any torch optimizer that steps by gradients, here those at the worst weights within a ball; two passes a step.

    Args:
        optimizer: takes the step.
        rho: radius, >= 0; 0.05 for ten classes, 0.1 for a hundred in the paper.
        model: whose batch norms are to gather statistics in the first pass alone; None = there are none.
        penalty: adds to the gradients what is no part of the data's loss (a divergence, a prior); called before the step.

    Raises:
        ValueError: a negative rho; an optimizer that needs a closure in its own step (LBFGS); a closure that steps the
            optimizer or changes weights itself.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> flat = FlatSeeking(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.05)
        >>> x, y = torch.ones(4, 3), torch.zeros(4).long()
        >>> def closure():
        ...     loss = nn.functional.cross_entropy(net(x), y)
        ...     loss.backward()
        ...     return loss
        >>> first = flat.step(closure)
        >>> bool(flat.step(closure) < first)
        True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float = 0.05,
        model: nn.Module | None = None,
        penalty: Callable[[], None] | None = None,
    ) -> None:
        check_rho(rho)
        own = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
        if own is not None and own.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(optimizer).__name__} takes looks at the loss of its own; give an optimizer that steps without"
            )
        self.optimizer, self.rho, self.model, self.penalty = optimizer, rho, model, penalty

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One update; `closure` computes the data's loss, calls backward and returns the loss, nothing else.

        A closure that raises leaves weights, buffers and random streams as they were after its last pass that went well.
        """
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        before, begin = [p.detach().clone() for p in weights], _streams()
        loss = self._pass(closure, weights, before)
        if self.rho > 0:
            try:
                self._move(weights)
                there = [p.detach().clone() for p in weights]
                with _replayed(begin), _still([] if self.model is None else self.model.buffers()):
                    self._pass(closure, weights, there)
            finally:
                with torch.no_grad():
                    for p, old in zip(weights, before, strict=True):
                        p.copy_(old)  # exactly: adding and subtracting would round
        if self.penalty is not None:
            self.penalty()
        self.optimizer.step()
        return loss

    def _pass(self, closure: Callable[[], Tensor], weights: list[Tensor], expected: list[Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = closure()
        for p, old in zip(weights, expected, strict=True):
            if not torch.allclose(p.detach(), old, rtol=0.0, atol=0.0, equal_nan=True):
                raise ValueError("closure changes the weights; it must not step the optimizer, only call backward")
        return loss.detach()

    @torch.no_grad()
    def _move(self, weights: list[Tensor]) -> None:
        reached = [p for p in weights if p.grad is not None]
        if not reached:
            raise ValueError("closure leaves no gradients on the optimizer's weights; let it call backward")
        norm = torch.stack([widened(p.grad).norm() for p in reached]).norm() + TINY
        for p in reached:
            p.add_(p.grad / norm, alpha=self.rho)


@contextmanager
def _still(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Buffers put back afterwards."""
    held = [(value, value.clone()) for value in buffers]
    try:
        yield
    finally:
        for value, old in held:
            value.copy_(old)


def _streams() -> list[Tensor]:
    """Where torch's global random streams stand: the CPU's, then those of accelerators that are in use."""
    used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in used)]


def _set_streams(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def _replayed(begin: list[Tensor]) -> Iterator[None]:
    """A block whose draws (dropout masks, eps) are those that followed `begin`; afterwards the streams are where they were."""
    after = _streams()
    _set_streams(begin)
    try:
        yield
    finally:
        _set_streams(after)


def worst_nearby(losses: Losses, weights: Tensor, rho: float, steps: int = 20) -> Tensor:
    """The largest loss (S,) found within rho of weights (S, P), by projected steps of rho / 4 along the gradient."""
    check_rho(rho)
    place, best = weights, losses(weights).detach()
    for _ in range(steps):
        place = ascended(place, plain_gradient(losses, place), rho / 4)
        away = place - weights
        place = weights + away * (rho / away.norm(dim=1, keepdim=True).clamp_min(TINY)).clamp(max=1.0)
        best = torch.maximum(best, losses(place).detach())
    return best


def check_rho(rho: float) -> None:
    """ValueError for a negative or infinite radius."""
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho is {rho}; use a radius of 0 (the plain trainer) or more")


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Factory,
    optimisation: Optimisation,
    method: str = "swag",
    rho: float = 0.05,
    members: int = 5,
    members_budget: str = "shared",
    budget_is: str = "gradients",
    draws: int = 20,
    dropout: float = 0.1,
    temperature: float = 0.1,
    prior_scale: float = 1.0,
    swag_rate: float = 0.02,
    sgld_rate: float = 1e-3,
    choose: bool = True,
    heteroscedastic: bool = True,
) -> Drawn:
    """Train one of the posteriors, flat-seeking.

    Args:
        data: one split; x as in `probatum.spec`.
        budget: gradients in all, of batch_size rows.
        generator: of all draws.
        model_factory: fresh networks (n, ...) -> (n, outputs).
        optimisation: AdamW's settings.
        method: one of `METHODS`.
        rho: radius of the ball, >= 0; 0 is the plain trainer, bit for bit at equal steps.
        members: networks of the ensemble, >= 2.
        members_budget: "shared": the budget for all members together; "full": for each.
        budget_is: "gradients": two are counted a step where rho > 0; "steps".
        draws: networks drawn for prediction, >= 2.
        dropout: rate in (0, 1) where the network has none, for mc-dropout.
        temperature: of mean-field's divergence and sgld's noise, >= 0.
        prior_scale: standard deviation of the prior (mean-field, sgld), > 0.
        swag_rate, sgld_rate: learning rates, > 0.
        choose: whether AdamW's weights are those best on the validation rows.
        heteroscedastic: real targets: a variance for every row.

    Raises:
        ValueError: a setting outside its range; a network that lacks the last linear layer a method needs.
    """
    _check(method, rho, members, members_budget, budget_is, draws, dropout, temperature, prior_scale)
    if not swag_rate > 0 or not sgld_rate > 0:
        raise ValueError(f"swag_rate is {swag_rate} and sgld_rate {sgld_rate}; both must be positive")
    spec = data.spec
    own_variance = spec.task == "reals" and heteroscedastic
    row_losses = losses_for(spec, own_variance)
    count = members if method == "ensemble" else 1
    passes = 2 if rho > 0 else 1
    steps = budget.steps // (passes if budget_is == "gradients" else 1)
    steps = max(1, steps // count if members_budget == "shared" else steps)
    first = steps - {"swag": steps // 4, "sgld": steps // 2, "mean-field": steps}.get(method, 0)
    off = dropout if method == "mc-dropout" else None
    nets = [fresh_network(model_factory, spec, own_variance=own_variance, dropout=off) for _ in range(count)]
    with own_draws(generator):
        start = started(nets)
        flat = flat_gradient(start, rho)
        at = (data.train, steps - first, budget.batch_size, generator)
        if first:
            valid, begin = data.valid if choose else None, (first, budget.batch_size, generator)
            train_members(start, data.train, valid, *begin, optimisation, row_losses, gradient=flat)
        told: dict[str, Any] = {"draws": draws, "gradient": flat}
        cold = {"temperature": temperature, "prior_scale": prior_scale}
        if method == "mean-field":
            posterior = fit_mean_field(start, *at, optimisation, row_losses, **told, **cold)
        elif method == "swag":
            posterior = fit_swag(start, *at, row_losses, rate=swag_rate, **told)
        elif method == "sgld":
            posterior = fit_sgld(start, *at, row_losses, rate=sgld_rate, **told, **cold)
        elif method == "mc-dropout":
            posterior = repeated(nets[0], start, draws)
        else:
            posterior = Posterior(nets[0], start.samples())
    spent = float(passes * count * steps * min(budget.batch_size, len(data.train)))
    dropout_stays = method == "mc-dropout"
    return predictor_of(posterior, data, spent, generator, own_variance=own_variance, dropout=dropout_stays)


def _check(
    method: str,
    rho: float,
    members: int,
    members_budget: str,
    budget_is: str,
    draws: int,
    dropout: float,
    temperature: float,
    prior_scale: float,
) -> None:
    check_rho(rho)
    named = (
        ("method", method, METHODS),
        ("members_budget", members_budget, BUDGETS),
        ("budget_is", budget_is, COUNTS),
    )
    for name, value, allowed in named:
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
    if members < 2 or draws < 2:
        raise ValueError(f"members is {members} and draws {draws}; use 2 or more of each")
    if not 0 < dropout < 1:
        raise ValueError(f"dropout is {dropout}; use a rate within (0, 1)")
    if not temperature >= 0 or not prior_scale > 0:
        raise ValueError(f"temperature is {temperature} and prior_scale {prior_scale}; need >= 0 and > 0")
