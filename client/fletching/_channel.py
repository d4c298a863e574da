"""One connection to a server's local socket: frames out, frames and descriptors in."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Self

import pyarrow as pa

from fletching_schemas.errors import InvalidRequest
from fletching_schemas.local import (
    HEAD_BYTES,
    LOCAL_VERSION,
    MAX_TOLD_BYTES,
    Frame,
    frame,
    packed,
    told_head,
)

_RECEIVE_BYTES: Final = 1 << 18
_ROOM_FOR_DESCRIPTORS: Final = socket.CMSG_SPACE(253 * array.array("i").itemsize)
_open: Final[weakref.WeakSet[Channel]] = weakref.WeakSet()


class Unusable(Exception):  # noqa: N818  # never leaves the client
    """The local plane cannot be used, now or at all; Flight can."""


class Channel:
    """A connection on which one question is asked at a time.

    Raises ``Unusable`` where nobody answers there, or somebody else than the server *instance*.
    """

    def __init__(self, path: str, instance: str, timeout: float) -> None:
        self._room = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._room)
        self._start = self._end = 0  # what has come, and was not taken
        self._descriptors: deque[int] = deque()
        self._board: int | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        _open.add(self)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            self._greet(instance)
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, ValueError, InvalidRequest)):
                raise Unusable(str(error)) from error
            raise

    def _greet(self, instance: str) -> None:
        self._socket.sendall(frame(Frame.HELLO, json.dumps({"version": LOCAL_VERSION}).encode()))
        kind, body = self.receive()
        told: dict[str, Any] = json.loads(bytes(body))
        if kind != Frame.HELLO or told.get("instance") != instance or told.get("version") != LOCAL_VERSION:
            raise Unusable(f"another server answers: {told!r:.200}")
        if told.get("board"):
            (self._board,) = self.descriptors(1)

    def take_board(self) -> int | None:
        """Return the descriptor of the server's board, which is the caller's from now on; None where there is none."""
        board, self._board = self._board, None
        return board

    def quiet(self) -> bool:
        """Return whether the server is there, and says nothing: between questions that is how it should be."""
        try:
            return not self._poll.poll(0)
        except OSError:
            return False

    def ask(self, serials: Sequence[int], request: bytes) -> None:
        """Send a read, by somebody who maps the images *serials*."""
        self._socket.sendall(frame(Frame.READ, packed(serials, request)))

    def receive(self) -> tuple[Frame, bytes | pa.Buffer]:
        """Return the next frame; a large ARROW as a buffer that columns may refer to."""
        kind, size = told_head(self._take(HEAD_BYTES), MAX_TOLD_BYTES)
        return kind, self._fill(size) if kind == Frame.ARROW and size > len(self._room) else self._take(size)

    def descriptors(self, count: int) -> list[int]:
        """Return the next *count* descriptors that came, which the caller owns."""
        if len(self._descriptors) < count:
            raise Unusable("descriptors were lost on the way: the limit of this process (ulimit -n) is reached")
        return [self._descriptors.popleft() for _ in range(count)]

    def _take(self, size: int) -> bytes:
        """Return the next *size* bytes."""
        if size > len(self._room):
            return bytes(memoryview(self._fill(size)))
        while self._end - self._start < size:
            self._receive_some(size)
        self._start += size
        return bytes(self._view[self._start - size : self._start])

    def _fill(self, size: int) -> pa.Buffer:
        """Return the next *size* bytes in aligned memory: what has come already, and the rest without another copy."""
        buffer = pa.allocate_buffer(size)
        target = memoryview(buffer).cast("B")
        have = min(size, self._end - self._start)
        target[:have] = self._view[self._start : self._start + have]
        self._start += have
        while have < size:
            count = self._socket.recv_into(target[have:])
            if not count:
                raise ConnectionResetError("the server hung up")
            have += count
        return buffer

    def _receive_some(self, size: int) -> None:
        """Receive what is there, with its descriptors, where *size* bytes have room: in memory that is used again and again."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + size > len(self._room):
            waiting = bytes(self._view[self._start : self._end])
            self._view[: len(waiting)] = waiting
            self._start, self._end = 0, len(waiting)
        free = [self._view[self._end :]]
        count, ancillary, flags, _ = self._socket.recvmsg_into(free, _ROOM_FOR_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if not count:
            raise ConnectionResetError("the server hung up")
        if flags & socket.MSG_CTRUNC:
            raise Unusable("no descriptor is left in this process (ulimit -n)")
        self._end += count

    def close(self) -> None:
        """Hang up, and let go of what came and nobody took; a second call does nothing."""
        if (board := self.take_board()) is not None:
            self._descriptors.append(board)
        while self._descriptors:
            with suppress(OSError):
                os.close(self._descriptors.popleft())
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_child() -> None:
    """Close this process's copies: the parent still talks on them, and should be the only one."""
    for channel in list(_open):
        channel.close()


os.register_at_fork(after_in_child=_in_child)
