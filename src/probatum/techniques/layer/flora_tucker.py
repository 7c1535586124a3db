"""FLoRA: fine-tuning by a Tucker product for every weight, a small core times one factor a mode, with kernels left whole.

Paper     Si et al. 2024, arXiv:2405.14739: "FLoRA: Low-Rank Core Space for N-dimension", and its published layers
Computes  W0 frozen of shape (I_1 .. I_N); dW = s * G x_1 A_1 x_2 .. x_N A_N; y = op(x, W0) + op(dropout(x), dW)
Shapes    core G (r_1 .. r_N), factors A_i (I_i, r_i); linear N = 2 (out, in), Conv1d to 3d N = 3 to 5 (out, in / groups, k ..)
Departs   1. ranks come from one budget for the whole network: the largest rank of the channel modes that it allows
          2. the last layer is trained whole, all else is frozen; batch norms keep the pretrained statistics
          3. where nothing is dropped (the default; the paper's examples drop 1 %), one operation with W0 + dW serves for two
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.frozen import freeze
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.surgery import all_or_nothing, check_plain, layers, swap, ties
from probatum.numerics.tensors.draws import in_forward

CARD = Card(
    paper="arXiv:2405.14739",
    title="FLoRA: Low-Rank Core Space for N-dimension",
    entry="apply",
    number=246,
    tags=("transfer", "fine-tuning", "low rank", "adapters"),
    needs=("pretrained",),
    alone="adapters make their weights in a forward of their own",
    tiny={"budget": 0.1},
    tune={"scale": (0.01, 4.0, "log"), "budget": (0.01, 0.2, "log"), "dropout": (0.0, 0.2)},
    tried={"budget": [0.1, 0.5]},
    claims=("kernels-left-whole",),
)

LAYERS = {kind.__name__: kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
FORMS = ("tucker", "lora")


def tucker(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """G x_1 A_1 .. x_N A_N: core (r_1 .. r_N) and factors (I_i, r_i) -> (I_1 .. I_N)."""
    for factor in factors:
        core = torch.tensordot(core, factor, dims=([0], [1]))  # the mode in front goes, its product comes last
    return core


def cost(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Numbers in a core of these ranks and its factors for a weight of this shape."""
    return math.prod(ranks) + sum(r * size for r, size in zip(ranks, shape, strict=True))


def ranks_of(shape: Sequence[int], rank: int, kernel_rank: int) -> tuple[int, ...]:
    """Ranks of one weight: `rank` for outputs and inputs, `kernel_rank` along kernels, none above its mode's size."""
    wanted = (rank, rank, *(kernel_rank,) * (len(shape) - 2))
    return tuple(min(r, size) for r, size in zip(wanted, shape, strict=True))


def solve_ranks(
    shapes: Sequence[Sequence[int]], numbers: float, kernel_rank: int = 2, form: str = "tucker"
) -> list[tuple[int, ...]]:
    """Ranks of every weight such that all adapters together have at most `numbers` parameters.

    First the largest rank that all weights can share, then, largest weight first, one more rank where there is room.
    Form "lora" counts a matrix of (outputs, all else) and gives one rank a weight.

    Raises:
        ValueError: not even rank 1 fits; it says what would be needed.
    """

    def made(shape: Sequence[int], rank: int) -> tuple[int, ...]:
        if form == "lora":
            return (min(rank, shape[0], math.prod(shape[1:])),)
        return ranks_of(shape, rank, kernel_rank)

    def price(shape: Sequence[int], ranks: tuple[int, ...]) -> int:
        return ranks[0] * (shape[0] + math.prod(shape[1:])) if form == "lora" else cost(shape, ranks)

    def total(rank: int) -> int:
        return sum(price(shape, made(shape, rank)) for shape in shapes)

    if total(1) > numbers:
        raise ValueError(
            f"the budget is {numbers:g} numbers; rank 1 alone takes {total(1)}: raise budget or name fewer layers"
        )
    rank, most = 1, max(max(shape[0], math.prod(shape[1:])) for shape in shapes)
    while rank < most and total(rank + 1) <= numbers:
        rank += 1
    found, left = [made(shape, rank) for shape in shapes], numbers - total(rank)
    for i in sorted(range(len(shapes)), key=lambda i: -math.prod(shapes[i])):
        more = made(shapes[i], rank + 1)
        extra = price(shapes[i], more) - price(shapes[i], found[i])
        if 0 < extra <= left:
            found[i], left = more, left - extra
    return found


class _Adapter(nn.Module):
    """A frozen linear or convolution layer beside a trained change of its weight; see `Flora`."""

    def __init__(self, base: nn.Module, scale: float, dropout: float, generator: torch.Generator | None) -> None:
        super().__init__()
        if type(base) not in LAYERS.values():
            raise TypeError(f"base is a {type(base).__name__}; use one of {', '.join(LAYERS)}")
        _check(scale, dropout)
        self.base: Any = base
        base.requires_grad_(False)
        self.scale, self.dropout = scale, dropout
        self.generator = generator or torch.Generator().manual_seed(0)
        self.kept: Tensor | None = None

    def delta(self) -> Tensor:
        """dW, shaped like the weight."""
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        """Whether the base weight holds dW."""
        return self.kept is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Put dW into the base weight, so that predictions cost what they cost without; `unmerge` takes it out to the bit.

        A `state_dict` made meanwhile holds the base weight without it, and loading one unmerges.
        """
        if self.kept is None:
            self.kept = self.base.weight.detach().clone()
            self.base.weight.add_(self.delta())

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base weight back, bit for bit."""
        if self.kept is not None:
            self.base.weight.copy_(self.kept)
            self.kept = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, with the base weight as it is unmerged: dW is there already, in core and factors."""
        found = super().state_dict(*args, **kwargs)
        if self.kept is not None:
            found[f"{kwargs.get('prefix', '')}base.weight"] = self.kept
        return found

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unmerge()
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            if self.training:
                raise RuntimeError("the adapter is merged into its weight; call unmerge() before training goes on")
            return self.base(x)
        if not (self.training and self.dropout > 0):
            return self._op(x, self.base.weight + self.delta(), self.base.bias)
        keep = 1 - self.dropout
        mask = torch.empty(x.shape, device=self.generator.device).bernoulli_(keep, generator=in_forward(self.generator))
        return self.base(x) + self._op(x * (mask / keep).to(x), self.delta(), None)

    def _op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.base, nn.Linear):
            return F.linear(x, weight, bias)
        return self.base._conv_forward(x, weight, bias)  # stride, padding of any mode, dilation and groups are its own


class Flora(_Adapter):
    """A frozen layer with a Tucker change of its weight; at first the layer itself, since the core is zero.

    Args:
        base: `nn.Linear` or `nn.Conv1d` to `nn.Conv3d`, groups and all; it is frozen and shared, not copied.
        ranks: r_i, one for each mode of the weight, 1 .. I_i.
        scale: s, > 0.
        dropout: share of x that is dropped on the adapter's path in training, in [0, 1).
        generator: for the factors' first values and for dropout; None = one of its own.

    Raises:
        ValueError: ranks of another number than the modes, a rank outside 1 .. I_i (its mode is named), scale, dropout.
        TypeError: a base of another kind.

    Example:
        >>> layer = Flora(nn.Conv2d(8, 16, 3, padding=1), ranks=(4, 4, 2, 2), generator=torch.Generator().manual_seed(0))
        >>> x = torch.ones(2, 8, 5, 5)
        >>> torch.equal(layer(x), layer.base(x)), sum(p.numel() for p in layer.parameters() if p.requires_grad)
        (True, 172)
    """

    def __init__(
        self,
        base: nn.Module,
        ranks: Sequence[int],
        scale: float = 3.0,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, scale, dropout, generator)
        weight: Tensor = self.base.weight
        if len(ranks) != weight.ndim:
            raise ValueError(
                f"ranks are {tuple(ranks)}; the weight has {weight.ndim} modes, of sizes {tuple(weight.shape)}"
            )
        for mode, (rank, size) in enumerate(zip(ranks, weight.shape, strict=True), start=1):
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= size:
                raise ValueError(
                    f"the rank of mode {mode} is {rank!r}; it must be a whole number from 1 to its size {size}"
                )
        self.core = nn.Parameter(weight.new_zeros(tuple(ranks)))
        self.factors = nn.ParameterList(
            nn.init.kaiming_normal_(torch.empty(size, rank), a=math.sqrt(3), generator=self.generator).to(weight)
            for rank, size in zip(ranks, weight.shape, strict=True)
        )

    def delta(self) -> Tensor:
        """s * G x_1 A_1 .. x_N A_N."""
        return tucker(self.scale * self.core, list(self.factors))

    def extra_repr(self) -> str:
        return f"ranks={tuple(self.core.shape)}, scale={self.scale}, dropout={self.dropout}"


class FlatLora(_Adapter):
    """LoRA on the weight flattened to (outputs, all else), dW = s * B A: the control that takes a kernel apart.

    Args:
        base, scale, dropout, generator: as for `Flora`.
        rank: 1 .. the smaller side.

    Raises:
        ValueError: a rank outside its range, scale, dropout.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        scale: float = 3.0,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, scale, dropout, generator)
        flat = self.base.weight.flatten(1)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(flat.shape):
            raise ValueError(f"rank is {rank!r}; it must be a whole number from 1 to {min(flat.shape)}")
        down = nn.init.kaiming_uniform_(torch.empty(rank, flat.shape[1]), a=math.sqrt(5), generator=self.generator)
        self.down = nn.Parameter(down.to(flat))
        self.up = nn.Parameter(flat.new_zeros(flat.shape[0], rank))

    def delta(self) -> Tensor:
        """s * B A in the weight's shape."""
        return (self.scale * self.up @ self.down).view_as(self.base.weight)

    def extra_repr(self) -> str:
        return f"rank={len(self.down)}, scale={self.scale}, dropout={self.dropout}"


def apply(
    net: nn.Module,
    budget: float = 0.05,
    kernel_rank: int = 2,
    scale: float = 3.0,
    dropout: float = 0.0,
    form: str = "tucker",
    ranks: Sequence[int] | None = None,
    kinds: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    last_layer: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Freeze a pretrained network but for its last layer, and put adapters beside its linear and convolution layers, in place.

    Args:
        net: the network; its batch norms keep their statistics from now on.
        budget: parameters of all adapters over those of the weights they adapt, > 0.
        kernel_rank: rank along the sides of kernels, at most their size.
        scale: s, > 0; what to tune first.
        dropout: on the adapters' paths, in [0, 1).
        form: "tucker", or "lora" on flattened weights.
        ranks: r_1 .. r_N for every adapted weight, instead of a budget; they must all have N modes.
        kinds: classes of layers, out of Linear, Conv1d, Conv2d, Conv3d; None = all.
        names: patterns of module names such as "stages.*"; None = all.
        last_layer: what is trained whole; None = the last linear layer, or the last convolution.
        generator: for first values and dropout.

    Returns:
        How many layers got an adapter.

    Raises:
        ValueError: a setting outside its range, an unknown form or kind, a budget too small for rank 1; a network with
            adapters, one that is itself the layer, tied weights.
        TypeError: parametrised weights.
        KeyError: a pattern that no layer's name fits.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(512, 10))
        >>> apply(net, budget=0.05), sum(p.numel() for p in net[:3].parameters() if p.requires_grad)
        (2, 197)
    """
    _check(scale, dropout)
    if not (budget > 0 and math.isfinite(budget)):
        raise ValueError(f"budget is {budget}; it must be above 0, e.g. 0.05 for 5 % of the weights")
    if isinstance(kernel_rank, bool) or not isinstance(kernel_rank, int) or kernel_rank < 1:
        raise ValueError(f"kernel_rank is {kernel_rank!r}; it must be a whole number from 1")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; use one of {', '.join(FORMS)}")
    head = find_last_layer(net) if last_layer is None else last_layer
    chosen = _chosen(net, head, kinds, names)
    if not chosen:
        return 0
    shapes = [tuple(layer.weight.shape) for layer in chosen.values()]
    if ranks is not None:
        solved = [tuple(ranks)] * len(shapes)
    else:
        solved = solve_ranks(shapes, budget * sum(map(math.prod, shapes)), kernel_rank, form)
    with all_or_nothing(net):
        freeze(net, [head])
        new: dict[nn.Module, _Adapter] = {}
        for layer, own in zip(chosen.values(), solved, strict=True):
            if form == "lora":
                new[layer] = FlatLora(layer, own[0], scale, dropout, generator)
            else:
                new[layer] = Flora(layer, own, scale, dropout, generator)
        return swap(net, new, carry=False).count  # what is frozen is adapted


def merge(net: nn.Module) -> int:
    """Put every adapter's change into its weight; the number of adapters. Outputs stay what they are to rounding."""
    found = _adapters(net)
    for adapter in found:
        adapter.merge()
    return len(found)


def unmerge(net: nn.Module) -> int:
    """Undo `merge` bit for bit; the number of adapters."""
    found = _adapters(net)
    for adapter in found:
        adapter.unmerge()
    return len(found)


def adapter_state(net: nn.Module) -> dict[str, Tensor]:
    """All that is trained (adapters and last layer) by name: what has to be stored beside the pretrained network."""
    return {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_adapter_state(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `adapter_state` into a network to which the same adapters were applied; KeyError, naming it, for one that lacks.

    Merged adapters are merged again.
    """
    own = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for name in {**own, **state}:
        if name not in own or name not in state:
            raise KeyError(f"{name} is {'not trained in the network' if name not in own else 'missing from the state'}")
    merged = [adapter for adapter in _adapters(net) if adapter.merged]
    for adapter in merged:
        adapter.unmerge()
    for name, value in state.items():
        own[name].copy_(value)
    for adapter in merged:
        adapter.merge()


def _adapters(net: nn.Module) -> list[_Adapter]:
    return [module for module in net.modules() if isinstance(module, _Adapter)]


def _chosen(
    net: nn.Module, head: nn.Module | None, kinds: Sequence[str] | None, names: Sequence[str] | None
) -> dict[str, Any]:
    for kind in kinds or ():
        if kind not in LAYERS:
            raise ValueError(f"kinds has {kind!r}; use some of {', '.join(LAYERS)}")
    if _adapters(net):
        raise ValueError(f"{type(net).__name__} has adapters already; apply them once, to the pretrained network")
    wanted = tuple(LAYERS.values()) if kinds is None else tuple(LAYERS[kind] for kind in kinds)
    found = {name: module for name, module in layers(net, wanted).items() if module is not head}
    for pattern in names or ():
        if not any(fnmatchcase(name, pattern) for name in found):
            raise KeyError(f"no layer's name fits {pattern!r}; there are {', '.join(found) or 'none'}")
    if names is not None:
        found = {name: module for name, module in found.items() if any(fnmatchcase(name, p) for p in names)}
    tied = ties(net)
    for name, module in found.items():
        check_plain(module, name)
        if id(module.weight) in tied:
            both = " and ".join(tied[id(module.weight)][:2])
            raise ValueError(
                f"{both} are one tied parameter, which two adapters would change twice; leave them out by names"
            )
    return found


def _check(scale: float, dropout: float) -> None:
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale is {scale}; it must be finite and above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
