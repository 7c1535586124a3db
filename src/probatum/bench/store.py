"""Where trials are kept: an SQLite file or a PostgreSQL database, one transaction for all that ends together."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa

from probatum.bench.records import (
    CHANGED,
    REMARK,
    ROWS,
    Damage,
    StudyRecord,
    Trial,
    blob_of,
    blob_row,
    study_of,
    study_row,
    trial_of,
    trial_row,
)
from probatum.bench.store_words import WAIT_SECONDS, Broken, broken, check_path, one_line, plain
from probatum.bench.tables import (
    BLOBS,
    INSERTS,
    META,
    METADATA,
    SCHEMA_VERSION,
    STUDIES,
    TRIALS,
    add_checksums,
    create,
    ignore_insert,
    unchecked_tables,
)
from probatum.errors import InputError

__all__ = ["REMARK", "ROWS", "SCHEMA_VERSION", "Store", "StudyRecord", "Trial"]

PSYCOPG = "postgresql+psycopg"
CONNECT_SECONDS = 10
UNREADABLE = "its page in the file cannot be read"

Kept = TypeVar("Kept")


class Store:
    """Trials, studies and blobs in a database; safe against kill -9 and against several processes writing at once.

    The first row written under a key stays; putting the key again changes nothing. A row that is not what was written, by
    its checksum, is told of (`tell`), counts as absent, and is replaced when its key is put again. Use it as a context
    manager, or call `close`.

    Args:
        url_or_path: path of an SQLite file, made if absent, or a URL: ``postgresql://user:password@host/database``.
        forgiving: where pages of the file are damaged, leave out what they held instead of refusing the file; for reading.

    Attributes:
        damaged: what was left out so far, and why.
        unchecked: keys of the trials read so far that have no checksum.

    Raises:
        InputError: if the folder is absent or not writable, the file is not a Probatum store, is corrupted, or was
            written by another version of the schema, there is no room, or the database cannot be reached, or is lost
            later on.
    """

    def __init__(self, url_or_path: str | os.PathLike[str], *, forgiving: bool = False) -> None:
        url = _url(url_or_path)
        self._name = url.render_as_string(hide_password=True)
        self.forgiving = forgiving
        self.damaged: list[Damage] = []
        self.unchecked: set[str] = set()
        self._unread: dict[tuple[str, str], bytes] = {}
        self._said: list[str] = []
        self._say: Callable[[str], None] = self._said.append
        arguments: dict[str, Any] = {}
        if url.drivername == PSYCOPG and "connect_timeout" not in url.query:
            arguments["connect_timeout"] = CONNECT_SECONDS
        if url.get_backend_name() == "sqlite":
            arguments["timeout"] = WAIT_SECONDS
            if url.database and url.database != ":memory:":
                self._name = url.database
                self._said += filter(None, [check_path(Path(url.database))])
        try:
            self._engine = sa.create_engine(url, connect_args=arguments, pool_pre_ping=url.drivername == PSYCOPG)
        except ImportError as error:
            remedy = "pip install 'probatum[cluster]'" if url.drivername == PSYCOPG else "install it"
            raise InputError(f"{self._name}: the database driver {error.name!r} is missing; {remedy}") from error
        except sa.exc.ArgumentError as error:
            raise InputError(f"{self._name}: {error}; give a file path or an SQLAlchemy URL") from error
        if self._engine.dialect.name not in INSERTS:
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

    def tell(self, say: Callable[[str], None]) -> None:
        """Say a line of every record that is left out, those found already and those found later."""
        self._say = say
        while self._said:
            say(self._said.pop(0))

    def put(self, trial: Trial) -> bool:
        """Write the trial in one transaction unless its key is there already; say whether it was written."""
        return self.put_all([trial]) == 1

    def put_all(self, trials: Sequence[Trial]) -> int:
        """Write these trials in one transaction, those whose keys are there already left out; say how many."""
        if not trials:
            return 0
        rows = [trial_row(trial) for trial in trials]
        rows.sort(key=lambda row: row["key"])  # two writers that lock rows in one order cannot wait for each other
        held = sorted((trial.key, trial.rows) for trial in trials if trial.rows)
        blobs = [blob_row(key, ROWS, packed) for key, packed in held]
        doubted = {found.key for found in self.damaged if found.table == TRIALS.name} if self.damaged else set()
        with self.writing() as connection:
            for row in rows:
                if row["key"] in doubted:
                    self._clear_trial(connection, row["key"])
            if blobs:
                connection.execute(_ROWS_ALONE, [{"alone": blob["key"]} for blob in blobs])
            written = ignore_insert(connection, TRIALS, rows)
            if blobs:
                ignore_insert(connection, BLOBS, blobs)
            return written

    def get(self, key: str) -> Trial | None:
        """Return the trial with this key, or None, also where it is not what was written."""
        try:
            rows = self._rows(_ONE_TRIAL, key=key)
        except Broken:
            if not self.forgiving:
                raise
            return self._believed(Damage(TRIALS.name, key, f"trial {key[:8]}", UNREADABLE))
        return self._trial(rows[0], key) if rows else None

    def has(self, key: str) -> bool:
        """Say whether there is a trial with this key."""
        return bool(self._rows(sa.select(TRIALS.c.key).where(TRIALS.c.key == key)))

    def trials(self, study: str) -> list[Trial]:
        """Return the trials that were put under this study, ordered by arm, seed and key."""
        order = (TRIALS.c.arm, TRIALS.c.seed, TRIALS.c.key)
        rows = self._rows(_with_rows().where(TRIALS.c.study == study).order_by(*order))
        return [trial for row in rows if (trial := self._trial(row)) is not None]

    def put_study(self, key: str, plan: Mapping[str, Any]) -> bool:
        """Write the study's plan unless its key is there already; say whether it was written."""
        with self.writing() as connection:
            for row in connection.execute(sa.select(STUDIES).where(STUDIES.c.key == key)).mappings():
                if self._believed(study_of({**row})) is None:
                    connection.execute(sa.delete(STUDIES).where(STUDIES.c.key == key))
            return ignore_insert(connection, STUDIES, [study_row(key, plan)]) == 1

    def studies(self) -> list[StudyRecord]:
        """Return all studies, oldest first."""
        query = sa.select(STUDIES)
        try:
            rows = self._rows(query)
        except Broken:
            if not self.forgiving:
                raise
            rows = []
            for key in [str(row["key"]) for row in self._rows(sa.select(STUDIES.c.key))]:  # an index holds them, too
                try:
                    rows += self._rows(query.where(STUDIES.c.key == key))
                except Broken:
                    self._believed(Damage(STUDIES.name, key, f"study {key[:8]}", UNREADABLE))
        found = [study for row in rows if (study := self._believed(study_of(row))) is not None]
        return sorted(found, key=lambda study: (study.created, study.key))

    def put_blob(self, key: str, name: str, data: bytes) -> bool:
        """Write bytes (weights, curves) that belong to the trial `key`, unless there already; say whether written."""
        with self.writing() as connection:
            if any(found.key == key and found.table == BLOBS.name for found in self.damaged):
                for row in connection.execute(_blob(key, name)).mappings():
                    if isinstance(blob_of({**row}), Damage) or row["bytes"] == self._unread.get((key, name)):
                        connection.execute(sa.delete(BLOBS).where(BLOBS.c.key == key, BLOBS.c.name == name))
            return ignore_insert(connection, BLOBS, [blob_row(key, name, data)]) == 1

    def get_blob(self, key: str, name: str) -> bytes | None:
        """Return the bytes, or None, also where they are not what was written."""
        rows = self._rows(_blob(key, name))
        return self._believed(blob_of(rows[0])) if rows else None

    def settled(self, key: str, name: str, make: Callable[[], bytes], read: Callable[[bytes], Kept]) -> Kept:
        """What a blob says: made and kept where there is none, or where what it holds says nothing; the first one counts.

        Args:
            make: the bytes to be kept.
            read: what bytes say; ValueError, TypeError, KeyError or AttributeError where it is nothing.
        """
        held = self.get_blob(key, name)
        if held is not None:
            try:
                return read(held)
            except (ValueError, TypeError, KeyError, AttributeError):  # of an earlier version, without a checksum
                self._believed(Damage(BLOBS.name, key, f"{name!r} of {key[:8]}", CHANGED))
                self._unread[key, name] = held
        made = make()
        self.put_blob(key, name, made)
        kept = self.get_blob(key, name)  # another process may have been first
        return read(made if kept is None else kept)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction for rows as they are, their checksums with them."""
        with self._plainly(), self._writer.begin() as connection:
            yield connection

    def _trial(self, row: Mapping[str, Any], key: str | None = None) -> Trial | None:
        if row["checksum"] is None:
            self.unchecked.add(row["key"])
        return self._believed(trial_of(row, key))

    def _believed(self, found: Kept | Damage) -> Kept | None:
        """What was found, or None where it is damage, which is told of once."""
        if not isinstance(found, Damage):
            return found
        if found not in self.damaged:
            first = found.why == UNREADABLE and all(one.why != UNREADABLE for one in self.damaged)
            self.damaged.append(found)
            if first:
                self._say(str(broken(self._name, "some pages cannot be read, and what they held is left out")))
            elif found.why != UNREADABLE:
                self._say(f"{self._name}: left out, and run again by the same `probatum try`: {found.words()}")
        return None

    def _clear_trial(self, connection: sa.Connection, key: str) -> None:
        """Delete a trial that was found damaged, unless another process has written it again meanwhile."""
        rows = connection.execute(_ONE_TRIAL, {"key": key}).mappings()
        if any(isinstance(trial_of({**row}, key), Damage) for row in rows):
            connection.execute(sa.delete(TRIALS).where(TRIALS.c.key == key))
            connection.execute(sa.delete(BLOBS).where(BLOBS.c.key == key, BLOBS.c.name == ROWS))

    def _rows(self, query: sa.Select[Any], **values: Any) -> list[dict[str, Any]]:
        with self._plainly(), self._engine.connect() as connection:
            found = connection.execute(query, values)
            names = tuple(found.keys())
            return [dict(zip(names, row, strict=True)) for row in found]

    def _open(self) -> None:
        ours = set(METADATA.tables)
        with self._plainly():
            try:
                with self._engine.connect() as connection:
                    present = set(sa.inspect(connection).get_table_names())
            except sa.exc.OperationalError as error:
                if self._engine.dialect.name == "sqlite":
                    raise
                raise InputError(f"{self._name} cannot be opened: {one_line(error.orig)}") from error
            if self._engine.dialect.name != "sqlite":
                present &= ours  # a server's database may hold other tables; a file is ours alone
            if present and not ours <= present:
                raise broken(self._name, "it lacks tables")
            if not present:
                if self._engine.dialect.name == "sqlite":
                    self._use_wal()
                with self._writer.begin() as connection:
                    create(connection)
            version = self._version()
            if version != str(SCHEMA_VERSION):
                raise InputError(
                    f"{self._name} has schema version {version}, this Probatum reads version {SCHEMA_VERSION}; "
                    "use the Probatum that wrote it, or give another path"
                )
            with self._engine.connect() as connection:
                without = unchecked_tables(connection)
            if without is None:
                raise broken(self._name, "its tables have other columns")
            if without:
                with self._writer.begin() as connection:
                    add_checksums(connection)

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
            rows = self._rows(sa.select(META.c.value).where(META.c.name == "schema"))
        except sa.exc.ProgrammingError as error:  # a table `meta` of somebody else's
            raise InputError(f"{self._name} is corrupted or not a Probatum store; give another path") from error
        return str(rows[0]["value"])[:40] if rows else "unknown"

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say in one line that the file is broken, full, held or closed to us, or the server gone."""
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, UnicodeDecodeError) as error:
            message = plain(self._name, error)
            if message is None:
                raise
            raise message from error


def _url(url_or_path: str | os.PathLike[str]) -> sa.URL:
    text = os.fspath(url_or_path)
    if "://" not in text:
        return sa.URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
        return url.set(drivername=PSYCOPG) if url.drivername in ("postgresql", "postgres") else url
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InputError(f"{text!r} is not a database URL; give a file path or an SQLAlchemy URL") from error


def _sqlite_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_sqlite_begin` says, also for CREATE TABLE
    connection.execute("PRAGMA synchronous=FULL")
    # damaged text comes back as what it is, so that its checksum is found wrong, and not as an error of the whole query
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")


def _sqlite_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _with_rows() -> sa.Select[Any]:
    """Trials, each beside its rows where they are kept."""
    own = sa.and_(BLOBS.c.key == TRIALS.c.key, BLOBS.c.name == ROWS)
    packed = (_as_they_are().label("rows"), BLOBS.c.checksum.label("rows_checksum"))
    return sa.select(TRIALS, *packed).outerjoin(BLOBS, own)


def _blob(key: str, name: str) -> sa.Select[Any]:
    columns = (BLOBS.c.key, BLOBS.c.name, _as_they_are().label("bytes"), BLOBS.c.checksum)
    return sa.select(*columns).where(BLOBS.c.key == key, BLOBS.c.name == name)


def _as_they_are() -> sa.ColumnElement[Any]:
    """Bytes without SQLAlchemy's making them bytes, which of a damaged column would make as many zeros as it says."""
    return sa.type_coerce(BLOBS.c.bytes, sa.types.NullType())


_ROWS_ALONE = sa.delete(BLOBS).where(
    BLOBS.c.key == sa.bindparam("alone"),
    BLOBS.c.name == ROWS,
    ~sa.exists(sa.select(TRIALS.c.key).where(TRIALS.c.key == sa.bindparam("alone"))),
)
"""Rows whose trial is gone, as damage leaves them: those of the trial that is run again need not be the same to the last bit."""
_ONE_TRIAL = _with_rows().where(TRIALS.c.key == sa.bindparam("key"))
"""Made once: to make it takes longer than to run it."""
