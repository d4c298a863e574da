"""Adjusted reads: the raw rows, the factors as they are known, and one multiplication on the way out.

Nothing adjusted is ever stored: a dividend changes a factor and no price, and raw and adjusted reads share their cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

import pyarrow as pa

from fletching_schemas import Adjustment, Dataset, ReadRequest
from fletching_schemas.errors import InvalidRequest, NotCached, UnknownDataset
from fletching_server.adjustment import Steps, adjusted, factor_steps, price_columns, version_of
from fletching_server.calendars import day_number, from_day_number
from fletching_server.clock import Clock
from fletching_server.reads import Answer, Reads
from fletching_server.snapshot import DatasetState
from fletching_server.store import Store

_AT_ONCE_ROWS: Final = 2_000_000  # of a table that lies in memory: adjusted whole, so that C++ may stream it
_KNOWN: Final = 20_000  # symbols whose factors are kept compiled; a few hundred bytes each
_BELIEVED_SECONDS: Final = 1.0  # after factors were found fresh, without looking again whether they still are


@dataclass(frozen=True)
class _Known:
    generation: int
    checked: float
    steps: Steps | None


class AdjustedReads:
    """The adjusted read path of one engine."""

    def __init__(self, store: Store, reads: Reads, clock: Clock) -> None:
        self._store, self._reads, self._clock = store, reads, clock
        self._known: dict[tuple[str, str], _Known] = {}

    def read(self, request: ReadRequest, plane: str, principal: str = "") -> Answer:
        """Return the answer to *request*, which asks for an adjustment. See ``Reads.read`` and ``adjustment``.

        Raises ``InvalidRequest`` where the dataset's prices cannot be adjusted, ``NotCached`` where only what is held may
        be used and its factors are not.
        """
        dataset = self._store.state(request.dataset).dataset
        factors = self._factor_dataset(dataset)
        schema = dataset.project(request.columns)
        columns = None if request.columns is None else _with(request.columns, (dataset.symbol, dataset.session))
        raw = self._reads.read(replace(request, columns=columns, adjust=None, adjust_ref=None), plane, principal)
        with ExitStack() as undo:
            undo.callback(raw.close)
            answer = self._adjusted(request, dataset, factors, schema, raw, principal)
            undo.pop_all()
        return answer

    def _adjusted(
        self, request: ReadRequest, dataset: Dataset, factors: str, schema: pa.Schema, raw: Answer, principal: str
    ) -> Answer:
        plan = raw.plan
        reference = self._reference(request, plan.wanted.last)
        known = self._steps(request, factors, plan.symbols, max(plan.wanted.last, reference), raw, principal)
        method = str(request.adjust)
        if request.info:
            told = from_day_number(reference) if method == "qfq" else None
            raw.info.adjustment = Adjustment(method, told, factors, version_of(plan.symbols, known))
        steps = {s: step.relative_to(reference) for s, step in known.items()} if method == "qfq" else known
        prices = [name for name in price_columns(raw.schema) if name in schema.names]
        names = schema.names

        def change(table: pa.Table) -> pa.Table:
            table = adjusted(dataset, table, prices, steps) if prices else table
            return table if table.schema.names == names else table.select(names)

        if raw.whole is not None and raw.whole.num_rows <= _AT_ONCE_ROWS:
            return Answer(schema, change(raw.whole), raw.info, raw.held, raw.batch_rows, plan)
        return Answer(schema, _changed(raw, change), raw.info, raw.held, raw.batch_rows, plan)

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

    def _steps(
        self, request: ReadRequest, factors: str, symbols: Sequence[str], through: int, raw: Answer, principal: str
    ) -> dict[str, Steps]:
        """Return the factors of *symbols*, compiled; those without any are left out."""
        state, now = self._store.state(factors), self._clock.monotonic()
        missing = [symbol for symbol in symbols if not self._fresh(factors, symbol, state, now)]
        if missing:
            self._look(request, factors, missing, through, raw, principal)
        found = ((symbol, self._known[factors, symbol].steps) for symbol in symbols)
        return {symbol: steps for symbol, steps in found if steps is not None}

    def _fresh(self, factors: str, symbol: str, state: DatasetState, now: float) -> bool:
        known = self._known.get((factors, symbol))
        return known is not None and known.generation == state.generation and now - known.checked < _BELIEVED_SECONDS

    def _look(
        self, request: ReadRequest, factors: str, symbols: Sequence[str], through: int, raw: Answer, principal: str
    ) -> None:
        """Read the factors of *symbols*, fetching them where the request allows it, and keep them compiled."""
        asked = ReadRequest(
            factors,
            tuple(symbols),
            None,
            from_day_number(min(through, self._today())),
            max_age=request.max_age,
            profile=request.profile,
            on_miss=request.on_miss,
        )
        answer = self._reads.read(asked, raw.info.plane, principal)
        table, now = answer.table(), self._clock.monotonic()
        state = self._store.state(factors)
        if request.on_miss == "cached" and (unheard := [s for s in symbols if s not in state.symbols]):
            raise NotCached(
                f"{factors} of {', '.join(unheard[:5])} is not held, so {request.dataset} cannot be adjusted; "
                "read with on_miss='fill' to fetch it, or without adjust"
            )
        raw.info.upstream_calls += answer.info.upstream_calls
        raw.info.joined_calls += answer.info.joined_calls
        if len(self._known) + len(symbols) > _KNOWN:
            self._known.clear()
        found = factor_steps(state.dataset, table)
        for symbol in symbols:
            self._known[factors, symbol] = _Known(state.generation, now, found.get(symbol))

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


def _changed(raw: Answer, change: Callable[[pa.Table], pa.Table]) -> Iterator[pa.RecordBatch]:
    for batch in raw:
        yield from change(pa.Table.from_batches([batch])).to_batches()
