"""Dilated convolution with learnable spacings: few taps at learned real positions in a large window.

Paper     Khalfaoui-Hassani et al. 2021, arXiv:2112.03740: kernel construction and the training recipe for ConvNeXt
Computes  tap k of weight w at centred position p: with q = p + floor(S / 2), i = floor(q), r = q - i in every dimension, its
          weight goes to the 2^n cells around q in shares prod(r or 1 - r); a plain convolution runs with the dense kernel
Shapes    x (batch, C_in, *n) -> (batch, C_out, *n), n = 1, 2 or 3; weight (C_out, C_in / groups, K); positions
          (n, C_out, C_in / groups, K), in cells from the window's centre; dense kernel (C_out, C_in / groups, *S)
Departs   1. positions are kept as P = position_scale * raw, which under Adam is a learning rate position_scale times as high
             on P; an optimizer of one group also decays them (`parameter_groups` gives them one without decay)
          2. positions are clamped to -floor(S / 2) .. S - 1 - floor(S / 2), so that no weight leaves the window
          3. `apply` takes the convolution's weights over and puts its K taps into a window of about twice its reach
          4. the kernel is built in float32 where weights and positions are of half precision, which has no room for a cell's
             number and a share in it
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.surgery import check_plain, layers, swap
from probatum.numerics.tensors.precision import computed_wide, widened

CARD = Card(
    paper="arXiv:2112.03740",
    title="Dilated Convolution with Learnable Spacings",
    entry="apply",
    number=247,
    tags=("convolution", "receptive field", "vision", "series"),
    modalities=("image", "series"),
    alone="its kernel is built from weights and positions of its own in a forward of its own",
    neutral={"init": "grid", "learn": False},
    tiny={"window": 5},
    tune={"window": [5, 7, 9, 11], "spread": (0.25, 2.0), "position_scale": (1.0, 10.0, "log")},
    claims=("finds-a-long-lag",),
)

CONVOLUTIONS: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CALLS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
INITS = ("normal", "grid")


@computed_wide
def dense_kernel(weight: Tensor, positions: Tensor, window: Sequence[int]) -> Tensor:
    """The kernel (C_out, C_in / groups, *window) that holds each tap by linear interpolation; taps on one cell add up.

    Args:
        weight: (C_out, C_in / groups, K).
        positions: (n, C_out, C_in / groups, K) in cells from cell floor(S / 2), inside the window; the gradient at a whole
            number is that from the right (at the window's last cell from the left).
        window: n sizes, each >= 2.
    """
    lows, shares = [], []
    for along, size in zip(positions, window, strict=True):
        cell = along + size // 2
        low = cell.detach().floor().clamp(0, size - 2)
        rest = cell - low
        lows.append(low.long())
        shares.append((1 - rest, rest))
    index, value = [], []
    for corner in itertools.product((0, 1), repeat=len(window)):
        flat, part = torch.zeros_like(lows[0]), weight
        for low, share, up, size in zip(lows, shares, corner, window, strict=True):
            flat, part = flat * size + low + up, part * share[up]
        index.append(flat)
        value.append(part)
    kernel = weight.new_zeros(*weight.shape[:2], math.prod(window))
    return kernel.scatter_add(2, torch.cat(index, dim=2), torch.cat(value, dim=2)).unflatten(2, tuple(window))


class Dcls(nn.Module):
    """Convolution with K taps for every pair of channels, at learned positions in a window S.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        taps: K, 1 .. product of the window.
        window: S, one whole number >= 2 for all dimensions or one for each.
        dims: n, 1 to 3.
        stride: as in a convolution.
        padding: zeros on both sides; (S - 1) / 2 keeps an odd window's outputs of the size of x.
        groups: as in a convolution; as many as channels (depthwise) is the paper's use.
        bias: whether there is one.
        spread: standard deviation of the first positions, in cells, >= 0.
        position_scale: P is this times a parameter; > 0, 1 for an optimizer with a group of its own for positions.
        generator: for the first weights and positions; None = torch's own.

    Raises:
        ValueError: a window below 2, more taps than cells, or another setting outside its range.
        TypeError: a window that is no whole number.

    Example:
        >>> layer = Dcls(4, 4, taps=3, window=25, dims=1, padding=12, groups=4)
        >>> tuple(layer(torch.zeros(2, 4, 50)).shape), tuple(layer.positions.shape), type(layer.fuse()).__name__
        ((2, 4, 50), (1, 4, 1, 3), 'Conv1d')
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int,
        window: int | Sequence[int],
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        spread: float = 0.5,
        position_scale: float = 5.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if dims not in CONVOLUTIONS:
            raise ValueError(f"dims is {dims}; use 1, 2 or 3")
        self.window = _window(window, dims)
        cells = math.prod(self.window)
        if not 1 <= taps <= cells:
            raise ValueError(
                f"taps is {taps}; a window of {' x '.join(map(str, self.window))} has room for 1 .. {cells}"
            )
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise ValueError(f"{name} is {channels}; it must be a multiple of groups ({groups})")
        _check_positions(spread, position_scale)
        self.dims, self.groups, self.position_scale = dims, groups, position_scale
        self.stride, self.padding = _each(stride, dims), _each(padding, dims)
        shape = (out_channels, in_channels // groups, taps)
        bound = 1 / math.sqrt(shape[1] * taps)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
        self.bias = (
            nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound, generator=generator)) if bias else None
        )
        self.raw_positions = nn.Parameter(torch.empty(dims, *shape))
        self.put_positions(spread * torch.randn(dims, *shape, generator=generator))

    @property
    def positions(self) -> Tensor:
        """P (n, C_out, C_in / groups, K), in cells from cell floor(S / 2), within the window; never of half precision."""
        moved = widened(self.raw_positions) * self.position_scale
        return moved + (self._limited(moved) - moved).detach()  # a tap on the edge keeps its gradient

    @property
    def cost_ratio(self) -> float:
        """Multiplications of the dense kernel over those of its K taps: what the window costs until sparse kernels pay."""
        return math.prod(self.window) / self.weight.shape[2]

    @torch.no_grad()
    def put_positions(self, positions: Tensor) -> None:
        """Set P, clamped into the window."""
        wide = positions.to(self.raw_positions.device, widened(self.raw_positions).dtype)
        self.raw_positions.copy_(self._limited(wide) / self.position_scale)

    @torch.no_grad()
    def clamp_positions(self) -> None:
        """Bring positions that an update moved out of the window back to its edge; training forwards do it first."""
        self.raw_positions.copy_(self._limited(widened(self.raw_positions), self.position_scale))

    def dense(self) -> Tensor:
        """The kernel (C_out, C_in / groups, *S) as it stands."""
        return dense_kernel(self.weight, self.positions, self.window).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.raw_positions.requires_grad:
            self.clamp_positions()
        return CALLS[self.dims](x, self.dense(), self.bias, self.stride, self.padding, 1, self.groups)

    @torch.no_grad()
    def fuse(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """A plain convolution with the dense kernel, for use without training."""
        out, inputs, _ = self.weight.shape
        made = nn.utils.skip_init(
            CONVOLUTIONS[self.dims], inputs * self.groups, out, self.window, self.stride, self.padding,
            groups=self.groups, bias=self.bias is not None, device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        made.weight.copy_(self.dense())
        if self.bias is not None:
            made.bias.copy_(self.bias)
        return made.train(self.training)

    def extra_repr(self) -> str:
        out, inputs, taps = self.weight.shape
        return f"{inputs * self.groups}, {out}, taps={taps}, window={self.window}, padding={self.padding}"

    @classmethod
    def from_convolution(
        cls,
        old: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        window: int | Sequence[int] | None = None,
        init: str = "normal",
        learn: bool = True,
        spread: float = 0.5,
        position_scale: float = 5.0,
        generator: torch.Generator | None = None,
    ) -> Dcls:
        """A layer with a convolution's weights as taps and outputs of its size; settings as for `apply`."""
        _check_init(init)
        dims = old.weight.ndim - 2
        if old.padding_mode != "zeros":
            raise ValueError(f"a convolution pads by {old.padding_mode!r}; a large window needs padding_mode='zeros'")
        spans = [d * (k - 1) + 1 for d, k in zip(old.dilation, old.kernel_size, strict=True)]
        sizes = [2 * span + span % 2 for span in spans] if window is None else _window(window, dims)
        # a window no smaller than the old span, that exceeds it by an even number of cells
        sizes = [max(size, span, 2) for size, span in zip(sizes, spans, strict=True)]
        sizes = [size + (size - span) % 2 for size, span in zip(sizes, spans, strict=True)]
        around = [(size - span) // 2 for size, span in zip(sizes, spans, strict=True)]
        padding = [a + p for a, p in zip(around, _paddings(old, spans), strict=True)]
        shape = (old.in_channels, old.out_channels, math.prod(old.kernel_size))
        bias = old.bias is not None
        made = cls(*shape, sizes, dims, old.stride, padding, old.groups, bias, spread, position_scale, generator)
        made.to(old.weight).train(old.training)
        with torch.no_grad():
            made.weight.copy_(old.weight.flatten(2))
            if bias:
                made.bias.copy_(old.bias)
        if init == "grid":
            axes = [
                a - size // 2 + d * torch.arange(k)
                for a, size, d, k in zip(around, sizes, old.dilation, old.kernel_size, strict=True)
            ]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (n, K)
            made.put_positions(grid[:, None, None].expand_as(made.raw_positions))
        made.raw_positions.requires_grad_(learn)
        made.weight.requires_grad_(old.weight.requires_grad)
        if bias:
            made.bias.requires_grad_(old.bias.requires_grad)
        return made

    def _limited(self, positions: Tensor, unit: float = 1.0) -> Tensor:
        """Positions in units of `unit` cells, clamped into the window."""
        ends = [(-(size // 2) / unit, (size - 1 - size // 2) / unit) for size in self.window]
        return torch.stack([along.clamp(*end) for along, end in zip(positions, ends, strict=True)])


def apply(
    net: nn.Module,
    window: int | None = None,
    init: str = "normal",
    learn: bool = True,
    spread: float = 0.5,
    position_scale: float = 5.0,
    synchronise: bool = False,
    depthwise: bool = False,
    names: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Replace a network's convolutions by layers with the same number of taps at learned positions, in place.

    Args:
        net: a network with zero-padded convolutions; those with kernels of one cell stay.
        window: S >= 2 in every dimension, at least the convolution's own span, one more where its centre asks for it;
            None = about twice the span.
        init: "normal" (around the centre) or "grid" (where the convolution has its taps: the same function at first).
        learn: whether positions are trained; False with "grid" changes nothing.
        spread: standard deviation of normal first positions, in cells, >= 0.
        position_scale: rate of the positions over that of the weights, under Adam; > 0.
        synchronise: neighbours in the module tree with weights and windows of one shape (a stage's) share positions.
        depthwise: leave alone all but depthwise convolutions, for which the large window is cheap.
        names: paths of the convolutions to replace, instead of finding them.
        generator: for the first positions; None = torch's own.

    Returns:
        How many convolutions were replaced.

    Raises:
        ValueError: a setting outside its range; weights tied to other layers'; a network that is itself a convolution.
        TypeError: a window that is no whole number; parametrised weights.
        KeyError: a name that is no convolution of the network.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> apply(net), net[0].window, net[0].padding
        (1, (7, 7), (3, 3))
    """
    _check_init(init)
    _check_positions(spread, position_scale)
    if window is not None:
        _window(window, 1)
    if init == "grid" and not learn:
        return 0
    found = layers(net, CONVOLUTIONS.values())
    for name in names or ():
        if name not in found:
            raise KeyError(f"{name!r} is no convolution of the network; there are {', '.join(found) or 'none'}")
    chosen = names if names is not None else [name for name, module in found.items() if _fits(module, depthwise)]
    new: dict[nn.Module, Dcls] = {}
    last: Dcls | None = None
    for name in dict.fromkeys(chosen):
        check_plain(found[name], name)
        made = Dcls.from_convolution(found[name], window, init, learn, spread, position_scale, generator)
        if synchronise and last is not None and (last.weight.shape, last.window) == (made.weight.shape, made.window):
            made.raw_positions = last.raw_positions
        new[found[name]] = last = made
    return swap(net, new).count


def fuse(net: nn.Module) -> int:
    """Replace every `Dcls` below `net` by the plain convolution it has become, in place; the number replaced."""
    found = [module for module in net.modules() if isinstance(module, Dcls) and module is not net]
    return swap(net, {module: module.fuse() for module in found}).count


def parameter_groups(net: nn.Module, weight_decay: float, rate: float | None = None) -> list[dict[str, Any]]:
    """Two groups for an optimizer: all else with `weight_decay`, positions without, at learning rate `rate` (None = as all)."""
    held = {id(module.raw_positions) for module in net.modules() if isinstance(module, Dcls)}
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    own: dict[str, Any] = {"params": [p for p in trained if id(p) in held], "weight_decay": 0.0}
    others = {"params": [p for p in trained if id(p) not in held], "weight_decay": weight_decay}
    return [others, own if rate is None else {**own, "lr": rate}]


def _fits(module: Any, depthwise: bool) -> bool:
    even = any(d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    if max(module.kernel_size) == 1 or module.padding_mode != "zeros" or (module.padding == "same" and even):
        return False
    return not depthwise or module.groups == module.in_channels


def _paddings(old: Any, spans: Sequence[int]) -> list[int]:
    if not isinstance(old.padding, str):
        return list(old.padding)
    if old.padding == "valid":
        return [0] * len(spans)
    if any(span % 2 == 0 for span in spans):
        raise ValueError(f"padding 'same' of a span of {spans} cells is uneven; use an odd span or explicit padding")
    return [span // 2 for span in spans]


def _window(window: int | Sequence[int], dims: int) -> tuple[int, ...]:
    sizes = tuple(window) if isinstance(window, Sequence) else (window,) * dims
    if len(sizes) != dims:
        raise ValueError(f"window is {window}; give one size or {dims}")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"window is {size!r}; it must be a whole number of cells")
        if size < 2:
            raise ValueError(f"window is {size}; it must be at least 2, or positions have no room")
    return sizes


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _check_positions(spread: float, position_scale: float) -> None:
    if not (spread >= 0 and math.isfinite(spread)):
        raise ValueError(f"spread is {spread}; it must be finite and at least 0")
    if not (position_scale > 0 and math.isfinite(position_scale)):
        raise ValueError(f"position_scale is {position_scale}; it must be finite and above 0")


def _check_init(init: str) -> None:
    if init not in INITS:
        raise ValueError(f"init is {init!r}; use one of {', '.join(INITS)}")
