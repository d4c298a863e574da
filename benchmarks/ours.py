"""Fletching as a contender: a client of a server in another process, or the engine in its own."""

from __future__ import annotations

import json
import sys
from datetime import date, timedelta
from typing import Any

import fletching
from benchmarks.stopwatch import Work, serve
from benchmarks.universe import TABLE, span
from fletching import _repeats


def _works(cache: fletching.Cache, asked: list[str], year: int, first_year: int) -> dict[str, Work]:
    def evict() -> object:
        return cache.evict(TABLE)

    def symbol(number: int) -> str:
        return asked[number % len(asked)]

    whole = Work(lambda _: cache.read(TABLE, None, *span(year)))
    one = Work(lambda number: cache.read(TABLE, symbol(number), *span(year)))
    return {
        "partition": whole,
        "partition, summed": Work(lambda _: _summed(cache.read(TABLE, None, *span(year)))),
        "symbol year": one,
        "symbol year, new": Work(lambda number: cache.read(TABLE, symbol(number), *_never_the_same(year, number))),
        "symbol again": Work(lambda _: cache.read(TABLE, symbol(0), *span(year))),
        "symbol decade": Work(lambda number: cache.read(TABLE, symbol(number), *span(first_year, year))),
        "symbols year": Work(lambda _: cache.read(TABLE, asked, *span(year))),
        "cold partition": Work(whole.call, before=evict),
        "cold symbol year": Work(one.call, before=evict),
    }


def _never_the_same(year: int, number: int) -> tuple[date, date]:
    """Return nearly a whole *year*: no two questions are alike for a long time."""
    first, last = span(year)
    return first + timedelta(days=number // 200 % 28), last - timedelta(days=number // 5600 % 28)


def _summed(frame: Any) -> Any:
    return frame.select(frame.columns[2:]).sum()


def _main(tell: str, given: dict[str, Any]) -> None:
    opened = (
        fletching.connect(given["url"], plane=given.get("plane"))
        if "url" in given
        else fletching.open(given["store"], memory="2GiB")
    )
    if not given.get("repeats"):  # every read asks the server: of two hundred symbols in turns not all would
        _repeats.LASTS_SECONDS = 0.0
    with opened as cache:
        if "store" in given:
            from benchmarks.servers import every_use_the_first  # noqa: PLC0415  # a client must not pay for the server

            every_use_the_first(cache._transport._engine)  # noqa: SLF001  # see there
        _, info = cache.read(TABLE, given["asked"][0], *span(given["year"]), info=True)
        serve(int(tell), {"plane": info.plane}, _works(cache, given["asked"], given["year"], given["first_year"]))


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
