"""Where logs go: stderr, as lines for people or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")


def configure(level: str, form: str) -> None:
    """Log from *level* on to stderr, as ``console`` lines or as ``json``; tracebacks without the values of variables."""
    common: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        last: list[structlog.types.Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[*common, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_names: structlog.PrintLogger(sys.stderr),  # looked up anew: programs replace their stderr
    )


def configure_where_nobody_has() -> None:
    """Log warnings only, for an engine inside somebody's program; structlog's own default prints everything on stdout."""
    if not structlog.is_configured():
        configure("warning", "console")
