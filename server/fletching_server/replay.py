"""Driving the memory policy by a recorded trace, without a clock or a file: what a budget would have done. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fletching_server.policy import Item, Policy


@dataclass
class Outcome:
    """What one policy made of one trace: requests and bytes, and how many of them were found in memory."""

    requests: int = 0
    hits: int = 0
    bytes: int = 0
    hit_bytes: int = 0
    evictions: int = 0
    refused: int = 0

    @property
    def hit_ratio(self) -> float:
        """The share of requests that were found in memory."""
        return self.hits / max(self.requests, 1)

    @property
    def byte_hit_ratio(self) -> float:
        """The share of requested bytes that were found in memory."""
        return self.hit_bytes / max(self.bytes, 1)


def replay(trace: Iterable[tuple[str, int]], policy: Policy, max_bytes: int) -> Outcome:
    """Return the outcome of *trace*, (key, bytes) per request, under *policy* within *max_bytes*; each miss is admitted.

    An object larger than the whole budget is served through and counted as refused.
    """
    held: dict[str, int] = {}
    used, outcome = 0, Outcome()
    for key, size in trace:
        outcome.requests += 1
        outcome.bytes += size
        item = Item(key, key, size, 1.0)
        policy.touch(item)
        if key in held:
            outcome.hits += 1
            outcome.hit_bytes += size
        elif size > max_bytes:
            outcome.refused += 1
        else:
            used -= _make_room(held, policy, used + size - max_bytes, outcome)
            held[key] = size
            policy.admit(item)
            used += size
    return outcome


def _make_room(held: dict[str, int], policy: Policy, excess: int, outcome: Outcome) -> int:
    """Evict until *excess* bytes are gone, and return how many went."""
    victims = policy.victims(excess, ())
    for victim in victims:
        policy.leave(victim)
    outcome.evictions += len(victims)
    return sum(held.pop(victim) for victim in victims)
