"""How folders of files become datasets: the TOML that users write, checked before any file is opened."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import date, timedelta
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fletching_schemas import Dataset, Notation, Period, canonical
from fletching_schemas.errors import InvalidRequest
from fletching_server.sources.file_factors import COLUMNS as FACTOR_COLUMNS
from fletching_server.sources.file_layout import PathPattern

MILLISECONDS: Final = "milliseconds"
TYPES: Final[dict[str, pa.DataType]] = {
    "string": pa.string_view(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "bool": pa.bool_(),
}
_COLUMN_TYPE: Final = re.compile(r"(?P<type>\w+)(?P<required>!?)(?: \[(?P<unit>[^\]]+)\])?")
_DURATION: Final = re.compile(r"(\d+)(s|m|h)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_PASSED_ON: Final = ("period", "notation", "first_session", "symbols_per_call", "fresh_seconds", "description")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


_M = TypeVar("_M", bound=_Model)


class DatasetMapping(_Model):
    """One dataset in files: what it promises, where its files lie, and how a file is read.

    ``canonical`` or ``schema`` with ``keys`` and ``time`` say what is served; ``path`` and ``symbol`` which file holds
    what; the rest how text becomes values. Durations such as ``label_shift`` are written ``30s``, ``1m`` or ``1h``.
    """

    name: str
    canonical: str | None = None
    columns_served: dict[str, str] | None = Field(default=None, alias="schema")
    keys: tuple[str, ...] = ()
    time: str | None = None
    calendar: str | None = None
    period: Period | None = None
    notation: Notation = "equity"
    first_session: date | None = None
    symbols_per_call: int = 16
    fresh_seconds: float | None = None
    description: str | None = None

    path: PathPattern
    member: PathPattern | None = None
    symbol: str | None = None
    reuse: PathPattern | None = None
    factors: Literal["lean"] | None = None
    adjusted_by: str | None = None

    format: Literal["csv", "parquet"] | None = None
    header: bool | None = None
    encoding: str = "utf8"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    nulls: tuple[str, ...] = ()
    columns: tuple[str, ...] | dict[str, str] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    constants: dict[str, str | int | float | bool | date] = Field(default_factory=dict)
    seq: str | None = None
    price_scale: float = Field(default=1, gt=0)
    price_columns: tuple[str, ...] = ()
    time_zone: str = "UTC"
    time_format: str | None = None
    label_shift: timedelta = timedelta(0)

    @field_validator("path", "member", "reuse", mode="before")
    @classmethod
    def _pattern(cls, text: object) -> object:
        return PathPattern(text) if isinstance(text, str) else text

    @field_validator("label_shift", mode="before")
    @classmethod
    def _duration(cls, text: object) -> timedelta:
        found = _DURATION.fullmatch(text) if isinstance(text, str) else None
        if not found:
            raise ValueError(f"{text!r} is not a duration; write '30s', '1m' or '1h'")
        return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is not a time zone; write 'Asia/Shanghai' or 'America/New_York'") from error
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.canonical is None) == (self.columns_served is None):
            raise ValueError("give either canonical = '...' or a [dataset.schema] table")
        if self.canonical and (self.keys or self.time):
            raise ValueError("keys and time belong to a [dataset.schema] table; a canonical schema has its own")
        problem = self._path_problem() or self._column_problem(self.dataset())
        if problem:
            raise ValueError(problem)
        return self

    def _path_problem(self) -> str | None:
        known = self.path.placeholders | (self.member.placeholders if self.member else frozenset())
        used = {name.lower() for name in re.findall(r"\{(\w+)\}", self.symbol or "")}
        if unknown := sorted(used - known):
            return f"symbol uses {', '.join(unknown)}; path and member have {', '.join(sorted(known)) or 'none'}"
        if self.symbol is not None and not used:
            return "symbol names no placeholder of path, so every file would be the same symbol; write '{code}'"
        if self.reuse and (self.reuse.placeholders or "code" not in used & self.path.placeholders):
            return "reuse is a folder, and needs {code} in path and in symbol"
        if self.time_format == MILLISECONDS and not self.path.names_days:
            return f"time_format = '{MILLISECONDS}' counts from midnight: path needs the day, {{date:%Y%m%d}}"
        return None

    def _column_problem(self, dataset: Dataset) -> str | None:
        served, listed = set(dataset.schema.names), isinstance(self.columns, tuple)
        named = {*self.price_columns, *self.constants, *([self.seq] if self.seq else [])}
        named |= set(self.columns) - (set(self.ignore) if listed else set())
        if self.factors and (self.columns != FACTOR_COLUMNS or not {"ex_date", "known_at", "mul"} <= served):
            return f"factors = 'lean' needs canonical = 'adj_factors' and columns = {list(FACTOR_COLUMNS)}"
        if unknown := sorted(named - served - (set(FACTOR_COLUMNS) if self.factors else set())):
            return f"{', '.join(unknown)}: no such column; {self.name} has {', '.join(dataset.schema.names)}"
        if len(set(self.columns)) != len(self.columns):
            return "columns holds a name twice"
        if self.header is False and not listed:
            return "a file without a header needs columns = [...], the names in file order"
        return self._session_problem(dataset)

    def _session_problem(self, dataset: Dataset) -> str | None:
        has_day = pa.types.is_date32(dataset.schema.field(dataset.time).type)
        if dataset.session == dataset.time and not has_day:
            return "time is a timestamp: add trading_date = 'date!' to the schema; it is filled with the row's session"
        return "label_shift moves a timestamp; the time of this dataset is a date" if self.label_shift and has_day else None

    def dataset(self, prefix: str = "") -> Dataset:
        """Return what is promised, named with *prefix*; ``InvalidRequest`` where schema, keys and time do not fit."""
        asked = {name: getattr(self, name) for name in _PASSED_ON if getattr(self, name) is not None}
        if self.adjusted_by is not None:
            asked["factors"] = prefix + self.adjusted_by
        if self.canonical:
            return canonical(self.canonical, calendar=self.calendar, as_name=prefix + self.name, **asked)
        fields = [self._field(name, text) for name, text in (self.columns_served or {}).items()]
        label = {"label": "right"} if self.label_shift else {}
        schema = pa.schema(fields, metadata={"dataset": self.name, **label})
        return Dataset(prefix + self.name, schema, self.keys, self.time or "", self.calendar, **asked)

    def _field(self, name: str, text: str) -> pa.Field:
        found = _COLUMN_TYPE.fullmatch(text)
        if not found or found["type"] not in TYPES:
            raise InvalidRequest(f"{name} = {text!r}; types are {', '.join(TYPES)}, then ! if never empty, [unit]")
        required = bool(found["required"]) or name in self.keys
        metadata = {"unit": found["unit"]} if found["unit"] else None
        return pa.field(name, TYPES[found["type"]], nullable=not required, metadata=metadata)

    @property
    def has_header(self) -> bool:
        """Whether the first line of a CSV file holds names: so, unless said otherwise, where columns is no list."""
        return not isinstance(self.columns, tuple) if self.header is None else self.header


class FilesMapping(_Model):
    """A whole TOML file: the root folder, a ready mapping or mappings of one's own, and what of them is served."""

    root: str
    mapping: str | None = None
    name: str | None = None
    prefix: str = ""
    datasets: tuple[str, ...] | None = None
    dataset: tuple[DatasetMapping, ...] = ()

    def root_folder(self, folder: Path) -> Path:
        """Return the absolute root: ``~`` is the home folder, a relative one starts at *folder*."""
        return (folder / Path(self.root).expanduser()).absolute()

    def chosen(self) -> tuple[DatasetMapping, ...]:
        """Return the mappings to serve, the ready ones first; ``InvalidRequest`` for a name that is not there."""
        ready = ready_mapping(self.mapping) if self.mapping else ()
        every = {entry.name: entry for entry in (*ready, *self.dataset)}
        if len(every) != len(ready) + len(self.dataset) or not every:
            raise InvalidRequest("files: give at least one [[dataset]] or mapping = '...', with different names")
        if unknown := sorted(set(self.datasets or ()) - set(every)):
            raise InvalidRequest(f"files: no dataset {', '.join(unknown)} in the mapping; it has {', '.join(every)}")
        return tuple(entry for name, entry in every.items() if self.datasets is None or name in self.datasets)


class _Ready(_Model):
    dataset: tuple[DatasetMapping, ...]


def ready_names() -> tuple[str, ...]:
    """Return the names of the mappings that ship, for ``mapping = "..."``."""
    folder = resources.files("fletching_server.sources") / "mappings"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def ready_mapping(name: str) -> tuple[DatasetMapping, ...]:
    """Return the datasets of a mapping that ships; ``InvalidRequest`` lists the names there are."""
    if name not in ready_names():
        raise InvalidRequest(f"files: there is no ready mapping {name!r}; there are {', '.join(ready_names())}")
    text = (resources.files("fletching_server.sources") / "mappings" / f"{name}.toml").read_text("utf8")
    return validated(_Ready, tomllib.loads(text), f"mapping {name}").dataset


def read_mapping(values: Mapping[str, Any], origin: str) -> FilesMapping:
    """Return the checked mapping; ``InvalidRequest`` names *origin*, the field and what is wrong with it."""
    return validated(FilesMapping, values, origin)


def load_toml(path: Path) -> dict[str, Any]:
    """Return the document in *path*; ``InvalidRequest`` where there is no such file or it is not TOML."""
    try:
        return tomllib.loads(path.read_text("utf8"))
    except OSError as error:
        raise InvalidRequest(f"files: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # also what is not UTF-8
        raise InvalidRequest(f"files: {path} is not TOML: {error}") from error


def validated(model: type[_M], values: Mapping[str, Any], origin: str) -> _M:
    """Return *values* as *model*; ``InvalidRequest`` names *origin*, the field and what is wrong with it."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InvalidRequest(f"{origin}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = " ".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
    return f"{place}: {first['msg'].removeprefix('Value error, ')}" if place else first["msg"]
