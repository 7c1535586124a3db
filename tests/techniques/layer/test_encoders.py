"""Every layer technique inside torch's transformer encoder, whose fast path in evaluation reads weights past what stands there."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from probatum import catalogue, inject

pytestmark = pytest.mark.fast

LAYERS = [name for name in catalogue.names() if catalogue.place(name).slot == "layer"]
CHANGING = {"dcls", "flora-tucker", "hypernet-kit", "mip-hypernet", "power-norm"}
"""Those that are known to find something to change in this network; others may."""


class Sentence(nn.Module):
    """Convolution, encoder, classifier of positions."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.front = nn.Conv1d(16, 16, 3, padding=1)
        self.encoder = nn.TransformerEncoder(layer, depth) if depth > 1 else layer
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.front(x.mT).mT, src_key_padding_mask=hidden))


def swapped(name: str, depth: int) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensor.*")
        net = Sentence(depth)
    generator = torch.Generator().manual_seed(0)
    settings = dict(catalogue.card(name).tiny)
    count = inject.call(name, catalogue.entry(name), settings, {"generator": generator}, net=net)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return net, count


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_without_gradients_gives_what_it_gives_with_them(name: str, depth: int) -> None:
    net, count = swapped(name, depth)
    assert (count > 0) or name not in CHANGING
    x = 2 * torch.randn(4, 6, 16) + 1
    net(x)
    net.eval()
    for hidden in (None, torch.arange(6) >= torch.tensor([[6], [5], [4], [3]])):
        shown = torch.ones(4, 6, dtype=torch.bool) if hidden is None else ~hidden
        expected = net(x, hidden)[shown]
        with torch.no_grad():
            for found in (net(x, hidden), copy.deepcopy(net)(x, hidden), net(x=x, hidden=hidden)):
                torch.testing.assert_close(found[shown], expected, rtol=1e-4, atol=1e-4)
