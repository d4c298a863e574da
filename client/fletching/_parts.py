"""Large answers: where the server offers one in parts they are fetched side by side, and put together in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Final, Protocol

import pyarrow as pa

from fletching._transport import Answer
from fletching_schemas import ReadInfo, ReadRequest
from fletching_schemas.errors import AnswerChanged, Overloaded
from fletching_schemas.replies import put_together

_MANY_SYMBOLS: Final = 200  # below, an answer is rarely so large that asking for parts pays for the round trip


def may_be_large(request: ReadRequest) -> bool:
    """Return whether *request* may have an answer that a server divides."""
    plain = request.adjust is None and request.where is None and request.limit is None
    return plain and (request.symbols is None or len(request.symbols) >= _MANY_SYMBOLS)


class Divides(Protocol):
    """What a plane must do besides, for answers in parts."""

    def whole(self, request: ReadRequest) -> Answer:
        """Return the answer as one stream."""
        ...

    def tickets(self, request: ReadRequest) -> list[bytes]:
        """Return the tickets of the parts of an answer, in order; none or one where it comes whole."""
        ...

    def part(self, request: ReadRequest, ticket: bytes) -> Answer:
        """Return one part, by a connection of its own."""
        ...


class LargeAnswer:
    """An answer that is fetched in parts where it is wanted as a table, and streamed whole where batch by batch."""

    def __init__(self, plane: Divides, request: ReadRequest) -> None:
        self._plane, self._request = plane, request
        self._info: ReadInfo | None = None

    @cached_property
    def _whole(self) -> Answer:
        return self._plane.whole(self._request)

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch."""
        return self._whole.schema

    @property
    def info(self) -> ReadInfo:
        """What the read did, all parts together."""
        return self._whole.info if self._info is None else self._info

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter(self._whole)

    def table(self) -> pa.Table:
        """Return all rows, in place of iterating.

        Parts that no longer fit together, because somebody wrote in between, or that are too many streams for the server,
        are dropped for one whole answer: the caller never sees a difference.
        """
        tickets = [] if "_whole" in vars(self) else self._plane.tickets(self._request)
        if len(tickets) > 1:
            with suppress(AnswerChanged, Overloaded):
                return self._fetched(tickets)
        return self._whole.table()

    def _fetched(self, tickets: Sequence[bytes]) -> pa.Table:
        parts: list[Answer] = []
        failed = threading.Event()

        def fetch(ticket: bytes) -> tuple[pa.Table, ReadInfo]:
            part = self._plane.part(self._request, ticket)
            parts.append(part)
            if failed.is_set():  # between our start and the line above
                part.close()
            return part.table(), part.info

        with ThreadPoolExecutor(len(tickets), thread_name_prefix="fletching-part") as threads:
            fetching = [threads.submit(fetch, ticket) for ticket in tickets]
            try:
                fetched = [one.result() for one in fetching]
            except BaseException:  # the others are not worth waiting for
                failed.set()
                for part in parts:
                    part.close()
                raise
        self._info = put_together([info for _, info in fetched])
        return pa.concat_tables([table for table, _ in fetched])

    def close(self) -> None:
        """Stop early where it is streamed; parts have ended when ``table`` returns."""
        if "_whole" in vars(self):
            self._whole.close()
