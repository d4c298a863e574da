"""AKShare through the cache: ``from fletching import akshare as ak``, and every ``ak.stock_zh_a_hist(...)`` stays as it was.

Each function returns what akshare's returns, same columns and dtypes, but one call serves the whole team, and akshare itself
runs at the server only. ``use`` chooses the cache; without it, it is ``fletching.connect()``.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa

from fletching._cache import Cache
from fletching._served import connect
from fletching_schemas import Action
from fletching_schemas.calls import CallInfo, CallRequest
from fletching_schemas.errors import Error

__all__ = ["StaleAnswer", "use"]

SOURCE: Final = "akshare"


class StaleAnswer(UserWarning):
    """The source cannot be asked at the moment, so what a function returned is older than it should be."""


class _Chosen:
    """The cache that all calls of this process go to, connected with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: Cache | None = None
        self._own = False
        self.options: dict[str, Any] = {}
        os.register_at_fork(after_in_child=self._arrive_in_child)

    def _arrive_in_child(self) -> None:
        self._lock = threading.Lock()  # the old one may be held by a thread that only the parent has

    def cache(self) -> Cache:
        with self._lock:
            if self._cache is None:
                self._cache, self._own = connect(), True
            return self._cache

    def choose(self, cache: Cache | str | None, options: dict[str, Any]) -> None:
        chosen = connect(cache) if isinstance(cache, str) else cache
        with self._lock:
            before, own = self._cache, self._own
            self._cache, self._own, self.options = chosen, isinstance(cache, str), options
        if before is not None and own:
            before.close()


_chosen: Final = _Chosen()


def use(cache: Cache | str | None = None, *, max_age: float | None = None, profile: str | None = None) -> None:
    """Send all later calls to *cache* (a ``Cache`` or an address; None: ``fletching.connect()`` with the next call).

    *max_age* (seconds) or *profile* (``trading``, ``research``, ``backtesting``) say how old answers may be, in place of what the
    server holds good for each function.
    """
    CallRequest(max_age=max_age, profile=profile)  # refuses what is none of these
    _chosen.choose(cache, {"max_age": max_age, "profile": profile})


@functools.cache  # one object per name: it can be compared, and pickled by its name
def _function(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        answer, info = _chosen.cache().call(name, kwargs, args=args, source=SOURCE, info=True, **_chosen.options)
        if info.stale:
            warnings.warn(_stale(name, info), StaleAnswer, stacklevel=2)
        return answer

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Return what akshare.{name} returns, through the cache; akshare's documentation has the arguments."
    return call


def _stale(name: str, info: CallInfo) -> str:
    return (
        f"akshare.{name}: the source cannot be asked now; this answer is {info.age_seconds:,.0f} s old, "
        f"fetched {info.fetched_at:%Y-%m-%d %H:%M} UTC with akshare {info.version}"
    )


def _listing() -> pa.Table:
    return _chosen.cache()._transport.act(Action.CALL, {"source": SOURCE})  # noqa: SLF001  # its metadata has the version


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return (_listing().schema.metadata or {})[b"version"].decode()
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function(name)


def __dir__() -> list[str]:
    try:
        listed = _listing()["function"].to_pylist()
    except Error:  # completing a name shall not fail because a server is away
        listed = []
    return sorted([*__all__, "__version__", *listed])
