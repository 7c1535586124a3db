"""Residual adapters: one shared network for many visual domains, each with small 1x1 convolutions and norms of its own.

Paper     Rebuffi, Bilen and Vedaldi 2017, arXiv:1705.08045, sections 3 and 4 (score: eq. 2); parallel form: arXiv:1803.10082
Computes  series: y = BN2(g(BN1(w * x))) with g(v) = v + a v; parallel: y = BN1(w * x + a x); w shared and frozen,
          a (1x1 convolution), norms and last layer the domain's own
Shapes    (n, C_in, H, W) -> (n, C_out, H', W'); a is C_out x C_out, in the parallel form C_out x C_in with w's stride
Departs   1. BN2 starts as the identity on what BN1 gives, so that a = 0 is the pretrained network, in training mode too
          2. a starts at zero; its own, stronger weight decay for small domains is a group for the optimizer
             (`parameter_groups`), on the bench the recipe's decay holds for all
          3. adapters stand behind convolutions larger than 1 x 1 inside residual blocks; all other norms are the domain's too
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.frozen import freeze
from probatum.numerics.networks.last_layer import find_last_layer
from probatum.numerics.networks.residual_blocks import Pair, blocks_in, followers
from probatum.numerics.networks.surgery import all_or_nothing, check_plain, paths_of, places, swap

CARD = Card(
    paper="arXiv:1705.08045",
    title="Learning multiple visual domains with residual adapters",
    entry="apply",
    number=224,
    tags=("transfer", "fine-tuning", "adapters", "many domains", "vision"),
    modalities=("image",),
    needs=("pretrained",),
    tiny={"form": "series"},
    tune={"form": ["series", "parallel"], "dropout": (0.0, 0.5)},
    claims=("many-small-domains",),
    expect_fail={"frozen_weights_stay_frozen": "norms belong to the domain and are trained, as in the paper"},
)

FORMS = ("series", "parallel", "norms")


class SeriesAdapter(nn.Module):
    """BN2(g(BN1(v))), g(v) = v + a v, in the place of a batch norm; at first that batch norm.

    Args:
        norm: the pretrained batch norm; BN1 is a copy of it.

    Example:
        >>> adapter = SeriesAdapter(nn.BatchNorm2d(4)).eval()
        >>> tuple(adapter(torch.ones(2, 4, 3, 3)).shape), adapter.adapter.weight.any().item()
        ((2, 4, 3, 3), False)
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        width = norm.num_features
        self.norm1 = _own(norm)
        self.adapter = nn.Conv2d(width, width, 1, bias=False).to(_like(norm))
        nn.init.zeros_(self.adapter.weight)
        self.norm2 = _own(norm)
        with torch.no_grad():  # what BN1 gives has mean beta and variance gamma^2
            gamma, beta = self.norm1.weight, self.norm1.bias
            self.norm2.running_mean.copy_(beta)  # type: ignore[union-attr]
            self.norm2.running_var.copy_(gamma.square())  # type: ignore[union-attr]
            self.norm2.weight.copy_((gamma.square() + norm.eps).sqrt())
        self.train(norm.training)

    def forward(self, v: Tensor) -> Tensor:
        v = self.norm1(v)
        return self.norm2(v + self.adapter(v))


class ParallelAdapter(nn.Module):
    """w * x + a x in the place of a convolution, w frozen and shared; at first that convolution."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        old = convolution
        self.base = old
        self.adapter = nn.Conv2d(
            old.in_channels, old.out_channels, 1, old.stride, groups=old.groups, bias=False
        ).to(old.weight)  # fmt: skip
        nn.init.zeros_(self.adapter.weight)
        self.train(old.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


def apply(
    net: nn.Module,
    form: str = "series",
    dropout: float = 0.0,
    last_layer: nn.Module | None = None,
) -> int:
    """Give a pretrained convolutional network adapters for one domain, in place; all shared weights are frozen.

    Args:
        net: a network with batch norms behind its convolutions.
        form: "series", "parallel", or "norms" (no adapters: batch norms and last layer only).
        dropout: before the last layer, in [0, 1); for small domains.
        last_layer: the domain's classifier; None = the last linear layer, or the last convolution.

    Returns:
        How many convolutions got an adapter; for "norms" how many batch norms are the domain's.

    Raises:
        ValueError: an unknown form, dropout outside its range, a convolution to which a parallel adapter has no fit.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
        >>> apply(net), type(net[1]).__name__, net[0].weight.requires_grad, net[4].weight.requires_grad
        (1, 'SeriesAdapter', False, True)
    """
    _check(form, dropout)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return 0
    head = find_last_layer(net) if last_layer is None else last_layer
    pairs = adapted_pairs(net) if form != "norms" else []
    new = {net.get_submodule(place): part for place, part in (part_for(net, pair, form) for pair in pairs)}
    with all_or_nothing(net):
        freeze(net, [head, *norms])
        swap(net, new, carry=False)  # adapters and their norms are the domain's to train
        if dropout > 0 and head is not None:
            swap(net, {head: nn.Sequential(nn.Dropout(dropout), head)})
    return len(pairs) if form != "norms" else len(norms)


def adapted_pairs(net: nn.Module) -> list[Pair]:
    """The convolutions larger than 1 x 1 with their batch norms, inside the residual blocks (or of a plain stack)."""
    found = [pair for block in blocks_in(net) for pair in block.pairs]
    return [pair for pair in found if max(pair.convolution.kernel_size) > 1]


def part_for(net: nn.Module, pair: Pair, form: str) -> tuple[str, nn.Module]:
    """Where an adapter of this form goes, and a fresh one: at the pair's norm in series, at its convolution in parallel."""
    if form == "series":
        check_plain(pair.norm, pair.path)
        return pair.path, SeriesAdapter(pair.norm)
    convolution = pair.convolution
    middle = [size // 2 if padding != "same" else None for size, padding in _sides(convolution)]
    fits = all(half is None or half == padding for half, (_, padding) in zip(middle, _sides(convolution), strict=True))
    if not fits or any(size % 2 == 0 for size in convolution.kernel_size):
        raise ValueError(
            f"the convolution before {pair.path!r} has kernel {convolution.kernel_size} and padding {convolution.padding}; "
            "a parallel adapter needs odd kernels padded to their middle: use form='series'"
        )
    return _path(net, convolution), ParallelAdapter(convolution)


@torch.no_grad()
def fold(net: nn.Module) -> int:
    """Put adapters and their batch norms into the convolutions before them, in place, for predictions at no extra cost.

    Series: W' = diag(s2) (I + a) diag(s1) W with a bias, s the norms' scales in evaluation mode. Parallel: a is added to the
    middle of W. The network must be in evaluation mode, and stay there. Returns how many adapters are gone.

    Raises:
        ValueError: the network is in training mode.
    """
    if net.training:
        raise ValueError("the network is in training mode, where norms go by the batch; call eval() before fold")
    standing = places(net)
    new: dict[nn.Module, nn.Module] = {
        place.module: _folded_parallel(place.module) for place in standing if isinstance(place.module, ParallelAdapter)
    }
    count = len({place for place in standing if isinstance(place.module, ParallelAdapter)})
    behind: dict[nn.Module, list[nn.Module]] = {}
    for owner in {place.owner: None for place in standing}:
        for convolution, _, adapter in followers(owner, nn.Conv2d):
            if isinstance(adapter, SeriesAdapter):
                behind.setdefault(convolution, []).append(adapter)
    for convolution, adapters in behind.items():
        where = paths_of(net, convolution)
        if len(where) > len(adapters) or len(set(adapters)) > 1:
            raise ValueError(f"one convolution stands at {' and '.join(where)}, not everywhere before the same adapter")
        new |= {convolution: _folded_series(convolution, adapters[0]), adapters[0]: nn.Identity()}
        count += len(adapters)
    swap(net, new, carry=False)
    return count


def parameter_groups(
    net: nn.Module, adapter_decay: float, weight_decay: float = 0.0, norm_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer: adapters with a decay of their own (towards the identity), norms, and all else that trains."""
    adapters = {
        id(p) for m in net.modules() if isinstance(m, SeriesAdapter | ParallelAdapter) for p in m.adapter.parameters()
    }
    norms = {id(p) for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in adapters], "weight_decay": adapter_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": norm_decay},
        {"params": [p for p in trained if id(p) not in adapters | norms], "weight_decay": weight_decay},
    ]


def decathlon_score(errors: Mapping[str, float], reference: Mapping[str, float], gamma: float = 2.0) -> float:
    """S = sum_d 1000 (max(0, E_d^max - E_d) / E_d^max)^gamma with E_d^max twice the reference error of domain d (eq. 2).

    Args:
        errors: share of wrong answers by domain, in [0, 1].
        reference: the same of the baseline, above 0.
        gamma: exponent, >= 1; 2 in the paper.

    Raises:
        KeyError: a domain that only one of both has. ValueError: an error outside its range.
    """
    for name in {**errors, **reference}:
        if name not in errors or name not in reference:
            raise KeyError(f"domain {name!r} is in one of errors and reference only; give both")
        if not 0 <= errors[name] <= 1 or not 0 < reference[name] <= 1:
            raise ValueError(f"the errors of {name!r} are {errors[name]} and {reference[name]}; give shares in [0, 1]")
    return sum(
        1000 * (max(0.0, 2 * reference[name] - error) / (2 * reference[name])) ** gamma
        for name, error in errors.items()
    )


class ManyDomains(nn.Module):
    """A pretrained network shared by several domains, each with adapters, norms and a last layer of its own.

    Args:
        net: the pretrained network; it is copied, and its weights are frozen.
        form: "series", "parallel" or "norms".

    Raises:
        ValueError: an unknown form; a network without batch norms.
        KeyError: a domain that was not added, with those that were.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
        >>> many = ManyDomains(net).add("digits", 10).add("signs", 3)
        >>> many.eval()(torch.zeros(1, 1, 3, 3), "signs").shape, sorted(many.delta("signs"))[:2]
        (torch.Size([1, 3]), ['0.adapter.weight', '0.norm1.bias'])
    """

    def __init__(self, net: nn.Module, form: str = "series") -> None:
        super().__init__()
        _check(form, 0.0)
        head = find_last_layer(net)
        if head is None or not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
            raise ValueError(f"{type(net).__name__} has no batch norms or no last layer; adapters need both")
        self.net = copy.deepcopy(net).requires_grad_(False)
        self._head = _path(net, head)
        pairs = adapted_pairs(self.net) if form != "norms" else []
        # what every domain replaces, in the pretrained network's own values: what a new domain is a copy of
        self._base = {n: m for n, m in self.net.named_modules() if isinstance(m, nn.BatchNorm2d) or n == self._head}
        self._base |= dict(part_for(self.net, pair, form) for pair in pairs)
        self._places = {name: tuple(paths_of(self.net, self.net.get_submodule(name))) for name in self._base}
        self._put(self._base.values())
        self.own = nn.ModuleDict()

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order they were added."""
        return tuple(self.own)

    def add(self, domain: str, outputs: int, generator: torch.Generator | None = None) -> ManyDomains:
        """Add a domain that starts as the pretrained network with a new last layer, drawn from its own generator.

        ValueError for a name that is taken, or has a dot in it.
        """
        if domain in self.own or not domain or "." in domain:
            raise ValueError(
                f"domain {domain!r} cannot be added; give a name without dots that is none of {self.domains}"
            )
        head = self._base[self._head]
        fresh = _new_head(head, outputs, generator).train(self.training)
        parts = [fresh if base is head else _fresh(base).train(self.training) for base in self._base.values()]
        self.own[domain] = nn.ModuleList(parts)
        return self

    def forward(self, x: Tensor, domain: str) -> Tensor:
        if domain not in self.own:
            raise KeyError(f"no domain {domain!r}; there are {', '.join(self.own) or 'none'}")
        self._put(self.own[domain])  # type: ignore[arg-type]
        try:
            return self.net(x)
        finally:
            self._put(self._base.values())

    def _put(self, parts: Iterable[nn.Module]) -> None:
        """Parts into the network, each everywhere where what it stands for does; for a pass, so without `swap`'s checks."""
        for where, part in zip(self._places.values(), parts, strict=True):
            for path in where:
                self.net.set_submodule(path, part)

    def private(self, domain: str) -> list[nn.Parameter]:
        """What training this domain changes."""
        parts = self.own[domain].parameters()
        return [parameter for parameter in parts if parameter.requires_grad]

    def delta(self, domain: str) -> dict[str, Tensor]:
        """Everything this domain has of its own, statistics of norms included: what is stored for it beside the network."""
        if domain not in self.own:
            raise KeyError(f"no domain {domain!r}; there are {', '.join(self.own) or 'none'}")
        shared = {id(value) for value in self.net.parameters()}
        tensors = self.own[domain].state_dict(keep_vars=True)
        return {name: v.detach().clone() for name, v in tensors.items() if id(v) not in shared}

    def load_delta(self, domain: str, state: Mapping[str, Tensor]) -> None:
        """Put a `delta` into a domain that was added with as many outputs."""
        if set(state) != set(self.delta(domain)):
            raise KeyError(f"the delta of {domain!r} has other tensors than this network's domains")
        self.own[domain].load_state_dict(dict(state), strict=False)


def _fresh(base: nn.Module) -> nn.Module:
    """A domain's own part, as it is in the pretrained network; a parallel adapter shares its convolution."""
    return ParallelAdapter(base.base) if isinstance(base, ParallelAdapter) else copy.deepcopy(base).requires_grad_(True)


def _new_head(head: nn.Module, outputs: int, generator: torch.Generator | None) -> nn.Module:
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; it must be at least 1")
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the last layer is a {type(head).__name__}; domains need a linear one")
    made = nn.utils.skip_init(nn.Linear, head.in_features, outputs, bias=head.bias is not None)
    bound = 1 / math.sqrt(head.in_features)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return made.to(head.weight)


def _own(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A trained copy of a batch norm with gamma, beta and statistics."""
    made = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum).to(_like(norm))
    if norm.running_mean is None:
        raise ValueError("a batch norm keeps no running statistics; adapters need track_running_stats=True")
    made.load_state_dict(norm.state_dict(), strict=norm.affine)
    return made.train(norm.training)


def _like(norm: nn.BatchNorm2d) -> Tensor:
    return norm.weight if norm.affine else norm.running_mean  # type: ignore[return-value]


def _folded_series(old: nn.Conv2d, adapter: SeriesAdapter) -> nn.Conv2d:
    first, second = _affine(adapter.norm1), _affine(adapter.norm2)
    mixed = adapter.adapter.weight.flatten(1)
    mixed = mixed + torch.eye(len(mixed), dtype=mixed.dtype, device=mixed.device)
    matrix = second[0][:, None] * mixed * first[0]  # (out, out)
    bias = second[0] * (mixed @ first[1]) + second[1]
    if old.bias is not None:
        bias = bias + matrix @ old.bias
    weight = old.weight
    if old.groups > 1:  # outputs of different groups are mixed: the folded convolution sees all inputs
        weight = torch.cat(
            [torch.block_diag(*taps.chunk(old.groups)).unsqueeze(2) for taps in weight.flatten(2).unbind(2)], 2
        )
        weight = weight.unflatten(2, old.kernel_size)
    return _convolution(old, torch.einsum("oc,cikl->oikl", matrix, weight), bias, groups=1)


def _folded_parallel(adapter: ParallelAdapter) -> nn.Conv2d:
    weight = adapter.base.weight.clone()
    rows, columns = (size // 2 for size in weight.shape[2:])
    weight[:, :, rows, columns] += adapter.adapter.weight[:, :, 0, 0]
    return _convolution(adapter.base, weight, adapter.base.bias, adapter.base.groups)


def _convolution(old: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    made = nn.utils.skip_init(
        nn.Conv2d, old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,
        groups, bias is not None, old.padding_mode, device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    made.weight.copy_(weight)
    if bias is not None and made.bias is not None:
        made.bias.copy_(bias)
    return made.eval()


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    return scale, norm.bias - scale * norm.running_mean  # type: ignore[operator]


def _sides(convolution: nn.Conv2d) -> list[tuple[int, Any]]:
    padding: Sequence[Any] = (
        convolution.padding if not isinstance(convolution.padding, str) else (convolution.padding,) * 2
    )
    reach = [d * (k - 1) + 1 for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
    return [(size, 0 if side == "valid" else side) for size, side in zip(reach, padding, strict=True)]


def _path(net: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in net.named_modules() if module is wanted)


def _check(form: str, dropout: float) -> None:
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; use one of {', '.join(FORMS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must lie in [0, 1)")
