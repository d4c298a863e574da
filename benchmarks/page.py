"""The table of ``docs/performance.md``, written from what ``compare`` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Row, Spread

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
_BEGIN: Final = "<!-- table -->\n"
_END: Final = "<!-- /table -->\n"
_HEADINGS: Final = ("work", "unit", "Fletching", "peer", "ratio", "target", "", "what it runs into")


def write(machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Put the table between its marks; the rest of the page is written by people."""
    before, rest = PAGE.read_text().split(_BEGIN)
    _, after = rest.split(_END)
    PAGE.write_text(f"{before}{_BEGIN}{_table(machine, rows)}{_END}{after}")


def _table(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    peers = {peer: number for number, peer in enumerate(dict.fromkeys(row.peer_is for row in rows if row.peer_is), 1)}
    lines = [_line(_HEADINGS), _line("---" for _ in _HEADINGS), *(_line(_cells(row, peers)) for row in rows)]
    named = [f"{number}. {peer}" for peer, number in peers.items()]
    on = "; ".join(f"{name} {value}" for name, value in machine.items())
    return "\n".join([f"Measured on: {on}.", "", *lines, "", "Peers:", "", *named, ""])


def _cells(row: Row, peers: Mapping[str, int]) -> list[str]:
    peer = f"{shown(row.peer)} ({peers[row.peer_is]})" if row.peer and row.peer_is else ""
    ratio = f"{row.ratio.median:,.3g} {row.ratio_is}" if row.ratio else ""
    met = "" if row.met is None else "met" if row.met else "**missed**"
    return [row.what, row.unit, shown(row.ours), peer, ratio, row.target, met, row.limit]


def shown(spread: Spread) -> str:
    """Return the median, with its spread where there is one."""
    return str(spread) if spread.p25 != spread.p75 else f"{spread.median:,.4g}"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
