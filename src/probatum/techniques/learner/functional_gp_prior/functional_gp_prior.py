"""A Bayesian network whose prior over weights is tuned until its functions look like those of a Gaussian process.

Paper     Tran, Rossi, Milios and Filippone 2022, "All You Need is a Good Functional Prior for Bayesian Deep Learning", JMLR 23,
          arXiv:2011.12829
Computes  layers h = W x / sqrt(fan_in) + b, W = sigma_w eps, b = sigma_b eps (softplus), or variances from tuned inverse gamma
          laws; RMSprop on E phi(F_nn) - E phi(F_gp), phi a critic made anew each step (softplus, gradient penalty 10) on functions
          at rows and uniform points. RBF process by marginal likelihood. Posterior: SGHMC, preconditioned in its burn-in, several
          chains as one computation, likelihood scaled by N / B, the tuned prior's log-density
Shapes    data -> predictor with `samples` (C K, n, ...); raw weights (C, P), functions (N, M, outputs)
Departs   1. the prior as a normalising flow over weights is left out
          2. networks are tanh perceptrons on flat, standardised inputs, codes one-hot, whatever the baseline's network is
          3. classes: the process of every logit has the given amplitude and the median distance as length
          4. chains start from Adam's weights after `start` of the budget's steps, which they share; tuning sees inputs and the
             process alone and is no part of that budget (its steps are told)
          5. a critic takes 50 steps here unless told, the paper's 200
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.posterior.diagnostics import split_rhat
from probatum.numerics.posterior.ensembles import orders
from probatum.numerics.posterior.gaussian_process import Kernel, fit_rbf, rbf
from probatum.numerics.posterior.sgmcmc import Chains, gradient_of, log_posterior, precondition, sghmc
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Budget, Data, Part, Spec
from probatum.techniques.learner.functional_gp_prior.functional_prior import (
    GaussianPrior,
    HierarchicalPrior,
    Perceptron,
    process_functions,
    tune_prior,
)

CARD = Card(
    paper="arXiv:2011.12829",
    title="All You Need is a Good Functional Prior for Bayesian Deep Learning",
    entry="fit",
    number=16,
    tags=("uncertainty", "posterior", "prior", "sampling"),
    modalities=("table", "image", "series"),
    tiny={
        "prior_steps": 3,
        "critic_steps": 3,
        "points": 8,
        "functions": 8,
        "width": 16,
        "chains": 2,
        "draws": 2,
        "steps_times": 10,
    },
    tune={"prior": ["gaussian", "hierarchical", "fixed"], "width": [32, 64, 128], "depth": [1, 2, 3]},
    claims=("tuned-priors-predict-better",),
)

PRIORS = ("gaussian", "hierarchical", "fixed")
MOST = 400
"""Rows the process's settings are fitted on."""

Prior = GaussianPrior | HierarchicalPrior


class Inputs:
    """Rows as flat standardised numbers; what training rows hold in common is taken off.

    Args:
        x: training rows, as in `probatum.spec`.
        spec: of the data.
    """

    def __init__(self, x: Tensor, spec: Spec) -> None:
        if spec.modality == "text":
            raise ValueError("the rows are token ids, which have no distances; a Gaussian process needs numbers")
        self.spec = spec
        flat = self._flat(x)
        self.mean, self.scale = flat.mean(dim=0), flat.std(dim=0)
        self.kept = self.scale > 1e-6
        if not bool(self.kept.any()):
            raise ValueError("no input varies over the training rows; there is nothing to learn from")

    def _flat(self, x: Tensor) -> Tensor:
        if self.spec.modality != "table":
            return x.flatten(1).float()
        numeric = self.spec.numeric
        codes = [F.one_hot(x[:, numeric + i].long(), size) for i, size in enumerate(self.spec.cardinalities)]
        return torch.cat([x[:, :numeric], *codes], dim=1).float()

    def __call__(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, d)."""
        return ((self._flat(x) - self.mean) / self.scale.clamp_min(1e-6))[:, self.kept]


def process_for(x: Tensor, y: Tensor, amplitude: float) -> tuple[Kernel, float]:
    """The RBF process of inputs (n, d), and its noise: by marginal likelihood for reals (n, k), else by the amplitude."""
    if y.is_floating_point():
        length, scale, noise = fit_rbf(x[:MOST], y[:MOST])
        return rbf(length, scale), noise
    return rbf(float(torch.pdist(x[:MOST]).median().clamp_min(1e-3)), amplitude), 1.0


def sample_posterior(
    net: Perceptron,
    prior: Prior,
    x: Tensor,
    y: Tensor,
    noise: float,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    *,
    chains: int = 4,
    draws: int = 10,
    rate: float = 0.01,
    friction: float = 0.05,
    start: float = 0.5,
    warm_rate: float = 0.01,
) -> Tensor:
    """Raw weights (chains, draws, P): Adam, then SGHMC whose preconditioner is fixed after a fifth of its steps.

    Args:
        net: raw weights -> outputs (S, n, outputs).
        prior: their density.
        x: (n, d).
        y: classes (n,) or reals (n, outputs) with Gaussian noise of standard deviation `noise`.
        steps: of each chain; the draws come from the last half of SGHMC's.
        rate: largest move of a weight by the momentum's noise-free part, before N; friction in (0, 1].
        start: share of the steps by Adam on the log posterior, in [0, 1).

    Raises:
        ValueError: chains that diverge.
    """
    n = len(x)

    def losses(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        output = net(weights, x)
        if y.is_floating_point():
            return 0.5 * ((output - y) / noise).square().sum(dim=2)
        target = y.repeat(len(weights))
        return F.cross_entropy(output.flatten(0, 1), target, reduction="none").unflatten(0, output.shape[:2])

    gradient = gradient_of(log_posterior(losses, prior.log_density, n_data=n))
    first = int(start * steps)
    state = Chains(prior.draw(chains, generator).detach())
    leaf = torch.nn.Parameter(state.weights.clone())
    optimizer = torch.optim.Adam([leaf], lr=warm_rate)
    batches = orders(n, batch_size, steps, generator)
    for step in range(first):
        index = next(batches)
        leaf.grad = -gradient(leaf, x[index], y[index]) / n
        optimizer.param_groups[0]["lr"] = warm_rate * (1 - step / first)
        optimizer.step()
    state.weights = leaf.detach().clone()
    left, scale, found = steps - first, torch.ones_like(leaf), []
    keep = set(torch.linspace(left // 2, left - 1, min(draws, left - left // 2) + 1).round().long()[1:].tolist())
    for step in range(left):
        index = next(batches)
        slope = gradient(state.weights, x[index], y[index])
        if step <= left // 5:
            scale = precondition(state, slope, n, damping=1e-2)
        state = sghmc(state, slope, rate**2 / n, generator, friction=friction, scale=scale)
        if step in keep:
            found.append(state.weights)
    result = torch.stack(found, dim=1)
    if not bool(result.isfinite().all()):
        raise ValueError(f"the chains diverged at rate {rate}; use a lower one")
    return result


class PriorPredictor:
    """Draws of a perceptron's weights on standardised rows.

    Args:
        net: the perceptron.
        inputs: rows -> its inputs.
        weights: (S, P).
        noise: reals: standard deviation of an observation.
    """

    def __init__(self, net: Perceptron, inputs: Inputs, weights: Tensor, noise: float, passes: float) -> None:
        self.net, self.inputs, self.weights, self.noise, self.passes = net, inputs, weights, noise, passes
        self.told: dict[str, float] = {}

    @torch.no_grad()
    def samples(self, part: Part) -> Tensor:
        """(S, n, classes) probabilities, or (S, n, outputs)."""
        found = torch.cat([self.net(self.weights, self.inputs(x)) for x in part.x.split(512)], dim=1)
        return found if self.inputs.spec.task == "reals" else found.softmax(dim=2)

    def predict(self, part: Part) -> Tensor:
        """Mean of `samples`."""
        return self.samples(part).mean(dim=0)

    def report(self) -> dict[str, float]:
        """Named numbers."""
        return self.told


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    prior: str = "gaussian",
    width: int = 64,
    depth: int = 2,
    prior_steps: int = 200,
    critic_steps: int = 50,
    functions: int = 128,
    points: int = 64,
    amplitude: float = 2.0,
    chains: int = 4,
    draws: int = 5,
    rate: float = 0.1,
    friction: float = 0.05,
    start: float = 0.5,
    steps_times: int = 1,
) -> PriorPredictor:
    """Tune the prior and sample the posterior given data.train.

    Args:
        data: one split of a table, of images or series.
        budget: gradient steps of all chains together, of batch_size rows.
        generator: of all draws.
        prior: "gaussian", "hierarchical", or "fixed": N(0, 1), not tuned.
        width, depth: of the perceptron's hidden layers, >= 1.
        prior_steps, critic_steps, functions, points: see `techniques.learner.functional_gp_prior.functional_prior.tune_prior`.
        amplitude: classes: standard deviation of the process of a logit, > 0.
        chains: >= 1. draws: of each, >= 2.
        rate, friction, start: see `sample_posterior`.
        steps_times: the budget is multiplied by it.

    Raises:
        ValueError: a setting outside its range; token ids; chains that diverge.

    Example:
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> part = Part(x, x.sin(), torch.arange(40))
        >>> data = Data(Spec("table", "reals", (1,), 1, numeric=1), part, part, part)
        >>> how = {"prior_steps": 5, "critic_steps": 5, "width": 16, "chains": 2}
        >>> found = fit(data, Budget(400, 20, 2), torch.Generator().manual_seed(0), **how)
        >>> tuple(found.samples(part).shape)
        (10, 40, 1)
    """
    if prior not in PRIORS:
        raise ValueError(f"prior is {prior!r}; use one of {', '.join(PRIORS)}")
    if min(width, depth, chains, steps_times) < 1 or draws < 2:
        raise ValueError(
            f"width {width}, depth {depth}, chains {chains}, steps_times {steps_times}, draws {draws}; need 1 and 2 draws or more"
        )
    if not amplitude > 0 or not rate > 0:
        raise ValueError(f"amplitude is {amplitude} and rate {rate}; both must be positive")
    if not 0 < friction <= 1 or not 0 <= start < 1:
        raise ValueError(f"friction is {friction} and start {start}; need (0, 1] and [0, 1)")
    spec, inputs = data.spec, Inputs(data.train.x, data.spec)
    x, y = inputs(data.train.x), data.train.y
    if spec.task == "reals":
        y = real_targets(x[:, :1].expand(-1, spec.outputs), y).float()
    kernel, noise = process_for(x, y, amplitude)
    net = Perceptron((x.shape[1], *([width] * depth), spec.outputs))
    law: Prior = HierarchicalPrior(net) if prior == "hierarchical" else GaussianPrior(net)
    distances: list[float] = []
    if prior != "fixed":
        distances = tune_prior(
            law,
            net,
            process_functions(kernel, spec.outputs, generator),
            x,
            generator,
            steps=prior_steps,
            critic_steps=critic_steps,
            functions=functions,
            points=points,
        )
    law.requires_grad_(False)
    steps = max(4, steps_times * budget.steps // chains)
    how = {"chains": chains, "draws": draws, "rate": rate, "friction": friction, "start": start}
    weights = sample_posterior(net, law, x, y, noise, steps, budget.batch_size, generator, **how)
    passes = float(chains * steps * min(budget.batch_size, len(y)))
    found = PriorPredictor(net, inputs, weights.flatten(0, 1), noise, passes)
    found.told = law.told() | {"prior-steps": float(len(distances))}
    if distances:
        found.told |= {"distance-first": distances[0], "distance-last": distances[-1]}
    found.told |= agreement(found, data, weights.shape[:2])
    return found


def agreement(found: PriorPredictor, data: Data, shape: torch.Size) -> dict[str, float]:
    """Median split R-hat of what (chains, draws) predict for validation rows, where there are several chains of four draws."""
    chains, draws = shape
    if chains < 2 or draws < 4:
        return {}
    values = found.samples(data.valid)[:, :50, 0].unflatten(0, (chains, draws))
    return {"rhat-median": float(split_rhat(values).median())}
