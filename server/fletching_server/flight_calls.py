"""Flight calls under way: what each holds until it ends, what its headers say, and when all have ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.flight as fl
import structlog

from fletching_schemas import headers

log = structlog.get_logger(__name__)


class Call(fl.ServerMiddleware):  # type: ignore[misc]  # pyarrow has no types
    """One call under way: what it holds, and what its headers say."""

    def __init__(self, calls: Calls, sent: Mapping[str, list[str]]) -> None:
        self.holds = ExitStack()
        self._calls, self._sent = calls, sent
        calls.enter()

    def said(self, header: str) -> str | None:
        """Return what the client sent as *header*."""
        values = self._sent.get(header)
        return str(values[0]) if values else None

    def compression(self) -> pa.ipc.IpcWriteOptions | None:
        """Return how to write batches; None: plainly. Raises ``InvalidRequest`` for a compression that there is not."""
        name = self.said(headers.COMPRESSION)
        return None if name is None else pa.ipc.IpcWriteOptions(compression=headers.check_compression(name))

    def call_completed(self, exception: object) -> None:
        """Let go of everything; pyarrow calls this exactly once, also after a cancellation."""
        del exception
        try:
            self.holds.close()
        except Exception:
            log.exception("ending a call failed")
        finally:
            self._calls.leave()


class Calls(fl.ServerMiddlewareFactory):  # type: ignore[misc]  # the same
    """Counts the calls under way, so that a drain can wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active = 0

    def start_call(self, info: object, sent: Mapping[str, list[str]]) -> Call:
        """Return the record of a new call with the headers *sent*."""
        del info
        return Call(self, sent)

    def enter(self) -> None:
        """Count one more."""
        with self._changed:
            self._active += 1

    def leave(self) -> None:
        """Count one less, and tell those who wait for the last."""
        with self._changed:
            self._active -= 1
            if not self._active:
                self._changed.notify_all()

    @property
    def active(self) -> int:
        """How many calls are under way."""
        return self._active

    def wait_until_idle(self, seconds: float) -> bool:
        """Return whether all calls ended within *seconds*."""
        with self._changed:
            return self._changed.wait_for(lambda: self._active == 0, seconds)
