"""Requests are valid from construction on, travel unchanged, and turn all junk into ``InvalidRequest``."""

from __future__ import annotations

import json
import string
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import FetchRequest, ReadRequest, WriteRequest
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.requests import (
    MAX_AGE_SECONDS,
    MAX_REQUEST_BYTES,
    MAX_SYMBOL_LENGTH,
    MAX_SYMBOLS,
    PROFILES,
    REQUEST_VERSION,
    OnMiss,
    WriteMode,
    action_body,
    parse_moment,
)

CHINA = timezone(timedelta(hours=8))
NEW_YORK = timezone(timedelta(hours=-4))

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True)
WORDS = st.text(min_size=1, max_size=MAX_SYMBOL_LENGTH).filter(lambda text: text.isprintable() and text.strip() != "")
LISTS = st.none() | st.lists(WORDS, min_size=1, max_size=4).map(tuple)
MOMENTS = (
    st.none()
    | st.dates()
    | st.datetimes()
    | st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.sampled_from([UTC, CHINA, NEW_YORK]))  # noqa: DTZ001 - the bounds are naive by contract
)


def day_of(moment: date) -> date:
    return date(moment.year, moment.month, moment.day)


# Two days apart, no pair of moments is reversed, whatever their time zones.
RANGES = st.tuples(MOMENTS, MOMENTS).map(
    lambda pair: (
        pair
        if None in pair or day_of(pair[1] or date.min) - day_of(pair[0] or date.min) >= timedelta(days=2)
        else (pair[0], None)
    )
)
READS = st.builds(
    lambda dates, **rest: ReadRequest(start=dates[0], end=dates[1], **rest),
    RANGES,
    dataset=NAMES,
    symbols=LISTS,
    columns=LISTS,
    max_age=st.none() | st.floats(0, MAX_AGE_SECONDS) | st.integers(0, 10**10),
    profile=st.none() | st.sampled_from(sorted(PROFILES)),
    on_miss=st.sampled_from(get_args(OnMiss)),
    info=st.booleans(),
)
WRITES = st.builds(
    WriteRequest,
    table=NAMES,
    keys=LISTS,
    time=st.none() | st.text(max_size=10),
    mode=st.sampled_from(get_args(WriteMode)),
    partition=st.none() | st.sampled_from(["year", "month", "day"]),
)


def wire(**document: object) -> bytes:
    return json.dumps({"kind": "read", "version": REQUEST_VERSION, "dataset": "bars_1d", **document}).encode()


def wire_write(**document: object) -> bytes:
    return json.dumps({"kind": "write", "version": REQUEST_VERSION, "table": "mine", **document}).encode()


@given(READS)
def test_a_read_request_travels_unchanged(request: ReadRequest) -> None:
    received = ReadRequest.from_bytes(request.to_bytes())
    assert received == request
    assert received.to_bytes() == request.to_bytes()


@given(WRITES)
def test_a_write_request_travels_unchanged(request: WriteRequest) -> None:
    assert WriteRequest.from_bytes(request.to_bytes()) == request


def test_a_request_on_the_wire_leaves_out_what_was_left_out() -> None:
    assert json.loads(ReadRequest("bars_1d", ("000001.SZ",), date(2024, 3, 20)).to_bytes()) == {
        "kind": "read",
        "version": REQUEST_VERSION,
        "dataset": "bars_1d",
        "symbols": ["000001.SZ"],
        "start": "2024-03-20",
        "on_miss": "fill",
        "info": False,
    }


def test_names_are_one_or_many_stripped_and_without_repetitions() -> None:
    assert ReadRequest("x", "AAPL").symbols == ("AAPL",)  # type: ignore[arg-type]
    assert ReadRequest("x", [" b ", "a", "b"]).symbols == ("b", "a")  # type: ignore[arg-type]
    assert ReadRequest("x", (name for name in "ab")).symbols == ("a", "b")  # type: ignore[arg-type]
    assert ReadRequest("x").symbols is None


WRONG_TYPES: list[object] = [5, -1, 1.5, True, {}, {"a": 1}, [1], [None], [[]], [["a"]], [], ["a", 5], "", [""], "\n"]
WRONG_READS: list[tuple[str, list[object]]] = [
    ("symbols", WRONG_TYPES),
    ("columns", WRONG_TYPES),
    ("symbols", ["x" * (MAX_SYMBOL_LENGTH + 1), "a\x00b", "\ud800", ["a", "b\u2028"], " "]),
    ("dataset", [None, 5, [], {}, True, "", "Bars", "../x", "a" * 64, "x\n", "\ud800"]),
    ("start", [5, 1.5, True, {}, [], ["2024-03-20"], "", "now", "2024-02-30", "20240231"]),
    ("end", [5, {}, [], "tomorrow", "24-03-20", "2024-03-20T25:00", "9" * 10_000, "\ud800"]),
    ("start", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00"]),
    ("max_age", ["x", "5", -1, -0.5, True, [], {}, 1e300, 10**400, float("nan"), float("inf")]),
    ("profile", ["fast", "", 5, [], {}, True, "x" * 10_000]),
    ("on_miss", ["ignore", "", None, 5, [], {}, True]),
    ("info", ["yes", None, 0, 1, [], {}]),
]
WRONG_WRITES: list[tuple[str, list[object]]] = [
    ("keys", WRONG_TYPES),
    ("table", [None, 5, [], {}, "", "My Table", "a" * 64]),
    ("time", [5, True, [], {}, ["ts"]]),
    ("mode", ["merge", "", None, 5, [], {}]),
    ("partition", ["week", "", 5, [], {}]),
]


def each_value(table: list[tuple[str, list[object]]]) -> list[tuple[str, object]]:
    return [(name, value) for name, values in table for value in values]


@pytest.mark.parametrize(("name", "value"), each_value(WRONG_READS))
def test_a_read_with_a_wrong_value_is_refused_at_both_ends(name: str, value: object) -> None:
    values: dict[str, Any] = {"dataset": "bars_1d", name: value}
    with pytest.raises(InvalidRequest) as here:
        ReadRequest(**values)
    with pytest.raises(InvalidRequest) as there:
        ReadRequest.from_bytes(wire(**{name: value}))
    for raised in (here, there):
        assert type(raised.value) is InvalidRequest
        assert len(str(raised.value).encode()) < 400  # it travels, and is read by people


@pytest.mark.parametrize(("name", "value"), each_value(WRONG_WRITES))
def test_a_write_with_a_wrong_value_is_refused_at_both_ends(name: str, value: object) -> None:
    values: dict[str, Any] = {"table": "mine", name: value}
    with pytest.raises(InvalidRequest):
        WriteRequest(**values)
    with pytest.raises(InvalidRequest) as raised:
        WriteRequest.from_bytes(wire_write(**{name: value}))
    assert len(str(raised.value).encode()) < 400


@pytest.mark.parametrize(
    ("value", "meant"),
    [(5, 5), ("2024-03-20", date(2024, 3, 20)), ("2024-03-20T09:30:00+08:00", datetime(2024, 3, 20, 1, 30, tzinfo=UTC))],
)
def test_a_moment_of_the_past_is_a_generation_or_an_instant(value: Any, meant: object) -> None:
    request = ReadRequest("bars_1d", as_of=value)
    assert request.as_of == meant
    assert ReadRequest.from_bytes(request.to_bytes()) == request


@pytest.mark.parametrize("value", ["qfq", -1, [], {}, False, 1.5])
def test_a_moment_that_is_none_is_refused_at_both_ends(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        ReadRequest("bars_1d", as_of=value)
    with pytest.raises(InvalidRequest):
        ReadRequest.from_bytes(wire(as_of=value))


@pytest.mark.parametrize("reference", ["2024-03-20", "20240320", date(2024, 3, 20), None])
def test_an_adjustment_has_a_method_and_perhaps_a_reference_session(reference: Any) -> None:
    request = ReadRequest("bars_1d", adjust="qfq", adjust_ref=reference)
    assert request.adjust_ref == (None if reference is None else date(2024, 3, 20))
    assert ReadRequest.from_bytes(request.to_bytes()) == request


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"adjust": "forward"}, "adjust='forward'; it is one of qfq, hfq"),
        ({"adjust": 5}, "adjust=5; it is one of"),
        ({"adjust": False}, "adjust=False; it is one of"),
        ({"adjust_ref": "2024-03-20"}, "only adjust='qfq' has one"),
        ({"adjust": "hfq", "adjust_ref": "2024-03-20"}, "only adjust='qfq' has one"),
        ({"adjust": "qfq", "adjust_ref": "yesterday"}, "adjust_ref='yesterday' is not a date"),
        ({"adjust": "qfq", "adjust_ref": "2024-03-20T10:00"}, "a date without a time of day"),
        ({"adjust": "qfq", "adjust_ref": 5}, "is not a date"),
        ({"progress_id": 5}, "progress_id"),
        ({"progress_id": "x" * 65}, "progress_id"),
        ({"progress_id": ["a"]}, "progress_id"),
    ],
)
def test_an_adjustment_that_cannot_be_is_refused_at_both_ends(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        ReadRequest("bars_1d", **arguments)
    with pytest.raises(InvalidRequest, match=problem):
        ReadRequest.from_bytes(wire(**arguments))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\x00",
        b"\xff\xff",
        b'"read"',
        b"[" * 200_000,
        b'{"a":' * 30_000,
        b'{"kind":"read","version":1}',
        b'{"kind":"read","version":1,"dataset":' + b"9" * 5000 + b"}",
    ],
)
def test_junk_is_refused(raw: bytes) -> None:
    for kind in (ReadRequest, WriteRequest):
        with pytest.raises(InvalidRequest):
            kind.from_bytes(raw)


@pytest.mark.parametrize("field", ["kind", "version", "dataset", "symbols", "start", "max_age", "on_miss", "info"])
@pytest.mark.parametrize("depth", [1, 100, 400, 900, 950, 980, 990, 1000, 5000])
def test_deep_nesting_is_refused(field: str, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    raw = b'{"kind":"read","version":1,"dataset":"x","' + field.encode() + b'":' + nested + b"}"
    with pytest.raises(InvalidRequest):
        ReadRequest.from_bytes(raw)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw: bytes) -> None:
    for kind in (ReadRequest, WriteRequest):
        with pytest.raises(InvalidRequest):
            kind.from_bytes(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(ReadRequest.__dataclass_fields__)), JSON, max_size=3))
def test_any_json_in_any_field_of_a_read_is_taken_or_refused(document: dict[str, object]) -> None:
    try:
        request = ReadRequest.from_bytes(wire(**document))
    except InvalidRequest as refused:
        str(refused).encode()
    else:
        assert ReadRequest.from_bytes(request.to_bytes()) == request


@given(st.dictionaries(st.sampled_from(list(WriteRequest.__dataclass_fields__)), JSON, max_size=3))
def test_any_json_in_any_field_of_a_write_is_taken_or_refused(document: dict[str, object]) -> None:
    try:
        request = WriteRequest.from_bytes(wire_write(**document))
    except InvalidRequest as refused:
        str(refused).encode()
    else:
        assert WriteRequest.from_bytes(request.to_bytes()) == request


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_a_damaged_request_is_taken_or_refused(position: int, damage: bytes) -> None:
    raw = ReadRequest("bars_1d", ("000001.SZ",), date(2024, 3, 20), max_age=60).to_bytes()
    at = position % len(raw)
    try:
        ReadRequest.from_bytes(raw[:at] + damage + raw[at + len(damage) :])
    except InvalidRequest as refused:
        str(refused).encode()


@pytest.mark.parametrize("version", [None, 0, 2, "1", [], 10**30])
def test_another_version_is_refused_with_the_one_that_is_spoken(version: object) -> None:
    with pytest.raises(InvalidRequest, match=f"this server speaks version {REQUEST_VERSION}"):
        ReadRequest.from_bytes(wire(version=version))


def test_a_request_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'write' arrived where 'read' is read"):
        ReadRequest.from_bytes(WriteRequest("mine").to_bytes())
    with pytest.raises(InvalidRequest, match="'read' arrived where 'write' is read"):
        WriteRequest.from_bytes(ReadRequest("mine").to_bytes())


def test_an_unknown_field_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidRequest, match="unknown field 'symbol'") as raised:
        ReadRequest.from_bytes(wire(symbol="AAPL"))
    assert [name for name in ReadRequest.__dataclass_fields__ if name not in str(raised.value)] == []


def test_the_refusal_of_a_strange_field_can_travel() -> None:
    with pytest.raises(InvalidRequest, match="unknown field") as raised:
        ReadRequest.from_bytes(b'{"kind":"read","version":1,"dataset":"x","\\ud800' + b"y" * 10_000 + b'":1}')
    assert len(str(raised.value).encode()) < 400


def test_a_request_without_its_dataset_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="incomplete; it has dataset, symbols"):
        ReadRequest.from_bytes(b'{"kind":"read","version":1}')


def test_a_request_that_is_too_large_is_neither_sent_nor_read() -> None:
    wide = [f"{number:0{MAX_SYMBOL_LENGTH}}" for number in range(MAX_REQUEST_BYTES // MAX_SYMBOL_LENGTH)]
    with pytest.raises(InvalidRequest, match="ask in parts"):
        ReadRequest("x", tuple(wide)).to_bytes()
    with pytest.raises(InvalidRequest, match=r"at most 262,144 are read"):
        ReadRequest.from_bytes(wire(symbols=wide))


def test_the_most_symbols_of_a_request_fit_into_it() -> None:
    most = tuple(f"{number:06}.SZ" for number in range(MAX_SYMBOLS))
    assert ReadRequest.from_bytes(ReadRequest("x", most).to_bytes()).symbols == most
    with pytest.raises(InvalidRequest, match="20,001 symbols; ask for at most 20,000"):
        ReadRequest("x", (*most, "AAPL.US"))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-03-20", date(2024, 3, 20)),
        (" 20240320 ", date(2024, 3, 20)),
        ("2024-03-20T09:30", datetime(2024, 3, 20, 9, 30)),  # noqa: DTZ001 - naive means exchange time
        ("2024-03-20 09:30:00.5", datetime(2024, 3, 20, 9, 30, 0, 500_000)),  # noqa: DTZ001 - the same
        ("2024-03-20T09:30+08:00", datetime(2024, 3, 20, 1, 30, tzinfo=UTC)),
        ("2024-03-20T01:30Z", datetime(2024, 3, 20, 1, 30, tzinfo=UTC)),
        (datetime(2024, 3, 20, 9, 30, tzinfo=CHINA), datetime(2024, 3, 20, 1, 30, tzinfo=UTC)),
        (date(2024, 3, 20), date(2024, 3, 20)),
        (None, None),
    ],
)
def test_a_moment_is_a_session_or_an_instant(text: Any, moment: date | None) -> None:
    parsed = parse_moment(text, "start")
    assert parsed == moment
    assert type(parsed) is type(moment)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-03-21", "2024-03-20"),
        ("2024-03-20T09:31", "2024-03-20T09:30"),
        ("2024-03-20T09:31Z", "2024-03-20T17:30+08:00"),
        ("2024-03-21T00:00", "2024-03-20"),
        ("2024-03-21", "2024-03-20T23:59"),
        ("2024-03-22", "2024-03-20T23:59Z"),
        ("2024-03-22T00:00Z", "2024-03-20T23:59"),
        ("9999-12-31", "0001-01-01T00:00Z"),
    ],
)
def test_a_reversed_range_is_refused(start: str, end: str) -> None:
    with pytest.raises(InvalidRequest, match="did you mean to swap them"):
        ReadRequest("x", start=start, end=end)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="did you mean to swap them"):
        ReadRequest.from_bytes(wire(start=start, end=end))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-03-20", "2024-03-20"),
        ("2024-03-20T15:00", "2024-03-20"),  # the end covers its whole session
        ("2024-03-20", "2024-03-20T00:00"),
        ("2024-03-20T09:30", "2024-03-20T09:30"),
        ("2024-03-20T16:00-04:00", "2024-03-20"),
        ("2024-03-20T20:30-04:00", "2024-03-20"),  # the next day in UTC, the same day in New York
        ("2024-03-20", "2024-03-20T07:00+08:00"),  # the day before in UTC, the same day in Shanghai
        ("2024-03-20T20:30-04:00", "2024-03-20T21:00"),
    ],
)
def test_a_range_within_one_day_of_the_exchange_is_taken(start: str, end: str) -> None:
    request = ReadRequest("x", start=start, end=end)  # type: ignore[arg-type]
    assert ReadRequest.from_bytes(request.to_bytes()) == request


def test_the_tolerated_age_is_the_one_asked_for_before_the_profile() -> None:
    assert ReadRequest("x").tolerated_age is None
    assert ReadRequest("x", profile="trading").tolerated_age == 60.0
    assert ReadRequest("x", profile="trading", max_age=0).tolerated_age == 0
    assert ReadRequest("x", max_age=MAX_AGE_SECONDS).tolerated_age == MAX_AGE_SECONDS


def test_a_fetch_shows_few_of_its_symbols() -> None:
    day = date(2024, 3, 20)
    assert str(FetchRequest("bars_1d", ("a", "b", "c"), day, day)) == "bars_1d a, b, c 2024-03-20..2024-03-20"
    many = FetchRequest("bars_1d", tuple(string.ascii_lowercase), day, day)
    assert str(many) == "bars_1d a, b, c and 23 more 2024-03-20..2024-03-20"


def test_the_body_of_an_action_leaves_out_what_was_left_out() -> None:
    body = action_body({"dataset": "bars_1d", "symbols": ["a"], "start": date(2024, 3, 20), "end": None})
    assert json.loads(body) == {"dataset": "bars_1d", "symbols": ["a"], "start": "2024-03-20"}
