"""Market data from a shared cache, as Polars frames.

    cache = fletching.connect()                  # a server: $FLETCHING_URL, or grpc://127.0.0.1:8815
    cache = fletching.open("store/", ["sim"])    # the same engine in this process
    bars = cache.read("bars_1d", "000001.SZ", "2024-01-01", "2024-12-31")

Instants are UTC, dates are sessions of the exchange, prices are unadjusted in currency per share, volumes in shares.
"""

from fletching._cache import Cache
from fletching._embed import open  # noqa: A004  # on purpose, as gzip.open
from fletching._served import connect
from fletching_schemas import Adjustment, Gap, ReadInfo, SymbolStatus, WriteResult
from fletching_schemas.errors import (
    AnswerChanged,
    BadSourceData,
    CorruptFile,
    Error,
    HistoryGone,
    InternalError,
    InvalidRequest,
    ListenFailed,
    NotBuilt,
    NotCached,
    OutOfCalendar,
    Overloaded,
    ServerClosing,
    ServerUnreachable,
    SourceChanged,
    SourceError,
    SourceThrottled,
    SourceTimeout,
    SourceUnavailable,
    StoreError,
    StoreInUse,
    StoreUnwritable,
    StoreVersion,
    UnknownColumn,
    UnknownDataset,
    UnknownFunction,
    UnknownSymbol,
)

__all__ = [
    "Adjustment",
    "AnswerChanged",
    "BadSourceData",
    "Cache",
    "CorruptFile",
    "Error",
    "Gap",
    "HistoryGone",
    "InternalError",
    "InvalidRequest",
    "ListenFailed",
    "NotBuilt",
    "NotCached",
    "OutOfCalendar",
    "Overloaded",
    "ReadInfo",
    "ServerClosing",
    "ServerUnreachable",
    "SourceChanged",
    "SourceError",
    "SourceThrottled",
    "SourceTimeout",
    "SourceUnavailable",
    "StoreError",
    "StoreInUse",
    "StoreUnwritable",
    "StoreVersion",
    "SymbolStatus",
    "UnknownColumn",
    "UnknownDataset",
    "UnknownFunction",
    "UnknownSymbol",
    "WriteResult",
    "connect",
    "open",
]
