"""Whether the catalogue still says what was written: a sum over the rows of each table, kept by triggers.

SQLite has checksums of its log only. A flipped bit in a table is another day, another name, or a row that is not found any
more, and nobody would notice. So ``sums`` has, for each table, how many rows there are and the sum of their fingerprints;
triggers keep it inside the transaction of each change, whoever makes it. Tools that do not know ``fingerprint`` can read
the tables, and cannot change them.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
import xxhash

from fletching_server import tables as t

_MASK: Final = (1 << 48) - 1  # a sum of two stays an integer of SQLite's
_COUNTED: Final = [table for table in t.metadata.sorted_tables if table is not t.sums]
_EVENTS: Final = {"insert": (("new", "+"),), "delete": (("old", "-"),), "update": (("old", "-"), ("new", "+"))}


def fingerprint(*values: object) -> int:
    """Return a number that any other row hardly ever has."""
    return int(xxhash.xxh3_64_intdigest(repr(values).encode(errors="surrogatepass"))) & _MASK


def teach(connection: Any) -> None:
    """Let the statements of an sqlite3 *connection* call ``fingerprint``, those in triggers too."""
    connection.create_function("fingerprint", -1, fingerprint, deterministic=True)
    connection.execute("PRAGMA trusted_schema=ON")


def begin(connection: sa.Connection) -> None:
    """Sum up the tables as they are, and let triggers go on from there."""
    connection.execute(t.sums.delete())
    for table in _COUNTED:
        for event, steps in _EVENTS.items():
            connection.execute(sa.text(f"DROP TRIGGER IF EXISTS {table.name}_{event}"))
            connection.execute(sa.text(_trigger(table, event, steps)))
    for name, (rows, total) in _present(connection).items():
        connection.execute(t.sums.insert().values(name=name, rows=rows, total=total))


def _trigger(table: sa.Table, event: str, steps: tuple[tuple[str, str], ...]) -> str:
    """Return the statement that makes a trigger; all names in it are our own."""
    rows = "".join(f" {sign} 1" for _, sign in steps)
    prints = "".join(f" {sign} fingerprint({_columns(table, row + '.')})" for row, sign in steps)
    change = f"UPDATE sums SET rows = rows{rows}, total = (total{prints}) & {_MASK} WHERE name = '{table.name}'"  # noqa: S608
    return f"CREATE TRIGGER {table.name}_{event} AFTER {event} ON {table.name} BEGIN {change}; END"


def _columns(table: sa.Table, prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{column.name}"' for column in table.columns)


def _present(connection: sa.Connection) -> dict[str, tuple[int, int]]:
    """Return, for each table and for the statements that made them, how many rows there are, and their sum."""
    found = {table.name: _counted(connection, f"SELECT {_columns(table)} FROM {table.name} NOT INDEXED") for table in _COUNTED}  # noqa: S608
    made = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    return found | {"sqlite_master": _counted(connection, made)}


def _counted(connection: sa.Connection, statement: str) -> tuple[int, int]:
    driver: Any = connection.connection.driver_connection  # a third of the time that rows of SQLAlchemy take
    prints = [fingerprint(*row) for row in driver.execute(statement)]
    return len(prints), sum(prints) & _MASK


def problems(connection: sa.Connection) -> list[str]:
    """Return what is not as it was written, one sentence each: pages, indexes, rows. An empty list is the good answer."""
    answers = connection.execute(sa.text("PRAGMA integrity_check")).scalars().all()
    if found := [str(answer) for answer in answers if answer != "ok"]:
        return found
    written = {row.name: (row.rows, row.total) for row in connection.execute(sa.select(t.sums))}
    return [
        f"table {name} has {count[0]} rows, and they are not those that were written"
        for name, count in _present(connection).items()
        if count != written.get(name)
    ]
