"""TabM against plain networks, its own members and the published package (arXiv:2410.24210)."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.model.tables.tabm import tabm
from probatum.techniques.model.tables.tabm.tabm import AdaptedLinear, TabM, average, build, member_loss, random_scales

pytestmark = pytest.mark.fast

SPEC = Spec("table", "classes", (5,), 3, numeric=3, cardinalities=(4, 6))


def table(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(n, 3, generator=generator)
    codes = torch.stack([torch.randint(size, (n,), generator=generator) for size in (4, 6)], dim=1)
    return torch.cat([numbers, codes.float()], dim=1), torch.randint(3, (n,), generator=generator)


def adapted(model: TabM) -> list[AdaptedLinear]:
    return [module for module in model.body if isinstance(module, AdaptedLinear)]


def scrambled(model: TabM) -> TabM:
    """The same model with every parameter random, so that nothing agrees by its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model.eval()


def test_one_member_without_scales_is_an_mlp() -> None:
    model = build(SPEC, k=1, width=16)
    for layer in adapted(model):
        nn.init.ones_(layer.r)
        nn.init.ones_(layer.s)
    x, _ = table()
    features = model.eval().encoder(x)
    for layer in adapted(model):
        features = F.linear(features, layer.linear.weight, layer.bias[0]).relu()
    plain = F.linear(features, model.head.weight[0].T, model.head.bias[0])
    torch.testing.assert_close(model.members(x)[:, 0], plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", ["naive", "mini", "tabm"])
def test_each_member_is_an_mlp_with_scaled_weights(variant: str) -> None:
    model = scrambled(build(SPEC, k=4, width=16, variant=variant))
    x, _ = table()
    together = model.members(x)
    for i in range(4):
        features = model.encoder(x)
        for layer in adapted(model):
            weight = layer.linear.weight  # (out, in)
            if layer.r is not None:
                weight = weight * layer.r[i]
            bias = layer.linear.bias
            if layer.s is not None:
                weight, bias = layer.s[i][:, None] * weight, layer.bias[i]
            features = F.linear(features, weight, bias).relu()
        expected = F.linear(features, model.head.weight[i].T, model.head.bias[i])
        torch.testing.assert_close(together[:, i], expected, atol=1e-5, rtol=1e-5)


def test_members_with_equal_adapters_and_heads_coincide() -> None:
    model = build(SPEC, k=5, width=8).eval()
    with torch.no_grad():
        for parameter in (adapted(model)[0].r, model.head.weight, model.head.bias):
            parameter.copy_(parameter[:1].expand_as(parameter))
    output = model.members(table()[0])
    torch.testing.assert_close(output, output[:, :1].expand_as(output))


@pytest.mark.parametrize("variant", ["naive", "mini", "tabm"])
def test_parameter_count(variant: str) -> None:
    k, width, outputs = 4, 16, 3
    model = build(SPEC, k=k, width=width, depth=3, variant=variant)
    d = model.encoder.width
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.encoder.parameters())
    shared = d * width + 2 * width * width
    heads = k * (width + 1) * outputs
    adapters = k * d + 3 * width if variant == "mini" else k * (d + 2 * width) + 2 * k * 3 * width
    assert count == shared + heads + adapters


def test_only_the_first_adapter_starts_random() -> None:
    layers = adapted(build(SPEC, k=8, width=16))
    first = layers[0].r.detach()
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    assert all(bool((layer.s == 1).all()) for layer in layers)
    assert all(bool((layer.r == 1).all()) for layer in layers[1:])
    assert all(torch.equal(layer.bias, layer.bias[:1].expand_as(layer.bias)) for layer in layers)
    torch.testing.assert_close(first[:, 3:5], first[:, 3:4].expand(-1, 2))  # columns of one category share their sign
    naive = adapted(build(SPEC, k=8, width=16, variant="naive"))
    assert all(set(layer.s.detach().unique().tolist()) == {-1.0, 1.0} for layer in naive)


def test_number_embeddings_start_the_first_adapter_normal() -> None:
    for kind in ("piecewise", "periodic"):
        model = build(SPEC, k=3, width=8, numbers=kind)
        r = adapted(model)[0].r.detach()
        assert r.unique().numel() == 3 * 5
        assert model.eval()(table()[0]).shape == (12, 3)


def test_random_scales_draw_once_a_chunk() -> None:
    scales = random_scales(6, [2, 3], "normal")
    torch.testing.assert_close(scales[:, [0, 2]].repeat_interleave(torch.tensor([2, 3]), dim=1), scales)


def test_evaluation_averages_probabilities_and_values() -> None:
    output = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(average(output, "classes").exp(), output.softmax(2).mean(1))
    torch.testing.assert_close(average(output, "reals"), output.mean(1))


def test_objective_is_the_mean_of_the_members_losses() -> None:
    model = build(SPEC, k=4, width=8, dropout=0.0)
    x, y = table()
    output = model(x)
    members = model.members(x)
    loop = torch.stack([F.cross_entropy(members[:, i], y) for i in range(4)]).mean()
    torch.testing.assert_close(model.objective(x, output, y, F.cross_entropy), loop)
    torch.testing.assert_close(member_loss(output, y, lambda o, t: F.cross_entropy(o, t, reduction="none")), loop)
    ensemble = F.nll_loss(average(members, "classes"), y)
    assert float(loop.detach()) > float(ensemble.detach())  # Jensen: the average's loss is another thing


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), F.cross_entropy, F.l1_loss])
def test_an_ordinary_loss_is_refused(loss: object) -> None:
    output = build(SPEC, k=4, width=8)(table()[0])
    with pytest.raises(ValueError, match=r"\(12, 4, 3\).*member_loss"):
        loss(output, torch.zeros(12, 3))
    assert type(output.flatten(0, 1)) is Tensor
    assert type(output + 1) is Tensor


def test_member_loss_wants_members() -> None:
    with pytest.raises(ValueError, match=r"shape \(12, 3\)"):
        member_loss(torch.zeros(12, 3), torch.zeros(12), F.mse_loss)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("k", 0), ("width", 0), ("depth", -1), ("dropout", 1.5), ("variant", "big"), ("numbers", "fourier")],
)
def test_settings_outside_their_range(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value!r}"):
        build(SPEC, **{setting: value})


def test_no_columns() -> None:
    with pytest.raises(ValueError, match="no columns"):
        TabM(0)


@pytest.mark.parametrize(("variant", "kind"), [("tabm", "tabm"), ("mini", "tabm-mini")])
def test_equals_the_published_package(variant: str, kind: str) -> None:
    published = pytest.importorskip("tabm", reason="the tabm package is the witness")
    theirs = published.TabM.make(n_num_features=3, d_out=2, k=4, n_blocks=2, d_block=16, dropout=0.0, arch_type=kind)
    ours = TabM(3, outputs=2, k=4, width=16, depth=2, dropout=0.0, variant=variant)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        for layer, sequence in zip(adapted(ours), theirs.backbone.blocks, strict=True):
            block = sequence[0]
            layer.linear.weight.copy_(block.weight)
            if variant == "tabm":
                layer.r.copy_(block.r)
                layer.s.copy_(block.s)
                layer.bias.copy_(block.bias)
            else:
                layer.linear.bias.copy_(block.bias)
        if variant == "mini":
            adapted(ours)[0].r.copy_(theirs.backbone.affine.weight)
        ours.head.weight.copy_(theirs.output.weight)
        ours.head.bias.copy_(theirs.output.bias)
    x = torch.randn(9, 3, generator=generator)
    torch.testing.assert_close(ours.members(x), theirs(x))


def test_trains_on_the_bench_and_predicts_from_its_state() -> None:
    data = open_dataset("wine").prepare(1)
    run = fit("tabm(k=4, width=32)", data, 1, training=Training(epochs=15))
    assert accuracy(run.model, data.test) > 0.8
    again = build(data.spec, k=4, width=32).eval()
    again.load_state_dict(run.model.state_dict())
    assert torch.equal(again(data.test.x), run.model(data.test.x))
    reals = open_dataset("diabetes").prepare(1)
    assert fit("tabm(k=4, width=32)", reals, 1, training=Training(epochs=2)).model(reals.test.x).shape[1] == 1


def test_example() -> None:
    assert doctest.testmod(tabm).failed == 0
