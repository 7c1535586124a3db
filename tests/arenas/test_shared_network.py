"""The network that explainers, attacks and probes look at is trained once a seed, timings or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from probatum.arenas import baseline_network
from probatum.arenas.baseline_network import trained
from probatum.data.open import open_dataset
from probatum.recipe import Recipe, Training, make_arm
from probatum.rooms.arena import Terms, Work
from probatum.settings import Judging, Reading, Running
from probatum.study import Study


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the trainings that there were."""
    found: list[int] = []
    original = baseline_network.run_training

    def counting(work: Any) -> Any:
        found.append(work.seed)
        return original(work)

    monkeypatch.setattr(baseline_network, "run_training", counting)
    monkeypatch.setattr(baseline_network, "_kept", [])
    return found


def work_of(seed: int = 0) -> Work:
    base = Recipe(training=Training(steps=3, batch_size=16))
    return Work(make_arm("deepfool", base), "", Terms(base=base), open_dataset("iris").prepare(seed), seed)


@pytest.mark.parametrize("arms", [["integrated-gradients", "deeplift"], ["deepfool"]])
@pytest.mark.parametrize("world", [None, "label-noise:0.3"])
@pytest.mark.parametrize("kept", [2**29, 1])
def test_once_a_seed_with_timings_too(
    arms: list[str], world: str | None, kept: int, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where splits were forgotten and encoded anew."""
    monkeypatch.setattr("probatum.bench.splits.KEPT_BYTES", kept)
    study = Study(
        "iris", arms, seeds=3, steps=10, reading=Reading(world=world),
        judging=Judging(references=False, confirm=False), running=Running(timing=True),
    )  # fmt: skip
    seeds.clear()  # the rehearsal has one of its own
    results = study.run()
    assert {trial.status for trial in (*results.trials, *results.timings)} == {"ok"}
    assert len(results.timings) == 3 * len(arms)
    assert sorted(seeds) == [0, 1, 2]


def test_what_trains_another_network_has_its_own(seeds: list[int]) -> None:
    one = work_of()
    network = trained(one)
    assert trained(work_of()) is network
    assert trained(replace(one, arm=make_arm("integrated-gradients", one.base))) is network
    assert seeds == [0]
    rows = one.data.train
    others = [
        replace(one, seed=1),
        one.on(base=Recipe(training=Training(steps=4, batch_size=16))),
        replace(one, data=replace(one.data, train=replace(rows, x=rows.x + 1))),
        replace(one, data=replace(one.data, train=replace(rows, y=rows.y.flip(0)))),
        replace(one, data=replace(one.data, valid=rows)),
    ]
    networks = {id(trained(other)) for other in others}
    assert len(networks | {id(network)}) == 6
    assert len(seeds) == 6


def test_only_so_many_bytes_are_kept(seeds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    size = baseline_network._size(trained(work_of(0)))
    monkeypatch.setattr(baseline_network, "KEPT_BYTES", 2 * size)
    trained(work_of(1))
    trained(work_of(0))  # looked at last
    trained(work_of(2))
    assert seeds == [0, 1, 2]
    trained(work_of(0))
    trained(work_of(2))
    assert seeds == [0, 1, 2]
    trained(work_of(1))
    assert seeds == [0, 1, 2, 1]
    monkeypatch.setattr(baseline_network, "KEPT_BYTES", 1)
    assert trained(work_of(5)) is trained(work_of(5))
    assert len(baseline_network._kept) == 1
