"""Sealed memory: immutable, mappable, and never a reason to fail."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pytest

from fletching_server import sealed
from fletching_server.image import shared, unindexed_image
from fletching_server.sealed import SEALS, Sealed, seal

FRAME = pl.DataFrame({
    "name": ["short", "a text of more than twelve bytes", None],
    "number": [1, None, 3],
    "flag": [True, False, None],
})  # fmt: skip
TABLE = FRAME.to_arrow(compat_level=pl.CompatLevel.newest())

REFUSED = """
import resource, sys, pyarrow as pa
limit, value = getattr(resource, sys.argv[1]), int(sys.argv[2])
from fletching_server.sealed import log, seal
log.warning("loads what logging needs")
rows = pa.table({"number": list(range(100_000))})
resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
print(seal(rows))
"""


@pytest.fixture(params=["memfd", "plain file"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sealed]:
    if request.param == "plain file":
        monkeypatch.setattr(os, "memfd_create", refuse)
    found = seal(TABLE)
    assert found is not None
    yield found
    found.close()


def refuse(*_: object) -> int:
    raise OSError(38, "Function not implemented")


def test_the_table_is_the_same(made: Sealed) -> None:
    assert made.table.equals(TABLE)
    assert made.table.schema.equals(TABLE.schema, check_metadata=True)


def test_nobody_can_write_shrink_or_grow_it() -> None:
    made = seal(TABLE)
    assert made is not None
    assert fcntl.fcntl(made.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    for attempt in (
        lambda: os.pwrite(made.fd, b"x", 0),
        lambda: os.ftruncate(made.fd, 0),
        lambda: os.ftruncate(made.fd, 1 << 20),
    ):
        with pytest.raises(PermissionError):
            attempt()
    again = os.open(f"/proc/self/fd/{made.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
    finally:
        os.close(again)
        made.close()


def test_without_memfd_the_file_has_no_name_and_is_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "memfd_create", refuse)
    made = seal(TABLE)
    assert made is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(made.fd, b"x", 0)
    assert os.fstat(made.fd).st_nlink == 0
    made.close()


def test_rows_outlive_the_descriptor(made: Sealed) -> None:
    table = made.table
    made.close()
    made.close()
    assert table.equals(TABLE)


def test_serials_are_never_used_twice() -> None:
    serials = []
    for _ in range(5):
        made = seal(TABLE)
        assert made is not None
        serials.append(made.serial)
        made.close()
    assert len(set(serials)) == 5


@pytest.mark.parametrize(("limit", "value"), [("RLIMIT_NOFILE", 3), ("RLIMIT_FSIZE", 4096)])
def test_where_the_system_refuses_rows_stay_private(limit: str, value: int) -> None:
    command = [sys.executable, "-c", REFUSED, limit, str(value)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.splitlines()[-1] == "None"
    assert "they stay in private memory" in shown


def test_an_image_that_cannot_be_shared_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_sealed_file", refuse)
    image = unindexed_image(pa.table({"number": [1, 2]}))
    assert shared(image) is image
