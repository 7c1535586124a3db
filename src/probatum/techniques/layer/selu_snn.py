"""Self-normalizing networks: SELU with LeCun initialisation and alpha dropout keep activations at mean 0 and variance 1.

Paper     Klambauer et al. 2017, arXiv:1706.02515, eq. 2 to 5, theorem 1 and section "New Dropout Technique"
Computes  selu(x) = lam (x if x > 0 else alpha (exp(x) - 1)); weights N(0, 1 / fan_in), biases 0; alpha dropout sets units to
          -lam alpha and rescales by a = (q + alpha'^2 q (1 - q))^-1/2, b = -a (1 - q) alpha', with alpha' = -lam alpha, q kept
Shapes    any shape, unchanged; the converter changes modules in place
Departs   1. the last linear layer is re-initialised like the others; frozen weights, transposed convolutions, attention modules
             and embeddings (but those tied to a linear layer) stay as they are
          2. dropout becomes alpha dropout at the paper's rates only: a rate above 0.1 is cut to 0.1 (`max_dropout`)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.surgery import check_plain, inside_attention, swap
from probatum.numerics.networks.watch import CALL, look

CARD = Card(
    paper="arXiv:1706.02515",
    title="Self-Normalizing Neural Networks",
    entry="apply",
    number=248,
    tags=("normalisation", "initialisation", "activation", "depth"),
    tune={"max_dropout": [0.0, 0.05, 0.1]},
    claims=("deep-plain-networks",),
)

ALPHA = 1.6732632423543772
LAM = 1.0507009873554805
RECTIFIERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
DROPOUTS = {
    nn.Dropout: nn.AlphaDropout, nn.Dropout1d: nn.FeatureAlphaDropout, nn.Dropout2d: nn.FeatureAlphaDropout,
    nn.Dropout3d: nn.FeatureAlphaDropout,
}  # fmt: skip
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Moments(NamedTuple):
    """Mean and variance of a layer's activations."""

    mean: float
    variance: float


def selu(x: Tensor) -> Tensor:
    """lam (x if x > 0 else alpha expm1(x)) of any shape (eq. 2)."""
    return LAM * torch.where(x > 0, x, ALPHA * torch.expm1(x.clamp(max=0)))


def moment_map(mean: float, variance: float, omega: float = 0.0, tau: float = 1.0) -> Moments:
    """Moments after one layer and SELU, from those before it (eq. 4 and 5); (0, 1) is the fixed point.

    Args:
        mean: mean of the layer's inputs.
        variance: their variance, >= 0.
        omega: sum of a unit's weights.
        tau: sum of their squares, > 0.
    """
    m, v = mean * omega, variance * tau
    if not v > 0:
        raise ValueError(f"variance * tau is {v}; it must be above 0")
    s = math.sqrt(v)
    u = m / (math.sqrt(2) * s)
    below = 0.5 * math.erfc(u)  # P(z < 0)
    above = 0.5 * math.erfc(-u)
    density = s / math.sqrt(2 * math.pi) * math.exp(-u * u)
    once = _partial_exp(m, v, 1)
    twice = _partial_exp(m, v, 2)
    first = LAM * (m * above + density + ALPHA * (once - below))
    second = LAM**2 * ((m * m + v) * above + m * density + ALPHA**2 * (twice - 2 * once + below))
    return Moments(first, second - first * first)


def _partial_exp(m: float, v: float, k: int) -> float:
    """E[exp(k z); z < 0] for z ~ N(m, v), by the scaled complement where the plain product would overflow."""
    edge = (m + k * v) / math.sqrt(2 * v)
    exponent = k * m + 0.5 * k * k * v
    if edge < 25 and exponent < 700:
        return 0.5 * math.exp(exponent) * math.erfc(edge)
    return 0.5 * math.exp(exponent - edge * edge) / (edge * math.sqrt(math.pi))  # erfc(x) ~ exp(-x^2) / (x sqrt(pi))


def contracting(mean: float, variance: float, omega: float, tau: float) -> bool:
    """Whether moments and weights lie in the domain of theorem 1, where layers pull moments towards (0, 1)."""
    return abs(mean) <= 0.1 and abs(omega) <= 0.1 and 0.8 <= variance <= 1.5 and 0.95 <= tau <= 1.1


def alpha_dropout(x: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Drop entries of x to -lam alpha with probability `rate` in [0, 1), then rescale to keep mean 0 and variance 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; it must lie in [0, 1)")
    if rate == 0:
        return x
    low, q = -LAM * ALPHA, 1 - rate
    a = (q + low * low * q * (1 - q)) ** -0.5
    kept = torch.rand(x.shape, generator=generator, device=generator.device if generator else x.device).to(x.device) < q
    return a * torch.where(kept, x, low) - a * (1 - q) * low


def lecun_normal_(layer: nn.Module, generator: torch.Generator | None = None, frozen: bool = True) -> None:
    """Draw a linear or convolution layer's weights from N(0, 1 / fan_in), in place, and set its bias to 0.

    Without `frozen` what is not trained stays as it is.
    """
    with torch.no_grad():
        if frozen or layer.weight.requires_grad:
            fan_in = layer.weight[0].numel()  # channels in a group times kernel size
            drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
            layer.weight.copy_(drawn)
        if layer.bias is not None and (frozen or layer.bias.requires_grad):
            layer.bias.zero_()


def check_inputs(x: Tensor, strict: bool = False) -> bool:
    """Whether every feature of x (n, ...) has |mean| <= 1 and a standard deviation in 0.5 .. 2, constant ones aside.

    Warns where not, or raises ValueError if `strict`: unscaled inputs start outside the self-normalizing domain.
    """
    flat = x.flatten(1).double()
    mean, std = flat.mean(dim=0), flat.std(dim=0, correction=0)
    bad = ~((std == 0) | ((mean.abs() <= 1) & (std >= 0.5) & (std <= 2)))  # NaN is bad too
    if not bool(bad.any()):
        return True
    worst = int(bad.int().argmax())
    message = (
        f"feature {worst} has mean {float(mean[worst]):.3g} and standard deviation {float(std[worst]):.3g}; "
        "self-normalizing networks need inputs standardised to mean 0 and standard deviation 1"
    )
    if strict:
        raise ValueError(message)
    warnings.warn(message, stacklevel=2)
    return False


def check_network(net: nn.Module) -> None:
    """ValueError if plain dropout stands in a network with SELU, since it moves mean and variance."""
    if any(isinstance(module, nn.SELU) for module in net.modules()):
        for name, module in net.named_modules():
            if type(module) in DROPOUTS:
                wanted = DROPOUTS[type(module)].__name__
                raise ValueError(f"{name!r} is {type(module).__name__} beside SELU; use nn.{wanted}(p={module.p})")


def layer_moments(net: nn.Module, x: Tensor) -> dict[str, Moments]:
    """Mean and variance of the output of every SELU in a network for inputs x, by module name; modes are put back.

    Further runs of one module are told as name:2 and so on.
    """
    found: dict[str, Moments] = {}
    runs: dict[str, int] = {}

    def note(name: str, _inputs: object, output: Tensor) -> None:
        runs[name] = runs.get(name, 0) + 1
        name = name if runs[name] == 1 else f"{name}{CALL}{runs[name]}"
        found[name] = Moments(float(output.double().mean()), float(output.double().var(correction=0)))

    look(net, x, {name: module for name, module in net.named_modules() if isinstance(module, nn.SELU)}, note)
    return found


def outside_domain(moments: dict[str, Moments]) -> list[str]:
    """Layers whose activations lie outside mean -0.1 .. 0.1 or variance 0.8 .. 1.5 (theorem 1)."""
    return [name for name, its in moments.items() if abs(its.mean) > 0.1 or not 0.8 <= its.variance <= 1.5]


def apply(net: nn.Module, max_dropout: float = 0.1, generator: torch.Generator | None = None) -> int:
    """Turn a network into a self-normalizing one, in place: activations, initialisation, dropout and norms together.

    ReLU and its kin become SELU, dropout becomes alpha dropout, norms (whose parameters go) become identities, and linear and
    convolution weights that are trained are drawn anew. Scale the inputs per feature (`check_inputs`).

    Args:
        net: the network; one without any of these activations is left as it is.
        max_dropout: largest rate of alpha dropout kept, in [0, 1).
        generator: stream of the new weights.

    Returns:
        Number of activations, norms and dropouts changed.

    Raises:
        ValueError: max_dropout outside its range; a network left as it is that has plain dropout beside SELU; one that is
            itself an activation.
        TypeError: parametrised weights, which cannot be drawn anew.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.05), nn.Linear(64, 2))
        >>> apply(net, generator=torch.Generator().manual_seed(0))
        3
        >>> [type(module).__name__ for module in net]
        ['Linear', 'Identity', 'SELU', 'AlphaDropout', 'Linear']
    """
    if not 0 <= max_dropout < 1:
        raise ValueError(f"max_dropout is {max_dropout}; it must lie in [0, 1)")
    if not any(isinstance(module, RECTIFIERS) for module in net.modules()):
        check_network(net)
        return 0
    generator = generator or torch.Generator().manual_seed(0)
    closed = inside_attention(net)
    weighted = {path: m for path, m in net.named_modules() if isinstance(m, WEIGHTED) and id(m) not in closed}
    for path, layer in weighted.items():
        check_plain(layer, path)
    new = {module: fresh for module in net.modules() if (fresh := _instead_of(module, max_dropout)) is not None}
    changed = swap(net, new).count
    for layer in _each_once(weighted.values()):
        lecun_normal_(layer, generator, frozen=False)
    return changed


def _instead_of(module: nn.Module, max_dropout: float) -> nn.Module | None:
    if isinstance(module, RECTIFIERS):
        return nn.SELU(inplace=getattr(module, "inplace", False))
    if isinstance(module, NORMS):
        return nn.Identity()
    if type(module) in DROPOUTS:
        return DROPOUTS[type(module)](min(module.p, max_dropout))
    return None


def _each_once(layers: Iterable[nn.Module]) -> Iterable[nn.Module]:
    """Layers whose weight has not come before, so that tied weights are drawn once."""
    seen: set[int] = set()
    for layer in layers:
        if id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            yield layer
