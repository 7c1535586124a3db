"""Networks that look alike and are not, against each network alone: what cannot be stacked is refused, what can is exact."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from probatum.numerics.posterior.alike import difference
from probatum.numerics.posterior.stacked import Posterior, Stacked

pytestmark = pytest.mark.fast


def rows(n: int = 7) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def alone(nets: list[nn.Module], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([net.eval()(x.clone()) for net in nets])


class Net(nn.Module):
    """Holds something beside its weights, which its forward may use."""

    def __init__(self, held: object = None, use: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.layer, self.held, self.use = nn.Linear(3, 2), held, use

    def forward(self, x: Tensor) -> Tensor:
        _ = self.held  # what is not read may differ
        return self.layer(x) if self.use is None else self.use(self, x)


class Box:
    def __init__(self, value: object) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def parted(k: int, part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), part)


def hooked(hook: Callable[..., object] | None) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    if hook is not None:
        net[0].register_forward_hook(hook)
    return net


def scaling(by: float) -> Callable[..., Tensor]:
    return lambda module, inputs, output: by * output


def scaled(by: float, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return by * output


def set_forward(by: float) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2))
    net[0].forward = lambda x, by=by: by * x[:, :2]
    return net


def hidden(k: int) -> nn.Module:
    """A layer in a list that torch knows nothing of."""
    return Net([nn.Linear(3, 2)], lambda net, x: net.layer(x) + net.held[0](x))


def own_class(by: float) -> nn.Module:
    class Inner(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return by * super().forward(x)

    return Inner(3, 2)


def shared(k: int) -> nn.Module:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    return nn.Sequential(one, two, [one, two, one][k])


def tied(k: int) -> nn.Module:
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    net[2].weight = net[k % 2].weight
    return net


class Calls:
    def __init__(self, by: float) -> None:
        self.by = by

    def scaled(self, net: nn.Module, x: Tensor) -> Tensor:
        return self.by * net.layer(x)


class Kept(nn.Module):
    """Notes its name, its past and what it has last seen, which no pass reads."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.layer, self.name, self.seed, self.history = nn.Linear(3, 2), f"member {k}", k, [k]
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.last = y.detach()
        return y


def seen(k: int) -> nn.Module:
    net = Kept(k)
    net(rows(2 + k))
    return net


def pruned(k: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2))
    prune.random_unstructured(net[0], "weight", amount=0.5)
    net[0].weight = net[0].weight.detach()  # as a pass without gradients leaves it
    return net


DIFFERENT: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "tensor": (lambda k: Net(torch.full((3,), float(k)), lambda net, x: net.layer(x - net.held)), "held"),
    "number": (lambda k: Net(float(k), lambda net, x: net.held * net.layer(x)), r"held \(0\.0 and 1\.0\)"),
    "numpy": (lambda k: Net(np.arange(2.0) + k), "held"),
    "number in a list": (lambda k: Net([1, {"a": (k, 2)}]), "held"),
    "object": (lambda k: Net(Box(Box(k))), "held"),
    "slots": (lambda k: Net(Slotted(k)), "held"),
    "set": (lambda k: Net({k}), "held"),
    "function": (lambda k: Net(None, [torch.sin, torch.cos, torch.sin][k]), "use"),
    "closure": (lambda k: Net(scaling(k)), "held"),
    "types": (lambda k: parted(k, [nn.ReLU(), nn.Tanh(), nn.ReLU()][k]), r"1 \(ReLU and Tanh\)"),
    "slopes": (lambda k: parted(k, nn.LeakyReLU(0.1 + k)), r"1\.negative_slope \(0\.1 and 1\.1\)"),
    "hooks": (lambda k: hooked(scaling(2.0 + k)), r"0\.forward hooks"),
    "a hook": (lambda k: hooked(scaling(2.0) if k else None), r"0\.forward hooks"),
    "partial hooks": (lambda k: hooked(functools.partial(scaled, 2.0 + k)), r"0\.forward hooks"),
    "forward": (lambda k: set_forward(1.0 + k), r"0\.forward, which was set"),
    "hidden layers": (hidden, "held"),
    "classes": (lambda k: own_class(1.0 + k), "the network"),
    "where a module stands": (shared, "where modules and tensors are shared"),
    "tied elsewhere": (tied, "where modules and tensors are shared"),
    "sparse": (lambda k: Net((torch.eye(2) * (k + 1)).to_sparse()), "held"),
    "opaque": (lambda k: Net(operator.itemgetter(k)), "held"),
    "generators": (lambda k: Net(np.random.default_rng(k)), "held"),
    "keywords": (lambda k: Net(None, functools.partial(torch.sub, alpha=k)), "use"),
    "of another object": (lambda k: Net(None, Calls(float(k)).scaled), "use"),
    "only one": (lambda k: Net() if k else Net({"a": 1}), "held"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_networks_that_differ_beside_their_weights_are_refused(case: str) -> None:
    make, where = DIFFERENT[case]
    nets = [make(k) for k in range(3)]
    for call in (Posterior.of, Stacked(nets[0]).gather):
        with pytest.raises(ValueError, match=rf"network \d differs from the first \w+ in {where}.*make them alike"):
            call(nets)
    assert difference(nets[1], nets[1]) == ""


ALIKE: dict[str, Callable[[int], nn.Module]] = {
    "tensor": lambda k: Net(torch.tensor([1.0, float("nan"), 2.0]), lambda net, x: net.layer(x * net.held[2])),
    "objects": lambda k: Net([Box({"a": np.arange(3)}), Slotted(float("nan")), None, {1}, torch.Generator()]),
    "closure": lambda k: hooked(scaling(2.0)),
    "partial": lambda k: hooked(functools.partial(scaled, 2.0)),
    "forward": lambda k: set_forward(3.0),
    "classes": lambda k: own_class(2.0),
    "parametrized": lambda k: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))),
    "names and pasts": Kept,
    "what a pass keeps": seen,
    "dictionaries": lambda k: Net({"a": 1, "b": 2} if k else {"b": 2, "a": 1}),
    "pruned": pruned,
    "traced": lambda k: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU())),
    "orthogonal": lambda k: parametrizations.orthogonal(nn.Linear(3, 3)),
    "recurrent": lambda k: nn.Sequential(nn.RNN(3, 4), nn.Identity()),
    "buffers": lambda k: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
}  # fmt: skip


@pytest.mark.parametrize("case", ALIKE)
def test_networks_that_are_alike_are_not_refused(case: str) -> None:
    torch.manual_seed(0)
    nets, x = [ALIKE[case](k) for k in range(3)], rows()
    if case == "recurrent":
        assert difference(nets[0], nets[1]) == ""
        return
    torch.testing.assert_close(Posterior.of(nets).outputs(x), alone(nets, x))
    torch.testing.assert_close(Posterior.of(nets).outputs(x), alone(nets, x))  # after passes of their own, too


def test_older_norms_of_weights_compute_theirs_anew() -> None:
    nets, x = [nn.utils.spectral_norm(nn.Linear(3, 2)).eval() for _ in range(3)], rows()
    alone(nets, x)
    torch.testing.assert_close(Posterior.of(nets).outputs(x), alone(nets, x))


def test_functions_that_reach_into_the_one_network_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    net[1].register_forward_hook(lambda module, inputs, output: output + net[0].bias)
    samples = {name: torch.randn(4, *value.shape) for name, value in net.named_parameters()}
    with pytest.raises(ValueError, match=r"has 1\.forward hooks: a function that reaches into this one network"):
        Posterior(net, samples)
    other = nn.Linear(3, 2)
    other.forward = lambda x: x @ other.weight.T
    with pytest.raises(ValueError, match="reaches into this one network"):
        Stacked(other)
    other.forward = functools.partial(nn.Linear.forward, other)  # which is copied with it
    torch.testing.assert_close(Posterior.of([other]).outputs(rows()), alone([other], rows()))


class Caching(nn.Module):
    """Computes something of its weights in its first pass; remembers passes."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer, self.where = nn.Linear(3, 2), where
        self.kept: Tensor | None = None
        self.memo: dict[str, Tensor] = {}
        self.some: list[Tensor] = []
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.where == "attribute":
            if self.kept is None:
                self.kept = self.layer.weight.exp()
            return x @ self.kept.T
        if self.where == "late":
            if not hasattr(self, "late"):
                self.late = self.layer.weight.exp()
            return x @ self.late.T
        if self.where == "list":
            if not self.some:
                self.some.append(self.layer.weight.exp())
            return x @ self.some[0].T
        if "w" not in self.memo:
            self.memo["w"] = self.layer.weight.exp()
        return x @ self.memo["w"].T


@pytest.mark.parametrize("where", ["attribute", "late", "list", "dict"])
@pytest.mark.parametrize("apart", [False, True])
def test_what_a_pass_computes_of_weights_is_no_other_networks(where: str, apart: bool) -> None:
    nets, x = [Caching(where) for _ in range(3)], rows()
    posterior = Posterior.of(nets)
    expected = torch.stack([x @ net.layer.weight.exp().T for net in nets]).detach()
    torch.testing.assert_close(posterior.outputs(x), expected)
    posterior.weights.data *= 0.5
    halved = torch.stack([x @ (0.5 * net.layer.weight).exp().T for net in nets]).detach()
    torch.testing.assert_close(posterior.outputs(x), halved)
    assert posterior.stacked.model.passes == 0
    torch.testing.assert_close(posterior.outputs(x, together=True), halved)
    posterior.stacked.apart = apart
    with torch.enable_grad():
        found = posterior.stacked(posterior.weights, x, posterior.buffers)
        torch.testing.assert_close(found.detach(), halved)
        torch.testing.assert_close(posterior.stacked(2 * posterior.weights, x, posterior.buffers).detach(), expected)
    posterior.stacked(posterior.weights, x, posterior.buffers, training=True)
    assert posterior.stacked.model.passes > 0  # what training counts goes on


class Squared(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.square()


def test_the_cache_of_parametrizations_holds_no_other_networks_weights() -> None:
    torch.manual_seed(0)
    nets, x = [nn.Sequential(nn.Linear(3, 2)) for _ in range(3)], rows()
    for net in nets:
        parametrize.register_parametrization(net[0], "weight", Squared())
    posterior, expected = Posterior.of(nets), alone(nets, x)
    with parametrize.cached():
        kept = nets[0][0].weight
        torch.testing.assert_close(posterior.outputs(x), expected)
        torch.testing.assert_close(posterior.stacked(posterior.weights, x, posterior.buffers), expected)
        assert nets[0][0].weight is kept  # the caller's own is as it was
