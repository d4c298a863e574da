"""The Flight edge: decode, call the engine, encode, translate. No logic lives here.

Nothing but ``Flight*Error`` leaves a handler: pyarrow sends the whole traceback of any other exception to the client.
What a call holds (leases, files) hangs on the call itself, whose end pyarrow reports exactly once, however it ends.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.flight as fl
import structlog

from fletching_schemas import ACTION_HELP, Action, PartRequest, ReadRequest, WriteRequest, headers
from fletching_schemas import errors as e
from fletching_schemas.datasets import decode_json
from fletching_schemas.requests import MAX_REQUEST_BYTES, ticket_from_bytes
from fletching_server.answering import Answer
from fletching_server.batches import aligned_note, tight
from fletching_server.engine import Engine
from fletching_server.failures import presentable
from fletching_server.flight_calls import Calls
from fletching_server.streams import Streams

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)

# What a status says to a client that does not know our codes; every other error travels as UNKNOWN with its code.
_STATUS: Final[dict[type[e.Error], type[fl.FlightError]]] = {
    e.SourceUnavailable: fl.FlightUnavailableError,
    e.SourceThrottled: fl.FlightUnavailableError,
    e.ServerClosing: fl.FlightUnavailableError,
    e.Overloaded: fl.FlightUnavailableError,
    e.AnswerChanged: fl.FlightUnavailableError,
    e.SourceTimeout: fl.FlightTimedOutError,
    e.InternalError: fl.FlightInternalError,
    e.CorruptFile: fl.FlightInternalError,
}
_MOST_TOLD_BYTES: Final = 6000  # errors travel in HTTP/2 headers, which gRPC refuses beyond 8 KB


# A notebook cell, a dashboard, a sweep send the same bytes again and again; what they mean never changes.
_PARSED_BYTES: Final = 1024
_parsed = functools.lru_cache(maxsize=4096)(ticket_from_bytes)


def to_flight_error(error: BaseException) -> fl.FlightError:
    """Return what travels for *error*: message, status and code; what is not ours becomes an ``InternalError``."""
    if isinstance(error, fl.FlightError):
        return error
    error = presentable(error)
    message = _told(error.message)
    told = {"code": error.code, "message": message} | ({"retry_at": error.retry_at.isoformat()} if error.retry_at else {})
    extra = json.dumps(told, ensure_ascii=False).encode()
    return _STATUS.get(type(error), fl.FlightServerError)(message, extra)


def _told(message: str) -> str:
    """Return as much of *message* as fits into the headers, where it stands twice: percent-encoded and as JSON."""
    text = message.encode(errors="replace").decode()  # a lone surrogate cannot travel
    sizes = (2 if " " <= char <= "~" and char not in '%"\\' else max(9, 4 * len(char.encode())) for char in text)
    fits = sum(total <= _MOST_TOLD_BYTES for total in accumulate(sizes))
    return text if fits == len(text) else text[:fits] + " ..."


def _translated(handler: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(handler)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # nothing may leave untranslated
            raise to_flight_error(error) from None

    # pyarrow forgets get_schema: what that raises travels with this very frame, which shall name no path of this machine.
    wrapped.__code__ = wrapped.__code__.replace(co_filename="<fletching>")  # type: ignore[attr-defined]
    return wrapped


class FlightEdge(fl.FlightServerBase):  # type: ignore[misc]  # the same
    """An Arrow Flight server over *engine*; it serves as soon as it is constructed."""

    def __init__(self, engine: Engine, location: str) -> None:
        self._engine = engine
        self.draining = False
        self.calls = Calls()
        self.streams = Streams(engine.settings.streams_per_principal)
        super().__init__(location, middleware={"call": self.calls})

    def _check_open(self) -> None:
        if self.draining:
            raise e.ServerClosing("the server is closing and takes no new requests; connect again in a moment")

    @_translated
    def list_flights(self, context: fl.ServerCallContext, criteria: bytes) -> Iterator[fl.FlightInfo]:
        """Return one description per dataset; *criteria* is not used."""
        del context, criteria
        self._check_open()
        return iter([self._info(ReadRequest(name)) for name in self._engine.names()])

    @_translated
    def get_flight_info(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.FlightInfo:
        """Return schema, rows where they are known, and the ticket that reads them.

        Several tickets only for a client that said it takes them all: one that took the first alone would miss rows.
        """
        self._check_open()
        request = _read_request(descriptor)
        most = headers.endpoints_asked(context.get_middleware("call").said(headers.ENDPOINTS))
        parts = self._engine.parts(request, most) if most > 1 else []
        return self._info(request, parts)

    def _info(self, request: ReadRequest, parts: Sequence[PartRequest] = ()) -> fl.FlightInfo:
        tickets: Sequence[ReadRequest | PartRequest] = parts or [request]
        schema, rows = self._engine.describe(request)
        descriptor = fl.FlightDescriptor.for_path(request.dataset)
        # No location: the ticket is for the server that was asked.
        endpoints = [fl.FlightEndpoint(ticket.to_bytes(), []) for ticket in tickets]
        told = json.dumps({"endpoints": self._engine.settings.most_endpoints})  # 1: there is no use in asking again
        return fl.FlightInfo(schema, descriptor, endpoints, rows, -1, ordered=bool(parts), app_metadata=told)

    @_translated
    def get_schema(self, context: fl.ServerCallContext, descriptor: fl.FlightDescriptor) -> fl.SchemaResult:
        """Return the schema of the answer that *descriptor* asks for."""
        del context
        self._check_open()
        request = _read_request(descriptor)
        return fl.SchemaResult(self._engine.schema(request.dataset).project(request.columns))

    @_translated
    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        """Return the rows; the ticket is a ``ReadRequest``, so one round trip is enough, or a ``PartRequest``."""
        self._check_open()
        call, principal, raw = context.get_middleware("call"), context.peer(), ticket.ticket
        asked = _parsed(raw) if len(raw) <= _PARSED_BYTES else ticket_from_bytes(raw)
        options = call.compression()
        call.holds.callback(self.streams.enter(principal))
        answer = self._engine.read(asked, "flight", principal)
        call.holds.callback(answer.close)
        with_info = (asked.read if isinstance(asked, PartRequest) else asked).info
        if answer.whole is not None and not with_info:
            return fl.RecordBatchStream(answer.whole.to_reader(max_chunksize=answer.batch_rows), options=options)
        return fl.GeneratorStream(answer.schema, _stream(answer, with_info=with_info), options=options)

    @_translated
    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        """Store the rows, then acknowledge with a ``WriteResult``."""
        self._check_open()
        request = _write_request(descriptor)
        rows = self._received(reader)
        # The stream of a client that died ends like a whole one. Its call counts as cancelled, but perhaps not yet.
        if context.is_cancelled() or request.rows not in {None, rows.num_rows}:
            raise e.InvalidRequest(f"the write to {request.table} broke off after {rows.num_rows:,} rows; nothing was stored")
        result = self._engine.write(request, rows)
        try:
            writer.write(pa.py_buffer(result.to_bytes()))
        except (OSError, pa.ArrowException):
            log.info("a writer left before it was told that its rows are stored", table=request.table, rows=rows.num_rows)

    def _received(self, reader: fl.MetadataRecordBatchReader) -> pa.Table:
        limit = int(self._engine.settings.max_write_bytes)
        batches, size = [], 0
        try:
            for chunk in reader:
                batches.append(chunk.data)
                size += chunk.data.nbytes
                if size > limit:
                    raise e.InvalidRequest(f"a write of more than {limit:,} bytes (max_write_bytes): write in parts")
            return pa.Table.from_batches(batches, schema=reader.schema)
        except pa.ArrowException as error:
            raise e.InvalidRequest(f"the rows cannot be read: {str(error).splitlines()[0]}") from error

    @_translated
    def do_exchange(self, *args: object) -> None:
        """Refuse: subscriptions are not built yet."""
        del args
        raise e.NotBuilt("DoExchange is not built yet; use DoGet and DoPut")

    @_translated
    def list_actions(self, context: fl.ServerCallContext) -> list[fl.ActionType]:
        """Return every action with what it does."""
        del context
        return [fl.ActionType(action.value, ACTION_HELP[action]) for action in Action]

    @_translated
    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Iterator[fl.Result]:
        """Return the answer of one action: a JSON object, or an Arrow IPC stream for tables."""
        del context
        self._check_open()
        if action.type not in set(Action):
            raise e.InvalidRequest(f"there is no action {action.type!r:.60}; there are {', '.join(Action)}")
        raw = action.body.to_pybytes()
        body = decode_json(raw, MAX_REQUEST_BYTES, "an action's body") if raw else {}
        answer = self._engine.act(Action(action.type), body)
        return iter([fl.Result(_encoded(answer))])


def _read_request(descriptor: fl.FlightDescriptor) -> ReadRequest:
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return ReadRequest.from_bytes(descriptor.command)
    return ReadRequest(_only_part(descriptor))


def _write_request(descriptor: fl.FlightDescriptor) -> WriteRequest:
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return WriteRequest.from_bytes(descriptor.command)
    return WriteRequest(_only_part(descriptor))


def _only_part(descriptor: fl.FlightDescriptor) -> str:
    parts = [part.decode(errors="replace") for part in descriptor.path or ()]
    if len(parts) != 1:
        raise e.InvalidRequest(f"the path {parts!r:.90} has {len(parts)} parts; it is one dataset's name")
    return str(parts[0])


def _stream(answer: Answer, *, with_info: bool) -> Iterator[Any]:
    """Yield the batches; the last one carries the info, so one batch is held back where it is asked for."""
    try:
        if not with_info:
            yield from map(tight, answer)
            return
        last: pa.RecordBatch | None = None
        for batch in map(tight, answer):
            if last is not None:
                yield last
            last = batch
        empty = pa.RecordBatch.from_pylist([], schema=answer.schema)
        yield empty if last is None else last, pa.py_buffer(aligned_note(answer.info.to_bytes()))
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001  # as in the handlers, whose wrapper ended when the stream began
        raise to_flight_error(error) from None
    finally:
        answer.close()


def _encoded(answer: dict[str, Any] | pa.Table) -> pa.Buffer:
    if isinstance(answer, dict):
        return pa.py_buffer(json.dumps(answer).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    return sink.getvalue()
