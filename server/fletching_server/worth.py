"""Whether it pays to have something ready: expected seconds saved against their price. One rule for every prediction. Pure.

    gain  = chance x (seconds to get it now - seconds to get it then) x weight of who asks
    price = kappa x background seconds + seconds lost on what has to leave for it

It is done where the gain exceeds the price, best gain per byte first. The break-even chance, price / (seconds x weight), is
told with every decision, beside the classic fixed threshold of 0.7. (Prefetch iff the chance exceeds a threshold that depends
on load and costs: Jiang and Kleinrock, JSAC 1998.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

KAPPA: Final = 0.1  # seconds of somebody who waits that a background second is worth
KAPPA_NIGHT: Final = 0.05  # the same while nobody is there who could be in its way
CLASSIC: Final = 0.7  # the fixed confidence that other prefetchers ask for
WEIGHTS: Final = {"trading": 5.0, "research": 1.0, "backtesting": 0.2}  # what a second of waiting matters, by profile


@dataclass(frozen=True)
class Candidate:
    """Something that may be made ready: how likely it is asked for, what that saves, what it takes.

    ``saves`` are the seconds that whoever asks waits less, ``fill_seconds`` the background seconds, ``loses`` the
    expected seconds lost on what leaves for it.
    """

    key: str
    chance: float
    saves: float
    fill_seconds: float
    bytes: int
    weight: float = 1.0
    loses: float = 0.0

    @property
    def gain(self) -> float:
        """The expected seconds saved, weighed."""
        return self.chance * self.saves * self.weight

    def price(self, kappa: float = KAPPA) -> float:
        """Return what it costs, in seconds of somebody who waits."""
        return kappa * self.fill_seconds + self.loses

    def break_even(self, kappa: float = KAPPA) -> float:
        """Return the chance from which on it pays; above 1 it never does."""
        return self.price(kappa) / max(self.saves * self.weight, 1e-9)


@dataclass(frozen=True)
class Rule:
    """When to act: by gain and price, or, with *min_confidence*, by a fixed chance."""

    kappa: float = KAPPA
    min_confidence: float | None = None

    def hopeless(self, chance: float, weight: float) -> bool:
        """Return whether nothing of such a *chance* can pay, whatever it saves: it never saves more than it takes."""
        return chance < self.min_confidence if self.min_confidence is not None else chance * weight < self.kappa

    def pays(self, candidate: Candidate) -> bool:
        """Return whether *candidate* should be made ready."""
        if self.min_confidence is not None:
            return candidate.chance >= self.min_confidence
        return candidate.gain > candidate.price(self.kappa)

    def chosen(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return those that pay, in the order in which to do them: the most seconds saved per byte first."""
        paying = [candidate for candidate in candidates if self.pays(candidate)]
        return sorted(paying, key=lambda one: (-one.gain / max(one.bytes, 1), one.key))
