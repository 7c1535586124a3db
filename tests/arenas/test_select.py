"""Arena select: which labels are wrong, and what the right ones are, in and outside worlds with wrong labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probatum.arenas.select import arena as select
from probatum.data.open import open_dataset
from probatum.recipe import Arm, Recipe, Training
from probatum.rooms.arena import Terms, Work
from probatum.rooms.world import in_world

pytestmark = pytest.mark.fast


def _work(world: str | None, seed: int = 3) -> Work:
    data = open_dataset("wine")
    found = (in_world(data, world) if world else data).prepare(seed)
    return Work(Arm("baseline", Recipe()), "baseline", Terms(base=Recipe()), found, seed)


@pytest.mark.parametrize("world", ["label-noise:0.3", "label-noise:0.3:pair:clean-valid"])
def test_the_world_s_wrong_labels_are_the_ones_to_find(world: str) -> None:
    clean = open_dataset("wine").prepare(3).train.y
    work = _work(world)
    train, wrong, right = select.planted(work)
    assert torch.equal(train.y, work.data.train.y)
    assert torch.equal(right, clean)
    assert torch.equal(wrong, train.y != clean)
    assert int(wrong.sum()) == round(0.3 * len(clean))


@pytest.mark.parametrize("world", [None, "label-noise:0", "spurious:0.9"])
def test_elsewhere_a_share_is_flipped(world: str | None) -> None:
    work = _work(world)
    train, wrong, right = select.planted(work)
    assert torch.equal(right, open_dataset("wine").prepare(3).train.y)
    assert torch.equal(wrong, train.y != right)
    assert int(wrong.sum()) == round(select.FLIPPED * len(right))


def test_a_trial_in_a_world_counts_its_wrong_rows() -> None:
    base = Recipe(training=Training(steps=5))
    work = replace(_work("label-noise:0.3"), arm=Arm("random order", base), builtin="random order").on(base=base)
    outcome = select.trial(work)
    assert outcome.details["flipped"] == round(0.3 * outcome.details["rows"])
    assert {"flip-auroc", "relabelled-accuracy"} <= set(outcome.measures)
