"""Layers on a prefix of their units, against slices written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.numerics.networks.prefix_layers import (
    Attention,
    BatchNorm,
    Block,
    LayerNorm,
    NotNestedError,
    PrefixState,
    forward_of,
    kept_units,
)

pytestmark = pytest.mark.fast


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    module.double()
    with torch.no_grad():
        for i, value in enumerate((*module.parameters(), *module.buffers())):
            if value.is_floating_point():
                value.copy_(draw(*value.shape, seed=10 + i).abs() + 0.1)
    return module


def at(share: float, **cut: int) -> PrefixState:
    state = PrefixState()
    state.share, state.cut = share, cut
    return state


def test_units_kept() -> None:
    assert [kept_units(share, 7) for share in (1e-6, 1 / 7, 0.3, 2 / 7, 0.5, 1.0)] == [1, 1, 3, 2, 4, 7]


def test_linear_layers_take_the_inputs_there_are_and_give_their_first_units() -> None:
    linear, state = filled(nn.Linear(6, 5)), at(0.6, a=1)
    x = draw(2, 3, 4)
    torch.testing.assert_close(forward_of(state, "a", linear)(x), x @ linear.weight[:3, :4].T + linear.bias[:3])
    assert state.seen == {"a": (3, 4)}
    torch.testing.assert_close(forward_of(state, "b", linear)(x), x @ linear.weight[:, :4].T + linear.bias)
    heads = at(0.4, a=2)  # units of two: of two and a half pairs one stays
    assert forward_of(heads, "a", filled(nn.Linear(6, 5, bias=False)))(draw(2, 6)).shape == (2, 2)
    state.widths = {}
    forward_of(state, "a", linear)(x)
    forward_of(state, "a", linear)(draw(2, 6))
    assert state.widths == {"a": [4, 6]}


def test_convolutions_keep_how_they_slide() -> None:
    conv, state = filled(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2)), at(0.5, a=1)
    x = draw(2, 3, 9, 9)
    expected = F.conv2d(x, conv.weight[:3, :3], conv.bias[:3], stride=2, padding=1, dilation=2)
    torch.testing.assert_close(forward_of(state, "a", conv)(x), expected)
    assert state.seen == {"a": (3, 3)}


def test_batch_norm_of_fewer_channels() -> None:
    norm, state = filled(nn.BatchNorm1d(5)), at(0.5)
    layer, x = BatchNorm(state, "n", norm), draw(7, 3)
    kept = [value[:3] for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    before = norm.running_mean.clone()
    norm.eval()
    torch.testing.assert_close(layer(x), F.batch_norm(x, *kept, False, 0.0, norm.eps))
    state.statistics[0.5, "n"] = (torch.full((3,), 2.0).double(), torch.full((3,), 9.0).double())
    torch.testing.assert_close(layer(x), (x - 2) / (9 + norm.eps) ** 0.5 * kept[2] + kept[3])
    norm.train()
    mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
    torch.testing.assert_close(layer(x), (x - mean) / (var + norm.eps).sqrt() * kept[2] + kept[3])
    assert torch.equal(norm.running_mean, before)
    assert state.seen == {"n": (3, 3)}
    whole = draw(7, 5)
    layer(whole)  # all channels there are, but with statistics of their own
    assert torch.equal(norm.running_mean, before)
    state.statistics.clear()
    layer(whole)
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * whole.mean(dim=0))


def test_what_batch_norm_records() -> None:
    norm, state = filled(nn.BatchNorm2d(4)).eval(), at(0.5)
    state.recording = {"n": []}
    x = draw(3, 2, 4, 5)
    found = BatchNorm(state, "n", norm)(x)
    ((mean, square),) = state.recording["n"]
    torch.testing.assert_close(mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(square, x.square().mean(dim=(0, 2, 3)))
    own = F.batch_norm(x, None, None, norm.weight[:2], norm.bias[:2], True, 0.0, norm.eps)
    torch.testing.assert_close(found, own)
    kept = [value[:2] for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)]
    torch.testing.assert_close(BatchNorm(state, "m", norm)(x), F.batch_norm(x, *kept, False, 0.0, norm.eps))
    assert list(state.recording) == ["n"], "a norm that is not asked for goes by the statistics it has"
    without = nn.BatchNorm2d(4, affine=False, track_running_stats=False).eval()
    torch.testing.assert_close(BatchNorm(at(0.5), "n", without)(x), F.batch_norm(x, None, None, training=True))


def test_layer_norm_of_fewer_features() -> None:
    norm, x = filled(nn.LayerNorm(6, eps=0.1)), draw(2, 3, 4)
    state = at(0.5)
    expected = F.layer_norm(x, (4,), norm.weight[:4], norm.bias[:4], 0.1)
    torch.testing.assert_close(LayerNorm(state, "n", norm)(x), expected)
    assert state.seen == {"n": (4, 4)}
    bare = nn.LayerNorm(6, elementwise_affine=False)
    torch.testing.assert_close(LayerNorm(state, "n", bare)(x), F.layer_norm(x, (4,)))


def test_attention_is_asked_for_its_first_heads_and_given_them_back() -> None:
    attention, seen = CausalSelfAttention(16, 4), []
    forward = type(attention).forward
    try:
        type(attention).forward = lambda self, x: seen.append(self.heads) or x
        Attention(at(0.5), "a", attention)(draw(1, 2, 16))
    finally:
        type(attention).forward = forward
    assert (seen, attention.heads) == ([2], 4)


def test_blocks_behind_the_share_do_nothing() -> None:
    state, x = at(0.5), draw(2, 3)
    state.blocks = {"0": (0, 4), "1": (1, 4), "2": (2, 4)}
    block = filled(nn.Linear(3, 3))
    for name, runs in (("0", True), ("1", True), ("2", False)):
        layer = forward_of(state, name, block)
        assert isinstance(layer, Block)
        assert torch.equal(layer(x), block(x) if runs else x)
    state.expected = (1.0, {})  # the share that is looked at counts while a full pass is checked
    assert torch.equal(forward_of(state, "2", block)(x), block(x))


def test_which_modules_are_left_alone() -> None:
    state = PrefixState()
    assert state.share == 1.0
    for module in (nn.ReLU(), nn.LayerNorm((2, 3)), nn.Embedding(3, 2), nn.ConvTranspose1d(2, 2, 1)):
        assert forward_of(state, "m", module) is None


def test_dropped_units_are_marked_and_looked_for() -> None:
    linear, state = filled(nn.Linear(4, 6)), at(1.0, a=1)
    state.expected = (0.5, {"a": [4, 2, 3], "n": [3, 2]})
    layer, x = forward_of(state, "a", linear), draw(3, 4)
    found = layer(x)
    torch.testing.assert_close(found[:, :3], (x @ linear.weight.T + linear.bias)[:, :3])
    assert found[:, 3:].isnan().all()
    x[:, 2:] = torch.nan
    assert not layer(x)[:, :3].isnan().any()  # taken as zeros
    with pytest.raises(NotNestedError, match="'a' takes in"):
        layer(x)  # three columns were there at the share
    norm = LayerNorm(state, "n", filled(nn.LayerNorm(4)))
    x[:, 3:], x[:, :3] = torch.nan, 1.0
    assert torch.equal(norm(x).isnan(), x.isnan())
    with pytest.raises(NotNestedError, match="'n' takes in"):
        norm(x)
    x = draw(3, 4)
    x[1, 3] = torch.nan  # in one row alone, as behind a mask
    state.expected = (0.5, {"a": [3, 4, 1]})
    layer(x)
    with pytest.raises(NotNestedError, match="'a' takes in"):
        layer(x)
    assert layer(torch.full_like(x, torch.nan)).shape == (3, 6)  # mixed by the network itself: nothing can be told


def test_one_dropped_unit_may_be_marked_alone() -> None:
    linear, state = filled(nn.Linear(4, 6)), at(1.0, a=2)
    layer, x = forward_of(state, "a", linear), draw(3, 4)
    for mark, marked in ((0.0, [2, 3]), (0.49, [2, 3]), (0.5, [4, 5]), (0.99, [4, 5])):
        state.expected, state.mark = (0.3, {"a": [4]}), mark
        assert layer(x).isnan().any(dim=0).nonzero().flatten().tolist() == marked
    x[:, 3] = torch.nan
    state.expected = (0.3, {"a": [3, 2, 4]})
    layer(x)
    layer(x)  # other dropped units may be whole
    with pytest.raises(NotNestedError, match="'a' takes in"):
        layer(x)


def test_values_are_those_at_the_share() -> None:
    linear, norm, state = filled(nn.Linear(4, 6)), filled(nn.LayerNorm(4, eps=0.1)), at(1.0, a=1)
    layer, layer_norm, x = forward_of(state, "a", linear), LayerNorm(state, "n", norm), draw(3, 4)
    own = x[:, :2] * (1 + 1e-13)
    x[:, 2:] = torch.nan
    state.expected, state.values = (0.5, {"a": [2, 2, 2], "n": [2]}), {"a": [own, own + 0.01, 2 * own], "n": [own]}
    layer(x)
    found = layer_norm(x)
    torch.testing.assert_close(found[:, :2], F.layer_norm(own, (2,), norm.weight[:2], norm.bias[:2], 0.1))
    assert found[:, 2:].isnan().all()
    with pytest.raises(NotNestedError, match="'a' takes in at this share is computed otherwise"):
        layer(x)
    assert not state.unclear
    mixed = layer(torch.full_like(x, torch.nan))  # goes on with what there is at the share
    torch.testing.assert_close(mixed[:, :3], 2 * own @ linear.weight[:3, :2].T + linear.bias[:3])
    assert state.unclear


def test_probes_take_every_layer_off_the_graph() -> None:
    state, x = at(0.5, a=1), draw(2, 4).requires_grad_()
    state.probes = []
    linear = filled(nn.Linear(4, 6))
    found = forward_of(state, "a", linear)(x)
    torch.testing.assert_close(found, linear(x))  # all its units
    ((name, probe),) = state.probes
    gradients = torch.autograd.grad(found.sum(), (probe, x), allow_unused=True)
    assert name == "a"
    assert gradients[0].item() == 12.0
    assert gradients[1] is None
