"""The library as its callers see it: functions by name, each in the child of its family, under the family's budget."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from fletching_schemas.errors import SourceUnavailable
from fletching_server.sources.akshare import channel
from fletching_server.sources.akshare.child import Child
from fletching_server.sources.akshare.failures import failure_error
from fletching_server.sources.protocol import Budget, Meter

# Nobody publishes limits and reports disagree: these are our starting values, and the circuit is the real protection.
BUDGETS: Final[Mapping[str, Budget]] = {
    "eastmoney": Budget(at_once=1, spacing_seconds=2.0, per_hour=300, per_day=2000),
    "sina": Budget(at_once=1, spacing_seconds=3.0, per_hour=200, per_day=1000),
    "tencent": Budget(at_once=1, spacing_seconds=2.0, per_hour=300, per_day=2000),
    "exchange": Budget(at_once=1, spacing_seconds=5.0, per_hour=100, per_day=500),
    "other": Budget(at_once=1, spacing_seconds=2.0, per_hour=200, per_day=1000),
}
_FAMILIES: Final = {
    "eastmoney": ("eastmoney.com", "1234567.com.cn"),
    "sina": ("sina.com.cn", "sina.cn", "sinajs.cn"),
    "tencent": ("qq.com", "gtimg.cn"),
    "exchange": ("sse.com.cn", "szse.cn", "bse.cn", "csindex.com.cn", "cffex.com.cn", "shfe.com.cn", "czce.com.cn", "dce.com.cn"),
}
SWEEP_REQUESTS: Final = 60
_MOST_CALLS: Final = 200  # of one child: whatever the library leaks then leaves with it
_MOST_BYTES: Final = 600 << 20


def family_of(host: str) -> str:
    """Return which vendor *host* belongs to: its hosts share a budget, and perhaps a ban."""
    name = host.lower().rstrip(".")
    for family, domains in _FAMILIES.items():
        if any(name == domain or name.endswith(f".{domain}") for domain in domains):
            return family
    return "other"


class _NoMeter:
    """What a library does that nobody limits: a source outside of an engine."""

    def spend(self, family: str, requests: int = 1) -> None:
        """Return at once."""


class Library:
    """The children of one source. Raises ``SourceUnavailable`` where akshare is not installed."""

    def __init__(self, deadline_seconds: float, sweep_seconds: float) -> None:
        if importlib.util.find_spec("akshare") is None:
            raise SourceUnavailable("akshare is not installed; pip install 'fletching[akshare]'")
        self.version = importlib.metadata.version("akshare")
        self.meter: Meter = _NoMeter()
        self._seconds, self._sweep_seconds = deadline_seconds, sweep_seconds
        self._locks = {family: threading.Lock() for family in BUDGETS}
        self._children: dict[str, Child] = {}
        self._ends: dict[str, weakref.finalize[..., Library]] = {}
        self._closed = False

    def call(self, family: str, function: str, arguments: Mapping[str, Any], asked: str, *, sweep: bool = False) -> pa.Table:
        """Return the frame that *function* returns, as the library names and types it; its failures are our errors.

        A *sweep* pays for all its requests up front and keeps the library's own pauses.
        """
        request = {"function": function, "arguments": dict(arguments)}
        return self._asked(family, request, f"{function}({asked})", sweep=sweep)

    def encoded(self, family: str, function: str, arguments: Mapping[str, Any]) -> pa.Table:
        """Return what *function* returns in the form from which a client rebuilds it exactly."""
        request = {"function": function, "arguments": dict(arguments), "encoded": True}
        return self._asked(family, request, function, sweep=True, prepaid=False)

    def _asked(self, family: str, request: dict[str, Any], asked: str, *, sweep: bool, prepaid: bool = True) -> pa.Table:
        paid = sweep and prepaid
        if paid:
            self.meter.spend(family, SWEEP_REQUESTS)

        def permit(host: str) -> None:
            if not paid:
                self.meter.spend(family_of(host))

        with self._locks[family]:
            try:
                frame = self._child(family).ask(request, self._sweep_seconds if sweep else self._seconds, permit)
            except BaseException:
                self._drop(family)  # a child whose answer was not read to its end cannot be asked again
                raise
        note = channel.note_of(frame)
        if note is not None:
            raise failure_error(note["failure"], asked, self.version)
        return frame

    def _child(self, family: str) -> Child:
        """Return the family's child, started where there is none; the caller holds the lock."""
        held = self._children.get(family)
        if held is not None and held.alive and not self._worn(held):
            return held
        self._drop(family)
        child = self._children[family] = Child()
        self._ends[family] = weakref.finalize(self, child.end)
        if self._closed:  # looked at after the child is known: close() sets it before it looks for children
            raise SourceUnavailable("the akshare source is closed")
        note = channel.note_of(child.hello())
        if note is not None:
            raise SourceUnavailable(f"akshare {self.version} cannot be imported: {note['failure']['text']}")
        return child

    def _worn(self, child: Child) -> bool:
        if child.calls >= _MOST_CALLS:
            return True
        if child.calls % 20:
            return False
        used = child.ask({"function": "children_memory", "arguments": {}}, self._seconds, lambda _host: None)
        return bool(note_free(used) and used["bytes"][0].as_py() > _MOST_BYTES)

    def _drop(self, family: str) -> None:
        self._children.pop(family, None)
        if (end := self._ends.pop(family, None)) is not None:
            end()

    def close(self) -> None:
        """End all children; calls under way fail with ``SourceUnavailable``, and so do later ones."""
        self._closed = True
        for child in list(self._children.values()):
            child.kill()  # outside the locks, which calls hold until their answers come
        for family, lock in self._locks.items():
            with lock:
                self._drop(family)


def note_free(frame: pa.Table) -> bool:
    """Return whether *frame* is an answer."""
    return channel.note_of(frame) is None
