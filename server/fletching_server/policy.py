"""What deserves memory: a pure decision, without I/O, clock or lock, that can be replayed from a log.

The hot tier asks; it removes leased entries before it does. For now the ranking is least recently used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

SMALL_BYTES: Final = 4 << 20  # reading 4 MB costs about what finding one symbol in the file costs
WHOLE_SHARE: Final = 0.25  # of a file's symbols: from here on reading everything is the cheaper plan
GHOSTS: Final = 65_536  # keys that left and whose uses are still remembered


class Policy(Protocol):
    """Ranks what is held and says whether a file deserves to be held whole."""

    def touch(self, key: str) -> None:
        """Note one use of *key*, held or not."""
        ...

    def admit(self, key: str) -> None:
        """Note that *key* is held from now on."""
        ...

    def leave(self, key: str) -> None:
        """Note that *key* is not held any more."""
        ...

    def forget(self, key: str) -> None:
        """Note that *key* will never be asked for again."""
        ...

    def coldest_first(self) -> Iterator[str]:
        """Yield what is held in the order in which it should leave; the caller skips what is leased."""
        ...

    def wants_whole(self, key: str, size: int, share: float) -> bool:
        """Return whether a file of *size* bytes, *share* of whose symbols is wanted now, should be held whole."""
        ...


class LruPolicy:
    """Least recently used leaves first; a large file is held whole from its second use on."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, None] = OrderedDict()  # by last use, the oldest first
        self._uses: OrderedDict[str, int] = OrderedDict()  # of held keys and of ghosts

    def touch(self, key: str) -> None:
        """Note one use of *key*, held or not."""
        self._uses[key] = self._uses.get(key, 0) + 1
        self._uses.move_to_end(key)
        if len(self._uses) > GHOSTS + len(self._held):
            self._uses.popitem(last=False)
        if key in self._held:
            self._held.move_to_end(key)

    def admit(self, key: str) -> None:
        """Note that *key* is held from now on."""
        self._held[key] = None

    def leave(self, key: str) -> None:
        """Note that *key* is not held any more; its uses are remembered."""
        self._held.pop(key, None)

    def forget(self, key: str) -> None:
        """Note that *key* will never be asked for again."""
        self._held.pop(key, None)
        self._uses.pop(key, None)

    def coldest_first(self) -> Iterator[str]:
        """Yield what is held, the one used longest ago first."""
        yield from self._held

    def wants_whole(self, key: str, size: int, share: float) -> bool:
        """Return whether a file should be held whole: it is small, most of it is wanted, or it was wanted before."""
        return size <= SMALL_BYTES or share >= WHOLE_SHARE or self._uses.get(key, 0) > 1
