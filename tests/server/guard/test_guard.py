"""The guard: budgets that survive restarts, circuits that outlast bans, retries that help, and a memory of what is unknown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NOW, SYMBOLS, Opener, TableSource, bars, in_threads, read, read_info

from fletching_schemas import FetchRequest
from fletching_schemas.errors import (
    BadSourceData,
    SourceChanged,
    SourceThrottled,
    SourceTimeout,
    SourceUnavailable,
    UnknownSymbol,
)
from fletching_server.guard import Guard
from fletching_server.sources import Budget, Meter
from fletching_server.testing import ManualClock


class Limited(TableSource):
    """A source whose calls cost one request each of the family ``vendor``."""

    budgets: Mapping[str, Budget] = {"vendor": Budget(at_once=2, spacing_seconds=2.0, per_hour=10, per_day=50)}
    meter: Meter | None = None

    def family(self, dataset: str) -> str:
        del dataset
        return "vendor"

    def cost(self, request: FetchRequest) -> int:
        del request
        return 1

    def use_meter(self, meter: Meter) -> None:
        self.meter = meter


@pytest.fixture
def limited(source: TableSource) -> Limited:
    return Limited(source.dataset, source.rows, "vendor")


@pytest.fixture
def opened(tmp_path: Path, clock: ManualClock, limited: Limited) -> Iterator[Callable[..., Guard]]:
    guards: list[Guard] = []

    def make(said: dict[str, Budget] | None = None) -> Guard:
        guard = Guard(tmp_path / "guard.sqlite", clock, said or {})
        guard.adopt(limited)
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        guard.close()


def spend(guard: Guard, count: int) -> None:
    for _ in range(count):
        guard.spend("vendor")


def raising(*errors: Exception) -> Callable[[], str]:
    """Return a call that raises *errors* one after the other, then answers."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "rows"

    return call


# Budgets


def test_requests_keep_their_distance(opened: Callable[..., Guard], clock: ManualClock) -> None:
    spend(opened(), 4)
    assert 6 <= (clock.now() - NOW).total_seconds() <= 9  # three pauses of 2 s, each with up to half as much of jitter


def test_a_spent_hour_is_refused_with_the_budget_and_the_time(opened: Callable[..., Guard], clock: ManualClock) -> None:
    guard = opened()
    spend(guard, 10)
    with pytest.raises(
        SourceThrottled, match=r"budget of vendor, 10 requests per hour, is spent; ask again after 2026-11-20 13:00"
    ) as raised:
        guard.spend("vendor")
    assert raised.value.retry_at is not None
    assert abs(raised.value.retry_at - (NOW + timedelta(hours=1))) < timedelta(minutes=1)
    clock.set(raised.value.retry_at + timedelta(seconds=1))
    guard.spend("vendor")


def test_a_restart_refills_nothing(opened: Callable[..., Guard]) -> None:
    spend(opened(), 10)
    with pytest.raises(SourceThrottled, match="10 requests per hour"):
        opened().spend("vendor")


def test_the_settings_say_otherwise(opened: Callable[..., Guard]) -> None:
    guard = opened({"vendor": Budget(per_hour=2)})
    spend(guard, 2)
    with pytest.raises(SourceThrottled, match="2 requests per hour"):
        guard.spend("vendor")


def test_several_requests_are_charged_at_once(opened: Callable[..., Guard], clock: ManualClock) -> None:
    guard = opened()
    guard.spend("vendor", 8)
    assert clock.now() == NOW
    with pytest.raises(SourceThrottled):
        guard.spend("vendor", 3)
    guard.spend("vendor", 2)


def test_the_last_fifth_is_kept_for_people(opened: Callable[..., Guard], limited: Limited) -> None:
    guard = opened()
    for _ in range(8):
        guard.call(limited, "bars_1d", lambda: None, cost=1, background=True)
    with pytest.raises(SourceThrottled, match="last fifth of vendor's 10 requests per hour"):
        guard.call(limited, "bars_1d", lambda: None, cost=1, background=True)
    guard.call(limited, "bars_1d", lambda: None, cost=1)


def test_the_background_is_not_tried_again_in_a_place_that_people_may_need(
    opened: Callable[..., Guard], limited: Limited
) -> None:
    guard, call = opened(), raising(SourceUnavailable("down"))
    with pytest.raises(SourceUnavailable):
        guard.call(limited, "bars_1d", call, cost=1, background=True)
    assert call() == "rows"  # the next call would have answered


def test_the_background_waits_for_no_budget(opened: Callable[..., Guard], limited: Limited, clock: ManualClock) -> None:
    guard = opened({"vendor": Budget(at_once=1, per_hour=10)})
    guard.spend("vendor", 4)
    clock.advance(seconds=3590)  # in ten seconds there is room again
    guard.spend("vendor", 3)
    began = clock.monotonic()
    with pytest.raises(SourceThrottled, match="is spent"):
        guard.call(limited, "bars_1d", lambda: None, cost=4, background=True)
    assert clock.monotonic() == began
    guard.call(limited, "bars_1d", lambda: None, cost=4)  # somebody who waits does so


def test_a_clock_that_is_put_back_neither_grants_more_nor_waits_for_ever(
    opened: Callable[..., Guard], clock: ManualClock
) -> None:
    guard = opened()
    spend(guard, 10)
    clock.set(NOW - timedelta(days=400))
    with pytest.raises(SourceThrottled) as raised:
        guard.spend("vendor")
    assert raised.value.retry_at is not None
    assert raised.value.retry_at <= clock.now() + timedelta(hours=1, minutes=1)


KILLED = """
import sys
from pathlib import Path
from fletching_server.clock import SystemClock
from fletching_server.guard import Guard
from fletching_server.sources import Budget

class Source:
    name = "vendor"

guard = Guard(Path(sys.argv[1]), SystemClock(), {"vendor": Budget(per_hour=1000)})
guard.adopt(Source())
while True:
    guard.spend("vendor")
    print("spent", flush=True)
"""


def test_what_a_killed_process_spent_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "guard.sqlite"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.readlines()
    from fletching_server.clock import SystemClock  # noqa: PLC0415  # the real clock, as in the process

    guard = Guard(path, SystemClock(), {"vendor": Budget(per_hour=1000)})
    guard.adopt(type("Source", (), {"name": "vendor"})())
    spent = {row["budget"]: row["spent"] for row in guard.table().to_pylist()}["hour"]
    guard.close()
    assert spent in {len(told), len(told) + 1}


def test_a_damaged_memory_is_set_aside(tmp_path: Path, opened: Callable[..., Guard]) -> None:
    (tmp_path / "guard.sqlite").write_bytes(b"this is no database" * 500)
    spend(opened(), 1)
    assert (tmp_path / "guard.sqlite.damaged").exists()


# Circuits and retries


def test_a_dropped_connection_gets_one_more_try(opened: Callable[..., Guard], limited: Limited, clock: ManualClock) -> None:
    assert opened().call(limited, "bars_1d", raising(SourceThrottled("dropped"))) == "rows"
    assert 5 <= (clock.now() - NOW).total_seconds() <= 7.5


def test_the_second_drop_opens_the_circuit_for_longer_each_time(
    opened: Callable[..., Guard], limited: Limited, clock: ManualClock
) -> None:
    guard = opened()
    drop = SourceThrottled("eastmoney dropped the connection")
    minutes = []
    for round_ in range(8):
        errors = [drop] * (1 if round_ else 2)  # the probe of a half-open circuit is not tried again
        with pytest.raises(SourceThrottled, match=r"is not asked again before") as raised:
            guard.call(limited, "bars_1d", raising(*errors))
        assert raised.value.retry_at is not None
        minutes.append(round((raised.value.retry_at - clock.now()).total_seconds() / 60))
        with pytest.raises(SourceThrottled, match=r"vendor is not asked before .* dropped the connection") as refused:
            guard.call(limited, "bars_1d", raising())
        assert refused.value.retry_at == raised.value.retry_at
        clock.set(raised.value.retry_at)
    assert minutes == [30, 60, 120, 240, 480, 960, 1440, 1440]
    assert guard.call(limited, "bars_1d", raising()) == "rows"
    assert guard.call(limited, "bars_1d", raising(drop)) == "rows"  # closed again: a drop is tried again
    (row, _) = guard.table().to_pylist()
    assert (row["state"], row["avoided"]) == ("closed", 8)


def test_an_open_circuit_survives_a_restart(opened: Callable[..., Guard], limited: Limited) -> None:
    drop = SourceThrottled("dropped")
    with pytest.raises(SourceThrottled):
        opened().call(limited, "bars_1d", raising(drop, drop))
    with pytest.raises(SourceThrottled, match="vendor is not asked before 2026-11-20 12:30"):
        opened().call(limited, "bars_1d", raising())


def test_while_one_probe_is_under_way_no_other_call_passes(
    opened: Callable[..., Guard], limited: Limited, clock: ManualClock
) -> None:
    guard = opened()
    drop = SourceThrottled("dropped")
    with pytest.raises(SourceThrottled):
        guard.call(limited, "bars_1d", raising(drop, drop))
    clock.advance(minutes=31)

    def probe() -> str:
        with pytest.raises(SourceThrottled, match="not asked before"):
            guard.call(limited, "bars_1d", raising())
        return "rows"

    assert guard.call(limited, "bars_1d", probe) == "rows"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (SourceThrottled("429"), 2),
        (SourceTimeout("hung"), 2),
        (SourceUnavailable("no route"), 4),
        (BadSourceData("nonsense"), 1),
        (SourceChanged("12 columns"), 1),
        (UnknownSymbol("no such symbol"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_kind_of_failure_gets_the_tries_that_may_help(
    opened: Callable[..., Guard], limited: Limited, error: Exception, tries: int
) -> None:
    made = []

    def call() -> None:
        made.append(1)
        raise error

    with pytest.raises(type(error)):
        opened().call(limited, "bars_1d", call)
    assert len(made) == tries


def test_a_function_that_changed_shape_is_left_alone_for_an_hour(
    opened: Callable[..., Guard], limited: Limited, clock: ManualClock
) -> None:
    guard = opened()
    with pytest.raises(SourceChanged):
        guard.call(limited, "bars_1d", raising(SourceChanged("13 columns for 12")))
    with pytest.raises(SourceChanged, match=r"bars_1d is not asked before .*13 columns"):
        guard.call(limited, "bars_1d", raising())
    assert guard.call(limited, "news", raising()) == "rows"
    clock.advance(hours=1)
    assert guard.call(limited, "bars_1d", raising()) == "rows"


def test_a_source_without_limits_is_called_as_it_is(opened: Callable[..., Guard], source: TableSource) -> None:
    guard = opened()
    guard.adopt(source)
    with pytest.raises(SourceUnavailable) as raised:
        guard.call(source, "bars_1d", raising(SourceUnavailable("down")))
    assert raised.value.retry_at is None
    assert guard.call(source, "bars_1d", raising()) == "rows"


def test_no_more_calls_at_once_than_the_budget_says(opened: Callable[..., Guard], limited: Limited) -> None:
    guard, lock, under_way, most = opened(), threading.Lock(), [0], [0]

    def call() -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        assert not threading.Event().wait(0)
        with lock:
            under_way[0] -= 1

    in_threads(16, lambda _number: guard.call(limited, "bars_1d", call))
    assert most[0] <= 2


def test_closing_ends_a_pause(opened: Callable[..., Guard], limited: Limited) -> None:
    guard = opened()
    guard.release()
    with pytest.raises(SourceUnavailable, match="closing"):
        guard.call(limited, "bars_1d", raising())


# In an engine


def test_a_ban_in_the_middle_keeps_what_arrived_and_says_when_to_go_on(open_store: Opener, limited: Limited) -> None:
    calls: list[FetchRequest] = []

    def answer(request: FetchRequest) -> Any:
        calls.append(request)
        if len(calls) > 2:
            raise SourceThrottled("vendor dropped the connection")
        return limited.table(request)

    limited.answer = answer
    engine = open_store(limited, source_calls=1)
    table, info = read_info(engine, symbols=SYMBOLS, start="2026-11-02", end="2026-11-06")
    assert table.num_rows == 10
    assert [status.state for status in info.symbols.values()].count("ok") == 2
    for status in info.failed.values():
        assert status.reason == "source_throttled"
        assert status.retry_at is not None
        assert NOW + timedelta(minutes=30) <= status.retry_at <= NOW + timedelta(minutes=31)
    assert len(calls) == 4  # the third symbol twice, and then nobody
    with pytest.raises(SourceThrottled, match=r"3 of 5 symbols failed; what arrived is kept") as raised:
        read(engine, symbols=SYMBOLS, start="2026-11-02", end="2026-11-06")
    assert raised.value.retry_at is not None


def test_a_ban_in_the_middle_of_a_thousand_symbols(open_store: Opener, limited: Limited) -> None:
    names = [f"{number:06}.SZ" for number in range(1, 1001)]
    limited.rows |= bars(names, [date(2026, 11, 20)])
    limited.budgets = {"vendor": Budget(at_once=1)}
    banned = True

    def answer(request: FetchRequest) -> Any:
        if banned and len(limited.requests) > 600:
            raise SourceThrottled("vendor dropped the connection")
        return limited.table(request)

    limited.answer = answer
    engine = open_store(limited)
    table, info = read_info(engine, symbols=names, start="2026-11-20", end="2026-11-20")
    assert (table.num_rows, len(info.failed), len(limited.requests)) == (600, 400, 602)
    assert {status.retry_at for status in info.failed.values()} != {None}
    assert engine.desk.guard.facts()["guard_vendor_avoided"] == 399
    banned = False
    engine.clock.advance(minutes=31)  # type: ignore[attr-defined]  # a ManualClock
    table, info = read_info(engine, symbols=names, start="2026-11-20", end="2026-11-20")
    assert (table.num_rows, info.upstream_calls, info.failed) == (1000, 400, {})


def test_an_unknown_symbol_is_remembered_until_it_is_invalidated(open_store: Opener, limited: Limited) -> None:
    def answer(_request: FetchRequest) -> Any:
        raise UnknownSymbol("vendor has no 999999.SZ")

    limited.answer = answer
    engine = open_store(limited)
    for _ in range(3):
        with pytest.raises(UnknownSymbol, match=r"no 999999\.SZ"):
            read(engine, symbols="999999.SZ", start="2026-11-02", end="2026-11-06")
    assert len(limited.requests) == 1
    again = open_store.again(engine, limited)
    with pytest.raises(UnknownSymbol, match="remembered until 2026-11-21 12:00"):
        read(again, symbols="999999.SZ", start="2026-11-02", end="2026-11-06")
    again.desk.guard.forget("bars_1d", ("999999.SZ",))
    limited.answer = None
    assert read(again, symbols="999999.SZ", start="2026-11-02", end="2026-11-06").num_rows == 0
    assert len(limited.requests) == 2


def test_stats_and_the_table_show_what_is_spent(open_store: Opener, limited: Limited) -> None:
    engine = open_store(limited)
    read(engine, symbols=SYMBOLS[:3], start="2026-11-02", end="2026-11-06")
    hour, day = engine.desk.guard.table().to_pylist()
    assert (hour["family"], hour["budget"], hour["limit"], hour["spent"], hour["left"], hour["state"]) == (
        "vendor",
        "hour",
        10,
        3,
        7,
        "closed",
    )
    assert (day["limit"], day["spent"], day["calls"], day["failures"]) == (50, 3, 3, 0)
    assert engine._parts.read_path.inspection.stats()["guard_vendor_hour_requests"] == 3
