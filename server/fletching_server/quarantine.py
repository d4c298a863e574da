"""Answers that failed a check: kept aside with the reason, for somebody to look at; never served, and never many."""

from __future__ import annotations

import threading
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import structlog

from fletching_schemas import FetchRequest
from fletching_schemas.errors import Error
from fletching_server import disk
from fletching_server.clock import Clock
from fletching_server.failpoints import Purpose, Removal

log = structlog.get_logger(__name__)

MOST_KEPT: Final = 100
MOST_BYTES: Final = 64 << 20  # of one answer; a larger one is reported without its rows


class Quarantine:
    """The folder ``<store>/quarantine``: an Arrow IPC file per refused answer, with what was asked and why in its metadata."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._lock = threading.Lock()

    def keep(self, request: FetchRequest, answer: Any, error: Error) -> Path | None:
        """Write *answer* aside and return where; None where it is no table, or cannot be written: refusing it is what counts."""
        log.warning("answer refused", request=str(request), why=error.message)
        if not isinstance(answer, pa.Table) or answer.nbytes > MOST_BYTES:
            return None
        at = self._clock.now()
        facts = {b"request": str(request), b"why": error.message, b"code": error.code, b"at": at.isoformat()}
        try:
            path = self._folder / f"{at:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.arrow"
            disk.make_folder(self._folder)
            data = _encoded(answer, {name: text.encode(errors="replace") for name, text in facts.items()})
            disk.publish(path, data, sync=False, purpose=Purpose.QUARANTINE)
            self._thin_out()
        except (OSError, pa.ArrowException, Error) as trouble:
            log.warning("a refused answer could not be kept", why=str(trouble))
            return None
        return path

    def _thin_out(self) -> None:
        with self._lock:
            for path in sorted(self._folder.glob("*.arrow"))[:-MOST_KEPT]:
                disk.let_go(path, Removal.FORGET)

    def report(self) -> list[dict[str, Any]]:
        """Return what is kept, the newest first: when, what was asked, why it was refused, and the file."""
        return [_described(path) for path in sorted(self._folder.glob("*.arrow"), reverse=True)]


def _encoded(answer: pa.Table, facts: dict[bytes, bytes]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, answer.schema.with_metadata(facts)) as writer:
        writer.write_table(answer.replace_schema_metadata(facts))
    return sink.getvalue()


def _described(path: Path) -> dict[str, Any]:
    try:
        with pa.ipc.open_file(path) as reader:
            facts = {name.decode(): text.decode() for name, text in (reader.schema.metadata or {}).items()}
            return {
                "file": str(path),
                **facts,
                "at": str(datetime.fromisoformat(facts["at"])),
                "rows": reader.read_all().num_rows,
            }
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        return {"file": str(path), "why": f"cannot be read: {error}"}
