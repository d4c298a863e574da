"""``fletching import`` as a shell user meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.server.importing.quotes import quotes, write_csv
from typer.testing import CliRunner, Result

from fletching_schemas.errors import InvalidRequest
from fletching_server import open_engine
from fletching_server.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*words: object) -> Result:
        given = ("import", *words, "--store", tmp_path / "store")
        return CliRunner().invoke(app, [str(word) for word in given], env={"COLUMNS": "160"})

    return command


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "q.csv", quotes(200), "S01,never,1,2,3,4")


def test_the_plan_is_shown_first_and_the_counts_last(run: Run, path: Path) -> None:
    done = run(path, "--dataset", "quotes")
    assert done.exit_code == 0, "rejected rows are no failure"
    for words in ("a new table, as inferred", "keys symbol, ts; time ts", "imported", "rejected rows and their reasons are in"):
        assert words in done.stderr
    assert done.stdout == "200 rows of 1 files are in quotes\n"
    again = run(path, "--dataset", "quotes")
    assert "a table that is there" in again.stderr


def test_a_dry_run_leaves_the_store_empty(run: Run, path: Path, tmp_path: Path) -> None:
    done = run(path, "--dataset", "quotes", "--dry-run", "--every", "2")
    assert done.stdout.endswith("rows of 1 files would be in quotes\n")
    assert "left out: every 2" in done.stderr
    with open_engine(tmp_path / "store") as engine:
        assert engine.names() == []
    assert not (tmp_path / "store" / "import").exists()


def test_the_mapping_is_written_edited_and_used(run: Run, path: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "m.toml"
    told = run(path, "--dataset", "quotes", "--write-mapping", mapping)
    assert f"--mapping {mapping}" in told.stderr
    mapping.write_text(mapping.read_text().replace("bid_size = ", "size_of_bid = ") + '[columns]\nsize_of_bid = "bid_size"\n')
    assert run(path, "--dataset", "quotes", "--mapping", mapping).exit_code == 0
    with open_engine(tmp_path / "store") as engine:
        assert "size_of_bid" in engine.schema("quotes").schema.names


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--memory", "much"), "--memory takes a size"),
        (("--resample", "7s"), "divides a day"),
        (("--keys", "symbol,when"), "there is no column when"),
        (("--url", "grpc://127.0.0.1:1"), "give --url or --store"),
        (("--mapping", "m.toml", "--keys", "symbol,ts"), "it says them itself"),
    ],
)
def test_wrong_options_are_told(run: Run, path: Path, words: tuple[str, ...], why: str) -> None:
    done = run(path, "--dataset", "quotes", *words)
    assert isinstance(done.exception, InvalidRequest)
    assert why in done.exception.message


def test_what_is_not_there_or_not_data_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, why in (
        ("none.csv", "No such file"),
        ("readme.md", "neither its name nor its first bytes"),
        ("empty", "nothing to import"),
    ):
        done = run(tmp_path / name, "--dataset", "quotes")
        assert isinstance(done.exception, InvalidRequest)
        assert why in done.exception.message
