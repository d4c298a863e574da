"""The call cache over every plane, and the real akshare behind it, which sees nothing but a stand-in for the internet."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tests.conftest import LibrarySource, in_threads

import fletching
from fletching import Cache
from fletching import akshare as ak
from fletching_schemas.errors import SourceThrottled, SourceUnavailable
from fletching_server.sources import akshare_functions
from fletching_server.testing import ManualClock

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Processes, Rig, Rigs
    from tests.server.sources.fake_internet import FakeInternet


def mixed(rows: int = 3) -> pd.DataFrame:
    frame = pd.DataFrame({"日期": [date(2024, 3, 20)] * rows, "数": np.arange(rows), "混": [1, None, "x"][:rows]})
    return frame.set_index(pd.date_range("2024-01-01", periods=rows, freq="D", name="day", tz="Asia/Shanghai"))


def big(megabytes: int) -> pd.DataFrame:
    return pd.DataFrame({"x": np.random.default_rng(0).random(megabytes * 131_072), "y": 1})


def several() -> dict[str, Any]:
    return {"one": mixed(), "two": [mixed(1), None, 2.5]}


def nothing() -> None:
    return None


@pytest.fixture
def library() -> LibrarySource:
    return LibrarySource(mixed, big, several, nothing)


@pytest.fixture(params=["embedded", "tcp", "unix"])
def rig(rigs: Rigs, library: LibrarySource, noon: Callable[[], ManualClock], request: pytest.FixtureRequest) -> Rig:
    return rigs(request.param, [library], noon())


@pytest.fixture
def cache(rig: Rig) -> Iterator[Cache]:
    ak.use(rig.cache)
    yield rig.cache
    ak.use(None)
    rig.wait_until_idle()
    assert rig.engine.verify() == []


def test_every_plane_returns_the_same(cache: Cache, library: LibrarySource) -> None:
    for _ in range(2):
        pd.testing.assert_frame_equal(ak.mixed(), mixed(), check_column_type=True, check_index_type=True)
        answer = ak.several()
        pd.testing.assert_frame_equal(answer["one"], mixed())
        pd.testing.assert_frame_equal(answer["two"][0], mixed(1))
        assert answer["two"][1:] == [None, 2.5]
        assert ak.nothing() is None
    assert len(library.called) == 3
    _, info = cache.call("mixed", info=True)
    assert (info.cached, info.stale, info.version, info.source) == (True, False, "1.0", "akshare")
    assert ak.__version__ == "1.0"
    assert "several" in dir(ak)


def test_an_answer_of_many_megabytes_passes(cache: Cache) -> None:
    assert cache
    pd.testing.assert_frame_equal(ak.big(20), big(20))


def test_errors_are_the_same_everywhere(cache: Cache, library: LibrarySource) -> None:
    with pytest.raises(fletching.UnknownFunction, match="has no function mixt; the nearest: mixed"):
        cache.call("mixt")
    with pytest.raises(fletching.InvalidRequest, match="mixed has no parameter 'row'; it has rows"):
        cache.call("mixed", {"row": 1})
    with pytest.raises(fletching.NotCached):
        cache.call("mixed", on_miss="cached")
    library.error = SourceThrottled("banned until noon")
    with pytest.raises(fletching.SourceThrottled, match="banned until noon"):
        cache.call("mixed")


def test_a_team_makes_one_call(cache: Cache, library: LibrarySource) -> None:
    assert cache
    frames = in_threads(16, lambda _: ak.mixed(2))
    for frame in frames:
        pd.testing.assert_frame_equal(frame, mixed(2))
    assert len(library.called) == 1


FORKING = """
import os, sys, warnings
from fletching import akshare as ak

warnings.simplefilter("ignore", DeprecationWarning)
print(len(ak.mixed()), flush=True)
child = os.fork()
if not child:
    print(len(ak.mixed(rows=2)), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(len(ak.mixed()), flush=True)
"""


def test_the_default_cache_is_the_one_of_the_environment_and_survives_a_fork(
    rigs: Rigs, library: LibrarySource, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs("tcp", [library])
    monkeypatch.setenv("FLETCHING_URL", rig.url)
    forking = processes.run(FORKING)
    assert [forking.line(30), forking.line(), forking.line()] == ["3", "2", "3"]
    assert forking.wait(20) == 0
    assert len(library.called) == 2


def test_the_module_can_be_sent_to_an_address(rigs: Rigs, library: LibrarySource) -> None:
    rig = rigs("unix", [library])
    ak.use(rig.url)
    try:
        assert len(ak.mixed()) == 3
    finally:
        ak.use(None)


# The real library, in a child of its own

CHILD = """
import io, json, sys
import akshare, pyarrow as pa
from fletching_schemas.tagged import from_tagged
from fletching_server.sources.akshare_frames import encode

asked = json.loads(sys.stdin.readline())
table = encode(getattr(akshare, asked["function"])(**from_tagged(asked["arguments"])))
with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as writer:
    writer.write_table(table)
"""


class RealLibrary:
    """AKShare itself, one child per call; what the shipped source does with one child for many."""

    name = "akshare"

    def datasets(self) -> list[Any]:
        return []

    def fetch(self, request: Any) -> pa.Table:
        raise AssertionError(request)

    def version(self) -> str:
        return "1.19"

    def freshness(self, function: str) -> float:
        assert function in self.functions()
        return 3600.0

    def functions(self) -> list[str]:
        return akshare_functions.functions()

    def parameters(self, function: str) -> tuple[str, ...] | None:
        return akshare_functions.parameters(function)

    def call(self, function: str, arguments: Mapping[str, Any]) -> pa.Table:
        asked = json.dumps({"function": function, "arguments": dict(arguments)}).encode()
        child = subprocess.run([sys.executable, "-c", CHILD], input=asked, capture_output=True, timeout=60, check=False)
        if child.returncode:
            raise SourceUnavailable(child.stderr.decode()[-500:])
        return pa.ipc.open_stream(child.stdout).read_all()


@pytest.fixture
def internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeInternet]:
    """A fake internet for this process and its children."""
    pytest.importorskip("akshare", reason="akshare is not installed")
    place = Path(__file__).parents[1] / "server" / "sources" / "fake_internet.py"
    spec = importlib.util.spec_from_file_location("fake_internet", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: FakeInternet = module.FakeInternet(tmp_path)
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def kline(*lines: str) -> bytes:
    return json.dumps({"rc": 0, "data": {"code": "000001", "market": 0, "name": "x", "klines": list(lines)}}).encode()


BARS = (
    "2024-03-20,10.38,10.45,10.47,10.37,812345,847654321.12,0.96,0.67,0.07,0.42",
    "2024-03-21,10.45,10.50,10.55,10.40,700000,735000000.00,1.44,0.48,0.05,0.36",
    "2024-03-22,-,-,-,-,0,0,0,0,0,0",
)
PUSH = ("push2his.eastmoney.com", "/api/qt/stock/kline/get")


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # akshare under pandas 3.1
@pytest.mark.parametrize("plane", ["embedded", "unix"])  # gRPC would send tcp to the proxy, too
def test_the_real_akshare_and_the_drop_in_return_the_same(
    rigs: Rigs, internet: FakeInternet, noon: Callable[[], ManualClock], plane: str
) -> None:
    import akshare as real  # noqa: PLC0415  # only where it is installed

    internet.routes[PUSH] = kline(*BARS)
    asked: dict[str, Any] = {"symbol": "000001", "period": "daily", "start_date": "20240320", "end_date": "20240322"}
    expected = {name: getattr(real, name)(**asked) for name in ("stock_zh_a_hist", "fund_etf_hist_em")}
    internet.seen.clear()
    ak.use(rigs(plane, [RealLibrary()], noon()).cache)
    try:
        for name, frame in expected.items():
            for answer in (getattr(ak, name)(**asked), getattr(ak, name)(*asked.values())):
                pd.testing.assert_frame_equal(answer, frame, check_column_type=True, check_index_type=True, check_dtype=True)
                assert [list(map(type, answer[label])) for label in answer] == [list(map(type, frame[label])) for label in frame]
        assert len(internet.seen) == 2
        internet.routes[PUSH] = kline()
        nothing_there = ak.stock_zh_a_hist("000002")
        pd.testing.assert_frame_equal(nothing_there, real.stock_zh_a_hist("000002"))
        with pytest.raises(AttributeError, match="the nearest: stock_zh_a_hist"):
            ak.stock_zh_a_hist_("000001")
    finally:
        ak.use(None)
