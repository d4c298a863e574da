"""The books of the hot tier: two rooms of so many bytes, and what lies in which. Pure.

The *main* room holds what is asked for again, as the policy ranks it. The *ring* holds what a sweep passes through: first in,
first out, unknown to the policy. Neither takes room from the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fletching_server.image import Image

# Of a server's memory: room for eight files ahead of a sweep where a file is a percent of it, and little to lose where none runs.
RING_SHARE: Final = 1 / 12


@dataclass(eq=False)
class Room:
    """So many bytes at most, of entries and of loads under way; ``keys`` are in the order in which they came."""

    max_bytes: int
    held: int = 0
    reserved: int = 0
    lent: int = 0
    keys: dict[str, None] = field(default_factory=dict)

    def excess(self, size: int) -> int:
        """Return how many bytes must go so that *size* more fit; not positive where they do."""
        return self.held + self.reserved + size - self.max_bytes


@dataclass(eq=False)
class Entry:
    """One image in memory, what it costs, and where it counts."""

    lineage: str
    image: Image
    cost: int
    room: Room
    known: bool = True  # to the policy; what lies in the ring, or leaves with its lease, is not
    warmed: bool = False  # nobody has asked for it since somebody was expected to
    leases: int = 0
    lent: int = 0  # so many of the leases are those of other processes
    doomed: bool = False  # evicted or superseded while leased: it leaves with its last lease, and can be leased until then


class Leased:
    """The keys that are leased now, as the policy asks for them."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries

    def __contains__(self, key: object) -> bool:
        entry = self._entries.get(key)  # type: ignore[call-overload]
        return entry is None or entry.leases > 0


def problems(entries: dict[str, Entry], main: Room, ring: Room, descriptors: int) -> Iterator[str]:
    """Yield what is wrong with the books: nothing, unless there is a bug."""
    for name, room in (("main room", main), ("ring", ring)):
        mine = {key: entry for key, entry in entries.items() if entry.room is room}
        owned = sum(entry.image.nbytes for entry in mine.values())
        if owned != room.held:
            yield f"hot tier counts {room.held} bytes in its {name} and holds {owned}"
        if room.held + room.reserved > room.max_bytes:
            yield f"hot tier holds {room.held} + {room.reserved} of {room.max_bytes} bytes in its {name}"
        lent = sum(entry.cost for entry in mine.values() if entry.lent)
        if lent != room.lent:
            yield f"hot tier counts {room.lent} lent bytes in its {name} and lends {lent}"
        if mine.keys() != room.keys.keys():
            yield f"hot tier lists {len(room.keys)} entries in its {name} and holds {len(mine)}"
    if any(entry.known for entry in entries.values() if entry.room is ring):
        yield "hot tier has told the policy of an entry in its ring"
    held = sum(entry.image.sealed is not None for entry in entries.values())
    if held != descriptors:
        yield f"hot tier counts {descriptors} descriptors and holds {held}"
