"""One child, seen from its owner: asked one thing at a time, killed with all it started where it does not answer in time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final, cast

import pyarrow as pa
import structlog

from fletching_schemas.errors import SourceTimeout, SourceUnavailable
from fletching_server.sources.akshare import channel

START_SECONDS: Final = 60.0  # the import takes 2 s on a quiet machine, far more on a busy one
MAX_LINE_BYTES: Final = 2_000
MAX_LOGGED_LINES: Final = 1_000

_PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
_AUTHORITIES: Final = frozenset({"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_PASSED_ON: Final = frozenset({"PATH", "HOME", "LANG"}) | _PROXIES | _AUTHORITIES
_log = structlog.get_logger(__name__)

# Asked before each HTTP request, with its host: returns, or raises what the call then fails with.
Permit = Callable[[str], None]


class Child:
    """One process; ``kill`` and ``end`` may be called from any thread.

    Whatever breaks the exchange leaves the child dead: it raises ``SourceTimeout`` past the deadline (the whole process
    group is killed) and ``SourceUnavailable`` with the child's last words otherwise.
    """

    def __init__(self, command: list[str] | None = None) -> None:
        # -P: a file called json.py in the server's working directory is not the standard library's.
        worker = [sys.executable, "-P", "-X", "utf8", "-m", "fletching_server.sources.akshare.worker"]
        try:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                command or worker,
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
        self.calls = 0
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
        return self._exchange(None, START_SECONDS, lambda _host: None, "start")

    def ask(self, request: dict[str, Any], seconds: float, permit: Permit) -> pa.Table:
        """Return the answer to one request; waiting for *permit* does not count against *seconds*."""
        self.calls += 1
        return self._exchange(json.dumps(request).encode() + b"\n", seconds, permit, "answer")

    def _exchange(self, line: bytes | None, seconds: float, permit: Permit, what: str) -> pa.Table:
        refusal: BaseException | None = None
        try:
            if line is not None:
                self._stdin.write(line)
            while True:
                started = time.monotonic()
                frame = self._receive(started + seconds, what)
                note = channel.note_of(frame)
                if note is None or "spend" not in note:
                    break
                seconds -= time.monotonic() - started
                refusal = self._permitted(permit, str(note["spend"])) or refusal
        except SourceTimeout:
            raise
        except (OSError, EOFError, pa.ArrowException) as error:
            self.end()
            words = "".join(self._words) or "it said nothing"
            raise SourceUnavailable(f"akshare's worker died before it could {what}: {words}") from error
        if refusal is not None and note is not None:
            raise refusal
        return frame

    def _permitted(self, permit: Permit, host: str) -> BaseException | None:
        """Answer the child's question; returns the error where the request may not go."""
        try:
            permit(host)
        except Exception as error:  # noqa: BLE001  # it is raised when the child has given up its call
            self._stdin.write(json.dumps({"go": False, "why": str(error)[:300]}).encode() + b"\n")
            return error
        self._stdin.write(b'{"go": true}\n')
        return None

    def _receive(self, deadline: float, what: str) -> pa.Table:
        (size,) = channel.LENGTH.unpack(self._exactly(channel.LENGTH.size, deadline, what))
        if size > channel.MAX_FRAME_BYTES:
            raise pa.ArrowInvalid(f"a frame of {size:,} bytes; at most {channel.MAX_FRAME_BYTES:,} are read")
        return channel.decoded(self._exactly(size, deadline, what))

    def _exactly(self, size: int, deadline: float, what: str) -> bytearray:
        found, descriptor = bytearray(), self._stdout.fileno()
        while len(found) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.end()
                raise SourceTimeout(f"akshare's worker did not {what} in time and was killed")
            part = os.read(descriptor, min(size - len(found), 1 << 20))
            if not part:
                raise EOFError("the worker closed its end")
            found += part
        return found

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
