"""One client of the local socket: what it says, and what it is told, in order."""

from __future__ import annotations

import functools
import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

import pyarrow as pa
import structlog

from fletching_schemas import ReadRequest
from fletching_schemas.errors import Error, InvalidRequest
from fletching_schemas.local import (
    HEAD_BYTES,
    LASTING,
    LOCAL_VERSION,
    MAX_ASKED_BYTES,
    MOST_AT_ONCE,
    Frame,
    error_body,
    frame,
    head,
    packed,
    told_head,
    unpacked,
)
from fletching_server.answering import Answer
from fletching_server.board import Board
from fletching_server.engine import Engine
from fletching_server.failures import presentable
from fletching_server.handover import SENT_BYTES, Handover, Mapped
from fletching_server.lifetimes import Lifetimes
from fletching_server.vouched import Sent, Vouched

log = structlog.get_logger(__name__)

STALL_SECONDS: Final = 30  # a client that takes nothing for so long loses its connection, and with it what its answer holds
_parsed = functools.lru_cache(maxsize=4096)(ReadRequest.from_bytes)
_PARSED_BYTES: Final = 1024
_END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow's format


class Host(Protocol):
    """What all conversations of a socket share."""

    instance: str
    board: Board | None
    lifetimes: Lifetimes
    vouched: Vouched

    def begin(self) -> None:
        """Count one more call under way; ``ServerClosing`` where none is taken any more."""
        ...

    def end(self) -> None:
        """Count one call less."""
        ...

    def left(self, conversation: Conversation) -> None:
        """Forget *conversation*."""
        ...


@dataclass(frozen=True)
class _Vouching:
    """One request as it came, what board and clock showed then, and the answer that is good already."""

    raw: bytes
    number: int
    now: float
    sent: Sent | None

    def keep(self, vouched: Vouched, buffers: Sequence[bytes | memoryview], answer: Answer) -> None:
        """Keep *buffers* for whoever asks the same within a second, unless something is being committed, or they are many."""
        if self.number % 2 == 0 and sum(map(len, buffers)) <= SENT_BYTES:
            noted = answer.reading.noted if answer.reading else None
            vouched.keep(self.raw, b"".join(buffers), answer.info, self.number, self.now, noted)


class _GoneError(OSError):
    """The client takes nothing any more."""


class Conversation:
    """One client, served by one thread; what it asks is answered in order."""

    def __init__(self, host: Host, engine: Engine, accepted: socket.socket) -> None:
        self._host, self._engine, self._socket = host, engine, accepted
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STALL_SECONDS, 0))

    def refuse(self, error: Error) -> None:
        """Tell *error* and hang up."""
        with suppress(OSError):
            self._tell(Frame.ERROR, error_body(error))
        self._socket.close()

    def serve(self) -> None:
        """Answer until the client leaves, or says what nobody understands."""
        try:
            with self._socket, self._socket.makefile("rb") as asked:
                self._serve(asked)
        except OSError as error:
            log.info("a local client left", error=str(error))
        except Exception:
            log.exception("serving a local client failed")
        finally:
            self._host.left(self)

    def _serve(self, asked: BinaryIO) -> None:
        principal = self._principal()
        while (told := asked.read(HEAD_BYTES)) and len(told) == HEAD_BYTES:
            try:
                kind, size = told_head(told, MAX_ASKED_BYTES)
                self._answer(kind, asked.read(size), principal)
            except InvalidRequest as error:  # whoever sent that does not speak this language, or not any more
                log.info("a local client is not understood", error=str(error))
                return self.refuse(error)
        return None

    def _principal(self) -> str:
        """Return who asks, as the system vouches; ``PermissionError`` for another user, whom the folder kept out already."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        if uid not in {os.geteuid(), 0}:
            raise PermissionError(f"user {uid} may not read on this socket")
        return f"local:{uid}:{pid}"

    def _answer(self, kind: Frame, body: bytes, principal: str) -> None:
        if kind == Frame.HELLO:
            self._greet()
        elif kind == Frame.READ:
            known, request = unpacked(body)
            self._read(frozenset(known), request, principal)
        else:
            raise InvalidRequest(f"a server is not told {kind.name}")

    def _greet(self) -> None:
        board = self._host.board
        told = {"version": LOCAL_VERSION, "instance": self._host.instance, "board": board is not None}
        self._send([frame(Frame.HELLO, json.dumps(told).encode())], [board.fd] if board else [])

    def _read(self, known: frozenset[int], raw: bytes, principal: str) -> None:
        with ExitStack() as held:
            try:
                self._host.begin()
                held.callback(self._host.end)
                vouching = self._vouching(raw)
                if (sent := vouching.sent) is not None:
                    self._engine.stats.read_ended(sent.info)
                    if sent.noted is not None:
                        self._engine.access.again(sent.noted, principal)
                    self._send([sent.frames])
                    return
                request = _parsed(raw) if len(raw) <= _PARSED_BYTES else ReadRequest.from_bytes(raw)
                answer = self._engine.read(request, "local", principal)
                held.callback(answer.close)
                self._hand_over(answer, known, vouching, with_info=request.info)
            except _GoneError:
                raise
            except BaseException as error:  # noqa: BLE001  # nothing may leave untranslated
                self._tell(Frame.ERROR, error_body(presentable(error)))

    def _vouching(self, raw: bytes) -> _Vouching:
        """Return the answer to *raw* that somebody got a moment ago, where it is still good; else what one needs to keep it."""
        number = self._host.board.number if self._host.board else 1
        now = self._engine.clock.monotonic()
        return _Vouching(raw, number, now, self._host.vouched.get(raw, number, now))

    def _hand_over(self, answer: Answer, known: frozenset[int], vouching: _Vouching, *, with_info: bool) -> None:
        with Handover(self._engine.hot, self._host.lifetimes, known) as handover:
            found = handover.of(answer)
            if isinstance(found, Mapped):
                answer.close()  # what it counts is complete, and the other process has leases of its own
                self._map(answer, found, _ending(answer, with_info=with_info))
            else:
                self._stream(found, answer, vouching, with_info=with_info)

    def _map(self, answer: Answer, found: Mapped, ending: bytes) -> None:
        told = {
            "columns": answer.schema.names,
            "layers": found.layers,
            "images": list(found.images),
            "parts": found.parts,
            "once": found.once,
        }
        following = frame(Frame.MAPPED, json.dumps(told).encode()) + ending
        serials = list(found.handed)
        for start in range(0, len(serials), MOST_AT_ONCE):
            chosen = serials[start : start + MOST_AT_ONCE]
            images = frame(Frame.IMAGES, packed(chosen))
            self._send([images], [descriptor for serial in chosen for descriptor in found.handed[serial]])
        self._send([following])

    def _stream(self, batches: Iterator[pa.RecordBatch], answer: Answer, vouching: _Vouching, *, with_info: bool) -> None:
        """Send *batches*, the last one together with what ends the answer: a small one is one system call."""
        waiting, alone = _arrow(next(batches, None) or pa.RecordBatch.from_pylist([], answer.schema)), True
        for batch in batches:
            self._send(waiting)
            waiting, alone = _arrow(batch), False
        answer.close()
        buffers = [*waiting, _ending(answer, with_info=with_info)]
        self._send(buffers)
        if alone and not with_info and answer.plan.lasting and answer.info.tier in {"hot", "none"}:
            vouching.keep(self._host.vouched, buffers, answer)

    def _tell(self, kind: Frame, body: bytes) -> None:
        self._send([frame(kind, body)])

    def _send(self, buffers: Sequence[bytes | memoryview], descriptors: Sequence[int] = ()) -> None:
        """Send *buffers* one after the other, *descriptors* with the first byte."""
        try:
            sent = socket.send_fds(self._socket, buffers, descriptors) if descriptors else self._socket.sendmsg(buffers)
            for buffer in buffers:
                if sent < len(buffer):
                    self._socket.sendall(memoryview(buffer)[sent:])
                sent = max(0, sent - len(buffer))
        except OSError as error:
            raise _GoneError(str(error)) from error

    def close(self) -> None:
        """Hang up; the thread that serves ends by that."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _ending(answer: Answer, *, with_info: bool) -> bytes:
    return frame(Frame.END, answer.info.to_bytes() if with_info else LASTING if answer.plan.lasting else b"")


def _arrow(batch: pa.RecordBatch) -> list[bytes | memoryview]:
    """Return *batch* as a frame; an IPC stream of its own, so that whatever columns it has can be read alone."""
    if any(map(pa.types.is_dictionary, batch.schema.types)):  # their values are messages of their own
        stream = _written(batch)
        return [head(Frame.ARROW, stream.size), memoryview(stream)]
    schema, rows = batch.schema.serialize(), batch.serialize()  # half the time of a writer
    size = schema.size + rows.size + len(_END_OF_STREAM)
    return [head(Frame.ARROW, size), memoryview(schema), memoryview(rows), _END_OF_STREAM]


def _written(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()
