"""`probatum new`: what it writes passes everything at once, inside a checkout and outside, and touches no file that is there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probatum import catalogue, slots
from probatum.cli.scaffold import scaffold
from probatum.errors import InputError

ROOT = Path(__file__).parents[2]
SHARED = ("tests/conftest.py", "tests/holding.py", "tests/processes.py", "tests/test_architecture.py")
COPIED = ("src", "pyproject.toml", "ARCHITECTURE.md", "changelog.d", *SHARED)
SLOTS = slots.names()
TECHNIQUES = [*(f"{slot}/own-{slot}" for slot in SLOTS), "model/tables/own-flat", "coreset/own-coreset"]
NAMES = [what.split("/")[-1] for what in TECHNIQUES]
HOUSE = (
    "(stand_alone or has_its_claim) and own- or every_slot or picture or circles or downwards or init or numerics_holds"
)
"""The house rules that what is new can break."""

LOOK = f"""
import doctest, importlib, json, sys
import pytest
from probatum import catalogue
from probatum.checks import fresh
from probatum.checks.run import check
from probatum.claims import tools
from probatum.claims.chosen import claims_of
from probatum.cli.main import main
from probatum.recipe import Training

names, found = json.loads(sys.argv[1]), {{}}
with fresh.kept():  # one other interpreter for all
    for what in (*names, "kind/points"):
        found[what] = {{result.check: [result.status, result.detail] for result in check(what)}}
modules = [catalogue.place(name).module for name in names]
found["examples"] = {{module: tuple(doctest.testmod(importlib.import_module(module))) for module in modules}}
found["modalities"] = {{name: catalogue.card(name).modalities for name in names}}
tools.training_for = lambda modality, task: Training(steps=8, batch_size=16)
found["claims"] = {{name: [sorted(its.run((1,)).measured) for its in claims_of(name)] for name in names}}
sys.argv = ["probatum", "try", "own-coreset", "--data", "iris", "--seeds", "6", "--steps", "10", "--no-confirm"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
written = pytest.main(["-p", "no:cacheprovider", "tests/techniques", "tests/kinds", "tests/arenas"])
house = pytest.main(["-p", "no:cacheprovider", "tests/test_architecture.py", "-k", {HOUSE!r}])
print("FOUND:" + json.dumps({{**found, "pytest": [int(written), int(house)]}}))
"""


def files_of(place: Path) -> dict[str, str]:
    files = (path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def probatum(*words: str, checkout: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python("-m", "probatum", *words, checkout=checkout, cwd=cwd)


def python(*words: str, checkout: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    there = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=there, cwd=cwd or checkout)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, as far as it is needed, with one of everything that `probatum new` writes."""
    place = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, place / name)
    before = files_of(place)
    for what in ("arena/coreset", "kind/points"):
        scaffold(what, place)
    code = (
        "import json, pathlib, sys; from probatum.cli.scaffold import scaffold\n"
        "for what in json.loads(sys.argv[1]): scaffold(what, pathlib.Path())"
    )  # there, where the arena's slot is known
    made = python("-c", code, json.dumps(TECHNIQUES), checkout=place)
    assert made.returncode == 0, made.stderr
    after = files_of(place)
    assert {name: after.get(name) for name in before} == before, "a file that was there has changed"
    return place


@pytest.fixture(scope="module")
def found(checkout: Path) -> dict[str, Any]:
    """What checks, examples, claims, a study and the written tests say of it, in one process."""
    looked = python("-c", LOOK, json.dumps(NAMES), checkout=checkout)
    assert "FOUND:" in looked.stdout, looked.stderr[-3000:] + looked.stdout[-3000:]
    return {"told": looked.stdout, **json.loads(looked.stdout.rpartition("FOUND:")[2])}


def test_a_checkout_gets_every_file_in_its_place(checkout: Path) -> None:
    package, tests = checkout / "src" / "probatum", checkout / "tests"
    for path in (
        *(package / room / "model" / "tables" / "own_flat.py" for room in ("techniques", "claims")),
        tests / "techniques" / "model" / "tables" / "test_own_flat.py",
        checkout / "changelog.d" / "own-flat.technique.md",
        *(
            package / "kinds" / "points" / f"{part}.py"
            for part in ("__init__", "kind", "encode", "network", "toy", "sets")
        ),
        *(tests / "kinds" / "test_points.py", checkout / "changelog.d" / "points.added.md"),
        *(package / "arenas" / "coreset" / "arena.py", tests / "arenas" / "test_coreset.py"),
        *(package / room / "coreset" / "__init__.py" for room in ("arenas", "techniques", "claims")),
        *(package / room / "coreset.py" for room in ("contracts", "checks")),
        package / "cli" / "templates" / "coreset.py.txt",
    ):
        assert path.is_file(), path


def test_everything_passes_its_checks_at_once_and_the_evidence_alone_is_to_do(found: dict[str, Any]) -> None:
    for name in NAMES:
        of = {status: sorted(k for k, (s, _) in found[name].items() if s == status) for status in ("failed", "to do")}
        assert of == {"failed": [], "to do": ["evidence_is_recorded"]}, (name, found[name])
    assert all(status != "failed" for status, _ in found["kind/points"].values()), found["kind/points"]


def test_every_example_runs(found: dict[str, Any]) -> None:
    assert len(found["examples"]) == len(NAMES)
    for module, (failed, attempted) in found["examples"].items():
        assert failed == 0, module
        assert attempted > 0, module


def test_a_folder_named_after_a_kind_says_which_data_are_taken(found: dict[str, Any]) -> None:
    assert found["modalities"]["own-flat"] == ["table"]
    assert found["modalities"]["own-model"] == [], "whatever is one tensor a row"


def test_every_claim_runs(found: dict[str, Any]) -> None:
    assert all(len(claims) == 1 and claims[0] for claims in found["claims"].values()), found["claims"]
    assert found["claims"]["own-probe"] == [["output-mean", "output-spread"]], "probes do not compete"


def test_the_new_arena_is_played(found: dict[str, Any]) -> None:
    assert "own-coreset" in found["told"]
    assert "random rows" in found["told"]
    assert "all rows" in found["told"]


def test_the_written_tests_and_the_house_rules_pass(found: dict[str, Any]) -> None:
    assert found["pytest"] == [0, 0], found["told"].partition("FOUND:")[0][-4000:]


def test_what_is_written_is_formatted(checkout: Path) -> None:
    for words in (("check", "src", "tests"), ("format", "--check", "src", "tests")):
        ruff = python("-m", "ruff", *words, checkout=checkout)
        assert ruff.returncode == 0, ruff.stdout


def test_a_claim_on_seeds_of_one_s_own_and_the_check_by_command(checkout: Path) -> None:
    claimed = probatum("claim", "own-explain", "--seeds", "1-2", checkout=checkout)
    assert claimed.returncode == 0, claimed.stderr
    assert "on seeds 1, 2" in claimed.stdout
    assert "mine =" in claimed.stdout
    checked = probatum("check", "own-posthoc", checkout=checkout)
    assert checked.returncode == 0, checked.stdout
    assert "0 failed, 1 to do" in checked.stdout
    assert "claims.record own-posthoc" in " ".join(checked.stdout.split())


def test_a_kind_outside_a_checkout_works_from_its_folder(tmp_path: Path) -> None:
    made = probatum("new", "kind/point-sets", checkout=ROOT, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.split()[0] == "point_sets/kind.py"
    rng = np.random.default_rng(0)
    for row in range(60):
        file = tmp_path / "dots" / ("wide", "narrow")[row % 2] / f"{row:02}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, rng.normal(size=(6, 2)) * (3.0, 0.5)[row % 2])
    short = ("--seeds", "6", "--steps", "10", "--no-confirm", "--no-timing", "--no-references")
    tried = probatum("try", "conda", "--data", "dots", "--kind", "point_sets", *short, checkout=ROOT, cwd=tmp_path)
    assert tried.returncode == 0, tried.stderr
    assert "60 rows, point-sets 6x2" in tried.stdout
    checked = probatum("check", "point_sets", checkout=ROOT, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert "point_sets: 21 passed, 0 failed" in checked.stdout or "passed, 0 failed" in checked.stdout
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_point_sets.py", checkout=ROOT, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize("slot", ["loss", "model"])
def test_the_tests_written_outside_a_checkout_pass(slot: str, tmp_path: Path) -> None:
    scaffold(f"{slot}/series/own-{slot}", tmp_path)
    assert "claims=" not in (tmp_path / slot / "series" / f"own_{slot}.py").read_text(encoding="utf-8")
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", ".", checkout=ROOT, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("loss", "give SLOT/NAME"),
        ("loss/My-Loss", "give SLOT/NAME"),
        ("loss/", "give SLOT/NAME"),
        ("kind/points/x", "a kind lies in one folder; give kind/x"),
        ("kind/table", "table is taken by"),
        ("kind/usual", "'usual' means something else here"),
        ("kind/torch", "'torch' is the name of a Python module"),
        ("loss/json", "'json' is the name of a Python module"),
        ("loss/class", "'class' is a word of Python's own"),
        ("loss/match", "'match' is a word of Python's own"),
        ("loss/none", "'None' is a word of Python's own"),
        ("model/lambda/wide", "'lambda' is a word of Python's own"),
        ("loss/base", "'base' means something else here"),
        ("arena/coreset", r"an arena brings a slot.*write it in a checkout"),
        ("loss/encouraging-loss", "is taken by"),
        ("model/My Tables/x", "'My Tables' is no name of a folder"),
    ],
)
def test_what_cannot_be_written_is_told_of(what: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        scaffold(what, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_taken_in_a_checkout_is_told_of(checkout: Path) -> None:
    for what, told in (
        ("arena/select", "called select already"),
        ("arena/loss", "there is a slot called loss already"),
        ("learner/pfn/own-learner", "is the folder of one technique, pfn"),
        ("loss/own-loss", "exists already; choose another name or folder"),
    ):
        before = files_of(checkout)
        with pytest.raises(InputError, match=told):
            scaffold(what, checkout)
        assert files_of(checkout) == before


def test_no_template_names_a_technique_of_the_catalogue() -> None:
    templates = (ROOT / "src" / "probatum" / "cli" / "templates").rglob("*.txt")
    text = " ".join(path.read_text(encoding="utf-8") for path in templates)
    assert not [name for name in catalogue.names() if f'"{name}"' in text]


def test_a_disk_that_is_full_leaves_no_half_technique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(self: Path, text: str, encoding: str) -> int:
        if "test_" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"test_my_loss\.py cannot be written: No space left"):
        scaffold("loss/my-loss", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert scaffold("loss/my-loss", tmp_path)
