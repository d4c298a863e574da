"""Caches over every plane, and real servers in processes of their own; nothing started here outlives its test."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any, Literal

import pyarrow.flight as fl
import pytest

import fletching
from fletching import Cache
from fletching._embed import EmbeddedTransport
from fletching._served import ServedTransport
from fletching_server import Engine, handover, hot, open_engine
from fletching_server.service import Service
from fletching_server.testing import ManualClock

# "mapped" is "local" with limits of 0: even a few rows are handed over as places in shared memory.
PLANES = ("embedded", "tcp", "unix", "local", "mapped")
LOCAL = ("local", "mapped")
START_SECONDS = 60.0  # on a busy machine; a server is up in about one second


@dataclass
class Rig:
    """One engine, and a cache over it by one plane; *service* is None where the cache is embedded."""

    plane: str
    engine: Engine
    service: Service | None
    cache: Cache
    closing: ExitStack = field(repr=False)

    @property
    def url(self) -> str:
        assert self.service is not None
        return self.service.url

    def wait_until_idle(self) -> None:
        """Return once no call is under way; pyarrow reports the end of one a moment after its client saw it."""
        if self.service is not None:
            assert self.service._edge.calls.wait_until_idle(20), f"{self.service.active_calls} calls never ended"

    def let_go(self) -> None:
        """Return once no lease is held for this cache; frames that a test still has would keep theirs."""
        self.wait_until_idle()
        if self.service is not None and self.service.local is not None:
            if isinstance(self.cache._transport, ServedTransport) and self.cache._transport._local:
                self.cache._transport._local._images.clear()
            gc.collect()
            lifetimes = self.service.local.lifetimes
            assert lifetimes.wait_until_none(20), f"{lifetimes.count} leases of other processes never ended"


@contextmanager
def everything_is_mapped() -> Iterator[None]:
    """Take the limits away below which rows are sent, or stay in private memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "SENT_BYTES", -1)
        patch.setattr(handover, "FEW_SENT_BYTES", -1)
        patch.setattr(hot, "WORTH_BYTES", 0)
        yield


class Rigs:
    """Makes rigs and closes them: clients, then services, then engines."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made = ExitStack()
        self._count = 0

    def folder(self, name: str) -> Path:
        self._count += 1
        return self._root / f"{name}{self._count}"

    def listen(self, plane: str) -> str:
        return f"grpc+unix://{self.folder('s')}.sock" if plane in {"unix", "mapped"} else "grpc://127.0.0.1:0"

    def __call__(self, plane: str, sources: Sequence[Any] = (), clock: Any = None, **settings: Any) -> Rig:
        closing = self._made.enter_context(ExitStack())
        store = settings.pop("store", None) or self.folder("store")
        drain = settings.setdefault("drain_seconds", 2.0)
        if plane == "mapped":
            closing.enter_context(everything_is_mapped())
        shares = settings.pop("shares", plane in LOCAL)
        settings.setdefault("local_folder", self._root / "local")
        engine = closing.enter_context(open_engine(store, sources, clock, shares=shares, **settings))
        if plane == "embedded":
            return Rig(plane, engine, None, closing.enter_context(Cache(EmbeddedTransport(engine))), closing)
        service = closing.enter_context(Service(engine, self.listen(plane), drain_seconds=drain))
        forced: Any = "local" if plane in LOCAL else "flight"
        cache = closing.enter_context(fletching.connect(service.url, timeout=60, plane=forced))
        return Rig(plane, engine, service, cache, closing)

    def close(self) -> None:
        self._made.close()


@pytest.fixture(scope="session")
def short_root() -> Iterator[Path]:
    """A folder with a short path: the system allows about 107 bytes for a socket's, and pytest's own are long."""
    root = Path(tempfile.mkdtemp(prefix="fl-"))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def root(short_root: Path) -> Iterator[Path]:
    """A short folder of one test."""
    folder = Path(tempfile.mkdtemp(dir=short_root))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def rigs(root: Path) -> Iterator[Rigs]:
    made = Rigs(root)
    yield made
    made.close()


@pytest.fixture(scope="module")
def module_rigs(short_root: Path) -> Iterator[Rigs]:
    made = Rigs(Path(tempfile.mkdtemp(dir=short_root)))
    yield made
    made.close()


@pytest.fixture(params=PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def noon() -> Callable[[], ManualClock]:
    """Makers of clocks that stand at 20:00 in Shanghai on Friday 2024-06-14, when the day's session has settled."""
    return lambda: ManualClock(datetime(2024, 6, 14, 12, 0, tzinfo=UTC))


# Servers in processes of their own


Stop = Literal["kill", "term", "int"]
SIGNALS: dict[Stop, signal.Signals] = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


class Child:
    """A process of which this test knows the lines it prints, and that ends with the test at the latest."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its own children can be ended with it
            env={**os.environ, **(environment or {})},
        )
        self._out: Queue[str | None] = Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._out.put), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._errors.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, take: Callable[[Any], None]) -> None:
        for line in pipe:
            take(line.rstrip("\n"))
        if take == self._out.put:
            take(None)

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, seconds: float = START_SECONDS) -> str:
        """Return the next line on stdout; fail with what it wrote on stderr where there is none."""
        line = self._out.get(timeout=seconds)
        assert line is not None, f"the process ended with {self.wait()}: {self.errors()}"
        return line

    def send(self, stop: Stop) -> None:
        self.process.send_signal(SIGNALS[stop])

    def wait(self, seconds: float = START_SECONDS) -> int:
        return self.process.wait(seconds)

    def errors(self) -> str:
        """Return what was written on stderr, once the process has ended."""
        self.process.wait(START_SECONDS)
        self._readers[1].join(START_SECONDS)
        return "\n".join(self._errors)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join(START_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Server(Child):
    """``fletching serve`` in a process of its own."""

    def __init__(self, store: Path, listen: str, sources: Sequence[str] = (), environment: dict[str, str] | None = None) -> None:
        named = [word for source in sources for word in ("--source", source)]
        command = ["-m", "fletching_server", "serve", "--store", str(store), "--listen", listen, *named]
        super().__init__(command, environment)

    def url(self) -> str:
        """Return the address once it listens."""
        line = self.line()
        assert line.startswith("listening on "), line
        return line.removeprefix("listening on ")


class Processes:
    """Starts processes and ends them all."""

    def __init__(self) -> None:
        self._made: list[Child] = []

    def serve(
        self,
        store: Path,
        sources: Sequence[str] = (),
        listen: str = "grpc://127.0.0.1:0",
        environment: dict[str, str] | None = None,
    ) -> Server:
        server = Server(store, listen, sources, environment)
        self._made.append(server)
        return server

    def run(self, script: str, *arguments: str) -> Child:
        child = Child(["-c", script, *arguments])
        self._made.append(child)
        return child

    def command(self, words: Sequence[str], environment: dict[str, str] | None = None) -> Child:
        child = Child(words, environment)
        self._made.append(child)
        return child

    def close(self) -> None:
        for child in self._made:
            child.close()


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


@pytest.fixture(scope="module")
def module_processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


@pytest.fixture
def flight() -> Iterator[Callable[[Rig], fl.FlightClient]]:
    """Plain pyarrow clients; used with rigs, they close first."""
    with ExitStack() as opened:
        yield lambda rig: opened.enter_context(fl.connect(rig.url))
