"""One call of a library's function through the cache, and what its answer tells about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Self, get_args

from fletching_schemas.errors import InvalidRequest
from fletching_schemas.requests import MAX_AGE_SECONDS, PROFILES, OnMiss
from fletching_schemas.tagged import from_tagged, to_tagged

MAX_ARGUMENT_BYTES: Final = 64 * 1024
MAX_FUNCTION_LENGTH: Final = 200


@dataclass(frozen=True)
class CallRequest:
    """Which function with which arguments, and how old its answer may be.

    ``args`` and ``kwargs`` hold JSON values; ``asking`` makes them from Python's. ``source`` None: the only one that can be
    called. ``function`` None asks for the table of functions. ``max_age`` (seconds) or ``profile`` replace the freshness that
    the source gives the function.
    """

    function: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    max_age: float | None = None
    profile: str | None = None
    on_miss: OnMiss = "fill"

    def __post_init__(self) -> None:
        _check_name(self.function)
        if self.source is not None and not isinstance(self.source, str):
            raise InvalidRequest(f"source={self.source!r:.40}; it is the name of a source")
        if self.on_miss not in get_args(OnMiss):
            raise InvalidRequest(f"on_miss={self.on_miss!r:.40}; it is one of {', '.join(get_args(OnMiss))}")
        if self.profile is not None and self.profile not in PROFILES:
            raise InvalidRequest(f"profile={self.profile!r:.40}; it is one of {', '.join(PROFILES)}")
        age = self.max_age
        if age is not None and not (type(age) in {int, float} and 0 <= age <= MAX_AGE_SECONDS):
            raise InvalidRequest(f"max_age={age!r:.40}; it is a number of seconds, 0 to {MAX_AGE_SECONDS:.0e}")
        _check_arguments(self.args, self.kwargs)

    @classmethod
    def asking(cls, function: str, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> Self:
        """Return the request for *function* with Python's *args* and *kwargs*; dates and times travel too."""
        try:
            return cls(function, to_tagged(list(args)), {name: to_tagged(value) for name, value in kwargs.items()}, **options)
        except TypeError as error:
            raise InvalidRequest(
                f"{function}: {error}; arguments are text, numbers, booleans, None, dates, times, and lists or dicts of them"
            ) from None

    @property
    def tolerated_age(self) -> float | None:
        """The oldest acceptable answer in seconds where the request says so, else None."""
        return self.max_age if self.max_age is not None else PROFILES.get(self.profile or "")

    def body(self) -> dict[str, Any]:
        """Return the request as the body of the action ``call``, without what was left out."""
        asked = {name: value for name, value in vars(self).items() if value is not None and name not in {"args", "kwargs"}}
        return asked | {"arguments": {"args": list(self.args), "kwargs": dict(self.kwargs)}}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """Return the request in the body of an action; its ``arguments`` are ``{"args": [...], "kwargs": {...}}``."""
        asked = dict(body)
        arguments = asked.pop("arguments", None) or {}
        known = {item.name for item in fields(cls)} - {"args", "kwargs"}
        if unknown := sorted(asked.keys() - known):
            raise InvalidRequest(f"unknown argument {ascii(unknown)[:90]}; a call has {', '.join(sorted(known))}, arguments")
        if not isinstance(arguments, Mapping) or arguments.keys() - {"args", "kwargs"}:
            raise InvalidRequest('arguments is an object {"args": [...], "kwargs": {...}}: by position, and by name')
        return cls(**asked, **arguments)


def _check_name(function: object) -> None:
    if function is None:
        return
    if not isinstance(function, str) or len(function) > MAX_FUNCTION_LENGTH or not function.isidentifier():
        raise InvalidRequest(f"{function!r:.90} is not the name of a function")


def _check_arguments(args: object, kwargs: object) -> None:
    """Refuse what is not JSON, what is too large, and tags that nobody could read."""
    if isinstance(args, str) or not isinstance(args, Sequence) or not isinstance(kwargs, Mapping):
        raise InvalidRequest("args is a list of values, kwargs an object of values by name")
    if wrong := [name for name in kwargs if not isinstance(name, str)]:
        raise InvalidRequest(f"an argument's name is text, not {wrong[0]!r:.40}")
    asked = [list(args), dict(kwargs)]
    try:
        size = len(json.dumps(asked, allow_nan=False))
        from_tagged(asked)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the arguments cannot travel as JSON: {str(error)[:200]}") from None
    if size > MAX_ARGUMENT_BYTES:
        raise InvalidRequest(f"arguments of {size:,} bytes; at most {MAX_ARGUMENT_BYTES:,}")


@dataclass(frozen=True)
class CallInfo:
    """What an answer tells about itself; it travels in the schema metadata of the answer's table.

    ``stale``: older than asked for, served because the source could not be asked. ``cached``: nobody was asked for it.
    """

    source: str
    version: str
    fetched_at: datetime
    age_seconds: float
    stale: bool
    cached: bool

    def to_metadata(self) -> dict[str, str]:
        """Return the entries of the schema's metadata."""
        return {
            "source": self.source,
            "version": self.version,
            "fetched_at": self.fetched_at.isoformat(),
            "age_seconds": repr(self.age_seconds),
            "stale": json.dumps(self.stale),
            "cached": json.dumps(self.cached),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> Self:
        """Return what ``to_metadata`` wrote."""
        told = {item.name: metadata[item.name.encode()].decode() for item in fields(cls)}
        return cls(
            told["source"],
            told["version"],
            datetime.fromisoformat(told["fetched_at"]),
            float(told["age_seconds"]),
            told["stale"] == "true",
            told["cached"] == "true",
        )
