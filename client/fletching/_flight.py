"""The Flight plane: one connection per process, errors rebuilt from their codes. The only module that speaks Flight."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.flight as fl

from fletching._cache import Cache
from fletching_schemas import TABLE_ACTIONS, Action, ReadInfo, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.errors import Error, InvalidRequest, ServerUnreachable, SourceTimeout, error_from_code
from fletching_schemas.requests import action_body

DEFAULT_URL: Final = "grpc://127.0.0.1:8815"
_WRITE_BATCH_ROWS: Final = 65_536

# Buffers arrive at odd addresses, which Polars would copy one by one; pyarrow aligns them in one pass.
_ALIGNED: Final = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)


def connect(url: str | None = None, *, timeout: float = 300.0) -> Cache:
    """Return a cache served at *url* (None: ``$FLETCHING_URL``, else ``grpc://127.0.0.1:8815``).

    ``grpc://HOST:PORT`` or ``grpc+unix:///PATH``. *timeout* bounds each call in seconds, fetching from upstream included.
    Raises ``ServerUnreachable`` where nobody answers, ``InvalidRequest`` for an address that is none.
    """
    address = url or os.environ.get("FLETCHING_URL") or DEFAULT_URL
    transport = FlightTransport(address, timeout)
    try:
        transport.act(Action.HEALTH, {})
    except BaseException:
        transport.close()
        raise
    return Cache(transport)


class FlightTransport:
    """The five calls over Flight."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self._timeout = timeout
        self._lock = threading.Lock()
        self._client: fl.FlightClient | None = None
        self._process = 0

    def _connected(self) -> fl.FlightClient:
        """Return this process's own client: a forked child must not use its parent's connection."""
        with self._lock:
            if self._client is None or self._process != os.getpid():
                try:
                    self._client = fl.FlightClient(self.address)
                except (pa.ArrowException, ValueError) as error:
                    raise InvalidRequest(
                        f"{self.address!r} is not an address; write grpc://HOST:PORT or grpc+unix:///PATH"
                    ) from error
                self._process = os.getpid()
            return self._client

    def _options(self) -> fl.FlightCallOptions:
        return fl.FlightCallOptions(timeout=self._timeout, read_options=_ALIGNED)

    def read(self, request: ReadRequest) -> FlightAnswer:
        """Return the answer; the request itself is the ticket, so this is one round trip."""
        try:
            reader = self._connected().do_get(fl.Ticket(request.to_bytes()), self._options())
            return FlightAnswer(self, request, reader, reader.schema)
        except (fl.FlightError, pa.ArrowException) as error:
            raise self.translated(error) from None

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once the server has acknowledged *rows* as durable."""
        descriptor = fl.FlightDescriptor.for_command(request.to_bytes())
        try:
            writer, metadata = self._connected().do_put(descriptor, rows.schema, self._options())
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
            raise Error("the server ended the write without acknowledging it; write again (mode='upsert' is safe to repeat)")
        return WriteResult.from_bytes(acknowledged.to_pybytes())

    def schema(self, dataset: str) -> pa.Schema:
        """Return the schema of *dataset*."""
        descriptor = fl.FlightDescriptor.for_command(ReadRequest(dataset).to_bytes())
        try:
            try:
                return self._connected().get_schema(descriptor, self._options()).schema
            except pa.ArrowException:  # pyarrow's server loses the error of this call; that of the next it tells
                return self._connected().get_flight_info(descriptor, self._options()).schema
        except (fl.FlightError, pa.ArrowException) as error:
            raise self.translated(error) from None

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers."""
        try:
            results = list(self._connected().do_action(fl.Action(action.value, action_body(body)), self._options()))
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
                return error_from_code(str(told["code"]), str(told["message"]))
            except (ValueError, KeyError, TypeError):
                pass  # somebody else's server
        text = str(error).splitlines()[0][:500]
        if isinstance(error, fl.FlightTimedOutError):
            return SourceTimeout(f"{self.address} did not answer within {self._timeout:g} s (timeout=...): {text}")
        if isinstance(error, fl.FlightUnavailableError):
            return ServerUnreachable(
                f"nobody answers at {self.address}; start a server with `fletching serve`, or check the address ({text})"
            )
        return Error(f"{self.address} answered: {text}")

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock:
            if self._client is not None and self._process == os.getpid():
                self._client.close()
            self._client = None


class FlightAnswer:
    """A stream under way."""

    def __init__(
        self, transport: FlightTransport, request: ReadRequest, reader: fl.FlightStreamReader, schema: pa.Schema
    ) -> None:
        self.schema = schema
        self.info = ReadInfo(request.dataset, "flight")
        self._transport, self._reader = transport, reader
        self._ended = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for chunk in self._chunks():
                if chunk.app_metadata is not None:
                    self.info = ReadInfo.from_bytes(chunk.app_metadata.to_pybytes())
                if chunk.data.num_rows:
                    yield chunk.data
        finally:
            self.close()

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
