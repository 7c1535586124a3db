"""Predictors that are many networks: stacked weights run as one computation, and what their spread says.

    posterior = Posterior.of(networks)            # or Posterior(model, samples), samples stacked (S, ...) by name
    found = posterior.predict(x)                  # probabilities, total, aleatoric and epistemic entropy

Of several networks whose answers are averaged, the entropy of the average is the mean entropy (what no further data could
take away) plus the mutual information of answer and weights (what the networks disagree on); for real targets the law of
total variance takes its place (Depeweg et al. 2018, arXiv:1710.07283).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

ONE_DRAW = "one draw has no epistemic uncertainty: several draws are needed"
_REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError)


class Stacked:
    """S networks of one architecture as one function of their flat weights.

    Args:
        model: the architecture; a copy without memory is kept.

    Attributes:
        size: number of weights P of one network.

    Example:
        >>> nets = [nn.Linear(3, 2) for _ in range(4)]
        >>> stacked = Stacked(nets[0])
        >>> weights, buffers = stacked.gather(nets)
        >>> tuple(weights.shape), tuple(stacked(weights, torch.ones(5, 3), buffers).shape)
        ((4, 8), (4, 5, 2))
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        if not named:
            raise ValueError(f"{type(model).__name__} has no parameters; a posterior is over weights")
        self.names, self.shapes = list(named), [value.shape for value in named.values()]
        self.sizes = [value.numel() for value in named.values()]
        self.size = sum(self.sizes)
        self.model = copy.deepcopy(model)
        self._refused = False

    def gather(self, models: Sequence[nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights (S, P), detached, and stacked buffers of networks of this architecture."""
        if not models:
            raise ValueError("there are 0 networks; give one or more")
        parameters, buffers = stack_module_state(list(models))
        if [value.shape[1:] for value in parameters.values()] != self.shapes:
            raise ValueError(f"the networks are not all {type(self.model).__name__} of one shape")
        flat = torch.cat([value.detach().flatten(1) for value in parameters.values()], dim=1)
        return flat, {name: value.detach().clone() for name, value in buffers.items()}

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """(S, P) -> stacked parameters (S, ...) by name; gradients flow back to `weights`."""
        parts = weights.split(self.sizes, dim=1)
        count = len(weights)
        return {
            name: part.reshape(count, *shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flat(self, samples: Mapping[str, Tensor]) -> Tensor:
        """Stacked parameters by name -> (S, P)."""
        return torch.cat([samples[name].flatten(1) for name in self.names], dim=1)

    def __call__(
        self,
        weights: Tensor,
        x: Tensor,
        buffers: Mapping[str, Tensor] | None = None,
        *,
        training: bool | None = False,
        own: bool = False,
    ) -> Tensor:
        """Outputs (S, n, ...) of every network.

        Args:
            weights: (S, P).
            x: rows that all see, (n, ...), or with `own` each network's, (S, n, ...).
            buffers: stacked buffers (S, ...), changed in place by batch norms in training; None = the model's own.
            training: whether dropout and batch norm work as in training, draws coming from torch's global stream; None = as
                each module of `model` stands.
        """
        held = self._buffers(len(weights), buffers)
        parameters = self.named(weights)
        if training is not None:
            self.model.train(training)
        if not self._refused:
            try:
                run = vmap(self._one, in_dims=(0, 0, 0 if own else None), randomness="different")
                return run(parameters, held, x)
            except _REFUSALS:
                self._refused = True  # networks that look at values while they run: one after another
        rows = [
            self._one({k: v[s] for k, v in parameters.items()}, {k: v[s] for k, v in held.items()}, x[s] if own else x)
            for s in range(len(weights))
        ]
        return torch.stack(rows)

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.model, (parameters, buffers), (x,))

    def _buffers(self, count: int, buffers: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if buffers is not None:
            return dict(buffers)
        return {k: v.detach().expand(count, *v.shape).clone() for k, v in self.model.named_buffers()}


@dataclass(frozen=True)
class ClassPredictive:
    """What S draws say of the classes of n rows.

    Attributes:
        log_p: log-probabilities (S, n, K).
    """

    log_p: Tensor

    @property
    def log_probabilities(self) -> Tensor:
        """log of the mean probability (n, K), in log space."""
        return self.log_p.logsumexp(dim=0) - math.log(len(self.log_p))

    @property
    def probabilities(self) -> Tensor:
        """Mean probabilities (n, K); rows sum to 1."""
        return self.log_probabilities.exp()

    @property
    def total(self) -> Tensor:
        """Entropy (n,) of the mean probabilities, nats."""
        return entropy(self.log_probabilities)

    @property
    def aleatoric(self) -> Tensor:
        """Mean entropy (n,) of the draws, nats."""
        return entropy(self.log_p).mean(dim=0)

    @property
    def epistemic(self) -> Tensor:
        """Mutual information (n,) of class and weights, nats: total - aleatoric; ValueError for a single draw."""
        _several(len(self.log_p))
        return self.total - self.aleatoric


@dataclass(frozen=True)
class RealPredictive:
    """What S draws say of the real targets of n rows: a mixture of S Gaussians each.

    Attributes:
        means: (S, n, d).
        variances: observation noise (S, n, d).
    """

    means: Tensor
    variances: Tensor

    @property
    def mean(self) -> Tensor:
        """Mixture mean (n, d)."""
        return self.means.mean(dim=0)

    @property
    def aleatoric(self) -> Tensor:
        """Mean variance (n, d) of the draws."""
        return self.variances.mean(dim=0)

    @property
    def epistemic(self) -> Tensor:
        """Variance (n, d) of the means; ValueError for a single draw."""
        _several(len(self.means))
        return self.means.var(dim=0, unbiased=False)

    @property
    def total(self) -> Tensor:
        """Variance (n, d) of the mixture: aleatoric + epistemic."""
        return self.aleatoric + self.means.var(dim=0, unbiased=False)

    def log_density(self, y: Tensor) -> Tensor:
        """log p(y) (n, d) under the mixture."""
        each = -0.5 * ((y - self.means).square() / self.variances + (2 * math.pi * self.variances).log())
        return each.logsumexp(dim=0) - math.log(len(each))

    def distribution(self, y: Tensor) -> Tensor:
        """P(Y <= y) (n, d) under the mixture."""
        return torch.special.ndtr((y - self.means) / self.variances.sqrt()).mean(dim=0)

    def quantile(self, level: float, steps: int = 60) -> Tensor:
        """The value (n, d) below which the mixture has probability `level`, in (0, 1), by bisection."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level}; use one within (0, 1)")
        reach = self.variances.sqrt() * max(4.0, abs(float(torch.special.ndtri(torch.tensor(level)))) + 1)
        low, high = (self.means - reach).amin(dim=0), (self.means + reach).amax(dim=0)
        for _ in range(steps):
            middle = (low + high) / 2
            below = self.distribution(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central interval, both (n, d)."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)


class Posterior:
    """A model and S draws of its weights.

    Args:
        model: the architecture, (n, ...) -> (n, outputs).
        samples: stacked parameters (S, ...) by name, and stacked buffers where the draws have their own.
        noise: reals: standard deviation of the observations: a number, (d,), or one for each draw, (S, 1, d); None where
            the model gives it: outputs (n, 2 d), means then logarithms of variances.
        chunk: draws run at once.

    Raises:
        ValueError: samples that are missing, misshapen or of different numbers.

    Example:
        >>> posterior = Posterior.of([nn.Linear(3, 2) for _ in range(8)])
        >>> found = posterior.predict(torch.ones(5, 3))
        >>> bool(torch.allclose(found.total, found.aleatoric + found.epistemic)), tuple(found.probabilities.shape)
        (True, (5, 2))
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Mapping[str, Tensor],
        noise: Tensor | float | None = None,
        chunk: int = 16,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; use 1 or more")
        self.stacked = Stacked(model)
        buffers = dict(model.named_buffers())
        for name, shape in zip(self.stacked.names, self.stacked.shapes, strict=True):
            if name not in samples:
                raise ValueError(f"samples lack {name!r}; they need every parameter of {type(model).__name__}, stacked")
            if samples[name].shape[1:] != shape:
                found = tuple(samples[name].shape)
                raise ValueError(f"samples of {name!r} are {found}; give (S, {', '.join(map(str, shape))})")
        unknown = sorted(set(samples) - set(self.stacked.names) - set(buffers))
        if unknown:
            raise ValueError(f"samples hold {unknown[0]!r}, which {type(model).__name__} does not have")
        counts = {len(value) for value in samples.values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"samples hold {sorted(counts)} draws; give the same number of one or more of everything")
        self.weights = self.stacked.flat(samples).detach()
        self.buffers = {
            name: samples[name] if name in samples else value.detach().expand(len(self), *value.shape).clone()
            for name, value in buffers.items()
        }
        self.noise = None if noise is None else torch.as_tensor(noise, dtype=self.weights.dtype)
        if self.noise is not None and not bool((self.noise > 0).all()):
            raise ValueError(f"noise is {self.noise.min().item()}; a standard deviation must be positive")
        self.chunk = chunk

    @classmethod
    def of(cls, models: Sequence[nn.Module], noise: Tensor | float | None = None, chunk: int = 16) -> Posterior:
        """A posterior of networks of one architecture, such as a deep ensemble."""
        stacked = Stacked(models[0])
        weights, buffers = stacked.gather(models)
        return cls(models[0], {**stacked.named(weights), **buffers}, noise, chunk)

    def __len__(self) -> int:
        return len(self.weights)

    @torch.no_grad()
    def outputs(self, x: Tensor, rows: int = 1024) -> Tensor:
        """Outputs (S, n, outputs) in evaluation mode, `chunk` draws and `rows` rows at a time."""
        parts = []
        for start in range(0, len(self), self.chunk):
            some = slice(start, start + self.chunk)
            held = {name: value[some] for name, value in self.buffers.items()}
            parts.append(torch.cat([self.stacked(self.weights[some], part, held) for part in x.split(rows)], dim=1))
        return torch.cat(parts)

    def logits(self, x: Tensor) -> Tensor:
        """`outputs`, of classifiers."""
        return self.outputs(x)

    def predict(self, x: Tensor) -> ClassPredictive:
        """What the draws say of classes; the model gives logits."""
        return ClassPredictive(self.outputs(x).log_softmax(dim=2))

    def predict_reals(self, x: Tensor) -> RealPredictive:
        """What the draws say of real targets."""
        output = self.outputs(x)
        if self.noise is not None:
            return RealPredictive(output, self.noise.square().expand_as(output))
        if output.shape[2] % 2:
            raise ValueError(f"the model has {output.shape[2]} outputs; give noise=, or means and log-variances")
        means, logs = output.chunk(2, dim=2)
        return RealPredictive(means, logs.exp())

    @torch.no_grad()
    def renew_batch_norm(self, x: Tensor, batch_size: int = 256) -> Posterior:
        """Compute the running statistics of every draw's batch norms anew, as the mean over batches of `x`; returns itself.

        Drawn or averaged weights have statistics that no training has gathered (Izmailov et al. 2018, arXiv:1803.05407).
        """
        norms = [
            module for module in self.stacked.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        norms = [module for module in norms if module.track_running_stats]
        if not norms:
            return self
        stacked, held = self.stacked, [module.momentum for module in norms]
        batches = [part for part in x.split(batch_size) if len(part) > 1]
        for start in range(0, len(self), self.chunk):
            some = slice(start, start + self.chunk)
            buffers = {name: value[some].clone() for name, value in self.buffers.items()}
            for k, part in enumerate(batches):
                stacked.model.eval()
                for module in norms:
                    module.train()
                    module.momentum = 1 / (k + 1)  # a plain mean of the batches
                stacked(self.weights[some], part, buffers, training=None)
            for name, value in buffers.items():
                self.buffers[name][some] = value
        for module, momentum in zip(norms, held, strict=True):
            module.momentum = momentum
        return self


def entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats over the last dimension of log-probabilities; 0 log 0 = 0."""
    return -(log_p.exp() * log_p.clamp_min(-1e30)).sum(dim=-1)


def _several(count: int) -> None:
    if count < 2:
        raise ValueError(ONE_DRAW)
