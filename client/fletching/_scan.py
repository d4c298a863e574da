"""A dataset as a Polars LazyFrame: each time it is collected the query's own part of the rows is asked for, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source
from polars.lazyframe.group_by import LazyGroupBy
from polars.lazyframe.opt_flags import DEFAULT_QUERY_OPT_FLAGS

from fletching._pushdown import Pushed, Scanned, pushed, scans
from fletching_schemas import Action, ReadRequest
from fletching_schemas.errors import Error, InvalidRequest, UnknownColumn

if TYPE_CHECKING:
    from fletching._transport import Transport

_MOST_SHOWN: Final = 5  # names in a line that people read


def scan(transport: Callable[[], Transport], request: ReadRequest) -> pl.LazyFrame:
    """Return a LazyFrame of the rows of *request*; *transport* is called for the plane each time it is collected."""
    fields = transport().schema(request.dataset)
    if unknown := [name for name in request.columns or () if name not in fields.names]:
        raise UnknownColumn(f"{request.dataset} has no column {', '.join(unknown)}; it has {', '.join(fields.names)}")
    chosen = fields if request.columns is None else pa.schema([fields.field(name) for name in request.columns])
    schema = pl.DataFrame(pl.from_arrow(chosen.empty_table())).schema
    reader = Reader(transport, request, schema)
    lazy = register_io_source(
        reader,
        schema=schema,
        validate_schema=True,
        explain_name=f"fletching {request.dataset}",
        explain_detail=f"of {transport().address}",
    )
    return ScanFrame._from_pyldf(lazy._ldf)  # noqa: SLF001  # as every method of a LazyFrame makes the next one


class Reader:
    """What one scan reads each time Polars runs it."""

    def __init__(self, transport: Callable[[], Transport], request: ReadRequest, schema: pl.Schema) -> None:
        self.transport, self.request, self.schema = transport, request, schema

    def __call__(
        self, columns: list[str] | None, predicate: pl.Expr | None, limit: int | None, batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield frames as they come; let go of the iterator, and the answer ends and frees what it holds.

        Polars lets go of one that it has no more use for (the rows of ``head`` are there) with the next call into Polars.
        """
        del batch_rows  # a hint; batches are cut where they are made
        return self._frames(columns, predicate, limit)

    def _frames(self, columns: list[str] | None, predicate: pl.Expr | None, limit: int | None) -> Iterator[pl.DataFrame]:
        names = list(self.schema) if columns is None else columns
        found = pushed(predicate, self.schema)
        left = limit
        yield pl.DataFrame(schema={name: self.schema[name] for name in names})  # a scan without rows has columns too
        if found.nothing or left == 0:
            return
        needed = None if columns is None else [*columns, *(predicate.meta.root_names() if predicate is not None else ())]
        answer = self.transport().read(self.asked(needed, found, limit if predicate is None else None))
        try:
            for batch in answer:
                rows = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]), rechunk=False))
                wanted = rows if predicate is None else rows.filter(predicate)
                frame = wanted.head(wanted.height if left is None else left)
                yield frame.select(names) if names else frame.drop(frame.columns)  # that keeps its height: rows are counted
                if left is not None and (left := left - frame.height) <= 0:
                    return
        finally:
            answer.close()

    def asked(self, columns: list[str] | None, found: Pushed, limit: int | None) -> ReadRequest:
        """Return the request for *columns* (None: all of the scan), with what was *found* in the predicate."""
        wanted = self.request.columns if columns is None else tuple(dict.fromkeys(columns)) or tuple(self.schema)[:1]
        request = replace(self.request, columns=wanted, limit=limit)
        if found.where is None:
            return request
        filtered = replace(request, where=found.where)
        try:
            filtered.to_bytes()
        except InvalidRequest:  # longer than a server reads: Polars filters
            return request
        return filtered

    def __reduce__(self) -> NoReturn:
        _refuse_to_travel()


class ScanFrame(pl.LazyFrame):
    """A LazyFrame whose ``explain`` also tells what its scans of a cache ask for. Operations on it return another one."""

    def explain(self, *args: Any, **options: Any) -> str:
        """Return Polars' plan, and for each scan what was pushed, what the cache makes of it, and what Polars does itself.

        The cache is asked what it would read; no rows are. An argument ``optimized=False`` shows the plan alone.
        """
        plan = super().explain(*args, **options)
        if not options.get("optimized", True):
            return plan
        flags = options.get("optimizations", DEFAULT_QUERY_OPT_FLAGS)
        try:
            found = list(scans(self._ldf.with_optimizations(flags._pyoptflags), _schema_of))  # noqa: SLF001  # as Polars does
        except Exception as error:  # noqa: BLE001  # an interface of Polars that may change
            return f"{plan}\n\nFLETCHING: what is pushed cannot be told by this version of Polars ({error!s:.90})"
        return "\n\n".join([plan, *map(_told, found)])

    def group_by(self, *args: Any, **options: Any) -> LazyGroupBy:
        """Return groups whose aggregates explain themselves too."""
        return _Groups(super().group_by(*args, **options).lgb)

    def group_by_dynamic(self, *args: Any, **options: Any) -> LazyGroupBy:
        """Return groups whose aggregates explain themselves too."""
        return _Groups(super().group_by_dynamic(*args, **options).lgb)

    def rolling(self, *args: Any, **options: Any) -> LazyGroupBy:
        """Return groups whose aggregates explain themselves too."""
        return _Groups(super().rolling(*args, **options).lgb)

    def serialize(self, *args: Any, **options: Any) -> NoReturn:
        """Raise ``InvalidRequest``: what reads the rows is a connection of this process."""
        del args, options
        _refuse_to_travel()


class _Groups(LazyGroupBy):
    """The groups of a scan; ``sum``, ``len`` and the like all call ``agg``."""

    def agg(self, *aggregates: Any, **named: Any) -> pl.LazyFrame:
        """Return the aggregates of each group."""
        return ScanFrame._from_pyldf(super().agg(*aggregates, **named)._ldf)  # noqa: SLF001  # as above


def _refuse_to_travel() -> NoReturn:
    raise InvalidRequest(
        "a scan holds the cache that it reads from, and cannot be serialized or pickled; collect it, "
        "or send the arguments of scan() and make it where it is used"
    )


def _schema_of(reader: object) -> pl.Schema | None:
    return reader.schema if isinstance(reader, Reader) else None


# Explaining


def _told(scanned: Scanned) -> str:
    """Return what one scan pushes, as lines for people."""
    reader: Reader = scanned.reader
    found = scanned.pushed
    transport = reader.transport()
    columns = reader.schema if scanned.columns is None else scanned.columns
    limit = None if found.where is not None or found.left else scanned.limit
    lines = [
        f"columns pushed: {len(columns)} of {len(reader.schema)}: {_listed(columns)}",
        f"limit pushed: {'none' if limit is None else f'the first {limit:,} rows'}",
        f"predicate pushed: {'no row is wanted, none is read' if found.nothing else found.where or 'none'}",
        *([] if found.nothing else _told_by_cache(transport, reader.asked(list(columns), found, limit))),
        f"left to Polars: {' & '.join(found.left) or 'nothing'}",
    ]
    return "\n  ".join([f"FLETCHING scan of {reader.request.dataset} of {transport.address}", *lines])


def _told_by_cache(transport: Transport, request: ReadRequest) -> list[str]:
    try:
        plan: Any = transport.act(Action.EXPLAIN, {name: value for name, value in vars(request).items() if value is not None})
    except Error as error:
        return [f"cannot be read: {error}"]
    narrowed = plan.get("narrowed") or {}
    ends = [f"{end} {narrowed[end]}" for end in ("start", "end") if narrowed.get(end)]
    symbols = [f"symbols {_listed(narrowed['symbols'])}"] if narrowed.get("symbols") else []
    tiers = [file["tier"] for file in plan["files"]]
    held = ", ".join(f"{tiers.count(tier)} {tier}" for tier in dict.fromkeys(tiers)) or "none"
    reads = f"{plan['symbols']:,} symbols, {plan['first']} to {plan['last']}, files: {held}"
    return [
        f"request narrowed to: {'; '.join([*symbols, *ends]) or 'nothing less'}",
        f"filtered by the cache: {plan.get('filter') or 'nothing'}",
        f"reads: {reads}, upstream calls: {len(plan['upstream_calls'])}",
    ]


def _listed(names: Any) -> str:
    named = list(names)
    more = f" and {len(named) - _MOST_SHOWN:,} more" if len(named) > _MOST_SHOWN else ""
    return ", ".join(named[:_MOST_SHOWN]) + more
