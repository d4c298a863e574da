"""A catalogue that is lost is made anew from the files: what was acknowledged is there again, and nothing that was replaced."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.conftest import SYMBOLS, Opener, TableSource, bars, expected, read, read_info, weekdays, write
from typer.testing import CliRunner

from fletching_schemas import Action, canonical
from fletching_schemas.errors import StoreError, StoreInUse
from fletching_server import Engine, open_engine
from fletching_server.cli import app
from fletching_server.rebuild import rebuild

D1, D2, D3 = date(2026, 11, 2), date(2026, 11, 3), date(2025, 11, 4)
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 20))
KEYS = ["id", "day"]


def row(name: str, day: date, x: int) -> dict[str, Any]:
    return {"id": name, "day": day, "x": x}


def lose(engine: Engine) -> Path:
    """Close the store, and remove its catalogue."""
    root = engine.store.root
    engine.close()
    for path in [*root.glob("catalogue.sqlite*"), root / "COMMITTED"]:
        path.unlink(missing_ok=True)
    return root


def compact(engine: Engine, dataset: str = "mine") -> None:
    engine.act(Action.COMPACT, {"dataset": dataset})


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "upsert", "upsert", "append", "replace", "evolve", "fold", "delete"]),
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([D1, D2, D3])), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking would take minutes
@given(steps=STEPS)
def test_whatever_was_written_is_there_again(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]) -> None:
    root = tmp_path_factory.mktemp("rebuilt") / "store"
    options: dict[str, Any] = {"compact_idle_seconds": 3600, "compact_segments": 10_000, "threads": 1}
    with open_engine(root, **options) as engine:
        for number, (verb, cells) in enumerate(steps):
            rows = [row(name, day, number) for name, day in dict.fromkeys(cells)]
            there = "mine" in engine.names()
            if verb in {"fold", "delete"}:
                if there:
                    engine.act(Action.COMPACT if verb == "fold" else Action.DELETE, {"dataset": "mine"})
            elif verb == "evolve":
                write(engine, "mine", [each | {f"y{number}": number} for each in rows], keys=KEYS, evolve=True)
            elif verb == "append" and there:
                write(engine, "mine", [row(f"n{number}", D1, number)], mode="append")
            else:
                write(engine, "mine", rows, mode="upsert" if verb == "append" else verb, keys=KEYS)
        before = read(engine, "mine") if "mine" in engine.names() else None
        lose(engine)
    if before is None:
        with pytest.raises(StoreError, match="nothing to rebuild"):
            rebuild(root)
        return
    assert rebuild(root).problems == []
    with open_engine(root, **options) as again:
        assert again.verify() == []
        assert read(again, "mine").equals(before)
        write(again, "mine", [row("z", D1, 99)])
        compact(again)
        assert read(again, "mine").num_rows == before.num_rows + 1


@pytest.mark.parametrize("folded", [False, True])
def test_fetched_cells_are_not_asked_for_again(open_store: Opener, *, folded: bool) -> None:
    source = TableSource(canonical("bars_1d", calendar="XSHG"), bars(SYMBOLS, DAYS))
    engine = open_store(source)
    read(engine, symbols=SYMBOLS[:3], start=DAYS[0], end=DAYS[5])
    if folded:
        compact(engine, "bars_1d")
    read(engine, symbols=SYMBOLS[1:], start=DAYS[3], end=DAYS[8])
    calls = len(source.requests)
    told = rebuild(lose(engine))
    assert told.problems == []
    again = open_store(source)
    rows, info = read_info(again, symbols=SYMBOLS[:3], start=DAYS[0], end=DAYS[5])
    assert rows.equals(expected(source.dataset, source.rows, SYMBOLS[:3], DAYS[0], DAYS[5]))
    assert read_info(again, symbols=SYMBOLS[1:], start=DAYS[3], end=DAYS[8])[1].upstream_calls == info.upstream_calls == 0
    assert len(source.requests) == calls


def test_what_is_not_needed_is_set_aside_and_not_deleted(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    write(engine, "mine", [row("a", D1, 2)])
    compact(engine)
    files = {path.name for path in engine.store.root.rglob("*.parquet")}
    told = rebuild(lose(engine))
    assert told.aside is not None
    assert len(told.left_over) == 2
    assert {path.name.removeprefix("journal-") for path in engine.store.root.rglob("*.parquet")} == files
    assert read(open_store(), "mine").to_pylist() == [row("a", D1, 2)]


def test_a_fold_that_was_never_committed_is_left_out_where_it_is_not_whole(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", [row("a", D1, 1), row("a", D3, 1)], keys=KEYS)
    compact(engine)
    write(engine, "mine", [row("a", D1, 2), row("a", D3, 2)])
    root = engine.store.root
    (before,) = (root / "manifests").iterdir()
    document = json.loads(before.read_text())
    engine.close()
    ahead = document | {"through": "f" * 32, "partitions": [*document["partitions"], ["gone", "2024", 0]]}
    (root / "manifests" / f"mine-{'f' * 32}.json").write_text(json.dumps(ahead))
    assert rebuild(lose(engine)).problems == []
    assert read(open_store(), "mine")["x"].to_pylist() == [2, 2]


def test_a_partition_that_is_lost_is_told(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", [row("a", D1, 1), row("a", D3, 1)], keys=KEYS)
    compact(engine)
    engine.act(Action.VACUUM, {"history_days": 0})
    next((engine.store.root / "data").rglob("*.parquet")).unlink()
    told = rebuild(lose(engine))
    assert len(told.problems) == 1
    assert "is lost, with the rows in it" in told.problems[0]
    assert read(open_store(), "mine").num_rows == 1


def test_a_damaged_file_is_told_and_the_others_are_taken(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    write(engine, "mine", [row("b", D1, 2)])
    root = lose(engine)
    first = min((root / "journal").iterdir())
    first.write_bytes(first.read_bytes()[:-9])
    told = rebuild(root)
    assert [problem for problem in told.problems if first.name in problem] == told.problems != []
    assert read(open_store(), "mine").to_pylist() == [row("b", D1, 2)]


def test_a_store_in_use_or_without_files_is_left_alone(open_store: Opener, tmp_path: Path) -> None:
    engine = open_store()
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    with pytest.raises(StoreInUse):
        rebuild(engine.store.root)
    assert read(engine, "mine").num_rows == 1
    with pytest.raises(StoreError, match="nothing to rebuild"):
        rebuild(tmp_path / "empty")


def test_the_doctor_does_it_and_says_what_became_of_it(open_store: Opener) -> None:
    engine = open_store()
    write(engine, "mine", [row("a", D1, 1)], keys=KEYS)
    root = lose(engine)
    found = CliRunner().invoke(app, ["doctor", "--store", str(root), "--rebuild-catalogue"])
    assert found.exit_code == 0, found.output
    assert "mine" in found.output
    assert read(open_store(), "mine").to_pylist() == [row("a", D1, 1)]
