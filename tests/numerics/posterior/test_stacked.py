"""Stacked networks against the same networks one by one, and decompositions against their definitions."""

from __future__ import annotations

import copy
import math
import re
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.numerics.networks.frozen import freeze
from probatum.numerics.posterior.ensembles import Members
from probatum.numerics.posterior.predictive import ONE_DRAW, ClassPredictive, RealPredictive
from probatum.numerics.posterior.stacked import Posterior, Stacked
from probatum.numerics.tensors.draws import own_draws

pytestmark = pytest.mark.fast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


class Looking(nn.Module):
    """Looks at values, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out if out.sum().item() > 0 else 2 * out


def networks(make: Callable[[], nn.Module], count: int = 5) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        nets = [make() for _ in range(count)]
        for net in nets:
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
    return nets


@pytest.mark.parametrize(("make", "shape"), [(Convolutions, (1, 6, 6)), (Looking, (4,))])
def test_stacked_outputs_are_those_of_each_network(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    nets = networks(make)
    x = torch.randn(9, *shape, generator=generator())
    posterior = Posterior.of(nets, chunk=2)
    expected = torch.stack([net.eval()(x).detach() for net in nets])
    torch.testing.assert_close(posterior.outputs(x, rows=4 if make is Convolutions else 9), expected)
    with torch.enable_grad():
        torch.testing.assert_close(posterior.stacked(posterior.weights, x, posterior.buffers).detach(), expected)
    assert posterior.stacked._refused == (make is Looking)


def test_gradients_of_stacked_training_are_those_of_each_network() -> None:
    nets = networks(Convolutions)
    for net in nets:
        net.body[3].p = 0.0
    stacked = Stacked(nets[0])
    weights, buffers = stacked.gather(nets)
    weights.requires_grad_(True)
    x = torch.randn(5, 7, 1, 6, 6, generator=generator())
    stacked(weights, x, buffers, training=True, own=True).square().sum().backward()
    for k, net in enumerate(nets):
        net.train()
        net(x[k]).square().sum().backward()
        own = torch.cat([p.grad.flatten() for p in net.parameters()])
        torch.testing.assert_close(weights.grad[k], own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(buffers["body.1.running_var"][k], net.body[1].running_var)


def test_dropout_differs_between_networks_and_leaves_the_global_stream() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1, bias=False))
    stacked = Stacked(model)
    before = torch.get_rng_state()
    with own_draws(generator()):
        out = stacked(torch.ones(3, 50), torch.ones(1, 50), training=True)
    assert len(out.unique()) == 3
    assert torch.equal(before, torch.get_rng_state())


class Twice(nn.Module):
    """A layer and a norm in two places, and one weight tied across modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(4, 4)
        self.norm = self.later = nn.BatchNorm1d(4)
        self.tied, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tied(self.later(self.again(self.norm(self.first(x)).relu()))))


def test_modules_in_two_places_and_tied_weights() -> None:
    nets, x = networks(Twice, 3), torch.randn(6, 4, generator=generator())
    stacked = Stacked(nets[0])
    weights, buffers = stacked.gather(nets)
    assert stacked.size == sum(p.numel() for p in nets[0].parameters())
    before = stacked.model.state_dict()
    weights.requires_grad_(True)
    stacked(weights, x, buffers, training=True).square().sum().backward()
    for k, net in enumerate(nets):
        net(x).square().sum().backward()
        own = torch.cat([p.grad.flatten() for p in net.parameters()])
        torch.testing.assert_close(weights.grad[k], own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(buffers["norm.running_mean"][k], net.norm.running_mean)
    again = Posterior(copy.deepcopy(stacked.model), {**stacked.named(weights), **buffers})
    torch.testing.assert_close(again.outputs(x), torch.stack([net.eval()(x).detach() for net in nets]))
    assert all(torch.equal(value, before[name]) for name, value in nets[0].state_dict().items() if "weight" in name)


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    net[1].eval()
    return net


def test_frozen_weights_are_no_weights_and_kept_modes_stay() -> None:
    nets, x = networks(frozen, 3), torch.randn(20, 4, generator=generator()) + 2
    stacked = Stacked(nets[0])
    weights, state = stacked.gather(nets)
    assert stacked.size == 8 * 4 + 8 * 2 + 2
    assert torch.equal(state["0.weight"], torch.stack([net[0].weight for net in nets]))
    found = stacked(weights, x, state, training=True)
    for k, net in enumerate(nets):
        torch.testing.assert_close(found[k], net(x))
        torch.testing.assert_close(state["3.running_mean"][k], net[3].running_mean)
    assert float(state["1.running_mean"].abs().max()) == 0
    posterior = Posterior(stacked.model, {**stacked.named(weights), **state}).renew_batch_norm(x)
    assert float(posterior.buffers["1.running_mean"].abs().max()) == 0
    assert float(posterior.buffers["3.running_mean"].abs().max()) > 0
    assert [module.training for module in stacked.model] == [True, False, True, True, True]
    whole = [net.requires_grad_(False) for net in nets]
    assert Stacked(whole[0]).size == 32 + 8 + 16 + 16 + 18  # of a network that is frozen as a whole, all weights are
    still = copy.deepcopy(nets[0])
    freeze(still, [still[4]])
    alone = Posterior.of([still.eval(), copy.deepcopy(still)]).renew_batch_norm(x)
    assert float(alone.buffers["3.running_mean"][1].sub(still[3].running_mean).abs().max()) == 0


def test_rows_are_not_changed_by_networks_that_begin_in_place() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(4, 2)) for _ in range(3)]
    x = torch.randn(5, 4, generator=generator())
    before = x.clone()
    expected = torch.stack([net(before.clone()).detach() for net in nets])
    posterior = Posterior.of(nets, chunk=2)
    torch.testing.assert_close(posterior.outputs(x), expected)
    weights, buffers = posterior.weights, posterior.buffers
    for apart in (False, True):
        posterior.stacked.apart = apart
        torch.testing.assert_close(posterior.stacked(weights, x, buffers, training=True), expected)
        own = x.repeat(3, 1, 1)
        torch.testing.assert_close(posterior.stacked(weights, own, buffers, training=True, own=True), expected)
        assert torch.equal(own[2], before)
    assert torch.equal(x, before)


class Halving(nn.Linear):
    """Halves its rows in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


def halve(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    inputs[0].mul_(0.5)


def halve_first(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if isinstance(module, nn.Sequential):
        inputs[0].mul_(0.5)


@pytest.mark.parametrize("how", ["class", "hook", "function", "everywhere"])
def test_rows_are_not_changed_whoever_does_so(how: str) -> None:
    nets = [nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)) for _ in range(3)]
    x = torch.randn(5, 4, generator=generator())
    before, expected = x.clone(), torch.stack([net(0.5 * x).detach() for net in nets])
    if how == "everywhere":
        with nn.modules.module.register_module_forward_pre_hook(halve_first):
            torch.testing.assert_close(Posterior.of(nets).outputs(x), expected)
        assert torch.equal(x, before)
        return
    for net in nets:
        first = net[0]
        if how == "class":
            first.__class__ = Halving
        elif how == "hook":
            first.register_forward_pre_hook(halve)
        else:
            first.forward = types.MethodType(lambda self, x: F.linear(x.mul_(0.5), self.weight, self.bias), first)
    torch.testing.assert_close(Posterior.of(nets).outputs(x), expected)
    assert torch.equal(x, before)


def test_predictions_follow_weights_and_statistics_however_they_are_changed() -> None:
    nets = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.BatchNorm1d(3)).eval() for _ in range(2)]
    x, posterior = torch.randn(5, 4, generator=generator()), Posterior.of(nets)
    posterior.outputs(x)
    assert posterior._run() is posterior._run()  # nothing is looked up twice
    posterior.weights.data[1] *= 2.0
    posterior.buffers["2.running_mean"].data[0] += 1.0
    with torch.no_grad():
        for p in nets[1].parameters():
            p *= 2.0
        nets[0][2].running_mean += 1.0
        torch.testing.assert_close(posterior.outputs(x), torch.stack([net(x) for net in nets]))
        posterior.buffers["2.running_mean"].data = torch.zeros(2, 3)
        for net in nets:
            net[2].running_mean.zero_()
        torch.testing.assert_close(posterior.outputs(x), torch.stack([net(x) for net in nets]))
        posterior.stacked = Stacked(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3)))
        for net in nets:
            net[1] = nn.ReLU()
        torch.testing.assert_close(posterior.outputs(x), torch.stack([net(x) for net in nets]))
        posterior.weights.data = torch.zeros_like(posterior.weights)
        assert not bool(posterior.outputs(x).any())
        posterior = Posterior.of(nets)
        both = posterior.outputs(x)
        posterior.weights.data = posterior.weights.data[:1]
        posterior.buffers = {name: value[:1] for name, value in posterior.buffers.items()}
        torch.testing.assert_close(posterior.outputs(x), both[:1])


@pytest.mark.parametrize(("inputs", "stride"), [(1, 4), (60, 192)])
def test_weights_begin_on_cache_lines_where_that_is_little_longer(inputs: int, stride: int) -> None:
    nets = [nn.Linear(inputs, 3 if inputs > 1 else 2) for _ in range(2)]
    posterior = Posterior.of(nets)
    assert posterior.weights.stride() == (stride, 1)
    assert torch.equal(posterior.weights[1], torch.cat([p.flatten() for p in nets[1].parameters()]))


def test_rows_without_a_history_are_trained_on_and_may_change_afterwards() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    stacked = Stacked(net)
    stacked.apart = True
    weights, buffers = stacked.gather([net, copy.deepcopy(net)])
    weights.requires_grad_(True)
    with torch.inference_mode():
        x = torch.randn(7, 4, generator=generator())
    slope = torch.autograd.grad(stacked(weights, x, buffers, training=True).sum(), weights)[0]
    plain = x.clone()
    output = stacked(weights, plain, buffers, training=True).sum()
    plain.mul_(2.0)
    assert torch.equal(torch.autograd.grad(output, weights)[0], slope)


@pytest.mark.parametrize("apart", [False, True])
def test_one_after_another_is_the_same_as_together(apart: bool) -> None:
    nets = networks(Convolutions, 3)
    for net in nets:
        net.body[3].p = 0.0
    stacked = Stacked(nets[0])
    assert stacked.apart
    assert Stacked(nn.Linear(300, 300)).apart
    assert not Stacked(nn.Linear(200, 200)).apart
    stacked.apart = apart
    weights, buffers = stacked.gather(nets)
    weights.requires_grad_(True)
    x = torch.randn(3, 7, 1, 6, 6, generator=generator())
    found = stacked(weights, x, buffers, training=True, own=True)
    found.square().sum().backward()
    for k, net in enumerate(nets):
        output = net(x[k])
        output.square().sum().backward()
        torch.testing.assert_close(found[k], output)
        own = torch.cat([p.grad.flatten() for p in net.parameters()])
        torch.testing.assert_close(weights.grad[k], own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(buffers["body.1.running_var"][k], net.body[1].running_var)


class LateLooking(nn.Module):
    """Has a norm in front of what vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), Looking()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


def test_statistics_move_once_where_vmap_refuses() -> None:
    nets, x = networks(LateLooking, 2), torch.randn(9, 4, generator=generator())
    stacked = Stacked(nets[0])
    weights, buffers = stacked.gather(nets)
    stacked(weights, x, buffers, training=True)
    for k, net in enumerate(nets):
        net(x)
        torch.testing.assert_close(buffers["norm.running_mean"][k], net.norm.running_mean)
        assert int(buffers["norm.num_batches_tracked"][k]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_predict_what_they_say(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype) for _ in range(3)]
    x = torch.randn(5, 4, generator=generator()).to(dtype)
    posterior = Posterior.of(nets)
    assert posterior.weights.dtype == torch.float32
    outputs = torch.stack([net(x).detach().float() for net in nets])
    torch.testing.assert_close(posterior.outputs(x), outputs)
    found = posterior.predict(x)
    torch.testing.assert_close(found.total, ClassPredictive(outputs.log_softmax(2)).total)


def test_targets_in_a_row_and_of_other_shapes() -> None:
    found = RealPredictive(torch.randn(3, 5, 1, generator=generator()), torch.full((3, 5, 1), 0.3))
    y = torch.randn(5, generator=generator(1))
    assert torch.equal(found.log_density(y), found.log_density(y[:, None]))
    assert torch.equal(found.distribution(y), found.distribution(y[:, None]))
    with pytest.raises(ValueError, match=re.escape("(5, 1) and (4,)")):
        found.log_density(y[:4])


def test_networks_that_do_not_go_together_are_refused() -> None:
    stacked = Stacked(nn.Linear(3, 2))
    for other in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(ValueError, match="not all Linear of one shape"):
            stacked.gather([nn.Linear(3, 2), other])
    with pytest.raises(ValueError, match="there are 0 networks"):
        stacked.gather([])
    hooked = nn.Linear(3, 2)
    hooked.scaled = 2 * hooked.weight
    with pytest.raises(TypeError, match=r"parametrizations instead"):
        Stacked(hooked)
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        Stacked(nn.ReLU())


def test_decomposition_of_classes_is_its_definition() -> None:
    log_p = torch.randn(6, 11, 4, generator=generator(), dtype=torch.float64).log_softmax(2)
    found = ClassPredictive(log_p)
    p = log_p.exp().numpy()
    np.testing.assert_allclose(found.probabilities, p.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.total, stats.entropy(p.mean(0), axis=1), rtol=1e-12)
    information = (p * np.log(p / p.mean(0))).sum(2).mean(0)  # KL of draws to the mean
    np.testing.assert_allclose(found.epistemic, information, atol=1e-12)
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, atol=1e-15)


def test_probabilities_of_zero_are_no_trouble() -> None:
    log_p = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
    found = ClassPredictive(log_p)
    assert found.epistemic.item() == pytest.approx(math.log(2))
    assert found.aleatoric.item() == 0
    tiny = ClassPredictive(torch.full((3, 1, 2), -2000.0))
    assert float(tiny.log_probabilities.max()) == -2000.0  # exp would have been 0


def test_decomposition_of_reals_is_the_law_of_total_variance() -> None:
    means = torch.randn(5, 8, 2, generator=generator(), dtype=torch.float64)
    variances = torch.rand(5, 8, 2, generator=generator(1), dtype=torch.float64) + 0.1
    found = RealPredictive(means, variances)
    second = (means.square() + variances).mean(0)
    torch.testing.assert_close(found.total, second - found.mean.square())
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic, rtol=0, atol=1e-15)
    y = torch.randn(8, 2, generator=generator(2), dtype=torch.float64)
    density = stats.norm.pdf(y, means, variances.sqrt()).mean(0)
    np.testing.assert_allclose(found.log_density(y), np.log(density), rtol=1e-12)
    for level in (0.001, 0.025, 0.5, 0.99):
        torch.testing.assert_close(found.distribution(found.quantile(level)), torch.full_like(y, level))
    with pytest.raises(ValueError, match="level is 1"):
        found.quantile(1.0)


def test_one_draw_has_no_epistemic_uncertainty() -> None:
    one = Posterior.of(networks(Convolutions, 1))
    x = torch.randn(2, 1, 6, 6, generator=generator())
    assert torch.equal(one.predict(x).total, one.predict(x).aleatoric)
    with pytest.raises(ValueError, match=ONE_DRAW):
        _ = one.predict(x).epistemic
    with pytest.raises(ValueError, match=ONE_DRAW):
        _ = RealPredictive(torch.zeros(1, 2, 1), torch.ones(1, 2, 1)).epistemic


def test_heads_of_reals() -> None:
    nets = [nn.Linear(3, 2) for _ in range(4)]
    x = torch.randn(5, 3, generator=generator())
    given = Posterior.of(nets, noise=0.5).predict_reals(x)
    assert float(given.variances.max()) == 0.25
    own = Posterior.of(nets).predict_reals(x)
    assert own.means.shape == (4, 5, 1)
    torch.testing.assert_close(own.variances, given.means[:, :, 1:].exp())
    with pytest.raises(ValueError, match="3 outputs"):
        Posterior.of([nn.Linear(3, 3) for _ in range(2)]).predict_reals(x)


class Scaled(nn.Module):
    """A single number as its only weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.one * x


def test_samples_that_do_not_fit_are_refused() -> None:
    model = nn.Linear(3, 2)
    good = {"weight": torch.zeros(4, 2, 3), "bias": torch.zeros(4, 2)}
    assert len(Posterior(model, good)) == 4
    with pytest.raises(ValueError, match="samples lack 'bias'"):
        Posterior(model, {"weight": good["weight"]})
    with pytest.raises(ValueError, match=re.escape("samples of 'bias' are (4, 3)")):
        Posterior(model, {**good, "bias": torch.zeros(4, 3)})
    with pytest.raises(ValueError, match=re.escape("samples hold [3, 4] draws")):
        Posterior(model, {**good, "bias": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="samples hold 'extra'"):
        Posterior(model, {**good, "extra": torch.zeros(4)})
    with pytest.raises(ValueError, match=re.escape("samples of 'one' are (); give (S, )")):
        Posterior(Scaled(), {"one": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="chunk is 0"):
        Posterior(model, good, chunk=0)
    with pytest.raises(ValueError, match="noise is 0"):
        Posterior(model, good, noise=0.0)


def test_renewed_batch_norm_is_a_plain_pass_of_every_draw() -> None:
    nets = networks(Convolutions, 3)
    x = torch.randn(30, 1, 6, 6, generator=generator())
    posterior = Posterior.of(nets, chunk=2).renew_batch_norm(x, batch_size=10)
    for net in nets:
        norm = net.body[1]
        norm.reset_running_stats()
        norm.momentum = None  # torch's own plain mean over batches
        net.eval()
        norm.train()
        with torch.no_grad():
            for part in x.split(10):
                net(part)
        net.eval()
    expected = torch.stack([net(x).detach() for net in nets])
    torch.testing.assert_close(posterior.outputs(x), expected)
    assert posterior.stacked.model.body[1].momentum == 0.1


def test_a_weight_that_is_a_single_number() -> None:
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by, self.inner = nn.Parameter(torch.tensor(by)), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.by * self.inner(x)

    nets, x = [Scaled(1.0), Scaled(3.0)], torch.ones(4, 3)
    torch.testing.assert_close(Posterior.of(nets).outputs(x), torch.stack([net(x) for net in nets]).detach())


def test_modes_of_the_copy_are_set_whatever_they_were() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).eval()
    stacked = Stacked(net)
    weights, buffers = stacked.gather([net])
    stacked.model.train()
    assert torch.equal(stacked(weights, torch.ones(4, 3), buffers)[0], net(torch.ones(4, 3)))
    assert all(module.training for module in stacked.model.modules())


def norms() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    draw = generator()
    held = [*net.named_parameters(), *net.named_buffers()]
    samples = {k: torch.stack([v.detach()] * 3) for k, v in held}
    samples["0.weight"] = torch.randn(3, 4, 6, generator=draw)
    return net, samples, 5 * torch.randn(50, 6, generator=draw)


def test_statistics_of_samples_are_nobody_elses() -> None:
    net, samples, x = norms()
    before = {name: value.clone() for name, value in samples.items()}
    noise = torch.tensor([0.5, 1.0])
    a, b = Posterior(net, samples, noise), Posterior(net, samples, noise)
    expected = b.outputs(x).clone()
    a.renew_batch_norm(x)
    noise.mul_(2)
    assert torch.equal(b.outputs(x), expected)
    assert b.noise.tolist() == [0.5, 1.0]
    assert all(torch.equal(value, before[name]) for name, value in samples.items())
    norm = [module for module in a.stacked.model.modules() if isinstance(module, nn.BatchNorm1d)]
    renewed = {name: value.clone() for name, value in a.buffers.items()}
    a.outputs(x, on=norm)
    assert all(torch.equal(value, renewed[name]) for name, value in a.buffers.items())


def plain_statistics(net: nn.Module, samples: dict[str, Tensor], x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Means over all rows, and unbiased variances of batches, each by its rows, of what comes before the norm."""
    hidden = torch.einsum("sij,nj->sni", samples["0.weight"].double(), x.double()) + samples["0.bias"][:, None].double()
    parts = hidden.split(sizes, dim=1)
    variance = sum(part.var(dim=1) * part.shape[1] for part in parts) / sum(sizes)
    return hidden.mean(dim=1), variance


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(50, 48, [48, 2]), (49, 48, [49]), (50, 20, [20, 20, 10]), (2, 9, [2])]
)
def test_renewed_statistics_weigh_every_row_alike(n: int, size: int, sizes: list[int]) -> None:
    net, samples, x = norms()
    x[48:] += 30  # so that two rows, of the weight of 48, would be seen
    posterior = Posterior(net, samples).renew_batch_norm(x[:n], size)
    mean, variance = plain_statistics(net, samples, x[:n], sizes)
    torch.testing.assert_close(posterior.buffers["1.running_mean"].double(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(posterior.buffers["1.running_var"].double(), variance, rtol=1e-4, atol=1e-4)


def test_statistics_of_a_single_row_are_refused() -> None:
    net, samples, x = norms()
    for part, size in ((x[:1], 256), (x[:0], 256), (x, 1), (x, 0)):
        with pytest.raises(
            ValueError, match=f"x has {len(part)} rows and batch_size is {size}; batch norms need 2 or more"
        ):
            Posterior(net, samples).renew_batch_norm(part, size)
    plain = Posterior.of([nn.Linear(6, 2)])
    assert plain.renew_batch_norm(x[:1]) is plain  # nothing to renew


def test_rows_whose_statistics_are_of_the_batch_are_not_split() -> None:
    nets = [
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)).eval()
        for _ in range(3)
    ]
    x = torch.randn(2500, 6, generator=generator())
    posterior = Posterior.of(nets)
    expected = torch.stack([net(x) for net in nets]).detach()
    torch.testing.assert_close(posterior.outputs(x), expected)
    torch.testing.assert_close(Members(posterior.stacked, posterior.weights, posterior.buffers).outputs(x), expected)
    net, samples, _ = norms()
    tracked = Posterior(net, samples)
    norm = [module for module in tracked.stacked.model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert torch.equal(tracked.outputs(x, on=norm), tracked.outputs(x, rows=2500, on=norm))
    assert len(tracked.stacked.blocks(x, 1024)) == 3  # with statistics of their own they are


class Uncounted(nn.Module):
    """Changes its rows where torch does not count it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 2), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "data":
            x.data.mul_(2)
        else:
            x.detach().numpy()[:] *= 2
        return self.layer(x)


@pytest.mark.parametrize("how", ["data", "numpy"])
def test_rows_changed_past_torchs_counter_are_no_other_networks(how: str) -> None:
    nets, x = [Uncounted(how) for _ in range(3)], torch.randn(5, 4, generator=generator())
    expected, before = torch.stack([net.layer(2 * x) for net in nets]).detach(), x.clone()
    posterior = Posterior.of(nets)
    torch.testing.assert_close(posterior.outputs(x), expected)
    posterior.stacked.apart = True
    with torch.enable_grad():
        torch.testing.assert_close(posterior.stacked(posterior.weights, x, posterior.buffers).detach(), expected)
    assert torch.equal(x, before)


def test_samples_of_members_are_copies() -> None:
    net, samples, x = norms()
    posterior = Posterior(net, samples)
    members = Members(posterior.stacked, posterior.weights.clone(), posterior.buffers)
    given = members.samples()
    held = {name: value.clone() for name, value in given.items()}
    members.weights.mul_(2)
    members.stacked(members.weights, x, members.buffers, training=True)
    assert all(torch.equal(value, held[name]) for name, value in given.items())
