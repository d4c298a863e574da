"""The libraries behind sources: which functions they have, what is told about each, and arguments bound to parameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import pyarrow as pa

from fletching_schemas.calls import CallRequest
from fletching_schemas.errors import InvalidRequest, SourceUnavailable, UnknownFunction
from fletching_server.desk import Desk
from fletching_server.sources.protocol import FunctionLister

DEFAULT_SOURCE: Final = "akshare"
_MOST_REMEMBERED: Final = 5_000


@dataclass(frozen=True)
class Library:
    """What a source tells about a function: asked once, for it does not change while the engine lives."""

    version: str | None
    fresh_seconds: float
    parameters: Sequence[str] | None


class Libraries:
    """The sources of one engine whose functions can be called."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._known: dict[tuple[str, str], Library] = {}
        self._listings: dict[str, frozenset[str]] = {}

    def source(self, name: str | None) -> str:
        """Return *name*, or that of the source that a call means which names none."""
        callers = self._desk.callers
        if name is not None:
            return name
        if len(callers) > 1 and DEFAULT_SOURCE not in callers:
            raise InvalidRequest(f"several sources have functions: {', '.join(sorted(callers))}; name one as source=")
        return next(iter(callers)) if len(callers) == 1 else DEFAULT_SOURCE

    def look_up(self, name: str, function: str) -> Library:
        """Return what the source tells about *function*; without the source, kept answers are served as old ones."""
        if (source := self._desk.callers.get(name)) is None:
            return Library(None, 0.0, None)
        if (known := self._known.get((name, function))) is not None:
            return known
        self._check_function(name, function)

        def look() -> Library:
            listed = source.parameters(function) if isinstance(source, FunctionLister) else None
            return Library(str(source.version()), float(source.freshness(function)), listed)

        library: Library = self.ask(name, f"{name}, asked about {function}", look)
        if len(self._known) >= _MOST_REMEMBERED:  # of a source that does not list its functions, any name may come
            self._known.clear()
        self._known[name, function] = library
        return library

    def _check_function(self, name: str, function: str) -> None:
        listed = self._listed(name)
        if listed and function not in listed:
            near = difflib.get_close_matches(function, listed, 3)
            hint = f"the nearest: {', '.join(near)}" if near else "cache.functions() lists them"
            raise UnknownFunction(f"{name} has no function {function}; {hint}")

    def _listed(self, name: str) -> frozenset[str]:
        """Return the functions that the source *name* lists; none where it does not tell."""
        if (known := self._listings.get(name)) is None:
            source = self._desk.callers[name]
            lister = source if isinstance(source, FunctionLister) else None
            told: Sequence[str] = self.ask(name, f"{name}.functions()", lister.functions) if lister else ()
            known = self._listings[name] = frozenset(told)
        return known

    def functions(self, source: str | None) -> pa.Table:
        """Return the table of functions of *source*; the library's version is in its metadata."""
        schema = pa.schema([("source", pa.string()), ("function", pa.string())])
        if source is None and not self._desk.callers:
            return schema.empty_table()
        name = self.source(source)
        if (caller := self._desk.callers.get(name)) is None:
            raise SourceUnavailable(self.nobody(name))
        version = self.ask(name, f"{name}.version()", caller.version)
        listed = sorted(self._listed(name))
        return pa.table([[name] * len(listed), listed], schema=schema.with_metadata({"version": str(version)}))

    def nobody(self, name: str) -> str:
        """Return what to tell whoever needs the source *name*, which is not there."""
        there = ", ".join(sorted(self._desk.callers)) or "none"
        return f"no source {name!r:.40} whose functions can be called is configured (there are: {there}); add --source akshare"

    def ask(self, name: str, what: str, call: Callable[[], Any]) -> Any:
        """Return what *call* gives, by the desk's rules for the source *name*."""
        return self._desk.look(cast("Any", self._desk.callers[name]), what, call)


def bound(function: str, parameters: Sequence[str] | None, request: CallRequest) -> dict[str, Any]:
    """Return all arguments by name, so that a call by position and one by name share an answer."""
    if parameters is None:
        if request.args:
            raise InvalidRequest(f"{function}: the source does not tell its parameters; pass all arguments by name")
        return dict(request.kwargs)
    has = f"it has {', '.join(parameters)}" if parameters else "it has none"
    if len(request.args) > len(parameters):
        raise InvalidRequest(f"{function} was given {len(request.args)} arguments by position; {has}")
    named = dict(zip(parameters, request.args, strict=False))
    if twice := sorted(named.keys() & request.kwargs.keys()):
        raise InvalidRequest(f"{function} was given {', '.join(twice)} by position and by name")
    if unknown := sorted(request.kwargs.keys() - set(parameters)):
        raise InvalidRequest(f"{function} has no parameter {ascii(', '.join(unknown))[:90]}; {has}")
    return named | dict(request.kwargs)
