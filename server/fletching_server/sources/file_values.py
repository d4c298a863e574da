"""A column of a file as values of a type: what does not fit is an error that names file, row, column and value."""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fletching_schemas.errors import BadSourceData

_EXACT: Final = 2.0**53  # beyond it a float no longer holds every whole number
_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
_ISO_DATES: Final = ("%Y-%m-%d", "%Y%m%d")
_ISO_TIMES: Final = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
ZONED: Final = r"\d:\d\d.*(Z|[+-]\d\d:?\d\d)$"
_ZONED_FORM: Final = "%Y-%m-%d %H:%M:%S%.f%z"
_DAY_MILLISECONDS: Final = 86_400_000
_MICROS_PER: Final = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
EPOCH_FORMATS: Final = {f"epoch_{unit}": unit for unit in _MICROS_PER}  # numbers since 1970, as time_format names them


class FileColumn:
    """The values of one column of one file, with what its errors name: the file, and how many lines precede row 1."""

    def __init__(self, values: pl.Series, origin: str, header_lines: int = 0) -> None:
        self.values, self.origin, self._header_lines = values, origin, header_lines

    def converted(self, kind: pa.DataType) -> pl.Series:
        """Return the values as *kind*; ``BadSourceData`` for one that does not fit exactly."""
        if pa.types.is_string_view(kind):
            return self._checked(self.values.cast(pl.String, strict=False), "text")
        if pa.types.is_floating(kind):
            return self._floats()
        if pa.types.is_integer(kind):
            return self._wholes(pl.Int32() if kind == pa.int32() else pl.Int64())
        if pa.types.is_boolean(kind):
            return self._booleans()
        if pa.types.is_date32(kind):
            return self.dates(None)
        return self.instants(None, "UTC").dt.convert_time_zone("UTC")

    def dates(self, form: str | None) -> pl.Series:
        """Return the values as dates; *form* is a format of strptime, None means 2024-03-20 or 20240320."""
        values = self._text(form)
        if values.dtype != pl.String:
            return self._checked(values.cast(pl.Date, strict=False), "a date")
        days = _first_fit(values, (form,) if form else _ISO_DATES).dt.date()
        return self._checked(days, f"a date {form or ''}".strip())

    def instants(self, form: str | None, zone: str) -> pl.Series:
        """Return the values as instants in *zone*; text and naive values are local times there, unless text ends with its own.

        A local time that the change to or from summer time skips or repeats is refused.
        """
        values = self._text(form)
        if values.dtype == pl.String:
            if form is None and values.str.contains(ZONED).any():
                return self._zoned(values, zone)
            plain = values if form else values.str.replace("T", " ", literal=True)
            values = _first_fit(plain, (form,) if form else _ISO_TIMES)
        elif values.dtype != pl.Date and not isinstance(values.dtype, pl.Datetime):
            raise BadSourceData(f"{self.origin}: column {values.name} holds {values.dtype}, not times; set time_format")
        return self._localised(values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None))), zone)

    def _zoned(self, values: pl.Series, zone: str) -> pl.Series:
        """Return text as instants where some of it ends with its offset from UTC."""
        plain = values.str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
        local = _first_fit(plain, _ISO_TIMES).dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
        own = plain.str.to_datetime(_ZONED_FORM, strict=False, time_unit="us", time_zone="UTC").dt.convert_time_zone(zone)
        return self._checked(own.zip_with(own.is_not_null(), local), f"a time in {zone}")

    def since_midnight(self, day: pl.Series, zone: str) -> pl.Series:
        """Return milliseconds since local midnight of *day* in *zone*, fractions down to a microsecond, as instants."""
        passed = self._floats()
        inside = passed.is_between(0, _DAY_MILLISECONDS, closed="left")
        micros = _where(inside, (passed * 1000).round()).cast(pl.Int64)
        return self._localised(day.cast(pl.Datetime("us")) + micros.cast(pl.Duration("us")), zone)

    def since_epoch(self, unit: str) -> pl.Series:
        """Return numbers of *unit* (s, ms, us, ns) since 1970 as instants in UTC; what is finer than a microsecond is refused."""
        if self.values.dtype.is_integer() and unit != "ns":
            micros = self.values.cast(pl.Int64) * int(_MICROS_PER[unit])
        elif unit == "ns":
            whole = self._wholes(pl.Int64())
            micros = _where(whole % 1000 == 0, whole // 1000)
        else:
            micros = (self._floats() * _MICROS_PER[unit]).round().cast(pl.Int64, strict=False)
        return self._checked(micros.cast(pl.Datetime("us", "UTC")), f"an instant in {unit} since 1970, in whole microseconds")

    def _localised(self, values: pl.Series, zone: str) -> pl.Series:
        if getattr(values.dtype, "time_zone", None):
            moments = values.dt.convert_time_zone(zone)
        else:
            moments = values.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
        return self._checked(moments, f"a time in {zone}")

    def _floats(self) -> pl.Series:
        values = self.values.fill_nan(None) if self.values.dtype.is_float() else self.values
        numbers = values.cast(pl.Float64, strict=False)
        if not numbers.is_finite().all():  # text such as inf or 1e999; nan is no number either
            numbers = _where(numbers.is_finite(), numbers)
        return self._checked(numbers, "a finite number", values)

    def _wholes(self, kind: pl.DataType) -> pl.Series:
        values = self.values.fill_nan(None) if self.values.dtype.is_float() else self.values
        if not values.dtype.is_float():
            plain = values.cast(kind, strict=False)
            if plain.null_count() == values.null_count():
                return plain
        real = values.cast(pl.Float64, strict=False)
        is_whole = (real == real.floor()) & (real.abs() <= _EXACT)
        rounded = _where(is_whole, real).cast(kind, strict=False)
        if not values.dtype.is_float():
            rounded = plain.zip_with(plain.is_not_null(), rounded)
        return self._checked(rounded, "a whole number", values)

    def _booleans(self) -> pl.Series:
        if self.values.dtype == pl.Boolean:
            return self.values
        text = self.values.cast(pl.String).str.to_lowercase()
        known = pl.when(text.is_in(_TRUE)).then(True).when(text.is_in(_FALSE)).then(False)
        return self._checked(pl.select(known).to_series(), "true or false")

    def _text(self, form: str | None) -> pl.Series:
        """Return whole numbers such as 20240320 as text where a format says how to read them."""
        is_number = self.values.dtype.is_integer() and form is not None
        return self.values.cast(pl.String) if is_number else self.values

    def _checked(self, out: pl.Series, wanted: str, source: pl.Series | None = None) -> pl.Series:
        values = self.values if source is None else source
        if out.null_count() > values.null_count():
            self.refuse(out.is_null() & values.is_not_null(), f"is not {wanted}")
        return out.alias(self.values.name)

    def refuse(self, wrong: pl.Series, why: str) -> None:
        """Raise ``BadSourceData`` about the first row where *wrong* is true, if there is one."""
        if (row := wrong.fill_null(value=False).arg_true()).len():
            place = f"line {row[0] + 1 + self._header_lines:,}, column {self.values.name}"
            raise BadSourceData(f"{self.origin}: {place}: {self.values[row[0]]!s:.80} {why}")


def _where(condition: pl.Series, values: pl.Series) -> pl.Series:
    """Return *values* with nulls where *condition* does not hold."""
    return pl.select(pl.when(condition).then(values)).to_series()


def divided(values: pl.Series, scale: float) -> pl.Series:
    """Return *values* / *scale*, rounded once, as Python divides.

    Polars multiplies by the reciprocal, which is off by one in the last place for some prices.
    """
    return pl.Series(values.name, pc.divide(values.to_arrow(), pa.scalar(scale, pa.float64())), pl.Float64)


def _first_fit(values: pl.Series, forms: tuple[str, ...]) -> pl.Series:
    """Return *values* as times by the first format that fits each."""
    out = values.str.to_datetime(forms[0], strict=False, time_unit="us")
    for form in forms[1:]:
        if out.null_count() == values.null_count():
            break
        out = out.zip_with(out.is_not_null(), values.str.to_datetime(form, strict=False, time_unit="us"))
    return out
