"""Where features come from: trained here, as it comes, or the rows themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.checks.toy import toy
from probatum.numerics.networks.backbone import Backbone, backbone
from probatum.spec import Budget, Optimisation

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("source", "pretrained", "trained"),
    [
        ("network", True, True),
        ("network", False, True),
        ("auto", False, True),
        ("auto", True, False),
        ("pretrained", True, False),
    ],
)
def test_a_network_is_trained_where_none_comes_trained_or_it_is_asked_for(
    source: str, pretrained: bool, trained: bool
) -> None:
    data = toy("table", "classes")
    given = nn.Sequential(nn.Linear(data.spec.shape[0], 4), nn.ReLU(), nn.Linear(4, data.spec.outputs))
    before = given[0].weight.detach().clone()
    budget, draw = Budget(steps=3, batch_size=8, steps_per_epoch=1), torch.Generator().manual_seed(0)
    found = backbone(data, budget, draw, lambda: given, Optimisation(0.1), pretrained, source)
    assert torch.equal(given[0].weight, before) is not trained
    assert found.passes == (24 if trained else 0)
    assert not any(p.requires_grad for p in given.parameters())
    features = found(data.train.x[:5])
    torch.testing.assert_close(features, given[:2](data.train.x[:5]))
    torch.testing.assert_close(found.logits(data.train.x[:5]), given(data.train.x[:5]))


def test_rows_themselves() -> None:
    x = torch.arange(12).view(2, 2, 3)
    assert Backbone(None)(x).tolist() == x.flatten(1).float().tolist()
    with pytest.raises(ValueError, match="use another source"):
        Backbone(None).logits(x)
