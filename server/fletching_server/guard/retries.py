"""Which failures are worth another try, and after how long; with jitter, so that clients do not come back in step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeVar

from tenacity import RetryCallState, Retrying

from fletching_schemas.errors import Error, SourceThrottled, SourceTimeout, SourceUnavailable

T = TypeVar("T")

# Seconds before each further try. Dropped connections get one on a new connection; unreachable hosts get three.
_THROTTLED: Final = (5.0,)
_TIMED_OUT: Final = (1.0,)
_UNREACHABLE: Final = (1.0, 2.0, 4.0)


def schedule(error: BaseException | None) -> tuple[float, ...]:
    """Return the pauses before further tries after *error*; none where asking again cannot help."""
    if isinstance(error, Error) and error.retry_at is not None:
        return ()  # who says when to come back means it
    if isinstance(error, SourceThrottled):
        return _THROTTLED
    if isinstance(error, SourceTimeout):
        return _TIMED_OUT
    return _UNREACHABLE if isinstance(error, SourceUnavailable) else ()


def tried(call: Callable[[], T], pause: Callable[[float], None]) -> T:
    """Return what *call* returns, trying again as ``schedule`` says; the last error is raised as it is."""
    chance = random.Random()  # noqa: S311  # jitter, not a secret

    def wait(state: RetryCallState) -> float:
        pauses = schedule(_error(state))
        seconds = pauses[min(state.attempt_number, len(pauses)) - 1]
        return seconds * (1 + chance.random() / 2)

    retrying = Retrying(
        sleep=pause,
        wait=wait,
        retry=lambda state: bool(schedule(_error(state))),
        stop=lambda state: state.attempt_number > len(schedule(_error(state))),
        reraise=True,
    )
    return retrying(call)


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
