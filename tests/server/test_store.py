from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import bar, weekdays

from fletching_schemas import canonical
from fletching_schemas.errors import StoreError, StoreInUse, StoreUnwritable, UnknownDataset
from fletching_server import parquet
from fletching_server.changes import Define, Delete, Swap
from fletching_server.image import Image, build_image
from fletching_server.snapshot import StoredFile
from fletching_server.store import DamagedFile, Store

DAILY = canonical("bars_1d", calendar="XSHG")
DAYS = weekdays(date(2026, 11, 2), date(2026, 11, 6))


def image() -> Image:
    return build_image(DAILY, pa.Table.from_pylist([bar("000001.SZ", day) for day in DAYS], schema=DAILY.schema))


def next_day(last: int, first: int) -> bool:
    return first <= last + 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", history_days=0)
    opened.commit(Define(DAILY, "vendor"))
    yield opened
    opened.close()


def add(store: Store, *removed: StoredFile) -> StoredFile:
    segment = store.publish(DAILY, image(), "segment", sync=False)
    store.commit(Swap("bars_1d", (segment,), removed, next_day, 0))
    return segment


def there(store: Store, file: StoredFile) -> bool:
    return (store.root / file.path).exists()


# Files and their readers


def test_a_published_file_is_plain_parquet_that_says_what_it_is(store: Store) -> None:
    segment = add(store)
    path = store.path(segment)
    assert pq.read_table(path).column("close").to_pylist() == image().table.column("close").to_pylist()
    assert pq.read_schema(path).field("symbol").type == pa.string()
    facts = parquet.footer_facts(path)
    assert (facts["id"], facts["kind"], facts["dataset"]["name"]) == (segment.id, "segment", "bars_1d")
    assert (segment.rows, segment.symbols) == (5, ("000001.SZ",))
    assert segment.bytes == path.stat().st_size


def test_a_retired_file_without_a_reader_leaves_at_once(store: Store) -> None:
    old = add(store)
    new = add(store, old)
    assert not there(store, old)
    assert there(store, new)


def test_a_retired_file_stays_until_its_last_reader_has_gone(store: Store) -> None:
    old = add(store)
    with store.pinned("bars_1d") as first:
        with store.pinned("bars_1d"):
            add(store, old)
            assert first.files[0].id == old.id
            assert there(store, old)
        assert there(store, old)
    assert not there(store, old)


def test_a_later_reader_does_not_keep_what_it_does_not_see(store: Store) -> None:
    old = add(store)
    with store.pinned("bars_1d"):
        new = add(store, old)
        with store.pinned("bars_1d") as later:
            assert [file.id for file in later.files] == [new.id]
    with store.pinned("bars_1d"):
        assert not there(store, old)


def test_an_earlier_reader_keeps_all_that_was_retired_since(store: Store) -> None:
    one = add(store)
    with store.pinned("bars_1d"):
        two = add(store, one)
        with store.pinned("bars_1d"):
            add(store, two)
            assert there(store, one)
            assert there(store, two)
        assert there(store, one)
    assert not there(store, one)
    assert not there(store, two)


def test_readers_of_one_dataset_do_not_keep_the_files_of_another(store: Store) -> None:
    store.commit(Define(DAILY.with_name("other"), "vendor"))
    old = add(store)
    with store.pinned("other"):
        add(store, old)
        assert not there(store, old)


def test_deleted_files_leave_with_their_last_reader(store: Store) -> None:
    old = add(store)
    with store.pinned("bars_1d"):
        store.commit(Delete("bars_1d"))
        assert there(store, old)
    assert not there(store, old)


def test_a_reader_of_what_does_not_exist_is_told_what_does(store: Store) -> None:
    with pytest.raises(UnknownDataset, match="there is no dataset 'nope'; there are: bars_1d"), store.pinned("nope"):
        pass


def test_files_that_no_commit_mentions_are_swept(store: Store) -> None:
    kept = add(store)
    lost = store.publish(DAILY, image(), "segment", sync=False)
    partition = store.publish(DAILY, image(), "partition", sync=False, period="2026")
    (store.root / "journal" / "half.parquet.1234.tmp").write_bytes(b"half")
    assert store.sweep() == 3
    assert there(store, kept)
    assert not there(store, lost)
    assert not there(store, partition)
    assert store.sweep() == 0


def test_after_reopening_the_picture_is_the_same(store: Store) -> None:
    add(store)
    add(store, add(store))
    before = store.state("bars_1d")
    store.close()
    again = Store(store.root)
    after = again.state("bars_1d")
    again.close()
    assert (after.dataset, after.source, after.files, dict(after.coverage)) == (
        before.dataset,
        before.source,
        before.files,
        dict(before.coverage),
    )


# Damage


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: raw[:9] + bytes([raw[9] ^ 1]) + raw[10:], lambda _: b""]
)
def test_a_file_that_is_not_as_it_was_written_is_found_out(store: Store, damage: Any) -> None:
    segment = add(store)
    path = store.root / segment.path
    path.write_bytes(damage(path.read_bytes()))
    store.close()
    again = Store(store.root)
    with pytest.raises(DamagedFile, match=r"has checksum .* as written"):
        again.path(segment)
    again.close()


def test_a_file_that_is_gone_is_found_out(store: Store) -> None:
    segment = add(store)
    (store.root / segment.path).unlink()
    with pytest.raises(DamagedFile, match="cannot be read"):
        store.verify(segment)


def test_a_damaged_file_is_set_aside_for_somebody_to_look_at(store: Store) -> None:
    segment = add(store)
    place = store.set_aside(segment)
    assert place is not None
    assert place.parent == store.root / "set-aside"
    assert place.exists()
    assert not there(store, segment)
    assert store.set_aside(segment) is None


# Opening


def test_a_store_is_open_once_at_a_time(store: Store) -> None:
    with pytest.raises(StoreInUse, match=rf"process {os.getpid()}; one process at a time"):
        Store(store.root)


def test_a_store_that_was_closed_can_be_opened(store: Store) -> None:
    store.close()
    Store(store.root).close()


def test_a_store_that_could_not_be_opened_is_not_left_locked(tmp_path: Path) -> None:
    (tmp_path / "catalogue.sqlite").write_bytes(b"garbage " * 1000)
    for _ in range(2):
        with pytest.raises(StoreError, match="catalogue"):
            Store(tmp_path)
    (tmp_path / "catalogue.sqlite").unlink()
    Store(tmp_path).close()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises(StoreError, match="is a file; name a folder"):
        Store(tmp_path / "store")


def test_a_folder_that_cannot_be_made_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreUnwritable, match="cannot create the folder"):
        Store(tmp_path / "file" / "store")


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    root = tmp_path / "what? 100% #1 & more=ü"
    Store(root).close()
    assert (root / "catalogue.sqlite").exists()


def test_without_its_catalogue_a_store_is_not_opened_and_no_file_is_lost(store: Store) -> None:
    segment = add(store)
    store.close()
    for path in store.root.glob("catalogue.sqlite*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match="restore it from a backup"):
            Store(store.root)
    assert there(store, segment)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_what_the_system_refuses_is_unwritable_and_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "rename":
            patch.setattr(Path, "rename", refuse)
        else:
            patch.setattr(f"fletching_server.volume.os.{call}", refuse)
        with pytest.raises(StoreUnwritable, match="No space left on device; check its permissions and the free room"):
            store.publish(DAILY, image(), "segment", sync=True)
    assert store.sweep() == 0
    if call == "fsync":  # the disk may have dropped what it was given, and would not tell a second time
        with pytest.raises(StoreUnwritable, match=r"syncing .* failed .* open the store again"):
            add(store)
        store.close()
        store = Store(store.root)
    assert there(store, add(store))
    store.close()


def test_short_writes_are_gone_on_with(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr("fletching_server.volume.os.write", lambda descriptor, data: real(descriptor, bytes(data[:100])))
    segment = store.publish(DAILY, image(), "segment", sync=False)
    store.verify(segment)
