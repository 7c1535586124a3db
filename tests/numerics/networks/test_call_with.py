"""A pass with other weights: what it computes where modules stand twice and weights are tied, and what it leaves behind."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from probatum.numerics.networks.substitute import Substitute, call_with

pytestmark = pytest.mark.fast


class Net(nn.Module):
    """A layer in two places, tied weights, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.again, self.two.weight = self.one, self.one.weight
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.head(self.two(self.again(self.one(x).tanh()).tanh())) + self.shift


def test_what_stands_twice_and_what_is_tied_is_filled_everywhere() -> None:
    torch.manual_seed(0)
    net, other, x = Net(), Net(), torch.randn(5, 4)
    before = copy.deepcopy(net.state_dict())
    values = {**dict(other.named_parameters()), "shift": torch.tensor(2.0)}
    other.shift.fill_(2.0)
    for _ in range(2):  # the second time from an undamaged network
        torch.testing.assert_close(call_with(net, values, x, 3.0), other(x, 3.0))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.one.weight is net.again.weight is net.two.weight
    assert all(isinstance(p, nn.Parameter) for m in net.modules() for p in m._parameters.values())


def test_gradients_of_a_few_weights() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 4)
    some = {name: p.detach() for name, p in net.named_parameters() if name.startswith("one")}
    found = grad(lambda values: call_with(net, values, x).square().sum())(some)
    expected = torch.autograd.grad(net(x).square().sum(), [net.one.weight, net.one.bias])
    for name, value in zip(("one.weight", "one.bias"), expected, strict=True):
        torch.testing.assert_close(found[name], value)


def test_after_an_exception_the_network_is_as_it_was() -> None:
    net = Net()
    with pytest.raises(RuntimeError):
        call_with(net, {"one.weight": torch.zeros(4, 4)}, torch.zeros(2, 7))
    assert isinstance(net.one.weight, nn.Parameter)
    with pytest.raises(KeyError, match=r"no parameter and no buffer 'three\.weight'"):
        call_with(net, {"three.weight": torch.zeros(4, 4)}, torch.zeros(2, 4))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_what_older_norms_compute_from_lent_weights_is_not_left_behind(norm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2)).eval()
    x, before = torch.randn(5, 4), net[0].weight
    values = {name: p.detach() for name, p in net.named_parameters()}

    def loss(lent: dict[str, Tensor], row: Tensor) -> Tensor:
        return call_with(net, lent, row[None]).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(values, x)
    assert net[0].weight is before
    Substitute(net).in_turn([values, values])(lambda k: x)
    assert net[0].weight is before
    pickle.loads(pickle.dumps(net.requires_grad_(False)))
    net.requires_grad_(True)
    for k, row in enumerate(x):
        net.zero_grad()
        net(row[None]).square().sum().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name][k], p.grad)
