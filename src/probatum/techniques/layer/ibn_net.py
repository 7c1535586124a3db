"""IBN-Net: instance norm for part of the channels of the shallow layers, so that appearance (contrast, colour) drops out.

Paper     Pan et al. 2018, arXiv:1807.09441, sections 3.1 and 3.2 and eq. 1 to 3
Computes  IBN: the first floor(ratio C) channels by instance norm, the others by batch norm. Variant a: IBN after the first
          convolution of each residual block, in all stages but the last; b: instance norm after the addition at the end of
          the first two stages, and in place of the first batch norm
Shapes    (n, C, H, W) -> the same, H W > 1
Departs   1. stages are found as runs of blocks of equal width; in a plain stack of convolutions each pair is a block
          2. variant b needs the activation behind the addition to be a module of its own
          3. the instance half takes over gamma and beta of the batch norm it replaces
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from probatum.card import Card
from probatum.numerics.networks.residual_blocks import Block, blocks_in, pairs_in, stages_of
from probatum.numerics.networks.surgery import check_plain, layers, paths_of, swap
from probatum.numerics.networks.watch import look

CARD = Card(
    paper="arXiv:1807.09441",
    title="Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net",
    entry="apply",
    number=101,
    tags=("normalisation", "vision", "domain shift", "robustness"),
    modalities=("image",),
    neutral={"ratio": 0.0},
    tiny={"ratio": 0.5},
    tune={"ratio": (0.1, 0.9), "variant": ["a", "b"]},
    claims=("robust-to-appearance",),
)

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)


class IBN(nn.Module):
    """Instance norm on the first floor(ratio * channels) channels and batch norm on the others.

    Args:
        channels: number of channels.
        ratio: share for instance norm, in [0, 1]; 0 = batch norm.
        eps: added to variances.
        momentum: of the running statistics.
        tracked: whether batch norm keeps them.

    Raises:
        ValueError: ratio outside [0, 1]; maps of 1 x 1, on which instance norm gives zero.

    Example:
        >>> layer = IBN(4)
        >>> output = layer(torch.arange(16.0).reshape(1, 4, 2, 2))
        >>> layer.instance.num_features, layer.batch.num_features, tuple(output.shape)
        (2, 2, (1, 4, 2, 2))
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 0.5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        tracked: bool = True,
    ) -> None:
        super().__init__()
        _check_ratio(ratio)
        self.split = int(channels * ratio)
        self.instance = nn.InstanceNorm2d(self.split, eps=eps, affine=True) if self.split else None
        self.batch = (
            nn.BatchNorm2d(channels - self.split, eps, momentum, track_running_stats=tracked)
            if self.split < channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.instance is None:
            return self.batch(x)
        _check_maps(x)
        first = x[:, : self.split].contiguous()
        if len(x):  # torch's instance norm takes no empty batch
            first = self.instance(first)
        if self.batch is None:
            return first
        return torch.cat([first, self.batch(x[:, self.split :].contiguous())], dim=1)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d, ratio: float = 0.5) -> IBN:
        """An IBN layer with the gamma, beta (frozen where they were), running statistics and mode of a batch norm."""
        made = cls(norm.num_features, ratio, norm.eps, norm.momentum, norm.track_running_stats)
        half = made.split
        with torch.no_grad():
            for part, channels in ((made.instance, slice(0, half)), (made.batch, slice(half, None))):
                if part is not None and norm.affine:
                    part.weight.copy_(norm.weight[channels])
                    part.bias.copy_(norm.bias[channels])
                    part.weight.requires_grad_(norm.weight.requires_grad)
                    part.bias.requires_grad_(norm.bias.requires_grad)
            if made.batch is not None and norm.running_mean is not None:
                state = {name: value[half:] if value.ndim else value for name, value in norm.state_dict().items()}
                made.batch.load_state_dict(state, strict=norm.affine)
        like = norm.weight if norm.affine else norm.running_mean
        made = made if like is None else made.to(device=like.device, dtype=like.dtype)
        return made.train(norm.training)


class CheckedInstanceNorm(nn.InstanceNorm2d):
    """Affine instance norm with gamma and beta of a batch norm (or 1 and 0), for variant b."""

    def __init__(self, width: int, norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__(width, eps=1e-5 if norm is None else norm.eps, affine=True)
        if norm is not None and norm.affine:
            with torch.no_grad():
                self.weight.copy_(norm.weight)
                self.bias.copy_(norm.bias)

    def forward(self, input: Tensor) -> Tensor:
        _check_maps(input)
        return super().forward(input) if len(input) else input


def apply(
    net: nn.Module,
    ratio: float = 0.5,
    variant: str = "a",
    stages: int | None = None,
    names: Sequence[str] | None = None,
) -> int:
    """Put IBN into a convolutional network, in place.

    Args:
        net: a network with batch norms behind its convolutions.
        ratio: share of instance norm in variant a; 0 changes nothing.
        variant: "a" or "b".
        stages: in how many of the first stages; None = all but the last (a), at most two of those (b); a network of one
            stage only is changed in that one.
        names: paths of the batch norms to replace by IBN, instead of finding them.

    Returns:
        How many norms were replaced or added.

    Raises:
        ValueError: a setting outside its range; more stages than there are; for variant b a block without an activation
            of its own behind the addition.
        KeyError: a name that is no batch norm of the network.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
        >>> apply(net), type(net[1]).__name__, type(net[4]).__name__
        (1, 'IBN', 'BatchNorm2d')
    """
    _check_ratio(ratio)
    if variant not in ("a", "b"):
        raise ValueError(f"variant is {variant!r}; use 'a' or 'b'")
    if ratio == 0:
        return 0
    if names is not None:
        return _replace_named(net, names, ratio)
    found = stages_of(blocks_in(net))
    if stages is not None and not 1 <= stages <= len(found):
        raise ValueError(f"stages is {stages}; the network has {len(found)} ({_widths(found)}): use 1 .. {len(found)}")
    if not found:
        return 0
    count = stages if stages is not None else min(max(1, len(found) - 1), 2 if variant == "b" else len(found))
    if variant == "b":
        return _variant_b(net, found[:count])
    firsts = [block.pairs[0] for stage in found[:count] for block in stage]
    return _replace(net, {pair.path: pair.norm for pair in firsts}, ratio)


def channel_divergence(a: Tensor, b: Tensor, eps: float = 1e-6) -> float:
    """Symmetric KL divergence summed over channels between features (n, C, ...) of two sets, as Gaussians (eq. 1 to 3)."""
    moments = [(f.double().transpose(0, 1).flatten(1)) for f in (a, b)]
    (mean_a, var_a), (mean_b, var_b) = ((f.mean(dim=1), f.var(dim=1, correction=0) + eps) for f in moments)
    gap = (mean_a - mean_b).square()
    forward = 0.5 * ((var_b / var_a).log() + (var_a + gap) / var_b - 1)
    backward = 0.5 * ((var_a / var_b).log() + (var_b + gap) / var_a - 1)
    return float((forward + backward).sum())


def layer_divergences(net: nn.Module, a: Tensor, b: Tensor) -> dict[str, float]:
    """`channel_divergence` between the inputs a and b behind every activation, by module name; modes are put back.

    Two looks at the same images show what a layer keeps of appearance; two classes of one look, what of content.
    """
    active = {name: module for name, module in net.named_modules() if isinstance(module, ACTIVATIONS)}
    seen: list[dict[str, Tensor]] = [{}, {}]
    for features, x in zip(seen, (a, b), strict=True):
        look(net, x, active, lambda name, _inputs, output, to=features: to.update({name: output.clone()}))
    return {name: channel_divergence(seen[0][name], seen[1][name]) for name in seen[0]}


def _replace(net: nn.Module, norms: Mapping[str, nn.BatchNorm2d], ratio: float) -> int:
    for name, norm in norms.items():
        check_plain(norm, name)
    new = {norm: IBN.from_batch_norm(norm, ratio) for norm in norms.values()}
    # a norm of too few channels for a share stays
    return swap(net, {norm: made for norm, made in new.items() if made.instance is not None}).count


def _replace_named(net: nn.Module, names: Sequence[str], ratio: float) -> int:
    norms = layers(net, [nn.BatchNorm2d])
    for name in names:
        if name not in norms:
            raise KeyError(f"{name!r} is no BatchNorm2d of the network; there are {', '.join(norms)}")
    return _replace(net, {name: norms[name] for name in names}, ratio)


def _variant_b(net: nn.Module, stages: Sequence[Sequence[Block]]) -> int:
    ends = [(block, _last_activation(block)) for block in (stage[-1] for stage in stages)]
    inside = {id(pair.norm) for stage in stages_of(blocks_in(net)) for block in stage for pair in block.pairs}
    stem = next((pair for pair in pairs_in(net)[:1] if id(pair.norm) not in inside), None)
    new: dict[nn.Module, nn.Module] = {}
    if stem is not None:
        check_plain(stem.norm, stem.path)
        new[stem.norm] = CheckedInstanceNorm(stem.norm.num_features, stem.norm).to(stem.convolution.weight)
    for block, name in ends:
        activation = getattr(block.module, name)
        if len(where := paths_of(net, activation)) > 1:
            raise ValueError(
                f"one activation stands at {' and '.join(where)}; the one behind block {block.path!r}'s addition has to be "
                "its own"
            )
        norm = CheckedInstanceNorm(block.width).to(block.pairs[-1].convolution.weight)
        new[activation] = nn.Sequential(norm, activation)
    return swap(net, new).count


def _last_activation(block: Block) -> str:
    """Name of the activation behind a block's addition: the last of two or more, so that it is not shared with others."""
    if block.module is None:
        raise ValueError(
            f"{block.path!r} is no residual block, and variant b acts behind residual additions; use variant='a'"
        )
    names = [name for name, child in block.module.named_children() if isinstance(child, ACTIVATIONS)]
    nested = isinstance(block.pairs[0].owner, nn.Sequential)
    if len(names) >= (1 if nested else 2):
        return names[-1]
    raise ValueError(
        f"block {block.path!r} has no activation module of its own behind the addition; give it one (act2 = nn.ReLU()), "
        "or use variant='a'"
    )


def _widths(stages: Sequence[Sequence[Block]]) -> str:
    return "widths " + ", ".join(str(stage[0].width) for stage in stages)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}; it must lie in [0, 1]")


def _check_maps(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[2] * x.shape[3] == 1:
        raise ValueError(
            f"instance norm got maps of shape {tuple(x.shape)}; it needs (n, C, H, W) with more than one position: "
            "put IBN only before the stage that shrinks to 1 x 1 (stages=...)"
        )
