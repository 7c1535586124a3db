"""A shipped folder, a network of one's own and an ONNX file are audited alike; what cannot be is refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn

import probatum
from commands import told
from probatum import Study
from probatum.errors import InputError
from probatum.ship.manifest import write_manifest
from probatum.ship.seen import row_hashes, seen_rows
from processes import ran

FRAME = load_wine(as_frame=True).frame.rename(columns={"target": "cultivar"})
FRAME["cultivar"] = [f"class_{code}" for code in FRAME["cultivar"]]

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

ready = make()
nothing = 3

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture(scope="module")
def shipped(small_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study.ship("encouraging-loss", tmp_path_factory.mktemp("audited") / "model")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NETWORK, encoding="utf-8")
    return path


def rows(n: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=draw), torch.randint(3, (n,), generator=draw)


def table(path: Path, n: int = 120) -> Path:
    x, y = rows(n)
    frame = pl.DataFrame({f"c{i}": x[:, i].numpy() for i in range(4)} | {"kind": [f"k{k}" for k in y.tolist()]})
    frame.with_columns(region=pl.Series([("north", "south")[i % 2] for i in range(n)])).write_csv(path)
    return path


def test_rows_seen_in_training_are_left_out(shipped: Path, small_study: Study) -> None:
    report = probatum.audit(shipped, FRAME, target="cultivar")
    data = small_study.context.data(0)
    assert report.rows == len(data.test)
    assert any("seen in training and are left out" in note for note in report.notes)
    assert report["shift"].verdict != "fault"
    kept = probatum.audit(shipped, FRAME, target="cultivar", keep_seen=True)
    assert kept.rows == len(FRAME)
    assert any("SEEN IN TRAINING" in note for note in kept.notes)


def test_a_folder_that_does_not_say_is_told_of(shipped: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shipped, tmp_path / "copy"))
    (copy / "seen.safetensors").unlink()
    write_manifest(copy, {})  # as of streamed data, which have no such file
    report = probatum.audit(copy, FRAME, target="cultivar")
    assert report.rows == len(FRAME)
    assert any("unknown" in note for note in report.notes)


def test_hashes_know_rows_by_their_values(shipped: Path, small_study: Study) -> None:
    data = small_study.context.data(0)
    assert seen_rows(shipped, data.train).all()
    assert seen_rows(shipped, data.valid).all()
    assert not seen_rows(shipped, data.test).any()
    assert row_hashes(data.test.x[:2]).tolist() == row_hashes(data.test.x[:2].clone()).tolist()
    assert row_hashes(data.test.x[:1], ("a",)).tolist() != row_hashes(data.test.x[:1], ("b",)).tolist()


def test_onnx_says_what_the_folder_says(shipped: Path) -> None:
    pytest.importorskip("onnxruntime", reason="asks the exported graph")
    first = probatum.audit(shipped, FRAME, target="cultivar", keep_seen=True)
    second = probatum.audit(shipped / "model.onnx", FRAME, target="cultivar", keep_seen=True)
    assert probatum.audit(shipped / "model.onnx", FRAME, target="cultivar").rows < first.rows
    assert second.rows == first.rows
    assert second.quality["accuracy"] == first.quality["accuracy"]
    assert second["calibration"].numbers["error"] == pytest.approx(first["calibration"].numbers["error"], abs=1e-5)


def test_own_networks_in_all_forms(network: Path, tmp_path: Path) -> None:
    x, y = rows()
    by_name = probatum.audit(f"{network}:ready", (x, y))
    by_maker = probatum.audit(f"{network}:make", (x, y))
    assert by_name.quality == by_maker.quality
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model.load_state_dict(_loaded(network).state_dict())
    assert probatum.audit(model, (x, y)).quality == by_name.quality
    torch.save(model, tmp_path / "net.pt")
    with pytest.raises(InputError, match="--trust"):
        probatum.audit(tmp_path / "net.pt", (x, y))
    assert probatum.audit(tmp_path / "net.pt", (x, y), trust=True).quality == by_name.quality
    probabilities = nn.Sequential(model, nn.Softmax(dim=1))
    assert probatum.audit(probabilities, (x, y)).quality == pytest.approx(by_name.quality, rel=1e-5)


def test_a_table_with_classes_groups_and_time(network: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv")
    report = probatum.audit(f"{network}:ready", path, target="kind", drop=["region"])
    assert report.rows == 120
    assert report["weak slices"].numbers["slices"] > 10
    with pytest.raises(InputError, match="holds no numbers; leave it out"):
        probatum.audit(f"{network}:ready", path, target="kind")
    with pytest.raises(InputError, match="group column 'area'"):
        probatum.audit(f"{network}:ready", path, target="kind", drop=["region"], groups=["area"])
    grouped = probatum.audit(f"{network}:ready", path, target="kind", drop=["region"], groups=["c0"])
    assert grouped["groups"].verdict != "not measurable"


def test_groups_of_a_shipped_model_may_be_columns_it_does_not_take(shipped: Path) -> None:
    frame = pl.from_pandas(FRAME).with_columns(site=pl.Series([("a", "b")[i % 2] for i in range(len(FRAME))]))
    report = probatum.audit(shipped, frame, target="cultivar", groups=["site"], time="alcohol", keep_seen=True)
    assert [row["group"] for row in report["groups"].table] in (["site = a", "site = b"], ["site = b", "site = a"])
    assert report["shift"].verdict == "fault"  # stronger wine is other wine, alcohol aside


def test_the_ordering_column_alone_is_no_shift_and_may_have_gaps(network: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=draw)
    frame = pl.DataFrame({f"c{i}": x[:, i].numpy() for i in range(4)})
    frame = frame.with_columns(
        kind=pl.Series([f"k{k}" for k in torch.randint(3, (300,), generator=draw).tolist()]),
        tick=pl.Series([None if i % 9 == 0 else f"t{i % 50}" for i in range(300)]),
    )
    options = {"target": "kind", "drop": ["tick"]}
    assert probatum.audit(f"{network}:ready", frame, time="c0", **options)["shift"].verdict == "pass"
    gaps = probatum.audit(f"{network}:ready", frame, time="tick", **options)["shift"]
    assert gaps.verdict == "pass"
    assert "34 rows without it are left out" in gaps.about
    frame = frame.with_columns(tick=pl.Series([f"k{i % 3}" for i in range(300)]))
    assert len(probatum.audit(f"{network}:ready", frame, groups=["tick"], **options)["groups"].table) == 3
    frame = frame.with_columns(tick=pl.Series([f"k{i % 50}" for i in range(300)]))
    with pytest.raises(InputError, match="more than 20 words"):
        probatum.audit(f"{network}:ready", frame, groups=["tick"], **options)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ("", "no model was given"),
        ("nowhere", "does not exist"),
        ("{net}", "say which network"),
        ("{net}:missing", "defines no 'missing'"),
        ("{net}:broken", "no weights here"),
        ("{net}:nothing", "fails"),
        ("{net}.txt", "does not exist"),
    ],
)
def test_what_is_no_model_is_refused(network: Path, model: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        probatum.audit(model.replace("{net}", str(network)), rows())


def test_what_does_not_fit_is_refused(network: Path, tmp_path: Path) -> None:
    x, y = rows()
    net = f"{network}:ready"
    with pytest.raises(InputError, match="does not take rows of shape"):
        probatum.audit(net, (x[:, :3], y))
    with pytest.raises(InputError, match="bring 10 or more"):
        probatum.audit(net, (x[:5], y[:5]))
    with pytest.raises(InputError, match="fit one to one"):
        probatum.audit(net, (x, y + 3))
    with pytest.raises(InputError, match="no limit 'patience'"):
        probatum.audit(net, (x, y), limits={"patience": 1})
    with pytest.raises(InputError, match="limit level is 2"):
        probatum.audit(net, (x, y), limits={"level": 2})
    with pytest.raises(InputError, match="not finite"):
        probatum.audit(nn.Sequential(nn.Linear(4, 3), _Nan()), (x, y))
    with pytest.raises(InputError, match="arrays of numbers"):
        probatum.audit(net, (x, np.array(["a", "b"])[y.numpy() % 2]))
    with pytest.raises(InputError, match="y holds values that are not finite"):
        probatum.audit(nn.Linear(4, 1), (x, torch.full((120,), float("nan"))))
    with pytest.raises(InputError, match="returns a tuple"):
        probatum.audit(nn.Sequential(nn.Linear(4, 3), _Pair()), (x, y))
    (tmp_path / "other.pt").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="cannot be loaded"):
        probatum.audit(tmp_path / "other.pt", (x, y), trust=True)
    torch.save({"weight": x}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="not a whole network"):
        probatum.audit(tmp_path / "state.pt", (x, y), trust=True)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="no ONNX file"):
        probatum.audit(tmp_path / "bad.onnx", (x, y))


def test_reference_rows_among_the_audited_are_left_out(network: Path) -> None:
    x, y = rows()
    report = probatum.audit(f"{network}:ready", (x, y), reference=(x[:50], y[:50]))
    assert report.rows == 70


def test_the_page_escapes_and_stands_alone(network: Path, tmp_path: Path) -> None:
    x, y = rows()
    report = probatum.audit(f"{network}:ready", (x, y))
    page = report.write(tmp_path / "out").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "http://www.w3.org/2000/svg" in page
    assert "src=" not in page
    assert "https://" not in page
    told = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert told["faults"] == list(report.faults)
    assert {finding["verdict"] for finding in told["findings"]} <= {"pass", "fault", "not measurable"}


def test_command_line(network: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "rows.csv")
    base = [sys.executable, "-m", "probatum", "audit", f"{network}:ready", "--data", str(path), "--target", "kind"]
    base += ["--drop", "region"]
    run = ran(*base, "--out", "out", "--strict", cwd=tmp_path)
    assert run.returncode == 1, run.stderr  # an untrained network knows nothing of its errors
    assert "a fault would be" in run.stdout
    assert (tmp_path / "out" / "audit.html").is_file()
    run = told(*base[3:], "--json", "--limit", "level=1e-9", cwd=tmp_path)
    assert json.loads(run.stdout)["limits"]["level"] == 1e-9
    run = told(*base[3:], "--limit", "level", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: --limit 'level'")


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x, None


class _Nan(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float("nan")


def _loaded(path: Path) -> nn.Module:
    import importlib.util

    spec = importlib.util.spec_from_file_location("audited_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ready
