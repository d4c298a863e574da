"""Metrics as Prometheus scrapes them."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import SYMBOLS, Opener, TableSource, read

from fletching_schemas.errors import InvalidRequest, ListenFailed
from fletching_server import Engine
from fletching_server.metrics import Metrics
from fletching_server.stats import COUNTERS
from fletching_server.testing import ManualClock


@pytest.fixture
def metrics(engine: Engine) -> Iterator[Metrics]:
    served = Metrics(engine, "127.0.0.1:0")
    yield served
    served.close()


def scraped(metrics: Metrics) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(metrics.url) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, s.labels.get("mic", "")): s.value for family in families for s in family.samples}


def test_every_counter_is_there_and_counts(engine: Engine, metrics: Metrics) -> None:
    read(engine, symbols=SYMBOLS[0], start="2026-11-02", end="2026-11-06")
    found = scraped(metrics)
    assert {(f"fletching_{name}_total", "") for name in COUNTERS} <= set(found)
    assert found["fletching_reads_total", ""] == 1
    assert found["fletching_rows_total", ""] == 5
    assert found["fletching_hot_bytes", ""] > 0


def test_a_calendar_that_runs_out_is_seen_coming(metrics: Metrics, clock: ManualClock) -> None:
    assert scraped(metrics)["fletching_calendar_known_until_days", "XSHG"] == 41
    clock.set(datetime(2026, 12, 5, 12, tzinfo=UTC))
    assert scraped(metrics)["fletching_calendar_known_until_days", "XSHG"] == 26
    clock.set(datetime(2027, 1, 10, 12, tzinfo=UTC))
    assert scraped(metrics)["fletching_calendar_known_until_days", "XSHG"] < 0


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:1/metrics", ""])
def test_an_address_that_is_none_is_refused(engine: Engine, listen: str) -> None:
    with pytest.raises(InvalidRequest, match="metrics="):
        Metrics(engine, listen)


def test_an_address_in_use_is_told(engine: Engine, metrics: Metrics) -> None:
    with pytest.raises(ListenFailed, match="cannot serve metrics"):
        Metrics(engine, metrics.url.removeprefix("http://").removesuffix("/metrics"))


def test_budgets_are_metrics_too(open_store: Opener, source: TableSource) -> None:
    engine = open_store(source, guard={source.name: {"per_hour": 10}})
    read(engine, symbols=SYMBOLS[0], start="2026-11-02", end="2026-11-06")
    served = Metrics(engine, "127.0.0.1:0")
    assert scraped(served)["fletching_guard_table_hour_requests", ""] == 1
    served.close()
