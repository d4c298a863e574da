"""What came of a replay: requests by tier, waiting, and how good the predictions were; per profile and overall."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fletching_server.replaying.trace import PROFILES

TIERS = ("hot", "cold", "upstream")
INTERACTIVE = ("trading", "research")  # somebody waits


@dataclass(slots=True)
class Served:
    """How requests of one profile were answered; *seconds* is what they waited, *without* what they would without a cache."""

    requests: int = 0
    hot: int = 0
    cold: int = 0
    upstream: int = 0
    bytes: int = 0
    hot_bytes: int = 0
    seconds: float = 0.0
    without: float = 0.0

    def count(self, tier: str, size: int, seconds: float, without: float) -> None:
        """Count one request."""
        self.requests += 1
        setattr(self, tier, getattr(self, tier) + 1)
        self.bytes += size
        self.hot_bytes += size if tier == "hot" else 0
        self.seconds += seconds
        self.without += without

    def add(self, other: Served) -> None:
        """Add the counts of *other*."""
        for name in Served.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def told(self) -> dict[str, Any]:
        """Return the counts, the mean wait in milliseconds and the seconds saved against having no cache."""
        counts = {name: getattr(self, name) for name in ("requests", *TIERS, "bytes", "hot_bytes")}
        mean = self.seconds / self.requests * 1e3 if self.requests else 0.0
        return {**counts, "mean_ms": round(mean, 3), "seconds_saved": round(self.without - self.seconds, 3)}


@dataclass
class Outcome:
    """One replay. ``settled`` counts what came after ten sessions of history, ``demand_seconds`` see ``docs/replay.md``."""

    profiles: dict[str, Served] = field(default_factory=lambda: {profile: Served() for profile in PROFILES})
    settled: dict[str, Served] = field(default_factory=lambda: {profile: Served() for profile in PROFILES})
    judged: dict[str, Any] = field(default_factory=dict)
    background_seconds: float = 0.0
    waited_seconds: float = 0.0
    demand_seconds: float = 0.0
    demand_misses: int = 0
    misses: int = 0
    ceiling: float = 0.0
    policy: dict[str, Any] = field(default_factory=dict)
    lru: dict[str, Any] = field(default_factory=dict)
    clairvoyant: float = 0.0

    def together(self, *profiles: str, settled: bool = False) -> Served:
        """Return the counts of *profiles* (none: all) as one."""
        whole = Served()
        for profile in profiles or PROFILES:
            whole.add((self.settled if settled else self.profiles)[profile])
        return whole

    def told(self) -> dict[str, Any]:
        """Return everything as JSON."""
        coverage = 1 - self.misses / self.demand_misses if self.demand_misses else None
        return {
            "overall": self.together().told(),
            "profiles": {name: served.told() for name, served in self.profiles.items() if served.requests},
            "interactive": self.together(*INTERACTIVE).told(),
            "settled": {
                "overall": self.together(settled=True).told(),
                "interactive": self.together(*INTERACTIVE, settled=True).told(),
            },
            "precision": self.judged.get("precision"),
            "coverage": coverage,
            "timeliness": self.judged.get("timeliness"),
            "pollution": self.judged.get("polluted", 0),
            "brier": self.judged.get("brier"),
            "brier_skill": self.judged.get("brier_skill"),
            "background_seconds": round(self.background_seconds, 3),
            "demand_seconds": round(self.demand_seconds, 3),
            "waited_seconds": round(self.waited_seconds, 3),
            "ceiling_without_prefetch": round(self.ceiling, 6),
            "lru": self.lru,
            "clairvoyant_at_most": round(self.clairvoyant, 6),
            "judged": self.judged,
            "policy": self.policy,
        }
