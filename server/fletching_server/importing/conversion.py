"""A chunk's columns as the table's, and the rows that cannot be: what does not fit is taken out, with the reason. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa

from fletching_schemas import Dataset, normalise_symbol
from fletching_schemas.errors import BadSourceData, InvalidRequest
from fletching_server.importing.inputs import Input
from fletching_server.importing.mapping import ImportMapping
from fletching_server.importing.raw import Bad, Raw, row_text
from fletching_server.sources.file_layout import FoundFile
from fletching_server.sources.file_rows import FileRows
from fletching_server.sources.file_values import FileColumn

PLACE = "#place"  # where in its chunk a row was; no column of a table is called so
_NAN = "NaN"


@dataclass(frozen=True)
class Converted:
    """The good rows of a chunk in the table's columns (but for a ``seq`` to be numbered) and their places; and the bad ones."""

    frame: pl.DataFrame
    bad: Sequence[Bad]
    records: int


@dataclass
class Judge:
    """Remembers which rows hold what does not fit; the columns that it makes go on with nulls there."""

    nulls: tuple[str, ...] = ()
    notes: list[tuple[pl.Series, pl.Series, str]] = field(default_factory=list)

    def column(self, values: pl.Series, origin: str = "", header_lines: int = 0) -> FileColumn:
        """Return *values* as a column whose misfits are noted."""
        return _JudgedColumn(values, origin, header_lines, self)

    def note(self, values: pl.Series, wrong: pl.Series, why: str) -> None:
        """Remember that *values* do not fit where *wrong* is true."""
        wrong = wrong.fill_null(value=False)
        if wrong.any():
            self.notes.append((values, wrong, why))

    def refused(self, rows: int) -> pl.Series:
        """Return which of *rows* rows cannot be imported."""
        out = pl.zeros(rows, pl.Boolean, eager=True)
        for _, wrong, _ in self.notes:
            out = out | wrong
        return out

    def reason(self, row: int) -> str:
        """Return the first thing that is wrong with *row*."""
        values, _, why = next(note for note in self.notes if note[1][row])
        value = values[row]
        told = "" if value is None else f"{value!s:.80} "
        return f"column {values.name}: {told}{why}"


class _JudgedColumn(FileColumn):
    """A column that notes what does not fit and goes on."""

    def __init__(self, values: pl.Series, origin: str, header_lines: int, judge: Judge) -> None:
        if values.dtype.is_float() and _NAN in judge.nulls:
            values = values.fill_nan(None)
        super().__init__(values, origin, header_lines)
        self._judge = judge

    def converted(self, kind: pa.DataType) -> pl.Series:
        if self.values.dtype.is_float():
            self.refuse(self.values.is_nan(), "is not a number; leave it empty, or name it in nulls")
        return super().converted(kind)

    def refuse(self, wrong: pl.Series, why: str) -> None:
        self._judge.note(self.values, wrong, why)


def convert(raw: Raw, source: Input, found: FoundFile, mapping: ImportMapping, dataset: Dataset) -> Converted:
    """Return the rows of *raw* that fit *dataset*, and those that do not, with the reason."""
    judge = Judge(mapping.nulls)
    try:
        frame = _frame(raw, found, mapping, dataset, judge)
    except BadSourceData as error:
        raise InvalidRequest(f"{error.message}; nothing of this import was published") from error
    if judge.notes and raw.as_text:  # as it was written, so that the rejects show that
        return convert(raw.as_text(), source, found, mapping, dataset)
    if not judge.notes:
        return Converted(frame, raw.bad, raw.records)
    refused = judge.refused(raw.frame.height)
    places = raw.places
    bad = [Bad(int(places[row]), judge.reason(row), row_text(raw.frame.row(row))) for row in refused.arg_true().to_list()]
    return Converted(frame.filter(~refused), sorted([*raw.bad, *bad]), raw.records)


def _frame(raw: Raw, found: FoundFile, mapping: ImportMapping, dataset: Dataset, judge: Judge) -> pl.DataFrame:
    kept = raw.frame.select([name for name in raw.frame.columns if name not in mapping.ignore])
    columns = FileRows(kept, found, mapping, dataset, judge.column).frame()
    symbol = _symbols(columns, found, mapping, dataset, judge, kept.height)
    absent = [pl.lit(None).alias(item.name) for item in dataset.schema if item.name not in {*columns.columns, dataset.symbol}]
    numbered = [name for name in dataset.schema.names if name != mapping.seq]
    full = columns.with_columns(symbol, *absent).select(numbered)
    return full.cast(_kinds(dataset, numbered)).with_columns(pl.Series(PLACE, raw.places))  # type: ignore[arg-type]


def _kinds(dataset: Dataset, names: list[str]) -> dict[str, pl.DataType]:
    """Return the types of Polars for those of the table."""
    empty = pl.DataFrame(pl.from_arrow(dataset.schema.empty_table().select(names)))
    return dict(empty.schema)


def _symbols(
    columns: pl.DataFrame, found: FoundFile, mapping: ImportMapping, dataset: Dataset, judge: Judge, rows: int
) -> pl.Series:
    """Return the symbol of each row, in canonical notation."""
    if (symbol := mapping.symbol_of(found)) is not None:
        return pl.repeat(symbol, rows, dtype=pl.String, eager=True).alias(dataset.symbol)
    given = columns[dataset.symbol]
    if dataset.notation == "verbatim":
        return given
    spelled = {name: _canonical(name, dataset) for name in given.unique() if name is not None}
    out = given.replace_strict(spelled, default=None, return_dtype=pl.String)
    judge.note(given, out.is_null() & given.is_not_null(), f"is not a symbol in the notation {dataset.notation}")
    return out


def _canonical(name: str, dataset: Dataset) -> str | None:
    try:
        return normalise_symbol(name, dataset.notation)
    except InvalidRequest:
        return None
