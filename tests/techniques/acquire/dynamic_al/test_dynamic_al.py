"""Dynamic active learning: gradients against the tangent kernel, brute force and loops; misuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from probatum.spec import Pool
from probatum.techniques.acquire.dynamic_al.dynamic_al import (
    Gain,
    additive_ratio,
    ask,
    gain,
    names_of,
    training_rate,
)
from probatum.techniques.acquire.dynamic_al.row_gradients import row_products, summed_gradient

pytestmark = pytest.mark.fast


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double().eval()


def rows(n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=own, dtype=torch.float64), torch.randint(4, (n,), generator=own)


def test_rate_is_the_quadratic_form_of_the_tangent_kernel() -> None:
    model, (x, y) = net(), rows(6)
    weights = dict(model.named_parameters())
    jacobian = jacrev(lambda w: functional_call(model, w, (x,)))(weights)
    flat = torch.cat([j.flatten(2) for j in jacobian.values()], dim=2)  # (n, c, P)
    kernel = torch.einsum("icp,jdp->icjd", flat, flat)
    error = model(x).detach().softmax(dim=1) - nn.functional.one_hot(y, 4)
    expected = torch.einsum("ic,icjd,jd->", error, kernel, error).detach()
    assert training_rate(model, x, y) == pytest.approx(float(expected), rel=1e-9)


def test_gain_of_one_row_is_the_difference_of_rates() -> None:
    model, (x, y), (u, _) = net(), rows(6), rows(5, 2)
    for scope in ("all", "last"):
        found = gain(model, u, x, y, scope, chunk=2)
        for i in range(5):
            more = training_rate(model, torch.cat([x, u[i : i + 1]]), torch.cat([y, found.pseudo[i : i + 1]]), scope)
            assert float(found.total[i]) == pytest.approx(more - training_rate(model, x, y, scope), rel=1e-8)
        assert torch.equal(found.pseudo, model(u).argmax(dim=1))


def test_batched_gradients_equal_a_loop_and_a_network_that_vmap_refuses() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e9:  # data-dependent: vmap cannot
                return self.inner(x) * 0
            return self.inner(x)

    model, (x, y) = net(), rows(7)
    direction = summed_gradient(model, *rows(4, 3), names_of(model, "all"))
    found = row_products(model, x, y, direction, chunk=3)
    for i in range(7):
        own = summed_gradient(model, x[i : i + 1], y[i : i + 1], tuple(direction))
        assert float(found.square[i]) == pytest.approx(float(sum(g.square().sum() for g in own.values())))
        assert float(found.cross[i]) == pytest.approx(float(sum((g * direction[k]).sum() for k, g in own.items())))
    wrapped = Stubborn().eval()
    same = row_products(wrapped, x, y, {f"inner.{name}": value for name, value in direction.items()})
    assert torch.allclose(same.square, found.square)
    assert torch.allclose(same.cross, found.cross)


class Twice(nn.Module):
    """A layer that runs twice, weights that are tied, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.wide, self.spare = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
        self.wide.weight = self.body.weight
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.body(self.body(x).tanh()).tanh()))


def test_modules_in_two_places_tied_and_unused_weights() -> None:
    torch.manual_seed(3)
    model, (x, y), (u, _) = Twice().double().eval(), rows(6), rows(4, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gain(model, u, x, y)
    for i in range(4):
        more = training_rate(model, torch.cat([x, u[i : i + 1]]), torch.cat([y, found.pseudo[i : i + 1]]))
        assert float(found.total[i]) == pytest.approx(more - training_rate(model, x, y), rel=1e-8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values())


def test_cross_term_vanishes_when_the_labels_are_fitted() -> None:
    model, (u, _) = net(), rows(5, 2)
    x = rows(6)[0]
    y = model(x).argmax(dim=1)
    calm, sharp = net(), net()
    with torch.no_grad():
        sharp[2].weight *= 200
        sharp[2].bias *= 200
    assert gain(sharp, u, x, y).cross_share() < 0.01 * gain(calm, u, x, y).cross_share() or (
        gain(sharp, u, x, y).cross.abs().max() < 1e-6
    )


def test_cross_share_by_hand() -> None:
    cross, none = torch.tensor([-6.0, 2.0, 1.0]), torch.zeros(3)
    own = torch.tensor([1.0, 4.0, 7.0])
    assert Gain(own, cross, own + cross, none.long()).cross_share() == pytest.approx(3.0 / 4.0)
    assert Gain(none, none, none, none.long()).cross_share() == 0.0


def test_scopes_name_their_weights_and_gradients_have_no_graph() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    assert names_of(model, "all") == ("0.weight", "2.weight", "2.bias")
    assert names_of(model, "last") == ("2.weight", "2.bias")
    found = summed_gradient(model, *rows(4), names_of(model, "last"))
    assert not any(g.requires_grad for g in found.values())


def test_additive_ratio_is_one_for_one_row_and_by_brute_force_for_two() -> None:
    model, (x, y), (u, _) = net(), rows(6), rows(2, 2)
    pseudo = model(u).argmax(dim=1)
    assert additive_ratio(model, u[:1], pseudo[:1], x, y) == pytest.approx(1.0)
    exact = training_rate(model, torch.cat([x, u]), torch.cat([y, pseudo])) - training_rate(model, x, y)
    assert additive_ratio(model, u, pseudo, x, y) == pytest.approx(float(gain(model, u, x, y).total.sum()) / exact)


def pool(model: nn.Module) -> Pool:
    none = torch.zeros(0, dtype=torch.int64)
    x, y = rows(12)
    return Pool(x, torch.tensor([3, 0, 7]), y[[3, 0, 7]], model, none, none, 0, 9)


def test_ask_takes_the_largest_gains() -> None:
    model = net()
    mine = pool(model)
    found = ask(mine, 4)
    totals = gain(model, mine.x[mine.open()], mine.x[mine.labelled], mine.y).total
    assert found.tolist() == mine.open()[totals.argsort(descending=True)[:4]].tolist()
    assert all(p.grad is None for p in model.parameters())


def test_misuse() -> None:
    normed = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).double()
    with pytest.raises(ValueError, match=r"batch norm in training mode.*model\.eval"):
        ask(pool(normed.train()), 2)
    assert len(ask(pool(normed.eval()), 2)) == 2
    dropping = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.1), nn.Linear(5, 4)).double()
    with pytest.raises(ValueError, match=r"dropout in training mode.*model\.eval"):
        ask(pool(dropping.train()), 2)
    assert len(ask(pool(dropping.eval()), 2)) == 2
    for label in (-100, 4):
        mine = pool(net())
        mine.y[1] = label
        with pytest.raises(ValueError, match=f"the label {label}; with 4 classes"):
            ask(mine, 2)
    with pytest.raises(ValueError, match="scope is 'first'"):
        ask(pool(net()), 2, scope="first")
    with pytest.raises(ValueError, match="10 rows are asked for and 9 are open"):
        ask(pool(net()), 10)
    with pytest.raises(ValueError, match="chunk is 0"):
        ask(pool(net()), 2, chunk=0)


def test_a_network_that_begins_in_place_leaves_the_rows() -> None:
    (x, y), found = rows(6), []
    for inplace in (False, True):
        model, own = nn.Sequential(nn.LeakyReLU(0.3, inplace=inplace), net()), x.clone()
        direction = summed_gradient(model, own, y, names_of(model, "all"))
        found.append(row_products(model, own, y, direction))
        assert torch.equal(own, x)
    torch.testing.assert_close(found[0].square, found[1].square)
    torch.testing.assert_close(found[0].cross, found[1].cross)


def test_candidates_are_left_when_the_network_begins_in_place() -> None:
    (x, _), (known, y) = rows(6), rows(4, seed=2)
    wanted = gain(nn.Sequential(nn.LeakyReLU(0.3), net()), x, known, y)
    own = x.clone()
    found = gain(nn.Sequential(nn.LeakyReLU(0.3, inplace=True), net()), own, known, y)
    assert torch.equal(own, x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [300.0, 1e-4])
def test_squares_of_half_precision_are_those_of_float32(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).to(dtype), (scale * torch.randn(6, 4)).to(dtype), torch.arange(6) % 3
    found = []
    for own, these in ((model, x), (copy.deepcopy(model).float(), x.float())):
        direction = summed_gradient(own, these, y, ("weight",))
        found.append(row_products(own, these, y, direction))
    assert model.weight.dtype == dtype
    assert model.weight.grad is None
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0.0)
