"""Files that appear whole or not at all, and a disk that is not trusted once it has failed to sync."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fletching_schemas.errors import StoreUnwritable
from fletching_server import disk, failpoints
from fletching_server.failpoints import Purpose, Removal
from fletching_server.volume import Operation, mount, observed, volume_of

TABLE = pa.table({"x": list(range(300_000))})


def written(path: Path, **more: Any) -> disk.NewFile:
    with disk.creating(path, sync=True, purpose=Purpose.IMPORT) as file, pq.ParquetWriter(file, TABLE.schema) as writer:
        writer.write_table(TABLE, **more)
    return file


def test_a_file_that_is_written_piece_by_piece_tells_its_size_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down.parquet"
    file = written(path, row_group_size=10_000)
    assert (file.size, file.digest) == (path.stat().st_size, disk.file_digest(path))
    assert pq.read_table(path).equals(TABLE)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_writer_may_close_what_it_was_given(tmp_path: Path) -> None:
    with disk.creating(tmp_path / "x", sync=True, purpose=Purpose.IMPORT) as file:
        file.write(b"rows")
        file.close()
    assert (tmp_path / "x").read_bytes() == b"rows"


def test_bytes_in_memory_take_the_same_way(tmp_path: Path) -> None:
    for data in (b"", b"x" * 1_000_000):
        assert disk.publish(tmp_path / "x", data, sync=False) == disk.digest(data)
        assert (tmp_path / "x").read_bytes() == data


@pytest.mark.parametrize("step", ["open", "write", "sync", "rename"])
@pytest.mark.parametrize("kind", ["eio", "enospc"])
def test_what_fails_leaves_nothing(tmp_path: Path, step: str, kind: str) -> None:
    with failpoints.armed(f"import.{step}", kind), pytest.raises(StoreUnwritable, match="cannot write"):
        written(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def swallowing(path: Path) -> None:
    with disk.creating(path, sync=False, purpose=Purpose.FILL) as file:
        with failpoints.armed("fill.write", "eio"), suppress(StoreUnwritable):
            file.write(b"x" * disk.BUFFER_BYTES * 2)
        file.write(b"the rest")


def test_a_failure_that_a_writer_swallows_is_raised_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="cannot write"):
        swallowing(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def interrupted(path: Path) -> None:
    with disk.creating(path, sync=True, purpose=Purpose.WRITE) as file:
        file.write(b"half")
        raise FileNotFoundError("mine")


def test_an_error_of_ones_own_stays_what_it_is_and_nothing_appears(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mine"):
        interrupted(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write.sync", "write.sync_folder", "folder.sync_folder"])
def test_after_a_failed_sync_nothing_is_written_until_the_store_is_opened_again(tmp_path: Path, step: str) -> None:
    mount(tmp_path)
    with failpoints.armed(step, "eio"), pytest.raises(StoreUnwritable):
        disk.publish(tmp_path / "a" / "x", b"1", sync=True)
    for sync in (True, False):
        with pytest.raises(StoreUnwritable, match="open the store again"):
            disk.publish(tmp_path / "a" / "x", b"1", sync=sync)
    elsewhere = tmp_path.with_name(tmp_path.name + "-other")
    mount(elsewhere)
    disk.publish(elsewhere / "x", b"1", sync=True)
    mount(tmp_path)
    disk.publish(tmp_path / "a" / "x", b"1", sync=True)


def test_a_new_folder_and_one_that_a_dead_process_made_are_synced_into_theirs(tmp_path: Path) -> None:
    steps: list[Operation] = []
    (tmp_path / "journal").mkdir()  # by a process that died before it synced it
    with observed(tmp_path, steps.append):
        for name in ("x", "y"):
            disk.publish(tmp_path / "journal" / "new" / name, b"1", sync=True)
    told = [(step.verb, step.path.relative_to(tmp_path.parent).name) for step in steps]
    assert told[:5] == [
        ("sync_folder", ""),
        ("sync_folder", tmp_path.name),
        ("make_folder", "new"),
        ("sync_folder", "journal"),
        ("create", steps[4].path.name),
    ]
    assert [verb for verb, _ in told[4:]] == ["create", "write", "sync", "rename", "sync_folder"] * 2


def test_a_file_that_is_gone_is_removed(tmp_path: Path) -> None:
    disk.publish(tmp_path / "x", b"1", sync=False)
    for _ in range(2):
        disk.remove(tmp_path / "x", Removal.SWEEP)
    with failpoints.armed("sweep.unlink", "eio"), pytest.raises(StoreUnwritable, match="cannot remove"):
        disk.remove(tmp_path / "x", Removal.SWEEP)


def test_a_path_outside_of_all_stores_has_a_disk_of_its_own(tmp_path: Path) -> None:
    volume_of(tmp_path).distrust("a test says so")
    volume_of(tmp_path).check()


def test_names_of_failpoints_are_known(tmp_path: Path) -> None:
    assert len(failpoints.NAMES) == len(set(failpoints.NAMES)) >= 30
    failpoints.hit("nobody looks")
    with failpoints.traced() as reached, pytest.raises(LookupError, match="list it in"):
        failpoints.hit("nobody.knows")
    assert not reached
    with pytest.raises(LookupError, match="there are write"), failpoints.armed("nobody.knows", "eio"):
        pass
    with failpoints.armed("fill.open", "eio", nth=2):
        disk.publish(tmp_path / "x", b"", sync=False, purpose=Purpose.FILL)
        with pytest.raises(StoreUnwritable):
            disk.publish(tmp_path / "x", b"", sync=False, purpose=Purpose.FILL)
        disk.publish(tmp_path / "x", b"", sync=False, purpose=Purpose.FILL)
