"""IBN-Net against torch's norms on the slices, its invariance and its surgery (arXiv:1807.09441)."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.kinds.image.network import SmallResNet
from probatum.numerics.networks.residual_blocks import blocks_in, stages_of
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.layer import ibn_net
from probatum.techniques.layer.ibn_net import IBN, apply, channel_divergence, layer_divergences

pytestmark = pytest.mark.fast

SPEC = Spec("image", "classes", (1, 8, 8), 10)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net() -> SmallResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallResNet(SPEC)


def perturbed(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        for i, tensor in enumerate((norm.weight, norm.bias, norm.running_mean)):
            tensor.copy_(maps(*tensor.shape, seed=i))
        norm.running_var.copy_(maps(*norm.running_var.shape, seed=5).square() + 0.1)
    return norm


@pytest.mark.parametrize("channels", [6, 7])
@pytest.mark.parametrize("training", [True, False])
def test_halves_are_torchs_norms_on_the_slices(channels: int, training: bool) -> None:
    norm = perturbed(nn.BatchNorm2d(channels)).double().train(training)
    layer, x = IBN.from_batch_norm(norm, 0.5), maps(4, channels, 5, 5).double()
    half = channels // 2
    first, second = (
        nn.InstanceNorm2d(half, affine=True).double(),
        nn.BatchNorm2d(channels - half).double().train(training),
    )
    first.load_state_dict({"weight": norm.weight[:half], "bias": norm.bias[:half]})
    rest = {name: getattr(norm, name)[half:] for name in ("weight", "bias", "running_mean", "running_var")}
    second.load_state_dict({**rest, "num_batches_tracked": norm.num_batches_tracked})
    output = layer(x)
    torch.testing.assert_close(output[:, :half], first(x[:, :half]), atol=1e-6, rtol=0)
    torch.testing.assert_close(output[:, half:], second(x[:, half:]), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.batch.running_mean, second.running_mean)


def test_instance_half_ignores_contrast_and_brightness_of_each_image() -> None:
    layer, x = IBN(8), maps(6, 8, 9, 9)
    a = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * 3 + 0.5
    b = maps(6, 1, 1, 1, seed=2)
    with torch.no_grad():
        plain, shifted = layer(x), layer(a * x + b)
    torch.testing.assert_close(plain[:, :4], shifted[:, :4], atol=1e-4, rtol=0)
    assert float((plain - shifted)[:, 4:].abs().max()) > 0.1


def test_ratio_zero_is_batch_norm_and_one_is_instance_norm() -> None:
    norm, x = perturbed(nn.BatchNorm2d(5)), maps(3, 5, 4, 4)
    assert torch.equal(IBN.from_batch_norm(norm, 0.0)(x), copy.deepcopy(norm)(x))
    whole = IBN.from_batch_norm(norm, 1.0)
    assert whole.batch is None
    shape = (1, 5, 1, 1)
    expected = nn.InstanceNorm2d(5)(x) * norm.weight.view(shape) + norm.bias.view(shape)
    torch.testing.assert_close(whole(x), expected, atol=1e-6, rtol=0)


def test_frozen_norms_stay_frozen() -> None:
    norm = nn.BatchNorm2d(6).requires_grad_(False)
    assert not any(p.requires_grad for p in IBN.from_batch_norm(norm).parameters())
    assert all(p.requires_grad for p in IBN.from_batch_norm(nn.BatchNorm2d(6)).parameters())


def test_gradcheck() -> None:
    layer, x = IBN(3).double(), maps(2, 3, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_variant_a_takes_the_first_norm_of_blocks_in_all_stages_but_the_last() -> None:
    model = net()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert apply(model) == 2
    assert [isinstance(block.norm1, IBN) for block in model.stages] == [True, True, False]
    swapped = [name for name, module in model.named_modules() if isinstance(module, IBN)]
    assert swapped == ["stages.0.norm1", "stages.1.norm1"]
    assert torch.equal(model.stages[1].norm1.instance.weight, weights["stages.1.norm1.weight"][:16])
    assert torch.equal(model.stages[1].norm1.batch.weight, weights["stages.1.norm1.weight"][16:])
    model(maps(4, 1, 8, 8)).sum().backward()
    assert apply(net(), stages=1) == 1
    assert apply(net(), stages=3) == 3


def test_variant_b_normalises_after_the_addition_and_in_the_stem() -> None:
    model = net()
    assert apply(model, variant="b") == 3
    assert isinstance(model.stem[1], nn.InstanceNorm2d)
    assert [isinstance(block.act2, nn.Sequential) for block in model.stages] == [True, True, False]
    seen: list[Tensor] = []
    handle = model.stages[0].act2[0].register_forward_hook(lambda _m, _i, output: seen.append(output))
    model(maps(4, 1, 8, 8))
    handle.remove()
    torch.testing.assert_close(seen[0].mean(dim=(2, 3)), torch.zeros(4, 16), atol=1e-5, rtol=0)


def test_blocks_of_other_layouts() -> None:
    class Bottleneck(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
            self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
            self.conv3, self.bn3 = nn.Conv2d(2, width, 1), nn.BatchNorm2d(width)
            self.relu = nn.ReLU()
            self.downsample = nn.Sequential(nn.Conv2d(4, width, 1), nn.BatchNorm2d(width))

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))
            self.body = nn.Sequential(
                nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
            )
            self.act = nn.ReLU()

    stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(stem, nn.Sequential(Bottleneck(4), Bottleneck(4)), Nested(), Bottleneck(16))
    stages = stages_of(blocks_in(model))
    assert [[block.path for block in stage] for stage in stages] == [["1.0", "1.1"], ["2"], ["3"]]
    assert [block.pairs[0].path for stage in stages for block in stage] == ["1.0.bn1", "1.1.bn1", "2.body.1", "3.bn1"]
    with pytest.raises(ValueError, match=r"block '1\.1' has no activation module of its own"):
        apply(model, variant="b")
    assert isinstance(stem[1], nn.BatchNorm2d)
    assert apply(model) == 3


def test_named_norms_and_plain_stacks() -> None:
    model = net()
    assert apply(model, names=["stem.1"], ratio=0.25) == 1
    assert model.stem[1].split == 4
    with pytest.raises(KeyError, match=r"'stem\.0' is no BatchNorm2d"):
        apply(model, names=["stem.0"])
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    assert apply(copy.deepcopy(plain), stages=2) == 2
    assert apply(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))) == 2
    with pytest.raises(ValueError, match="no residual block"):
        apply(plain, variant="b")
    assert apply(nn.Sequential(nn.Linear(2, 2))) == 0


def test_divergence_of_gaussians_by_hand_and_per_layer() -> None:
    a = torch.tensor([[[-1.0, 1.0]]]).permute(2, 1, 0)  # one channel, mean 0, variance 1
    b = 2 * a + 1  # mean 1, variance 4
    forward = 0.5 * (torch.tensor(4.0).log() + (1 + 1) / 4 - 1)
    backward = 0.5 * (-torch.tensor(4.0).log() + (4 + 1) / 1 - 1)
    assert channel_divergence(a, b, eps=0.0) == pytest.approx(float(forward + backward), abs=1e-6)
    model, x = net().train(), maps(8, 1, 8, 8)
    found = layer_divergences(model, x, 0.5 * x + 1)
    assert next(iter(found)) == "stem.2"
    assert min(found.values()) > 0
    assert max(layer_divergences(model, x, x).values()) == pytest.approx(0.0, abs=1e-9)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"variant": "c"}, "variant is 'c'"),
        ({"stages": 4}, "stages is 4; the network has 3"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(net(), **settings)


def test_maps_of_one_by_one() -> None:
    with pytest.raises(ValueError, match="before the stage that shrinks to 1 x 1"):
        IBN(4)(torch.zeros(3, 4, 1, 1))
    assert IBN(4, 0.0).eval()(torch.zeros(3, 4, 1, 1)).shape == (3, 4, 1, 1)
    model = net()
    apply(model, stages=3, variant="b")
    with pytest.raises(ValueError, match="1 x 1"):
        model(maps(2, 1, 2, 2))


def test_on_the_bench() -> None:
    data, training = open_dataset("digits").prepare(0), Training(epochs=1)
    plain = fit(None, data, 2, training=training).model.state_dict()
    neutral = fit("ibn-net(ratio=0.0)", data, 2, training=training).model.state_dict()
    assert list(plain) == list(neutral)
    assert all(torch.equal(plain[name], neutral[name]) for name in plain)
    run = fit("ibn-net", data, 2, training=training)
    assert isinstance(run.model.stages[0].norm1, IBN)
    assert run.curve[-1]["valid_error"] < 0.7


def test_example() -> None:
    assert doctest.testmod(ibn_net).failed == 0


def test_one_norm_in_two_places_is_replaced_in_both() -> None:
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 4, 3), shared)
    assert apply(model, names=["1"]) == 2
    assert model[1] is model[4]
    assert isinstance(model[1], IBN)


def test_variant_b_keeps_eps_and_frozen_flags_and_refuses_a_shared_activation() -> None:
    model = net()
    stem = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    stem.eps, name = 1e-3, next(n for n, m in model.named_modules() if m is stem)
    stem.requires_grad_(False)
    apply(model, variant="b")
    made = model.get_submodule(name)
    assert isinstance(made, nn.InstanceNorm2d)
    assert made.eps == 1e-3
    assert not any(p.requires_grad for p in made.parameters())
    shared = net()
    blocks = [block.module for block in blocks_in(shared)]
    for block in blocks:
        block.act2 = blocks[0].act2
    before = [type(m) for m in shared.modules()]
    with pytest.raises(ValueError, match="one activation stands at"):
        apply(shared, variant="b")
    assert [type(m) for m in shared.modules()] == before


def test_a_norm_without_running_statistics_stays_without() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    made, x = IBN.from_batch_norm(norm, 0.5).eval(), maps(6, 4, 5, 5) + 3
    assert made.batch.running_mean is None
    torch.testing.assert_close(made(x)[:, 2:], norm(x)[:, 2:])


@pytest.mark.parametrize("variant", ["a", "b"])
def test_no_rows_in_evaluation(variant: str) -> None:
    model = net()
    apply(model, variant=variant)
    assert model.eval()(torch.zeros(0, 1, 8, 8)).shape == (0, 10)


def test_instance_norm_of_variant_b_by_hand() -> None:
    model = net()
    perturbed(model.stem[1])
    model.stem[1].eps = 0.3
    gamma, beta = model.stem[1].weight.detach().clone(), model.stem[1].bias.detach().clone()
    apply(model, variant="b", stages=1)
    assert [isinstance(block.act2, nn.Sequential) for block in model.stages] == [True, False, False]
    x = maps(3, 16, 5, 4)
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    wanted = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 0.3).sqrt()
    torch.testing.assert_close(model.stem[1](x), wanted * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1))
    behind = model.stages[0].act2
    assert type(behind[1]) is nn.ReLU
    plain = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(behind(x), plain.relu())
