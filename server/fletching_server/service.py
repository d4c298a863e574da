"""A server's life: take the address, serve, drain with a deadline, close."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import structlog

from fletching_schemas.errors import Error, InvalidRequest, ListenFailed
from fletching_server import disk
from fletching_server.engine import Engine
from fletching_server.flight import FlightEdge

log = structlog.get_logger(__name__)

SOCKET_PATH_BYTES: Final = 100  # the system's limit is about 107; beyond it gRPC only says that it did not start
_SHUTDOWN_SECONDS: Final = 5.0


class Service:
    """A Flight server over *engine* at *listen*; it serves from construction to ``close``. A context manager."""

    def __init__(self, engine: Engine, listen: str, *, drain_seconds: float = 10.0, insecure: bool = False) -> None:
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._taken = ExitStack()
        location = self._checked(listen, insecure=insecure)
        try:
            self._edge = FlightEdge(engine, location)
        except Exception as error:
            self._taken.close()
            raise _why_not(listen, error) from error
        self.url = location if location.startswith("grpc+unix") else f"grpc://{_host(location)}:{self._edge.port}"

    def _checked(self, listen: str, *, insecure: bool) -> str:
        parts = urlsplit(listen)
        if parts.scheme == "grpc+unix" and not parts.netloc and parts.path:
            self._take_socket(Path(parts.path))
            return listen
        if parts.scheme not in {"grpc", "grpc+tcp"} or not parts.hostname or parts.path:
            raise InvalidRequest(f"cannot listen at {listen!r}; write grpc://HOST:PORT or grpc+unix:///PATH.sock")
        if not insecure and not _is_loopback(parts.hostname):
            raise InvalidRequest(
                f"{parts.hostname} can be reached from other machines, and this version has no authentication yet: "
                "listen at 127.0.0.1, or say --insecure if the network is trusted"
            )
        return listen

    def _take_socket(self, path: Path) -> None:
        """Own the socket file: a second server would bind silently and make the first unreachable."""
        if len(str(path).encode()) > SOCKET_PATH_BYTES:
            raise InvalidRequest(f"the socket path {path} is longer than {SOCKET_PATH_BYTES} bytes; choose a shorter one")
        if not path.parent.exists():
            disk.make_folder(path.parent)
            path.parent.chmod(0o700)
        try:
            lock = disk.Lock(path.with_name(path.name + ".lock"))
        except BlockingIOError as error:
            raise ListenFailed(f"{path} is served by {error}; stop it, or listen elsewhere") from error
        self._taken.callback(lock.release)

    @property
    def active_calls(self) -> int:
        """How many calls are under way."""
        return self._edge.calls.active

    def close(self) -> bool:
        """Refuse new calls, wait for those under way, and return whether all ended in time; a second call does nothing.

        pyarrow's own shutdown waits for ever where a client does not read, so it runs beside and is given up on.
        """
        if self._edge.draining:
            return True
        self._edge.draining = True
        self._edge.calls.wait_until_idle(self._drain_seconds)
        ending = threading.Thread(target=self._edge.shutdown, name="flight-shutdown", daemon=True)
        ending.start()
        ending.join(_SHUTDOWN_SECONDS)
        self._taken.close()
        return not ending.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.close() and error is None:
            raise Error(f"{self.url} did not shut down: {self.active_calls} calls are still under way")


def wait_for_signal() -> str:
    """Return the name of the signal (SIGTERM or SIGINT) that asked this process to end, once it came."""
    stop = threading.Event()
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    stop.wait()
    return signal.Signals(received[0]).name


def _host(location: str) -> str:
    host = urlsplit(location).hostname or "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why_not(listen: str, error: Exception) -> Error:
    parts = urlsplit(listen)
    if parts.hostname:
        try:
            with socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((parts.hostname, parts.port or 0))
        except OSError as reason:
            return ListenFailed(
                f"cannot listen at {listen}: {reason.strerror}; stop what uses it, or choose another port (0: any free one)"
            )
    return ListenFailed(f"cannot listen at {listen}: {str(error).splitlines()[0]}")
