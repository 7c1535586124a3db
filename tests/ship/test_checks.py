"""A shipped folder that is not as it was shipped, or says what cannot be, is refused in one line, and never predicts otherwise."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import told
from probatum import Study, catalogue
from probatum.auditing.subject import open_subject
from probatum.errors import InputError
from probatum.settings import Judging, Running
from probatum.ship import content, manifest
from probatum.ship.load import load, opened
from ship.folders import copied, earlier, flips, made_to_fit, said

ROWS = pl.DataFrame({"a": [0.1, 1.0, -2.0, 0.5], "b": [1.0, 0.0, 3.0, -1.0], "c": ["x", "y", "x", "z"]})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 120, generator=draw).tolist()
    words = ["xyz"[index % 3] for index in range(120)]
    names = ["low" if p + q < -0.4 else "mid" if p + q < 0.4 else "top" for p, q in zip(a, b, strict=True)]
    found = Study(
        pl.DataFrame({"a": a, "b": b, "c": words, "y": names}),
        ["encouraging-loss", "selu-snn", "h-calibration(window=20, steps=20)", "gbnn(total=8, units=4)"],
        target="y",
        seeds=6,
        steps=4,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    )
    found.run()
    return found


@pytest.fixture(scope="module")
def shipped(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each arm, shipped once."""
    home, names = tmp_path_factory.mktemp("shipped"), [arm.name for arm in study.plan.arms]

    def of(beginning: str) -> Path:
        arm = next((name for name in names if name.startswith(beginning)), beginning)
        folder = home / re.sub(r"\W", "_", arm)
        return folder if folder.exists() else study.ship(arm, folder)

    return of


@pytest.fixture
def folder(shipped: Callable[[str], Path], tmp_path: Path) -> Path:
    return copied(shipped("selu-snn"), tmp_path / "model")


def refused(folder: Path, trust_changed: bool = False) -> str:
    with pytest.raises(InputError) as problem:
        load(folder, trust_changed=trust_changed)
    assert str(folder) in str(problem.value)
    return str(problem.value)


def test_every_file_is_in_the_manifest(folder: Path) -> None:
    known = json.loads((folder / "manifest.json").read_text())
    assert set(known["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert {"model.safetensors", "pipeline.safetensors", "model.json", "README.md"} <= set(known["files"])
    assert known["files"]["model.json"]["bytes"] == (folder / "model.json").stat().st_size
    assert known["techniques"] == {"selu-snn": catalogue.digest("selu-snn")}
    assert load(folder).notices == ()


def test_whatever_differs_is_named_at_once(folder: Path) -> None:
    (folder / "pipeline.safetensors").unlink()
    cut = (folder / "evidence.json").read_bytes()[:100]
    (folder / "evidence.json").write_bytes(cut)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "extra.safetensors").write_text("x")
    (folder / "more").mkdir()
    (folder / "more" / "notes.txt").write_text("x")
    problem = refused(folder)
    assert "pipeline.safetensors is missing" in problem
    assert "evidence.json is cut (100 of " in problem
    assert "model.safetensors is altered" in problem
    assert "extra.safetensors was not shipped" in problem
    assert "more/notes.txt was not shipped" in problem
    assert "copy it anew" in problem


def test_large_files_are_hashed_beside_and_named_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LARGE", 1)
    load(folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    said(folder, "evidence.json")  # written otherwise
    problem = refused(folder)
    assert "model.safetensors is altered" in problem
    assert "evidence.json" in problem


def test_what_fails_to_load_is_first_told_as_altered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LARGE", 1)
    pipeline = bytearray((folder / "pipeline.safetensors").read_bytes())
    pipeline[3] ^= 255  # of the header's length: no reader takes it
    (folder / "pipeline.safetensors").write_bytes(pipeline)
    assert "pipeline.safetensors is altered" in refused(folder)


def test_texts_for_people_and_hidden_files_are_free(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine")
    (folder / "LICENSE").write_text("mine")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    load(folder)
    (folder / "README.md").unlink()
    load(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "README.md").write_text("x")  # not at the top
    assert "sub/README.md was not shipped" in refused(folder)


def test_a_pointer_of_git_lfs_is_told_as_such(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "model.safetensors is a Git LFS pointer" in refused(folder)


def test_a_linked_file_is_a_file(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "model.safetensors", tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    load(folder)
    (tmp_path / "blob").unlink()
    assert "model.safetensors is missing" in refused(folder)


def test_a_lost_or_altered_manifest_is_told(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"format": 1', '"format": 2'))
    assert "manifest.json is altered" in refused(folder)
    (folder / "manifest.json").write_text("{")
    assert "manifest.json is broken" in refused(folder)
    (folder / "manifest.json").unlink()
    assert "manifest.json is missing" in refused(folder)


@pytest.mark.parametrize("arm", ["baseline", "h-calibration", "gbnn"])
def test_no_flipped_byte_predicts_otherwise_without_a_word(
    shipped: Callable[[str], Path], tmp_path: Path, arm: str
) -> None:
    """Two hundred flips over all files of a network's folder, fewer of others'."""
    model = copied(shipped(arm), tmp_path / "model")
    wanted = opened(model).predict(ROWS)
    silent = 0
    for place in flips(model, 200 if arm == "baseline" else 24, seed=5):
        try:
            found = opened(model).predict(ROWS)
        except InputError:
            continue
        assert place.startswith(("README.md", "manifest.json")), place
        assert found.equals(wanted), place
        silent += 1
    assert silent < 80


@pytest.mark.parametrize("arm", ["baseline", "h-calibration", "gbnn"])
def test_earlier_folders_predict_with_a_notice_or_are_refused(
    shipped: Callable[[str], Path], tmp_path: Path, arm: str
) -> None:
    model = earlier(copied(shipped(arm), tmp_path / "model"))
    for place in flips(model, 100 if arm == "baseline" else 30, seed=6):
        try:
            found = opened(model)
        except InputError:
            continue
        assert "without manifest.json" in found.notices[0], place


@pytest.mark.parametrize("sealed", [True, False])
def test_files_cut_anywhere_are_refused(shipped: Callable[[str], Path], tmp_path: Path, sealed: bool) -> None:
    whole = copied(shipped("gbnn"), tmp_path / "whole")
    if not sealed:
        earlier(whole)
    for path in sorted(whole.iterdir()):
        size = path.stat().st_size
        for length in (0, 1, size // 2, size - 2):
            model = copied(whole, tmp_path / "model")
            (model / path.name).write_bytes(path.read_bytes()[:length])
            if path.name == "README.md" or (not sealed and path.name in ("evidence.json", "seen.safetensors")):
                opened(model)
            else:
                assert path.name in refused(model)


@pytest.mark.parametrize("name", ["model.safetensors", "pipeline.json", "pipeline.safetensors", "refit.safetensors"])
def test_a_missing_file_of_an_earlier_folder_is_named(
    shipped: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    model = earlier(copied(shipped("h-calibration"), tmp_path / "model"))
    (model / name).unlink()
    assert f"{name} is missing" in refused(model)


def test_an_earlier_folder_is_told_and_can_be_sealed(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    model = earlier(copied(shipped("encouraging-loss"), tmp_path / "model"))
    with pytest.warns(UserWarning, match="altered files cannot be told; `probatum seal"):
        before = load(model).predict(ROWS)
    ROWS.write_csv(tmp_path / "new.csv")
    run = told("predict", str(model), "--data", str(tmp_path / "new.csv"))
    assert run.returncode == 0
    assert "note: " in run.stderr
    assert "cannot be told" in run.stderr
    sealed = told("seal", str(model))
    assert sealed.returncode == 0, sealed.stderr
    assert "altered ones are told" in sealed.stderr
    assert load(model).predict(ROWS).equals(before)
    again = told("seal", str(model))
    assert again.returncode == 2
    assert "nothing to seal" in again.stderr
    (model / "model.safetensors").write_bytes(b"x")
    assert "model.safetensors is cut" in told("seal", str(model)).stderr
    assert "model.safetensors is cut" in refused(model)


def test_sealing_does_not_replace_a_lost_manifest(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="which is missing"):
        manifest.seal(folder)
    with pytest.raises(InputError, match="not a folder that"):
        manifest.seal(tmp_path)


def swapped(folder: Path) -> None:
    meta = json.loads((folder / "pipeline.json").read_text())
    for part in ("spec", "target"):
        meta[part]["classes"].reverse()
    (folder / "pipeline.json").write_text(json.dumps(meta))


def one_class_less(folder: Path) -> None:
    meta = json.loads((folder / "pipeline.json").read_text())
    for part in ("spec", "target"):
        meta[part]["classes"].pop()
    (folder / "pipeline.json").write_text(json.dumps(meta))


def weights_with(value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        next(iter(weights.values())).view(-1)[0] = value
        save_file(weights, folder / "model.safetensors")

    return change


def recipe_with(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        recipe = json.loads((folder / "model.json").read_text())["recipe"]
        recipe["techniques"][0] |= values
        said(folder, "model.json", recipe=recipe)

    return change


def without(file: str, name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        del values[name]
        (folder / file).write_text(json.dumps(values))

    return change


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "classes swapped": (swapped, r"classes of model.json is \['low'.*of pipeline.json \['top'"),
    "a class less": (one_class_less, "2 classes for 3 outputs"),
    "temperature 0": (
        lambda f: said(f, "model.json", temperature=0),
        "temperature is 0; it must be finite and above 0",
    ),
    "temperature below 0": (lambda f: said(f, "model.json", temperature=-1.0), "temperature is -1.0"),
    "temperature nan": (lambda f: said(f, "model.json", temperature=float("nan")), "temperature is nan"),
    "temperature inf": (lambda f: said(f, "model.json", temperature=float("inf")), "temperature is inf"),
    "temperature a word": (lambda f: said(f, "model.json", temperature="hot"), "temperature is 'hot'"),
    "NaN weights": (weights_with(float("nan")), r"model.safetensors.*holds 1 value\(s\) that are NaN"),
    "infinite weights": (weights_with(float("inf")), "NaN or infinite"),
    "another format": (lambda f: said(f, "model.json", format=7), "format 7; this version reads"),
    "other outputs": (lambda f: said(f, "model.json", outputs=5), "outputs of model.json is 5"),
    "no list": (lambda f: (f / "model.json").write_text("[]"), "model.json is broken"),
    "broken JSON": (lambda f: (f / "pipeline.json").write_text("{,"), "pipeline.json is broken"),
    "no text": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"), "model.json is broken"),
    "no recipe": (without("model.json", "recipe"), "model.json is broken .no 'recipe'"),
    "no temperature": (without("model.json", "temperature"), "no 'temperature'"),
    "no spec": (without("pipeline.json", "spec"), "pipeline.json is broken .no 'spec'"),
    "no features": (without("pipeline.json", "features"), "no 'features'"),
    "a path for an id": (recipe_with(id="../../evil"), "'../../evil', which is not installed"),
    "no id": (recipe_with(id=None), "None, which is not installed"),
    "an odd slot": (recipe_with(slot="loss"), "stands in slot 'loss'; its own is 'layer'"),
    "no slot": (recipe_with(slot=["layer"]), "its own is 'layer'"),
    "unknown settings": (recipe_with(settings={"zzz": 1}), "no setting 'zzz'"),
    "odd settings": (recipe_with(settings="x"), "settings of selu-snn are 'x'"),
    "other weights": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors"),
        "model.safetensors is broken .RuntimeError: Error.s. in loading state_dict",
    ),
    "no weights": (lambda f: (f / "model.safetensors").write_bytes(b"PK"), "model.safetensors is broken"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_although_the_manifest_fits(folder: Path, name: str) -> None:
    change, told_as = WRONG[name]
    change(folder)
    shape = made_to_fit(folder) if name not in ("no list", "no text", "no recipe", "no id") else earlier_shape(folder)
    problem = refused(shape)
    assert re.search(told_as, problem, flags=re.DOTALL), problem


def earlier_shape(folder: Path) -> Path:
    """Where model.json cannot be read, the manifest is made without it."""
    (folder / "manifest.json").unlink()
    manifest.write_manifest(folder, {})
    return folder


def test_one_line_for_the_command(folder: Path, tmp_path: Path) -> None:
    ROWS.write_csv(tmp_path / "new.csv")
    (folder / "model.json").write_text("{")
    for words in (
        ("predict", str(folder), "--data", str(tmp_path / "new.csv")),
        ("explain", str(folder), "--data", str(tmp_path / "new.csv")),
        ("audit", str(folder), "--data", str(tmp_path / "new.csv"), "--target", "c"),
    ):
        run = told(*words)
        assert run.returncode == 2
        assert run.stderr.startswith("error: ")
        assert "model.json is cut" in run.stderr
        assert run.stderr.count("\n") == 1


def test_an_audit_checks_the_folder_whose_preprocessing_it_uses(folder: Path) -> None:
    (folder / "pipeline.json").write_text((folder / "pipeline.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"pipeline\.json is altered"):
        open_subject(torch.nn.Linear(5, 3), pipeline=folder)


def test_changed_code_that_predicts_is_refused_or_taken_on_trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "digest", lambda name: "0123456789abcdef")
    problem = refused(folder)
    assert "another version of selu-snn (source 0123456789abcdef, shipped with " in problem
    assert "--trust-changed" in problem
    with pytest.warns(UserWarning, match="taken on trust: selu-snn"):
        load(folder, trust_changed=True)


def test_changed_code_that_trained_alone_is_told(
    shipped: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shipped("encouraging-loss")
    wanted = load(model).predict(ROWS)
    monkeypatch.setattr(catalogue, "digest", lambda name: "0123456789abcdef")
    with pytest.warns(UserWarning, match=r"encouraging-loss .*acted in training alone"):
        assert load(model).predict(ROWS).equals(wanted)


def test_slots_whose_code_predicts_are_those_that_loading_calls() -> None:
    """What `load` builds from: a slot that joins them has to be checked, too."""
    text = Path(content.__file__).with_name("load.py").read_text(encoding="utf-8")
    assert set(re.findall(r"recipe\.([a-z]+)\b", text)) - {"training"} == set(content.ACTING)
