"""Filters are valid from construction on, travel unchanged, are read by people, and turn all junk into ``InvalidRequest``."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import ReadRequest
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.filters import (
    MAX_DEPTH,
    MAX_PARTS,
    MAX_TEXT,
    MAX_VALUES,
    OPS,
    AllOf,
    AnyOf,
    Compare,
    Filter,
    IsNull,
    OneOf,
    all_of,
    check_size,
    conjuncts,
    from_document,
    to_document,
)

CHINA = timezone(timedelta(hours=8))
COLUMNS = st.text(min_size=1, max_size=20)
VALUES = (
    st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.dates()
    | st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.sampled_from([UTC, CHINA]))  # noqa: DTZ001  # by contract
)
LEAVES = (
    st.builds(Compare, COLUMNS, st.sampled_from(OPS), VALUES)
    | st.builds(OneOf, COLUMNS, st.lists(VALUES, max_size=4).map(tuple))
    | st.builds(IsNull, COLUMNS, st.booleans())
)
FILTERS: st.SearchStrategy[Filter] = st.recursive(
    LEAVES,
    lambda inner: st.builds(lambda kind, parts: kind(tuple(parts)), st.sampled_from([AllOf, AnyOf]), st.lists(inner, min_size=1)),
    max_leaves=8,
)


def kinds(where: Filter) -> list[Any]:
    """Return the values with their types: Python finds 1, 1.0 and True equal."""
    document = json.dumps(to_document(where))
    return [document, repr(where)]


@given(FILTERS)
def test_a_filter_travels_unchanged(where: Filter) -> None:
    request = ReadRequest("bars_1d", where=where, limit=5)
    received = ReadRequest.from_bytes(request.to_bytes())
    assert received == request
    assert received.where is not None
    assert kinds(received.where) == kinds(where)


@given(FILTERS)
def test_a_filter_can_be_shown(where: Filter) -> None:
    assert all(
        column in str(where) for column in [leaf.column for leaf in conjuncts(where) if not isinstance(leaf, AnyOf | AllOf)]
    )


def test_a_filter_reads_like_a_sentence() -> None:
    either = AnyOf((IsNull("close"), AllOf((Compare("close", ">", 1.5), IsNull("volume", negated=True)))))
    where = AllOf((OneOf("symbol", ("A", "B")), Compare("trading_date", ">=", date(2024, 3, 20)), either))
    assert str(where) == (
        "symbol in ['A', 'B'] and trading_date >= 2024-03-20 and (close is null or (close > 1.5 and volume is not null))"
    )
    assert str(OneOf("symbol", tuple("ABCDEFG"))) == "symbol in ['A', 'B', 'C', 'D', 'E', and 2 more]"


def test_a_filter_on_the_wire_is_a_list_that_people_can_write() -> None:
    where = from_document(["and", ["==", "symbol", "A"], ["or", ["in", "n", [1, 2]], ["is_not_null", "x"]]])
    assert where == AllOf((Compare("symbol", "==", "A"), AnyOf((OneOf("n", (1, 2)), IsNull("x", negated=True)))))
    instant = from_document(["<", "ts", {"$datetime": ["2024-03-20T09:30:00", "zone:Asia/Shanghai", 0]}])
    assert instant == Compare("ts", "<", datetime(2024, 3, 20, 1, 30, tzinfo=UTC))
    assert to_document(instant) == ["<", "ts", {"$datetime": ["2024-03-20T01:30:00", "utc", 0]}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_that_json_has_no_word_for_travel_too(value: float) -> None:
    request = ReadRequest("bars_1d", where=Compare("close", "<", value))
    assert b"NaN" not in request.to_bytes()
    assert b"Infinity" not in request.to_bytes()
    received = ReadRequest.from_bytes(request.to_bytes()).where
    assert isinstance(received, Compare)
    assert str(received.value) == str(value)


def test_instants_are_kept_in_utc() -> None:
    leaf = Compare("ts", ">", datetime(2024, 3, 20, 9, 30, tzinfo=CHINA))
    assert leaf.value == datetime(2024, 3, 20, 1, 30, tzinfo=UTC)
    assert str(leaf) == "ts > 2024-03-20 01:30:00+00:00"


def test_filters_that_must_all_hold_are_joined_as_flat_as_they_can_be() -> None:
    one, other = IsNull("a"), IsNull("b")
    assert (all_of([]), all_of([one]), all_of([one, other])) == (None, one, AllOf((one, other)))
    assert (conjuncts(None), conjuncts(one), conjuncts(AllOf((one, other)))) == ((), (one,), (one, other))


WRONG: list[Any] = [
    {}, [], 5, "x", True, ["and"], ["or"], ["not", ["is_null", "x"]], ["is_null"], ["is_null", 5], ["is_null", ""], ["=", "x", 1],
    ["==", "x"], ["==", "x", 1, 2], ["==", 5, 1], ["==", "x", None], ["==", "x", [1]], ["==", "x", {}], ["==", "x", {"a": 1}],
    ["==", "x", 2**64], ["==", "x", -(2**63) - 1], ["==", "x", "y" * (MAX_TEXT + 1)], ["==", "x", "\ud800"],
    ["==", "y" * 2000, 1], ["==", "x", {"$date": "soon"}], ["==", "x", {"$date": 5}], ["==", "x", {"$float": "wide"}],
    ["==", "x", {"$float": []}],
    ["==", "x", {"$datetime": ["2024-03-20T09:30:00", None, 0]}], ["==", "x", {"$datetime": ["2024-03-20T09:30:00", 5, 0]}],
    ["==", "x", {"$datetime": ["0001-01-01T00:00:00", "offset:3600", 0]}], ["==", "x", {"$datetime": "now"}],
    ["==", "x", {"$datetime": ["2024-03-20T09:30:00", "zone:../../etc/passwd", 0]}], ["==", "x", {"$decimal": "1"}],
    ["==", "x", {"$dict": []}], ["in", "x", 5], ["in", "x", "abc"], ["in", "x", [None]], ["in", "x", [[1]]],
    ["in", "x", {"a": 1}],    ["and", 5], ["and", ["is_null", "x"], 5], [["is_null", "x"]], [["and"], ["is_null", "x"]],
]  # fmt: skip


@pytest.mark.parametrize("document", WRONG, ids=lambda document: str(document)[:40].encode("ascii", "replace").decode())
def test_what_is_no_filter_is_refused_at_both_ends(document: Any) -> None:
    with pytest.raises(InvalidRequest) as here:
        ReadRequest("bars_1d", where=document)
    with pytest.raises(InvalidRequest) as there:
        ReadRequest.from_bytes(json.dumps({"kind": "read", "version": 1, "dataset": "x", "where": document}).encode())
    for raised in (here, there):
        assert type(raised.value) is InvalidRequest
        assert len(str(raised.value).encode()) < 400  # it travels, and is read by people


@pytest.mark.parametrize("limit", [-1, True, 1.5, "5", [], 2**63])
def test_a_limit_is_a_number_of_rows(limit: Any) -> None:
    with pytest.raises(InvalidRequest, match="it is a number of rows"):
        ReadRequest("bars_1d", limit=limit)


def nested(depth: int) -> list[Any]:
    document: list[Any] = ["is_null", "x"]
    for _ in range(depth - 1):
        document = ["and", document]
    return document


def test_a_filter_is_nested_so_deep_and_no_deeper() -> None:
    assert ReadRequest("x", where=nested(MAX_DEPTH)).where is not None  # type: ignore[arg-type]  # as it travels
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidRequest, match="levels deep; write it flatter"):
            from_document(nested(depth))
    deep: Filter = IsNull("x")
    for _ in range(MAX_DEPTH):
        deep = AllOf((deep,))
    with pytest.raises(InvalidRequest, match="levels deep; write it flatter"):
        check_size(deep)


def test_a_filter_has_so_many_parts_and_values_and_no_more() -> None:
    assert ReadRequest("x", where=AnyOf((IsNull("x"),) * MAX_PARTS)).where is not None
    assert ReadRequest("x", where=OneOf("x", tuple(range(MAX_VALUES)))).where is not None
    with pytest.raises(InvalidRequest, match="at most 512 are read"):
        ReadRequest("x", where=AllOf((IsNull("x"), AnyOf((IsNull("x"),) * MAX_PARTS))))
    with pytest.raises(InvalidRequest, match="at most 10,000 are read"):
        ReadRequest("x", where=AllOf((IsNull("x"), OneOf("x", tuple(range(MAX_VALUES + 1))))))
