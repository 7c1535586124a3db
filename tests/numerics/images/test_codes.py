"""Convolutions to a code and back: sizes, widths and ends by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.images.codes import CODE, halvings, make_decoder, make_encoder

pytestmark = pytest.mark.fast


def test_sizes_by_hand() -> None:
    assert halvings(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]
    assert halvings(8, 8) == [(8, 8), (4, 4), (2, 2)]
    assert halvings(9, 13) == [(9, 13), (5, 7), (3, 4), (2, 2)]
    assert halvings(13, 9) == [(13, 9), (7, 5), (4, 3), (2, 2)]
    assert halvings(32, 16) == [(32, 16), (16, 8), (8, 4), (4, 2)]
    for small in ((1, 1), (2, 5), (3, 3)):
        assert len(halvings(*small)) == 2  # one convolution at least


def shapes(net: nn.Sequential) -> list[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [(m.in_channels, m.out_channels, m.stride, m.kernel_size) for m in net if isinstance(m, kinds)]


@pytest.mark.parametrize(("act", "kind"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid)])
def test_layers_by_hand(act: str, kind: type[nn.Module]) -> None:
    bounded, free = make_encoder((3, 8, 8), 5, act), make_encoder((3, 8, 8), 5, act, 7, bounded=False)
    assert [type(m) for m in bounded] == [nn.Conv2d, kind, nn.Conv2d, nn.Sigmoid, nn.Flatten]
    assert [type(m) for m in free] == [nn.Conv2d, kind, nn.Conv2d, nn.Flatten]
    assert shapes(bounded) == [(3, 5, (2, 2), (3, 3)), (5, CODE, (2, 2), (3, 3))]
    assert shapes(free)[-1][:2] == (5, 7)
    back = make_decoder((3, 8, 8), 5, act, 7)
    assert [type(m) for m in back] == [nn.Unflatten, nn.ConvTranspose2d, kind, nn.ConvTranspose2d, nn.Sigmoid]
    assert shapes(back) == [(7, 5, (2, 2), (3, 3)), (5, 3, (2, 2), (3, 3))]
    assert make_decoder((3, 8, 8), 5, act)[1].in_channels == CODE


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 13), (7, 5), (3, 3), (2, 2)])
def test_a_code_comes_back_as_an_image_of_the_size(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    code = make_encoder((3, *size), 4, "relu", 6)(x)
    last = halvings(*size)[-1]
    assert code.shape == (2, 6 * last[0] * last[1])
    image = make_decoder((3, *size), 4, "relu", 6)(code)
    assert image.shape == x.shape
    assert 0 < float(image.detach().min()) <= float(image.detach().max()) < 1
