"""What a profile file may say: one table per component, each of which may be missing; then the desk does not have it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

FOLDER: Final = Path(__file__).parent / "profiles"
Range = tuple[float, float]


@dataclass(frozen=True)
class Days:
    """Which days are sessions: ``weekdays`` without *holidays*, or an exchange's; *history* of them lie before the first."""

    calendar: str = "weekdays"
    zone: str = "UTC"  # of weekdays; an exchange has its own
    first: date = date(2026, 1, 5)
    sessions: int = 80
    history: int = 330  # the longest backtest, and a quarter more
    holidays: tuple[date, ...] = ()
    opens: str = "09:30"
    closes: str = "16:00"


@dataclass(frozen=True)
class Table:
    """A reference table of one partition: without a session, or a snapshot of which each session has a version."""

    name: str
    megabytes: float
    versioned: bool = False


@dataclass(frozen=True)
class Universe:
    """What there is: ticks by symbol and minute bars by sector, a partition per session, and reference tables."""

    symbols: int = 500
    sectors: int = 11
    largest_megabytes: float = 220
    size_exponent: float = 0.55
    size_spread: float = 0.35
    size_limits: Range = (1, 450)
    bars_megabytes: float = 14
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Researchers:
    """People with watch-lists, who read in bursts from the morning on.

    ``bursts_are = "draws"``: a burst draws as often as the list is long, *again* of them something already read today, the
    others a name of the list. ``"list"``: the first burst goes down the list, each later one re-reads *again* of its names.
    """

    count: int = 20
    start: str = "09:00"
    personal_minutes: float = 25
    daily_minutes: float = 15
    presence: float = 0.85
    names: int = 8
    popularity: float = 0.8
    weekly_drift: float = 0.06
    bursts: tuple[int, int] = (3, 6)
    bursts_are: Literal["draws", "list"] = "draws"
    again: float = 0.45
    gap_minutes: Range = (30, 120)
    think_seconds: Range = (3, 30)
    offsets: Mapping[str, float] = field(default_factory=lambda: {"-1": 0.8, "-2": 0.35, "-5": 0.1})  # chance of being read
    profile: str = "research"


@dataclass(frozen=True)
class Dashboards:
    """Screens that reload at fixed times: every sector, the hottest symbols, the reference tables."""

    times: tuple[str, ...] = ("08:30", "09:25", "12:00", "16:45")
    symbols: int = 10
    count: int = 1
    together: bool = True  # the partitions of one dataset are one request; else a request each
    profile: str = "trading"


@dataclass(frozen=True)
class Factors:
    """A batch after the close over every sector and its last sessions, today's included."""

    times: tuple[str, ...] = ("17:00", "18:30")
    sessions: int = 20
    together: bool = True
    pace_minutes: float = 0.02
    profile: str = "backtesting"


@dataclass(frozen=True)
class Weekly:
    """Reports on the first session of a week over every sector and the sessions of the week before."""

    users: int = 3
    time: str = "08:00"
    sessions: int = 5
    together: bool = True
    pace_minutes: float = 0.02
    profile: str = "research"


@dataclass(frozen=True)
class Backtests:
    """Sweeps over the minute bars of a few sectors, session by session, some of them several times."""

    users: int = 5
    chance: float = 0.5
    sessions: tuple[int, int] = (60, 260)
    sectors: tuple[int, int] = (2, 4)
    repeats: tuple[int, int] = (1, 3)
    hours: tuple[str, str] = ("09:30", "20:00")
    together: bool = False  # the sectors of one session are one request; else a request each
    pace_minutes: float = 0.02
    profile: str = "backtesting"


@dataclass(frozen=True)
class Earnings:
    """Symbols that reported: read by several, with peers of their sector, and the quarter before."""

    symbols: Mapping[str, float] = field(default_factory=lambda: {"1": 0.6, "4": 0.25, "10": 0.15})  # how many a day, how often
    readers: int = 3
    peers: int = 5
    peer_chance: float = 0.7
    before: int = 63
    hours: tuple[str, str] = ("08:30", "11:00")
    profile: str = "research"


@dataclass(frozen=True)
class Pollution:
    """Scans of ticks that nobody repeats: one symbol's past, or a cross-section of one session."""

    daily: float = 0.7
    partitions: tuple[int, int] = (80, 250)
    hours: tuple[str, str] = ("09:00", "18:00")
    pace_minutes: float = 0.02
    profile: str = "backtesting"


@dataclass(frozen=True)
class Late:
    """Data that are there *settle_minutes* after the close, or, for a *share* of the sessions of *datasets*, hours later."""

    share: float = 0.1
    hours: Range = (1, 15)
    settle_minutes: float = 30
    datasets: tuple[str, ...] = ("ticks",)
    comes_back_minutes: Range = (1, 20)


@dataclass(frozen=True)
class Regime:
    """From session *at* on (default: the middle) people have other lists and other hours."""

    at: int | None = None
    watch_lists: Literal["exchanged", "redrawn"] = "exchanged"
    hours_minutes: Range = (-60, 240)  # each person's start moves by something in between
    dashboards_minutes: float = 0


@dataclass(frozen=True)
class Upstream:
    """What a fill from upstream takes: for whoever replays the trace; told in the file's metadata."""

    seconds: float = 1.5
    megabytes_per_second: float = 40
    calls_per_minute: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True)
class Profile:
    """One desk. ``no_pattern``: keys of interactive reads are exchanged for random ones, once a day or at each request."""

    name: str
    days: Days = Days()
    universe: Universe = Universe()
    researchers: Researchers | None = None
    dashboards: Dashboards | None = None
    factors: Factors | None = None
    weekly: Weekly | None = None
    backtests: Backtests | None = None
    earnings: Earnings | None = None
    pollution: Pollution | None = None
    late: Late | None = None
    regime: Regime | None = None
    upstream: Upstream = Upstream()
    no_pattern: Literal["daily", "requests"] | None = None


_PARTS: Final[Mapping[str, type[Any]]] = {
    "days": Days,
    "universe": Universe,
    "researchers": Researchers,
    "dashboards": Dashboards,
    "factors": Factors,
    "weekly": Weekly,
    "backtests": Backtests,
    "earnings": Earnings,
    "pollution": Pollution,
    "late": Late,
    "regime": Regime,
    "upstream": Upstream,
}


def names() -> list[str]:
    """Return the profiles that come with the simulator."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(profile: str) -> Profile:
    """Return the profile of that name, or of the file at that path."""
    path = FOLDER / f"{profile}.toml" if not profile.endswith(".toml") else Path(profile)
    if not path.exists():
        raise FileNotFoundError(f"there is no profile {profile!r}; there are {', '.join(names())}, or name a .toml file")
    told = _read(path)
    parts = {name: _part(_PARTS[name], told.pop(name), f"{path.name}: [{name}]") for name in _PARTS if name in told}
    made: Profile = _made(Profile, {"name": path.stem, **told, **parts}, path.name)
    return made


def _read(path: Path) -> dict[str, Any]:
    """Return what a file says over what the file it ``extends`` says, table by table."""
    told = tomllib.loads(path.read_text())
    base = told.pop("extends", None)
    if base is None:
        return told
    under = _read(path.parent / f"{base}.toml")
    return {**under, **{key: _over(under.get(key), value) for key, value in told.items()}}


def _over(under: Any, told: Any) -> Any:
    return {**(under or {}), **told} if isinstance(told, dict) else told


def _part(kind: type[Any], told: dict[str, Any], where: str) -> Any:
    if kind is Universe:
        told = {**told, "tables": [_made(Table, table, f"{where} tables") for table in told.get("tables", ())]}
    return _made(kind, {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}, where)


def _made(kind: type[Any], told: dict[str, Any], where: str) -> Any:
    known = {each.name for each in fields(kind)}
    if strange := told.keys() - known:
        raise ValueError(f"{where} says {', '.join(sorted(strange))}; it may say {', '.join(sorted(known))}")
    return kind(**told)
