"""What is told about an answer travels unchanged, stays small and reads well."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fletching_schemas import Gap, ReadInfo, TierUse, WriteResult
from fletching_schemas.replies import MAX_GAPS_TOLD, TIERS

COUNT = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e9)
GAPS = st.builds(Gap, st.text(max_size=8), st.dates(), st.dates(), st.sampled_from(["future", "not_cached"]))
INFOS = st.builds(
    ReadInfo,
    dataset=st.text(max_size=8),
    plane=st.sampled_from(["flight", "local", "embedded"]),
    rows=COUNT,
    bytes=COUNT,
    tiers=st.fixed_dictionaries({tier: st.builds(TierUse, COUNT, COUNT) for tier in TIERS}),
    partitions=COUNT,
    upstream_calls=COUNT,
    joined_calls=COUNT,
    gaps=st.lists(GAPS, max_size=3),
    gaps_omitted=COUNT,
    age_seconds=st.none() | SECONDS,
    milliseconds=SECONDS,
)
GAP = Gap("000001.SZ", date(2024, 3, 20), date(2024, 3, 22), "not_cached")


@given(INFOS)
def test_an_info_travels_unchanged(info: ReadInfo) -> None:
    assert ReadInfo.from_bytes(info.to_bytes()) == info


def test_what_a_newer_server_tells_besides_is_left_out() -> None:
    info = ReadInfo("bars_1d", rows=3, gaps=[GAP])
    document = json.loads(info.to_bytes())
    document["weather"] = "fair"
    document["tiers"]["hot"]["pages"] = 7
    document["tiers"]["tape"] = {"rows": 1, "bytes": 1}
    document["gaps"][0]["since"] = "2024-01-01"
    assert ReadInfo.from_bytes(json.dumps(document).encode()) == info


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({}, "none"),
        ({"hot": 1}, "hot"),
        ({"source": 1, "cold": 2}, "cold+source"),
        ({"source": 1, "cold": 2, "hot": 3}, "hot+cold+source"),
    ],
)
def test_the_tier_names_all_that_gave_rows_fastest_first(rows: dict[str, int], told: str) -> None:
    info = ReadInfo("bars_1d")
    for tier in TIERS:
        info.tiers[tier].add(rows.get(tier, 0), 100)
    assert info.tier == told


def test_two_infos_share_no_counters() -> None:
    one, other = ReadInfo("bars_1d"), ReadInfo("bars_1d")
    one.tiers["hot"].add(5, 40)
    one.tiers["hot"].add(2, 16)
    one.tell_gaps([GAP])
    assert one.tiers["hot"] == TierUse(7, 56)
    assert other == ReadInfo("bars_1d")


@given(st.lists(st.integers(0, 2 * MAX_GAPS_TOLD), max_size=4))
def test_gaps_beyond_the_limit_are_counted_and_not_told(batches: list[int]) -> None:
    info = ReadInfo("bars_1d")
    for size in batches:
        info.tell_gaps([GAP] * size)
    assert len(info.gaps) == min(sum(batches), MAX_GAPS_TOLD)
    assert len(info.gaps) + info.gaps_omitted == sum(batches)


def test_an_info_reads_as_one_line() -> None:
    info = ReadInfo("bars_1d", rows=1234, bytes=2_500_000, partitions=2, upstream_calls=1, joined_calls=3)
    info.tiers["hot"].add(1000, 1)
    info.tiers["source"].add(234, 1)
    info.tell_gaps([GAP] * (MAX_GAPS_TOLD + 1))
    info.age_seconds = 12.4
    shown = str(info)
    assert "\n" not in shown
    parts = ["rows 1,234 (hot 1,000, source 234)", "2.50 MB in 2 files", "upstream calls 1 (+3 joined)", "12 s old"]
    assert [part for part in parts if part not in shown] == []
    assert "gaps 501, first 000001.SZ 2024-03-20..2024-03-22 not_cached" in shown


def test_an_empty_answer_of_settled_rows_reads_well_too() -> None:
    assert "rows 0 · " in str(ReadInfo("bars_1d"))
    assert "gaps 0 · freshness final" in str(ReadInfo("bars_1d"))


def test_a_notebook_shows_no_markup_of_the_data() -> None:
    shown = ReadInfo("<script>", gaps=[Gap("<b>", date.min, date.max, "future")])._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.startswith("<table><tr>")
    assert shown.endswith("</tr></table>")


@given(st.builds(WriteResult, st.text(max_size=8), COUNT, st.booleans(), COUNT))
def test_a_write_result_travels_unchanged(result: WriteResult) -> None:
    assert WriteResult.from_bytes(result.to_bytes()) == result
    newer = {**json.loads(result.to_bytes()), "weather": "fair"}
    assert WriteResult.from_bytes(json.dumps(newer).encode()) == result
