"""What a plane must do for the client: five calls. The planes differ in how bytes move, never in what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn, Protocol

import pyarrow as pa

from fletching_schemas import Action, ReadInfo, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.errors import Error, InvalidRequest, ServerUnreachable


class Answer(Protocol):
    """A schema, then batches, then the info. Iterate once, or close."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch, known before any of them."""
        ...

    @property
    def info(self) -> ReadInfo:
        """What the read did; complete once the batches have ended."""
        ...

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...

    def table(self) -> pa.Table:
        """Return all rows, in place of iterating."""
        ...

    def close(self) -> None:
        """Stop early, and let go of what is held for the answer."""
        ...


class Transport(Protocol):
    """One plane."""

    @property
    def address(self) -> str:
        """Where the engine is, as shown to people."""
        ...

    def read(self, request: ReadRequest) -> Answer:
        """Return the answer to *request*; its rows move as it is iterated."""
        ...

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are durable."""
        ...

    def schema(self, dataset: str) -> pa.Schema:
        """Return the schema of *dataset*."""
        ...

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers: a table, or a JSON object."""
        ...

    def close(self) -> None:
        """Let go of the engine or the connection."""
        ...


_ATTEMPTS: Final = 3


def sent_once(transport: Transport, request: WriteRequest, rows: pa.Table) -> WriteResult:
    """Return what a write did; sent again where the connection broke, which is safe, as the server knows its key."""
    for attempt in range(_ATTEMPTS):
        try:
            return transport.write(request, rows)
        except (ServerUnreachable, Unacknowledged):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("not reached")


class Unacknowledged(Error):  # noqa: N818  # as its siblings
    """A write ended without a word: it may have been stored, or not."""


class Closed:
    """What a closed cache holds: every call says so, where another process may by now have the store."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _refuse(self, *_asked: object) -> NoReturn:
        raise InvalidRequest(f"this cache of {self.address} is closed; make another with fletching.connect or fletching.open")

    read = write = schema = act = _refuse

    def close(self) -> None:
        """Do nothing."""
