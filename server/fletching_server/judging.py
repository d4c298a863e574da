"""How good the predictions have been: what was made ready and used, in time or late, what it displaced, what it saved. Pure.

The words are those of Srinivasan, Davidson and Tyson (ISPASS 2004): *precision* used / made ready, *timeliness* the share of
those used that were ready before they were needed, *pollution* demand reads of what had to leave for something made ready.
A random part of the decisions is withheld. What those who ask then wait for, less the price of the background work that was
spared, is what a decision is worth: its *uplift*, free of bias. An arm that is worth nothing is switched off; all its
decisions are withheld then, so it shows when it would be worth something again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import xxhash

SESSIONS: Final = 5  # over which an arm is judged
_LEAST_WITHHELD: Final = 8  # decisions, before it is


@dataclass(slots=True)
class Tally:
    """Sums over the decisions of one arm; times in seconds."""

    acted: int = 0
    used: int = 0
    late: int = 0
    late_seconds: float = 0.0
    fill_seconds: float = 0.0
    saved_seconds: float = 0.0
    withheld: int = 0
    withheld_fill_seconds: float = 0.0
    missed: int = 0
    missed_seconds: float = 0.0
    polluted: int = 0

    def add(self, other: Tally) -> None:
        """Add the sums of *other*."""
        for name in Tally.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def uplift(self, kappa: float) -> float | None:
        """Return the seconds that a decision is worth, background seconds at the price *kappa*; None without enough withheld."""
        if self.withheld < _LEAST_WITHHELD:
            return None
        return (self.missed_seconds - kappa * self.withheld_fill_seconds) / self.withheld

    def figures(self, kappa: float) -> dict[str, float | None]:
        """Return the sums, and precision, timeliness and uplift, each None where there is nothing to tell it from."""
        return {
            **{name: round(getattr(self, name), 6) for name in Tally.__slots__},
            "precision": self.used / self.acted if self.acted else None,
            "timeliness": 1 - self.late / self.used if self.used else None,
            "uplift_seconds": self.uplift(kappa),
        }


@dataclass(slots=True)
class _Acted:
    arm: str
    fill_seconds: float
    saves: float


@dataclass(slots=True)
class _Brier:
    squares: float = 0.0
    base: float = 0.0
    count: int = 0


def is_withheld(salt: str, key: str, session: int, share: float) -> bool:
    """Return whether the decision about *key* in *session* is one of the *share* not carried out; a replay chooses the same."""
    return xxhash.xxh3_64_intdigest(f"{salt}/{key}/{session}".encode()) < share * 2**64


@dataclass
class Judge:
    """What became of everything that was made ready, by arm, and of every prediction."""

    kappa: float = 0.2
    off: set[str] = field(default_factory=set)
    _acted: dict[str, _Acted] = field(default_factory=dict)
    _withheld: dict[str, tuple[str, float]] = field(default_factory=dict)
    _displaced: dict[str, str] = field(default_factory=dict)
    _today: dict[str, Tally] = field(default_factory=dict)
    _ended: dict[str, Tally] = field(default_factory=dict)
    _days: dict[str, deque[Tally]] = field(default_factory=dict)
    _brier: _Brier = field(default_factory=_Brier)

    def acted(self, key: str, arm: str, fill_seconds: float, saves: float) -> None:
        """Note that *key* was made ready in so many background seconds, which saves *saves* whoever asks for it."""
        tally = self._tally(arm)
        tally.fill_seconds += fill_seconds
        if (before := self._acted.get(key)) is not None:  # on disk first, in memory now: one thing made ready in two steps
            before.fill_seconds += fill_seconds
            before.saves += saves
            return
        tally.acted += 1
        self._acted[key] = _Acted(arm, fill_seconds, saves)

    def withhold(self, key: str, arm: str, fill_seconds: float, saves: float) -> None:
        """Note that *key* was not made ready although it should have been, to see what that costs.

        As long as nobody has asked for it, to come to the same conclusion again is no second decision.
        """
        if key in self._withheld:
            return
        tally = self._tally(arm)
        tally.withheld += 1
        tally.withheld_fill_seconds += fill_seconds
        self._withheld[key] = arm, saves

    def displaced(self, key: str, arm: str) -> None:
        """Note that *key* had to leave for something made ready."""
        self._displaced[key] = arm

    def used(self, key: str, late_seconds: float = 0.0) -> float:
        """Note a demand read of *key*, and return the background seconds it was made ready in; only the first use counts."""
        if (acted := self._acted.pop(key, None)) is None:
            return 0.0
        tally = self._tally(acted.arm)
        tally.used += 1
        tally.late += late_seconds > 0
        tally.late_seconds += late_seconds
        tally.saved_seconds += max(0.0, acted.saves - late_seconds)
        return acted.fill_seconds

    def missed(self, key: str) -> None:
        """Note a demand read of *key* that had to wait: its making ready may have been withheld, or it was displaced."""
        if (held_out := self._withheld.pop(key, None)) is not None:
            tally = self._tally(held_out[0])
            tally.missed += 1
            tally.missed_seconds += held_out[1]
        if (arm := self._displaced.pop(key, None)) is not None:
            self._tally(arm).polluted += 1

    def gone(self, key: str) -> None:
        """Note that *key* left: whoever asks for it later is not served by what was made ready."""
        self._acted.pop(key, None)

    def predicted(self, chance: float, base: float, *, happened: bool) -> None:
        """Score one prediction against what *happened*, and against always predicting *base*."""
        self._brier.squares += (chance - happened) ** 2
        self._brier.base += (base - happened) ** 2
        self._brier.count += 1

    def session_ended(self) -> list[str]:
        """Close the session's sums; return what is to be told of the arms that were switched off, or on again."""
        self._displaced.clear()
        self._withheld.clear()
        told = [line for arm, tally in self._today.items() if (line := self._judged(arm, tally))]
        self._today = {}
        return told

    def _judged(self, arm: str, tally: Tally) -> str:
        self._ended.setdefault(arm, Tally()).add(tally)
        days = self._days.setdefault(arm, deque(maxlen=SESSIONS))
        days.append(tally)
        recent = Tally()
        for day in days:
            recent.add(day)
        uplift = recent.uplift(self.kappa)
        if uplift is None or len(days) < SESSIONS or (uplift <= 0) == (arm in self.off):
            return ""
        self.off ^= {arm}
        done = "switched off" if arm in self.off else "switched on again"
        return f"{arm} is {done}: over {SESSIONS} sessions a decision was worth {uplift:.3f} s"

    def _tally(self, arm: str) -> Tally:
        return self._today.setdefault(arm, Tally())

    def figures(self) -> dict[str, Any]:
        """Return the sums of all arms together, of each arm, and the Brier score with its skill against base rates."""
        arms = {arm: Tally() for arm in sorted({*self._ended, *self._today})}
        together = Tally()
        for arm, tally in arms.items():
            for part in (self._ended.get(arm), self._today.get(arm)):
                if part is not None:
                    tally.add(part)
            together.add(tally)
        brier = self._brier
        return {
            **together.figures(self.kappa),
            "brier": brier.squares / brier.count if brier.count else None,
            "brier_skill": 1 - brier.squares / brier.base if brier.base else None,
            "predictions": brier.count,
            "arms": {arm: tally.figures(self.kappa) for arm, tally in arms.items()},
            "off": sorted(self.off),
        }
