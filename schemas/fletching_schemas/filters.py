"""Which rows are wanted: a small closed language, valid from construction on, travelling as JSON lists.

    ["==", COLUMN, VALUE]    also != < <= > >=         ["and", FILTER, ...]
    ["in", COLUMN, [VALUE, ...]]                       ["or", FILTER, ...]
    ["is_null", COLUMN]    ["is_not_null", COLUMN]

A row is wanted where the filter is true. A null is neither equal to anything nor unequal to it, nor less, nor more; there is no
negation, so that "unknown" and "no" need not be told apart. Floats are ordered as Polars orders them: NaN equals NaN and is more
than any number. Values are bool, int, float, str, a date, or an instant (any time zone; it is kept in UTC, in microseconds).
In JSON a date is ``{"$date": "2024-03-20"}``, an instant ``{"$datetime": ["2024-03-20T01:30:00", "utc", 0]}``, and the floats
that JSON has no word for are ``{"$float": "nan"}``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, get_args

from fletching_schemas.errors import InvalidRequest
from fletching_schemas.tagged import from_tagged, to_tagged

MAX_DEPTH: Final = 16
MAX_PARTS: Final = 512  # conditions of one filter, the groups among them included
MAX_VALUES: Final = 10_000  # of all conditions together: a market's symbols fit
MAX_TEXT: Final = 1024  # characters of a text, or of a column's name
_LEAST_INT, _MOST_INT = -(2**63), 2**64 - 1

Op = Literal["==", "!=", "<", "<=", ">", ">="]
Value = bool | int | float | str | date | datetime
OPS: Final = get_args(Op)

_TAGS: Final = frozenset({"$date", "$datetime", "$float"})
_WRITTEN: Final = (
    "a filter is a list: ['==', column, value], ['in', column, [values]], ['is_null', column] or ['and', filter, ...]"
)


@dataclass(frozen=True)
class Compare:
    """Rows whose *column* is, or is not, or is less or more than *value*."""

    column: str
    op: Op
    value: Value

    def __post_init__(self) -> None:
        _check_column(self.column)
        if self.op not in OPS:
            raise InvalidRequest(f"a filter compares with one of {', '.join(OPS)}, not with {self.op!r:.40}")
        object.__setattr__(self, "value", _checked(self.value))

    def __str__(self) -> str:
        return f"{self.column} {self.op} {_shown(self.value)}"


@dataclass(frozen=True)
class OneOf:
    """Rows whose *column* is one of *values*; none of them where there are no values."""

    column: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        _check_column(self.column)
        if isinstance(self.values, (str, bytes, dict)) or not hasattr(self.values, "__iter__"):
            raise InvalidRequest(f"a filter on {self.column:.60} takes a list of values, not {self.values!r:.40}")
        object.__setattr__(self, "values", tuple(_checked(value) for value in self.values))

    def __str__(self) -> str:
        more = f", and {len(self.values) - 5:,} more" if len(self.values) > 5 else ""
        return f"{self.column} in [{', '.join(map(_shown, self.values[:5]))}{more}]"


@dataclass(frozen=True)
class IsNull:
    """Rows that have no value in *column*; with *negated* those that have one."""

    column: str
    negated: bool = False

    def __post_init__(self) -> None:
        _check_column(self.column)

    def __str__(self) -> str:
        return f"{self.column} is {'not ' if self.negated else ''}null"


@dataclass(frozen=True)
class AllOf:
    """Rows that every one of *parts* wants."""

    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _parts(self.parts))

    def __str__(self) -> str:
        return " and ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


@dataclass(frozen=True)
class AnyOf:
    """Rows that at least one of *parts* wants."""

    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _parts(self.parts))

    def __str__(self) -> str:
        return " or ".join(f"({part})" if isinstance(part, AllOf) else str(part) for part in self.parts)


Filter = Compare | OneOf | IsNull | AllOf | AnyOf
Condition = Compare | OneOf | IsNull
FILTERS: Final = (Compare, OneOf, IsNull, AllOf, AnyOf)


def all_of(parts: Sequence[Filter]) -> Filter | None:
    """Return the filter that wants what all of *parts* want; None, which wants everything, without any."""
    return None if not parts else parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def conjuncts(where: Filter | None) -> tuple[Filter, ...]:
    """Return the filters that a row must all satisfy; none where everything is wanted."""
    return () if where is None else where.parts if isinstance(where, AllOf) else (where,)


def conditions(where: Filter) -> Iterator[Condition]:
    """Yield the conditions of *where* on single columns, in order."""
    if isinstance(where, (AllOf, AnyOf)):
        for part in where.parts:
            yield from conditions(part)
    else:
        yield where


def check_size(where: Filter, depth: int = 1) -> None:
    """Raise ``InvalidRequest`` where *where* is nested deeper, or says more, than a server reads."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"a filter nested more than {MAX_DEPTH} levels deep; write it flatter")
    if isinstance(where, (AllOf, AnyOf)):
        for part in where.parts:
            check_size(part, depth + 1)
    if depth > 1:
        return
    leaves = list(conditions(where))
    if len(leaves) > MAX_PARTS:
        raise InvalidRequest(f"a filter of {len(leaves):,} conditions; at most {MAX_PARTS} are read: filter the answer")
    values = sum(len(leaf.values) for leaf in leaves if isinstance(leaf, OneOf))
    if values > MAX_VALUES:
        raise InvalidRequest(f"a filter with {values:,} values; at most {MAX_VALUES:,} are read: filter the answer")


# As JSON


def to_document(where: Filter) -> list[Any]:
    """Return *where* as the JSON list that ``from_document`` reads."""
    match where:
        case Compare(column, op, value):
            return [op, column, to_tagged(value)]
        case OneOf(column, values):
            return ["in", column, [to_tagged(value) for value in values]]
        case IsNull(column, negated):
            return ["is_not_null" if negated else "is_null", column]
        case AllOf(parts) | AnyOf(parts):
            return ["and" if isinstance(where, AllOf) else "or", *map(to_document, parts)]


def from_document(document: object, depth: int = 1) -> Filter:
    """Return the filter in *document*; ``InvalidRequest`` for what is none, or is larger than a server reads."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"a filter nested more than {MAX_DEPTH} levels deep; write it flatter")
    match document:
        case ["and" | "or" as word, *parts]:
            if len(parts) > MAX_PARTS:
                raise InvalidRequest(f"a filter of {len(parts):,} conditions; at most {MAX_PARTS} are read: filter the answer")
            inner = tuple(from_document(part, depth + 1) for part in parts)
            return AllOf(inner) if word == "and" else AnyOf(inner)
        case ["is_null" | "is_not_null" as word, str(column)]:
            return IsNull(column, word == "is_not_null")
        case ["in", str(column), list(values)]:
            return OneOf(column, tuple(map(_untagged, values)))
        case [str(op), str(column), value] if op in OPS:
            return Compare(column, op, _untagged(value))  # type: ignore[arg-type]  # checked above
    raise InvalidRequest(f"{document!r:.60} is no filter; {_WRITTEN}")


def _untagged(document: object) -> Any:
    if isinstance(document, dict) and not (len(document) == 1 and _TAGS.issuperset(document)):
        raise InvalidRequest(f"{document!r:.60} is no value; a tagged one is one of {', '.join(sorted(_TAGS))}")
    try:
        return from_tagged(document)
    except (ValueError, AttributeError) as error:
        raise InvalidRequest(f"{document!r:.60} is no value: {str(error)[:90]}") from error


# Checks


def _check_column(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT:
        raise InvalidRequest(f"a filter names a column, not {name!r:.60}")


def _parts(parts: Sequence[Filter]) -> tuple[Filter, ...]:
    listed = tuple(parts)
    if not listed or not all(isinstance(part, FILTERS) for part in listed):
        raise InvalidRequest(f"'and' and 'or' join one filter or more, not {listed!r:.60}")
    return listed


def _checked(value: object) -> Value:
    """Return *value* as it is kept; ``InvalidRequest`` for a type or a size that no column is compared with."""
    if isinstance(value, datetime):
        return _instant(value)
    if isinstance(value, (bool, float, date)):
        return value
    if isinstance(value, int):
        if not _LEAST_INT <= value <= _MOST_INT:
            raise InvalidRequest(f"the whole number {value!r:.40} has more than 64 bits")
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT or not _travels(value):
            raise InvalidRequest(f"the text {value!r:.60} has more than {MAX_TEXT:,} characters, or such as cannot travel")
        return value
    raise InvalidRequest(f"{value!r:.60} is no value of a filter; one is a bool, int, float, str, date or instant")


def _instant(value: datetime) -> datetime:
    try:
        if value.tzinfo is not None and value.utcoffset() is not None:
            return value.astimezone(UTC)
    except (OverflowError, ValueError) as error:
        raise InvalidRequest(f"the instant {value!s:.40} lies, in UTC, outside of the years 1 to 9999") from error
    raise InvalidRequest(f"the instant {value!s:.40} has no time zone; give it one")


def _travels(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _shown(value: Value) -> str:
    return str(value) if isinstance(value, date) else repr(value)[:40]
