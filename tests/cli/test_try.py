"""`probatum try` as a user meets it: widths, colours, terminals; and a technique of one's own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands import told
from holding import Holding
from probatum import slots
from probatum.bench.store import Store
from probatum.checks.run import check
from processes import ran, started, until

SHORT = ["--seeds", "6", "--steps", "4", "--no-timing", "--no-references"]


def probatum(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line in a folder and a process of its own."""
    return ran(sys.executable, "-m", "probatum", *words, cwd=cwd, env=env)


def test_eighty_columns_no_colour_no_terminal(tmp_path: Path) -> None:
    run = probatum(
        "try",
        "encouraging-loss",
        "--data",
        "iris",
        *SHORT,
        "--json",
        "out.json",
        cwd=tmp_path,
        COLUMNS="80",
        NO_COLOR="1",
    )
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout
    table = [line for line in run.stdout.splitlines() if not line.startswith(("report:", "store:"))]
    assert max(map(len, table)) <= 80
    assert "12/12 trials" in run.stdout
    page = next(line for line in run.stdout.splitlines() if line.startswith("report:")).split(": ", 1)[1]
    assert Path(page).is_file()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["answer"] in " ".join(run.stdout.split())
    assert found["plan"]["arms"][0]["name"] == "encouraging-loss"

    again = told("try", "encouraging-loss", "--data", "iris", *SHORT, cwd=tmp_path)
    assert "12 of 12 trials are in the store already" in again.stdout

    runs = told("runs", "probatum-runs/store.sqlite", "--json", cwd=tmp_path)
    assert json.loads(runs.stdout)[0]["answer"] == found["answer"]
    report = told("report", "probatum-runs/store.sqlite", "--to", "again.html", cwd=tmp_path)
    assert found["answer"] in " ".join(report.stdout.split())
    assert (tmp_path / "again.html").is_file()


def test_ctrl_c_keeps_what_has_ended(holding: Holding, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "probatum", "try", "encouraging-loss", holding.arm(), "--data", "iris"]
    command += ["--seeds", "6", "--steps", "150", "--no-timing", "--technique", str(holding.file)]
    with started(*command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        until(holding.held, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip() == "stopped; what has ended is stored, and the same command goes on from there"
    with Store(tmp_path / "probatum-runs" / "store.sqlite") as store:
        ended = [(trial.arm, trial.seed) for study in store.studies() for trial in store.trials(study.key)]
    assert {("baseline", 0), ("encouraging-loss", 0), (holding.arm(), 0)} < set(ended)
    assert (holding.arm(), 1) not in ended


def test_a_new_technique_is_one_file_and_no_other_edit(tmp_path: Path) -> None:
    made = told("new", "loss/my-loss", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py"))
    assert files == ["loss/claim_my_loss.py", "loss/my_loss.py", "loss/test_my_loss.py"]
    run = told(
        "try",
        "my-loss(strength=0.1)",
        "my-loss+gradient-noise",
        "--data",
        "iris",
        *SHORT,
        "--technique",
        "loss/my_loss.py",
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "my-loss(strength=0.1)" in run.stdout
    shown = told("show", "my-loss", "--json", "--technique", "loss/my_loss.py", cwd=tmp_path)
    assert json.loads(shown.stdout)[0]["slot"] == "loss"
    edited = (tmp_path / "loss" / "my_loss.py").read_text().replace("self.strength *", "2 * self.strength *")
    (tmp_path / "loss" / "my_loss.py").write_text(edited)
    again = probatum(
        "try", "my-loss(strength=0.1)", "--data", "iris", *SHORT, "--technique", "loss/my_loss.py", cwd=tmp_path
    )
    assert "6 of 12 trials are in the store already" in again.stdout, (
        "an edited technique must be run again, the baseline not"
    )


@pytest.mark.parametrize("slot", slots.names())
def test_every_template_passes_the_contract_suite(slot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probatum import catalogue
    from probatum.cli.scaffold import scaffold

    monkeypatch.setattr(catalogue, "_added", {})
    files = scaffold(f"{slot}/own-{slot}", tmp_path)
    results = {result.check: result for result in check(str(files[0]))}
    failed = [result for result in results.values() if result.status == "failed"]
    assert not failed, failed
    assert sum(result.status == "passed" for result in results.values()) >= 8


def test_explain_a_shipped_model(tmp_path: Path) -> None:
    run = told("try", "encouraging-loss", "--data", "breast-cancer", *SHORT, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    shipped = told("ship", "probatum-runs/store.sqlite", "--arm", "encouraging-loss", "--to", "model", cwd=tmp_path)
    assert shipped.returncode == 0, shipped.stderr
    assert "the very weights" in shipped.stderr
    from sklearn.datasets import load_breast_cancer

    load_breast_cancer(as_frame=True).frame.head(5).to_csv(tmp_path / "new.csv", index=False)
    explained = told(
        "explain", "model", "--data", "new.csv", "--row", "3", "--by", "integrated-gradients", "--json", cwd=tmp_path
    )
    assert explained.returncode == 0, explained.stderr
    found = json.loads(explained.stdout)[0] if explained.stdout.startswith("[") else json.loads(explained.stdout)
    assert len(found["contributions"]) == 30
    assert abs(found["gap"]) < 0.5
    sizes = [abs(item["contribution"]) for item in found["contributions"]]
    assert sizes == sorted(sizes, reverse=True)
    far = told("explain", "model", "--data", "new.csv", "--row", "9", cwd=tmp_path)
    assert far.returncode == 2
    assert "rows 0 to 4" in far.stderr
