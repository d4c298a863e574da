"""From paths and options to a plan: what the files hold is looked at in a sample, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fletching_schemas import Dataset, Period
from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.conversion import convert
from fletching_server.importing.csv_parsing import CsvLayout, parse_block
from fletching_server.importing.inference import Asked, Sample, density, infer
from fletching_server.importing.inputs import Input, find_inputs
from fletching_server.importing.mapping import ImportMapping, load_mapping, type_name
from fletching_server.importing.plan import ColumnPlan, ImportPlan, sources_of
from fletching_server.importing.raw import Raw
from fletching_server.importing.readers import Position, chunks
from fletching_server.importing.reductions import Reductions
from fletching_server.importing.text import blocks, opened_text

SAMPLE_BYTES: Final = 1 << 20
_SAMPLE_ROWS: Final = 20_000
_SHOWN: Final = 3  # values of a column
_LEAST_CHUNK: Final = 64 << 10


@dataclass(frozen=True)
class ImportRequest:
    """What was asked for: the files, the table, how they become it, and what is left out."""

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
    """Return what importing *request* will do to the table *existing* (None: it is new)."""
    inputs = find_inputs([Path(path) for path in request.paths], request.table)
    if request.mapping is not None:
        mapping = _given(request, existing)
        inputs, passed_over = _matching(mapping, inputs)
        sample = _sampled(inputs[0], _delimiter_of(mapping), mapping)
    else:
        passed_over = 0
        sample = _sampled(inputs[0], None, None)
        sample = replace(sample, **_named(inputs))
        mapping = infer(request.dataset, sample, Asked(request.keys, request.time, request.partition, request.buckets), existing)
    kinds = _kinds(sample.frame)
    offered = mapping.dataset()
    dataset = existing or offered
    _check(request, mapping, offered, existing)
    plan = ImportPlan(
        dataset,
        mapping,
        tuple(inputs),
        existing is None,
        request.reductions,
        kinds,
        free_buckets=existing is None and mapping.buckets is None,
        chunk_bytes=max(_LEAST_CHUNK, min(32 << 20, request.memory_bytes // (16 * workers))),
    )
    return _estimated(plan, sample, passed_over)


def _given(request: ImportRequest, existing: Dataset | None) -> ImportMapping:
    if request.keys or request.time:
        raise InvalidRequest("--keys and --time are for tables without a mapping; a mapping says them itself")
    mapping = load_mapping(request.mapping or "", request.dataset)
    chosen = {"period": request.partition, "buckets": request.buckets}
    del existing
    return mapping.model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _matching(mapping: ImportMapping, inputs: Sequence[Input]) -> tuple[list[Input], int]:
    """Return the inputs whose names fit the mapping's ``path``, and how many do not; the error of the first if none does."""
    found, problem = [], None
    for source in inputs:
        try:
            mapping.found(source)
            found.append(source)
        except InvalidRequest as error:
            problem = problem or error
    if not found and problem:
        raise problem
    return found, len(inputs) - len(found)


def _named(inputs: Sequence[Input]) -> dict[str, str]:
    """Return pattern and symbol where the files' names may be their symbols."""
    first = inputs[0]
    if first.part and first.compression != "zip":
        return {}
    suffix = "".join(re.findall(r"\.[a-z]+", first.path.name.lower())[-2:])
    endings = {path.name.lower().endswith(suffix) for path in (source.path for source in inputs)}
    ending = first.path.name[len(first.path.name) - len(suffix) :]
    same = endings == {True} and all(source.path.name.endswith(ending) for source in inputs)
    return {"pattern": "{code}" + (ending if same else ".*"), "symbol": "{code}"}


def _delimiter_of(mapping: ImportMapping) -> str:
    return mapping.delimiter


def _sampled(source: Input, delimiter: str | None, mapping: ImportMapping | None) -> Sample:
    """Return the first rows of *source*, of the types that they seem to have."""
    if source.format != "csv":
        found = next(iter(chunks(source, CsvLayout(()), SAMPLE_BYTES, Position())), None)
        frame = found.parse().frame.head(_SAMPLE_ROWS) if found else pl.DataFrame()
        return Sample(frame)
    with opened_text(source) as stream:
        block = next(blocks(stream, SAMPLE_BYTES), b"").removeprefix(b"\xef\xbb\xbf")
    delimiter = delimiter or _sniffed(block)
    listed = list(mapping.columns) if mapping and isinstance(mapping.columns, tuple) else None
    reading = pa_csv.ReadOptions(
        column_names=listed,
        skip_rows=int(bool(listed and mapping and mapping.has_header)),
        encoding=mapping.encoding if mapping else "utf8",
        block_size=2 * SAMPLE_BYTES,
    )
    parsing = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in block, invalid_row_handler=lambda _row: "skip")
    nulls = ["", *(mapping.nulls if mapping else ())]
    converting = pa_csv.ConvertOptions(null_values=nulls, strings_can_be_null=True, true_values=["true", "True"], false_values=["false", "False"])
    try:
        table = pa_csv.read_csv(pa.py_buffer(block), reading, parsing, converting)
    except (pa.ArrowInvalid, UnicodeError, LookupError) as error:
        raise InvalidRequest(f"cannot read {source.origin}: {str(error).splitlines()[0]}") from error
    table = table.rename_columns([name.strip() for name in table.column_names])
    return Sample(Raw.of_table(table).frame, delimiter)


def _sniffed(block: bytes) -> str:
    """Return the delimiter of the first line: the one of the usual that it has most of."""
    line = block.partition(b"\n")[0]
    return max(",;\t|", key=lambda mark: line.count(mark.encode()))


def _kinds(frame: pl.DataFrame) -> dict[str, pa.DataType]:
    return {name: kind for name, kind in zip(frame.columns, frame.head(0).to_arrow().schema.types, strict=True)}


def _check(request: ImportRequest, mapping: ImportMapping, offered: Dataset, existing: Dataset | None) -> None:
    request.reductions.check(existing or offered)
    if existing is None:
        return
    for item in existing.schema:
        type_name(item.type)
    own = (offered.schema.names, offered.schema.types, offered.keys)
    if mapping.dataset().name == existing.name and own != (existing.schema.names, existing.schema.types, existing.keys):
        raise InvalidRequest(
            f"{existing.name} is there with columns {', '.join(existing.schema.names)} and keys {', '.join(existing.keys)}; "
            f"the mapping says {', '.join(offered.schema.names)} and {', '.join(offered.keys)}"
        )
    for said, has, what in ((request.partition, existing.period, "partition"), (request.buckets, existing.buckets, "buckets")):
        if said not in {None, has}:
            raise InvalidRequest(f"{existing.name} is there with {what} {has}; leave --{what} out")


def _estimated(plan: ImportPlan, sample: Sample, passed_over: int) -> ImportPlan:
    """Return *plan* with what is shown of it: columns with samples, rows and period by the size and span of the inputs."""
    rows = sum(_rows_of(source, sample, plan) for source in plan.inputs)
    converted = _converted(plan, sample)
    dataset, mapping = plan.dataset, plan.mapping
    if plan.is_new and plan.mapping.period is None and not plan.mapping.canonical:
        mapping = mapping.model_copy(update={"period": density(mapping, dataset, rows, _days(plan, converted))})
        dataset = mapping.dataset()
    notes = _notes(plan, converted, passed_over)
    return replace(plan, dataset=dataset, mapping=mapping, columns=_columns(plan, sample), notes=notes, estimated_rows=rows)


def _rows_of(source: Input, sample: Sample, plan: ImportPlan) -> int:
    if source.format == "parquet":
        with suppress(OSError, pa.ArrowException):
            return int(pq.read_metadata(source.path).num_rows)
    size = source.bytes * {"gzip": 4, "zstd": 4, "zip": 4}.get(source.compression or "", 1)
    width = max(_text_bytes(plan.inputs[0], sample), 1.0)
    return round(size / width)


def _text_bytes(source: Input, sample: Sample) -> float:
    """Return how many bytes of *source* a sampled row takes."""
    if source.format != "csv":
        return sample.frame.estimated_size() / max(sample.frame.height, 1)
    with opened_text(source) as stream:
        block = next(blocks(stream, SAMPLE_BYTES), b"")
    return len(block) / max(sample.frame.height, 1)


def _converted(plan: ImportPlan, sample: Sample) -> pl.DataFrame:
    """Return the sampled rows as they will be imported."""
    del sample
    first = plan.inputs[0]
    return _rows(plan, first, last=False)


def _rows(plan: ImportPlan, source: Input, *, last: bool) -> pl.DataFrame:
    if source.format != "csv":
        found = next(iter(chunks(source, CsvLayout(()), SAMPLE_BYTES, Position())), None)
        raw = found.parse() if found else Raw(pl.DataFrame(), 0)
    else:
        layout = plan.layout(source)
        with opened_text(source) as stream:
            at_end = last and source.compression is None and source.bytes > 2 * SAMPLE_BYTES
            if at_end:
                stream.seek(source.bytes - (64 << 10))
                first_part = stream.read(64 << 10).partition(b"\n")[2]
                raw = parse_block(first_part, layout, 0, source.origin)
            else:
                raw = parse_block(next(blocks(stream, SAMPLE_BYTES), b""), layout, layout.header_lines, source.origin)
    return convert(raw, source, plan.found(source), plan.mapping, plan.dataset).frame


def _days(plan: ImportPlan, converted: pl.DataFrame) -> int:
    """Return over how many days the rows spread, by the first rows of some inputs and the last ones of text."""
    step = max(1, len(plan.inputs) // 8)
    looked = [*islice(plan.inputs, 0, None, step), plan.inputs[-1]]
    frames = [converted, *(_rows(plan, source, last=True) for source in looked)]
    sessions = pl.concat([frame[plan.dataset.session] for frame in frames]).drop_nulls()
    days = sessions if sessions.dtype == pl.Date else sessions.dt.date()
    if not len(days):
        return 1
    return int((days.max() - days.min()).days) + 1  # type: ignore[union-attr, operator]


def _columns(plan: ImportPlan, sample: Sample) -> tuple[ColumnPlan, ...]:
    names = tuple(sample.frame.columns)
    sources = sources_of(plan.mapping, plan.dataset, names)
    shown = []
    for item in plan.dataset.schema:
        source = sources.get(item.name)
        if source is not None and source in names:
            values = sample.frame[source].drop_nulls().head(_SHOWN).to_list()
            shown.append(ColumnPlan(source, item.name, _told(item), tuple(map(str, values))))
        else:
            shown.append(ColumnPlan(_origin(plan, item.name), item.name, _told(item)))
    shown += [ColumnPlan(name, "", "ignored") for name in names if name not in sources.values()]
    return tuple(shown)


def _told(item: pa.Field) -> str:
    return type_name(item.type) + "!" * (not item.nullable)


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


def _notes(plan: ImportPlan, converted: pl.DataFrame, passed_over: int) -> tuple[str, ...]:
    notes = []
    if passed_over:
        notes.append(f"{passed_over:,} files do not match path = {plan.mapping.path and plan.mapping.path.text!r}; passed over")
    keys = [key for key in plan.dataset.keys if key in converted.columns]
    again = converted.height - converted.n_unique(keys) if converted.height and plan.mapping.seq is None else 0
    if again:
        notes.append(
            f"{again:,} of {converted.height:,} sampled rows have a key that another row has: of these the last one is kept. "
            "Where both are real, number them: seq in a mapping, or another key"
        )
    return tuple(notes)


