"""The access log as touches: the table from which ``predictor.REBUILD`` makes the habits of one exchange. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import pyarrow as pa

from fletching_server.access import AccessEvent
from fletching_server.agenda import Agenda, Slot
from fletching_server.predictor import NEWCOMERS, RelativeKey

TOUCHES: Final = pa.schema(
    [
        ("principal", pa.string()),
        ("slot", pa.int64()),
        ("daytype", pa.int64()),
        ("dataset", pa.string()),
        ("bucket", pa.string()),
        ("session_offset", pa.int64()),
        ("session", pa.int64()),
    ]
)


class _Touch(NamedTuple):
    principal: str
    slot: Slot
    key: RelativeKey
    session: int


def key_of(event: AccessEvent, agenda: Agenda, *, table: bool = False) -> RelativeKey | None:
    """Return what *event* asked for, told from its own session; None where it says nothing about other days."""
    if table:
        return RelativeKey(event.dataset, event.group, None)
    if event.last is None or (last := agenda.number(event.last)) < 0:
        return None
    return RelativeKey(event.dataset, event.group, last - agenda.present(event.at))


def touches(events: Iterable[AccessEvent], agenda: Agenda, is_table: Callable[[str], bool]) -> pa.Table:
    """Return a row for each kind of day and slot (its own and ANY) of each read that counts, those of newcomers among them.

    *events* are the reads of one exchange's datasets, in the order of the log; *is_table* says whether a dataset has no
    sessions. What ``Predictor.note`` counts is here, but for its bounds: it forgets what has faded, and what is too much.
    """
    rows = [
        (touch.principal, int(touch.slot), kind, *touch.key, touch.session)
        for touch in _counted(events, agenda, is_table)
        for kind in agenda.day_types(touch.session)
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(TOUCHES)
    return pa.table([pa.array(column, each.type) for column, each in zip(columns, TOUCHES, strict=True)], schema=TOUCHES)


def _counted(events: Iterable[AccessEvent], agenda: Agenda, is_table: Callable[[str], bool]) -> Iterator[_Touch]:
    """Yield each touch that counts: at most one a session, and none that is told after one of a later session."""
    latest: dict[tuple[str, Slot, RelativeKey], int] = {}
    for event in events:
        key = key_of(event, agenda, table=is_table(event.dataset))
        if key is None:
            continue
        session, slot = agenda.moment(event.at)
        if latest.get((event.principal, slot, key), -1) >= session:
            continue
        newly = (event.principal, Slot.ANY, key) not in latest
        everybody = ((NEWCOMERS, Slot.ANY),) if newly else ()
        for principal, part in ((event.principal, slot), *everybody, (event.principal, Slot.ANY)):
            if latest.get((principal, part, key), -1) < session:
                latest[principal, part, key] = session
                yield _Touch(principal, part, key, session)
