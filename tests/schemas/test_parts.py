"""Parts of an answer: their tickets survive the wire, junk does not, and what they tell adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import Adjustment, Gap, PartRequest, ReadInfo, ReadRequest, SymbolStatus, TierUse
from fletching_schemas.errors import InvalidRequest
from fletching_schemas.headers import COMPRESSIONS, check_compression, endpoints_asked
from fletching_schemas.replies import MAX_GAPS_TOLD, TIERS, put_together
from fletching_schemas.requests import MAX_PARTS, ticket_from_bytes

READ = ReadRequest("bars_1d", ("000001.SZ", "600000.SH"), date(2024, 1, 2), None, ("close",), max_age=60.0, info=True)
PART = PartRequest(READ, 1, 3, 17)


def test_a_ticket_is_a_read_or_a_part_of_one() -> None:
    assert ticket_from_bytes(PART.to_bytes()) == PART
    assert ticket_from_bytes(READ.to_bytes()) == READ
    assert hash(ticket_from_bytes(PART.to_bytes())) == hash(PART)


@pytest.mark.parametrize(
    "changed",
    [
        {"part": 3}, {"part": -1}, {"part": "0"}, {"part": True}, {"part": None}, {"part": 0.5},
        {"parts": 0}, {"parts": MAX_PARTS + 1}, {"parts": [3]}, {"generation": -1}, {"generation": "17"},
        {"read": None}, {"read": "bars_1d"}, {"read": []}, {"read": {}}, {"read": {"kind": "read", "version": 2}},
        {"read": json.loads(PART.to_bytes())}, {"read": json.loads(replace(READ, adjust="hfq").to_bytes())},
        {"version": 2}, {"kind": "parts"}, {"color": "red"},
    ],
    ids=lambda changed: str(changed)[:40],
)  # fmt: skip
def test_a_malformed_part_is_refused(changed: dict[str, Any]) -> None:
    document = {**json.loads(PART.to_bytes()), **changed}
    with pytest.raises(InvalidRequest):
        ticket_from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("name", ["read", "part", "parts", "generation"])
def test_an_incomplete_part_is_refused(name: str) -> None:
    document = json.loads(PART.to_bytes())
    del document[name]
    with pytest.raises(InvalidRequest):
        ticket_from_bytes(json.dumps(document).encode())


COUNT = st.integers(0, 1000)
INFOS = st.lists(
    st.builds(
        ReadInfo,
        dataset=st.just("bars_1d"),
        plane=st.just("flight"),
        rows=COUNT,
        bytes=COUNT,
        tiers=st.fixed_dictionaries({tier: st.builds(TierUse, COUNT, COUNT) for tier in TIERS}),
        partitions=COUNT,
        upstream_calls=COUNT,
        joined_calls=COUNT,
        gaps=st.lists(st.builds(Gap, st.text(max_size=3), st.dates(), st.dates(), st.just("future")), max_size=3),
        gaps_omitted=COUNT,
        age_seconds=st.none() | st.floats(0, 1e9),
        stale=st.booleans(),
        symbols=st.dictionaries(st.text("abc", max_size=3), st.just(SymbolStatus("ok"))),
        milliseconds=st.floats(0, 1e9),
    ),
    min_size=1,
    max_size=4,
)


@given(INFOS)
def test_what_parts_tell_adds_up(infos: list[ReadInfo]) -> None:
    whole = put_together(infos)
    for name in ("rows", "bytes", "upstream_calls", "joined_calls", "gaps_omitted"):
        assert getattr(whole, name) == sum(getattr(info, name) for info in infos)
    for tier in TIERS:
        assert whole.tiers[tier].rows == sum(info.tiers[tier].rows for info in infos)
        assert whole.tiers[tier].bytes == sum(info.tiers[tier].bytes for info in infos)
    assert whole.gaps == [gap for info in infos for gap in info.gaps]
    assert set(whole.symbols) == {symbol for info in infos for symbol in info.symbols}
    assert whole.stale == any(info.stale for info in infos)
    assert whole.age_seconds == max((info.age_seconds for info in infos if info.age_seconds is not None), default=None)
    assert whole.milliseconds == max(info.milliseconds for info in infos)
    assert put_together([whole]) == whole


def test_putting_together_leaves_the_parts_as_they_are() -> None:
    one = ReadInfo(
        "x", rows=1, tiers={"hot": TierUse(1, 8), "cold": TierUse(), "source": TierUse()}, symbols={"A": SymbolStatus("ok")}
    )
    other = replace(one, symbols={"B": SymbolStatus("failed", "source_timeout")}, adjustment=Adjustment("hfq", None, "f", "v"))
    whole = put_together([one, other])
    assert (one.rows, one.tiers["hot"].rows, list(one.symbols)) == (1, 1, ["A"])
    assert (whole.rows, whole.tier, list(whole.symbols), list(whole.failed)) == (2, "hot", ["A", "B"], ["B"])


def test_gaps_of_many_parts_stay_within_what_is_told() -> None:
    gap = Gap("A", date(2024, 1, 2), date(2024, 1, 3), "no_trade")
    part = ReadInfo("x", gaps=[gap] * (MAX_GAPS_TOLD - 1), gaps_omitted=2)
    whole = put_together([part, part])
    assert len(whole.gaps) == MAX_GAPS_TOLD
    assert len(whole.gaps) + whole.gaps_omitted == 2 * (MAX_GAPS_TOLD - 1 + 2)


@pytest.mark.parametrize(
    ("sent", "most"), [(None, 1), ("", 1), ("4", 4), ("0", 0), ("999", 64), ("9999", 1), ("-1", 1), ("²", 1), ("x", 1)]
)
def test_a_client_takes_as_many_endpoints_as_it_says(sent: str | None, most: int) -> None:
    assert endpoints_asked(sent) == most


def test_unknown_compressions_are_refused_with_those_that_exist() -> None:
    assert [check_compression(name) for name in COMPRESSIONS] == ["lz4", "zstd"]
    for name in ("gzip", "", "LZ4"):
        with pytest.raises(InvalidRequest, match="one of lz4, zstd"):
            check_compression(name)
