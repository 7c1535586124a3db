"""What worlds do with images: a bright block on the border as the mark of a class, noise in [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from probatum.errors import InputError
from probatum.spec import Data, Part, Spec


def marked_spec(spec: Spec) -> Spec:
    """The description, which stays as it is; InputError where the border has no room for one block a class."""
    places(spec)
    return spec


def marked(part: Part, codes: Tensor, spec: Spec) -> Part:
    """Images with all classes' places dark but that of the class `codes` says, which is bright."""
    x = part.x.clone()
    side, corners = places(spec)
    for top, left in corners:
        x[:, :, top : top + side, left : left + side] = 0.0
    for k, (top, left) in enumerate(corners):
        x[codes == k, :, top : top + side, left : left + side] = 1.0
    return replace(part, x=x)


def places(spec: Spec) -> tuple[int, list[tuple[int, int]]]:
    """Side of the blocks, and the upper left corner of each class's one, spread evenly over the image's border."""
    _, height, width = spec.shape
    side = max(1, min(height, width) // 8)
    rows, columns = height // side, width // side
    border = [(0, j) for j in range(columns)] + [(i, columns - 1) for i in range(1, rows)]
    border += [(rows - 1, j) for j in range(columns - 2, -1, -1)] + [(i, 0) for i in range(rows - 2, 0, -1)]
    border = list(dict.fromkeys(border))
    if spec.outputs > len(border):
        raise InputError(f"images of {height} x {width} have no room for the marks of {spec.outputs} classes")
    chosen = [border[k * len(border) // spec.outputs] for k in range(spec.outputs)]
    return side, [(i * side, j * side) for i, j in chosen]


def noise(data: Data, generator: Generator) -> tuple[Tensor, tuple[str, ...] | None]:
    """As many images as test rows, of uniform pixels."""
    return torch.rand(data.test.x.shape, generator=generator), None
