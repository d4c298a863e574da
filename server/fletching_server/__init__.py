"""The server side of Fletching: the engine, its tiers, its sources, and the edges that serve it.

    cli, __main__           commands                       testing      contract suites and a clock for users' tests
    service                 a server's life                flight       the Flight edge: decode, call, encode
    engine                  puts the parts together
    reads, fills, writes    the three paths                compaction, repair, verify, inspection
    plan                    what a request resolves to, before any data moves
    hot, cold               the tiers                      desk         the sources of one engine
    store, catalogue        the durable side               changes, tables, snapshot, parquet, disk
    calendars, coverage, admission, image, pieces, batches, spans, policy      pure parts
    settings, stats, clock

``fletching.open`` uses ``open_engine``; everything else is for those who extend the server.
"""

from fletching_server.embedding import open_engine
from fletching_server.engine import Engine
from fletching_server.settings import Settings

__all__ = ["Engine", "Settings", "open_engine"]
