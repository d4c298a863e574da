"""What is imported: files, members of zips, tables of databases, with what identifies each."""

from __future__ import annotations

import os
import sqlite3
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from fletching_schemas.errors import InvalidRequest

Format = Literal["csv", "parquet", "arrow", "sqlite"]
Compression = Literal["gzip", "zstd", "zip"]

_FORMATS: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
_COMPRESSIONS: Final[dict[str, Compression]] = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_MAGIC: Final[tuple[tuple[bytes, Format, Compression | None], ...]] = (
    (b"PAR1", "parquet", None),
    (b"ARROW1", "arrow", None),
    (b"SQLite format 3\0", "sqlite", None),
    (b"PK\x03\x04", "csv", "zip"),
    (b"\x1f\x8b", "csv", "gzip"),
    (b"\x28\xb5\x2f\xfd", "csv", "zstd"),
)
READ: Final = ".csv, .csv.gz, .csv.zst, .zip with CSV members, .parquet, .arrow, .feather, .sqlite (FILE:TABLE)"


@dataclass(frozen=True)
class Input:
    """One sequence of rows: a file, or a *part* of it (a member of a zip, a table of a database).

    ``name`` is its path below the folder that was named, which patterns of a mapping are matched with.
    """

    path: Path
    name: str
    format: Format
    compression: Compression | None = None
    part: str | None = None
    bytes: int = 0
    modified_ns: int = 0

    @property
    def origin(self) -> str:
        """The input as errors and rejects name it."""
        return str(self.path) + {"sqlite": ":"}.get(self.format, "!") * bool(self.part) + (self.part or "")

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this input from another one, or from itself after a change."""
        return {"path": str(self.path.absolute()), "part": self.part, "bytes": self.bytes, "modified_ns": self.modified_ns}


def find_inputs(paths: Sequence[Path], table: str | None = None) -> list[Input]:
    """Return the inputs at *paths*, folders searched, in a fixed order; ``InvalidRequest`` where there is nothing to read.

    *table* names the table of databases; without it they must have a single one.
    """
    found = [entry for path in paths for file, root in _files(path) for entry in _inputs(file, root, table)]
    if not found:
        raise InvalidRequest(f"there is nothing to import in {', '.join(map(str, paths))}; what is read: {READ}")
    return list({(entry.path.absolute(), entry.part): entry for entry in found}.values())


def _files(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files that *path* stands for, each with the folder that its name is told from."""
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if _suffixes(file)[0] and file.is_file())
        yield from ((file, path) for file in inside if not any(part[0] == "." for part in file.relative_to(path).parts))
    else:
        yield path, path.parent


def _suffixes(path: Path) -> tuple[Format | None, Compression | None]:
    """Return format and compression as the name tells them."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is None:
        return (_FORMATS.get(suffixes[-1]) if suffixes else None), None
    inner = _FORMATS.get(suffixes[0]) if len(suffixes) == 2 else None
    return (None if inner not in {None, "csv"} and compression != "zip" else "csv"), compression


def _inputs(file: Path, root: Path, table: str | None) -> Iterator[Input]:
    head, colon, named = file.name.rpartition(":")
    if colon and not file.exists():
        file, table = file.with_name(head), named
    try:
        told = file.stat()
        with file.open("rb") as opened:
            magic = opened.read(16)
    except OSError as error:
        raise InvalidRequest(f"cannot import {file}: {error.strerror or error}") from error
    shape = next(((form, packed) for start, form, packed in _MAGIC if magic.startswith(start)), _suffixes(file))
    if shape[0] is None:
        raise InvalidRequest(f"cannot import {file}: neither its name nor its first bytes say what it is; what is read: {READ}")
    entry = Input(file, os.path.relpath(file, root), shape[0], shape[1], None, told.st_size, told.st_mtime_ns)
    yield from _parts(entry, table)


def _parts(entry: Input, table: str | None) -> Iterator[Input]:
    if entry.compression == "zip":
        yield from _members(entry)
    elif entry.format == "sqlite":
        yield replace(entry, part=_table(entry.path, table))
    elif entry.bytes:
        yield entry


def _members(entry: Input) -> Iterator[Input]:
    try:
        with zipfile.ZipFile(entry.path) as archive:
            for item in archive.infolist():
                if not item.is_dir() and item.file_size and _suffixes(Path(item.filename))[0] in {"csv", None}:
                    yield replace(entry, part=item.filename, bytes=item.compress_size)
    except zipfile.BadZipFile as error:
        raise InvalidRequest(f"cannot import {entry.path}: not a readable zip: {error}") from error


def _table(path: Path, asked: str | None) -> str:
    """Return the table to read in the database at *path*."""
    query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
    try:
        with closing(opened_database(path)) as database:
            names = [name for (name,) in database.execute(query)]
    except sqlite3.Error as error:
        raise InvalidRequest(f"cannot import {path}: {error}") from error
    if asked is None and len(names) == 1:
        return str(names[0])
    if asked not in names:
        raise InvalidRequest(
            f"{path} has tables {', '.join(names) or 'none'}, not {asked}"
            if asked
            else f"{path} has tables {', '.join(names) or 'none'}: name one, {path}:TABLE or --table"
        )
    return str(asked)


def opened_database(path: Path) -> sqlite3.Connection:
    """Return a connection to the SQLite file at *path* that changes nothing."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
