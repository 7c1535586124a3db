"""PowerNorm: both passes by the paper's formulas, the exact variant by finite differences, evaluation as a frozen map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.techniques.layer.power_norm import PowerNorm, apply, group_scaled

pytestmark = pytest.mark.fast


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(**settings: object) -> PowerNorm:
    norm = PowerNorm(5, warmup=1, **settings).double()
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * draw(5, seed=7))
        norm.bias.copy_(draw(5, seed=8))
    norm(draw(9, 5, seed=1))  # the warm-up
    return norm


@pytest.mark.parametrize("gradient", ["paper", "released"])
def test_both_passes_by_the_formulas(gradient: str) -> None:
    norm = trained(gradient=gradient, alpha_forward=0.8, alpha_backward=0.7)
    with torch.no_grad():
        norm.nu.copy_(draw(5, seed=3))
    psi2, nu = norm.psi2.clone(), norm.nu.clone()
    x, dy = draw(9, 5, seed=4).requires_grad_(), draw(9, 5, seed=5)
    y = norm(x)
    hat = x.detach() / (psi2 + 1e-5).sqrt()
    torch.testing.assert_close(y, hat * norm.weight + norm.bias)
    batch = x.detach().square().mean(dim=0)
    torch.testing.assert_close(norm.psi2, 0.8 * psi2 + 0.2 * batch)
    y.backward(dy)
    g = dy * norm.weight.detach()
    below = ((batch if gradient == "released" else psi2) + 1e-5).sqrt()
    torch.testing.assert_close(x.grad, (g - nu * hat) / below)
    expected = nu * (1 - 0.3 * hat.square().mean(dim=0)) + 0.3 * (g * hat).mean(dim=0)
    torch.testing.assert_close(norm.nu, expected)
    torch.testing.assert_close(norm.weight.grad, (dy * hat).sum(dim=0))
    torch.testing.assert_close(norm.bias.grad, dy.sum(dim=0))


def test_the_exact_variant_by_finite_differences() -> None:
    norm = trained(mode="vanilla")
    x = draw(6, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: norm(v), (x,))
    y, dy = norm(x), draw(6, 5, seed=3)
    y.backward(dy)
    batch = x.detach().square().mean(dim=0)
    hat, g = x.detach() / (batch + 1e-5).sqrt(), dy * norm.weight.detach()
    closed = (g - hat * (g * hat).mean(dim=0)) / (batch + 1e-5).sqrt()
    torch.testing.assert_close(x.grad, closed, rtol=1e-3, atol=1e-4)


def test_with_fixed_statistics_nu_converges_to_the_exact_correction() -> None:
    norm = PowerNorm(3, alpha_forward=0.0, alpha_backward=0.9, warmup=1, eps=1e-12).double()
    x, dy = draw(50, 3), draw(50, 3, seed=1)
    for _ in range(300):
        v = x.clone().requires_grad_()
        norm(v).backward(dy)
    exact = PowerNorm(3, mode="vanilla", eps=1e-12).double()
    w = x.clone().requires_grad_()
    exact(w).backward(dy)
    torch.testing.assert_close(v.grad, w.grad, rtol=1e-6, atol=1e-8)


def test_warm_up_is_a_plain_average_of_the_batches() -> None:
    norm = PowerNorm(4, warmup=3).double()
    batches = [draw(8, 4, seed=i) for i in range(3)]
    for batch in batches:
        y = norm(batch)
        torch.testing.assert_close(y.square().mean(dim=0), torch.ones(4).double(), rtol=1e-3, atol=1e-3)
    average = torch.stack([batch.square().mean(dim=0) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(norm.psi2, average)
    norm(draw(8, 4, seed=9))
    torch.testing.assert_close(norm.psi2, 0.9 * average + 0.1 * draw(8, 4, seed=9).square().mean(dim=0))


def test_evaluation_is_batch_norm_with_a_mean_of_zero() -> None:
    norm = trained().eval()
    other = nn.BatchNorm1d(5).double().eval()
    with torch.no_grad():
        other.running_var.copy_(norm.psi2)
        other.weight.copy_(norm.weight)
        other.bias.copy_(norm.bias)
    x = draw(2, 7, 5)
    torch.testing.assert_close(norm(x), other(x.flatten(0, 1)).view(x.shape))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])


@pytest.mark.parametrize("mode", ["power", "vanilla"])
def test_padding_does_not_count(mode: str) -> None:
    first, second = trained(mode=mode), trained(mode=mode)
    x, mask = draw(2, 6, 5), torch.arange(6)[None] < torch.tensor([[4], [6]])
    other = torch.where(mask[..., None], x, torch.full_like(x, 50.0))
    dy = torch.where(mask[..., None], draw(2, 6, 5, seed=2), torch.zeros_like(x))
    results = []
    for norm, given in ((first, x), (second, other)):
        value = given.clone().requires_grad_()
        y = norm(value, mask)
        y.backward(dy)
        results.append((y[mask], value.grad[mask], norm.psi2, norm.nu))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="mask has no position"):
        first(x, torch.zeros_like(mask))


def test_group_scaling_by_loops() -> None:
    x = draw(3, 6)
    found = group_scaled(x, 2)
    for row, out in zip(x, found, strict=True):
        for k in (0, 3):
            rms = (row[k : k + 3].square().mean() + 1e-5).sqrt()
            torch.testing.assert_close(out[k : k + 3], row[k : k + 3] / rms)


def test_swap_keeps_gamma_and_state_resumes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2), nn.LayerNorm([2], elementwise_affine=False))
    with torch.no_grad():
        net[1].weight.mul_(3)
    assert apply(net, total_steps=200) == 2
    assert net[1].warmup == 20
    assert torch.equal(net[1].weight, torch.full((6,), 3.0))
    x = torch.randn(10, 3)
    for _ in range(3):
        net(x).square().sum().backward()
    again = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2), nn.LayerNorm([2]))
    apply(again, total_steps=200)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    assert torch.equal(again[1].nu, net[1].nu)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"alpha_forward": 1.0}, "alpha_forward is 1.0"),
        ({"alpha_backward": -0.1}, "alpha_backward is -0.1"),
        ({"warmup": 0}, "warmup is 0"),
        ({"mode": "strong"}, "mode is 'strong'"),
        ({"gradient": "none"}, "gradient is 'none'"),
        ({"groups": 4}, "groups is 4"),
    ],
)
def test_settings_out_of_range(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        apply(nn.Sequential(nn.LayerNorm(6)), **settings)


def test_an_empty_training_batch_leaves_the_statistics_alone() -> None:
    norm = trained()
    before = norm.psi2.clone()
    with pytest.raises(ValueError, match=r"\(0, 5\); a training batch"):
        norm(draw(0, 5))
    assert torch.equal(norm.psi2, before)
    assert norm.eval()(draw(0, 5)).shape == (0, 5)


def test_one_norm_in_two_places_is_replaced_in_both_by_one() -> None:
    shared = nn.LayerNorm(4)
    net = nn.Sequential(shared, nn.Linear(4, 4), shared)
    assert apply(net, total_steps=10) == 2
    assert isinstance(net[0], PowerNorm)
    assert net[0] is net[2]


def test_tied_and_frozen_weights_stay_so() -> None:
    net = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    before = dict(net.named_parameters())
    assert apply(net) == 2
    assert net[0].weight is net[1].weight is before["0.weight"]
    assert net[0].bias is before["0.bias"]
    assert not net[0].bias.requires_grad
    assert net[1].bias.requires_grad


def test_inside_an_encoder_it_acts_in_evaluation_without_gradients() -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    assert apply(net, total_steps=10) == 2
    for _ in range(20):
        net(torch.randn(8, 5, 16) * torch.linspace(0.1, 4, 16) + 1)
    x, expected = torch.randn(2, 5, 16), None
    expected = net.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_by_itself_and_parametrised_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="itself the LayerNorm"):
        apply(nn.LayerNorm(4))
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.LayerNorm(4)), nn.LayerNorm(4))
    with pytest.raises(TypeError, match=r"'0' has a parametrised weight"):
        apply(net)
    assert type(net[1]) is nn.LayerNorm


def test_running_moments_stay_exact_in_half_precision() -> None:
    norm = PowerNorm(4, warmup=10_000).bfloat16()
    x = torch.full((2, 4), 3.0, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(600):
        y = norm(x)
    y.sum().backward()
    torch.testing.assert_close(norm.psi2, torch.full((4,), 9.0))
    assert (y.dtype, x.grad.dtype, norm.nu.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


class Attending(nn.Module):
    """A layer that says how many heads it has, and a norm."""

    def __init__(self, heads: int, width: int = 12) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)


def test_norms_are_scaled_in_as_many_groups_as_their_attention_has_heads() -> None:
    net = nn.Sequential(Attending(3), Attending(4), nn.LayerNorm(12), nn.LayerNorm(10), nn.LayerNorm(3))
    assert apply(net) == 5
    assert [net[0].norm.groups, net[1].norm.groups, net[2].groups, net[3].groups, net[4].groups] == [3, 4, 3, 1, 1]
    torchs = nn.TransformerEncoderLayer(12, 6, 24)
    assert apply(torchs) == 2
    assert torchs.norm1.groups == torchs.norm2.groups == 6
    alone = nn.Sequential(nn.LayerNorm(12))
    apply(alone)
    assert alone[0].groups == 1
    x = torch.randn(5, 12)
    torch.testing.assert_close(alone(x), nn.Sequential(PowerNorm(12, groups=1))(x))
    for groups in (0, 2):
        chosen = nn.Sequential(Attending(3))
        apply(chosen, groups=groups)
        assert chosen[0].norm.groups == groups


def test_group_scaling_comes_first_and_is_part_of_the_gradient() -> None:
    norm = PowerNorm(6, warmup=1, groups=3, mode="vanilla", eps=1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(draw(6, seed=7))
        norm.bias.copy_(draw(6, seed=8))
    x = (3 * draw(4, 6)).requires_grad_()
    rows = []
    for row in x:
        parts = [row[k : k + 2] / (row[k : k + 2].square().sum() / 2 + 1e-3).sqrt() for k in (0, 2, 4)]
        rows.append(torch.cat(parts))
    scaled = torch.stack(rows)
    rms = (scaled.square().sum(dim=0) / 4 + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), scaled / rms * norm.weight + norm.bias)
    assert torch.autograd.gradcheck(norm, (x,))
    torch.testing.assert_close(norm.psi2, (scaled.detach().square().sum(dim=0) / 4))


@pytest.mark.parametrize("warmup", [1, 9])
@pytest.mark.parametrize("mode", ["power", "vanilla"])
def test_statistics_are_those_of_positions_that_count(mode: str, warmup: int) -> None:
    norm = PowerNorm(5, warmup=warmup, mode=mode, alpha_forward=0.7, alpha_backward=0.6).double()
    norm(draw(9, 5, seed=1))
    x, mask = draw(2, 6, 5), torch.arange(6)[None] < torch.tensor([[4], [5]])
    psi2, counting = norm.psi2.clone(), x[mask]
    x.requires_grad_()
    norm(x, mask).backward(dy := draw(2, 6, 5, seed=2))
    batch = counting.square().sum(dim=0) / 9
    keep = 0.7 if warmup == 1 else 0.5
    torch.testing.assert_close(norm.psi2, keep * psi2 + (1 - keep) * batch)
    if mode == "power":
        hat = counting / ((psi2 if warmup == 1 else batch) + 1e-5).sqrt()
        torch.testing.assert_close(norm.nu, 0.4 * (dy[mask] * hat).sum(dim=0) / 9)


@pytest.mark.parametrize("mode", ["power", "vanilla"])
def test_masks_of_ones_and_zeros_are_truth_values_and_others_are_refused(mode: str) -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)) * 3
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    norms = [PowerNorm(4, warmup=1, mode=mode) for _ in range(2)]
    outputs = [norm(x, own) for norm, own in zip(norms, (mask, mask.bool()), strict=True)]
    assert torch.equal(*outputs)
    assert torch.equal(norms[0].psi2, norms[1].psi2)
    torch.testing.assert_close(norms[0].psi2, torch.cat([x[0, :3], x[1, :5]]).square().mean(dim=0))
    before = norms[0].psi2.clone()
    with pytest.raises(TypeError, match="mask has dtype"):
        norms[0](x, mask.float())
    with pytest.raises(ValueError, match=r"mask has shape \(6,\)"):
        norms[0](x, mask[0])
    assert torch.equal(norms[0].psi2, before)


def test_one_position_without_a_batch() -> None:
    x = torch.tensor([1.0, -2.0, 3.0, 4.0])
    torch.testing.assert_close(PowerNorm(4, warmup=1)(x), x.sign(), atol=1e-4, rtol=1e-4)


def test_a_training_pass_registers_no_buffer_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = PowerNorm(4, warmup=1)

    def registered(*_: object, **__: object) -> None:
        raise AssertionError(
            "torch looks at the signature of a method that is overridden each time: half the pass's cost"
        )

    monkeypatch.setattr(norm, "register_buffer", registered)
    for k in (1, 2, 3):
        norm(torch.randn(6, 4)).sum().backward()
        assert int(norm.seen) == k
