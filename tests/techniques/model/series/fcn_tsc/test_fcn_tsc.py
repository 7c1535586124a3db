"""FCN, ResNet and MLP for series against their definitions (arXiv:1611.06455)."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.claims.tools import accuracy, fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.model.series.fcn_tsc import fcn_tsc
from probatum.techniques.model.series.fcn_tsc.fcn_tsc import (
    MaskedNorm,
    SeriesConvNet,
    build,
    masked_mean,
    mpce,
    same_padding,
    z_normalise,
)

SPEC = Spec("series", "classes", (2, 20), 3)
MASKED = Spec("series", "classes", (3, 20), 3, masked=True)


def series(n: int = 6, channels: int = 2, time: int = 20) -> Tensor:
    return torch.randn(n, channels, time, generator=torch.Generator().manual_seed(0))


def padded(x: Tensor, lengths: list[int], filler: float, extra: int = 0) -> Tensor:
    x = F.pad(x, (0, extra))
    mask = (torch.arange(x.shape[2])[None, :] < torch.tensor(lengths)[:, None]).float()
    return torch.cat([torch.where(mask[:, None, :] > 0, x, filler), mask[:, None, :]], dim=1)


def warmed(spec: Spec, kind: str = "fcn") -> SeriesConvNet:
    """A network whose norms have running statistics and offsets of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(spec, kind, width=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, MaskedNorm):
                for value in (module.bias, module.running_mean):
                    value.copy_(torch.randn(value.shape, generator=generator))
    return net.eval()


def test_fcn_is_the_paper_s() -> None:
    net = build(Spec("series", "classes", (1, 50), 4))
    shapes = [tuple(layer.conv.weight.shape) for layer in net.layers]
    assert shapes == [(128, 1, 8), (256, 128, 5), (128, 256, 3)]
    resnet = build(Spec("series", "classes", (1, 50), 4), "resnet")
    widths = [[tuple(layer.conv.weight.shape) for layer in block.layers] for block in resnet.layers]
    assert widths[1] == [(128, 64, 8), (128, 128, 5), (128, 128, 3)]
    assert [block.skip is None for block in resnet.layers] == [False, False, True]
    mlp = build(Spec("series", "classes", (1, 50), 4), "mlp")
    assert [m.p for m in mlp.body if isinstance(m, torch.nn.Dropout)] == [0.1, 0.2, 0.2, 0.3]


def test_fcn_equals_a_plain_stack() -> None:
    net, x = warmed(SPEC), series()
    expected = x
    for layer, pads in zip(net.layers, ((3, 4), (2, 2), (1, 1)), strict=True):
        expected = F.conv1d(F.pad(expected, pads), layer.conv.weight, layer.conv.bias)
        norm = layer.norm
        scaled = (expected - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()
        expected = (scaled * norm.weight[:, None] + norm.bias[:, None]).relu()
    torch.testing.assert_close(net(x), net.head(expected.mean(2)), atol=1e-5, rtol=1e-5)


def test_resnet_block_adds_before_relu() -> None:
    net, x = warmed(SPEC, "resnet"), series()
    block = net.layers[0]
    inner = block.layers[2](block.layers[1](block.layers[0](x)))
    torch.testing.assert_close(block(x), (inner + block.skip(x)).relu())
    assert float(inner.detach().min()) < 0


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 8])
def test_same_padding_keeps_the_length(kernel: int) -> None:
    left, right = same_padding(kernel)
    assert left + right == kernel - 1
    assert right - left in (0, 1)
    assert same_padding(8) == (3, 4)


@pytest.mark.parametrize("kind", ["fcn", "resnet"])
def test_mean_of_the_map_plus_bias_is_the_logit(kind: str) -> None:
    net, x = warmed(SPEC, kind), series()
    maps = net.class_maps(x)
    assert maps.shape == (6, 3, 20)
    torch.testing.assert_close(maps.mean(2) + net.head.bias, net(x), atol=1e-5, rtol=0)
    net = warmed(MASKED, kind)
    x = padded(series(), [20, 5, 9, 20, 1, 13], 0.0)
    torch.testing.assert_close(masked_mean(net.class_maps(x), x[:, -1]) + net.head.bias, net(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["fcn", "resnet"])
def test_padding_cannot_change_an_output(kind: str) -> None:
    net, lengths = warmed(MASKED, kind), [20, 5, 9, 20, 1, 13]
    plain = net(padded(series(), lengths, 0.0))
    torch.testing.assert_close(net(padded(series(), lengths, 77.0)), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(net(padded(series(), lengths, 0.0, extra=15)), plain, atol=1e-6, rtol=0)
    alone = net(padded(series()[1:2, :, :5], [5], 0.0))
    torch.testing.assert_close(alone, plain[1:2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["fcn", "resnet"])
def test_padding_stays_out_of_the_batch_statistics(kind: str) -> None:
    lengths = [20, 5, 9, 20, 1, 13]
    outputs = []
    for extra in (0, 30):
        net = warmed(MASKED, kind).train()
        outputs.append((net(padded(series(), lengths, 9.0, extra=extra)), net.layers[-1]))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], atol=1e-5, rtol=1e-5)
    for first, second in zip(outputs[0][1].buffers(), outputs[1][1].buffers(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_a_mask_of_ones_is_no_mask() -> None:
    x = series()
    plain, masked = warmed(SPEC).train(), warmed(MASKED).train()
    masked.load_state_dict(plain.state_dict())
    torch.testing.assert_close(masked(padded(x, [20] * 6, 0.0)), plain(x), atol=1e-5, rtol=1e-5)


def test_mpce_by_hand() -> None:
    assert mpce([0.2, 0.3], [2, 6]) == pytest.approx((0.1 + 0.05) / 2)
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        mpce([0.1], [1])


def test_z_normalisation() -> None:
    x = 5 + 3 * series()
    found = z_normalise(x)
    torch.testing.assert_close(found.mean(2), torch.zeros(6, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(2, unbiased=False), torch.ones(6, 2))
    mask = (torch.arange(20) < 8).float().expand(6, 20)
    torch.testing.assert_close(z_normalise(x, mask)[:, :, :8], z_normalise(x[:, :, :8]))
    with pytest.warns(UserWarning, match="series 0, channel 0"):  # nothing observed at all
        assert bool((z_normalise(x[:1], torch.zeros(1, 20)) == 0).all())
    x[2, 1] = 4.0
    with pytest.warns(UserWarning, match=r"series 2, channel 1 of shape \(6, 2, 20\)"):
        assert bool((z_normalise(x)[2, 1] == 0).all())


def test_z_normalisation_tells_what_is_constant_by_the_precision_and_has_gradients() -> None:
    steps = torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    far = 1e8 + 50 * steps  # float64 tells this from a constant, float32 hardly
    torch.testing.assert_close(z_normalise(far), z_normalise(steps), atol=1e-5, rtol=1e-5)
    x = steps.clone()
    x[1] = 7.0
    x.requires_grad_()
    with pytest.warns(UserWarning, match="series 1, channel 0"):
        z_normalise(x)[:, :, :5].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert bool((x.grad[1] == 0).all())
    assert bool((x.grad[0] != 0).all())
    assert torch.autograd.gradcheck(z_normalise, (steps[:1],)) if steps.requires_grad_() is steps else False
    for dtype in (torch.bfloat16, torch.float16):
        low = (5 + 3 * series()).to(dtype)
        torch.testing.assert_close(z_normalise(low), z_normalise(low.float()).to(dtype))
    with pytest.warns(UserWarning, match="constant"):
        assert bool((z_normalise(torch.full((1, 1, 30), 1e4 / 3)) == 0).all())


def test_swapped_axes_and_settings() -> None:
    with pytest.raises(ValueError, match=r"\(n, 128, 3\)"):
        build(Spec("series", "classes", (128, 3), 2))
    with pytest.raises(ValueError, match=r"shape \(6, 20, 2\)"):
        build(SPEC, width=8)(series().transpose(1, 2))
    for settings, message in (
        ({"kind": "gru"}, "kind is 'gru'"),
        ({"width": 1}, "width is 1"),
        ({"width": 0, "kind": "mlp"}, "width is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(SPEC, **settings)


@pytest.mark.parametrize("kind", ["fcn", "resnet", "mlp"])
def test_trains_on_the_bench(kind: str) -> None:
    data = open_dataset("cbf").prepare(1)
    keep = torch.arange(90)
    train = type(data.train)(data.train.x[keep], data.train.y[keep], data.train.rows[keep])
    few = type(data)(data.spec, train, data.valid, data.test)
    arm = f"fcn-tsc(kind='{kind}', width=16)"
    run = fit(arm, few, 1, training=Training(epochs=20, batch_size=16, lr=1e-2))
    assert accuracy(run.model, data.test) > 0.7
    again = build(data.spec, kind, 16).eval()
    again.load_state_dict(run.model.state_dict())
    assert torch.equal(again(data.test.x), run.model(data.test.x))


def test_example() -> None:
    assert doctest.testmod(fcn_tsc).failed == 0


def test_a_kind_that_is_none_is_refused_and_every_setting_acts() -> None:
    for kind in ("typo", "mlp"):
        with pytest.raises(ValueError, match=f"kind is '{kind}'; use fcn or resnet"):
            SeriesConvNet(2, 3, kind=kind)
    for kind in fcn_tsc.KINDS:
        sizes = [sum(p.numel() for p in build(SPEC, kind, width).parameters()) for width in (32, 64, None)]
        assert sizes[0] < sizes[1] < sizes[2]
    assert build(SPEC, "mlp").head.in_features == 500
    assert build(SPEC).head.in_features == build(SPEC, "resnet").head.in_features == 128
