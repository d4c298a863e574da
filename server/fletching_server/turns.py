"""Placeholder until the guard's fair queue is merged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Turns:
    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, principal: str, job: Callable[[], None], *, background: bool = False) -> None:
        self._pool.submit(job)

    def promote(self, job: Any) -> None: ...

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
