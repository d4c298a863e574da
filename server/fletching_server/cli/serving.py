"""``fletching serve``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import structlog
import typer

from fletching_server import logs
from fletching_server.engine import Engine
from fletching_server.metrics import Metrics
from fletching_server.sealed import raise_descriptor_limit
from fletching_server.service import Address, Service, wait_for_signal
from fletching_server.settings import Settings, load_settings
from fletching_server.sources.registry import make_source

log = structlog.get_logger("fletching")

SOON_DAYS = 30
STUCK = 75  # exit status where a client that does not read kept a call open beyond the drain: EX_TEMPFAIL


def serve(
    store: Annotated[
        Path | None, typer.Option(help="Folder that holds everything; created where missing.", show_default="store")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help="grpc://HOST:PORT (port 0: any) or grpc+unix:///PATH.", show_default="grpc://127.0.0.1:8815"),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Where missing rows come from: sim, akshare, files:CONFIG.toml, ... Repeatable.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Budget of the hot tier, such as 4GiB.", show_default="512MiB")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML; arguments and FLETCHING_* variables override it.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Also serve Prometheus metrics at HOST:PORT.", show_default="not served")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow an address that other machines can reach.")] = False,
) -> None:
    """Serve a store over Arrow Flight until SIGTERM or SIGINT.

    Prints one line on stdout, "listening on ADDRESS", once it takes requests; logs go to stderr. Ends with status 0 when
    every stream under way has ended within drain_seconds, with 75 when one had to be cut off.

    Examples:
      fletching serve --store store --source sim

      fletching serve --store store --source files:ashare.toml --memory 4GiB
    """
    settings = load_settings(config, store=store, listen=listen, sources=source, memory=memory, metrics=metrics)
    logs.configure(settings.log_level, settings.log_format)
    Address.parse(settings.listen, insecure=insecure)  # before a store is created for nothing
    if not settings.sources:
        log.warning("no source: only what the store holds and user tables are served", store=str(settings.store))
    with ExitStack() as opened:
        if settings.local_plane:
            raise_descriptor_limit()
        sources = [make_source(spec) for spec in settings.sources]
        engine = opened.enter_context(Engine(settings, sources, shares=settings.local_plane))
        _warn_of_calendars(engine)
        if settings.metrics:
            Address.parse(f"grpc://{settings.metrics}", insecure=insecure)
            exported = Metrics(engine, settings.metrics)
            opened.callback(exported.close)
            log.info("metrics", url=exported.url)
        service = Service(engine, settings.listen, drain_seconds=settings.drain_seconds, insecure=insecure)
        signal_name = wait_for_signal(lambda: _announce(service, engine, settings))
        log.info("draining", signal=signal_name, calls_under_way=service.active_calls, at_most_seconds=settings.drain_seconds)
        ended = service.close()
    log.info("closed" if ended else "closed, with calls cut off")
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of a stuck call would keep the interpreter alive for ever; everything durable is closed by now.
    os._exit(0 if ended else STUCK)


def _warn_of_calendars(engine: Engine) -> None:
    for mic, days in engine.evidence.known_days().items():
        if days < SOON_DAYS:
            log.warning("the calendar is known for few more days only", mic=mic, days=days, see="docs/calendars.md")


def _announce(service: Service, engine: Engine, settings: Settings) -> None:
    log.info(
        "serving",
        url=service.url,
        store=str(settings.store.resolve()),
        sources=settings.sources,
        datasets=engine.names(),
        memory=settings.memory.human_readable(),
    )
    print(f"listening on {service.url}", flush=True)  # noqa: T201  # for scripts that wait for the address
