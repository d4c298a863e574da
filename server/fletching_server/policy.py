"""What deserves memory: a pure decision, without I/O, clock or lock, that can be replayed from a log.

The hot tier asks; it removes leased entries before it does. For now the ranking is least recently used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Protocol

SMALL_BYTES: Final = 4 << 20  # reading 4 MB costs about what finding one symbol in the file costs
WHOLE_SHARE: Final = 0.25  # of a file's symbols: from here on reading everything is the cheaper plan
REMEMBERED: Final = 65_536  # keys whose last use is remembered after they left


class Policy(Protocol):
    """Ranks what is held and says whether a file deserves to be held whole."""

    def touch(self, key: Hashable) -> None:
        """Note one use of *key*, held or not."""
        ...

    def forget(self, key: Hashable) -> None:
        """Note that *key* will never be asked for again."""
        ...

    def coldest_first(self, held: frozenset[Hashable] | set[Hashable]) -> Iterator[Hashable]:
        """Yield *held* keys in the order in which they should leave."""
        ...

    def wants_whole(self, key: Hashable, size: int, share: float) -> bool:
        """Return whether a file of *size* bytes, *share* of whose symbols is wanted now, should be held whole."""
        ...


class LruPolicy:
    """Least recently used leaves first; a large file is held whole from its second use on."""

    def __init__(self) -> None:
        self._uses: OrderedDict[Hashable, int] = OrderedDict()

    def touch(self, key: Hashable) -> None:
        """Note one use of *key*, held or not."""
        self._uses[key] = self._uses.get(key, 0) + 1
        self._uses.move_to_end(key)
        if len(self._uses) > REMEMBERED:
            self._uses.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Note that *key* will never be asked for again."""
        self._uses.pop(key, None)

    def coldest_first(self, held: frozenset[Hashable] | set[Hashable]) -> Iterator[Hashable]:
        """Yield *held* keys, the one used longest ago first; one that was never used at all comes before."""
        yield from (key for key in held if key not in self._uses)
        yield from [key for key in self._uses if key in held]

    def wants_whole(self, key: Hashable, size: int, share: float) -> bool:
        """Return whether a file should be held whole: it is small, most of it is wanted, or it was wanted before."""
        return size <= SMALL_BYTES or share >= WHOLE_SHARE or self._uses.get(key, 0) > 1
