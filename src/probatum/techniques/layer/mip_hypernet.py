"""MIP: a hypernetwork whose weights do not scale with its input: constant-norm encoding and a residual output.

Paper     Gonzalez Ortiz, Guttag and Dalca 2023, "Magnitude Invariant Parametrizations Improve Hypernetwork Learning",
          arXiv:2304.07645, equations 3 to 5
Computes  theta = theta_0 + H(E(g)), E(g) = [cos(pi g_i / 2), sin(pi g_i / 2)]_i, so that |E(g)|^2 = d whatever g in [0, 1]^d; H an
          MLP with leaky ReLU, fan-out weights and zero biases; theta_0 learned, at first the network's ordinary weights
Shapes    g (*batch, d) in [0, 1] -> theta (*batch, numel)
Departs   1. `gain` draws the last layer at that many times the scale which gives weights of variance 2 / fan_in, over uniform g,
             instead of fan-out weights (variance 1 / numel, as in the authors' code): 1 is a better start for a hypernetwork
             without the residual part, 0 a network that starts as it would without one
          2. where there is no residual part, the scales of norms are 1 at first, not 0
          3. `apply` conditions on the rate of dropout in front of the last layer, g drawn uniformly every training pass and fixed
             in evaluation; the paper conditions on what its user brings
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.hypernetworks.hypernet import (
    Layout,
    Supplier,
    Trunk,
    call,
    call_each,
    draw_linear,
    hyperfan_in,
    layer_weights,
    supply,
)
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.surgery import inside_attention

CARD = Card(
    paper="arXiv:2304.07645",
    title="Magnitude Invariant Parametrizations Improve Hypernetwork Learning",
    entry="apply",
    number=89,
    tags=("hypernetworks", "conditioning", "dropout"),
    tasks=("classes", "reals", "next-token"),
    alone="the network's weights come from a network of its own",
    tiny={"hidden": (4, 8)},
    tune={"gain": (0.01, 1.0, "log"), "most": (0.1, 0.7), "at": (0.0, 1.0), "encoding": ["cos-sin", "raw"]},
    claims=("conditioned-on-rotation",),
)

ENCODINGS = ("cos-sin", "raw", "standard")
OUTSIDE = ("raise", "clip")
PROBES = 256
ROUNDING = 1e-6
"""How far outside [0, 1] a number may lie and still be taken for its end."""


def encode(g: Tensor, encoding: str = "cos-sin") -> Tensor:
    """E(g): (*batch, d) -> (*batch, 2 d) of squared norm d; "raw" is g itself, "standard" (g - 1/2) sqrt(12), both (*batch, d)."""
    if encoding == "cos-sin":
        return torch.cat([(math.pi / 2 * g).cos(), (math.pi / 2 * g).sin()], dim=-1)
    return g if encoding == "raw" else (g - 0.5) * math.sqrt(12)


def within(g: Tensor, outside: str = "raise") -> Tensor:
    """g itself where it lies in [0, 1]; else an error, or the nearest end with outside="clip".

    Raises:
        ValueError: numbers outside [0, 1] or not finite; the message gives their range.
    """
    low, high = (float(end) for end in g.detach().aminmax()) if g.numel() else (0.0, 1.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"g ranges from {low} to {high}; give finite numbers in [0, 1]")
    if outside == "raise" and (low < -ROUNDING or high > 1 + ROUNDING):
        raise ValueError(f"g ranges from {low:g} to {high:g}; scale it to [0, 1] (`squash`), or say outside='clip'")
    return g.clamp(0, 1)


def squash(values: Tensor, reference: Tensor, how: str = "range") -> Tensor:
    """Unbounded numbers (n, d) into [0, 1] by the columns of reference (m, d): their "range", or their "quantiles".

    Raises:
        ValueError: an unknown way, or a reference column without two values.
    """
    if how not in ("range", "quantiles"):
        raise ValueError(f"how is {how!r}; use range or quantiles")
    low, high = reference.amin(dim=0), reference.amax(dim=0)
    if not bool((high > low).all()):
        raise ValueError(
            f"columns {(high <= low).nonzero().flatten().tolist()} of the reference hold one value; leave them out"
        )
    if how == "range":
        return ((values - low) / (high - low)).clamp(0, 1)
    ordered = reference.sort(dim=0).values.mT.contiguous()
    below = torch.searchsorted(ordered, values.mT.contiguous()) + torch.searchsorted(
        ordered, values.mT.contiguous(), right=True
    )
    return below.mT.to(values.dtype) / (2 * len(reference))


def category_codes(categories: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Frozen codes (categories, size) of unit norm for categorical inputs; join them to E(g) of the numeric ones."""
    drawn = torch.randn(categories, size, generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True)


class MipHypernet(nn.Module):
    """theta = theta_0 + H(E(g)).

    Args:
        layout: of the parameters to make.
        inputs: d, how many numbers g holds, >= 1.
        ordinary: theta_0 at first (numel,): fresh weights or those of a trained network.
        hidden: widths of H.
        encoding: "cos-sin", or a baseline: "raw" (g itself), "standard" (mean 0, variance 1 over uniform g).
        residual: whether theta_0 is there; False is the other baseline, theta = H(E(g)) with a bias from zero.
        gain: scale of H's first outputs over that of fresh weights, >= 0; None = fan-out weights.
        outside: what to do with g outside [0, 1]: "raise" or "clip".
        generator: for H's first weights; None = torch's own.

    Raises:
        ValueError: a setting outside its range, or weights for another layout.

    Example:
        >>> net = nn.Linear(4, 3)
        >>> maker = MipHypernet.of(net, inputs=1, generator=torch.Generator().manual_seed(0))
        >>> theta = maker(torch.tensor([[0.0], [0.5]]))
        >>> tuple(theta.shape), tuple(run(net, maker, torch.zeros(2, 4), torch.tensor([0.3])).shape)
        ((2, 15), (2, 3))
    """

    def __init__(
        self,
        layout: Layout,
        inputs: int,
        ordinary: Tensor,
        hidden: Sequence[int] = (16, 128),
        encoding: str = "cos-sin",
        residual: bool = True,
        gain: float | None = None,
        outside: str = "raise",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(inputs, encoding, gain, outside)
        if ordinary.shape != (layout.numel,):
            raise ValueError(f"ordinary has shape {tuple(ordinary.shape)}; the layout takes ({layout.numel},) weights")
        self.layout, self.inputs, self.encoding, self.outside = layout, inputs, encoding, outside
        self.trunk = Trunk(inputs * (2 if encoding == "cos-sin" else 1), hidden, "fan_out", generator)
        self.last = draw_linear(self.trunk.width, layout.numel, 1 / layout.numel, generator)
        g = torch.rand(PROBES, inputs, generator=generator)
        with torch.no_grad():
            if gain is not None:
                hyperfan_in(self.last, self.trunk(encode(g, encoding)), gain * layout.deviations(), generator)
            start = ordinary.detach().cpu() if residual else layout.centres()
            self.last.bias.copy_(start)  # theta_0 is the last layer's bias

    @classmethod
    def of(
        cls,
        net: nn.Module,
        inputs: int,
        names: Sequence[str] | None = None,
        hidden: Sequence[int] = (16, 128),
        encoding: str = "cos-sin",
        residual: bool = True,
        gain: float | None = None,
        outside: str = "raise",
        generator: torch.Generator | None = None,
    ) -> MipHypernet:
        """One for these parameters of `net` (None = all), theta_0 its present weights: fresh, or those of a trained network."""
        layout, parameters = Layout.of(net, names), dict(net.named_parameters())
        ordinary = layout.flatten({name: parameters[name] for name in layout.names})
        return cls(layout, inputs, ordinary, hidden, encoding, residual, gain, outside, generator).to(ordinary.detach())

    def forward(self, g: Tensor) -> Tensor:
        """g (*batch, d) in [0, 1] -> theta (*batch, numel); ValueError where it is not."""
        if g.shape[-1] != self.inputs:
            raise ValueError(f"g has {g.shape[-1]} numbers; this hypernetwork takes {self.inputs}")
        return self.last(self.trunk(encode(within(g, self.outside), self.encoding)))


def run(net: nn.Module, maker: MipHypernet, x: Tensor, g: Tensor) -> Any:
    """The network on x (n, ...) with the weights of g: (d,) for all rows, or (n, d) for each."""
    weights = maker.layout.unflatten(maker(g))
    return call(net, weights, x) if g.ndim == 1 else call_each(net, weights, x)


@torch.no_grad()
def weight_scales(maker: MipHypernet, grid: Tensor) -> Tensor:
    """Root mean square of the made weights relative to the wanted deviation, for each g of grid (m, d): (m,)."""
    wanted = maker.layout.deviations().to(grid)
    centred = (maker(grid) - maker.layout.centres().to(grid)) / wanted.clamp_min(1e-12)
    return centred[:, wanted > 0].square().mean(dim=1).sqrt()


def gradient_norms(maker: MipHypernet, grid: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Norm over all parameters of the gradient of loss(theta, g), for each g of grid (m, d): (m,)."""
    found = []
    for g in grid:
        gradients = torch.autograd.grad(loss(maker(g), g), list(maker.parameters()), allow_unused=True)
        found.append(sum(grad.square().sum() for grad in gradients if grad is not None).sqrt())
    return torch.stack(found)


class InPlace(Supplier):
    """H on a network: g is drawn in training and fixed in evaluation; it is the rate of dropout before the last layer."""

    def __init__(self, maker: MipHypernet, most: float, at: float, source: torch.Generator | None) -> None:
        super().__init__(maker.layout)
        self.maker, self.most, self.source = maker, most, source
        self.register_buffer("g", torch.tensor([at]))
        self.at = float(self.g)  # as it is stored, so that the two compare

    def begin(self, net: nn.Module, args: Any, kwargs: Any) -> None:
        if self.training:
            self.g.copy_(torch.rand(1, generator=self.source))
        elif float(self.g) != self.at:
            self.g.fill_(self.at)
        super().begin(net, args, kwargs)

    def theta(self) -> Tensor:
        return self.maker(self.g.clone())

    def drop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of the last layer: dropout at rate most * g."""
        rate = self.most * float(self.g)
        if not self.training or rate == 0:
            return None
        x = args[0] if args else kwargs["input"]
        kept = torch.rand(x.shape, generator=self.source).to(x.device) >= rate
        dropped = x * kept / (1 - rate)
        return ((dropped, *args[1:]), kwargs) if args else (args, {**kwargs, "input": dropped})


def apply(
    net: nn.Module,
    most: float = 0.5,
    at: float = 0.0,
    hidden: Sequence[int] = (16, 32),
    encoding: str = "cos-sin",
    residual: bool = True,
    gain: float | None = None,
    names: Sequence[str] | None = None,
    last_layer: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Condition a network's linear maps and convolutions on the rate of dropout before its last layer, in place.

    Args:
        net: the network.
        most: the rate at g = 1, in [0, 1).
        at: g in evaluation, in [0, 1]; 0 = the weights for no dropout.
        hidden: widths of H; the last one multiplies the number of parameters.
        encoding: "cos-sin", "raw" or "standard".
        residual: whether theta_0, the network's weights, is added.
        gain: scale of H's first outputs over that of fresh weights, >= 0; None = fan-out weights.
        names: parameters to make instead of those found.
        last_layer: before which dropout acts; None = the linear layer that runs last, or the convolution.
        generator: for H, g and the dropout; None = torch's own.

    Returns:
        How many parameters are made.

    Raises:
        ValueError: a setting outside its range, a name that is no parameter, a last layer inside `nn.MultiheadAttention`.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> apply(net), tuple(net(torch.zeros(5, 64)).shape)
        (2, (5, 10))
    """
    _check(1, encoding, gain, "raise")
    if not 0 <= most < 1:
        raise ValueError(f"most is {most}; a rate of dropout lies in [0, 1)")
    if not 0 <= at <= 1:
        raise ValueError(f"at is {at}; it must lie in [0, 1]")
    chosen = layer_weights(net) if names is None else list(names)
    if not chosen:
        return 0
    maker = MipHypernet.of(net, 1, chosen, hidden, encoding, residual, gain, generator=generator)
    supplier = InPlace(maker, most, at, generator).to(maker.last.weight).train(net.training)
    last = find_last_layer(net) if last_layer is None else last_layer
    if last is not None and id(last) in inside_attention(net):
        raise ValueError(
            "last_layer is a part of nn.MultiheadAttention, which reads its weights past hooks; name a layer behind it"
        )
    made = supply(net, supplier)
    if last is not None:
        last.register_forward_pre_hook(supplier.drop, with_kwargs=True)
    return made


def _check(inputs: int, encoding: str, gain: float | None, outside: str) -> None:
    if inputs < 1:
        raise ValueError(f"inputs is {inputs}; give 1 or more")
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding is {encoding!r}; use one of {', '.join(ENCODINGS)}")
    if gain is not None and not 0 <= gain < math.inf:
        raise ValueError(f"gain is {gain}; it must be a finite number of at least 0, or None")
    if outside not in OUTSIDE:
        raise ValueError(f"outside is {outside!r}; use one of {', '.join(OUTSIDE)}")
