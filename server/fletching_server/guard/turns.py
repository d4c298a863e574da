"""Who is next: people before the background, and among people one call each in turn, however many calls each has waiting.

Where there is more than one thread, the background never has the last: what it is doing may take as long as a deadline.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

Job = Callable[[], None]


class FairQueue:
    """Jobs by principal, taken round-robin; those of the background only when nobody else waits. Pure, no lock."""

    def __init__(self) -> None:
        self._foreground: OrderedDict[str, deque[Job]] = OrderedDict()
        self._background: OrderedDict[str, deque[Job]] = OrderedDict()

    def put(self, principal: str, job: Job, *, background: bool = False) -> None:
        """Let *job* of *principal* wait behind the others of the same principal."""
        (self._background if background else self._foreground).setdefault(principal, deque()).append(job)

    def has(self, *, background: bool) -> bool:
        """Return whether a job of people, or one of the background, waits."""
        return bool(self._background if background else self._foreground)

    def take(self) -> Job | None:
        """Return the next job, or None; its principal goes to the end of the row."""
        for row in (self._foreground, self._background):
            if row:
                principal, jobs = row.popitem(last=False)
                job = jobs.popleft()
                if jobs:
                    row[principal] = jobs
                return job
        return None

    def promote(self, job: Job) -> bool:
        """Move *job* from the background to the people who wait; False where it has left already."""
        for principal, jobs in self._background.items():
            if job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._background[principal]
                self.put(principal, job)
                return True
        return False

    def drain(self) -> list[Job]:
        """Return all jobs, and forget them."""
        jobs = [job for row in (self._foreground, self._background) for each in row.values() for job in each]
        self._foreground.clear()
        self._background.clear()
        return jobs

    def __len__(self) -> int:
        return sum(len(jobs) for row in (self._foreground, self._background) for jobs in row.values())


class Turns:
    """Threads that run jobs in fair order."""

    def __init__(self, name: str, threads: int, most_background: int = 64) -> None:
        self._name, self._most = name, threads
        self._room = max(1, min(threads - 1, most_background))  # for so many more jobs of the background
        self._queue = FairQueue()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, principal: str, job: Job, *, background: bool = False) -> None:
        """Have *job* run when it is its turn; ``RuntimeError`` after ``close``."""
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{self._name} takes no more jobs")
            self._queue.put(principal, job, background=background)
            if len(self._queue) > self._idle and len(self._threads) < self._most:
                thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def promote(self, job: Job) -> None:
        """Treat a job of the background from now on as one that somebody waits for."""
        with self._changed:
            self._queue.promote(job)
            self._changed.notify()

    def waiting(self) -> int:
        """Return how many jobs wait for their turn."""
        with self._changed:
            return len(self._queue)

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            job, background = taken
            try:
                job()
            except BaseException:  # the job has told whoever waits for it; this thread serves others
                log.exception("a job failed", turns=self._name)
            with self._changed:
                self._room += background

    def _next(self) -> tuple[Job, bool] | None:
        """Return the next job, once there is one, and whether it is one of the background; None after ``close``."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._closed or self._may_go())
            self._idle -= 1
            background = not self._queue.has(background=False)
            job = self._queue.take()
            if job is None:
                return None
            self._room -= background
            return job, background

    def _may_go(self) -> bool:
        return self._queue.has(background=False) or (self._room > 0 and self._queue.has(background=True))

    def close(self) -> None:
        """Take no more jobs, drop those that have not started, and wait for those under way."""
        with self._changed:
            self._closed = True
            self._queue.drain()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
