"""Decayed uses and measured calls: what they say, and that they survive a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from math import log2
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import SYMBOLS, Opener, TableSource, read, write

from fletching_schemas import Action
from fletching_server import Engine
from fletching_server.notes import Notes
from fletching_server.snapshot import DatasetState
from fletching_server.testing import ManualClock
from fletching_server.uses import GUESSED_CALL_SECONDS, HALF_LIFE_SECONDS, Uses, added, key_of

HALF_LIFE = {"seconds": HALF_LIFE_SECONDS}


@pytest.fixture
def folded(engine: Engine) -> Engine:
    """Return an engine with one partition of bars_1d and one of a user table."""
    read(engine, symbols=SYMBOLS, start="2026-11-02", end="2026-11-06")
    write(engine, "mine", [{"id": "a", "day": date(2026, 11, 2)}], keys=["id", "day"])
    for name in ("bars_1d", "mine"):
        engine.act(Action.COMPACT, {"dataset": name})
    return engine


@pytest.fixture
def uses(tmp_path: Path, clock: ManualClock) -> Uses:
    return Uses(Notes(tmp_path / "uses.json"), clock)


def count(uses: Uses, engine: Engine) -> float:
    (file,) = engine.store.state("bars_1d").files
    return uses.decayed(uses.weights([key_of(file)])[key_of(file)])


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=20))
def test_a_weight_is_the_logarithm_of_uses_that_halve(told: list[tuple[float, int]]) -> None:
    weight = None
    for at, number in told:  # in any order: nothing depends on it
        weight = added(weight, number, at)
    assert weight == pytest.approx(log2(sum(number * 2**at for at, number in told)))


def test_uses_halve_with_time(uses: Uses, folded: Engine, clock: ManualClock) -> None:
    (file,) = folded.store.state("bars_1d").files
    for _ in range(3):
        uses.note(file)
    assert count(uses, folded) == pytest.approx(3)
    clock.advance(**HALF_LIFE)
    uses.note(file)
    assert count(uses, folded) == pytest.approx(2.5)


def test_what_was_never_read_counts_as_used_when_it_was_first_seen(uses: Uses, folded: Engine, clock: ManualClock) -> None:
    assert count(uses, folded) == pytest.approx(1)
    clock.advance(**HALF_LIFE)
    assert count(uses, folded) == pytest.approx(0.5)


def test_a_read_is_a_use_of_each_partition_it_touches(folded: Engine) -> None:
    before = count(folded._parts.upstream.uses, folded)
    for _ in range(4):
        read(folded, symbols=SYMBOLS[0], start="2026-11-02", end="2026-11-06")
    assert count(folded._parts.upstream.uses, folded) == pytest.approx(before + 4)


def test_uses_of_segments_belong_to_no_partition(engine: Engine) -> None:
    for _ in range(2):
        read(engine, symbols=SYMBOLS, start="2026-11-02", end="2026-11-06")
    assert engine._parts.upstream.uses.facts()["uses"] == []


def test_calls_are_a_mean_in_which_the_newest_counts_most(uses: Uses) -> None:
    assert uses.call_seconds("bars_1d") == GUESSED_CALL_SECONDS
    for seconds in (10.0, 0.0, 0.0, 0.0):
        uses.filled("bars_1d", seconds)
    assert 4 < uses.call_seconds("bars_1d") < 6
    assert uses.call_seconds("other") == GUESSED_CALL_SECONDS


def test_a_fill_is_measured(open_store: Opener, source: TableSource, clock: ManualClock) -> None:
    def slow(request: object) -> object:
        clock.advance(seconds=7)
        return source.table(request)  # type: ignore[arg-type]

    source.answer = slow
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[0], start="2026-11-02", end="2026-11-06")
    assert engine._parts.upstream.uses.call_seconds("bars_1d") == pytest.approx(7)


def test_uses_survive_a_restart_and_go_on_decaying(
    open_store: Opener, folded: Engine, source: TableSource, clock: ManualClock
) -> None:
    for _ in range(3):
        read(folded, symbols=SYMBOLS, start="2026-11-02", end="2026-11-06")
    before = count(folded._parts.upstream.uses, folded)
    folded._parts.upstream.uses.filled("bars_1d", 99.0)
    seconds = folded._parts.upstream.uses.call_seconds("bars_1d")
    folded.close()
    clock.advance(**HALF_LIFE)
    again = open_store(source)
    assert count(again._parts.upstream.uses, again) == pytest.approx(before / 2)
    assert again._parts.upstream.uses.call_seconds("bars_1d") == seconds


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"at": null}', '{"at": 1, "uses": 3}', '{"uses": []}', '{"at": 1, "uses": [["a", "b", 1e999, 1]]}',
     '{"at": 1, "uses": [["a"]], "call_seconds": []}', "\x00\x01"],
)  # fmt: skip
def test_notes_that_cannot_be_read_are_begun_anew(folded: Engine, open_store: Opener, source: TableSource, content: str) -> None:
    folded.close()
    (folded.store.root / "uses.json").write_text(content)
    again = open_store(source)
    assert count(again._parts.upstream.uses, again) == pytest.approx(1)


@pytest.mark.parametrize("weird", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_numbers_that_are_none_do_no_harm(folded: Engine, open_store: Opener, source: TableSource, weird: float) -> None:
    folded.close()
    (folded.store.root / "uses.json").write_text(
        json.dumps({"at": weird, "uses": [["bars_1d", "2026", 0, weird]], "call_seconds": {"bars_1d": weird}})
    )
    again = open_store(source)
    again.quota.settle()
    assert again._parts.upstream.uses.call_seconds("bars_1d") > 0
    json.loads(json.dumps(again._parts.upstream.uses.facts(), allow_nan=False))


def test_a_killed_writer_s_file_is_removed_at_the_next_writing(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "uses.json")
    (tmp_path / "uses.json.12345678.tmp").write_text("half")
    notes.save({"at": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["uses.json"]
    assert notes.load() == {"at": 1.0}


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    notes = Notes(tmp_path / "uses.json")
    notes.save({"at": 1.0})
    monkeypatch.setattr("os.write", full)
    notes.save({"at": 2.0})
    monkeypatch.undo()
    assert notes.load() == {"at": 1.0}


def test_what_arrives_while_a_read_collects_is_awaited(folded: Engine, uses: Uses) -> None:
    before = folded.store.state("bars_1d")
    ends = [uses.awaiting(before), uses.awaiting(before), uses.awaiting(folded.store.state("mine"))]
    read(folded, symbols=SYMBOLS[0], start="2026-11-09", end="2026-11-10")
    for end in ends:
        assert [uses.is_awaited(file) for file in folded.store.state("bars_1d").files] == [False, end is not ends[2]]
        end()
    assert not uses._reading


def test_only_a_read_with_gaps_awaits_anything(folded: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = Uses.awaiting

    def noted(self: Uses, state: DatasetState) -> Callable[[], None]:
        asked.append(state.dataset.name)
        return real(self, state)

    monkeypatch.setattr(Uses, "awaiting", noted)
    read(folded, symbols=SYMBOLS, start="2026-11-02", end="2026-11-06")
    assert asked == []
    read(folded, symbols=SYMBOLS, start="2026-11-02", end="2026-11-09")
    assert asked == ["bars_1d"]
    assert not folded._parts.upstream.uses._reading
