"""A write happens once, however often it is sent, and writes that arrive together share their syncs."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pytest
from tests.conftest import Opener, in_threads, read, write

from fletching_schemas import Action
from fletching_schemas.errors import InvalidRequest
from fletching_server import Engine, disk
from fletching_server.testing import ManualClock

D1 = date(2026, 11, 2)
KEYS = ["id", "day"]


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"s{number:03}", "day": D1, "x": number} for number in numbers]


@pytest.mark.parametrize("mode", ["upsert", "append", "replace"])
def test_the_same_write_again_does_nothing_and_tells_what_it_did(open_store: Opener, engine: Engine, mode: str) -> None:
    first = write(engine, "mine", rows(1, 2), keys=KEYS, mode=mode, key="one")
    write(engine, "mine", rows(2, 3), key="two")
    before = read(engine, "mine")
    generation = engine.store.state("mine").generation
    assert write(engine, "mine", rows(1, 2), mode=mode, key="one") == first
    again = open_store.again(engine)
    assert write(again, "mine", rows(1, 2), mode=mode, key="one") == first
    assert read(again, "mine").equals(before)
    assert again.store.state("mine").generation == generation
    assert again.act(Action.STATS, {})["writes"] == 0


def test_the_same_rows_in_other_chunks_are_the_same_write(engine: Engine) -> None:
    table = pa.Table.from_pylist(rows(*range(50)))
    first = write(engine, "mine", table, keys=KEYS, key="one")
    chunks = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    assert write(engine, "mine", chunks, key="one") == first


@pytest.mark.parametrize(
    "other",
    [
        {"rows": rows(1, 3)},
        {"rows": rows(2, 1)},
        {"rows": [{"id": "s001", "day": D1, "x": 99}]},
        {"mode": "append"},
        {"table": "other", "keys": KEYS},
    ],
    ids=str,
)
def test_a_key_that_stands_for_another_write_is_refused(engine: Engine, other: dict[str, Any]) -> None:
    write(engine, "mine", rows(1, 2), keys=KEYS, key="one")
    asked: dict[str, Any] = {"table": "mine", "rows": rows(1, 2), "key": "one"} | other
    with pytest.raises(InvalidRequest, match="the key 'one' was used for another write, to mine; make up a new one"):
        write(engine, asked.pop("table"), asked.pop("rows"), **asked)
    assert read(engine, "mine").num_rows == 2


def test_a_write_that_failed_leaves_its_key_free(engine: Engine) -> None:
    write(engine, "mine", rows(1), keys=KEYS)
    with pytest.raises(InvalidRequest, match="keys are there already"):
        write(engine, "mine", rows(1), mode="append", key="one")
    write(engine, "mine", rows(2), mode="append", key="one")
    assert read(engine, "mine").num_rows == 2


def test_keys_are_forgotten_with_the_past(engine: Engine, clock: ManualClock) -> None:
    write(engine, "mine", rows(1), keys=KEYS, key="one")
    clock.advance(days=8)
    write(engine, "mine", rows(2), key="two")
    engine.act(Action.VACUUM, {})
    assert set(engine.store.catalogue.written(["one", "two"])) == {"two"}


def test_of_the_same_write_sent_many_times_at_once_one_happens(engine: Engine) -> None:
    write(engine, "mine", rows(0), keys=KEYS)
    outcomes = in_threads(12, lambda _: write(engine, "mine", rows(1, 2, 3), mode="append", key="one"))
    assert len({outcome.generation for outcome in outcomes}) == 1
    assert engine.act(Action.STATS, {})["writes"] == 2
    assert read(engine, "mine").num_rows == 4


def test_writes_that_arrive_together_share_files_and_are_all_there(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    write(engine, "mine", rows(0), keys=KEYS)
    published: list[object] = []
    real = disk.publish

    def counted(path: object, *given: Any, **more: Any) -> Any:
        published.append(path)
        return real(path, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "publish", counted)
    outcomes = in_threads(16, lambda thread: [write(engine, "mine", rows(thread * 20 + step)) for step in range(20)])
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
    assert read(engine, "mine")["x"].to_pylist() == list(range(320))
    assert len(published) < 320 / 2
    generations = [result.generation for results in outcomes for result in results]
    assert len(set(generations)) == len(published)


def test_in_a_group_the_last_writer_of_a_key_wins(engine: Engine) -> None:
    write(engine, "mine", rows(0), keys=KEYS)

    def turn(thread: int) -> list[tuple[int, int]]:
        told = []
        for step in range(15):
            result = write(engine, "mine", [{"id": "shared", "day": D1, "x": thread * 100 + step}])
            told.append((result.generation, thread * 100 + step))
        return told

    told = [each for outcome in in_threads(8, turn) for each in outcome]
    last = max(generation for generation, _ in told)
    winner = read(engine, "mine", symbols="shared")["x"].to_pylist()
    assert winner[0] in {number for generation, number in told if generation == last}


def test_one_bad_write_of_a_group_fails_alone(engine: Engine) -> None:
    write(engine, "mine", rows(0), keys=KEYS)

    def turn(thread: int) -> Any:
        bad = thread == 3
        return write(engine, "mine", [{"id": "s", "day": D1 + timedelta(days=thread), "x": 0.5 if bad else thread}])

    outcomes = in_threads(8, turn)
    assert [thread for thread, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [3]
    assert read(engine, "mine", symbols="s").num_rows == 7
