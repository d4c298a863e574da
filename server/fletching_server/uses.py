"""How often each partition is used, decayed, and how long its source takes: what the quota needs to know of the past.

A use weighs half after ``HALF_LIFE_SECONDS``. Weights are kept as logarithms (LRFU, Lee et al. 2001): between uses all of
them decay alike, so none has to be touched, and their order is the order of the decayed counts at any time. Weights of
partitions that left are kept: one that returns remembers how it was used.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import isfinite, log2
from typing import Any, Final

from fletching_server.clock import Clock
from fletching_server.notes import Notes
from fletching_server.snapshot import DatasetState, StoredFile

HALF_LIFE_SECONDS: Final = 8 * 86_400.0  # a week's rhythm, and some days: what is read every Monday is not forgotten on Friday
GUESSED_CALL_SECONDS: Final = 1.5  # of a source that was never asked; a typical round trip with its pause
_SMOOTHING: Final = 0.2  # the share of the newest call in the mean
_LEAST_CALL_SECONDS: Final = 1e-3
_MOST_KEPT: Final = 100_000  # weights, a hundred bytes each
_SAVE_SECONDS: Final = 600.0

Key = tuple[str, str, int]  # dataset, period, bucket: generations of one partition share it


def key_of(file: StoredFile) -> Key:
    """Return the partition that *file* is a generation of."""
    return file.dataset, file.period, file.bucket


def added(weight: float | None, count: float, at: float) -> float:
    """Return *weight* after *count* more uses at the instant *at*, in half-lives; None: there were none before."""
    fresh = at + log2(count)
    if weight is None:
        return fresh
    return max(weight, fresh) + log2(1 + 2 ** -abs(weight - fresh))


class Uses:
    """The uses of one store's partitions, safe from any thread; noting one is a dictionary's update."""

    def __init__(self, notes: Notes, clock: Clock) -> None:
        self._notes, self._clock = notes, clock
        self._lock = threading.Lock()  # never held for I/O
        self._noted: dict[Key, int] = {}  # since the weights were last worked out, which is minutes ago: nothing to half-lives
        self._weights: dict[Key, float] = {}
        self._call_seconds: dict[str, float] = {}
        self._reading: Counter[tuple[str, int]] = Counter()  # by dataset and its generation when a read found gaps
        self._saved = clock.monotonic()
        self._load()

    def note(self, file: StoredFile) -> None:
        """Count one use of *file*; those of the journal belong to no partition yet."""
        if file.kind == "partition":
            key = (file.dataset, file.period, file.bucket)
            with self._lock:
                self._noted[key] = self._noted.get(key, 0) + 1

    def filled(self, dataset: str, seconds: float) -> None:
        """Learn from one call to the source of *dataset* how long such a call takes."""
        seconds = max(seconds, _LEAST_CALL_SECONDS)
        with self._lock:
            before = self._call_seconds.get(dataset, seconds)
            self._call_seconds[dataset] = before + _SMOOTHING * (seconds - before)

    def call_seconds(self, dataset: str) -> float:
        """Return how long a call to the source of *dataset* takes."""
        return self._call_seconds.get(dataset, GUESSED_CALL_SECONDS)

    def weights(self, keys: Iterable[Key]) -> Mapping[Key, float]:
        """Return the weight of each of *keys*; one that is seen for the first time has just been filled, which is a use."""
        at = self._now()
        with self._lock:
            self._work_out(at)
            return {key: self._weights.setdefault(key, at) for key in keys}

    def decayed(self, weight: float) -> float:
        """Return the count of uses, each halved with every half-life of its age, that *weight* stands for now."""
        return _power(weight - self._now())

    def _now(self) -> float:
        return self._clock.now().timestamp() / HALF_LIFE_SECONDS

    def _work_out(self, at: float) -> None:
        noted, self._noted = self._noted, {}
        for key, count in noted.items():
            self._weights[key] = added(self._weights.get(key), count, at)
        if len(self._weights) > _MOST_KEPT:
            ranked = sorted(self._weights, key=self._weights.__getitem__, reverse=True)
            self._weights = {key: self._weights[key] for key in ranked[: _MOST_KEPT // 2]}

    # What arrives for a read stays until the read has pinned it: else a read larger than the quota would never end.

    def awaiting(self, state: DatasetState) -> Callable[[], None]:
        """Keep what is committed to a dataset after *state*, until what is returned is called."""
        begun = (state.dataset.name, state.generation)
        with self._lock:
            self._reading[begun] += 1

        def end() -> None:
            with self._lock:
                self._reading[begun] -= 1
                if not self._reading[begun]:
                    del self._reading[begun]

        return end

    def is_awaited(self, file: StoredFile) -> bool:
        """Return whether *file* arrived after a read began that is still collecting what it needs."""
        with self._lock:
            return any(dataset == file.dataset and generation < file.seq for dataset, generation in self._reading)

    # Across restarts

    def _load(self) -> None:
        found = self._notes.load()
        try:
            at = float(found["at"]) / HALF_LIFE_SECONDS if found else 0.0
            counts = {(str(name), str(period), int(bucket)): float(uses) for name, period, bucket, uses in found.get("uses", ())}
            seconds = {str(name): float(took) for name, took in found.get("call_seconds", {}).items()}
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            self._notes.distrust(repr(error))
            return
        self._weights = {key: at + log2(uses) for key, uses in counts.items() if uses > 0 and isfinite(uses + at)}
        self._call_seconds = {name: took for name, took in seconds.items() if took > 0 and isfinite(took)}

    def facts(self) -> dict[str, Any]:
        """Return what is kept across restarts: uses as decayed counts at one instant, and seconds per call."""
        at = self._now()
        with self._lock:
            self._work_out(at)
            weights, seconds = dict(self._weights), dict(self._call_seconds)
        uses = [[*key, _power(weight - at)] for key, weight in sorted(weights.items())]
        return {"at": at * HALF_LIFE_SECONDS, "uses": uses, "call_seconds": seconds}

    def save(self, *, now: bool = False) -> None:
        """Write down what is known, if that was not done in the last minutes."""
        if now or self._clock.monotonic() - self._saved >= _SAVE_SECONDS:
            self._saved = self._clock.monotonic()
            self._notes.save(self.facts())


def _power(exponent: float) -> float:
    return float(2 ** min(max(exponent, -1000.0), 1000.0))  # within what a float can say, whatever the clock was set to
