"""What was changed in a store is named, left out and run again; what cannot be read is told in a line, and repaired."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from subprocess import PIPE

import pytest

from commands import told
from damaging import flipped, fresh, known_in, read, repaired
from loosely import study_of
from probatum.arenas.predict import arena
from probatum.bench import grouping, pretrained_start, speed
from probatum.bench.repair import repair
from probatum.bench.store import Store, Trial
from probatum.errors import InputError
from probatum.rooms.arena import Outcome, Work
from processes import at_once, started

FEW = {"seeds": 6, "steps": 20, "timing": False, "references": False, "confirm": False, "stack": "never"}
WORDS = (
    "gradient-noise",
    "--data",
    "iris",
    "--seeds",
    "6",
    "--steps",
    "20",
    "--no-timing",
    "--no-references",
    "--no-confirm",
    "--stack",
    "never",
)
OLD = """
CREATE TABLE meta (name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name));
CREATE TABLE studies ("key" TEXT NOT NULL, "plan" TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE trials ("key" TEXT NOT NULL, study TEXT NOT NULL, arm TEXT NOT NULL, seed BIGINT NOT NULL,
    kind TEXT NOT NULL, status TEXT NOT NULL, "plan" TEXT NOT NULL, record TEXT NOT NULL, timing TEXT NOT NULL,
    created TEXT NOT NULL, PRIMARY KEY ("key"));
CREATE INDEX ix_trials_study ON trials (study);
CREATE TABLE blobs ("key" TEXT NOT NULL, name TEXT NOT NULL, bytes BLOB NOT NULL, PRIMARY KEY ("key", name));
INSERT INTO meta VALUES ('schema', '1');
PRAGMA journal_mode = WAL;
"""
"""The tables as they were before there were checksums."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a small study that has run to its end."""
    path: Path = tmp_path_factory.mktemp("finished") / "store.sqlite"
    study = study_of("iris", ["gradient-noise"], store=path, **FEW)
    study.run()
    study.store.close()
    return path


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    return Path(shutil.copy(finished, tmp_path / "store.sqlite"))


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def make_old(path: Path) -> None:
    """The same store as an earlier version wrote it."""
    with closing(sqlite3.connect(path)) as connection:
        held = {
            "studies": connection.execute('SELECT "key", "plan", created FROM studies').fetchall(),
            "trials": connection.execute(
                'SELECT "key", study, arm, seed, kind, status, "plan", record, timing, created FROM trials'
            ).fetchall(),
            "blobs": connection.execute('SELECT "key", name, bytes FROM blobs').fetchall(),
        }
    fresh(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD)
        for table, rows in held.items():
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        connection.commit()


OTHER = "replace(replace(record, '\"accuracy\":0.', '\"accuracy\":7.'), '\"accuracy\":1.', '\"accuracy\":7.')"
DIGIT = f"UPDATE trials SET record = {OTHER} WHERE seed = 3 AND arm = 'baseline'"
CHANGES = {
    "a digit of an accuracy": DIGIT,
    "another arm": "UPDATE trials SET arm = 'baseline' WHERE arm = 'gradient-noise' AND seed = 2",
    "another seed": "UPDATE trials SET seed = 9 WHERE seed = 2 AND arm = 'baseline'",
    "a seed that is text": "UPDATE trials SET seed = 'two' WHERE seed = 2 AND arm = 'baseline'",
    "another status": "UPDATE trials SET status = 'failed' WHERE seed = 2 AND arm = 'baseline'",
    "another time": "UPDATE trials SET created = '2020' WHERE seed = 2 AND arm = 'baseline'",
    "another plan": "UPDATE trials SET \"plan\" = replace(\"plan\", '0.6', '0.7') WHERE seed = 2 AND arm = 'baseline'",
    "timing": "UPDATE trials SET timing = '{}' WHERE seed = 2 AND arm = 'baseline'",
    "JSON cut short": "UPDATE trials SET record = substr(record, 1, 50) WHERE seed = 2 AND arm = 'baseline'",
    "bytes that are no text": "UPDATE trials SET record = CAST(x'ff00ff' AS TEXT) WHERE seed = 2 AND arm = 'baseline'",
    "rows of another": "UPDATE blobs SET bytes = x'00' || bytes WHERE rowid = (SELECT max(rowid) FROM blobs WHERE name = 'rows')",
    "rows that are text": "UPDATE blobs SET bytes = 'rows' WHERE rowid = (SELECT max(rowid) FROM blobs WHERE name = 'rows')",
    "rows that are a number": "UPDATE blobs SET bytes = 1000000000000 WHERE rowid = (SELECT max(rowid) FROM blobs WHERE name = 'rows')",
    "rows that are gone": "DELETE FROM blobs WHERE rowid = (SELECT max(rowid) FROM blobs WHERE name = 'rows')",
    "another checksum": "UPDATE trials SET checksum = 'x' WHERE seed = 2 AND arm = 'baseline'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_trial_is_left_out_and_told_of(change: str, store: Path) -> None:
    known = known_in(store)
    execute(store, CHANGES[change])
    lines: list[str] = []
    with Store(store) as opened:
        opened.tell(lines.append)
        held = {key: opened.get(key) for key in known}
        assert all(trial in (None, known[key]) for key, trial in held.items())
        (lost,) = [key for key, trial in held.items() if trial is None]
        assert len(lines) == len(opened.damaged) == 1
        assert f"seed {known[lost].seed}" in lines[0] or "seed" in change
        assert opened.put_all([known[lost]]) == 1  # it is run again and replaced
        assert opened.get(lost) == known[lost]
        assert opened.put_all([known[lost]]) == 0
    assert known_in(store) == known


def test_a_changed_accuracy_from_the_commands(store: Path, tmp_path: Path) -> None:
    right = told("report", str(store)).stdout
    execute(store, DIGIT)
    run = told("report", str(store))
    assert run.returncode == 2
    assert "baseline, seed 3 (changed since it was written)" in run.stderr
    assert "lacks 1 trials" in run.stderr
    runs = told("runs", str(store), "--json")
    assert "baseline, seed 3" in runs.stderr
    assert json.loads(runs.stdout)[0]["done"] == 11
    again = told("try", *WORDS, "--store", str(store), "--report", "r.html", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "left out, and run again by the same `probatum try`: baseline, seed 3" in again.stdout.replace("\n", " ")
    assert "11 of 12 trials are in the store already" in again.stdout
    after = told("report", str(store))
    assert (after.stdout, after.stderr) == (right, "")


def test_a_changed_study_is_written_again(store: Path) -> None:
    with Store(store) as opened:
        (study,) = opened.studies()
    execute(store, "UPDATE studies SET \"plan\" = replace(\"plan\", 'iris', 'wine')")
    run = told("report", str(store))
    assert run.returncode == 2
    assert f"study {study.key[:8]} (changed" in run.stderr
    with Store(store) as opened:
        assert opened.studies() == []
        assert opened.put_study(study.key, study.plan)
        assert opened.studies()[0].plan == study.plan


def test_a_changed_blob_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as opened:
        opened.put_blob("k", "weights", b"12345")
    execute(path, "UPDATE blobs SET bytes = x'3132333436'")
    with Store(path) as opened:
        assert opened.get_blob("k", "weights") is None
        assert [damage.table for damage in opened.damaged] == ["blobs"]
        assert opened.put_blob("k", "weights", b"12345")
        assert opened.get_blob("k", "weights") == b"12345"


@pytest.mark.parametrize("held", [b"", b"\xff{", b"[1]", b'{"stack": 3}', b'{"other": true}'])
def test_a_choice_that_an_earlier_version_left_broken_is_made_anew(held: bytes, tmp_path: Path) -> None:
    path, lines = tmp_path / "s.sqlite", list[str]()
    right = json.dumps({"stack": True, "threads": 2}).encode()
    with Store(path) as opened:
        opened.put_blob("k", "stack a 6", held)
    execute(path, "UPDATE blobs SET checksum = NULL")
    with Store(path) as opened:
        opened.tell(lines.append)
        found = opened.settled("k", "stack a 6", lambda: right, grouping._read_choice)
        assert (found.stack, found.threads) == (True, 2)
        assert opened.get_blob("k", "stack a 6") == right
    assert len(lines) == 1
    assert "'stack a 6' of k (changed since it was written)" in lines[0]
    with Store(path) as opened:  # now it stands
        assert opened.settled("k", "stack a 6", lambda: held, grouping._read_choice) == found


def test_broken_weights_and_speed_settings_are_none() -> None:
    with pytest.raises(ValueError, match=r"."):
        pretrained_start._read_state(b"\x00" * 9)
    for held in (b"{}", b"[]", b'{"engine": {"wings": 2}, "speed": {}}', b'{"engine": {}, "speed": 3}'):
        with pytest.raises((ValueError, TypeError, KeyError)):
            speed._read_settings(held)


def test_a_study_goes_on_beside_a_broken_choice(tmp_path: Path) -> None:
    path, words = tmp_path / "s.sqlite", [*WORDS[:-2], "--store", "s.sqlite", "--report", "r.html"]
    assert told("try", *words, cwd=tmp_path).returncode == 0
    execute(
        path,
        "UPDATE blobs SET bytes = x'7b7b', checksum = NULL WHERE name LIKE 'stack%'",
        "DELETE FROM trials",
        "DELETE FROM blobs WHERE name = 'rows'",
    )
    run = told("try", *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "left out, and run again by the same `probatum try`: 'stack" in run.stdout.replace("\n", " ")
    assert len(rows_of(path)) == 12


def test_a_repair_that_finds_no_room(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(store, DIGIT)
    before = store.read_bytes()

    def full(*_: object) -> None:
        raise InputError("there is no room left")

    monkeypatch.setattr("probatum.bench.repair._fill", full)
    with pytest.raises(InputError, match=r"was not repaired and is left as it is: there is no room"):
        repair(store)
    assert store.read_bytes() == before
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def test_a_full_disk_is_no_trial_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, true = tmp_path / "s.sqlite", arena.trial

    def full(work: Work) -> Outcome:
        if work.seed == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")
        return true(work)

    monkeypatch.setattr(arena, "trial", full)
    study = study_of("iris", ["gradient-noise"], store=path, **FEW)
    with pytest.raises(InputError, match=r"no room left .*/tmp/x.* the same command goes on when there is"):
        study.run()
    study.store.close()
    monkeypatch.undo()
    assert len(rows_of(path)) == 6
    again = study_of("iris", ["gradient-noise"], store=path, **FEW)
    assert {trial.status for trial in again.run().trials} == {"ok"}
    again.store.close()


def test_what_another_has_replaced_meanwhile_stays(store: Path) -> None:
    known = known_in(store)
    execute(store, DIGIT)
    with Store(store) as one, Store(store) as other:
        (lost,) = [key for key in known if one.get(key) is None]
        assert other.get(lost) is None
        assert one.put(known[lost])
        assert not other.put(known[lost])
    assert known_in(store) == known


def test_rows_that_came_after_their_trial(tmp_path: Path) -> None:
    plain = Trial("k", "s", "a", 0, "fit", "ok", {}, {"measures": {}})
    with Store(tmp_path / "s.sqlite") as opened:
        assert opened.put(plain)
        assert not opened.put(Trial(**{**vars(plain), "rows": b"rows"}))
        assert opened.get("k") is not None
        assert not opened.damaged


def test_rows_whose_trial_is_gone_are_not_those_of_the_next(tmp_path: Path) -> None:
    trials = [Trial("k", "s", "a", 0, "fit", "ok", {}, {"measures": {}}, rows=rows) for rows in (b"rows", b"others")]
    with Store(tmp_path / "s.sqlite") as opened:
        assert opened.put(trials[0])
        execute(tmp_path / "s.sqlite", "DELETE FROM trials")
        assert opened.put(trials[1])
        assert opened.get("k") == trials[1]
        assert not opened.damaged
        assert not opened.put(trials[0])
        assert opened.get("k") == trials[1]


def test_half_characters_are_kept(tmp_path: Path) -> None:
    odd = Trial("k", "s", "a", 0, "fit", "failed", {}, {"reason": "no file \udcff.csv"})
    with Store(tmp_path / "s.sqlite") as opened:
        opened.put(odd)
        assert opened.get("k") == odd


def test_a_store_without_checksums_is_read_and_written(store: Path) -> None:
    known = known_in(store)
    make_old(store)
    runs = told("runs", str(store))
    assert "12 trials were written by an earlier version, without checksums: they cannot be checked" in runs.stderr
    assert "12/12" in runs.stdout
    with Store(store) as opened:
        assert {key: opened.get(key) for key in known} == known
        assert opened.unchecked == known.keys()
        assert opened.put(Trial("new", "s", "a", 0, "fit", "ok", {}, {"measures": {}}))
        assert opened.get("new") is not None
        assert opened.unchecked == known.keys()
    with closing(sqlite3.connect(store)) as connection:  # and the version that knows of none goes on with it
        connection.execute(
            'INSERT INTO trials ("key", study, arm, seed, kind, status, "plan", record, timing, created) '
            "SELECT 'other', study, arm, seed, kind, status, \"plan\", record, timing, created FROM trials LIMIT 1"
        )
        connection.commit()
        assert connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchall() == [("1",)]


OLD_CHANGES = ("another plan", "JSON cut short", "bytes that are no text", "rows that are text", "a seed that is text")


@pytest.mark.parametrize("change", OLD_CHANGES)
def test_what_breaks_a_trial_without_a_checksum_is_found(change: str, store: Path) -> None:
    known = known_in(store)
    make_old(store)
    execute(store, CHANGES[change])
    with Store(store) as opened:
        held = [opened.get(key) for key in known]
        assert held.count(None) == len(opened.damaged) == 1


def test_processes_that_bring_a_store_up_to_date_at_once(store: Path) -> None:
    known = known_in(store)
    make_old(store)
    code = (
        "import sys\n"
        "from probatum.bench.store import Store\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "store = Store(sys.argv[1])\n"
        "print(len(store.trials(store.studies()[0].key)))\n"
    )
    with ExitStack() as held:
        counts = at_once(
            {n: held.enter_context(started(sys.executable, "-c", code, store, stdin=PIPE)) for n in ("one", "two")}
        )
    assert set(counts.values()) == {12}
    assert known_in(store) == known


@pytest.mark.parametrize("flips", [1, 20])
def test_bytes_flipped_at_random(flips: int, finished: Path, tmp_path: Path) -> None:
    known, found = known_in(finished), Counter[str]()
    for seed in range(60 if flips == 1 else 12):
        copy = flipped(finished, tmp_path / "copy.sqlite", flips, 1000 + seed)
        found[read(copy, known)] += 1
        found[repaired(copy, known)] += 1
    assert found["told"] + found["refused"] > 0
    assert found["all"] + found["some"] > 0


def test_files_that_are_cut_off(finished: Path, tmp_path: Path) -> None:
    known, content = known_in(finished), finished.read_bytes()
    copy = tmp_path / "copy.sqlite"
    for length in (1, 7, 15, 16, 50, 99, 100, 511, 512, 4095, 4096, *range(5000, len(content), len(content) // 20)):
        fresh(copy)
        copy.write_bytes(content[:length])
        with pytest.raises(InputError, match="corrupted or not a Probatum store") as caught:
            Store(copy)
        assert "\n" not in str(caught.value)
        if length >= 16:
            assert "cut off" in str(caught.value)
        assert copy.read_bytes() == content[:length]
        assert repaired(copy, known) in ("some", "nothing")


def test_an_empty_file_is_a_new_store_and_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.touch()
    for command in ("runs", "report"):
        run = told(command, str(path))
        assert run.returncode == 2
        assert "is empty (0 bytes)" in run.stderr
    lines: list[str] = []
    with Store(path) as opened:
        opened.tell(lines.append)
        opened.put_study("s", {})
    assert lines == [f"{path} was an empty file; a new store is made in it"]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_a_device_is_no_store(device: str) -> None:
    with pytest.raises(InputError, match="is a device or a pipe"):
        Store(device)


def break_page(path: Path, rootpage_of: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, (rootpage_of,)).fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : (page - 1) * 4096 + 8] = b"\x5a" * 8
    path.write_bytes(content)


@pytest.mark.parametrize("table", ["trials", "sqlite_autoindex_trials_1", "ix_trials_study"])
def test_repair_of_a_malformed_file(table: str, store: Path) -> None:
    known, right = known_in(store), told("report", str(store)).stdout
    break_page(store, table)
    damaged = store.read_bytes()
    run = told("report", str(store))
    assert run.stdout == right or (run.returncode == 2 and run.stderr)
    run = told("runs", "--repair", str(store))
    assert run.returncode == 0, run.stderr
    assert "kept: 12 trials of 1 studies" in run.stdout
    assert "lost: nothing" in run.stdout
    assert Path(f"{store}.damaged").read_bytes() == damaged
    assert known_in(store) == known
    assert told("report", str(store)).stdout == right
    assert "needs no repair: 12 trials" in told("runs", "--repair", str(store)).stdout


def test_a_malformed_file_stops_a_study_before_it_trains(store: Path, tmp_path: Path) -> None:
    break_page(store, "trials")
    run = told("try", *WORDS, "--store", str(store), "--report", "r.html", cwd=tmp_path)
    assert run.returncode == 2
    assert f"`probatum runs --repair {store}` makes a new file" in run.stderr
    assert run.stderr.count("\n") == 1


def test_repair_says_what_is_lost_and_keeps_every_damaged_file(store: Path) -> None:
    known = known_in(store)
    execute(store, DIGIT, "UPDATE trials SET record = '{' WHERE seed = 1 AND arm = 'gradient-noise'")
    done = repair(store)
    assert done.lost == ("baseline seed 3", "gradient-noise seed 1")
    assert dict(done.arms) == {"baseline": 5, "gradient-noise": 5}
    assert "runs again what is lost" in done.lines(str(store))[-1]
    assert len(known_in(store)) == 10
    execute(
        store,
        "DELETE FROM trials",
        "INSERT INTO trials SELECT key, 's', 'a', 0, 'fit', 'ok', plan, '{}', '{}', created, 'x' FROM studies",
    )
    again = json.loads(told("runs", "--repair", str(store), "--json").stdout)
    assert again["damaged"] == f"{store}.damaged.2"
    assert Path(f"{store}.damaged").is_file()
    assert len(known) == 12


def test_repair_reads_the_journal(store: Path) -> None:
    copy = store.with_name("copy.sqlite")
    with Store(store) as opened:
        opened.put(Trial("late", "s", "a", 0, "fit", "ok", {}, {"measures": {}}))
        for ending in ("", "-wal"):
            shutil.copy(f"{store}{ending}", f"{copy}{ending}")
    content = bytearray(copy.read_bytes())
    content[:16] = b"x" * 16
    copy.write_bytes(content)
    repair(copy)
    assert "late" in {row[0] for row in rows_of(copy)}


def rows_of(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute('SELECT "key" FROM trials').fetchall()


def test_repair_leaves_alone_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "birds.sqlite"
    execute(path, "CREATE TABLE birds (name)", "INSERT INTO birds VALUES ('wren')")
    before = path.read_bytes()
    run = told("runs", "--repair", str(path))
    assert run.returncode == 2
    assert "nothing of a Probatum store" in run.stderr
    assert path.read_bytes() == before
    assert told("runs", "--repair", "postgresql://nobody@host/db").returncode == 2
    assert told("runs", "--repair", str(tmp_path / "gone.sqlite")).returncode == 2


def test_repair_of_a_store_in_use(store: Path) -> None:
    with closing(sqlite3.connect(store, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="is in use"):
            repair(store)


def test_a_lock_that_is_held_for_long(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probatum.bench.store.WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(store, isolation_level=None)) as writer, Store(store) as opened:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="another process has held it"):
            opened.put(Trial("k", "s", "a", 0, "fit", "ok", {}, {}))


def test_a_full_disk_keeps_what_has_ended(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    study = study_of("iris", ["gradient-noise"], store=path, **FEW)
    with study.store._writer.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {finished.stat().st_size * 6 // 10 // 4096}")
    with pytest.raises(InputError, match=r"no room left .* the same command goes on from there when there is"):
        study.run()
    study.store.close()
    held = len(rows_of(path))
    assert 0 < held < 12
    again = study_of("iris", ["gradient-noise"], store=path, **FEW)
    assert len(again.run().trials) == 12
    again.store.close()
    assert len(rows_of(path)) == 12
