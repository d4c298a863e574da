"""A warm restart: what lay in memory lies there again, however the server before ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import SYMBOLS, WAIT_SECONDS, Opener, TableSource, bars, read, read_info, weekdays

from fletching_schemas import Action, canonical
from fletching_server import Engine

DAYS = weekdays(date(2026, 7, 1), date(2026, 7, 31))

CHILD = """
import sys
from datetime import date
import pyarrow as pa
from fletching_schemas import ReadRequest, WriteRequest
from fletching_server.engine import Engine
from fletching_server.settings import load_settings

engine = Engine(load_settings(store=sys.argv[1], memory="16MiB"))
rows = [{"symbol": name, "time": date(2026, 7, 1), "price": 1.0} for name in ("A", "B")]
engine.write(WriteRequest("prices", keys=("symbol", "time"), time="time"), pa.Table.from_pylist(rows))
list(engine.read(ReadRequest("prices")))
assert engine.hot_list.restored.wait(10)
engine.hot_list.save()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def by_day() -> TableSource:
    return TableSource(canonical("bars_1d", calendar="XSHG", period="day"), bars(SYMBOLS, DAYS))


def filled(open_store: Opener, source: TableSource) -> Engine:
    """Return an engine with a partition per day on disk, and none in memory."""
    engine = open_store(source, hot_list=True)
    read(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[-1])
    engine.act(Action.COMPACT, {"dataset": "bars_1d"})
    engine.act(Action.EVICT, {})
    return engine


def restored(engine: Engine) -> Engine:
    assert engine.hot_list.restored.wait(WAIT_SECONDS)
    return engine


def tiers(engine: Engine, day: date) -> dict[str, int]:
    _, info = read_info(engine, symbols=SYMBOLS, start=day, end=day)
    return {tier: use.rows for tier, use in info.tiers.items() if use.rows}


def listed(engine: Engine) -> list[str]:
    found: dict[str, Any] = json.loads((engine.store.root / "hot.json").read_bytes())
    return [lineage for lineage, _ in found["hot"]]


def test_a_server_that_was_closed_has_in_memory_what_lay_there(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day)
    for day in DAYS[:3]:
        read(engine, symbols=SYMBOLS, start=day, end=day)
    again = restored(open_store.again(engine, by_day, hot_list=True))
    assert listed(again) == [f"bars_1d/{day}/0" for day in reversed(DAYS[:3])]
    assert again.hot.facts()["hot_entries"] == 3
    assert [tiers(again, day) for day in DAYS[2:4]] == [{"hot": len(SYMBOLS)}, {"cold": len(SYMBOLS)}]


def test_a_server_that_was_killed_has_in_memory_what_lay_there(open_store: Opener, tmp_path: Path) -> None:
    child = [sys.executable, "-c", CHILD, str(tmp_path / "store")]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    engine = restored(open_store(hot_list=True))
    _, info = read_info(engine, "prices")
    assert {tier: use.rows for tier, use in info.tiers.items() if use.rows} == {"hot": 2}


def test_what_is_worth_most_is_back_first_as_far_as_there_is_room(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day)
    order = [*DAYS[::2], *DAYS[1::2]]  # one after the other would be a sweep
    for day in order:
        read(engine, symbols=SYMBOLS, start=day, end=day)
    size = engine.hot.facts()["hot_bytes"] // len(DAYS)
    again = restored(open_store.again(engine, by_day, hot_list=True, memory=size * 5))
    held = [day for day in order if any(again.hot.holds(file.key) for file in partitions(again, day))]
    assert held == order[-4:]  # a twelfth is the ring's
    assert again.hot.facts()["hot_evictions"] == 0
    tiers(again, order[0])
    assert not any(again.hot.holds(file.key) for file in partitions(again, order[-4])), "the order is that of before"


def partitions(engine: Engine, day: date) -> list[Any]:
    return [file for file in engine.store.state("bars_1d").files if file.period == str(day)]


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[]", b'{"hot": 3}', b'{"hot": [["a"]]}', b'{"hot": [["a", "b"], 1]}'])
def test_a_list_that_cannot_be_read_costs_nothing(open_store: Opener, by_day: TableSource, spoilt: bytes) -> None:
    engine = filled(open_store, by_day)
    read(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[0])
    engine.close()
    (engine.store.root / "hot.json").write_bytes(spoilt)
    again = restored(open_store(by_day, hot_list=True))
    assert again.hot.facts()["hot_entries"] == 0
    assert tiers(again, DAYS[0]) == {"cold": len(SYMBOLS)}
    assert listed(open_store.again(again, by_day)) == [f"bars_1d/{DAYS[0]}/0"]


def test_what_is_gone_or_damaged_is_left_out(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day)
    for day in DAYS[:3]:
        read(engine, symbols=SYMBOLS, start=day, end=day)
    (damaged,) = partitions(engine, DAYS[1])
    engine.close()
    gone = ["bars_1d/2020-01-02/0", "bars_1m/2026-07-01/0", "d7e1", "", "//"]
    names = [*gone, *(f"bars_1d/{day}/0" for day in DAYS[1:3])]
    (engine.store.root / "hot.json").write_text(json.dumps({"hot": [[name, 1.0] for name in names]}))
    (engine.store.root / damaged.path).write_bytes(b"")
    again = restored(open_store(by_day, hot_list=True))
    assert [again.hot.holds(file.key) for file in (damaged, *partitions(again, DAYS[2]))] == [False, True]
    assert again.hot.facts()["hot_entries"] == 1
    assert tiers(again, DAYS[1]) == {"source": len(SYMBOLS)}, "the read that finds the damage mends it"


def test_a_server_that_ends_before_all_is_back_leaves_the_list_as_it_was(open_store: Opener, by_day: TableSource) -> None:
    engine = filled(open_store, by_day)
    read(engine, symbols=SYMBOLS, start=DAYS[0], end=DAYS[0])
    again = open_store.again(engine, by_day)  # without a list of its own
    hot_list = engine.hot_list
    hot_list.restored.clear()
    hot_list.closing.set()
    hot_list.restore()
    hot_list.save()
    assert not hot_list.restored.is_set()
    assert listed(again) == [f"bars_1d/{DAYS[0]}/0"]
