"""Stacked networks against the networks they are made of, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.train.stack import CannotStackError, Stack

pytestmark = pytest.mark.fast

K, N = 3, 6
Make = Callable[[], nn.Module]

LAYERS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (5,)),
    "linear over time": (lambda: nn.Linear(5, 4), (7, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, bias=False), (4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "batch norm over time": (lambda: nn.BatchNorm1d(5), (5, 4)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4), (4, 3, 3)),
    "batch norm, cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (4, 3, 3)),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 3)),
    "batch norm without weights": (
        lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)),
        (4, 3, 3),
    ),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(5), (7, 5)),
    "layer norm over two": (lambda: nn.LayerNorm((7, 5)), (7, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "conv, norm, pool, head": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ),
        (1, 6, 6),
    ),
}


def networks(make: Make) -> list[nn.Module]:
    found = []
    for seed in range(K):
        torch.manual_seed(seed)
        net = make().double()
        for value in net.parameters():
            value.data.add_(0.3 * torch.randn_like(value))  # norms start at 1 and 0, which would hide mix-ups
        found.append(net)
    return found


def rows(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(N, *shape, generator=generator, dtype=torch.float64) for _ in range(K)]


@pytest.mark.parametrize("name", LAYERS)
def test_stacked_layers_equal_their_own_in_output_gradient_and_statistics(name: str) -> None:
    make, shape = LAYERS[name]
    alone, x = networks(make), rows(shape)
    stack = Stack([copy.deepcopy(net) for net in alone])
    for _ in range(2):  # twice, so that running statistics move
        wanted = [net(part) for net, part in zip(alone, x, strict=True)]
        found = stack.fold.split(stack.net(stack.fold.fold(x)))
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(wanted[0])
    for net, output in zip(alone, wanted, strict=True):
        net.zero_grad()
        (output * weight).sum().backward()
    (found * weight).sum().backward()
    stack.share_gradients()
    for mine, net in zip(stack.models, alone, strict=True):
        for (which, ours), theirs in zip(mine.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-9, atol=1e-11, msg=lambda text, w=which: f"{w}: {text}"
            )
        for ours, theirs in zip(mine.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    stack.net.eval()
    evaluated = stack.fold.split(stack.net(stack.fold.fold(x)))
    wanted = [net.eval()(part) for net, part in zip(alone, x, strict=True)]
    torch.testing.assert_close(evaluated, torch.stack(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inner", [False, True])
def test_embeddings_keep_each_replicas_table_and_padding(inner: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(11, 4, padding_idx=0), *([nn.BatchNorm1d(7)] if inner else []))

    alone = networks(make)
    ids = [torch.randint(11, (N, 7), generator=torch.Generator().manual_seed(k)) for k in range(K)]
    stack = Stack([copy.deepcopy(net) for net in alone])
    assert stack.fold.inner == inner
    found = stack.fold.split(stack.net(stack.fold.fold(ids)))
    torch.testing.assert_close(found, torch.stack([net(part) for net, part in zip(alone, ids, strict=True)]))
    found.square().sum().backward()
    stack.share_gradients()
    assert all(not model[0].weight.grad[0].any() and model[0].weight.grad[1:].any() for model in stack.models)


@pytest.mark.parametrize("drop", [nn.Dropout(0.4), nn.AlphaDropout(0.3)], ids=["dropout", "alpha dropout"])
@pytest.mark.parametrize("inner", [False, True])
def test_dropout_draws_what_each_would_draw_alone(drop: nn.Module, inner: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if inner else []), copy.deepcopy(drop))

    alone, x = networks(make), rows((5,))
    stack = Stack([copy.deepcopy(net) for net in alone])
    stack.fold.generators = [torch.Generator().manual_seed(100 + k) for k in range(K)]
    found = [stack.fold.split(stack.net(stack.fold.fold(x))) for _ in range(2)]
    for k, (net, part) in enumerate(zip(alone, x, strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(100 + k)
            for output in found:
                torch.testing.assert_close(output[k], net(part), rtol=1e-10, atol=1e-12)


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    stack = Stack(networks(Tied))
    assert len(stack.parameters) == 3
    assert stack.net.first.weight is stack.net.second.weight


def test_replicas_see_the_stack_and_get_memory_of_their_own_back() -> None:
    stack = Stack(networks(lambda: nn.Linear(3, 2)))
    with torch.no_grad():
        stack.net.weight[1].fill_(7.0)
    assert (stack.models[1].weight == 7).all()
    assert not (stack.models[0].weight == 7).any()
    stack.release()
    with torch.no_grad():
        stack.net.weight.zero_()
    assert (stack.models[1].weight == 7).all()


def test_frozen_weights_stay_frozen() -> None:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        net[0].requires_grad_(False)
        return net

    assert len(Stack(networks(make)).parameters) == 2


class OwnWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def hooked() -> nn.Module:
    net = nn.Linear(3, 3)
    net.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (OwnWeight, "OwnWeight '' has tensors of its own (scale)"),
        (lambda: nn.Sequential(nn.LSTM(3, 3)), "LSTM '0' has tensors of its own"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout2d()), "Dropout2d draws random numbers"),
        (lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), "pads by circular"),
        (lambda: nn.Embedding(4, 3, max_norm=1.0), "max_norm"),
        (hooked, "hooks"),
    ],
)
def test_what_cannot_be_stacked_is_told(make: Make, why: str) -> None:
    with pytest.raises(CannotStackError, match=why.replace("(", r"\(").replace(")", r"\)")):
        Stack([make() for _ in range(K)])


def test_networks_must_be_alike() -> None:
    with pytest.raises(CannotStackError, match="differ"):
        Stack([nn.Linear(3, 2), nn.Linear(4, 2)])
    with pytest.raises(CannotStackError, match="differ"):
        Stack([nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.2))])
    with pytest.raises(CannotStackError, match="one network"):
        Stack([nn.Linear(3, 2)])


def test_a_layer_with_a_forward_of_its_own_is_not_taken_for_its_parent() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.linear(x, self.weight, self.bias)

    with pytest.raises(CannotStackError, match="Doubled"):
        Stack(networks(lambda: Doubled(3, 2)))
