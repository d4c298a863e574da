"""The local plane: answers as places in memory that the server shares with this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from fletching._channel import Channel, Unusable
from fletching._frames import decoded, framed
from fletching._images import Images, MappedImage
from fletching._places import Layer, Run, as_batches, as_frame, as_table
from fletching._repeats import Repeat, Repeats
from fletching_schemas import ReadInfo, ReadRequest
from fletching_schemas.errors import Error, InvalidRequest, ServerUnreachable, SourceTimeout
from fletching_schemas.local import LASTING, Frame, told_error, unpacked

_HOST: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_IDLE: Final = 16  # connections; each is a thread of the server
_BROKEN: Final = (OSError, ValueError, LookupError, TypeError, pa.ArrowException, InvalidRequest)


class LocalPlane:
    """Connections to one server's local socket, as many as are used at the same time, and the images that are mapped."""

    def __init__(self, facts: Mapping[str, Any], timeout: float) -> None:
        """Connect by the server's *facts*; ``Unusable`` where it runs on another host, or its socket cannot be reached."""
        if not _HOST.exists() or facts.get("host") != _HOST.read_text().strip():
            raise Unusable("the server runs on another host")
        self._path, self._instance, self._timeout = str(facts.get("path")), str(facts.get("instance")), timeout
        first = self._channel()
        self._images, self._repeats = Images(), Repeats(first.take_board())
        self.renew_locks()
        self._idle: list[Channel] = [first]

    def renew_locks(self) -> None:
        """Take new locks: in a forked child the old ones may be held by threads that only the parent has."""
        self._lock = threading.Lock()
        self._images.renew_lock()
        self._repeats.renew_lock()

    def arrive_in_child(self) -> None:
        """Make connections of one's own; what is mapped stays so."""
        self.renew_locks()
        self._idle = []

    def _channel(self) -> Channel:
        return Channel(self._path, self._instance, self._timeout)

    def read(self, request: ReadRequest) -> MappedAnswer | SentAnswer | RepeatedAnswer:
        """Return the answer; ``Unusable`` where it must be asked for otherwise."""
        if not request.info and (repeat := self._repeats.get(request)) is not None and self._is_there():
            return RepeatedAnswer(request, repeat)
        asking = _Asking(request, request.to_bytes(), self._images.known(), self._repeats.number(), time.monotonic())
        with self._lock:
            channel = self._idle.pop() if self._idle else None
        channel = channel or self._channel()
        try:
            answer = self._asked(channel, asking)
        except BaseException as error:
            channel.close()
            if isinstance(error, TimeoutError):
                raise SourceTimeout(f"{self._path} did not answer within {self._timeout:g} s (timeout=...)") from error
            if isinstance(error, _BROKEN):
                raise Unusable(str(error)) from error
            raise
        if not isinstance(answer, SentAnswer):
            self.give_back(channel)
        if isinstance(answer, Error):
            raise answer
        return answer

    def _is_there(self) -> bool:
        """Return whether the server has not gone since it vouched."""
        with self._lock:
            return bool(self._idle) and self._idle[-1].quiet()

    def _asked(self, channel: Channel, asking: _Asking) -> MappedAnswer | SentAnswer | Error:
        """Return the answer, or the error that the server sent."""
        known = asking.known
        channel.ask(list(known), asking.raw)
        kind, body = channel.receive()
        while kind == Frame.IMAGES:
            known |= {serial: MappedImage(*channel.descriptors(2)) for serial in unpacked(bytes(body))[0]}
            kind, body = channel.receive()
        if kind == Frame.ERROR:
            return told_error(bytes(body))
        if kind == Frame.ARROW:
            return SentAnswer(self, channel, asking, body)
        if kind != Frame.MAPPED:
            raise Unusable(f"a frame of kind {kind.name} is no answer")
        told = json.loads(bytes(body))
        _, ending = channel.receive()
        used = {serial: known[serial] for serial in told["images"]}
        answer = MappedAnswer(asking.request, _layers(told, list(used.values())), told["columns"], bytes(ending))
        self._images.keep({serial: image for serial, image in used.items() if serial != told["once"]})
        return answer

    def lasts(self, asking: _Asking, stream: bytes) -> None:
        """Keep *stream*, which the server vouches for."""
        self._repeats.keep(asking.request, stream, asking.number, asking.at)

    def give_back(self, channel: Channel) -> None:
        """Keep *channel*, on which an answer has ended, for the next one; not more than are likely to be used at a time."""
        with self._lock:
            wanted = len(self._idle) < _MOST_IDLE
            if wanted:
                self._idle.append(channel)
        if not wanted:
            channel.close()

    def unmap(self) -> None:
        """Let go of the images that no frame refers to, and of answers that might come again."""
        self._images.clear()
        self._repeats.clear()

    def close(self) -> None:
        """Hang up; what frames refer to stays mapped."""
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()
        self._images.clear()


def _layers(told: Mapping[str, Any], images: list[MappedImage]) -> list[Layer]:
    """Return where each layer's rows lie: ``parts`` is flat, see ``fletching_schemas.local``."""
    names, parts = told["layers"], told["parts"]
    step = 1 + 2 * len(names)
    rows = parts[::step]
    return [
        Layer(
            tuple(columns),
            tuple(
                Run(images[image], start, count)
                for image, start, count in zip(parts[1 + 2 * at :: step], parts[2 + 2 * at :: step], rows, strict=True)
            ),
        )
        for at, columns in enumerate(names)
    ]


@dataclass(frozen=True)
class _Asking:
    """One question: as it is sent, what is mapped, and what the board and the monotonic clock showed before it was asked."""

    request: ReadRequest
    raw: bytes
    known: dict[int, MappedImage]
    number: int
    at: float


class MappedAnswer:
    """An answer that lies in mapped images; complete from the start."""

    def __init__(self, request: ReadRequest, layers: list[Layer], columns: list[str], ending: bytes) -> None:
        self.info = ReadInfo.from_bytes(ending) if request.info else ReadInfo(request.dataset, "local")
        self._layers, self._columns = layers, columns

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema."""
        return self.table().schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return as_batches(self._columns, self._layers)

    def table(self) -> pa.Table:
        """Return all rows."""
        return as_table(self._columns, self._layers)

    def frame(self) -> pl.DataFrame:
        """Return all rows as Polars holds them, without passing Arrow again."""
        return as_frame(self._columns, self._layers)

    def close(self) -> None:
        """Do nothing: what is mapped is let go with the frames that refer to it."""


class SentAnswer:
    """An answer whose rows travel on the socket: *first*, an IPC stream, has come."""

    def __init__(self, plane: LocalPlane, channel: Channel, asking: _Asking, first: bytes | pa.Buffer) -> None:
        self.info = ReadInfo(asking.request.dataset, "local")
        self._plane, self._asking, self._first = plane, asking, first
        self._channel: Channel | None = channel

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema."""
        return pa.ipc.open_stream(self._first).schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for stream in self._streams():
                yield from (batch for batch in pa.ipc.open_stream(stream) if batch.num_rows)
        finally:
            self.close()

    def table(self) -> pa.Table:
        """Return all rows, in place of iterating."""
        return pa.concat_tables([pa.ipc.open_stream(stream).read_all() for stream in self._all()])

    def frame(self) -> pl.DataFrame:
        """Return all rows as Polars holds them, in place of iterating."""
        streams = self._all()
        if len(streams) == 1 and isinstance(streams[0], bytes):
            return decoded(streams[0])
        return framed(pa.concat_tables([pa.ipc.open_stream(stream).read_all() for stream in streams]))

    def _all(self) -> list[bytes | pa.Buffer]:
        try:
            return list(self._streams())
        finally:
            self.close()

    def _streams(self) -> Iterator[bytes | pa.Buffer]:
        count, stream = 1, self._first
        yield stream
        while (channel := self._channel) is not None:
            kind, body = self._next(channel)
            if kind == Frame.ARROW:
                count, stream = count + 1, body
                yield stream
                continue
            self._channel = None
            self._plane.give_back(channel)
            if kind == Frame.ERROR:
                raise told_error(bytes(body))
            if self._asking.request.info:
                self.info = ReadInfo.from_bytes(bytes(body))
            elif body == LASTING and count == 1 and isinstance(stream, bytes):
                self._plane.lasts(self._asking, stream)

    def _next(self, channel: Channel) -> tuple[Frame, bytes | pa.Buffer]:
        try:
            return channel.receive()
        except TimeoutError as error:
            raise SourceTimeout("the server sent no more rows in time (timeout=...)") from error
        except (OSError, InvalidRequest, Unusable) as error:
            raise ServerUnreachable(f"the server broke off in the middle of an answer: {error}; read again") from error

    def close(self) -> None:
        """Stop early: the server lets go of what it holds for the answer when the connection ends."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class RepeatedAnswer:
    """An answer that is good for another time."""

    def __init__(self, request: ReadRequest, repeat: Repeat) -> None:
        self.info = ReadInfo(request.dataset, "local")
        self._stream = repeat.stream

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema."""
        return self.table().schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (batch for batch in pa.ipc.open_stream(self._stream) if batch.num_rows)

    def table(self) -> pa.Table:
        """Return all rows."""
        return pa.ipc.open_stream(self._stream).read_all()

    def frame(self) -> pl.DataFrame:
        """Return all rows as Polars holds them."""
        return decoded(self._stream)

    def close(self) -> None:
        """Do nothing."""
