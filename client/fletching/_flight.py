"""The Flight plane: one connection per cache, errors rebuilt from their codes. The only module that speaks Flight."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as fl

from fletching._forking import check_usable, note_closed, watch
from fletching._parts import LargeAnswer, may_be_large
from fletching._transport import Answer, Unacknowledged
from fletching_schemas import TABLE_ACTIONS, Action, ReadInfo, ReadRequest, WriteRequest, WriteResult, headers
from fletching_schemas.errors import Error, InvalidRequest, ServerUnreachable, SourceTimeout, error_from_code
from fletching_schemas.requests import action_body

_WRITE_BATCH_ROWS: Final = 65_536

_MOST_PARTS: Final = 8  # of one answer at a time: more connections than that gain nothing

# Polars would copy misaligned buffers one by one; pyarrow aligns them in one pass. Most arrive aligned, and are left alone.
_ALIGNED: Final = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)


def _without_proxy(address: str) -> list[tuple[str, int]]:
    """Return the option that keeps gRPC from asking the proxy of $http_proxy for this very machine, as it would."""
    host = urlsplit(address).hostname or ""
    return [("grpc.enable_http_proxy", 0)] if host in {"", "localhost", "::1"} or host.startswith("127.") else []


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode()


def _options(timeout: float, compression: str | None) -> fl.FlightCallOptions:
    """Return the options of every call: what is received is aligned, and compressed both ways where that is asked for."""
    if compression is None:
        return fl.FlightCallOptions(timeout=timeout, read_options=_ALIGNED)
    name = headers.check_compression(compression)
    writing = pa.ipc.IpcWriteOptions(compression=name)
    asked = [_header(headers.COMPRESSION, name)]
    return fl.FlightCallOptions(timeout=timeout, read_options=_ALIGNED, write_options=writing, headers=asked)


def _most_endpoints(told: bytes) -> int:
    """Return how many endpoints a flight of this server may have, by what it says beside one; 1 where it says nothing."""
    try:
        return int(json.loads(told)["endpoints"])
    except (ValueError, KeyError, TypeError):  # somebody else's server, or an older one
        return 1


class FlightTransport:
    """The five calls over Flight."""

    def __init__(self, address: str, timeout: float, compression: str | None = None) -> None:
        self.address = address
        self._timeout = timeout
        self._options = _options(timeout, compression)
        self._planning = fl.FlightCallOptions(timeout=timeout, headers=[_header(headers.ENDPOINTS, str(_MOST_PARTS))])
        self._may_divide = True  # until the server says that it never does
        self._lock = threading.Lock()
        self._client: fl.FlightClient | None = None
        watch(self)

    def _connected(self) -> fl.FlightClient:
        """Return the connection, made anew where there is none."""
        check_usable()
        with self._lock:
            if self._client is None:
                self._client = self._another()
            return self._client

    def _another(self, *more: tuple[str, int]) -> fl.FlightClient:
        try:
            return fl.FlightClient(self.address, generic_options=[*_without_proxy(self.address), *more])
        except (pa.ArrowException, ValueError) as error:
            raise InvalidRequest(f"{self.address!r} is not an address; write grpc://HOST:PORT or grpc+unix:///PATH") from error

    def drop_connection(self) -> bool:
        """Let go of the connection and tell whether there was one; the next call makes another."""
        with self._lock:
            had, self._client = self._client is not None, None
        if had:
            note_closed()
        return had

    def arrive_in_child(self) -> None:
        """Take a new lock: the old one may be held by a thread that only the parent has."""
        self._lock = threading.Lock()

    def read(self, request: ReadRequest) -> Answer:
        """Return the answer; the request itself is the ticket, so this is one round trip.

        Before an answer that may be large the server is asked whether it comes in parts, unless it never divides.
        """
        return LargeAnswer(self, request) if self._may_divide and may_be_large(request) else self.whole(request)

    def whole(self, request: ReadRequest) -> FlightAnswer:
        """Return the answer as one stream."""
        try:
            reader = self._connected().do_get(fl.Ticket(request.to_bytes()), self._options)
            return FlightAnswer(self, request, reader)
        except (fl.FlightError, pa.ArrowException) as error:
            raise self.translated(error) from None

    def tickets(self, request: ReadRequest) -> list[bytes]:
        """Return the tickets of the parts of an answer, in order; none where the server cannot say, and reading will."""
        try:
            info = self._connected().get_flight_info(fl.FlightDescriptor.for_command(request.to_bytes()), self._planning)
        except (fl.FlightError, pa.ArrowException):
            return []
        self._may_divide = _most_endpoints(info.app_metadata) > 1
        return [endpoint.ticket.ticket for endpoint in info.endpoints]

    def part(self, request: ReadRequest, ticket: bytes) -> FlightAnswer:
        """Return one part, by a connection of its own: one connection moves its streams' bytes in turn."""
        connection = self._another(("grpc.use_local_subchannel_pool", 1))
        try:
            return FlightAnswer(self, request, connection.do_get(fl.Ticket(ticket), self._options), connection)
        except (fl.FlightError, pa.ArrowException) as error:
            connection.close()
            raise self.translated(error) from None

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once the server has acknowledged *rows* as durable."""
        announced = replace(request, rows=rows.num_rows)
        descriptor = fl.FlightDescriptor.for_command(announced.to_bytes())
        try:
            writer, metadata = self._connected().do_put(descriptor, rows.schema, self._options)
            return self._put(writer, metadata, rows)
        except (fl.FlightError, pa.ArrowException) as error:
            raise self.translated(error) from None

    @staticmethod
    def _put(writer: fl.FlightStreamWriter, metadata: fl.FlightMetadataReader, rows: pa.Table) -> WriteResult:
        try:
            writer.write_table(rows, _WRITE_BATCH_ROWS)
            writer.done_writing()
            acknowledged = metadata.read()
        finally:
            writer.close()  # where the server refused, this raises its reason in place of "stream closed"
        if acknowledged is None:
            raise Unacknowledged("the server ended the write without acknowledging it; write again with the same key")
        return WriteResult.from_bytes(acknowledged.to_pybytes())

    def schema(self, dataset: str) -> pa.Schema:
        """Return the schema of *dataset*."""
        descriptor = fl.FlightDescriptor.for_command(ReadRequest(dataset).to_bytes())
        try:
            try:
                return self._connected().get_schema(descriptor, self._options).schema
            except pa.ArrowException:  # pyarrow's server loses the error of this call; that of the next it tells
                return self._connected().get_flight_info(descriptor, self._options).schema
        except (fl.FlightError, pa.ArrowException) as error:
            raise self.translated(error) from None

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers."""
        try:
            results = list(self._connected().do_action(fl.Action(action.value, action_body(body)), self._options))
        except (fl.FlightError, pa.ArrowException) as error:
            raise self.translated(error) from None
        raw = results[0].body
        if action in TABLE_ACTIONS:
            return pa.ipc.open_stream(raw).read_all()
        answer: dict[str, Any] = json.loads(raw.to_pybytes())
        return answer

    def translated(self, error: Exception) -> Error:
        """Return our error for one of pyarrow's: by the code it carries, else by what its status says."""
        extra = getattr(error, "extra_info", b"")
        if extra:
            try:
                told = json.loads(extra)
                retry_at = told.get("retry_at")
                return error_from_code(
                    str(told["code"]), str(told["message"]), datetime.fromisoformat(retry_at) if retry_at else None
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                pass  # somebody else's server
        text = (str(error).splitlines() or [type(error).__name__])[0][:500]
        if isinstance(error, fl.FlightTimedOutError):
            return SourceTimeout(f"{self.address} did not answer within {self._timeout:g} s (timeout=...): {text}")
        if isinstance(error, fl.FlightUnavailableError):
            self.drop_connection()  # gRPC would wait longer and longer before it tries again; a new one tries at once
            return ServerUnreachable(
                f"nobody answers at {self.address}; start a server with `fletching serve`, or check the address ({text})"
            )
        return Error(f"{self.address} answered: {text}")

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                note_closed()
            self._client = None


class FlightAnswer:
    """A stream under way."""

    def __init__(
        self,
        transport: FlightTransport,
        request: ReadRequest,
        reader: fl.FlightStreamReader,
        connection: fl.FlightClient | None = None,
    ) -> None:
        """Read from *reader*; *connection*, where it is this stream's own, ends with ``table``."""
        self.info = ReadInfo(request.dataset, "flight")
        self._transport, self._reader, self._connection = transport, reader, connection
        self._with_info = request.info
        self._ended = False

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema; asking waits for the server's first word, so whoever reads all rows at once does not ask."""
        try:
            return self._reader.schema
        except (fl.FlightError, pa.ArrowException) as error:
            raise self._transport.translated(error) from None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for chunk in self._chunks():
                if chunk.app_metadata is not None:
                    self.info = ReadInfo.from_bytes(chunk.app_metadata.to_pybytes())
                if chunk.data.num_rows:
                    yield chunk.data
        finally:
            self.close()

    def table(self) -> pa.Table:
        """Return all rows, in place of iterating."""
        try:
            # pyarrow turns a cancelled read_all() into Ctrl-C for the whole process, and a part may be cancelled by another.
            if self._with_info or self._connection is not None:
                return pa.Table.from_batches(list(self), schema=self.schema)
            table = self._reader.read_all()
        except (fl.FlightError, pa.ArrowException) as error:
            raise self._transport.translated(error) from None
        finally:
            if self._connection is not None:
                self._connection.close()
        self._ended = True
        return table

    def _chunks(self) -> Iterator[fl.FlightStreamChunk]:
        while not self._ended:
            try:
                chunk = self._reader.read_chunk()
            except StopIteration:
                self._ended = True
                return
            except (fl.FlightError, pa.ArrowException) as error:
                raise self._transport.translated(error) from None
            yield chunk

    def close(self) -> None:
        """Stop the stream where it has not ended: the server lets go of what it holds for it."""
        if not self._ended:
            self._ended = True
            self._reader.cancel()
