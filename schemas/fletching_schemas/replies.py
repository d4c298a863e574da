"""What is told about an answer: where its rows came from, what is missing and why."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Final, Literal

Tier = Literal["hot", "cold", "source"]
TIERS: Final[tuple[Tier, ...]] = ("hot", "cold", "source")
MAX_GAPS_TOLD: Final = 500

_Raw = bytes  # inside ReadInfo its field ``bytes`` hides the type


@dataclass(frozen=True)
class Gap:
    """Sessions of one symbol without rows; why: ``nothing_upstream``, ``future``, ``not_cached`` or ``no_source``."""

    symbol: str
    first: date
    last: date
    reason: str

    def __str__(self) -> str:
        return f"{self.symbol} {self.first}..{self.last} {self.reason}"


@dataclass
class TierUse:
    """Rows and bytes of an answer that one tier gave."""

    rows: int = 0
    bytes: int = 0

    def add(self, rows: int, size: int) -> None:
        """Count one more slice."""
        self.rows += rows
        self.bytes += size


@dataclass
class ReadInfo:
    """What one read did. Complete when its stream has ended.

    ``tiers`` maps hot (memory), cold (Parquet) and source (fetched for this read, by it or by one it joined) to rows
    and bytes. ``upstream_calls`` counts the calls this read made, ``joined_calls`` those of others that it waited for.
    ``gaps`` tells sessions without rows and why (at most ``MAX_GAPS_TOLD``; ``gaps_omitted`` counts the rest).
    ``age_seconds`` is the age of the oldest unsettled cell in the answer, None where all are final.
    """

    dataset: str
    plane: str = "embedded"
    rows: int = 0
    bytes: int = 0
    tiers: dict[Tier, TierUse] = field(default_factory=lambda: {tier: TierUse() for tier in TIERS})
    partitions: int = 0
    upstream_calls: int = 0
    joined_calls: int = 0
    gaps: list[Gap] = field(default_factory=list)
    gaps_omitted: int = 0
    age_seconds: float | None = None
    milliseconds: float = 0.0

    @property
    def tier(self) -> str:
        """The tiers that gave rows, joined by ``+``: ``hot``, ``cold+source``, or ``none`` for an empty answer."""
        return "+".join(tier for tier in TIERS if self.tiers[tier].rows) or "none"

    def tell_gaps(self, gaps: list[Gap]) -> None:
        """Add *gaps*, keeping the message small."""
        room = max(0, MAX_GAPS_TOLD - len(self.gaps))
        self.gaps += gaps[:room]
        self.gaps_omitted += len(gaps[room:])

    def to_bytes(self) -> _Raw:
        """Return the info as it travels behind the last batch."""
        return json.dumps(asdict(self), default=date.isoformat, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: _Raw) -> ReadInfo:
        """Return the info that ``to_bytes`` wrote; fields of a newer server are left out."""
        document: dict[str, Any] = json.loads(raw)
        known = {name: value for name, value in document.items() if name in cls.__dataclass_fields__}
        tiers = document["tiers"]
        known["tiers"] = {tier: TierUse(tiers[tier]["rows"], tiers[tier]["bytes"]) for tier in TIERS}
        known["gaps"] = [
            Gap(gap["symbol"], date.fromisoformat(gap["first"]), date.fromisoformat(gap["last"]), gap["reason"])
            for gap in document["gaps"]
        ]
        return cls(**known)

    def _facts(self) -> list[tuple[str, str]]:
        by_tier = ", ".join(f"{tier} {use.rows:,}" for tier, use in self.tiers.items() if use.rows)
        joined = f" (+{self.joined_calls} joined)" if self.joined_calls else ""
        age = "final" if self.age_seconds is None else f"{self.age_seconds:.0f} s old"
        return [
            ("dataset", self.dataset),
            ("plane", self.plane),
            ("rows", f"{self.rows:,}" + (f" ({by_tier})" if by_tier else "")),
            ("size", f"{self.bytes / 1e6:.2f} MB in {self.partitions} files"),
            ("upstream calls", f"{self.upstream_calls}{joined}"),
            ("gaps", f"{len(self.gaps) + self.gaps_omitted}" + (f", first {self.gaps[0]}" if self.gaps else "")),
            ("freshness", age),
            ("time", f"{self.milliseconds:.2f} ms"),
        ]

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self._facts())

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._facts())
        return f"<table>{cells}</table>"


@dataclass(frozen=True)
class WriteResult:
    """What a write left: rows taken, rows of the table that they replaced in place, whether the table is new."""

    table: str
    rows: int
    created: bool
    generation: int

    def to_bytes(self) -> bytes:
        """Return the result as it travels."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> WriteResult:
        """Return the result that ``to_bytes`` wrote; fields of a newer server are left out."""
        document: dict[str, Any] = json.loads(raw)
        return cls(**{name: value for name, value in document.items() if name in cls.__dataclass_fields__})
