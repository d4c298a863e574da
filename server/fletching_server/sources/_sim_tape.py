"""One made-up session of one symbol, trade by trade, inside its daily bar.

The first trade is at the open, the last at the close, one at the high and one at the low; sizes add up to the day's
volume, and price x size to its amount within half the day's price range times one lot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fletching_server.sources._sim_market import TRADES_PER_MINUTE, Floats, Life, Market, price_limits, stream
from fletching_server.sources._sim_sessions import MINUTE, Ints

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tape:
    """The trades of a session: prices in ticks, sizes in lots, a row per minute with its trades in order."""

    minute_ends: Ints
    ticks: Ints
    lots: Ints

    def minute_bars(self) -> dict[str, Ints]:
        """Return open, high, low, close (ticks), lots and amount (currency) of every minute."""
        ticks = self.ticks
        return {
            "open": ticks[:, 0],
            "high": ticks.max(axis=1),
            "low": ticks.min(axis=1),
            "close": ticks[:, -1],
            "lots": self.lots.sum(axis=1),
            "amount": (self.lots * ticks).sum(axis=1),
        }

    def instants(self, random: np.random.Generator) -> Ints:
        """Return the instant of every trade inside its minute, in steps of 10 ms: some repeat, as on real tapes."""
        offsets = np.sort(random.integers(0, MINUTE // 10_000, self.ticks.shape), axis=1) * 10_000
        return (self.minute_ends[:, None] - MINUTE + offsets).ravel()


def tape(market: Market, symbol: str, life: Life, row: int) -> Tape:
    """Return the trades of *symbol* on the session at *row* of its life."""
    ends = market.sessions.minute_ends(int(life.ordinals[row]))
    random = stream(market.seed, symbol, life.days[row], "tape")
    ticks = _path(random, life, row, TRADES_PER_MINUTE * len(ends))
    lots = _sizes(random, ticks, int(life.lots[row]), int(life.amount[row]))
    return Tape(ends, ticks.reshape(-1, TRADES_PER_MINUTE), lots.reshape(-1, TRADES_PER_MINUTE))


def bought(market: Market, symbol: str, life: Life, row: int, ticks: Ints) -> NDArray[np.bool_]:
    """Return which trades the buyer started; at a price limit only one side is left to start one."""
    up, down = price_limits(life.pre_close[row])
    guess = stream(market.seed, symbol, life.days[row], "side").random(len(ticks)) < 0.5
    return (guess | (ticks >= up)) & (ticks > down)


def _path(random: np.random.Generator, life: Life, row: int, count: int) -> Ints:
    """Return *count* prices from the open to the close that touch the high and the low and never leave them."""
    low, high = int(life.low[row]), int(life.high[row])
    anchors = {0: int(life.open[row]), count - 1: int(life.close[row])}
    for extreme, place in zip((high, low), 1 + random.choice(count - 2, 2, replace=False), strict=True):
        if extreme not in anchors.values():
            anchors[int(place)] = extreme
    at = sorted(anchors)
    wander = np.cumsum(random.standard_normal(count)) * (high - low) / (2 * np.sqrt(count))
    along = np.arange(count)
    line = np.interp(along, at, [anchors[place] for place in at])
    path = np.rint(line + wander - np.interp(along, at, wander[at]))
    return np.asarray(np.clip(path, low, high), dtype=np.int64)


def _sizes(random: np.random.Generator, ticks: Ints, lots: int, amount: int) -> Ints:
    """Return at least one lot per trade, *lots* in all, so that the trades come to *amount*.

    Lots are rounded in the order of the prices: the running error is at most half a lot, so the amount is off by at
    most half the price range.
    """
    spare = lots - len(ticks)
    shape = 1 + 1.5 * np.linspace(-1, 1, len(ticks)) ** 2  # busy at the open and at the close
    weights = _tilted(shape * random.standard_exponential(len(ticks)), ticks, (amount - int(ticks.sum())) / spare)
    order = np.argsort(ticks, kind="stable")
    running = np.rint(np.cumsum(weights[order]) * spare)
    running[-1] = spare
    sizes = np.empty(len(ticks), dtype=np.int64)
    sizes[order] = 1 + np.diff(running, prepend=0).astype(np.int64)
    return sizes


def _tilted(weights: Floats, ticks: Ints, target: float) -> Floats:
    """Return *weights* scaled to 1 and mixed with those of the prices beyond *target*, until their mean price is it."""
    weights = weights / weights.sum()
    mean = weights @ ticks
    beyond = np.where(ticks > target if mean < target else ticks < target, weights, 0.0)
    if not beyond.any():  # one price all day
        return weights
    beyond /= beyond.sum()
    share = (target - mean) / (beyond @ ticks - mean)
    return weights + share * (beyond - weights)
