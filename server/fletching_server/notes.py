"""Small records that may be lost: a JSON file beside the store's data, written now and then, never waited for by anybody.

Losing the last minutes of one costs a little accuracy and nothing else, so it is not synced, and one that cannot be read is
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from fletching_schemas.errors import StoreUnwritable
from fletching_server import disk
from fletching_server.failpoints import Purpose, Removal

log = structlog.get_logger(__name__)


class Notes:
    """The JSON object in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Any]:
        """Return what was written last; an empty object where there is nothing, or nothing that can be read."""
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.distrust(str(error))
            return {}
        if not isinstance(found, dict):
            self.distrust("it is no JSON object")
            return {}
        return found

    def distrust(self, why: str) -> None:
        """Log that the file is ignored: whoever reads it begins anew."""
        log.warning("notes cannot be read and are begun anew", file=str(self._path), why=why)

    def save(self, facts: Mapping[str, Any]) -> None:
        """Write *facts* in place of what was there; a full disk is logged and no error."""
        try:
            for aside in self._path.parent.glob(f"{self._path.name}.*{disk.TEMPORARY}"):
                disk.remove(aside, Removal.SWEEP)  # of a process that was killed while it wrote
            disk.publish(self._path, json.dumps(facts, separators=(",", ":")).encode(), sync=False, purpose=Purpose.NOTES)
        except StoreUnwritable as error:
            log.warning("notes cannot be written", file=str(self._path), why=str(error))
