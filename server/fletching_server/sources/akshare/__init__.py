"""China's markets through the real AKShare, which runs in supervised children and never in this process.

    source        what is offered, and one fetch                 offers      which function serves which dataset
    library       the children: one per family of hosts          child       one child, seen from here
    worker        what runs in the child                         channel     frames between the two
    failures      what a failure in the child means              columns     Chinese columns to canonical ones, checked
    bars  tables  the frames of each function as canonical rows

A frame is refused as a whole where anything in it does not fit; nothing is repaired and nothing rescaled.
"""

from fletching_server.sources.akshare.source import AkshareSource

__all__ = ["AkshareSource"]
