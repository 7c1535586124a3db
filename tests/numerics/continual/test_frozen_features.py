"""Frozen features: what learns, what stays, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from probatum.numerics.continual.frozen_features import FrozenFeatures
from probatum.numerics.continual.learners import Settings
from probatum.spec import Budget, Stage

pytestmark = pytest.mark.fast


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def settings() -> Settings:
    return Settings(3, network, torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))


def stage() -> Stage:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    return Stage(0, (0, 1), x, (x[:, 0] > 0).long())


def test_first_stage_takes_four_fifths_of_the_steps_and_then_nothing_moves() -> None:
    found = FrozenFeatures("first-stage", settings())
    left = found.begin(stage(), Budget(20, 8, 5))
    assert left.steps == 4
    assert found.passes == 16 * 8
    assert not any(p.requires_grad for p in found.network.parameters())
    state = {name: value.clone() for name, value in found.network.state_dict().items()}
    found.network.train()
    found.learnt(torch.randn(9, 4, generator=torch.Generator().manual_seed(4)))
    assert found.passes == pytest.approx(128 + 3)
    assert all(torch.equal(value, state[name]) for name, value in found.network.state_dict().items())


def test_given_is_the_network_as_it_came_standardised_on_the_first_stage() -> None:
    found, plain = FrozenFeatures("given", settings()), network().eval()
    assert found.begin(stage(), Budget(20, 8, 5)).steps == 20
    raw = plain[:3](stage().x).detach()  # type: ignore[index]
    live = raw.std(dim=0) > 0
    torch.testing.assert_close(found(stage().x)[:, live], ((raw - raw.mean(0)) / raw.std(0, correction=0))[:, live])
    assert bool((found(stage().x)[:, ~live] == 0).all())
    assert found.stored_bytes() == 2 * 8 * 4


def test_ones_own_encoder_is_left_as_it_is() -> None:
    found = FrozenFeatures(nn.Flatten(), settings())
    found.begin(stage(), Budget(20, 8, 5))
    assert torch.equal(found(stage().x), stage().x)
    assert found.stored_bytes() == 0


def test_bad_encoders() -> None:
    with pytest.raises(ValueError, match="encoder is 'none'; use first-stage or given"):
        FrozenFeatures("none", settings())
    with pytest.raises(ValueError, match="require gradients"):
        FrozenFeatures(network(), settings())
