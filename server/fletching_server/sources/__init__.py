"""Where missing rows come from: the protocol, and the sources that ship.

protocol   what a source must do
admission  what the server makes of a source's answer before it is stored
sim        a deterministic market, no network         files   folders of CSV, zipped CSV or Parquet
akshare    the real library, in a worker process      registry  a source from its name
akshare_frames     what the library returned, as Arrow and exactly
akshare_functions  which functions it has, and their parameters
"""

from fletching_server.sources.protocol import (
    Budget,
    Caller,
    FunctionLister,
    Lifetime,
    LifetimeTeller,
    Meter,
    Metered,
    Source,
    SymbolLister,
)

__all__ = ["Budget", "Caller", "FunctionLister", "Lifetime", "LifetimeTeller", "Meter", "Metered", "Source", "SymbolLister"]
