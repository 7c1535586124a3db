"""DCLS against dilated convolutions, an interpolation by hand and its limits (arXiv:2112.03740)."""

from __future__ import annotations

import copy
import doctest
import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.kinds.image.network import SmallResNet
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.layer import dcls
from probatum.techniques.layer.dcls import Dcls, apply, dense_kernel, fuse, parameter_groups

SPEC = Spec("image", "classes", (1, 8, 8), 10)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=own(seed))


def layer(**settings: object) -> Dcls:
    return Dcls(
        **{"in_channels": 4, "out_channels": 6, "taps": 3, "window": 9, "dims": 1, "generator": own(), **settings}
    )


def net() -> SmallResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallResNet(SPEC)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("dilation", "groups", "stride", "padding"), [(1, 1, 1, 1), (3, 2, 2, 0), (2, 4, 1, "same")])
def test_grid_positions_are_the_dilated_convolution(
    dims: int, dilation: int, groups: int, stride: int, padding: int | str
) -> None:
    old = CONVOLUTIONS[dims](4, 8, 3, stride, padding, dilation, groups).double()
    made, x = (
        Dcls.from_convolution(old, window=9, init="grid", generator=own()),
        draw(2, 4, *(8 + i for i in range(dims))),
    )
    torch.testing.assert_close(made(x), old(x), atol=1e-6, rtol=0)
    assert made.weight.numel() == old.weight.numel()
    assert set((made.positions - made.positions.round()).flatten().tolist()) == {0.0}


@pytest.mark.parametrize(("kernel", "window"), [(2, 5), (4, None), (3, 8), (7, 3)])
def test_even_kernels_and_windows_keep_outputs_and_their_size(kernel: int, window: int | None) -> None:
    old = nn.Conv1d(2, 3, kernel, padding=kernel // 2).double()
    made, x = Dcls.from_convolution(old, window=window, init="grid", generator=own()), draw(2, 2, 20)
    torch.testing.assert_close(made(x), old(x), atol=1e-6, rtol=0)
    assert made.window[0] >= max(kernel, window or 0)


@pytest.mark.parametrize("window", [(9,), (4, 5), (3, 2, 5)])
def test_dense_kernel_by_hand_and_its_mass(window: tuple[int, ...]) -> None:
    """Each cell holds w times the product of hat functions around the tap."""
    made = layer(dims=len(window), window=window, spread=1.5).double()
    with torch.no_grad():
        kernel, positions, weight = made.dense(), made.positions, made.weight.detach()
    expected = torch.zeros_like(kernel)
    for o, i, k in itertools.product(range(6), range(4), range(3)):
        for cell in itertools.product(*(range(size) for size in window)):
            gaps = [
                abs(s - size // 2 - float(positions[d, o, i, k]))
                for d, (s, size) in enumerate(zip(cell, window, strict=True))
            ]
            expected[(o, i, *cell)] += float(weight[o, i, k]) * math.prod(max(0.0, 1 - gap) for gap in gaps)
    torch.testing.assert_close(kernel, expected)
    torch.testing.assert_close(kernel.flatten(2).sum(dim=2), weight.sum(dim=2))


def test_taps_on_one_cell_add_up() -> None:
    kernel = dense_kernel(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[[0.0, 0.0, 1.5]]]]), (5,))
    assert kernel.tolist() == [[[0.0, 0.0, 3.0, 2.0, 2.0]]]


@pytest.mark.parametrize("dims", [1, 2])
def test_gradcheck(dims: int) -> None:
    window = (7, 4)[:dims]
    whole = torch.randint(-2, 1, (dims, 2, 2, 3), generator=own(3)).double()
    positions = (whole + 0.2 + 0.6 * torch.rand(whole.shape, dtype=torch.float64, generator=own(4))).requires_grad_()
    weight = draw(2, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, p: dense_kernel(w, p, window), (weight, positions))
    made, x = layer(dims=dims, window=window, spread=0.9).double(), draw(2, 4, *window)
    assert torch.autograd.gradcheck(lambda x: made(x), (x.requires_grad_(),))


def test_positions_at_the_edge_come_back_and_others_are_clamped() -> None:
    made = layer(window=(9,)).double()
    with torch.no_grad():
        made.raw_positions.copy_(torch.tensor([-9.0, 0.31, 9.0], dtype=torch.float64).expand(1, 6, 4, 3))
    evaluated = made.eval()(draw(2, 4, 12))
    assert made.raw_positions.detach().max() == 9.0  # evaluation changes nothing
    torch.testing.assert_close(made.train()(draw(2, 4, 12)), evaluated)
    torch.testing.assert_close(made.positions[0, 0, 0], torch.tensor([-4.0, 1.55, 4.0], dtype=torch.float64))
    made(draw(2, 4, 12)).square().sum().backward()
    assert bool((made.raw_positions.grad != 0).all())
    even = layer(window=8, spread=30.0)
    assert even.positions.detach().aminmax() == (-4.0, 3.0)


def test_position_scale_is_a_learning_rate_under_adam() -> None:
    scaled, plain = layer(position_scale=5.0, spread=1.0).double(), layer(position_scale=1.0, spread=1.0).double()
    torch.testing.assert_close(scaled.positions, plain.positions)
    groups = [parameter_groups(scaled, 0.1), parameter_groups(plain, 0.1, rate=5e-3)]
    for module, parts in zip((scaled, plain), groups, strict=True):
        optimizer = torch.optim.AdamW(parts, lr=1e-3, eps=1e-30)
        for step in range(5):
            optimizer.zero_grad()
            module(draw(3, 4, 20, seed=step)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(scaled.positions, plain.positions)
    torch.testing.assert_close(scaled.weight, plain.weight)


def test_parameter_groups_do_not_decay_positions() -> None:
    model = net()
    apply(model, synchronise=True, generator=own())
    others, positions = parameter_groups(model, weight_decay=0.1, rate=0.01)
    assert (others["weight_decay"], positions["weight_decay"], positions["lr"]) == (0.1, 0.0, 0.01)
    assert all(p.ndim == 4 for p in positions["params"])
    assert len(others["params"]) + len(positions["params"]) == len(list(model.parameters()))
    torch.optim.AdamW([others, positions])


def test_fused_is_a_plain_convolution_with_equal_outputs() -> None:
    model, x = net(), torch.rand(5, 1, 8, 8, generator=own())
    apply(model, spread=1.0, generator=own())
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert fuse(model) == 7
        assert not any(isinstance(module, Dcls) for module in model.modules())
        torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-6)
    assert model.stem[0].kernel_size == (7, 7)
    single = layer(bias=False, groups=2, stride=2, padding=4)
    torch.testing.assert_close(single.fuse()(x[:, 0, :4]), single(x[:, 0, :4]))


def test_surgery_keeps_weights_and_skips_kernels_of_one_cell() -> None:
    model = net()
    old = {name: value.clone() for name, value in model.state_dict().items()}
    assert apply(model, generator=own()) == 7
    assert isinstance(model.stages[1].skip[0], nn.Conv2d)
    for name in ("stem.0", "stages.2.conv1"):
        assert torch.equal(model.get_submodule(name).weight, old[f"{name}.weight"].flatten(2))
    positions = model.stages[2].conv2.positions.detach()
    assert float(positions.std()) == pytest.approx(0.5, abs=0.02)
    model(torch.rand(4, 1, 8, 8, generator=own())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert apply(net(), names=["stem.0"], generator=own()) == 1
    with pytest.raises(KeyError, match=r"'stem\.1' is no convolution"):
        apply(net(), names=["stem.1"])


def test_grid_start_is_the_same_network() -> None:
    model, x = net().eval(), torch.rand(5, 1, 8, 8, generator=own())
    changed = copy.deepcopy(model)
    assert apply(changed, init="grid", generator=own()) == 7
    torch.testing.assert_close(changed(x), model(x), atol=1e-5, rtol=1e-5)
    assert apply(changed, init="grid", learn=False) == 0


def test_depthwise_only_and_what_a_window_costs() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.Conv2d(8, 8, 3, padding=1))
    assert apply(model, window=17, depthwise=True, generator=own()) == 1
    assert model[0].cost_ratio == pytest.approx(17 * 17 / 49)
    assert isinstance(model[1], nn.Conv2d)
    reflecting = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    assert apply(reflecting) == 0
    with pytest.raises(ValueError, match="pads by 'reflect'"):
        apply(reflecting, names=["0"])


def test_synchronised_layers_share_positions_through_training_and_copies() -> None:
    model = nn.Sequential(*(nn.Conv1d(4, 4, 3, padding=1) for _ in range(3)), nn.Conv1d(4, 2, 3), nn.Conv1d(2, 2, 3))
    assert apply(model, window=9, synchronise=True, generator=own()) == 5
    assert model[0].raw_positions is model[1].raw_positions is model[2].raw_positions
    assert model[3].raw_positions is not model[2].raw_positions
    again = copy.deepcopy(model)
    assert again[0].raw_positions is again[2].raw_positions
    model(torch.randn(2, 4, 30, generator=own())).square().sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert torch.equal(model[0].positions, model[2].positions)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again[1].positions, model[0].positions)


def test_frozen_parts_stay_frozen() -> None:
    old = nn.Conv1d(2, 2, 3).requires_grad_(False)
    made = Dcls.from_convolution(old, learn=False, generator=own())
    assert not any(p.requires_grad for p in made.parameters())


def test_draws_come_from_the_generator() -> None:
    before = torch.get_rng_state()
    first, second = (layer(generator=own(5)).state_dict() for _ in range(2))
    apply(net(), generator=own())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 1}, ValueError, "window is 1; it must be at least 2"),
        ({"window": 2}, ValueError, r"taps is 3; a window of 2 has room for 1 \.\. 2"),
        ({"taps": 10}, ValueError, "taps is 10"),
        ({"taps": 0}, ValueError, "taps is 0"),
        ({"window": 5.5}, TypeError, "window is 5.5; it must be a whole number"),
        ({"window": (5, 5)}, ValueError, "give one size or 1"),
        ({"dims": 4}, ValueError, "dims is 4"),
        ({"groups": 3}, ValueError, r"in_channels is 4; it must be a multiple of groups \(3\)"),
        ({"spread": -1.0}, ValueError, "spread is -1.0"),
        ({"position_scale": 0.0}, ValueError, "position_scale is 0.0"),
    ],
)
def test_bad_settings(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer(**settings)


def test_bad_settings_of_apply() -> None:
    for settings, error in (
        ({"window": 1}, ValueError),
        ({"window": 3.5}, TypeError),
        ({"init": "random"}, ValueError),
    ):
        with pytest.raises(error, match=str(next(iter(settings.values())))):
            apply(nn.Identity(), **settings)


def test_on_the_bench() -> None:
    data, training = open_dataset("digits").prepare(0), Training(epochs=1)
    plain = fit(None, data, 2, training=training).model.state_dict()
    neutral = fit("dcls(init='grid', learn=False)", data, 2, training=training).model.state_dict()
    assert list(plain) == list(neutral)
    assert all(torch.equal(plain[name], neutral[name]) for name in plain)
    run = fit("dcls(window=5, synchronise=True)", data, 2, training=Training(epochs=3))
    assert isinstance(run.model.stages[0].conv1, Dcls)
    assert run.model.stages[0].conv1.raw_positions is run.model.stages[0].conv2.raw_positions
    assert run.curve[-1]["valid_error"] < 0.2


def test_example() -> None:
    assert doctest.testmod(dcls).failed == 0


def test_one_convolution_in_two_places_is_replaced_in_both() -> None:
    shared = nn.Conv1d(4, 4, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert apply(model) == 2
    assert model[0] is model[2]
    assert isinstance(model[0], Dcls)
    assert fuse(model) == 2
    assert model[0] is model[2]
    assert type(model[0]) is nn.Conv1d


def test_a_bare_convolution_tied_and_parametrised_ones_are_refused() -> None:
    bare = nn.Conv1d(4, 4, 3)
    with pytest.raises(ValueError, match="itself the Conv1d"):
        apply(bare)
    assert list(bare.state_dict()) == ["weight", "bias"]
    model = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight'"):
        apply(model)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)))
    with pytest.raises(TypeError, match=r"'0' has a parametrised weight"):
        apply(normed)


def test_a_frozen_convolution_gets_frozen_taps_and_positions() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3))
    model[0].requires_grad_(False)
    apply(model)
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[1].parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dims", "window"), [(1, 25), (2, 9)])
def test_half_precision_has_the_kernel_and_gradients_of_float32_rounded(
    dims: int, window: int, dtype: torch.dtype
) -> None:
    low = layer(dims=dims, window=window, padding=window // 2, spread=3.0).to(dtype)
    high = copy.deepcopy(low).float()
    x = torch.randn(2, 4, *(14,) * dims, generator=own(1)).to(dtype)
    ours, theirs = low(x), high(x.float())
    assert ours.dtype == low.dense().dtype == dtype
    torch.testing.assert_close(low.dense(), high.dense().to(dtype))
    torch.testing.assert_close(low.positions, high.positions)
    upstream = torch.randn(ours.shape, generator=own(2)).to(dtype)
    ours.backward(upstream)
    theirs.backward(upstream.float())
    for a, b in zip(low.parameters(), high.parameters(), strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=0, atol=1e-2 * float(b.grad.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert low.fuse().weight.dtype == dtype
    wanted = torch.full_like(low.positions, 2.3)
    low.put_positions(wanted)
    torch.testing.assert_close(low.positions, wanted, rtol=torch.finfo(dtype).eps / 2, atol=0)  # rounded once


def test_copies_pickles_and_states_compute_the_same() -> None:
    model, x = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv1d(4, 2, 3)), draw(1, 4, 12)
    apply(model, window=7, spread=1.0, generator=own())
    model.double().eval()
    expected = model(x)
    fresh = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv1d(4, 2, 3))
    apply(fresh, window=7, generator=own(5))
    fresh.double().load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh.eval()):
        assert torch.equal(other(x), expected)
    fuse(fresh)
    torch.testing.assert_close(fresh(x), expected)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)  # an average of weights is made so
    assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize(
    ("settings", "asked", "window", "padding"),
    [
        ({"kernel_size": 3, "dilation": 2, "padding": 1}, None, 11, 4),  # span 5
        ({"kernel_size": 2}, None, 4, 1),
        ({"kernel_size": 3, "padding": "same"}, 6, 7, 3),
        ({"kernel_size": 5, "padding": "valid"}, 3, 5, 0),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, 9, 9, 4),
    ],
)
def test_windows_and_padding_of_a_taken_over_convolution(
    settings: dict[str, object], asked: int | None, window: int, padding: int
) -> None:
    old = nn.Conv1d(2, 3, **settings).double()
    made = Dcls.from_convolution(old, window=asked, init="grid", generator=own())
    assert (made.window, made.padding, made.stride) == ((window,), (padding,), old.stride)
    torch.testing.assert_close(made(draw(1, 2, 17)), old(draw(1, 2, 17)))
    assert torch.equal(made.bias, old.bias)
    bare = Dcls.from_convolution(nn.Conv1d(2, 3, 3, bias=False), generator=own())
    assert bare.bias is bare.fuse().bias is None


def test_what_is_left_alone() -> None:
    kept = [
        nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), nn.Conv1d(4, 4, 2, padding="same"),
        nn.Conv1d(4, 4, 4, dilation=3, padding="same"), nn.ConvTranspose1d(4, 4, 3), nn.Linear(4, 4),
    ]  # fmt: skip
    assert apply(nn.Sequential(*kept)) == 0
    taken = [nn.Conv1d(4, 4, 2), nn.Conv1d(4, 4, 3, padding="same"), nn.Conv1d(4, 8, 2, dilation=2, padding="same")]
    model = nn.Sequential(*taken)
    assert apply(model, generator=own()) == 3
    assert [module.padding for module in model] == [(1,), (3,), (3,)]
    grouped = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3))
    assert apply(grouped, depthwise=True, generator=own()) == 1
    assert isinstance(grouped[0], Dcls)
    with pytest.raises(ValueError, match="is uneven"):
        Dcls.from_convolution(nn.Conv1d(4, 4, 2, padding="same"))


def test_first_weights_and_positions_and_a_group_without_its_rate() -> None:
    made = Dcls(64, 64, taps=4, window=9, dims=1, spread=0.7, generator=own())
    bound = 1 / 16  # of a fan-in of 64 channels with 4 taps
    assert 0.95 * bound < float(made.weight.detach().abs().max()) <= bound
    assert 0.8 * bound < float(made.bias.detach().abs().max()) <= bound
    assert float(made.positions.detach().std()) == pytest.approx(0.7, abs=0.02)
    assert made.raw_positions.shape == (1, 64, 64, 4)
    others, positions = parameter_groups(nn.Sequential(made, nn.Linear(2, 2).requires_grad_(False)), 0.1)
    assert "lr" not in positions
    assert [len(group["params"]) for group in (others, positions)] == [2, 1]
    assert made.cost_ratio == 9 / 4


def test_only_training_with_free_positions_moves_them_back() -> None:
    made = layer(window=5, padding=2)
    for training, trained, brought in ((True, True, True), (True, False, False), (False, True, False)):
        with torch.no_grad():
            made.raw_positions.fill_(3.0)
        made.raw_positions.requires_grad_(trained)
        made.train(training)(torch.zeros(1, 4, 6))
        assert float(made.raw_positions.detach().max()) == pytest.approx(0.4 if brought else 3.0)
