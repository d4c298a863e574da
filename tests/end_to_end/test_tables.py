"""User tables as a researcher meets them, over every plane: written once, whole, from any frame, and read as they were."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal
from tests.end_to_end.conftest import Rig, Rigs

import fletching
from fletching._flight import FlightTransport
from fletching_server.testing import ManualClock

FACTORS = pl.DataFrame(
    {
        "symbol": ["000001.SZ", "000001.SZ", "600519.SH"],
        "day": [date(2024, 6, 12), date(2024, 6, 13), date(2024, 6, 13)],
        "momentum": [0.1, 0.2, 0.3],
    }
)
KEYS = ["symbol", "day"]


@pytest.fixture
def rig(rigs: Rigs, plane: str, noon: Callable[[], ManualClock]) -> Rig:
    return rigs(plane, ["sim"], noon())


@pytest.mark.parametrize(
    "form",
    [
        lambda frame: frame,
        lambda frame: frame.to_pandas(),
        lambda frame: frame.to_arrow(),
        lambda frame: frame.to_arrow().to_reader(max_chunksize=1),
        lambda frame: frame.to_arrow().to_batches()[0],
    ],
    ids=["polars", "pandas", "arrow", "a reader", "a batch"],
)
def test_any_frame_is_written_and_read_back(rig: Rig, form: Any) -> None:
    result = rig.cache.write("factors", form(FACTORS), keys=KEYS)
    assert (result.rows, result.created) == (3, True)
    assert_frame_equal(rig.cache.read("factors").with_columns(pl.col("day").cast(pl.Date)), FACTORS)  # pandas has no dates
    assert isinstance(rig.cache.read("factors", output="pandas"), pd.DataFrame)


def test_the_past_is_read_over_every_plane(rig: Rig) -> None:
    cache = rig.cache
    first = cache.write("factors", FACTORS, keys=KEYS)
    before, info = cache.read("factors", info=True)
    assert info.generation == first.generation
    cache.write("factors", FACTORS.with_columns(pl.col("momentum") + 1))
    cache.write("factors", FACTORS.head(1), mode="replace")
    for moment in (info.generation, first.generation):
        assert_frame_equal(cache.read("factors", as_of=moment), before)
        assert_frame_equal(cache.read("factors", ["000001.SZ"], as_of=moment), before.head(2))
        assert_frame_equal(pl.DataFrame(pl.from_arrow(cache.stream("factors", as_of=moment).read_all())), before)
        found = cache.scan("factors", as_of=moment).filter(pl.col("momentum") > 0.15).collect()
        assert_frame_equal(found, before.filter(pl.col("momentum") > 0.15))
    assert cache.explain("factors", as_of=first.generation)["files"] != cache.explain("factors")["files"]
    assert cache.read("factors").height == 1
    with pytest.raises(fletching.InvalidRequest, match="in the future"):
        cache.read("factors", as_of=datetime(2099, 1, 1, tzinfo=UTC))


def test_a_table_evolves_when_it_is_told_to(rig: Rig) -> None:
    cache = rig.cache
    cache.write("factors", FACTORS, keys=KEYS)
    wider = FACTORS.tail(1).with_columns(size=pl.lit(7))
    with pytest.raises(fletching.InvalidRequest, match=r"factors has no column size \(int32\).*evolve=True"):
        cache.write("factors", wider)
    cache.write("factors", wider, evolve=True)
    assert cache.read("factors")["size"].to_list() == [None, None, 7]
    assert cache.schema("factors").names == ["symbol", "day", "momentum", "size"]


def test_the_same_key_writes_once(rig: Rig) -> None:
    first = rig.cache.write("factors", FACTORS, keys=KEYS, mode="append", key="today")
    assert rig.cache.write("factors", FACTORS, mode="append", key="today") == first
    assert rig.cache.read("factors").height == 3


def test_retention_and_vacuum_are_said_over_every_plane(rig: Rig) -> None:
    cache = rig.cache
    old = cache.write("factors", FACTORS, keys=KEYS)
    cache.write("factors", FACTORS.head(1), mode="replace")
    assert cache.retention("factors", 3)["history_days"] == 3
    assert cache.read("factors", as_of=old.generation).height == 3
    assert cache.vacuum("factors", 0)["freed_bytes"] > 0
    with pytest.raises(fletching.HistoryGone):
        cache.read("factors", as_of=old.generation)
    assert cache.compact("factors") == {"folded_segments": 1}


@pytest.mark.parametrize("plane", ["tcp", "unix"])
def test_a_write_whose_acknowledgement_is_lost_is_sent_again_and_happens_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.cache.write("factors", FACTORS.head(1), keys=KEYS)
    real = FlightTransport._put
    sent: list[int] = []

    def deaf(writer: Any, metadata: Any, rows: pa.Table) -> Any:
        answer = real(writer, metadata, rows)
        sent.append(answer.generation)
        if len(sent) == 1:
            raise fletching.ServerUnreachable("the connection broke after the server had committed")
        return answer

    monkeypatch.setattr(FlightTransport, "_put", staticmethod(deaf))
    result = rig.cache.write("factors", FACTORS.tail(2), mode="append")
    assert sent == [result.generation, result.generation]
    assert rig.cache.read("factors").height == 3


def test_derived_tables_are_read_beside_market_data_in_one_frame(rig: Rig) -> None:
    bars = rig.cache.read("bars_1d", ["000001.SZ"], "2024-06-12", "2024-06-13")
    rig.cache.write("factors", FACTORS, keys=KEYS)
    joined = (
        rig.cache.scan("factors", ["000001.SZ"]).join(bars.lazy(), left_on=KEYS, right_on=["symbol", "trading_date"]).collect()
    )
    assert joined.height == 2
    kinds = dict(rig.cache.datasets().select("name", "kind").iter_rows())
    assert (kinds["factors"], kinds["bars_1d"]) == ("table", "sourced")
    rig.cache.evict("factors")
    assert_frame_equal(rig.cache.read("factors"), FACTORS)
