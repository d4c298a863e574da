"""From paths and options to a plan: what the files hold is looked at in a sample, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, Period
from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.inference import Asked, Sample, density, infer
from fletching_server.importing.inputs import Input, find_inputs
from fletching_server.importing.mapping import ImportMapping, load_mapping, type_name
from fletching_server.importing.plan import ColumnPlan, ImportPlan, sources_of
from fletching_server.importing.reductions import Reductions
from fletching_server.importing.sampling import estimated_rows, first_rows, last_rows, row_bytes, sampled
from fletching_server.sources.file_values import ZONED

_SHOWN_VALUES: Final = 3  # of each column
_LOOKED_AT: Final = 8  # inputs, to see over how many days they spread
_LEAST_CHUNK, _MOST_CHUNK = 64 << 10, 32 << 20  # more gains nothing, and takes memory


@dataclass(frozen=True)
class ImportRequest:
    """What was asked for: the files, the table, how they become it, and what is left out.

    *memory_bytes* bounds what chunks and groups of rows take, beside the interpreter and its libraries.
    """

    paths: Sequence[Path]
    dataset: str
    mapping: str | Path | None = None
    keys: tuple[str, ...] | None = None
    time: str | None = None
    partition: Period | None = None
    buckets: int | None = None
    table: str | None = None
    reductions: Reductions = field(default_factory=Reductions)
    memory_bytes: int = 512 << 20


def make_plan(request: ImportRequest, existing: Dataset | None, workers: int) -> ImportPlan:
    """Return what importing *request* will do to the table *existing* (None: it is new), read by so many *workers*."""
    every = find_inputs([Path(path) for path in request.paths], request.table)
    mapping, inputs, sample = _understood(request, every, existing)
    offered = mapping.dataset()
    _check(request, offered, existing)
    plan = ImportPlan(
        existing or offered,
        mapping,
        tuple(inputs),
        existing is None,
        request.reductions,
        _kinds(sample.frame, mapping, existing or offered),
        free_buckets=existing is None and mapping.buckets is None,
        chunk_bytes=max(_LEAST_CHUNK, min(_MOST_CHUNK, request.memory_bytes // (16 * workers))),
    )
    return _told(plan, sample, len(every) - len(inputs))


def _understood(
    request: ImportRequest, every: Sequence[Input], existing: Dataset | None
) -> tuple[ImportMapping, Sequence[Input], Sample]:
    """Return the mapping that was given, or what the first input looks like; the inputs that it is about; and a sample."""
    if request.mapping is None:
        sample = replace(sampled(every[0], None), **_names(every))
        asked = Asked(request.keys, request.time, request.partition, request.buckets)
        return infer(request.dataset, sample, asked, existing), every, sample
    if request.keys or request.time:
        raise InvalidRequest("--keys and --time are for imports without a mapping: it says them itself")
    mapping = load_mapping(request.mapping, request.dataset)
    chosen = {"period": request.partition, "buckets": request.buckets}
    mapping = mapping.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    inputs = _matching(mapping, every)
    return mapping, inputs, sampled(inputs[0], mapping)


def _matching(mapping: ImportMapping, inputs: Sequence[Input]) -> list[Input]:
    """Return the inputs whose names fit the mapping's ``path``; the error of the first where none does."""
    found: list[Input] = []
    problem: InvalidRequest | None = None
    for source in inputs:
        try:
            mapping.found(source)
            found.append(source)
        except InvalidRequest as error:
            problem = problem or error
    if problem and not found:
        raise problem
    return found


def _names(inputs: Sequence[Input]) -> dict[str, Any]:
    """Return pattern and symbol where the files' names may be their symbols."""
    first = inputs[0]
    if first.format == "sqlite":
        return {}
    ending = "".join(re.findall(r"\.[A-Za-z]\w*", first.path.name)[-2:]) or first.path.suffix
    same = all(source.path.name.endswith(ending) for source in inputs)
    return {"pattern": f"{{code}}{ending if same else '.*'}", "symbol": "{code}"}


def _kinds(frame: pl.DataFrame, mapping: ImportMapping, dataset: Dataset) -> dict[str, pa.DataType]:
    """Return the types of the sampled columns; that of the time although a bad row may have made it text."""
    kinds = dict(zip(frame.columns, frame.head(0).to_arrow().schema.types, strict=True))
    time = sources_of(mapping, dataset, tuple(frame.columns)).get(dataset.time)
    if time in kinds and frame[time].dtype == pl.String and not mapping.time_format:
        zone = "UTC" if frame[time].str.contains(ZONED).any() else None
        kinds[time] = pa.timestamp("us", zone) if pa.types.is_timestamp(dataset.schema.field(dataset.time).type) else pa.date32()
    return kinds


def _check(request: ImportRequest, offered: Dataset, existing: Dataset | None) -> None:
    """Raise ``InvalidRequest`` where the table cannot take what is *offered*, or what was asked cannot be done to it."""
    request.reductions.check(existing or offered)
    if existing is None:
        return
    for item in existing.schema:
        type_name(item.type)
    held, said = ((table.schema.names, table.schema.types, table.keys, table.time) for table in (existing, offered))
    if held != said:
        raise InvalidRequest(
            f"{existing.name} is there with columns {', '.join(existing.schema.names)} and keys {', '.join(existing.keys)}; "
            f"the mapping says {', '.join(offered.schema.names)} and {', '.join(offered.keys)}"
        )
    for asked, has, what in ((request.partition, existing.period, "partition"), (request.buckets, existing.buckets, "buckets")):
        if asked not in {None, has}:
            raise InvalidRequest(f"{existing.name} is there with {what} {has}; leave --{what} out")


def _told(plan: ImportPlan, sample: Sample, passed_over: int) -> ImportPlan:
    """Return *plan* with what is shown of it, and the period that the number of rows and the days of the inputs suggest."""
    width = row_bytes(plan.inputs[0], sample)
    rows = sum(estimated_rows(source, width) for source in plan.inputs)
    first = first_rows(plan, plan.inputs[0])
    shown = replace(plan, columns=_columns(plan, sample), notes=_notes(plan, first, passed_over), estimated_rows=rows)
    if not plan.is_new or plan.mapping.period is not None or plan.mapping.canonical:
        return shown
    period = density(plan.dataset, rows, _days(plan, first))
    mapping = plan.mapping.model_copy(update={"period": period})
    return replace(shown, mapping=mapping, dataset=mapping.dataset())


def _days(plan: ImportPlan, first: pl.DataFrame) -> int:
    """Return over how many days the rows spread, by some rows of some inputs."""
    looked = list(islice(plan.inputs, 0, None, max(1, len(plan.inputs) // _LOOKED_AT)))
    frames = [first, *(last_rows(plan, source) for source in (*looked, plan.inputs[-1]))]
    sessions = pl.concat([frame[plan.dataset.session] for frame in frames]).drop_nulls()
    days = sessions if sessions.dtype == pl.Date else sessions.dt.date()
    return int((days.max() - days.min()).days) + 1 if len(days) else 1  # type: ignore[union-attr, operator]


def _columns(plan: ImportPlan, sample: Sample) -> tuple[ColumnPlan, ...]:
    names = tuple(sample.frame.columns)
    sources = sources_of(plan.mapping, plan.dataset, names)
    shown = []
    for item in plan.dataset.schema:
        kind, source = type_name(item.type) + "!" * (not item.nullable), sources.get(item.name)
        if source in names:
            values = sample.frame[source].drop_nulls().head(_SHOWN_VALUES).to_list()
            shown.append(ColumnPlan(source, item.name, kind, tuple(map(str, values))))
        else:
            shown.append(ColumnPlan(_origin(plan, item.name), item.name, kind))
    return (*shown, *(ColumnPlan(name, "", "ignored") for name in names if name not in sources.values()))


def _origin(plan: ImportPlan, target: str) -> str:
    """Return where a column comes from that no column of the files gives."""
    mapping, dataset = plan.mapping, plan.dataset
    if target == dataset.symbol and mapping.symbol:
        return f"file name: {mapping.symbol}"
    if target == mapping.seq:
        return "numbered within symbol and session"
    if target in mapping.constants:
        return f"constant: {mapping.constants[target]}"
    return f"day of {dataset.time}" if target == dataset.session else "absent: null"


def _notes(plan: ImportPlan, rows: pl.DataFrame, passed_over: int) -> tuple[str, ...]:
    notes = []
    if passed_over and plan.mapping.path:
        notes.append(f"{passed_over:,} files do not match path = {plan.mapping.path.text!r}; passed over")
    again = rows.height - rows.n_unique(plan.dataset.keys) if rows.height and plan.mapping.seq is None else 0
    if again:
        notes.append(
            f"{again:,} of {rows.height:,} sampled rows have a key that another row has: of these the last one is kept. "
            "Where all are real, number them: seq in a mapping, or another key"
        )
    return tuple(notes)
