"""The decoder sees the past alone; the loop's loss and errors are those of single positions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from probatum.checks.toy import toy
from probatum.kinds.language.network import Decoder
from probatum.numerics.attention.causal import CausalSelfAttention
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.rooms.task import task
from probatum.spec import Batch, Spec
from probatum.train import baselines
from probatum.train.assemble import assemble
from probatum.train.loop import outputs, train
from probatum.train.rng import generator_for, seeded
from probatum.train.run import last_layer


def spec_of(vocabulary: int = 11, length: int = 9) -> Spec:
    return Spec("text", "next-token", (length,), vocabulary, vocabulary=vocabulary)


def test_logits_do_not_see_later_tokens() -> None:
    with seeded(1, "model"):
        model = baselines.build(spec_of()).double().eval()
    assert isinstance(model, Decoder)
    x = torch.randint(2, 11, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(x)
        for place in range(1, 9):
            torch.testing.assert_close(model(x[:, :place]), whole[:, :place])
            other = x.clone()
            other[:, place] = 2 + (x[:, place] + 1) % 9
            moved = model(other)
            assert torch.allclose(moved[:, :place], whole[:, :place])
            assert not torch.allclose(moved[:, place:], whole[:, place:], atol=1e-6)


def test_the_decoder_starts_near_equal_shares() -> None:
    with seeded(1, "model"):
        model = Decoder(spec_of())
    x = torch.randint(2, 11, (4, 9), generator=torch.Generator().manual_seed(0))
    p = model(x).softmax(dim=2).detach()
    assert float((p - 1 / 11).abs().max()) < 0.06
    assert sum(isinstance(module, CausalSelfAttention) for module in model.modules()) == 2
    assert last_layer(model) is model.head


def test_the_objective_is_the_mean_over_positions() -> None:
    data = toy("text", "next-token")
    parts = assemble(alone(Recipe(training=Training(steps=3, batch_size=8)), data, 0))
    output = torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(0))
    y = data.train.y[:5]
    terms = [F.cross_entropy(output[i, t], y[i, t]) for i in range(5) for t in range(12)]
    found = parts.run.objective(Batch(data.train.x[:5], y, torch.arange(5)), output)
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_errors_by_slices_are_the_errors() -> None:
    data = toy("text", "next-token")
    parts = assemble(alone(Recipe(training=Training(steps=3, batch_size=8)), data, 0))
    part = data.train
    twice = type(part)(torch.cat([part.x] * 2), torch.cat([part.y] * 2), torch.arange(128))  # two slices
    asked = task("next-token")
    sliced = asked.look(lambda part: outputs(parts.run.model, part.x), twice)
    whole = asked.errors(outputs(parts.run.model, twice.x), twice.y)
    assert sliced == pytest.approx(whole, rel=1e-5)


def test_a_short_training_learns_the_chain() -> None:
    data = toy("text", "next-token")
    training = Training(steps=150, batch_size=16, lr=0.01, clip=1.0)
    parts = assemble(alone(Recipe(training=training), data, 0))
    with seeded(0, "training"):
        train(parts.run, [], generator_for(0, "order"), select="log-loss")
    look = partial(task("next-token").look, lambda part: outputs(parts.run.model, part.x))
    found = look(data.test)
    assert found["error"] < 0.2  # one token in ten is drawn at random
    assert found["log_loss"] < 1.2
    assert min(point["valid_log_loss"] for point in parts.run.curve) == pytest.approx(look(data.valid)["log_loss"])
