"""``from fletching import akshare as ak``: the same functions, the same frames, one upstream call."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import date
from typing import Any

import pandas as pd
import polars as pl
import pytest
from tests.conftest import LibrarySource, Opener

import fletching
from fletching import Cache
from fletching import akshare as ak
from fletching._embed import EmbeddedTransport
from fletching_schemas.calls import CallInfo
from fletching_server import Engine
from fletching_server.testing import ManualClock


def stock_zh_a_hist(symbol: str = "000001", period: str = "daily", start_date: str = "19700101") -> pd.DataFrame:
    return pd.DataFrame({
        "日期": [date(2024, 3, 20), date(2024, 3, 21)],
        "股票代码": [symbol, symbol],
        "开盘": [10.38, 10.4],
        "成交量": [812345, 7],
        "注": [period, start_date],
    })  # fmt: skip


def fund_names(date: str = "") -> dict[str, Any]:
    return {"date": date, "funds": pd.DataFrame({"名称": ["a"]}), "count": 1}


@pytest.fixture
def library() -> LibrarySource:
    return LibrarySource(stock_zh_a_hist, fund_names, release="1.19.5")


@pytest.fixture
def engine(open_store: Opener, library: LibrarySource) -> Engine:
    return open_store(library)


@pytest.fixture
def cache(engine: Engine) -> Iterator[Cache]:
    """A cache that the module is told to use, as long as the test runs."""
    made = Cache(EmbeddedTransport(engine))
    ak.use(made)
    yield made
    ak.use(None)


def test_importing_it_loads_neither_akshare_nor_pandas_nor_the_server() -> None:
    code = (
        "import sys\n"
        "from fletching import akshare as ak\n"
        "ak.stock_zh_a_hist, ak.anything_else\n"
        "loaded = {'akshare', 'pandas', 'fletching_server', 'duckdb', 'requests'} & set(sys.modules)\n"
        "raise SystemExit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_function_returns_what_the_library_returns(cache: Cache, library: LibrarySource) -> None:
    assert cache
    frame = ak.stock_zh_a_hist(symbol="600519", start_date="20240101")
    expected = stock_zh_a_hist("600519", start_date="20240101")
    pd.testing.assert_frame_equal(frame, expected, check_column_type=True, check_index_type=True)
    assert [type(day) for day in frame["日期"]] == [date, date]
    pd.testing.assert_frame_equal(
        ak.stock_zh_a_hist("600519", "daily", "20240101"), stock_zh_a_hist("600519"[:6], "daily", "20240101")
    )
    pd.testing.assert_frame_equal(ak.stock_zh_a_hist("600519", start_date="20240101"), frame)
    # With the period and without it are two calls: nobody here knows the default.
    assert library.called == [
        ("stock_zh_a_hist", {"symbol": "600519", "start_date": "20240101"}),
        ("stock_zh_a_hist", {"symbol": "600519", "period": "daily", "start_date": "20240101"}),
    ]


def test_what_is_changed_in_a_frame_stays_there(cache: Cache) -> None:
    assert cache
    frame = ak.stock_zh_a_hist()
    frame.loc[0, "开盘"] = 0.0
    frame["新"] = 1
    pd.testing.assert_frame_equal(ak.stock_zh_a_hist(), stock_zh_a_hist())


def test_more_than_frames_comes_back(cache: Cache) -> None:
    assert cache
    answer = ak.fund_names(date="2024")
    assert (answer["date"], answer["count"]) == ("2024", 1)
    pd.testing.assert_frame_equal(answer["funds"], pd.DataFrame({"名称": ["a"]}))


def test_a_function_can_be_imported_compared_and_sent_by_name(cache: Cache) -> None:
    from fletching.akshare import fund_names as imported  # noqa: PLC0415  # it is what is tested

    assert cache
    assert imported is ak.fund_names
    assert imported.__name__ == "fund_names"
    assert pickle.loads(pickle.dumps(imported)) is imported
    assert imported()["count"] == 1


def test_functions_are_listed_and_the_version_is_the_librarys(cache: Cache) -> None:
    assert {"stock_zh_a_hist", "fund_names", "use", "__version__"} <= set(dir(ak))
    assert ak.__version__ == "1.19.5"
    assert cache.functions()["function"].to_list() == ["fund_names", "stock_zh_a_hist"]


def test_an_unknown_function_is_an_attribute_error_that_names_the_nearest(cache: Cache) -> None:
    assert cache
    with pytest.raises(AttributeError, match="akshare has no function stock_zh_hist; the nearest: stock_zh_a_hist"):
        ak.stock_zh_hist()
    with pytest.raises(fletching.UnknownFunction):
        ak.stock_zh_hist()
    with pytest.raises(AttributeError, match="has no attribute '__wrapped__'"):
        _ = ak.__wrapped__


@pytest.mark.parametrize("value", [object(), pd.Timestamp("2024-01-01"), [print], pd.DataFrame()])
def test_an_argument_that_cannot_travel_is_refused(cache: Cache, value: Any) -> None:
    assert cache
    with pytest.raises(fletching.InvalidRequest, match=r"stock_zh_a_hist: .* cannot travel.*; arguments are text, numbers"):
        ak.stock_zh_a_hist(value)


def test_an_old_answer_is_told_with_a_warning(cache: Cache, library: LibrarySource, clock: ManualClock) -> None:
    first = ak.stock_zh_a_hist()
    clock.advance(hours=3)
    library.error = fletching.SourceUnavailable("the upstream is down")
    with pytest.warns(
        ak.StaleAnswer, match=r"akshare\.stock_zh_a_hist: .* is 10,800 s old, fetched 2026-11-20 12:00 UTC"
    ) as told:
        pd.testing.assert_frame_equal(ak.stock_zh_a_hist(), first)
    assert told[0].filename == __file__
    ak.use(cache, max_age=60)
    with pytest.raises(fletching.SourceUnavailable, match="the upstream is down"):
        ak.stock_zh_a_hist()
    ak.use(cache, profile="backtesting")
    with warnings.catch_warnings(action="error"):
        ak.stock_zh_a_hist()


def test_options_are_checked_where_they_are_given(cache: Cache) -> None:
    with pytest.raises(fletching.InvalidRequest, match="max_age=-1"):
        ak.use(cache, max_age=-1)
    with pytest.raises(fletching.InvalidRequest, match="profile='fast'"):
        ak.use(cache, profile="fast")
    assert ak.stock_zh_a_hist().shape == (2, 5)


def test_without_a_server_the_call_says_so_and_completion_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLETCHING_URL", "grpc+unix:///nowhere/at-all.sock")
    with pytest.raises(fletching.ServerUnreachable, match="start a server with `fletching serve`"):
        ak.stock_zh_a_hist()
    assert dir(ak) == ["StaleAnswer", "__version__", "use"]
    with pytest.raises(fletching.ServerUnreachable):
        ak.use("grpc+unix:///nowhere/at-all.sock")


def test_it_is_no_export_of_the_package_and_still_a_module_of_it() -> None:
    assert "akshare" not in fletching.__all__
    assert importlib.import_module("fletching.akshare") is ak


# Cache.call, on which it rests


def test_a_call_gives_the_answer_its_age_and_other_forms(cache: Cache, clock: ManualClock) -> None:
    arguments = {"symbol": "600519"}
    cache.call("stock_zh_a_hist", arguments)
    clock.advance(seconds=10)
    frame, info = cache.call("stock_zh_a_hist", arguments, info=True)
    assert isinstance(info, CallInfo)
    assert (info.source, info.version, info.age_seconds, info.stale, info.cached) == ("akshare", "1.19.5", 10.0, False, True)
    pd.testing.assert_frame_equal(frame, stock_zh_a_hist("600519"))
    shown = cache.call("stock_zh_a_hist", args=["600519"], output="polars")
    assert isinstance(shown, pl.DataFrame)
    assert shown["成交量"].to_list() == [812345, 7]
    assert cache.call("stock_zh_a_hist", arguments, output="arrow").num_rows == 2
    with pytest.raises(fletching.InvalidRequest, match="output='pandas'; it is one of python, polars, arrow"):
        cache.call("stock_zh_a_hist", output="pandas")  # type: ignore[arg-type]


def test_a_closed_cache_says_so(cache: Cache) -> None:
    cache.close()
    with pytest.raises(fletching.InvalidRequest, match="is closed"):
        ak.stock_zh_a_hist()
