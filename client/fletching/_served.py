"""A served cache: Flight for everything, and the local plane for reads where client and server share a host."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import pyarrow as pa

from fletching._cache import Cache
from fletching._channel import Unusable
from fletching._flight import FlightTransport
from fletching._forking import watch
from fletching._local import LocalPlane
from fletching_schemas import Action, ReadRequest, WriteRequest, WriteResult
from fletching_schemas.errors import InvalidRequest, ServerUnreachable

if TYPE_CHECKING:
    from fletching._transport import Answer

DEFAULT_URL: Final = "grpc://127.0.0.1:8815"
_LOOK_AGAIN_SECONDS: Final = 1.0

log = logging.getLogger("fletching")

Plane = Literal["flight", "local"]


def connect(
    url: str | None = None, *, timeout: float = 300.0, compression: str | None = None, plane: Plane | None = None
) -> Cache:
    """Return a cache served at *url* (None: ``$FLETCHING_URL``, else ``grpc://127.0.0.1:8815``).

    ``grpc://HOST:PORT`` or ``grpc+unix:///PATH``. *timeout* bounds each call in seconds, fetching from upstream included.
    *compression* is ``lz4`` or ``zstd`` for slow links, both ways; None sends plain batches, which a fast link, and this very
    machine, moves sooner than anybody compresses them.
    *plane* None reads over the local plane where the server runs on this host, for this user, and over Flight otherwise;
    ``flight`` never looks for the local plane, ``local`` fails where it is not there: both are for those who measure.
    Raises ``ServerUnreachable`` where nobody answers, ``InvalidRequest`` for an address that is none, an unknown compression
    or plane. A cache works on in forked children too, unless a stream was open at the fork.
    """
    if plane is not None and plane not in get_args(Plane):
        raise InvalidRequest(f"plane={plane!r:.40}; it is one of {', '.join(get_args(Plane))}, or None for the best one")
    flight = FlightTransport(url or os.environ.get("FLETCHING_URL") or DEFAULT_URL, timeout, compression)
    transport = ServedTransport(flight, timeout, plane)
    try:
        transport.look()
    except BaseException:
        transport.close()
        raise
    return Cache(transport)


class ServedTransport:
    """The five calls, each over the best plane."""

    def __init__(self, flight: FlightTransport, timeout: float, plane: Plane | None) -> None:
        self.address = flight.address
        self._flight, self._timeout, self._plane = flight, timeout, plane
        self._local: LocalPlane | None = None
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        watch(self)

    def look(self) -> None:
        """Ask the server how it is, and where its local socket lies; take that where it can be reached."""
        facts = self._flight.act(Action.HEALTH, {})
        if self._plane == "flight" or not isinstance(facts, dict):
            return
        try:
            self._local = LocalPlane(facts["planes"]["local"], self._timeout)
        except (Unusable, LookupError, TypeError) as error:
            if self._plane == "local":
                raise ServerUnreachable(
                    f"{self.address} has no local plane for this process ({error}); leave plane out to read over Flight"
                ) from error

    def _usable_local(self) -> LocalPlane | None:
        """Return the local plane; where it was lost, look for it again, but not with every read."""
        if self._local is not None or self._plane == "flight":
            return self._local
        with self._lock:
            if self._local is None and time.monotonic() - self._looked >= _LOOK_AGAIN_SECONDS:
                self._looked = time.monotonic()
                self.look()
            return self._local

    def read(self, request: ReadRequest) -> Answer:
        """Return the answer; what goes wrong on the local plane itself is asked over Flight."""
        local = self._usable_local()
        if local is not None:
            try:
                return local.read(request)
            except Unusable as error:
                log.info("the local plane of %s is lost, reading over Flight: %s", self.address, error)
                self._lose(local)
                if self._plane == "local":
                    raise ServerUnreachable(f"the local plane of {self.address} is gone: {error}") from error
        return self._flight.read(request)

    def _lose(self, local: LocalPlane) -> None:
        with self._lock:
            if self._local is local:
                self._local = None
                self._looked = time.monotonic()
        local.close()

    def write(self, request: WriteRequest, rows: pa.Table) -> WriteResult:
        """Return once *rows* are durable."""
        return self._flight.write(request, rows)

    def schema(self, dataset: str) -> pa.Schema:
        """Return the schema of *dataset*."""
        return self._flight.schema(dataset)

    def act(self, action: Action, body: Mapping[str, Any]) -> dict[str, Any] | pa.Table:
        """Return what *action* answers."""
        if action == Action.EVICT and self._local is not None:
            self._local.unmap()  # what this process keeps mapped could not leave
        return self._flight.act(action, body)

    def drop_connection(self) -> bool:
        """Do nothing before a fork: sockets of one's own survive it."""
        return False

    def arrive_in_child(self) -> None:
        """Take a new lock, and let the local plane make connections of its own."""
        self._lock = threading.Lock()
        if self._local is not None:
            self._local.arrive_in_child()

    def close(self) -> None:
        """Close both; a second call does nothing."""
        if self._local is not None:
            self._local.close()
            self._local = None
        self._plane = "flight"
        self._flight.close()
