"""Mistakes a user can make: each gives one clear line and exit code 2, no traceback, before any long work."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from probatum import catalogue
from probatum.cli.main import main
from processes import ran

ROWS = 60


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "_added", {})
    make_files(tmp_path)


def table(**columns: object) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    base = {"a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS), "y": ["yes", "no"] * (ROWS // 2)}
    return pl.DataFrame({**base, **columns})


def make_files(folder: Path) -> None:
    table().write_csv(folder / "good.csv")
    table(y=["yes"] * ROWS).write_csv(folder / "one_class.csv")
    table(y=["yes", None] * (ROWS // 2)).write_csv(folder / "missing_target.csv")
    table(y=[1.5 * i if i % 7 else float("nan") for i in range(ROWS)]).write_parquet(folder / "nan_target.parquet")
    table(a=[float("inf"), *range(ROWS - 1)]).write_parquet(folder / "infinite.parquet")
    table(y=["rare", *["yes", "no"] * 29, "no"]).write_csv(folder / "rare_class.csv")
    table(part=["elsewhere"] * ROWS).write_csv(folder / "bad_split.csv")
    (folder / "empty.csv").write_text("")
    (folder / "only_header.csv").write_text("a,b,y\n")
    (folder / "not_a_table.parquet").write_bytes(b"this is no parquet file")
    (folder / "notes.docx").write_bytes(b"PK")
    np.savez(folder / "no_target.npz", x=np.zeros((5, 3)))
    np.savez(folder / "unequal.npz", x=np.zeros((5, 3)), y=np.zeros(4))
    (folder / "store.txt").write_text("this is no database " * 100)
    (folder / "empty_folder").mkdir()
    for name, size in (("cat", 8), ("dog", 9)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (size, 8), color=20 * i).save(folder / "images" / name / f"{i}.png")
    (folder / "images" / "dog" / "broken.png").write_bytes(b"no picture")
    (folder / "broken.py").write_text("CARD = Card(\n")
    (folder / "crash.py").write_text(
        '"""Crash: it cannot be imported.\n\nPaper     none\nComputes  x\nShapes    x\nDeparts   none\n"""\n'
        'from probatum.card import Card\nCARD = Card(\n    paper="none", title="x", entry="X", slot="loss", tags=("own",),\n)\nraise RuntimeError("boom")\n'
    )


CASES = {
    "no data": (["try", "encouraging-loss"], "--data"),
    "unknown dataset": (["try", "--data", "digit"], "digits"),
    "missing file": (["try", "--data", "nowhere.csv"], "nowhere.csv"),
    "empty file": (["try", "--data", "empty.csv"], "empty"),
    "header only": (["try", "--data", "only_header.csv"], "rows"),
    "not a parquet file": (["try", "--data", "not_a_table.parquet"], "not_a_table.parquet"),
    "unknown kind of file": (["try", "--data", "notes.docx"], "notes.docx"),
    "missing target column": (["try", "--data", "good.csv", "--target", "why"], "why"),
    "one class": (["try", "--data", "one_class.csv", "--target", "y"], "yes"),
    "missing target values": (["try", "--data", "missing_target.csv", "--target", "y"], "30"),
    "NaN target": (["try", "--data", "nan_target.parquet", "--target", "y"], "y"),
    "infinite number": (["try", "--data", "infinite.parquet", "--target", "y"], "a"),
    "class too rare": (["try", "--data", "rare_class.csv", "--target", "y"], "rare"),
    "split column with odd words": (
        ["try", "--data", "bad_split.csv", "--target", "y", "--split", "part"],
        "elsewhere",
    ),
    "missing group column": (["try", "--data", "good.csv", "--target", "y", "--group", "who"], "who"),
    "missing time column": (["try", "--data", "good.csv", "--target", "y", "--time", "when"], "when"),
    "dropping an unknown column": (["try", "--data", "good.csv", "--target", "y", "--drop", "zzz"], "zzz"),
    "words as real targets": (["try", "--data", "good.csv", "--target", "y", "--task", "reals"], "y"),
    "unknown task": (["try", "--data", "good.csv", "--target", "y", "--task", "guessing"], "guessing"),
    "unknown modality": (["try", "--data", "good.csv", "--target", "y", "--modality", "smell"], "smell"),
    "npz without target": (["try", "--data", "no_target.npz"], "y"),
    "npz with unequal lengths": (["try", "--data", "unequal.npz"], "4"),
    "images of several sizes": (["try", "--data", "images"], "png"),
    "folder without images": (["try", "--data", "empty_folder"], "empty_folder"),
    "unknown technique": (["try", "encouraging-los", "--data", "iris"], "did you mean encouraging-loss"),
    "unknown setting": (["try", "encouraging-loss(alpha=1)", "--data", "iris"], "log_end"),
    "setting out of range": (["try", "encouraging-loss(log_end=2.0)", "--data", "iris"], "2.0"),
    "unreadable settings": (["try", "encouraging-loss(log_end)", "--data", "iris"], "log_end"),
    "two clashing techniques": (["try", "encouraging-loss+cnn-svm", "--data", "iris"], "encouraging-loss and cnn-svm"),
    "learner with a loss": (["try", "gbnn+encouraging-loss", "--data", "iris"], "gbnn"),
    "techniques of two arenas": (["try", "encouraging-loss", "deepfool", "--data", "iris"], "arena"),
    "technique that does not apply": (["try", "text-cnn", "--data", "iris"], "text"),
    "loss for classes on reals": (["try", "encouraging-loss", "--data", "diabetes"], "classes"),
    "the same arm twice": (["try", "encouraging-loss", "encouraging-loss", "--data", "iris"], "twice"),
    "baseline model of another slot": (["try", "conda", "--data", "iris", "--model", "encouraging-loss"], "model"),
    "no seeds": (["try", "encouraging-loss", "--data", "iris", "--seeds", "0"], "seeds"),
    "no steps": (["try", "encouraging-loss", "--data", "iris", "--steps", "0"], "steps"),
    "epochs and steps": (["try", "encouraging-loss", "--data", "iris", "--steps", "5", "--epochs", "5"], "--steps"),
    "unknown budget": (["try", "encouraging-loss", "--data", "iris", "--budget", "money"], "money"),
    "negative tuning": (["try", "encouraging-loss", "--data", "iris", "--tune", "-1"], "tune"),
    "unknown measure": (["try", "encouraging-loss", "--data", "iris", "--primary", "beauty"], "beauty"),
    "negative margin": (["try", "encouraging-loss", "--data", "iris", "--margin", "-0.1"], "margin"),
    "store in a missing folder": (["try", "encouraging-loss", "--data", "iris", "--store", "no/where.sqlite"], "no"),
    "store that is no database": (["try", "encouraging-loss", "--data", "iris", "--store", "store.txt"], "store.txt"),
    "store where nothing can be written": (
        ["try", "encouraging-loss", "--data", "iris", "--store", "/proc/s.sqlite"],
        "/proc",
    ),
    "report in a missing folder": (["try", "encouraging-loss", "--data", "iris", "--report", "no/where.html"], "no"),
    "report that is a folder": (["try", "encouraging-loss", "--data", "iris", "--report", "images"], "images"),
    "technique file that is missing": (["try", "x", "--data", "iris", "--technique", "gone.py"], "gone.py"),
    "technique file without a card": (["try", "x", "--data", "iris", "--technique", "broken.py"], "broken.py"),
    "technique file that crashes": (["try", "crash", "--data", "iris", "--technique", "crash.py"], "boom"),
    "unknown slot": (["list", "--slot", "losses"], "losses"),
    "unknown id to show": (["show", "tabn"], "tabm"),
    "report of no store": (["report", "gone.sqlite"], "gone.sqlite"),
    "runs of no database": (["runs", "store.txt"], "store.txt"),
    "scaffold of an unknown slot": (["new", "lost/thing"], "lost/thing"),
    "scaffold of a taken name": (["new", "loss/encouraging-loss"], "taken"),
    "prediction from no model": (["predict", "images", "--data", "good.csv"], "images"),
    "explanation by no explainer": (["explain", "images", "--data", "good.csv", "--by", "tabm"], "tabm"),
    "claim of an unknown id": (["claim", "tabn"], "tabm"),
}


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what was printed on standard error."""
    monkeypatch.setattr(sys, "argv", ["probatum", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words, named = CASES[case]
    code, err = run(words, monkeypatch, capsys)
    assert code == 2, f"{case}: exit code {code}, {err}"
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert named in err, err


EARLY = [
    *("unknown technique", "techniques of two arenas", "no seeds", "no steps", "unknown budget", "negative tuning"),
    *("unknown measure", "negative margin"),
]


@pytest.mark.parametrize("case", EARLY)
def test_values_are_looked_at_before_anything_is_read(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["probatum", *CASES[case][0]])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr()
    assert CASES[case][1] in told.err
    assert "reading the data" not in told.out


@pytest.mark.parametrize("cost", ["parameters", "latency-ratio"])
def test_what_costs_decides_nothing(
    cost: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = run(["try", "gradient-noise", "--data", "iris", "--primary", cost], monkeypatch, capsys)
    assert code == 2
    assert f"primary is '{cost}', a cost" in err
    assert "what can decide here are accuracy" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    code, err = run(
        ["try", "encouraging-loss", "--data", "iris", "--store", str(closed / "s.sqlite")], monkeypatch, capsys
    )
    assert code == 2
    assert "closed" in err


def test_no_traceback_from_the_real_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "probatum", "try", "encouraging-loss", "--data", "one_class.csv", "--target", "y"]
    ended = ran(*command, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.strip().count("\n") == 0, ended.stderr
    assert "yes" in ended.stderr
