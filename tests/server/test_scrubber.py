"""The scrubber: every file once per period, at its pace, and what it does about damage."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import SYMBOLS, WAIT_SECONDS, Opener, TableSource, expected, read, weekdays, write

from fletching_schemas import Action
from fletching_server import Engine, disk
from fletching_server.scrubber import Interrupted, next_due, spread
from fletching_server.snapshot import StoredFile
from fletching_server.store import Store
from fletching_server.testing import ManualClock

MON, FRI = date(2026, 11, 2), date(2026, 11, 6)
DAYS = 30.0

Happening = Callable[[Callable[[], object]], None]


def file_named(name: str) -> StoredFile:
    return StoredFile(name, "bars", "partition", name, 0, name, "", 1, 1, 1, 0, 1, ("A",))


# Whose turn it is

times = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0, 100), max_size=10)


@given(times, st.floats(0, 100))
def test_the_file_that_waited_longest_is_next_once_it_is_due(checked: dict[str, float], before: float) -> None:
    found = next_due([file_named(name) for name in checked], checked, before)
    if found is None:
        assert all(at > before for at in checked.values())
    else:
        assert checked[found.id] == min(checked.values()) <= before


@given(st.lists(st.uuids(), min_size=200, max_size=200, unique=True))
def test_first_checks_are_spread_over_the_period(ids: list[Any]) -> None:
    places = sorted(spread(each.hex) for each in ids)
    assert 0 <= places[0] < 0.2
    assert 0.8 < places[-1] <= 1


# A store


@pytest.fixture
def scrubbed(open_store: Opener, source: TableSource) -> Engine:
    """Return an engine with a sourced partition, a segment beside it, and two files of a user table; no thread runs."""
    engine = open_store(source, scrub_days=DAYS)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    write(engine, "mine", [{"id": "a", "day": MON}], keys=["id", "day"])
    for name in ("bars_1d", "mine"):
        engine.act(Action.COMPACT, {"dataset": name})
    write(engine, "mine", [{"id": "b", "day": MON}], keys=["id", "day"])
    read(engine, symbols=SYMBOLS[0], start=date(2026, 11, 9), end=date(2026, 11, 9))
    return still(engine)


def still(engine: Engine) -> Engine:
    engine._parts.housekeeping.scrubbing.close()
    engine.scrubber.pause = lambda _seconds: False
    return engine


def files_of(engine: Engine, *datasets: str) -> list[StoredFile]:
    return [file for name in datasets or ("bars_1d", "mine") for file in engine.store.state(name).files]


def spoil(engine: Engine, file: StoredFile) -> Path:
    path = engine.store.root / file.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def round_of(engine: Engine, clock: ManualClock) -> int:
    """See what there is, let a period pass, do all that is due, and return how many steps that took."""
    assert not engine.scrubber.step()
    clock.advance(days=DAYS)
    steps = 0
    while engine.scrubber.step():
        steps += 1
    return steps


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of files whose checksums are read from now on."""
    read_by: list[str] = []
    real = disk.file_digest

    def noted(path: Path, *more: Any) -> str:
        read_by.append(path.name)
        return real(path, *more)

    monkeypatch.setattr(disk, "file_digest", noted)
    return read_by


def test_every_file_is_read_once_in_a_period(scrubbed: Engine, clock: ManualClock, digests: list[str]) -> None:
    names = sorted(Path(file.path).name for file in files_of(scrubbed))
    for _ in range(2):
        assert round_of(scrubbed, clock) == len(names) + 1  # and the end of the round
        assert sorted(digests) == names
        digests.clear()
        assert not scrubbed.scrubber.step()
    stats: Any = scrubbed.act(Action.STATS, {})
    assert stats["scrubbed_files"] == 2 * len(names)
    assert stats["scrubbed_bytes"] == 2 * sum(file.bytes for file in files_of(scrubbed))
    assert stats["scrub_round_ended"] == clock.now().timestamp()
    assert stats["damaged_now"] == stats["damaged_files"] == 0


def test_the_checks_of_new_files_come_one_by_one(
    open_store: Opener, source: TableSource, clock: ManualClock, digests: list[str]
) -> None:
    engine = still(open_store(source, scrub_days=DAYS))
    for day in weekdays(MON, date(2026, 11, 20)):
        read(engine, symbols=SYMBOLS, start=day, end=day)
    count = len(files_of(engine, "bars_1d"))
    assert count == 75
    engine.scrubber.step()
    digests.clear()
    due = []
    for _ in range(10):
        clock.advance(days=DAYS / 10)
        before = len(digests)
        while engine.scrubber.step():
            pass
        due.append(len(digests) - before)
    assert len(set(digests)) >= count - 1
    assert max(due) < count / 3


def test_it_reads_no_faster_than_it_may(open_store: Opener, clock: ManualClock) -> None:
    engine = still(open_store(scrub_days=DAYS, scrub_mb_per_second=2.0))
    noise, count = random.Random(1), 200_000
    ids = [str(number) for number in range(count)]
    rows = pa.table({"id": ids, "day": [MON] * count, "value": [noise.random() for _ in ids]})
    write(engine, "mine", rows, keys=["id", "day"])
    (file,) = files_of(engine, "mine")
    assert file.bytes > 1 << 20
    rests: list[float] = []

    def rest(seconds: float) -> bool:
        rests.append(seconds)
        return False

    engine.scrubber.pause = rest
    round_of(engine, clock)
    assert len(rests) >= 2
    assert sum(rests) == pytest.approx(file.bytes / 2e6)


def test_zero_days_are_never(open_store: Opener, source: TableSource, clock: ManualClock) -> None:
    engine = open_store(source, scrub_days=0)
    read(engine, symbols=SYMBOLS, start=MON, end=FRI)
    assert round_of(engine, clock) == 0


def test_closing_ends_a_check_under_way(scrubbed: Engine, clock: ManualClock) -> None:
    scrubbed.scrubber.step()
    clock.advance(days=DAYS)
    scrubbed.scrubber.pause = lambda _seconds: True
    with pytest.raises(Interrupted):
        scrubbed.scrubber.step()
    scrubbed.scrubber.work()  # ends as well, without an error
    assert scrubbed.act(Action.STATS, {})["scrubbed_files"] == 0


def test_the_thread_ends_with_the_engine_in_the_middle_of_a_pause(
    open_store: Opener, scrubbed: Engine, source: TableSource, clock: ManualClock
) -> None:
    again = open_store.again(scrubbed, source, scrub_days=DAYS, scrub_mb_per_second=0.0001)  # most of an hour per file
    pausing, pause = threading.Event(), again.scrubber.pause

    def told(seconds: float) -> bool:
        pausing.set()
        return pause(seconds)

    again.scrubber.pause = told
    again.scrubber.step()
    clock.advance(days=DAYS)
    again._parts.housekeeping.scrubbing.wake()
    assert pausing.wait(WAIT_SECONDS)
    again.close()
    assert not again._parts.housekeeping.scrubbing._thread.is_alive()


def test_when_files_were_checked_survives_a_restart(
    open_store: Opener, scrubbed: Engine, source: TableSource, clock: ManualClock
) -> None:
    round_of(scrubbed, clock)
    told = scrubbed.scrubber.told()
    scrubbed.close()
    clock.advance(days=DAYS / 2)
    again = still(open_store(source, scrub_days=DAYS))
    assert again.scrubber.told() == told == "the scrubber's last round ended 2026-12-20 12:00 UTC"
    assert not again.scrubber.step()
    clock.advance(days=DAYS / 2)
    assert again.scrubber.step()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"checked": 3}',
        '{"checked": {"a": "b"}}',
        '{"ended": 1e999}',
        '{"damaged": []}',
        '{"begun": null}',
        "\x00",
    ],
)
def test_notes_that_cannot_be_read_are_begun_anew(
    open_store: Opener, scrubbed: Engine, source: TableSource, clock: ManualClock, content: str
) -> None:
    scrubbed.close()
    (scrubbed.store.root / "scrub.json").write_text(content)
    again = still(open_store(source, scrub_days=DAYS))
    assert round_of(again, clock) == len(files_of(again)) + 1


def test_times_in_the_future_are_not_believed(
    open_store: Opener, scrubbed: Engine, source: TableSource, clock: ManualClock
) -> None:
    scrubbed.close()
    ahead = clock.now().timestamp() + 1e9
    checked = {file.id: ahead for file in files_of(scrubbed)}
    (scrubbed.store.root / "scrub.json").write_text(json.dumps({"checked": checked, "begun": ahead}))
    again = still(open_store(source, scrub_days=DAYS))
    again.scrubber.step()
    assert round_of(again, clock) == len(checked) + 1


# Damage


def test_damaged_rows_of_a_source_are_set_aside_and_fetched_again(
    scrubbed: Engine, clock: ManualClock, source: TableSource
) -> None:
    (partition,) = (file for file in files_of(scrubbed, "bars_1d") if file.kind == "partition")
    spoil(scrubbed, partition)
    source.requests.clear()
    round_of(scrubbed, clock)
    assert partition.id not in {file.id for file in files_of(scrubbed)}
    assert len(list((scrubbed.store.root / "set-aside").iterdir())) == 1
    assert scrubbed.act(Action.STATS, {})["damaged_files"] == 1
    assert scrubbed.act(Action.HEALTH, {})["damaged"] == []
    want = expected(source.dataset, source.rows, SYMBOLS, MON, FRI)
    assert read(scrubbed, symbols=SYMBOLS, start=MON, end=FRI).equals(want)
    assert len(source.requests) == len(SYMBOLS)


def test_damaged_user_data_stays_and_is_told_loudly_each_time_until_it_is_sound(
    open_store: Opener, scrubbed: Engine, clock: ManualClock, logs: list[Any]
) -> None:
    open_store.damaged = True
    file = files_of(scrubbed, "mine")[0]
    path = scrubbed.store.root / file.path
    sound = path.read_bytes()
    spoil(scrubbed, file)
    for number in (1, 2):
        round_of(scrubbed, clock)
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["user data is damaged"] * number
        (told,) = scrubbed.act(Action.HEALTH, {})["damaged"]
        assert file.path in told
        assert "restore this file from a backup" in told
        assert scrubbed.act(Action.STATS, {})["damaged_files"] == number
        assert scrubbed.act(Action.STATS, {})["damaged_now"] == 1
        assert path.exists()
    path.write_bytes(sound)
    round_of(scrubbed, clock)
    assert scrubbed.act(Action.HEALTH, {})["damaged"] == []


def test_damage_is_still_told_after_a_restart_until_the_table_is_gone(
    open_store: Opener, scrubbed: Engine, clock: ManualClock
) -> None:
    open_store.damaged = True
    spoil(scrubbed, files_of(scrubbed, "mine")[0])
    round_of(scrubbed, clock)
    again = still(open_store.again(scrubbed, scrub_days=DAYS))
    assert len(again.scrubber.damaged()) == 1
    again.act(Action.DELETE, {"dataset": "mine"})
    again.scrubber.step()
    assert again.scrubber.damaged() == []


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Happening:
    """Return what has something done once, while the next file is being read."""

    def arrange(happening: Callable[[], object]) -> None:
        real = Store.verify

        def meanwhile(self: Store, file: StoredFile, *more: Any) -> None:
            monkeypatch.setattr(Store, "verify", real)
            happening()
            real(self, file, *more)

        monkeypatch.setattr(Store, "verify", meanwhile)

    return arrange


@pytest.mark.parametrize("dataset", ["bars_1d", "mine"])
@pytest.mark.parametrize("what", ["compact", "delete"])
def test_a_file_that_retires_while_it_is_read_is_no_damage(
    scrubbed: Engine,
    clock: ManualClock,
    reading: Happening,
    dataset: str,
    what: str,
    logs: list[Any],
) -> None:
    other = {"bars_1d": "mine", "mine": "bars_1d"}[dataset]
    scrubbed.act(Action.DELETE, {"dataset": other})
    reading(lambda: scrubbed.act(Action(what), {"dataset": dataset}))
    round_of(scrubbed, clock)
    assert scrubbed.act(Action.STATS, {})["damaged_files"] == 0
    assert not [entry for entry in logs if entry["log_level"] in {"error", "warning"}]


@pytest.mark.parametrize("dataset", ["bars_1d", "mine"])
def test_a_disk_that_cannot_read_is_damage_of_that_file(
    open_store: Opener, scrubbed: Engine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    open_store.damaged = True
    bad = files_of(scrubbed, dataset)[0]
    real = disk.file_digest

    def failing(path: Path, *more: Any) -> str:
        if path.name == Path(bad.path).name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *more)

    monkeypatch.setattr(disk, "file_digest", failing)
    count = len(files_of(scrubbed))
    assert round_of(scrubbed, clock) == count + 1
    assert scrubbed.act(Action.STATS, {})["damaged_files"] == 1
    assert [bad.path in told for told in scrubbed.scrubber.damaged()] == ([True] if dataset == "mine" else [])
    monkeypatch.undo()


def test_a_damaged_catalogue_is_told(scrubbed: Engine, clock: ManualClock, logs: list[Any]) -> None:
    for answer in (["catalogue: row 5 missing from index"], []):
        scrubbed.store.catalogue.integrity = lambda answer=answer: answer  # type: ignore[method-assign,misc]
        round_of(scrubbed, clock)
        assert [answer[0] in told for told in scrubbed.scrubber.damaged()] == [True] * len(answer)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["the catalogue is damaged"]


def test_a_bug_does_not_end_the_thread(scrubbed: Engine, monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    def bug() -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scrubbed.scrubber, "step", bug)
    assert scrubbed._parts.housekeeping.scrubbing._worked() > 0
    assert [entry["event"] for entry in logs] == ["background work failed; it is tried again"]
