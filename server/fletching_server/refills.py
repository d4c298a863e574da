"""What it takes to have a file in memory again: per dataset a line through the loads that were measured, the newest most.

Pure. A load takes some seconds for itself, and some for each byte. Both follow from sums that fade with every load, begun
with a few loads as an ordinary disk would have done them; so an estimate is there from the start, and always positive. A
load that was held up by something else counts as a few times what was expected, no more; where loads have really become so
slow, the estimate follows within a few of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EACH_SECONDS: Final = 0.010  # what is expected of a disk nobody has measured: opening, footer, decoding the first page
BYTE_SECONDS: Final = 1 / 600e6
_FADING: Final = 0.95  # a load counts half after fourteen others
_SURPRISE: Final = 4.0  # a load counts as at most so many times what was expected, and at least as that part
_SHIFT: Final = 1.25  # estimates that moved by less are as good as before
_LEAST_SECONDS: Final = 1e-6
_KNOWN_BYTES: Final = (1e6, 64e6)  # sizes of the loads that are imagined at the start


@dataclass(frozen=True)
class Line:
    """Seconds for each load, and for each of its bytes."""

    each: float = EACH_SECONDS
    byte: float = BYTE_SECONDS

    def seconds(self, size: int) -> float:
        """Return what a load of *size* bytes takes; more than nothing."""
        return self.each + self.byte * size


_ORDINARY: Final = Line()


class _Fit:
    """A line by least squares, relative to an ordinary disk: a second too many is worse for a small load than for a large."""

    def __init__(self) -> None:
        self.line = self.announced = _ORDINARY
        self._sums = [0.0] * 5
        for size in _KNOWN_BYTES:
            self._add(size, self.line.seconds(int(size)))

    def note(self, size: int, seconds: float) -> None:
        expected = self.line.seconds(size)
        self._sums = [_FADING * total for total in self._sums]
        self._add(size, min(max(seconds, expected / _SURPRISE), expected * _SURPRISE))
        self.line = self._line()

    def _add(self, size: float, seconds: float) -> None:
        weight = 1 / _ORDINARY.seconds(int(size)) ** 2
        new = (weight, weight * size, weight * size * size, weight * seconds, weight * size * seconds)
        self._sums = [total + part for total, part in zip(self._sums, new, strict=True)]

    def _line(self) -> Line:
        """Return the line through the sums; where it would go below nothing at one end, the best that does not."""
        n, x, xx, y, xy = self._sums
        spread = n * xx - x * x
        if spread <= 1e-9 * n * xx:  # all loads of one size: they tell where the line is, not how steep
            return _scaled(self.line, y, n * self.line.each + x * self.line.byte)
        byte = (n * xy - x * y) / spread
        each = (y - byte * x) / n
        if byte <= 0:
            return Line(y / n, 0.0)
        if each <= 0:
            return Line(_LEAST_SECONDS, xy / xx)
        return Line(each, byte)


def _scaled(line: Line, measured: float, expected: float) -> Line:
    factor = measured / expected
    return Line(line.each * factor, line.byte * factor)


class Refills:
    """The lines of one store's datasets. Not safe from several threads: the tier asks under its lock."""

    def __init__(self) -> None:
        self._fits: dict[str, _Fit] = {}

    def note(self, dataset: str, size: int, seconds: float) -> bool:
        """Learn from one load, and return whether estimates of *dataset* are no longer what they were."""
        fit = self._fits.setdefault(dataset, _Fit())
        fit.note(size, seconds)
        new, old = fit.line.seconds(size), fit.announced.seconds(size)
        if old / _SHIFT <= new <= old * _SHIFT:
            return False
        fit.announced = fit.line
        return True

    def seconds(self, dataset: str, size: int) -> float:
        """Return what it takes to have *size* bytes of *dataset* in memory again."""
        fit = self._fits.get(dataset)
        return (_ORDINARY if fit is None else fit.line).seconds(size)
