"""What the engine counts, as Prometheus metrics over HTTP: every figure of ``stats`` under its own name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fletching_schemas import Action
from fletching_schemas.errors import InvalidRequest, ListenFailed
from fletching_server import books, stats

_COUNTERS: Final = {**stats.COUNTERS, **books.COUNTERS}

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from fletching_server.engine import Engine


class EngineCollector(Collector):
    """The engine's figures, read when somebody asks for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield a counter per counter of ``stats``, a gauge per other figure, and how far each calendar is known."""
        figures: Any = self._engine.act(Action.STATS, {})
        for name, value in sorted(figures.items()):
            if name in _COUNTERS:
                yield CounterMetricFamily(f"fletching_{name}", _COUNTERS[name], value=value)
            elif isinstance(value, (int, float)):
                yield GaugeMetricFamily(f"fletching_{name}", f"{name.replace('_', ' ')}, see docs/interface.md", value=value)
        days = GaugeMetricFamily(
            "fletching_calendar_known_until_days", "Days from today for which the exchange's calendar is known.", labels=["mic"]
        )
        for mic, left in self._engine.evidence.known_days().items():
            days.add_metric([mic], left)
        yield days


class Metrics:
    """An HTTP server at ``HOST:PORT`` that answers ``/metrics``; it serves from construction to ``close``."""

    def __init__(self, engine: Engine, listen: str) -> None:
        host, port = _address(listen)
        registry = CollectorRegistry()
        registry.register(EngineCollector(engine))
        try:
            served: tuple[WSGIServer, threading.Thread] = start_http_server(port, host, registry)
        except OSError as error:
            raise ListenFailed(
                f"cannot serve metrics at {listen}: {error.strerror}; stop what uses it, or choose another"
            ) from error
        self._server, self._thread = served
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _address(listen: str) -> tuple[str, int]:
    parts = urlsplit(f"//{listen}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"metrics={listen!r}: {error}") from error
    if not host or port is None or parts.path:
        raise InvalidRequest(f"metrics={listen!r}; write HOST:PORT, such as 127.0.0.1:9187")
    return host, port
