"""Pretrained weights arrive bit for bit, heads are new, and what has to be stored is counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.kinds.image.network import SmallResNet
from probatum.numerics.networks.frozen import StillBatchNorm2d, freeze
from probatum.recipe import Recipe, Training
from probatum.rooms.arena import alone
from probatum.spec import Data, Spec
from probatum.train.adapt import (
    FROM_SCRATCH,
    HEAD_ONLY,
    Adapted,
    copy_body,
    digest,
    identity_of,
    own_part,
    state_of,
    stored,
)
from probatum.train.assemble import Assembly, assemble, is_pretrained
from probatum.train.baselines import build
from probatum.train.loop import outputs, train
from probatum.train.pretrain import MOST_STEPS, SEED, pretrain, source_training
from probatum.train.replicas import Replica, train_replicas
from probatum.train.rng import derive, generator_for, seeded

SHORT = Recipe(training=Training(steps=12, batch_size=32, lr=4e-3))
GREY, COLOUR = (Spec("image", "classes", (channels, 8, 8), 10) for channels in (1, 3))


def net(spec: Spec = GREY, seed: int = 0) -> nn.Module:
    """The built-in network of a seed, with norms that have moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build(spec)
        made.train()(torch.rand(16, *spec.shape))
        return made


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_dataset("digits").prepare(3)


def assembled(data: Data, factory: Adapted, seed: int = 1, arm: Recipe = SHORT) -> Assembly:
    return assemble(alone(arm, data, seed, factory=factory))


def run(parts: Assembly, seed: int = 1) -> Assembly:
    with seeded(seed, "training"):
        train(parts.run, parts.methods, generator_for(seed, "order"))
    return parts


def test_every_tensor_of_the_body_arrives_bit_for_bit(digits: Data) -> None:
    state = state_of(net(seed=4))
    parts = assembled(digits, Adapted(state))
    for name, value in parts.run.model.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(value, state[name]), name
            assert value.data_ptr() != state[name].data_ptr()
    plain = assemble(alone(SHORT, digits, 1)).run.model  # the head is what it would be without pretraining
    assert torch.equal(parts.run.model.head.weight, plain.head.weight)
    assert not torch.equal(parts.run.model.head.weight, state["head.weight"])
    assert all(p.requires_grad for p in parts.run.model.parameters())


def test_from_scratch_is_the_plain_baseline_to_the_bit(digits: Data) -> None:
    scratch = run(assembled(digits, Adapted(state_of(net()), start=FROM_SCRATCH))).run.model
    plain = run(assemble(alone(SHORT, digits, 1))).run.model
    for name, value in plain.state_dict().items():
        assert torch.equal(value, scratch.state_dict()[name]), name


def test_head_only_trains_the_head_and_nothing_else_moves(digits: Data) -> None:
    state = state_of(net(seed=4))
    factory = Adapted(state).playing(HEAD_ONLY)
    parts = run(assembled(digits, factory))
    after = parts.run.model.state_dict()
    for name, value in state.items():
        assert torch.equal(after[name], value) != name.startswith("head"), name
    head = state["head.weight"].numel() + state["head.bias"].numel()
    assert factory.sizes(parts.run.model) == {"trainable-parameters": head, "stored-parameters": head}


def test_playing() -> None:
    factory = Adapted({})
    assert factory.playing("baseline") is factory
    assert factory.playing("") is factory
    assert factory.playing(FROM_SCRATCH).start == FROM_SCRATCH
    assert is_pretrained(factory)
    assert is_pretrained(factory.playing(HEAD_ONLY))
    assert not is_pretrained(factory.playing(FROM_SCRATCH))
    assert not is_pretrained(None)


def test_frozen_norms_go_by_their_statistics_in_training() -> None:
    model = net().eval()
    x = torch.rand(5, 1, 8, 8)
    wanted, buffers = model(x), {n: b.clone() for n, b in model.named_buffers()}
    count = freeze(model, [model.head])
    assert count == sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head"))
    torch.testing.assert_close(model.train()(x), wanted)
    assert all(torch.equal(buffers[n], b) for n, b in model.named_buffers())
    assert freeze(model, [model.head]) == 0
    partly = net()
    freeze(partly, [partly.stages[2], partly.head])
    kinds = {n: type(m) for n, m in partly.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {kind for n, kind in kinds.items() if n.startswith("stages.2")} == {nn.BatchNorm2d}
    assert {kind for n, kind in kinds.items() if not n.startswith("stages.2")} == {StillBatchNorm2d}


def test_another_number_of_classes_and_another_size_of_image() -> None:
    state = state_of(net())
    target = build(Spec("image", "classes", (1, 12, 12), 3))
    copied = copy_body(target, state)
    assert copied.share == 1
    assert copied.fresh == {"head.weight": (3, 64), "head.bias": (3,)}
    assert target(torch.rand(2, 1, 12, 12)).shape == (2, 3)


def test_grey_weights_on_colour_images_and_back() -> None:
    grey, colour = net(GREY).eval(), net(COLOUR, seed=1).eval()
    copied = copy_body(colour, grey.state_dict())
    assert copied.converted == ("stem.0.weight",)
    colour.head.load_state_dict(grey.head.state_dict())
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), grey(x))
    back = net(GREY, seed=2).eval()
    assert copy_body(back, colour.state_dict()).converted == ("stem.0.weight",)
    back.head.load_state_dict(grey.head.state_dict())
    torch.testing.assert_close(back(x), grey(x))


def test_less_than_half_of_the_body_is_refused_with_both_shapes() -> None:
    wide = SmallResNet(GREY, widths=(32, 64, 128))
    with pytest.raises(InputError, match=r"0 % of the body.*stem\.0\.weight is 16x1x3x3 here and 32x1x3x3 there"):
        copy_body(net(), wide.state_dict())
    with pytest.raises(InputError, match=r"no tensor has a name of this network's.*other\.weight"):
        copy_body(net(), {"other.weight": torch.zeros(2)})
    state = net().state_dict()
    del state["stem.0.weight"]
    assert 0.9 < copy_body(net(), state).share < 1


def test_stored_parameters_by_hand() -> None:
    model = net()
    state = state_of(model)
    assert stored(model, state) == 0
    with torch.no_grad():
        model.stages[0].conv1.weight[0, 0, 0, 0] += 1
    assert stored(model, state) == 16 * 16 * 9
    model.stem[1].running_mean.add_(1)
    assert stored(model, state) == 16 * 16 * 9 + 16
    model.head = nn.Linear(64, 3)
    assert stored(model, state) == 16 * 16 * 9 + 16 + 64 * 3 + 3


def test_stored_parameters_follow_tensors_that_were_moved() -> None:
    model = net()
    state = state_of(model)
    model.stages = nn.Sequential(nn.Sequential(model.stages))  # other names, the same numbers
    assert stored(model, state) == 0
    model.extra = model.head  # shared: once
    assert stored(model, state) == 0
    twice = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        for layer in twice:
            layer.weight.fill_(1.5)
    assert stored(twice, {"w": torch.full((2, 2), 1.5)}) == 4  # one of the two is there, not both
    assert stored(twice, {"w": torch.full((2, 2), 1.5, dtype=torch.float64)}) == 8


def test_adapters_are_stored_and_the_frozen_body_is_not(digits: Data) -> None:
    from probatum.recipe import make_arm

    state = state_of(net())
    factory = Adapted(state)
    model = run(assembled(digits, factory, arm=make_arm("flora-tucker", SHORT).recipe)).run.model
    sizes = factory.sizes(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes == {"trainable-parameters": trained, "stored-parameters": trained}
    assert 650 < trained < 0.1 * sum(p.numel() for p in model.parameters())


def test_pretraining_learns_and_repeats(digits: Data) -> None:
    recipe = Recipe(training=Training(steps=60, batch_size=64, lr=4e-3))
    seen: list[tuple[int, int]] = []
    work = replace(alone(recipe, digits, SEED), progress=lambda a, b: seen.append((a, b)))
    (state, score), (again, _) = (pretrain(work) for _ in "12")
    assert score["accuracy"] > 0.6
    assert digest(state) == digest(again)
    assert seen[-1] == (60, 60)
    model = build(digits.spec)
    model.load_state_dict(state)
    right = (outputs(model.eval(), digits.test.x).argmax(dim=1) == digits.test.y).float().mean()
    assert score["accuracy"] == pytest.approx(float(right))


def test_pretraining_on_real_targets_tells_their_error() -> None:
    data = open_dataset("diabetes").prepare(0)
    training = Training(steps=60, select="rmse")
    _, score = pretrain(alone(Recipe(training=training), data, SEED))
    assert 0.3 < score["rmse"] < 1.2


def test_budget_of_pretraining() -> None:
    usual = Training(epochs=20, batch_size=64, least_steps=400)
    assert source_training(usual, 640, None).steps == 400
    assert source_training(usual, 64_000, None).steps == MOST_STEPS
    assert source_training(usual, 64_000, 7000).steps == 7000


def test_identity_says_whose_network_it_is() -> None:
    state = {"w": torch.ones(2)}
    assert own_part("") == ""
    assert own_part("abc") == "abc"
    assert identity_of(state, "").startswith("pretrained:")
    assert own_part(identity_of(state, "")) == ""
    assert own_part(identity_of(state, "abc")) == "abc"
    assert identity_of(state, "") != identity_of({"w": torch.tensor([1.0, np.nextafter(np.float32(1), 2)])}, "")


@pytest.mark.parametrize("start", ["pretrained", HEAD_ONLY])
def test_seeds_of_pretrained_networks_train_as_one(digits: Data, start: str) -> None:
    factory = replace(Adapted(state_of(net(seed=4))), start=start)
    small = replace(digits, train=_cut(digits, 96))
    alone, together = ([_double(assembled(small, factory, seed)) for seed in (1, 2)] for _ in "12")
    for parts, seed in zip(alone, (1, 2), strict=True):
        run(parts, seed)
    replicas = [
        Replica(p.run, p.methods, generator_for(s, "order"), derive(s, "training"), True)
        for p, s in zip(together, (1, 2), strict=True)
    ]
    assert train_replicas(replicas, schedule="cosine") == [None, None]
    for one, other in zip(alone, together, strict=True):
        for name, value in one.run.model.state_dict().items():
            found = other.run.model.state_dict()[name]
            assert math.isclose(float((value - found).abs().max()), 0, abs_tol=1e-7), name


def _cut(data: Data, rows: int) -> object:
    part = data.train
    return replace(part, x=part.x[:rows].double(), y=part.y[:rows], rows=part.rows[:rows])


def _double(parts: Assembly) -> Assembly:
    parts.run.model.double()
    parts.run.valid = replace(parts.run.valid, x=_float64(parts.run.valid.x))
    return parts


def _float64(x: Tensor) -> Tensor:
    return x.double()
