"""Where stores cost no disk: what is tried here is which system calls are made, and what is there after them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder in memory, where there is a tmpfs that can be written; else an ordinary one."""
    memory = Path("/dev/shm")
    found = Path(tempfile.mkdtemp(prefix="fletching-", dir=memory if os.access(memory, os.W_OK) else tmp_path))
    yield found
    shutil.rmtree(found)
