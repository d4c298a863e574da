"""What is asked: small frozen requests, valid from construction on, travelling as versioned JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from fletching_schemas.datasets import DATASET_NAME, SYSTEM_NAME, decode_json
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.filters import FILTERS, Filter, check_size, from_document, to_document

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST_VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 256 * 1024  # 20,000 symbols fit; a ticket of megabytes is not a request
MAX_SYMBOLS: Final = 20_000
MAX_PARTS: Final = 64
MAX_SYMBOL_LENGTH: Final = 64
MAX_AGE_SECONDS: Final = 1e10  # three centuries; far larger numbers overflow the instants that they are taken from

OnMiss = Literal["fill", "cached", "error"]
Adjust = Literal["qfq", "hfq"]
WriteMode = Literal["upsert", "append", "replace"]
PROFILES: Final[dict[str, float]] = {"trading": 60.0, "research": 3600.0, "backtesting": 86400.0}

_ON_MISS: Final = get_args(OnMiss)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))  # one for all: making it costs as much as using it

Day = str | date | datetime | None


def parse_moment(value: Day, what: str) -> date | datetime | None:
    """Return *value* as a date (a whole session) or a datetime (an instant; naive means exchange time).

    Accepts ``2024-03-20``, ``20240320``, ISO date-times, ``date`` and ``datetime``. Raises ``InvalidRequest``.
    """
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    try:
        if not isinstance(value, datetime):
            text = str(value).strip()
            if len(text) in {8, 10}:
                return date.fromisoformat(text)
            value = datetime.fromisoformat(text)
        return value.astimezone(UTC) if value.tzinfo else value
    except (ValueError, OverflowError) as error:  # UTC may lie beyond the first or the last year that there is
        raise InvalidRequest(
            f"{what}={value!r:.90} is not a date; write '2024-03-20', '2024-03-20T09:30' or pass a date"
        ) from error


def _generation_or_moment(value: int | Day) -> int | date | datetime | None:
    """Return *value* as a generation, which is a whole number, or as what ``parse_moment`` makes of it."""
    if isinstance(value, bool):
        raise InvalidRequest(f"as_of={value}; it is a generation or an instant")
    if isinstance(value, int):
        if not 0 <= value < 2**63:
            raise InvalidRequest(f"as_of={value}; a generation is a whole number that a read or a write has told")
        return value
    return parse_moment(value, "as_of")


def _names(values: str | Sequence[str] | None, what: str) -> tuple[str, ...] | None:
    """Return *values* as a tuple without repetitions, or None for "all"; every name is short printable text."""
    if values is None:
        return None
    if isinstance(values, str):
        values = (values,)
    elif isinstance(values, Mapping) or not isinstance(values, Iterable):  # a mapping would pass as its keys
        raise InvalidRequest(f"{what}={values!r:.40}; it is a name or a list of names")
    listed = tuple(values)
    for name in listed:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_SYMBOL_LENGTH or not name.isprintable():
            raise InvalidRequest(f"{what}: {name!r:.90} is not 1 to {MAX_SYMBOL_LENGTH} printable characters")
    if not listed:
        raise InvalidRequest(f"{what} is an empty list; leave it out to ask for all")
    return tuple(dict.fromkeys(name.strip() for name in listed))


def is_system(name: object) -> bool:
    """Return whether *name* is that of a record which the cache keeps of itself: ``system.access_log``."""
    return isinstance(name, str) and SYSTEM_NAME.fullmatch(name) is not None


def _check_dataset(name: object) -> None:
    if not isinstance(name, str) or not DATASET_NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r:.90} is not a dataset name: lower-case letters, digits and underscores")


def _one_of(value: object, allowed: Sequence[str], what: str) -> None:
    if value not in allowed:
        raise InvalidRequest(f"{what}={value!r:.40}; it is one of {', '.join(allowed)}")


def _as_day(moment: date | datetime) -> date:
    return moment.date() if isinstance(moment, datetime) else moment


def _in_utc(moment: date | datetime) -> bool:
    return isinstance(moment, datetime) and moment.tzinfo is not None


def _reversed(start: date | datetime, end: date | datetime) -> bool:
    """Tell whether *start* is after *end*, whatever the exchange's time zone is."""
    same_clock = _in_utc(start) == _in_utc(end)
    if isinstance(start, datetime) and isinstance(end, datetime) and same_clock:
        return start > end
    slack = timedelta(days=0 if same_clock else 1)  # a day of the exchange and its instants differ by a day in UTC
    return _as_day(start) - _as_day(end) > slack


class _Wire:
    """JSON with a version, refusing what it does not know: a silently ignored argument is a wrong answer."""

    kind: str

    def to_bytes(self) -> bytes:
        """Return the request as it travels; ``InvalidRequest`` where it is larger than a server reads."""
        raw = _ENCODER.encode(self._document()).encode()
        if len(raw) > MAX_REQUEST_BYTES:
            raise InvalidRequest(f"the request takes {len(raw):,} bytes, at most {MAX_REQUEST_BYTES:,}: ask in parts")
        return raw

    def _document(self) -> dict[str, object]:
        asked = {name: _plain(value) for name, value in vars(self).items() if value is not None}
        return {"kind": self.kind, "version": REQUEST_VERSION, **asked}

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the request in *raw*; ``InvalidRequest`` for junk, a future version or an unknown field."""
        return cls._from_document(decode_json(raw, MAX_REQUEST_BYTES, "a request"))

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Self:
        version = document.pop("version", None)
        if version != REQUEST_VERSION:
            raise InvalidRequest(
                f"request version {version!r:.40}; this server speaks version {REQUEST_VERSION}: use a client of the same release"
            )
        if (kind := document.pop("kind", None)) != cls.kind:
            raise InvalidRequest(f"a request of kind {kind!r:.40} arrived where {cls.kind!r} is read")
        known: Mapping[str, object] = cls.__dataclass_fields__  # type: ignore[attr-defined]  # of every class that is sent
        if unknown := sorted(document.keys() - known.keys()):
            shown = ascii(", ".join(unknown))[:90]  # ascii: a lone surrogate could not travel back
            raise InvalidRequest(f"unknown field {shown}; a {cls.kind} request has {', '.join(known)}")
        try:
            return cls(**document)
        except TypeError as error:  # a required field is absent
            raise InvalidRequest(f"a {cls.kind} request is incomplete; it has {', '.join(known)}") from error


def _plain(value: object) -> object:
    if isinstance(value, FILTERS):
        return to_document(value)
    if isinstance(value, _Wire):
        return value._document()  # noqa: SLF001  # a request within a request
    return value.isoformat() if isinstance(value, date) else value


@dataclass(frozen=True)
class ReadRequest(_Wire):
    """One read: which rows of which dataset, how fresh, and what to do where they are not held.

    ``start`` and ``end`` are inclusive. A date covers its whole session; a naive datetime is in the time zone of the
    dataset's exchange (UTC where it has none). ``symbols`` and ``columns`` of None mean all. ``adjust`` computes prices as of
    ``adjust_ref`` (a session; None: the last one of the range). ``as_of`` reads what the dataset was at a generation (a whole
    number, from ``ReadInfo`` or ``WriteResult``) or an instant; a date means the end of that day. ``progress_id`` is a name,
    made up by the client, under which the action ``progress`` tells how far the read is. ``where`` keeps those rows only that
    the filter wants (see ``filters``), ``limit`` the first so many of them; both apply to the rows that a read without them
    would give, adjusted prices included. ``cache.scan`` sends them.
    """

    kind = "read"

    dataset: str
    symbols: tuple[str, ...] | None = None
    start: date | datetime | None = None
    end: date | datetime | None = None
    columns: tuple[str, ...] | None = None
    adjust: Adjust | None = None
    adjust_ref: date | None = None
    as_of: int | date | datetime | None = None
    max_age: float | None = None
    profile: str | None = None
    on_miss: OnMiss = "fill"
    info: bool = False
    progress_id: str | None = None
    where: Filter | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not is_system(self.dataset):
            _check_dataset(self.dataset)
        object.__setattr__(self, "symbols", _names(self.symbols, "symbols"))
        object.__setattr__(self, "columns", _names(self.columns, "columns"))
        object.__setattr__(self, "start", parse_moment(self.start, "start"))
        object.__setattr__(self, "end", parse_moment(self.end, "end"))
        self._check_limits()
        self._check_range()
        self._check_adjust()
        self._check_selection()
        object.__setattr__(self, "as_of", _generation_or_moment(self.as_of))

    def _check_limits(self) -> None:
        _one_of(self.on_miss, _ON_MISS, "on_miss")
        if self.profile is not None:
            _one_of(self.profile, tuple(PROFILES), "profile")
        if not isinstance(self.info, bool):
            raise InvalidRequest(f"info={self.info!r:.40}; it is true or false")
        age = self.max_age
        number = isinstance(age, (int, float)) and not isinstance(age, bool)
        if age is not None and not (number and 0 <= age <= MAX_AGE_SECONDS):
            raise InvalidRequest(f"max_age={age!r:.40}; it is a number of seconds, 0 to {MAX_AGE_SECONDS:.0e}")
        if self.symbols is not None and len(self.symbols) > MAX_SYMBOLS:
            raise InvalidRequest(f"{len(self.symbols):,} symbols; ask for at most {MAX_SYMBOLS:,}, or for all")

    def _check_range(self) -> None:
        if self.start is not None and self.end is not None and _reversed(self.start, self.end):
            raise InvalidRequest(f"start {self.start} is after end {self.end}; did you mean to swap them?")

    def _check_adjust(self) -> None:
        if self.adjust is not None:
            _one_of(self.adjust, get_args(Adjust), "adjust")
        reference = parse_moment(self.adjust_ref, "adjust_ref")
        if isinstance(reference, datetime):
            raise InvalidRequest(f"adjust_ref={self.adjust_ref!s:.40}; it is a session, a date without a time of day")
        if reference is not None and self.adjust != "qfq":
            raise InvalidRequest("adjust_ref is the session whose prices stay as they are, and only adjust='qfq' has one")
        object.__setattr__(self, "adjust_ref", reference)
        if self.progress_id is not None and not isinstance(self.progress_id, str):
            raise InvalidRequest(f"progress_id={self.progress_id!r:.40}; it is a name")
        _names(self.progress_id, "progress_id")

    def _check_selection(self) -> None:
        if self.where is not None:
            where = self.where if isinstance(self.where, FILTERS) else from_document(self.where)
            check_size(where)
            object.__setattr__(self, "where", where)
        limit = self.limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 2**63):
            raise InvalidRequest(f"limit={limit!r:.40}; it is a number of rows")

    @property
    def tolerated_age(self) -> float | None:
        """The oldest acceptable age of unsettled rows in seconds: ``max_age``, else the profile's, else None."""
        return self.max_age if self.max_age is not None else PROFILES.get(self.profile or "")


@dataclass(frozen=True)
class PartRequest(_Wire):
    """One share of a large answer: part *part* (from 0) of *parts* of what *read* answers, by symbol, in order.

    All parts are of one *generation* of the dataset, or are refused with ``AnswerChanged``: put together in order they are
    the whole answer. A server makes them; whoever takes one takes all.
    """

    kind = "part"

    read: ReadRequest
    part: int
    parts: int
    generation: int

    def __post_init__(self) -> None:
        if isinstance(self.read, dict):  # as it travelled
            object.__setattr__(self, "read", ReadRequest._from_document(dict(self.read)))  # noqa: SLF001  # the same module
        numbers = (self.part, self.parts, self.generation)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if not whole or not 0 <= self.part < self.parts <= MAX_PARTS or self.generation < 0:
            raise InvalidRequest(
                f"part {self.part!r:.20} of {self.parts!r:.20} at {self.generation!r:.20} is not one of 1 to {MAX_PARTS}"
            )
        if not isinstance(self.read, ReadRequest) or (self.read.adjust, self.read.where, self.read.limit) != (None, None, None):
            raise InvalidRequest("a part is of a read request without adjust (factors may change between two), where and limit")


def ticket_from_bytes(raw: bytes) -> ReadRequest | PartRequest:
    """Return what the ticket *raw* asks for: a read, or a part of one."""
    document = decode_json(raw, MAX_REQUEST_BYTES, "a request")
    kind = PartRequest if document.get("kind") == PartRequest.kind else ReadRequest
    return kind._from_document(document)  # noqa: SLF001  # the same module


@dataclass(frozen=True)
class WriteRequest(_Wire):
    """One write into a user table; its rows travel as Arrow beside it.

    ``keys`` (the first plays the symbol's part) and ``time`` are needed once, when the table is new. ``upsert``
    replaces rows of equal key, ``append`` refuses them, ``replace`` puts the rows in place of the whole table.
    ``partition`` is the table's period, ``year``, ``month`` or ``day``, where it is new. ``rows`` says how many follow:
    a stream of a client that died ends like any other, and fewer rows than were announced are not stored.
    """

    kind = "write"

    table: str
    keys: tuple[str, ...] | None = None
    time: str | None = None
    mode: WriteMode = "upsert"
    partition: str | None = None
    rows: int | None = None
    key: str | None = None
    evolve: bool = False

    def __post_init__(self) -> None:
        _check_dataset(self.table)
        object.__setattr__(self, "keys", _names(self.keys, "keys"))
        _one_of(self.mode, get_args(WriteMode), "mode")
        if self.partition is not None:
            _one_of(self.partition, ("year", "month", "day"), "partition")
        if self.time is not None and not isinstance(self.time, str):
            raise InvalidRequest(f"time={self.time!r:.40}; it is the name of a column")
        if self.rows is not None and (not isinstance(self.rows, int) or isinstance(self.rows, bool) or self.rows < 0):
            raise InvalidRequest(f"rows={self.rows!r:.40}; it is the number of rows that follow")
        if self.key is not None and not isinstance(self.key, str):
            raise InvalidRequest(f"key={self.key!r:.40}; it is a name, made up anew for each write")
        _names(self.key, "key")
        if not isinstance(self.evolve, bool):
            raise InvalidRequest(f"evolve={self.evolve!r:.40}; it is true or false")


@dataclass(frozen=True)
class FetchRequest:
    """What a source is asked: canonical symbols of a dataset, and the first and last session, inclusive."""

    dataset: str
    symbols: tuple[str, ...]
    start: date
    end: date

    def __str__(self) -> str:
        shown = ", ".join(self.symbols[:3]) + (f" and {len(self.symbols) - 3} more" if len(self.symbols) > 3 else "")
        return f"{self.dataset} {shown} {self.start}..{self.end}"


def action_body(values: Mapping[str, object]) -> bytes:
    """Return the JSON body of an action, without the arguments that were left out."""
    return json.dumps({name: _plain(value) for name, value in values.items() if value is not None}).encode()
