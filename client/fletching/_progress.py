"""How far a read is, shown while it waits for upstream: one line on stderr, or whatever the caller makes of it."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from fletching_schemas import Action
from fletching_schemas.errors import Error

if TYPE_CHECKING:
    from fletching._transport import Transport

Show = Callable[[Mapping[str, int]], None]

_EVERY_SECONDS: Final = 0.25
_WIDTH: Final = 30


@contextmanager
def following(transport: Transport, progress: bool | Show) -> Iterator[str | None]:
    """Yield the name under which the server tells how far a read is, and show it until the end; None where nobody asks."""
    if progress is False:
        yield None
        return
    name, ended = uuid.uuid4().hex, threading.Event()
    show = progress if callable(progress) else _Bar()
    thread = threading.Thread(target=_poll, args=(transport, name, show, ended), name="fletching-progress", daemon=True)
    thread.start()
    try:
        yield name
    finally:
        ended.set()
        thread.join()


def _poll(transport: Transport, name: str, show: Show, ended: threading.Event) -> None:
    while not ended.wait(_EVERY_SECONDS):
        try:
            facts: Any = transport.act(Action.PROGRESS, {"id": name})
        except Error:  # following a read must not disturb it
            return
        if facts["due"]:
            show(facts)
    if isinstance(show, _Bar):
        show.end()


class _Bar:
    """One line that is written over: calls done of those due, failures, and how long it may still take."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = False

    def __call__(self, facts: Mapping[str, int]) -> None:
        done, due, failed = facts["done"], facts["due"], facts["failed"]
        filled = _WIDTH * done // due
        left = (time.monotonic() - self._started) * (due - done) / done if done else None
        told = f" {failed} failed" if failed else ""
        eta = "" if left is None else f" {left:,.0f} s left"
        self._write(f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{due} upstream calls{told}{eta}   ")

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            self._write("\n")

    def _write(self, text: str) -> None:
        self._shown = True
        sys.stderr.write(text)
        sys.stderr.flush()
