"""The process in which the real AKShare runs: ``Worker`` is the parent's hold on it, ``main`` what it does.

    stdin    one JSON object per line: code, start, end           a closed stdin ends the process
    stdout   frames: 8 bytes of length, then an Arrow IPC stream  the first one says that the import is done
    stderr   everything else, stray prints of the library included

A failure travels as a table without columns whose schema metadata holds it as JSON. This module may be imported
anywhere: akshare, pandas and requests are loaded only where it runs as a program.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import pyarrow as pa
import structlog

from fletching_schemas.errors import SourceTimeout, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS: Final = 30.0  # the import takes 2 s on a quiet machine, far more on a busy one
# Connect and read, inside the parent's deadline of 30 s: a slow upstream then costs an error and not a new child.
TIMEOUT_SECONDS: Final = (5.0, 20.0)
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024  # 35 years of one symbol take 1 MB
MAX_LINE_BYTES: Final = 2_000
MAX_LOGGED_LINES: Final = 1_000

_FAILURE: Final = b"failure"
_LENGTH: Final = struct.Struct(">Q")
_PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
_AUTHORITIES: Final = frozenset({"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_PASSED_ON: Final = frozenset({"PATH", "HOME", "LANG"}) | _PROXIES | _AUTHORITIES
_log = structlog.get_logger(__name__)


class Worker:
    """One child process; its owner asks one thing at a time. ``kill`` and ``end`` may be called from any thread.

    Whatever breaks the exchange leaves the child dead: it raises ``SourceTimeout`` past the deadline (the whole process
    group is killed) and ``SourceUnavailable`` with the child's last words otherwise.
    """

    def __init__(self) -> None:
        # -P: a file called json.py in the server's working directory is not the standard library's.
        command = [sys.executable, "-P", "-X", "utf8", "-m", __name__]
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise SourceUnavailable(f"akshare's worker cannot be started: {error}") from error
        self._stdin, self._stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        self._killed = False
        self._reaping = threading.Lock()  # a group is signalled only while its id cannot have been reused
        self._words: deque[str] = deque(maxlen=1)
        stderr = cast("IO[bytes]", self._process.stderr)
        self._listener = threading.Thread(target=_drain, args=(stderr, self._words), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child can be asked."""
        with self._reaping:
            return not self._killed and self._process.poll() is None

    def hello(self) -> pa.Table:
        """Return the frame that ends the child's start."""
        with self._deadline(START_SECONDS, "start"):
            return _receive(self._stdout)

    def ask(self, line: bytes, seconds: float) -> pa.Table:
        """Return the answer to one request line."""
        with self._deadline(seconds, "answer"):
            self._stdin.write(line)
            return _receive(self._stdout)

    def kill(self) -> None:
        """Kill the process and what it started; whoever waits for its answer is woken."""
        with self._reaping:
            self._killed = True
            if self._process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and return when it is gone and its pipes are closed."""
        self.kill()
        with self._reaping:
            self._process.wait()
        self._stdin.close()
        self._stdout.close()
        if threading.current_thread() is not self._listener:  # the garbage collector runs in any thread
            self._listener.join(timeout=5)

    @contextmanager
    def _deadline(self, seconds: float, what: str) -> Iterator[None]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, EOFError, pa.ArrowException) as error:
            self.end()
            if expired.is_set():
                raise SourceTimeout(f"akshare's worker did not {what} within {seconds:g} s and was killed") from error
            words = "".join(self._words) or "it said nothing"
            raise SourceUnavailable(f"akshare's worker died before it could {what}: {words}") from error
        finally:
            timer.cancel()


def _environment() -> dict[str, str]:
    """Return what the child may know: how to reach the network, and no credentials of the server."""
    return {name: value for name, value in os.environ.items() if name.upper() in _PASSED_ON} | {"TQDM_DISABLE": "1"}


def _drain(stderr: IO[bytes], words: deque[str]) -> None:
    """Keep the child's last words and log its first thousand lines; reading never stops, or the child would."""
    with stderr:
        for number, line in enumerate(iter(lambda: stderr.readline(MAX_LINE_BYTES), b"")):
            text = line.decode(errors="replace").strip()
            if text:
                words.append(text)
            if text and number < MAX_LOGGED_LINES:
                _log.debug("akshare worker", line=text)


def _receive(stream: IO[bytes]) -> pa.Table:
    (size,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if size > MAX_FRAME_BYTES:
        raise pa.ArrowInvalid(f"a frame of {size:,} bytes; at most {MAX_FRAME_BYTES:,} are read")
    table = pa.ipc.open_stream(_exactly(stream, size)).read_all()
    table.validate(full=True)
    return table


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    found = bytearray()
    while len(found) < size:
        part = stream.read(size - len(found))
        if not part:
            raise EOFError("the worker closed its end")
        found += part
    return found


def failure_of(frame: pa.Table) -> dict[str, Any] | None:
    """Return the failure that *frame* reports, or None where it is an answer."""
    raw = (frame.schema.metadata or {}).get(_FAILURE)
    return None if raw is None else cast("dict[str, Any]", json.loads(raw))


class Upstream:
    """The library, with a note of whom it asked last: its own exceptions hide host and status."""

    def __init__(self) -> None:
        self.host: str | None = None
        self.status: int | None = None
        self._library: Any = None

    def load(self) -> pa.Table:
        """Import the library, which takes a second or two, and return an empty table."""
        self._library = import_module("akshare")
        self._watch(import_module("requests").Session)
        return pa.table({})

    def _watch(self, session: Any) -> None:
        send = session.send

        def watched(this: Any, request: Any, **options: Any) -> Any:
            self.host, self.status = urlsplit(request.url).hostname, None
            response = send(this, request, **options)
            self.status = response.status_code
            response.raise_for_status()  # the library reads a 429 with a JSON body as "no data"
            return response

        session.send = watched

    def daily(self, code: str, start: str, end: str) -> pa.Table:
        """Return the unadjusted daily bars of *code* as the library names and types them."""
        self.host = self.status = None
        frame = self._library.stock_zh_a_hist(
            symbol=code, period="daily", start_date=start, end_date=end, adjust="", timeout=TIMEOUT_SECONDS
        )
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)

    def attempt(self, call: Callable[[], pa.Table]) -> pa.Table:
        """Return what *call* returns, or its failure as a table that the parent can read."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001  whatever the library raises is the parent's to judge
            chain = list(_chain(error))
            failure = {
                "classes": [kind.__name__ for link in chain for kind in type(link).__mro__],
                "text": " <- ".join(f"{type(link).__name__}: {link!s:.300}" for link in chain[:4]),
                "host": self.host,
                "status": self.status,
            }
            return pa.table({}).replace_schema_metadata({_FAILURE: json.dumps(failure)})


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and everything it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _send(out: IO[bytes], table: pa.Table) -> None:
    """Write *table* as one frame."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    out.write(_LENGTH.pack(body.size))
    out.write(body)
    out.flush()


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on the lines of stdin, and end the process with it: a fetch without a parent is worth nothing."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Answer requests until stdin closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # before the import: what the library prints must not land between the frames
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    upstream = Upstream()
    _send(out, upstream.attempt(upstream.load))
    while True:
        request = json.loads(lines.get())
        _send(out, upstream.attempt(lambda asked=request: upstream.daily(**asked)))  # type: ignore[misc]


if __name__ == "__main__":
    main()
