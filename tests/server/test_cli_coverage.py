"""What the command line draws and tells about cells, calendars and fills."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fletching_server.cli import app
from fletching_server.cli.doctor import calendars
from fletching_server.cli.drawing import strips

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def cell(symbol: str, first: date, last: date, state: str) -> dict[str, object]:
    return {"symbol": symbol, "first": first, "last": last, "state": state}


def test_a_strip_shows_every_state_in_its_place() -> None:
    runs = [
        cell("A", date(2024, 1, 1), date(2024, 1, 5), "final"),
        cell("A", date(2024, 1, 8), date(2024, 1, 9), "empty"),
        cell("A", date(2024, 1, 10), date(2024, 1, 10), "provisional"),
        cell("BB", date(2024, 1, 1), date(2024, 1, 10), "missing"),
    ]
    scale, one, two, legend = (line.plain for line in strips(runs, 80))
    assert one == "A  ███████··▒"  # the weekend is no gap
    assert two == "BB xxxxxxxxxx"
    assert scale.strip() == "2024-01-01" + " " * 57 + "2024-01-10"
    assert "missing" in legend


def test_what_needs_attention_does_not_hide_in_a_long_range() -> None:
    runs = [
        cell("A", date(2000, 1, 3), date(2024, 12, 31), "final"),
        cell("A", date(2010, 6, 1), date(2010, 6, 1), "missing"),
    ]
    (_, strip, _) = strips(runs, 60)
    assert strip.plain.count("x") == 1
    assert len(strip.plain) == 60


def test_nothing_known_is_said() -> None:
    assert [line.plain for line in strips([], 80)] == ["nothing is known of this range"]


def test_coverage_is_drawn_and_listed(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "sim.toml"
    config.write_text("symbols = 12\n")
    where = ("--store", tmp_path / "store", "--source", f"sim:{config}")
    assert run("read", "bars_1d", "000001.SZ", "--start", "2024-03-01", "--end", "2024-03-15", *where).exit_code == 0
    shown = run("coverage", "bars_1d", "000001", "--start", "2024-03-01", "--end", "2024-03-29", *where)
    assert shown.exit_code == 0
    drawn = next(line for line in shown.stdout.splitlines() if line.startswith("000001.SZ "))
    assert "█" in drawn
    assert drawn.rstrip().endswith("x")
    assert "missing" in shown.stdout
    rows = [json.loads(line) for line in run("coverage", "bars_1d", "000001", "--json", *where).stdout.splitlines()]
    assert {"final", "missing"} <= {row["state"] for row in rows}
    told = run("provenance", "bars_1d", "000001.SZ", *where)
    assert (told.exit_code, "sim" in told.stdout) == (0, True)
    assert "no source here has upstream budgets" in run("guard", *where).stdout


def test_a_calendar_shows_half_days_and_what_nobody_knows_yet(run: Run, tmp_path: Path) -> None:
    where = ("--store", tmp_path / "store", "--source", "sim")
    hong_kong = run("calendar", "XHKG", "--start", "2026-12-22", "--end", "2026-12-24", *where).stdout
    assert [line.split()[2] for line in hong_kong.splitlines() if "2026-12" in line] == ["2026-12-22", "2026-12-23", "2026-12-24"]
    assert "half day" in next(line for line in hong_kong.splitlines() if "2026-12-24" in line)
    shanghai = run("calendar", "XSHG", "--start", "2026-12-31", "--end", "2027-01-04", *where).stdout
    assert [("unknown" in line) for line in shanghai.splitlines() if "202" in line and "sessions" not in line] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("today", "warned"),
    [(date(2026, 11, 20), False), (date(2026, 12, 1), True), (date(2026, 12, 20), True), (date(2027, 1, 5), True)],
)
def test_the_doctor_warns_before_the_year_ends(today: date, warned: bool) -> None:
    findings = {what: problem for what, _, problem in calendars(today)}
    assert bool(findings["calendar XSHG"]) == warned
    assert findings["calendar XNYS"] == ""
    assert not warned or "[calendar.XSHG] add" in findings["calendar XSHG"]
