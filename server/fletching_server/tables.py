"""The catalogue's SQL tables, and reading them back."""

from __future__ import annotations

import json
from collections import defaultdict
from sys import intern

import sqlalchemy as sa

from fletching_schemas import Dataset
from fletching_server.snapshot import DatasetState, StoredFile
from fletching_server.spans import Span, overlay

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, comment="the source that offers it; null: users write it"),
    sa.Column("definition", sa.JSON, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
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
    sa.Column("asked_first", sa.Integer, comment="of a fill: the cells of its symbols from here to asked_last are its own"),
    sa.Column("asked_last", sa.Integer),
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
ADDED_COLUMNS = [(2, provenance, provenance.c[name]) for name in ("function", "arguments", "version", "unit_check", "restated")]


def file_row(file: StoredFile, seq: int) -> dict[str, object]:
    """Return *file* as a row of ``files``, brought by commit *seq*."""
    row = {name: getattr(file, name) for name in file.__dataclass_fields__}
    return {**row, "symbols": json.dumps(file.symbols), "seq": seq}


def load_states(connection: sa.Connection) -> tuple[dict[str, DatasetState], int]:
    """Return every dataset's picture and the last commit number, from the tables alone."""
    files_by: dict[str, list[StoredFile]] = defaultdict(list)
    parsed: dict[str, tuple[str, ...]] = {}  # partitions of one universe have the same symbols: one tuple for all of them
    for row in connection.execute(sa.select(files).order_by(files.c.seq)).mappings():
        if (symbols := parsed.get(row["symbols"])) is None:
            symbols = parsed[row["symbols"]] = tuple(intern(symbol) for symbol in json.loads(row["symbols"]))
        files_by[row["dataset"]].append(StoredFile(**{**row, "symbols": symbols}))
    spans_by = _load_spans(connection)
    states, last = {}, 0
    for row in connection.execute(sa.select(datasets)).mappings():
        name = row["name"]
        state = DatasetState(
            Dataset.from_json(row["definition"]), row["source"], tuple(files_by[name]), spans_by[name], row["seq"]
        )
        states[name], last = state, max(last, row["seq"])
    for table in (files, coverage, provenance):
        last = max(last, connection.execute(sa.select(sa.func.max(table.c.seq))).scalar() or 0)
    return states, last


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
