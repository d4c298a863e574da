"""One tree of errors, the same over every plane.

    Error
      InvalidRequest      (ValueError)           cannot be decoded, or asks for the impossible
        OutOfCalendar                            a date before the calendar's first session, or absurdly far ahead
      NotBuilt            (NotImplementedError)  an argument that this version does not serve yet
      UnknownDataset      (KeyError)             no source offers it and no table has that name
      UnknownColumn       (KeyError)             names the columns that exist
      UnknownSymbol       (KeyError)             names the nearest symbols that exist
      UnknownFunction     (AttributeError)       names the nearest functions that the source's library has
      NotCached           (LookupError)          on_miss="error", and some cells are not held
      HistoryGone         (LookupError)          as_of lies before what is kept of the past
      SourceError                                upstream could not deliver
        SourceUnavailable                        it failed, or none is configured; a retry may help
          SourceThrottled                        upstream throttles or bans us, or our own budget is spent: see retry_at
        SourceTimeout     (TimeoutError)         it did not answer within its deadline
        BadSourceData     (ValueError)           it answered, but not what the dataset promises
          SourceChanged                          its answers have another shape than this version knows
      StoreError
        StoreInUse                               another process has the store open
        StoreVersion                             written by an incompatible version
        StoreUnwritable   (OSError)              no permission, no room, or not a folder
        CorruptFile                              a checksum failed; the file has been set aside
      AnswerChanged                              rows changed between two parts of one answer; read again
      Overloaded                                 no memory for what was asked for, or too many streams at once
      ServerClosing                              draining: no new requests are taken
      ServerUnreachable   (ConnectionError)      nobody answers at that address
      ListenFailed        (OSError)              the server cannot listen there: in use, or not allowed
      InternalError                              a bug of ours; the server's log has the details

Every class has a ``code``: it is what travels, and what the other side rebuilds the class from. A message says what was
asked, what is there, and what to do.
"""

# ruff: noqa: N818 (the names are the public interface, and say what happened without the word Error)

from __future__ import annotations

from datetime import datetime

__all__ = [
    "AnswerChanged",
    "BadSourceData",
    "CorruptFile",
    "Error",
    "HistoryGone",
    "InternalError",
    "InvalidRequest",
    "ListenFailed",
    "NotBuilt",
    "NotCached",
    "OutOfCalendar",
    "Overloaded",
    "ServerClosing",
    "ServerUnreachable",
    "SourceChanged",
    "SourceError",
    "SourceThrottled",
    "SourceTimeout",
    "SourceUnavailable",
    "StoreError",
    "StoreInUse",
    "StoreUnwritable",
    "StoreVersion",
    "UnknownColumn",
    "UnknownDataset",
    "UnknownFunction",
    "UnknownSymbol",
    "copy_of",
    "error_from_code",
]


class Error(Exception):
    """Any failure that Fletching reports; ``str(error)`` is the whole message."""

    code = "error"

    def __init__(self, message: str = "", retry_at: datetime | None = None) -> None:
        """Say *message*; *retry_at* (UTC) is when asking again may help, where that is known."""
        super().__init__(message)
        self.retry_at = retry_at

    @property
    def message(self) -> str:
        """The text alone, without the quotes that ``KeyError`` would add."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message


class InvalidRequest(Error, ValueError):
    """The request cannot be decoded, or asks for the impossible."""

    code = "invalid_request"


class OutOfCalendar(InvalidRequest):
    """A date lies before the calendar's first session, or absurdly far ahead of today."""

    code = "out_of_calendar"


class NotBuilt(Error, NotImplementedError):
    """The argument is part of the interface, but this version does not serve it yet."""

    code = "not_built"


class UnknownDataset(Error, KeyError):
    """No source offers the dataset and no table has that name."""

    code = "unknown_dataset"


class UnknownColumn(Error, KeyError):
    """The dataset has no such column."""

    code = "unknown_column"


class UnknownSymbol(Error, KeyError):
    """Neither the source nor the store knows the symbol."""

    code = "unknown_symbol"


class UnknownFunction(Error, AttributeError):
    """The library behind the source has no such function."""

    code = "unknown_function"


class NotCached(Error, LookupError):
    """The read was asked to fail where cells are not held (``on_miss="error"``)."""

    code = "not_cached"


class HistoryGone(Error, LookupError):
    """The dataset cannot be read as of that moment: it did not exist, or its past is kept no longer."""

    code = "history_gone"


class SourceError(Error):
    """Upstream could not deliver what was missing; nothing was stored."""

    code = "source_error"


class SourceUnavailable(SourceError):
    """The source failed, or none is configured; a retry may help."""

    code = "source_unavailable"


class SourceThrottled(SourceUnavailable):
    """Upstream throttles or bans us, or our own budget for it is spent; ``retry_at`` says when to ask again."""

    code = "source_throttled"


class SourceTimeout(SourceError, TimeoutError):
    """The source did not answer within its deadline."""

    code = "source_timeout"


class BadSourceData(SourceError, ValueError):
    """The source answered with rows that its dataset does not allow."""

    code = "bad_source_data"


class SourceChanged(BadSourceData):
    """Upstream's answers have another shape than this version knows; retrying does not help."""

    code = "source_changed"


class StoreError(Error):
    """The folder that holds the data cannot be used as it is."""

    code = "store_error"


class StoreInUse(StoreError):
    """Another process has the store open; one process may have it at a time."""

    code = "store_in_use"


class StoreVersion(StoreError):
    """The store was written by an incompatible version."""

    code = "store_version"


class StoreUnwritable(StoreError, OSError):
    """The store's folder cannot be written: no permission, no room, or not a folder."""

    code = "store_unwritable"


class CorruptFile(StoreError):
    """A stored file fails its checksum; it has been set aside and is never served."""

    code = "corrupt_file"


class AnswerChanged(Error):
    """The rows changed after an answer was divided into parts, so the parts would not fit together; read again."""

    code = "answer_changed"


class Overloaded(Error):
    """The memory budget cannot hold what was asked for, or one client has too many streams under way."""

    code = "overloaded"


class ServerClosing(Error):
    """The server is draining and takes no new requests."""

    code = "server_closing"


class ServerUnreachable(Error, ConnectionError):
    """Nobody answers at the address."""

    code = "server_unreachable"


class ListenFailed(Error, OSError):
    """The server cannot listen at its address: it is in use, or not allowed."""

    code = "listen_failed"


class InternalError(Error):
    """A bug of ours; the server's log has the details, the client sees none of them."""

    code = "internal_error"


def _tree(root: type[Error]) -> list[type[Error]]:
    return [root] + [leaf for child in root.__subclasses__() for leaf in _tree(child)]


_BY_CODE = {kind.code: kind for kind in _tree(Error)}


def error_from_code(code: str, message: str, retry_at: datetime | None = None) -> Error:
    """Return the error that *code* names, or a plain ``Error`` for a code of a newer version."""
    return _BY_CODE.get(code, Error)(message, retry_at)


def copy_of(error: Error, message: str | None = None) -> Error:
    """Return *error* as a new object of our own class, with another *message* where one is given.

    One exception object must not be raised in many threads, and a class of a source's own may take other arguments.
    """
    return error_from_code(error.code, error.message if message is None else message, error.retry_at)
