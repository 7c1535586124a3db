"""The store on a real PostgreSQL server: what comes back, who races whom, and what is said when it cannot be used."""

from __future__ import annotations

import json
import math
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import sqlalchemy as sa

from commands import told
from loosely import study_of
from probatum.bench.store import Store, Trial
from probatum.bench.stored import find_study, results_of, trials_of
from probatum.errors import InputError
from probatum.settings import Running
from processes import PATIENCE, at_once, ran, started

psycopg = pytest.importorskip("psycopg", reason="the driver is not installed; pip install 'probatum[cluster]'")

Records = Callable[..., dict[str, str]]
SHORT: dict[str, Any] = {"seeds": 6, "epochs": 1, "timing": False, "references": False, "confirm": False}
SHORT["stack"] = "never"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def owner() -> str | None:
    """Who runs the server: PostgreSQL refuses to be run by root. None = the one who runs the tests."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a server's maintenance database, up to the host; the server is this session's own."""
    folder = programs()
    if folder is None:
        pytest.skip("initdb is not on this machine; on Debian: apt-get install postgresql")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # not under pytest's folder, which another user may not enter; short, for the socket's path
    home = Path(tempfile.mkdtemp(prefix="pg-"))
    user = owner()
    run = {"user": user, "cwd": home, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    data, log = str(home / "data"), str(home / "log")
    control = [folder / "pg_ctl", "-D", data, "-w", "-t", f"{PATIENCE:.0f}"]
    try:
        if user is not None:
            shutil.chown(home, user)
        subprocess.run([folder / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"], **run)
        subprocess.run([*control, "-l", log, "-o", options, "start"], **run)
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **{**run, "check": False})
        shutil.rmtree(home, ignore_errors=True)


def execute(url: str, *statements: str) -> None:
    """Run statements as the server's superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def url(server: str) -> str:
    """A new, empty database."""
    name = f"d{secrets.token_hex(4)}"
    execute(f"{server}/postgres", f"CREATE DATABASE {name}")
    return f"{server}/{name}"


def trial(key: str = "k1", **changes: object) -> Trial:
    values = {"key": key, "study": "s", "arm": "baseline", "seed": 0, "kind": "fit", "status": "ok"}
    values |= {"plan": {"a": [1, 2]}, "record": {"accuracy": 0.1 + 0.2}, "timing": {"seconds": 1.5}}
    return Trial(**(values | changes))  # type: ignore[arg-type]


def test_what_is_put_comes_back(url: str) -> None:
    odd = {"zero": "a\x00b", "nan": math.nan, "inf": -math.inf, "text": "µ 試 \U0001f600", "none": None, "x": 0.1 + 0.2}
    blob = secrets.token_bytes(1000) * 20_000
    with Store(url) as store:
        assert store.put(trial(record=odd))
        assert not store.put(trial(record={}))
        assert store.put_all([trial("k3"), trial(), trial("k2", seed=2**40)]) == 2
        assert store.put_study("s", {"note": "\x00"})
        assert store.put_blob("k1", "weights", blob)
        assert not store.put_blob("k1", "weights", b"")
    with Store(url) as store:
        held = store.get("k1")
        assert held is not None
        assert math.isnan(held.record["nan"])
        assert {**held.record, "nan": 0} == {**odd, "nan": 0}
        assert [t.key for t in store.trials("s")] == ["k1", "k3", "k2"]
        assert store.get("k2").seed == 2**40  # type: ignore[union-attr]
        assert [study.plan for study in store.studies()] == [{"note": "\x00"}]
        assert store.get_blob("k1", "weights") == blob
        assert store.get_blob("k1", "none") is None


def test_all_or_nothing_is_written(url: str) -> None:
    with Store(url) as store:
        with pytest.raises(sa.exc.DataError):
            store.put_all([trial("a"), trial("b", seed=2**70)])
        assert not store.has("a")
        assert store.put_all([trial("a"), trial("b")]) == 2


def test_processes_that_race(url: str) -> None:
    code = (
        "import sys\n"
        "from probatum.bench.store import Store, Trial\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "store, order = Store(sys.argv[1]), range(120) if sys.argv[2] != 'two' else range(119, -1, -1)\n"
        "trials = [Trial(str(k), 's', 'a', k, 'fit', 'ok', {}, {'by': sys.argv[2]}) for k in order]\n"
        "print(sum(store.put_all(trials[i : i + 12]) for i in range(0, 120, 12)))\n"
    )
    names = ("one", "two", "three")
    with ExitStack() as held:  # they make the tables, and write the same keys, as nearly together as can be
        writers = {
            name: held.enter_context(started(sys.executable, "-c", code, url, name, stdin=PIPE)) for name in names
        }
        written = at_once(writers)
    assert sum(written.values()) == 120
    with Store(url) as store:
        trials = store.trials("s")
    assert [t.seed for t in trials] == list(range(120))
    assert {name: sum(t.record["by"] == name for t in trials) for name in names} == written


def test_two_studies_at_once_and_the_same_answer(url: str, records: Records, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from loosely import study_of\n"
        f"study = study_of('iris', ['gradient-noise', 'encouraging-loss'], store=sys.argv[1], **{SHORT!r})\n"
        "print(study.run().answer())\n"
    )
    command = [sys.executable, "-c", code, url]
    with started(*command) as one, started(*command) as other:
        answers = [process.communicate()[0] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0]
    file = study_of("iris", ["gradient-noise", "encouraging-loss"], store=tmp_path / "store.sqlite", **SHORT)
    workers = study_of("iris", ["gradient-noise", "encouraging-loss"], **SHORT, running=Running(workers=2))
    with Store(url) as store:
        assert len(store.studies()) == 1
        found = find_study(store)
        held = results_of(store, found)
        assert records(trials_of(store, found, "fit")) == records(file.run().trials) == records(workers.run().trials)
    assert (
        {line.strip() for line in answers} == {held.answer()} == {file.results.answer()} == {workers.results.answer()}
    )
    words = [{(v.arm, v.measure, v.word, str(v.mean)) for v in r.verdicts()} for r in (held, file.results)]
    assert words[0] == words[1]


def test_the_command_line(url: str, tmp_path: Path) -> None:
    secret = url.replace("postgres@", "postgres:sesame@")

    def probatum(*words: str) -> subprocess.CompletedProcess[str]:
        own = (sys.executable, "-m", "probatum")
        run = ran(*own, *words, cwd=tmp_path) if words[0] == "try" else told(*words, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "sesame" not in run.stdout + run.stderr
        return run

    probatum(
        "try", "gradient-noise", "--data", "iris", "--epochs", "1", "--seeds", "6", "--no-timing", "--store", secret
    )
    runs = json.loads(probatum("runs", secret, "--json").stdout)
    assert len(runs) == 1
    assert runs[0]["done"] == runs[0]["total"] > 12
    assert runs[0]["answer"] in " ".join(probatum("report", secret, "--to", "report.html").stdout.split())
    assert (tmp_path / "report.html").is_file()
    assert "the very weights" in probatum("ship", secret, "--arm", "baseline", "--to", "model").stderr


def test_a_connection_that_was_cut_is_made_again(url: str) -> None:
    with Store(url) as store:
        store.put(trial("a"))
        execute(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert store.put(trial("b"))
        with store._engine.connect() as held:
            here = held.execute(sa.text("SELECT pg_backend_pid()")).scalar()
            execute(url, f"SELECT pg_terminate_backend({here})")
            with pytest.raises(InputError, match="the connection is lost"), store._plainly():
                held.execute(sa.text("SELECT 1"))
        assert store.has("a")


def test_someone_elses_tables_are_left_alone(url: str) -> None:
    execute(url, "CREATE TABLE birds (name text)")
    Store(url).close()  # beside others' tables
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM birds").fetchone() == (0,)
    with Store(url) as store:
        store.put(trial())


def test_a_database_of_someone_elses(url: str) -> None:
    execute(url, "CREATE TABLE meta (a text)")
    with pytest.raises(InputError, match="not a Probatum store"):
        Store(url)


def test_another_schema_version(url: str) -> None:
    Store(url).close()
    execute(url, "UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(InputError, match="schema version 99"):
        Store(url)


def test_a_user_who_may_not_write(url: str) -> None:
    name = f"guest{secrets.token_hex(3)}"
    execute(url, f"CREATE ROLE {name} LOGIN", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(InputError, match=r"permission denied .* must own the database") as caught:
        Store(url.replace("postgres@", f"{name}@"))
    assert "\n" not in str(caught.value)


def test_a_database_that_is_not_there(url: str) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        Store(f"{url}x".replace("postgres@", "postgres:sesame@"))
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"cannot be opened: .*refused"):
        Store("postgresql://nobody:sesame@127.0.0.1:1/none")


def test_the_driver_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"'psycopg' is missing; pip install 'probatum\[cluster\]'"):
        Store("postgresql://nobody@127.0.0.1:1/none")
