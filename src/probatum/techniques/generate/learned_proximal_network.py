"""A denoiser that is exactly the proximal operator of a regulariser, learned from clean rows alone.

Paper     Fang, Buchanan and Sulam 2024, "What's in a Prior? Learned Proximal Networks for Inverse Problems", ICLR 2024,
          arXiv:2310.14344
Computes  psi convex in x: z_1 = g(H_1 x + b_1), z_k = g(W_k z_{k-1} + H_k x + b_k), psi = <w, z_K> + a |x|^2 / 2, W, w >= 0, g softplus;
          f = grad psi, trained on f(x + s n) by the mean absolute error, then by proximal matching 1 - exp(-|f - x|^2 / c^2), c halved.
          R(x) = <x, y> - |x|^2 / 2 - psi(y) with f(y) = x, so that f is the proximal operator of R
Shapes    rows (n, d), (n, channels, time) or (n, channels, h, w), float; f keeps them, psi and R give (n,)
Departs   1. one noise level a network, as in the paper: other noise of the data enters as the weight rho = (noise / s)^2 of the data term
          2. W starts at exp(N(m, 0.1)) with m = -log(fan-in), and w where f starts with slopes near 1, rather than m = -10: a bench's budget
             is hundreds of steps, not 40,000; thresholds b of dense layers start spread over -1 to 1
          3. rates are Adam's with cosine decay in each phase; the first phase's is higher than the paper's 0.001 for the same reason
          4. stacks of 3x3 convolutions with one stride of 2 (series: 3 taps; tables: dense), not the paper's network for faces
          5. f(y) = x is solved by Newton steps with conjugate gradients and backtracking
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.images.restoration import Identity, Operator, Solution, admm, conjugate_gradients, dot, pgd
from probatum.numerics.tensors.precision import widened
from probatum.spec import Budget

CARD = Card(
    paper="arXiv:2310.14344",
    title="What's in a Prior? Learned Proximal Networks for Inverse Problems",
    entry="fit",
    number=25,
    tags=("generation", "restoration", "prior", "inverse-problems", "convex"),
    modalities=("table", "image", "series"),
    tiny={"width": 8, "layers": 2, "iterations": 5},
    tune={"lr": (3e-3, 3e-2, "log"), "beta": (3.0, 30.0, "log"), "c": (0.4, 1.6, "log"), "layers": [2, 3, 4]},
    claims=("matching-finds-the-prox",),
)

LOSSES = ("matching", "l1", "l2")
SOLVERS = ("admm", "pgd")
ACTIVATIONS = ("softplus", "relu")
KERNEL = 3
LEAST_WIDTH = 4


def matching_loss(found: Tensor, true: Tensor, c: float) -> Tensor:
    """Proximal matching, mean over rows of 1 - exp(-|found - true|^2 / c^2); c above 0, in the units of the rows.

    As c falls to 0 its minimiser goes from the mean of x given y to the most probable x given y.
    """
    _above("c", c)
    return -torch.expm1(-(found - true).flatten(1).square().sum(dim=1) / c**2).mean()


def sharpness(steps: int, c: float, stages: int) -> list[float]:
    """c at every one of `steps` steps: `stages` stretches as equal as possible, halved from each to the next, `c` at last."""
    _above("c", c)
    if stages < 1:
        raise ValueError(f"stages is {stages}; give at least 1")
    return [c * 2.0 ** (stages - 1 - step * stages // steps) for step in range(steps)]


class LearnedProximalNetwork(nn.Module):
    """f = grad psi of an input-convex network psi: for every weight that it can have, the proximal operator of some R.

    Args:
        shape: of one row: (d,), (channels, time) or (channels, h, w).
        noise: standard deviation that it is trained for, above 0.
        width: units or channels of every layer.
        layers: how many, at least 1.
        beta: sharpness of softplus, above 0.
        strong: a above 0, the least slope of f.
        activation: softplus; with relu f is a proximal operator still, but jumps and cannot be inverted.
        solver, iterations: plug-and-play `admm` or `pgd`, and how many passes `restore` takes.
        generator: weights are drawn from it.

    Raises:
        ValueError: settings out of range; on loading, weights W or w below 0, under which psi would not be convex.

    Example:
        >>> net = LearnedProximalNetwork((2,), 0.5, width=8, generator=torch.Generator().manual_seed(0)).double()
        >>> y = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
        >>> torch.allclose(net.invert(net(y)), y)
        True
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        noise: float,
        *,
        width: int = 32,
        layers: int = 3,
        beta: float = 10.0,
        strong: float = 0.01,
        activation: str = "softplus",
        solver: str = "admm",
        iterations: int = 50,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if len(shape) not in (1, 2, 3):
            raise ValueError(f"shape is {shape}; give (d,), (channels, time) or (channels, h, w)")
        for name, value in (("noise", noise), ("beta", beta), ("strong", strong)):
            _above(name, value)
        for name, count in (("width", width), ("layers", layers), ("iterations", iterations)):
            if count < 1:
                raise ValueError(f"{name} is {count}; give at least 1")
        for name, word, known in (("activation", activation, ACTIVATIONS), ("solver", solver, SOLVERS)):
            if word not in known:
                raise ValueError(f"{name} is {word!r}; use one of {', '.join(known)}")
        self.shape, self.noise, self.beta, self.strong, self.activation = shape, noise, beta, strong, activation
        self.solver, self.iterations = solver, iterations
        axes, channels = len(shape) - 1, shape[0]
        taps = (KERNEL,) * axes
        self.strides = [2 if axes and k == 1 else 1 for k in range(layers)]
        places = math.prod(math.ceil(size / math.prod(self.strides)) for size in shape[1:])

        def uniform(*size: int) -> nn.Parameter:
            bound = math.prod(size[1:]) ** -0.5
            return nn.Parameter(torch.empty(size).uniform_(-bound, bound, generator=generator))

        def vector(size: int, bound: float) -> nn.Parameter:
            return nn.Parameter(bound * (2 * torch.rand(size, generator=generator) - 1))

        def positive(*size: int, mean: float) -> nn.Parameter:
            return nn.Parameter(mean * (0.1 * torch.randn(size, generator=generator)).exp())

        self.reads = nn.ParameterList([uniform(width, channels, *taps) for _ in range(layers)])
        kinks = 0.0 if axes else 1.0  # dense rows are standardised, and thresholds should lie where they do
        self.biases = nn.ParameterList([vector(width, kinks) for _ in range(layers)])
        mean = 1 / (width * KERNEL**axes)
        self.mixes = nn.ParameterList([positive(width, width, *taps, mean=mean) for _ in range(layers - 1)])
        slope = (
            beta * width / (12 * channels * math.prod(self.strides) ** axes)
        )  # of f at 0, were w 1: softplus'' is beta / 4
        self.last = positive(width * places, mean=1 / slope)
        self.register_load_state_dict_post_hook(_loaded)

    def check_convex(self) -> None:
        """ValueError, naming the smallest, where a weight W or w lies below 0."""
        for name, weight in [(f"mixes.{k}", w) for k, w in enumerate(self.mixes)] + [("last", self.last)]:
            least = float(weight.detach().min())
            if not least >= 0:
                raise ValueError(
                    f"{name} has the weight {least:.4g}; W and w must be at least 0, or psi is not convex: "
                    "clamp_() them, or load weights of a trained one"
                )

    @torch.no_grad()
    def clamp_(self) -> None:
        """Put weights W and w below 0 back to 0; called after every training step."""
        for weight in (*self.mixes, self.last):
            weight.clamp_(min=0)

    def psi(self, y: Tensor) -> Tensor:
        """The convex potential: rows (n, ...) -> (n,)."""
        reach, z = 1, None
        for k, (read, bias) in enumerate(zip(self.reads, self.biases, strict=True)):
            reach *= self.strides[k]
            inner = _linear(y, read, bias, reach)
            if z is not None:
                inner = inner + _linear(z, self.mixes[k - 1], None, self.strides[k])
            z = F.softplus(inner, beta=self.beta) if self.activation == "softplus" else F.relu(inner)
        return z.flatten(1) @ self.last + 0.5 * self.strong * y.flatten(1).square().sum(dim=1)

    def forward(self, y: Tensor) -> Tensor:
        """f(y) = grad psi(y), differentiable in weights and y: rows (n, ...) -> (n, ...)."""
        with torch.enable_grad():
            inputs = y if y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad(self.psi(inputs).sum(), inputs, create_graph=True)[0]

    def denoise(self, y: Tensor) -> Tensor:
        """f(y) without a graph: the minimiser of |x - y|^2 / 2 + R(x), rows (n, ...)."""
        with torch.enable_grad():
            inputs = y.detach().requires_grad_()
            return torch.autograd.grad(self.psi(inputs).sum(), inputs)[0]

    def solve(self, b: Tensor, operator: Operator, noise: float | None = None) -> Solution:
        """Plug-and-play from b = A x + noise (None = the noise trained for); at rest x is stationary for
        |A x - b|^2 / (2 rho) + R(x), rho = (noise / self.noise)^2."""
        rho = 1.0 if noise is None else (_above("noise", noise) / self.noise) ** 2
        solver = admm if self.solver == "admm" else pgd
        return solver(operator, b, self.denoise, rho=rho, iterations=self.iterations)

    def restore(self, b: Tensor, operator: Operator, noise: float | None = None) -> Tensor:
        """Rows from b = A x + noise; in one pass where A is the identity and the noise is the one trained for."""
        if isinstance(operator, Identity) and noise in (None, self.noise):
            return self.denoise(b)
        return self.solve(b, operator, noise).x

    def invert(self, x: Tensor, *, iterations: int = 60, tolerance: float | None = None) -> Tensor:
        """y with f(y) = x, the minimiser of psi(y) - <x, y>: rows (n, ...) -> (n, ...), each solved by itself.

        Args:
            x: rows.
            iterations: Newton steps at most.
            tolerance: largest |f(y) - x| of an entry, where x is longer than 1 as a share of its largest; None = 1e-9 in
                double precision and 1e-4 in single.

        Raises:
            ValueError: a network with relu, negative weights, or rows not solved within `iterations`.
        """
        if self.activation != "softplus":
            raise ValueError(f"activation is {self.activation!r}: f jumps and has no inverse; use softplus")
        self.check_convex()
        x, y = x.detach(), x.detach().clone()
        tolerance = (tolerance or (1e-9 if x.dtype == torch.float64 else 1e-4)) * max(1.0, float(x.abs().max()))
        worst = math.inf
        for _ in range(iterations):
            inputs = y.clone().requires_grad_()
            with torch.enable_grad():
                value = self.psi(inputs)
                slope = torch.autograd.grad(value.sum(), inputs, create_graph=True)[0]
            residual = slope.detach() - x
            worst = float(residual.abs().max())
            if worst <= tolerance:
                return y

            def product(v: Tensor, at: Tensor = inputs, of: Tensor = slope) -> Tensor:
                return torch.autograd.grad(of, at, v, retain_graph=True)[0]

            step = conjugate_gradients(product, -residual, iterations=200, tolerance=1e-3)
            y = self._descended(x, y, step, value.detach(), dot(residual, step))
        raise ValueError(
            f"f(y) = x is off by {worst:.2g} after {iterations} Newton steps, more than {tolerance:.2g}; use "
            "double precision, more iterations or a larger tolerance"
        )

    def _descended(self, x: Tensor, y: Tensor, step: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """y plus the longest of step, step / 2, ... by which psi(y) - <x, y> falls enough, row by row."""
        length = torch.ones_like(slope)
        linear = dot(x, y).flatten()
        slack = 100 * torch.finfo(y.dtype).eps * (1 + value.abs() + linear.abs())  # the two nearly cancel
        for _ in range(30):
            new = y + length * step
            with torch.no_grad():
                here = self.psi(new) - dot(x, new).flatten()
            bad = here > value - linear + 1e-4 * (length * slope).flatten() + slack
            if not bad.any():
                break
            length = torch.where(bad.view_as(length), length / 2, length)
        return y + length * step

    def regulariser(self, x: Tensor) -> Tensor:
        """R(x), up to one constant for all rows: (n, ...) -> (n,); after training about -noise^2 log p(x) + constant."""
        y = self.invert(x)
        with torch.no_grad():
            return dot(x, y).flatten() - 0.5 * x.flatten(1).square().sum(dim=1) - self.psi(y)


def train(
    net: LearnedProximalNetwork,
    draw: Callable[[], Tensor],
    steps: int,
    *,
    generator: torch.Generator,
    loss: str = "matching",
    c: float = 0.8,
    stages: int = 4,
    first: float = 0.5,
    lr: float = 1e-2,
    fine: float = 0.1,
) -> None:
    """Train on rows that `draw` gives, clean, with fresh noise at every step.

    Args:
        net: what is trained, in place.
        draw: () -> clean rows (batch, ...).
        steps: gradient steps altogether.
        generator: of the noise.
        loss: ``"matching"``, or for comparison ``"l1"`` or ``"l2"`` at every step (medians, means in place of modes).
        c: sharpness at the end, in units of noise times the root of a row's size.
        stages: times that c stands, halved from one to the next.
        first: share of the steps that go to the absolute error first (matching alone), in (0, 1].
        lr: Adam's rate at the beginning.
        fine: the matching phase's rate as a share of it, in (0, 1].
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; use one of {', '.join(LOSSES)}")
    for name, share in (("first", first), ("fine", fine)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share}; give a share above 0, at most 1")
    for name, number in (("lr", lr), ("c", c)):
        _above(name, number)
    sharp = max(1, round(steps * (1 - first))) if loss == "matching" else 0
    plain, unit = steps - sharp, net.noise * math.sqrt(math.prod(net.shape))
    values = sharpness(max(sharp, 1), c * unit, stages)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        late = step >= plain
        done = (step - plain) / sharp if late else step / max(plain, 1)
        rate = lr * (fine if late else 1.0) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-3 * lr * fine
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = draw()
        found = net(x + net.noise * torch.randn(x.shape, generator=generator, dtype=x.dtype))
        if late:
            value = matching_loss(found, x, values[step - plain])
        else:
            value = F.mse_loss(found, x) if loss == "l2" else F.l1_loss(found, x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        net.clamp_()


def fit(
    x: Tensor,
    noise: float,
    budget: Budget,
    generator: torch.Generator,
    parameters: int = 20_000,
    *,
    width: int | None = None,
    layers: int = 3,
    beta: float | None = None,
    strong: float = 0.01,
    loss: str = "matching",
    c: float = 0.8,
    stages: int = 4,
    first: float = 0.5,
    lr: float = 1e-2,
    fine: float = 0.1,
    solver: str = "admm",
    iterations: int = 50,
) -> LearnedProximalNetwork:
    """A `LearnedProximalNetwork` trained on clean rows x (n, ...) for white noise of this standard deviation.

    Args:
        x: clean rows.
        noise: above 0.
        budget: gradient steps and rows a step.
        generator: of weights, rows and noise.
        parameters: weights that it should have, about; chooses the width where that is None.
        beta: sharpness of softplus; None = 1 / noise, which is 10 for the paper's images.
        width, layers, strong, solver, iterations: see `LearnedProximalNetwork`.
        loss, c, stages, first, lr, fine: see `train`.

    Raises:
        ValueError: settings out of range.
    """
    shape = tuple(x.shape[1:])
    _above("noise", noise)

    def build(size: int) -> LearnedProximalNetwork:
        made: dict[str, Any] = {
            "layers": layers,
            "beta": 1 / noise if beta is None else beta,
            "strong": strong,
            "solver": solver,
            "iterations": iterations,
        }
        return LearnedProximalNetwork(shape, noise, width=size, generator=generator, **made)

    wide = widened(x)  # Adam's moments and proximal matching's exponents need the digits
    net = build(width_for(parameters, shape, layers) if width is None else width).to(wide.dtype)

    def draw() -> Tensor:
        return wide[torch.randint(len(x), (min(budget.batch_size, len(x)),), generator=generator)]

    how = {"loss": loss, "c": c, "stages": stages, "first": first, "lr": lr, "fine": fine}
    train(net, draw, budget.steps, generator=generator, **how)
    return net.to(x.dtype).eval()


def width_for(parameters: int, shape: tuple[int, ...], layers: int) -> int:
    """The width, at least 4, whose network has as many weights as `parameters`, or nearly."""
    axes = len(shape) - 1
    strides = 2 if axes and layers > 1 else 1
    places = math.prod(math.ceil(size / strides) for size in shape[1:])
    taps = KERNEL**axes
    a, b = taps * max(layers - 1, 0), layers * (shape[0] * taps + 1) + places
    exact = parameters / b if a == 0 else (math.sqrt(b * b + 4 * a * parameters) - b) / (2 * a)
    return max(LEAST_WIDTH, round(exact))


def _loaded(net: LearnedProximalNetwork, _: Any) -> None:
    """After weights were loaded; a function of the module's own, so that networks can be pickled."""
    net.check_convex()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A dense layer, or a convolution that keeps the size (divided by the stride)."""
    if x.ndim == 2:
        return F.linear(x, weight, bias)
    apply = F.conv1d if x.ndim == 3 else F.conv2d
    return apply(x, weight, bias, stride=stride, padding=KERNEL // 2)


def _above(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; give a finite number above 0")
    return value
