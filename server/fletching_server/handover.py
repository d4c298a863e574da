"""What of an answer another process may map, and what has to travel there.

Rows that lie in sealed images are named by place; whoever asked holds a lease on each image for as long as it maps it. Other
rows (merged, adjusted, of images too small to be sealed) are gathered into one more image that leaves with its lease. A small
answer is cheaper to send than to map, and one that does not lie in memory is sent as it is read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import pyarrow as pa
import structlog

from fletching_server.answering import Answer
from fletching_server.batches import tight
from fletching_server.hot import HotTier
from fletching_server.leases import Lease
from fletching_server.lifetimes import Lifetimes
from fletching_server.pieces import Layers, Part, Place, gathered
from fletching_server.sealed import Sealed

log = structlog.get_logger(__name__)

# Up to here an answer is sent: the socket moves 1 MB in the time in which a few images are mapped and gathered from.
SENT_BYTES: Final = 1 << 20
FEW_PARTS: Final = 4
FEW_SENT_BYTES: Final = 128 << 10  # few runs are slices at once, where their image is mapped already
MOST_LOOSE_BYTES: Final = 64 << 20  # of rows gathered at once; beyond, the whole answer is sent batch by batch


@dataclass
class Mapped:
    """An answer as places in sealed images.

    ``images`` has the number of each image, by serial. ``parts`` is flat: rows, then per layer the number of an image and the
    first row in it. ``handed`` has two descriptors for each image that is handed over with the answer, by serial: the image,
    and what ends the lease on it. ``once`` is the serial of the image that nobody asks for again.
    """

    layers: Layers
    images: dict[int, int] = field(default_factory=dict)
    handed: dict[int, tuple[int, int]] = field(default_factory=dict)
    parts: list[int] = field(default_factory=list)
    once: int | None = None

    def add(self, rows: int, places: Iterable[tuple[Sealed, int]]) -> None:
        """Add *rows* that begin, layer by layer, at *places*."""
        self.parts.append(rows)
        for sealed, start in places:
            self.parts += (self.images.setdefault(sealed.serial, len(self.images)), start)


class Handover:
    """One answer on its way to a process that maps the images *known* already.

    A context manager: the descriptors in what it returns are good until it ends, by when they should have been sent.
    """

    def __init__(self, hot: HotTier, lifetimes: Lifetimes, known: Collection[int]) -> None:
        self._hot, self._lifetimes, self._known = hot, lifetimes, known
        self._open = ExitStack()
        self._mapped = Mapped(())
        self._lent: dict[str, Sealed] = {}

    def of(self, answer: Answer) -> Mapped | Iterator[pa.RecordBatch]:
        """Return the rows of *answer* as places in images where that is possible and worth it, else as batches to be sent."""
        if answer.parts is None:
            return map(tight, answer)
        taken, rows, loose, width = [], 0, 0, 0.0
        for part in answer.parts:
            taken.append(part)
            width = width or _width(part, answer.layers)
            rows += part.rows
            loose += 0 if _sealed(part) else part.rows
            if loose * width > MOST_LOOSE_BYTES:
                break
        else:
            most = FEW_SENT_BYTES if len(taken) <= FEW_PARTS else SENT_BYTES
            if rows and rows * width > most and self._maps(answer.layers, taken, width):
                return self._mapped
            if rows and len(answer.layers) == 1 and rows * width <= SENT_BYTES:
                return iter([tight(gathered(taken, answer.layers[0]))])
        return map(tight, answer.from_parts(taken))

    def _maps(self, layers: Layers, taken: Sequence[Part], width: float) -> bool:
        """Return whether *taken*, of rows of *width* bytes, could be put into places."""
        self._mapped = Mapped(layers)
        loose = [part for part in taken if not all(map(self._lend, part.places))]
        if sum(part.rows for part in loose) * width > MOST_LOOSE_BYTES:  # too much is lent already
            return False
        once = self._gathered(loose, layers) if loose else None
        if loose and once is None:
            return False
        self._mapped.once = once.serial if once else None
        row = 0
        for part in taken:
            if once is not None and not all(place.key in self._lent for place in part.places):
                self._mapped.add(part.rows, [(once, row)] * len(part.places))
                row += part.rows
            else:
                self._mapped.add(part.rows, ((self._lent[str(place.key)], place.start) for place in part.places))
        return True

    def _lend(self, place: Place) -> bool:
        """Return whether the asker maps the image at *place*, or gets it now."""
        sealed = place.image.sealed
        if sealed is None or place.key is None:
            return False
        if place.key in self._lent:
            return True
        if sealed.serial not in self._known and not self._hand(self._hot.lend(place.key)):
            return False
        self._lent[place.key] = sealed
        return True

    def _hand(self, lease: Lease | None) -> Sealed | None:
        """Bind *lease* to a descriptor, and return its image; None where there is none to be had of either."""
        if lease is None or (sealed := lease.image.sealed) is None:
            return None
        try:
            ending = self._lifetimes.bind(lease)
        except (OSError, ValueError) as error:  # no descriptor left, or closed by now
            lease.release()
            log.warning("an image cannot be handed over: its rows are sent", error=str(error))
            return None
        self._open.callback(os.close, ending)
        self._mapped.handed[sealed.serial] = (sealed.fd, ending)
        return sealed

    def _gathered(self, loose: Sequence[Part], layers: Layers) -> Sealed | None:
        """Return an image of the rows of *loose*, all columns together, that leaves with its lease."""
        rows = pa.concat_tables([part.table(layers) for part in loose]).combine_chunks()
        batches = [tight(batch) for batch in rows.to_batches()]
        return self._hand(self._hot.lend_once(pa.Table.from_batches(batches, schema=rows.schema)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()


def _width(part: Part, layers: Layers) -> float:
    """Return what a row takes, on average over the images in which *part* lies."""
    return sum(place.image.row_bytes(names) for place, names in zip(part.places, layers, strict=True))


def _sealed(part: Part) -> bool:
    return all(place.image.sealed is not None and place.key is not None for place in part.places)
