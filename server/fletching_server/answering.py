"""An answer on its way: a schema, rows that move as it is read, and what it holds until it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain

import pyarrow as pa

from fletching_schemas import ReadInfo
from fletching_server.batches import cut
from fletching_server.pieces import Layers, Part, lying
from fletching_server.plan import Plan
from fletching_server.reading import Reading


class Answer:
    """A schema, its batches, and the info that is complete when they have ended. Close it, or read it to its end.

    ``whole`` are all the rows, where they lie in memory as one run, without long text: nothing can fail any more and no code
    of ours is needed to cut them, so C++ may stream them by itself, in batches of ``batch_rows``. ``parts`` are the same rows
    as ``rows``, in place of them, where all lie in memory; ``layers`` says which columns lie together. ``plan`` is what was
    resolved, ``held`` what ends with the answer, ``reading`` the read that it answers.
    """

    def __init__(
        self,
        schema: pa.Schema,
        rows: pa.Table | Iterator[pa.RecordBatch],
        info: ReadInfo,
        held: ExitStack,
        batch_rows: int,
        plan: Plan,
        parts: Iterator[Part] | None = None,
        layers: Layers | None = None,
        *,
        reading: Reading | None = None,
    ) -> None:
        self.reading = reading
        self.schema, self.info, self.batch_rows, self.plan = schema, info, batch_rows, plan
        self.whole = rows if isinstance(rows, pa.Table) else None
        self._rows, self.held = rows, held
        if parts is None and self.whole is not None:
            parts, layers = lying(self.whole), (tuple(schema.names),)
        self.parts, self.layers = parts, layers or (plan.columns,)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._rows if self.whole is None else self.whole.to_batches(max_chunksize=self.batch_rows)
        finally:
            self.close()

    def from_parts(self, taken: Iterable[Part]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of *taken* and of the parts that follow, for whoever has looked at some already."""
        tables: Iterator[pa.Table] = (part.table(self.layers) for part in chain(taken, self.parts or ()))
        if len(self.layers) > 1:  # which are not in the answer's order
            tables = (table.select(self.schema.names) for table in tables)
        return cut(tables, self.batch_rows)

    def table(self) -> pa.Table:
        """Return all rows, and end the answer."""
        try:
            return pa.Table.from_batches(self._rows, self.schema) if self.whole is None else self.whole
        finally:
            self.close()

    def close(self) -> None:
        """End the leases. A second call does nothing; a generator that never started would not do it by itself."""
        self.held.close()
