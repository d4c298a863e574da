"""The cold tier finds the same rows whichever way they are read, and never rows whose bytes have changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import bar, weekdays

from fletching_schemas import canonical
from fletching_server import cold, parquet
from fletching_server.calendars import day_number
from fletching_server.changes import Define
from fletching_server.cold import ColdTier
from fletching_server.image import Window, build_image
from fletching_server.snapshot import StoredFile
from fletching_server.store import DamagedFile, Store

DAILY = canonical("bars_1d", calendar="XSHG")
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 13))
SYMBOLS = [f"{number:06}.SZ" for number in range(1, 31)]
ALWAYS = Window(day_number(DAYS[0]), day_number(DAYS[-1]))
WINDOW = Window(day_number(DAYS[2]), day_number(DAYS[5]))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(parquet, "LASTING", parquet.LASTING._replace(group_rows=64))  # so that symbols lie across their borders
    opened = Store(tmp_path / "store")
    opened.commit(Define(DAILY, "vendor"))
    yield opened
    opened.close()


@pytest.fixture
def tier(store: Store) -> Iterator[ColdTier]:
    opened = ColdTier(store, 64 << 20, 1)
    yield opened
    opened.close()


@pytest.fixture
def file(store: Store) -> StoredFile:
    return store.publish(DAILY, build_image(DAILY, rows_of(SYMBOLS, DAYS[0], DAYS[-1])), "partition", sync=False, period="2026")


def rows_of(symbols: list[str], first: date, last: date) -> pa.Table:
    wanted = [bar(symbol, day) for symbol in SYMBOLS for day in DAYS if symbol in symbols and first <= day <= last]
    return pa.Table.from_pylist(wanted, schema=DAILY.schema)


def test_a_whole_file_is_as_it_was_written(tier: ColdTier, file: StoredFile) -> None:
    found = tier.whole(DAILY, file)
    assert found.table.equals(rows_of(SYMBOLS, DAYS[0], DAYS[-1]))
    assert found.symbols == tuple(SYMBOLS)


@pytest.mark.parametrize("most_picked", [0, 256], ids=["streamed", "picked"])
@pytest.mark.parametrize("symbols", [SYMBOLS[:1], SYMBOLS[6:8], SYMBOLS[-1:], ["999999.SZ"]])
def test_a_selection_has_the_rows_of_its_symbols_in_its_window(
    tier: ColdTier, file: StoredFile, symbols: list[str], most_picked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold, "_MOST_PICKED", most_picked)
    found = tier.select(DAILY, file, symbols, WINDOW, DAILY.schema.names)
    assert found.table.select(DAILY.schema.names).equals(rows_of(symbols, DAYS[2], DAYS[5]))


def test_symbols_that_lie_apart_are_picked_without_those_between(tier: ColdTier, file: StoredFile) -> None:
    asked = [SYMBOLS[0], SYMBOLS[15], SYMBOLS[29]]
    found = tier.select(DAILY, file, asked, ALWAYS, ["close"])
    assert found.symbols == tuple(asked)
    assert found.table["close"].equals(rows_of(asked, DAYS[0], DAYS[-1])["close"])
    assert found.table.column_names == ["symbol", "trading_date", "close"]


def test_only_the_row_groups_that_may_hold_a_symbol_are_read(store: Store, tier: ColdTier, file: StoredFile) -> None:
    path = store.path(file)
    spoil(path, group=0)
    assert tier.select(DAILY, file, SYMBOLS[-1:], ALWAYS, ["close"]).table.num_rows == len(DAYS)
    with pytest.raises(DamagedFile):
        tier.select(DAILY, file, SYMBOLS[:1], ALWAYS, ["close"])


def test_bytes_that_changed_after_the_first_use_are_not_decoded(store: Store, tier: ColdTier, file: StoredFile) -> None:
    tier.whole(DAILY, file)
    spoil(store.path(file), group=3)
    with pytest.raises(DamagedFile, match="changed"):
        tier.whole(DAILY, file)


def spoil(path: Path, group: int) -> None:
    """Flip a bit of the prices in one row group."""
    chunk = pq.read_metadata(path).row_group(group).column(DAILY.schema.get_field_index("close"))
    raw = bytearray(path.read_bytes())
    raw[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(raw)
