"""Trade dates: the library's own function, whose answer only its JavaScript decoder can read, and what is made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date

import pyarrow as pa
import pytest

from fletching_schemas import canonical
from fletching_schemas.errors import BadSourceData, SourceChanged
from fletching_server.sources.akshare.tables import trade_dates

SCHEMA = canonical("calendar").schema

# The encoding of Sina's file has no public description and its decoder is compiled JavaScript, so the decoder's result is put in
# place; the rest, from the request to the frame, is the library's.
PROGRAM = """
import json, py_mini_racer, responses
from fletching_server.sources.akshare.worker import Upstream

class Line:
    def ask(self, note):
        return {"go": True}

py_mini_racer.MiniRacer.call = lambda self, *arguments: ["2026-12-31", "2027-01-04", "2027-01-05"]
with responses.RequestsMock() as internet:
    internet.get("https://finance.sina.com.cn/realstock/company/klc_td_sh.txt", body='var datelist="x";')
    upstream = Upstream(Line())
    upstream.load()
    frame = upstream.call("tool_trade_date_hist_sina", {})
print(json.dumps([str(day) for day in frame["trade_date"].to_pylist()]))
"""


def test_the_librarys_function_becomes_sessions_of_shanghai() -> None:
    pytest.importorskip("responses", reason="responses is not installed")
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    days = [date.fromisoformat(day) for day in json.loads(run.stdout)]
    rows = trade_dates(pa.table({"trade_date": days}), SCHEMA)
    assert rows["session"].to_pylist() == [date(1992, 5, 4), date(2026, 12, 31), date(2027, 1, 4), date(2027, 1, 5)]
    assert set(rows["mic"].to_pylist()) == {"XSHG"}
    assert set(rows["status"].to_pylist()) == {"known"}


def test_another_shape_is_told() -> None:
    with pytest.raises(SourceChanged, match="trade dates: akshare changed shape"):
        trade_dates(pa.table({"day": [date(2027, 1, 4)]}), SCHEMA)
    with pytest.raises(BadSourceData, match="trade_date in row 1"):
        trade_dates(pa.table({"trade_date": ["2027-01-04", "soon"]}), SCHEMA)
