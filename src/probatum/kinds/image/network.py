"""The baseline's network for images."""

from __future__ import annotations

from torch import Tensor, nn

from probatum.spec import Spec


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the (projected) input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.skip = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(inner)) + self.skip(x))


class SmallResNet(nn.Module):
    """Three residual stages of widths 16, 32, 64 behind a 3x3 stem, then global average pooling."""

    def __init__(self, spec: Spec, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(spec.shape[0], widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks, inputs = [], widths[0]
        for i, width in enumerate(widths):
            blocks.append(Residual(inputs, width, stride=1 if i == 0 else 2))
            inputs = width
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))
