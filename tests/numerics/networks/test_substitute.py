"""Networks run with other tensors: against networks that have them, and left as they were."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from probatum.numerics.networks.substitute import Substitute, wide_values

pytestmark = pytest.mark.fast


class Twice(nn.Module):
    """One layer in two places, one norm in two places, and weights tied across modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.norm = nn.BatchNorm1d(4)
        self.later = self.norm
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.later(self.again(self.norm(self.first(x)).relu())))


def test_a_network_with_other_tensors_is_the_one_that_has_them() -> None:
    torch.manual_seed(0)
    net, other, x = Twice().eval(), Twice().eval(), torch.randn(5, 4)
    other.norm.running_mean.normal_()
    values = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    before = copy.deepcopy(net.state_dict())
    kept = dict(net.named_parameters())
    expected = other(x)
    for run in (Substitute(net), pickle.loads(pickle.dumps(Substitute(net)))):
        torch.testing.assert_close(run(values, x), expected)
    assert all(value is kept[name] for name, value in net.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    alias = {**values}
    alias["tied.weight"] = alias.pop("first.weight")  # by the names of their other uses
    alias["again.bias"] = alias.pop("first.bias")
    torch.testing.assert_close(Substitute(net)(alias, x), expected)


def test_the_network_is_put_back_after_an_exception() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    kept = dict(net.named_parameters())
    with pytest.raises(RuntimeError):
        Substitute(net)({"0.weight": torch.ones(5, 7)}, torch.ones(1, 3))
    with pytest.raises(KeyError, match="no parameter and no buffer 'head'"):
        Substitute(net)({"1.weight": torch.ones(2, 3), "head": torch.ones(1)}, torch.ones(1, 3))
    assert all(value is kept[name] for name, value in net.named_parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_take_them(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, other, x = kind(3, 4), kind(3, 4), torch.randn(6, 2, 3)
    expected, own = other(x)[0], net(x)[0]
    torch.testing.assert_close(Substitute(net)(dict(other.named_parameters()), x)[0], expected)
    torch.testing.assert_close(net(x)[0], own)


def test_a_network_with_several_sets_of_tensors_in_turn() -> None:
    torch.manual_seed(0)
    net, others, x = Twice().eval(), [Twice().eval() for _ in range(3)], torch.randn(3, 5, 4)
    kept = dict(net.named_parameters())
    values = [{**dict(other.named_parameters()), **dict(other.named_buffers())} for other in others]
    found = Substitute(net).in_turn(values)(lambda k: x[k])
    torch.testing.assert_close(torch.stack(found), torch.stack([other(x[k]) for k, other in enumerate(others)]))
    with pytest.raises(RuntimeError):
        Substitute(net).in_turn(values)(lambda k: x[k, :, : 4 - k])
    assert all(value is kept[name] for name, value in net.named_parameters())
    assert Substitute(net).in_turn([])(lambda k: x) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_copy_puts_back_its_own_computed_weights_and_a_norm_may_be_taken_off() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))), torch.ones(1, 3)
    with torch.no_grad():
        net(x)  # what it leaves can then be copied
    run = Substitute(net)
    other = copy.deepcopy(run)
    before, lent = other.net[0].weight.clone(), {"0.weight_g": torch.full((2, 1), 5.0)}
    other(lent, x)
    assert torch.equal(other.net[0].weight, before)
    other.in_turn([lent])(lambda _: x)
    assert torch.equal(other.net[0].weight, before)
    nn.utils.remove_weight_norm(net[0])
    assert run({}, x).shape == (1, 2)


def test_half_precision_is_widened_and_has_no_history() -> None:
    net = nn.Sequential(nn.Linear(3, 2).bfloat16(), nn.BatchNorm1d(2))
    found = wide_values(net)
    assert set(found) == {"0.weight", "0.bias"}
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in found.values())
    assert torch.equal(found["0.weight"], net[0].weight.detach().float())
