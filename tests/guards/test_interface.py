"""What users see: exactly these names, and every setting, action and error is documented as it is."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pyarrow.flight as fl
import pytest
from pydantic import ByteSize, TypeAdapter

import fletching
from fletching._flight import FlightTransport
from fletching_schemas import ACTION_HELP, TABLE_ACTIONS, Action, errors
from fletching_server import Settings
from fletching_server.flight import to_flight_error

ROOT = Path(__file__).resolve().parents[2]
ERRORS = [
    "AnswerChanged", "BadSourceData", "CorruptFile", "Error", "HistoryGone", "InternalError", "InvalidRequest", "ListenFailed",
    "NotBuilt",
    "NotCached", "OutOfCalendar", "Overloaded", "ServerClosing", "ServerUnreachable", "SourceChanged", "SourceError",
    "SourceThrottled", "SourceTimeout", "SourceUnavailable", "StoreError", "StoreInUse", "StoreUnwritable", "StoreVersion",
    "UnknownColumn", "UnknownDataset", "UnknownFunction", "UnknownSymbol",
]  # fmt: skip
EXPORTS: dict[str, list[str]] = {
    "fletching": sorted(
        [*ERRORS, "Adjustment", "Cache", "Gap", "ReadInfo", "SymbolStatus", "WriteResult", "connect", "open"]
    ),
    "fletching_schemas": [
        "ACTION_HELP", "CANONICAL_NAMES", "SUFFIXES", "TABLE_ACTIONS", "Action", "Adjustment", "Dataset", "FetchRequest", "Gap",
        "Notation", "PartRequest", "Period", "ReadInfo", "ReadRequest", "Restatement", "SymbolStatus", "Tier", "TierUse",
        "WriteRequest",
        "WriteResult", "canonical",
        "normalise_symbol", "storage_schema", "storage_type",
    ],
    "fletching_schemas.errors": [*ERRORS, "copy_of", "error_from_code"],
    "fletching_server": ["Engine", "Settings", "open_engine"],
    "fletching_server.sources": [
        "Budget", "Caller", "FunctionLister", "Lifetime", "LifetimeTeller", "Meter", "Metered", "Source", "SymbolLister",
    ],
    "fletching_server.testing": ["ManualClock", "SourceTests"],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTS)
def test_a_package_exports_exactly_these_names(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(EXPORTS[name])
    assert [item for item in module.__all__ if not hasattr(module, item)] == []


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_listed_in_order(name: str) -> None:
    """Constants, then classes, then functions, each sorted: the order that ruff keeps."""
    listed = importlib.import_module(name).__all__
    kind = [0 if item.isupper() else 1 if item[0].isupper() else 2 for item in listed]
    assert list(listed) == [item for _, item in sorted(zip(kind, listed, strict=True))]


def test_the_cache_has_exactly_these_verbs() -> None:
    verbs = {name for name in vars(fletching.Cache) if not name.startswith("_")}
    assert verbs == {
        "call", "close", "compact", "coverage", "datasets", "delete", "evict", "evictions", "explain", "functions", "guard",
        "health", "invalidate", "provenance", "read", "restatements", "retention", "scan", "schema", "sessions", "sql", "stats",
        "stream", "vacuum", "warm", "write",
    }  # fmt: skip


def test_every_error_is_one_of_the_client_too() -> None:
    assert {name for name in errors.__all__ if name not in {"copy_of", "error_from_code"}} == set(ERRORS)
    assert all(getattr(fletching, name) is getattr(errors, name) for name in ERRORS)


# Documentation


def table(page: str, mark: str) -> list[list[str]]:
    """Return the cells of the table between two marks of a page, without its two lines of header."""
    text = (ROOT / page).read_text()
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", text, re.DOTALL)
    assert found, f"{page} has no table between <!-- {mark} --> and <!-- /{mark} -->"
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_setting_is_documented_with_its_default() -> None:
    documented = table("README.md", "settings")
    assert [row[0] for row in documented] == list(Settings.model_fields)
    for (name, default, what), field in zip(documented, Settings.model_fields.values(), strict=True):
        shown: Any = TypeAdapter(ByteSize).validate_python(default) if field.annotation is ByteSize else default
        expected = field.default if field.annotation is ByteSize else str(field.default)
        assert shown == expected, f"the default of {name} is {expected}, README.md says {default}"
        assert what == field.description


def test_every_action_is_documented() -> None:
    assert {name: what for name, what in table("docs/interface.md", "actions")} == {  # noqa: C416  rows have two cells
        action.value: ACTION_HELP[action] for action in Action
    }


def test_actions_that_answer_with_a_table_say_so() -> None:
    assert {action for action in Action if ACTION_HELP[action].startswith("Table")} == set(TABLE_ACTIONS)


def test_every_error_is_documented() -> None:
    documented = {name: (code, builtin, what) for name, code, builtin, what in table("docs/interface.md", "errors")}
    assert set(documented) == set(ERRORS)
    for name, (code, builtin, what) in documented.items():
        kind = getattr(errors, name)
        also = next((base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), "Exception")
        assert (code, builtin or "Exception") == (kind.code, also)
        assert what == (kind.__doc__ or "").splitlines()[0]


def test_every_error_is_drawn_where_they_are_defined() -> None:
    drawn = re.findall(r"^ {4,}(\w+)(?: {2,}|$)", errors.__doc__ or "", re.MULTILINE)
    assert sorted(drawn) == sorted(ERRORS)


def test_every_verb_of_the_cache_is_documented() -> None:
    page = (ROOT / "README.md").read_text()
    verbs = [name for name in vars(fletching.Cache) if not name.startswith("_")]
    assert [name for name in verbs if not re.search(rf"\b{name}\b", page)] == []


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = []
    for page in pages:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        broken += [f"{page.name}: {target}" for target in targets if not (page.parent / target).exists()]
    assert broken == []


def test_examples_in_the_pages_are_python() -> None:
    wrong = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            try:
                ast.parse(block)
            except SyntaxError as error:
                wrong.append(f"{page.name}: {error}")
    assert wrong == []


# Errors on the wire


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_survives_the_wire(name: str) -> None:
    kind = getattr(errors, name)
    for message in ("plain text", "quotes \" ' and \\ and %", "平安银行 ✓", "two\nlines", ""):
        sent = to_flight_error(kind(message))
        assert isinstance(sent, fl.FlightError)
        back = FlightTransport("grpc://127.0.0.1:1", 1).translated(sent)
        assert (type(back), str(back)) == (kind, message)


@pytest.mark.parametrize("letter", ["x", "%", '"', "平", "\x01", "😀"])
def test_a_long_message_fits_into_the_headers_that_carry_it(letter: str) -> None:
    sent = to_flight_error(errors.SourceUnavailable(letter * 100_000))
    percent_encoded = sum(1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode()) for char in sent.args[0])
    assert percent_encoded + len(sent.extra_info) < 7500
    back = FlightTransport("grpc://127.0.0.1:1", 1).translated(sent)
    assert str(back).startswith(letter * 300)
    assert str(back).endswith(" ...")


def test_what_is_not_ours_travels_as_an_internal_error_without_its_text() -> None:
    back = FlightTransport("grpc://127.0.0.1:1", 1).translated(to_flight_error(RuntimeError("/home/me/secret.py")))
    assert type(back) is errors.InternalError
    assert "secret" not in str(back)
