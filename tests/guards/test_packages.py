"""What is shipped: three packages, nothing beside them, imports that point one way, and no dangerous calls."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"client": "fletching", "schemas": "fletching_schemas", "server": "fletching_server"}
PRODUCT = sorted(path for root in PACKAGES for path in (ROOT / root).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_a_root_holds_exactly_its_one_package(folder: str, package: str) -> None:
    there = [path for path in (ROOT / folder).iterdir() if path.name != "__pycache__"]
    assert [path.name for path in there] == [package]
    assert (ROOT / folder / package / "__init__.py").is_file()
    assert (ROOT / folder / package / "py.typed").is_file()


def loaded_by(statement: str) -> set[str]:
    script = f"{statement}; import json, sys; print(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    return set(json.loads(run(sys.executable, "-c", script)))


def test_importing_the_client_is_light() -> None:
    heavy = {
        "duckdb",
        "akshare",
        "pandas",
        "fletching_server",
        "sqlalchemy",
        "pydantic",
        "exchange_calendars",
        "typer",
        "structlog",
    }
    loaded = loaded_by("import fletching")
    assert {"fletching", "fletching_schemas", "pyarrow", "polars"} <= loaded
    assert loaded & heavy == set()


def test_importing_the_server_does_not_load_what_only_some_sources_need() -> None:
    assert loaded_by("import fletching_server") & {"akshare", "fletching", "pytest"} == set()


def test_importing_the_contract_suites_does_not_load_pytest() -> None:
    assert "pytest" not in loaded_by("import fletching_server.testing")


def test_importing_the_schemas_loads_nothing_but_pyarrow() -> None:
    third_party = {"polars", "pandas", "duckdb", "pydantic", "fletching", "fletching_server"}
    assert loaded_by("import fletching_schemas") & third_party == set()


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    script = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    name = run(sys.executable, "-c", script).split()[-1]
    with zipfile.ZipFile(tmp_path / name) as wheel:
        there = set(wheel.namelist())
    about = {path for path in there if ".dist-info/" in path}
    assert {Path(path).name for path in about} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}
    sources = {
        path.relative_to(ROOT / folder).as_posix()
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there - about == sources
    assert {Path(path).suffix if path[-6:] != ".typed" else Path(path).name for path in sources} == {".py", "py.typed", ".toml"}
    assert {f"{package}/py.typed" for package in PACKAGES.values()} <= there
    assert {f"fletching_server/sources/mappings/{ready}.toml" for ready in ("ashare", "lean")} <= there


def test_imports_keep_to_the_contracts(tmp_path: Path) -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    told = run(str(linter), "--cache-dir", str(tmp_path))
    assert "0 broken" in told


def calls(path: Path) -> Iterator[str]:
    """Yield every import and every call in a file by its dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"import {node.module}"
            yield from (f"import {node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_no_data_path_unpickles_or_evaluates() -> None:
    banned = {"eval", "exec", "compile", "import pickle", "import marshal", "import shelve", "import dill", "os.system"}
    found = [f"{path.relative_to(ROOT)}: {call}" for path in PRODUCT for call in calls(path) if call in banned]
    assert found == []


def test_no_test_sleeps() -> None:
    sleeping = {"time.sleep", "sleep", "import time.sleep", "asyncio.sleep"}
    found = [f"{path.relative_to(ROOT)}: {call}" for path in TESTS for call in calls(path) if call in sleeping]
    assert found == []


def test_only_the_two_edges_speak_flight() -> None:
    speaking = {path.relative_to(ROOT).as_posix() for path in PRODUCT if "import pyarrow.flight" in set(calls(path))}
    edge = {"server/fletching_server/flight.py", "server/fletching_server/flight_calls.py"}
    assert speaking == {"client/fletching/_flight.py", *edge}


def test_every_module_says_what_it_is() -> None:
    assert [str(path) for path in PRODUCT if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_market_data_beside_the_repository_is_not_in_it() -> None:
    tracked = run("git", "ls-files").split("\n") if (ROOT / ".git").exists() else []
    suffixes = (".zip", ".csv", ".parquet", ".gz")
    generated = "tests/formats/"  # small stores that older releases wrote, of made-up rows
    assert [path for path in tracked if path.endswith(suffixes) and not path.startswith(generated)] == []
