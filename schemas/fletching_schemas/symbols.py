"""Every common notation of a symbol to one: ``CODE.SUFFIX``, upper case.

    000001.SZ  600519.SH  430047.BJ  00700.HK  AAPL.US  BRK.B.US  RB2601.SHFE  000300.SH (an index)

A text is read in this order, and the first reading that fits the exchange's codes is taken:

    1. canonical already                        5. a contract of a known product    RB2601
    2. exchange on the right    600519.XSHG     6. six digits, by the dataset       600519
    3. exchange on the left     SHSE.600519     7. five digits                      00700
    4. exchange glued on        sh600519        8. letters: a US ticker             aapl
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, get_args

from fletching_schemas.datasets import Notation
from fletching_schemas.errors import InvalidRequest

if TYPE_CHECKING:
    from datetime import date

# Year and month, or a vendor's continuous series: RB0 (Sina), RB88, RB888 (RiceQuant), RB9999, RB8888 (JoinQuant).
_CONTRACT: Final = r"[A-Z]{1,2}(?:[0-9]{2}(?:0[1-9]|1[0-2])|00?|8{2,4}|889|9{2,4})"
_CODES: Final[dict[str, str]] = {
    **dict.fromkeys(("SZ", "SH", "BJ"), r"[0-9]{6}"),
    "HK": r"[0-9]{5}",
    "US": r"[A-Z][A-Z0-9.\-]{0,20}",
    **dict.fromkeys(("SHFE", "INE", "DCE", "CZCE", "GFEX", "CFFEX"), _CONTRACT),
}
SUFFIXES: Final[tuple[str, ...]] = tuple(_CODES)

_CANONICAL: Final = re.compile("|".join(rf"(?:{code})\.{suffix}" for suffix, code in _CODES.items()))
_ONE_DIGIT_YEAR: Final = re.compile(r"([A-Z]{1,2})([0-9])(0[1-9]|1[0-2])")
_GLUED: Final = re.compile(r"(SZ|SH|BJ|HK)([0-9]{5,6})")  # four digits are caustic soda: SH2601 is a contract
_BARE_CONTRACT: Final = re.compile(r"([A-Z]{1,2})[0-9]{1,4}")
# Narrower than a US code with its suffix: RB601 and AAPL.LSE are mistakes, not tickers.
_BARE_US: Final = re.compile(r"[A-Z]{1,6}(?:-[A-Z0-9]{1,8})?(?:\.(?:[A-Z]|WS))?")

# What vendors write for an exchange, on either side of the code.
_MARKS: Final[dict[str, str]] = {suffix: suffix for suffix in SUFFIXES} | {
    mark: suffix
    for suffix, marks in {
        "SZ": "XSHE SZSE",
        "SH": "XSHG SHSE SSE SS",
        "BJ": "BJSE",
        "HK": "XHKG SEHK",
        "US": "XNAS XNYS NASDAQ NYSE",
        "SHFE": "SHF XSGE",
        "INE": "XINE",
        "DCE": "XDCE",
        "CZCE": "ZCE XZCE",
        "GFEX": "GFE",
        "CFFEX": "CFX CCFX",
    }.items()
    for mark in marks.split()
}
_SECIDS: Final = {"0": "SZ", "1": "SH", "105": "US", "106": "US", "107": "US", "116": "HK"}  # eastmoney, left side only

_PRODUCTS: Final[dict[str, str]] = {
    product: exchange
    for exchange, products in {
        "SHFE": "CU AL ZN PB NI SN AU AG RB HC WR BU RU FU SP SS AO BR AD OP",
        "INE": "SC LU NR BC EC",
        "DCE": "A B M Y P C CS L V PP JD J JM I EG EB RR PG LH FB BB LG BZ",
        "CZCE": "AP CF CJ CY FG JR LR MA OI PF PK PL PM PR PX RI RM RS SA SF SH SM SR TA UR WH ZC ER ME RO TC WS WT",
        "GFEX": "SI LC PS PT PD",
        "CFFEX": "IF IH IC IM TS TF T TL",
    }.items()
    for product in products.split()
}

# Which exchange six bare digits mean is convention: no rule of the exchanges keeps the numbers apart.
_SHARES: Final[dict[str, tuple[str, ...]]] = {
    "SH": ("60", "68", "90", "5"),
    "SZ": ("00", "20", "30", "15", "16", "18"),
    "BJ": ("43", "83", "87", "88", "92"),
}
# Also convention: in an index dataset 000xxx are Shanghai's indices, though the same digits are shares of Shenzhen.
_INDICES: Final[dict[str, tuple[str, ...]]] = {"SH": ("000",), "SZ": ("399",), "BJ": ("899",)}
_SIX_DIGITS: Final[dict[str, tuple[dict[str, tuple[str, ...]], ...]]] = {
    "equity": (_SHARES,),
    "index": (_INDICES,),
    "mixed": (_SHARES, _INDICES),
    "futures": (),
}

_ACCEPTED: Final = (
    "accepted are 000001.SZ, 000001.XSHE, SZSE.000001, SZ.000001, sz000001, 0.000001 (SH and BJ alike; SH also .SS); "
    "00700.HK, HK.00700, 700.HK, 116.00700, 00700; AAPL.US, US.AAPL, 105.AAPL, aapl, BRK.B; "
    "RB2601.SHFE, rb2601.SHF, RB2601.XSGE, SHFE.rb2601, rb2601; exchanges are " + ", ".join(SUFFIXES)
)


def normalise_symbol(text: str, notation: Notation = "equity", *, near: date | None = None) -> str:
    """Return the canonical ``CODE.SUFFIX`` of *text*, as a dataset of *notation* understands it.

    *notation* decides what a code without an exchange means: 000001 is a share of Shenzhen for ``equity``, the index of
    Shanghai for ``index``, refused for ``mixed``; ``futures`` takes contracts only; ``verbatim`` only strips *text*.
    *near* (say, the start of the request) picks the decade of CZCE contracts that write one digit of the year: TA601.

    A canonical symbol comes back as it is. Raises ``InvalidRequest``, listing the candidates where there are several,
    and the accepted notations where there is none.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"a symbol is text, this is a {type(text).__name__}; {_ACCEPTED}")
    if notation == "verbatim":
        return text.strip()
    # The month is all that counts of *near*, and requests of one month share what is remembered.
    return _normalise(text.strip(), notation, None if near is None else near.year * 12 + near.month - 1)


@lru_cache(maxsize=65536)  # every share, fund and contract of all exchanges here, in two notations
def _normalise(text: str, notation: Notation, near: int | None) -> str:
    if notation not in get_args(Notation):
        raise InvalidRequest(f"notation={notation!r:.40}; it is one of {', '.join(get_args(Notation))}")
    if _CANONICAL.fullmatch(text):
        return text
    if not text.isascii():  # upper() makes ASCII of some letters that are not: a sharp s would read as .SS
        raise _unknown(text)
    symbols = _readings(text.upper(), notation, near)
    if not symbols:
        raise _unknown(text)
    if len(symbols) > 1:
        raise _ambiguous(text, symbols)
    return symbols[0]


def _readings(code: str, notation: Notation, near: int | None) -> list[str]:
    """Return the symbols that *code* can mean; none is what a known exchange makes of a code that it never has."""
    marked = _marked(code)
    if not marked:
        return _bare(code, notation, near)
    return next(filter(None, (_complete(rest, suffix, near) for rest, suffix in marked)), [])


def _marked(code: str) -> list[tuple[str, str]]:
    """Return (code, suffix) for each exchange that is written into *code*; the right side goes first."""
    if glued := _GLUED.fullmatch(code):
        return [(glued[2], glued[1])]
    if "." not in code:
        return []
    left, _, after = code.partition(".")
    before, _, right = code.rpartition(".")
    sides = [(before, _MARKS.get(right)), (after, _MARKS.get(left) or _secid(left, after))]
    return [(rest, suffix) for rest, suffix in sides if suffix]


def _secid(market: str, code: str) -> str | None:
    """Return the suffix of eastmoney's *market*; its market 0 is Shenzhen and Beijing together."""
    beijing = market == "0" and code.startswith((*_SHARES["BJ"], *_INDICES["BJ"]))
    return "BJ" if beijing else _SECIDS.get(market)


def _complete(code: str, suffix: str, near: int | None) -> list[str]:
    """Return the symbols that *code* can be on one exchange: none where the codes of that exchange look otherwise."""
    if suffix == "HK" and code.isdigit():
        code = code.zfill(5)
    if suffix == "CZCE" and (short := _ONE_DIGIT_YEAR.fullmatch(code)):
        return _in_decade(short[1], int(short[2]), int(short[3]), near)
    return [f"{code}.{suffix}"] if re.fullmatch(_CODES[suffix], code) else []


def _in_decade(product: str, digit: int, month: int, near: int | None) -> list[str]:
    """Return the CZCE contract nearest to *near*: two where they are as near, those of all decades without *near*."""
    first = 2000 if near is None else near // 120 * 10 - 10
    months = [(first + decade + digit) * 12 + month - 1 for decade in (0, 10, 20)]
    away = [0 if near is None else abs(each - near) for each in months]
    nearest = [each for each, distance in zip(months, away, strict=True) if distance == min(away)]
    return [f"{product}{each // 12 % 100:02}{month:02}.CZCE" for each in nearest]


def _bare(code: str, notation: Notation, near: int | None) -> list[str]:
    """Return the symbols that *code*, without an exchange, can mean in a dataset of *notation*."""
    contract = _BARE_CONTRACT.fullmatch(code)
    if contract and contract[1] in _PRODUCTS:
        return _complete(code, _PRODUCTS[contract[1]], near)
    if code.isdigit() and len(code) == 6:
        return _six_digits(code, notation)
    if notation == "futures":
        return []
    if code.isdigit() and len(code) == 5:
        return [f"{code}.HK"]
    return [f"{code}.US"] if _BARE_US.fullmatch(code) else []


def _six_digits(code: str, notation: Notation) -> list[str]:
    """Return the symbols that *notation* has for six digits; all three exchanges where no rule knows them."""
    rules = [rule for table in _SIX_DIGITS[notation] for rule in table.items()]
    found = {suffix for suffix, starts in rules if code.startswith(starts)} or {"SZ", "SH", "BJ"}
    return [f"{code}.{suffix}" for suffix in SUFFIXES if suffix in found]


def _ambiguous(text: str, symbols: list[str]) -> InvalidRequest:
    dates = ", or ask for dates nearer to one of them" if symbols[0].endswith(".CZCE") else ""
    return InvalidRequest(f"symbol {text!r:.90} can be {' or '.join(symbols)}; write the one that is meant{dates}")


def _unknown(text: str) -> InvalidRequest:
    return InvalidRequest(f"symbol {text!r:.90} is in no notation that is known here; {_ACCEPTED}")
