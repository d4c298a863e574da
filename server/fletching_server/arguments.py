"""The arguments of actions: checked, and refused with what would have been right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pyarrow as pa

from fletching_schemas import ReadRequest
from fletching_schemas.errors import InvalidRequest
from fletching_server.system import refuse_system

Arguments = Mapping[str, Any]
Verb = Callable[[Arguments], dict[str, Any] | pa.Table]

RANGE: Final = frozenset({"dataset", "symbols", "start", "end"})
READ: Final = frozenset(ReadRequest.__dataclass_fields__)
_MOST_DAYS: Final = 1e6


def none(verb: Callable[[], dict[str, Any] | pa.Table]) -> Verb:
    """Return *verb*, which takes none, as one that refuses any."""

    def run(body: Arguments) -> dict[str, Any] | pa.Table:
        if body:
            raise InvalidRequest(f"this action takes no arguments; it got {', '.join(map(str, body))[:90]}")
        return verb()

    return run


def asked(body: Arguments, allowed: frozenset[str] = READ) -> ReadRequest:
    """Return the request that *body* makes with the *allowed* arguments."""
    if unknown := sorted(set(body) - allowed):
        raise InvalidRequest(f"unknown argument {', '.join(unknown)[:90]}; there are {', '.join(sorted(allowed))}")
    if "dataset" not in body:
        raise InvalidRequest("name the dataset")
    return ReadRequest(**body)


def held_range(body: Arguments) -> ReadRequest:
    """Return the symbols and days that *body* names, of a dataset that is held in the store."""
    request = asked(body, RANGE)
    refuse_system(request.dataset)
    return request


def dataset(body: Arguments) -> str:
    """Return the name of a dataset that is held in the store, the only argument."""
    if set(body) != {"dataset"} or not isinstance(body["dataset"], str):
        raise InvalidRequest(f"this action takes one argument, the dataset's name; it got {', '.join(body) or 'none'}")
    refuse_system(body["dataset"])
    return str(body["dataset"])


def history_days(body: Arguments) -> float | None:
    """Return the days of history that *body* gives, beside a dataset; None where it gives none."""
    days = body.get("history_days")
    number = isinstance(days, (int, float)) and not isinstance(days, bool)
    if set(body) - {"dataset", "history_days"} or not (days is None or (number and 0 <= days < _MOST_DAYS)):
        raise InvalidRequest(f"it takes dataset and history_days, a number of days; it got {dict(body)!r:.90}")
    return days


def progress_id(body: Arguments) -> str:
    """Return the id of a read's progress, the only argument."""
    if set(body) != {"id"} or not isinstance(body["id"], str):
        raise InvalidRequest(f"progress takes one argument, id: the progress_id of a read; it got {', '.join(body) or 'none'}")
    return str(body["id"])
