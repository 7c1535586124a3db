"""Fine-tuning studies: pretrained once, the same by whoever runs them, and clear words where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from loosely import study_of
from probatum import Study
from probatum.bench import pretrained_start as start
from probatum.bench.parcel import pack, unpack
from probatum.cli.ship_view import ship_from_store
from probatum.data.dataset import Dataset
from probatum.data.open import open_dataset
from probatum.errors import InputError
from probatum.report.pretrained_start import started_from
from probatum.report.write import render
from probatum.settings import FineTuning, Running
from probatum.ship.load import load
from probatum.train.adapt import FROM_SCRATCH, HEAD_ONLY, REFERENCES, Adapted, state_of
from probatum.train.baselines import build

Records = Callable[..., dict[str, str]]
SHORT: dict[str, Any] = {
    **{"seeds": 2, "steps": 6, "timing": False, "confirm": False, "references": False, "stack": "never"},
    "pretrain_steps": 8,
}


@pytest.fixture(scope="module")
def halves() -> tuple[Dataset, Dataset]:
    """Digits to pretrain on, and others to adapt to."""
    digits = open_dataset("digits")
    rows = np.arange(digits.n)
    return digits.take(rows[rows % 2 == 0][:400], "even digits"), digits.take(rows[rows % 2 == 1][:150], "odd digits")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every pretraining."""
    calls: list[int] = []
    real = start.pretrain

    def counting(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*args, **named)

    monkeypatch.setattr(start, "pretrain", counting)
    return calls


def measures(study: Study, arm: str, seed: int = 0) -> dict[str, float]:
    trial = next(t for t in study.results.trials if t.arm == arm and t.seed == seed)
    assert trial.status == "ok", trial.record
    return trial.record["measures"]


def test_pretrained_once_and_never_again(halves: Any, counted: list[int], tmp_path: Path, records: Records) -> None:
    source, target = halves
    store = tmp_path / "store.sqlite"
    first = study_of(target, ["gradient-noise"], store=store, **SHORT, fine_tuning=FineTuning(source=source))
    trials = first.run().trials
    assert counted == [1]
    again = study_of(
        target,
        ["gradient-noise", "flora-tucker"],
        store=store,
        **{**SHORT, "seeds": 3},
        fine_tuning=FineTuning(source=source),
    )
    assert counted == [1]
    assert again.plan.model == first.plan.model
    assert again.plan.pretrained == first.plan.pretrained
    found = records(again.run().trials)
    assert {key: found[key] for key in records(trials)} == records(trials)
    other = study_of(
        target, ["gradient-noise"], store=store, **{**SHORT, "pretrain_steps": 9}, fine_tuning=FineTuning(source=source)
    )
    assert counted == [1, 1]
    assert other.plan.model != first.plan.model


def test_workers_come_to_the_same_records(halves: Any, records: Records) -> None:
    source, target = halves
    arms = ["flora-tucker", "very-large-dropout"]
    found = []
    for workers in (1, 2):
        study = study_of(target, arms, **SHORT, running=Running(workers=workers), fine_tuning=FineTuning(source=source))
        study.context = replace(
            study.context, plan=replace(study.plan, references=REFERENCES)
        )  # without the classical ones, which take longer
        found.append(study.run().trials)
    here, there = found
    assert {t.arm for t in here} == {"baseline", HEAD_ONLY, FROM_SCRATCH, *arms}
    assert all(t.status == "ok" for t in here)
    assert records(here) == records(there)


def test_the_setup_travels(halves: Any) -> None:
    source, target = halves
    study = study_of(target, ["gradient-noise"], **SHORT, fine_tuning=FineTuning(source=source))
    factory = unpack(pack(study.context)).factory
    assert isinstance(factory, Adapted)
    assert isinstance(study.context.factory, Adapted)
    assert all(torch.equal(value, study.context.factory.state[name]) for name, value in factory.state.items())


def test_measures_and_references(halves: Any) -> None:
    source, target = halves
    study = study_of(
        target, ["flora-tucker"], **{**SHORT, "references": True, "seeds": 1}, fine_tuning=FineTuning(source=source)
    )
    assert study.plan.references[:3] == (*REFERENCES, "logistic regression")
    study.context = replace(study.context, plan=replace(study.plan, references=REFERENCES))
    study.run()
    spec = study.context.data(0).spec
    numbers = sum(p.numel() for p in build(spec).parameters())
    head = 65 * spec.outputs
    full, few, scratch = (measures(study, arm) for arm in ("baseline", HEAD_ONLY, FROM_SCRATCH))
    assert full["trainable-parameters"] == full["parameters"] == numbers
    assert few["trainable-parameters"] == few["stored-parameters"] == head
    assert few["parameters"] == numbers  # frozen ones are part of the network
    assert scratch["trainable-parameters"] == numbers
    assert measures(study, "flora-tucker")["stored-parameters"] < 0.1 * numbers
    assert {v.measure for v in study.verdicts()} >= {"trainable-parameters", "stored-parameters"}
    told = " ".join(started_from(study.plan.pretrained))
    assert "pretrained on even digits" in told
    assert "100 % of the body copied" in told
    assert told.split(";")[0] in render(study.results)


def test_a_primary_measure_of_fine_tuning(halves: Any) -> None:
    source, target = halves
    study = study_of(
        target,
        ["flora-tucker"],
        primary="stored-parameters",
        **{**SHORT, "seeds": 6},
        fine_tuning=FineTuning(source=source),
    )
    assert [v.word for v in study.run().primary_verdicts()] == ["helps"]
    with pytest.raises(InputError, match="primary"):
        Study(target, ["gradient-noise"], primary="stored-parameters", seeds=2)


def test_stacked_seeds_are_those_alone(halves: Any) -> None:
    source, target = halves
    arms = ["residual-adapters", "flora-tucker"]
    found = []
    for stack in ("never", "always"):
        study = study_of(target, arms, **{**SHORT, "stack": stack}, fine_tuning=FineTuning(source=source))
        study.context = replace(study.context, plan=replace(study.plan, references=REFERENCES))
        found.append({(t.arm, t.seed): t for t in study.run().trials})
    for key, alone in found[0].items():
        other = found[1][key]
        assert (alone.status, other.status) == ("ok", "ok")
        if "log-loss" in alone.record["measures"]:
            gap = abs(alone.record["measures"]["log-loss"] - other.record["measures"]["log-loss"])
            assert gap < 2e-3, key
    stacked = {arm for (arm, _), t in found[1].items() if "stacked" in t.timing.get("measures", {})}
    assert stacked >= {"baseline", HEAD_ONLY, FROM_SCRATCH, "residual-adapters"}
    assert "flora-tucker" not in stacked  # its card says so; it was run alone


def test_techniques_that_need_a_pretrained_network() -> None:
    with pytest.raises(
        InputError, match="flora-tucker adapts a pretrained network; give data to pretrain on by --pretrain"
    ):
        study_of("digits", ["flora-tucker"], **{k: v for k, v in SHORT.items() if k != "pretrain_steps"})


def test_other_networks_are_not_tried(halves: Any) -> None:
    source, target = halves
    study = study_of(target, ["resnet", "gradient-noise"], **SHORT, fine_tuning=FineTuning(source=source))
    assert [arm.name for arm in study.plan.arms] == ["gradient-noise"]
    assert "not the network that was pretrained; try it with --model" in study.plan.skipped["resnet"]


def test_a_model_of_the_catalogue(halves: Any) -> None:
    source, target = halves
    study = study_of(
        target, ["gradient-noise"], model="resnet(depth=8)", **SHORT, fine_tuning=FineTuning(source=source)
    )
    assert isinstance(study.context.factory, Adapted)
    model = study.context.factory.adapt(_resnet(study))
    first = next(iter(model.state_dict()))
    assert torch.equal(model.state_dict()[first], study.context.factory.state[first])
    assert measures(study, "baseline")["parameters"] == sum(p.numel() for p in model.parameters())


def _resnet(study: Study) -> nn.Module:
    from probatum.train.assemble import network_of

    return network_of(study.plan.base, study.context.data(0).spec, None)


class Own(nn.Module):
    """A user's network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU())
        self.out = nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x))


@pytest.mark.parametrize("kind", ["data", "module", "state", "pt", "checkpoint", "safetensors"])
def test_own_networks_and_weights(halves: Any, kind: str, tmp_path: Path) -> None:
    source, target = halves
    net, options = Own(), {k: v for k, v in SHORT.items() if k != "pretrain_steps"}
    state = net.state_dict()
    given: Any = {"module": net, "state": state}.get(kind)
    if kind in ("pt", "checkpoint"):
        given = tmp_path / "net.pt"
        torch.save(
            state if kind == "pt" else {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, given
        )
    elif kind == "safetensors":
        given = tmp_path / "net.safetensors"
        save_file(state, given)
    if kind == "data":
        study = study_of(target, ["gradient-noise"], model=Own, **SHORT, fine_tuning=FineTuning(source=source))
    else:
        study = study_of(target, ["gradient-noise"], model=Own, **options, fine_tuning=FineTuning(weights=given))
        made = study.context.factory(study.context.data(0).spec)
        assert torch.equal(made.body[1].weight, state["body.1.weight"])
        assert not torch.equal(made.out.weight, state["out.weight"])
    assert "+" in study.plan.model
    assert measures(study, "baseline")["stored-parameters"] == sum(v.numel() for v in state.values())


def test_weights_that_cannot_be_used(halves: Any, tmp_path: Path) -> None:
    _, target = halves
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    torch.save({"w": 3}, tmp_path / "numbers.pt")
    for weights, words in (
        (tmp_path / "nowhere.pt", "do not exist"),
        (tmp_path / "broken.pt", r"broken\.pt cannot be read as weights"),
        (tmp_path / "whole.pt", "cannot be read as weights"),
        (tmp_path / "numbers.pt", "no state dict"),
        ({}, "no state dict"),
        (state_of(nn.Linear(3, 2)), "no tensor has a name"),
    ):
        with pytest.raises(InputError, match=words):
            Study(target, ["gradient-noise"], fine_tuning=FineTuning(weights=weights))


def test_data_that_do_not_go_together(halves: Any) -> None:
    source, target = halves
    for data, options, words in (
        (target, {"pretrain": "iris"}, "iris is table data and odd digits is image"),
        (target, {"pretrain": target}, "is the target itself"),
        (target, {"pretrain": source, "pretrained": Own()}, "not both"),
        (target, {"pretrain_steps": 5}, "--pretrain DATA"),
        (target, {"pretrain": source, "pretrain_steps": 0}, "1 or more"),
        ("iris", {"pretrain": "wine"}, "other columns"),
        ("toy-topics", {"pretrained": {"w": torch.zeros(1)}}, "which word"),
    ):
        with pytest.raises(InputError, match=words):
            study_of(data, ["gradient-noise"], seeds=2, **options)


def test_rows_that_stand_in_both_are_told(halves: Any) -> None:
    _, target = halves
    study = study_of(target, ["gradient-noise"], **SHORT, fine_tuning=FineTuning(source="digits"))
    assert study.plan.pretrained["shared_rows"] == target.n
    assert "warning" in " ".join(started_from(study.plan.pretrained))


def test_rows_of_tables_that_stand_in_both_are_told() -> None:
    draw = np.random.default_rng(1)
    frame = pl.DataFrame({"a": draw.normal(size=90), "b": draw.normal(size=90), "y": np.arange(90) % 3})
    more = pl.DataFrame({"a": draw.normal(size=30), "b": draw.normal(size=30), "y": np.arange(30) % 3})
    study = study_of(
        frame, ["gradient-noise"], target="y", **SHORT, fine_tuning=FineTuning(source=pl.concat([frame, more]))
    )
    assert study.plan.pretrained["shared_rows"] == 90


def test_what_is_stored_decides_only_where_it_is_measured(halves: Any) -> None:
    source, target = halves
    with pytest.raises(InputError, match="primary is 'stored-parameters'"):
        Study(
            target,
            ["integrated-gradients"],
            primary="stored-parameters",
            seeds=2,
            fine_tuning=FineTuning(source=source, steps=2),
        )


def test_tables_are_encoded_as_the_source_was() -> None:
    draw = np.random.default_rng(0)

    def frame(n: int, shift: float, words: list[str]) -> pl.DataFrame:
        x, c = draw.normal(shift, 1, n), draw.choice(words, n)
        return pl.DataFrame({"x": x, "c": c, "y": np.where(x > shift, "up", "down")})

    source, target = frame(200, 0.0, ["a", "b", "c"]), frame(120, 2.0, ["c", "b"])
    study = study_of(target.select("c", "x", "y"), ["gradient-noise"], **SHORT, fine_tuning=FineTuning(source=source))
    data = study.context.data(1)
    assert data.spec.cardinalities == (4,)
    words = data.pipeline.features.levels["c"]
    assert words == ("a", "b", "c")
    rows = target[data.train.rows.numpy()]
    assert [words[int(code) - 1] for code in data.train.x[:, -1]] == rows["c"].to_list()
    assert float(data.train.x[:, 0].mean()) > 1  # on the source's scale
    assert study.plan.pretrained["copied"] == 1
    assert all(t.status == "ok" for t in study.run().trials)
    with pytest.raises(InputError, match=r"other columns than the data of pretraining \(c, z\)"):
        study_of(target.rename({"c": "z"}), ["gradient-noise"], **SHORT, fine_tuning=FineTuning(source=source))


def test_texts_are_encoded_with_the_sources_words() -> None:
    texts = open_dataset("toy-topics")
    rows = np.arange(texts.n)
    source, target = texts.take(rows[::2], "a"), texts.take(rows[1::2], "b")
    study = study_of(target, ["very-large-dropout"], **SHORT, fine_tuning=FineTuning(source=source))
    words = {seed: study.context.data(seed).pipeline.features.words for seed in (0, 1)}
    assert words[0] == words[1] == source.prepare(0, fractions=(0.8, 0.1, 0.1)).pipeline.features.words
    assert study.plan.pretrained["copied"] == 1
    assert all(t.status == "ok" for t in study.run().trials)


def test_ships_with_its_origin(halves: Any, tmp_path: Path) -> None:
    source, target = halves
    study = study_of(target, ["flora-tucker", "residual-adapters"], **SHORT, fine_tuning=FineTuning(source=source))
    study.run()
    for arm in ("flora-tucker", "residual-adapters"):
        folder = study.ship(arm, tmp_path / arm)
        description = json.loads((folder / "model.json").read_text())
        assert description["digest"] == description["digest_in_study"]
        assert not description["own_model"]
        assert "Pretrained on even digits" in (folder / "README.md").read_text()
        shipped = load(folder)
        work = study.context.work(*_player(study, arm), 0)
        from probatum.arenas.predict import arena as predict

        wanted = predict.fit(work).predict(work.data.test)
        torch.testing.assert_close(shipped.predict_part(work.data.test), wanted, atol=1e-6, rtol=0)


def _player(study: Study, name: str) -> tuple[Any, str]:
    from probatum.recipe import Arm

    found = next((arm for arm in study.plan.arms if arm.name == name), None)
    return (Arm(name, study.plan.base), name) if found is None else (found, "")


def test_ships_from_the_store(halves: Any, counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = halves
    for name, dataset in (("source", source), ("target", target)):
        part = dataset.prepare(0, fractions=(0.98, 0.01, 0.01)).train
        np.savez(tmp_path / f"{name}.npz", x=part.x.numpy(), y=part.y.numpy())
    store = tmp_path / "store.sqlite"
    options = {**SHORT, "store": store, "pretrain": str(tmp_path / "source.npz")}
    study_of(str(tmp_path / "target.npz"), ["flora-tucker"], **options).run()
    ship_from_store(str(store), None, "flora-tucker", tmp_path / "model")
    assert counted == [1]
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["digest"] == description["digest_in_study"]
