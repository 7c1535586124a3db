"""A kind of data that is no part of the package, from a folder of its own: everything works that does for the others.

The folder `edgelists` beside this file is copied elsewhere first: kind, options, a task of its own, two facets, a file of data.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from probatum import InputError, Judging, Reading, Running, Study, audit, catalogue, open_dataset
from probatum.bench.parcel import pack
from probatum.checks.run import check
from probatum.cli.scaffold import scaffold
from probatum.options import options
from probatum.report.commands import repeat_command
from probatum.rooms import find
from probatum.rooms.kind import kinds, modalities
from probatum.ship.load import load

NAME, MODALITY = "edgelists", "edgelist"
QUIET = Judging(confirm=False)
SHORT = {"seeds": 6, "steps": 40, "judging": QUIET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kind's folder, which has not joined."""
    place = tmp_path_factory.mktemp("somewhere") / NAME
    shutil.copytree(Path(__file__).with_name(NAME), place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture(scope="module")
def joined(folder: Path) -> Iterator[Path]:
    """The kind's folder, which has joined for as long as the tests of this file run."""
    before = dict(find._added)
    find.add(folder)
    yield folder
    find._added.clear()
    find._added.update(before)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of graphs: dense ones and thin ones."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "friends.edges"
    path.write_text("".join(f"{label}\t{edges}\n" for label, edges in graphs(rng, 320)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def study(joined: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study on it with a loss, an optimizer and a method that know nothing of graphs, run to its end."""
    store = tmp_path_factory.mktemp("store") / "store.sqlite"
    found = Study(lines, ["encouraging-loss", "conda"], store=store, running=Running(timing=False), **SHORT)
    found.run()
    return found


def graphs(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    found = []
    for row in range(count):
        pairs = [f"{a}-{b}" for a in range(8) for b in range(a) if rng.random() < (0.25, 0.55)[row % 2]]
        found.append((("thin", "dense")[row % 2], " ".join(pairs)))
    return found


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "probatum", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_no_file_of_the_package_names_it() -> None:
    for path in find.PACKAGE.rglob("*.py"):
        assert MODALITY not in path.read_text(encoding="utf-8").lower(), path


def test_it_passes_the_suite_of_kinds(joined: Path) -> None:
    failed = [result for result in check(str(joined)) if result.status == "failed"]
    assert not failed, failed


def test_it_is_known_once_it_has_joined(joined: Path) -> None:
    assert MODALITY in modalities()
    assert {"medians"} <= set(find.names("task"))
    assert all(option.field != "nodes" for option in options()), "options from outside come by --option"


def test_files_and_arrays_open(joined: Path, lines: Path) -> None:
    found = open_dataset(lines)
    assert (found.kind.NAME, found.modality, found.task, found.n) == (NAME, MODALITY, "classes", 320)
    assert found.summary()["unit"] == "graphs"
    small = open_dataset(lines, Reading(options={"nodes": 5}))
    assert small.prepare(0).spec.shape == (5, 5)
    assert np.array_equal(small.raw.edges, found.raw.edges[:, :5, :5])
    pair = (found.raw.edges, ["a", "b"] * 160)
    assert (
        open_dataset(pair, Reading(modality=NAME)).fingerprint
        == open_dataset(pair, Reading(modality=MODALITY)).fingerprint
    )
    with pytest.raises(InputError, match="no kind of data asks 'node'"):
        open_dataset(lines, Reading(options={"node": 5}))


def test_a_study_runs_and_is_reported(study: Study, joined: Path, tmp_path: Path) -> None:
    assert {trial.status for trial in study.results.trials} == {"ok"}
    accuracy = study.results.mean("baseline", "accuracy")
    assert accuracy is not None
    assert accuracy > 0.7
    assert study.results.mean("baseline", "corrupted-accuracy") is not None, "its corruptions were used"
    assert {"logistic regression", "nearest neighbours"} <= set(study.plan.references)
    page = study.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "320 graphs" in page
    assert f"--kind {joined}" in repeat_command(study.results)


def test_every_technique_that_takes_any_rows_is_tried_or_told_of(joined: Path, lines: Path) -> None:
    found = Study(lines, None, seeds=1, steps=2, running=Running(timing=False), judging=QUIET)
    assert "encouraging-loss" in {arm.name for arm in found.plan.arms}
    assert "these data are edgelist" in found.plan.skipped["ibn-net"]
    unlike = {
        why for why in found.plan.skipped.values() if re.search(r"KeyError|IndexError|RuntimeError|TypeError", why)
    }
    assert not unlike, "a card that names no modalities takes whatever is one tensor a row"


def test_it_is_shipped_loaded_and_asked(study: Study, lines: Path, tmp_path: Path) -> None:
    shipped = load(study.ship("encouraging-loss", tmp_path / "model"))
    by_file, by_array = shipped.predict(lines), shipped.predict(open_dataset(lines).raw.edges)
    assert by_file.equals(by_array)
    right = (by_file["label"] == pl.Series(["thin", "dense"] * 160)).mean()
    assert right > 0.7
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "--data new.edges" in card
    assert "320 graphs in all" in card


def test_a_shipped_model_is_audited(study: Study, lines: Path, tmp_path: Path) -> None:
    folder = study.ship("baseline", tmp_path / "model")
    report = audit(folder, str(lines))
    assert report.modality == MODALITY
    assert "lost edges" in str(report["corruption"].numbers["worst"])
    assert report["reliance"].verdict == "not measurable"
    assert report["calibration"].verdict != "not measurable" or report.rows < 50
    assert "seen in training" in " ".join(report.notes)
    report.write(tmp_path / "audit")
    with pytest.raises(InputError, match="cannot be audited without a pipeline"):
        audit(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), str(lines))


def test_worker_processes_give_the_same_trials(study: Study, joined: Path, lines: Path) -> None:
    again = Study(lines, ["encouraging-loss", "conda"], running=Running(timing=False, workers=2), **SHORT)
    again.run()
    first, second = ({(t.arm, t.seed): t.record["digest"] for t in one.results.trials} for one in (study, again))
    assert first == second


def test_it_travels_to_where_its_folder_is_not(study: Study, joined: Path, tmp_path: Path) -> None:
    parcel, away = tmp_path / "parcel", joined.with_name("gone")
    parcel.write_bytes(pack(study.context))
    code = (
        "import pathlib, sys; from probatum.bench.parcel import unpack\n"
        "context = unpack(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(context.splits.dataset.fingerprint, float(context.data(0).train.x.sum()))"
    )
    joined.rename(away)
    try:
        there = subprocess.run([sys.executable, "-c", code, str(parcel)], capture_output=True, text=True, check=False)
    finally:
        away.rename(joined)
    assert there.returncode == 0, there.stderr
    data = study.context.data(0)
    assert there.stdout.split() == [study.dataset.fingerprint, str(float(data.train.x.sum()))]


def test_a_world_where_it_says_how_and_one_where_it_does_not(joined: Path, lines: Path) -> None:
    found = Study(
        lines, ["encouraging-loss"], seeds=1, steps=20, reading=Reading(world="ood:noise"), judging=QUIET,
        running=Running(timing=False),
    )  # fmt: skip
    found.run()
    assert found.results.mean("baseline", "ood-auroc") is not None
    outside = found.dataset.prepare(0).truth.outside.x
    assert torch.equal(outside, outside.transpose(1, 2)), "its own noise is symmetric, the usual one is not"
    with pytest.raises(InputError, match="puts no marks on edgelist data"):
        open_dataset(lines, Reading(world="spurious:0.9")).prepare(0)
    with pytest.raises(InputError, match="iris is no set of edgelist rows"):
        open_dataset(lines, Reading(world="ood:iris")).prepare(0)
    with pytest.raises(InputError, match="restores rows of numbers; edgelist data are none it knows"):
        Study(lines, ["learned-proximal-network"], seeds=1)


def test_its_own_task_runs(joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With techniques whose cards name it, no others."""
    monkeypatch.setattr(catalogue, "_added", {})
    own = scaffold("optimizer/plain-descent", tmp_path)[0]
    own.write_text(own.read_text(encoding="utf-8").replace('tags=("own",),', 'tags=("own",),\n    tasks=("medians",),'))
    catalogue.add_file(own)
    rng, path = np.random.default_rng(1), tmp_path / "values.edges"
    rows = graphs(rng, 120)
    path.write_text("".join(f"{len(edges.split())}\t{edges}\n" for _, edges in rows), encoding="utf-8")
    said = {"seeds": 1, "steps": 60, "reading": Reading(task="medians"), "judging": QUIET}
    found = Study(path, ["plain-descent"], running=Running(timing=False), **said)
    found.run()
    assert [trial.status for trial in found.results.trials] == ["ok", "ok"]
    assert found.plan.primary == "mae"
    mae = found.results.mean("baseline", "mae")
    assert mae is not None
    assert mae < 0.6
    told = load(found.ship("baseline", tmp_path / "model")).predict(path)["value"].to_numpy()
    counted = np.array([len(edges.split()) for _, edges in rows])
    assert np.abs(told - counted).mean() < 0.6 * np.abs(counted - np.median(counted)).mean(), "in the units of the file"
    with pytest.raises(InputError, match="needs task classes or reals or next-token; the task here is medians"):
        Study(path, ["conda"], **said)


def test_the_command_line(folder: Path, lines: Path, tmp_path: Path) -> None:
    words = ("--data", str(lines), "--seeds", "6", "--steps", "20", "--no-confirm", "--no-timing", "--no-references")
    without = run("try", "encouraging-loss", *words, cwd=tmp_path)
    assert without.returncode == 2
    assert "no data that is known" in without.stderr
    own = ("--kind", str(folder))
    done = run("try", "encouraging-loss", *words, *own, "--option", "nodes=6", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "320 graphs, edgelist 6x6" in done.stdout
    page = next((tmp_path / "probatum-runs").glob("*.html")).read_text(encoding="utf-8")
    assert f"--kind {folder} --option nodes=6" in page
    again = run("try", "encouraging-loss", *words, *own, "--option", "nodes=6", cwd=tmp_path)
    assert "12 of 12 trials are in the store already" in again.stdout, again.stdout
    store = "probatum-runs/store.sqlite"
    missing = run("ship", store, "--arm", "baseline", "--to", "model", cwd=tmp_path)
    assert missing.returncode == 2
    assert f"give its folder: --kind {folder}" in missing.stderr
    shipped = run("ship", store, "--arm", "baseline", "--to", "model", *own, cwd=tmp_path)
    assert shipped.returncode == 0, shipped.stderr
    assert "the very weights" in shipped.stderr
    told = run("predict", "model", "--data", str(lines), cwd=tmp_path)
    assert told.returncode == 2
    assert "joins by its folder (--kind" in told.stderr
    for command in (("runs", store, "--json"), ("report", store)):
        looked = run(*command, cwd=tmp_path)
        assert looked.returncode == 0, looked.stderr
    assert json.loads(run("runs", store, "--json", cwd=tmp_path).stdout)[0]["done"] == 12


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("nodes", "write NAME=VALUE"),
        ("=3", "write NAME=VALUE"),
        ("node=3", "did you mean nodes"),
        ("nodes=many", "'many' is not a whole number"),
    ],
)
def test_options_that_cannot_be_read_are_told_of(option: str, told: str, joined: Path) -> None:
    from probatum.options import own_options

    with pytest.raises(InputError, match=told):
        own_options([option])


def test_options_are_read_by_their_types_and_said_once(joined: Path) -> None:
    from probatum.options import own_options, values_of, with_own

    assert own_options(["nodes=5", "text = a column"]) == {"nodes": 5, "text": "a column"}
    with pytest.raises(InputError, match="nodes is said twice"):
        own_options(["nodes=5", "nodes=6"])
    with pytest.raises(InputError, match="size is said twice, by --size and by --option"):
        with_own(values_of({"size": 16}), ["size=32"])


def test_a_folder_that_cannot_join_is_told_of(tmp_path: Path, joined: Path) -> None:
    before = dict(find._added)
    with pytest.raises(InputError, match=r"kind\.py is missing"):
        find.add(tmp_path)
    taken = tmp_path / NAME
    taken.mkdir()
    (taken / "kind.py").write_text("KIND = None\n")
    with pytest.raises(InputError, match="there is a kind called edgelists already"):
        find.add(taken)
    for text, told in (
        ("import nothing_such\n", "importing it fails: ModuleNotFoundError"),
        ("x = 1\n", "holds no KIND"),
    ):
        broken = tmp_path / f"broken{len(text)}"
        broken.mkdir()
        (broken / "kind.py").write_text(text)
        try:
            find.add(broken)
            with pytest.raises(InputError, match=told):
                kinds()
        finally:
            find._added.clear()
            find._added.update(before)


@pytest.fixture
def changed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Path]:
    """Makes a copy of the kind, alone of its sort, in which a text of a file is another; it has joined for this test."""
    monkeypatch.setattr(find, "_added", {})

    def change(file: str, before: str, after: str) -> Path:
        place = tmp_path / NAME
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("__pycache__"))
        text = (place / file).read_text(encoding="utf-8")
        assert before in text
        (place / file).write_text(text.replace(before, after), encoding="utf-8")
        find.add(place)
        return place

    return change


def test_a_kind_with_the_modality_and_task_of_another_is_told_of(changed: Callable[[str, str, str], Path]) -> None:
    changed("kind.py", 'MODALITY = "edgelist"', 'MODALITY = "table"')
    with pytest.raises(InputError, match=r"kinds (table|edgelists) and (table|edgelists) both have modality 'table'"):
        open_dataset("iris")


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("encode.py", "def encode(self, raw: RawGraphs) -> Tensor:", "CUT", "encoding fails: KeyError: 'boom'"),
        ("kind.py", "def opens(self, door: Any) -> bool:", "CUT", "looking whether data are its own fails: KeyError"),
        ("kind.py", "def fit(self, raw: RawGraphs) -> GraphEncoder:", "CUT", "fitting its encoder fails: KeyError"),
        ("kind.py", "def open(self, door: Any) -> Dataset:", "NONE", "open gives a NoneType; let it give a Dataset"),
    ],
)
def test_faults_of_a_kind_from_outside_bear_its_name(
    file: str, before: str, after: str, told: str, changed: Callable[[str, str, str], Path], lines: Path
) -> None:
    early = {"CUT": "        raise KeyError('boom')", "NONE": "        return None"}[after]
    changed(file, before, f"{before}\n{early}")
    with pytest.raises(InputError, match=f"kind edgelists.*{told}"):
        open_dataset(str(lines)).prepare(0)
