"""Benign oscillation: large learning rates keep residuals swinging, and the swinging makes weak features grow.

Paper     Lu et al. 2024, "Benign Oscillation of Stochastic Gradient Descent with Large Learning Rates", ICLR 2024,
          arXiv:2310.17074, sections 2 to 4
Computes  on any network, trained by plain SGD on the squared error at each of some rates: how often residuals y - f change
          sign, the sharpness (largest Hessian eigenvalue) against 2 / rate, and test quality. Beside it the paper's world: weak
          and strong features and noise for a two-layer network, and the two weights by which bounded swinging forces the
          weak one to grow by (c / 2)(C - c) sum r_t^2
Shapes    (model_factory, data, generator) -> dict of named numbers
Departs   1. the activation relu(z)^2 and the two-weight model w <- w (1 + C r) are reconstructions
          2. a rate that diverges is told of by its step
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from probatum.card import Card
from probatum.numerics.networks.modes import begin_training, evaluating
from probatum.numerics.optimisation.fit_network import in_single
from probatum.numerics.tensors.draws import own_draws
from probatum.numerics.tensors.precision import widened
from probatum.numerics.tensors.targets import class_targets, real_targets, token_codes
from probatum.spec import Data

CARD = Card(
    paper="arXiv:2310.17074",
    title="Benign Oscillation of Stochastic Gradient Descent with Large Learning Rates",
    entry="benign_oscillation",
    number=76,
    tags=("learning rate", "edge of stability", "generalisation", "theory"),
    tiny={"rates": [0.01, 0.1], "steps": 6, "watched": 16},
    claims=("weak-features-grow",),
)

TOO_FAR = 1e6
"""Errors beyond this count as divergence; of a network that begins with more than 1, beyond so many times its beginning."""


@dataclass(frozen=True)
class World:
    """The paper's data: each example is three patches, y v (weak, always), y u (strong, mostly) and noise.

    Attributes:
        size: dimensions of a patch, at least 3.
        rows: examples.
        strong: |u|.
        weak: |v|.
        noise: length of every noise patch, which is orthogonal to u and v.
        share: probability that an example has the strong patch, in [0, 1].

    Raises:
        ValueError: a number outside its range.
    """

    size: int = 60
    rows: int = 16
    strong: float = 1.0
    weak: float = 0.3
    noise: float = 0.1
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.size < 3 or self.rows < 1:
            raise ValueError(f"size is {self.size} and rows {self.rows}; they must be at least 3 and 1")
        if min(self.strong, self.weak, self.noise) < 0 or not 0 <= self.share <= 1:
            raise ValueError(
                f"strong {self.strong}, weak {self.weak} and noise {self.noise} must be at least 0, share {self.share} in [0, 1]"
            )

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Patches (rows, 3, size) and labels (rows,) in {-1, 1}, balanced."""
        y = np.where(np.arange(self.rows) % 2 == 0, 1.0, -1.0)
        noise = rng.standard_normal((self.rows, self.size))
        noise[:, :2] = 0
        noise *= self.noise / np.linalg.norm(noise, axis=1, keepdims=True)
        x = np.zeros((self.rows, 3, self.size))
        x[:, 0, 1] = self.weak * y
        x[:, 1, 0] = self.strong * y * (rng.random(self.rows) < self.share)
        x[:, 2] = noise
        return x, y


@dataclass(frozen=True)
class Outcome:
    """What a run in the world shows.

    Attributes:
        margins: y f of the two tests that have the weak feature alone (y = 1, y = -1); empty where it diverged.
        diverged: the step at which outputs left all bounds, None = never.
        residuals: r_t = 1 - y f of the example of each step.
        weak_log_growth: log of the mean weight on v at the end over that at the start, of the neurons that see it.
    """

    margins: tuple[float, ...]
    diverged: int | None
    residuals: np.ndarray
    weak_log_growth: float

    def sign_changes(self) -> float:
        """Share of steps at which the residual changes sign."""
        return float(np.mean(np.diff(np.sign(self.residuals)) != 0)) if len(self.residuals) > 1 else 0.0


@np.errstate(over="ignore", invalid="ignore")  # of what diverges
def run_world(
    world: World,
    rate: float,
    steps: int,
    rng: np.random.Generator,
    width: int = 8,
    start: float = 0.05,
    decay: float = 0.0,
) -> Outcome:
    """Train f = F_+ - F_-, F_j = mean over neurons of sum over patches of relu(<w, x>)^2, by SGD on single examples.

    The loss is (y - f)^2 / 2; `start` is the standard deviation of the first weights, `decay` the share of the steps at the
    end, in [0, 1), that are taken at a tenth of the rate, which stills the swinging and keeps what it has taught.

    Raises:
        ValueError: rate, steps or width not positive, or a decay outside its range.
    """
    if not rate > 0 or steps < 1 or width < 1 or not 0 <= decay < 1:
        raise ValueError(
            f"rate is {rate}, steps {steps}, width {width}, decay {decay}; the first three must be positive, decay in [0, 1)"
        )
    edge = steps - int(decay * steps)
    x, y = world.draw(rng)
    weights = start * rng.standard_normal((2, width, world.size))
    signs, first = np.array([1.0, -1.0]), weights.copy()
    residuals, diverged = np.zeros(steps), None
    for t in range(steps):
        row = int(rng.integers(world.rows))
        active = np.maximum(weights @ x[row].T, 0.0)  # (2, width, 3)
        gap = y[row] - float((signs[:, None, None] * active**2).sum()) / width
        residuals[t] = y[row] * gap
        if not abs(gap) < TOO_FAR:
            residuals, diverged = residuals[:t], t
            break
        now = rate if t < edge else rate / 10
        weights += now * gap * signs[:, None, None] * (2 / width) * (active @ x[row])
    if diverged is None:  # the last step is judged too
        outputs = np.maximum(np.einsum("jwd,npd->njwp", weights, x), 0.0) ** 2
        gaps = y - (signs[:, None] * outputs.sum(axis=(2, 3)).T).sum(axis=0) / width
        diverged = None if (np.abs(gaps) < TOO_FAR).all() else steps
    if diverged is not None:
        return Outcome((), diverged, residuals, float("nan"))
    margins = []
    for label in (1.0, -1.0):
        seen = np.maximum(label * world.weak * weights[:, :, 1], 0.0)
        margins.append(label * float((signs[:, None] * seen**2).sum()) / width)
    sees = first[0, :, 1] > 0
    growth = float(np.log(np.abs(weights[0, sees, 1]).mean() / first[0, sees, 1].mean())) if sees.any() else 0.0
    return Outcome(tuple(margins), None, residuals, growth)


def two_weights(
    strong_rate: float, weak_rate: float, steps: int, strong: float = 0.5, weak: float = 1e-6
) -> dict[str, float]:
    """The mechanism alone: w_u <- w_u (1 + C r), w_v <- w_v (1 + c r), r = 1 - w_u^2 - w_v^2.

    Args:
        strong_rate: C > c.
        weak_rate: c > 0.
        steps: updates.
        strong: first w_u, not 0.
        weak: first w_v, not 0.

    Returns:
        "sum of residuals", "sum of squared residuals", "measured growth" and "predicted growth" of log w_v, where the
        prediction is (c / 2)(C - c) sum r^2 + (c / C) log(w_u end / w_u start).

    Raises:
        ValueError: rates or weights not as above.
        OverflowError: it diverges, with the step.
    """
    if not strong_rate > weak_rate > 0:
        raise ValueError(f"strong_rate is {strong_rate} and weak_rate {weak_rate}; need strong_rate > weak_rate > 0")
    if not abs(strong) > 0 or not abs(weak) > 0:
        raise ValueError(f"strong is {strong} and weak {weak}; a weight of 0 never grows, give others")
    u, v, total, squares = strong, weak, 0.0, 0.0
    for t in range(steps + 1):
        r = 1 - u * u - v * v
        if not abs(r) < TOO_FAR:
            raise OverflowError(f"diverged at step {t}; give a strong_rate below {strong_rate}")
        if t == steps:  # the last step is judged too
            break
        u, v = u * (1 + strong_rate * r), v * (1 + weak_rate * r)
        total, squares = total + r, squares + r * r
    grown = {name: math.log(end) if (end := abs(w)) else -math.inf for name, w in (("u", u / strong), ("v", v / weak))}
    drift = grown["u"] / strong_rate
    return {
        "sum of residuals": total,
        "sum of squared residuals": squares,
        "measured growth": grown["v"],
        "predicted growth": weak_rate * (0.5 * (strong_rate - weak_rate) * squares + drift),
    }


def sharpness(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], generator: torch.Generator, steps: int = 20
) -> float:
    """Largest eigenvalue, by absolute value, of the loss's Hessian in these parameters: power iteration.

    Lengths and products of vectors are float32 for weights of half precision; NaN where the Hessian is not finite.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give 1 or more")
    parameters = list(parameters)
    with sdpa_kernel(SDPBackend.MATH):  # the kernels' own gradients have none
        at_start = loss()
    gradients = torch.autograd.grad(at_start, parameters, create_graph=True, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad]
    if not pairs:  # a loss without curvature
        return 0.0
    vectors = [widened(torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)) for p, _ in pairs]
    value = 0.0
    for _ in range(steps):
        norm = torch.stack([v.square().sum() for v in vectors]).sum().sqrt()
        if not norm > 0 or not norm.isfinite():  # squares leave float32 long before what is squared does
            norm = torch.stack([v.double().square().sum() for v in vectors]).sum().sqrt()
        if not norm > 0 or not norm.isfinite():
            return 0.0 if norm == 0 else math.nan
        vectors = [v / norm for v in vectors]
        dot = torch.stack([(widened(g) * v).sum() for (_, g), v in zip(pairs, vectors, strict=True)]).sum()
        products = torch.autograd.grad(dot, [p for p, _ in pairs], retain_graph=True, allow_unused=True)
        found = [torch.zeros_like(v) if h is None else widened(h) for h, v in zip(products, vectors, strict=True)]
        value = float(torch.stack([(h * v).sum() for h, v in zip(found, vectors, strict=True)]).sum())
        vectors = found
    return value


def benign_oscillation(
    model_factory: Callable[[], nn.Module],
    data: Data,
    generator: torch.Generator,
    rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    steps: int = 300,
    batch_size: int = 32,
    decay: float = 0.1,
    watched: int = 128,
) -> dict[str, float]:
    """Train the same network by plain SGD at every rate and look at its residuals.

    Args:
        model_factory: a fresh network.
        data: one split; classes are learned as one-hot targets.
        generator: for batches, dropout and power iteration.
        rates: learning rates > 0.
        steps: updates at each.
        batch_size: rows of each.
        decay: share of the steps at the end, in [0, 1), that are taken at a tenth of the rate.
        watched: training rows whose residuals are looked at after every step.

    Returns:
        For each rate "rate R: train error" (half the squared distance, mean over the watched rows), "test accuracy" (or "test rmse"), "sign changes" (share of
        residuals of the true output that change sign in a step, before the decay), "sharpness x rate / 2" (1 = the edge of
        stability, before the decay); or "rate R: diverged at step". And "largest stable rate", 0 where none is.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> from probatum.spec import Part, Spec
        >>> part = Part(x := torch.rand(40, 3, generator=torch.Generator().manual_seed(0)), (x[:, 0] > 0.5).long(), x)
        >>> data = Data(Spec("table", "classes", (3,), 2, numeric=3), part, part, part)
        >>> found = benign_oscillation(
        ...     lambda: nn.Linear(3, 2), data, torch.Generator().manual_seed(0), rates=[0.1, 1e6], steps=50)
        >>> found["largest stable rate"], "rate 1e+06: diverged at step" in found
        (0.1, True)
    """
    if not rates or not all(rate > 0 for rate in rates):
        raise ValueError(f"rates are {list(rates)}; give one or more, all above 0")
    if steps < 2 or batch_size < 2 or watched < 1:
        raise ValueError(f"steps is {steps}, batch_size {batch_size}, watched {watched}; need 2, 2 and 1 or more")
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it is a share of the steps in [0, 1)")
    first, found, stable = model_factory(), {}, 0.0
    with own_draws(generator):  # dropout draws from the global stream
        for rate in rates:
            net, name = copy.deepcopy(first), f"rate {rate:g}"
            with in_single(net):
                run = _Run(net, data, rate, generator, batch_size, watched)
                diverged = run.train(steps, steps - int(decay * steps))
                if diverged is not None:
                    found[f"{name}: diverged at step"] = float(diverged)
                    continue
                stable = max(stable, rate)
                found |= {f"{name}: {key}": value for key, value in run.figures().items()}
    return {**found, "largest stable rate": stable}


class _Run:
    """One rate."""

    def __init__(
        self, net: nn.Module, data: Data, rate: float, generator: torch.Generator, batch_size: int, watched: int
    ) -> None:
        self.net, self.data, self.rate, self.generator = net, data, rate, generator
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(f"all weights of {type(net).__name__} are frozen; nothing is left to train")
        self.size = min(batch_size, len(data.train))
        self.x, self.y = data.train.x, data.train.y
        self.watched = (self.x[:watched], self.y[:watched])
        self.changes: list[float] = []
        self.sharpness = 0.0

    def residuals(self, x: Tensor, y: Tensor) -> Tensor:
        """Outputs less targets: one-hot for classes (tokens in the last dimension), values as they are."""
        output = self.net(widened(x.clone()))  # a network may begin by changing x in place
        if y.is_floating_point():
            return output - real_targets(output, y)
        return output - F.one_hot(self.codes(output, y), self.data.spec.outputs).to(output.dtype)

    def codes(self, output: Tensor, y: Tensor) -> Tensor:
        """Classes, one a row, or tokens."""
        if output.ndim > 2:
            return token_codes(y, output.shape[:-1], output.shape[-1])
        return class_targets(output, y, least=1)

    def error(self, x: Tensor, y: Tensor) -> Tensor:
        """Half the squared distance to the target, mean over rows."""
        return 0.5 * self.residuals(x, y).square().flatten(1).sum(dim=1).mean()

    def train(self, steps: int, edge: int) -> int | None:
        """SGD; the step at which it diverged, None if it did not. Looks end, and the rate falls, at step `edge`."""
        optimizer = torch.optim.SGD(self.parameters, lr=self.rate)
        last: Tensor | None = None
        with torch.no_grad(), evaluating(self.net):  # targets far from 0 and long texts begin with large errors
            start = float(self.error(*self.watched))
        far = TOO_FAR * max(1.0, start) if start < math.inf else TOO_FAR
        begin_training(self.net)
        for step in range(steps):
            if step == edge:
                self._measure()
                optimizer.param_groups[0]["lr"] = self.rate / 10
            index = torch.randint(len(self.x), (self.size,), generator=self.generator)
            loss = self.error(self.x[index], self.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not loss.item() < far:
                return step
            if step < edge:
                signs = self._residual_signs()
                if last is not None:
                    self.changes.append(float((signs != last).float().mean()))
                last = signs
        if edge == steps:
            self._measure()
        self.net.eval()
        with torch.no_grad():
            return None if float(self.error(*self.watched)) < far else steps

    def _measure(self) -> None:
        with evaluating(self.net):
            self.sharpness = sharpness(lambda: self.error(*self.watched), self.parameters, self.generator)

    @torch.no_grad()
    def _residual_signs(self) -> Tensor:
        x, y = self.watched
        with evaluating(self.net):
            residual = -self.residuals(x, y)
        if y.is_floating_point():
            return residual.sign()
        return residual.gather(-1, self.codes(residual, y).unsqueeze(-1)).sign()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """What the run is told by."""
        test: Any = self.data.test
        output = self.net(widened(test.x.clone()))
        found = {"train error": float(self.error(*self.watched))}
        if test.y.is_floating_point():
            found["test rmse"] = float((output - real_targets(output, test.y)).square().mean().sqrt())
        else:
            found["test accuracy"] = float((output.argmax(dim=-1) == self.codes(output, test.y)).float().mean())
        found["sign changes"] = sum(self.changes) / len(self.changes) if self.changes else 0.0
        found["sharpness x rate / 2"] = self.sharpness * self.rate / 2
        return found
