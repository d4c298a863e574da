"""What researchers hold: one cache, whatever plane carries its answers."""

from __future__ import annotations

import html
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import polars as pl
import pyarrow as pa

from fletching._akshare_frames import decode
from fletching._frames import Output, answered, check_output, to_output, to_table
from fletching._progress import Show, following
from fletching._scan import scan
from fletching._transport import Closed, sent_once
from fletching_schemas import Action, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.calls import CallInfo, CallRequest
from fletching_schemas.errors import InvalidRequest, NotBuilt

if TYPE_CHECKING:
    from fletching._transport import Answer, Transport

Symbols = str | Sequence[str] | None
Moment = str | date | datetime | None


class Cache:
    """A cache of market data: read what you need, it is fetched once for everybody and kept.

    Make one with ``fletching.connect`` or ``fletching.open``; it is a context manager and may be used from any thread.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport: Transport = transport

    # Reading

    def read(
        self,
        dataset: str,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        columns: Sequence[str] | str | None = None,
        *,
        adjust: str | None = None,
        adjust_ref: Moment = None,
        as_of: int | Moment = None,
        max_age: float | None = None,
        profile: str | None = None,
        on_miss: str = "fill",
        output: Output = "polars",
        info: bool = False,
        progress: bool | Show = False,
    ) -> Any:
        """Return the rows of *symbols* from *start* to *end*, both inclusive, sorted by symbol and time.

        *symbols*: one, many, or None for all, in any common notation; answers carry ``000001.SZ``. *start*, *end*: text,
        date or datetime; a date covers its whole session, a datetime without zone is exchange time. Instants come back
        in UTC; units are in ``schema(dataset)``. *on_miss*: ``fill`` fetches what is not held, ``cached`` never asks
        upstream, ``error`` raises ``NotCached``. *max_age* (seconds) or *profile* (``trading`` 60, ``research`` 3600,
        ``backtesting`` 86400) say how old rows of an unsettled session may be. *output*: ``polars``, ``arrow`` or
        ``pandas``. With *info* the result is ``(frame, ReadInfo)``.

        *adjust*: ``qfq`` computes prices so that those of the session *adjust_ref* (default: the last of the range) stay as
        they were, ``hfq`` so that those of the listing go on; volumes and amounts stay. *progress* shows a line on stderr
        while upstream is asked, or calls you with ``{"due", "done", "failed"}``, counts of upstream calls.

        *as_of* reads what was held at an instant (text, date, datetime; a date means the end of that day at the exchange) or at
        a generation (``info.generation`` of an earlier read, or that of a write), so that a study can be repeated; nothing is
        fetched for it. ``HistoryGone`` where the past is kept no longer, 7 days unless the settings say otherwise.

        Where some symbols cannot be fetched, a read with *info* returns the others whole, and ``info.failed`` says which
        failed, why, and when to ask again; without *info* the first failure is raised. What arrived is kept either way.

        An empty answer has its columns. Raises ``UnknownDataset``, ``UnknownSymbol``, ``UnknownColumn``,
        ``InvalidRequest``, ``HistoryGone``, ``SourceError`` and others of ``fletching.Error``.
        """
        check_output(output)
        with following(self._transport, progress) as progress_id:
            request = _read_request(
                dataset,
                symbols,
                start,
                end,
                columns,
                adjust=adjust,
                adjust_ref=adjust_ref,
                as_of=as_of,
                max_age=max_age,
                profile=profile,
                on_miss=on_miss,
                info=info,
                progress_id=progress_id,
            )
            answer = self._transport.read(request)
            frame = answered(answer, output)
        return (frame, answer.info) if info else frame

    def stream(
        self,
        dataset: str,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        columns: Sequence[str] | str | None = None,
        *,
        adjust: str | None = None,
        adjust_ref: Moment = None,
        as_of: int | Moment = None,
        max_age: float | None = None,
        profile: str | None = None,
        on_miss: str = "fill",
    ) -> pa.RecordBatchReader:
        """Return the same rows as ``read``, batch by batch (about 1 MB); the first is there before the last has been read.

        What is missing is fetched before the first batch. Rows that are not in memory are read in groups of symbols, one after
        the other, so an answer may be larger than memory.
        To stop before the end, let go of the reader (``del reader``): pyarrow does not pass its ``close()`` on.
        """
        request = _read_request(
            dataset,
            symbols,
            start,
            end,
            columns,
            adjust=adjust,
            adjust_ref=adjust_ref,
            as_of=as_of,
            max_age=max_age,
            profile=profile,
            on_miss=on_miss,
            info=False,
        )
        answer = self._transport.read(request)
        batches = _closing(answer)
        next(batches)
        return pa.RecordBatchReader.from_batches(answer.schema, batches)

    def scan(
        self,
        dataset: str,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        columns: Sequence[str] | str | None = None,
        *,
        adjust: str | None = None,
        adjust_ref: Moment = None,
        as_of: int | Moment = None,
        max_age: float | None = None,
        profile: str | None = None,
        on_miss: str = "fill",
    ) -> pl.LazyFrame:
        """Return a Polars LazyFrame of what ``read`` with the same arguments returns; rows are read when it is collected.

        Only the columns, the first rows and the rows that the query wants are read, as far as they can be told: conditions
        that compare a column with values, ``is_in``, ``is_between``, ``is_null``, and their ``&`` and ``|``. Of those on the
        symbol and on time nothing else is looked up, read or fetched. The answer is that of the same query on the frame of
        ``read``, whatever is pushed; ``explain()`` says what is. May be collected often and from any thread, by either engine;
        it holds this cache, so it can be neither pickled nor used once the cache is closed.
        Raises ``UnknownDataset`` and ``UnknownColumn`` at once, what reading raises when it is collected.
        """
        request = _read_request(
            dataset,
            symbols,
            start,
            end,
            columns,
            adjust=adjust,
            adjust_ref=adjust_ref,
            as_of=as_of,
            max_age=max_age,
            profile=profile,
            on_miss=on_miss,
            info=False,
        )
        return scan(lambda: self._transport, request)

    def sql(self, query: str, params: Sequence[Any] | None = None, output: Output = "polars") -> Any:
        """Raise ``NotBuilt``: SQL comes with a later version."""
        del query, params, output
        raise NotBuilt("sql is not built yet; read the rows and query the frame with Polars or DuckDB")

    def call(
        self,
        function: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        args: Sequence[Any] = (),
        source: str | None = None,
        max_age: float | None = None,
        profile: str | None = None,
        on_miss: str = "fill",
        output: Literal["python", "polars", "arrow"] = "python",
        info: bool = False,
    ) -> Any:
        """Return what a *function* of the source's library returns, such as ``call("stock_news_em", {"symbol": "000001"})``.

        It is fetched once for everybody and kept, for as long as answers of that function are good, or *max_age* seconds, or
        those of *profile*. *arguments* by name, *args* by position: text, numbers, booleans, None, dates, times, lists and
        dicts. *source*: None for the only one that has functions. *on_miss* as in ``read``. *output*: ``python`` is exactly
        what the library returned, mostly a pandas frame; ``arrow`` the table as which it travelled, ``polars`` a frame of it.
        With *info* the result is ``(answer, CallInfo)``, which tells its age. While the source cannot be asked an old answer
        comes, unless *max_age* was given.
        """
        if output not in {"python", "polars", "arrow"}:
            raise InvalidRequest(f"output={output!r}; it is one of python, polars, arrow")
        request = CallRequest.asking(
            function,
            args,
            arguments or {},
            source=source,
            max_age=max_age,
            profile=profile,
            on_miss=on_miss,
        )
        table: Any = self._transport.act(Action.CALL, request.body())
        answer = decode(table) if output == "python" else to_output(table, output)
        return (answer, CallInfo.from_metadata(table.schema.metadata)) if info else answer

    def functions(self, source: str | None = None) -> pl.DataFrame:
        """Return the functions that ``call`` can be asked for, where the source lists them."""
        return self._frame(Action.CALL, source=source)

    # Writing

    def write(
        self,
        table: str,
        data: Any,
        *,
        keys: Sequence[str] | str | None = None,
        time: str | None = None,
        mode: str = "upsert",
        partition: str | None = None,
        evolve: bool = False,
        key: str | None = None,
    ) -> WriteResult:
        """Return once *data* is on stable storage in the user table *table*, visible whole to every later read.

        *data*: Polars, pandas, or an Arrow table, batch or reader. The first write of a table names its *keys* (the
        symbol's column first) and, where they do not tell, its *time* column; instants without zone are taken as UTC.
        *mode*: ``upsert`` replaces rows of equal key, ``append`` refuses them, ``replace`` puts the rows in place of the
        whole table. *partition*: ``year`` (default), ``month`` or ``day``, for a new table. *evolve* lets the rows bring new
        columns, null in older rows, and wider types, such as int64 for int32. The write happens once, however often it is
        sent: *key* names it, a new one each time unless you repeat a write of yours.
        Raises ``InvalidRequest`` naming column, row and value where the rows do not fit the table.
        """
        named = uuid.uuid4().hex if key is None else key
        request = WriteRequest(table, keys, time, mode, partition, key=named, evolve=evolve)  # type: ignore[arg-type]  # checked
        return sent_once(self._transport, request, to_table(data))

    def delete(self, table: str) -> dict[str, Any]:
        """Delete a user table with its past, or all that is held of a sourced dataset; returns how many rows went."""
        return self._object(Action.DELETE, dataset=table)

    def retention(self, dataset: str, history_days: float | None = None) -> dict[str, Any]:
        """Keep the past of *dataset* for *history_days* from now on (0: not at all; None: as the server's settings say)."""
        return self._object(Action.RETENTION, dataset=dataset, history_days=history_days)

    def vacuum(self, dataset: str | None = None, history_days: float | None = None) -> dict[str, Any]:
        """Free the disk of the past of *dataset* (None: of all) that is older than it is kept, or than *history_days*.

        What is held now stays. Returns the bytes that left. A server does it by itself once an hour.
        """
        return self._object(Action.VACUUM, dataset=dataset, history_days=history_days)

    def compact(self, dataset: str) -> dict[str, Any]:
        """Fold the journal of *dataset* into its partitions now, and return how many segments that were."""
        return self._object(Action.COMPACT, dataset=dataset)

    # Looking

    def datasets(self) -> pl.DataFrame:
        """Return a row per dataset: kind, source, calendar, rows, bytes on disk and in memory, first and last session."""
        return self._frame(Action.DATASETS)

    def schema(self, name: str) -> pa.Schema:
        """Return the columns of a dataset with their types; the unit is in each field's metadata."""
        return self._transport.schema(name)

    def coverage(self, dataset: str, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> pl.DataFrame:
        """Return what is known about each run of sessions: *final*, *provisional*, *empty* (why) or *missing*."""
        return self._frame(Action.COVERAGE, dataset=dataset, symbols=_listed(symbols), start=start, end=end)

    def provenance(self, dataset: str, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> pl.DataFrame:
        """Return a row per fill, the newest first: provider, function, arguments, version, unit check, digest; instants UTC."""
        return self._frame(Action.PROVENANCE, dataset=dataset, symbols=_listed(symbols), start=start, end=end)

    def restatements(self, dataset: str, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> pl.DataFrame:
        """Return a row per settled row that came back with other values, the newest first: what differs, before and after."""
        return self._frame(Action.RESTATEMENTS, dataset=dataset, symbols=_listed(symbols), start=start, end=end)

    def sessions(self, mic: str, start: Moment = None, end: Moment = None) -> pl.DataFrame:
        """Return a row per session of an exchange: hours in UTC, half days, when it has settled, and whether it is known."""
        return self._frame(Action.SESSIONS, mic=mic, start=start, end=end)

    def guard(self) -> pl.DataFrame:
        """Return a row per upstream family and budget: requests spent and left, the circuit's state, when to ask again."""
        return self._frame(Action.GUARD)

    def evictions(self) -> pl.DataFrame:
        """Return a row per entry that left memory lately, the newest first: what it made room for, uses, refill, density."""
        return self._frame(Action.EVICTIONS)

    def explain(
        self,
        dataset: str,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        columns: Sequence[str] | str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Return what ``read`` with these arguments would do now, without doing it: files, tiers, gaps, upstream calls."""
        request = {"symbols": _listed(symbols), "start": start, "end": end, "columns": _listed(columns), **options}
        return self._object(Action.EXPLAIN, dataset=dataset, **request)

    def stats(self) -> dict[str, Any]:
        """Return the counters of the engine since its start: reads, rows per tier, upstream calls, memory, percentiles."""
        return self._object(Action.STATS)

    def health(self) -> dict[str, Any]:
        """Return that the engine serves, its version, uptime, store and sources."""
        return self._object(Action.HEALTH)

    # Steering

    def warm(
        self,
        dataset: str | None = None,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        columns: Sequence[str] | str | None = None,
        *,
        adjust: str | None = None,
        max_age: float | None = None,
        profile: str | None = None,
        memory: bool = True,
        explain: bool = False,
        progress: bool | Show = False,
    ) -> dict[str, Any]:
        """Have what ``read`` with these arguments needs on disk and in memory (*memory* False: on disk only) before you read.

        People who wait go before its upstream calls, and it is not a use of what it loads: if nobody reads it, it leaves first.
        Files are held whole, so *columns* are only checked. With *adjust* the factors are fetched too. Returns how many cells
        were missing, upstream calls made, rows fetched, files and bytes loaded, seconds, and the symbols that failed.
        Raises ``InvalidRequest``, with both sizes, where the rows do not fit in memory or on the disk.

        *explain* tells what it would take and does nothing; without a dataset it tells what the server's own warmer, which
        learns from the reads of each day, would do now, and why.
        """
        with following(self._transport, progress) as progress_id:
            body = {"symbols": _listed(symbols), "start": start, "end": end, "columns": _listed(columns)}
            more = {"adjust": adjust, "max_age": max_age, "profile": profile, "progress_id": progress_id}
            flags = {"memory": None if memory is True else memory, "explain": explain or None}
            return self._object(Action.WARM, dataset=dataset, **body, **more, **flags)

    def evict(self, dataset: str | None = None) -> dict[str, Any]:
        """Drop a dataset (None: all) from memory; what is on disk stays. Returns the bytes that left."""
        return self._object(Action.EVICT, dataset=dataset)

    def invalidate(self, dataset: str, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> dict[str, Any]:
        """Forget that these cells are held, so that the next read fetches them again."""
        return self._object(Action.INVALIDATE, dataset=dataset, symbols=_listed(symbols), start=start, end=end)

    def close(self) -> None:
        """Close the connection or the embedded engine; a second call does nothing, every other call is refused."""
        transport, self._transport = self._transport, Closed(self._transport.address)
        transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fletching.Cache of {self._transport.address}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the address, and a row per dataset."""
        shown = self.datasets().select("name", "kind", "source", "symbols", "rows", "disk_bytes", "hot_bytes", "first", "last")
        return f"<p><b>fletching.Cache</b> of {html.escape(self._transport.address)}</p>{shown._repr_html_()}"

    def _object(self, action: Action, **body: Any) -> dict[str, Any]:
        answer = self._transport.act(action, _given(body))
        if not isinstance(answer, dict):
            raise TypeError(f"{action} answered with a table")
        return answer

    def _frame(self, action: Action, **body: Any) -> pl.DataFrame:
        return pl.DataFrame(to_output(self._transport.act(action, _given(body)), "polars"))


def _read_request(
    dataset: str, symbols: Symbols, start: Moment, end: Moment, columns: Sequence[str] | str | None, **options: Any
) -> ReadRequest:
    return ReadRequest(dataset, symbols, start, end, columns, **options)  # type: ignore[arg-type]  # checked there


def _given(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _listed(names: Symbols) -> Sequence[str] | None:
    return [names] if isinstance(names, str) else names if names is None else list(names)


def _closing(answer: Answer) -> Iterator[pa.RecordBatch | None]:
    """Yield None at once, then the batches: a generator that was never started would not close the answer."""
    try:
        yield None
        yield from answer
    finally:
        answer.close()
