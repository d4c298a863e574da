"""The child that runs the real AKShare: ``python -m fletching_server.sources.akshare.worker``.

    stdin    one JSON object per line: a request, or the answer to a question    a closed stdin ends the process
    stdout   frames (see ``channel``); the first one says that the import is done
    stderr   everything else, stray prints of the library included

Before each HTTP request the child asks its parent, who keeps the budgets. This module may be imported anywhere: akshare,
pandas and requests are loaded only where it runs as a program.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import IO, Any, Final
from urllib.parse import urlsplit

import pyarrow as pa

from fletching_schemas.tagged import from_tagged
from fletching_server.sources.akshare import channel
from fletching_server.sources.akshare_frames import encode

# Connect and read, inside the parent's deadline: a slow upstream then costs an error and not a new child.
TIMEOUT_SECONDS: Final = (5.0, 20.0)
_REFUSING: Final = frozenset({403, 412, 418, 429})
_TOLD_BYTES: Final = 200


class Refused(Exception):  # noqa: N818  # what happened: the parent has no budget left for this request
    """The parent does not let a request go."""


class Line:
    """The child's end of the channel: one conversation at a time, whichever thread of the library needs it."""

    def __init__(self, out: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
        self._out, self._lines = out, lines
        self._lock = threading.RLock()

    def send(self, frame: pa.Table) -> None:
        """Send an answer."""
        with self._lock:
            channel.send(self._out, frame)

    def next(self) -> dict[str, Any]:
        """Return the next request."""
        request: dict[str, Any] = json.loads(self._lines.get())
        return request

    def ask(self, note: dict[str, Any]) -> dict[str, Any]:
        """Return the parent's answer to *note*."""
        with self._lock:
            channel.send(self._out, channel.noted(note))
            return self.next()


class Upstream:
    """The library, its HTTP clients watched: with permission, with timeouts, and remembered, as its errors hide the rest."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._library: Any = None
        self._last: dict[str, Any] = {}
        self._barred: Exception | None = None

    def load(self) -> pa.Table:
        """Import the library, which takes a second or two, and return an empty table."""
        self._library = import_module("akshare")
        self._watch_requests(import_module("requests").Session)
        self._watch_curl(import_module("curl_cffi.requests").Session)
        return pa.table({})

    def _watch_requests(self, session: Any) -> None:
        send = session.send

        def watched(this: Any, request: Any, **options: Any) -> Any:
            if options.get("timeout") is None:
                options["timeout"] = TIMEOUT_SECONDS
            return self._watched(request.url, lambda: send(this, request, **options))

        session.send = watched

    def _watch_curl(self, session: Any) -> None:
        request = session.request

        def watched(this: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
            options.setdefault("timeout", TIMEOUT_SECONDS)
            return self._watched(url, lambda: request(this, method, url, *args, **options))

        session.request = watched

    def _watched(self, url: str, send: Callable[[], Any]) -> Any:
        """Return the response to one request; after a refusal none of this call's requests leaves any more."""
        if self._barred is not None:
            raise self._barred
        host = urlsplit(url).hostname
        self._last = {"host": host, "status": None}
        answer = self._line.ask({"spend": host})
        try:
            if not answer.get("go"):
                raise Refused(answer.get("why", "no budget"))
            response = send()
            content = response.content[:_TOLD_BYTES]
            kind = response.headers.get("content-type", "")
            self._last |= {"status": response.status_code, "type": kind, "begins": content.decode(errors="replace")}
            response.raise_for_status()  # the library reads a 429 with a JSON body as "no data"
        except Exception as error:
            if isinstance(error, Refused) or self._last["status"] in _REFUSING or self._last["status"] is None:
                self._barred = error
            raise
        return response

    def call(self, function: str, arguments: dict[str, Any]) -> pa.Table:
        """Return what *function* of the library returns, as its own names and types say; some functions are ours."""
        if function == "sina_factors":
            return self._sina_factors(**arguments)
        if function == "children_memory":
            return pa.table({"bytes": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]})
        frame = getattr(self._library, function)(**arguments)
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)

    def encoded(self, function: str, arguments: dict[str, Any]) -> pa.Table:
        """Return the same in the form from which a client rebuilds exactly what the library returned."""
        return encode(getattr(self._library, function)(**from_tagged(arguments)))

    def _sina_factors(self, symbol: str) -> pa.Table:
        """Return the cumulative factors of one symbol: the library would run the answer through ``eval``."""
        url = f"https://finance.sina.com.cn/realstock/company/{symbol}/hfq.js"
        text = import_module("requests").get(url, timeout=TIMEOUT_SECONDS).text
        rows = json.loads(text.split("=", 1)[1].split("\n", 1)[0].rstrip("; "))["data"]
        return pa.table({name: pa.array([str(row[name]) for row in rows], pa.string()) for name in ("d", "f")})

    def attempt(self, call: Callable[[], pa.Table]) -> pa.Table:
        """Return what *call* returns, or its failure as a frame that the parent can read."""
        self._last, self._barred = {"host": None, "status": None}, None
        try:
            return call()
        except Exception as error:  # noqa: BLE001  whatever the library raises is the parent's to judge
            chain = list(_chain(error))
            failure = {
                "classes": [kind.__name__ for link in chain for kind in type(link).__mro__],
                "text": " <- ".join(f"{type(link).__name__}: {link!s:.300}" for link in chain[:4]),
                **self._last,
            }
            return channel.noted({"failure": failure})


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and everything it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


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
    line = Line(out, lines)
    upstream = Upstream(line)
    line.send(upstream.attempt(upstream.load))
    while True:
        request = line.next()
        encoded = request.pop("encoded", False)
        call = upstream.encoded if encoded else upstream.call
        line.send(upstream.attempt(lambda call=call, asked=request: call(**asked)))  # type: ignore[misc]


if __name__ == "__main__":
    main()
