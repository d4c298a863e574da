"""A server's life: take the address, serve, drain with a deadline, close."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import structlog

from fletching_schemas.errors import Error, InvalidRequest, ListenFailed, StoreUnwritable
from fletching_server import disk
from fletching_server.engine import Engine
from fletching_server.flight import FlightEdge
from fletching_server.local import LocalEdge

log = structlog.get_logger(__name__)

SOCKET_PATH_BYTES: Final = 100  # the system's limit is about 107; beyond it gRPC only says that it did not start
_SHUTDOWN_SECONDS: Final = 5.0
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


class Service:
    """A Flight server over *engine* at *listen*, and a local socket beside it where the engine shares its memory.

    It serves from construction to ``close``. A context manager.
    """

    def __init__(self, engine: Engine, listen: str, *, drain_seconds: float = 10.0, insecure: bool = False) -> None:
        self._engine = engine
        self._drain_seconds = drain_seconds
        self._taken = ExitStack()
        address = Address.parse(listen, insecure=insecure)
        address.take(self._taken)
        try:
            self._edge = FlightEdge(engine, address.location)
        except Exception as error:
            self._taken.close()
            raise ListenFailed(f"cannot listen at {listen}: {str(error).splitlines()[0]}") from error
        self.url = address.url(self._edge.port)
        self.local = self._listen_locally(address) if engine.hot.shares else None

    def _listen_locally(self, address: Address) -> LocalEdge | None:
        """Return the local edge; without one, which is logged, clients use Flight."""
        try:
            path = address.local_path(self._edge.port, self._engine.settings.local_folder)
            _own_folder(path.parent, self._taken)
            if path.parent == _runtime_folder():  # any other may hold locks that are not ours
                _sweep(path.parent)
            _take_socket(path, self._taken, remove=True)
            edge = LocalEdge(self._engine, path)
        except (OSError, Error) as error:
            log.warning("no local plane: clients on this host use Flight", error=str(error))
            return None
        self._engine.planes["local"] = edge.facts()
        return edge

    @property
    def active_calls(self) -> int:
        """How many calls are under way."""
        return self._edge.calls.active + (self.local.active if self.local else 0)

    def close(self) -> bool:
        """Refuse new calls, wait for those under way, and return whether all ended in time; a second call does nothing.

        pyarrow's own shutdown waits for ever where a client does not read, so it runs beside and is given up on.
        """
        if self._edge.draining:
            return True
        self._edge.draining = True
        if self.local and self._engine.planes.get("local") == self.local.facts():
            del self._engine.planes["local"]
        until = time.monotonic() + self._drain_seconds
        ended = self.local is None or self.local.close(self._drain_seconds)
        self._edge.calls.wait_until_idle(max(0.0, until - time.monotonic()))
        ending = threading.Thread(target=self._edge.shutdown, name="flight-shutdown", daemon=True)
        ending.start()
        ending.join(_SHUTDOWN_SECONDS)
        self._taken.close()
        return ended and not ending.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.close() and error is None:
            raise Error(f"{self.url} did not shut down: {self.active_calls} calls are still under way")


def wait_for_signal(ready: Callable[[], None]) -> str:
    """Call *ready*, then return the name of the signal (SIGTERM or SIGINT) that asked this process to end, once it came.

    *ready* is called when signals are heard: whoever is told there that the process runs may end it at once.

    The signal arrives as a byte, written in C by whichever thread the system interrupts. An ``Event`` set by a handler would
    not do: the handler may run while the main thread holds the event's own lock, or in no hurry at all.
    """
    arriving, leaving = socket.socketpair()
    with arriving, leaving:
        leaving.setblocking(False)
        signal.set_wakeup_fd(leaving.fileno())
        for number in _ENDING:
            signal.signal(number, lambda _number, _frame: None)
        ready()
        while (received := arriving.recv(1)[0]) not in _ENDING:  # another one that somebody handles
            pass
        signal.set_wakeup_fd(-1)
    return signal.Signals(received).name


@dataclass(frozen=True)
class Address:
    """Where a server listens: a host and a port, or a socket file."""

    location: str
    host: str
    port: int
    socket_path: Path | None = None

    @classmethod
    def parse(cls, listen: str, *, insecure: bool = False) -> Address:
        """Return the address that *listen* writes; ``InvalidRequest`` where it is none, or open to other machines."""
        parts = urlsplit(listen)
        if parts.scheme == "grpc+unix" and not parts.netloc and parts.path:
            if len(parts.path.encode()) > SOCKET_PATH_BYTES:
                raise InvalidRequest(
                    f"the socket path {parts.path} is longer than {SOCKET_PATH_BYTES} bytes; choose a shorter one"
                )
            return cls(listen, "", -1, Path(parts.path))
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidRequest(f"cannot listen at {listen!r}: {error}") from error
        if parts.scheme not in {"grpc", "grpc+tcp"} or not host or port is None or parts.path:
            raise InvalidRequest(f"cannot listen at {listen!r}; write grpc://HOST:PORT or grpc+unix:///PATH.sock")
        if not insecure and not _is_loopback(host):
            raise InvalidRequest(
                f"{host} can be reached from other machines, and this version has no authentication yet: "
                "listen at 127.0.0.1, or say --insecure if the network is trusted"
            )
        return cls(listen, host, port)

    def url(self, bound_port: int) -> str:
        """Return what a client connects to, with the port that was bound."""
        return self.location if self.socket_path else f"grpc://{f'[{self.host}]' if ':' in self.host else self.host}:{bound_port}"

    def local_path(self, bound_port: int, folder: Path | None) -> Path:
        """Return where the local socket of this address lies; ``InvalidRequest`` where its path would be too long."""
        where = str(self.socket_path.absolute()) if self.socket_path else ""
        name = f"unix-{disk.digest(where.encode())[:16]}" if where else f"{self.host.replace(':', '_')}-{bound_port}"
        path = (folder or _runtime_folder()) / f"{name}.sock"
        if len(str(path).encode()) > SOCKET_PATH_BYTES:
            raise InvalidRequest(f"the socket path {path} is longer than {SOCKET_PATH_BYTES} bytes; set local_folder")
        return path

    def take(self, taken: ExitStack) -> None:
        """Make sure that nobody else serves here, or raise ``ListenFailed``; *taken* gives a socket's lock back."""
        if self.socket_path:
            _take_socket(self.socket_path, taken)
        else:
            _probe(self.host, self.port)


def _take_socket(path: Path, taken: ExitStack, *, remove: bool = False) -> None:
    """Own the socket file: a second server would bind silently and make the first unreachable."""
    if not path.parent.exists():
        disk.make_folder(path.parent)
        path.parent.chmod(0o700)
    try:
        lock = disk.Lock(path.with_name(path.name + ".lock"))
    except BlockingIOError as error:
        raise ListenFailed(f"{path} is served by {error}; stop it, or listen elsewhere") from error
    taken.callback(lock.release, remove=remove)


def _runtime_folder() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"fletching-{os.geteuid()}"


def _own_folder(folder: Path, taken: ExitStack) -> None:
    """Make sure that nobody else can put anything into *folder*; *taken* removes it where it was made, and ends up empty."""
    made = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if made or folder == _runtime_folder():
        taken.callback(_remove_if_empty, folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ListenFailed(f"{folder} is not a folder that only this user can write to; remove it, or set local_folder")


def _sweep(folder: Path) -> None:
    """Remove the local sockets of servers that were killed: nobody holds their locks."""
    for left in folder.glob("*.sock.lock"):
        with suppress(BlockingIOError, StoreUnwritable):
            lock = disk.Lock(left)
            left.with_suffix("").unlink(missing_ok=True)
            lock.release(remove=True)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _probe(host: str, port: int) -> None:
    """Bind once and let go: gRPC itself only says that it did not start, and prints its reason on stderr."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an address in TIME_WAIT is free
            probe.bind((host, port))
    except OSError as error:
        raise ListenFailed(
            f"cannot listen at {host}:{port}: {error.strerror}; stop what uses it, or choose another port (0: any free one)"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
