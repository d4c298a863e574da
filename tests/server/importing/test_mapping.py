"""What is worked out from names and samples, what a mapping may say, and that both are the same thing."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from tests.server.importing.quotes import held, quotes, write_csv

from fletching_schemas.errors import InvalidRequest
from fletching_server import open_engine
from fletching_server.cli.loading import plan_lines
from fletching_server.importing import ImportPlan, ImportRequest, load_mapping, make_plan, run_import, to_toml
from fletching_server.importing.inference import density


def plan(path: Path, dataset: str = "mine", **more: object) -> ImportPlan:
    return make_plan(ImportRequest([path], dataset, **more), None, 2)  # type: ignore[arg-type]


def text(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def columns(made: ImportPlan) -> dict[str, str]:
    return {column.target: f"{column.type} from {column.source}" for column in made.columns if column.target}


def test_what_is_shown_of_an_inferred_plan(tmp_path: Path) -> None:
    made = plan(write_csv(tmp_path / "q.csv", quotes(600)))
    assert [(column.source, column.target, column.type) for column in made.columns] == [
        ("symbol", "symbol", "string!"),
        ("ts", "ts", "timestamp!"),
        ("bid", "bid", "float64"),
        ("ask", "ask", "float64"),
        ("bid_size", "bid_size", "int64"),
        ("ask_size", "ask_size", "int64"),
    ]
    assert made.columns[0].samples == ("S00", "S01", "S02")
    first, second = plan_lines(made)
    assert first == "keys symbol, ts; time ts; a partition per year, buckets by size"
    assert second.startswith("about 600 rows in 1 inputs")


def test_names_that_vendors_use_are_matched_to_a_canonical_schema(tmp_path: Path) -> None:
    path = text(tmp_path / "q.csv", "Ticker;Timestamp;BidPrice;OfferSize;x", "A;2026-03-02T10:00:00Z;1.5;3;y")
    made = plan(path, "quotes_l1")
    assert columns(made) == {
        "symbol": "string! from Ticker",
        "ts": "timestamp! from Timestamp",
        "seq": "int64! from numbered within symbol and session",
        "trading_date": "date! from day of ts",
        "bid_px": "float64 from BidPrice",
        "ask_px": "float64 from absent: null",
        "bid_sz": "int64 from absent: null",
        "ask_sz": "int64 from OfferSize",
        "exchange": "string from absent: null",
        "condition": "string from absent: null",
    }
    assert [column.source for column in made.columns if column.type == "ignored"] == ["x"]
    assert made.mapping.delimiter == ";"
    assert (made.dataset.keys, made.dataset.period) == (("symbol", "ts", "seq"), "day")


def test_daily_bars_of_one_file_per_symbol(tmp_path: Path) -> None:
    for name in ("AAPL", "MSFT"):
        text(tmp_path / f"{name}.csv", "Date,Open,High,Low,Close,Volume", "20240102,1,2,1,2,100", "20240103,1,2,1,2,100")
    made = make_plan(ImportRequest([tmp_path], "bars_1d"), None, 2)
    assert columns(made)["symbol"] == "string! from file name: {code}"
    assert columns(made)["trading_date"] == "date! from Date"
    assert made.mapping.path is not None
    assert made.mapping.path.text == "{code}.csv"


@pytest.mark.parametrize(
    ("values", "kind", "form"),
    [
        (["2026-03-02 10:00:00", "2026-03-02 10:00:01.5"], "timestamp", None),
        (["2026-03-02T10:00:00+08:00"] * 2, "timestamp", None),
        (["2026-03-02", "2026-03-03"], "date", None),
        (["20260302", "20260303"], "date", "%Y%m%d"),
        (["20260302 10:00", "20260303 11:30"], "timestamp", "%Y%m%d %H:%M"),
        (["2026/03/02 10:00:00"] * 2, "timestamp", "%Y/%m/%d %H:%M:%S%.f"),
        (["1772445600", "1772445601"], "timestamp", "epoch_s"),
        (["1772445600.25", "1772445601.5"], "timestamp", "epoch_s"),
        (["1772445600000"] * 2, "timestamp", "epoch_ms"),
        (["1772445600000000"] * 2, "timestamp", "epoch_us"),
        (["1772445600000000000"] * 2, "timestamp", "epoch_ns"),
    ],
)
def test_times_are_told_by_what_they_look_like(tmp_path: Path, values: list[str], kind: str, form: str | None) -> None:
    made = plan(text(tmp_path / "q.csv", "code,time,x", *(f"A,{value},1" for value in values)))
    assert made.mapping.time_format == form
    assert pa.types.is_date32(made.dataset.schema.field("time").type) == (kind == "date")


def test_whole_prices_in_a_sample_are_still_prices(tmp_path: Path) -> None:
    made = plan(text(tmp_path / "q.csv", "sym,ts,price,count", "A,2026-03-02 10:00:00,10,3"))
    assert columns(made)["price"].startswith("float64")
    assert columns(made)["count"].startswith("int64")


def test_bad_rows_in_a_sample_do_not_make_a_column_text(tmp_path: Path) -> None:
    good = [f"A,2026-03-02 10:00:{second:02},{second}.5" for second in range(50)]
    made = plan(text(tmp_path / "q.csv", "sym,ts,price", *good, "A,never,1", "A,2026-03-02 11:00:00,none of that"))
    assert columns(made) == {"sym": "string! from sym", "ts": "timestamp! from ts", "price": "float64 from price"}


def test_words_for_nothing_are_found_and_shown(tmp_path: Path) -> None:
    made = plan(text(tmp_path / "q.csv", "sym,ts,x", "A,2026-03-02,1.5", "A,2026-03-03,NA", "A,2026-03-04,NaN"))
    assert made.mapping.nulls == ("NaN", "NA")
    assert columns(made)["x"] == "float64 from x"


def test_the_period_follows_span_and_density(tmp_path: Path) -> None:
    few, many = quotes(600, days=600), quotes(60_000, days=1)
    assert plan(write_csv(tmp_path / "few.csv", few)).dataset.period == "year"
    made = plan(write_csv(tmp_path / "many.csv", many))
    assert made.dataset.period == "month"
    assert density(made.dataset, 500_000, 1) == "day"
    assert plan(write_csv(tmp_path / "asked.csv", many), partition="year").dataset.period == "year"


def test_repeated_keys_in_a_sample_are_noted(tmp_path: Path) -> None:
    frame = quotes(20)
    made = plan(write_csv(tmp_path / "q.csv", pl.concat([frame, frame[:5]])))
    assert made.notes[0].startswith("5 of 25 sampled rows have a key that another row has")


@pytest.mark.parametrize(
    ("header", "row", "why"),
    [
        ("symbol,x", "A,1", "no column is a time"),
        ("x,y", "1,2", "no column is a time"),
        ("symbol,ts,ts", "A,2026-03-02,2026-03-02", "twice"),
        ("a,when", "1,2026-03-02", ""),
    ],
)
def test_what_only_a_person_can_tell_is_asked(tmp_path: Path, header: str, row: str, why: str) -> None:
    path = text(tmp_path / "q.csv", header, row)
    if not why:  # the file's name is the symbol then
        assert columns(plan(path))["symbol"] == "string! from file name: {code}"
        return
    with pytest.raises(InvalidRequest, match=why):
        plan(path)


def test_an_inferred_mapping_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    for dataset, name in (("quotes_l1", "q.csv"), ("mine", "AAPL.csv")):
        path = write_csv(tmp_path / name, quotes(50))
        if dataset == "mine":
            path = text(tmp_path / name, "day;price", "20260302;1.5")
        made = plan(path, dataset)
        (tmp_path / "m.toml").write_text(to_toml(made.mapping))
        again = plan(path, dataset, mapping=tmp_path / "m.toml")
        assert to_toml(again.mapping) == to_toml(made.mapping)
        assert again.dataset == made.dataset
        assert again.columns == made.columns


def test_a_mapping_of_the_files_source_serves_as_it_is(tmp_path: Path) -> None:
    mapping = load_mapping("lean", "trades")
    assert (mapping.canonical, mapping.notation, mapping.seq) == ("trades", "equity", "seq")
    assert load_mapping("lean", "bars_1m").label_shift.total_seconds() == 60
    with pytest.raises(InvalidRequest, match="has no dataset 'bars_9d'; it has bars_1d"):
        load_mapping("lean", "bars_9d")
    several = text(tmp_path / "m.toml", 'root = "x"', "[[dataset]]", 'name = "a"', 'canonical = "bars_1d"', 'path = "{code}.csv"')
    several.write_text(several.read_text() + 'symbol = "{code}"\n')
    assert load_mapping(several, "a").symbol == "{code}"


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['canonical = "bars_1d"', 'colour = "red"'], "colour"),
        (['canonical = "bars_9d"'], "bars_9d"),
        (['canonical = "bars_1d"', 'symbol = "{code}"'], "path says how"),
        (['canonical = "trades"', 'time_format = "milliseconds"'], "path needs the day"),
        (['canonical = "bars_1d"', 'label_shift = "1m"'], "moves a timestamp"),
        (['canonical = "bars_1d"', "buckets = 0"], "buckets"),
    ],
)
def test_a_wrong_mapping_names_what_is_wrong(tmp_path: Path, lines: list[str], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        load_mapping(text(tmp_path / "m.toml", *lines), "mine")


def test_a_mapping_says_units_zones_constants_and_names_from_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "AAPL"
    folder.mkdir()
    path = text(folder / "20260302.csv", "34200000,1677400,100", "34200250,1677500,200")
    mapping = text(
        tmp_path / "m.toml",
        'canonical = "trades"',
        'path = "{code}/{date:%Y%m%d}.csv"',
        'symbol = "{code}.US"',
        'columns = ["ts", "price", "size"]',
        'seq = "seq"',
        'time_format = "milliseconds"',
        'time_zone = "America/New_York"',
        "price_scale = 10000",
        'price_columns = ["price"]',
        'constants = { exchange = "Q" }',
    )
    made = plan(path, "trades", mapping=mapping)
    with open_engine(tmp_path / "store") as engine:
        run_import(engine, made)
        rows = held(engine, "trades").to_dicts()
    assert [(row["symbol"], str(row["ts"]), row["seq"], row["price"], row["exchange"]) for row in rows] == [
        ("AAPL.US", "2026-03-02 14:30:00+00:00", 0, 167.74, "Q"),
        ("AAPL.US", "2026-03-02 14:30:00.250000+00:00", 1, 167.75, "Q"),
    ]
    assert {row["trading_date"] for row in rows} == {date(2026, 3, 2)}


def test_a_first_line_of_values_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("AAA,2024-01-02,1\nBBB,2024-01-02,2\n")
    with pytest.raises(InvalidRequest, match="the first line does not look like names of columns"):
        plan(tmp_path / "a.csv")


def test_nan_in_text_is_nothing_whatever_else_the_column_holds(tmp_path: Path) -> None:
    for number, words in enumerate((("NaN", "5"), ("nan", "5.5"), ("NaN", "NaN"))):
        rows = "".join(f"A,2024-01-0{place + 2},{word}\n" for place, word in enumerate(words))
        (tmp_path / f"{number}.csv").write_text("symbol,day,price\n" + rows)
        assert "nan" in {word.lower() for word in plan(tmp_path / f"{number}.csv").mapping.nulls}
