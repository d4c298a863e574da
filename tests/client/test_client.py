"""The client by itself: what it accepts and gives, where it connects, and what it makes of errors that are not ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.flight as fl
import pytest

import fletching
from fletching._flight import FlightTransport
from fletching._frames import to_output, to_table

TABLE = pa.table({
    "symbol": pa.array(["A", "B"], pa.string_view()),
    "day": pa.array([date(2024, 1, 2), None]),
    "ts": pa.array([datetime(2024, 1, 2, 3, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC")),
    "count": pa.array([1, None], pa.int64()),
    "good": pa.array([True, None]),
})  # fmt: skip


def test_polars_shares_the_memory_of_the_answer() -> None:
    numbers = pa.table({"price": pa.array(range(10_000), pa.float64())})
    address = to_output(numbers, "polars")["price"].to_arrow().buffers()[1].address
    assert address == numbers["price"].chunk(0).buffers()[1].address


def test_arrow_is_handed_out_as_it_is() -> None:
    assert to_output(TABLE, "arrow") is TABLE


def test_pandas_keeps_instants_dates_and_text() -> None:
    frame = to_output(TABLE, "pandas")
    assert str(frame["ts"].dtype) == "datetime64[us, UTC]"
    assert frame["day"].dtype.kind == "M"
    assert frame["symbol"].tolist() == ["A", "B"]
    assert frame["count"].isna().tolist() == [False, True]


def test_pandas_that_is_not_installed_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        to_output(TABLE, "pandas")


class Stream:
    """Anything that speaks Arrow's C interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return TABLE.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "data",
    [
        TABLE, TABLE.to_batches()[0], TABLE.to_reader(), Stream(),
        pl.DataFrame(pl.from_arrow(TABLE)), pl.DataFrame(pl.from_arrow(TABLE)).lazy(),
    ],
    ids=["table", "batch", "reader", "C stream", "polars", "lazy"],
)  # fmt: skip
def test_rows_are_taken_in_every_common_form(data: Any) -> None:
    assert to_table(data).equals(TABLE)


def test_a_pandas_index_is_not_a_column() -> None:
    frame = pd.DataFrame({"symbol": ["A", "B"], "score": [1.0, 2.0]}, index=["x", "y"])
    assert to_table(frame).column_names == ["symbol", "score"]
    assert to_table(frame).schema.metadata is None


@pytest.mark.parametrize("data", [None, [1, 2], {"a": [1]}, "text", 7])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(fletching.InvalidRequest, match=f"cannot write a {type(data).__name__}; give a Polars or pandas frame"):
        to_table(data)


# Connecting


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "grpc://", "grpc://127.0.0.1:port", "ftp://x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises((fletching.InvalidRequest, fletching.ServerUnreachable), match="address"):
        fletching.connect(url, timeout=5)


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:1", "grpc+unix:///nowhere.sock"])
def test_nobody_there_is_a_connection_error_that_says_what_to_do(url: str) -> None:
    with pytest.raises(
        ConnectionError, match=re.escape(f"nobody answers at {url}; start a server with `fletching serve`")
    ) as caught:
        fletching.connect(url, timeout=5)
    assert type(caught.value) is fletching.ServerUnreachable


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLETCHING_URL", "grpc+unix:///from/the/environment.sock")
    with pytest.raises(fletching.ServerUnreachable, match="/from/the/environment"):
        fletching.connect(timeout=5)


def test_a_server_that_never_answers_is_given_up_at_the_deadline() -> None:
    class Silent(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
        def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> list[bytes]:
            del action
            while not context.is_cancelled():
                pass
            return []

    with Silent("grpc://127.0.0.1:0") as server:
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s") as caught:
            fletching.connect(f"grpc://127.0.0.1:{server.port}", timeout=0.2)
        assert type(caught.value) is fletching.SourceTimeout


OPENING = """
import sys
sys.modules["duckdb"] = None  # as if it were not installed
import fletching
try:
    fletching.open(sys.argv[1])
except ImportError as error:
    print(error)
"""


def test_opening_a_store_without_the_server_says_what_to_install(tmp_path: Path) -> None:
    opening = subprocess.run(
        [sys.executable, "-c", OPENING, str(tmp_path / "store")], capture_output=True, text=True, timeout=60, check=True
    )
    assert opening.stdout == "fletching.open needs duckdb: pip install 'fletching[server]'\n"


# Errors


def translated(error: Exception) -> fletching.Error:
    return FlightTransport("grpc://127.0.0.1:1", 1).translated(error)


def test_a_code_of_a_newer_server_is_a_plain_error() -> None:
    back = translated(fl.FlightServerError("x", json.dumps({"code": "too_new", "message": "what it says"}).encode()))
    assert (type(back), str(back)) == (fletching.Error, "what it says")


@pytest.mark.parametrize("extra", [b"", b"junk", b"[]", b"{}", b'{"code": 1}', b"null", b"\xff"])
def test_errors_of_other_servers_are_told_in_one_line(extra: bytes) -> None:
    back = translated(fl.FlightServerError("it broke\nTraceback: /home/x.py", extra))
    assert type(back) is fletching.Error
    assert str(back) == "grpc://127.0.0.1:1 answered: it broke"


def test_an_error_without_any_text_is_told_too() -> None:
    assert str(translated(fl.FlightServerError("", b""))).startswith("grpc://127.0.0.1:1 answered:")
    assert str(translated(pa.ArrowInvalid(""))).startswith("grpc://127.0.0.1:1 answered:")
