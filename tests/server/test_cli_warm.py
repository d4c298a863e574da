from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fletching_server.cli import app

Run = Callable[..., Result]
MARCH = ("--start", "2024-03-01", "--end", "2024-03-29")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = tmp_path / "sim.toml"
    config.write_text("symbols = 12\n")
    place = ("--store", str(tmp_path / "store"), "--source", f"sim:{config}")
    return lambda *arguments: CliRunner().invoke(app, [*arguments, *place])


def test_a_wish_is_fulfilled_and_told(run: Run) -> None:
    shown = run("warm", "bars_1d", "000001.SZ", "600000.SH", *MARCH)
    assert shown.exit_code == 0
    assert "bars_1d: 2 symbols, 42 cells missing; 1 upstream calls brought 42 rows; 1 files" in shown.stdout
    again = json.loads(run("warm", "bars_1d", "000001.SZ", *MARCH, "--disk-only", "--json").stdout)
    assert (again["cells"], again["upstream_calls"], again["loaded_files"]) == (0, 0, 0)


def test_a_wish_can_be_weighed_first(run: Run) -> None:
    shown = run("warm", "bars_1d", "000001.SZ", *MARCH, "--explain")
    assert "21 cells missing; would take about 1 upstream calls, " in shown.stdout
    assert json.loads(run("warm", "bars_1d", "000001.SZ", *MARCH, "--explain", "--json").stdout)["cells"] == 21


def test_the_warmer_explains_itself(run: Run) -> None:
    shown = run("warm", "--explain")
    assert shown.exit_code == 0
    assert "the warmer is on" in shown.stdout
    assert "nothing that is expected is missing" in shown.stdout
    told = json.loads(run("warm", "--explain", "--json").stdout)
    assert told["on"]
    assert told["decisions"] == []


def test_without_a_dataset_there_is_nothing_to_warm(run: Run) -> None:
    shown = run("warm")
    assert shown.exit_code == 1
    assert "name the dataset that is to be warmed" in str(shown.exception)
