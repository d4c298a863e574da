"""Adjusted reads: the raw rows, the factors as they are known, and one multiplication on the way out.

Nothing adjusted is ever stored: a dividend changes a factor and no price, and raw and adjusted reads share their cells.
Prices that are read a second time are kept in the hot tier, within its budget, so that such reads copy nothing either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from itertools import count
from typing import Final

import pyarrow as pa

from fletching_schemas import Adjustment, Dataset, ReadRequest
from fletching_schemas.errors import InvalidRequest, NotCached, UnknownDataset
from fletching_server.adjustment import Steps, adjusted_prices, factor_steps, price_columns, version_of, with_prices
from fletching_server.answering import Answer
from fletching_server.calendars import day_number, from_day_number
from fletching_server.clock import Clock
from fletching_server.hot import HotTier
from fletching_server.image import Window
from fletching_server.kept import Keeper, KeptPrices, Pricing
from fletching_server.pieces import Layers, Part, Place
from fletching_server.reads import Reads
from fletching_server.snapshot import StoredFile
from fletching_server.store import Store

_AT_ONCE_ROWS: Final = 2_000_000  # of a table that lies in memory: adjusted whole, so that C++ may stream it
_REFERENCES: Final = 16  # sessions for which relative factors are kept
_REQUESTS: Final = 4096  # requests kept as they were worked out
_BELIEVED_SECONDS: Final = 1.0  # after factors were found fresh, without looking again whether they still are


@dataclass
class _Book:
    """The compiled factors of one dataset at one generation: by symbol (None: it has none), and relative to sessions."""

    generation: int
    steps: dict[str, Steps | None] = field(default_factory=dict)
    checked: dict[str, float] = field(default_factory=dict)
    relative: dict[int, dict[str, Steps]] = field(default_factory=dict)

    def as_of(self, symbols: Sequence[str], reference: int) -> Mapping[str, Steps]:
        """Return the factors of *symbols* relative to the session *reference*, kept for the next read."""
        if len(self.relative) > _REFERENCES:
            self.relative.clear()
        known = self.relative.setdefault(reference, {})
        for symbol in symbols:
            if symbol not in known and (steps := self.steps.get(symbol)) is not None:
                known[symbol] = steps.relative_to(reference)
        return known


# What adjusted prices follow from, for one request: files, window and symbols, the factors' generation, the reference.
_Mark = tuple[tuple[StoredFile, ...], Window, tuple[str, ...], int, int]


@dataclass
class _Prepared:
    """What a request asks, worked out: the raw request, the dataset of factors, the answer's schema, its prices.

    ``kept`` is what the last answer followed from, and under which key of the hot tier its prices are, if they are: a key
    is never used for a second mark, so threads that see different pictures cannot mix them.
    """

    raw: ReadRequest
    dataset: Dataset
    factors: str
    schema: pa.Schema
    names: list[str]
    prices: list[str]
    kept: tuple[_Mark, str] | None = None


class AdjustedReads:
    """The adjusted read path of one engine."""

    def __init__(self, store: Store, reads: Reads, hot: HotTier, clock: Clock) -> None:
        self._store, self._reads, self._hot, self._clock = store, reads, hot, clock
        self._numbers = count()
        self._books: dict[str, _Book] = {}
        self._prepared: dict[ReadRequest, _Prepared] = {}

    def read(self, request: ReadRequest, plane: str, principal: str = "", demand: ReadRequest | None = None) -> Answer:
        """Return the answer to *request*, which asks for an adjustment. See ``Reads.read`` and ``adjustment``.

        Raises ``InvalidRequest`` where the dataset's prices cannot be adjusted, ``NotCached`` where only what is held may
        be used and its factors are not.
        """
        dataset = self._reads.pictures.picture(request).dataset
        prepared = self._prepared.get(request)
        if prepared is None or prepared.dataset is not dataset:
            prepared = self._prepare(request, dataset)
        raw = self._reads.read(prepared.raw, plane, principal, demand)
        with ExitStack() as undo:
            undo.callback(raw.close)
            answer = self._adjusted(request, prepared, raw, principal)
            undo.pop_all()
        return answer

    def _prepare(self, request: ReadRequest, dataset: Dataset) -> _Prepared:
        factors, schema = self._factor_dataset(dataset), dataset.project(request.columns)
        columns = None if request.columns is None else _with(request.columns, (dataset.symbol, dataset.session))
        raw = replace(request, columns=columns, adjust=None, adjust_ref=None)
        prices = [name for name in price_columns(dataset.schema) if name in schema.names]
        if len(self._prepared) >= _REQUESTS:
            self._prepared.clear()
        prepared = self._prepared[request] = _Prepared(raw, dataset, factors, schema, schema.names, prices)
        return prepared

    def _adjusted(self, request: ReadRequest, prepared: _Prepared, raw: Answer, principal: str) -> Answer:
        plan, method = raw.plan, str(request.adjust)
        reference = self._reference(request, plan.wanted.last)
        book = self._book(request, prepared.factors, plan.symbols, max(plan.wanted.last, reference), raw, principal)
        if request.info:
            told = from_day_number(reference) if method == "qfq" else None
            raw.info.adjustment = Adjustment(method, told, prepared.factors, version_of(plan.symbols, book.steps))
        steps = book.as_of(plan.symbols, reference) if method == "qfq" else book.steps
        mark = (plan.files, plan.window, plan.symbols, book.generation, reference)
        return self._priced(prepared, raw, steps, mark)

    def _priced(self, prepared: _Prepared, raw: Answer, steps: Mapping[str, Steps | None], mark: _Mark) -> Answer:
        """Return the adjusted rows: with the prices that are kept, or with new ones, kept if they are read the second time."""
        pricing: Pricing = partial(adjusted_prices, prepared.dataset, prices=prepared.prices, steps=steps)
        last = prepared.kept
        if last is None or last[0] != mark:
            prepared.kept = (mark, f"adjusted {next(self._numbers)}")
            self._hot.drop({last[1]} if last else set())
        elif (lease := self._hot.again(last[1])) is not None:
            raw.held.callback(lease.release)
            rows = _changed(prepared, raw, KeptPrices(lease.image.table))
            return _answer(prepared, raw, rows, *_beside(prepared, raw, Place(lease.image, last[1], 0)))
        else:
            pricing = Keeper(pricing, prepared.prices, self._hot, last[1])
        return _answer(prepared, raw, _changed(prepared, raw, pricing))

    def kept_keys(self, dataset: str) -> set[str]:
        """Return the keys under which adjusted prices of *dataset* may be held in memory."""
        return {
            prepared.kept[1] for prepared in list(self._prepared.values()) if prepared.kept and prepared.raw.dataset == dataset
        }

    def _reference(self, request: ReadRequest, last: int) -> int:
        """Return the session whose prices stay: the one that was named, or the last of the range."""
        return day_number(request.adjust_ref) if isinstance(request.adjust_ref, date) else last

    def _factor_dataset(self, dataset: Dataset) -> str:
        if dataset.factors is None or self._store.catalogue.state(dataset.factors) is None:
            there = ", ".join(s.dataset.name for s in self._store.catalogue.states() if s.dataset.factors) or "none"
            raise InvalidRequest(
                f"the prices of {dataset.name} cannot be adjusted: no dataset has its factors; there are for: {there}"
            )
        return dataset.factors

    # Factors

    def _book(
        self, request: ReadRequest, factors: str, symbols: Sequence[str], through: int, raw: Answer, principal: str
    ) -> _Book:
        """Return a book that has the factors of *symbols*, as fresh as the request wants them."""
        if request.as_of is not None:
            return self._past_book(request, factors, symbols)
        book, generation = self._books.get(factors), self._store.state(factors).generation
        if book is None or book.generation != generation:
            book = self._books[factors] = _Book(generation)
        oldest = self._clock.monotonic() - _BELIEVED_SECONDS
        checked = book.checked
        missing = [symbol for symbol in symbols if checked.get(symbol, oldest) <= oldest]
        return self._looked(request, factors, missing, through, raw, principal) if missing else book

    def _past_book(self, request: ReadRequest, factors: str, symbols: Sequence[str]) -> _Book:
        """Return the factors of *symbols* as they were known at the moment that *request* means."""
        asked = self._reads.pictures.settled(ReadRequest(factors, as_of=request.as_of))
        state = self._reads.pictures.picture(asked)
        known = tuple(symbol for symbol in symbols if symbol in set(state.symbols))
        table = (
            self._reads.read(replace(asked, symbols=known), "embedded").table() if known else state.dataset.schema.empty_table()
        )
        found = factor_steps(state.dataset, table)
        book = _Book(state.generation)
        book.steps |= {symbol: found.get(symbol) for symbol in symbols}
        return book

    def _looked(
        self, request: ReadRequest, factors: str, symbols: Sequence[str], through: int, raw: Answer, principal: str
    ) -> _Book:
        """Return the book after looking whether the factors of *symbols* are fresh, and reading those that were not known."""
        until = from_day_number(min(through, self._today()))
        more = {"max_age": request.max_age, "profile": request.profile, "on_miss": request.on_miss}
        asked = ReadRequest(factors, tuple(symbols), None, until, **more)  # type: ignore[arg-type]  # as they came
        now, book = self._clock.monotonic(), self._books[factors]
        plan, _ = self._reads.explain(asked)
        if plan.gaps or any(symbol not in book.steps for symbol in symbols):
            table = self._fetched(asked, raw, principal)
            self._check_held(request, factors, symbols)
            state = self._store.state(factors)
            if state.generation != book.generation:
                book = self._books[factors] = _Book(state.generation)
            found = factor_steps(state.dataset, table)
            book.steps |= {symbol: found.get(symbol) for symbol in symbols}
            book.relative.clear()
        book.checked |= dict.fromkeys(symbols, now)
        return (
            book
            if not self._lost(book, raw.plan.symbols)
            else self._looked(request, factors, raw.plan.symbols, through, raw, principal)
        )

    @staticmethod
    def _lost(book: _Book, symbols: Sequence[str]) -> bool:
        """Return whether a new generation took the factors of other symbols of the read with it."""
        return any(symbol not in book.steps for symbol in symbols)

    def _fetched(self, asked: ReadRequest, raw: Answer, principal: str) -> pa.Table:
        answer = self._reads.read(asked, raw.info.plane, principal)
        table = answer.table()
        raw.info.upstream_calls += answer.info.upstream_calls
        raw.info.joined_calls += answer.info.joined_calls
        return table

    def _check_held(self, request: ReadRequest, factors: str, symbols: Sequence[str]) -> None:
        known = self._store.state(factors).symbols
        if request.on_miss == "cached" and (unheard := sorted(set(symbols) - set(known))):
            raise NotCached(
                f"{factors} of {', '.join(unheard[:5])} is not held, so {request.dataset} cannot be adjusted; "
                "read with on_miss='fill' to fetch it, or without adjust"
            )

    def _today(self) -> int:
        return day_number(self._clock.now().date())

    def explain(self, request: ReadRequest) -> dict[str, str | None]:
        """Return what an adjustment would use."""
        state = self._store.catalogue.state(request.dataset)
        if state is None:
            raise UnknownDataset(f"there is no dataset {request.dataset!r}")
        reference = request.adjust_ref.isoformat() if request.adjust_ref else "the last session of the range"
        method = str(request.adjust)
        return {
            "method": method,
            "factors": self._factor_dataset(state.dataset),
            "reference": reference if method == "qfq" else None,
        }


def _with(columns: Sequence[str], needed: Sequence[str]) -> tuple[str, ...]:
    return (*columns, *(name for name in needed if name not in columns))


def _changed(prepared: _Prepared, raw: Answer, pricing: Pricing) -> pa.Table | Iterator[pa.RecordBatch]:
    """Return the rows of *raw* with the prices that *pricing* returns: at once where they lie in memory and are not too many."""
    if raw.whole is not None and raw.whole.num_rows <= _AT_ONCE_ROWS:
        rows = _selected(prepared, with_prices(raw.whole, pricing(raw.whole)))
        _keep(pricing)
        return rows
    return _streamed(prepared, raw, pricing)


def _answer(
    prepared: _Prepared,
    raw: Answer,
    rows: pa.Table | Iterator[pa.RecordBatch],
    parts: Iterator[Part] | None = None,
    layers: Layers | None = None,
) -> Answer:
    return Answer(prepared.schema, rows, raw.info, raw.held, raw.batch_rows, raw.plan, parts, layers, reading=raw.reading)


def _beside(prepared: _Prepared, raw: Answer, prices: Place) -> tuple[Iterator[Part] | None, Layers | None]:
    """Return the rows of *raw* with kept *prices* as a layer of their own, where they lie in memory."""
    kept = tuple(prices.image.table.column_names)
    others = tuple(name for name in prepared.names if name not in kept)
    if raw.parts is None or not others:
        return None, None
    return _with_layer(raw.parts, prices), (others, kept)


def _with_layer(parts: Iterator[Part], prices: Place) -> Iterator[Part]:
    row = 0
    for part in parts:
        yield Part(part.rows, (*part.places, replace(prices, start=row)))
        row += part.rows


def _streamed(prepared: _Prepared, raw: Answer, pricing: Pricing) -> Iterator[pa.RecordBatch]:
    for batch in raw:
        rows = pa.Table.from_batches([batch])
        yield from _selected(prepared, with_prices(rows, pricing(rows))).to_batches()
    _keep(pricing)


def _keep(pricing: Pricing) -> None:
    if isinstance(pricing, Keeper):
        pricing.keep()


def _selected(prepared: _Prepared, rows: pa.Table) -> pa.Table:
    """Return *rows* without the columns that were read for the adjustment alone."""
    return rows if len(prepared.names) == rows.num_columns else rows.select(prepared.names)
