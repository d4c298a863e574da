"""What a source must do. Users' own sources implement this; nothing needs to be inherited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from fletching_schemas import Dataset, FetchRequest


@runtime_checkable
class Source(Protocol):
    """Where missing rows come from.

    ``fetch`` returns ONLY rows of the symbols and sessions asked for (a dataset with ``range_pushdown=False`` may return
    a symbol's whole history), sorted by symbol, time and the remaining keys, unique by key, with the dataset's columns.
    Nullable columns may be left out. A row missing from the answer means "there is nothing for that cell", and that
    is remembered: trouble must be raised (any exception), never returned as an empty table. ``fetch`` is called from
    several threads at once, unless the source has an attribute ``concurrent_calls`` that allows fewer. A method ``close``
    is called when the cache closes.

    The answer's schema metadata may hold ``provenance``, a JSON object with any of ``function``, ``arguments``, ``version`` and
    ``unit_check`` (passed, failed, not_applicable): it is recorded with the fill.
    """

    name: str

    def datasets(self) -> Sequence[Dataset]:
        """Return what this source offers; asked once, when the server starts."""
        ...

    def fetch(self, request: FetchRequest) -> pa.Table:
        """Return the rows of the asked symbols and sessions (both ends inclusive)."""
        ...


@runtime_checkable
class SymbolLister(Protocol):
    """A source that can also say which symbols it has: needed for reads that name none, and to tell unknown ones."""

    def symbols(self, dataset: str) -> Sequence[str]:
        """Return the canonical symbols of *dataset*, in any order."""
        ...


@dataclass(frozen=True)
class Lifetime:
    """When a symbol was listed and when it traded last; None: not known, or still listed."""

    first: date | None = None
    last: date | None = None


@runtime_checkable
class LifetimeTeller(Protocol):
    """A source that knows when symbols were listed and delisted: what lies outside is never asked for."""

    def lifetimes(self, dataset: str) -> Mapping[str, Lifetime]:
        """Return the lifetimes of the symbols of *dataset* that are known, by canonical symbol."""
        ...


@dataclass(frozen=True)
class Budget:
    """What one upstream family (all hosts of one vendor) may be asked for; the defaults are no limit.

    ``at_once`` calls under way, ``spacing_seconds`` between requests (with up to half as much again of jitter),
    ``per_hour`` and ``per_day`` requests.
    """

    at_once: int = 64
    spacing_seconds: float = 0.0
    per_hour: int | None = None
    per_day: int | None = None


class Meter(Protocol):
    """What a source may ask of the guard while a call is under way."""

    def spend(self, family: str, requests: int = 1) -> None:
        """Return when *requests* may be sent to *family* now; ``SourceThrottled`` where that would take too long."""
        ...


@runtime_checkable
class Metered(Protocol):
    """A source whose upstream has limits: the guard keeps them, across sources, datasets and restarts.

    The guard asks ``family`` which upstream a call goes to, and opens that family's circuit where calls to it are dropped.
    A source that counts its own HTTP requests spends them on the meter that ``use_meter`` gave it; ``cost`` is then 0.
    """

    budgets: Mapping[str, Budget]

    def family(self, dataset: str) -> str:
        """Return which of ``budgets`` a call for *dataset* draws on; for a ``Caller``, also a function's name."""
        ...

    def cost(self, request: FetchRequest) -> int:
        """Return how many requests ``fetch`` will send that it does not spend itself."""
        ...

    def use_meter(self, meter: Meter) -> None:
        """Take the meter; called once, before the first fetch."""
        ...


@runtime_checkable
class Caller(Protocol):
    """A source whose library's functions can be called by name, for the call cache.

    Arguments are JSON values, a date being ``{"$date": "2024-03-20"}``: ``fletching_schemas.tagged.from_tagged`` reads them.
    """

    def version(self) -> str:
        """Return the version of the library; answers of another version are not served."""
        ...

    def call(self, function: str, arguments: Mapping[str, Any]) -> pa.Table:
        """Return what *function* returns for the JSON *arguments*, encoded as a table (see the source's own codec)."""
        ...

    def freshness(self, function: str) -> float:
        """Return for how many seconds an answer of *function* is served without asking again."""
        ...


@runtime_checkable
class FunctionLister(Protocol):
    """A ``Caller`` that knows its functions: unknown ones are refused, and arguments may be given by position."""

    def functions(self) -> Sequence[str]:
        """Return the names of the functions that can be called, in any order."""
        ...

    def parameters(self, function: str) -> Sequence[str] | None:
        """Return the names of the parameters of *function* in order; None where they cannot be told."""
        ...
