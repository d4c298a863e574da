"""Settled rows that come back changed: noticed, recorded with both values, and served by the dataset's rule."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import SYMBOLS, Opener, TableSource, bar, bars, read, read_info, weekdays

from fletching_schemas import Action, canonical
from fletching_schemas.errors import BadSourceData
from fletching_server import Engine
from fletching_server.calendars import day_number
from fletching_server.restatement import compare, kept
from fletching_server.spans import Days
from fletching_server.testing import ManualClock

DAILY = canonical("bars_1d", calendar="XSHG")
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
A = SYMBOLS[0]

TABLES = st.dictionaries(st.tuples(st.sampled_from(SYMBOLS[:3]), st.sampled_from(DAYS[:6])), st.integers(0, 2), max_size=12)
RUNS = st.dictionaries(
    st.sampled_from(SYMBOLS[:3]),
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda p: [Days(day_number(DAYS[min(p)]), day_number(DAYS[max(p)]))]),
)


def table_of(cells: dict[tuple[str, date], int]) -> pa.Table:
    return pa.Table.from_pylist([bar(*cell, version) for cell, version in sorted(cells.items())], schema=DAILY.schema)


@given(TABLES, TABLES, RUNS)
def test_what_differs_in_settled_cells_is_told_and_nothing_else(before: Any, after: Any, settled: Any) -> None:
    found = compare(DAILY, table_of(before), table_of(after), settled)

    def inside(cell: tuple[str, date]) -> bool:
        return any(run.first <= day_number(cell[1]) <= run.last for run in settled.get(cell[0], ()))

    differing = {cell for cell in before.keys() | after.keys() if inside(cell) and before.get(cell) != after.get(cell)}
    assert {(change.symbol, change.session) for change in found.changes} == {(s, day_number(day)) for s, day in differing}
    assert found.count == len(differing)
    for change in found.changes:
        cell = (change.symbol, DAYS[[day_number(day) for day in DAYS].index(change.session)])
        assert (change.before is None, change.after is None) == (cell not in before, cell not in after)
        assert found.changed(*((change.symbol, change.session)))
    served = kept(DAILY, table_of(before), table_of(after), settled)
    expected = {cell: version for cell, version in after.items() if not inside(cell)}
    assert served.equals(table_of(expected | {cell: version for cell, version in before.items() if inside(cell)}))


def restated(engine: Engine) -> list[dict[str, Any]]:
    answer = engine.act(Action.RESTATEMENTS, {"dataset": "bars_1d", "symbols": [A]})
    assert isinstance(answer, pa.Table)
    return answer.to_pylist()  # type: ignore[no-any-return]


def held(open_store: Opener, rule: str) -> tuple[Engine, TableSource]:
    """Return an engine that holds a week, and its source, which has changed one day, lost another and found a third."""
    dataset = canonical("bars_1d", calendar="XSHG", restatement=rule)
    source = TableSource(dataset, bars([A], [DAYS[0], DAYS[1], DAYS[3]]))
    engine = open_store(source)
    read(engine, symbols=A, start=DAYS[0], end=DAYS[3])
    source.rows[A, DAYS[0]] = bar(A, DAYS[0], version=5)
    del source.rows[A, DAYS[1]]
    source.rows[A, DAYS[2]] = bar(A, DAYS[2])
    return engine, source


def reread(engine: Engine, clock: ManualClock) -> list[date]:
    """Have the week verified after a year, in the background, and return what is served then."""
    clock.advance(days=366)
    read(engine, symbols=A, start=DAYS[0], end=DAYS[3])
    fills = engine._parts.upstream.fills
    for flight in [f for row in list(fills._board.values()) for f in row]:
        flight.landed.result(20)
    found: list[date] = read(engine, symbols=A, start=DAYS[0], end=DAYS[3])["trading_date"].to_pylist()
    return found


def test_replaced_rows_are_served_and_both_values_recorded(open_store: Opener, clock: ManualClock) -> None:
    engine, source = held(open_store, "replace")
    assert reread(engine, clock) == [DAYS[0], DAYS[2], DAYS[3]]
    assert read(engine, symbols=A, start=DAYS[0], end=DAYS[0])["volume"][0].as_py() % 100 == 5
    changes = {change["session"]: change for change in restated(engine)}
    assert set(changes) == {DAYS[0], DAYS[1]}  # a row where there was none is new, and not restated
    before, after = (json.loads(changes[DAYS[0]][side]) for side in ("before", "after"))
    assert (before["volume"] % 100, after["volume"] % 100) == (0, 5)
    assert "suspended" not in before  # only what differs
    assert changes[DAYS[1]]["after"] is None
    again = open_store.again(engine, source)
    assert len(restated(again)) == 2
    told = again.act(Action.PROVENANCE, {"dataset": "bars_1d", "symbols": [A]})
    assert isinstance(told, pa.Table)
    assert told["restated"].to_pylist() == [2, 0]
    assert again.stats.snapshot()["restated_rows"] == 0  # of this process


def test_kept_rows_stay_and_the_change_is_recorded(open_store: Opener, clock: ManualClock) -> None:
    engine, _ = held(open_store, "keep")
    first = read(engine, symbols=A, start=DAYS[0], end=DAYS[1])
    assert reread(engine, clock) == [DAYS[0], DAYS[1], DAYS[2], DAYS[3]]  # the day that was empty is new, not restated
    assert read(engine, symbols=A, start=DAYS[0], end=DAYS[1]).equals(first)
    assert {change["rule"] for change in restated(engine)} == {"keep"}


def test_refused_answers_change_nothing_and_are_set_aside(open_store: Opener, clock: ManualClock) -> None:
    engine, _ = held(open_store, "refuse")
    assert reread(engine, clock) == [DAYS[0], DAYS[1], DAYS[3]]
    (refused,) = engine.quarantine.report()
    assert "refuses restatements" in refused["why"]
    assert restated(engine) == []


def test_a_session_under_way_is_not_restated(open_store: Opener, clock: ManualClock) -> None:
    source = TableSource(DAILY, bars([A], DAYS))
    clock.set(clock.now().replace(hour=4))  # noon in Shanghai
    engine = open_store(source)
    read(engine, symbols=A, start=DAYS[-1], end=DAYS[-1])
    source.rows[A, DAYS[-1]] = bar(A, DAYS[-1], version=1)
    clock.advance(hours=8)
    read(engine, symbols=A, start=DAYS[-1], end=DAYS[-1])
    assert restated(engine) == []


@pytest.mark.parametrize(
    ("told", "recorded"),
    [
        (
            b'{"function": "f", "arguments": {"a": 1}, "version": "1.2", "unit_check": "passed"}',
            ("f", '{"a": 1}', "1.2", "passed"),
        ),
        (b"not json", (None, None, None, None)),
        (b'["a list"]', (None, None, None, None)),
        (b'{"function": ["x"], "digest": "forged"}', ('["x"]', None, None, None)),
        (b'{"function": "' + b"x" * 5000 + b'"}', (None, None, None, None)),
    ],
)
def test_what_a_source_tells_about_its_answer_is_recorded_and_never_trusted(
    open_store: Opener, told: bytes, recorded: tuple[Any, ...]
) -> None:
    source = TableSource(DAILY, bars([A], DAYS))
    source.answer = lambda request: source.table(request).replace_schema_metadata({b"provenance": told})
    engine = open_store(source)
    read(engine, symbols=A, start=DAYS[0], end=DAYS[1])
    answer = engine.act(Action.PROVENANCE, {"dataset": "bars_1d"})
    assert isinstance(answer, pa.Table)
    (row,) = answer.to_pylist()
    assert tuple(row[name] for name in ("function", "arguments", "version", "unit_check")) == recorded
    assert (row["provider"], row["symbols"], row["rows"]) == ("table", [A], 2)
    assert row["digest"] != "forged"


def test_rows_of_a_closed_day_are_refused_set_aside_and_admitted_by_the_settings(open_store: Opener) -> None:
    source = TableSource(DAILY, bars([A], [date(2026, 9, 30), date(2026, 10, 5), date(2026, 10, 8)]))
    engine = open_store(source)
    with pytest.raises(BadSourceData, match=r"2026-10-05, when XSHG was closed.*\[calendar\.XSHG\] add = \[2026-10-05\]"):
        read(engine, symbols=A, start=date(2026, 9, 30), end=date(2026, 10, 8))
    (refused,) = engine.quarantine.report()
    assert (refused["rows"], refused["code"]) == (3, "bad_source_data")
    assert A in refused["request"]
    again = open_store.again(engine, source, calendar={"XSHG": {"add": [date(2026, 10, 5)]}})
    _, info = read_info(again, symbols=A, start=date(2026, 9, 30), end=date(2026, 10, 8))
    assert (info.rows, info.gaps) == (3, [])


def test_the_quarantine_stays_small(open_store: Opener, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletching_server.quarantine.MOST_KEPT", 3)
    source = TableSource(DAILY, bars([A], DAYS))
    source.answer = lambda request: source.table(request).set_column(4, "low", pa.array([1e9]))
    engine = open_store(source)
    for day in DAYS[:6]:
        clock.advance(seconds=1)
        with pytest.raises(BadSourceData):
            read(engine, symbols=A, start=day, end=day)
    assert [report["request"].split()[2][:10] for report in engine.quarantine.report()] == [str(day) for day in DAYS[5:2:-1]]
