"""FLoRA against einsum, tensorly, LoRA and its own limits (arXiv:2405.14739)."""

from __future__ import annotations

import copy
import doctest
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.kinds.image.network import SmallResNet
from probatum.recipe import Training
from probatum.spec import Spec
from probatum.techniques.layer import flora_tucker
from probatum.techniques.layer.flora_tucker import (
    FlatLora,
    Flora,
    adapter_state,
    apply,
    cost,
    load_adapter_state,
    merge,
    ranks_of,
    solve_ranks,
    tucker,
    unmerge,
)

SPEC = Spec("image", "classes", (1, 8, 8), 10)
BASES = {
    "linear": (lambda: nn.Linear(6, 5), (2, 3), (4, 6)),
    "linear on tokens": (lambda: nn.Linear(6, 5), (2, 3), (4, 7, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (3, 2, 2), (2, 4, 15)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, "valid"), (3, 2, 2, 1), (2, 4, 9, 8)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, (3, 5), 1, "same", groups=2), (3, 2, 2, 3), (2, 4, 9, 8)),
    "conv2d reflected": (lambda: nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect"), (3, 2, 2, 2), (2, 4, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, groups=2, dilation=2), (3, 2, 1, 2, 2), (2, 4, 5, 6, 5)),
}


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=own(seed))


def filled(name: str, **settings: float) -> tuple[Flora, Tensor]:
    """An adapter whose core is not zero, and inputs."""
    make, ranks, shape = BASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = Flora(make().double(), ranks, **{"scale": 0.7, "generator": own(), **settings})
    with torch.no_grad():
        layer.core.copy_(draw(*layer.core.shape, seed=5))
    return layer, draw(*shape, seed=6)


def net() -> SmallResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallResNet(SPEC)


@pytest.mark.parametrize("modes", [2, 3, 4, 5])
def test_tucker_is_the_einsum(modes: int) -> None:
    sizes, ranks = (5, 4, 3, 2, 3)[:modes], (3, 4, 2, 1, 2)[:modes]
    core = draw(*ranks)
    factors = [draw(size, rank, seed=i) for i, (size, rank) in enumerate(zip(sizes, ranks, strict=True))]
    small, large = "abcde"[:modes], "vwxyz"[:modes]
    formula = ",".join([small, *(f"{b}{a}" for a, b in zip(small, large, strict=True))]) + f"->{large}"
    torch.testing.assert_close(tucker(core, factors), torch.einsum(formula, core, *factors), atol=1e-10, rtol=0)


@pytest.mark.parametrize("modes", [2, 4, 5])
def test_tucker_is_that_of_tensorly(modes: int) -> None:
    tensorly = pytest.importorskip("tensorly", reason="compares with another package's Tucker product")
    core = draw(*(3, 2, 2, 1, 2)[:modes])
    factors = [
        draw(size, rank, seed=i) for i, (size, rank) in enumerate(zip((6, 5, 3, 3, 3), core.shape, strict=False))
    ]
    theirs = tensorly.tucker_to_tensor((core.numpy(), [factor.numpy() for factor in factors]))
    torch.testing.assert_close(tucker(core, factors), torch.from_numpy(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", BASES)
def test_starts_as_the_frozen_layer(name: str) -> None:
    make, ranks, shape = BASES[name]
    base = make().double()
    layer, x = Flora(copy.deepcopy(base), ranks, generator=own()), draw(*shape)
    assert torch.equal(layer(x), base(x))
    assert not layer.base.weight.requires_grad
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {
        "core",
        *(f"factors.{i}" for i in range(len(ranks))),
    }
    assert layer.core.numel() + sum(f.numel() for f in layer.factors) == cost(base.weight.shape, ranks)


@pytest.mark.parametrize("name", BASES)
def test_forward_is_the_layer_plus_its_change(name: str) -> None:
    layer, x = filled(name)
    plain = copy.deepcopy(layer.base)
    with torch.no_grad():
        plain.weight.add_(layer.delta())
    torch.testing.assert_close(layer(x), plain(x), atol=1e-10, rtol=0)
    bare = copy.deepcopy(layer.base)
    bare.weight.data.zero_()
    if bare.bias is not None:
        bare.bias.data.zero_()
    torch.testing.assert_close(layer(x) - layer.base(x), plain(x) - layer.base(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", BASES)
def test_unfoldings_have_the_ranks(name: str) -> None:
    layer, _ = filled(name)
    delta = layer.delta()
    assert delta.abs().sum() > 0
    for mode, rank in enumerate(layer.core.shape):
        assert torch.linalg.matrix_rank(delta.movedim(mode, 0).flatten(1)) <= rank


@pytest.mark.parametrize("name", BASES)
def test_merge_and_unmerge(name: str) -> None:
    layer, x = filled(name)
    layer.eval()
    before, weight = layer(x), layer.base.weight.clone()
    layer.merge()
    layer.merge()  # twice is once
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.base(x), before, atol=1e-5, rtol=0)
    layer.unmerge()
    layer.unmerge()
    assert torch.equal(layer.base.weight, weight)
    assert torch.equal(layer(x), before)


def test_training_merged_is_refused() -> None:
    layer, x = filled("conv2d")
    layer.merge()
    with pytest.raises(RuntimeError, match="unmerge"):
        layer.train()(x)


def test_full_ranks_and_identity_factors_give_any_change() -> None:
    base = nn.Conv2d(4, 3, 2).double()
    layer, wanted = Flora(base, (3, 4, 2, 2), scale=2.0), draw(3, 4, 2, 2)
    with torch.no_grad():
        for factor in layer.factors:
            factor.copy_(torch.eye(len(factor)))
        layer.core.copy_(wanted / 2)
    torch.testing.assert_close(layer.delta(), wanted, atol=1e-12, rtol=0)


def test_identity_core_of_two_modes_is_lora() -> None:
    base, x = nn.Linear(6, 5).double(), draw(3, 6)
    layer = Flora(base, (2, 2), scale=0.5, generator=own())
    lora = FlatLora(base, 2, scale=0.5, generator=own())
    with torch.no_grad():
        layer.core.copy_(torch.eye(2))
        lora.up.copy_(layer.factors[0])
        lora.down.copy_(layer.factors[1].T)
    torch.testing.assert_close(layer(x), lora(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(lora(x), base(x) + 0.5 * x @ lora.down.T @ lora.up.T, atol=1e-10, rtol=0)


def test_lora_flattens_a_kernel() -> None:
    layer = FlatLora(nn.Conv2d(4, 6, 3).double(), 2, scale=1.5, generator=own())
    assert torch.equal(layer.delta(), torch.zeros(6, 4, 3, 3, dtype=torch.float64))
    with torch.no_grad():
        layer.up.copy_(draw(6, 2))
    torch.testing.assert_close(layer.delta().flatten(1), 1.5 * layer.up @ layer.down, atol=1e-12, rtol=0)


def test_gradients() -> None:
    layer, x = filled("conv2d grouped")
    tensors = [layer.core, *layer.factors]

    def call(*values: Tensor) -> Tensor:
        return layer._op(x, layer.base.weight + tucker(layer.scale * values[0], values[1:]), layer.base.bias)

    assert torch.autograd.gradcheck(call, tensors)


def test_dropout_is_on_the_adapters_path_only() -> None:
    layer, x = filled("linear", dropout=0.5)
    x = x.abs() + 1
    change = (layer.train()(x) - layer.base(x)).detach()
    again = (layer(x) - layer.base(x)).detach()
    assert not torch.equal(change, again)
    mean = torch.stack([(layer(x) - layer.base(x)).detach() for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(mean, (layer.eval()(x) - layer.base(x)).detach(), atol=0.25, rtol=0.05)
    with torch.no_grad():
        layer.core.zero_()
    assert torch.equal(layer.train()(x), layer.base(x))
    state = torch.get_rng_state()
    layer(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_factors_start_as_kaiming_says() -> None:
    layer = Flora(nn.Linear(400, 500), (64, 64), generator=own())
    assert float(layer.factors[0].detach().std()) == pytest.approx(math.sqrt(2 / (1 + 3) / 64), rel=0.02)


@pytest.mark.parametrize("form", ["tucker", "lora"])
@pytest.mark.parametrize("numbers", [150, 400, 1000, 5000])
def test_ranks_use_the_budget(form: str, numbers: int) -> None:
    shapes = [(16, 8, 3, 3), (8, 16, 1, 1), (10, 12)]

    def prices(ranks: list[tuple[int, ...]]) -> int:
        if form == "lora":
            return sum(r[0] * (s[0] + math.prod(s[1:])) for r, s in zip(ranks, shapes, strict=True))
        return sum(cost(s, r) for r, s in zip(ranks, shapes, strict=True))

    found = solve_ranks(shapes, numbers, form=form)
    assert prices(found) <= numbers
    lowest = min(max(r[:2]) for r in found)
    most = 20

    def shared(rank: int) -> list[tuple[int, ...]]:
        if form == "lora":
            return [(min(rank, s[0], math.prod(s[1:])),) for s in shapes]
        return [ranks_of(s, rank, 2) for s in shapes]

    best = max(rank for rank in range(1, most) if prices(shared(rank)) <= numbers)  # by trying all
    for own_ranks, least, above in zip(found, shared(best), shared(best + 1), strict=True):
        assert own_ranks in (least, above)
    assert lowest >= 1
    for shape, ranks in zip(shapes, found, strict=True):
        if form == "tucker":
            assert all(1 <= r <= size for r, size in zip(ranks, shape, strict=True))


def test_too_small_a_budget_says_what_is_needed() -> None:
    need = cost((16, 8, 3, 3), (1, 1, 2, 2))
    with pytest.raises(ValueError, match=f"{need}"):
        solve_ranks([(16, 8, 3, 3)], need - 1)
    assert solve_ranks([(16, 8, 3, 3)], need) == [(1, 1, 2, 2)]


def test_apply_freezes_all_but_adapters_and_head() -> None:
    model, x = net(), torch.rand(4, 1, 8, 8, generator=own())
    before = model.eval()(x)
    count = apply(model, budget=0.05, generator=own())
    layers = [m for m in net().modules() if isinstance(m, nn.Conv2d)]
    assert count == len(layers)
    assert torch.equal(model(x), before)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in free if "core" not in name and "factors" not in name} == {"head.weight", "head.bias"}
    adapted = sum(p.numel() for name, p in model.named_parameters() if name in free and not name.startswith("head"))
    assert 0.9 * 0.05 <= adapted / sum(m.weight.numel() for m in layers) <= 0.05
    model.train()(x).square().sum().backward()
    still = {n: b.clone() for n, b in model.named_buffers()}
    model(x)
    assert all(torch.equal(still[n], b) for n, b in model.named_buffers())  # statistics of batch norms stay


def test_both_forms_take_the_same_budget() -> None:
    sizes = []
    for form in ("tucker", "lora"):
        model = net()
        apply(model, budget=0.05, form=form, generator=own())
        sizes.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert max(sizes) / min(sizes) < 1.05


def test_selection_by_name_and_kind() -> None:
    model = net()
    assert apply(model, names=["stages.1.*"], kinds=["Conv2d"]) == 3
    assert [n for n, m in model.named_modules() if isinstance(m, Flora)] == [
        f"stages.1.{n}" for n in ("conv1", "conv2", "skip.0")
    ]
    assert apply(net(), kinds=["Conv1d"]) == 0
    with pytest.raises(KeyError, match=r"nowhere.*stem\.0"):
        apply(net(), names=["nowhere*"])
    with pytest.raises(ValueError, match="LSTM"):
        apply(net(), kinds=["LSTM"])


def test_the_last_layer_may_be_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert apply(model, budget=0.9, last_layer=model[1]) == 2
    assert isinstance(model[0], Flora)
    assert type(model[1]) is nn.Linear
    assert model[1].weight.requires_grad


def test_adapters_alone_are_saved() -> None:
    model, other = net(), net()
    for made in (model, other):
        apply(made, generator=own())
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=own(3)))
    state = adapter_state(model)
    assert sum(v.numel() for v in state.values()) < 0.1 * sum(p.numel() for p in model.parameters())
    load_adapter_state(other, state)
    x = torch.rand(3, 1, 8, 8, generator=own())
    assert torch.equal(model.eval()(x), other.eval()(x))
    state.pop("head.bias")
    with pytest.raises(KeyError, match=r"head\.bias"):
        load_adapter_state(other, state)


def test_the_whole_network_merges() -> None:
    model, x = net().eval(), torch.rand(3, 1, 8, 8, generator=own())
    count = apply(model, generator=own())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "core" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=own(1)))
    before = model(x)
    assert merge(model) == count
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)
    assert unmerge(model) == count
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("ranks", "what"), [((2, 2, 2), "4 modes"), ((2, 5, 2, 2), "mode 2 is 5"), ((0, 1, 1, 1), "mode 1 is 0")]
)
def test_ranks_that_do_not_fit_name_the_mode(ranks: tuple[int, ...], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Flora(nn.Conv2d(4, 6, 3), ranks)
    with pytest.raises(ValueError, match=what):
        apply(nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 2)), ranks=ranks)


def test_other_misuse() -> None:
    for settings, error in (
        ({"scale": 0.0}, "scale"),
        ({"dropout": 1.0}, "dropout"),
        ({"budget": 0.0}, "budget"),
        ({"budget": 1e-4}, "rank 1 alone"),
        ({"kernel_rank": 0}, "kernel_rank"),
        ({"form": "cp"}, "tucker, lora"),
    ):
        with pytest.raises(ValueError, match=error):
            apply(net(), **settings)
    with pytest.raises(TypeError, match="Embedding"):
        Flora(nn.Embedding(3, 4), (1, 1))
    with pytest.raises(ValueError, match="rank is 9"):
        FlatLora(nn.Linear(4, 3), 9)


@pytest.mark.parametrize("form", ["tucker", "lora"])
def test_trains_through_the_bench_and_leaves_the_body_alone(form: str) -> None:
    data = open_dataset("digits").prepare(0)
    runs = [
        fit(f"flora-tucker(form={form!r})", data, 1, training=Training(steps=steps, select="last")) for steps in (1, 30)
    ]
    early, late = ([copy.deepcopy(dict(run.model.named_parameters())), run] for run in runs)
    for name, p in early[0].items():
        moved = not torch.equal(p, late[0][name])
        assert moved == p.requires_grad, name
    assert list(itertools.chain(late[1].optimizer.param_groups[0]["params"]))


def test_doctests() -> None:
    assert doctest.testmod(flora_tucker).failed == 0


def test_one_layer_in_two_places_gets_one_adapter() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 3))
    assert apply(model, budget=0.5) == 2
    assert model[0] is model[2]
    assert isinstance(model[0], Flora)


def test_a_state_saved_while_merged_is_that_of_the_adapters() -> None:
    model = net()
    fresh = copy.deepcopy(model)
    apply(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=own(3)))
    model.eval()
    x = draw(2, *SPEC.shape).float()
    expected = model(x)
    merge(model)
    state = copy.deepcopy(model.state_dict())
    apply(fresh)
    fresh.eval().load_state_dict(state)
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-5)
    merge(fresh)
    fresh.load_state_dict(state)  # into a merged network, too
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-5)


def test_adapter_state_goes_into_a_merged_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    apply(model, budget=0.5)
    other, x = copy.deepcopy(model), torch.randn(4, 8)
    with torch.no_grad():
        other[0].core.add_(0.3)
    merge(model)
    load_adapter_state(model, adapter_state(other))
    assert model[0].merged
    torch.testing.assert_close(model.eval()(x), other.eval()(x), rtol=1e-4, atol=1e-5)
    unmerge(model)
    assert torch.equal(model[0].base.weight, other[0].base.weight)


def test_twice_tied_and_half_way_are_refused_without_a_trace() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    apply(model, budget=0.5)
    with pytest.raises(ValueError, match="has adapters already"):
        apply(model, budget=0.5)
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are one tied parameter"):
        apply(tied, budget=0.5)
    middle = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), nn.Linear(2, 3))
    with pytest.raises(ValueError, match="the rank of mode 1 is 4"):
        apply(middle, ranks=(4, 4))  # fits the first layer and not the second
    assert [type(m) for m in middle] == [nn.Linear, nn.BatchNorm1d, nn.Linear, nn.Linear]
    assert all(p.requires_grad for p in middle.parameters())


def test_inside_an_encoder_it_runs_in_evaluation_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), nn.Linear(16, 2))
    assert apply(model, budget=0.5) == 2
    with torch.no_grad():
        model[0].linear1.core.add_(1.0)
    x = torch.randn(2, 5, 16)
    expected = model.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_a_head_registered_first_is_the_one_that_is_trained_whole() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 2), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = HeadFirst()
    assert apply(model, budget=0.5) == 2
    assert type(model.head) is nn.Linear
    assert model.head.weight.requires_grad


def test_first_factors_come_from_no_global_stream_and_states_have_no_graph() -> None:
    before = torch.get_rng_state()
    first, second = (Flora(nn.utils.skip_init(nn.Linear, 5, 4), (2, 3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.factors[0], second.factors[0])
    assert not any(value.requires_grad for value in adapter_state(first).values())


def test_a_state_taken_merged_has_the_plain_weight_under_any_prefix() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 3))
    plain = model[0][0].weight.detach().clone()
    apply(model, budget=0.5)
    with torch.no_grad():
        model[0][0].core.fill_(0.3)
    merge(model)
    assert not torch.equal(model[0][0].base.weight, plain)
    for state in (model.state_dict(), {f"0.{name}": value for name, value in model[0].state_dict().items()}):
        assert torch.equal(state["0.0.base.weight"], plain)
    assert torch.equal(model[0].state_dict(prefix="x.")["x.0.base.weight"], plain)


def test_dropout_in_a_recomputed_pass_is_refused() -> None:
    layer = Flora(nn.Linear(6, 5), (2, 3), dropout=0.5, generator=own())
    found = checkpoint(layer, torch.randn(4, 6, generator=own()), use_reentrant=False)
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        found.sum().backward()
