"""Text cut into blocks of whole lines, from whatever it is packed in."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Final, cast

import pyarrow as pa

from fletching_schemas.errors import InvalidRequest
from fletching_server.importing.inputs import Input

LONGEST_LINE: Final = 64 << 20  # a file without line ends is not held in memory whole
UNREADABLE: Final = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError, pa.ArrowException)

BOM: Final = b"\xef\xbb\xbf"


@contextmanager
def opened_text(source: Input) -> Iterator[BinaryIO]:
    """Yield the unpacked bytes of *source*; ``InvalidRequest`` names it where they cannot be read to their end."""
    with ExitStack() as stack:
        try:
            yield _opened(source, stack)
        except UNREADABLE as error:
            raise InvalidRequest(f"cannot read {source.origin}: {error}; nothing of this import was published") from error


def _opened(source: Input, stack: ExitStack) -> BinaryIO:
    if source.compression == "zip":
        archive = stack.enter_context(zipfile.ZipFile(source.path))
        return cast("BinaryIO", stack.enter_context(archive.open(source.part or "")))
    if source.compression:
        packed = stack.enter_context(pa.CompressedInputStream(pa.OSFile(str(source.path)), source.compression))
        return cast("BinaryIO", packed)
    return stack.enter_context(source.path.open("rb", buffering=0))


def first_line(stream: BinaryIO) -> bytes:
    """Return the first line, without a byte order mark; the stream then stands anywhere."""
    found = b""
    while b"\n" not in found and (more := stream.read(64 << 10)):
        found += more
    return found.partition(b"\n")[0].removeprefix(BOM).rstrip(b"\r")


def blocks(stream: BinaryIO, size: int, quote: bytes = b'"') -> Iterator[bytes]:
    """Yield the bytes of *stream* in blocks of at most *size* that end where a line does; a quoted line end is none.

    Where a block ends depends on where it begins only, so blocks are the same when reading goes on at one of them.
    """
    rest = b""
    while more := _filled(stream, max(size - len(rest), size // 8, 1)):
        block = rest + more
        end = _cut(block, quote)
        if end:
            yield block[:end]
        elif len(block) > LONGEST_LINE:
            raise InvalidRequest(f"a line of more than {LONGEST_LINE >> 20} MB: is this CSV?")
        rest = block[end:]
    if rest:
        yield rest


def _filled(stream: BinaryIO, size: int) -> bytes:
    """Return *size* bytes, fewer only at the end: so blocks are the same whenever a file is read."""
    found = io.BytesIO()
    while (missing := size - found.tell()) and (more := stream.read(missing)):
        found.write(more)
    return found.getvalue()


def _cut(block: bytes, quote: bytes) -> int:
    """Return where the last whole line ends: behind a line end with an even number of quotes before it; 0: nowhere."""
    end = block.rfind(b"\n") + 1
    quotes = block.count(quote, 0, end)
    while end and quotes % 2:
        earlier = block.rfind(b"\n", 0, end - 1) + 1
        quotes -= block.count(quote, earlier, end)
        end = earlier
    return end
