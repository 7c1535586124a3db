"""Predictions that a spreadsheet would run as formulas are told of, and quoted on request; numbers are no formulas."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import polars as pl
import pytest
import torch

from commands import told
from probatum import Study
from probatum.cli.spreadsheet import as_csv, formulas, is_formula, quoted, write_table
from probatum.errors import InputError
from probatum.settings import Judging, Running

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "=", "-", "+x", "-3.5.x", "--1"]
PLAIN = ["", "a", "-3.5", "+3", "-1e-5", "-.5", "+1,000.5", "-3,5", "-12 %", "-inf", "x=1", "'=1", " a", "3-4", None]


@pytest.mark.parametrize("cell", FORMULAS)
def test_formulas(cell: str) -> None:
    assert is_formula(cell)


@pytest.mark.parametrize("cell", PLAIN)
def test_what_is_none(cell: str | None) -> None:
    assert not is_formula(cell)


def test_cells_and_headings_are_counted_with_an_example() -> None:
    frame = pl.DataFrame({"=a": [1.0, -2.0, -3.5], "b": ["=1", "x", "@y"], "c": ["-1", "+2", "z"]})
    assert formulas(frame).startswith("2 cells and 1 heading begin like a formula, e.g. in column '=a'")
    assert formulas(frame.select("b")).startswith("2 cells begin like a formula, e.g. in column 'b'")
    assert formulas(frame.select("=a")).startswith("1 heading begins like a formula")
    assert formulas(frame.select("c")) == ""


def test_quoting_touches_nothing_else() -> None:
    frame = pl.DataFrame({"=a": [-2.0, None], "b": ["=1", None], "c": pl.Series(["+x", "y"], dtype=pl.Categorical)})
    found = quoted(frame)
    assert found.columns == ["'=a", "b", "c"]
    assert found["'=a"].to_list() == [-2.0, None]
    assert found["b"].to_list() == ["'=1", None]
    assert found["c"].to_list() == ["'+x", "y"]
    with pytest.raises(InputError, match="stands beside"):
        quoted(pl.DataFrame({"=a": [1], "'=a": [2]}))


def test_no_cell_of_the_file_is_a_formula_whatever_separates() -> None:
    """A spreadsheet may take semicolons or tabs for separators, and a bare carriage return for a line's end."""
    cells = [*FORMULAS, "x;=1+1", "x\t=1+1", "a\r=1+1", "a\n=1+1", 'q"=1', "-3.5"]
    text = as_csv(pl.DataFrame({"a": cells, "=b;=c": [-1.5] * len(cells)}), spreadsheet=True)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["a", "'=b;=c"]
    assert [row[0] for row in rows[1:]] == [f"'{cell}" if is_formula(cell) else cell for cell in cells]
    assert not any(is_formula(cell) for row in rows for cell in row)
    assert text.splitlines()[0].startswith('"')


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, path = pl.DataFrame({"a": [1]}), tmp_path / "out.csv"
    write_table(frame, path, spreadsheet=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for name in ("out.csv", "out.parquet"):
        with pytest.raises(InputError, match=r"could not be written .*No space"):
            write_table(frame, tmp_path / name, spreadsheet=False)
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "a\n1\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = torch.randn(90, generator=torch.Generator().manual_seed(0)).tolist()
    study = Study(
        pl.DataFrame({"x": x, "=y": ["=HYPERLINK(1)" if value > 0 else "fine" for value in x]}),
        ["encouraging-loss"],
        target="=y",
        seeds=6,
        steps=20,
        judging=Judging(references=False, confirm=False),
        running=Running(timing=False),
    )
    home = tmp_path_factory.mktemp("formulas")
    pl.DataFrame({"x": [-2.0, -1.0, 2.0, 3.0]}).write_csv(home / "new.csv")
    return study.ship("baseline", home / "model").parent


def test_the_command_tells_of_formulas(folder: Path) -> None:
    command = ("predict", str(folder / "model"), "--data", str(folder / "new.csv"))
    run = told(*command, "--to", str(folder / "out.csv"))
    assert run.returncode == 0, run.stderr
    count = sum(line.startswith("=HYP") for line in (folder / "out.csv").read_text().splitlines())
    assert count
    assert f"note: {count} cell" in run.stderr
    assert "1 heading begin" in run.stderr
    assert "'=y'" in run.stderr
    assert run.stderr.count("\n") == 1
    assert told(*command).stderr == run.stderr  # on standard output, too


def test_the_command_quotes_on_request(folder: Path) -> None:
    command = ("predict", str(folder / "model"), "--data", str(folder / "new.csv"), "--spreadsheet")
    run = told(*command, "--to", str(folder / "out.csv"))
    assert run.returncode == 0
    assert run.stderr == ""
    frame = pl.read_csv(folder / "out.csv")
    assert frame.columns[0] == "'=y"
    assert set(frame["'=y"]) <= {"'=HYPERLINK(1)", "fine"}
    assert told(*command).stdout == (folder / "out.csv").read_text()
    wrong = told(*command, "--to", str(folder / "out.parquet"))
    assert wrong.returncode == 2
    assert "--spreadsheet is for CSV" in wrong.stderr


def test_parquet_is_left_as_it_is(folder: Path) -> None:
    run = told("predict", str(folder / "model"), "--data", str(folder / "new.csv"), "--to", str(folder / "out.parquet"))
    assert run.returncode == 0
    assert run.stderr == ""
    assert pl.read_parquet(folder / "out.parquet").columns[0] == "=y"
