"""Surviving a fork: gRPC works in a forked child only where none of it ran at that moment, else every call there hangs.

So connections end before a fork, and the fork waits until gRPC's threads have left, which takes a few milliseconds. Both
sides connect again with their next call. A stream that is being read keeps the threads: then the child is told.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from fletching_schemas.errors import ServerUnreachable


class Connected(Protocol):
    """Something that holds a connection and can make another."""

    def drop_connection(self) -> bool:
        """Let go of the connection and tell whether there was one."""
        ...

    def arrive_in_child(self) -> None:
        """Replace what may be held by threads that only the parent has."""
        ...


# The last to leave is grpc_shutdown, which holds the lock that the child's first call would wait for.
_GRPC_THREADS: Final = frozenset({"event_engine", "grpc_global_tim", "grpc_shutdown", "lifeguard"})
_GRPC_ENDS_SECONDS: Final = 1.0
_connected: Final[weakref.WeakSet[Connected]] = weakref.WeakSet()
_closed_at = -_GRPC_ENDS_SECONDS
_lost: Final = threading.Event()
_forked: Final = threading.Event()


def note_closed() -> None:
    """Remember that a connection was closed just now: gRPC's threads leave a little later, and a fork must wait for them."""
    global _closed_at  # noqa: PLW0603  # one process, one gRPC
    _closed_at = time.monotonic()


def watch(connection: Connected) -> None:
    """Let *connection* take part in forks for as long as it lives."""
    _connected.add(connection)


def check_usable() -> None:
    """Raise ``ServerUnreachable`` in a child that was forked while gRPC ran: a call would never return."""
    if _lost.is_set():
        raise ServerUnreachable(
            "this process was forked while a stream was read or something else used gRPC, which does not survive that; "
            "start processes by 'spawn' (multiprocessing.get_context('spawn')), or fork before reading"
        )


def in_forked_child() -> bool:
    """Return whether this process was forked, and has none of the threads that libraries had started before."""
    return _forked.is_set()


def _grpc_runs() -> bool:
    names = set()
    for thread in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just left
            names.add(thread.read_text().strip())
    return not names.isdisjoint(_GRPC_THREADS)


def _before() -> None:
    dropped = [connection.drop_connection() for connection in list(_connected)]
    now = time.monotonic()
    until = now + _GRPC_ENDS_SECONDS if any(dropped) or now - _closed_at < _GRPC_ENDS_SECONDS else now
    while (runs := _grpc_runs()) and time.monotonic() < until:
        time.sleep(0.001)  # nothing tells when gRPC's own threads have left
    if runs:
        _lost.set()  # in the parent only until the fork is done


def _in_child() -> None:
    _forked.set()
    for connection in list(_connected):
        connection.arrive_in_child()


os.register_at_fork(before=_before, after_in_parent=_lost.clear, after_in_child=_in_child)
