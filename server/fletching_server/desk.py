"""The sources of one engine: who offers which dataset, which symbols it lists, and calls that cannot hang their caller.

A call runs in a thread of its own, because a thread that hangs in somebody else's code cannot be stopped: at its deadline
it is abandoned, counted, and its late answer is dropped.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import pyarrow as pa
import structlog

from fletching_schemas import Dataset, FetchRequest
from fletching_schemas.errors import (
    BadSourceData,
    Error,
    InvalidRequest,
    SourceTimeout,
    SourceUnavailable,
    UnknownSymbol,
    copy_of,
)
from fletching_schemas.requests import MAX_SYMBOL_LENGTH
from fletching_server.calendars import day_number
from fletching_server.clock import Clock
from fletching_server.guard import Guard
from fletching_server.snapshot import Life
from fletching_server.sources import Caller, Lifetime, LifetimeTeller, Metered, Source, SymbolLister

T = TypeVar("T")

LISTING_SECONDS: Final = 60.0  # how long a source's list of symbols is believed
LIVES_SECONDS: Final = 86400.0  # the same for listing dates, which change by the day
_LIVES_REST: Final = 300.0
OUTER_SECONDS: Final = 900.0
MOST_ABANDONED: Final = 8  # hanging calls per source before it is not asked any more

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Listing:
    symbols: frozenset[str]
    at: float


class Desk:
    """Sources by the datasets they offer."""

    def __init__(self, sources: Sequence[Source], clock: Clock, deadline_seconds: float, guard: Guard) -> None:
        self._clock, self.guard = clock, guard
        self._deadline = deadline_seconds
        self._lock = threading.Lock()
        self._listings: dict[str, _Listing] = {}
        self._lives: dict[str, tuple[float, Mapping[str, Life]]] = {}
        self._abandoned: dict[str, int] = {}
        self._under_way: set[Future[object]] = set()
        self._closed = False
        self._sources: dict[str, Source] = {}
        self.offers: dict[str, Dataset] = {}
        self.callers: dict[str, Caller] = {}  # by the source's name
        for source in sources:
            self._add(source)

    def _add(self, source: Source) -> None:
        if not isinstance(source, Source):
            raise InvalidRequest(
                f"{source!r:.80} is not a source: it needs a name, datasets() and fetch(request); "
                "see fletching_server.sources.Source"
            )
        if isinstance(source, Caller):
            self.callers[source.name] = source
        offered = self._call(source, f"{source.name}.datasets()", source.datasets)
        if isinstance(offered, str) or not isinstance(offered, Iterable):
            raise BadSourceData(f"source {source.name} offers {offered!r:.80}; datasets() returns a list of datasets")
        for dataset in offered:
            if not isinstance(dataset, Dataset):
                raise BadSourceData(f"source {source.name} offers {dataset!r:.80}, which is not a fletching_schemas.Dataset")
            if dataset.is_system:
                raise BadSourceData(f"source {source.name} offers {dataset.name}; names in system. are the cache's own")
            if dataset.name in self.offers:
                raise InvalidRequest(
                    f"dataset {dataset.name} is offered by {self._sources[dataset.name].name} and by {source.name}; "
                    "give one of them another name, for instance with a prefix"
                )
            self.offers[dataset.name], self._sources[dataset.name] = dataset, source
        self.guard.adopt(source)

    def source(self, dataset: str) -> Source | None:
        """Return who offers *dataset*, or None."""
        return self._sources.get(dataset)

    def names(self) -> list[str]:
        """Return the names of all sources."""
        return sorted({source.name for source in self._sources.values()})

    def lane(self, dataset: str) -> str:
        """Return in which row calls for *dataset* wait: one per family of hosts, else one per source."""
        source = self._sources[dataset]
        return self.guard.family(source, dataset) or source.name

    def lanes(self, most: int) -> dict[str, int]:
        """Return every lane with how many calls it takes at a time: *most*, or what source or family state."""
        found: dict[str, int] = {}
        for dataset, source in self._sources.items():
            family = self.guard.family(source, dataset)
            width = min(most, getattr(source, "concurrent_calls", most))
            found[self.lane(dataset)] = self.guard.at_once(family, width) if family else width
        return found

    def listed(self, dataset: str, *, fresh: bool = False) -> frozenset[str] | None:
        """Return the symbols that the source lists, at most a minute old; None where it cannot tell.

        A source whose list costs a lot says with ``listing_seconds`` how long it is believed, also where it should be *fresh*.
        """
        source = self._sources.get(dataset)
        if not isinstance(source, SymbolLister):
            return None
        held = self._listings.get(dataset)
        now = self._clock.monotonic()
        believed = getattr(source, "listing_seconds", LISTING_SECONDS)
        if held is None or (fresh and believed <= LISTING_SECONDS) or now - held.at > believed:
            what = f"{source.name}.symbols({dataset})"
            symbols = self.ask(source, dataset, what, lambda: source.symbols(dataset))
            held = self._listings[dataset] = _Listing(_checked(symbols, what), now)
        return held.symbols

    def lists_at_a_cost(self, dataset: str) -> bool:
        """Return whether listing the symbols costs so much that it is not done for a symbol that is named."""
        return bool(getattr(self._sources.get(dataset), "costly_listing", False))

    def known_listing(self, dataset: str) -> frozenset[str] | None:
        """Return the symbols that the source listed last, however long ago, without asking it; None where it never did."""
        held = self._listings.get(dataset)
        return held.symbols if held else None

    def lives(self, dataset: str) -> Mapping[str, Life]:
        """Return when symbols were listed and delisted, as far as the source tells; at most a day old."""
        source = self._sources.get(dataset)
        if not isinstance(source, LifetimeTeller):
            return {}
        held, now = self._lives.get(dataset), self._clock.monotonic()
        if held is None or now - held[0] > getattr(source, "lives_seconds", LIVES_SECONDS):
            self._lives[dataset] = (now - LIVES_SECONDS + _LIVES_REST, held[1] if held else {})  # if it fails: not at once again
            told = self.ask(source, dataset, f"{source.name}.lifetimes({dataset})", lambda: source.lifetimes(dataset))
            held = self._lives[dataset] = (now, {symbol: _life(each) for symbol, each in told.items()})
        return held[1]

    def fetch(self, request: FetchRequest, *, background: bool = False) -> pa.Table:
        """Return what the source has for *request*; every trouble becomes one of our errors.

        A call of the *background* leaves the last fifth of a budget to people.
        """
        source, dataset = self._sources[request.dataset], request.dataset
        what, metered = f"source {source.name} asked for {request}", isinstance(source, Metered)
        if metered:
            self.guard.check_known(dataset, request.symbols)
        cost = source.cost(request) if isinstance(source, Metered) else 1
        try:
            return self.ask(source, dataset, what, lambda: source.fetch(request), cost=cost, background=background)
        except UnknownSymbol as error:
            if metered and len(request.symbols) == 1:
                self.guard.remember_unknown(dataset, request.symbols[0], error)
            raise

    def ask(self, source: Source, name: str, what: str, call: Callable[[], T], *, cost: int = 0, background: bool = False) -> T:
        """Return what *call* returns for the dataset or function *name*, under the guard and with a deadline."""
        return self.guard.call(source, name, lambda: self._call(source, what, call), cost=cost, background=background)

    def look(self, source: Source, what: str, call: Callable[[], T]) -> T:
        """Return what *call* returns, with a deadline: for what a source tells about itself, without asking its upstream."""
        return self._call(source, what, call)

    def _call(self, source: Source, what: str, call: Callable[[], T]) -> T:
        if self._abandoned.get(source.name, 0) >= MOST_ABANDONED:
            raise SourceUnavailable(
                f"{what}: {MOST_ABANDONED} earlier calls still hang, so it is not asked any more; restart the server"
            )
        answer: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise SourceUnavailable(f"{what}: the cache is closing")
            self._under_way.add(answer)  # type: ignore[arg-type]
        run = contextvars.copy_context().run  # the guard knows by it on whose behalf requests are spent
        threading.Thread(target=run, args=(self._run, answer, call), name=f"fetch-{source.name}", daemon=True).start()
        try:
            return answer.result(timeout=self._deadline_of(source))
        except FutureTimeout as error:
            if answer.done():  # the source itself raised a TimeoutError
                raise _translated(error, what) from error
            self._abandon(source, answer)
            told = f"{what}: no answer in {self._deadline_of(source):g} s; nothing was stored"
            raise SourceTimeout(f"{told}, ask again later or with on_miss='cached'") from error
        except Exception as error:
            raise _translated(error, what) from error
        finally:
            with self._lock:
                self._under_way.discard(answer)

    def _deadline_of(self, source: Source) -> float:
        """Return the deadline of a call; a source that keeps deadlines itself (``own_deadline``) only gets an outer bound."""
        return max(self._deadline, OUTER_SECONDS) if getattr(source, "own_deadline", False) else self._deadline

    @staticmethod
    def _run(answer: Future[T], call: Callable[[], T]) -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001  # it belongs to the thread that waits
            outcome: Exception | None = error
        except BaseException as error:  # noqa: BLE001  # an exit or an interrupt must not end that thread
            outcome = RuntimeError(f"{type(error).__name__}: {error}")
        else:
            outcome = None
        with suppress(InvalidStateError):  # the caller has been told that the cache closes
            if outcome is None:
                answer.set_result(result)
            else:
                answer.set_exception(outcome)

    def _abandon(self, source: Source, answer: Future[T]) -> None:
        self._count_abandoned(source, 1)
        log.warning("source hangs", source=source.name, abandoned=self._abandoned[source.name])
        answer.add_done_callback(lambda _: self._count_abandoned(source, -1))  # slow, not hanging: it came back

    def _count_abandoned(self, source: Source, change: int) -> None:
        with self._lock:
            self._abandoned[source.name] = self._abandoned.get(source.name, 0) + change

    def facts(self) -> dict[str, int]:
        """Return how many calls each source left hanging."""
        return {f"hanging_calls_{name}": count for name, count in self._abandoned.items()}

    def release(self) -> None:
        """Call no source any more, and release all who wait for one."""
        self.guard.release()
        with self._lock:
            self._closed = True
            waiting = list(self._under_way)
        for answer in waiting:
            with suppress(InvalidStateError):  # it has just answered
                answer.set_exception(SourceUnavailable("the cache is closing"))

    def close(self) -> None:
        """Close the sources that can be closed; ``release`` comes before."""
        for source in {id(source): source for source in (*self._sources.values(), *self.callers.values())}.values():
            close = getattr(source, "close", None)
            if callable(close):
                close()
        self.guard.close()


def _translated(error: BaseException, what: str) -> Error:
    if isinstance(error, Error):
        return copy_of(error)  # a class of the source's own may take other arguments
    return SourceUnavailable(
        f"{what}: {type(error).__name__}: {str(error)[:300]}; nothing was stored, ask again later or with on_miss='cached'"
    )


def _life(told: Lifetime) -> Life:
    first, last = (None if day is None else day_number(day) for day in (told.first, told.last))
    return Life(first, last)


def _checked(symbols: object, what: str) -> frozenset[str]:
    """Return *symbols* as a set, or raise ``BadSourceData``: what is no name could not be asked for."""
    listed = list(symbols) if isinstance(symbols, Iterable) and not isinstance(symbols, str) else None
    if listed is None:
        raise BadSourceData(f"{what} returned {symbols!r:.80}; return a list of symbols")
    for name in listed:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_SYMBOL_LENGTH or not name.isprintable():
            raise BadSourceData(f"{what} lists {name!r:.80}; a symbol is 1 to {MAX_SYMBOL_LENGTH} printable characters")
    return frozenset(listed)
