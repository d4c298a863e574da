"""What has been asked for: a row per partition, kept as arrays of numbers until the trace is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.desk.sessions import Numbers


@dataclass(eq=False)
class Rows:
    """Rows of the trace before they have names; partitions of one request share its number."""

    at: Numbers  # microseconds since 1970, UTC
    principal: Numbers
    profile: Numbers
    dataset: Numbers
    bucket: Numbers
    session: Numbers  # by index; -1: none
    request: Numbers


class Requests:
    """Collects requests; principals and profiles get numbers in the order in which they appear."""

    def __init__(self) -> None:
        self._parts: list[tuple[Numbers, ...]] = []
        self._names: dict[str, dict[str, int]] = {"principal": {}, "profile": {}}
        self._requests = 0

    def add(
        self,
        who: str,
        profile: str,
        dataset: int,
        buckets: npt.ArrayLike,
        sessions: npt.ArrayLike,
        at: npt.ArrayLike,
        *,
        together: npt.ArrayLike | None = None,
    ) -> None:
        """Add a row per partition, each its own request; rows of the same number in *together* are one (0: all of them)."""
        shape = np.broadcast(buckets, sessions, at)
        columns = [np.broadcast_to(np.asarray(each, np.int64), shape.shape).ravel() for each in (buckets, sessions, at)]
        count = shape.size
        inside = np.arange(count) if together is None else np.broadcast_to(together, count)
        numbers = [self._number("principal", who), self._number("profile", profile), dataset]
        repeated = [np.full(count, number) for number in numbers]
        self._parts.append((columns[2], *repeated, columns[0], columns[1], self._requests + np.asarray(inside, np.int64)))
        self._requests += int(inside.max(initial=-1)) + 1

    def _number(self, kind: str, name: str) -> int:
        names = self._names[kind]
        return names.setdefault(name, len(names))

    def names(self, kind: str) -> list[str]:
        """Return the names of principals or profiles, by number."""
        return list(self._names[kind])

    def rows(self) -> Rows:
        """Return all rows, in the order in which they were added."""
        return Rows(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))
