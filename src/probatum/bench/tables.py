"""The store's tables, and how they are made, or brought up to date, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateTable

SCHEMA_VERSION = 1
"""Checksums came later, in a column that an earlier Probatum neither reads nor writes: either one uses the other's stores."""
CREATING = 5_271_009
"""Number of the PostgreSQL lock under which the tables are made."""
METADATA = sa.MetaData()


def _checksum() -> sa.Column[str]:
    """NULL in rows that a Probatum without checksums wrote."""
    return sa.Column("checksum", sa.Text, nullable=True)


META = sa.Table(
    "meta", METADATA, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
STUDIES = sa.Table(
    "studies",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    _checksum(),
)
TRIALS = sa.Table(
    "trials",
    METADATA,
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
    _checksum(),
)
BLOBS = sa.Table(
    "blobs",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
    _checksum(),
)
CHECKED = (STUDIES, TRIALS, BLOBS)

INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""Databases that are supported, and how each inserts."""


def ignore_insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose keys are not there yet, in one statement for all; say how many."""
    statement = INSERTS[connection.dialect.name](table).on_conflict_do_nothing()
    # without being asked, drivers do not all say how many rows an INSERT has written
    return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount


def create(connection: sa.Connection) -> None:
    """Make what is missing of the tables, whoever else does the same at once."""
    _alone(connection)
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
    ignore_insert(connection, META, [{"name": "schema", "value": str(SCHEMA_VERSION)}])


def unchecked_tables(connection: sa.Connection) -> list[sa.Table] | None:
    """The tables that have no column of checksums yet; None where tables have other columns than ours."""
    inspector, found = sa.inspect(connection), []
    for table in CHECKED:
        ours = {column.name for column in table.columns}
        there = {column["name"] for column in inspector.get_columns(table.name)}
        if there == ours - {"checksum"}:
            found.append(table)
        elif not ours <= there:
            return None
    return found


def add_checksums(connection: sa.Connection) -> None:
    """Give the tables of an earlier version their column of checksums; whoever comes second finds it there."""
    _alone(connection)
    for table in unchecked_tables(connection) or ():
        connection.execute(sa.DDL(f"ALTER TABLE {table.name} ADD COLUMN checksum TEXT"))


def _alone(connection: sa.Connection) -> None:
    """On SQLite the transaction is the only one that writes; PostgreSQL's IF NOT EXISTS does not keep two apart."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATING)))
