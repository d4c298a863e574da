"""The page on performance shows what was measured last, not what somebody remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/performance.md").read_text()
FOUND = json.loads((ROOT / "benchmarks/results/compare.json").read_text())
LINES = [line for line in PAGE.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("row", FOUND["rows"], ids=[f"{row['what']}: {row['peer_is']}" for row in FOUND["rows"]])
def test_each_row_of_the_results_is_on_the_page(row: dict[str, Any]) -> None:
    figures = [row["ours"], row["peer"]] if row["peer"] else [row["ours"]]
    cells = [row["what"], row["target"], *(f"{figure['median']:,.4g}" for figure in figures)]
    assert any(line.startswith(f"| {row['what']} |") and all(cell in line for cell in cells) for line in LINES)


def test_every_peer_is_named_with_its_version() -> None:
    assert {row["peer_is"] for row in FOUND["rows"] if row["peer_is"]} <= {line.partition(". ")[2] for line in PAGE.splitlines()}


def test_the_page_says_when_and_on_what() -> None:
    machine = FOUND["environment"]
    assert all(f"{name} {machine[name]}" in PAGE for name in ("date", "cpu", "cores", "pyarrow", "polars", "duckdb"))
