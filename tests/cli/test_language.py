"""Language modelling from the command line: a text file tried, shipped and predicted; options that do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from probatum.cli.main import main

SHORT = ["--seeds", "6", "--steps", "3", "--no-timing", "--no-references", "--no-confirm"]


def probatum(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["probatum", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_text_file_from_try_to_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    text = "".join(f"{i} green bottles hanging on the wall; " for i in range(200))
    Path("mybook.txt").write_text(text, encoding="utf-8")
    words = ["try", "gradient-noise", "--data", "mybook.txt", "--length", "16", *SHORT, "--json", "out.json"]
    assert probatum(monkeypatch, *words) == 0
    told = capsys.readouterr().out
    assert f"mybook: {len(text)} characters, text 16, target next token, task next-token (char, " in told
    assert "bits-per-character decides" in told
    assert json.loads(Path("out.json").read_text())["plan"]["primary"] == "bits-per-character"
    report = next(Path("probatum-runs").glob("*.html")).read_text(encoding="utf-8")
    command = report.partition("probatum try ")[2].partition("<")[0]
    assert "--length 16" in command
    assert "--task" not in command, "it is found again"

    assert probatum(monkeypatch, "ship", "probatum-runs/store.sqlite", "--arm", "baseline", "--to", "model") == 0
    assert "the very weights of the study" in capsys.readouterr().err
    assert probatum(monkeypatch, "predict", "model", "--data", "mybook.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "text,characters,bits-per-character,perplexity,known"
    assert lines[1].startswith(f"0,{len(text)},")
    assert probatum(monkeypatch, "explain", "model", "--data", "mybook.txt") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "iris", "--tokens", "bpe"], "takes no tokens"),
        (["--data", "python-topics", "--tokens", "words"], "tokens is 'words'"),
        (["--data", "python-topics", "--target", "x"], "takes no target"),
        (["--data", "missing.txt"], "does not exist"),
        (["--data", "python-topics", "--primary", "accuracy"], "the measures here are bits-per-character"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert probatum(monkeypatch, "try", "gradient-noise", *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
