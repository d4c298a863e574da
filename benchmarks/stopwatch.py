"""The child's side of a race: it does what it is told, times itself, and answers over a pipe, a line of JSON each.

It runs in the environments of the peers too, so it needs nothing but the standard library; Polars where rows are compared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """*call* is timed, with the number of the call; *before* runs before each, outside the clock.

    *rows* turns what *call* returned into a Polars frame, to be compared with what the others found.
    """

    call: Callable[[int], Any]
    before: Callable[[], Any] = lambda: None
    rows: Callable[[Any, int], Any] = lambda found, _: found


def serve(tell: int, facts: Mapping[str, Any], works: Mapping[str, Work]) -> None:
    """Answer requests from stdin until it is closed, which the system does when the parent dies."""
    with os.fdopen(tell, "w", buffering=1) as pipe:
        pipe.write(json.dumps(facts) + "\n")
        for line in sys.stdin:
            asked = json.loads(line)
            answer = {"time": _timed, "rows": _stored}[asked["do"]](works[asked["work"]], asked)
            pipe.write(json.dumps(answer) + "\n")


def _timed(work: Work, asked: Mapping[str, Any]) -> list[float]:
    """Return milliseconds per call; what a call returned is let go after the clock has stopped."""
    found = []
    for number in range(asked["first"], asked["first"] + asked["calls"]):
        work.before()
        started = time.perf_counter()
        result = work.call(number)
        found.append(1e3 * (time.perf_counter() - started))
        del result
    return found


def _stored(work: Work, asked: Mapping[str, Any]) -> int:
    work.before()
    frame = work.rows(work.call(asked["first"]), asked["first"])
    frame.write_ipc(asked["path"])
    return int(frame.height)
