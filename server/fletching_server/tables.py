"""The catalogue's SQL tables, and reading them back."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from sys import intern
from typing import Any

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_server.snapshot import Asked, DatasetState, StoredFile
from fletching_server.spans import Span, overlay

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
sums = sa.Table(
    "sums",
    metadata,
    sa.Column("name", sa.Text, primary_key=True, comment="of a table"),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False, comment="of the fingerprints of its rows"),
)
datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, comment="the source that offers it; null: users write it"),
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("shape", sa.Integer, comment="how often its columns have changed"),
    sa.Column("since", sa.Integer, comment="the first generation that can still be read as of"),
    sa.Column("history_days", sa.Float, comment="how long the past is kept; null: as the settings say"),
)
definitions = sa.Table(
    "definitions",
    metadata,
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column("shape", sa.Integer, nullable=False),
)
commits = sa.Table(
    "commits",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False, comment="seconds since 1970, never less than that of the one before"),
    sa.Index("commits_by_dataset", "dataset", "seq"),
)
bases = sa.Table(
    "bases",
    metadata,
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, comment="the partitions of that commit, and later segments, are the past"),
    sa.Column("through", sa.Integer, nullable=False, comment="rank of the last segment that these partitions hold"),
    sa.Column("since", sa.Integer, nullable=False, comment="from which generation on that is so"),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("fixed", sa.Boolean, nullable=False, comment="what came before is no part of it: a replaced table"),
)
writes = sa.Table(
    "writes",
    metadata,
    sa.Column("key", sa.Text, primary_key=True, comment="made by the client: the same write again does nothing"),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, comment="of what was asked, so that a key is not used twice"),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("created", sa.Boolean, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("period", sa.Text, nullable=False),
    sa.Column("bucket", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, nullable=False, unique=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("memory_bytes", sa.Integer, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("first_day", sa.Integer, nullable=False),
    sa.Column("last_day", sa.Integer, nullable=False),
    sa.Column("symbols", sa.Text, nullable=False, comment="JSON list, sorted"),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer, comment="which of two files wins where keys collide: the higher"),
    sa.Column("asked", sa.Text, comment="JSON list of (first, last, symbols or null, rank): cells that fills asked for"),
    sa.Column("shape", sa.Integer, comment="shape of the dataset when it was written"),
    sa.Column("since", sa.Integer, comment="the lowest rank of the files it was merged from; 0: it was not"),
    sa.Column("through", sa.Text, comment="the id of the last file that went into it; empty: its own"),
    sa.Column("retired", sa.Integer, index=True, comment="the commit since which only the past refers to it; null: none"),
)
coverage = sa.Table(
    "coverage",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("symbol", sa.Text, nullable=False),
    sa.Column("first_day", sa.Integer, nullable=False),
    sa.Column("last_day", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("fetched_at", sa.Float, nullable=False),
    sa.Column("file", sa.Text, index=True, comment="the file this rests on; null: no file, or folded into partitions"),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Index("coverage_by_symbol", "dataset", "symbol"),
)
provenance = sa.Table(
    "provenance",
    metadata,
    sa.Column("id", sa.Text, primary_key=True, comment="the file's id, or one of its own where nothing was there"),
    sa.Column("dataset", sa.Text, nullable=False, index=True),
    sa.Column("symbols", sa.Text, nullable=False),
    sa.Column("first_day", sa.Integer, nullable=False),
    sa.Column("last_day", sa.Integer, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("fetched_at", sa.Float, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("function", sa.Text, comment="what was called upstream"),
    sa.Column("arguments", sa.Text, comment="JSON object"),
    sa.Column("version", sa.Text, comment="of the provider's library"),
    sa.Column("unit_check", sa.Text, comment="passed, failed or not_applicable"),
    sa.Column("restated", sa.Integer, comment="settled rows that came back changed"),
)
restatements = sa.Table(
    "restatements",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("symbol", sa.Text, nullable=False),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("key", sa.Text, nullable=False, comment="JSON object"),
    sa.Column("before", sa.Text, comment="JSON object of what differs; null: there was no such row"),
    sa.Column("after", sa.Text, comment="the same; null: there is no such row any more"),
    sa.Column("rule", sa.Text, nullable=False, comment="replace: after is served; keep: before is"),
    sa.Column("fill", sa.Text, nullable=False, comment="id in provenance"),
    sa.Column("noticed_at", sa.Float, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Index("restatements_by_symbol", "dataset", "symbol"),
)

# What later formats added to tables that an older one has: (since format, table, column).
ADDED_COLUMNS = [
    *((2, provenance, provenance.c[name]) for name in ("function", "arguments", "version", "unit_check", "restated")),
    *((3, datasets, datasets.c[name]) for name in ("shape", "since", "history_days")),
    *((3, files, files.c[name]) for name in ("rank", "asked", "shape", "since", "through", "retired")),
]

# What they say of rows that an older one wrote: (since format, SQL).
ADDED_FACTS = [
    (3, "UPDATE datasets SET shape = 0, since = (SELECT max(seq) FROM files WHERE files.dataset = datasets.name)"),
    (3, "UPDATE files SET shape = 0, since = 0, through = '', rank = CASE kind WHEN 'segment' THEN seq ELSE 0 END"),
    (
        3,
        "UPDATE files SET asked = '[[' || asked_first || ', ' || asked_last || ', null, 0]]' WHERE asked_first IS NOT NULL",
    ),
]


def file_row(file: StoredFile) -> dict[str, object]:
    """Return *file* as a row of ``files``."""
    row = {name: getattr(file, name) for name in file.__dataclass_fields__ if name not in {"read_shape", "hidden"}}
    return {**row, "symbols": json.dumps(file.symbols), "asked": json.dumps(file.asked) if file.asked else None}


def stored_file(row: sa.RowMapping, shape: int) -> StoredFile:
    """Return the file that ``file_row`` wrote, as it is read where its dataset has *shape*."""
    asked = tuple(Asked(first, last, symbols and tuple(symbols), rank) for first, last, symbols, rank in _list(row["asked"]))
    return StoredFile(**{**row, "symbols": _symbols(row["symbols"]), "asked": asked, "read_shape": shape})


@lru_cache(maxsize=64)
def _symbols(raw: str) -> tuple[str, ...]:
    """Return a file's symbols: partitions of one universe have the same ones, so they share a tuple."""
    return tuple(intern(symbol) for symbol in json.loads(raw))


def _list(raw: str | None) -> list[Any]:
    found: list[Any] = json.loads(raw) if raw else []
    return found


def load_states(connection: sa.Connection) -> tuple[dict[str, DatasetState], int]:
    """Return every dataset's picture and the last commit number, from the tables alone."""
    spans_by = _load_spans(connection)
    states = {
        row["name"]: DatasetState(
            Dataset.from_json(row["definition"]), row["source"], (), spans_by[row["name"]], row["seq"], row["shape"] or 0
        )
        for row in connection.execute(sa.select(datasets)).mappings()
    }
    files_by: dict[str, list[StoredFile]] = defaultdict(list)
    for row in connection.execute(sa.select(files).where(files.c.retired.is_(None)).order_by(files.c.seq)).mappings():
        files_by[row["dataset"]].append(stored_file(row, states[row["dataset"]].shape))
    latest = sa.select(commits.c.dataset, sa.func.max(commits.c.seq)).group_by(commits.c.dataset)
    generations = {row[0]: int(row[1]) for row in connection.execute(latest)}
    found = {
        name: replace(state, files=tuple(files_by[name]), generation=max(state.generation, generations.get(name, 0)))
        for name, state in states.items()
    }
    last = max((state.generation for state in states.values()), default=0)
    for table in (files, coverage, provenance, commits):
        last = max(last, connection.execute(sa.select(sa.func.max(table.c.seq))).scalar() or 0)
    return found, last


def _load_spans(connection: sa.Connection) -> dict[str, dict[str, tuple[Span, ...]]]:
    """Return coverage per dataset and symbol: later commits override, which needs no calendar; neighbours stay apart."""
    spans: dict[str, dict[str, tuple[Span, ...]]] = defaultdict(dict)
    order = (coverage.c.dataset, coverage.c.symbol, coverage.c.seq, coverage.c.first_day)
    for row in connection.execute(sa.select(coverage).order_by(*order)).mappings():
        span = Span(row["first_day"], row["last_day"], row["state"], row["reason"], row["fetched_at"])
        held = spans[row["dataset"]].get(row["symbol"], ())
        appended = not held or held[-1].last < span.first
        symbol = intern(row["symbol"])
        spans[row["dataset"]][symbol] = (*held, span) if appended else overlay(held, [span], lambda _a, _b: False)
    return spans
