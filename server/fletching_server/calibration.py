"""What a predicted chance has meant so far: ten bins, what came of them, made monotone (pool adjacent violators). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

BINS: Final = 10
_LONG_IDLE, _MANY_READERS, _FAR, _NO_OFFSET = 6, 3, -6, 1  # from where on all are taken alike; where there are no sessions
_TRUST: Final = 20.0  # outcomes that a bin starts with, all as predicted
_FADE: Final = 0.5 ** (1 / 16)  # per session: what was true last year is not what counts


class Standing(NamedTuple):
    """What else is known of something predicted, coarsely: sessions since it was asked for, its offset, how many ask for it."""

    idle: int
    offset: int
    readers: int


def standing_of(idle: int, offset: int | None, readers: int) -> Standing:
    """Return the standing of what was asked for *idle* sessions ago, last, by so many *readers*."""
    near = _NO_OFFSET if offset is None else max(offset, _FAR)
    return Standing(min(idle, _LONG_IDLE), near, min(readers, _MANY_READERS))


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


class Calibrations:
    """A calibration for each standing of what is predicted: the same chance means less of what nobody has asked for in a week."""

    def __init__(self) -> None:
        self._by_standing: dict[Standing, Calibration] = {}

    def __call__(self, chance: float, standing: Standing) -> float:
        """Return the frequency that *chance* has stood for of things of this *standing*."""
        known = self._by_standing.get(standing)
        return chance if known is None else known(chance)

    def learn(self, outcomes: Iterable[tuple[float, Standing, bool]]) -> None:
        """Take one session's outcomes: what was predicted (before calibration), of what standing, and whether it happened."""
        sorted_out: dict[Standing, list[tuple[float, bool]]] = {standing: [] for standing in self._by_standing}
        for chance, standing, happened in outcomes:
            sorted_out.setdefault(standing, []).append((chance, happened))
        for standing, told in sorted_out.items():
            self._by_standing.setdefault(standing, Calibration()).learn(told)
