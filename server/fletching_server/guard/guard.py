"""One call to an upstream, guarded: admitted by the family's circuit, paid for, tried again where that helps, and judged.

A *family* is all hosts of one vendor: they share a budget, a circuit and, as far as anybody knows, a ban. Sources without
limits (``Metered`` is not theirs, and the settings name no family like them) are called as they are.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import structlog

from fletching_schemas.datasets import TIMESTAMP
from fletching_schemas.errors import (
    Error,
    SourceChanged,
    SourceThrottled,
    SourceTimeout,
    SourceUnavailable,
    UnknownSymbol,
    copy_of,
)
from fletching_server.clock import Clock
from fletching_server.guard.circuit import CLOSED, Circuit
from fletching_server.guard.ledger import DAY, HOUR, Ledger
from fletching_server.guard.retries import tried
from fletching_server.sources import Budget, Metered, Source

T = TypeVar("T")

log = structlog.get_logger(__name__)

UNKNOWN_SECONDS: Final = 86400.0  # an unknown symbol is not asked for again before tomorrow
CHANGED_SECONDS: Final = 3600.0  # a function whose answers changed shape stays changed for a while
UNREACHABLE_SECONDS: Final = 60.0  # DNS, routes and certificates: nobody is banned, and it may be over soon
_BACKGROUND_SHARE: Final = 0.8  # of a budget: the last fifth is for people
_INTERVALS: Final = {HOUR: "hour", DAY: "day"}

_in_background: ContextVar[bool] = ContextVar("in_background", default=False)

_TABLE: Final = pa.schema(
    [
        ("family", pa.string()),
        ("budget", pa.string()),
        ("limit", pa.int64()),
        ("spent", pa.int64()),
        ("left", pa.int64()),
        ("state", pa.string()),
        ("retry_at", TIMESTAMP),
        ("calls", pa.int64()),
        ("failures", pa.int64()),
        ("avoided", pa.int64()),
        ("why", pa.string()),
    ]
)


class BudgetSpent(SourceThrottled):
    """Our own budget is spent: nothing is wrong with the upstream, so nothing is tried again and no circuit opens."""


class Guard:
    """The budgets, circuits and memories of one engine. It is the ``Meter`` of its sources."""

    def __init__(self, path: Path, clock: Clock, said: Mapping[str, Budget], patience_seconds: float = 30.0) -> None:
        self._clock, self._said, self._patience = clock, dict(said), patience_seconds
        self._ledger = Ledger(path, clock)
        self._budgets: dict[str, Budget] = {}
        self._places: dict[str, threading.BoundedSemaphore] = {}
        self._circuits: dict[str, Circuit] = self._ledger.circuits()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._chance = random.Random()  # noqa: S311  # jitter, not a secret

    def adopt(self, source: Source) -> None:
        """Keep the limits of *source* from now on; a family that the settings name has theirs instead."""
        stated = dict(source.budgets) if isinstance(source, Metered) else {}
        if not stated and source.name in self._said:
            stated = {source.name: Budget()}
        for family, budget in stated.items():
            chosen = self._said.get(family, budget)
            self._budgets[family] = chosen
            self._places.setdefault(family, threading.BoundedSemaphore(max(chosen.at_once, 1)))
            self._ledger.define(family, chosen)
        if isinstance(source, Metered):
            source.use_meter(self)

    def family(self, source: Source, name: str) -> str | None:
        """Return which family a call of *source* for the dataset or function *name* goes to; None where nothing limits it."""
        family = source.family(name) if isinstance(source, Metered) else source.name
        return family if family in self._budgets else None

    def at_once(self, family: str, most: int) -> int:
        """Return how many calls to *family* may be under way at a time, at most *most*."""
        return min(most, self._budgets[family].at_once)

    # One call

    def call(self, source: Source, name: str, call: Callable[[], T], *, cost: int = 0, background: bool = False) -> T:
        """Return what *call* returns, made when and as often as the family's limits allow.

        Raises ``SourceThrottled`` with ``retry_at`` where the circuit is open or a budget is spent.
        """
        family = self.family(source, name)
        if family is None:
            return call()
        with self._place(family):
            try:
                if background:  # the place is not kept through pauses: who sent it comes again
                    return self._attempt(family, name, call, cost, background=True)
                return tried(lambda: self._attempt(family, name, call, cost, background=False), self._pause)
            except Error as error:
                self._count(family, "failures")
                raise self._judged(family, name, error) from error

    @contextmanager
    def _place(self, family: str) -> Iterator[None]:
        while not self._places[family].acquire(timeout=0.2):
            self._check_open()
        try:
            yield
        finally:
            self._places[family].release()

    def _attempt(self, family: str, name: str, call: Callable[[], T], cost: int, *, background: bool) -> T:
        self._admit(family, name)
        self._count(family, "calls")
        token = _in_background.set(background)
        try:
            if cost:
                self.spend(family, cost)
            answer = call()
        except BudgetSpent:
            self._end_probe(family)
            raise
        except Error as error:
            if self._circuit(family).probing:  # one probe, one answer: it is not tried again
                raise self._judged(family, name, error) from error
            raise
        finally:
            _in_background.reset(token)
        if self._circuit(family) != CLOSED:
            log.info("upstream answers again", family=family)
            self._set(family, CLOSED)
        return answer

    def _admit(self, family: str, name: str) -> None:
        """Let one call pass, or raise the error that says when to come back."""
        self._check_open()
        now = self._clock.now().timestamp()
        with self._lock:
            circuit = self._circuits.get(family, CLOSED).settled(now)
            state = circuit.state(now)
            if state == "half_open":
                self._circuits[family] = circuit.probed()
        if state == "open":
            self._count(family, "avoided")
            due = circuit.retry_at if circuit.retry_at is not None and circuit.retry_at > now else now + UNREACHABLE_SECONDS
            raise SourceThrottled(f"{family} is not asked before {_told(due)}: {circuit.why}", _instant(due))
        if changed := self._ledger.remembered("changed", family, name, CHANGED_SECONDS):
            self._end_probe(family)
            self._count(family, "avoided")
            raise SourceChanged(f"{name} is not asked before {_told(changed[0])}: {changed[1]}", _instant(changed[0]))

    def _judged(self, family: str, name: str, error: Error) -> Error:
        """Return *error* with when to come back, after drawing its consequences for the family."""
        now = self._clock.now().timestamp()
        if isinstance(error, SourceChanged) and error.retry_at is None:
            self._ledger.remember("changed", family, name, CHANGED_SECONDS, error.message)
        if isinstance(error, BudgetSpent) or error.retry_at is not None:
            return copy_of(error)
        if not isinstance(error, (SourceUnavailable, SourceTimeout)):
            self._set(family, CLOSED)  # it answered, whatever it said
            return copy_of(error)
        circuit = self._circuit(family)
        if isinstance(error, (SourceThrottled, SourceTimeout)):
            opened = circuit.failed(now, error.message[:300])
        else:
            opened = Circuit(circuit.step, now + UNREACHABLE_SECONDS, now, why=error.message[:300])
        self._set(family, opened)
        due = opened.retry_at or now
        log.warning("upstream is left alone", family=family, until=_told(due), why=error.message[:300])
        return type(error)(f"{error.message}; {family} is not asked again before {_told(due)}", _instant(due))

    # Budgets

    def spend(self, family: str, requests: int = 1) -> None:
        """Return when *requests* may be sent to *family* now; ``BudgetSpent`` where that would take longer than patience."""
        background = _in_background.get()
        if background:
            self._check_last_fifth(family)
        left = self._patience
        while (short := self._ledger.pay(family, requests)) is not None:
            seconds, interval = short
            if interval not in _INTERVALS:  # the spacing: not in step with others
                seconds += self._budgets[family].spacing_seconds * self._chance.random() / 2
            if seconds > left or (background and interval in _INTERVALS):  # it would wait in a place that people may need
                raise self._refused(family, seconds, interval)
            left -= seconds
            self._pause(max(seconds, 0.001))

    def _refused(self, family: str, seconds: float, interval: int) -> BudgetSpent:
        budget, due = self._budgets[family], self._clock.now().timestamp() + seconds
        limit = {HOUR: f"{budget.per_hour} requests per hour", DAY: f"{budget.per_day} requests per day"}
        told = limit.get(interval, f"one request per {budget.spacing_seconds:g} s")
        self._count(family, "avoided")
        return BudgetSpent(f"the budget of {family}, {told}, is spent; ask again after {_told(due)}", _instant(due))

    def _check_last_fifth(self, family: str) -> None:
        budget = self._budgets.get(family, Budget())
        for limit, interval in ((budget.per_hour, HOUR), (budget.per_day, DAY)):
            if limit is not None and self._ledger.spent(family, interval) >= _BACKGROUND_SHARE * limit:
                due = self._clock.now().timestamp() + interval / 1000 / 5
                told = f"the last fifth of {family}'s {limit} requests per {_INTERVALS[interval]} is kept for people who wait"
                raise BudgetSpent(told, _instant(due))

    # Symbols that nobody knows

    def check_known(self, dataset: str, symbols: tuple[str, ...]) -> None:
        """Raise the ``UnknownSymbol`` of the last day for a single symbol that upstream did not know."""
        if len(symbols) == 1 and (held := self._ledger.remembered("unknown", dataset, symbols[0], UNKNOWN_SECONDS)):
            raise UnknownSymbol(f"{held[1]} (remembered until {_told(held[0])}; `invalidate` asks again)", _instant(held[0]))

    def remember_unknown(self, dataset: str, symbol: str, error: UnknownSymbol) -> None:
        """Keep *error* for a day."""
        self._ledger.remember("unknown", dataset, symbol, UNKNOWN_SECONDS, error.message)

    def forget(self, dataset: str, symbols: tuple[str, ...] | None) -> None:
        """Ask for *symbols* (None: all) of *dataset* again when somebody wants them."""
        self._ledger.forget("unknown", dataset, None if symbols is None else list(symbols))

    # Telling

    def facts(self) -> dict[str, Any]:
        """Return the counters for ``stats``: per family requests of the hour and day, calls, failures, calls avoided."""
        told: dict[str, Any] = {}
        now = self._clock.now().timestamp()
        for family in sorted(self._budgets):
            circuit = self._circuit(family)
            told |= {
                f"guard_{family}_hour_requests": self._ledger.spent(family, HOUR),
                f"guard_{family}_day_requests": self._ledger.spent(family, DAY),
                f"guard_{family}_open": int(circuit.state(now) == "open"),
                **{f"guard_{family}_{name}": self._counts[family, name] for name in ("calls", "failures", "avoided")},
            }
        return told

    def table(self) -> pa.Table:
        """Return a row per family and budget: limit, spent and left, the circuit's state and when it may be asked again."""
        rows = []
        now = self._clock.now().timestamp()
        for family, budget in sorted(self._budgets.items()):
            circuit = self._circuit(family)
            shared = {
                "family": family,
                "state": circuit.state(now),
                "retry_at": _instant(circuit.retry_at) if circuit.retry_at else None,
                "why": circuit.why or None,
                **{name: self._counts[family, name] for name in ("calls", "failures", "avoided")},
            }
            for name, limit, interval in (("hour", budget.per_hour, HOUR), ("day", budget.per_day, DAY)):
                spent = self._ledger.spent(family, interval)
                left = None if limit is None else max(0, limit - spent)
                rows.append({**shared, "budget": name, "limit": limit, "spent": spent, "left": left})
        return pa.Table.from_pylist(rows, _TABLE)

    # Parts

    def _circuit(self, family: str) -> Circuit:
        with self._lock:
            return self._circuits.get(family, CLOSED)

    def _set(self, family: str, circuit: Circuit) -> None:
        with self._lock:
            changed = self._circuits.get(family, CLOSED) != circuit
            self._circuits[family] = circuit
        if changed:
            self._ledger.save(family, circuit)

    def _end_probe(self, family: str) -> None:
        """Let the next call be the probe: this one was not made."""
        with self._lock:
            self._circuits[family] = replace(self._circuits.get(family, CLOSED), probing=False)

    def _count(self, family: str, what: str) -> None:
        with self._lock:
            self._counts[family, what] += 1

    def _pause(self, seconds: float) -> None:
        self._clock.wait(seconds, self._closing)
        self._check_open()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise SourceUnavailable("the cache is closing; nothing more is fetched", self._clock.now())

    def release(self) -> None:
        """End all waiting; no call is made any more."""
        self._closing.set()

    def close(self) -> None:
        """Close the ledger; ``release`` comes before."""
        self._closing.set()
        self._ledger.close()


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _told(seconds: float) -> str:
    return f"{_instant(seconds):%Y-%m-%d %H:%M:%S} UTC"
