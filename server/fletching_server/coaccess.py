"""What is asked for together: after *a*, how likely the same reader asks for *b* within ten minutes. Pure.

First order, on relative keys, with decayed counts shrunk towards nothing: a pair has to be seen several times before it is
acted upon.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from fletching_server.predictor import RelativeKey

WITHIN_SECONDS: Final = 600.0
_SHRINKAGE: Final = 3.0  # touches of *a* without *b* that are taken as seen
_ONCE: Final = 1.0  # is no pattern
_LAST: Final = 12  # different keys that a reader touched just now
_PARTNERS: Final = 24  # remembered per key
_MOST_KEYS: Final = 20_000
_FADE: Final = 0.97  # per touch of *a*: half after some twenty


class CoAccess:
    """Decayed counts of touches, and of what followed them."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, deque[tuple[float, RelativeKey]]] = OrderedDict()
        self._counts: OrderedDict[RelativeKey, float] = OrderedDict()
        self._pairs: dict[RelativeKey, dict[RelativeKey, float]] = {}

    def note(self, principal: str, at: float, key: RelativeKey) -> bool:
        """Count one touch; return whether it is a new one: the reader has not touched *key* within the ten minutes before."""
        recent = self._recent.setdefault(principal, deque(maxlen=_LAST))
        self._recent.move_to_end(principal)
        while recent and at - recent[0][0] > WITHIN_SECONDS:
            recent.popleft()
        if any(known == key for _, known in recent):
            return False
        for _, before in recent:
            self._pair(before, key)
        recent.append((at, key))
        self._count(key)
        if len(self._recent) > _MOST_KEYS:
            self._recent.popitem(last=False)
        return True

    def _count(self, key: RelativeKey) -> None:
        self._counts[key] = self._counts.get(key, 0.0) * _FADE + 1.0
        self._counts.move_to_end(key)
        if key in self._pairs:
            pairs = self._pairs[key]
            for partner in pairs:
                pairs[partner] *= _FADE
        if len(self._counts) > _MOST_KEYS:
            gone, _ = self._counts.popitem(last=False)
            self._pairs.pop(gone, None)

    def _pair(self, before: RelativeKey, after: RelativeKey) -> None:
        pairs = self._pairs.setdefault(before, {})
        pairs[after] = pairs.get(after, 0.0) + 1.0
        if len(pairs) > _PARTNERS:
            del pairs[min(pairs, key=pairs.__getitem__)]

    def following(self, key: RelativeKey) -> list[tuple[RelativeKey, float]]:
        """Return what is asked for after *key*, with its chance, the likeliest first."""
        seen = self._counts.get(key, 0.0) + _SHRINKAGE
        pairs = self._pairs.get(key, {})
        found = [(partner, min(1.0, count / seen)) for partner, count in pairs.items() if count > _ONCE]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].dataset, pair[0].bucket))
