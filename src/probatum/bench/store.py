"""Where trials are kept: an SQLite file or a PostgreSQL database, one transaction for all that ends together."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateTable

from probatum.errors import InputError

SCHEMA_VERSION = 1
WAIT_SECONDS = 60
"""How long a writer waits for another process that is writing."""
PSYCOPG = "postgresql+psycopg"
CONNECT_SECONDS = 10
CREATING = 5_271_009
"""Number of the PostgreSQL lock under which the tables are made."""
NO_PRIVILEGE = "42501"
"""PostgreSQL's code of "insufficient privilege"."""

_METADATA = sa.MetaData()
_META = sa.Table(
    "meta", _METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
_STUDIES = sa.Table(
    "studies",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
_TRIALS = sa.Table(
    "trials",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("study", sa.Text, nullable=False, index=True),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("timing", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
)
_BLOBS = sa.Table(
    "blobs",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


ROWS = "rows"
"""Name of the blob that holds a trial's test rows."""
REMARK = "remark"
"""Key, in what is stored of a trial's timing, of a sentence about how it was run."""


@dataclass(frozen=True)
class Trial:
    """One stored trial.

    Attributes:
        key: content hash of the trial's plan.
        study: key of the study that ran it.
        arm: name of the arm.
        seed: the paired seed.
        kind: what sort of trial it is, e.g. ``"fit"`` or ``"confirm"``.
        status: ok, failed or not applicable.
        plan: everything that decides the record; JSON values.
        record: what came out, the same whenever the plan is run again; JSON values.
        timing: what may differ from run to run; JSON values.
        created: UTC time, ISO 8601.
        rows: what is kept of its test rows (`probatum.bench.packed_rows`); b"" = nothing.
    """

    key: str
    study: str
    arm: str
    seed: int
    kind: str
    status: str
    plan: Mapping[str, Any]
    record: Mapping[str, Any]
    timing: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=_now)
    rows: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class StudyRecord:
    """One stored study: its key, its frozen plan (JSON values) and when it was created (UTC, ISO 8601)."""

    key: str
    plan: Mapping[str, Any]
    created: str


class Store:
    """Trials, studies and blobs in a database; safe against kill -9 and against several processes writing at once.

    The first row written under a key stays; putting the key again changes nothing. Use it as a context manager, or
    call `close`.

    Args:
        url_or_path: path of an SQLite file, made if absent, or a URL: ``postgresql://user:password@host/database``.

    Raises:
        InputError: if the folder is absent or not writable, the file is not a Probatum store, is corrupted, or was
            written by another version of the schema, or the database cannot be reached, or is lost later on.
    """

    def __init__(self, url_or_path: str | os.PathLike[str]) -> None:
        url = _url(url_or_path)
        self._name = url.render_as_string(hide_password=True)
        arguments: dict[str, Any] = {}
        if url.drivername == PSYCOPG and "connect_timeout" not in url.query:
            arguments["connect_timeout"] = CONNECT_SECONDS
        if url.get_backend_name() == "sqlite":
            arguments["timeout"] = WAIT_SECONDS
            if url.database and url.database != ":memory:":
                self._name = url.database
                _check_path(Path(url.database))
        try:
            self._engine = sa.create_engine(url, connect_args=arguments, pool_pre_ping=url.drivername == PSYCOPG)
        except ImportError as error:
            remedy = "pip install 'probatum[cluster]'" if url.drivername == PSYCOPG else "install it"
            raise InputError(f"{self._name}: the database driver {error.name!r} is missing; {remedy}") from error
        except sa.exc.ArgumentError as error:
            raise InputError(f"{self._name}: {error}; give a file path or an SQLAlchemy URL") from error
        if self._engine.dialect.name not in _INSERTS:
            raise InputError(f"{self._name}: {self._engine.dialect.name} is not supported; use SQLite or PostgreSQL")
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _sqlite_connect)
            sa.event.listen(self._engine, "begin", _sqlite_begin)
        # a writer takes SQLite's lock at once: one that starts by reading could not wait for another writer later
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The file or the URL, without its password."""
        return self._name

    def close(self) -> None:
        """Close all connections; the store cannot be used afterwards."""
        self._engine.dispose()

    def put(self, trial: Trial) -> bool:
        """Write the trial in one transaction unless its key is there already; say whether it was written."""
        return self.put_all([trial]) == 1

    def put_all(self, trials: Sequence[Trial]) -> int:
        """Write these trials in one transaction, those whose keys are there already left out; say how many."""
        if not trials:
            return 0
        rows = [_row(trial) for trial in trials]
        rows.sort(key=lambda row: row["key"])  # two writers that lock rows in one order cannot wait for each other
        held = sorted((trial.key, trial.rows) for trial in trials if trial.rows)
        blobs = [{"key": key, "name": ROWS, "bytes": packed} for key, packed in held]
        with self._plainly(), self._writer.begin() as connection:
            written = _ignore_insert(connection, _TRIALS, rows)
            if blobs:
                _ignore_insert(connection, _BLOBS, blobs)
            return written

    def get(self, key: str) -> Trial | None:
        """Return the trial with this key, or None."""
        rows = self._rows(_with_rows().where(_TRIALS.c.key == key))
        return _trial(rows[0]) if rows else None

    def has(self, key: str) -> bool:
        """Say whether there is a trial with this key."""
        return bool(self._rows(sa.select(_TRIALS.c.key).where(_TRIALS.c.key == key)))

    def trials(self, study: str) -> list[Trial]:
        """Return the trials that were put under this study, ordered by arm, seed and key."""
        order = (_TRIALS.c.arm, _TRIALS.c.seed, _TRIALS.c.key)
        return [_trial(row) for row in self._rows(_with_rows().where(_TRIALS.c.study == study).order_by(*order))]

    def put_study(self, key: str, plan: Mapping[str, Any]) -> bool:
        """Write the study's plan unless its key is there already; say whether it was written."""
        return self._insert(_STUDIES, {"key": key, "plan": _dump(plan), "created": _now()})

    def studies(self) -> list[StudyRecord]:
        """Return all studies, oldest first."""
        rows = self._rows(sa.select(_STUDIES).order_by(_STUDIES.c.created, _STUDIES.c.key))
        return [StudyRecord(row["key"], json.loads(row["plan"]), row["created"]) for row in rows]

    def put_blob(self, key: str, name: str, data: bytes) -> bool:
        """Write bytes (weights, curves) that belong to the trial `key`, unless there already; say whether written."""
        return self._insert(_BLOBS, {"key": key, "name": name, "bytes": data})

    def get_blob(self, key: str, name: str) -> bytes | None:
        """Return the bytes, or None."""
        rows = self._rows(sa.select(_BLOBS.c.bytes).where(_BLOBS.c.key == key, _BLOBS.c.name == name))
        return bytes(rows[0]["bytes"]) if rows else None

    def _insert(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        with self._plainly(), self._writer.begin() as connection:
            return _ignore_insert(connection, table, [row]) == 1

    def _rows(self, query: sa.Select[Any]) -> list[sa.RowMapping]:
        with self._plainly(), self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def _open(self) -> None:
        with self._plainly():
            try:
                with self._engine.connect() as connection:
                    present = set(sa.inspect(connection).get_table_names())
            except sa.exc.OperationalError as error:
                raise InputError(f"{self._name} cannot be opened: {_line(error)}") from error
            ours = set(_METADATA.tables)
            if self._engine.dialect.name != "sqlite":
                present &= ours  # a server's database may hold other tables; a file is ours alone
            if present and not ours <= present:
                raise InputError(f"{self._name} is corrupted or not a Probatum store; give another path")
            if not present:
                self._create()
            version = self._version()
        if version != str(SCHEMA_VERSION):
            raise InputError(
                f"{self._name} has schema version {version}, this Probatum reads version {SCHEMA_VERSION}; "
                "use the Probatum that wrote it, or give another path"
            )

    def _create(self) -> None:
        if self._engine.dialect.name == "sqlite":
            self._use_wal()
        with self._writer.begin() as connection:
            if self._engine.dialect.name == "postgresql":  # there IF NOT EXISTS does not keep two creators apart
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATING)))
            for table in _METADATA.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
            _ignore_insert(connection, _META, [{"name": "schema", "value": str(SCHEMA_VERSION)}])

    def _use_wal(self) -> None:
        """Set the journal mode, which stays with the file; SQLite may refuse at once while another process opens it."""
        connection = self._engine.raw_connection()
        try:
            for wait in (*[0.05] * 100, None):
                try:
                    connection.cursor().execute("PRAGMA journal_mode=WAL")
                    return
                except sqlite3.OperationalError as error:
                    if wait is None or "locked" not in str(error):
                        raise
                    time.sleep(wait)
        finally:
            connection.close()

    def _version(self) -> str:
        try:
            rows = self._rows(sa.select(_META.c.value).where(_META.c.name == "schema"))
        except (sa.exc.OperationalError, sa.exc.ProgrammingError) as error:  # a table `meta` of somebody else's
            raise InputError(f"{self._name} is corrupted or not a Probatum store; give another path") from error
        return rows[0]["value"] if rows else "unknown"

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say in one line that the file is broken, the server gone or closed to us; a full disk and the like pass."""
        try:
            yield
        except sa.exc.DatabaseError as error:
            if error.connection_invalidated:
                message = (
                    f"{self._name}: the connection is lost ({_line(error)}); the same command goes on where it was"
                )
            elif type(error) is sa.exc.DatabaseError:
                message = f"{self._name} is corrupted or not a Probatum store ({error.orig}); give another path"
            elif getattr(error.orig, "sqlstate", None) == NO_PRIVILEGE:
                message = f"{self._name}: {_line(error)}; the user must own the database, or be granted what is missing"
            else:
                raise
            raise InputError(message) from error


_INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _ignore_insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose keys are not there yet, in one statement for all; say how many."""
    statement = _INSERTS[connection.dialect.name](table).on_conflict_do_nothing()
    # without being asked, drivers do not all say how many rows an INSERT has written
    return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount


def _url(url_or_path: str | os.PathLike[str]) -> sa.URL:
    text = os.fspath(url_or_path)
    if "://" not in text:
        return sa.URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
        return url.set(drivername=PSYCOPG) if url.drivername in ("postgresql", "postgres") else url
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InputError(f"{text!r} is not a database URL; give a file path or an SQLAlchemy URL") from error


def _line(error: sa.exc.DBAPIError) -> str:
    """What the driver says, in one line."""
    return " ".join(str(error.orig).split())


def _check_path(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; make it, or give another path")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a file")
    # SQLite writes its journal beside the file, so the folder must be writable too
    for place in (folder, path):
        if place.exists() and not os.access(place, os.R_OK | os.W_OK):
            raise InputError(f"{place} is not writable; change its permissions, or give another path")


def _sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_sqlite_begin` says, also for CREATE TABLE
    connection.execute("PRAGMA synchronous=FULL")


def _sqlite_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _row(trial: Trial) -> dict[str, Any]:
    """A trial as a row of the table."""
    texts = {"plan": _dump(trial.plan), "record": _dump(trial.record), "timing": _dump(trial.timing)}
    return {**{name: value for name, value in vars(trial).items() if name != "rows"}, **texts}


def _with_rows() -> sa.Select[Any]:
    """Trials, each beside its rows where they are kept."""
    own = sa.and_(_BLOBS.c.key == _TRIALS.c.key, _BLOBS.c.name == ROWS)
    return sa.select(_TRIALS, _BLOBS.c.bytes.label("rows")).outerjoin(_BLOBS, own)


def _trial(row: sa.RowMapping) -> Trial:
    return Trial(
        **{
            **row,
            "rows": bytes(row["rows"] or b""),
            "plan": json.loads(row["plan"]),
            "record": json.loads(row["record"]),
            "timing": json.loads(row["timing"]),
        }
    )
