"""A dataset: what a named table promises, and where a row of it belongs."""

from __future__ import annotations

import base64
import json
import re
from calendar import monthrange
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Final, Literal, get_args

import pyarrow as pa

from fletching_schemas.errors import InvalidRequest, UnknownColumn

Period = Literal["year", "month", "day"]
Notation = Literal["equity", "index", "futures", "mixed", "verbatim"]
Restatement = Literal["replace", "keep", "refuse"]

DATASET_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
SYSTEM_NAME: Final = re.compile(r"system\.[a-z][a-z0-9_]{0,62}")  # what a cache tells of itself: read, and never written
EPOCH: Final = date(1970, 1, 1)
TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

_LEAST: Final = {
    "buckets": 1,
    "symbols_per_call": 1,
    "recent_sessions": 1,
    "sweep_symbols": 0,
    "fresh_seconds": 0,
    "stale_seconds": 0,
    "verify_days": 0,
}
_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


@dataclass(frozen=True)
class Dataset:
    """What a named table promises: schema, keys, time, calendar, partition rule and what its source can do.

    ``keys`` starts with the symbol column and makes a row unique. ``time`` is one of the keys, a ``date32`` (a session)
    or a ``timestamp``, always stored as microseconds in UTC. Keys and ``trading_date`` may not be null. ``calendar`` is the
    MIC whose sessions the rows follow, or None where every calendar day counts. ``period`` and ``buckets`` say how rows
    are partitioned.

    What its source can do: ``range_pushdown`` (False: every call returns a symbol's whole history),
    ``symbols_per_call`` (most symbols in one fetch), ``first_session`` (how far back it goes; None: as far as the
    calendar), ``recent_sessions`` (it only has the last so many; None: all), ``sweep_symbols`` (from so many symbols on one
    call for all of them is cheaper where only the latest session is missing; 0: it cannot). ``accumulates``: an answer
    never takes back what an earlier one told, as a list of the newest items does not.

    How fresh rows are: ``fresh_seconds`` is how long rows of a session that has not settled are served without asking
    again, ``stale_seconds`` for how long after that they are still served while new ones are fetched in the background,
    ``verify_days`` after how long final rows are asked for once more, in the background. ``restatement`` says what to do
    where settled rows come back with other values: ``replace`` those held, ``keep`` them, or ``refuse`` the answer; each
    change is recorded. ``factors`` names the dataset that adjusts the prices of this one (None: they cannot be).

    ``notation`` says how symbols are written: see ``fletching_schemas.normalise_symbol``; ``verbatim`` leaves them.

    Raises ``InvalidRequest`` where the parts do not fit together.
    """

    name: str
    schema: pa.Schema
    keys: tuple[str, ...]
    time: str
    calendar: str | None = None
    period: Period = "year"
    buckets: int = 1
    notation: Notation = "verbatim"
    range_pushdown: bool = True
    symbols_per_call: int = 1
    first_session: date | None = None
    recent_sessions: int | None = None
    sweep_symbols: int = 0
    accumulates: bool = False
    fresh_seconds: float = 300.0
    stale_seconds: float = 0.0
    verify_days: float = 365.0
    restatement: Restatement = "replace"
    factors: str | None = None
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "schema", self._stored(self.schema))
        problem = self._problem()
        if problem:
            raise InvalidRequest(f"dataset {self.name!r}: {problem}")

    def _stored(self, schema: pa.Schema) -> pa.Schema:
        """Return *schema* in storage types; what places a row may not be null, whether or not that was written down."""
        placing = {*self.keys, "trading_date"}
        stored = storage_schema(schema)
        return pa.schema([item.with_nullable(item.nullable and item.name not in placing) for item in stored], stored.metadata)

    def _problem(self) -> str | None:
        if not isinstance(self.name, str) or not (DATASET_NAME.fullmatch(self.name) or SYSTEM_NAME.fullmatch(self.name)):
            return "a name is 1 to 63 lower-case letters, digits and underscores, and starts with a letter"
        if len(set(self.schema.names)) != len(self.schema.names):
            return f"columns must have different names, there are {self.schema.names}"
        absent = [name for name in (*self.keys, self.time) if name not in self.schema.names]
        if absent or not self.keys:
            return f"keys and time must be columns; {absent or 'keys'} missing, the columns are {self.schema.names}"
        if self.time not in self.keys[1:]:
            return f"time {self.time!r} must be one of the keys after the symbol, the keys are {list(self.keys)}"
        if self.schema.field(self.keys[0]).type != pa.string_view():
            return f"the first key {self.keys[0]!r} plays the symbol's part and must be a string"
        if not (pa.types.is_date32(self._type(self.time)) or self._type(self.time) == TIMESTAMP):
            return f"time {self.time!r} must be a date or a timestamp with a time zone, it is {self._type(self.time)}"
        if self.calendar is not None and not pa.types.is_date32(self._type(self.session)):
            return f"rows follow the sessions of {self.calendar}: add a column trading_date (date32) that names each row's"
        return self._problem_of_rules()

    def _problem_of_rules(self) -> str | None:
        for name, allowed in (("period", Period), ("notation", Notation), ("restatement", Restatement)):
            if getattr(self, name) not in get_args(allowed):
                return f"{name} is one of {', '.join(get_args(allowed))}, it is {getattr(self, name)!r:.40}"
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                return f"{name} is at least {least}, it is {value!r:.40}"
        return None

    def _type(self, column: str) -> pa.DataType:
        return self.schema.field(column).type

    @property
    def is_system(self) -> bool:
        """Whether it is a record that the cache keeps of itself, ``system.*``: nobody offers or writes it."""
        return SYSTEM_NAME.fullmatch(self.name) is not None

    @property
    def symbol(self) -> str:
        """The column that plays the symbol's part: the first key."""
        return self.keys[0]

    @property
    def session(self) -> str:
        """The column that says to which session a row belongs: ``trading_date`` where there is one, else the time."""
        return "trading_date" if "trading_date" in self.schema.names else self.time

    @property
    def sort_keys(self) -> tuple[str, ...]:
        """The order of stored and returned rows: symbol, time, then the other keys."""
        return (self.symbol, self.time, *(key for key in self.keys[1:] if key != self.time))

    def project(self, columns: tuple[str, ...] | None) -> pa.Schema:
        """Return the schema of an answer with *columns* in that order (None: all); ``UnknownColumn`` names the rest."""
        if columns is None:
            return self.schema
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            there = ", ".join(self.schema.names)
            raise UnknownColumn(f"{self.name} has no column {', '.join(unknown)}; it has {there}")
        return pa.schema([self.schema.field(name) for name in columns], metadata=self.schema.metadata)

    def period_of(self, day: date) -> str:
        """Return the partition period that holds *day*: ``2024``, ``2024-03`` or ``2024-03-20``."""
        return day.isoformat()[: {"year": 4, "month": 7, "day": 10}[self.period]]

    def period_days(self, period: str) -> tuple[date, date]:
        """Return the first and the last day of a partition period."""
        first = date.fromisoformat(f"{period}-01-01"[:10])
        if self.period == "day":
            return first, first
        if self.period == "month":
            return first, first.replace(day=monthrange(first.year, first.month)[1])
        return first, first.replace(month=12, day=31)

    def with_name(self, name: str) -> Dataset:
        """Return the same promise under another name."""
        return replace(self, name=name)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document from which ``from_json`` rebuilds the dataset."""
        simple = {name: getattr(self, name) for name in self.__dataclass_fields__}
        simple["schema"] = base64.b64encode(self.schema.serialize()).decode()
        simple["first_session"] = self.first_session and self.first_session.isoformat()
        return simple

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Dataset:
        """Return the dataset that ``to_json`` wrote."""
        values = dict(document)
        values["schema"] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"])))
        values["first_session"] = values["first_session"] and date.fromisoformat(values["first_session"])
        return cls(**values)


def storage_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that is stored and served for *kind*: strings as views, instants as microseconds in UTC."""
    if pa.types.is_dictionary(kind):
        return storage_type(kind.value_type)
    if any(test(kind) for test in _STRINGS):
        return pa.string_view()
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return TIMESTAMP
    return pa.timestamp("us") if pa.types.is_timestamp(kind) else kind


def storage_schema(schema: pa.Schema) -> pa.Schema:
    """Return *schema* with every field in its storage type; names, nullability and metadata are kept."""
    fields = [item.with_type(storage_type(item.type)) for item in schema]
    return pa.schema(fields, metadata=schema.metadata)


def decode_json(raw: bytes, limit: int, what: str) -> dict[str, Any]:
    """Return the JSON object in *raw*, or raise ``InvalidRequest`` where it is too large, not JSON or not an object."""
    if len(raw) > limit:
        raise InvalidRequest(f"{what} of {len(raw):,} bytes; at most {limit:,} are read")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: it starts with {raw[:24]!r}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{what} must be a JSON object, it is a {type(document).__name__}")
    return document
