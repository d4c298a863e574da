from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Background, in_threads

from fletching_schemas import Dataset, canonical
from fletching_schemas.errors import StoreError, StoreUnwritable, StoreVersion
from fletching_server import tables
from fletching_server.catalogue import Catalogue, Change
from fletching_server.changes import Define, Delete, Fill, Forget, Swap, Write
from fletching_server.history import Moment
from fletching_server.snapshot import DatasetState, Fact, StoredFile
from fletching_server.spans import EMPTY, FINAL, PROVISIONAL, Days, Span

NAMES = ("one", "two")
SYMBOLS = ("A", "B", "C")


def next_day(last: int, first: int) -> bool:
    return first <= last + 1


def dataset(name: str) -> Dataset:
    return canonical("bars_1d", calendar="XSHG", as_name=name)


def file_of(name: str, number: int, symbols: tuple[str, ...] = ("A",), kind: Any = "segment") -> StoredFile:
    period = "2026" if kind == "partition" else ""
    return StoredFile(f"{name}-{number}", name, kind, period, 0, f"journal/{name}-{number}", "digest", 10, 20, 3, 5, 9, symbols)


def fill(name: str, number: int, facts: tuple[Fact, ...] = ()) -> Fill:
    given = facts or (Fact("A", Span(5, 9, FINAL, "", 1.0), f"{name}-{number}"),)
    return Fill(name, f"{name}-{number}", file_of(name, number), given, next_day, "vendor", 1.0, Days(5, 9), ("A",))


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    opened = Catalogue(tmp_path / "catalogue.sqlite")
    yield opened
    assert opened.integrity() == []
    opened.close()


def picture(state: DatasetState) -> tuple[Any, ...]:
    """Return everything that counts of *state*: coverage day by day, because neighbours join when they are committed only."""
    days = {
        (symbol, day): (span.state, span.reason, span.fetched_at if span.state == PROVISIONAL else 0.0)
        for symbol, spans in state.coverage.items()
        for span in spans
        for day in range(span.first, span.last + 1)
    }
    return state.dataset, state.source, sorted(state.files, key=lambda file: file.id), days


def reopened(catalogue: Catalogue, path: Path) -> dict[str, tuple[Any, ...]]:
    catalogue.close()
    other = Catalogue(path)
    try:
        return {state.dataset.name: picture(state) for state in other.states()}
    finally:
        other.close()


# The picture and the database say the same


@dataclass
class Model:
    """Draws changes that make sense, and commits them."""

    catalogue: Catalogue
    count: int = 0
    commits: list[int] = field(default_factory=list)

    def commit(self, change: Change) -> None:
        self.commits.append(self.catalogue.commit(change).seq)

    def step(self, verb: str, name: str, symbols: frozenset[str], first: int, length: int, kind: tuple[Any, str]) -> None:
        state = self.catalogue.state(name)
        self.count += 1
        chosen = tuple(sorted(symbols)) or ("A",)
        if state is None:
            self.commit(Define(dataset(name), "vendor"))
        elif verb == "fill":
            segment = replace(file_of(name, self.count, chosen), first_day=first, last_day=first + length)
            facts = tuple(Fact(s, Span(first, first + length, *kind, float(self.count)), segment.id) for s in chosen)
            self.commit(Fill(name, segment.id, segment, facts, next_day, "v", 1.0, Days(first, first + length), chosen))
        elif verb == "empty fill":
            facts = tuple(Fact(s, Span(first, first + length, *kind, float(self.count)), None) for s in chosen)
            self.commit(Fill(name, f"e{self.count}", None, facts, next_day, "v", 1.0, Days(first, first + length), chosen))
        elif verb == "fold":
            self.fold(state, max(1, length))
        elif verb == "forget":
            removed = tuple(file for file in state.files if set(file.symbols) & symbols)[:1]
            self.commit(Forget(name, chosen if symbols else None, Days(first, first + length), next_day, removed))
        elif verb == "define":
            self.commit(Define(replace(state.dataset, fresh_seconds=float(self.count)), "vendor"))
        elif verb == "delete" and length == 0:
            self.commit(Delete(name))

    def fold(self, state: DatasetState, most: int) -> None:
        segments = sorted((file for file in state.files if file.kind == "segment"), key=lambda file: file.seq)[:most]
        if segments:
            old = tuple(file for file in state.files if file.kind == "partition")
            symbols = tuple(sorted({symbol for file in (*segments, *old) for symbol in file.symbols}))
            made = file_of(state.dataset.name, self.count, symbols, "partition")
            self.commit(Swap(state.dataset.name, (made,), (*segments, *old), next_day, segments[-1].seq))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fill", "fill", "fill", "empty fill", "fold", "forget", "define", "delete"]),
        st.sampled_from(NAMES),
        st.frozensets(st.sampled_from(SYMBOLS)),
        st.integers(0, 12),
        st.integers(0, 4),
        st.sampled_from([(FINAL, ""), (EMPTY, "nothing_upstream"), (PROVISIONAL, "")]),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_reopening_gives_the_same_picture_after_any_changes(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalogue.sqlite"
        catalogue = Catalogue(path)
        model = Model(catalogue)
        for step in steps:
            model.step(*step)
        before = {state.dataset.name: picture(state) for state in catalogue.states()}
        assert reopened(catalogue, path) == before
        assert model.commits == sorted(set(model.commits))


def test_commit_numbers_go_on_after_reopening(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    last = catalogue.commit(fill("one", 1)).seq
    other = Catalogue(tmp_path / "catalogue.sqlite")
    assert other.commit(fill("one", 2)).seq == last + 1
    other.close()


def test_a_picture_that_was_taken_does_not_change(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    before = catalogue.state("one")
    catalogue.commit(fill("one", 1))
    assert before is not None
    assert before.files == ()
    assert before.coverage == {}


# Group commit


@dataclass(frozen=True)
class Slow:
    """A change that waits inside its transaction, so that others queue up behind it."""

    dataset: str
    begun: threading.Event
    go_on: threading.Event

    def write(self, _connection: sa.Connection, _moment: Moment) -> Sequence[StoredFile]:
        self.begun.set()
        assert self.go_on.wait(10)
        return ()

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState | None:
        return state


@dataclass(frozen=True)
class Failing:
    dataset: str = "one"

    def write(self, connection: sa.Connection, _moment: Moment) -> Sequence[StoredFile]:
        connection.execute(tables.meta.insert().values(key="left over", value="x"))
        raise LookupError("the world has moved on")

    def amend(self, state: DatasetState | None, _seq: int) -> DatasetState | None:
        return state


def test_changes_that_wait_share_a_transaction_and_a_bad_one_fails_alone(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    begun, go_on = threading.Event(), threading.Event()
    slow = Background(lambda: catalogue.commit(Slow("one", begun, go_on)))
    assert begun.wait(10)
    changes: list[Change] = [fill("one", 1), Failing(), fill("one", 2), fill("one", 1), fill("one", 3)]
    waiting = [Background(lambda change=change: catalogue.commit(change)) for change in changes]  # type: ignore[misc]
    go_on.set()
    slow.result()
    outcomes: list[Any] = []
    for call in waiting:
        try:
            outcomes.append(call.result())
        except (LookupError, StoreError) as error:
            outcomes.append(type(error))
    assert outcomes.count(LookupError) == 1
    assert outcomes.count(StoreError) == 1  # the same file twice
    state = catalogue.state("one")
    assert state is not None
    assert sorted(file.id for file in state.files) == ["one-1", "one-2", "one-3"]
    with catalogue._engine.connect() as connection:
        assert connection.execute(sa.select(tables.meta).where(tables.meta.c.key == "left over")).all() == []


def test_many_threads_commit_everything_exactly_once(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    numbers = in_threads(8, lambda thread: [catalogue.commit(fill("one", thread * 100 + step)).seq for step in range(5)])
    flat = [number for series in numbers for number in series]
    assert len(set(flat)) == 40
    assert len(reopened(catalogue, tmp_path / "catalogue.sqlite")["one"][2]) == 40


def test_a_failed_commit_leaves_the_picture_alone(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    before = catalogue.state("one")
    with pytest.raises(LookupError, match="moved on"):
        catalogue.commit(Failing())
    assert catalogue.state("one") is before


def test_each_commit_is_told_to_listeners_once(catalogue: Catalogue) -> None:
    told: list[str] = []
    catalogue.on_commit(told.append)
    catalogue.commit(Define(dataset("one"), "vendor"))
    catalogue.commit(fill("one", 1))
    with pytest.raises(LookupError):
        catalogue.commit(Failing())
    assert told == ["one", "one"]


# Each change


def test_a_fill_of_a_dataset_that_was_deleted_leaves_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="one was deleted"):
        catalogue.commit(fill("one", 1))
    assert reopened(catalogue, tmp_path / "catalogue.sqlite") == {}


def test_a_new_dataset_is_defined_once(catalogue: Catalogue) -> None:
    catalogue.commit(Write("one", (file_of("one", 1),), dataset("one"), new=True))
    with pytest.raises(LookupError, match="has just created one"):
        catalogue.commit(Write("one", (file_of("one", 2),), replace(dataset("one"), buckets=9), new=True))
    state = catalogue.state("one")
    assert state is not None
    assert state.dataset.buckets == 1


def test_a_swap_of_a_file_that_is_gone_is_refused_as_a_whole(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    catalogue.commit(fill("one", 1))
    gone = file_of("one", 99)
    with pytest.raises(LookupError, match="no longer part of one"):
        catalogue.commit(Swap("one", (file_of("one", 5),), (file_of("one", 1), gone), next_day, 2))
    state = catalogue.state("one")
    assert state is not None
    assert [file.id for file in state.files] == ["one-1"]


def test_a_write_that_expects_a_generation_fails_after_any_other_commit(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), None))
    generation = catalogue.commit(Write("one", (file_of("one", 1),))).seq
    catalogue.commit(Write("one", (file_of("one", 2),), expected_generation=generation))
    with pytest.raises(LookupError, match="moved on"):
        catalogue.commit(Write("one", (file_of("one", 3),), expected_generation=generation))


def test_folding_joins_coverage_so_that_its_rows_do_not_accumulate(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    for number in range(20):
        catalogue.commit(fill("one", number, (Fact("A", Span(number, number, FINAL, "", 1.0), f"one-{number}"),)))
    state = catalogue.state("one")
    assert state is not None
    made = file_of("one", 99, ("A",), "partition")
    catalogue.commit(Swap("one", (made,), state.files, next_day, state.files[-1].seq))
    with catalogue._engine.connect() as connection:
        rows = connection.execute(sa.select(tables.coverage)).mappings().all()
    assert [(row["first_day"], row["last_day"], row["file"]) for row in rows] == [(0, 19, None)]


def test_forgetting_cuts_what_is_known_of_the_named_symbols_only(catalogue: Catalogue) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    facts = tuple(Fact(symbol, Span(0, 9, FINAL, "", 1.0), "one-1") for symbol in SYMBOLS)
    catalogue.commit(fill("one", 1, facts))
    catalogue.commit(Forget("one", ("A", "never heard of"), Days(3, 4), next_day))
    state = catalogue.state("one")
    assert state is not None
    assert [tuple(span[:2]) for span in state.coverage["A"]] == [(0, 2), (5, 9)]
    assert [tuple(span[:2]) for span in state.coverage["B"]] == [(0, 9)]
    assert [file.id for file in state.files] == ["one-1"]
    catalogue.commit(Forget("one", None, Days(0, 9), next_day))
    state = catalogue.state("one")
    assert state is not None
    assert state.coverage == {}


def test_deleting_leaves_the_record_of_where_rows_came_from(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.commit(Define(dataset("one"), "vendor"))
    catalogue.commit(fill("one", 1))
    catalogue.commit(Delete("one"))
    assert catalogue.state("one") is None
    with catalogue._engine.connect() as connection:
        assert len(connection.execute(sa.select(tables.provenance)).all()) == 1
    assert reopened(catalogue, tmp_path / "catalogue.sqlite") == {}


# A catalogue that is not one


def test_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    opened = Catalogue(path)
    with opened._engine.begin() as connection:
        connection.execute(tables.meta.update().values(value="99"))
    opened.close()
    with pytest.raises(StoreVersion, match=r"format 99, this version reads format 3"):
        Catalogue(path)


def test_garbage_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(StoreError, match=r"cannot open the catalogue .*not a database"):
        Catalogue(path)
    assert path.read_bytes() == b"this is no database" * 500


def test_a_database_that_cannot_be_opened_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "catalogue.sqlite").mkdir()
    with pytest.raises(StoreUnwritable, match="check permissions and free room"):
        Catalogue(tmp_path / "catalogue.sqlite")


def test_where_it_must_exist_it_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="restore it from a backup"):
        Catalogue(tmp_path / "catalogue.sqlite", create=False)


def test_days_are_kept_as_they_were_told(catalogue: Catalogue, tmp_path: Path) -> None:
    wide = replace(dataset("one"), first_session=date(1999, 1, 4), symbols_per_call=7, fresh_seconds=1.5)
    catalogue.commit(Define(wide, "vendor"))
    assert reopened(catalogue, tmp_path / "catalogue.sqlite")["one"][0] == wide
