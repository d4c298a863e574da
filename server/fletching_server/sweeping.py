"""Passing through more than memory should hold: an answer in steps, and the next of them read while one is streamed.

Rows leave in the order (symbol, time). So many symbols are read at once as fit in memory together, from all their files; one
symbol's files are read one after the other, where they lie after each other in time. A step needs no more than is given here,
whatever the answer takes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from fletching_server.pieces import Run
from fletching_server.plan import Plan
from fletching_server.snapshot import StoredFile

MOST_AHEAD: Final = 8  # steps; more would only be thrown away where the reader stops
PASSING_BYTES: Final = 128 << 20  # beside memory, of all sweeps of a moment: each step opens every file again, so few are cheaper
_THREADS: Final = 2  # decoding uses more by itself, and people who read something else need the cores


@dataclass(frozen=True)
class Step:
    """The rows of *symbols* in *files*: all there are of them within the files' sessions."""

    symbols: Sequence[str]
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """About what its rows take in memory."""
        return int(sum(file.memory_bytes * file.share_of(self.symbols) for file in self.files))


@dataclass
class Ready:
    """The runs of one step, and what ends when its rows have left."""

    step: Step
    runs: list[Run]
    held: ExitStack


def steps(plan: Plan, most_bytes: float) -> Iterator[Step]:
    """Yield the steps of *plan*, in the order of its rows, of about *most_bytes* each where its symbols are no larger."""
    for symbols in groups(plan.symbols, plan.files, most_bytes):
        files = tuple(file for file in plan.files if file.share_of(symbols) > 0)
        for chosen in in_time(files) if len(symbols) == 1 else [files]:
            yield Step(symbols, tuple(chosen))


def groups(symbols: Sequence[str], files: Sequence[StoredFile], most_bytes: float) -> Iterator[Sequence[str]]:
    """Yield *symbols* in runs whose rows in *files* fit in *most_bytes*."""
    per_symbol = sum(file.memory_bytes / max(len(file.symbols), 1) for file in files)
    size = max(1, int(most_bytes / per_symbol)) if per_symbol else max(len(symbols), 1)
    for start in range(0, len(symbols), size):
        yield symbols[start : start + size]


def in_time(files: Sequence[StoredFile]) -> Iterator[list[StoredFile]]:
    """Yield *files* in the order of their sessions, those together that say something of the same ones."""
    group: list[StoredFile] = []
    last = 0
    for file in sorted(files, key=lambda file: file.reach):
        if group and file.reach.first > last:
            yield group
            group = []
        last = max(last, file.reach.last) if group else file.reach.last
        group.append(file)
    if group:
        yield group


@dataclass
class _Asked:
    """A step, and who reads it: nobody yet, where there is no future."""

    step: Step
    bytes: int = 0
    future: Future[Ready] | None = None


class ReadAhead:
    """Threads that read the next steps of answers: of all answers together no more than *max_bytes*. Close it.

    A step is of *least_bytes* where many sweep at a time, and of more where few do.
    """

    def __init__(self, max_bytes: int, least_bytes: int = 0) -> None:
        self._left, self._least_bytes, self._most_bytes = max_bytes, least_bytes, max(max_bytes, PASSING_BYTES)
        self._passages = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read-ahead")

    def enter(self) -> float:
        """Count one more answer that passes through, and return how large its steps may be."""
        with self._lock:
            self._passages += 1
            return max(self._least_bytes, self._most_bytes / self._passages)

    def leave(self) -> None:
        """Count one answer less."""
        with self._lock:
            self._passages -= 1

    def ask(self, step: Step, hold: Callable[[Step], Ready]) -> _Asked | None:
        """Return *step*, which is being read from now on; None where there is no room for it."""
        size = step.bytes
        with self._lock:
            if size > self._left:
                return None
            self._left -= size
        try:
            return _Asked(step, size, self._pool.submit(hold, step))
        except RuntimeError:  # closed meanwhile: whoever reads goes on by itself
            self.give_back(size)
            return None

    def give_back(self, size: int) -> None:
        """Let others have room for *size* bytes."""
        with self._lock:
            self._left += size

    def close(self) -> None:
        """Return once nothing is under way any more."""
        self._pool.shutdown(cancel_futures=True)


class Passage:
    """The steps of one answer, as *hold* reads them, those that follow ahead of time. Each ends when the next is asked for.

    *cut* returns the steps, of about so many bytes. Close it.

    A step whose turn comes before a thread was free for it is read by who asks: nobody waits behind somebody else's.
    """

    def __init__(self, cut: Callable[[float], Iterator[Step]], hold: Callable[[Step], Ready], ahead: ReadAhead) -> None:
        self._found, self._hold, self._ahead = cut(ahead.enter()), hold, ahead
        self._closing = ExitStack()
        self._closing.callback(ahead.leave)
        self._waiting: deque[_Asked] = deque()
        self._upcoming = next(self._found, None)
        self._passing = ExitStack()

    def __iter__(self) -> Iterator[Ready]:
        while (asked := self._turn()) is not None:
            self._passing.close()
            self._look_ahead()
            ready = self._read(asked)
            self._passing = ready.held
            yield ready

    def _turn(self) -> _Asked | None:
        if self._waiting:
            return self._waiting.popleft()
        step, self._upcoming = self._upcoming, next(self._found, None)
        return None if step is None else _Asked(step)

    def _look_ahead(self) -> None:
        while self._upcoming is not None and len(self._waiting) < MOST_AHEAD:
            asked = self._ahead.ask(self._upcoming, self._hold)
            if asked is None:
                return
            self._waiting.append(asked)
            self._upcoming = next(self._found, None)

    def _read(self, asked: _Asked) -> Ready:
        try:
            if asked.future is None or asked.future.cancel():
                return self._hold(asked.step)
            return asked.future.result()
        finally:
            self._ahead.give_back(asked.bytes)

    def close(self) -> None:
        """End the step that is passing, and those that were read ahead of it."""
        self._upcoming = None
        self._closing.close()
        self._passing.close()
        while self._waiting:
            asked = self._waiting.popleft()
            if asked.future is not None:
                asked.future.cancel()
                asked.future.add_done_callback(partial(self._ended, asked.bytes))

    def _ended(self, size: int, future: Future[Ready]) -> None:
        self._ahead.give_back(size)
        if not future.cancelled() and future.exception() is None:
            future.result().held.close()
