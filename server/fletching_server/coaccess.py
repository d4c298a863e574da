"""What is asked for together: after *a*, how likely the same reader asks for *b* within ten minutes. Pure.

First order, on relative keys, with decayed counts shrunk towards nothing: a pair has to be seen several times before it is
acted upon.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from fletching_server.predictor import RelativeKey

WITHIN_SECONDS: Final = 600.0
_SHRINKAGE: Final = 3.0  # touches of *a* without *b* that are taken as seen
_ONCE: Final = 1.0  # is no pattern
_LAST: Final = 12  # different keys that a reader touched just now
_PARTNERS: Final = 24  # remembered per key, at least
_LARGE: Final = 1e12
_MOST_KEYS: Final = 20_000
_FADE: Final = 0.97  # per touch of *a*: half after some twenty


@dataclass(slots=True)
class _Following:
    """What followed one key: counts in units of *one*, which grows with each touch in place of all others fading."""

    one: float = 1.0
    touches: float = 0.0
    pairs: dict[RelativeKey, float] = field(default_factory=dict)


class CoAccess:
    """Decayed counts of touches, and of what followed them."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, deque[tuple[float, RelativeKey]]] = OrderedDict()
        self._known: OrderedDict[RelativeKey, _Following] = OrderedDict()

    def note(self, principal: str, at: float, key: RelativeKey) -> bool:
        """Count one touch; return whether it is a new one: the reader has not touched *key* within the ten minutes before."""
        recent = self._recent.get(principal)
        if recent is None:
            recent = self._recent[principal] = deque(maxlen=_LAST)
        self._recent.move_to_end(principal)
        while recent and not 0 <= at - recent[0][0] <= WITHIN_SECONDS:
            recent.popleft()
        if any(known == key for _, known in recent):
            return False
        for _, before in recent:
            if (known := self._known.get(before)) is not None:
                _pair(known, key)
        recent.append((at, key))
        self._count(key)
        if len(self._recent) > _MOST_KEYS:
            self._recent.popitem(last=False)
        return True

    def _count(self, key: RelativeKey) -> None:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Following()
        self._known.move_to_end(key)
        known.one /= _FADE
        known.touches += known.one
        if known.one > _LARGE:
            _scale_down(known)
        if len(self._known) > _MOST_KEYS:
            self._known.popitem(last=False)

    def following(self, key: RelativeKey) -> list[tuple[RelativeKey, float]]:
        """Return what is asked for after *key*, with its chance, the likeliest first."""
        known = self._known.get(key)
        if known is None:
            return []
        seen = known.touches + _SHRINKAGE * known.one
        found = [(partner, min(1.0, count / seen)) for partner, count in known.pairs.items() if count > _ONCE * known.one]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].dataset, pair[0].bucket, str(pair[0].offset)))


def _pair(known: _Following, after: RelativeKey) -> None:
    pairs = known.pairs
    pairs[after] = pairs.get(after, 0.0) + known.one
    if len(pairs) > 2 * _PARTNERS:
        known.pairs = dict(sorted(pairs.items(), key=lambda pair: -pair[1])[:_PARTNERS])


def _scale_down(known: _Following) -> None:
    known.touches /= known.one
    known.pairs = {partner: count / known.one for partner, count in known.pairs.items()}
    known.one = 1.0
