"""The store keeps committed trials whole, whatever kills or crowds the writers, and says why a file cannot be used."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

from probatum.bench.store import Store, Trial
from probatum.errors import InputError
from processes import at_once, started


def trial(key: str = "k1", **changes: object) -> Trial:
    values = {"key": key, "study": "s", "arm": "baseline", "seed": 0, "kind": "fit", "status": "ok"}
    values |= {"plan": {"a": [1, 2]}, "record": {"accuracy": 0.1 + 0.2}, "timing": {"seconds": 1.5}}
    return Trial(**(values | changes))


def test_what_is_put_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    first = trial(record={"accuracy": 0.1 + 0.2, "name": "µ", "none": None})
    with Store(path) as store:
        assert store.get("k1") is None
        assert not store.has("k1")
        assert store.put(first)
        assert store.put_study("s", {"arms": ["baseline"]})
        assert store.put_blob("k1", "weights", b"\x00\xff")
    with Store(f"sqlite:///{path}") as store:
        assert store.has("k1")
        assert store.get("k1") == first
        assert [(study.key, study.plan) for study in store.studies()] == [("s", {"arms": ["baseline"]})]
        assert store.get_blob("k1", "weights") == b"\x00\xff"
        assert store.get_blob("k1", "curve") is None


def test_the_first_trial_of_a_key_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "runs.db") as store:
        assert store.put(trial())
        assert not store.put(trial(record={"accuracy": 0.9}))
        assert store.get("k1") == trial(created=store.get("k1").created)
        assert store.put_study("s", {"a": 1})
        assert not store.put_study("s", {"a": 2})
        assert store.put_blob("k1", "w", b"1")
        assert not store.put_blob("k1", "w", b"2")
        assert store.get_blob("k1", "w") == b"1"


def test_trials_of_one_study_in_order(tmp_path: Path) -> None:
    with Store(tmp_path / "runs.db") as store:
        for arm, seed, study in (("b", 10, "s"), ("b", 9, "s"), ("a", 11, "s"), ("a", 1, "other")):
            store.put(trial(f"{study}{arm}{seed}", arm=arm, seed=seed, study=study))
        assert [(t.arm, t.seed) for t in store.trials("s")] == [("a", 11), ("b", 9), ("b", 10)]
        assert store.trials("none") == []


def test_memory_store_works() -> None:
    with Store("sqlite://") as store:
        store.put(trial())
        assert store.has("k1")


def test_absent_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist") as caught:
        Store(tmp_path / "nowhere" / "runs.db")
    assert "\n" not in str(caught.value)


def test_folder_as_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        Store(tmp_path)


def test_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere, so say what the system would say to anybody else
        monkeypatch.setattr(os, "access", lambda place, mode: False)
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="not writable"):
        Store(tmp_path / "runs.db")
    tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make files")
def test_folder_in_which_no_file_can_be_made() -> None:
    with pytest.raises(InputError, match="/proc"):
        Store("/proc/runs.db")


@pytest.mark.parametrize("content", [b"date,value\n1,2\n" * 100, b"SQLite format 3\x00" + b"\x07" * 5000])
def test_file_that_is_not_sqlite(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match="corrupted or not a Probatum store") as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("statement", ["CREATE TABLE birds (name)", "CREATE TABLE meta (a)"])
def test_someone_elses_database_is_left_alone(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "birds.db"
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a Probatum store"):
        Store(path)
    assert path.read_bytes() == before


def test_damaged_page_is_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with Store(path) as store:
        for number in range(200):
            store.put(trial(f"k{number}", record={"text": "x" * 500}))
    content = bytearray(path.read_bytes())
    content[12 * 4096 :] = b"\x5a" * (len(content) - 12 * 4096)
    path.write_bytes(content)
    with pytest.raises(InputError, match="corrupted"), Store(path) as store:
        store.trials("s")


def test_another_schema_version(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.close()
    with pytest.raises(InputError, match="schema version 99"):
        Store(path)


@pytest.mark.parametrize("url", ["nonsense://x", "mysql://localhost/x", "://", "postgresql+nodriver://localhost/x"])
def test_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(InputError):
        Store(url)


def test_full_disk_is_one_line_and_what_is_there_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "runs.db") as store:
        with store._writer.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 20")
        with pytest.raises(InputError, match=r"no room left .*full.*the same command goes on .* when there is"):
            store.put_blob("k", "weights", b"0" * 1_000_000)
        assert store.get_blob("k", "weights") is None
        assert store.put(trial())


def test_store_survives_kill_while_inserting(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    code = (
        "import hashlib, os, sys\n"
        "from probatum.bench.store import Store, Trial\n"
        "store = Store(sys.argv[1])\n"
        "for number in range(100000):\n"
        "    text = os.urandom(8000).hex()\n"
        "    key = hashlib.sha256(text.encode()).hexdigest()\n"
        "    store.put(Trial(key, 's', 'a', number, 'fit', 'ok', {}, {'text': text}))\n"
        "    print(key, flush=True)\n"
    )
    acknowledged: set[str] = set()
    for rows in (0, 1, 7, 20, 33):
        with started(sys.executable, "-c", code, path) as process:
            assert process.stdout is not None
            acknowledged |= {process.stdout.readline().strip() for _ in range(rows)}
            process.send_signal(signal.SIGKILL)
            # the last line may be cut by the kill; a whole line means a committed row
            acknowledged |= {
                line.strip() for line in process.stdout.read().splitlines(keepends=True) if len(line) == 65
            }
        with Store(path) as store:
            rows_kept = {row.key: row for row in store.trials("s")}
        assert acknowledged <= rows_kept.keys()
        for key, row in rows_kept.items():
            assert hashlib.sha256(row.record["text"].encode()).hexdigest() == key
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
    assert len(acknowledged) >= 61


def test_processes_that_write_the_same_keys_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    code = (
        "import sys\n"
        "from probatum.bench.store import Store, Trial\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "store = Store(sys.argv[1])\n"
        "new = [store.put(Trial(str(k), 's', 'a', k, 'fit', 'ok', {}, {'by': sys.argv[2]})) for k in range(150)]\n"
        "print(sum(new))\n"
    )
    names = ("one", "two", "three")
    with ExitStack() as held:  # let them open the absent file as nearly together as can be
        written = at_once(
            {name: held.enter_context(started(sys.executable, "-c", code, path, name, stdin=PIPE)) for name in names}
        )
    assert sum(written.values()) == 150
    with Store(path) as store:
        trials = store.trials("s")
    assert [row.seed for row in trials] == list(range(150))
    for name, count in written.items():
        assert sum(row.record["by"] == name for row in trials) == count
