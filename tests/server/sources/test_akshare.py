from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from fletching_schemas import FetchRequest
from fletching_schemas.errors import (
    BadSourceData,
    Error,
    InvalidRequest,
    SourceTimeout,
    SourceUnavailable,
    UnknownDataset,
    UnknownSymbol,
)
from fletching_server.sources import Source
from fletching_server.sources.akshare import AkshareSource, bars, failure_error
from fletching_server.sources.akshare_worker import Worker, _receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.server.sources.fake_internet import FakeInternet, Query, Reply

KLINE = ("push2his.eastmoney.com", "/api/qt/stock/kline/get")
MONDAY = date(2024, 3, 18)
SCHEMA = AkshareSource().datasets()[0].schema


TALKATIVE = """
import sys, types, pandas
from fletching_server.sources import akshare_worker

def stock_zh_a_hist(timeout, **_):
    print("50%", flush=True)
    return pandas.DataFrame({"timeout": timeout})

sys.modules["akshare"] = types.SimpleNamespace(stock_zh_a_hist=stock_zh_a_hist)
akshare_worker.main()
"""


def line(day: date, *, close: str = "10.45", volume: str = "812345", amount: str = "847654321.12") -> str:
    return f"{day},10.38,{close},10.47,10.37,{volume},{amount},0.96,0.67,0.07,0.42"


def document(*lines: str) -> bytes:
    data = {"code": "000001", "market": 0, "name": "x", "klines": list(lines)}
    return json.dumps({"rc": 0, "data": data}).encode()


def week(query: Query) -> Reply:
    first, last = (date.fromisoformat(query[name]) for name in ("beg", "end"))
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    return document(*(line(day) for day in days if day.weekday() < 5))


def asked(*symbols: str, start: date = MONDAY, end: date = date(2024, 3, 22)) -> FetchRequest:
    return FetchRequest("bars_1d", symbols or ("000001.SZ",), start, end)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pid_of(source: AkshareSource) -> int:
    assert source._worker is not None
    return source._worker.pid


@pytest.fixture(scope="module")
def shared_source(shared_internet: FakeInternet) -> Iterator[AkshareSource]:
    assert shared_internet
    source = AkshareSource()
    yield source
    source.close()


@pytest.fixture
def source(shared_source: AkshareSource, internet: FakeInternet) -> AkshareSource:
    assert not internet.seen
    return shared_source


class TestRealLibrary:
    def test_answer_has_the_schema_and_the_units_of_the_dataset(self, source: AkshareSource, internet: FakeInternet) -> None:
        internet.routes[KLINE] = week
        table = source.fetch(asked())
        assert table.schema.equals(SCHEMA, check_metadata=True)
        assert table["trading_date"].to_pylist() == [MONDAY + timedelta(days=number) for number in range(5)]
        row = table.to_pylist()[0]
        assert {name: value for name, value in row.items() if value is not None} == {
            "symbol": "000001.SZ",
            "trading_date": MONDAY,
            "open": 10.38,
            "high": 10.47,
            "low": 10.37,
            "close": 10.45,
            "pre_close": 10.38,
            "volume": 81_234_500,
            "amount": 847654321.12,
            "turnover_rate": pytest.approx(0.0042),
        }
        ((_, _, query),) = internet.seen
        assert (query["secid"], query["beg"], query["end"]) == ("0.000001", "20240318", "20240322")
        assert (query["klt"], query["fqt"]) == ("101", "0")

    def test_symbols_come_sorted_one_request_each(self, source: AkshareSource, internet: FakeInternet) -> None:
        internet.routes[KLINE] = week
        table = source.fetch(asked("600519.SH", "000001.SZ", "600519.SH"))
        assert table["symbol"].to_pylist() == ["000001.SZ"] * 5 + ["600519.SH"] * 5
        assert [query["secid"] for _, _, query in internet.seen] == ["0.000001", "1.600519"]

    def test_only_the_asked_sessions_come_back_sorted(self, source: AkshareSource, internet: FakeInternet) -> None:
        friday, later = date(2024, 3, 22), date(2024, 3, 25)
        internet.routes[KLINE] = document(line(later), line(friday), line(MONDAY), line(date(2024, 3, 15)))
        assert source.fetch(asked())["trading_date"].to_pylist() == [MONDAY, friday]

    @pytest.mark.parametrize("body", [document(), b'{"rc": 100, "data": null}'], ids=["no klines", "null"])
    def test_nothing_there_is_an_empty_table(self, source: AkshareSource, internet: FakeInternet, body: bytes) -> None:
        internet.routes[KLINE] = body
        table = source.fetch(asked())
        assert table.num_rows == 0
        assert table.schema.equals(SCHEMA, check_metadata=True)

    @pytest.mark.parametrize(
        ("reply", "kind", "words"),
        [
            ((429, b"slow down"), SourceUnavailable, "HTTP 429: you are throttled or banned; wait"),
            ((403, b'{"data": null}'), SourceUnavailable, "HTTP 403: you are throttled"),
            ((502, b"bad gateway"), SourceUnavailable, "502"),
            (
                b"<!doctype html><title>captcha</title>",
                SourceUnavailable,
                "a page where JSON is due: you are throttled",
            ),
            ("drop", SourceUnavailable, "dropped the connection: you are throttled.*RemoteDisconnected"),
            (document(line(MONDAY) + ",1"), BadSourceData, r"akshare 1\.\d+\.\d+ changed shape.*Length mismatch"),
            (b"{}", BadSourceData, "changed shape.*KeyError"),
            (document(line(MONDAY, volume="812345.5")), BadSourceData, r"成交量 in row 0 is 812345\.5"),
            (document(line(MONDAY, volume="many")), BadSourceData, r"成交量 in row 0 \(2024-03-18\) is missing"),
            (document(line(MONDAY, close="inf")), BadSourceData, "收盘 in row 0 is inf: not a finite number"),
            (document(line(MONDAY).replace("2024-", "x")), BadSourceData, "日期 in row 0 is None: not a date"),
            (document(line(MONDAY, volume="81234500")), BadSourceData, "declared lots, looks like shares"),
        ],
    )
    def test_trouble_is_raised_and_the_child_lives_on(
        self, source: AkshareSource, internet: FakeInternet, reply: Reply, kind: type[Error], words: str
    ) -> None:
        internet.routes[KLINE] = reply
        with pytest.raises(kind, match=words) as caught:
            source.fetch(asked())
        assert "000001.SZ" in str(caught.value)
        pid = pid_of(source)
        internet.routes[KLINE] = week
        assert source.fetch(asked()).num_rows == 5
        assert pid_of(source) == pid

    def test_child_that_hangs_is_killed_and_replaced(
        self, source: AkshareSource, internet: FakeInternet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        internet.routes[KLINE] = week
        source.fetch(asked())
        hanging = pid_of(source)
        internet.routes[KLINE] = "hang"
        with monkeypatch.context() as patch:
            patch.setattr(source, "_deadline_seconds", 0.5)
            with pytest.raises(SourceTimeout, match=r"within 0\.5 s and was killed"):
                source.fetch(asked())
        assert is_gone(hanging)
        internet.routes[KLINE] = week
        assert source.fetch(asked()).num_rows == 5
        assert pid_of(source) != hanging

    def test_child_killed_from_outside_is_replaced(self, source: AkshareSource, internet: FakeInternet) -> None:
        internet.routes[KLINE] = week
        source.fetch(asked())
        killed = pid_of(source)
        os.kill(killed, signal.SIGKILL)
        os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
        assert source.fetch(asked()).num_rows == 5
        assert is_gone(killed)

    def test_close_frees_a_fetch_under_way_and_leaves_no_child(self, internet: FakeInternet) -> None:
        source, caught = AkshareSource(), []

        def fetch() -> None:
            with pytest.raises(SourceUnavailable) as error:
                source.fetch(asked())
            caught.append(str(error.value))

        internet.routes[KLINE] = "hang"
        thread = threading.Thread(target=fetch)
        thread.start()
        assert internet.reached.wait(timeout=60)
        pid = pid_of(source)
        source.close()
        thread.join(timeout=10)
        assert is_gone(pid)
        assert "died before it could answer" in caught[0]
        with pytest.raises(SourceUnavailable, match="closed"):
            source.fetch(asked())
        assert source._worker is None


class TestChild:
    def test_dropped_source_leaves_no_child(self) -> None:
        source, pids = AkshareSource(), []

        class Quiet(Worker):
            def hello(self) -> pa.Table:
                pids.append(self.pid)
                return pa.table({})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fletching_server.sources.akshare.Worker", Quiet)
            source._ready()
        assert not is_gone(pids[0])
        del source
        gc.collect()
        assert is_gone(pids[0])

    def test_child_dies_with_its_last_words(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program = tmp_path / "python"
        program.write_text("#!/bin/sh\necho first >&2\necho out of memory >&2\nexit 3\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        with pytest.raises(SourceUnavailable, match="died before it could start: out of memory"):
            AkshareSource().fetch(asked())

    def test_child_that_cannot_be_started_is_unavailable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(SourceUnavailable, match="cannot be started"):
            AkshareSource().fetch(asked())

    def test_child_knows_no_credentials(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program = tmp_path / "python"
        program.write_text('#!/bin/sh\necho "token=$FLETCHING_TOKEN proxy=$https_proxy tqdm=$TQDM_DISABLE" >&2\n')
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setenv("FLETCHING_TOKEN", "hunter2")
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        with pytest.raises(SourceUnavailable, match=r"token= proxy=http://127\.0\.0\.1:1 tqdm=1"):
            AkshareSource().fetch(asked())

    def test_library_gets_a_timeout_and_its_prints_stay_out_of_the_frames(self) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", TALKATIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdin.write(b'{"code": "000001", "start": "20240318", "end": "20240318"}\n')
            child.stdin.flush()
            assert _receive(child.stdout).num_columns == 0
            assert _receive(child.stdout).to_pydict() == {"timeout": [5.0, 20.0]}
            child.stdin.close()
            assert b"50%" in child.stderr.read()

    def test_child_ends_with_its_stdin(self) -> None:
        command = [sys.executable, "-P", "-m", "fletching_server.sources.akshare_worker"]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)

    def test_server_process_never_imports_the_library(self) -> None:
        code = (
            "import sys; from fletching_server.sources.akshare import AkshareSource; AkshareSource();"
            "sys.exit(any(name in sys.modules for name in ('akshare', 'pandas', 'requests')))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestRequests:
    def test_source_keeps_the_protocol(self) -> None:
        source = AkshareSource()
        assert isinstance(source, Source)
        (dataset,) = source.datasets()
        assert (dataset.name, dataset.calendar, dataset.symbols_per_call) == ("bars_1d", "XSHG", 1)
        assert dataset.range_pushdown
        assert dataset.first_session == date(1990, 12, 19)

    @pytest.mark.parametrize(
        "symbol",
        ["900901.SH", "510300.SH", "000001.SH", "600519.SZ", "200002.SZ", "399001.SZ", "sh600519", "60051٩.SH", "AAPL"],
    )
    def test_what_the_function_would_misread_is_not_asked(self, symbol: str) -> None:
        source = AkshareSource()
        with pytest.raises(UnknownSymbol, match=symbol):
            source.fetch(asked("000001.SZ", symbol))
        assert source._worker is None

    def test_other_datasets_are_unknown(self) -> None:
        with pytest.raises(UnknownDataset, match="bars_1d"):
            AkshareSource().fetch(FetchRequest("bars_1m", ("000001.SZ",), MONDAY, MONDAY))

    def test_configuration_is_read(self) -> None:
        assert AkshareSource.from_config({"deadline_seconds": 3})._deadline_seconds == 3.0
        assert AkshareSource.from_config({})._deadline_seconds == 30.0

    @pytest.mark.parametrize("values", [{"deadline": 3}, {"deadline_seconds": 0}, {"deadline_seconds": "soon"}])
    def test_wrong_configuration_is_named(self, values: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest, match="deadline"):
            AkshareSource.from_config(values)

    def test_missing_library_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(SourceUnavailable, match=r"pip install 'fletching\[akshare\]'"):
            AkshareSource()


class TestFailures:
    @pytest.mark.parametrize(
        ("classes", "kind", "words"),
        [
            (["ProxyError", "OSError", "RemoteDisconnected"], SourceUnavailable, "throttled"),
            (["ConnectionError", "OSError", "NameResolutionError"], SourceUnavailable, "could not be reached"),
            (["ReadTimeout", "OSError"], SourceTimeout, "push2his, asked for 000001.SZ, did not answer in time"),
            (["ValueError"], BadSourceData, "akshare 1.2.3 changed shape"),
        ],
    )
    def test_classes_in_the_chain_decide(self, classes: list[str], kind: type[Error], words: str) -> None:
        failure = {"classes": classes, "text": "why", "host": "push2his", "status": None}
        with pytest.raises(kind, match=words) as caught:
            raise failure_error(failure, "000001.SZ", "1.2.3")
        assert "why" in str(caught.value)


def frame(**columns: list[Any]) -> pa.Table:
    """Return two sound rows in the library's shape, with *columns* put in place."""
    sound: dict[str, list[Any]] = {
        "日期": [MONDAY, date(2024, 3, 19)],
        "股票代码": ["000001", "000001"],
        "开盘": [10.0, 10.1],
        "收盘": [10.2, 10.3],
        "最高": [10.4, 10.4],
        "最低": [9.9, 10.0],
        "成交量": [100, 200],
        "成交额": [101_000.0, 202_000.0],
        "振幅": [1.0, 1.0],
        "涨跌幅": [1.0, 1.0],
        "涨跌额": [0.1, 0.1],
        "换手率": [0.5, 0.6],
    }
    return pa.table(sound | columns)


def cast(table: pa.Table) -> pa.Table:
    return bars(table, SCHEMA, "000001.SZ", MONDAY, date(2024, 3, 19))


class TestCasting:
    def test_types_that_vary_between_answers_come_out_alike(self) -> None:
        whole = cast(frame(成交额=[101_000, 202_000]))
        assert cast(frame()).equals(whole)
        assert cast(frame(成交量=[100.0, 200.0])).equals(whole)
        assert whole["volume"].to_pylist() == [10_000, 20_000]

    def test_day_without_trade_keeps_its_nulls(self) -> None:
        quiet = {name: [None, 10.1] for name in ("开盘", "收盘", "最高", "最低")}
        table = cast(frame(**quiet, 成交量=[0, 200], 成交额=[0.0, 202_000.0]))
        assert table["close"].to_pylist() == [None, 10.1]
        assert table["pre_close"].to_pylist() == [None, 10.0]
        assert table["volume"].to_pylist() == [0, 20_000]

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"成交量": [100, 1.5]}, r"成交量 in row 1 is 1\.5"),
            ({"成交量": [100, 2**62]}, r"成交量 in row 1 is 4611686018427387904: .*overflow"),
            ({"收盘": ["10.2", "ten"]}, "收盘 in row 1 is 'ten'"),
            ({"成交额": [[1.0], [2.0]]}, r"成交额 in row 0 is \[1\.0\]"),
            ({"最低": [9.9, None]}, "最低 in row 1"),
            ({"成交额": [101_000.0, None]}, "成交额 in row 1"),
            ({"日期": [MONDAY, MONDAY]}, "日期 in row 1 is 2024-03-18 once more"),
            ({"成交额": [1_010.0, 2_020.0]}, "declared lots, looks like shares: .* 0% of 2 rows"),
            ({"成交额": [10_100.0, 20_200.0]}, "looks like neither lots nor shares"),
            ({"新": [1, 2]}, "changed shape: columns .*新"),
        ],
    )
    def test_what_does_not_fit_is_named(self, columns: dict[str, list[Any]], words: str) -> None:
        with pytest.raises(BadSourceData, match=words):
            cast(frame(**columns))

    def test_missing_column_is_named(self) -> None:
        with pytest.raises(BadSourceData, match="换手率"):
            cast(frame().drop_columns(["换手率"]))

    def test_one_odd_day_in_a_hundred_passes(self) -> None:
        days = [MONDAY + timedelta(days=number) for number in range(100)]
        columns = {name: values * 50 for name, values in frame().to_pydict().items()}
        odd = pa.table(columns | {"日期": days, "成交额": [1.0, *columns["成交额"][1:]]})
        assert bars(odd, SCHEMA, "000001.SZ", days[0], days[-1]).num_rows == 100
