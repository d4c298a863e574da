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


def replay(trace: Iterable[Item], policy: Policy, max_bytes: int) -> Outcome:
    """Return the outcome of *trace*, an item per request, under *policy* within *max_bytes*.

    A miss is admitted where it is worth more than what leaves for it. What is not, or is larger than the whole budget, is served
    through and counted as refused.
    """
    held: dict[str, int] = {}
    used, outcome = 0, Outcome()
    for item in trace:
        outcome.requests += 1
        outcome.bytes += item.bytes
        policy.touch(item)
        if item.key in held:
            outcome.hits += 1
            outcome.hit_bytes += item.bytes
            continue
        victims = policy.victims(used + item.bytes - max_bytes, ()) if item.bytes <= max_bytes else []
        if item.bytes > max_bytes or not policy.beats(item, victims):
            outcome.refused += 1
            continue
        for victim in victims:
            policy.leave(victim)
            used -= held.pop(victim)
        outcome.evictions += len(victims)
        held[item.key] = item.bytes
        used += item.bytes
        policy.admit(item)
    return outcome
