"""What a predicted chance has meant so far: ten bins, what came of them, made monotone (pool adjacent violators). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final

BINS: Final = 10
_TRUST: Final = 20.0  # outcomes that a bin starts with, all as predicted
_FADE: Final = 0.5 ** (1 / 16)  # per session: what was true last year is not what counts


class Calibration:
    """Observed frequencies by predicted chance, learned prequentially: first asked, then told what happened."""

    def __init__(self) -> None:
        middles = [(number + 0.5) / BINS for number in range(BINS)]
        self._predicted = [middle * _TRUST for middle in middles]
        self._observed = list(self._predicted)
        self._count = [_TRUST] * BINS
        self._points = self._fitted()

    def __call__(self, chance: float) -> float:
        """Return the frequency that *chance* has stood for, between the bins' means by straight lines."""
        points = self._points
        if chance <= points[0][0]:
            return points[0][1] * chance / max(points[0][0], 1e-9)
        for (low, below), (high, above) in pairwise(points):
            if chance <= high:
                return below + (above - below) * (chance - low) / max(high - low, 1e-9)
        return points[-1][1]

    def learn(self, outcomes: Iterable[tuple[float, bool]]) -> None:
        """Take one session's outcomes: what was predicted (before calibration), and whether it happened."""
        for bin_ in range(BINS):
            kept = _TRUST + (self._count[bin_] - _TRUST) * _FADE
            for sums in (self._predicted, self._observed):
                sums[bin_] *= kept / self._count[bin_]
            self._count[bin_] = kept
        for chance, happened in outcomes:
            bin_ = min(int(chance * BINS), BINS - 1)
            self._predicted[bin_] += chance
            self._observed[bin_] += happened
            self._count[bin_] += 1
        self._points = self._fitted()

    def bins(self) -> list[tuple[float, float, float]]:
        """Return, per bin, the mean chance predicted, the frequency observed, and the weight of the outcomes."""
        sums = zip(self._predicted, self._observed, self._count, strict=True)
        return [(predicted / count, observed / count, count) for predicted, observed, count in sums]

    def _fitted(self) -> list[tuple[float, float]]:
        """Return (chance, frequency) points whose frequencies never fall: neighbours that do are pooled."""
        pools: list[list[float]] = []  # predicted, observed, count
        for sums in zip(self._predicted, self._observed, self._count, strict=True):
            pools.append(list(sums))
            while len(pools) > 1 and pools[-2][1] / pools[-2][2] > pools[-1][1] / pools[-1][2]:
                last = pools.pop()
                pools[-1] = [one + other for one, other in zip(pools[-1], last, strict=True)]
        return [(predicted / count, observed / count) for predicted, observed, count in pools]
