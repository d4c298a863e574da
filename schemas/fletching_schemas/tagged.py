"""JSON for Python values that JSON has no word for: a date becomes ``{"$date": "2024-03-20"}``, and comes back as a date.

Types are kept exactly: an int stays an int, a tuple a tuple. Who knows more types than the standard library's passes hooks.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

Tagger = Callable[[Any], dict[str, Any] | None]
Untagger = Callable[[str, Any], Any]

_BASES: Final[tuple[type[Any], ...]] = (str, int, float, list, tuple, dict)
_DEPTH: Final = "a value that is nested hundreds of levels deep cannot travel"


def to_tagged(value: Any, other: Tagger | None = None) -> Any:
    """Return *value* as JSON values; *other* is asked for every type that is not known here, None: neither does it.

    A subclass of str, int, float, list, tuple or dict travels as what it is a subclass of. ``TypeError`` names a type that
    cannot travel.
    """
    try:
        return _tag(value, other)
    except RecursionError:
        raise TypeError(_DEPTH) from None


def _tag(value: Any, other: Tagger | None) -> Any:
    kind = type(value)
    if value is None or kind in {str, bool, int}:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return [_tag(item, other) for item in value]
    if (write := _WRITERS.get(kind)) is not None:
        return write(value, other)
    if other is not None and (document := other(value)) is not None:
        return document
    for base in _BASES:
        if isinstance(value, base):
            return _tag(base(value), other)
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__} cannot travel: {' '.join(repr(value).split())[:60]}")


def _tag_dict(value: dict[Any, Any], other: Tagger | None) -> dict[str, Any]:
    plain = all(type(key) is str for key in value)
    if plain and not (len(value) == 1 and next(iter(value)).startswith("$")):
        return {key: _tag(item, other) for key, item in value.items()}
    return {"$dict": [[_tag(key, other), _tag(item, other)] for key, item in value.items()]}


def _tag_moment(value: datetime | time) -> list[Any]:
    return [value.replace(tzinfo=None, fold=0).isoformat(), zone_to_text(value.tzinfo), value.fold]


_WRITERS: Final[dict[type, Callable[[Any, Tagger | None], dict[str, Any]]]] = {
    dict: _tag_dict,
    tuple: lambda value, other: {"$tuple": [_tag(item, other) for item in value]},
    set: lambda value, other: {"$set": [_tag(item, other) for item in sorted(value, key=repr)]},
    frozenset: lambda value, other: {"$frozenset": [_tag(item, other) for item in sorted(value, key=repr)]},
    bytes: lambda value, _: {"$bytes": base64.b64encode(value).decode()},
    date: lambda value, _: {"$date": value.isoformat()},
    datetime: lambda value, _: {"$datetime": _tag_moment(value)},
    time: lambda value, _: {"$time": _tag_moment(value)},
    timedelta: lambda value, _: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value, _: {"$decimal": str(value)},
    complex: lambda value, other: {"$complex": [_tag(value.real, other), _tag(value.imag, other)]},
}


def from_tagged(document: Any, other: Untagger | None = None) -> Any:
    """Return the value that ``to_tagged`` wrote; *other* is called with each tag that is not known here and its content.

    ``ValueError`` for a tag that nobody knows, or that holds what it cannot hold.
    """
    try:
        return _untag(document, other)
    except RecursionError:
        raise ValueError(_DEPTH) from None
    except (TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"a tagged value holds what it cannot hold: {str(error)[:200]}") from error


def _untag(document: Any, other: Untagger | None) -> Any:
    if isinstance(document, list):
        return [_untag(item, other) for item in document]
    if not isinstance(document, dict):
        return document
    if len(document) == 1 and (tag := next(iter(document))).startswith("$"):
        return _read(tag, document[tag], other)
    return {key: _untag(item, other) for key, item in document.items()}


def _read(tag: str, held: Any, other: Untagger | None) -> Any:
    if (read := _READERS.get(tag)) is not None:
        return read(held)
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](_untag(item, other) for item in held)
    if tag == "$dict":
        return {_untag(key, other): _untag(item, other) for key, item in held}
    if tag == "$complex":
        return complex(*(_untag(item, other) for item in held))
    if other is None:
        raise ValueError(f"nobody here knows the tag {tag!r:.40}; use the same release on both sides")
    return other(tag, held)


def _datetime(held: list[Any]) -> datetime:
    text, zone, fold = held
    return datetime.fromisoformat(text).replace(tzinfo=zone_from_text(zone), fold=fold)


def _time(held: list[Any]) -> time:
    text, zone, fold = held
    return time.fromisoformat(text).replace(tzinfo=zone_from_text(zone), fold=fold)


_CONTAINERS: Final[dict[str, Callable[[Any], Any]]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$float": float,
    "$bytes": base64.b64decode,
    "$date": date.fromisoformat,
    "$datetime": _datetime,
    "$time": _time,
    "$timedelta": lambda held: timedelta(*held),
    "$decimal": Decimal,
}


def zone_to_text(zone: tzinfo | None) -> str | None:
    """Return a time zone as text: ``utc``, ``zone:Asia/Shanghai`` or ``offset:28800``; ``TypeError`` for other kinds."""
    if zone is None:
        return None
    if zone is UTC:
        return "utc"
    if isinstance(zone, ZoneInfo) and zone.key:
        return f"zone:{zone.key}"
    if isinstance(zone, timezone):
        return f"offset:{zone.utcoffset(None).total_seconds()!r}"
    raise TypeError(f"a time zone of {type(zone).__module__} cannot travel; use zoneinfo or datetime.timezone")


def zone_from_text(text: str | None) -> tzinfo | None:
    """Return the time zone that ``zone_to_text`` wrote."""
    if text is None:
        return None
    kind, _, rest = text.partition(":")
    if kind == "utc":
        return UTC
    return ZoneInfo(rest) if kind == "zone" else timezone(timedelta(seconds=float(rest)))
