"""Inverse distance weighting: the weights by hand, keys as prototypes, patches with the margin they promise."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from probatum.techniques.layer import idw_attention as module
from probatum.techniques.layer.idw_attention import (
    SCORES,
    InverseDistanceAttention,
    InverseDistanceHead,
    apply,
    attention_scores,
    idw_attention,
    patch_all,
    squared_distances,
    squared_distances_by_products,
)

pytestmark = pytest.mark.fast


def head(**settings: float) -> InverseDistanceHead:
    generator = torch.Generator().manual_seed(0)
    made = InverseDistanceHead(4, 3, keys=7, generator=generator, **settings).double()
    with torch.no_grad():
        made.raw_values.copy_(torch.randn(7, 3, generator=generator))
    return made.eval()


def rows(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_weights_by_loops() -> None:
    made, x = head(eps=0.01, p=3.0), rows()
    found = made.attention(x)
    for i, row in enumerate(x):
        inverse = [1 / (0.01 + float((row - key).norm()) ** 3) for key in made.keys.detach()]
        expected = [value / sum(inverse) for value in inverse]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-9)


def test_scores_are_what_they_are_called() -> None:
    x, keys = rows(), rows(7) * 0.5
    distance = torch.cdist(x, keys).square()
    expected = {
        "neglog-distance": -(1e-3 + distance).log(),
        "dot": x @ keys.T / 2,
        "cosine": torch.stack([F.cosine_similarity(x, key[None]) for key in keys], dim=1),
        "negative-distance": -distance,
        "exp-negative-distance": (-distance).exp(),
        "inverse-distance": 1 / (1e-3 + distance),
    }
    assert set(expected) == set(SCORES)
    for score, value in expected.items():
        torch.testing.assert_close(attention_scores(x, keys, score), value)


def test_at_a_key_its_value_comes_out() -> None:
    made = head(eps=1e-12)
    torch.testing.assert_close(made(made.keys.detach()), made.values.detach(), atol=1e-8, rtol=0)


def test_large_dimensions_stay_in_log_space() -> None:
    generator = torch.Generator().manual_seed(0)
    x, keys = (1e18 * torch.randn(3, 64, generator=generator) for _ in range(2))
    weights = attention_scores(x, keys).softmax(dim=-1)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3))


def test_gradients_also_at_a_key() -> None:
    made, x = head(), rows(3)
    made.eval()
    assert torch.autograd.gradcheck(lambda v: made(v), (x.clone().requires_grad_(),))
    at_key = made.keys.detach()[:2].clone().requires_grad_()
    made(at_key).sum().backward()
    assert torch.isfinite(at_key.grad).all()
    for p in (1.0, 1.5):
        there = made.keys.detach()[:1].clone().requires_grad_()
        attention_scores(there, made.keys.detach(), p=p).sum().backward()
        assert torch.isfinite(there.grad).all()


@torch.no_grad()
def test_a_patch_leaves_the_margin_it_promises() -> None:
    made, x = head(eps=0.05), rows()
    for row in x:
        before = made(row)
        wanted = int(before.argmin())
        gap = float(before.max() - before[wanted])
        weight = sum(1 / (0.05 + float((row - key).square().sum())) for key in made.keys.detach())
        assert made.patch(row, wanted)
        after = made(row)
        others = after[torch.arange(3) != wanted].max()
        assert int(after.argmax()) == wanted
        assert float(after[wanted] - others) == pytest.approx(gap / (1 + 0.05 * weight), rel=1e-6)
        assert not made.patch(row, wanted), "it is right already"
    assert len(made.keys) == 7 + len(x)


def test_a_tie_lost_by_its_order_is_patched() -> None:
    made = head()
    with torch.no_grad():
        made.raw_values.zero_()
    row = rows(1)[0]
    assert made.patch(row, 2)
    assert int(made(row).argmax()) == 2


def test_patches_and_their_collateral_are_counted() -> None:
    made, x = head(), rows(40)
    target = (made(x[:3]).argmax(dim=-1) + 1) % 3
    before = made(x[3:]).argmax(dim=-1)
    right, changed = patch_all(made, x[:3], target, x[3:])
    assert right == 3
    assert changed == int((made(x[3:]).argmax(dim=-1) != before).sum())


def test_keys_take_their_place_once() -> None:
    made, x = head().train(), 5 + rows(50)
    noise = made.keys.detach().clone()
    made(x)
    torch.testing.assert_close(made.keys.detach(), x.mean(dim=0) + 0.1 * x.std(dim=0) * noise)
    placed = made.keys.detach().clone()
    made(x + 100)
    assert torch.equal(made.keys.detach(), placed)
    again = head()
    again.load_state_dict(made.state_dict())
    again.train()(x + 100)
    assert torch.equal(again.keys.detach(), placed), "a restored head is not placed again"


@pytest.mark.parametrize("column", [torch.ones(50), torch.linspace(-1000, 1000, 50)])
def test_uneven_features_are_told(column: torch.Tensor) -> None:
    x = rows(50)
    x[:, 0] = column
    with pytest.warns(UserWarning, match="standard deviations"):
        head().place(x)
    inner = head().train()
    inner(x)  # of hidden units nothing is said
    assert inner.placed


def test_sequences_and_masks() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    found = idw_attention(q, k, v, causal=True)
    weights = 1 / (1e-3 + torch.cdist(q, k).square()).tril(0)
    weights = torch.where(torch.ones(5, 5).tril() > 0, weights, torch.zeros(()).double())
    torch.testing.assert_close(found, weights / weights.sum(dim=-1, keepdim=True) @ v)
    changed = k.clone()
    changed[..., 3:, :] += 1
    torch.testing.assert_close(idw_attention(q, changed, v, causal=True)[..., :3, :], found[..., :3, :])
    with pytest.raises(ValueError, match="hides every key"):
        idw_attention(q, k, v, mask=torch.zeros(5, 5, dtype=torch.bool))


def test_attention_does_not_see_padding() -> None:
    torch.manual_seed(0)
    layer = InverseDistanceAttention(8, 2)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    other = x.clone()
    other[0, 3:] = 9.0
    torch.testing.assert_close(layer(x, mask)[0, :3], layer(other, mask)[0, :3])
    torch.testing.assert_close(layer(x, mask)[0, :3], layer(x[:1, :3])[0])
    assert torch.equal(squared_distances(x, x).diagonal(dim1=-2, dim2=-1), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"keys": 2}, "keys is 2 for 3 classes"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"p": -1.0}, "p is -1.0"),
        ({"value_rate": 0.0}, "value_rate is 0.0"),
        ({"score": "euclid"}, "score is 'euclid'"),
    ],
)
def test_settings_out_of_range(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        apply(nn.Sequential(nn.Linear(4, 3)), **settings)


def test_misused_patches() -> None:
    with pytest.raises(ValueError, match="neglog-distance only"):
        InverseDistanceHead(4, 3, keys=4, score="dot").patch(torch.zeros(4), 0)
    with pytest.raises(ValueError, match="classes are 0"):
        head().patch(torch.zeros(4, dtype=torch.float64), 3)
    with pytest.raises(ValueError, match="one row"):
        head().patch(rows(2), 0)
    with pytest.raises(ValueError, match="single row"):
        head().train()(rows(1))


def test_distances_by_products_are_those_by_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    torch.testing.assert_close(squared_distances_by_products(q, k), squared_distances(q, k))
    assert (squared_distances_by_products(q.float(), q.float()) >= 0).all()


class HeadFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(8, 3), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_the_head_that_runs_last_is_replaced_wherever_it_stands() -> None:
    net = HeadFirst()
    assert apply(net, keys=6) == 1
    assert isinstance(net.head, InverseDistanceHead)
    assert type(net.body[2]) is nn.Linear
    named = HeadFirst()
    apply(named, keys=8, last_layer=named.body[2])
    assert isinstance(named.body[2], InverseDistanceHead)
    twice = HeadFirst()
    twice.again = twice.head
    assert apply(twice, keys=6) == 2
    assert twice.again is twice.head
    with pytest.raises(ValueError, match="itself the Linear"):
        apply(nn.Linear(4, 3), keys=6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_features_do_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    x, keys = 20 * torch.randn(4, 512), 20 * torch.randn(6, 512)
    x, keys = x.to(dtype), keys.to(dtype)
    found = attention_scores(x, keys)
    assert found.dtype == dtype
    torch.testing.assert_close(found, attention_scores(x.float(), keys.float()).to(dtype))


def test_a_patched_head_is_restored_into_a_fresh_one() -> None:
    made, x = head(), rows()
    target = (made(x).argmax(dim=-1) + 1) % 3
    patch_all(made, x, target, x)
    net = nn.Sequential(nn.Linear(4, 4), made).double()
    fresh = nn.Sequential(nn.Linear(4, 4), InverseDistanceHead(4, 3, keys=7)).double().eval()
    fresh[1].raw_values.requires_grad_(False)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), net(x))
    assert (fresh[1](x).argmax(dim=-1) == target).all()
    assert len(fresh[1].keys) == len(made.keys) > 7
    assert (fresh[1].keys.requires_grad, fresh[1].raw_values.requires_grad) == (True, False)
    fresh.load_state_dict(nn.Sequential(nn.Linear(4, 4), head()).state_dict())
    assert len(fresh[1].keys) == 7
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh[1].load_state_dict(InverseDistanceHead(5, 3, keys=9).state_dict())
    assert fresh.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items() if name != "1.placed")


def test_keys_patched_before_the_first_training_pass_stay() -> None:
    made, x = head(), 5 + rows(50)
    assert made.patch(x[3], int(made(x[3]).argmin()))
    wanted, noise = made.keys[-1].detach().clone(), made.keys[:-1].detach().clone()
    made.train()(x)
    assert torch.equal(made.keys[-1], wanted)
    torch.testing.assert_close(made.keys[:-1].detach(), x.mean(dim=0) + 0.1 * x.std(dim=0) * noise)


@pytest.mark.parametrize("most", [0, 2000, 2**24])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_to_many_keys_are_those_by_differences(
    offset: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_DIFFERENCES", most)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 8, generator=generator)
    keys = torch.cat([torch.randn(9, 8, generator=generator), x[0, :2], x[1, :2] + 0.01])
    x, keys = ((rows + offset).requires_grad_() for rows in (x, keys))
    wide = [rows.detach().double().requires_grad_() for rows in (x, keys)]
    exact = (wide[0].unsqueeze(-2) - wide[1]).square().sum(dim=-1)
    found = squared_distances(x, keys)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-9)
    assert found[0, 0, 9] == found[0, 1, 10] == 0
    weight = torch.rand(exact.shape, generator=generator)
    (found * weight).sum().backward()
    (exact * weight).sum().backward()
    for ours, theirs in zip((x, keys), wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4)


def test_many_keys_take_the_memory_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = InverseDistanceHead(64, 3, keys=50), torch.randn(200, 64)
    sizes: list[int] = []
    monkeypatch.setattr(module, "MOST_DIFFERENCES", 100_000)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: sizes.append(value.numel()) or value, lambda value: value
    ):
        made.eval()(x).sum().backward()
    assert max(sizes) <= 200 * 64
    expected = (x[:3, None] - made.keys).square().sum(dim=-1)
    torch.testing.assert_close(attention_scores(x, made.keys)[:3], -(expected + 1e-3).log())


def test_sequences_far_from_zero_and_their_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, 8, generator=generator) for _ in range(3))
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    mask[:, :, 4:] = False
    expected = idw_attention(q.double(), k.double(), v.double(), mask=mask).float()
    hidden = k.clone()
    hidden[:, 4:] = 1e6
    torch.testing.assert_close(idw_attention(q, hidden, v, mask=mask), expected)
    far, near = ((rows + 1e4).double() for rows in (q, k))
    torch.testing.assert_close(
        idw_attention(q + 1e4, k + 1e4, v), idw_attention(far, near, v.double()).float(), rtol=1e-3, atol=1e-3
    )
    here = k.clone()
    torch.testing.assert_close(idw_attention(here + 1e4, here + 1e4, v, eps=1e-9), v, rtol=1e-4, atol=1e-4)


def test_single_rows_and_batches_of_any_shape() -> None:
    made, x = head(), rows(6)
    expected = made(x)
    torch.testing.assert_close(made(x[2]), expected[2])
    assert torch.equal(made(x.view(2, 3, 4)), expected.view(2, 3, 3))
    assert made(x[:0]).shape == (0, 3)
    assert torch.equal(made(x.t().contiguous().t()), expected)
    with pytest.raises(ValueError, match="single row"):
        made.train()(x[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_patch_holds_in_half_precision(dtype: torch.dtype) -> None:
    made = head().to(dtype)
    for row in rows(20).to(dtype):
        wanted = int(made(row).argmin())
        assert made.patch(row, wanted)
        assert int(made(row).argmax()) == wanted


@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_self_attention_by_loops(causal: bool) -> None:
    torch.manual_seed(0)
    layer, x = InverseDistanceAttention(6, 3, eps=0.02, causal=causal).double(), torch.randn(2, 4, 6).double()
    q, k, v = layer.qkv(x).detach().split(6, dim=2)
    mixed = torch.zeros(2, 4, 6, dtype=torch.float64)
    for n in range(2):
        for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
            for i in range(4):
                seen = range(i + 1 if causal else 4)
                inverse = [1 / (0.02 + float((q[n, i, part] - k[n, j, part]).square().sum())) for j in seen]
                for weight, j in zip(inverse, seen, strict=True):
                    mixed[n, i, part] += weight / sum(inverse) * v[n, j, part]
    torch.testing.assert_close(layer(x), layer.out(mixed))
    with pytest.raises(ValueError, match="width is 6, heads is 4"):
        InverseDistanceAttention(6, 4)


def test_only_training_places_keys_and_an_even_spread_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    made, x = head(), rows(50) * torch.tensor([1.0, 3.0, 20.0, 60.0])
    before = made.keys.detach().clone()
    made(x)
    assert torch.equal(made.keys, before)
    assert not made.placed
    made.place(x)
    made.train()(9 + x)
    torch.testing.assert_close(made.keys.detach(), x.mean(dim=0) + 0.1 * x.std(dim=0) * before)
    assert not recwarn.list


@torch.no_grad()
def test_a_tie_is_broken_by_no_more_than_rounding_asks_for() -> None:
    made, row = head(), rows(1)[0]
    made.raw_values.fill_(5.0)
    assert made.patch(row, 2)
    output = made(row)
    assert 0 < float(output[2] - output[0]) < 1e-12
    assert float(made.values[0, 0]) == 50.0
    assert not made.patch(row, 2)


def test_values_learn_ten_times_as_fast_and_slopes_at_a_key_vanish() -> None:
    made = InverseDistanceHead(2, 2, keys=3, value_rate=7.0, p=1.0)
    with torch.no_grad():
        made.raw_values.copy_(torch.arange(6.0).view(3, 2))
    torch.testing.assert_close(made.values, 7 * torch.arange(6.0).view(3, 2))
    at = made.keys.detach()[:1].clone().requires_grad_()
    distances = (at.detach() - made.keys.detach()).square().sum(dim=1).sqrt()
    found = attention_scores(at, made.keys.detach(), p=1.0)
    torch.testing.assert_close(found[0], -(1e-3 + distances).log())
    found[0, 0].backward()
    assert torch.equal(at.grad, torch.zeros(1, 2))


def test_first_keys_come_from_the_generator() -> None:
    own = torch.Generator().manual_seed(0)
    assert torch.equal(InverseDistanceHead(4, 3, keys=5).keys, torch.randn(5, 4, generator=own))
    own = torch.Generator().manual_seed(9)
    made = InverseDistanceHead(4, 3, keys=5, generator=torch.Generator().manual_seed(9))
    assert torch.equal(made.keys, torch.randn(5, 4, generator=own))
    assert not made.raw_values.any()


def test_masks_of_ones_and_zeros_are_truth_values() -> None:
    q, k, v = (torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mask = (torch.arange(5) < torch.tensor([[3], [5]])).unsqueeze(1).expand(2, 5, 5)
    for causal in (False, True):
        expected = idw_attention(q, k, v, mask=mask, causal=causal)
        assert torch.equal(idw_attention(q, k, v, mask=mask.long(), causal=causal), expected)
