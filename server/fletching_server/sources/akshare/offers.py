"""What the library is asked for each dataset: which symbols, which function, with which arguments, and what it can do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from fletching_schemas import Dataset, canonical
from fletching_server.sources.akshare.bars import Unit

FIRST: Final = date(1990, 12, 19)
_A_SHARES: Final = re.compile(r"(60|68)\d{4}\.SH|(00|30)\d{4}\.SZ|(43|83|87|88|92)\d{4}\.BJ", re.ASCII)
_FUNDS: Final = re.compile(r"5\d{5}\.SH|1[568]\d{4}\.SZ", re.ASCII)
_INDICES: Final = re.compile(r"\d{6}\.(SH|SZ|BJ|CSI)", re.ASCII)
_HONG_KONG: Final = re.compile(r"\d{5}\.HK", re.ASCII)
_US: Final = re.compile(r"[A-Z][A-Z0-9]*([._-][A-Z0-9]+)*\.US", re.ASCII)
SWEEP_FROM: Final = 60  # symbols: from here on one sweep of about sixty requests is cheaper


@dataclass(frozen=True)
class Offer:
    """One dataset: the function behind it, whose budget it draws on, which symbols it has, and the unit of its volumes."""

    dataset: Dataset
    family: str
    function: str
    symbols: re.Pattern[str]
    examples: str
    unit: Unit = "none"

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.dataset.name


def offers() -> dict[str, Offer]:
    """Return every dataset by name."""
    shares = "6xxxxx.SH, 00xxxx.SZ, 30xxxx.SZ and 92xxxx.BJ, but no B shares, funds or indices"
    found = [
        Offer(_shares(), "eastmoney", "stock_zh_a_hist", _A_SHARES, shares, "lots"),
        Offer(_bars("XSHG", "etf_bars_1d"), "eastmoney", "fund_etf_hist_em", _FUNDS, "51xxxx.SH and 159xxx.SZ", "lots"),
        Offer(_bars("XSHG", "index_bars_1d", notation="index"), "eastmoney", "stock_zh_index_daily_em", _INDICES, "000300.SH"),
        Offer(_whole("XHKG", "hk_bars_1d"), "eastmoney", "stock_hk_hist", _HONG_KONG, "00700.HK", "shares"),
        Offer(_whole("XNYS", "us_bars_1d"), "eastmoney", "stock_us_hist", _US, "AAPL.US", "shares"),
        *(_minutes(period, recent, shares) for period, recent in ((1, 5), (5, 30), (15, 60), (30, 120), (60, 240))),
        Offer(_facts("adj_factors"), "sina", "sina_factors", _A_SHARES, shares),
        Offer(_facts("corporate_actions"), "eastmoney", "stock_fhps_detail_em", _A_SHARES, shares),
        Offer(_facts("instruments", symbols_per_call=20_000), "exchange", "stock_info_sh_name_code", _A_SHARES, shares),
        Offer(_facts("calendar", notation="verbatim"), "sina", "tool_trade_date_hist_sina", re.compile("XSHG"), "XSHG"),
        Offer(_facts("financials"), "sina", "stock_financial_abstract", _A_SHARES, shares),
        Offer(
            canonical("news", recent_sessions=1, range_pushdown=False, fresh_seconds=900.0, first_session=date(2000, 1, 1)),
            "eastmoney", "stock_news_em", _A_SHARES, shares,
        ),
    ]  # fmt: skip
    return {offer.name: offer for offer in found}


def _shares() -> Dataset:
    return _bars("XSHG", factors="adj_factors", sweep_symbols=SWEEP_FROM)


def _bars(mic: str, name: str = "bars_1d", **more: Any) -> Dataset:
    return canonical("bars_1d", calendar=mic, as_name=name, **{"first_session": FIRST, **more})


def _whole(mic: str, name: str) -> Dataset:
    """Return a dataset whose function downloads whole history whatever is asked."""
    return _bars(mic, name, range_pushdown=False, first_session=None)


def _minutes(period: int, recent: int, shares: str) -> Offer:
    """Return minute bars: upstream only has the last *recent* sessions of them, and sends all it has."""
    abilities: dict[str, Any] = {"range_pushdown": False, "recent_sessions": recent, "factors": "adj_factors"}
    dataset = canonical(f"bars_{period}m", calendar="XSHG", first_session=FIRST, **abilities)
    return Offer(dataset, "eastmoney", "stock_zh_a_hist_min_em", _A_SHARES, shares, "lots")


def _facts(name: str, **more: Any) -> Dataset:
    """Return a dataset of facts about symbols: no sessions, whole history per call, and fresh enough for a day."""
    return canonical(name, **{"range_pushdown": False, "fresh_seconds": 86400.0, "first_session": date(1900, 1, 1), **more})
