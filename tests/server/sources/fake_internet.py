"""A stand-in for the internet: a proxy that ends TLS with its own authority and answers from a table of routes."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlsplit

import trustme

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Query = dict[str, str]
Reply = bytes | tuple[int, bytes] | Literal["drop", "hang"]
Route = tuple[str, str]


class FakeInternet:
    """Routes map (host, path) to a body, (status, body), "drop", "hang", or a function of the query that returns one.

    ``seen`` lists the requests as (host, path, query). ``reached`` is set whenever one has arrived.
    """

    def __init__(self, folder: Path) -> None:
        self.routes: dict[Route, Reply | Callable[[Query], Reply]] = {}
        self.seen: list[tuple[str, str, Query]] = []
        self.reached = threading.Event()
        self._bundle = str(folder / "authority.pem")
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self._bundle)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._guard, self._closing = threading.Lock(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def environment(self) -> dict[str, str]:
        """Return the variables that send a process here: libcurl reads the lower-case names, requests either."""
        proxy = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        trust = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
        return dict.fromkeys(names, proxy) | dict.fromkeys(trust, self._bundle)

    def close(self) -> None:
        """Stop listening, let hanging connections go and wait for them."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):  # ssl.SSLError included: the client left
            try:
                method, target = _request_line(connection)
                if method == "CONNECT":
                    host = target.rpartition(":")[0]
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    connection = self._context(host).wrap_socket(connection, server_side=True)
                    target = f"https://{host}{_request_line(connection)[1]}"
                self._answer(connection, target)
            finally:
                connection.close()

    def _answer(self, connection: socket.socket, target: str) -> None:
        url = urlsplit(target)
        host, query = url.hostname or "", dict(parse_qsl(url.query))
        self.seen.append((host, url.path, query))
        self.reached.set()
        route = self.routes.get((host, url.path), (502, b"no route"))
        reply = route(query) if callable(route) else route
        if reply == "hang":
            self._closing.wait()
        if isinstance(reply, str):
            return
        status, body = reply if isinstance(reply, tuple) else (200, reply)
        head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    def _context(self, host: str) -> ssl.SSLContext:
        with self._guard:
            if host not in self._contexts:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self._authority.issue_cert(host).configure_cert(context)
                self._contexts[host] = context
            return self._contexts[host]


def _request_line(connection: socket.socket) -> tuple[str, str]:
    """Return method and target of the request, once all of it has come."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += _part(connection)
    head, _, body = found.partition(b"\r\n\r\n")
    announced = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while announced and len(body) < int(announced[0]):  # closing with a body unread would reset the connection
        body += _part(connection)
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
    return method, target


def _part(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("the client left")
    return part
