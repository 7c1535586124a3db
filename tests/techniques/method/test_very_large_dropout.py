"""Very large dropout against its expectation in closed form, and its limits (arXiv:2403.00946)."""

from __future__ import annotations

import copy
import doctest
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from probatum.claims.tools import fit
from probatum.data.open import open_dataset
from probatum.recipe import Training
from probatum.spec import Part
from probatum.techniques.method import very_large_dropout
from probatum.techniques.method.very_large_dropout import (
    VeryLargeDropout,
    accuracy_of_half,
    drop,
    energy_rank,
    expected_excess,
    soup,
)
from probatum.train.loop import outputs

pytestmark = pytest.mark.fast

SHORT = Training(steps=25, batch_size=32, select="last")


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=own(seed))


def net(width: int = 64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


def test_p_of_zero_is_plain_training_to_the_bit() -> None:
    data = open_dataset("digits").prepare(0)
    plain, neutral = (fit(arm, data, 1, training=SHORT).model for arm in (None, "very-large-dropout(p=0.0)"))
    for (name, a), (_, b) in zip(plain.state_dict().items(), neutral.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_masks_keep_or_drop_and_scale() -> None:
    x = torch.ones(400, 50, dtype=torch.float64)
    found = drop(x, 0.9, own())
    assert {round(v, 9) for v in found.unique().tolist()} == {0.0, 10.0}
    assert float((found > 0).double().mean()) == pytest.approx(0.1, abs=0.01)
    rows = (found > 0).double()
    assert len(rows.unique(dim=0)) > 390  # every row has a mask of its own


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_expected_squared_loss_is_plain_loss_plus_a_ridge(p: float) -> None:
    weight, phi, y = draw(2, 12), draw(40, 12, seed=1), draw(40, 2, seed=2)
    plain = (phi @ weight.T - y).square().sum(dim=1).mean()
    generator = own(3)
    repeats = torch.stack([(drop(phi, p, generator) @ weight.T - y).square().sum(dim=1).mean() for _ in range(6000)])
    wanted = plain + expected_excess(weight, phi, p)
    assert float(repeats.mean()) == pytest.approx(float(wanted), rel=0.02)
    by_hand = sum(float(w) ** 2 * float(phi[:, j].square().mean()) for row in weight for j, w in enumerate(row))
    assert float(expected_excess(weight, phi, p)) == pytest.approx(p / (1 - p) * by_hand)


def test_attached_to_the_input_of_the_last_layer_in_training_only() -> None:
    model, x = net().double(), draw(7, 5)
    plain = model.eval()(x)
    dropout = VeryLargeDropout(0.9, generator=own(4)).attach(model)
    assert torch.equal(model(x), plain)
    phi = model[:2](x)
    torch.testing.assert_close(model.train()(x), F.linear(drop(phi, 0.9, own(4)), model[2].weight, model[2].bias))
    assert torch.equal(model.eval()(x), plain)
    dropout.detach()
    assert torch.equal(model.train()(x), plain)


def test_another_layer_and_sequences() -> None:
    model = nn.Sequential(nn.Linear(5, 40), nn.Linear(40, 3), nn.Linear(3, 3))
    VeryLargeDropout(0.5, last_layer=model[1], generator=own()).attach(model)
    assert not torch.equal(model(torch.ones(2, 6, 5)), model(torch.ones(2, 6, 5)))


def test_a_layer_with_further_inputs_gets_them_and_the_default_stream_is_seed_nought() -> None:
    class Gated(nn.Linear):
        def forward(self, x: Tensor, gate: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
            return gate * super().forward(x) + shift

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Gated(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x, torch.tensor(2.0), torch.tensor(5.0))

    model, x = Net(), torch.randn(4, 40, generator=own(1))
    VeryLargeDropout(0.5).attach(model)
    dropped = F.linear(drop(x, 0.5, own(0)), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(x), 2 * dropped + 5)


def test_a_layer_may_be_named() -> None:
    model = nn.Sequential(nn.Linear(5, 40), nn.Linear(40, 3), nn.Linear(3, 3))
    VeryLargeDropout(0.5, last_layer="1", generator=own()).attach(model)
    assert [len(layer._forward_pre_hooks) for layer in model] == [0, 1, 0]
    with pytest.raises(ValueError, match="last_layer is 'head'; the model has 0, 1, 2"):
        VeryLargeDropout(0.5, last_layer="head").attach(model)
    with pytest.raises(ValueError, match="no part of the model"):
        VeryLargeDropout(0.5, last_layer=nn.Linear(3, 3)).attach(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_scale_is_not_rounded_to_the_features_precision(dtype: torch.dtype) -> None:
    x = torch.full((20, 30), 3.0, dtype=dtype)
    found = drop(x, 0.7, own())
    kept = found[found > 0]
    assert found.dtype == dtype
    assert float(kept[0]) == float(torch.tensor(10.0, dtype=dtype))  # 3 / 0.3, and not 3 times a rounded 3.33
    assert len(kept) == int((drop(x.float(), 0.7, own()) > 0).sum())


def test_a_head_that_only_a_run_shows_is_found_on_the_bench() -> None:
    class Hidden(nn.Module):
        """Registered first, and behind control flow on values, which no trace follows."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(40, 3), nn.Linear(5, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) if float(x.sum()) < 1e9 else self.body(-x))

    model = Hidden()
    x = torch.randn(3, 5, generator=own())
    run = SimpleNamespace(model=model, train=Part(x, torch.arange(3), torch.arange(3)))
    dropout = VeryLargeDropout(0.5, generator=own())
    dropout.prepare(run)
    assert len(model.head._forward_pre_hooks) == 1
    assert not model.body._forward_pre_hooks
    dropout.finish(run)
    assert not model.head._forward_pre_hooks


def test_copies_made_meanwhile_drop_by_a_stream_of_their_own() -> None:
    model, x = net(), torch.ones(4, 5)
    VeryLargeDropout(0.5, generator=own(4)).attach(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), copy.deepcopy(model)(x))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_zero_head() -> None:
    model = net()
    VeryLargeDropout(0.9, zero_head=True).attach(model)
    assert model[2].weight.abs().sum() == 0
    assert model[0].weight.abs().sum() > 0


def test_all_layers_are_trained_and_predictions_do_not_draw() -> None:
    data = open_dataset("digits").prepare(0)
    with pytest.warns(UserWarning, match="from scratch"):  # the bench says that nothing was pretrained
        run = fit("very-large-dropout", data, 1, training=SHORT)
    assert all(p.requires_grad for p in run.model.parameters())
    assert not any(module._forward_pre_hooks for module in run.model.modules())
    first, second = (outputs(run.model, data.test.x) for _ in range(2))
    assert torch.equal(first, second)


def test_state_goes_on_where_it_was() -> None:
    one, x = VeryLargeDropout(0.5, generator=own(1)), torch.ones(4, 40)
    drop(x, 0.5, one.generator)
    other = VeryLargeDropout(0.5, generator=own(2))
    other.load_state_dict(one.state_dict())
    assert torch.equal(drop(x, 0.5, one.generator), drop(x, 0.5, other.generator))


def test_energy_rank() -> None:
    q, _ = torch.linalg.qr(draw(30, 30))
    features = q[:, :3] * torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)
    features = features @ draw(3, 3, seed=1).svd().V.T
    assert energy_rank(features, 0.85) == 1  # 9 of 10.01
    assert energy_rank(features, 0.95) == 2
    assert energy_rank(features, 1.0) == 3
    assert energy_rank(torch.eye(10), 0.9) == 9
    with pytest.raises(ValueError, match="share is 0"):
        energy_rank(features, 0)


def test_accuracy_of_half_tells_redundant_from_single_features() -> None:
    y = torch.arange(200) % 2
    sign = (2.0 * y - 1)[:, None]
    head = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]))
    spread, single = sign.expand(-1, 64), torch.cat([sign, torch.zeros(200, 63)], dim=1)
    noise = 0.01 * torch.randn(200, 64, generator=own())
    assert accuracy_of_half(head, spread + noise, y, 20, own()) == 1.0
    assert 0.5 < accuracy_of_half(head, single + noise, y, 40, own()) < 0.95


def test_soup_is_the_mean() -> None:
    a, b = (nn.BatchNorm1d(3) for _ in range(2))
    b.weight.data.fill_(3.0)
    mixed = soup([a.state_dict(), b.state_dict()])
    assert torch.equal(mixed["weight"], torch.full((3,), 2.0))
    assert mixed["num_batches_tracked"].dtype == torch.int64
    a.load_state_dict(mixed)
    with pytest.raises(ValueError, match="at least one"):
        soup([])


@pytest.mark.parametrize("p", [1.0, 1.5, -0.1, float("nan")])
def test_p_outside_its_range(p: float) -> None:
    with pytest.raises(ValueError, match=f"p is {p}"):
        VeryLargeDropout(p)


def test_warnings() -> None:
    with pytest.warns(UserWarning, match="16 units"):
        VeryLargeDropout(0.9).attach(net(16))
    with pytest.warns(UserWarning, match="from scratch"):
        VeryLargeDropout(0.9, pretrained=False).attach(net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VeryLargeDropout(0.9).attach(net())
        VeryLargeDropout(0.5).attach(net(16))


def test_misuse() -> None:
    dropout = VeryLargeDropout().attach(net())
    with pytest.raises(ValueError, match="detach"):
        dropout.attach(net())
    with pytest.raises(ValueError, match="no linear layer"):
        VeryLargeDropout().attach(nn.Sequential(nn.ReLU()))


def test_doctests() -> None:
    assert doctest.testmod(very_large_dropout).failed == 0


def test_a_head_registered_first_is_the_one_whose_input_is_dropped() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(64, 2), nn.Sequential(nn.Linear(4, 64), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = HeadFirst()
    dropout = VeryLargeDropout(0.5, generator=own()).attach(model)
    assert dropout.report() == {"very-large-dropout: units of the representation": 64.0}
    assert len(model.head._forward_pre_hooks) == 1


class Heads(nn.Module):
    """Two heads on parts of their own, one of them called by name, concatenated or added."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        self.body, self.side = nn.Linear(5, 40), nn.Linear(5, 40)
        self.first, self.second = nn.Linear(40, 2, bias=False), nn.Linear(40, 2, bias=False)
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(input=self.body(x)), self.second(self.side(x))
        return a + b if self.added else torch.cat([a, b], dim=1)


@pytest.mark.parametrize("added", [True, False])
def test_what_enters_each_of_several_heads_is_dropped(added: bool) -> None:
    model, x = Heads(added), torch.randn(3, 5, generator=own())
    dropout = VeryLargeDropout(0.5, generator=own(3)).attach(model, x)
    found, masks = model(x), own(3)
    a = F.linear(drop(model.body(x), 0.5, masks), model.first.weight)
    b = F.linear(drop(model.side(x), 0.5, masks), model.second.weight)
    torch.testing.assert_close(found, a + b if added else torch.cat([a, b], dim=1))
    dropout.detach()
    assert not model.first._forward_pre_hooks
    assert not model.second._forward_pre_hooks
    VeryLargeDropout(0.5, zero_head=True).attach(model, x)
    assert not model.first.weight.any()
    assert not model.second.weight.any()


def test_a_weight_that_is_computed_cannot_be_zeroed() -> None:
    model = nn.Sequential(nn.Linear(5, 40), nn.utils.parametrizations.weight_norm(nn.Linear(40, 3)))
    before = model[1].weight.detach().clone()
    with pytest.raises(ValueError, match="computed and cannot be made zero"):
        VeryLargeDropout(0.5, zero_head=True).attach(model)
    assert torch.equal(model[1].weight, before)


def test_masks_in_a_recomputed_pass_are_refused() -> None:
    model = net()
    VeryLargeDropout(0.5).attach(model)
    found = checkpoint(model, torch.randn(4, 5, generator=own()), use_reentrant=False)
    with pytest.raises(RuntimeError, match="activation checkpointing"):
        found.sum().backward()
