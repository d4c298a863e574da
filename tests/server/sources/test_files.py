"""Every feature of the files mapping, on small files made here."""

from __future__ import annotations

import io
import math
import random
import re
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from fletching_schemas import FetchRequest
from fletching_schemas.errors import (
    BadSourceData,
    InvalidRequest,
    SourceUnavailable,
    UnknownDataset,
    UnknownSymbol,
)
from fletching_server.sources.file_layout import PathPattern
from fletching_server.sources.file_mapping import ready_mapping, ready_names
from fletching_server.sources.file_reuse import read_tenure
from fletching_server.sources.files import FilesSource

DAILY: dict[str, Any] = {
    "name": "bars_1d", "canonical": "bars_1d", "calendar": "XNYS", "path": "{code}.csv", "symbol": "{code}.US",
}  # fmt: skip
TICKS: dict[str, Any] = {
    "name": "trades", "canonical": "trades", "path": "{code}/{date:%Y%m%d}.zip", "symbol": "{code}.US", "seq": "seq",
    "columns": ["ts", "price", "size", "condition"], "time_format": "milliseconds", "time_zone": "America/New_York",
    "price_scale": 10000, "price_columns": ["price"],
}  # fmt: skip
HEADER = "trading_date,open,high,low,close,volume\n"
EVER = (date(1990, 1, 1), date(2050, 1, 1))


def put(root: Path, path: str, content: str | bytes) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.csv", content)
    return buffer.getvalue()


def source(root: Path, *datasets: dict[str, Any], **rest: Any) -> FilesSource:
    return FilesSource.from_config({"root": str(root), "dataset": list(datasets), **rest}, Path("/nowhere"))


def read(root: Path, mapping: dict[str, Any], *symbols: str, days: tuple[date, date] = EVER) -> pa.Table:
    served = source(root, mapping)
    table = served.fetch(FetchRequest(mapping["name"], symbols or ("AAPL.US",), *days))
    assert table.schema.equals(served.datasets()[0].schema, check_metadata=True)
    return table


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


# -- values


def test_a_file_with_a_header_becomes_the_canonical_table(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER + "2024-01-03,1.5,2,1,1.25,100\n2024-01-02,1,2,0.5,1.5,90\n")
    table = read(tmp_path, DAILY)
    assert column(table, "symbol") == ["AAPL.US", "AAPL.US"]
    assert column(table, "trading_date") == [date(2024, 1, 2), date(2024, 1, 3)]
    assert column(table, "close") == [1.5, 1.25]
    assert table["settle"].null_count == 2


def test_columns_are_renamed_ignored_and_made_constant(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "day,Close,oi\n2024-01-02,1.5,0\n")
    named = {"trading_date": "day", "close": "Close"}
    mapping = {**DAILY, "columns": named, "ignore": ["oi"], "constants": {"suspended": False}}
    assert column(read(tmp_path, mapping), "close") == [1.5]
    assert column(read(tmp_path, mapping), "suspended") == [False]
    assert column(read(tmp_path, {**mapping, "ignore": ["*"]}), "trading_date") == [date(2024, 1, 2)]
    with pytest.raises(BadSourceData, match=r"aapl.csv: column oi is neither mapped"):
        read(tmp_path, {**mapping, "ignore": []})
    with pytest.raises(BadSourceData, match=r"aapl.csv has no column Adj; it has day, Close, oi"):
        read(tmp_path, {**mapping, "columns": {**named, "close": "Adj"}})


@pytest.mark.parametrize("header", [True, False])
def test_a_list_of_columns_names_them_in_file_order(tmp_path: Path, header: bool) -> None:
    put(tmp_path, "aapl.csv", ("a,b,c\n" if header else "") + "20240102,7,2.5\n")
    mapping = {**DAILY, "columns": ["trading_date", "volume", "close"], "header": header}
    assert column(read(tmp_path, mapping), "volume") == [7]


def test_prices_are_divided_as_python_divides(tmp_path: Path) -> None:
    draw = random.Random(7)
    prices = [draw.randrange(1, 10**9) for _ in range(20_000)]
    lines = "".join(f"{index},{price},1,0\n" for index, price in enumerate(prices))
    put(tmp_path, "aapl/20240102.zip", zipped(x=lines))
    assert column(read(tmp_path, TICKS), "price") == [price / 10000 for price in prices]


def test_decimals_are_read_as_python_reads_them(tmp_path: Path) -> None:
    draw = random.Random(8)
    texts = [repr(draw.uniform(0, 10 ** draw.randrange(-5, 9))) for _ in range(20_000)] + ["33.35399601000002", "1e-7"]
    put(tmp_path, "aapl/20240102.zip", zipped(x="".join(f"{i},{text},1,0\n" for i, text in enumerate(texts))))
    assert column(read(tmp_path, {**TICKS, "price_scale": 1}), "price") == [float(text) for text in texts]


def test_whole_numbers_may_be_written_as_floats_but_never_lose_a_fraction(tmp_path: Path) -> None:
    mapping = {**DAILY, "columns": ["trading_date", "volume"]}
    put(tmp_path, "aapl.csv", "2024-01-02,215836224.0\n2024-01-03,9007199254740993\n2024-01-04,1.2e3\n2024-01-05,\n")
    assert column(read(tmp_path, mapping), "volume") == [215836224, 9007199254740993, 1200, None]
    put(tmp_path, "aapl.csv", "2024-01-02,1\n2024-01-03,1.5\n")
    with pytest.raises(BadSourceData, match=r"aapl.csv: line 2, column volume: 1.5 is not a whole number"):
        read(tmp_path, mapping)


def test_codes_of_digits_stay_text(tmp_path: Path) -> None:
    put(tmp_path, "aapl/20240102.zip", zipped(x="0,10000,1,0020\n0,10000,1,20002020\n"))
    assert column(read(tmp_path, TICKS), "condition") == ["0020", "20002020"]


def test_null_markers_are_what_the_mapping_says(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER + "2024-01-02,NA,2,1,nan,1\n")
    table = read(tmp_path, {**DAILY, "nulls": ["NA", "nan"]})
    assert (column(table, "open"), column(table, "close")) == ([None], [None])
    with pytest.raises(BadSourceData, match=r"line 2, column open: NA is not a finite number"):
        read(tmp_path, DAILY)


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "x", " "])
def test_what_is_no_finite_number_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    put(tmp_path, "aapl.csv", HEADER + f"2024-01-02,1,1,1,1,1\n2024-01-03,1,1,1,{text},1\n")
    with pytest.raises(BadSourceData, match=rf"aapl.csv: line 3, column close: {text} is not a finite number"):
        read(tmp_path, DAILY)


@pytest.mark.parametrize("bad", ["2024-01-32", "02/01/2024", "yesterday"])
def test_what_is_no_date_is_refused_with_its_place(tmp_path: Path, bad: str) -> None:
    put(tmp_path, "aapl.csv", HEADER + f"{bad},1,1,1,1,1\n")
    with pytest.raises(BadSourceData, match=rf"aapl.csv: line 2, column trading_date: {bad} is not a date"):
        read(tmp_path, DAILY)


def test_a_row_without_its_key_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER + "2024-01-02,1,1,1,1,1\n,1,1,1,1,1\n")
    with pytest.raises(BadSourceData, match=r"line 3, column trading_date: None is missing"):
        read(tmp_path, DAILY)


@pytest.mark.parametrize("line", ["2024-01-03,1,1", "2024-01-03,1,1,1,1,1,1"])
def test_a_torn_line_is_refused(tmp_path: Path, line: str) -> None:
    put(tmp_path, "aapl.csv", HEADER + f"2024-01-02,1,1,1,1,1\n{line}\n")
    with pytest.raises(BadSourceData, match=rf"aapl.csv: line 3 has {line.count(',') + 1} fields, not 6: '{line}'"):
        read(tmp_path, DAILY)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a,a\n1,2\n"])
def test_what_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "aapl.csv", content)
    with pytest.raises(BadSourceData, match=r"aapl.csv"):
        read(tmp_path, DAILY)


def test_other_encodings_and_delimiters(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "日期;收盘\n2024-01-02;1.5\n".encode("gbk"))
    mapping = {**DAILY, "columns": {"trading_date": "日期", "close": "收盘"}, "encoding": "gbk", "delimiter": ";"}
    assert column(read(tmp_path, mapping), "close") == [1.5]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "\ufeff" + HEADER + "2024-01-02,1,1,1,1,1\n")
    assert read(tmp_path, DAILY).num_rows == 1


# -- times

MINUTES: dict[str, Any] = {
    "name": "bars_1m", "canonical": "bars_1m", "calendar": "XNYS", "path": "{code}.csv", "symbol": "{code}.US",
    "columns": ["ts", "close"], "time_zone": "America/New_York",
}  # fmt: skip


def test_bar_starts_become_bar_ends_in_utc(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "20240705 09:30,1\n20241205 09:30,2\n20241205 23:59,3\n")
    table = read(tmp_path, {**MINUTES, "time_format": "%Y%m%d %H:%M", "label_shift": "1m"})
    assert column(table, "ts") == [
        datetime(2024, 7, 5, 13, 31, tzinfo=UTC),
        datetime(2024, 12, 5, 14, 31, tzinfo=UTC),
        datetime(2024, 12, 6, 5, 0, tzinfo=UTC),
    ]
    assert column(table, "trading_date") == [date(2024, 7, 5), date(2024, 12, 5), date(2024, 12, 5)]


def test_plain_iso_times_need_no_format(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "2024-07-05T09:30:00,1\n2024-07-05 09:31:00.5,2\n2024-07-05 09:32,3\n")
    seconds = [moment.timestamp() - 1720186200 for moment in column(read(tmp_path, MINUTES), "ts")]
    assert seconds == [0, 60.5, 120]


def test_an_offset_in_the_text_wins_over_the_time_zone(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "2024-07-05T09:30:00+0800,1\n")
    table = read(tmp_path, {**MINUTES, "time_format": "%Y-%m-%dT%H:%M:%S%z"})
    assert column(table, "ts") == [datetime(2024, 7, 5, 1, 30, tzinfo=UTC)]
    assert column(table, "trading_date") == [date(2024, 7, 4)]


@pytest.mark.parametrize("moment", ["2024-03-10 02:30", "2024-11-03 01:30"])
def test_a_local_time_that_is_skipped_or_repeated_is_refused(tmp_path: Path, moment: str) -> None:
    put(tmp_path, "aapl.csv", f"2024-03-11 09:30,1\n{moment},1\n")
    with pytest.raises(BadSourceData, match=rf"line 2, column ts: {moment} is not a time in America/New_York"):
        read(tmp_path, MINUTES)


def test_milliseconds_count_from_local_midnight_of_the_files_day(tmp_path: Path) -> None:
    put(tmp_path, "aapl/20240705.zip", zipped(x="34200000,10000,1,0\n34200000.125,10000,1,0\n"))
    table = read(tmp_path, TICKS)
    opening = datetime(2024, 7, 5, 13, 30, tzinfo=UTC)
    assert column(table, "ts") == [opening, opening.replace(microsecond=125)]
    assert column(table, "trading_date") == [date(2024, 7, 5)] * 2
    put(tmp_path, "aapl/20240705.zip", zipped(x="86400000,10000,1,0\n"))
    with pytest.raises(BadSourceData, match=r"20240705.zip!x.csv: line 1, column ts: 86400000 is not a time"):
        read(tmp_path, TICKS)


def test_a_session_column_of_the_file_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "2024-07-05 21:00:00,20240708,1\n")
    table = read(tmp_path, {**MINUTES, "columns": ["ts", "trading_date", "close"]})
    assert column(table, "trading_date") == [date(2024, 7, 8)]


def test_a_file_per_day_gives_the_session_and_its_rows_may_not_leave_it(tmp_path: Path) -> None:
    put(tmp_path, "2024/aapl-20240705.csv", "2024-07-04 21:00:00,1\n")  # an evening session belongs to the next day
    mapping = {**MINUTES, "path": "{date:%Y}/{code}-{date:%Y%m%d}.csv"}
    assert column(read(tmp_path, mapping), "trading_date") == [date(2024, 7, 5)]
    put(tmp_path, "2024/aapl-20240705.csv", "2024-07-04 21:00:00,2024-07-04,1\n")
    with pytest.raises(BadSourceData, match=r"trading_date: 2024-07-04 lies outside the days of the file's name"):
        read(tmp_path, {**mapping, "columns": ["ts", "trading_date", "close"]})


def test_a_file_of_a_day_needs_no_date_column(tmp_path: Path) -> None:
    put(tmp_path, "20240705.csv", "symbol,close\nmsft,2\naapl,1\n")
    table = read(tmp_path, {**DAILY, "path": "{date:%Y%m%d}.csv", "symbol": None}, "AAPL.US", "MSFT.US")
    assert column(table, "symbol") == ["AAPL.US", "MSFT.US"]
    assert column(table, "trading_date") == [date(2024, 7, 5)] * 2


# -- files


def test_identical_ticks_are_numbered_within_symbol_and_session_and_kept(tmp_path: Path) -> None:
    same = "34200000,10000,1,0\n"
    put(tmp_path, "aapl/20240705.zip", zipped(x=same * 3))
    put(tmp_path, "aapl/20240708.zip", zipped(x=same * 2, y=same))  # two members of one session
    put(tmp_path, "msft/20240705.zip", zipped(x=same))
    table = read(tmp_path, TICKS, "MSFT.US", "AAPL.US")
    assert column(table, "symbol") == ["AAPL.US"] * 6 + ["MSFT.US"]
    assert column(table, "seq") == [0, 1, 2, 0, 1, 2, 0]


def test_file_order_survives_the_sort(tmp_path: Path) -> None:
    put(tmp_path, "aapl/20240705.zip", zipped(x="2,10000,1,a\n1,10000,1,b\n1,10000,1,c\n2,10000,1,d\n"))
    table = read(tmp_path, TICKS)
    assert column(table, "condition") == ["b", "c", "a", "d"]
    assert column(table, "seq") == [1, 2, 0, 3]


def test_only_files_in_range_are_opened(tmp_path: Path) -> None:
    put(tmp_path, "aapl/20240704.zip", b"broken")
    put(tmp_path, "aapl/20240705.zip", zipped(x="1,10000,1,0\n"))
    put(tmp_path, "msft/20240705.zip", b"broken")
    day = date(2024, 7, 5)
    assert read(tmp_path, TICKS, days=(day, day)).num_rows == 1
    with pytest.raises(BadSourceData, match=r"20240704.zip: not a readable zip"):
        read(tmp_path, TICKS)


def test_months_and_years_in_names_are_pruned_as_well(tmp_path: Path) -> None:
    put(tmp_path, "aapl_202402.csv", HEADER + "2024-02-29,1,1,1,1,1\n")
    put(tmp_path, "aapl_202403.csv", HEADER + "broken\n")
    mapping = {**DAILY, "path": "{code}_{date:%Y%m}.csv"}
    assert read(tmp_path, mapping, days=(date(2024, 1, 1), date(2024, 2, 29))).num_rows == 1
    with pytest.raises(BadSourceData, match=r"aapl_202403"):
        read(tmp_path, mapping, days=(date(2024, 2, 1), date(2024, 3, 1)))


def test_a_damaged_zip_names_the_member(tmp_path: Path) -> None:
    raw = bytearray(zipped(x="1,10000,1,0\n" * 1000))
    raw[45] ^= 0xFF
    put(tmp_path, "aapl/20240705.zip", bytes(raw))
    with pytest.raises(BadSourceData, match=r"20240705.zip!x.csv: cannot be read"):
        read(tmp_path, TICKS)


def test_a_zip_that_claims_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "aapl/20240705.zip", zipped(x="1,10000,1,0\n" * 1000))
    monkeypatch.setattr("fletching_server.sources.file_rows.MAX_MEMBER_BYTES", 100)
    with pytest.raises(BadSourceData, match=r"12,000 bytes unpacked; the limit is 100"):
        read(tmp_path, TICKS)


def test_members_may_name_the_symbol(tmp_path: Path) -> None:
    march, june = (HEADER + f"2024-01-02,{price},1,1,{price},1\n" for price in (1, 2))
    put(tmp_path, "es.zip", zipped(es_202403=march, es_202406=june, notes="-"))
    names = {"path": "{code}.zip", "member": "{code}_{expiry}.csv", "symbol": "{CODE}{expiry}.CME"}
    mapping = {**DAILY, **names, "notation": "verbatim"}
    assert source(tmp_path, mapping).symbols("bars_1d") == ["ES202403.CME", "ES202406.CME"]
    assert column(read(tmp_path, mapping, "ES202406.CME"), "close") == [2.0]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"trading_date": [date(2024, 1, 2)], "close": [1.5], "open": [math.nan], "volume": [7.0]})
    frame.write_parquet(tmp_path / "aapl.parquet")
    table = read(tmp_path, {**DAILY, "path": "{code}.parquet"})
    assert [column(table, name) for name in ("close", "open", "volume")] == [[1.5], [None], [7]]
    frame.with_columns(volume=7.5).write_parquet(tmp_path / "aapl.parquet")
    with pytest.raises(BadSourceData, match=r"aapl.parquet: line 1, column volume: 7.5 is not a whole number"):
        read(tmp_path, {**DAILY, "path": "{code}.parquet"})
    put(tmp_path, "aapl.parquet", b"PAR1")
    with pytest.raises(BadSourceData, match=r"aapl.parquet: not a readable Parquet file"):
        read(tmp_path, {**DAILY, "path": "{code}.parquet"})


def test_parquet_times_are_localised_or_converted(tmp_path: Path) -> None:
    moment = datetime(2024, 7, 5, 9, 30)  # noqa: DTZ001  naive on purpose
    mapping = {**MINUTES, "path": "{code}.parquet", "columns": {}}
    for values in ([moment], [moment.replace(hour=13, tzinfo=UTC)]):
        pl.DataFrame({"ts": values, "close": [1.0]}).write_parquet(tmp_path / "aapl.parquet")
        assert column(read(tmp_path, mapping), "ts") == [datetime(2024, 7, 5, 13, 30, tzinfo=UTC)]
    pl.DataFrame({"ts": [5.0], "close": [1.0]}).write_parquet(tmp_path / "aapl.parquet")
    with pytest.raises(BadSourceData, match=r"column ts holds Float64, not times"):
        read(tmp_path, mapping)


def test_whole_numbers_as_dates_in_parquet(tmp_path: Path) -> None:
    pl.DataFrame({"trading_date": [20240102], "close": [1.0]}).write_parquet(tmp_path / "aapl.parquet")
    table = read(tmp_path, {**DAILY, "path": "{code}.parquet", "time_format": "%Y%m%d"})
    assert column(table, "trading_date") == [date(2024, 1, 2)]


def test_symbols_in_a_column(tmp_path: Path) -> None:
    put(tmp_path, "all.csv", "symbol," + HEADER + "sz000001,2024-01-02,1,1,1,1,1\n600519,2024-01-02,2,2,2,2,2\n")
    mapping = {**DAILY, "path": "all.csv", "symbol": None}
    assert source(tmp_path, mapping).symbols("bars_1d") == ["000001.SZ", "600519.SH"]
    assert column(read(tmp_path, mapping, "600519.SH"), "close") == [2.0]
    put(tmp_path, "all.csv", "symbol," + HEADER + "?,2024-01-02,1,1,1,1,1\n")
    with pytest.raises(BadSourceData, match=r"all.csv: column symbol: '\?' is not a symbol"):
        read(tmp_path, mapping, "600519.SH")


def test_new_files_and_new_rows_appear_without_a_restart(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER)
    served = source(tmp_path, DAILY)
    request = FetchRequest("bars_1d", ("AAPL.US",), *EVER)
    assert served.fetch(request).num_rows == 0
    put(tmp_path, "aapl.csv", HEADER + "2024-01-02,1,1,1,1,1\n")
    put(tmp_path, "msft.csv", HEADER)
    put(tmp_path, ".aapl.csv", "half-written")
    assert served.fetch(request).num_rows == 1
    assert served.symbols("bars_1d") == ["AAPL.US", "MSFT.US"]


def test_a_symbol_without_a_file_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER)
    with pytest.raises(UnknownSymbol, match=r"no file for APL.US .* the nearest AAPL.US"):
        read(tmp_path, DAILY, "APL.US")


def test_a_symbol_without_a_file_in_range_has_no_rows(tmp_path: Path) -> None:
    put(tmp_path, "aapl/20240705.zip", zipped(x="1,10000,1,0\n"))
    assert read(tmp_path, TICKS, days=(date(2020, 1, 1), date(2020, 2, 1))).num_rows == 0


def test_a_missing_folder_is_an_outage_not_an_absence(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"the folder .*gone is not there"):
        read(tmp_path / "gone", DAILY)
    (tmp_path / "sub").mkdir()
    with pytest.raises(SourceUnavailable, match=r"sub/daily is not there"):
        read(tmp_path, {**DAILY, "path": "sub/daily/{code}.csv"})


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "outside/aapl.csv", HEADER)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "aapl.csv").symlink_to(tmp_path / "outside" / "aapl.csv")
    with pytest.raises(SourceUnavailable, match=r"aapl.csv is a symbolic link that leads out of"):
        read(tmp_path / "root", DAILY)
    (tmp_path / "root" / "daily").symlink_to(tmp_path / "outside")
    with pytest.raises(SourceUnavailable, match=r"daily is a symbolic link that leads out of"):
        read(tmp_path / "root", {**DAILY, "path": "daily/{code}.csv"})


def test_a_link_within_the_root_and_a_root_that_is_a_link_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "root/old.csv", HEADER + "2024-01-02,1,1,1,1,1\n")
    (tmp_path / "root" / "aapl.csv").symlink_to("old.csv")
    (tmp_path / "link").symlink_to("root")
    assert read(tmp_path / "link", DAILY).num_rows == 1


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER + "2024-01-02,1,1,1,1,1\n")
    put(tmp_path, "maps/aapl.csv", "20240102,aapl\n20501231,aapl\n")
    served = source(tmp_path, {**DAILY, "reuse": "maps"})
    request = FetchRequest("bars_1d", ("AAPL.US",), *EVER)
    with ThreadPoolExecutor(8) as pool:
        assert {table.num_rows for table in pool.map(served.fetch, [request] * 40)} == {1}
        assert set(map(tuple, pool.map(served.symbols, ["bars_1d"] * 40))) == {("AAPL.US",)}


# -- ticker reuse


def reused(tmp_path: Path) -> dict[str, Any]:
    days = ["1999-05-03", "2003-03-28", "2012-05-17", "2012-05-18", "2020-01-02"]
    put(tmp_path, "daily/fb.csv", "trading_date,close\n" + "".join(f"{day},1\n" for day in days))
    put(tmp_path, "daily/spy.csv", "trading_date,close\n1999-05-03,1\n")
    put(tmp_path, "maps/fb.csv", "20120518,fb,Q\n20501231,fb,Q\n")
    return {**DAILY, "path": "daily/{code}.csv", "reuse": "maps"}


def test_rows_of_a_former_security_have_a_symbol_of_their_own(tmp_path: Path) -> None:
    mapping = reused(tmp_path)
    assert source(tmp_path, mapping).symbols("bars_1d") == ["FB-201205.US", "FB.US", "SPY.US"]
    table = read(tmp_path, mapping, "FB.US", "FB-201205.US")
    assert column(table, "symbol") == ["FB-201205.US"] * 3 + ["FB.US"] * 2
    assert column(table, "trading_date")[2:4] == [date(2012, 5, 17), date(2012, 5, 18)]
    with pytest.raises(UnknownSymbol, match=r"FB-199901.US"):
        read(tmp_path, mapping, "FB-199901.US")
    with pytest.raises(UnknownSymbol, match=r"SPY-199905.US"):
        read(tmp_path, mapping, "SPY-199905.US")


def test_files_per_day_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for day in ("20030328", "20120518"):
        put(tmp_path, f"ticks/fb/{day}.zip", zipped(x="1,10000,1,0\n"))
    put(tmp_path, "maps/fb.csv", "20120518,fb,Q\n20501231,fb,Q\n")
    mapping = {**TICKS, "path": "ticks/{code}/{date:%Y%m%d}.zip", "reuse": "maps"}
    assert source(tmp_path, mapping).symbols("trades") == ["FB-200303.US", "FB.US"]
    assert column(read(tmp_path, mapping, "FB-200303.US"), "trading_date") == [date(2003, 3, 28)]
    assert column(read(tmp_path, mapping, "FB.US"), "trading_date") == [date(2012, 5, 18)]


def test_a_former_security_follows_new_rows(tmp_path: Path) -> None:
    mapping = reused(tmp_path)
    served = source(tmp_path, mapping)
    assert "FB-201205.US" in served.symbols("bars_1d")
    put(tmp_path, "daily/fb.csv", "trading_date,close\n1999-05-03,1\n2012-05-18,1\n")
    assert served.symbols("bars_1d") == ["FB-199905.US", "FB.US", "SPY.US"]


def test_a_ticker_that_came_back_keeps_its_security(tmp_path: Path) -> None:
    file = put(tmp_path, "qqq.csv", "19990310,qqq,Q\n20041130,qqq,Q\n20110322,qqqq,Q\n20501231,qqq,Q\n")
    tenure = read_tenure(file, "QQQ")
    assert tenure.own == ((date(1999, 3, 10), date(2004, 11, 30)), (date(2011, 3, 23), date(2050, 12, 31)))
    assert tenure.others[1] == (date(2004, 12, 1), date(2011, 3, 22))
    assert read_tenure(tmp_path / "none.csv", "none").others == ()


def test_without_map_files_nothing_is_served(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", HEADER)
    with pytest.raises(SourceUnavailable, match=r"maps, which tells reused tickers apart, is not there"):
        read(tmp_path, {**DAILY, "reuse": "maps"})


@pytest.mark.parametrize("text", ["2012,fb\n", "20120518\n", "20120518,fb\n20120101,fb\n"])
def test_a_map_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadSourceData, match=r"fb.csv: row"):
        read_tenure(put(tmp_path, "fb.csv", text), "fb")


# -- factors

FACTORS: dict[str, Any] = {
    "name": "adj_factors", "canonical": "adj_factors", "path": "{code}.csv", "symbol": "{code}.US", "factors": "lean",
    "columns": ["last_day", "price_factor", "split_factor", "reference_price"],
    "constants": {"source": "lean", "add": 0.0, "method": "multiplicative", "version": 1},
}  # fmt: skip


def test_factor_files_become_steps(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "19980102,0.5,0.25,1\n20050225,0.5,0.25,88\n20120808,0.5,1,44\n20501231,1,1,0\n")
    table = read(tmp_path, FACTORS)
    assert column(table, "ex_date") == [date(1998, 1, 2), date(2005, 2, 26), date(2012, 8, 9)]
    assert column(table, "mul") == [1.0, 4.0, 8.0]
    assert column(table, "known_at")[1] == datetime(2005, 2, 26, tzinfo=UTC)
    assert (column(table, "source")[0], column(table, "version")[0]) == ("lean", 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("19980102,0,1,1\n", "column price_factor: 0 is not a positive factor"),
        ("19980102,1,,1\n", "column split_factor: None is not a positive factor"),
        ("19980102,1,1,1\n19980102,1,1,1\n", "line 2, column last_day: 19980102 does not come after"),
        (",1,1,1\n", "a date is missing"),
    ],
)
def test_a_factor_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    put(tmp_path, "aapl.csv", text)
    with pytest.raises(BadSourceData, match=problem):
        read(tmp_path, FACTORS)
    with pytest.raises(InvalidRequest, match=r"factors = 'lean' needs"):
        source(tmp_path, {**FACTORS, "canonical": "bars_1d", "constants": {}})


# -- the mapping


def test_a_toml_file_and_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "data/000001.csv", "datetime,open,high,low,close,volume,openinterest\n2024-01-02,1,1,1,1,5.0,0\n")
    file = put(tmp_path, "my.toml", 'mapping = "ashare"\nroot = "data"\nprefix = "cn_"\n')
    served = FilesSource.from_toml(file)
    assert served.name == "ashare"
    assert [item.name for item in served.datasets()] == ["cn_bars_1d"]
    assert served.datasets()[0].calendar == "XSHG"
    assert served.fetch(FetchRequest("cn_bars_1d", ("000001.SZ",), *EVER))["volume"].to_pylist() == [5]
    with pytest.raises(UnknownDataset, match=r"ashare has no dataset bars_1d; it has cn_bars_1d"):
        served.symbols("bars_1d")


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "data/aapl.csv", HEADER)
    served = FilesSource.from_config({"root": "~/data", "dataset": [DAILY], "name": "mine"}, Path("/nowhere"))
    assert (served.name, served.symbols("bars_1d")) == ("mine", ["AAPL.US"])


def test_ready_mappings_are_whole_and_can_be_chosen_from(tmp_path: Path) -> None:
    assert ready_names() == ("ashare", "lean")
    assert all(ready_mapping(name) for name in ready_names())
    chosen = {"root": ".", "mapping": "lean", "datasets": ["trades"], "prefix": "us_"}
    (trades,) = FilesSource.from_config(chosen, tmp_path).datasets()
    assert (trades.name, trades.period, trades.calendar) == ("us_trades", "day", "XNYS")
    assert (trades.symbols_per_call, trades.first_session) == (16, date(1998, 1, 2))
    assert trades.range_pushdown


def test_a_schema_of_ones_own(tmp_path: Path) -> None:
    put(tmp_path, "aapl.csv", "2024-01-02,1,yes,5\n2024-01-03,2,,6\n")
    mapping = {
        "name": "signals",
        "schema": {"symbol": "string", "day": "date", "score": "float64! [ratio]", "live": "bool", "n": "int32"},
        "keys": ["symbol", "day"], "time": "day", "period": "month", "path": "{code}.csv", "symbol": "{code}.US",
        "columns": ["day", "score", "live", "n"],
    }  # fmt: skip
    table = read(tmp_path, mapping)
    assert table.schema.field("score").metadata == {b"unit": b"ratio"}
    assert [item.nullable for item in table.schema] == [False, False, False, True, True]
    assert (column(table, "live"), table["n"].type) == ([True, None], pa.int32())
    assert source(tmp_path, mapping).datasets()[0].period == "month"
    put(tmp_path, "aapl.csv", "2024-01-02,1,perhaps,5\n")
    with pytest.raises(BadSourceData, match=r"column live: perhaps is not true or false"):
        read(tmp_path, mapping)


@pytest.mark.parametrize(
    "path",
    ["/etc/{code}", "../{code}.csv", "a/../../{code}.csv", "a//{code}", "~/{code}", "a\\{code}", "{code", "{code:x}",
     "{date}", "{date:%H}"],
)  # fmt: skip
def test_a_path_that_could_leave_its_root_is_no_pattern(path: str) -> None:
    with pytest.raises(ValueError, match=r"root|brace|date"):
        PathPattern(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"path": "../{code}.csv"}, "dataset 1 path: .* must stay below root"),
        ({"colour": 1}, "dataset 1 colour: Extra inputs"),
        ({"canonical": "bars_9d"}, "no canonical dataset 'bars_9d'"),
        ({"canonical": None}, "give either canonical"),
        ({"keys": ["symbol"]}, r"keys and time belong to a \[dataset.schema\]"),
        ({"symbol": "{ticker}.US"}, "symbol uses ticker; path and member have code"),
        ({"symbol": "AAPL.US"}, "symbol names no placeholder"),
        ({"columns": ["nonsense"]}, "nonsense: no such column; bars_1d has symbol, trading_date"),
        ({"columns": ["open", "open"]}, "columns holds a name twice"),
        ({"price_columns": ["prize"]}, "prize: no such column"),
        ({"seq": "seq"}, "seq: no such column"),
        ({"header": False}, "needs columns = "),
        ({"time_zone": "Shanghai"}, "'Shanghai' is not a time zone"),
        ({"time_format": "milliseconds"}, "path needs the day"),
        ({"label_shift": "1 minute"}, "'1 minute' is not a duration"),
        ({"label_shift": "1m"}, "the time of this dataset is a date"),
        ({"reuse": "maps/{code}"}, "reuse is a folder"),
        ({"price_scale": 0}, "price_scale"),
    ],
)
def test_a_mapping_that_does_not_fit_says_why(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        source(tmp_path, {**DAILY, **change})


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("root = ", "my.toml is not TOML"),
        ('mapping = "ashare"', "my.toml: root: Field required"),
        ('root = "."', "give at least one"),
        ('root = "."\nmapping = "lena"', "no ready mapping 'lena'; there are ashare, lean"),
        ('root = "."\nmapping = "lean"\ndatasets = ["bars"]', "no dataset bars in the mapping; it has bars_1d,"),
        ('root = "."\nmapping = "lean"\neval = "1"', "eval: Extra inputs"),
    ],
)
def test_a_toml_file_that_does_not_fit_says_why(tmp_path: Path, document: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        FilesSource.from_toml(put(tmp_path, "my.toml", document))
    with pytest.raises(InvalidRequest, match=r"none.toml cannot be read"):
        FilesSource.from_toml(tmp_path / "none.toml")


def test_a_timestamp_needs_a_session_beside_it(tmp_path: Path) -> None:
    schema = {"symbol": "string", "ts": "timestamp", "value": "float64"}
    keys = {"keys": ["symbol", "ts"], "time": "ts"}
    mapping = {"name": "ticks", "schema": schema, **keys, "path": "{code}.csv", "symbol": "{code}"}
    with pytest.raises(InvalidRequest, match=r"add trading_date = 'date!'"):
        source(tmp_path, mapping)
    with pytest.raises(InvalidRequest, match=r"value = 'float'; types are string"):
        source(tmp_path, {**mapping, "schema": {**schema, "value": "float"}})


def test_what_the_documentation_and_the_examples_show_is_valid() -> None:
    folder = Path(__file__).resolve().parents[3]
    shown = re.findall(r"```toml\n(.*?)```", (folder / "docs/files-source.md").read_text("utf8"), re.DOTALL)
    whole = [tomllib.loads(text) for text in shown if "root" in tomllib.loads(text)]
    offered = [len(FilesSource.from_config(values, folder).datasets()) for values in whole]
    assert offered == [1, len(ready_mapping("lean")), 2]
    assert FilesSource.from_toml(folder / "examples/ashare.toml").name == "ashare"
    assert FilesSource.from_toml(folder / "examples/lean.toml").datasets()[0].name == "us_bars_1d"
