"""What is told about an answer: where its rows came from, what is missing and why."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any, Final, Literal

Tier = Literal["hot", "cold", "source"]
TIERS: Final[tuple[Tier, ...]] = ("hot", "cold", "source")
MAX_GAPS_TOLD: Final = 500

SymbolState = Literal["ok", "empty", "missing", "failed"]

_Raw = bytes  # inside ReadInfo its field ``bytes`` hides the type


@dataclass(frozen=True)
class Gap:
    """Sessions of one symbol without rows, and why.

    Upstream has none: ``not_listed_yet``, ``delisted``, ``no_trade`` (between bars: suspended, or nobody traded),
    ``nothing_upstream``, ``nothing_yet`` (the session is not over). Nobody asked: ``future``, ``out_of_reach`` (the source
    only has recent sessions), ``not_cached``, ``no_source``. The call failed: ``failed``.
    """

    symbol: str
    first: date
    last: date
    reason: str

    def __str__(self) -> str:
        return f"{self.symbol} {self.first}..{self.last} {self.reason}"


@dataclass(frozen=True)
class SymbolStatus:
    """What became of one symbol in a read.

    ``ok``: rows, or at least nothing is missing; ``empty``: no session of the range has rows, *reason* is the gap's;
    ``missing``: some cells are not held and nobody was asked; ``failed``: they could not be fetched, *reason* is the
    error's code, *message* its text, *retry_at* (UTC) when asking again may help.
    """

    state: SymbolState
    reason: str = ""
    message: str = ""
    retry_at: datetime | None = None

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


_OK = SymbolStatus("ok")


@dataclass(frozen=True)
class Adjustment:
    """How prices were adjusted: method, the session whose prices stay as they are, and which factors were used.

    ``version`` is a digest of the factors that were applied: equal versions and references give equal prices.
    """

    method: str
    reference: date | None
    factors: str
    version: str

    def __str__(self) -> str:
        return f"{self.method}" + (f" as of {self.reference}" if self.reference else "") + f", {self.factors} {self.version}"


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
    ``age_seconds`` is the age of the oldest cell in the answer whose session had not settled when it was fetched, None
    without any. ``stale`` says that some cells are older than the dataset's rule allows, because upstream could not be asked
    (``symbols`` has its error) or because they are refreshed in the background meanwhile. ``symbols`` has the status of each
    symbol, in order. ``warmed`` counts those of the ``partitions`` whose rows were there before anybody asked, because somebody
    was expected to, or had wished for it; who asks again finds what this read used. ``generation`` is that of the dataset when
    it was read: ``as_of`` it gives the same rows again.
    """

    dataset: str
    plane: str = "embedded"
    rows: int = 0
    bytes: int = 0
    tiers: dict[Tier, TierUse] = field(default_factory=lambda: {tier: TierUse() for tier in TIERS})
    partitions: int = 0
    warmed: int = 0
    upstream_calls: int = 0
    joined_calls: int = 0
    gaps: list[Gap] = field(default_factory=list)
    gaps_omitted: int = 0
    age_seconds: float | None = None
    stale: bool = False
    symbols: dict[str, SymbolStatus] = field(default_factory=dict)
    adjustment: Adjustment | None = None
    milliseconds: float = 0.0
    generation: int = 0

    @property
    def tier(self) -> str:
        """The tiers that gave rows, joined by ``+``: ``hot``, ``cold+source``, or ``none`` for an empty answer."""
        return "+".join(tier for tier in TIERS if self.tiers[tier].rows) or "none"

    @property
    def failed(self) -> dict[str, SymbolStatus]:
        """The symbols whose cells could not be fetched; the rows of the others are whole."""
        return {symbol: status for symbol, status in self.symbols.items() if status.state == "failed"}

    def tell_gaps(self, gaps: list[Gap]) -> None:
        """Add *gaps*, keeping the message small."""
        room = max(0, MAX_GAPS_TOLD - len(self.gaps))
        self.gaps += gaps[:room]
        self.gaps_omitted += len(gaps[room:])

    def to_bytes(self) -> _Raw:
        """Return the info as it travels behind the last batch."""
        document = {**vars(self), "tiers": {tier: vars(use) for tier, use in self.tiers.items()}}
        document["gaps"] = [vars(gap) for gap in self.gaps]
        document["symbols"] = {symbol: _sent(status) for symbol, status in self.symbols.items()}
        document["adjustment"] = self.adjustment and vars(self.adjustment)
        return json.dumps(document, default=date.isoformat, separators=(",", ":")).encode()

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
        known["symbols"] = {symbol: _received(status) for symbol, status in document.get("symbols", {}).items()}
        known["adjustment"] = _adjustment(document.get("adjustment"))
        return cls(**known)

    def _facts(self) -> list[tuple[str, str]]:
        by_tier = ", ".join(f"{tier} {use.rows:,}" for tier, use in self.tiers.items() if use.rows)
        joined = f" (+{self.joined_calls} joined)" if self.joined_calls else ""
        age = "final" if self.age_seconds is None else f"{self.age_seconds:.0f} s old" + (", stale" if self.stale else "")
        failed = self.failed
        told = [("failed", f"{len(failed)} of {len(self.symbols)} symbols, first {next(iter(failed))}")] if failed else []
        if self.adjustment:
            told.append(("adjusted", str(self.adjustment)))
        return [
            ("dataset", self.dataset),
            ("plane", self.plane),
            ("rows", f"{self.rows:,}" + (f" ({by_tier})" if by_tier else "")),
            (
                "size",
                f"{self.bytes / 1e6:.2f} MB in {self.partitions} files" + (f", {self.warmed} warmed" if self.warmed else ""),
            ),
            ("upstream calls", f"{self.upstream_calls}{joined}"),
            ("gaps", f"{len(self.gaps) + self.gaps_omitted}" + (f", first {self.gaps[0]}" if self.gaps else "")),
            ("freshness", age),
            ("generation", f"{self.generation}"),
            *told,
            ("time", f"{self.milliseconds:.2f} ms"),
        ]

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self._facts())

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._facts())
        return f"<table>{cells}</table>"


def put_together(infos: Sequence[ReadInfo]) -> ReadInfo:
    """Return the info of an answer that was read in parts, from those of the parts, in order.

    Counts are added. Parts touch the same files and run side by side: of ``partitions``, ``milliseconds`` and the age the
    largest counts.
    """
    whole = ReadInfo(infos[0].dataset, infos[0].plane, adjustment=infos[0].adjustment)
    for info in infos:
        for tier in TIERS:
            whole.tiers[tier].add(info.tiers[tier].rows, info.tiers[tier].bytes)
        for name in ("rows", "bytes", "upstream_calls", "joined_calls", "gaps_omitted"):
            setattr(whole, name, getattr(whole, name) + getattr(info, name))
        whole.tell_gaps(info.gaps)
        whole.symbols |= info.symbols
    whole.partitions = max(info.partitions for info in infos)
    whole.warmed = max(info.warmed for info in infos)
    whole.generation = infos[0].generation  # parts are of one
    whole.milliseconds = max(info.milliseconds for info in infos)
    whole.age_seconds = max((info.age_seconds for info in infos if info.age_seconds is not None), default=None)
    whole.stale = any(info.stale for info in infos)
    return whole


def _sent(status: SymbolStatus) -> list[str]:
    """Return *status* as a short list: whole markets travel this way."""
    if status == _OK:
        return []
    return [status.state, status.reason, status.message, status.retry_at.isoformat() if status.retry_at else ""]


def _received(sent: list[str]) -> SymbolStatus:
    if not sent:
        return _OK
    state, reason, message, retry_at = sent[:4]
    return SymbolStatus(state, reason, message, datetime.fromisoformat(retry_at) if retry_at else None)  # type: ignore[arg-type]


def _adjustment(sent: dict[str, str] | None) -> Adjustment | None:
    if sent is None:
        return None
    reference = sent["reference"] and date.fromisoformat(sent["reference"])
    return Adjustment(sent["method"], reference or None, sent["factors"], sent["version"])


@dataclass(frozen=True)
class WriteResult:
    """What a write left: rows taken, whether the table is new, and its generation, as of which it can be read again."""

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
