"""The catalogue's database: opened, made where the store is new, brought up from an older format, and checked."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from fletching_schemas.errors import StoreError, StoreUnwritable, StoreVersion
from fletching_server import disk, history, sums
from fletching_server import tables as t
from fletching_server.failpoints import CatalogueConnection

FORMAT_VERSION: Final = 3
_HISTORY_SINCE: Final = 3  # the format that first kept the past
WAYS_OUT: Final = "restore it from a backup, or rebuild it from the data files: `fletching doctor --rebuild-catalogue`"


def connect(path: Path, *, create: bool, now: float) -> sa.Engine:
    """Return the database at *path*; ``StoreError`` where it is damaged, or there is none and *create* is False."""
    url = sa.URL.create("sqlite", database=str(path))  # not as text: a folder's name may hold any character
    options = {"timeout": 30, "check_same_thread": False, "isolation_level": None, "factory": CatalogueConnection}
    engine = sa.create_engine(url, connect_args=options)
    sa.event.listen(engine, "connect", _prepare)
    # Else the driver begins with the first row that changes, and a table that was altered before stays so after a crash.
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.begin() as connection:
            _bring_up(connection, path, create=create, now=now)
    except (sa.exc.DatabaseError, sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite quotes broken names as they are
        engine.dispose()
        raise explained(error, f"cannot open the catalogue {path}") from error
    except StoreError:
        engine.dispose()
        raise
    return engine


def _prepare(connection: Any, _record: object) -> None:
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {setting}")
    sums.teach(connection)


def _bring_up(connection: sa.Connection, path: Path, *, create: bool, now: float) -> None:
    """Make the tables of a new catalogue, upgrade those of an older one, and check those of this format."""
    if not sa.inspect(connection).get_table_names():
        if not create:
            raise StoreError(
                f"the catalogue {path} is missing or empty, and there is data beside it; nothing was changed: {WAYS_OUT}, "
                "or use another folder"
            )
        t.metadata.create_all(connection)
        connection.execute(t.meta.insert().values(key="format_version", value=str(FORMAT_VERSION)))
        sums.begin(connection)
        return
    found = _version(connection)
    if found.isdecimal() and int(found) < FORMAT_VERSION and not sa.inspect(connection).has_table(t.sums.name):
        _upgrade(connection, int(found), now)
        sums.begin(connection)
    elif (not found.isdecimal() or int(found) <= FORMAT_VERSION) and (problems := sums.problems(connection)):
        raise StoreError(f"the catalogue {path} is damaged: {problems[0]}; nothing was changed: {WAYS_OUT}")


def _version(connection: sa.Connection) -> str:
    return connection.execute(sa.select(t.meta.c.value).where(t.meta.c.key == "format_version")).scalar() or ""


def explained(error: BaseException, doing: str = "the catalogue could not commit") -> BaseException:
    """Return what is told of *error*: one of SQLite's is the disk's fault, or the file's."""
    cause = getattr(error, "orig", error)
    if not isinstance(cause, (sqlite3.DatabaseError, UnicodeDecodeError)):
        return error
    if disk.refused(cause):
        return StoreUnwritable(f"{doing}: {cause}; check permissions and free room")
    return StoreError(f"{doing}: {cause}; run `fletching verify`; where the catalogue is damaged, {WAYS_OUT}")


def failed_sync(error: BaseException) -> bool:
    """Return whether SQLite could not bring to stable storage what it had written."""
    original = getattr(error, "orig", None)
    return getattr(original, "sqlite_errorcode", None) in {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}


def _upgrade(connection: sa.Connection, found: int, now: float) -> None:
    """Bring the tables of the older format *found* up to this one."""
    t.metadata.create_all(connection)
    for since, table, column in t.ADDED_COLUMNS:
        if found < since:
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))  # names of our own
    for since, statement in t.ADDED_FACTS:
        if found < since:
            connection.execute(sa.text(statement))
    if found < _HISTORY_SINCE:
        history.begin_all(connection, now)
    connection.execute(t.meta.update().where(t.meta.c.key == "format_version").values(value=str(FORMAT_VERSION)))


def check_version(connection: sa.Connection) -> None:
    """Raise ``StoreVersion`` for a store of a later release."""
    found = _version(connection)
    if found != str(FORMAT_VERSION):
        raise StoreVersion(
            f"the store has format {found}, this version reads format {FORMAT_VERSION}: "
            "open it with the release that wrote it, or use another folder"
        )
