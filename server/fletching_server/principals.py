"""Who asked, as the access log tells it: the same name tomorrow, or a pseudonym in its place."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

import structlog

from fletching_server import disk
from fletching_server.access import EMBEDDED
from fletching_server.failpoints import Purpose

log = structlog.get_logger(__name__)

_KEY_BYTES: Final = 32
_DIGEST_BYTES: Final = 8
_MOST_KEPT: Final = 4096
# What changes with every connection or process: a port at the end of an address, a process after its user.
_LOCAL: Final = re.compile(r"(local:\d+):\d+")
_ADDRESS: Final = re.compile(r"(ipv[46]:.+?)(?:%5D|\])?:\d+")


def lasting(principal: str) -> str:
    """Return *principal* without what is new with each connection, so that its habits can be learned.

    >>> lasting("ipv4:10.0.0.7:51234"), lasting("local:1000:4711"), lasting("")
    ('ipv4:10.0.0.7', 'local:1000', 'embedded')
    """
    for pattern in (_LOCAL, _ADDRESS):
        if found := pattern.fullmatch(principal):
            return found.group(1).replace("%5B", "").replace("[", "")
    return principal or EMBEDDED


class Principals:
    """The names under which reads are logged; with *key_file* pseudonyms, which only its key connects with whom they hide."""

    def __init__(self, key_file: Path | None) -> None:
        self._key_file, self._key = key_file, b""
        self._known: dict[str, str] = {}

    def name(self, principal: str) -> str:
        """Return the name of *principal* in the log."""
        found = self._known.get(principal)
        if found is None:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            found = self._known[principal] = self._named(lasting(principal))
        return found

    def _named(self, principal: str) -> str:
        if self._key_file is None:
            return principal
        self._key = self._key or _key_of(self._key_file)
        return hashlib.blake2b(principal.encode(), key=self._key, digest_size=_DIGEST_BYTES).hexdigest()


def _key_of(path: Path) -> bytes:
    """Return the key in *path*, made where there is none; only the owner may read it."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    if len(key) == _KEY_BYTES:
        return key
    if key:
        log.warning("the key of the access log's pseudonyms is damaged: a new one is made, and everybody is new", file=str(path))
    key = os.urandom(_KEY_BYTES)
    disk.publish(path, key, sync=False, purpose=Purpose.ACCESS, mode=0o600)
    return key
