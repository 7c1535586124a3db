"""What a study does once: encode a split, train the network that arms share, and tell what it was run with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from probatum.bench.splits import Splits, size
from probatum.bench.stored import results_of
from probatum.data.dataset import Dataset
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.report.write import render
from probatum.settings import Judging, Reading, Running
from probatum.study import Study

QUICK = {"judging": Judging(references=False, confirm=False), "running": Running(timing=False)}


@pytest.mark.parametrize("world", [None, "label-noise:0.3"])
def test_every_split_is_encoded_once(world: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: Counter[int] = Counter()
    original = Dataset.prepare

    def counting(self: Dataset, seed: int, **options: Any) -> Any:
        prepared[seed] += 1
        return original(self, seed, **options)

    monkeypatch.setattr(Dataset, "prepare", counting)
    study = Study(
        "iris", ["encouraging-loss", "gradient-noise"], seeds=3, steps=4, reading=Reading(world=world),
        judging=Judging(confirm=False), running=Running(timing=True),
    )  # fmt: skip
    results = study.run()
    study.summary()
    render(results)
    assert prepared == {0: 1, 1: 1, 2: 1}


def test_techniques_that_look_at_one_network_share_it_in_a_world_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from probatum.arenas import baseline_network

    trained: list[int] = []
    original = baseline_network.run_training

    def counting(work: Any) -> Any:
        trained.append(work.seed)
        return original(work)

    monkeypatch.setattr(baseline_network, "run_training", counting)
    found = Study(
        "iris", ["integrated-gradients", "deeplift"], seeds=2, steps=10, reading=Reading(world="label-noise:0.3"), **QUICK
    )  # fmt: skip
    trained.clear()  # the rehearsal has one of its own
    assert {trial.status for trial in found.run().trials} == {"ok"}
    assert sorted(trained) == [0, 1]


def test_a_stored_study_tells_the_versions_it_was_run_with(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from probatum.bench import plan as module

    real = module._versions()
    monkeypatch.setattr(module, "_versions", lambda: {**real, "torch": "1.2.3"})
    study = Study("iris", ["gradient-noise"], seeds=2, steps=2, store=tmp_path / "s.sqlite", **QUICK)
    study.run()
    monkeypatch.undo()
    record = study.store.studies()[0]
    again = results_of(study.store, record)
    assert again.plan.versions["torch"] == "1.2.3"
    assert "<dt>torch</dt><dd>1.2.3</dd>" in render(again)


def test_probes_of_long_texts_run() -> None:
    from probatum.kinds.language.corpus import corpus

    text = "the quick brown fox jumps over the lazy dog and runs away. " * 60
    found = Study(corpus(text, length=16), ["lm-cascade(steps=10, rows=40)"], seeds=1, steps=4, batch_size=8, **QUICK)
    results = found.run()
    assert {trial.status for trial in results.trials} <= {"ok", "not applicable"}
    assert "lm-cascade(steps=10, rows=40)" in {trial.arm for trial in results.trials if trial.status == "ok"}
    assert found.plan.primary == "bits-per-character"


def test_what_is_said_of_data_that_are_open_already_is_refused() -> None:
    iris = open_dataset("iris")
    for said in ({"target": "nonsense"}, {"task": "reals"}, {"drop": ("sepal length (cm)",)}, {"split": "species"}):
        with pytest.raises(InputError, match=next(iter(said))):
            open_dataset(iris, Reading(**said))
    with pytest.raises(InputError, match="size"):
        open_dataset(iris, Reading(options={"size": 8}))
    assert open_dataset(iris) is iris
    assert open_dataset(iris, Reading(world="label-noise:0.2")).world is not None


def test_rows_of_an_adapted_table_keep_its_encoder() -> None:
    iris = open_dataset("iris")
    adapted = replace(iris, encoder=iris.kind.fit(iris.raw))
    assert adapted.take(adapted.split(0)[0]).encoder is adapted.encoder


def test_kept_splits_are_counted_with_all_they_hold() -> None:
    table, texts = open_dataset("iris").prepare(0), open_dataset("toy-topics").prepare(0)
    world = open_dataset("iris", Reading(world="label-noise:0.2")).prepare(0)
    parts = (table.train, table.valid, table.test)
    assert size(table) == sum(p.x.nbytes + p.y.nbytes + p.rows.nbytes for p in parts)
    words = sum(len(text) for p in (texts.train, texts.valid, texts.test) for text in p.text or ())
    assert size(texts) - words == sum(
        p.x.nbytes + p.y.nbytes + p.rows.nbytes for p in (texts.train, texts.valid, texts.test)
    )
    assert size(world) > size(table)


def test_splits_that_fit_are_kept_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    iris = open_dataset("iris")
    splits = Splits(iris, (0.6, 0.2, 0.2))
    first = splits.data(0)
    assert splits.data(0) is first
    monkeypatch.setattr("probatum.bench.splits.KEPT_BYTES", size(first) + 1)
    second = splits.data(1)
    assert splits.data(1) is second
    assert splits.data(0) is not first


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        ("gbnn(units=-3)", "units is -3"),
        ("h-calibration(window=0)", "window is 0"),
        ("noprop(blocks=0)", "blocks"),
        ("data-filtering-network(steps=-3)", "steps is -3"),
        ("benign-oscillation(steps=-3)", "steps is -3"),
    ],
)
def test_settings_of_what_the_loop_does_not_train_are_rehearsed(arm: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Study("breast-cancer", [arm], seeds=2, epochs=1, **QUICK)


def test_what_needs_rows_or_steps_is_not_refused_by_a_rehearsal_on_few() -> None:
    arms = ["h-calibration", "flat-seeking-bnn"]  # a window of 201 events; averages of the last quarter of the steps
    assert [arm.name for arm in Study("breast-cancer", arms, seeds=2, epochs=2, **QUICK).plan.arms] == arms
