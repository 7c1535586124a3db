"""ResNets against published parameter counts and their own definition (arXiv:1512.03385)."""

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
from probatum.techniques.model.images import resnet
from probatum.techniques.model.images.resnet import Block, PadShortcut, build, residual, response_std
from small_networks import Begins

pytestmark = pytest.mark.fast

COLOUR = Spec("image", "classes", (3, 32, 32), 10)
IMAGENET = Spec("image", "classes", (3, 224, 224), 1000)
GREY = Spec("image", "classes", (1, 8, 8), 10)


def images(n: int = 4, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_imagenet_parameter_counts(depth: int, expected: int) -> None:
    with torch.device("meta"):
        net = build(IMAGENET, depth, 64, "imagenet")
    assert count(net) == expected


def test_images_pass_the_imagenet_style() -> None:
    small = build(Spec("image", "classes", (3, 64, 64), 5), 50, 8, "imagenet").eval()
    assert small(images(2, 3, 64)).shape == (2, 5)
    assert small.stem(images(2, 3, 64)).shape == (2, 8, 16, 16)
    assert [len(list(stage)) for stage in (small.blocks,)] == [16]


def test_a_network_starts_alike_wherever_it_is_built() -> None:
    def drawn() -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return list(build(GREY, 8, 4).double().parameters())

    plain = drawn()
    with torch.device("cpu"):
        again = drawn()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85), (110, 1.73)])
def test_cifar_parameter_counts(depth: int, millions: float) -> None:
    net = build(COLOUR, depth)
    assert count(net) == pytest.approx(1e6 * millions, abs=5e3)
    layers = [m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name]
    assert len(layers) == depth
    assert count(build(COLOUR, depth, plain=True)) == count(net)  # option A has no parameters


def test_option_a_by_hand() -> None:
    x = images(2, 3, 6)
    found = PadShortcut(3, 5, 2)(x)
    torch.testing.assert_close(found[:, :3], F.max_pool2d(x, 1, 2))
    assert bool((found[:, 3:] == 0).all())
    assert found.shape == (2, 5, 3, 3)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_without_its_last_gain_is_relu(bottleneck: bool) -> None:
    block = Block(8, 2 if bottleneck else 8, bottleneck=bottleneck)
    nn.init.zeros_(block.inner[-1].weight)
    x = torch.randn(3, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(block(x), x.relu())


def test_block_by_hand() -> None:
    block, x = Block(3, 4, 2, "B").eval(), images(2, 3)
    a, norm_a, _, b, norm_b = block.inner
    inner = norm_b(F.conv2d(norm_a(F.conv2d(x, a.weight, stride=2, padding=1)).relu(), b.weight, padding=1))
    straight = block.shortcut[1](F.conv2d(x, block.shortcut[0].weight, stride=2))
    torch.testing.assert_close(block(x), (inner + straight).relu())


def test_where_shortcuts_project() -> None:
    def kinds(shortcut: str) -> list[type]:
        return [type(block.shortcut) for block in build(GREY, 14, 4, shortcut=shortcut).blocks]

    assert kinds("A") == [nn.Identity, nn.Identity, PadShortcut, nn.Identity, PadShortcut, nn.Identity]
    assert kinds("B") == [nn.Identity, nn.Identity, nn.Sequential, nn.Identity, nn.Sequential, nn.Identity]
    assert kinds("C") == [nn.Sequential] * 6


def test_where_a_bottleneck_strides() -> None:
    strides = {
        on: [m.stride[0] for m in Block(8, 4, 2, "B", True, on).inner if isinstance(m, nn.Conv2d)]
        for on in ("3x3", "1x1")
    }
    assert strides == {"3x3": [1, 2, 1], "1x1": [2, 1, 1]}


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_plain_twin_starts_identical(shortcut: str) -> None:
    nets = []
    for plain in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            nets.append(build(GREY, 14, 4, shortcut=shortcut, plain=plain))
    deep, twin = (dict(net.named_parameters()) for net in nets)
    assert all(torch.equal(value, deep[name]) for name, value in twin.items())
    assert all("shortcut" in name for name in set(deep) - set(twin))


def test_he_start() -> None:
    weight = build(COLOUR, 20, 64).blocks[4].inner[0].weight.detach()
    fan_out = weight.shape[0] * 9
    assert float(weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_wrapper() -> None:
    linear = nn.Linear(4, 4)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(residual(linear)(x), linear(x) + x)
    projected = residual(nn.Linear(4, 6), nn.Linear(4, 6), nn.ReLU())
    torch.testing.assert_close(projected(x), (projected.subnet(x) + projected.projection(x)).relu())
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(3, 4\)"):
        residual(nn.Linear(4, 6))(x)
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3, 4\)"):  # would broadcast
        residual(nn.Linear(4, 1))(x)


def test_responses() -> None:
    net, x = build(GREY, 14, 4, shortcut="B").train(), images(16)
    found = response_std(net, x)
    assert len(found) == 13
    net.eval()
    stem = net.stem[1](net.stem[0](x))
    assert found[0] == pytest.approx(float(stem.detach().std()), rel=1e-5)
    assert not any(module._forward_hooks for module in net.modules())
    net.train()
    net.stem.eval()  # frozen on purpose
    response_std(net, x)
    assert net.training
    assert not net.stem[1].training
    with pytest.raises(RuntimeError):
        response_std(net, images(2, 3))
    assert net.blocks.training
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 21}, "depth is 21.*e.g. 20"),
        ({"depth": 20, "style": "imagenet"}, "depth is 20.*18, 34"),
        ({"style": "tiny"}, "style is 'tiny'"),
        ({"shortcut": "D"}, "shortcut is 'D'"),
        ({"width": 0}, "width is 0"),
        ({"stride_on": "5x5"}, "stride_on is '5x5'"),
    ],
)
def test_settings_outside_their_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(GREY, **settings)


def test_shortcuts_that_do_not_exist_or_do_not_fit() -> None:
    with pytest.raises(ValueError, match="shortcut is 'D'"):
        Block(4, 4, shortcut="D")
    with pytest.raises(ValueError, match="8 become 4"):
        Block(8, 4, shortcut="A")


def test_trains_on_the_bench() -> None:
    data = open_dataset("digits").prepare(1)
    run = fit("resnet(depth=8, width=4)", data, 1, training=Training(epochs=4, lr=2e-2))
    assert accuracy(run.model, data.test) > 0.7
    again = build(data.spec, 8, 4).eval()
    again.load_state_dict(run.model.state_dict())
    assert torch.equal(again(data.test.x), run.model(data.test.x))


def test_examples() -> None:
    assert doctest.testmod(resnet).failed == 0


def test_a_sub_network_that_begins_in_place_leaves_the_shortcut() -> None:
    torch.manual_seed(0)
    inside, x = nn.Sequential(Begins(), nn.Linear(4, 4)), torch.randn(3, 4)
    expected = inside(x.clone()) + x
    assert torch.equal(residual(inside)(x), expected)
    straight, before = nn.Sequential(Begins(), nn.Linear(4, 4)), x.clone()
    residual(nn.Linear(4, 4), straight)(x)
    assert torch.equal(x, before)
