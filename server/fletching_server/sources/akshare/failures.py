"""What a failure in the child means: banned, hung, unreachable, changed, or nothing there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fletching_schemas.errors import (
    SourceChanged,
    SourceError,
    SourceThrottled,
    SourceTimeout,
    SourceUnavailable,
)

_DROPPED: Final = frozenset(
    {
        "BrokenPipeError",
        "ConnectionAbortedError",
        "ConnectionResetError",
        "IncompleteRead",
        "RemoteDisconnected",
        "SSLEOFError",
        "SSLZeroReturnError",
    }
)
_CURL_DROPPED: Final = ("curl: (52)", "curl: (56)", "curl: (35)", "curl: (16)")  # empty reply, reset, TLS broken off, HTTP/2
_REFUSING: Final = frozenset({403, 412, 418, 429})
# How the library's parsers of Sina's scripts fail on a page that is none: an index, eval, or its own complaint.
_PARSERS: Final = frozenset({"IndexError", "SyntaxError", "NameError", "JSONDecodeError", "JSParseException", "JSEvalException"})


class NothingThere(SourceChanged):
    """The function failed the way it does where upstream has nothing: for an unknown symbol, or an empty range."""


def failure_error(failure: Mapping[str, Any], asked: str, version: str) -> SourceError:
    """Return the error that a *failure* reported by the child means."""
    classes, status, text = frozenset(failure["classes"]), failure.get("status"), str(failure["text"])
    who = f"{failure.get('host') or 'akshare'}, asked for {asked},"
    wait = f"you are throttled or banned; wait, and do not ask again at once ({text})"
    if classes & _DROPPED or any(mark in text for mark in _CURL_DROPPED):
        return SourceThrottled(f"{who} dropped the connection: {wait}")
    if any("Timeout" in name for name in classes):
        return SourceTimeout(f"{who} did not answer in time ({text})")
    if status in _REFUSING:
        return SourceThrottled(f"{who} answered HTTP {status}: {wait}")
    if classes & _PARSERS and (_is_page(failure) or "JSONDecodeError" in classes):
        return SourceThrottled(f"{who} answered a page where data is due: {wait}")
    if "TypeError" in classes and "NoneType" in text:
        return NothingThere(f"{who} has nothing: data is null ({text})")
    if "ValueError" in classes and "Length mismatch" in text and "0 elements" in text:
        return NothingThere(f"{who} has nothing in the range ({text})")
    if "OSError" in classes:  # the base of every error of requests, and of curl's
        return SourceUnavailable(f"{who} could not be reached, or failed ({text})")
    return SourceChanged(f"{who}: akshare {version} changed shape ({text})")


def _is_page(failure: Mapping[str, Any]) -> bool:
    begins = str(failure.get("begins") or "").lstrip().lower()
    return "html" in str(failure.get("type") or "") or begins.startswith(("<!doctype", "<html"))
