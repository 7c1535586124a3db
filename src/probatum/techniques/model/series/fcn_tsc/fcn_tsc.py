"""FCN for time series: three convolutions and global average pooling, with ResNet and MLP of the same paper.

Paper     Wang, Yan and Oates 2017, IJCNN, arXiv:1611.06455, sections II and III
Computes  FCN: conv-BN-ReLU with filters 128, 256, 128 and kernels 8, 5, 3, mean over time, linear; ResNet: three blocks of
          three such layers, 64, 128, 128 filters; MLP: 3 x 500; class activation map M_c(t) = sum_k w_ck S_k(t), whose mean
          over time plus the bias is the logit
Shapes    x (n, channels, time), the last channel a mask where the spec says so -> (n, outputs)
Departs   1. unequal lengths: padding is held at zero in every layer, left out of the batch statistics and of the mean, so
             that it cannot change an output; the paper's sets have one length
          2. the bench's AdamW, schedule and choice of weights stand for Adam (Adadelta for the MLP) and the lowest training
             loss; `DEFAULTS` keeps the paper's settings
          3. blocks that keep their width have an identity shortcut (the published code normalises it)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.tensors.precision import computed_wide
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:1611.06455",
    title="Time Series Classification from Scratch with Deep Neural Networks: A Strong Baseline",
    entry="build",
    number=205,
    tags=("series", "convolution", "explanation"),
    alone="its masked batch norm holds weights and statistics of its own",
    modalities=("series",),
    tiny={"width": 8},
    tune={"kind": ["fcn", "resnet", "mlp"], "width": [32, 64, 128]},
    claims=("fcn-beats-mlp-on-cbf",),
)

KINDS = ("fcn", "resnet", "mlp")
KERNELS = (8, 5, 3)
DROPOUT = (0.1, 0.2, 0.2, 0.3)
WIDTHS = {"fcn": 128, "resnet": 128, "mlp": 500}
"""The paper's widths: filters of the FCN's first and of the ResNet's last layers, units of the MLP's."""


def mpce(errors: Sequence[float], classes: Sequence[int]) -> float:
    """Mean per-class error over data sets: the mean of error_k / classes_k (section III.B of the paper)."""
    if len(errors) != len(classes) or not errors or min(classes) < 2:
        raise ValueError(f"errors {list(errors)} and classes {list(classes)}; give one count of at least 2 an error")
    return sum(error / count for error, count in zip(errors, classes, strict=True)) / len(errors)


@computed_wide
def z_normalise(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Every channel of every series to mean 0 and deviation 1 over its observed steps; constant ones become 0, with a warning.

    A channel is constant where its deviation is within the rounding of its mean; its gradient is 0.

    Args:
        x: (n, channels, time).
        mask: (n, time), 1 where observed; None = everywhere.
    """
    seen = torch.ones_like(x[:, :1]) if mask is None else mask[:, None, :]
    count = seen.sum(dim=2, keepdim=True).clamp_min(1)
    mean = (x * seen).sum(dim=2, keepdim=True) / count
    centred = (x - mean) * seen
    variance = centred.square().sum(dim=2, keepdim=True) / count
    least = 8 * torch.finfo(variance.dtype).eps * mean.detach().abs().clamp_min(1e-6)
    constant = variance.detach().sqrt() <= least
    if bool(constant.any()):
        row, channel = constant[:, :, 0].nonzero()[0].tolist()
        warnings.warn(
            f"series {row}, channel {channel} of shape {tuple(x.shape)} is constant: z-normalised to 0", stacklevel=3
        )
    deviation = torch.where(constant, torch.ones_like(variance), variance).sqrt()  # a root of 0 has no gradient
    return torch.where(constant, torch.zeros_like(centred), centred / deviation)


def same_padding(kernel: int) -> tuple[int, int]:
    """Zeros to the left and right that keep the length; an even kernel's odd one goes right (8: 3 and 4)."""
    return (kernel - 1) // 2, kernel // 2


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over observed steps: (n, k, time), (n, time) or None -> (n, k)."""
    if mask is None:
        return x.mean(dim=2)
    return (x * mask[:, None, :]).sum(dim=2) / mask.sum(dim=1, keepdim=True).clamp_min(1)


class MaskedNorm(nn.BatchNorm1d):
    """Batch norm over (n, channels, time) whose statistics leave padding out."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None or not self.training:
            return super().forward(x)
        seen = mask.bool()
        steps = super().forward(x.transpose(1, 2)[seen])  # (observed, channels)
        return x.new_zeros(x.shape[0], x.shape[2], x.shape[1]).masked_scatter(seen[:, :, None], steps).transpose(1, 2)


class ConvNorm(nn.Module):
    """Convolution that keeps the length, batch norm, and ReLU unless told otherwise; padding stays zero."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, relu: bool = True) -> None:
        super().__init__()
        self.padding = same_padding(kernel)
        self.conv = nn.Conv1d(inputs, outputs, kernel)
        self.norm = MaskedNorm(outputs)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.act(self.norm(self.conv(F.pad(x, self.padding)), mask))
        return x if mask is None else x * mask[:, None, :]


class ResidualBlock(nn.Module):
    """Three ConvNorm layers added to the (projected) input, ReLU after the addition."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        sizes = (inputs, width, width)
        self.layers = nn.ModuleList(
            ConvNorm(size, width, kernel, relu=kernel != KERNELS[-1])
            for size, kernel in zip(sizes, KERNELS, strict=True)
        )
        self.skip = None if inputs == width else ConvNorm(inputs, width, 1, relu=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        inner = x
        for layer in self.layers:
            inner = layer(inner, mask)
        return F.relu(inner + (x if self.skip is None else self.skip(x, mask)))


class SeriesConvNet(nn.Module):
    """FCN or ResNet: x (n, channels, time) -> (n, outputs).

    Args:
        channels: input channels, without the mask.
        outputs: classes or real targets.
        kind: ``"fcn"`` or ``"resnet"``.
        width: filters of the FCN's first, of the ResNet's last layers; the others follow in the paper's proportions.
        masked: whether x carries a mask as its last channel.

    Raises:
        ValueError: a setting outside its range, or x of another shape.

    Example:
        >>> net = SeriesConvNet(channels=1, outputs=3, width=8).eval()
        >>> x = torch.randn(4, 1, 50)
        >>> maps = net.class_maps(x)  # which steps speak for which class
        >>> tuple(maps.shape), torch.allclose(maps.mean(2) + net.head.bias, net(x), atol=1e-5)
        ((4, 3, 50), True)
    """

    def __init__(
        self, channels: int, outputs: int, *, kind: str = "fcn", width: int = 128, masked: bool = False
    ) -> None:
        super().__init__()
        if kind not in ("fcn", "resnet"):
            raise ValueError(f"kind is {kind!r}; use fcn or resnet")
        if width < 2:
            raise ValueError(f"width is {width}; it must be at least 2")
        self.channels, self.masked = channels, masked
        if kind == "fcn":
            widths = (width, 2 * width, width)
            sizes = (channels, *widths[:-1])
            layers = [ConvNorm(a, b, kernel) for a, b, kernel in zip(sizes, widths, KERNELS, strict=True)]
        else:
            widths = (width // 2, width, width)
            layers = [ResidualBlock(a, b) for a, b in zip((channels, *widths[:-1]), widths, strict=True)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(widths[-1], outputs)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last convolution's maps (n, width, time), and the mask (n, time) or None."""
        expected = self.channels + self.masked
        if x.ndim != 3 or x.shape[1] != expected:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, {expected}, time), channels before time")
        mask = x[:, -1] if self.masked else None
        x = x if mask is None else x[:, :-1] * mask[:, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x, mask

    def class_maps(self, x: Tensor) -> Tensor:
        """Class activation maps (n, outputs, time); their mean over observed steps plus the bias is the output."""
        maps, _ = self.features(x)
        return torch.einsum("ck,nkt->nct", self.head.weight, maps)

    def forward(self, x: Tensor) -> Tensor:
        maps, mask = self.features(x)
        return self.head(masked_mean(maps, mask))


class SeriesMLP(nn.Module):
    """The paper's MLP: the whole series through 3 x `width` ReLU units with dropout 0.1 (input), 0.2, 0.2, 0.3."""

    def __init__(self, shape: tuple[int, int], outputs: int, width: int = 500) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(DROPOUT[0])]
        size = shape[0] * shape[1]
        for rate in DROPOUT[1:]:
            layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(rate)]
            size = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def build(spec: Spec, kind: str = "fcn", width: int | None = None) -> nn.Module:
    """One of the three networks for series.

    Args:
        spec: of the data; x is (channels, time).
        kind: ``"fcn"``, ``"resnet"`` or ``"mlp"``.
        width: filters of the convolutional kinds, see `SeriesConvNet`, or units of the MLP's layers; None = the paper's, 128
            and 500.

    Raises:
        ValueError: a setting outside its range, or more channels than steps, which looks like swapped axes.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
    width = WIDTHS[kind] if width is None else width
    channels, time = spec.shape
    if channels - spec.masked > time:
        raise ValueError(f"x has shape (n, {channels}, {time}), more channels than steps; give (n, channels, time)")
    if kind == "mlp":
        return SeriesMLP((channels, time), spec.outputs, width)
    return SeriesConvNet(channels - spec.masked, spec.outputs, kind=kind, width=width, masked=spec.masked)
