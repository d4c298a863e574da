"""Sina's encoded files: the library's own functions, whose answers only its JavaScript decoder can read.

The encoding has no public description and its decoder is compiled JavaScript, so the decoder's result is put in place; the
rest, from the request to the frame, is the library's, in a process of its own as in a child of the server.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.server.sources import wire

from fletching_schemas import canonical
from fletching_schemas.errors import BadSourceData, SourceChanged
from fletching_server.sources.akshare.tables import trade_dates

SCHEMA = canonical("calendar").schema
REAL = Path(__file__).parents[3].parent / "shared" / "data" / "ashare"
PRICES = ("open", "high", "low", "close")
SITE = "https://finance.sina.com.cn/realstock/company"
SHARES = "https://stock.finance.sina.com.cn/stock/api/jsonp.php/var%20KKE_ShareAmount_{0}=/StockService.getAmountBySymbol"

# Stdin: what the decoder returns, the bodies by address, and the call. Stdout: the rows of the answer.
PROGRAM = """
import json, sys
import py_mini_racer, responses
from fletching_server.sources.akshare.worker import Upstream

class Line:
    def ask(self, note):
        return {"go": True}

told = json.load(sys.stdin)
py_mini_racer.MiniRacer.call = lambda self, *arguments: told["decoded"]
with responses.RequestsMock() as internet:
    for address, body in told["bodies"].items():
        internet.get(address, body=body)
    upstream = Upstream(Line())
    upstream.load()
    frame = upstream.call(told["function"], told["arguments"])
print(json.dumps(frame.to_pylist(), default=str))
"""


def answered(function: str, decoded: Any, bodies: dict[str, str], **arguments: Any) -> list[dict[str, Any]]:
    """Return the rows of *function*, as a child of the server would get them."""
    pytest.importorskip("responses", reason="responses is not installed")
    told = {"function": function, "decoded": decoded, "bodies": bodies, "arguments": arguments}
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, check=True, timeout=120)
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    return rows


def test_the_librarys_function_becomes_sessions_of_shanghai() -> None:
    decoded = ["2026-12-31", "2027-01-04", "2027-01-05"]
    found = answered("tool_trade_date_hist_sina", decoded, {f"{SITE}/klc_td_sh.txt": 'var datelist="x";'})
    days = [date.fromisoformat(row["trade_date"]) for row in found]
    rows = trade_dates(pa.table({"trade_date": days}), SCHEMA)
    assert rows["session"].to_pylist() == [date(1992, 5, 4), date(2026, 12, 31), date(2027, 1, 4), date(2027, 1, 5)]
    assert set(rows["mic"].to_pylist()) == {"XSHG"}
    assert set(rows["status"].to_pylist()) == {"known"}


def test_another_shape_is_told() -> None:
    with pytest.raises(SourceChanged, match="trade dates: akshare changed shape"):
        trade_dates(pa.table({"day": [date(2027, 1, 4)]}), SCHEMA)
    with pytest.raises(BadSourceData, match="trade_date in row 1"):
        trade_dates(pa.table({"trade_date": ["2027-01-04", "soon"]}), SCHEMA)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real A-share bars of ../shared/data/ashare are not here")
@pytest.mark.parametrize(("adjust", "factor"), [("", 1.0), ("hfq", 2.5)])
def test_real_bars_in_sinas_form_arrive_as_they_were(adjust: str, factor: float) -> None:
    with (REAL / "000333.csv").open() as file:
        real = list(csv.DictReader(file))
    decoded = [{"date": row["datetime"], **{name: row[name] for name in PRICES}, "volume": row["volume"]} for row in real]
    for row in decoded:
        row |= {"amount": str(float(row["volume"]) * float(row["close"])), "prevclose": "1", "postVol": "0", "postAmt": "0"}
    bodies = {
        f"{SITE}/sz000333/hisdata_klc2/klc_kl.js": 'var KLC_KL_sz000333="x";',
        SHARES.format("sz000333"): 'var KKE_ShareAmount_sz000333=([{"date":"2013-09-18","amount":"68632.34"}])',
    }
    if adjust:
        bodies[f"{SITE}/sz000333/hfq.js"] = wire.factors([("2013-09-18", "2.5"), ("1900-01-01", "2.5")]).decode()
    found = answered("stock_zh_a_daily", decoded, bodies, symbol="sz000333", adjust=adjust)
    assert [row["date"] for row in found] == [row["datetime"] for row in real]
    for name in PRICES:
        assert [row[name] for row in found] == pytest.approx([float(row[name]) * factor for row in real], abs=0.0051)
    assert [row["volume"] for row in found] == [float(row["volume"]) for row in real]
