"""What a client is told where something fails: our errors as they are, and of a bug only that there is one."""

from __future__ import annotations

import structlog

from fletching_schemas.errors import Error, InternalError

log = structlog.get_logger(__name__)


def presentable(error: BaseException) -> Error:
    """Return *error* where it is one of ours; what is not may name paths and values, so it is logged and replaced."""
    if isinstance(error, Error):
        return error
    log.error("a bug answered a request", exc_info=error)
    return InternalError("the server failed on this request; its log has the details")
