"""Whether something that is expected is made ready, with all the numbers behind it, in words. Pure.

The rule is ``worth``; here it is given its numbers, and what stands against it: an arm that is switched off, a hold-out, an
upstream that rests, a bound that is reached, memory that is too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from fletching_server.allowance import Allowance
from fletching_server.habits import Wanted
from fletching_server.warming import Estimate, Task
from fletching_server.worth import CLASSIC, Candidate, Rule

DISK: Final = "disk"
MEMORY: Final = "memory"
WITHHELD: Final = "held out, to see what it is worth"


@dataclass(frozen=True)
class Offer:
    """Something that could be made ready: what it is for, what it takes, and what would leave for it."""

    wanted: Wanted
    task: Task
    estimate: Estimate
    because: str
    width: int = 1  # calls to its source at a time, for whoever waits
    behind: int = 1  # the same for what nobody waits for
    loses: float = 0.0
    leaving: Sequence[str] = ()
    fits: bool = True
    last: int | None = None  # the last session that a read of it wants, as a day number

    @property
    def stage(self) -> str:
        """``disk``: it is fetched; ``memory``: it is loaded as well."""
        return MEMORY if self.task.memory else DISK

    @property
    def calls(self) -> int:
        """How many upstream calls it takes."""
        return self.estimate.needs.calls

    @property
    def seconds(self) -> float:
        """How long it takes in the background."""
        return self._seconds(self.behind)

    @property
    def saves(self) -> float:
        """How long whoever asked without it would wait: people may have more calls at a time."""
        return self._seconds(self.width)

    def _seconds(self, width: int) -> float:
        fetching = self.estimate.fetch_seconds / max(1, min(width, self.calls))
        return fetching + (self.estimate.load_seconds if self.task.memory else 0.0)

    @property
    def bytes(self) -> int:
        """What it takes of memory, or of the disk."""
        return self.estimate.absent_bytes if self.task.memory else self.estimate.needs.disk_bytes

    @property
    def candidate(self) -> Candidate:
        """What the rule decides on."""
        saves, seconds = max(self.saves, 1e-6), max(self.seconds, 1e-6)
        return Candidate(self.task.name, self.task.chance, saves, seconds, self.bytes, self.wanted.weight, self.loses)


@dataclass(frozen=True)
class Decision:
    """An offer, the rule it was judged by, and why it is not taken: an empty text where it is."""

    offer: Offer
    rule: Rule
    against: str = ""

    @property
    def is_withheld(self) -> bool:
        """Whether it is left only to see what that costs: a hold-out, or all that an arm says which is switched off."""
        return self.against in (WITHHELD, _switched_off(self.offer.wanted.arm))

    def told(self) -> dict[str, Any]:
        """Return the numbers, for programs."""
        offer, candidate, rule = self.offer, self.offer.candidate, self.rule
        request = offer.task.request
        return {
            "what": offer.task.name,
            "stage": offer.stage,
            "arm": offer.wanted.arm,
            "dataset": request.dataset,
            "symbols": offer.estimate.needs.symbols,
            "start": None if request.start is None else request.start.isoformat(),
            "end": None if request.end is None else request.end.isoformat(),
            "chance": round(candidate.chance, 4),
            "because": offer.because,
            "upstream_calls": offer.calls,
            "bytes": offer.bytes,
            "saves_seconds": round(candidate.saves, 4),
            "weight": round(candidate.weight, 3),
            "gain_seconds": round(candidate.gain, 4),
            "price_seconds": round(candidate.price(rule.kappa), 4),
            "break_even": round(candidate.break_even(rule.kappa), 4),
            "min_confidence": CLASSIC if rule.min_confidence is None else rule.min_confidence,
            "victims": list(offer.leaving),
            "done": not self.against,
            "against": self.against,
        }

    def words(self) -> str:
        """Return the numbers, for people."""
        offer, candidate, rule = self.offer, self.offer.candidate, self.rule
        kind = "load" if offer.task.memory else "fetch"
        calls = f"{offer.calls:,} upstream calls, " if offer.calls else ""
        victims = f", {len(offer.leaving)} files leave for it ({', '.join(offer.leaving[:3])})" if offer.leaving else ""
        if rule.min_confidence is None:
            bound = f"break-even p* {candidate.break_even(rule.kappa):.2f} (the classic rule: {CLASSIC})"
        else:
            bound = f"min_confidence {rule.min_confidence:g} (break-even p* {candidate.break_even(rule.kappa):.2f})"
        return (
            f"{'no: ' if self.against else ''}{kind} {offer.task.name}: p {candidate.chance:.2f} ({offer.because}); "
            f"{calls}{offer.bytes / 1e6:,.1f} MB{victims}; saves {candidate.saves:.3g} s x {candidate.weight:.2g}, "
            f"gain {candidate.gain:.3g} s, price {candidate.price(rule.kappa):.3g} s, {bound}"
            + (f"; {self.against}" if self.against else "")
        )


def decided(
    offers: Iterable[Offer],
    rule: Callable[[bool], Rule],
    allowance: Allowance,
    *,
    is_off: Callable[[str], bool],
    is_withheld: Callable[[Offer], bool],
    rests: Callable[[Offer], str],
) -> list[Decision]:
    """Return what is done, the most seconds saved per byte first, and after it what is not, with the reason.

    *rule* is that for memory (True) or for the disk alone.
    """
    ordered = sorted(offers, key=lambda offer: (-offer.candidate.gain / max(offer.bytes, 1), offer.task.name))
    rules = [rule(offer.task.memory) for offer in ordered]
    found = [
        Decision(offer, judged_by, _against(offer, judged_by, allowance, is_off, is_withheld, rests))
        for offer, judged_by in zip(ordered, rules, strict=True)
    ]
    return [*(each for each in found if not each.against), *(each for each in found if each.against)]


def _against(
    offer: Offer,
    rule: Rule,
    allowance: Allowance,
    is_off: Callable[[str], bool],
    is_withheld: Callable[[Offer], bool],
    rests: Callable[[Offer], str],
) -> str:
    if not offer.fits:
        return "it is larger than memory"
    if not rule.pays(offer.candidate):
        return "it does not pay" if rule.min_confidence is None else "not likely enough"
    if is_off(offer.wanted.arm):
        return _switched_off(offer.wanted.arm)
    if is_withheld(offer):
        return WITHHELD
    if offer.calls and (resting := rests(offer)):
        return resting
    return allowance.refusal(offer.seconds, offer.calls, offer.bytes) or ""


def _switched_off(arm: str) -> str:
    return f"{arm} is switched off: it was worth nothing lately"


def name_of(wanted: Wanted, end: date | None) -> str:
    """Return what a task for *wanted* is called: dataset, group, offset, and the last session that is read."""
    key = wanted.key
    offset = "" if key.offset is None else f"@{key.offset:+d}"
    return f"{key.dataset}/{key.bucket}{offset}" + ("" if end is None else f" to {end}")
