"""One read as the access log tells it: who asked for what, and what it touched. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from fletching_server.snapshot import StoredFile

ALL: Final = "*"  # the group of a read of all symbols
SYMBOLS_TOLD: Final = 64  # with the event itself; those of larger groups are kept apart, once
USUAL_PROFILE: Final = "research"  # of a read that names none
EMBEDDED: Final = "embedded"  # who asks, where no server lies between


class Touched(NamedTuple):
    """One partition of a read, by its bytes in memory; or the journal's segments of one bucket, whose period is empty.

    *tier* is where it was when it was read: ``hot``, ``cold``, or ``source`` where it was fetched for this very read. *warmed*:
    it was there because somebody was expected to ask.
    """

    period: str
    bucket: int
    bytes: int
    tier: str
    warmed: bool = False


@dataclass(frozen=True, slots=True)
class AccessEvent:
    """One read, as the access log tells it.

    ``at`` is when it began, in seconds since 1970 (UTC). ``group`` is the symbol, ``*`` for all, or ``group_of`` several;
    ``symbols`` are those of a group of up to ``SYMBOLS_TOLD``. ``first`` and ``last`` are wanted sessions as day numbers:
    ``first`` is None where the request named no start, ``last`` where the range holds no session; ``open_end`` where it named
    no end and so follows the present. No ``columns`` are all. ``rows``, ``bytes`` and ``milliseconds`` are those of the
    answer; ``repeats`` counts further reads alike that came too fast to be told one by one.
    """

    at: float
    request_id: str
    principal: str
    profile: str
    dataset: str
    group: str
    symbols: tuple[str, ...]
    first: int | None
    last: int | None
    open_end: bool
    columns: tuple[str, ...]
    touched: tuple[Touched, ...]
    upstream_calls: int
    rows: int
    bytes: int
    milliseconds: float
    repeats: int = 0


def group_of(symbols: Iterable[str] | None) -> str:
    """Return the name of a set of symbols: the symbol itself, ``*`` for all (None), or ``#`` and 16 hexadecimal digits."""
    if symbols is None:
        return ALL
    listed = sorted(symbols)
    return listed[0] if len(listed) == 1 else f"#{xxhash.xxh3_64_hexdigest(','.join(listed).encode())}"


def lineage_of(file: StoredFile) -> str:
    """Return what is asked for again whatever its generation: ``dataset/period/bucket``, without the period for a segment."""
    return f"{file.dataset}/{period_of(file)}/{file.bucket}"


def period_of(file: StoredFile) -> str:
    """Return the period of a partition; none for a segment of the journal, whose rows are of many."""
    return "" if file.kind == "segment" else file.period
