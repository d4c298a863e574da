"""Coverage as a picture: one strip per symbol, a character per run of sessions, the worst state of each decides. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

from rich.text import Text

# From good to bad: a character stands for several sessions, and what needs attention must not hide.
STATES: Final = ("final", "empty", "provisional", "missing")
COLOURS: Final = {"final": "green", "empty": "blue", "provisional": "yellow", "missing": "red"}
MARKS: Final = {"final": "█", "empty": "·", "provisional": "▒", "missing": "x"}
LEGEND: Final = "█ final   ▒ provisional (asked again)   · empty (nothing there)   x missing"


def strips(runs: Sequence[dict[str, Any]], width: int) -> list[Text]:
    """Return a strip per symbol of *runs* (rows of a coverage table), *width* characters for the whole range, and a scale."""
    if not runs:
        return [Text("nothing is known of this range")]
    first, last = min(run["first"] for run in runs), max(run["last"] for run in runs)
    symbols = sorted({run["symbol"] for run in runs})
    label = max(map(len, symbols))
    room = max(10, width - label - 1)
    drawn = (_strip([run for run in runs if run["symbol"] == symbol], first, last, room) for symbol in symbols)
    lines = [Text(f"{symbol:<{label}} ") + strip for symbol, strip in zip(symbols, drawn, strict=True)]
    return [_scale(first, last, label, room), *lines, Text(LEGEND, style="dim")]


def _scale(first: date, last: date, label: int, room: int) -> Text:
    ends = f"{first}{' ' * max(1, room - 20)}{last}" if room >= 21 else str(first)
    return Text(" " * (label + 1) + ends, style="dim")


def _strip(runs: Sequence[dict[str, Any]], first: date, last: date, room: int) -> Text:
    days = (last - first).days + 1
    room = min(room, days)
    worst = [-1] * room
    for run in runs:
        start = (run["first"] - first).days * room // days
        stop = (run["last"] - first).days * room // days
        rank = STATES.index(run["state"])
        worst[start : stop + 1] = [max(held, rank) for held in worst[start : stop + 1]]
    strip = Text()
    for rank in _filled(worst):
        strip.append(MARKS[STATES[rank]] if rank >= 0 else " ", COLOURS[STATES[rank]] if rank >= 0 else "")
    return strip


def _filled(worst: list[int]) -> list[int]:
    """Return *worst* with closed days inside drawn as the day before: a weekend is no gap."""
    held = -1
    filled = []
    for rank in worst:
        held = rank if rank >= 0 else held
        filled.append(held)
    return filled
