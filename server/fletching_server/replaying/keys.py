"""Traces of keys alone drive the policy alone: no clock, no tiers, no warming. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fletching_server.policy import Item, Policy


@dataclass
class KeysOutcome:
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


def replay_keys(trace: Iterable[tuple[str, int]], policy: Policy, max_bytes: int) -> KeysOutcome:
    """Return the outcome of *trace*, (key, bytes) per request, under *policy* within *max_bytes*.

    A miss costs one second per object, whatever its size. What is larger than the budget, or not worth what would have to
    leave for it, is served through and counted as refused.
    """
    held: dict[str, int] = {}
    used, outcome = 0, KeysOutcome()
    for key, size in trace:
        outcome.requests += 1
        outcome.bytes += size
        item = Item(key, key, size, 1.0)
        policy.touch(item)
        if key in held:
            outcome.hits += 1
            outcome.hit_bytes += size
            continue
        excess = used + size - max_bytes
        victims = policy.victims(excess, ()) if 0 < excess <= used else []
        if size > max_bytes or not policy.beats(item, victims):
            outcome.refused += 1
            continue
        for victim in victims:
            policy.leave(victim)
            used -= held.pop(victim)
        outcome.evictions += len(victims)
        held[key] = size
        used += size
        policy.admit(item)
    return outcome
