"""The local edge: a UNIX socket on which other processes of this user read what lies in memory without a copy.

Decode, call the engine, encode, translate, as ``flight`` does. It is there beside Flight and never instead: what it cannot do,
the client asks there.
"""

from __future__ import annotations

import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from fletching_schemas.errors import Overloaded, ServerClosing
from fletching_server.board import Board
from fletching_server.clock import SystemClock
from fletching_server.conversation import Conversation
from fletching_server.engine import Engine
from fletching_server.hot import nothing_to_settle
from fletching_server.lifetimes import Lifetimes
from fletching_server.vouched import SHARE, Vouched

log = structlog.get_logger(__name__)

MOST_CONNECTIONS: Final = 256
_NO_DESCRIPTORS_SECONDS: Final = 0.05


class LocalEdge:
    """The socket at *path*, which the caller owns; it serves from construction to ``close``."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine, self.path = engine, path
        self.instance = uuid.uuid4().hex
        self.lifetimes = Lifetimes()
        engine.hot.settle = self._settle
        self.board, self.vouched = _board(engine), Vouched(engine.hot.max_bytes // SHARE)
        self.draining = False
        self._changed = threading.Condition()
        self._connections: set[Conversation] = set()
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

    def _settle(self) -> None:
        """Let go, before an eviction, of what nobody needs any more."""
        self.lifetimes.settle()
        self.vouched.clear()

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
            connection = Conversation(self, self._engine, accepted)
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

    def left(self, connection: Conversation) -> None:
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


def host_id() -> str:
    """Return what tells this host from others, until its next start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
