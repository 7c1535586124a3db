"""A Ray cluster of two nodes: the same records as one process, whichever process or node is lost in the middle."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sloppy
from loosely import study_of
from probatum import catalogue
from probatum.bench.cluster import check_cluster
from probatum.bench.store import Store
from probatum.bench.stored import find_study, trials_of
from probatum.errors import InputError
from probatum.settings import Running
from processes import PATIENCE, ran, until

ray = pytest.importorskip("ray", reason="runs trials on Ray, which is not installed; pip install 'probatum[cluster]'")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")

Records = Callable[..., dict[str, str]]
SHORT: dict[str, Any] = {"seeds": 6, "epochs": 1, "timing": False, "references": False, "confirm": False}
SHORT["stack"] = "never"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose two nodes have one CPU each; this process is connected to it."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_register_timeout_seconds", f"{PATIENCE:.0f}")
        found = Cluster()
        try:
            add_node(found, include_dashboard=False)
            add_node(found)
            ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
            yield found
        finally:
            ray.shutdown()
            kinds = [kind for node in found.list_all_nodes() for kind in node.all_processes.values()]
            processes = [one.process for kind in kinds for one in kind]
            found.shutdown()
            for process in processes:
                process.wait(PATIENCE)
            gc.collect()  # what Ray leaves open is told of here, not in whatever test comes next


def add_node(nodes: Any, **settings: Any) -> Any:
    """A node more, with one CPU, once the cluster knows it."""
    node = nodes.add_node(wait=False, num_cpus=1, **settings)
    nodes.wait_for_nodes(PATIENCE)
    return node


class Starts:
    """Counts how often jobs are given out."""

    def __init__(self) -> None:
        self.count = 0

    def planned(self, jobs: list[Any], done: int) -> None:
        return

    def started(self, job: Any) -> None:
        self.count += 1

    def stepped(self, step: int, steps: int) -> None:
        return

    def ended(self, job: Any, trial: Any) -> None:
        return


def test_ray_finds_what_one_process_finds(nodes: Any, records: Records) -> None:
    arms = ["gradient-noise", "selu-snn+h-calibration(window=10, steps=5)"]
    one, many = (study_of("wine", arms, **SHORT, running=Running(on=on)).run() for on in (None, "ray"))
    assert records(one.trials) == records(many.trials)
    assert [t.key for t in one.trials] == [t.key for t in many.trials]
    assert [(v.arm, v.measure, v.word) for v in one.verdicts()] == [(v.arm, v.measure, v.word) for v in many.verdicts()]
    assert ray.is_initialized(), "a connection that was there stays"


def test_a_process_that_is_killed(nodes: Any, deadly: Callable[..., str], records: Records, tmp_path: Path) -> None:
    calm = study_of("iris", [deadly()], **SHORT, running=Running(apart=False)).run()
    starts = Starts()
    wild = study_of("iris", [deadly()], **SHORT, running=Running(on="ray", apart=False)).run(starts)
    assert len(list(tmp_path.glob("graves/death-*"))) == 1
    assert starts.count == 13
    assert records(calm.trials) == records(wild.trials)


def test_a_trial_that_always_kills_is_given_up(nodes: Any, deadly: Callable[..., str], tmp_path: Path) -> None:
    results = study_of("iris", [deadly(deaths=99)], **SHORT, running=Running(on="ray", apart=False)).run()
    assert len(list(tmp_path.glob("graves/death-*"))) == 3
    failed = [t for t in results.trials if t.status != "ok"]
    assert [t.record for t in failed] == [{"reason": "the worker died (WorkerCrashedError) three times"}]
    assert len(results.trials) == 12


def test_techniques_from_outside_have_processes_of_their_own_there(nodes: Any, tmp_path: Path) -> None:
    name = catalogue.add_file(sloppy.placed(tmp_path, "changes-the-dtype"))
    arms = ["gradient-noise", name]
    one, many = (study_of("iris", arms, **SHORT, running=Running(on=on)).run() for on in (None, "ray"))
    assert {t.key: (t.status, t.record) for t in one.trials} == {t.key: (t.status, t.record) for t in many.trials}
    assert {t.status for t in many.trials if t.arm == name} == {"failed"}
    assert {t.status for t in many.trials if t.arm != name} == {"ok"}


def test_a_node_that_is_lost(nodes: Any, deadly: Callable[..., str], records: Records, tmp_path: Path) -> None:
    arm = deadly(waits=True)  # no trial of the arm ends before the node is lost, however slowly it starts work
    doomed = add_node(nodes)
    graves = tmp_path / "graves"

    def remove_when_busy() -> None:
        try:
            until(lambda: (graves / f"node-{doomed.node_id}").exists() or over.is_set())
        finally:
            nodes.remove_node(doomed, allow_graceful=False)
            (graves / "go").touch()

    over = threading.Event()
    remover = threading.Thread(target=remove_when_busy)
    remover.start()
    starts = Starts()
    try:
        wild = study_of("iris", [arm], **SHORT, running=Running(on="ray", apart=False)).run(starts)
    finally:
        over.set()
        remover.join()
    assert (graves / f"node-{doomed.node_id}").exists(), "the lost node had work"
    assert starts.count > 12
    calm = study_of("iris", [arm], **SHORT, running=Running(apart=False)).run()
    assert records(calm.trials) == records(wild.trials)


def test_a_client_of_a_cluster_elsewhere(nodes: Any, records: Records, tmp_path: Path) -> None:
    from ray.util.client.server.server import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    door = serve("127.0.0.1", port)
    command = [
        sys.executable,
        "-m",
        "probatum",
        "try",
        "gradient-noise",
        "--data",
        "iris",
        "--seeds",
        "6",
        "--epochs",
        "1",
    ]
    command += ["--no-timing", "--no-references", "--no-confirm", "--stack", "never", "--on", f"ray://127.0.0.1:{port}"]
    try:
        run = ran(*command, "--store", "s.db", cwd=tmp_path)
    finally:
        door.grpc_server.stop(None)
    assert run.returncode == 0, run.stderr
    assert f"on ray://127.0.0.1:{port}" in " ".join(run.stdout.split())
    with Store(tmp_path / "s.db") as store:
        held = trials_of(store, find_study(store), "fit")
    assert records(held) == records(study_of("iris", ["gradient-noise"], **SHORT).run().trials)


def test_no_node_is_large_enough(nodes: Any) -> None:
    with pytest.raises(InputError, match="no node of the cluster has 3 CPUs"):
        study_of("iris", ["gradient-noise"], **SHORT, running=Running(on="ray", threads=3)).run()


@pytest.mark.parametrize("on", ["nonsense", "ray://", "ray://here", "http://here:1"])
def test_an_address_that_is_none(on: str) -> None:
    with pytest.raises(InputError, match="give ray://HOST:PORT"):
        study_of("iris", ["gradient-noise"], **SHORT, running=Running(on=on))


def test_nothing_answers() -> None:
    with pytest.raises(InputError, match="nothing answers there"):
        check_cluster("ray://127.0.0.1:1")


def test_workers_and_a_cluster_are_one_too_many() -> None:
    with pytest.raises(InputError, match="workers or on, not both"):
        study_of("iris", ["gradient-noise"], **SHORT, running=Running(on="ray", workers=2))


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"probatum\[cluster\]"):
        study_of("iris", ["gradient-noise"], **SHORT, running=Running(on="ray"))
