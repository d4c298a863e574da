"""The words of the local plane: frames on a UNIX socket, each a kind, a length and that many bytes.

    client                               server
    HELLO   {"version"}              ->
                                     <-  HELLO   {"version", "instance", "board"}, with a descriptor where *board* is true
    READ    serials, ReadRequest     ->
                                     <-  IMAGES  serials, with two descriptors each: the image, and what ends its lease
                                     <-  MAPPED  {"columns", "layers", "images", "parts", "once"}
                                     or  ARROW   an IPC stream with some rows, as often as needed
                                     <-  END     ReadInfo where the request asks for it, else ``LASTING`` or nothing
                                     or  ERROR   {"code", "message", "retry_at"}

A READ names the images that the client maps already, so that only others are handed over. *images* of MAPPED are serials;
*layers* are the names of the columns that lie together; *parts* is a flat list of integers: rows, then per layer the place of
the image in *images* and the first row in it. The image *once* (or null) belongs to this answer alone.

The board is a page of memory that begins with a number (64 bits, native order). A client that reads the number before it
asks, and gets a LASTING answer, may take that for its own next answer to the same request for ``LASTS_SECONDS``, while the
number is even and the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

from fletching_schemas.errors import Error, InvalidRequest, error_from_code
from fletching_schemas.requests import MAX_REQUEST_BYTES

LOCAL_VERSION: Final = 1
MAX_MAPPED: Final = 4096  # images that one client may name as mapped
MOST_AT_ONCE: Final = 100  # images whose descriptors travel in one message; the system takes 253 descriptors
LASTING: Final = b"+"
LASTS_SECONDS: Final = 1.0  # sessions open and settle by the clock, which no number tells
MAX_ASKED_BYTES: Final = MAX_REQUEST_BYTES + 8 * MAX_MAPPED + 64
MAX_TOLD_BYTES: Final = 64 << 20

_HEAD: Final = struct.Struct("<BI")
HEAD_BYTES: Final = _HEAD.size


class Frame(IntEnum):
    """The kinds of frames."""

    HELLO = 1
    READ = 2
    IMAGES = 3
    MAPPED = 4
    ARROW = 5
    END = 6
    ERROR = 7


def head(kind: Frame, size: int) -> bytes:
    """Return what stands before *size* bytes of a frame."""
    return _HEAD.pack(kind, size)


def frame(kind: Frame, body: bytes = b"") -> bytes:
    """Return a whole frame."""
    return _HEAD.pack(kind, len(body)) + body


def told_head(raw: bytes, most: int) -> tuple[Frame, int]:
    """Return kind and length in a frame's head; ``InvalidRequest`` where it is none, or announces more than *most* bytes."""
    number, size = _HEAD.unpack(raw)
    try:
        kind = Frame(number)
    except ValueError:
        raise InvalidRequest(f"a frame of kind {number}; this is the socket of Fletching's local plane") from None
    if size > most:
        raise InvalidRequest(f"a frame of {size:,} bytes; at most {most:,} are read")
    return kind, size


def packed(serials: Sequence[int], rest: bytes = b"") -> bytes:
    """Return the body of READ or IMAGES: how many serials, the serials, then *rest*."""
    return struct.pack(f"<I{len(serials)}Q", len(serials), *serials) + rest


def unpacked(body: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the serials in *body*, and what follows them; ``InvalidRequest`` where it is cut short."""
    try:
        (count,) = struct.unpack_from("<I", body)
        if count > MAX_MAPPED:
            raise InvalidRequest(f"{count:,} images are named as mapped; at most {MAX_MAPPED:,}")
        return struct.unpack_from(f"<{count}Q", body, 4), body[4 + 8 * count :]
    except struct.error:
        raise InvalidRequest("the frame ends too early") from None


def error_body(error: Error) -> bytes:
    """Return *error* as it travels in an ERROR frame."""
    told = {"code": error.code, "message": error.message, "retry_at": error.retry_at and error.retry_at.isoformat()}
    return json.dumps(told).encode()


def told_error(body: bytes) -> Error:
    """Return the error in an ERROR frame."""
    told: dict[str, Any] = json.loads(body)
    retry_at = told.get("retry_at")
    return error_from_code(str(told["code"]), str(told["message"]), datetime.fromisoformat(retry_at) if retry_at else None)
