"""The access log over every plane, across clients, and after a process that was killed."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.end_to_end.conftest import LOCAL, Processes, Rig, Rigs

import fletching
from fletching_schemas.errors import InvalidRequest
from fletching_server import open_engine
from fletching_server.access_trace import trace_of

SYMBOL = "000001.SZ"
MARCH = ("2024-03-01", "2024-03-29")


@pytest.fixture
def rig(rigs: Rigs, plane: str) -> Rig:
    return rigs(plane, ["sim"], access_seconds=3600)


def log_of(rig: Rig, **more: Any) -> pl.DataFrame:
    rig.wait_until_idle()
    frame: pl.DataFrame = rig.cache.read("system.access_log", **more)
    return frame


def test_what_was_read_is_in_the_log_that_is_read(rig: Rig) -> None:
    rows = rig.cache.read("bars_1d", SYMBOL, *MARCH, columns=["close"], profile="backtesting").height
    log = log_of(rig)
    assert log.select("profile", "dataset", "group", "rows", "upstream_calls", "repeats").rows() == [
        ("backtesting", "bars_1d", SYMBOL, rows, 1, 0)
    ]
    assert log["columns"].to_list() == [["close"]]
    assert log["touched"].list.eval(pl.element().struct.field("tier")).to_list() == [["source"]]
    assert (datetime.now(UTC) - log["at"][0]).total_seconds() < 600
    principal = {"embedded": "embedded", "tcp": "ipv4:127.0.0.1"}.get(rig.plane)
    assert log["principal"][0] == principal or log["principal"][0].startswith(("local:", "unix:"))


def test_the_log_comes_in_every_output_and_can_be_scanned(rig: Rig) -> None:
    rig.cache.read("bars_1d", SYMBOL, *MARCH)
    rig.cache.read("bars_1d", "000002.SZ", *MARCH)
    log = log_of(rig, columns=["group", "rows"])
    assert rig.cache.read("system.access_log", output="arrow").num_rows == 2
    assert list(rig.cache.read("system.access_log", output="pandas", columns=["group"])["group"]) == log["group"].to_list()
    frame, info = rig.cache.read("system.access_log", end="2020-01-01", info=True)
    assert (frame.height, frame.columns, info.rows) == (0, rig.cache.schema("system.access_log").names, 0)
    scanned = rig.cache.scan("system.access_log").filter(pl.col("group") == SYMBOL).select("group", "touched").collect()
    assert scanned.height == 1
    assert sum(batch.num_rows for batch in rig.cache.stream("system.access_log")) == 2
    with pytest.raises(InvalidRequest, match="cannot be read with adjust"):
        rig.cache.read("system.access_log", adjust="qfq")
    assert "system.access_log" not in rig.cache.datasets()["name"]


@pytest.mark.parametrize("plane", LOCAL)
def test_an_answer_that_goes_out_again_is_a_read_and_a_clients_own_repeat_is_none(rigs: Rigs, plane: str) -> None:
    rig = rigs(plane, ["sim"], access_seconds=3600)
    rig.cache.read("bars_1d", SYMBOL, *MARCH)
    for _ in range(2):
        for _ in range(3):  # within a second the client answers itself, where an answer was sent
            rig.cache.read("bars_1d", SYMBOL, *MARCH)
        with fletching.connect(rig.url, plane="local") as other:
            other.read("bars_1d", SYMBOL, *MARCH)
    rig.wait_until_idle()
    reads = log_of(rig)["repeats"].len()
    assert reads == rig.engine.stats.snapshot()["reads"]


class TestKilled:
    def test_a_killed_server_loses_the_last_seconds_and_nothing_else(self, processes: Processes, root: Path) -> None:
        server = processes.serve(root / "store", ["sim"], environment={"FLETCHING_ACCESS_SECONDS": "3600"})
        with fletching.connect(server.url()) as cache:
            cache.read("bars_1d", SYMBOL, *MARCH)
            assert cache.read("system.access_log").height == 1  # written first
            cache.read("bars_1d", "000002.SZ", *MARCH)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(20)
        assert trace_of(root / "store").num_rows == 1
        with open_engine(root / "store") as engine:
            assert [event.group for event in engine.access.events()] == [SYMBOL]
            assert engine.verify() == []
