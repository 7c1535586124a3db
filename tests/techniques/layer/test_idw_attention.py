"""Inverse distance weighting: the weights by hand, keys as prototypes, patches with the margin they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

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
