"""The answers that the call cache keeps: one Arrow file each, and a small SQLite database that says which is whose.

<store>/calls/calls.sqlite   key, function, arguments, version, when fetched, digest of the file
<store>/calls/files/         the answers, Arrow IPC with zstd

All of it can be fetched again, so nothing is synced: an answer may be lost, but a torn or altered one is never served. The
database is made with the first answer; one that cannot be read is set aside, and the cache begins anew.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa
import structlog

from fletching_schemas.errors import StoreError
from fletching_server import disk
from fletching_server.failpoints import Purpose, Removal

FORMAT_VERSION: Final = 1

log = structlog.get_logger(__name__)

_metadata: Final = sa.MetaData()
_answers: Final = sa.Table(
    "answers",
    _metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("function", sa.String, nullable=False),
    sa.Column("arguments", sa.String, nullable=False),  # as JSON, for people who look
    sa.Column("version", sa.String, nullable=False),
    sa.Column("fetched_at", sa.Float, nullable=False),  # seconds since 1970
    sa.Column("file", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("used", sa.Integer, nullable=False),  # a running number: who was used last has the highest
)


@dataclass(frozen=True)
class Stored:
    """One kept answer: what was asked, and where its bytes are."""

    key: str
    source: str
    function: str
    arguments: str
    version: str
    fetched_at: float
    file: str = ""
    digest: str = ""
    bytes: int = 0


_STORED: Final = [_answers.c[name] for name in Stored.__dataclass_fields__]


class Answers:
    """The kept answers of one store, at most *most_bytes* of them: those that were used longest ago leave first."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = threading.Lock()  # one writer at a time, and the opening
        self._database: sa.Engine | None = None
        self._closed = False
        self._count = itertools.count(1)
        self._used: dict[str, int] = {}  # uses since the last write: a hit shall not wait for the disk

    @property
    def _path(self) -> Path:
        return self._folder / "calls.sqlite"

    def find(self, key: str) -> tuple[Stored, pa.Table] | None:
        """Return the answer under *key*, its bytes verified; a damaged one is dropped, and counts as none."""
        while (stored := self._row(key)) is not None:
            table = self._read(stored)
            if table is not None:
                self._used[key] = next(self._count)
                return stored, table
            self._drop(stored)  # or it has just been replaced: then there is another row
        return None

    def _row(self, key: str) -> Stored | None:
        if (database := self._opened(create=False)) is None:
            return None
        with _explained(), database.connect() as connection:
            row = connection.execute(sa.select(*_STORED).where(_answers.c.key == key)).one_or_none()
        return None if row is None else Stored(*row)

    def _read(self, stored: Stored) -> pa.Table | None:
        try:
            data = pa.py_buffer((self._folder / "files" / stored.file).read_bytes())
        except OSError:
            return None
        return pa.ipc.open_file(data).read_all() if disk.digest(data) == stored.digest else None

    def _drop(self, stored: Stored) -> None:
        with self._lock, self._writing() as connection:
            gone = sa.delete(_answers).where(_answers.c.key == stored.key, _answers.c.file == stored.file)
            dropped = connection.execute(gone).rowcount
        if dropped:
            log.warning("a kept answer is damaged or missing; it will be fetched again", function=stored.function)
            disk.let_go(self._folder / "files" / stored.file, Removal.FORGET)

    def put(self, asked: Stored, table: pa.Table) -> bool:
        """Keep *table* in place of what was kept under the key; False where it alone is larger than all may be."""
        data = _encoded(table)
        if data.size > self._most_bytes or self._closed:
            return False
        if self._opened(create=True) is None:
            return False
        name = f"{asked.key}-{uuid.uuid4().hex[:8]}.arrow"
        path = self._folder / "files" / name
        disk.publish(path, data, sync=False, purpose=Purpose.ANSWER)
        values = {item: getattr(asked, item) for item in ("key", "source", "function", "arguments", "version", "fetched_at")}
        place = {"file": name, "digest": disk.digest(data), "bytes": data.size, "used": next(self._count)}
        with self._lock, self._writing() as connection:
            old = connection.execute(sa.select(_answers.c.file).where(_answers.c.key == asked.key)).scalars().all()
            connection.execute(sa.delete(_answers).where(_answers.c.key == asked.key))
            connection.execute(_answers.insert().values(**values, **place))
            leaving = [*old, *self._evict(connection)]
        for file in leaving:
            disk.let_go(self._folder / "files" / file, Removal.FORGET)
        return True

    def _evict(self, connection: sa.Connection) -> list[str]:
        """Take out of the list what was used longest ago until the rest fits; the caller removes the files."""
        self._flush(connection)
        total = connection.execute(sa.select(sa.func.sum(_answers.c.bytes))).scalar() or 0
        leaving = []
        for key, file, size in connection.execute(
            sa.select(_answers.c.key, _answers.c.file, _answers.c.bytes).order_by(_answers.c.used)
        ).all():
            if total <= self._most_bytes:
                break
            connection.execute(sa.delete(_answers).where(_answers.c.key == key))
            leaving.append(file)
            total -= size
        return leaving

    def _flush(self, connection: sa.Connection) -> None:
        used, self._used = self._used, {}
        if used:
            moved = sa.update(_answers).where(_answers.c.key == sa.bindparam("of")).values(used=sa.bindparam("at"))
            connection.execute(moved, [{"of": key, "at": number} for key, number in list(used.items())])

    def facts(self) -> dict[str, int]:
        """Return how many answers are kept, and their bytes on disk."""
        if (database := self._opened(create=False)) is None:
            return {"call_cache_answers": 0, "call_cache_bytes": 0}
        with _explained(), database.connect() as connection:
            counted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_answers.c.bytes), 0)).select_from(_answers)
            answers, size = connection.execute(counted).one()
        return {"call_cache_answers": answers, "call_cache_bytes": size}

    def problems(self) -> list[str]:
        """Return what is wrong with the kept answers, one sentence each; nothing is changed."""
        if (database := self._opened(create=False)) is None:
            return []
        with _explained(), database.connect() as connection:
            answers = connection.execute(sa.text("PRAGMA quick_check")).scalars().all()
            stored = [Stored(*row) for row in connection.execute(sa.select(*_STORED)).all()]
        found = [f"call cache: {answer}" for answer in answers if answer != "ok"]
        # Read again from the database what looks damaged: it may have been replaced meanwhile.
        damaged = [each for each in stored if self._read(each) is None and self._row(each.key) == each]
        return found + [f"call cache: the answer of {it.function} in {it.file} is missing or not as written" for it in damaged]

    def close(self) -> None:
        """Write down which answers were used last, and close the database."""
        with self._lock:
            self._closed = True
            if self._database is None:
                return
            try:
                with self._writing() as connection:
                    self._flush(connection)
            except StoreError as error:
                log.warning("which answers were used last is not known any more", error=str(error))
            self._database.dispose()

    # The database

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if self._database is None:
            raise StoreError("the call cache is not open")
        with _explained(), self._database.begin() as connection:
            yield connection

    def _opened(self, *, create: bool) -> sa.Engine | None:
        """Return the database; None where there is none yet and *create* is False, or the cache is closed."""
        if self._database is not None:
            return self._database
        with self._lock:
            if self._database is None and not self._closed and (create or self._path.exists()):
                disk.make_folder(self._folder / "files")
                self._database = self._open_or_begin_anew()
        return self._database

    def _open_or_begin_anew(self) -> sa.Engine:
        with _explained():
            try:
                return self._open()
            except sa.exc.DatabaseError as error:
                if isinstance(error, sa.exc.OperationalError):  # no room, no permission: not the file's fault
                    raise
                log.warning("the call cache cannot be read; it is set aside, and begins anew", error=str(error.orig))
            aside = disk.set_aside(self._path, self._folder / "set-aside")
            for rest in ("-wal", "-shm"):
                disk.remove(self._path.with_name(self._path.name + rest))
            log.info("set aside", path=str(aside))
            return self._open()

    def _open(self) -> sa.Engine:
        database = _connect(self._path)
        try:
            with database.begin() as connection:
                _check(connection)
                _metadata.create_all(connection)
                connection.execute(sa.text(f"PRAGMA user_version={FORMAT_VERSION}"))
                kept = set(connection.execute(sa.select(_answers.c.file)).scalars())
                last = connection.execute(sa.select(sa.func.max(_answers.c.used))).scalar() or 0
        except BaseException:
            database.dispose()
            raise
        self._count = itertools.count(last + 1)
        for path in (self._folder / "files").iterdir():  # left by a process that died between file and database
            if path.name not in kept:
                disk.let_go(path, Removal.FORGET)
        return database


def _connect(path: Path) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    database = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    def prepare(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    sa.event.listen(database, "connect", prepare)
    return database


def _check(connection: sa.Connection) -> None:
    """Raise ``DatabaseError`` for a database that is damaged or of another version: all in it can be fetched again."""
    answers = connection.execute(sa.text("PRAGMA quick_check")).scalars().all()
    version = connection.execute(sa.text("PRAGMA user_version")).scalar()
    if answers != ["ok"] or version not in {0, FORMAT_VERSION}:
        why = ValueError(f"format {version}, {'; '.join(map(str, answers))[:200]}")
        raise sa.exc.DatabaseError("PRAGMA quick_check", None, why)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"the call cache cannot be used: {getattr(error, 'orig', error)}; check permissions and room") from error


def _encoded(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()
