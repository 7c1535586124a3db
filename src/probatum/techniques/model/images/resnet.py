"""ResNet: layers learn what to add to their input, so that more of them never have to hurt.

Paper     He, Zhang, Ren and Sun 2016, CVPR, arXiv:1512.03385, sections 3 and 4
Computes  y = relu(F(x) + s(x)) with F two 3x3 convolutions, or a bottleneck 1x1, 3x3, 1x1, each with batch norm; s = the
          identity, where the shape changes A: subsampling and zero channels, B: a 1x1 projection, C: a projection everywhere
Shapes    x (n, channels, height, width) -> (n, outputs)
Departs   1. a bottleneck's stride sits on its 3x3 convolution (torchvision's "v1.5"); `stride_on="1x1"` is the paper's place
          2. weights are drawn shortcut last from one number of the global stream, so that the plain twin starts identical
          3. trained by the bench's optimizer and schedule; its 5 % warm-up stands for the paper's start at a tenth of the
             rate for depth 110; no crops or flips
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.card import Card
from probatum.numerics.networks.watch import look
from probatum.spec import Spec

CARD = Card(
    paper="arXiv:1512.03385",
    title="Deep Residual Learning for Image Recognition",
    entry="build",
    number=145,
    tags=("vision", "depth"),
    modalities=("image",),
    tiny={"depth": 8, "width": 4},
    tune={"depth": [8, 14, 20, 32], "width": [8, 16, 32], "shortcut": ["A", "B", "C"]},
    claims=("depth-helps-only-with-shortcuts",),
)

SHORTCUTS = ("A", "B", "C")
STYLES = ("cifar", "imagenet")
IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zero channels up to `outputs`; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def make_shortcut(kind: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where it fits (and the kind allows it), else what the kind says."""
    if kind not in SHORTCUTS:
        raise ValueError(f"shortcut is {kind!r}; use A, B, C, or None for a plain block")
    if kind == "A" and outputs < inputs:
        raise ValueError(f"shortcut A pads channels, but {inputs} become {outputs}; use shortcut B")
    if inputs == outputs and stride == 1 and kind != "C":
        return nn.Identity()
    if kind == "A":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck, plus the shortcut; ReLU after the addition.

    Args:
        inputs: channels in.
        width: channels of the 3x3 convolutions; a bottleneck gives four times as many.
        stride: 1 or 2.
        shortcut: A, B, C, or None for a plain block without addition.
        bottleneck: 1x1, 3x3, 1x1 instead of two 3x3.
        stride_on: which convolution of a bottleneck strides, ``"3x3"`` or ``"1x1"``.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        shortcut: str | None = "B",
        bottleneck: bool = False,
        stride_on: str = "3x3",
    ) -> None:
        super().__init__()
        outputs = EXPANSION * width if bottleneck else width
        if bottleneck:
            first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
            sizes = ((inputs, width, 1, first), (width, width, 3, second), (width, outputs, 1, 1))
        else:
            sizes = ((inputs, width, 3, stride), (width, width, 3, 1))
        layers: list[nn.Module] = []
        for a, b, kernel, step in sizes:
            layers += [nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.inner = nn.Sequential(*layers[:-1])
        self.shortcut = None if shortcut is None else make_shortcut(shortcut, inputs, outputs, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x)
        return self.act(inner if self.shortcut is None else inner + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network, or with shortcut=None its plain twin: x (n, channels, height, width) -> (n, outputs).

    Args:
        channels: of the images.
        outputs: classes or real targets.
        units: blocks of each stage.
        widths: 3x3 channels of each stage.
        style: ``"cifar"`` (3x3 stem) or ``"imagenet"`` (7x7 stem with stride 2, then max-pooling).
        shortcut: A, B, C or None.
        bottleneck: three-layer blocks.
        stride_on: see `Block`.

    Example:
        >>> net = ResNet(channels=1, outputs=10, units=(1, 1), widths=(4, 8))
        >>> tuple(net(torch.randn(2, 1, 8, 8)).shape)
        (2, 10)
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        units: Sequence[int],
        widths: Sequence[int],
        *,
        style: str = "cifar",
        shortcut: str | None = "B",
        bottleneck: bool = False,
        stride_on: str = "3x3",
    ) -> None:
        super().__init__()
        seed = int(torch.randint(2**62, (), device="cpu"))
        kernel, stride = (7, 2) if style == "imagenet" else (3, 1)
        stem: list[nn.Module] = [nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False)]
        stem += [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        if style == "imagenet":
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        blocks, inputs = [], widths[0]
        for stage, (count, width) in enumerate(zip(units, widths, strict=True)):
            for number in range(count):
                step = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(inputs, width, step, shortcut, bottleneck, stride_on))
                inputs = EXPANSION * width if bottleneck else width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, outputs)
        initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """He's normal start for convolutions (fan out), the linear default for heads; shortcuts are drawn last.

    Drawn on the generator's device, so that a network built on another one (or on "meta") starts alike.
    """

    def fresh(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device=generator.device)

    modules = list(net.named_modules())
    with torch.no_grad():
        for _, module in sorted(modules, key=lambda pair: ".shortcut" in pair[0]):
            if isinstance(module, nn.Conv2d):
                drawn = fresh(module.weight)
                nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu", generator=generator)
                module.weight.copy_(drawn)
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                for value in (module.weight, module.bias):
                    value.copy_(nn.init.uniform_(fresh(value), -bound, bound, generator=generator))


class Residual(nn.Module):
    """Any sub-network made residual: x -> act(subnet(x) + projection(x)).

    Args:
        subnet: the network F.
        projection: what brings x to F(x)'s shape; None = the identity.
        act: applied after the addition; None = nothing.

    Raises:
        ValueError: F(x) and the shortcut have different shapes.

    Example:
        >>> net = residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        >>> tuple(net(torch.zeros(2, 4)).shape)
        (2, 4)
    """

    def __init__(self, subnet: nn.Module, projection: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.subnet = subnet
        self.projection = nn.Identity() if projection is None else projection
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        rows = x if isinstance(self.projection, nn.Identity) else x.clone()
        inner, straight = self.subnet(x.clone()), self.projection(rows)  # both may begin in place
        if inner.shape != straight.shape:
            raise ValueError(
                f"the sub-network gives shape {tuple(inner.shape)}, the shortcut {tuple(straight.shape)}; "
                "give a projection between them, e.g. projection=nn.Conv2d(a, b, 1, stride) or nn.Linear(a, b)"
            )
        return self.act(inner + straight)


def residual(subnet: nn.Module, projection: nn.Module | None = None, act: nn.Module | None = None) -> Residual:
    """`Residual` as a function."""
    return Residual(subnet, projection, act)


def response_std(net: nn.Module, x: Tensor) -> list[float]:
    """Standard deviation of each layer's response (after batch norm, before ReLU and addition), shortcuts left out.

    The network is run in evaluation mode on x and given back as it was; residual networks respond less (section 4.2).
    """
    found: list[float] = []
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and "shortcut" not in name}
    look(net, x, norms, lambda _name, _inputs, output: found.append(float(output.std())))
    return found


def build(
    spec: Spec,
    depth: int = 20,
    width: int = 16,
    style: str = "cifar",
    shortcut: str | None = None,
    plain: bool = False,
    stride_on: str = "3x3",
) -> ResNet:
    """A network of one of the paper's two families.

    Args:
        spec: of the data.
        depth: cifar: 6 n + 2 (20, 32, 44, 56, 110, ...); imagenet: 18, 34, 50, 101 or 152 (bottlenecks from 50 on).
        width: channels of the first stage, doubled in each further one; the paper has 16 (cifar) and 64 (imagenet).
        style: ``"cifar"`` or ``"imagenet"``.
        shortcut: A, B or C; None = the paper's choice, A for cifar and B for imagenet.
        plain: leave all shortcuts out: the twin that depth harms.
        stride_on: see `Block`.

    Raises:
        ValueError: a setting outside its range.
    """
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; use one of {', '.join(STYLES)}")
    if width < 1:
        raise ValueError(f"width is {width}; it must be at least 1")
    if shortcut is not None and shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut is {shortcut!r}; use A, B, C, or None for the paper's choice")
    if stride_on not in ("3x3", "1x1"):
        raise ValueError(f"stride_on is {stride_on!r}; use '3x3' or '1x1'")
    if style == "cifar":
        if depth < 8 or (depth - 2) % 6:
            near = max(8, 6 * round((depth - 2) / 6) + 2)
            raise ValueError(f"depth is {depth}; the cifar style has 6 n + 2 layers, e.g. {near}")
        units: tuple[int, ...] = ((depth - 2) // 6,) * 3
    else:
        if depth not in IMAGENET:
            raise ValueError(f"depth is {depth}; the imagenet style has {', '.join(map(str, IMAGENET))} layers")
        units = IMAGENET[depth]
    chosen = shortcut or ("A" if style == "cifar" else "B")
    return ResNet(
        spec.shape[0],
        spec.outputs,
        units,
        [width * 2**stage for stage in range(len(units))],
        style=style,
        shortcut=None if plain else chosen,
        bottleneck=style == "imagenet" and depth >= 50,
        stride_on=stride_on,
    )
