"""A made-up market: the daily life of every symbol, computed from the seed and the symbol's name alone.

Prices are whole ticks of 0.01, volumes whole lots of 100 shares, so a day's amount (lots x ticks) is a whole number of
currency units. Every random stream is drawn session by session from the first one: a longer calendar adds sessions and
changes none. ``_sim_tape`` cuts a day of this into trades.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from fletching_schemas.datasets import EPOCH
from fletching_server.sources._sim_sessions import Ints, Sessions, day_number

Floats = NDArray[np.float64]

TICKS: Final = 100
LOT: Final = 100
TRADES_PER_MINUTE: Final = 4
# 20 lots per trade leave room to shift lots between prices until the day's amount is met.
_LEAST_LOTS_PER_MINUTE: Final = 20 * TRADES_PER_MINUTE
_CHEAPEST, _DEAREST = np.log(2.5 * TICKS), np.log(5000.0 * TICKS)
_LARGEST_RETURN: Final = 0.09  # with rounding to ticks from 2.50 up this stays inside the 10 % limits
_HALTS_PER_SESSION: Final = 0.0012  # of 3 to 20 sessions each: about 1.4 % of all cells


def stream(*key: object) -> np.random.Generator:
    """Return the random stream that *key* names: the same numbers each time, independent of every other stream."""
    return np.random.Generator(np.random.Philox(key=xxhash.xxh3_128_intdigest("|".join(map(str, key)).encode())))


@dataclass(frozen=True, eq=False)
class Factor:
    """One change of the cumulative adjustment factor; days since 1970-01-01, announced before it takes effect."""

    ex_day: int
    known_day: int
    mul: float


@dataclass(frozen=True, eq=False)
class Life:
    """The sessions on which a symbol traded and its daily bars on them: ticks, lots, whole currency units.

    All but lots and amount are 32 bits wide, because a market holds hundreds of lives. ``ordinals`` point into the
    market's sessions. ``list_day`` is None for a symbol that lists after the last session, ``delist_day`` (the first
    session without trading) for one that is still listed on it.
    """

    ordinals: Ints
    days: Ints
    pre_close: Ints
    open: Ints
    high: Ints
    low: Ints
    close: Ints
    lots: Ints
    amount: Ints
    float_lots: float
    factors: tuple[Factor, ...]
    list_day: int | None
    delist_day: int | None

    def between(self, start: int, end: int) -> slice:
        """Return where the rows of the days *start* to *end* lie, both ends included."""
        first, stop = np.searchsorted(self.days, (start, end + 1))
        return slice(int(first), int(stop))


def price_limits(reference: Ints) -> tuple[Ints, Ints]:
    """Return 10 % above and below *reference*, in ticks, rounded half up as the exchanges do."""
    return (reference * 110 + 50) // 100, (reference * 90 + 50) // 100


@dataclass(frozen=True)
class _Profile:
    """What stays the same over a symbol's life; ``listed`` and ``delisted`` are ordinals of sessions."""

    beta: float
    sigma: float
    issue_ticks: int
    lots: float
    listed: int
    delisted: int
    pays: bool


def _profile(random: np.random.Generator) -> _Profile:
    draws, shocks = random.random(6), random.standard_normal(2)
    listed = 1 + int(draws[2] * 1500) if draws[3] < 0.15 else 0
    return _Profile(
        beta=0.6 + 0.8 * draws[0],
        sigma=0.010 + 0.015 * draws[1],
        issue_ticks=round(float(np.clip(15 * np.exp(0.8 * shocks[0]), 5, 300)) * TICKS),
        lots=50_000 * float(np.exp(shocks[1])),
        listed=listed,
        delisted=listed + 250 + int(draws[4] / 0.04 * 2250) if draws[4] < 0.04 else 1_000_000,
        pays=bool(draws[5] < 0.8),
    )


class Market:
    """The daily market of one seed on one exchange's sessions. Threads may share it: all it changes is a cache."""

    def __init__(self, seed: int, mic: str, sessions: Sessions) -> None:
        self.seed = seed
        self.mic = mic
        self.sessions = sessions
        self._index = 0.0002 + 0.010 * stream(seed, "market", mic).standard_normal(len(sessions.days))
        self._floor = _LEAST_LOTS_PER_MINUTE * sessions.minutes
        # 1,024 lives of twelve years are about 130 MB; the next one costs half a millisecond to compute again.
        self.life = lru_cache(maxsize=1024)(self._life)

    def _life(self, symbol: str) -> Life:
        profile = _profile(stream(self.seed, symbol, "profile"))
        shocks = stream(self.seed, symbol, "shocks").standard_normal((len(self.sessions.days), 6))
        traded = self._traded(symbol, profile)
        days, noise = self.sessions.days[traded], shocks[traded].T
        drift = profile.beta * self._index[traded] + profile.sigma * noise[0]
        returns = np.clip(drift, -_LARGEST_RETURN, _LARGEST_RETURN)
        events = self._events(symbol, profile, days)
        pre_close, close, factors = _walk(profile.issue_ticks, days, returns, events)
        opened, high, low = _ranges(profile.sigma, pre_close, close, noise)
        usual = profile.lots * np.exp(8 * np.abs(close / pre_close - 1))
        lots, amount = _turnover(self._floor[traded], usual, low, high, noise)
        return Life(
            ordinals=traded.astype(np.int32),
            days=days.astype(np.int32),
            pre_close=pre_close.astype(np.int32),
            open=opened.astype(np.int32),
            high=high.astype(np.int32),
            low=low.astype(np.int32),
            close=close.astype(np.int32),
            lots=lots,
            amount=amount,
            float_lots=80 * profile.lots,
            factors=factors,
            list_day=self._day(profile.listed),
            delist_day=self._day(profile.delisted),
        )

    def _day(self, ordinal: int) -> int | None:
        return int(self.sessions.days[ordinal]) if ordinal < len(self.sessions.days) else None

    def _traded(self, symbol: str, profile: _Profile) -> Ints:
        """Return the ordinals of the sessions on which *symbol* is listed and not suspended."""
        draws = stream(self.seed, symbol, "halts").random((len(self.sessions.days), 2))
        trades = np.ones(len(draws), dtype=bool)
        for start in np.flatnonzero(draws[:, 0] < _HALTS_PER_SESSION):
            trades[start : start + 3 + int(draws[start, 1] * 18)] = False
        trades[profile.listed : profile.listed + 1] = True
        trades[: profile.listed] = False
        trades[profile.delisted :] = False
        return np.flatnonzero(trades)

    def _events(self, symbol: str, profile: _Profile, days: Ints) -> list[_Event]:
        """Return at most one ex-date a year, between May and July, on a session with trading after the first."""
        first, last = ((EPOCH + timedelta(days=int(self.sessions.days[end]))).year for end in (0, -1))
        draws = stream(self.seed, symbol, "events").random((last + 1 - first, 4))
        planned = [day_number(date(first + year, 5, 1)) + int(row[0] * 90) for year, row in enumerate(draws)]
        at = np.searchsorted(days, planned)
        bonuses = np.select([draws[:, 3] < 0.04, draws[:, 3] < 0.08, draws[:, 3] < 0.1], [1.0, 0.5, 0.3], 0.0)
        yields = np.where(profile.pays & (draws[:, 1] < 0.95), 0.005 + 0.035 * draws[:, 2], 0.0)
        leads = 7 + (14 * draws[:, 2]).astype(np.int64)
        rows = zip(at, planned - leads, yields, bonuses, strict=True)
        return [_Event(int(position), int(known), *rest) for position, known, *rest in rows if 0 < position < len(days)]


@dataclass(frozen=True)
class _Event:
    """A planned distribution: cash as a part of the last close, bonus shares per share held."""

    position: int
    known_day: int
    cash_yield: float
    bonus: float

    def reference(self, last_close: int) -> int:
        """Return the exchange's reference price in ticks; cheap shares neither pay nor split, to stay above nothing."""
        cash = round(last_close * self.cash_yield) if last_close > 5 * TICKS else 0
        bonus = self.bonus if last_close > 20 * TICKS else 0.0
        return round((last_close - cash) / (1 + bonus))


def _walk(issue: int, days: Ints, returns: Floats, events: list[_Event]) -> tuple[Ints, Ints, tuple[Factor, ...]]:
    """Return reference prices and closes in ticks, and the factors under which close x factor is continuous."""
    close, pre_close = np.empty(len(days), dtype=np.int64), np.empty(len(days), dtype=np.int64)
    factors, reference = [], issue
    by_position = {event.position: event for event in events}
    if len(days):
        factors.append(Factor(int(days[0]), int(days[0]) - 1, 1.0))
    for start, stop in pairwise(sorted({0, *by_position, len(days)})):
        if event := by_position.get(start):
            last_close = int(close[start - 1])
            reference = event.reference(last_close)
            if reference != last_close:
                factors.append(Factor(int(days[start]), event.known_day, factors[-1].mul * last_close / reference))
        close[start:stop] = np.rint(np.exp(_fold(np.log(reference) + np.cumsum(returns[start:stop]))))
        pre_close[start] = reference
        pre_close[start + 1 : stop] = close[start : stop - 1]
    return pre_close, close, tuple(factors)


def _fold(path: Floats) -> Floats:
    """Return *path* reflected at the cheapest and the dearest price, so that no price is lost in rounding to ticks."""
    width = _DEAREST - _CHEAPEST
    folded: Floats = _CHEAPEST + (width - np.abs((path - _CHEAPEST) % (2 * width) - width))
    return folded


def _ranges(sigma: float, pre_close: Ints, close: Ints, noise: Floats) -> tuple[Ints, Ints, Ints]:
    """Return open, high and low of each session in ticks."""
    up, down = price_limits(pre_close)
    gaps = 0.4 * np.log(close / pre_close) + 0.3 * sigma * noise[1]
    opened = np.clip(np.rint(pre_close * np.exp(gaps)).astype(np.int64), down, up)
    above, below = np.rint(np.abs(noise[2:4]) * 0.5 * sigma * pre_close).astype(np.int64)
    high = np.minimum(np.maximum(opened, close) + above, up)
    low = np.maximum(np.minimum(opened, close) - below, down)
    return opened, high, low


def _turnover(floor: Ints, usual: Floats, low: Ints, high: Ints, noise: Floats) -> tuple[Ints, Ints]:
    """Return lots and amount; the mean price stays in the middle of the range, where every tape can meet it."""
    lots = np.rint(floor + usual * np.exp(0.5 * noise[4])).astype(np.int64)
    mean = low + (high - low) * (0.5 + 0.2 * np.tanh(noise[5]))
    return lots, np.rint(lots * mean).astype(np.int64)
