"""The command that repeats a study: whatever option of `probatum try` is given, it comes back and means the same study.

`earlier_studies.json` holds studies as they were stored before it was written down what had been asked, when options of
one kind of data stood beside the others: they are reported, repeated and shipped as those of today.
"""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import typer
from PIL import Image

from commands import told
from probatum import catalogue
from probatum.bench import speed
from probatum.bench.making import Wishes, said
from probatum.bench.plan import key_of
from probatum.bench.results import Results
from probatum.bench.store import Store, Trial
from probatum.cli import try_view
from probatum.cli.main import app
from probatum.engine import Engine
from probatum.options import ASIDE
from probatum.report.commands import repeat_command
from probatum.rooms import find
from probatum.settings import Judging, Running
from probatum.study import Study
from probatum.train.baselines import build
from probatum.train.speed import Probed

Planned = Callable[..., tuple[Study, dict[str, Any]]]
ROWS = 120
IRIS = ["encouraging-loss", "--data", "iris"]
TABLE = ["encouraging-loss", "--data", "it's a table.csv", "--target", "y"]
STREAM = ["recall", "--data", "iris"]
ACQUIRE = ["dynamic-al", "--data", "iris"]
BOOK = ["gradient-noise", "--data", "book.txt"]

CASES: dict[str, list[str]] = {
    "--data": TABLE,
    "--target": ["encouraging-loss", "--data", "it's a table.csv", "--target", "-c d"],
    "--model": [*IRIS, "--model", "tabm(k=4)"],
    "--seeds": [*IRIS, "--seeds", "3"],
    "--epochs": [*IRIS, "--epochs", "40"],
    "--steps": [*IRIS, "--steps", "6"],
    "--batch-size": [*IRIS, "--batch-size", "16"],
    "--primary": [*IRIS, "--primary", "log-loss"],
    "--margin": [*IRIS, "--margin", "0.123456789"],
    "--tune": ["gradient-noise", "--data", "iris", "--tune", "2"],
    "--technique": ["own-loss(strength=0.1)", *IRIS[1:], "--technique", "loss/own_loss.py"],
    "--kind": [*IRIS, "--kind", "edgelists"],
    "--task": ["encouraging-loss", "--data", "it's a table.csv", "--target", "g", "--task", "classes"],
    "--modality": [*TABLE, "--modality", "table"],
    "--group": [*TABLE, "--group", "g"],
    "--time": [*TABLE, "--time", "t"],
    "--split": [*TABLE, "--split", "s"],
    "--test": ["encouraging-loss", "--data", "first.csv", "--test", "second.csv"],
    "--drop": [*TABLE, "--drop", "-c d", "--drop", "g"],
    "--memory": ["encouraging-loss", "--data", "table.parquet", "--target", "y", "--memory", "1KB"],
    "--world": [*IRIS, "--world", "label-noise:0.4"],
    "--size": ["encouraging-loss", "--data", "images", "--size", "8"],
    "--text": [*TABLE, "--text", "words"],
    "--tokens": [*BOOK, "--tokens", "bpe"],
    "--vocabulary": [*BOOK, "--tokens", "bpe", "--vocabulary", "300"],
    "--length": [*BOOK, "--length", "16"],
    "--option": ["encouraging-loss", "--data", "friends.edges", "--kind", "edgelists", "--option", "nodes=5"],
    "--budget": [*IRIS, "--budget", "compute"],
    "--references": [*IRIS, "--no-references"],
    "--confirm": [*IRIS, "--no-confirm"],
    "--swap": [*IRIS, "--no-swap"],
    "--apart": [*IRIS, "--no-apart"],
    "--for": [*IRIS, "--for", "datasets"],
    "--confidence": [*IRIS, "--confidence", "0.9012345678"],
    "--holdout": [*IRIS, "--holdout", "0.123456789"],
    "--race": [*IRIS, "--race", "--seeds", "8"],
    "--timing": [*IRIS, "--no-timing"],
    "--minutes": [*IRIS, "--minutes", "0.123456789", "--seeds", "9"],
    "--threads": [*IRIS, "--threads", "2"],
    "--stack": [*IRIS, "--stack", "never"],
    "--device": [*IRIS, "--device", "auto"],
    "--speed": [*IRIS, "--speed", "auto"],
    "--precision": [*IRIS, "--precision", "bf16"],
    "--devices": [*IRIS, "--devices", "2"],
    "--strategy": [*IRIS, "--strategy", "fsdp"],
    "--pretrain": ["encouraging-loss", "--data", "first.csv", "--pretrain", "second.csv", "--pretrain-steps", "2"],
    "--pretrain-steps": [
        "encouraging-loss",
        "--data",
        "first.csv",
        "--pretrain",
        "second.csv",
        "--pretrain-steps",
        "3",
    ],
    "--pretrained": ["encouraging-loss", "--data", "first.csv", "--pretrained", "weights.pt"],
    "--stages": [*STREAM, "--stages", "3"],
    "--base-classes": [*STREAM, "--base-classes", "1", "--stages", "3"],
    "--stream-memory": [*STREAM, "--stream-memory", "1.5KB"],
    "--protocol": ["recall", "--data", "digits", "--stages", "2", "--protocol", "task"],
    "--start-labels": [*ACQUIRE, "--start-labels", "9"],
    "--query-labels": [*ACQUIRE, "--query-labels", "6"],
    "--rounds": [*ACQUIRE, "--rounds", "2"],
}
"""Words of `probatum try` that say an option, by the option."""

UNSAID = {"--device"}
"""Here the device that is found is the usual one."""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Words -> the study that `probatum try WORDS` would run, planned only, and its plan."""
    for module in (catalogue, find):
        monkeypatch.setattr(module, "_added", {})
    monkeypatch.setattr(speed, "probe", lambda *_, **__: (Engine(), {"channels-last": Probed(False, 0.97, 0.95, 0.99)}))
    made: list[tuple[Study, dict[str, Any]]] = []

    def run_try(ids: list[str] | None, data: str, arguments: dict[str, Any], _: object) -> None:
        study = Study(data, ids, **arguments)
        made.append((study, study.plan.describe()))  # as long as what joined is there

    monkeypatch.setattr(try_view, "run_try", run_try)

    def plan(*words: str) -> tuple[Study, dict[str, Any]]:
        run = told("try", *words, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        return made.pop()

    make_files(tmp_path)
    return plan


def make_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=ROWS), rng.normal(size=ROWS)
    y = np.where(first + second > 0, "yes", "no")
    columns = {"a": first, "-c d": rng.choice(["x", "y"], ROWS), "g": np.arange(ROWS) % 20, "t": np.arange(ROWS)}
    columns |= {"s": np.resize(["train", "train", "valid", "test"], ROWS)}
    columns |= {"words": rng.choice(["good day my friend", "bad rain again", "all so so here"], ROWS), "y": y}
    frame = pl.DataFrame(columns)
    frame.write_csv(folder / "it's a table.csv")
    frame.select("a", "g", "y").write_parquet(folder / "table.parquet")
    pl.DataFrame({"a": first, "b": second, "y": y}).write_csv(folder / "first.csv")
    pl.DataFrame({"a": second, "b": first, "y": y}).write_csv(folder / "second.csv")
    (folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 300)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 255, (12, 10), dtype=np.uint8)).save(folder / "images" / name / f"{i}.png")
    shutil.copytree(Path(__file__).parents[1] / "rooms" / "edgelists", folder / "edgelists")
    edges = (" ".join(f"{a}-{b}" for a in range(8) for b in range(a) if rng.random() < 0.3) for _ in range(80))
    lines = [f"{('thin', 'dense')[row % 2]}\t{line}\n" for row, line in enumerate(edges)]
    (folder / "friends.edges").write_text("".join(lines))
    spec = Study(str(folder / "first.csv"), ["encouraging-loss"], seeds=1).context.data(0).spec
    torch.save(build(spec).state_dict(), folder / "weights.pt")


def repeated(study: Study) -> list[str]:
    """The words of the command after ``probatum try``."""
    return shlex.split(repeat_command(Results(study.plan, (), (), (), study.summary())))[2:]


def flags_of_try() -> set[str]:
    command = typer.main.get_command(app).commands["try"]  # type: ignore[attr-defined]
    flags = {opt for one in command.params for opt in one.opts if opt.startswith("--")}
    return flags - {"--help"}


def test_every_option_is_tried_here_or_lies_aside() -> None:
    assert flags_of_try() == {*CASES, *ASIDE}
    assert not set(CASES) & set(ASIDE)


@pytest.mark.parametrize("flag", CASES)
def test_an_option_comes_back(flag: str, planned: Planned, tmp_path: Path) -> None:
    if flag == "--technique":
        assert told("new", "loss/own-loss", cwd=tmp_path).returncode == 0
    if flag == "--devices":
        pytest.importorskip("lightning_fabric", reason="several devices need Fabric")
    words = CASES[flag] if "--seeds" in CASES[flag] else [*CASES[flag], "--seeds", "2"]
    study, plan = planned(*words)
    again = repeated(study)
    if flag not in UNSAID:
        assert {flag, flag.replace("--", "--no-", 1)} & set(again), again
    find._added.clear()  # what joined is known by the command alone
    same, its_plan = planned(*again)
    assert its_plan == plan
    assert key_of(its_plan) == key_of(plan)
    assert (same.running.timing, same.running.stack) == (study.running.timing, study.running.stack)
    assert repeated(same) == again


def test_what_was_not_said_is_not_said(planned: Planned) -> None:
    assert repeated(planned(*IRIS)[0]) == [*IRIS, "--seeds", "8", "--primary", "accuracy"]
    everything, _ = planned("--data", "iris", "--seeds", "2")
    assert repeated(everything)[0] == "--data", "all that apply, not those that did"
    skipped, _ = planned("encouraging-loss", "ibn-net", "--data", "iris", "--seeds", "2")
    assert repeated(skipped)[:2] == ["encouraging-loss", "ibn-net"], "what does not apply is told of again"


def test_a_set_stays_a_set_where_a_folder_bears_its_name(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "iris").mkdir()
    assert "iris" in repeated(planned(*IRIS)[0])


def test_what_python_says_beyond_the_command_line(tmp_path: Path) -> None:
    study = Study(
        "iris", ["encouraging-loss"], epochs=3, steps=4, seeds=1, margin=np.float64(0.1), store=tmp_path / "s.sqlite"
    )
    words = repeated(study)
    assert words[-6:] == ["--steps", "4", "--primary", "accuracy", "--margin", "0.1"]
    wishes = Wishes(["encouraging-loss"], None, 2, None, None, None, None, None, 0, Judging(), Running(), None, None)
    assert said(wishes, Engine("cuda:1"))["running"] == {"device": "cuda:1"}, "what auto found"


EARLIER = json.loads(Path(__file__).with_name("earlier_studies.json").read_text(encoding="utf-8"))
WORDS = {
    "table": "encouraging-loss --data FOLDER/points.csv --steps 8 --batch-size 64 --target y --drop b",
    "parquet": "encouraging-loss --data FOLDER/points.parquet --batch-size 64 --target y --margin 0.123456789",
    "text": "gradient-noise --data FOLDER/book.txt --steps 8 --batch-size 16 --tokens bpe --length 16",
    "stream": "recall --data digits --steps 8 --batch-size 64 --stages 2 --base-classes 0 --stream-memory 50000"
    " --protocol task",
    "image": "encouraging-loss --data digits --epochs 1 --batch-size 64",
}
"""What was asked of the earlier studies, and of all: two seeds, no timings, no references, no confirmation."""


@pytest.fixture(params=EARLIER)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of an earlier study, which is in ``store.sqlite`` with its data beside."""
    rows = (f"{i * 37 % 100 / 100},{i * 53 % 97},{'up' if i % 3 else 'down'}" for i in range(60))
    lines = [f"{row},{'yes' if i * 37 % 100 > 50 else 'no'}" for i, row in enumerate(rows)]
    (tmp_path / "points.csv").write_text("\n".join(["a,b,c,y", *lines]) + "\n")
    pl.read_csv(tmp_path / "points.csv").write_parquet(tmp_path / "points.parquet")
    (tmp_path / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 300)
    held = EARLIER[request.param]
    with Store(tmp_path / "store.sqlite") as store:
        store.put_study(held["key"], json.loads(json.dumps(held["plan"]).replace("FOLDER", str(tmp_path))))
        store.put_all([Trial(**trial) for trial in held["trials"]])
    return str(request.param)


def test_an_earlier_study_is_reported_and_repeated(earlier: str, tmp_path: Path, planned: Planned) -> None:
    run = told("report", "store.sqlite", "--to", "page.html", cwd=tmp_path)
    assert run.returncode == 4, run.stderr  # two seeds judge nothing
    found = re.search("probatum try ([^<]*)", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert found is not None
    words = shlex.split(html.unescape(found[1]))
    wanted = WORDS[earlier].replace("FOLDER", str(tmp_path)).split()
    wanted += ["--seeds", "2", "--primary", words[words.index("--primary") + 1]]
    assert sorted(words) == sorted([*wanted, "--no-timing", "--no-references", "--no-confirm"])
    _, plan = planned(*words)
    before = json.loads(json.dumps(EARLIER[earlier]["plan"]["plan"]))
    del plan["swap"], plan["question"]  # what is usual now
    for one in (plan, before):  # defaults and techniques may have been mended since
        budget = ("epochs", "steps", "least_steps", "batch_size")
        one["base"] = {name: one["base"]["training"][name] for name in budget}
        one["arms"] = [arm["name"] for arm in one["arms"]]
        one.pop("versions")
    assert "splits" not in before["data"], "they were drawn at random"
    assert plan["data"].pop("splits") == "folds"
    assert plan["data"].pop("grouped") is False
    assert plan == before


def test_an_earlier_study_is_shipped(earlier: str, tmp_path: Path) -> None:
    run = told("ship", "store.sqlite", "--arm", "baseline", "--to", "model", cwd=tmp_path)
    if earlier == "stream":
        assert (run.returncode, "only arms of arena predict" in run.stderr) == (2, True)
        return
    assert run.returncode == 4, run.stderr
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    same = description["digest"] == description["digest_in_study"]
    told_of = "the very weights of the study" if same else "trained again, for code or libraries have changed"
    assert told_of in run.stderr
    assert description["same_plan"] is False
