"""What a client of ours says beside a Flight call, in headers: servers that do not know them answer as to anybody."""

from __future__ import annotations

from typing import Final

from fletching_schemas.errors import InvalidRequest

COMPRESSION: Final = "fletching-compression"  # how the batches of the answer shall be compressed
ENDPOINTS: Final = "fletching-endpoints"  # the client takes all endpoints of a flight, at most so many

COMPRESSIONS: Final = ("lz4", "zstd")
_MOST_ENDPOINTS: Final = 64


def check_compression(name: str) -> str:
    """Return *name* where it is a way to compress batches; else raise ``InvalidRequest``."""
    if name not in COMPRESSIONS:
        raise InvalidRequest(f"compression={name!r:.40}; it is one of {', '.join(COMPRESSIONS)}, or None for plain batches")
    return name


def endpoints_asked(value: str | None) -> int:
    """Return how many endpoints a client takes that sent *value*; one that sent none, or junk, takes the first."""
    return min(int(value), _MOST_ENDPOINTS) if value and value.isascii() and value.isdigit() and len(value) < 4 else 1
