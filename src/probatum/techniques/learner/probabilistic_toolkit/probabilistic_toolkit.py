"""A textbook's tools of uncertainty as one learner: ensembles, dropout, variational, SWAG, Laplace, Gaussian processes.

Paper     Krause and Hübotter 2025, "Probabilistic Artificial Intelligence", arXiv:2502.05244
Computes  `method`: ensemble (members from the baseline's factory, one computation), mc-dropout (masks stay on, one a draw for all rows),
          bayes-by-backprop (independent Gaussians over weights, reparameterised), swag (moments of SGD's path, low rank),
          laplace (last layer, full Gauss-Newton), gp (RBF by evidence; FITC beyond 1,000 rows), blr
          (Bayesian linear regression on the inputs). Real targets: a head N(mu(x), s(x)^2). Predictive: total = aleatoric +
          epistemic. Decision loops and filters are functions: `techniques.learner.probabilistic_toolkit.bayes_opt`, `techniques.learner.probabilistic_toolkit.mdp`, `techniques.learner.probabilistic_toolkit.kalman`,
          `numerics.posterior.sgmcmc`, `numerics.posterior.gaussian_process`, diagnostics in `numerics.posterior.diagnostics`
Shapes    data -> predictor of (n, classes) or (n, outputs) with `samples` (S, n, ...)
Departs   1. deep reinforcement learning (DQN, actor-critic, PPO, SAC, PETS, H-UCRL) is left out: there is no arena of control
          2. classes by gp and blr: least squares on the one-hot labels, draws through a softmax whose sharpness validation rows
             choose; laplace, gp and blr have one observation noise, their root mean squared validation error
          3. the divergence of bayes-by-backprop and the covariance of laplace are multiplied by `temperature`; 1 is Bayes.
             The prior precision of laplace is what validation rows like best, and not that with the largest evidence
          4. members of an ensemble share the budget's steps unless members_budget="full"
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import last_features
from probatum.numerics.posterior.approximations import fit_mean_field, fit_swag, repeated
from probatum.numerics.posterior.ensembles import Members, train_members
from probatum.numerics.posterior.gaussian_process import bayesian_linear, fit_rbf, gaussian_process, rbf, sparse_process
from probatum.numerics.posterior.predictive import ClassPredictive, RealPredictive
from probatum.numerics.posterior.predictors import (
    Drawn,
    Factory,
    fresh_network,
    last_linear,
    losses_for,
    predictor_of,
    residual_noise,
    started,
)
from probatum.numerics.posterior.stacked import Posterior
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.targets import real_targets
from probatum.spec import Budget, Data, Optimisation, Part, Spec
from probatum.techniques.learner.probabilistic_toolkit.laplace import Laplace, last_layer_gauss_newton

CARD = Card(
    paper="arXiv:2502.05244",
    title="Probabilistic Artificial Intelligence",
    entry="fit",
    number=42,
    tags=("uncertainty", "posterior", "ensemble", "calibration"),
    tiny={"members": 2, "members_budget": "full", "draws": 4},
    tune={
        "method": ["ensemble", "mc-dropout", "bayes-by-backprop", "swag", "laplace"],
        "temperature": (1e-3, 1.0, "log"),
    },
    claims=("gp-ucb-beats-random", "ensemble-knows-where"),
)

METHODS = ("ensemble", "mc-dropout", "bayes-by-backprop", "swag", "laplace", "gp", "blr")
BUDGETS = ("shared", "full")
MOST_EXACT = 1000
INDUCING = 300
MOST_FULL = 3000


class ClosedPredictor:
    """Draws of a process or a linear model, whose marginals are Gaussian.

    Args:
        model: with `mean` (n, k) and `variance` (n,) of features.
        spec: of the data.
        draws: S >= 2; their mean and spread are exact.
        sharpness: classes: what the latent values are multiplied by before the softmax.
        noise: reals: (outputs,).
    """

    def __init__(
        self, model: object, spec: Spec, draws: int, generator: torch.Generator, sharpness: float, noise: Tensor
    ) -> None:
        self.model, self.spec, self.sharpness, self.noise = model, spec, sharpness, noise
        raw = torch.randn(draws, 1, spec.outputs, generator=generator)
        self.standard = (raw - raw.mean(dim=0)) / raw.std(dim=0, unbiased=False).clamp_min(1e-6)

    def latent(self, x: Tensor) -> Tensor:
        """Values (S, n, outputs) of the functions."""
        features = encoded(x, self.spec)
        deviation = self.model.variance(features).sqrt().float()[None, :, None]
        return self.model.mean(features).float() + deviation * self.standard

    def samples(self, part: Part) -> Tensor:
        """(S, n, classes) probabilities, or (S, n, outputs)."""
        found = self.latent(part.x)
        return found if self.spec.task == "reals" else (self.sharpness * found).softmax(dim=2)

    def predict(self, part: Part) -> Tensor:
        """Mean of `samples`."""
        return self.samples(part).mean(dim=0)


class LinearModel:
    """Bayesian linear regression on [x, 1]."""

    def __init__(self, x: Tensor, y: Tensor, noise: float, prior: float) -> None:
        self.posterior = bayesian_linear(_with_one(x), y, noise, prior)

    def mean(self, x: Tensor) -> Tensor:
        """(n, k)."""
        return _with_one(x).double() @ self.posterior.mean

    def variance(self, x: Tensor) -> Tensor:
        """(n,)."""
        return self.posterior.variance(_with_one(x))


def encoded(x: Tensor, spec: Spec) -> Tensor:
    """Rows as flat numbers (n, d) in float64: category codes one-hot, images and series flat.

    Raises:
        ValueError: token ids.
    """
    if spec.modality == "text":
        raise ValueError("method is 'gp' or 'blr'; token ids have no distances: use a method with networks")
    if spec.modality != "table":
        return x.flatten(1).double()
    codes = [F.one_hot(x[:, spec.numeric + i].long(), size) for i, size in enumerate(spec.cardinalities)]
    return torch.cat([x[:, : spec.numeric], *codes], dim=1).double()


def fit(
    data: Data,
    budget: Budget,
    generator: torch.Generator,
    model_factory: Factory,
    optimisation: Optimisation,
    method: str = "ensemble",
    members: int = 5,
    members_budget: str = "shared",
    draws: int = 20,
    dropout: float = 0.1,
    prior_scale: float = 1.0,
    temperature: float = 1.0,
    start_scale: float = 0.01,
    swag_rate: float = 0.02,
    rank: int = 20,
    heteroscedastic: bool = True,
) -> Drawn | ClosedPredictor:
    """Fit data.train by one of the methods; validation rows choose weights, noise and sharpness.

    Args:
        data: one split; x as in `probatum.spec`.
        budget: gradient steps in all, of batch_size rows; gp and blr take none.
        generator: of all draws.
        model_factory: fresh networks, (n, ...) -> (n, outputs).
        optimisation: AdamW's settings.
        method: one of `METHODS`.
        members: networks of an ensemble, >= 2.
        members_budget: "shared": budget.steps for all members together; "full": for each.
        draws: networks drawn for prediction, >= 2.
        dropout: rate in (0, 1) of the layer put before the last one where the network has no dropout.
        prior_scale: standard deviation of the prior over weights (bayes-by-backprop, blr), > 0.
        temperature: of bayes-by-backprop and laplace, in [0, 1]; 1 is Bayes, less is a cold posterior.
        start_scale: standard deviations of bayes-by-backprop at the start, > 0.
        swag_rate: learning rate of SGD in the last quarter of the steps, > 0.
        rank: deviations that SWAG keeps; 0 = diagonal.
        heteroscedastic: real targets: whether networks give a variance for every row.

    Raises:
        ValueError: a setting outside its range; a network that lacks the last linear layer a method needs.

    Example:
        >>> from torch import nn
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> part = Part(x, (x > 0).long().squeeze(1), torch.arange(40))
        >>> data = Data(Spec("table", "classes", (1,), 2, numeric=1), part, part, part)
        >>> net = lambda: nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = fit(data, Budget(40, 20, 2), torch.Generator().manual_seed(0), net, Optimisation(0.05), members=4)
        >>> tuple(found.samples(part).shape), bool((found.predict(part).argmax(1) == part.y).float().mean() > 0.8)
        ((4, 40, 2), True)
    """
    _check(method, members, members_budget, draws, dropout, prior_scale, temperature, start_scale, swag_rate, rank)
    spec = data.spec
    if method in ("gp", "blr"):
        return fit_closed(data, generator, method, draws, prior_scale)
    own_variance = spec.task == "reals" and heteroscedastic and method != "laplace"
    row_losses = losses_for(spec, own_variance)
    rate, count = dropout if method == "mc-dropout" else None, members if method == "ensemble" else 1
    nets = [fresh_network(model_factory, spec, own_variance=own_variance, dropout=rate) for _ in range(count)]
    steps = budget.steps // count if members_budget == "shared" else budget.steps
    first = max(1, steps if method != "swag" else steps - steps // 4)
    passes = float(count * max(1, steps) * min(budget.batch_size, len(data.train)))
    with own_draws(generator):
        members = started(nets)
        if method == "bayes-by-backprop":
            posterior = fit_mean_field(
                members,
                data.train,
                first,
                budget.batch_size,
                generator,
                optimisation,
                row_losses,
                draws=draws,
                prior_scale=prior_scale,
                start_scale=start_scale,
                temperature=temperature,
            )
        else:
            train_members(
                members, data.train, data.valid, first, budget.batch_size, generator, optimisation, row_losses
            )
            posterior = Posterior(nets[0], members.samples())
            if method == "swag":
                at = (data.train, steps - first, budget.batch_size, generator)
                posterior = fit_swag(members, *at, row_losses, draws=draws, rate=swag_rate, rank=rank)
            elif method == "laplace":
                posterior = _laplace(nets[0], members, data, generator, draws, temperature)
            elif method == "mc-dropout":
                posterior = repeated(nets[0], members, draws)
    dropout_stays = method == "mc-dropout"
    return predictor_of(posterior, data, passes, generator, own_variance=own_variance, dropout=dropout_stays)


def _laplace(
    net: nn.Module, members: Members, data: Data, generator: torch.Generator, draws: int, temperature: float
) -> Posterior:
    name = last_linear(net, data.spec.outputs)
    samples = {key: value[0] for key, value in members.samples().items()}
    net.load_state_dict(samples, strict=False)
    seen = last_features(net, data.train.x, net.get_submodule(name))
    head = net.get_submodule(name)
    own = None if head.bias is None else F.linear(seen.features, head.weight, head.bias)  # not head(...): it may differ
    if own is None or not torch.allclose(own, seen.logits, atol=1e-4):
        raise ValueError(f"{type(net).__name__} does not end in its last nn.Linear with a bias; laplace needs that")
    held = last_features(net, data.valid.x, head).features.double(), data.valid.y
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    noise = torch.randn(draws, weight.numel() + len(bias), generator=generator, dtype=torch.float64) * math.sqrt(
        temperature
    )
    drawn = last_layer_laplace((seen.features.double(), data.train.y), held, weight, bias, noise).spread(noise).float()
    drawn = drawn.to(head.weight.dtype)
    width = head.weight.numel()
    copies = {key: value.expand(draws, *value.shape).clone() for key, value in samples.items()}
    prefix = f"{name}." if name else ""
    copies[f"{prefix}weight"] = drawn[:, :width].reshape(draws, *head.weight.shape)
    copies[f"{prefix}bias"] = drawn[:, width:]
    return Posterior(net, copies)


def last_layer_laplace(
    train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor, noise: Tensor
) -> Laplace:
    """The approximation of a last layer (K, D), (K,) at its weights; of a grid of prior precisions, validation rows choose.

    Beyond 3,000 weights the curvature's diagonal stands for all of it.

    Args:
        train, valid: inputs of the layer (n, D) and targets, (n, K) or for one output (n,).
        noise: standard normal (S, K D + K), with which every precision is tried.
    """
    mode = torch.cat([weight.flatten(), bias])

    def outputs(features: Tensor, flat: Tensor) -> Tensor:
        return features @ flat[..., : weight.numel()].unflatten(-1, weight.shape).mT + flat[..., None, weight.numel() :]

    output, held = outputs(train[0], mode), valid[1]
    y = train[1]
    if y.is_floating_point():
        held, y = (real_targets(output[:1].expand(len(some), -1), some) for some in (held, y))
    scale = float((output - y).square().mean().sqrt().clamp_min(1e-3)) if y.is_floating_point() else None
    misfit = 0.5 * ((output - y) / scale).square().sum() if scale else F.cross_entropy(output, y, reduction="sum")
    curvature = last_layer_gauss_newton(train[0], output, scale)
    if len(mode) > MOST_FULL:
        curvature = curvature.diagonal().clone()
    found, best = [], []
    for precision in torch.logspace(-2, 5, 15).tolist():
        found.append(Laplace(mode, curvature, precision, -float(misfit)))
        draws = outputs(valid[0], found[-1].spread(noise))
        if scale:
            density = RealPredictive(draws, torch.full_like(draws, scale**2)).log_density(held)
        else:
            density = ClassPredictive(draws.log_softmax(dim=2)).log_probabilities.gather(1, held[:, None])
        best.append(float(density.mean()))
    return found[max(range(len(best)), key=best.__getitem__)]


def fit_closed(data: Data, generator: torch.Generator, method: str, draws: int, prior_scale: float) -> ClosedPredictor:
    """A Gaussian process or Bayesian linear regression on the encoded rows (n, d)."""
    spec, x = data.spec, encoded(data.train.x, data.spec)
    if spec.task == "classes":
        y = F.one_hot(data.train.y, spec.outputs).double() - 1 / spec.outputs
    else:
        y = real_targets(x[:, :1].expand(-1, spec.outputs), data.train.y).double()
    model: object
    if method == "blr":
        grid = torch.logspace(-2, 1, 13).tolist()
        models = [LinearModel(x, y, noise, prior_scale) for noise in grid]
        model = max(models, key=lambda one: float(one.posterior.log_evidence.sum()))
    else:
        some = torch.randperm(len(x), generator=generator)
        length, scale, noise = fit_rbf(x[some[:400]], y[some[:400]])
        kernel = rbf(length, scale)
        if len(x) <= MOST_EXACT:
            model = gaussian_process(x, y, kernel, noise)
        else:
            model = sparse_process(x, y, x[some[:INDUCING]], kernel, noise)
    found = ClosedPredictor(model, spec, draws, generator, 1.0, torch.ones(spec.outputs))
    if spec.task == "reals":
        found.noise = residual_noise(found.predict(data.valid), data)
        return found
    latent, best = found.latent(data.valid.x), math.inf
    for sharpness in torch.logspace(-0.5, 2, 26).tolist():
        p = (sharpness * latent).softmax(dim=2).mean(dim=0)
        loss = float(F.nll_loss(p.clamp_min(1e-12).log(), data.valid.y))
        if loss < best:
            best, found.sharpness = loss, sharpness
    return found


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def _check(
    method: str,
    members: int,
    members_budget: str,
    draws: int,
    dropout: float,
    prior_scale: float,
    temperature: float,
    start_scale: float,
    swag_rate: float,
    rank: int,
) -> None:
    if rank < 0:
        raise ValueError(f"rank is {rank}; give how many deviations SWAG keeps, 0 or more")
    for name, value, allowed in (("method", method, METHODS), ("members_budget", members_budget, BUDGETS)):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
    if members < 2 or draws < 2:
        raise ValueError(
            f"members is {members} and draws {draws}; use 2 or more: one draw has no epistemic uncertainty"
        )
    if not 0 < dropout < 1:
        raise ValueError(f"dropout is {dropout}; use a rate within (0, 1)")
    if not 0 <= temperature <= 1:
        raise ValueError(f"temperature is {temperature}; use one in [0, 1]")
    for name, number in (("prior_scale", prior_scale), ("start_scale", start_scale), ("swag_rate", swag_rate)):
        if not number > 0:
            raise ValueError(f"{name} is {number}; it must be positive")
