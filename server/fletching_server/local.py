"""The local edge: a UNIX socket on which other processes of this user read what lies in memory without a copy.

Decode, call the engine, encode, translate, as ``flight`` does. It is there beside Flight and never instead: what it cannot do,
the client asks there.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import struct
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import structlog

from fletching_schemas import ReadRequest
from fletching_schemas.errors import Error, InvalidRequest, Overloaded, ServerClosing
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
from fletching_server.board import Board
from fletching_server.clock import SystemClock
from fletching_server.engine import Engine
from fletching_server.failures import presentable
from fletching_server.handover import Handover, Mapped
from fletching_server.hot import nothing_to_settle
from fletching_server.lifetimes import Lifetimes
from fletching_server.reads import Answer

log = structlog.get_logger(__name__)

MOST_CONNECTIONS: Final = 256
STALL_SECONDS: Final = 30  # a client that takes nothing for so long loses its connection, and with it what its answer holds
_NO_DESCRIPTORS_SECONDS: Final = 0.05
_parsed = functools.lru_cache(maxsize=4096)(ReadRequest.from_bytes)
_PARSED_BYTES: Final = 1024
_END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow's format


class LocalEdge:
    """The socket at *path*, which the caller owns; it serves from construction to ``close``."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine, self.path = engine, path
        self.instance = uuid.uuid4().hex
        self.lifetimes = Lifetimes()
        engine.hot.settle = self.lifetimes.settle
        self.board = _board(engine)
        self.draining = False
        self._changed = threading.Condition()
        self._connections: set[_Connection] = set()
        self._active = 0
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            path.unlink(missing_ok=True)  # left by a server that was killed: the caller holds the lock
            self._socket.bind(str(path))
            path.chmod(0o600)
            self._socket.listen(128)
        except OSError:
            self._socket.close()
            self._let_go()
            raise
        threading.Thread(target=self._accept, name="fletching-local", daemon=True).start()

    def facts(self) -> dict[str, Any]:
        """Return what a client needs to find this socket, and to know that it is this server's."""
        return {"path": str(self.path), "instance": self.instance, "host": host_id()}

    def _accept(self) -> None:
        while not self.draining:
            try:
                accepted, _ = self._socket.accept()
            except OSError as error:
                if self.draining:
                    return
                log.warning("a local client cannot be let in", error=str(error))
                threading.Event().wait(_NO_DESCRIPTORS_SECONDS)  # descriptors come back when somebody leaves
                continue
            connection = _Connection(self, self._engine, accepted)
            with self._changed:
                full = len(self._connections) >= MOST_CONNECTIONS
                if not full:
                    self._connections.add(connection)
            if full:
                connection.refuse(Overloaded(f"{MOST_CONNECTIONS} local connections are open; use Flight"))
                continue
            threading.Thread(target=connection.serve, name="fletching-local-client", daemon=True).start()

    def begin(self) -> None:
        """Count one more call under way; ``ServerClosing`` where none is taken any more."""
        with self._changed:
            if self.draining:
                raise ServerClosing("the server is closing and takes no new requests; connect again in a moment")
            self._active += 1

    def end(self) -> None:
        """Count one call less."""
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def left(self, connection: _Connection) -> None:
        """Forget *connection*."""
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    @property
    def active(self) -> int:
        """How many calls are under way."""
        return self._active

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def wait_for_connections(self, count: int, seconds: float = 20.0) -> bool:
        """Return whether, within *seconds*, not more than *count* clients were connected."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._connections) <= count, seconds)

    def close(self, seconds: float = 0.0) -> bool:
        """Refuse new calls, wait *seconds* for those under way, and return whether all ended; a second call does nothing."""
        with self._changed:
            if self.draining:
                return True
            self.draining = True
            ended = self._changed.wait_for(lambda: self._active == 0, seconds)
            connections = list(self._connections)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        self.path.unlink(missing_ok=True)
        for connection in connections:
            connection.close()
        self._let_go()
        return ended

    def _let_go(self) -> None:
        self._engine.hot.settle = nothing_to_settle
        self.lifetimes.close()
        if self.board is not None:
            self._engine.store.catalogue.watchers.remove(self.board)
            self.board.close()


def _board(engine: Engine) -> Board | None:
    """Return the board on which clients see that nothing was committed; None where it cannot be had, or time is not real."""
    if not isinstance(engine.clock, SystemClock):
        return None
    try:
        board = Board()
    except OSError as error:
        log.info("clients cannot see that nothing has changed: they ask", error=str(error))
        return None
    engine.store.catalogue.watchers.append(board)
    return board


class _GoneError(OSError):
    """The client takes nothing any more."""


class _Connection:
    """One client, served by one thread; what it asks is answered in order."""

    def __init__(self, edge: LocalEdge, engine: Engine, accepted: socket.socket) -> None:
        self._edge, self._engine, self._socket = edge, engine, accepted
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
            self._edge.left(self)

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
        board = self._edge.board
        told = {"version": LOCAL_VERSION, "instance": self._edge.instance, "board": board is not None}
        self._send([frame(Frame.HELLO, json.dumps(told).encode())], [board.fd] if board else [])

    def _read(self, known: frozenset[int], raw: bytes, principal: str) -> None:
        with ExitStack() as held:
            try:
                self._edge.begin()
                held.callback(self._edge.end)
                request = _parsed(raw) if len(raw) <= _PARSED_BYTES else ReadRequest.from_bytes(raw)
                answer = self._engine.read(request, "local", principal)
                held.callback(answer.close)
                self._hand_over(answer, known, with_info=request.info)
            except _GoneError:
                raise
            except BaseException as error:  # noqa: BLE001  # nothing may leave untranslated
                self._tell(Frame.ERROR, error_body(presentable(error)))

    def _hand_over(self, answer: Answer, known: frozenset[int], *, with_info: bool) -> None:
        with Handover(self._engine.hot, self._edge.lifetimes, known) as handover:
            found = handover.of(answer)
            if isinstance(found, Mapped):
                answer.close()  # what it counts is complete, and the other process has leases of its own
                self._map(answer, found, _ending(answer, with_info=with_info))
            else:
                self._stream(found, answer, with_info=with_info)

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

    def _stream(self, batches: Iterator[pa.RecordBatch], answer: Answer, *, with_info: bool) -> None:
        """Send *batches*, the last one together with what ends the answer: a small one is one system call."""
        waiting = _arrow(next(batches, None) or pa.RecordBatch.from_pylist([], answer.schema))
        for batch in batches:
            self._send(waiting)
            waiting = _arrow(batch)
        answer.close()
        self._send([*waiting, _ending(answer, with_info=with_info)])

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


def host_id() -> str:
    """Return what tells this host from others, until its next start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
