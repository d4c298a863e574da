"""Reductions against a plain loop over rows, wherever groups and chunks are cut."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.server.importing.quotes import held, quotes, write_csv

from fletching_schemas import Action, Dataset
from fletching_schemas.errors import InvalidRequest
from fletching_server import open_engine
from fletching_server.importing import ImportRequest, Reductions, plan_import, run_import
from fletching_server.importing.conversion import PLACE
from fletching_server.importing.merging import Share, groups
from fletching_server.importing.runs import encoded, sorted_run

OPEN = datetime(2026, 3, 2, 23, 59, 50, tzinfo=UTC)  # ten seconds before the next session
TICK = timedelta(milliseconds=250)
ROWS = st.lists(
    st.tuples(st.sampled_from(["A", "B", "C"]), st.integers(0, 120), st.integers(1, 2), st.integers(1, 2)),
    min_size=1,
    max_size=80,
)
REDUCTIONS = st.builds(
    Reductions, st.booleans(), st.sampled_from([None, "1s", "500ms", "5s"]), st.sampled_from([None, 1, 2, 3, 10])
)
QUOTES = Dataset(
    "quotes",
    pa.schema(
        [
            ("symbol", pa.string()),
            ("ts", pa.timestamp("us", "UTC")),
            ("bid", pa.float64()),
            ("ask", pa.float64()),
            ("bid_size", pa.int64()),
            ("ask_size", pa.int64()),
        ]
    ),
    ("symbol", "ts"),
    "ts",
    None,
    "day",
)
Rows = list[dict[str, Any]]


def oracle(rows: Rows, asked: Reductions) -> Rows:
    """Return what is left, by looking at one row after the other."""
    latest = {(row["symbol"], row["ts"]): row for row in rows}
    sessions: dict[Any, Rows] = defaultdict(list)
    for key in sorted(latest):
        sessions[key[0], key[1].date()].append(latest[key])
    left: Rows = []
    for session in sessions.values():
        left += _every(_resampled(_changes(session, asked), asked), asked)
    return left


def _changes(rows: Rows, asked: Reductions) -> Rows:
    book = ("bid", "ask", "bid_size", "ask_size")
    if not asked.nbbo:
        return rows
    return [row for before, row in zip([None, *rows], rows, strict=False) if not before or any(before[n] != row[n] for n in book)]


def _resampled(rows: Rows, asked: Reductions) -> Rows:
    if not asked.resample:
        return rows
    width = {"1s": 1.0, "500ms": 0.5, "5s": 5.0}[asked.resample]
    return list({row["ts"].timestamp() // width: row for row in rows}.values())


def _every(rows: Rows, asked: Reductions) -> Rows:
    return rows[:: asked.every or 1]


@settings(deadline=None)
@example([("A", 0, 1, 1), ("A", 4, 1, 1)], Reductions(nbbo=True, resample="1s"), 1, 1)  # a group of which nothing is left
@given(ROWS, REDUCTIONS, st.integers(1, 80), st.integers(1, 100))
def test_what_is_left_is_what_a_plain_loop_leaves(
    given_rows: list[tuple[str, int, int, int]], asked: Reductions, chunk_rows: int, group_rows: int
) -> None:
    rows: Rows = [
        {"symbol": name, "ts": OPEN + tick * TICK, "bid": float(bid), "ask": 9.0, "bid_size": size, "ask_size": 1}
        for name, tick, bid, size in given_rows
    ]
    frame = pl.DataFrame(rows, schema_overrides={"ts": pl.Datetime("us", "UTC")}).with_row_index(PLACE)
    with TemporaryDirectory() as folder:
        shares = defaultdict(list)
        for rank, start in enumerate(range(0, len(rows), chunk_rows)):
            run = sorted_run(QUOTES, frame[start : start + chunk_rows])
            path = Path(folder) / f"{rank}.arrow"
            path.write_bytes(encoded(run.rows))
            for (period,), part in run.index.partition_by("period", as_dict=True, include_key=False).items():
                shares[period].append(Share(path, rank, part))
        every = [group for _, found in sorted(shares.items()) for group in groups(QUOTES, found, group_rows, asked, None)]
    left = pl.concat([group.frame for group in every if group.frame.width]).sort("symbol", "ts").to_dicts()
    assert left == oracle(rows, asked)
    assert sum(group.read for group in every) == len(rows)
    lost = sum(lost.rows.height for group in every for lost in group.lost)
    assert len(rows) - lost - sum(group.reduced for group in every) == len(left)


@pytest.mark.parametrize("asked", [Reductions(nbbo=True), Reductions(resample="1s"), Reductions(every=7)], ids=str)
def test_an_import_leaves_that_too_and_says_so(tmp_path: Path, asked: Reductions) -> None:
    path = write_csv(tmp_path / "q.csv", quotes(200))
    with open_engine(tmp_path / "store") as engine:
        report = run_import(engine, plan_import(engine, ImportRequest([path], "quotes", reductions=asked)))
        assert held(engine).to_dicts() == oracle(quotes(200).to_dicts(), asked)
        [row] = engine.act(Action.PROVENANCE, {"dataset": "quotes"}).to_pylist()  # type: ignore[union-attr]
    assert report.read == report.kept + report.reduced
    assert json.loads(row["arguments"])["reductions"] == asked.facts()


@pytest.mark.parametrize("wrong", ["7s", "1d", "0s", "soon", "1.5s"])
def test_an_interval_must_divide_a_day(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="divides a day"):
        Reductions(resample=wrong)


def test_every_starts_at_one() -> None:
    with pytest.raises(InvalidRequest, match="from 1 on"):
        Reductions(every=0)


def test_nbbo_needs_a_bid_and_an_ask(tmp_path: Path) -> None:
    (tmp_path / "bars.csv").write_text("symbol,ts,close\nA,2026-03-02 10:00:00,1\n")
    with open_engine(tmp_path / "store") as engine, pytest.raises(InvalidRequest, match="needs a bid and an ask"):
        plan_import(engine, ImportRequest([tmp_path / "bars.csv"], "bars", reductions=Reductions(nbbo=True)))
