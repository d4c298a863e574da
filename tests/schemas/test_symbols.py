"""Every notation of the reference's table to one, what is refused, and what a refusal says."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import SUFFIXES, Notation, normalise_symbol
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.symbols import _CODES, _MARKS, _PRODUCTS, _normalise

READING: tuple[Notation, ...] = ("equity", "index", "futures", "mixed")

MARKED = {
    "000001.SZ": "000001.SZ 000001.sz 000001.XSHE SZSE.000001 XSHE.000001 sz000001 SZ000001 SZ.000001 sz.000001 0.000001",
    "300750.SZ": "300750.XSHE sz300750 0.300750",
    "399001.SZ": "sz399001 0.399001 399001.XSHE",
    "600519.SH": "600519.SH 600519.XSHG SHSE.600519 sh600519 SH600519 sh.600519 600519.SS 600519.ss 600519.SSE 1.600519",
    "000001.SH": "1.000001 sh000001 SH.000001 000001.XSHG 000001.SS",
    "000300.SH": "000300.SH sh000300 1.000300 SHSE.000300",
    "430047.BJ": "bj430047 BJ430047 BJ.430047 430047.BJ 430047.BJSE 0.430047",
    "920002.BJ": "bj920002 0.920002",
    "899050.BJ": "0.899050 bj899050",
    "00700.HK": "HK.00700 hk00700 0700.HK 700.HK 00700.hk 116.00700 HK.700 00700.XHKG",
    "00001.HK": "1.HK 00001.HK",
    "00105.HK": "105.HK",  # a code that looks like eastmoney's market: the right side wins
    "AAPL.US": "US.AAPL us.aapl 105.AAPL AAPL.US aapl.us AAPL.XNAS AAPL.NASDAQ",
    "BRK.B.US": "BRK.B.US US.BRK.B 106.BRK.B brk.b.us BRK.B.XNYS",
    "SPY.US": "107.SPY",
    "FB-200303.US": "FB-200303.US fb-200303.us US.FB-200303",
    "SH.US": "SH.US US.SH 107.SH",  # a fund of that ticker
    "US.US": "US.US",
    "RB2601.SHFE": "RB2601.SHFE rb2601.SHF RB2601.XSGE SHFE.rb2601 rb2601.shfe",
    "SC2603.INE": "sc2603.INE SC2603.XINE INE.sc2603",
    "M2605.DCE": "m2605.DCE M2605.XDCE DCE.m2605",
    "SI2601.GFEX": "si2601.GFE SI2601.GFEX GFEX.si2601",
    "IF2601.CFFEX": "IF2601.CFX IF2601.CCFX CFFEX.IF2601 if2601.cffex",
    "TA2601.CZCE": "TA2601.CZCE TA2601.ZCE TA2601.XZCE CZCE.TA2601 ta2601.zce",
    "SH2601.CZCE": "SH2601.ZCE",
    "RB9999.SHFE": "RB9999.XSGE",
    "RB0.SHFE": "rb0.SHF",
}
BARE: dict[str, dict[Notation, str | None]] = {
    # six digits: by convention of the dataset; None is refused
    "000001": {"equity": "000001.SZ", "index": "000001.SH", "mixed": None, "futures": None},
    "000300": {"equity": "000300.SZ", "index": "000300.SH", "mixed": None},
    "399001": {"equity": None, "index": "399001.SZ", "mixed": "399001.SZ"},
    "899050": {"equity": None, "index": "899050.BJ", "mixed": "899050.BJ"},
    "600519": {"equity": "600519.SH", "index": None, "mixed": "600519.SH", "futures": None},
    "688981": {"equity": "688981.SH", "mixed": "688981.SH"},
    "900901": {"equity": "900901.SH"},
    "510300": {"equity": "510300.SH", "mixed": "510300.SH"},
    "588000": {"equity": "588000.SH"},
    "002594": {"equity": "002594.SZ", "mixed": "002594.SZ", "index": None},
    "200011": {"equity": "200011.SZ"},
    "300750": {"equity": "300750.SZ"},
    "150019": {"equity": "150019.SZ"},
    "159915": {"equity": "159915.SZ"},
    "161725": {"equity": "161725.SZ"},
    "184801": {"equity": "184801.SZ"},
    "430047": {"equity": "430047.BJ", "mixed": "430047.BJ"},
    "831010": {"equity": "831010.BJ"},
    "872808": {"equity": "872808.BJ"},
    "889999": {"equity": "889999.BJ"},
    "920002": {"equity": "920002.BJ"},
    "110059": {"equity": None, "mixed": None},
    # the rest mean the same everywhere, but a futures dataset has contracts only
    "00700": {"equity": "00700.HK", "mixed": "00700.HK", "futures": None},
    "aapl": {"equity": "AAPL.US", "index": "AAPL.US", "mixed": "AAPL.US", "futures": None},
    "BRK.B": {"equity": "BRK.B.US", "mixed": "BRK.B.US"},
    "brk-b": {"equity": "BRK-B.US"},
    "FB-200303": {"equity": "FB-200303.US"},
    "T": {"equity": "T.US"},
    "SH": {"equity": "SH.US"},
    "RB2601": {"equity": "RB2601.SHFE", "futures": "RB2601.SHFE", "mixed": "RB2601.SHFE"},
    "rb2601": {"futures": "RB2601.SHFE"},
    "sc2603": {"futures": "SC2603.INE"},
    "i2605": {"futures": "I2605.DCE"},
    "TA2601": {"futures": "TA2601.CZCE"},
    "SH2601": {"futures": "SH2601.CZCE", "equity": "SH2601.CZCE"},  # caustic soda, not an exchange
    "lc2601": {"futures": "LC2601.GFEX"},
    "T2603": {"futures": "T2603.CFFEX"},
    "V0": {"futures": "V0.DCE"},
    "TA888": {"futures": "TA888.CZCE"},
    "RB601": {"futures": None, "equity": None},  # only CZCE writes one digit of the year
    "RB2613": {"futures": None, "equity": None},
    "RB": {"futures": None},
    "XY2601": {"futures": None, "equity": None},
}
REFUSED = [
    "",
    " ",
    ".",
    ".SZ",
    "SZ.",
    "000001.",
    ".000001",
    "1",
    "1234",
    "1234567",
    "000001.XYZ",
    "00001.SZ",
    "0000001.SZ",
    "AAPL.SZ",
    "SH.AAPL",
    "HK.AAPL",
    "600519.HK",
    "AAPL.LSE",
    "600519.US",
    "US.600519",
    "RB601.SHF",
    "RB2600.SHF",
    "RBX2601.SHFE",
    "TA2613.ZCE",
    "sz00001",
    "sh 600519",
    "hk000700",
    "0.AAPL",
    "116.AAPL",
    "2.000001",
    "105.000001",
    "000001.SZ.SZ",
    "AAPL US",
    "AAPL/B",
    "$AAPL",
    "^GSPC",
    "600519.\u00df",  # a sharp s, whose upper case is SS
    "\uff16\uff10\uff10\uff15\uff11\uff19",  # full-width digits
    "\u0666\u0660\u0660\u0665\u0661\u0669",  # Arabic digits
    "600519\x00",
    "600519\n.SH",
    "X" * 200,
    "X" * 22 + ".US",
]


@pytest.mark.parametrize("notation", READING)
@pytest.mark.parametrize(("text", "symbol"), [(text, symbol) for symbol, texts in MARKED.items() for text in texts.split()])
def test_a_text_that_names_its_exchange_means_the_same_in_every_dataset(text: str, symbol: str, notation: Notation) -> None:
    assert normalise_symbol(text, notation) == symbol
    assert normalise_symbol(f"  {text}\t", notation) == symbol


@pytest.mark.parametrize(
    ("text", "notation", "symbol"),
    [(text, notation, symbol) for text, by in BARE.items() for notation, symbol in by.items()],
)
def test_a_bare_code_is_read_by_the_notation_of_its_dataset(text: str, notation: Notation, symbol: str | None) -> None:
    if symbol is not None:
        assert normalise_symbol(text, notation) == symbol
        return
    with pytest.raises(InvalidRequest, match=re.escape(repr(text))):
        normalise_symbol(text, notation)


@pytest.mark.parametrize("notation", READING)
@pytest.mark.parametrize("text", REFUSED)
def test_an_unknown_notation_is_refused(text: str, notation: Notation) -> None:
    with pytest.raises(InvalidRequest) as raised:
        normalise_symbol(text, notation)
    assert repr(text.strip())[:60] in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_refusal_shows_what_was_given_and_lists_what_is_accepted() -> None:
    with pytest.raises(InvalidRequest, match="accepted") as raised:
        normalise_symbol("600519.NOWHERE")
    message = str(raised.value)
    examples = "'600519.NOWHERE' 000001.SZ 000001.XSHE SZSE.000001 sz000001 0.000001 700.HK US.AAPL BRK.B rb2601.SHF"
    assert [each for each in (*examples.split(), *SUFFIXES) if each not in message] == []


def test_the_examples_of_a_refusal_are_accepted_themselves() -> None:
    with pytest.raises(InvalidRequest) as raised:
        normalise_symbol("?")
    examples = str(raised.value).partition("accepted are")[2].partition("exchanges are")[0]
    words = [word for word in re.split(r"[,;() ]+", re.sub(r"\(.*?\)", "", examples)) if word]
    assert len(words) > 15
    assert {normalise_symbol(word).rpartition(".")[2] for word in words} == {"SZ", "HK", "US", "SHFE"}


@pytest.mark.parametrize(
    ("text", "notation", "candidates"),
    [
        ("000001", "mixed", ["000001.SZ", "000001.SH"]),
        ("110059", "equity", ["110059.SZ", "110059.SH", "110059.BJ"]),
        ("600519", "futures", ["600519.SZ", "600519.SH", "600519.BJ"]),
        ("ta601", "futures", ["TA0601.CZCE", "TA1601.CZCE", "TA2601.CZCE"]),
        ("TA601.ZCE", "equity", ["TA0601.CZCE", "TA1601.CZCE", "TA2601.CZCE"]),
    ],
)
def test_an_ambiguous_code_is_refused_with_its_candidates(text: str, notation: Notation, candidates: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=f"{text!r} can be {' or '.join(candidates)};"):
        normalise_symbol(text, notation)


@pytest.mark.parametrize("text", ["TA601", "ta601", "TA601.ZCE", "TA601.CZCE", "TA601.XZCE", "CZCE.TA601"])
@pytest.mark.parametrize(
    ("near", "symbol"),
    [
        (date(2025, 6, 3), "TA2601.CZCE"),
        (datetime(2026, 1, 5, 9, 30), "TA2601.CZCE"),  # noqa: DTZ001 - naive means exchange time
        (date(2021, 2, 1), "TA2601.CZCE"),
        (date(2020, 12, 31), "TA1601.CZCE"),
        (date(2015, 1, 1), "TA1601.CZCE"),
        (date(2029, 12, 31), "TA2601.CZCE"),
        (date(2031, 2, 1), "TA3601.CZCE"),
        (date(2006, 1, 1), "TA0601.CZCE"),
    ],
)
def test_one_digit_of_the_year_takes_the_decade_nearest_to_the_dates(text: str, near: date, symbol: str) -> None:
    assert normalise_symbol(text, "futures", near=near) == symbol


def test_a_contract_half_way_between_two_decades_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"TA1601\.CZCE or TA2601\.CZCE; .* nearer"):
        normalise_symbol("TA601", "futures", near=date(2021, 1, 31))


def test_dates_change_nothing_about_a_contract_with_two_digits_of_the_year() -> None:
    assert normalise_symbol("TA2601", near=date(2011, 1, 1)) == "TA2601.CZCE"
    assert normalise_symbol("TA2601.CZCE", near=date(2011, 1, 1)) == "TA2601.CZCE"


@pytest.mark.parametrize("text", ["aapl", "sz000001", "BTC/USDT", "^GSPC", "", "\u8d35\u5dde\u8305\u53f0"])
def test_verbatim_only_strips(text: str) -> None:
    assert normalise_symbol(f" {text}\n", "verbatim") == text


@pytest.mark.parametrize("text", [5, None, b"000001", 1.5, ["000001.SZ"], ("000001.SZ",), {}])
@pytest.mark.parametrize("notation", get_args(Notation))
def test_a_symbol_that_is_no_text_is_refused(text: object, notation: Notation) -> None:
    with pytest.raises(InvalidRequest, match="a symbol is text"):
        normalise_symbol(text, notation)  # type: ignore[arg-type]


def test_a_notation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="equity, index, futures, mixed, verbatim"):
        normalise_symbol("000001.SZ", "stock")  # type: ignore[arg-type]


def test_a_symbol_that_was_read_before_is_looked_up() -> None:
    normalise_symbol("sh600519")
    hits = _normalise.cache_info().hits
    assert normalise_symbol("sh600519") == "600519.SH"
    assert _normalise.cache_info().hits == hits + 1


def test_the_tables_name_only_known_exchanges_and_products_that_fit_them() -> None:
    assert " ".join(SUFFIXES) == "SZ SH BJ HK US SHFE INE DCE CZCE GFEX CFFEX"
    assert set(_MARKS.values()) == set(SUFFIXES)
    assert {normalise_symbol(f"{product}2601") for product in _PRODUCTS} == {
        f"{product}2601.{exchange}" for product, exchange in _PRODUCTS.items()
    }


CANONICAL = st.sampled_from(SUFFIXES).flatmap(
    lambda suffix: st.from_regex(_CODES[suffix], fullmatch=True).map(lambda code: f"{code}.{suffix}")
)
PIECES = [*_MARKS, *_PRODUCTS, *["0", "1", "105", "116", "000001", "600519", "00700", "AAPL", "B", "601", "2601"]]
TEXT = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="SZHBJUK.-0123456789aT", max_size=12),
    st.lists(st.sampled_from([*PIECES, ".", ".", "-"]), min_size=1, max_size=4).map("".join),
)
NEAR = st.none() | st.dates(date(1995, 1, 1), date(2060, 1, 1))


@given(CANONICAL, st.sampled_from(READING), NEAR)
def test_a_canonical_symbol_comes_back_as_it_is_in_every_dataset(symbol: str, notation: Notation, near: date | None) -> None:
    assert normalise_symbol(symbol, notation, near=near) == symbol


@given(CANONICAL, st.sampled_from(READING))
def test_case_and_space_do_not_matter(symbol: str, notation: Notation) -> None:
    assert normalise_symbol(f" {symbol.lower()} ", notation) == symbol


@given(TEXT, st.sampled_from(get_args(Notation)), NEAR)
def test_normalising_is_idempotent_and_raises_nothing_but_invalid_request(
    text: str, notation: Notation, near: date | None
) -> None:
    try:
        once = normalise_symbol(text, notation, near=near)
    except InvalidRequest as refused:
        str(refused).encode()  # a refusal can travel
        return
    assert normalise_symbol(once, notation) == once
    if notation != "verbatim":
        code, _, suffix = once.rpartition(".")
        assert re.fullmatch(_CODES[suffix], code)
