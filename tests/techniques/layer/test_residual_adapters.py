"""Residual adapters: equal to the network they start from, folded without loss, domains that do not touch each other."""

from __future__ import annotations

import copy
import doctest
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.kinds.image.network import SmallResNet
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.layer import residual_adapters
from probatum.techniques.layer.residual_adapters import (
    ManyDomains,
    ParallelAdapter,
    SeriesAdapter,
    apply,
    decathlon_score,
    fold,
    parameter_groups,
)

SPEC = Spec("image", "classes", (1, 8, 8), 10)
FORMS = ("series", "parallel")


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> SmallResNet:
    """A network whose norms are not fresh."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SmallResNet(SPEC).double()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(-1.5, 1.5)
                module.bias.data.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return made


def images(n: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=own(seed))


def stirred(model: nn.Module) -> nn.Module:
    """Adapters that are not zero, and norms that have moved."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SeriesAdapter | ParallelAdapter):
                weight = module.adapter.weight
                weight.copy_(0.2 * torch.randn(weight.shape, dtype=weight.dtype, generator=own(1)))
        model.train()(images(20, seed=7))
    return model.eval()


@pytest.mark.parametrize("form", residual_adapters.FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_pretrained_network(form: str, training: bool) -> None:
    model, adapted = net().train(training), net().train(training)
    count = apply(adapted, form)
    assert count == {"series": 6, "parallel": 6, "norms": 9}[form]
    torch.testing.assert_close(adapted(images()), model(images()), atol=1e-4 if training else 1e-6, rtol=1e-4)


def test_series_form_by_hand() -> None:
    norm = nn.BatchNorm2d(3).double().eval()
    adapter = SeriesAdapter(norm)
    v, a = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=own()), torch.randn(3, 3, generator=own(1)).double()
    with torch.no_grad():
        adapter.adapter.weight.copy_(a[:, :, None, None])
    first = adapter.norm1(v)
    mixed = first + torch.einsum("oc,nchw->nohw", a, first)
    torch.testing.assert_close(adapter(v), adapter.norm2(mixed), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_trained(form: str) -> None:
    model = net()
    apply(model, form)
    for name, p in model.named_parameters():
        private = "adapter" in name and ".base." not in name
        norm = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)
        assert p.requires_grad == (private or norm or name.startswith("head")), name
    extra = sum(p.numel() for n, p in model.named_parameters() if "adapter" in n and p.requires_grad)
    assert 0.05 < extra / sum(p.numel() for p in net().parameters()) < 0.15


@pytest.mark.parametrize("form", FORMS)
def test_folded_is_unfolded(form: str) -> None:
    model = net()
    apply(model, form)
    stirred(model)
    folded, x = copy.deepcopy(model), images(5, seed=3)
    assert fold(folded) == 6
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-6)
    assert not any(isinstance(m, SeriesAdapter | ParallelAdapter) for m in folded.modules())
    assert not torch.allclose(folded(x), net().eval()(x), atol=1e-2)


def test_fold_of_a_convolution_with_bias_groups_and_stride() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
    ).double()
    for form in FORMS:
        adapted = copy.deepcopy(model)
        assert apply(adapted, form) == 1
        with torch.no_grad():
            weight = next(m for m in adapted.modules() if isinstance(m, SeriesAdapter | ParallelAdapter)).adapter.weight
            weight.copy_(torch.randn(weight.shape, generator=own(2)))
        x = torch.randn(3, 4, 4, 4, dtype=torch.float64, generator=own())
        wanted = adapted.eval()(x)
        assert fold(adapted) == 1
        torch.testing.assert_close(adapted(x), wanted, atol=1e-9, rtol=0)


def test_fold_wants_evaluation_mode() -> None:
    model = net()
    apply(model)
    with pytest.raises(ValueError, match=r"eval\(\)"):
        fold(model.train())


def trained(many: ManyDomains, domain: str, seed: int, steps: int = 8) -> None:
    optimizer = torch.optim.SGD(many.private(domain), lr=0.1)
    many.train()
    for step in range(steps):
        x = images(12, seed=seed + step)
        output = many(x, domain)
        y = torch.arange(12) % output.shape[1]
        optimizer.zero_grad()
        F.cross_entropy(output, y).backward()
        optimizer.step()
    many.eval()


@pytest.mark.parametrize("form", residual_adapters.FORMS)
def test_training_one_domain_leaves_the_other_alone(form: str) -> None:
    base = net()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    many = ManyDomains(base, form).add("a", 3, own(1)).add("b", 5, own(2))
    x = images()
    trained(many, "a", 10)
    before, delta = many(x, "a"), many.delta("b")
    trained(many, "b", 20)
    assert torch.equal(many(x, "a"), before)
    assert any(not torch.equal(v, delta[name]) for name, v in many.delta("b").items())
    shared = dict(many.net.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
    assert not any(p.requires_grad for name, p in shared.items() if "conv" in name and "adapter" not in name)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_domains_does_not_matter(form: str) -> None:
    found = []
    for order in itertools.permutations(("a", "b")):
        many = ManyDomains(net(), form)
        for name in order:
            many.add(name, 3, own(ord(name)))
        for name in order:
            trained(many, name, ord(name))
        found.append([many(images(), name) for name in ("a", "b")])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", residual_adapters.FORMS)
def test_a_delta_carries_a_domain(form: str) -> None:
    many = ManyDomains(net(), form).add("a", 3, own(1))
    trained(many, "a", 5)
    delta, x = many.delta("a"), images()
    shared = sum(p.numel() for p in net().parameters())
    assert sum(v.numel() for v in delta.values()) < 0.2 * shared
    assert any("running_mean" in name for name in delta)
    other = ManyDomains(net(), form).add("b", 3, own(9)).eval()
    assert not torch.equal(other(x, "b"), many(x, "a"))
    other.load_delta("b", delta)
    assert torch.equal(other(x, "b"), many(x, "a"))
    with pytest.raises(KeyError, match="other tensors"):
        other.load_delta("b", {})


def test_a_new_domain_is_the_pretrained_network_with_a_new_head() -> None:
    base = net().eval()
    many = ManyDomains(base).add("a", 4, own(1)).eval()
    head = many.own["a"][list(many._base).index("head")]
    phi: list[Tensor] = []
    handle = base.head.register_forward_pre_hook(lambda _m, inputs: phi.append(inputs[0]))
    base(images())
    handle.remove()
    torch.testing.assert_close(many(images(), "a"), head(phi[0]), atol=1e-6, rtol=0)


def test_unknown_domains_are_named() -> None:
    many = ManyDomains(net()).add("digits", 10).add("signs", 3)
    with pytest.raises(KeyError, match="'birds'; there are digits, signs"):
        many(images(), "birds")
    with pytest.raises(KeyError, match="digits, signs"):
        many.delta("birds")
    for name in ("digits", "", "a.b"):
        with pytest.raises(ValueError, match="without dots"):
            many.add(name, 3)
    assert many.domains == ("digits", "signs")


def test_groups_give_adapters_their_own_decay() -> None:
    model = net()
    apply(model)
    adapters, norms, rest = parameter_groups(model, adapter_decay=0.05, weight_decay=0.001)
    assert [g["weight_decay"] for g in (adapters, norms, rest)] == [0.05, 0.0, 0.001]
    assert {p.ndim for p in adapters["params"]} == {4}
    assert {p.ndim for p in norms["params"]} == {1}
    assert sum(len(g["params"]) for g in (adapters, norms, rest)) == sum(p.requires_grad for p in model.parameters())
    assert sum(p.numel() for p in rest["params"]) == 650


def test_decathlon_score() -> None:
    reference = {"a": 0.2, "b": 0.1, "c": 0.4}
    assert decathlon_score(dict.fromkeys(reference, 0.0), reference) == pytest.approx(3000)
    assert decathlon_score({name: 2 * e for name, e in reference.items()}, reference) == 0
    assert decathlon_score({"a": 0.9}, {"a": 0.2}) == 0  # worse than twice the baseline's error is no less than nothing
    assert decathlon_score(reference, reference) == pytest.approx(3 * 250)
    by_hand = 1000 * 0.4**-2 * (0.4 - 0.1) ** 2 + 1000 * 0.2**-2 * (0.2 - 0.15) ** 2
    assert decathlon_score({"a": 0.1, "b": 0.15}, {"a": 0.2, "b": 0.1}) == pytest.approx(by_hand)
    with pytest.raises(KeyError, match="'b'"):
        decathlon_score({"a": 0.1}, reference)
    with pytest.raises(ValueError, match=r"1\.5"):
        decathlon_score({"a": 1.5}, {"a": 0.2})


def test_misuse() -> None:
    with pytest.raises(ValueError, match="series, parallel, norms"):
        apply(net(), "sideways")
    with pytest.raises(ValueError, match="dropout is 1"):
        apply(net(), dropout=1.0)
    unpadded = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="form='series'"):
        apply(unpadded, "parallel")
    with pytest.raises(ValueError, match="no batch norms"):
        ManyDomains(nn.Sequential(nn.Linear(3, 2)))


def test_dropout_before_the_last_layer() -> None:
    model = net()
    apply(model, dropout=0.5)
    assert isinstance(model.head, nn.Sequential)
    assert not torch.equal(model.train()(images()), model(images()))


@pytest.mark.parametrize("form", residual_adapters.FORMS)
def test_trains_through_the_bench(form: str) -> None:
    data = open_dataset("digits").prepare(0)
    run = fit(f"residual-adapters(form={form!r})", data, 1, training=Training(steps=40, select="last"))
    again = fit(f"residual-adapters(form={form!r})", data, 1, training=Training(steps=1, select="last"))
    late = dict(run.model.named_parameters())
    for name, p in again.model.named_parameters():
        assert torch.equal(p, late[name]) != p.requires_grad, name


def test_doctests() -> None:
    assert doctest.testmod(residual_adapters).failed == 0


def test_one_norm_in_two_places_is_the_domains_in_both() -> None:
    def shared() -> nn.Sequential:
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.Flatten(), nn.Linear(64, 2)
        )  # fmt: skip

    model = shared()
    apply(model)
    assert model[1] is model[4]
    assert isinstance(model[1], residual_adapters.SeriesAdapter)
    x = torch.randn(5, 1, 8, 8)
    model.eval()
    with torch.no_grad():
        model[1].adapter.weight.normal_(0, 0.3)
        expected = model(x)
        residual_adapters.fold(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    many = ManyDomains(shared()).add("a", 2).add("b", 2).eval()
    with torch.no_grad():
        for part in many.own["a"].modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.mul_(2.0)
    inside = []
    handles = [
        m.register_forward_hook(lambda *_: inside.append(1)) for m in many.own["a"] if not isinstance(m, nn.Linear)
    ]
    many(x, "a")
    for handle in handles:
        handle.remove()
    assert len(inside) == 2  # its own norm stands in both places


def test_a_frozen_batch_norm_of_the_users_keeps_its_mode() -> None:
    model = net().train()
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m is not None)
    norm.eval()
    apply(model, form="parallel")
    assert not norm.training
    assert model.training


def test_norms_that_are_registered_behind_all_convolutions_are_folded_into_their_own() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.norm2(self.two(self.norm1(self.one(x)).relu()))

    torch.manual_seed(0)
    for form in ("series", "parallel"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), Listed(), nn.Flatten(), nn.Linear(144, 2))
        assert apply(model, form) == 2
        x = torch.randn(5, 1, 8, 8)
        for module in model.modules():
            if isinstance(module, residual_adapters.SeriesAdapter | residual_adapters.ParallelAdapter):
                nn.init.normal_(module.adapter.weight, std=0.3)
        model(x)
        model.eval()
        with torch.no_grad():
            expected = model(x)
            assert residual_adapters.fold(model) == 2
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_a_large_eps_does_not_move_the_start(training: bool) -> None:
    norm = nn.BatchNorm2d(3, eps=0.3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.2, -1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
        norm.running_mean.copy_(torch.tensor([0.5, -2.0, 1.0]))
        norm.running_var.copy_(torch.tensor([0.1, 4.0, 1.0]))
    x = 3 * torch.randn(50, 3, 4, 4, dtype=torch.float64) + 1
    adapter, plain = residual_adapters.SeriesAdapter(norm).train(training), copy.deepcopy(norm).train(training)
    if training:  # BN2 sees variances gamma^2 v / (v + eps), not gamma^2
        spread = x.var(dim=(0, 2, 3), correction=0)
        inner = norm.weight.square() * spread / (spread + 0.3)
        second = ((norm.weight.square() + 0.3) / (inner + 0.3)).sqrt().view(-1, 1, 1)
        bias = norm.bias.view(-1, 1, 1)
        torch.testing.assert_close(adapter(x), (plain(x) - bias) * second + bias)
    else:
        torch.testing.assert_close(adapter(x), plain(x))


def test_a_domain_of_one_output() -> None:
    many = residual_adapters.ManyDomains(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    )
    assert many.add("one", 1).eval()(torch.zeros(2, 1, 3, 3), "one").shape == (2, 1)
