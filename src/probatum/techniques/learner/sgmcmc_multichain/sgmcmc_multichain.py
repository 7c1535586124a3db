"""Preconditioned Langevin sampling of a network's weights by several chains at once, with a temperature.

Paper     Thaler, Doehner and Zavadlav 2023, "Scalable Bayesian Uncertainty Quantification for Neural Network Potentials:
          Promise and Pitfalls", J. Chem. Theory Comput. 19, arXiv:2212.07959
Computes  g = (N / B) sum_batch grad log p(y | w) + grad log p(w); V <- a V + (1 - a) (g / N)^2 from V = 1; G = 1 / (lam + sqrt V);
          w <- w + (e_t / 2) G g + sqrt(e_t T G) xi, e_t = c (b + t)^-gamma. Each chain starts from a network of its own, by
          AdamW; after the burn-in K thinned draws are kept. Real targets: Gaussian likelihood whose log sigma is sampled too.
          What is computed from the draws (`observe`): intervals over draws, variance between and within chains, split R-hat,
          with simulations that exploded counted. Energies whose gradients are forces: `force_losses`
Shapes    data -> predictor with `samples` (C K, n, ...); chains are one computation, weights (C, P)
Departs   1. the drift by the changing preconditioner (Gamma) is dropped, as in the paper
          2. `rate` is c N / 2 at t = 0, so that it reads like Adam's; the chains share the budget's steps unless
             chains_budget="full"; three quarters of them are the AdamW start
          3. dropout is off, and batch norms go by the batch while sampling; their statistics are computed anew for every draw
          4. `temperature` is 0.1 unless told: at 1 the networks of this library's data are blurred within their budgets
          5. the paper's molecules are replaced by a particle in a plane (claims)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from probatum.card import Card
from probatum.numerics.posterior.approximations import posterior_of
from probatum.numerics.posterior.diagnostics import between_within, bulk_ess, split_rhat
from probatum.numerics.posterior.ensembles import (
    Members,
    class_losses,
    gaussian_losses,
    member_losses,
    orders,
    train_members,
)
from probatum.numerics.posterior.predictors import Drawn, Factory, losses_for, started, without_dropout
from probatum.numerics.posterior.sgmcmc import (
    Chains,
    decayed,
    gaussian_log_prior,
    gradient_of,
    log_posterior,
    psgld,
)
from probatum.numerics.posterior.stacked import Posterior, Stacked
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Budget, Data, Optimisation, Part
from probatum.techniques.learner.sgmcmc_multichain.langevin import forces

CARD = Card(
    paper="arXiv:2212.07959",
    title="Scalable Bayesian Uncertainty Quantification for Neural Network Potentials: Promise and Pitfalls",
    entry="fit",
    number=56,
    tags=("uncertainty", "posterior", "sampling", "calibration"),
    tiny={"chains": 2, "chains_budget": "full", "draws": 2},
    tune={"rate": (1e-5, 1e-2, "log"), "temperature": (1e-3, 1.0, "log"), "prior_scale": (0.1, 10.0, "log")},
    claims=("more-chains-cover-more",),
)

BUDGETS = ("shared", "full")


def sample_chains(
    losses: Callable[..., Tensor],
    start: Tensor,
    batches: Iterator[tuple[Tensor, ...]],
    n_data: int | None,
    steps: int,
    generator: torch.Generator,
    *,
    draws: int,
    rate: float = 1e-3,
    power: float = 0.0,
    offset: float = 1.0,
    temperature: float = 1.0,
    prior_scale: Tensor | float = 1.0,
    decay: float = 0.99,
    damping: float = 1e-5,
    burn: float = 0.5,
) -> Tensor:
    """Weights (C, K, P) drawn by pSGLD from p(data | w)^(1/T) p(w)^(1/T).

    Args:
        losses: (weights (C, P), *batch) -> negative log-likelihoods (C, B), or with `n_data` their mean (C,).
        start: (C, P), a chain each.
        batches: an iterator of batches, each a tuple handed to `losses`.
        n_data: number of training rows.
        steps: updates.
        draws: K, evenly spaced behind the burn-in.
        rate: step size c N / 2; it falls as (1 + t / offset)^-power.
        power: 0, or within (0.5, 1].
        temperature: T >= 0; 1 is Bayes, below 1 a cold posterior.
        prior_scale: standard deviation of the weights, a number or (P,).
        decay, damping: a and lam of the preconditioner.
        burn: share of the steps before the first draw, in [0, 1).

    Raises:
        ValueError: a mean loss without `n_data`, a setting outside its range, or chains that diverge.

    Example:
        >>> y, draw = torch.randn(50, generator=torch.Generator().manual_seed(0)) + 3, torch.Generator().manual_seed(1)
        >>> def losses(weights, rows):
        ...     return 0.5 * (weights - rows).square()
        >>> batches = iter(lambda: (y,), None)
        >>> found = sample_chains(losses, torch.zeros(20, 1), batches, 50, 400, draw, draws=50, rate=0.1, damping=1.0)
        >>> tuple(found.shape), bool((found.mean() - 50 / 51 * y.mean()).abs() < 0.1)
        ((20, 50, 1), True)
    """
    check_sampler(rate, power, offset, temperature, decay, damping, burn)
    if draws < 1 or steps < 1:
        raise ValueError(f"draws is {draws} and steps {steps}; use 1 or more")
    density = log_posterior(losses, lambda w: gaussian_log_prior(w, prior_scale), n_data)
    gradient = gradient_of(density)
    first = min(int(burn * steps), steps - 1)
    spaced = torch.linspace(first, steps - 1, min(draws, steps - first) + 1).round().long()[1:]
    keep, chains, found = set(spaced.tolist()), Chains(start.detach().clone()), []
    for step in range(steps):
        batch = next(batches)
        rows = len(batch[0]) if n_data is None else n_data
        size = 2 * decayed(step, rate, offset, power) / rows
        chains = psgld(
            chains,
            gradient(chains.weights, *batch),
            size,
            generator,
            temperature,
            n_data=rows,
            decay=decay,
            damping=damping,
        )
        if step in keep:
            found.append(chains.weights)
    result = torch.stack(found, dim=1)
    if not bool(result.isfinite().all()):
        lost = int((~result.isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(f"{lost} of {len(start)} chains diverged at rate {rate}; use a lower rate or temperature")
    return result


@dataclass(frozen=True)
class Observed:
    """What draws say of quantities (q,).

    Attributes:
        low, high: ends of the interval over the draws that stayed stable (q,).
        mean: (q,).
        rhat: split R-hat over chains (q,), NaN where chains have fewer than four stable draws.
        ess: effective draws (q,), likewise.
        between: variance between chains' means, `within`: mean variance within chains (q,).
        finite: variance of one draw's own estimate, from the ends of its run (q,); 0 where it was not given.
        exploded: simulations that were not stable, and `total` of them.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    rhat: Tensor
    ess: Tensor
    between: Tensor
    within: Tensor
    finite: Tensor
    exploded: int
    total: int


def observe(values: Tensor, stable: Tensor, level: float = 0.95, halves: Tensor | None = None) -> Observed:
    """Intervals and diagnostics of what was computed from draws by simulation.

    Args:
        values: (C, K, q), a quantity of each draw.
        stable: (C, K), whether the draw's simulation stayed stable; others are counted and left out.
        level: of the central interval, in (0, 1).
        halves: (2, C, K, q), the same from the first and the second half of each run: its own sampling error.

    Raises:
        ValueError: a level outside its range; fewer than two stable draws.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; use one within (0, 1)")
    total, lost = stable.numel(), int((~stable).sum())
    kept = values[stable]
    if len(kept) < 2:
        raise ValueError(f"{lost} of {total} simulations exploded; none or one is left to judge by")
    ends = torch.quantile(kept.double(), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)
    nan = torch.full(values.shape[2:], float("nan"), dtype=torch.float64)
    rhat, ess, between, within = nan, nan, nan, nan
    fewest = int(stable.sum(dim=1).min())
    if fewest >= 4:
        whole = torch.stack([one[good][:fewest] for one, good in zip(values.double(), stable, strict=True)])
        rhat, ess = split_rhat(whole), bulk_ess(whole)
        if len(whole) > 1:
            between, within = between_within(whole)
    finite = (
        torch.zeros_like(nan) if halves is None else (halves[0] - halves[1])[stable].double().square().mean(dim=0) / 4
    )
    return Observed(ends[0], ends[1], kept.double().mean(dim=0), rhat, ess, between, within, finite, lost, total)


def force_losses(
    stacked: Stacked, noise: float, prior: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Negative log-likelihoods (C, B) of forces F (C, B, d) or (B, d) at x, under N(-grad U(x), noise^2).

    Args:
        stacked: networks (n, d) -> (n, 1), the energy U, up to `prior`, an energy (..., d) -> (...) that is known.
        noise: standard deviation of a force's coordinate.
    """
    if not noise > 0:
        raise ValueError(f"noise is {noise}; a standard deviation must be positive")

    def losses(weights: Tensor, x: Tensor, target: Tensor) -> Tensor:
        place = x if x.ndim == 3 else x.expand(len(weights), *x.shape)
        found = forces(energies(stacked, weights, prior), place.detach().requires_grad_(True), graph=True)
        return 0.5 * ((found - target) / noise).square().sum(dim=2)

    return losses


def energies(
    stacked: Stacked, weights: Tensor, prior: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """Energies (S, n) of positions (S, n, d) by networks (S, P)."""

    def energy(place: Tensor) -> Tensor:
        found = stacked(weights, place, own=True)[:, :, 0]
        return found if prior is None else found + prior(place)

    return energy


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Factory,
    optimisation: Optimisation,
    chains: int = 4,
    chains_budget: str = "shared",
    draws: int = 5,
    rate: float = 1e-4,
    power: float = 0.0,
    offset: float = 100.0,
    temperature: float = 0.1,
    prior_scale: float = 1.0,
    decay: float = 0.99,
    damping: float = 1e-5,
    burn: float = 0.5,
    start: float = 0.75,
) -> Drawn:
    """Draw networks from their posterior given data.train; validation rows choose each chain's start alone.

    Args:
        data: one split; x as in `probatum.spec`.
        budget: gradient steps in all, of batch_size rows.
        generator: of all draws.
        model_factory: fresh networks (n, ...) -> (n, outputs), a chain each.
        optimisation: of the AdamW start.
        chains: >= 1; two or more make R-hat possible.
        chains_budget: "shared": budget.steps for all chains together; "full": for each.
        draws: kept of each chain, >= 2.
        rate, power, offset, temperature, prior_scale, decay, damping, burn: see `sample_chains`; burn is a share of what
            follows the start.
        start: share of the steps spent by AdamW, in [0, 1).

    Raises:
        ValueError: a setting outside its range; chains that diverge.
    """
    check_sampler(rate, power, offset, temperature, decay, damping, burn)
    _check(chains, chains_budget, draws, start, prior_scale)
    chain = {"draws": draws, "rate": rate, "power": power, "offset": offset, "temperature": temperature}
    chain |= {"prior_scale": prior_scale, "decay": decay, "damping": damping, "burn": burn}
    spec, train, reals = data.spec, data.train, data.spec.task == "reals"
    nets = [model_factory() for _ in range(chains)]
    steps = max(2, budget.steps // chains if chains_budget == "shared" else budget.steps)
    first = int(start * steps)
    members = started(nets)
    without_dropout(members.stacked.model)
    with own_draws(generator):
        if first:
            valid = data.valid if first > 1 else None
            losses = losses_for(spec, heteroscedastic=False)
            members = train_members(members, train, valid, first, budget.batch_size, generator, optimisation, losses)
        begin = members.weights
        if reals:  # the logarithm of sigma is one more weight for each target
            output = members.outputs(train.x)
            error = (output - real_targets(output[0], train.y)).square().mean(dim=1).sqrt().clamp_min(1e-2)
            begin = torch.cat([begin, error.log()], dim=1)
        index = orders(len(train), budget.batch_size, steps - first, generator)
        found = sample_chains(
            row_likelihoods(members, spec.outputs if reals else 0),
            begin,
            ((train.x[i], train.y[i]) for i in index),
            len(train),
            steps - first,
            generator,
            **chain,
        )
    posterior = _posterior(members, found, train, rate, reals)
    result = Drawn(posterior, spec.task, float(chains * steps * min(budget.batch_size, len(train))))
    result.told = agreement(result, data, found.shape[:2])
    return result


def _check(chains: int, chains_budget: str, draws: int, start: float, prior_scale: float) -> None:
    if chains < 1 or draws < 2:
        raise ValueError(f"chains is {chains} and draws {draws}; use chains >= 1 and draws >= 2")
    if chains_budget not in BUDGETS:
        raise ValueError(f"chains_budget is {chains_budget!r}; use one of {', '.join(BUDGETS)}")
    if not 0 <= start < 1 or not prior_scale > 0:
        raise ValueError(f"start is {start} and prior_scale {prior_scale}; need [0, 1) and a positive scale")


def _posterior(members: Members, found: Tensor, train: Part, rate: float, reals: bool) -> Posterior:
    """The networks of draws (C, K, P); for real targets the last weights of each are its log sigma."""
    drawn, size = found.flatten(0, 1), members.stacked.size
    noise = drawn[:, size:].exp()[:, None, :] if reals else None
    return posterior_of(members, drawn[:, :size], train, rate, len(found), noise)


def row_likelihoods(members: Members, reals: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Negative log-likelihoods (C, B) of networks' outputs; with `reals` targets the last weights are their log sigma."""
    stacked = members.stacked

    def losses(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if not reals:
            return member_losses(class_losses, stacked(weights, x, members.buffers, training=True), y)
        output = stacked(weights[:, : stacked.size], x, members.buffers, training=True)
        spread = (2 * weights[:, None, stacked.size :]).expand_as(output)
        return member_losses(gaussian_losses, torch.cat([output, spread], dim=2), y)

    return losses


def agreement(found: Drawn, data: Data, shape: torch.Size) -> dict[str, float]:
    """Split R-hat of what the draws predict for validation rows (median and largest), where there are draws enough."""
    chains, draws = shape
    if chains < 2 or draws < 4:
        return {}
    values = found.samples(data.valid)[:, :50, 0].unflatten(0, (chains, draws))
    rhat = split_rhat(values)
    return {"rhat-median": float(rhat.median()), "rhat-largest": float(rhat.max())}


def check_sampler(
    rate: float, power: float, offset: float, temperature: float, decay: float, damping: float, burn: float
) -> None:
    """ValueError for a setting outside its range."""
    if not rate > 0 or not offset > 0 or not damping > 0:
        raise ValueError(f"rate is {rate}, offset {offset}, damping {damping}; all must be positive")
    if not (power == 0 or 0.5 < power <= 1):
        raise ValueError(f"power is {power}; use 0 (constant) or one in (0.5, 1]")
    if not temperature >= 0 or not 0 <= decay < 1 or not 0 <= burn < 1:
        raise ValueError(f"temperature is {temperature}, decay {decay}, burn {burn}; need >= 0, [0, 1) and [0, 1)")
