"""Every input to sorted runs: read in order, parsed side by side, with so many chunks in memory and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from fletching_server import disk
from fletching_server.importing.conversion import convert
from fletching_server.importing.job import Job, Staged
from fletching_server.importing.plan import ImportPlan
from fletching_server.importing.readers import Chunk, Position, chunks
from fletching_server.importing.runs import sorted_run

Note = Callable[[int, int], None]  # bytes of inputs and records that are done


class _Stopped(Exception):  # noqa: N818  # not an error: another thread has one
    """Another chunk failed."""


@dataclass
class Staging:
    """Stages the inputs of *plan* in *job*: ``run`` returns when all are."""

    plan: ImportPlan
    job: Job
    workers: int
    note: Note

    def __post_init__(self) -> None:
        self._room = threading.Semaphore(2 * self.workers)
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self.digests: dict[str, str] = {}  # of the files that were read, for the records

    def run(self) -> list[Staged]:
        """Return every chunk, in the order of the inputs; what was staged before is not parsed again."""
        before = self.job.staged()
        by_input: dict[int, dict[int, Staged]] = {}
        for staged in before:
            by_input.setdefault(staged.input, {})[staged.number] = staged
        with ThreadPoolExecutor(self.workers) as parsers, ThreadPoolExecutor(self.workers) as readers:
            every = range(len(self.plan.inputs))
            reading = [readers.submit(self._read, place, by_input.get(place, {}), parsers) for place in every]
            try:
                wait(reading, return_when=FIRST_EXCEPTION)
            except BaseException as error:  # the user's interrupt
                self._fail(error)
                raise
        if self._failures:
            raise self._failures[0]
        found = (staged for future in reading for staged in future.result())
        return sorted(found, key=lambda staged: (staged.input, staged.number))

    def _fail(self, error: BaseException) -> None:
        """Let all threads stop; the first error is what is told."""
        if not isinstance(error, _Stopped):
            self._failures.append(error)
        self._stop.set()

    def _read(self, place: int, before: Mapping[int, Staged], parsers: ThreadPoolExecutor) -> list[Staged]:
        """Return the chunks of one input, parsed by *parsers*."""
        source, position = self.plan.inputs[place], _resumed(before)
        done = [before[number] for number in range(position.number)]
        self.note(min(position.start, source.bytes), sum(staged.records for staged in done))
        futures: list[Future[Staged]] = []
        passed = min(position.start, source.bytes)
        try:
            for chunk in chunks(source, self.plan.layout(source), self.plan.chunk_bytes, position):
                passed += chunk.bytes
                if chunk.number in before:
                    done.append(before[chunk.number])
                    self.note(chunk.bytes, before[chunk.number].records)
                    continue
                self._wait_for_room()
                futures.append(parsers.submit(self._stage, place, chunk))
            found = [*done, *(future.result() for future in futures)]
        except BaseException as error:
            self._fail(error)
            raise
        self.digests[str(source.path)] = self.digests.get(str(source.path)) or disk.file_digest(source.path)
        self.note(source.bytes - passed, 0)
        return found

    def _wait_for_room(self) -> None:
        while not self._room.acquire(timeout=1.0):
            if self._stop.is_set():
                break
        if self._stop.is_set():
            raise _Stopped

    def _stage(self, place: int, chunk: Chunk) -> Staged:
        try:
            if self._stop.is_set():
                raise _Stopped
            plan, source = self.plan, self.plan.inputs[place]
            found = convert(chunk.parse(), source, plan.found(source), plan.mapping, plan.dataset)
            run = sorted_run(plan.dataset, found.frame)
            staged = Staged(place, chunk.number, chunk.end, found.records, len(found.bad), found.frame.height, "")
            done = self.job.stage(staged, run, found.bad)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._room.release()
        self.note(chunk.bytes, found.records)
        return done


def _resumed(before: Mapping[int, Staged]) -> Position:
    """Return where reading goes on: behind the chunks that are staged without a gap."""
    number = 0
    while number in before:
        number += 1
    return Position(number, before[number - 1].end if number else 0)
