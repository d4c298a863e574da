"""A live server, an upstream that takes 200 ms a call, and days that pass at once: what is read every morning waits in memory.

The warmer runs in its own thread, as it always does; the test moves the clock, wakes it, and waits until it has looked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

import fletching
from fletching_schemas import FetchRequest
from fletching_server.sources.sim import SimSource
from fletching_server.testing import ManualClock
from fletching_server.warmer import Warmer

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes, Rig, Rigs

SHANGHAI = ZoneInfo("Asia/Shanghai")
DAYS = [date(2024, 6, day) for day in (12, 13, 14, 17, 18)]  # the 10th was a holiday
SIXTH = date(2024, 6, 19)
NAMES = ["600000.SH", "000001.SZ", "300001.SZ"]
WAIT_SECONDS = 60.0


class SlowSource(SimSource):
    """The simulated exchange, 200 ms per call by the test's clock, which counts them."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(symbols=20, first=date(2024, 1, 2), symbols_per_call=1)
        self.requests: list[FetchRequest] = []
        self._clock = clock

    def fetch(self, request: FetchRequest) -> Any:
        self.requests.append(request)
        self._clock.advance(seconds=0.2)
        return super().fetch(request)


class Looks:
    """The looks that the warmer's thread takes; ``now`` asks for one and returns when it has ended."""

    def __init__(self, warmer: Warmer) -> None:
        self._background, self._work = warmer.background, warmer.background._work
        self._changed, self._begun, self._ended = threading.Condition(), 0, 0
        warmer.background._work = self._counted

    def _counted(self) -> float:
        with self._changed:
            self._begun += 1
        try:
            return self._work()
        finally:
            with self._changed:
                self._ended += 1
                self._changed.notify_all()

    def now(self) -> None:
        with self._changed:
            wanted = self._begun + 1  # one that is under way has looked at the clock already
            self._background.wake()
            assert self._changed.wait_for(lambda: self._ended >= wanted, WAIT_SECONDS), "the warmer never looked"


def before(day: date) -> date:
    """Return the session before a day of the test, which has no other holidays."""
    return day - timedelta(days=3 if day.weekday() == 0 else 1)


class Desk:
    """A server whose days pass when the test says so, and the person who reads from it."""

    def __init__(self, rig: Rig, clock: ManualClock, source: SlowSource, dataset: str) -> None:
        self.rig, self.clock, self.source, self.dataset = rig, clock, source, dataset
        self.looks = Looks(rig.engine.warmer)

    def at(self, day: date, hour: float) -> None:
        instant = datetime(day.year, day.month, day.day, tzinfo=SHANGHAI) + timedelta(hours=hour)
        self.clock.advance(seconds=(instant - self.clock.now()).total_seconds())
        self.rig.engine.access.flush()
        self.looks.now()

    def read(self, day: date) -> fletching.ReadInfo:
        """Read a week: daily bars as far as there are any, or minutes up to the session before."""
        end = None if self.dataset == "bars_1d" else before(day)
        _, info = self.rig.cache.read(self.dataset, NAMES, day - timedelta(days=7), end, info=True)
        self.rig.wait_until_idle()
        assert isinstance(info, fletching.ReadInfo)
        return info

    def day(self, day: date) -> fletching.ReadInfo:
        self.at(day, 7.9)
        self.clock.advance(minutes=50)
        info = self.read(day)
        self.at(day, 12.5)
        self.at(day, 16.5)
        return info


@pytest.fixture(params=[("tcp", "bars_1m"), ("local", "bars_1d")], ids=["minutes over Flight", "days in shared memory"])
def desk(request: pytest.FixtureRequest, rigs: Rigs) -> Iterator[Desk]:
    clock = ManualClock(datetime(2024, 6, 11, 20, 0, tzinfo=SHANGHAI))
    source = SlowSource(clock)
    plane, dataset = request.param
    # Hours pass at once here: the journal, which is folded seconds after a fill, would be folded in the middle of a morning.
    folding = {"compact_idle_seconds": 3600, "compact_settle_seconds": 1e9, "compact_segments": 10_000}
    rig = rigs(plane, [source], clock, warm_held_out=0, access_seconds=3600, **folding)
    yield Desk(rig, clock, source, dataset)
    rig.let_go()
    assert rig.engine.verify() == []


def test_the_first_read_of_the_sixth_morning_is_answered_from_memory_without_upstream(desk: Desk) -> None:
    first = desk.day(DAYS[0])
    assert first.upstream_calls == len(NAMES)
    for day in DAYS[1:]:
        desk.day(day)
    desk.at(SIXTH, 7.9)
    desk.clock.advance(minutes=50)
    calls = len(desk.source.requests)
    info = desk.read(SIXTH)
    assert (info.tier, info.upstream_calls, info.joined_calls) == ("hot", 0, 0)
    assert info.rows == len(NAMES) * (5 if desk.dataset == "bars_1d" else 5 * 240)
    assert info.warmed > 0
    assert len(desk.source.requests) == calls
    told = desk.rig.cache.stats()
    assert told["warm_precision"] == 1
    assert told["warm_saved_seconds"] > 0.2 * 3


def test_what_it_would_do_is_told_over_the_wire(desk: Desk) -> None:
    for day in DAYS[:2]:
        desk.day(day)
    desk.rig.engine.warmer.on = False  # it hears no more, and so has something left to do
    desk.clock.advance(days=1)
    told = desk.rig.cache.warm(explain=True)
    assert told["words"][0].startswith("the warmer is off")
    assert any("upstream calls" in line for line in told["words"])


SLOW = "delay_seconds = 0.05\nsymbols = 40\nsymbols_per_call = 1\n"


def test_a_server_that_is_killed_while_it_warms_has_what_it_has_and_serves_it(root: Any, processes: Processes) -> None:
    config = root / "slow.toml"
    config.write_text(SLOW)
    store, sources = root / "store", [f"sim:{config}"]
    server = processes.serve(store, sources)
    url = server.url()
    failed: list[BaseException] = []

    def wish() -> None:
        try:
            with fletching.connect(url) as cache:
                cache.warm("bars_1d", None, "2024-01-02", "2024-03-29")
        except fletching.Error as error:
            failed.append(error)

    wishing = threading.Thread(target=wish)
    wishing.start()
    with fletching.connect(url) as cache:
        assert cache.read("bars_1d", "600000.SH", "2024-01-02", "2024-03-29").height > 50  # goes before the wish
        while cache.stats()["upstream_calls"] < 6:
            pass
    server.send("kill")
    wishing.join(WAIT_SECONDS)
    assert failed
    again = processes.serve(store, sources)
    with fletching.connect(again.url()) as cache:
        _, info = cache.read("bars_1d", "600000.SH", "2024-01-02", "2024-03-29", info=True)
        assert (info.tier, info.upstream_calls) == ("cold", 0)
        told = cache.warm("bars_1d", None, "2024-01-02", "2024-03-29")
        assert 0 < told["upstream_calls"] < 40
        assert cache.read("bars_1d", None, "2024-01-02", "2024-03-29", info=True)[1].tier == "hot"
    again.send("term")
    assert again.wait() == 0
